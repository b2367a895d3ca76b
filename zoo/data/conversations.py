"""Conversations about pictures and videos, in the JSON of Emotion-Qwen's authors, mixed by weight."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo.data.base import EmotionData, Reading
from zoo.data.conversation_rows import Conversation
from zoo.data.row_index import IndexedRows, ListedRows, Rows
from zoo.data.text import one_of, read_text, whole_number
from zoo.schema import Labels, LazySamples, Sample, Split
from zoo.storage import parse_json, read_yaml

_TALK = np.dtype([("file", "<u2"), ("row", "<u4"), ("answers", "<u2")])  # a conversation
_ANSWER = np.dtype([("file", "<u2"), ("row", "<u4"), ("answer", "<u2"), ("again", "<u2")])  # again: which copy


class Conversations(EmotionData):
    """Several files of conversations, each with a weight; every answer of the assistant is a sample.

    ``mixture`` is a YAML file. Its paths are relative to its own folder::

        train:
          - {path: llava.jsonl, root: images/llava, weight: 1.0}
          - {path: "cc12m/*.tar", weight: 0.5, template: "{question} Describe it."}
          - {path: ocr.json, root: images/ocr, template: "{question} Answer with a word or two."}
        dev:
          - {path: dev.json, root: images/dev}

    Without ``dev`` a seeded share of the conversations of ``train`` is taken. A row is like::

        {"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "conversations": [
            {"role": "user", "content": "<image>\\nWhat colours is the bus?"},
            {"role": "assistant", "content": "White and red."}]}

    or has ``from`` (human, gpt) and ``value`` in place of ``role`` (user, assistant) and ``content``; ``messages`` in
    place of ``conversations``; a first turn of ``system``, which stands in place of ``--model.system_prompt``; or a
    ``caption`` alone, which answers the template. Pictures and videos are named by ``image`` or ``images``, ``video``
    or ``videos``, a path below ``root`` or a list of them, in the order of the ``<image>`` and ``<video>`` in the
    user's words, one each. Conversations without a picture are fine.

    Three kinds of file, and ``*`` in a path for several of the last two:

    - ``.json``, a list of rows: all of it in memory, and each picture is looked for at the start.
    - ``.jsonl``, a row per line: read when a sample is asked for, however large. Every line is read once, for an index
      beside the file (`zoo.data.row_index`). A picture that is not there is found out when it is read.
    - ``.tar``, an uncompressed shard in webdataset's layout, likewise: ``key.json`` is a row (``key.txt`` a caption),
      the pictures and videos of the key are its, in their order; names in the row are not looked at, nor are other
      members. A row without ``id`` is called after its key.

    A row that is not so is left out under its name with the reason.

    A sample's ``question`` is what the user said, its ``answer`` what the assistant said, its history what came before.
    It has no label: `zoo test` reports the overlap of words (`zoo.metrics.reason_overlap`), validation the
    log-probability of the answers. The authors published none of their data. `Joint` makes all samples at its start.

    Args:
        mixture: the YAML file.
        dev_share: of the training conversations, where the mixture has no ``dev``.
        mix_seed: of that split and of what a weight draws.
        answers: in training, each answer of a conversation is a sample (``apart``), or a conversation is one, which
            learns all its answers (``together``, as the authors' code does). Scored is each answer.
        index_folder: where indexes are kept; None: beside their files.
    """

    unpublished_options = ("mixture", "index_folder")
    labels = Labels("conversations", ())
    protocol = "all_answers"

    def __init__(
        self,
        mixture: Path,
        dev_share: float = 0.01,
        mix_seed: int = 0,
        answers: Literal["apart", "together"] = "apart",
        index_folder: Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        one_of("--data.answers", answers, ("apart", "together"))
        if self.root is not None:
            raise ValueError(f"the mixture says where the files lie; leave --data.root out (got {self.root})")
        if not 0 < dev_share < 1:
            raise ValueError(f"dev_share is a share between 0 and 1, got {dev_share}")
        self.mixture, self.dev_share = Path(mixture), dev_share
        self.mix_seed = whole_number("mix_seed", mix_seed)
        self.answers, self.index_folder = answers, None if index_folder is None else Path(index_folder)
        self._parts: dict[Split, list[dict[str, Any]]] | None = None

    # ---- the mixture
    def parts(self) -> dict[Split, list[dict[str, Any]]]:
        """split -> its files. ValueError or FileNotFoundError saying what is wrong with the mixture."""
        if self._parts is not None:
            return self._parts
        if not self.mixture.is_file():
            raise FileNotFoundError(f"no mixture at {self.mixture}; give a YAML file with --data.mixture")
        mixture = read_yaml(self.mixture)
        if not isinstance(mixture, dict) or not mixture or set(mixture) - {"train", "dev", "test"}:
            raise ValueError(f"{self.mixture} must have train, dev or test, got {str(mixture)[:100]}")
        for split, entries in mixture.items():
            if not isinstance(entries, list) or not entries:
                raise ValueError(f"{self.mixture}: {split} must be a list of files, got {str(entries)[:100]}")
            for entry in entries:
                self._check(entry, split)
            names = Counter(p if "*" in (p := entry["path"]) else Path(p).stem for entry in entries)
            twice = [name for name, n in names.items() if n > 1]
            if twice:
                raise ValueError(
                    f"{self.mixture}: {split} has two files called {twice}; their rows could not be told "
                    "apart. Rename one, or give one a larger weight"
                )
        self._parts = mixture
        return mixture

    def _check(self, entry: Any, split: str) -> None:
        if not isinstance(entry, dict) or "path" not in entry or set(entry) - {"path", "root", "weight", "template"}:
            raise ValueError(f"{self.mixture}: {split} holds {entry!r}; expected path, and root, weight or template")
        weight, template = entry.get("weight", 1.0), entry.get("template", "{question}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1000:
            raise ValueError(f"{self.mixture}: the weight of {entry['path']} is {weight!r}; expected a number over 0")
        if split != "train" and weight != 1:
            raise ValueError(f"{self.mixture}: {split} is scored, so weights belong to train; got {weight}")
        if not isinstance(template, str) or template.count("{question}") != 1:
            raise ValueError(
                f"{self.mixture}: the template of {entry['path']} is {template!r}; expected {{question}} in it once"
            )
        for key in ("path", "root"):
            if not isinstance(entry.get(key, "."), str):
                raise ValueError(f"{self.mixture}: {key} is {entry[key]!r}; expected a path as text")
            if Path(entry.get(key, ".")).is_absolute():
                raise ValueError(f"{self.mixture}: {key} {entry[key]!r} is absolute; give it relative to the mixture")

    def splits(self) -> tuple[Split, ...]:
        parts = self.parts()
        return tuple(s for s in ("train", "dev", "test") if s in parts or (s == "dev" and "train" in parts))

    # ---- rows
    def read(self, split: Split) -> Reading:
        if split not in self.splits():
            raise ValueError(f"{self.mixture} has no {split} files; add them under {split}:")
        shared = split != "test" and "dev" not in self.parts()
        files: list[Conversation] = []
        excluded: dict[str, str] = {}
        without_file: set[str] = set()
        notes: Counter[str] = Counter()
        drawn: list[np.ndarray] = []
        for number, entry in enumerate(self.parts()["train" if shared else split]):
            name = Path(entry["path"]).stem if "*" not in entry["path"] else entry["path"]
            talks = self._talks(entry, split, files, excluded, without_file, notes)
            rng = np.random.default_rng((self.mix_seed, number))
            if shared:
                held = np.zeros(len(talks), bool)
                held[rng.permutation(len(talks))[: max(1, round(self.dev_share * len(talks)))]] = True
                talks = talks[held == (split == "dev")]
            weight = float(entry.get("weight", 1.0)) if split == "train" else 1.0
            whole, part = int(weight), round((weight % 1) * len(talks))
            copies = np.full(len(talks), whole)
            copies[rng.permutation(len(talks))[:part]] += 1
            drawn.append(_answers(talks, copies, self.answers == "together" and split == "train"))
            notes[f"conversations of {name}"] = len(talks)
            notes[f"drawn from {name}"] = int(copies.sum())
        samples = ConversationSamples(files, np.concatenate(drawn))
        notes["answers without a picture or video"] = samples.count_without_clip()
        missing = set() if shared and split == "dev" else without_file
        return Reading(samples, excluded=excluded, notes=dict(notes), without_file=missing)

    def _talks(
        self,
        entry: dict[str, Any],
        split: Split,
        files: list[Conversation],
        excluded: dict[str, str],
        without_file: set[str],
        noted: Counter[str],
    ) -> np.ndarray:
        """Add the files of an entry to ``files``, and return what is in them: `_TALK` of each conversation."""
        root = self.mixture.parent / entry.get("root", ".")
        talks = [np.empty(0, _TALK)]
        for path, prefix in self._paths(entry):
            if not root.is_dir():
                raise FileNotFoundError(
                    f"{root} is no folder, but {self.mixture} names it as the root of {entry['path']}"
                )
            if prefix in {file.prefix for file in files}:
                raise ValueError(
                    f"{self.mixture}: {split} has two files called {prefix}; rename one of them or its folder"
                )
            where = f"{self.labels.corpus}/{split}"
            together = self.answers == "together" and split == "train"
            template = entry.get("template", "{question}")
            plain = Conversation(None, prefix, where, self.labels)
            rows: Rows
            if path.suffix in (".jsonl", ".tar"):
                rows = IndexedRows(path, self._index_of(path), plain.inspect)
                file = replace(plain, rows=rows, root=root, template=template, together=together)
            else:
                file = replace(plain, root=root, template=template, together=together, must_exist=True)
                rows = ListedRows(path, self._list(path, noted), file.inspect)
                file = replace(file, rows=rows)
            for row in rows.omitted:
                key = f"{prefix}_{row.place if row.id is None else row.id}"
                key = key if key not in excluded else f"{key} ({row.place})"
                excluded[key] = row.reason
                if row.file_missing:
                    without_file.add(key)
            numbers = np.flatnonzero(rows.table["answers"])
            in_file = np.empty(len(numbers), _TALK)
            in_file["file"], in_file["row"], in_file["answers"] = len(files), numbers, rows.table["answers"][numbers]
            files.append(file)
            talks.append(in_file)
        return np.concatenate(talks)

    def _paths(self, entry: dict[str, Any]) -> list[tuple[Path, str]]:
        """Return the files of an entry, and what the ids of each begin with."""
        folder, name = self.mixture.parent, entry["path"]
        if "*" not in name:
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} does not exist, but {self.mixture} names it")
            return [(folder / name, Path(name).stem)]
        paths = sorted(path for path in folder.glob(name) if path.is_file())
        if not paths:
            raise FileNotFoundError(f"no file is called {folder / name}, but {self.mixture} names it")
        return [(path, f"{path.parent.name}-{path.stem}") for path in paths]

    def _index_of(self, path: Path) -> Path:
        """Return where the index of a file is kept."""
        if self.encoding is not None and codecs.lookup(self.encoding).name not in ("utf-8", "utf-8-sig"):
            raise ValueError(f"{path.name} is read by its index, as UTF-8 alone; got --data.encoding {self.encoding}")
        if self.index_folder is None:
            return path.with_name(f"{path.name}.index")
        place = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:16]
        return self.index_folder / f"{path.name}.{place}.index"

    def _list(self, path: Path, noted: Counter[str]) -> list[Any]:
        """Return the rows of a JSON list."""
        text, notes = read_text(path, self.read_as)
        noted.update(notes)
        try:
            rows = parse_json(text, path.name)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON in UTF-8 ({error}); expected a list of conversations") from None
        if not isinstance(rows, list):
            raise ValueError(f"{path} holds a {type(rows).__name__}; expected a list of conversations")
        return rows


class ConversationSamples(LazySamples):
    """The answers of files of conversations: 10 bytes each, beside the index of the files.

    Args:
        files: the files.
        answers: (N,) `_ANSWER`.
    """

    def __init__(self, files: Sequence[Conversation], answers: np.ndarray) -> None:
        self.files, self.answers = files, answers

    def __len__(self) -> int:
        return len(self.answers)

    def make(self, number: int) -> Sample:
        file, row, answer, again = self.answers[number].tolist()
        sample: Sample = self.files[file].sample(row, answer)
        return replace(sample, id=f"{sample.id}~{again}") if again else sample

    def _columns(self, *names: str) -> list[np.ndarray]:
        """Return columns of the indexes, (N,) each."""
        columns = [np.empty(len(self), np.int64) for _ in names]
        for number, file in enumerate(self.files):
            if file.rows is not None:
                of_file = np.flatnonzero(self.answers["file"] == number)
                for name, column in zip(names, columns, strict=True):
                    column[of_file] = file.rows.table[name][self.answers["row"][of_file]]
        return columns

    def lengths(self) -> np.ndarray:
        """Return the bytes of each row's JSON up to the answer, as if its answers were equally long."""
        text, answers = self._columns("text", "answers")
        up_to: np.ndarray = text * (self.answers["answer"] + 1) // answers
        return up_to

    def dialogue_numbers(self) -> np.ndarray:
        talk = self.answers["file"].astype(np.int64) << 32 | self.answers["row"]
        return np.unique(talk, return_inverse=True)[1]

    def select(self, numbers: Sequence[int] | np.ndarray) -> ConversationSamples:
        return ConversationSamples(self.files, self.answers[np.asarray(numbers, np.int64)])

    def count_without_clip(self) -> int:
        """Count the samples whose conversation has shown no picture or video up to the answer."""
        (first,) = self._columns("first_clip")
        return int((self.answers["answer"] < first).sum())


def _answers(talks: np.ndarray, copies: np.ndarray, together: bool) -> np.ndarray:
    """Return the answers of conversations, each conversation as often as `copies` says, its copies behind it."""
    times = np.repeat(np.arange(len(talks)), copies)
    again = _count_up(copies)
    if together:  # one sample, that of the last answer
        answers = np.empty(len(times), _ANSWER)
        answers["answer"] = talks["answers"][times] - 1
    else:
        each = talks["answers"][times].astype(np.int64)
        number = _count_up(each)
        times, again = np.repeat(times, each), np.repeat(again, each)
        answers = np.empty(len(times), _ANSWER)
        answers["answer"] = number
    answers["file"], answers["row"], answers["again"] = talks["file"][times], talks["row"][times], again
    return answers


def _count_up(times: np.ndarray) -> np.ndarray:
    """Return 0, 1, ... for each of some numbers, up to below it, one after the other.

    >>> _count_up(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    counted: np.ndarray = np.arange(times.sum()) - np.repeat(times.cumsum() - times, times)
    return counted
