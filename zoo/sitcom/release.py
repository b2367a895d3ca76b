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
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo.interrupts import exit_with_parent
from zoo.progress import reported
from zoo.schema import Split
from zoo.sitcom.clips import write_clips
from zoo.sitcom.questions import scene_questions
from zoo.sitcom.script import generate
from zoo.sitcom.settings import Dialogue, Settings
from zoo.sitcom.truth import truth_row
from zoo.storage import write_whole

FORMAT = 1  # of corpus.json; raised when the same settings give other files
CLIP_FOLDERS: dict[Split, str] = {  # as in the MELD release
    "train": "train_splits",
    "dev": "dev_splits_complete",
    "test": "output_repeated_splits_test",
}
SENTIMENT = {"neutral": "neutral", "joy": "positive", "surprise": "positive"}  # else negative

Corpus = dict[Split, list[Dialogue]]


def split_seed(corpus_seed: int, split: Split) -> int:
    """Return the seed of `generate` for a split; no two splits of any corpora are alike."""
    return 3 * corpus_seed + ("train", "dev", "test").index(split)


def split_dialogues(corpus_seed: int, split: Split, n: int, settings: Settings) -> list[Dialogue]:
    """Generate the dialogues of one split."""
    return generate(split_seed(corpus_seed, split), n, **{name: getattr(settings, name) for name in asdict(settings)})


# -------------------------------------------------------------------------------------------------------------- release
def write(
    out: Path,
    sizes: Mapping[Split, int],
    corpus_seed: int = 0,
    settings: Settings | None = None,
    workers: int | None = None,
) -> Corpus:
    """Write a corpus.

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
    corpus = {split: split_dialogues(corpus_seed, split, n, settings) for split, n in sizes.items()}
    record = _record(corpus, sizes, corpus_seed, settings)
    partial = out.with_name(out.name + ".partial")
    if (out / "corpus.json").is_file() and (out / "corpus.json").read_text() == record:
        return corpus  # it is written; a command that was stopped after that has only its last words to say
    _begin(out, partial, record)
    for split, dialogues in corpus.items():
        _write_tables(partial, split, dialogues)
    _write_annotations(partial, corpus)
    jobs = [
        (dialogue, f"{split_seed(corpus_seed, split)}", partial / CLIP_FOLDERS[split])
        for split, dialogues in corpus.items()
        for dialogue in dialogues
    ]
    with ProcessPoolExecutor(workers or os.cpu_count(), initializer=exit_with_parent, initargs=(os.getpid(),)) as pool:
        written = pool.map(write_clips, jobs, chunksize=4)
        for _ in reported(written, len(jobs), "clips written", "dialogues"):
            pass
    for left_over in partial.rglob("*.part"):  # of a killed run
        left_over.unlink()
    if out.exists():
        out.rmdir()  # empty, see `_begin`
    partial.rename(out)
    return corpus


def _record(corpus: Corpus, sizes: Mapping[Split, int], corpus_seed: int, settings: Settings) -> str:
    """Return the text of ``corpus.json``."""
    record = {
        "format": FORMAT,
        "corpus_seed": corpus_seed,
        "dialogues": dict(sizes),
        "utterances": {split: sum(len(d.utterances) for d in dialogues) for split, dialogues in corpus.items()},
        "settings": asdict(settings),
    }
    return json.dumps(record, indent=2) + "\n"


def _begin(out: Path, partial: Path, record: str) -> None:
    """Make the folder ``partial`` with its ``corpus.json``, or check that it was begun with the same settings."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; choose another folder or delete it first")
    if partial.exists() and (partial / "corpus.json").read_text() != record:
        raise FileExistsError(f"{partial} was begun with other settings; delete it, or choose another --out")
    partial.mkdir(parents=True, exist_ok=True)
    write_whole(partial / "corpus.json", record)


def _write_tables(folder: Path, split: Split, dialogues: Sequence[Dialogue]) -> None:
    """Write the table of utterances and the descriptions of one split, and make the folder of its clips."""
    with (folder / f"{split}_sent_emo.csv").open("w", newline="", encoding="utf-8") as f:
        rows = list(_rows(dialogues))
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for kind in ("audio", "video"):
        captions = {u.id: u.descriptions[kind] for d in dialogues for u in d.utterances}
        (folder / f"{kind}_description_{split}.json").write_text(json.dumps(captions, indent=0) + "\n")
    (folder / CLIP_FOLDERS[split]).mkdir(exist_ok=True)


def _write_annotations(folder: Path, corpus: Corpus) -> None:
    """Write ``truth.jsonl`` and ``questions.jsonl``."""
    utterances = [(split, d.place, u) for split, dialogues in corpus.items() for d in dialogues for u in d.utterances]
    _write_jsonl(folder / "truth.jsonl", (truth_row(u, split) for split, _, u in utterances))
    _write_jsonl(
        folder / "questions.jsonl",
        ({"id": f"synthetic/{split}/{u.id}", **q} for split, place, u in utterances for q in scene_questions(place)),
    )


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row) + "\n")


def _rows(dialogues: Sequence[Dialogue]) -> Iterator[dict[str, object]]:
    """Yield the rows of MELD's table."""
    number = 0
    for dialogue_number, dialogue in enumerate(dialogues):
        seconds = 0.0
        for utterance_number, utterance in enumerate(dialogue.utterances):
            number += 1
            start, seconds = seconds, seconds + utterance.seconds
            yield {
                "Sr No.": number,
                "Utterance": utterance.text,
                "Speaker": utterance.speaker,
                "Emotion": utterance.label,
                "Sentiment": SENTIMENT.get(utterance.label, "negative"),
                "Dialogue_ID": dialogue_number,
                "Utterance_ID": utterance_number,
                "Season": 1,
                "Episode": dialogue_number // 10 + 1,
                "StartTime": _clock(start),
                "EndTime": _clock(seconds),
            }


def _clock(seconds: float) -> str:
    """Return a time as MELD writes it: ``00:00:01,500``."""
    ms = round(1000 * seconds)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02},{ms % 1000:03}"


def read_record(root: Path) -> dict[str, Any]:
    """Read the settings of a written corpus.

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
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record["settings"].items()}
    record["settings"] = Settings(**fields)
    return record
