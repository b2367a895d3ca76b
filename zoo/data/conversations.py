"""Conversations about pictures and videos, in the JSON of Emotion-Qwen's authors, mixed by weight."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from zoo.data.base import EmotionData, Reading
from zoo.data.text import read_text, whole_number
from zoo.schema import Labels, Sample, Split, Turn
from zoo.storage import parse_json, read_yaml, split_lines

PLACE = re.compile(r"<(image|video)>")
ROLES = ("user", "assistant")
ADVICE = "expected id, image or video where there is one, and conversations of role and content, user first"


class Conversations(EmotionData):
    """Several files of conversations, each with a weight; every answer of the assistant is a sample.

    ``mixture`` is a YAML file. Its paths are relative to its own folder::

        train:
          - {path: llava.json, root: images/llava, weight: 1.0}
          - {path: ocr.json, root: images/ocr, weight: 0.5, template: "{question} Answer with a word or two."}
        dev:
          - {path: dev.json, root: images/dev}

    Without ``dev`` a seeded share of the conversations of ``train`` is taken. A file holds a list (``.jsonl``: a row
    per line) of rows like::

        {"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "conversations": [
            {"role": "user", "content": "<image>\\nWhat colours is the bus?"},
            {"role": "assistant", "content": "White and red."}]}

    with ``image`` or ``video``, a path below ``root`` or a list of them, in the order of the ``<image>`` and
    ``<video>`` in the user's words, one each. A row that is not so, or whose file is not there, is left out under its
    name with the reason. Conversations without a picture are fine.

    A sample's ``question`` is what the user said, its ``answer`` what the assistant said, its history what came before.
    It has no label: `zoo test` reports the overlap of words (`zoo.metrics.reason_overlap`), validation the
    log-probability of the answers. The authors published none of their data.

    Args:
        mixture: the YAML file.
        dev_share: of the training conversations, where the mixture has no ``dev``.
        mix_seed: of that split and of what a weight draws.
    """

    unpublished_options = ("mixture",)
    labels = Labels("conversations", ())
    protocol = "all_answers"

    def __init__(self, mixture: Path, dev_share: float = 0.01, mix_seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.root is not None:
            raise ValueError(f"the mixture says where the files lie; leave --data.root out (got {self.root})")
        if not 0 < dev_share < 1:
            raise ValueError(f"dev_share is a share between 0 and 1, got {dev_share}")
        self.mixture, self.dev_share = Path(mixture), dev_share
        self.mix_seed = whole_number("mix_seed", mix_seed)
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
            names = Counter(Path(entry["path"]).stem for entry in entries)
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
            if Path(str(entry.get(key, "."))).is_absolute():
                raise ValueError(f"{self.mixture}: {key} {entry[key]!r} is absolute; give it relative to the mixture")

    def splits(self) -> tuple[Split, ...]:
        parts = self.parts()
        return tuple(s for s in ("train", "dev", "test") if s in parts or (s == "dev" and "train" in parts))

    # ---- rows
    def read(self, split: Split) -> Reading:
        if split not in self.splits():
            raise ValueError(f"{self.mixture} has no {split} files; add them under {split}:")
        shared = split != "test" and "dev" not in self.parts()
        excluded: dict[str, str] = {}
        without_file: set[str] = set()
        notes: Counter[str] = Counter()
        samples: list[Sample] = []
        for number, entry in enumerate(self.parts()["train" if shared else split]):
            name = Path(entry["path"]).stem
            talks = self._talks(entry, split, excluded, without_file, notes)
            rng = np.random.default_rng((self.mix_seed, number))
            if shared:
                held = set(rng.permutation(len(talks))[: max(1, round(self.dev_share * len(talks)))].tolist())
                talks = [t for i, t in enumerate(talks) if (i in held) == (split == "dev")]
            weight = float(entry.get("weight", 1.0)) if split == "train" else 1.0
            whole, part = int(weight), round((weight % 1) * len(talks))
            copies = [whole] * len(talks)
            for i in rng.permutation(len(talks))[:part]:
                copies[i] += 1
            for talk, times in zip(talks, copies, strict=True):
                samples += talk[:] if times else []
                for again in range(1, times):
                    samples += [replace(s, id=f"{s.id}~{again}") for s in talk]
            notes[f"conversations of {name}"] = len(talks)
            notes[f"drawn from {name}"] = sum(copies)
        notes["answers without a picture or video"] = sum(
            all(t.video is None for t in (s.target, *s.history)) for s in samples
        )
        return Reading(
            samples,
            excluded=excluded,
            notes=dict(notes),
            without_file=set() if shared and split == "dev" else without_file,
        )

    def _talks(
        self, entry: dict[str, Any], split: Split, excluded: dict[str, str], without_file: set[str], noted: Counter[str]
    ) -> list[list[Sample]]:
        """Return the samples of each conversation of a file."""
        path = self.mixture.parent / entry["path"]
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist, but {self.mixture} names it")
        root = self.mixture.parent / entry.get("root", ".")
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is no folder, but {self.mixture} names it as the root of {entry['path']}")
        text, notes = read_text(path, self.read_as)
        noted.update(notes)
        try:
            if path.suffix == ".jsonl":
                lines = enumerate(split_lines(text), 1)
                rows = [parse_json(line, f"line {number}") for number, line in lines if line.strip()]
            else:
                rows = parse_json(text, path.name)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON in UTF-8 ({error}); expected a list of conversations") from None
        if not isinstance(rows, list):
            raise ValueError(f"{path} holds a {type(rows).__name__}; expected a list of conversations")
        talks, met = [], set()
        for number, row in enumerate(rows):
            key = f"{path.stem}_{row['id'] if isinstance(row, dict) and 'id' in row else f'row{number}'}"
            try:
                if key in met:
                    raise _Malformed("a second row of this id")
                talks.append(self._talk(row, key, root, split, entry.get("template", "{question}")))
                met.add(key)
            except _Malformed as reason:
                key = key if key not in excluded else f"{key} (row {number})"
                excluded[key] = str(reason)
                if isinstance(reason, _FileMissing):
                    without_file.add(key)
        return talks

    def _talk(self, row: Any, key: str, root: Path, split: Split, template: str) -> list[Sample]:
        if not isinstance(row, dict) or not isinstance(row.get("id"), str | int):
            raise _Malformed(f"no row with an id; {ADVICE}")
        messages = row.get("conversations")
        if not isinstance(messages, list) or len(messages) < 2:
            raise _Malformed(f"no conversation of two turns; {ADVICE}")
        files = {kind: self._files(row, kind, root) for kind in ("image", "video")}
        turns: list[Turn] = []
        samples: list[Sample] = []
        where = f"{self.labels.corpus}/{split}"
        for number, turn in enumerate(messages):
            role = ROLES[number % 2]
            if not isinstance(turn, dict) or turn.get("role") != role or not isinstance(turn.get("content"), str):
                raise _Malformed(f"turn {number} is {str(turn)[:60]!r}, expected the words of the {role}; {ADVICE}")
            content = turn["content"].strip()
            if role == "assistant":
                if PLACE.search(content) or not content:
                    what = "has a place for a clip" if content else "is empty"
                    raise _Malformed(f"turn {number} of the assistant {what}")
                asked = turns.pop()
                question = template.replace("{question}", asked.text)
                bare = replace(asked, text="")
                name = f"{where}/{key}_{number // 2}"
                samples.append(Sample(name, f"{where}/{key}", self.labels, bare, tuple(turns), question, content))
                turns += [asked, Turn(f"{key}_{number}", role, content)]
            else:
                turns += self._asked(content, f"{key}_{number}", files)
        if len(messages) % 2:
            raise _Malformed("the last turn is the user's; nobody answers it")
        left = {kind: len(paths) for kind, paths in files.items() if paths}
        if left:
            raise _Malformed(f"more files than places in the words: left over {left}")
        return samples

    def _asked(self, content: str, id_: str, files: dict[str, list[Path]]) -> list[Turn]:
        """Split a user's words into turns of at most one clip each.

        What follows a clip up to the next one belongs to it.
        """
        places = list(PLACE.finditer(content))
        ends = [p.end() for p in places[:-1]] + [len(content)]
        turns = []
        for i, (start, end) in enumerate(itertools.pairwise([0, *ends])):
            clip = None
            if places:
                kind = places[i][1]
                if not files[kind]:
                    raise _Malformed(f"more <{kind}> in the words than files")
                clip = files[kind].pop(0)
            turns.append(Turn(f"{id_}_{i}" if len(ends) > 1 else id_, "user", content[start:end], video=clip))
        return turns

    def _files(self, row: dict[str, Any], kind: str, root: Path) -> list[Path]:
        value = row.get(kind)
        value = [] if value is None else value if isinstance(value, list) else [value]
        for path in value:
            if not isinstance(path, str) or not path:
                raise _Malformed(f"{kind} is {path!r}, expected a path")
            pure = PurePosixPath(path.replace("\\", "/"))
            if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:", path):
                raise _Malformed(f"{kind} {path!r} leaves its root; expected a path below {root.name}")
            if not (root / path).is_file():
                raise _FileMissing(f"{kind} {path!r} is not there")
        return [root / path for path in value]


class _Malformed(ValueError):
    """A row that is left out, and why."""


class _FileMissing(_Malformed):
    """A row whose picture or video is not there."""
