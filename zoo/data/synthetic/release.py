"""The sitcom as files: a corpus in the layout of the MELD release, which any reader of MELD reads unchanged.

::

    {train,dev,test}_sent_emo.csv                                     rows as in MELD
    train_splits/ dev_splits_complete/ output_repeated_splits_test/   dia0_utt0.mp4: 96 px H.264, 16 kHz mono AAC
    {audio,video}_description_{split}.json                            captions, sometimes wrong
    corpus.json                                                       the settings: what `Synthetic` makes it from again
    truth.jsonl                                                       hidden: which cues were clear, exact posteriors
    questions.jsonl                                                   questions about the scene, with their answers
    contact_sheet.png                                                 a few dialogues to look at

No training configuration reads ``truth.jsonl``.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from zoo.data.base import Split
from zoo.data.meld import CLIPS
from zoo.data.synthetic import faces, voices
from zoo.data.synthetic.script import LABELS, Dialogue, Settings, Utterance, generate, posterior
from zoo.progress import reported
from zoo.storage import write_whole

FORMAT = 1  # of corpus.json; raised when the same settings give other files
SENTIMENT = {"neutral": "neutral", "joy": "positive", "surprise": "positive"}  # else negative
NUMBERS = ("none", "one", "two")
MODALITIES = ("text", "descriptions", "face", "voice")


def split_seed(corpus_seed: int, split: Split) -> int:
    """Seed of `generate` for a split; no two splits of any corpora are alike."""
    return 3 * corpus_seed + ("train", "dev", "test").index(split)


def dialogues(corpus_seed: int, split: Split, n: int, settings: Settings) -> list[Dialogue]:
    """The dialogues of one split."""
    return generate(split_seed(corpus_seed, split), n, **{name: getattr(settings, name) for name in asdict(settings)})


# ---------------------------------------------------------------------------------------------------------------- clips
def render(utterance: Utterance, place: faces.Scene, seed: str) -> tuple[np.ndarray, np.ndarray]:
    """Picture and sound of an utterance before they are encoded.

    Args:
        utterance: as generated.
        place: the scene of its dialogue.
        seed: of everything that says nothing about the label (light, motion, words): corpus, split and utterance.

    Returns:
        frames uint8 (T, 96, 96, 3) RGB at `faces.FPS`, and the waveform float32 (N,) at `voices.RATE`.
    """
    domain = utterance.settings.look
    wave = voices.speak(utterance.prosody, utterance.speaker, f"{seed}/voice", utterance.seconds, domain)
    frames = round(utterance.seconds * faces.FPS)
    # lips move to a voice at rest: the picture must not tell anything about the prosody
    rest = voices.speak((0.0,) * len(utterance.prosody), utterance.speaker, f"{seed}/voice", utterance.seconds, domain)
    loudness = voices.loudness(rest, frames)
    picture = faces.clip(utterance.expression, utterance.speaker, place, f"{seed}/face", frames, domain, loudness)
    return picture, wave


def encode(frames: np.ndarray, wave: np.ndarray) -> bytes:
    """An mp4 file (H.264 and AAC): frames uint8 (T, H, W, 3) at `faces.FPS`, waveform float32 (N,) at `voices.RATE`.

    Without lookahead, and in one thread: with it, x264's bytes depended on where in memory the pictures lay (4 clips of
    80 in 5 processes; 0 without).
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=faces.FPS)
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        video.options = {"crf": "18", "preset": "veryfast", "x264-params": "threads=1:rc-lookahead=0:mbtree=0"}
        audio = container.add_stream("aac", rate=voices.RATE, layout="mono", bit_rate=64_000)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, faces.FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[None], np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = voices.RATE, 0, Fraction(1, voices.RATE)
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return file.getvalue()


def end_with(parent: int) -> None:
    """Ends this process when its parent is gone: a killed run must not go on writing."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_clips(job: tuple[Dialogue, str, Path]) -> int:
    """All clips of one dialogue that are not there yet; a clip is there whole or not at all."""
    dialogue, seed, folder = job
    written = 0
    for utterance in dialogue.utterances:
        path = folder / f"{utterance.id}.mp4"
        if path.exists():
            continue
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(encode(*render(utterance, dialogue.place, f"{seed}/{utterance.id}")))
        part.rename(path)
        written += 1
    return written


# ---------------------------------------------------------------------------------------------------------------- words
def rationale(utterance: Utterance) -> str:
    """A reference rationale: which cue says what, and the label. Two to five sentences."""
    truth, parts = utterance.truth, []
    parts.append(
        {
            "explicit": f"The words express {utterance.label}.",
            "ambiguous": "The words name no emotion.",
            "misleading": "The words are not meant as they sound.",
        }[truth.text_mode]
    )
    for what, state, shown in (
        ("face", truth.face_state, truth.face_shown),
        ("voice", truth.voice_state, truth.voice_shown),
    ):
        parts.append(
            {
                "clear": f"The {what} clearly shows {shown}.",
                "faint": f"The {what} faintly shows {shown}.",
                "absent": f"The {what} shows nothing.",
                "misleading": f"The {what} shows {shown}, which misleads.",
            }[state]
        )
    return " ".join((*parts, f"So the emotion is {utterance.label}."))


def questions(place: faces.Scene) -> list[dict[str, object]]:
    """General questions about a scene: ``question``, ``answer`` and the ``choices`` it is one of."""
    return [
        {"question": "How many other people are in the picture?", "answer": NUMBERS[place.people], "choices": NUMBERS},
        {"question": "Which colour is the wall?", "answer": place.wall, "choices": tuple(faces.WALLS)},
        {"question": "Which object is behind the speaker?", "answer": place.object, "choices": tuple(faces.OBJECTS)},
        {"question": f"On which side is the {place.object}?", "answer": place.place, "choices": ("left", "right")},
    ]


def truth(utterance: Utterance, split: Split) -> dict[str, object]:
    """A row of ``truth.jsonl``."""
    sets = [given for n in range(1, 5) for given in itertools.combinations(MODALITIES, n)]
    posteriors = {" + ".join(given): posterior(utterance, given) for given in sets}
    posteriors["past labels"] = posterior(utterance, (), past_labels=True)
    posteriors[" + ".join((*MODALITIES, "past labels"))] = posterior(utterance, MODALITIES, past_labels=True)
    return {
        "id": f"synthetic/{split}/{utterance.id}",
        "label": utterance.label,
        **asdict(utterance.truth),
        "expression": dict(zip(faces.EXPRESSION.names, _rounded(utterance.expression), strict=True)),
        "prosody": dict(zip(voices.PROSODY.names, _rounded(utterance.prosody), strict=True)),
        "rationale": rationale(utterance),
        "labels": LABELS,
        "posteriors": {name: _rounded(p) for name, p in posteriors.items()},
    }


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(v), 6) for v in values]


def _rows(split_dialogues: Sequence[Dialogue]) -> Iterator[dict[str, object]]:
    number = 0
    for d, dialogue in enumerate(split_dialogues):
        seconds = 0.0
        for u, utterance in enumerate(dialogue.utterances):
            number += 1
            start, seconds = seconds, seconds + utterance.seconds
            yield {
                "Sr No.": number,
                "Utterance": utterance.text,
                "Speaker": utterance.speaker,
                "Emotion": utterance.label,
                "Sentiment": SENTIMENT.get(utterance.label, "negative"),
                "Dialogue_ID": d,
                "Utterance_ID": u,
                "Season": 1,
                "Episode": d // 10 + 1,
                "StartTime": _clock(start),
                "EndTime": _clock(seconds),
            }


def _clock(seconds: float) -> str:
    ms = round(1000 * seconds)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02},{ms % 1000:03}"


# -------------------------------------------------------------------------------------------------------------- release
def write(
    out: Path,
    sizes: Mapping[Split, int],
    corpus_seed: int = 0,
    settings: Settings | None = None,
    workers: int | None = None,
) -> dict[Split, list[Dialogue]]:
    """Writes a corpus.

    The clips are made in ``OUT.partial``, which becomes ``out`` when everything is there; a run that was stopped goes
    on where it was if it is started again with the same settings, and a finished corpus is left as it is.

    Args:
        out: folder that does not exist yet, or is empty.
        sizes: dialogues of each split, each at least 1.
        corpus_seed: which corpus; at least 0.
        settings: the knobs.
        workers: processes that make clips; one per core if None.

    Returns:
        split -> its dialogues.

    Raises:
        FileExistsError: ``out`` holds anything but this corpus, or ``OUT.partial`` belongs to another corpus.
        ValueError: a size or the seed is out of range.
    """
    settings = settings or Settings()
    if corpus_seed < 0 or min(sizes.values()) < 1:
        raise ValueError(f"need a seed of at least 0 and 1 dialogue per split, got {corpus_seed} and {dict(sizes)}")
    corpus = {split: dialogues(corpus_seed, split, n, settings) for split, n in sizes.items()}
    record = {
        "format": FORMAT,
        "corpus_seed": corpus_seed,
        "dialogues": dict(sizes),
        "utterances": {split: sum(len(d.utterances) for d in ds) for split, ds in corpus.items()},
        "settings": asdict(settings),
    }
    partial = out.with_name(out.name + ".partial")
    text = json.dumps(record, indent=2) + "\n"
    if (out / "corpus.json").is_file() and (out / "corpus.json").read_text() == text:
        return corpus  # it is written; a command that was stopped after that has only its last words to say
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; choose another folder or delete it first")
    if partial.exists() and (partial / "corpus.json").read_text() != text:
        raise FileExistsError(f"{partial} was begun with other settings; delete it, or choose another --out")
    partial.mkdir(parents=True, exist_ok=True)
    write_whole(partial / "corpus.json", text)

    jobs = []
    for split, ds in corpus.items():
        with (partial / f"{split}_sent_emo.csv").open("w", newline="", encoding="utf-8") as f:
            rows = list(_rows(ds))
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        for kind in ("audio", "video"):
            captions = {u.id: u.descriptions[kind] for d in ds for u in d.utterances}
            (partial / f"{kind}_description_{split}.json").write_text(json.dumps(captions, indent=0) + "\n")
        (partial / CLIPS[split]).mkdir(exist_ok=True)
        jobs += [(d, f"{split_seed(corpus_seed, split)}", partial / CLIPS[split]) for d in ds]
    _jsonl(partial / "truth.jsonl", (truth(u, s) for s, ds in corpus.items() for d in ds for u in d.utterances))
    _jsonl(
        partial / "questions.jsonl",
        (
            {"id": f"synthetic/{s}/{u.id}", **q}
            for s, ds in corpus.items()
            for d in ds
            for u in d.utterances
            for q in questions(d.place)
        ),
    )
    with ProcessPoolExecutor(workers or os.cpu_count(), initializer=end_with, initargs=(os.getpid(),)) as pool:
        written = pool.map(_write_clips, jobs, chunksize=4)
        for _ in reported(written, len(jobs), "clips written", "dialogues"):
            pass
    for left_over in partial.rglob("*.part"):  # of a killed run
        left_over.unlink()
    if out.exists():
        out.rmdir()  # empty, see above
    partial.rename(out)
    return corpus


def _jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row) + "\n")


def read_record(root: Path) -> dict:
    """The settings of a written corpus.

    Raises:
        FileNotFoundError: no ``corpus.json``.
        ValueError: written by another version.
    """
    path = root / "corpus.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give a folder that `zoo prepare synthetic --out DIR` wrote, or leave --data.root "
            "out to have text and descriptions made in memory"
        )
    record = json.loads(path.read_text())
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {record.get('format')!r}, this version reads {FORMAT}; write the corpus again with "
            "zoo prepare synthetic"
        )
    record["settings"] = Settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in record["settings"].items()})
    return record
