"""``zoo label``: the emotion of one clip or line, or of a folder or table of them, by any trained system of the zoo.

The system runs as in ``zoo predict``: its own input processing, its own `predict`; only the samples are the user's.
Beside each label stands what was used. A part of a sample was used if the system's input changes without it: every
sample is also prepared without its words, its picture, its sound, each description and its earlier turns, and the
tensors are compared (of a system whose batches hold none, the answers). So no system has to say what it reads, and a
clip that cannot be decoded, or a turn for which the prompt had no room, is not called used. A clip of which only a part
could be decoded is called damaged. A sample of which nothing was used gets no label.

With ``--out`` the labels of an earlier, perhaps interrupted, command are kept and the others are added. With
``--selector`` another system first decides whether the descriptions are used.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, IterableDataset

from zoo.checkpoints import load
from zoo.configs import instantiated, read_run_config
from zoo.data import EmotionData
from zoo.data.base import Reading, Split
from zoo.data.clips import SOUND, VIDEO, files_below, find_clips
from zoo.data.text import checked_encoding, clean_text, read_table, some, whole_numbers
from zoo.imports import take_imports, trust_words
from zoo.media import Media, Unreadable
from zoo.module import EmotionModule
from zoo.runs import find_checkpoint, newest_config, run_of
from zoo.schema import Labels, Prediction, Sample, Turn
from zoo.storage import locked, parse_json, parse_yaml, write_whole

STILL = (".jpg", ".jpeg", ".png")
FILES = (*VIDEO, *SOUND, *STILL)
HEADINGS = {  # of a table, in any case; MELD's own among them
    "id": "id",
    "video": "video",
    "clip": "video",
    "audio": "audio",
    "text": "text",
    "utterance": "text",
    "speaker": "speaker",
    "dialogue": "dialogue",
    "dialogue_id": "dialogue",
    "utterance_id": "number",
    "label": "label",
    "emotion": "label",
}
WORDS = (".txt", ".jsonl", ".json", ".tsv", ".md", ".srt", ".vtt", ".xlsx", ".yaml", ".yml")
KIND = re.compile(r"[a-z0-9_]+")
DESCRIPTION = re.compile(rf"({KIND.pattern})_description")
TABLE = (
    "video, audio, text, speaker, dialogue, id, label (of an earlier turn) and KIND_description, or MELD's Utterance, "
    "Speaker, Emotion, Dialogue_ID and Utterance_ID"
)


# ------------------------------------------------------------------------------------------------------- what was asked
def turn_of(id: str, clip: Path | None, **more: Any) -> Turn:
    """A turn of a file whose ending says what it holds: picture, sound, or both."""
    suffix = clip.suffix.lower() if clip is not None else ""
    files = {"video": None if suffix in SOUND else clip, "audio": None if suffix in STILL else clip}
    return Turn(id, **({"speaker": "", "text": ""} | files | more))


def cleaned(text: str, what: str) -> str:
    """A text as the corpora's readers clean it. ValueError for bytes of the command line that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not UTF-8; write it again as UTF-8") from None
    return clean_text(text)


def described(pairs: Sequence[str]) -> dict[str, str]:
    """``["audio=a calm voice"]`` -> ``{"audio": "a calm voice"}``"""
    found: dict[str, str] = {}
    for pair in pairs:
        kind, _, text = pair.partition("=")
        if not KIND.fullmatch(kind) or kind in found or not text.strip():
            raise ValueError(f"--descriptions got {pair!r}; expected KIND=TEXT, each kind once: audio='a calm voice'")
        found[kind] = cleaned(text, f"the {kind} description")
    return found


def read_turns(
    path: Path, clips: Path | None, labels: Labels, encoding: str | None = None
) -> list[tuple[str | None, Turn]]:
    """The rows of a table and the dialogue of each (None without such a column), in the order in which they are said.

    Args:
        clips: folder of files named after the ids, for a table without ``video``.
        labels: the only label words there may be.
        encoding: of the table; None: UTF-8, or ASCII with Windows punctuation that can be nothing else.

    Raises:
        FileNotFoundError, ValueError: naming the file and the row, what was expected and what to do.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no table {path}; expected a CSV file with columns like {TABLE}")
    table = read_table(path, (), encoding=checked_encoding("--encoding", encoding) or (), option="--encoding")
    for note in table.attrs["notes"]:
        print(note, file=sys.stderr)
    named: dict[str, str] = {}  # what a column holds -> its heading
    for heading in table.columns:
        name = heading.lower()
        what = HEADINGS.get(name, name if DESCRIPTION.fullmatch(name) else None)
        if what in named:
            raise ValueError(f"{path} has two columns for {what}: {named[what]} and {heading}; leave one out")
        if what is not None:
            named[what] = heading
    kinds = {match[1]: what for what in named if (match := DESCRIPTION.fullmatch(what))}
    if not kinds and not named.keys() & {"video", "audio", "text"} and clips is None:
        raise ValueError(f"{path} has the columns {', '.join(table.columns)}; expected some of {TABLE}")
    if ignored := [heading for heading in table.columns if heading not in named.values()]:
        print(f"{path}: columns not read: {', '.join(ignored)}", file=sys.stderr)
    table = table.rename(columns={heading: what for what, heading in named.items()})
    if "number" in named:
        table["number"] = whole_numbers(table, ("number",), path)["number"]
    if clips is not None and not clips.is_dir():
        raise FileNotFoundError(f"--clips {clips} is no folder; expected one with files named after the ids")
    files = find_clips(clips, ["."], FILES) if clips is not None else {}
    rows: list[tuple[tuple[int, int], str | None, Turn]] = []
    places: dict[str | None, int] = {}  # dialogue -> its place
    ids: set[str] = set()
    for number, cells in table.iterrows():
        where = f"{path} row {number}"

        def cell(what: str, cells: Any = cells, where: str = where) -> str:
            return cleaned(cells[what], where) if what in named else ""

        def file(what: str, cell: Callable[[str], str] = cell) -> Path | None:
            return path.parent / cell(what) if cell(what) else None

        dialogue = cell("dialogue") or None
        meld = f"dia{dialogue}_utt{cells['number']}" if dialogue and "number" in named else f"row{number}"
        key = cell("id") if "id" in named else meld
        label = cell("label").lower() or None
        if not key or key in ids:
            raise ValueError(f"{where}: the id {key!r} is {'there twice' if key else 'empty'}; give each row its own")
        ids.add(key)
        if label is not None and label not in labels.names:
            raise ValueError(
                f"{where}: unknown label {label!r}; this system's are {', '.join(labels.names)}. Correct "
                "the cell, or leave it empty"
            )
        sound = {"audio": file("audio")} if file("audio") else {}
        turn = turn_of(
            key,
            file("video") if "video" in named else files.get(key),
            text=cell("text"),
            speaker=cell("speaker"),
            label=label,
            descriptions={kind: cell(what) for kind, what in kinds.items() if cell(what)},
            **sound,
        )
        place = places.setdefault(dialogue, len(places))
        rows.append(((place, cells["number"] if "number" in named else len(rows)), dialogue, turn))
    return [(dialogue, turn) for _, dialogue, turn in sorted(rows, key=lambda row: row[0])]


def said(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns that hold anything, as a history."""
    return tuple(t for t in turns if t.text or t.video is not None or t.audio is not None)


def samples_of(options: argparse.Namespace, labels: Labels) -> list[Sample]:
    """The samples of a command, without labels. Nothing is decoded here."""
    clip: Path | None = options.clip

    def sample(turn: Turn, dialogue: str, history: tuple[Turn, ...] = ()) -> Sample:
        where = f"{labels.corpus}/asked"
        return Sample(f"{where}/{turn.id}", f"{where}/{dialogue}", labels, replace(turn, label=None), history)

    table = clip is not None and clip.suffix.lower() == ".csv" and not clip.is_dir()
    if options.clips is not None and not table:
        raise ValueError("--clips is the folder of the files that a table names by their ids; give the table as CLIP")
    of_one = [f"--{name}" for name in ("text", "speaker", "context", "descriptions") if getattr(options, name)]
    if of_one and is_many(clip):
        raise ValueError(f"{', '.join(of_one)} goes with one clip; give many in a table with columns like {TABLE}")
    if table:
        earlier: dict[str, list[Turn]] = {}
        found = []
        for dialogue, turn in read_turns(clip, options.clips, labels, options.encoding):
            own = earlier.setdefault(turn.id if dialogue is None else dialogue, [])
            found.append(sample(turn, turn.id if dialogue is None else dialogue, said(own)))
            own.append(turn)
        return found
    if is_many(clip):
        unlisted: dict[Path, str] = {}
        below = files_below(clip, unlisted)
        files = [path for path in below if path.suffix.lower() in FILES]
        for folder, why in unlisted.items():
            print(f"not looked into: {shown(folder)}: {why}", file=sys.stderr)
        if others := [shown(path.relative_to(clip)) for path in below if path.suffix.lower() not in FILES]:
            print(f"not of a kind that is read ({', '.join(FILES)}): {some(others, 20)}", file=sys.stderr)
        if not files:
            raise FileNotFoundError(f"{clip} holds no file that ends in {', '.join(FILES)}")
        names = [shown(path.relative_to(clip)) for path in files]
        return [sample(turn_of(name, path), name) for name, path in zip(names, files, strict=True)]
    if clip is not None and clip.suffix.lower() in WORDS and clip.is_file():
        raise ValueError(
            f"{clip} is a text and no clip; give its lines as a CSV table with columns like {TABLE}, or "
            "one line with --text"
        )
    if clip is not None and not clip.is_file():
        raise FileNotFoundError(f"no file {clip}; expected a video, sound or picture, a folder of them, or a CSV table")
    text, descriptions = cleaned(options.text or "", "--text"), described(options.descriptions)
    if clip is None and not text and not descriptions:
        raise ValueError("there is nothing to label: give CLIP, --text or --descriptions")
    history: list[tuple[str | None, Turn]] = []
    if options.context is not None:
        history = read_turns(options.context, None, labels, options.encoding)
        if len({dialogue for dialogue, _ in history}) > 1:
            raise ValueError(f"{options.context} holds several dialogues; expected the earlier turns of one")
    turn = turn_of(
        shown(Path(clip.name)) if clip is not None else "line",
        clip,
        text=text,
        speaker=cleaned(options.speaker, "--speaker"),
        descriptions=descriptions,
    )
    return [sample(turn, turn.id, said([turn for _, turn in history]))]


def shown(path: Path) -> str:
    """A path as text, also where its name is not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def is_many(clip: Path | None) -> bool:
    return clip is not None and (clip.is_dir() or clip.suffix.lower() == ".csv")


# -------------------------------------------------------------------------------------------------------- what was used
@dataclass(frozen=True)
class Used:
    """Parts of a sample that reached the system, why the others did not, and which were not whole."""

    used: tuple[str, ...]
    unused: Mapping[str, str]
    damaged: tuple[str, ...] = ()  # files of which only a part could be read and was used, each with what is wrong

    def __str__(self) -> str:
        told = [f"{part}: {why}" for part, why in self.unused.items() if why != NOT_GIVEN]
        return "; ".join(told) or "nothing was given"


NOT_GIVEN = "not given"


def without_each(sample: Sample) -> dict[str, Sample | None]:
    """Name of each part -> the sample without it; None for what it does not have."""
    target = sample.target

    def without(**change: Any) -> Sample:
        return replace(sample, target=replace(target, **change))

    kinds = {
        f"{kind} description": without(descriptions={k: v for k, v in target.descriptions.items() if k != kind})
        for kind in target.descriptions
    }
    return {
        "words": without(text="") if target.text else None,
        "picture": without(video=None) if target.video is not None else None,
        "sound": without(audio=None) if target.audio is not None else None,
        **(kinds or {"descriptions": None}),
        "earlier turns": replace(sample, history=()) if sample.history else None,
    }


def tensors(content: Any) -> list[Any]:
    """Everything in a batch that can be computed with, in order."""
    if isinstance(content, torch.Tensor | np.ndarray):
        return [torch.as_tensor(content)]
    if isinstance(content, Mapping):
        return [(str(key), found) for key, value in content.items() if (found := tensors(value))]
    return [found for x in content if (found := tensors(x))] if isinstance(content, list | tuple) else []


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b


def without_discarded(used: Used, selection: Mapping[str, Any] | None) -> Used:
    """The same, where a selector discarded the descriptions with that as the reason, and with its own reason for it."""
    if selection is None or selection.get("decision") != "discard":
        return used
    reason = f"discarded by the selector ({selection['system']}" + (
        f": {selection['text']})" if selection.get("text") else ")"
    )
    return replace(
        used,
        unused={
            part: reason if part.endswith(" description") and why != NOT_GIVEN else why
            for part, why in used.unused.items()
        },
    )


def why_not(sample: Sample, part: str) -> str:
    """Why a part that was given changed nothing."""
    try:
        if part == "picture":
            Media().frames(sample.target.video, n=1)
        elif part == "sound":
            Media().waveform(sample.target.audio)
    except Unreadable as error:
        return error.reason
    return "given, but this system does not read it, or its prompt had no room for it"


class Clips(EmotionData):
    """The user's samples as the data of a run. The run's own corpus is asked for its labels, which takes no files, and
    for solved examples if the system shows some.

    Args:
        own: what is asked about.
        corpus: the run's own.
        absent: folders of the corpus that are not here.
        seed: of the run.
    """

    asked = True

    def __init__(self, own: Sequence[Sample], corpus: EmotionData, absent: Sequence[str], seed: int) -> None:
        super().__init__(batch_size=corpus.eval_batch_size, bucket=False, seed=seed)
        self.own, self.corpus, self.absent = list(own), corpus, absent
        self.protocol = corpus.protocol
        self.used: dict[str, Used] = {}  # id -> what was used
        self.failed: dict[str, str] = {}  # id -> why there is no label
        self.began = 0.0

    @property
    def label_sets(self) -> dict[str, Labels]:
        return self.corpus.label_sets

    def read(self, split: Split) -> Reading:
        if split == "test":
            return Reading(self.own)
        need = f"this system shows solved examples of the {split} split that it was trained with"
        if self.absent:
            raise FileNotFoundError(f"{need}, but {', '.join(self.absent)} is not here; give its folder, --data.root")
        try:
            return self.corpus.reading(split)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{need}: {error}") from error

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(_Answerable(self), batch_size=None, collate_fn=lambda batch: batch)

    def look(self, sample: Sample, collator: Any) -> bool:
        """Notes which parts of a sample are used; False if it cannot be answered."""
        module = self.trainer.lightning_module

        def seen(one: Sample) -> list[Any]:
            batch = collator([one], np.random.default_rng(0))
            return tensors(batch) or [json.dumps(p.row(), sort_keys=True) for p in module.predict(batch)]

        used, unused, media = [], {}, getattr(collator, "media", None)
        try:
            whole = seen(sample)
            met = [] if media is None else media.met()
            for part, bare in without_each(sample).items():
                if bare is None:
                    unused[part] = NOT_GIVEN
                elif alike(whole, seen(bare)):
                    unused[part] = why_not(sample, part)
                else:
                    used.append(part)
        except ValueError as error:  # its prompt cannot be written
            self.failed[sample.id] = str(error)
            return False
        damaged = tuple(f"{row['file']}: {row['reason']}" for row in met if row["problem"] == "damaged")
        usage = self.used[sample.id] = Used(tuple(used), unused, damaged)
        if not used:
            self.failed[sample.id] = f"nothing of it reached the system ({usage})"
        return bool(used)


class _Answerable(IterableDataset):
    """Batches of the samples that give the system something to go by, prepared one after the other."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips

    def __iter__(self) -> Iterator[dict[str, Any]]:
        clips = self.clips
        collator = clips.trainer.lightning_module.collator(training=False)
        for start in range(0, len(clips.own), clips.batch_size):
            batch = [s for s in clips.own[start : start + clips.batch_size] if clips.look(s, collator)]
            if batch:
                clips.began = time.perf_counter()
                yield collator(batch, np.random.default_rng((clips.run_seed, start)))


Hand = Callable[[Sample, Prediction, Used, float], None]  # the last: seconds


class _Handed(Callback):
    """Hands every answer on as soon as it is there."""

    def __init__(self, hand: Hand) -> None:
        self.hand = hand

    def on_predict_batch_end(self, trainer: Trainer, module: EmotionModule, outputs: Any, batch: Any, *_: int) -> None:
        clips: Clips = trainer.datamodule
        samples = list(batch["samples"])
        seconds = (time.perf_counter() - clips.began) / len(samples)
        for sample, prediction in zip(samples, module.rows[-len(samples) :], strict=True):
            self.hand(sample, prediction, clips.used[sample.id], seconds)


# ----------------------------------------------------------------------------------------------------------- the system
class System:
    """A trained system, by the name or place of its checkpoint, and what its config.yaml says.

    Args:
        path: as --ckpt_path takes it.
        changes: options that replace those of the config, e.g. ``{"data.root": "DIR", "model.llm": "DIR"}``.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no config.yaml with it.
    """

    def __init__(self, path: str, changes: Mapping[str, Any] | None = None) -> None:
        self.path = path
        file = Path(path)
        if file.suffix not in (".yaml", ".yml"):
            found = find_checkpoint(path)
            file = newest_config(run_of(found) or found.parent)
        if not file.is_file():
            raise FileNotFoundError(
                f"{path}: no config.yaml lies with it, so its labels are not known; give a run "
                "folder or a published name"
            )
        config = read_run_config(file, data=True)
        self.name = config["model"]["class_path"].rpartition(".")[2]
        self.model: dict[str, Any] = {}
        if "data.encoding" in (changes or {}):
            raise ValueError(
                "--data.encoding is of the corpus that the system was trained with, of which zoo label "
                "reads no text; give --encoding for your tables"
            )
        for key, value in (changes or {}).items():
            section, _, option = key.partition(".")
            if section == "model":
                self.model[option] = value
            else:
                _set(config["data"], option.split("."), value)
        self.absent: list[str] = []
        data = _without_absent(config["data"], self.absent)
        self.corpus: EmotionData = instantiated("data", EmotionData, data, file, changes or ())
        self.seed = self.corpus.seed if self.corpus.seed is not None else int(config.get("seed_everything") or 0)
        self.trained = config.get("trainer") or {}

    def labels(self, corpus: str | None = None) -> Labels:
        """Its label set, or that of one of its corpora. ValueError if there is none, or several to choose from."""
        sets = self.corpus.label_sets
        if corpus is None and len(sets) > 1 or corpus is not None and corpus not in sets:
            raise ValueError(f"{self.path} knows the labels of {', '.join(sets)}; choose with --labels")
        found = sets[corpus or next(iter(sets))]
        if not found.names:
            raise ValueError(f"{self.path} was trained on answers without labels, so it names no emotion")
        return found

    def knows(self) -> str:
        """What the weights have met in training, so that nobody takes an answer about anything else for a measured
        one."""
        corpora = self.corpus.corpora()
        met = "; ".join(f"{type(corpus).__name__} ({corpus.material})" for corpus in corpora)
        names = "; ".join(", ".join(labels.names) for labels in self.corpus.label_sets.values() if labels.names)
        return (
            f"{self.path} was trained on {met}; its labels are {names or 'none'}. How good its answers are about "
            "other material is not known."
        )

    def answer(self, samples: Sequence[Sample], folder: Path, hand: Hand) -> dict[str, str]:
        """Answers samples, batch by batch; returns id -> why, of those without an answer.

        Args:
            folder: the system writes its rows there, as in ``zoo predict``.
        """
        print(self.knows(), file=sys.stderr)
        module = load(self.path, model=self.model)
        clips = Clips(samples, self.corpus, self.absent, self.seed)
        trainer = Trainer(
            accelerator="cpu" if self.trained.get("accelerator") == "cpu" else "auto",
            devices=1,
            precision=self.trained.get("precision"),
            logger=False,
            default_root_dir=folder,
            callbacks=[_Handed(hand)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.predict(module, datamodule=clips, return_predictions=False)
        return clips.failed


def _set(section: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Sets an option of a class of a config, by its dotted name."""
    for key in keys[:-1]:
        section = (section.setdefault("init_args", {}) if "class_path" in section else section).setdefault(key, {})
    (section.setdefault("init_args", {}) if "class_path" in section else section)[keys[-1]] = value


def _without_absent(node: Any, absent: list[str]) -> Any:
    """A config's data section without the folders of corpora (``root``) that are not here; these are appended."""
    if isinstance(node, list):
        return [_without_absent(item, absent) for item in node]
    if not isinstance(node, dict):
        return node
    gone = isinstance(node.get("root"), str) and not Path(node["root"]).is_dir()
    absent += [node["root"]] if gone else []
    return {key: None if gone and key == "root" else _without_absent(value, absent) for key, value in node.items()}


# --------------------------------------------------------------------------------------------------------------- output
BEGINNING = '{"id": "'  # of every line


def digest(sample: Sample) -> str:
    """Mark of all that a system may read of a sample: words, speaker, descriptions, earlier turns, and the size and
    time of its files."""

    def parts(turn: Turn) -> list[Any]:
        files = []
        for path in (turn.video, turn.audio):
            try:
                state = None if path is None else path.stat()
            except OSError:
                state = None  # it is missing, or may not be looked at
            files.append(state and [state.st_size, state.st_mtime_ns])
        return [turn.text, turn.speaker, turn.label, sorted(turn.descriptions.items()), files]

    turns = [parts(turn) for turn in (sample.target, *sample.history)] + [sample.labels.corpus]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()[:16]


class Sheet:
    """Answers as JSON lines, in a file or on stdout. Lines of an earlier, perhaps interrupted, command are kept if they
    have no ``error``. Nobody else's file is touched.

    Raises:
        ValueError: the file was not written by this command, or holds lines of another system.
    """

    def __init__(self, out: Path | None, about: Mapping[str, Any]) -> None:
        self.out, self.about = out, about
        self.done: dict[str, str] = {}  # id -> digest of the sample that was answered
        self.failed: dict[str, str] = {}
        if out is None or not out.exists():
            return
        lines = self._lines(out)
        labelled = [line for line, row in lines if "error" not in row]
        self.done = {row["id"]: row["sample"] for _, row in lines if "error" not in row}
        write_whole(out, "".join(f"{line}\n" for line in labelled))

    def _lines(self, out: Path) -> list[tuple[str, dict[str, Any]]]:
        """The lines of an earlier command with what they hold. The last one may be cut off, by a kill: it is left out,
        and done again."""
        content = out.read_bytes()
        whole, rows = content.endswith(b"\n"), []
        lines = content.removesuffix(b"\n").split(b"\n") if content else []
        for number, data in enumerate(lines, 1):
            line = data.decode(errors="backslashreplace")
            try:
                row = parse_json(data.decode(), f"{out} line {number}")
            except ValueError as error:
                if number == len(lines) and not whole and data.startswith(BEGINNING.encode()[: len(data)]):
                    continue
                raise self._foreign(out, f"line {number}: {line[:60]!r}") from error
            if not isinstance(row, dict) or not isinstance(row.get("id"), str) or "label" not in row:
                raise self._foreign(out, f"line {number}: {line[:60]!r}")
            other = {key: row.get(key) for key in ("id", *self.about)}
            if any(other[key] != value for key, value in self.about.items()):
                raise ValueError(
                    f"{out} holds lines of another command ({other}); expected {dict(self.about)}. Name another file"
                )
            if "error" not in row and not isinstance(row.get("sample"), str):
                raise ValueError(
                    f"{out} line {number} does not say which sample it answers (no 'sample'): an earlier "
                    "version of the zoo wrote it. Name another file"
                )
            rows.append((line, row))
        return rows

    def missing(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those that have no label yet. ValueError naming an id under which another sample was labelled."""
        for sample in samples:
            before = self.done.get(sample.target.id)
            if before is not None and before != digest(sample):
                raise ValueError(
                    f"{self.out} has a label of another sample with the id {sample.target.id!r}: its words, speaker, "
                    "descriptions, earlier turns or files were others. Name another file with --out"
                )
        return [sample for sample in samples if sample.target.id not in self.done]

    def _foreign(self, out: Path, what: str) -> ValueError:
        return ValueError(
            f"--out {out} was not written by zoo label (it holds {what}), so it is not touched; name another file"
        )

    def write(self, sample: Sample, row: Mapping[str, Any]) -> None:
        turn = sample.target
        clip = turn.video or turn.audio
        place = {} if clip is None else {"clip": shown(clip)}
        mark = {} if self.out is None else {"sample": digest(sample)}
        line = json.dumps({"id": turn.id, **place, **row, **self.about, **mark}, ensure_ascii=False)
        if self.out is None:
            print(line, flush=True)
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def answered(self, sample: Sample, p: Prediction, used: Used, seconds: float, **more: Any) -> None:
        scores = None if p.scores is None else dict(sorted(p.scores.items(), key=lambda item: -item[1]))
        said = {"scores": scores, "text": p.text, "details": p.details, **more}
        self.write(
            sample,
            {
                "label": p.predicted,
                **{key: value for key, value in said.items() if value is not None},
                "used": list(used.used),
                "unused": dict(used.unused),
                **({"damaged": list(used.damaged)} if used.damaged else {}),
                "seconds": round(seconds, 4),
            },
        )
        for what in used.damaged:
            print(f"{sample.target.id}: a part of its file was used, {what}", file=sys.stderr)

    def fail(self, sample: Sample, why: str, show: bool) -> None:
        self.failed[sample.target.id] = why
        if show:
            self.write(sample, {"label": None, "error": why})


# ---------------------------------------------------------------------------------------------------------- the command
def main(args: list[str]) -> None:
    """``zoo label CLIP --ckpt_path NAME``"""
    parser = argparse.ArgumentParser(
        "zoo label",
        allow_abbrev=False,
        description="Names the emotion of a clip or line: one JSON line on stdout; exit code 1 if it got no label. Of "
        "a folder or table: a JSON line each, in --out FILE or on stdout; what got no label is a line with `error`, "
        "counted and listed on stderr, and the exit code is 1 only if nothing got one. Any --model.X V and --data.X V "
        "replaces an option of the run's config.yaml, e.g. --model.llm DIR, or --data.root DIR for a system with "
        "solved examples.",
    )
    add = parser.add_argument
    add(
        "clip",
        nargs="?",
        type=Path,
        metavar="CLIP",
        help="a video, sound or picture, a folder of them, or a CSV "
        f"table with columns like {TABLE}; may be left out if --text or --descriptions is given",
    )
    add("--ckpt_path", required=True, metavar="NAME", help="run folder, checkpoint, or published name")
    add("--text", help="what is said")
    add("--speaker", default="", help="who says it")
    add("--context", type=Path, metavar="CSV", help="earlier turns of the dialogue, oldest first: a table")
    add("--descriptions", nargs="+", default=[], metavar="KIND=TEXT", help="what shows or sounds: audio='a calm voice'")
    add("--clips", type=Path, metavar="DIR", help="of a table without video: files named after the ids, dia0_utt0.mp4")
    add("--encoding", metavar="NAME", help="of the tables, e.g. cp1252 or gb18030; UTF-8 if not given")
    add("--labels", metavar="CORPUS", help="whose labels, for a run on several corpora")
    add(
        "--selector",
        metavar="RUN",
        help="a modality selector that decides first; the system gets its decisions as --model.selection",
    )
    add("--out", type=Path, metavar="FILE", help="JSON lines; those that are there already are kept, the rest is done")
    add(
        "--import",
        metavar="DIR",
        help="folder whose modules the config.yaml of the checkpoint may name; without it "
        "nothing is imported but the zoo and installed packages",
    )
    changes, rest = _changes(take_imports(args))
    options = parser.parse_args(rest)
    _quiet()
    trust_words(args)
    system = System(options.ckpt_path, changes)
    samples = samples_of(options, system.labels(options.labels))
    many = is_many(options.clip)
    about = {"system": system.name, "checkpoint": options.ckpt_path, "options": changes, "selector": options.selector}
    with _one_at_a_time(options.out):
        sheet = Sheet(options.out, {key: value for key, value in about.items() if value})
        label(system, samples, sheet, options.selector, show_failures=many)
    if sheet.failed and not many:
        raise ValueError(f"no label: {next(iter(sheet.failed.values()))}")
    if many:
        print(f"{len(samples) - len(sheet.failed)} of {len(samples)} labelled", file=sys.stderr)
        for name, why in sheet.failed.items():
            print(f"no label for {name}: {why}", file=sys.stderr)
        if len(sheet.failed) == len(samples):
            raise ValueError(f"none of the {len(samples)} got a label; {some(sheet.failed.values(), 1)}")


def _one_at_a_time(out: Path | None) -> contextlib.AbstractContextManager[None]:
    """The lock of the file that a command writes to."""
    if out is None:
        return contextlib.nullcontext()
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file")
    return locked(out.with_name(f".{out.name}.lock"), f"the file {out}")


def label(
    system: System, samples: Sequence[Sample], sheet: Sheet, selector: str | None = None, show_failures: bool = True
) -> None:
    """Labels what the sheet does not hold yet.

    Args:
        selector: checkpoint of a system whose rows decide for the other, which takes them as ``model.selection``.
        show_failures: write a line for a sample without a label, too.
    """
    todo = sheet.missing(samples)
    with tempfile.TemporaryDirectory() as folder:
        decided: dict[str, dict[str, Any]] = {}
        if selector is not None:
            policy = System(selector)

            def decide(sample: Sample, p: Prediction, used: Used, seconds: float) -> None:
                thoughts = {} if p.text is None else {"text": p.text}
                decided[sample.id] = {"system": policy.name, **(p.details or {}), **thoughts, "used": list(used.used)}

            todo = _answer(policy, todo, Path(folder), decide, sheet, show_failures)
            system.model["selection"] = folder

        def write(sample: Sample, p: Prediction, used: Used, seconds: float) -> None:
            selection = decided.get(sample.id)
            sheet.answered(sample, p, without_discarded(used, selection), seconds, selection=selection)

        _answer(system, todo, Path(folder) / "answers", write, sheet, show_failures)


def _answer(
    system: System, samples: Sequence[Sample], folder: Path, hand: Hand, sheet: Sheet, show: bool
) -> list[Sample]:
    """Answers samples and notes those that could not be; returns the others."""
    failed = system.answer(samples, folder, hand) if samples else {}
    for s in samples:
        if s.id in failed:
            sheet.fail(s, f"{system.name}: {failed[s.id]}", show)
    return [s for s in samples if s.id not in failed]


def _changes(args: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """``--model.llm DIR`` or ``--model.llm=DIR`` -> ``{"model.llm": "DIR"}``; and the other arguments."""
    changes, others, waiting = {}, [], list(args)
    while waiting:
        arg = waiting.pop(0)
        name, equals, value = arg.partition("=")
        if not re.fullmatch(r"--(model|data)(\.\w+)+", name):
            others.append(arg)
            continue
        if not equals and not waiting:
            raise ValueError(f"{name} needs a value")
        changes[name.removeprefix("--")] = parse_yaml(value if equals else waiting.pop(0), name)
    return changes, others


def _quiet() -> None:
    """Stdout is for the answers; what Lightning says about a run is of no use here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r".*does not have many workers.*")
    warnings.filterwarnings("ignore", r".*LeafSpec.*")
