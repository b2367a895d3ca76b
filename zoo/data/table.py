"""Table: a corpus of a user's own, one CSV, TSV or JSONL file with a row per utterance."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.base import EmotionData, Reading, dialogue_samples
from zoo.data.descriptions import load_descriptions
from zoo.data.table_rows import KIND, SEPARATORS, Flags, OpenTable, TableColumns, TableRow, clean_utf8, open_table
from zoo.data.text import some, whole_number
from zoo.schema import Labels, Split, Turn

SPLITS: tuple[Split, ...] = ("train", "dev", "test")
SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "development": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
    "testing": "test",
}
MOST_LABELS = 64  # that are taken from a file without being named: more are rather texts or numbers
# content of a column -> option that names it
OPTIONS = {
    "text": "text",
    "label": "label",
    "id": "id",
    "speaker": "speaker",
    "dialogue": "dialogue",
    "order": "order",
    "video": "clip",
    "audio": "audio",
    "split": "split",
}
EXPECTED = (
    "text, label, id, speaker, dialogue, order, clip, audio, split and KIND_description; name others by options like "
    "--data.text (zoo fit --data.help Table)"
)


@dataclass
class _Split:
    """What the table holds of one split."""

    dialogues: dict[str, list[tuple[float, Turn]]] = field(default_factory=lambda: defaultdict(list))
    excluded: dict[str, str] = field(default_factory=dict)
    without_file: set[str] = field(default_factory=set)
    listed: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    rows: int = 0


@dataclass(frozen=True)
class _Row:
    """A row with what is known of it before the splits are drawn."""

    number: int
    row: TableRow
    key: str
    dialogue: str
    place: float
    label: str | None


class Table(EmotionData):
    """A corpus of your own: a CSV, TSV or JSONL file with a row per utterance, such as (made up)::

        id,dialogue,order,speaker,text,label,split,clip
        a1,kitchen,1,Ada,"Well, who took it?",tense,train,clips/a1.mp4
        a2,kitchen,2,Ben,Not me.,calm,train,clips/a2.mp4

    Only words (or clips, or descriptions) and labels have to be there. Columns of these names are found in any case, as
    are MELD's (Utterance, Emotion, Dialogue_ID, Utterance_ID) and ``KIND_description``; options name others. Without
    ``dialogue`` every row is a dialogue of its own. A row without a label is context for the turns after it, and not
    scored; a row without words, clip and descriptions is left out, counted and listed, and so is one that repeats an
    earlier one with the same id. Paths of clips are relative to ``root`` and may not lead out of it.

    Splits are those of the column ``split`` (train, dev or val, test). Without it whole dialogues are drawn, the same
    on every machine: results then name the draw as their protocol. A column without dev rows has ``dev_share`` of the
    training dialogues drawn for it. A dialogue never stands in two splits.

    Args:
        file: name of the table in ``root``; None: the only one there.
        labels: the label words, in the order that systems and reports show; None: those of the file, sorted. A run
            keeps them, so that its checkpoint knows them without the file.
        text, label, id, speaker, dialogue, order, clip, audio, split: headings of the columns, where they have names of
            their own. ``order`` holds numbers, by which the turns of a dialogue are sorted; without it they stand in
            order. ``clip`` names a video, sound or picture; ``audio`` its sound, where that is a file of its own.
        description_columns: kind of description -> heading of its column, e.g. ``{video: seen}``.
        descriptions: files with further descriptions, or folders of them, as `zoo prepare` writes them:
            ``{kind}_description_{split}.json``.
        separator: of the cells; None: a comma in a .csv, a tab in a .tsv.
        dev_share, test_share: shares of the dialogues that are drawn for validation and test, where no column says it;
            1 makes all of the table that split.
        split_seed: of the draw.
        name: of the corpus, in ids and reports; lower-case letters, digits and ``_``.
        licence: of the corpus; `zoo export --system` shows it.
        material: what the samples are, e.g. ``phone calls in German``; `zoo label` shows it.
    """

    unpublished_options = ("file", "descriptions", "separator", "encoding")

    def __init__(
        self,
        file: str | None = None,
        labels: list[str] | None = None,
        text: str | None = None,
        label: str | None = None,
        id: str | None = None,
        speaker: str | None = None,
        dialogue: str | None = None,
        order: str | None = None,
        clip: str | None = None,
        audio: str | None = None,
        split: str | None = None,
        description_columns: dict[str, str] | None = None,
        descriptions: list[Path] | None = None,
        separator: str | None = None,
        dev_share: float = 0.1,
        test_share: float = 0.2,
        split_seed: int = 0,
        name: str = "table",
        licence: str = "?",
        material: str = "?",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"--data.name is of lower-case letters, digits and _; got {name!r}")
        if not (0 <= dev_share <= 1 and 0 <= test_share <= 1 and dev_share + test_share <= 1):
            raise ValueError(
                "--data.dev_share and --data.test_share are shares from 0 to 1, together at most 1; "
                f"got {dev_share} and {test_share}"
            )
        for kind in description_columns or {}:
            if not KIND.fullmatch(kind):
                raise ValueError(
                    f"--data.description_columns: {kind!r} is no kind of description; expected a lower-case word like "
                    "video, then its column: {video: seen}"
                )
        named = dict(zip(OPTIONS, (text, label, id, speaker, dialogue, order, clip, audio, split), strict=True))
        kinds = {f"{kind}_description": column for kind, column in (description_columns or {}).items()}
        self.column_names = {content: heading for content, heading in named.items() if heading is not None} | kinds
        self._flags = Flags("--data.", OPTIONS | dict.fromkeys(kinds, "description_columns"))
        self.file, self.separator, self.description_files = file, separator, descriptions
        self.corpus_name = name
        self.dev_share, self.test_share = dev_share, test_share
        self.split_seed = whole_number("--data.split_seed", split_seed)
        self.licence, self.material = licence, material
        self._given = None if labels is None else self._label_set(labels)
        self._parsed: tuple[dict[Split, _Split], bool, Labels] | None = None
        self._table_notes: dict[str, int] = {}

    # ---- labels, splits and what results are called
    def _label_set(self, words: Iterable[str]) -> Labels:
        """Return label words as a label set. ValueError if they are fewer than two, or not apart."""
        names = tuple(" ".join(word.split()).lower() for word in words)
        if len(names) < 2 or len(set(names)) < len(names) or not all(names):
            raise ValueError(f"--data.labels: expected at least two different words, got {', '.join(names) or 'none'}")
        return Labels(self.corpus_name, names)

    @property
    def labels(self) -> Labels:  # type: ignore[override]  # those of the file, which nobody sets
        return self._given or self._content()[2]

    @property
    def table_columns(self) -> Mapping[str, str]:
        return self.column_names

    def found_options(self) -> Mapping[str, Any]:
        return {"labels": list(self.labels.names)}

    @property
    def protocol(self) -> str:  # type: ignore[override]  # depends on the file
        """Which utterances are scored: with drawn splits, of which draw."""
        if self.root is None or not self._content()[1]:
            return "all_utterances"
        return (
            f"all_utterances, random {self.dev_share:.0%} dev and {self.test_share:.0%} test of dialogues, "
            f"seed {self.split_seed}"
        )

    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in SPLITS if self._content()[0][split].rows)

    # ---- reading
    def read(self, split: Split) -> Reading:
        content = self._content()[0]
        part = content[split]
        if not part.rows:
            raise ValueError(f"{self._path()} has no {split} rows: {self._population(content)}")
        notes: Counter[str] = Counter(self._table_notes)
        notes.update({what: len(keys) for what, keys in part.listed.items()})
        described: dict[str, dict[str, str]] = {}
        if self.description_files:
            keys = [turn.id for turns in part.dialogues.values() for _, turn in turns]
            described, more = load_descriptions(self.description_files, split, keys, self.read_as)
            notes.update(more)
        where = f"{self.corpus_name}/{split}"
        samples = []
        for dialogue, placed in part.dialogues.items():
            turns = [turn for _, turn in sorted(placed, key=lambda one: one[0])]
            turns = [replace(t, descriptions={**t.descriptions, **described.get(t.id, {})}) for t in turns]
            samples += dialogue_samples(turns, where, f"{where}/{dialogue}", self.labels)
        if not samples:
            raise ValueError(
                f"{self._path()} has {part.rows} {split} rows but none to score ({len(part.excluded)} left out, the "
                "others without a label); expected labels in a column. To name the emotions of a table without them: "
                "zoo label TABLE --ckpt_path NAME"
            )
        return Reading(
            samples, None, dict(part.excluded), dict(notes), dict(part.listed), without_file=set(part.without_file)
        )

    def _population(self, content: Mapping[Split, _Split]) -> str:
        """Return what there is in place of a split, and what to do."""
        counts = ", ".join(f"{split} {len(part.dialogues)}" for split, part in content.items())
        if self._content()[1]:
            return (
                f"of its dialogues were drawn {counts} (--data.dev_share {self.dev_share:g}, --data.test_share "
                f"{self.test_share:g}). Change the shares, add dialogues, or name the column with the splits "
                "(--data.split)"
            )
        return f"its column of splits gives the dialogues {counts}. Correct the column, or name another (--data.split)"

    def _path(self) -> Path:
        """Return the place of the table. FileNotFoundError if it is not there, or one of several."""
        if self.folder.is_file():
            parent, name = self.folder.parent, self.folder.name
            raise FileNotFoundError(
                f"--data.root {self.folder} is a file; expected its folder: --data.root {parent} --data.file {name}"
            )
        if self.file is not None and (self.folder / self.file).is_file():
            return self.folder / self.file
        names = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        tables = [name for name in names if Path(name).suffix.lower() in SEPARATORS and not name.startswith(".")]
        if self.file is None and len(tables) == 1:
            return self.folder / tables[0]
        got = f"it holds {some(tables or names) or 'nothing'}" if self.folder.is_dir() else "there is no such folder"
        what = f"no {self.file}" if self.file is not None else f"{len(tables) or 'no'} tables"
        raise FileNotFoundError(
            f"Table: {what} in {self.folder}: {got}; expected a file that ends in {', '.join(SEPARATORS)}. Name it: "
            "--data.file"
        )

    def _content(self) -> tuple[dict[Split, _Split], bool, Labels]:
        """Return what the table holds of each split, whether the splits were drawn, and its labels; read once."""
        if self._parsed is None:
            path = self._path()
            table = open_table(path, self._flags, self.column_names, self.read_as, self.separator)
            self._table_notes = dict(table.notes)
            self._check_columns(table, path)
            labels = self._given or self._labels_of(table, path)
            rows, repeats = self._rows(table, path, labels)
            parts, drawn = self._divided(rows, table.columns, path)
            content: dict[Split, _Split] = {split: _Split() for split in SPLITS}
            for one in rows:
                self._add(content[parts[one.dialogue]], one, table.columns)
            for one in repeats:
                what = f"{one.key} (row {one.number})"
                content[parts[one.dialogue]].excluded[what] = "repeats an earlier row word for word"
            self._parsed = content, drawn, labels
        return self._parsed

    def _check_columns(self, table: OpenTable, path: Path) -> None:
        """ValueError for a table without labels, or without anything that a system could read."""
        got = [*table.columns.headings.values(), *table.unread]
        for what, there in (("labels", "label" in table.columns), ("words or clips", table.columns.hold_input)):
            if not there:
                remedy = "--data.label" if what == "labels" else "--data.text or --data.clip"
                raise ValueError(
                    f"{path} has the columns {', '.join(got)}; none is known to hold {what}. Expected some of "
                    f"{EXPECTED}. Name it: {remedy}"
                )
        if table.unread:
            self._table_notes[f"columns not read: {some(table.unread, 20)}"] = len(table.unread)
        if not table.rows:
            raise ValueError(f"{path} has headings but no rows; expected a row per utterance. Copy it again")

    def _labels_of(self, table: OpenTable, path: Path) -> Labels:
        """Return the labels that occur. ValueError if they are too few or too many to be labels."""
        words = sorted({clean_utf8(cells["label"], str(path)).lower() for cells in table.rows.values()} - {""})
        heading = table.columns.headings["label"]
        if not 2 <= len(words) <= MOST_LABELS:
            raise ValueError(
                f"{path}: the column {heading} holds {len(words)} different words ({some(words)}); expected from 2 to "
                f"{MOST_LABELS} labels. Name another column (--data.label), or the labels themselves (--data.labels)"
            )
        return self._label_set(words)

    def _rows(self, table: OpenTable, path: Path, labels: Labels) -> tuple[list[_Row], list[_Row]]:
        """Return the rows of a table, and those that repeat an earlier one. ValueError naming wrong cells."""
        rows: list[_Row] = []
        repeats: list[_Row] = []
        first: dict[str, _Row] = {}
        unknown = []
        for number, cells in table.rows.items():
            row = TableRow(table.columns, cells, self.folder, f"{path} row {number}", confined=True)
            dialogue = row.text("dialogue") or None
            key = row.key(dialogue, number)
            word = row.text("label").lower() or None
            if word is not None and word not in labels.names:
                unknown.append(f"{word!r} in row {number}")
            if "dialogue" in table.columns and dialogue is None:
                raise ValueError(f"{row.where}: no dialogue; give it one, one of its own if it stands alone")
            one = _Row(number, row, key, dialogue or key, row.order(len(rows)), word)
            earlier = first.setdefault(key, one)
            if not key or (earlier is not one and earlier.row.cells != cells):
                raise ValueError(
                    f"{row.where}: the id {key!r} is "
                    f"{f'that of row {earlier.number}, too, with other contents' if key else 'empty'}; give each row "
                    "its own, or name another column (--data.id)"
                )
            (rows if earlier is one else repeats).append(one)
        if unknown:
            raise ValueError(
                f"{path}: unknown label {some(unknown)}; expected one of {', '.join(labels.names)}. Correct the cells "
                "(empty: context alone), or name all labels (--data.labels)"
            )
        return rows, repeats

    def _add(self, part: _Split, one: _Row, columns: TableColumns) -> None:
        """Add a row to its split, or to what is left out of it."""
        part.rows += 1
        turn = one.row.turn(one.key, one.label, None)
        missing = False
        for name in ("video", "audio"):
            file = getattr(turn, name)
            if file is not None and not _is_file(file):
                turn = replace(turn, video=None) if name == "video" else replace(turn, audio=None)
                missing = True
        if missing:
            part.listed["clips missing"].append(one.key)
        if not turn.text and turn.video is None and turn.audio is None and not turn.descriptions:
            part.excluded[one.key] = "the clip is not there" if missing else "no words, no clip, no description"
            if missing:
                part.without_file.add(one.key)
                part.listed["clips missing"].pop()
            return
        if "text" in columns and not turn.text:
            part.listed["without words"].append(one.key)
        if one.label is None:
            part.listed["without a label, context only"].append(one.key)
        part.dialogues[one.dialogue].append((one.place, turn))

    # ---- splits
    def _divided(self, rows: Sequence[_Row], columns: TableColumns, path: Path) -> tuple[dict[str, Split], bool]:
        """Return the split of each dialogue, and whether all were drawn."""
        if "split" not in columns:
            return self._drawn(sorted({one.dialogue for one in rows}), self.test_share), True
        parts: dict[str, Split] = {}
        for one in rows:
            cell = one.row.text("split")
            split = SPLIT_WORDS.get(cell.lower())
            if split is None:
                raise ValueError(
                    f"{one.row.where}: {columns.headings['split']} is {cell!r}; expected train, dev (or val) or test. "
                    "Correct the cell, or name another column (--data.split)"
                )
            if parts.setdefault(one.dialogue, split) != split:
                raise ValueError(
                    f"{one.row.where}: the dialogue {one.dialogue!r} stands in {parts[one.dialogue]} and in {split}; "
                    "what is trained on cannot be tested on. Put it into one split, or give two dialogues two names"
                )
        trained = sorted(dialogue for dialogue, split in parts.items() if split == "train")
        if "dev" not in parts.values() and self.dev_share and len(trained) > 1:  # of one, nothing would be left
            parts |= self._drawn(trained, 0.0)
            n = sum(split == "dev" for split in parts.values())
            self._table_notes[
                f"no dev rows: dialogues drawn from train for it (--data.dev_share {self.dev_share:g})"
            ] = n
        return parts, False

    def _drawn(self, dialogues: Sequence[str], test_share: float) -> dict[str, Split]:
        """Draw a split for each of some sorted dialogues; at least one for a share that is not 0."""
        order = [dialogues[i] for i in np.random.default_rng(self.split_seed).permutation(len(dialogues))]
        tests = max(1, round(test_share * len(order))) if test_share else 0
        devs = max(1, round(self.dev_share * len(order))) if self.dev_share else 0
        return {
            dialogue: "test" if place < tests else "dev" if place < tests + devs else "train"
            for place, dialogue in enumerate(order)
        }


def _is_file(path: Path) -> bool:
    """Return whether there is a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except OSError:  # too long
        return False
