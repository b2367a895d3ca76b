"""Miniature corpora in the released layouts, all lines made up: small enough for a test, learnable enough for a fit."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
SPLITS = ("train", "dev", "test")
COLUMNS = (
    "Sr No.",
    "Utterance",
    "Speaker",
    "Emotion",
    "Sentiment",
    "Dialogue_ID",
    "Utterance_ID",
    "Season",
    "Episode",
    "StartTime",
    "EndTime",
)
CUES = {  # the words that give a label away
    "neutral": ("okay", "well", "then"),
    "surprise": ("wow", "really", "unbelievable"),
    "fear": ("careful", "scary", "help"),
    "sadness": ("sadly", "alone", "miss"),
    "joy": ("great", "lovely", "hooray"),
    "disgust": ("yuck", "rotten", "gross"),
    "anger": ("stop", "furious", "enough"),
}
THINGS = ("the kettle", "that bicycle", "my umbrella", "the ladder", "your violin", "the garden gate", "our tent")
SPEAKERS = ("Ada", "Bela", "Cleo", "Dan")
VOICES = ("calm", "raised", "trembling", "low", "bright", "tight", "loud")  # one per label


def line(rng: random.Random, label: str) -> str:
    """One made-up utterance with a cue word of its label."""
    cue, who, what = rng.choice(CUES[label]).capitalize(), rng.choice(SPEAKERS), rng.choice(THINGS)
    return f"{cue}, {who} put {what} by the {rng.randint(2, 99)}."


def dialogue(number: int, turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """MELD rows of one dialogue from (text, label) pairs."""
    return [
        dict(
            zip(
                COLUMNS,
                (
                    str(i + 1),
                    text,
                    SPEAKERS[i % 4],
                    label,
                    "neutral",
                    str(number),
                    str(i),
                    "1",
                    "2",
                    "00:00:01,000",
                    "00:00:02,000",
                ),
                strict=True,
            )
        )
        for i, (text, label) in enumerate(turns)
    ]


def write_csv(path: Path, rows: Sequence[Mapping[str, str]], encoding: str = "utf-8") -> Path:
    """CSV with the columns of the first row and CRLF ends, as released."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_meld(
    folder: Path, seed: int = 0, dialogues: tuple[int, int, int] = (8, 3, 3), kinds: Sequence[str] = ()
) -> Path:
    """Writes a miniature MELD and returns its folder.

    Args:
        folder: made if it does not exist.
        seed: other seeds, other lines.
        dialogues: how many in train, dev, test; of seven turns, one per label in random order.
        kinds: description kinds to write for every utterance, e.g. ``("audio", "video")``; they hint at the label.
    """
    for split, count in zip(SPLITS, dialogues, strict=True):
        rng = random.Random(f"{seed} {split}")
        rows = [
            row
            for number in range(count)
            for row in dialogue(number, [(line(rng, label), label) for label in rng.sample(LABELS, len(LABELS))])
        ]
        write_csv(folder / f"{split}_sent_emo.csv", rows)
        for kind in kinds:
            voices = {
                f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}": f"a {VOICES[LABELS.index(row['Emotion'])]} {kind}"
                for row in rows
            }
            (folder / f"{kind}_description_{split}.json").write_text(json.dumps(voices), encoding="utf-8")
    return folder


def write_goemotions(folder: Path, seed: int = 0, sentences: tuple[int, int, int] = (70, 21, 21)) -> Path:
    """Writes a miniature GoEmotions (Ekman grouping) and returns its folder; labels take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted(LABELS)
    (folder / "ekman_labels.txt").write_text("\n".join(words), encoding="utf-8")
    for split, count in zip(SPLITS, sentences, strict=True):
        rng = random.Random(f"{seed} {split}")
        rows = [f"{line(rng, words[i % 7])}\t{i % 7}\t{split[:2]}{i:05d}\n" for i in range(count)]
        (folder / f"ekman_{split}.tsv").write_text("".join(rows), encoding="utf-8")
    return folder


EMORYNLP = ("joyful", "mad", "peaceful", "neutral", "sad", "powerful", "scared")
HINTS = dict(zip(EMORYNLP, ("joy", "anger", "disgust", "neutral", "sadness", "surprise", "fear"), strict=True))


def scene(number: int, turns: Sequence[tuple[str, str]], episode: int = 2) -> list[dict[str, str]]:
    """EmoryNLP rows of one scene from (text, label) pairs; the second utterance is said by two people."""
    return [
        {
            "Utterance": text,
            "Speaker": str(list(SPEAKERS[:2]) if i == 1 else [SPEAKERS[i % 4]]),
            "Emotion": label.capitalize(),
            "Scene_ID": str(number),
            "Utterance_ID": str(i + 1),
            "Season": "1",
            "Episode": str(episode),
            "Start_Time": "00:00:01.000",
            "End_Time": "00:00:02.000",
        }
        for i, (text, label) in enumerate(turns)
    ]


def write_emorynlp(folder: Path, seed: int = 0, scenes: tuple[int, int, int] = (8, 3, 3)) -> Path:
    """Writes a miniature EmoryNLP and returns its folder; scenes of seven turns, one per label in random order."""
    for episode, (split, count) in enumerate(zip(SPLITS, scenes, strict=True), 1):
        rng = random.Random(f"{seed} emorynlp {split}")
        rows = [
            row
            for number in range(1, count + 1)
            for row in scene(number, [(line(rng, HINTS[n]), n) for n in rng.sample(EMORYNLP, 7)], episode)
        ]
        write_csv(folder / f"emorynlp_{split}_final.csv", rows)
    return folder
