"""A miniature IEMOCAP in the tree of its release: all lines, faces and voices made up."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.data.miniature import line
from tests.media_files import sine, write_clip

CODES = {  # the release's code -> an annotator's word, and the label of the miniature corpora whose cues the text has
    "ang": ("Anger", "anger"),
    "hap": ("Happiness", "joy"),
    "exc": ("Excited", "surprise"),
    "dis": ("Disgust", "disgust"),
    "sad": ("Sadness", "sadness"),
    "fru": ("Frustration", "disgust"),
    "fea": ("Fear", "fear"),
    "sur": ("Surprise", "surprise"),
    "neu": ("Neutral", "neutral"),
    "oth": ("Other", "neutral"),
    "xxx": ("", "neutral"),
}
TURN = [("F", "neu"), ("M", "ang"), ("F", "sad"), ("M", "hap"), ("F", "exc"), ("M", "fru"), ("F", "xxx"), ("M", "sur")]
NAMES = ("impro01", "impro02", "script01_1")
FPS, SIZE = 5, (48, 96)  # frames a second; height, width


def utterances(name: str, turns: Sequence[tuple[str, str]] = TURN) -> list[tuple[str, str, float, float, str]]:
    """(id, code, start, end, text) of a dialogue: each utterance a second long, half a second apart."""
    rng = random.Random(name)
    counts = {"F": 0, "M": 0}
    out = []
    for i, (speaker, code) in enumerate(turns):
        key = f"{name}_{speaker}{counts[speaker]:03d}"
        counts[speaker] += 1
        out.append((key, code, 0.5 + 1.5 * i, 1.5 + 1.5 * i, line(rng, CODES[code][1])))
    return out


def write_dialogue(session: Path, name: str, turns: Sequence[tuple[str, str]] = TURN) -> None:
    """Transcription and labels of one dialogue."""
    spoken = utterances(name, turns)
    text = [f"{key} [{start:08.4f}-{end:08.4f}]: {said}" for key, _, start, end, said in spoken]
    write(session / "dialog/transcriptions" / f"{name}.txt", text)
    rated = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for key, code, start, end, _ in spoken:
        words = [CODES[code][0]] * 3 if code != "xxx" else ["Anger", "Frustration; Sadness", "Neutral state"]
        rated += [f"[{start:.4f} - {end:.4f}]\t{key}\t{code}\t[2.5000, 2.5000, 2.5000]"]
        rated += [f"C-E{i}:\t{word};\t()" for i, word in enumerate(words, 1)]
        rated += ["C-F1:\tSurprise;\t()", "A-E1:\tval 3; act 2; dom  2;\t(calm)", ""]
    write(session / "dialog/EmoEvaluation" / f"{name}.txt", rated)


def write(path: Path, lines: Sequence[str], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return path


def write_iemocap(
    root: Path, dialogues: Sequence[str] = NAMES, turns: Mapping[str, Sequence[tuple[str, str]]] | None = None
) -> Path:
    """Five sessions with these dialogues each, the actress wearing the markers in all.

    Args:
        turns: (speaker, code) of the utterances, by name of dialogue, in place of TURN.
    """
    for k in range(1, 6):
        for dialogue in dialogues:
            name = f"Ses0{k}F_{dialogue}"
            write_dialogue(root / f"Session{k}", name, (turns or {}).get(name, TURN))
    return root


def two_people(second: float) -> np.ndarray:
    """What a film shows at this time, uint8 (H, W, 3): green on the left, blue on the right, brighter every second."""
    picture = np.zeros((*SIZE, 3), np.uint8)
    half = SIZE[1] // 2
    picture[:, :half, 1] = picture[:, half:, 2] = brightness(second)
    return picture


def brightness(second: float) -> int:
    return 40 + 15 * int(second)


def write_media(root: Path, name: str, seconds: float = 13.0) -> None:
    """The film of a dialogue, and a wav for each of its utterances."""
    session = root / f"Session{name[4]}"
    film = session / "dialog/avi/DivX" / f"{name}.avi"
    film.parent.mkdir(parents=True, exist_ok=True)
    pictures = [two_people(i / FPS) for i in range(round(seconds * FPS))]
    write_clip(film, pictures, fps=FPS, codecs=("mpeg4", "pcm_s16le"), container="avi", coder={"qscale": "2"})
    for i, (key, *_) in enumerate(utterances(name)):
        wav = session / "sentences/wav" / name / f"{key}.wav"
        wav.parent.mkdir(parents=True, exist_ok=True)
        write_clip(wav, sound=sine(200 + 50 * i, 1.0, 16_000), rate=16_000, codecs=("", "pcm_s16le"))
