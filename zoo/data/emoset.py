"""EmoSet-118K: photographs in eight emotions (Yang et al. 2023)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path, PurePosixPath

from zoo.data.base import EmotionData, Reading
from zoo.data.clips import check_apart, clips_missing, find_clips, modalities, single
from zoo.data.text import find_file, read_text
from zoo.schema import Labels, Split

ADVICE = (
    "These are the files of EmoSet-118K as unpacked (https://vcc.tech/EmoSet: image, train.json, val.json, test.json); "
    "give their folder as --data.root"
)
FILES = {"train": "train.json", "dev": "val.json", "test": "test.json"}
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


class EmoSet(EmotionData):
    """EmoSet-118K: a picture is a clip of one frame (``Turn.video``); there are no words and no sound.

    Expects ``train.json``, ``val.json`` and ``test.json`` in ``root``, lists of rows like (made up)::

        ["awe", "awe_00012", "image/awe/awe_00012.jpg", "annotation/awe/awe_00012.json"]

    The second entry may be missing, as in older copies. Only label and picture are read, not the annotations of
    brightness, scene and so on. Labels are amusement, awe, contentment, excitement, anger, disgust, fear, sadness, in
    the order of the release's ``info.json``.

    The authors state 118,102 pictures in all. Score: accuracy.

    Licence: research only; the pictures belong to their photographers. Download from the project page.
    """

    licence = "research only"
    material = "photographs"
    labels = Labels("emoset", ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness"))

    def read(self, split: Split) -> Reading:
        path = find_file(self.root, [FILES[split]], "EmoSet", ADVICE)
        rows, excluded = self._rows(path)
        notes: Counter[str] = Counter()
        listed = set(rows)
        for other in FILES.values():
            if other != FILES[split] and (self.folder / other).is_file():
                more = self._rows(self.folder / other)[0]
                check_apart(rows, more, path, self.folder / other)
                listed |= set(more)
        files = find_clips(self.folder, ("image",), PICTURES, notes).values()
        pictures = {p.relative_to(self.folder).as_posix() for p in files}
        unused: dict[str, list[str]] = {}
        if all((self.folder / name).is_file() for name in FILES.values()):
            unused["pictures in no list, not used"] = sorted(pictures - listed)
            for what, members in unused.items():
                notes[what] = len(members)
        samples = []
        for name, label in rows.items():
            picture = self.folder / name if name in pictures else None
            samples.append(single(self.labels, split, PurePosixPath(name).stem, "", label, picture, audio=None))
        notes["pictures missing"] = modalities(samples)["clips missing"]
        return Reading(samples, None, excluded, dict(notes), unused | clips_missing(samples))

    def _rows(self, path: Path) -> tuple[dict[str, str], dict[str, str]]:
        """Map each picture, relative to the root, to its label; and list the rows that repeat an earlier one."""
        try:
            rows = json.loads(read_text(path, self.read_as)[0])
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {error.lineno}: {error.msg}; expected JSON. Download it again") from None
        if not isinstance(rows, list) or not rows:
            raise ValueError(f"{path} holds {type(rows).__name__}; expected a list of rows. Use the released file")
        labels: dict[str, str] = {}
        excluded: dict[str, str] = {}
        for number, row in enumerate(rows, 1):
            where = f"{path} row {number}"
            if not (isinstance(row, list) and len(row) in (3, 4) and all(isinstance(cell, str) for cell in row)):
                raise ValueError(
                    f"{where} is {str(row)[:200]}; expected [label, name, picture, annotation]. Use the released file"
                )
            label, picture = row[0].strip().lower(), PurePosixPath(row[-2])
            if label not in self.labels.names:
                raise ValueError(
                    f"{where}: unknown label {row[0]!r} ({picture}); expected one of {', '.join(self.labels.names)}. "
                    "Correct it, or leave the row out"
                )
            parts = picture.parts
            if len(parts) != 3 or parts[0] != "image" or ".." in parts or parts[1].lower() != label:
                raise ValueError(
                    f"{where}: the picture of {label!r} is {row[-2]!r}; expected image/{label}/FILE. Use the released "
                    "file and folders"
                )
            if picture.as_posix() in labels:
                excluded[f"{picture.stem} (row {number})"] = "repeats an earlier row"
            labels[picture.as_posix()] = label
        return labels, excluded
