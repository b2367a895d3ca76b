"""CMU-MOSEI: spoken opinions from online videos with six emotion intensities (Bagher Zadeh et al. 2018)."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from zoo.data.base import EmotionData, Reading, dialogue_samples
from zoo.data.clips import check_apart, clips_missing, find_clips, modalities
from zoo.data.text import clean_text, drop_repeats, find_file, one_of, read_table, read_text, some, whole_numbers
from zoo.schema import Labels, Sample, Split, Turn
from zoo.storage import split_lines

ADVICE = (
    "These are the raw data and the label file of CMU-MOSEI (http://multicomp.cs.cmu.edu, "
    "https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK); give their folder as --data.root, see zoo.data.MOSEI"
)
CSV, CSD, FOLDS = "label.csv", "CMU_MOSEI_Labels.csd", "cmu_mosei_std_folds.py"
EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")  # the authors' order of the intensities
SPLITS = {"train": "train", "valid": "dev", "dev": "dev", "val": "dev", "test": "test"}
CLIPS = ("Videos/Segmented/Combined", "Raw/Videos/Segmented/Combined")
Lines = dict[int, tuple[tuple[float, float], str]]  # of one transcript: clip -> (start, end) in seconds, words
CLOSE = 0.01  # seconds between a label's interval and its transcript line's


class MOSEI(EmotionData):
    """CMU-MOSEI with one emotion per clip.

    Reads either of two forms of the labels in ``root``:

    1. The authors' files: ``CMU_MOSEI_Labels.csd`` (HDF5; its group ``All Labels/data/VIDEO`` holds ``intervals`` (N,
       2) in seconds and ``features`` (N, 7): sentiment, then happy, sad, anger, surprise, disgust, fear in 0..3), the
       transcripts ``Transcript/Segmented/Combined/VIDEO.txt`` in ``root`` or ``root/Raw``, with lines like (made up)
       ``VIDEO___3___12.5___17.25___I would see it again.``, and ``cmu_mosei_std_folds.py`` of the authors' SDK, whose
       lists of video ids are read, not run. A label belongs to the transcript line of its interval.
    2. ``label.csv``, e.g. made from those, with rows like (made up)::

        video_id,clip_id,text,happy,sad,anger,surprise,disgust,fear,split
        xY3_-aB,3,I would see it again.,1.3333,0,0,0.3333,0,0,train

       ``split`` is train, valid or test; MMSA's file of this name has no emotions and is refused.

    Other .csd files (word vectors, COVAREP, Facet) are not read: the zoo's systems take words, frames and sound. Clips
    are optional: ``Videos/Segmented/Combined/VIDEO_CLIP.mp4`` in ``root`` or ``root/Raw``, or ``Raw/VIDEO/CLIP.mp4``.

    The dialogue is the video, one speaker's monologue; its earlier clips are the history, those without a label too.

    One emotion per clip, as nobody published a rule: the most intense of those present (above `intensity_threshold`),
    the first in the authors' order where several are equal. Clips with none are left out, or neutral; all of it is
    counted.

    The authors' paper states 23,453 clips of 3,228 videos; the SDK's label file of today has 23,259, of which the
    standard folds take in 16,327 / 1,871 / 4,662, as others counted (github.com/s3prl/s3prl, downstream/mosei).

    Licence: research; the labels come with the SDK (MIT), the videos belong to those who posted them. Raw data:
    immortal.multicomp.cs.cmu.edu/raw_datasets, or by request to the authors.

    Args:
        multi_label_rule: a clip with several emotions takes the most intense, or is left out.
        no_emotion_rule: a clip with no emotion is left out, or is a seventh class, neutral.
        intensity_threshold: an emotion is present above this intensity; the authors' own rule is 0.
        folds: CSV with the columns video_id and split, instead of the standard folds; its name is part of the protocol.
    """

    unpublished_options = ("folds",)
    renamed_options: ClassVar[Mapping[str, str]] = {
        "several": "multi_label_rule",
        "none": "no_emotion_rule",
        "present": "intensity_threshold",
    }
    licence = "research; labels MIT, videos belong to those who posted them"
    material = "English video monologues"
    labels = Labels("mosei", ("happiness", "sadness", "anger", "surprise", "disgust", "fear"))
    encodings = ("cp1252",)

    def __init__(
        self,
        multi_label_rule: Literal["most_intense", "exclude"] = "most_intense",
        no_emotion_rule: Literal["exclude", "neutral"] = "exclude",
        intensity_threshold: float = 0.0,
        folds: Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        one_of("multi_label_rule", multi_label_rule, ("most_intense", "exclude"))
        one_of("no_emotion_rule", no_emotion_rule, ("exclude", "neutral"))
        if not 0 <= intensity_threshold < 3:
            raise ValueError(f"intensity_threshold is an intensity from 0 to below 3, got {intensity_threshold}")
        self.multi_label_rule, self.no_emotion_rule = multi_label_rule, no_emotion_rule
        self.intensity_threshold = intensity_threshold
        self.folds = Path(folds) if folds is not None else None
        if no_emotion_rule == "neutral":
            self.labels = Labels("mosei", (*self.labels.names, "neutral"))
        rule = f"single_{multi_label_rule}" + f"_above_{intensity_threshold:g}" * (intensity_threshold > 0)
        rule += "_or_neutral" * (no_emotion_rule == "neutral")
        self.protocol = rule + (f"_{self.folds.stem}" if self.folds else "")
        self._read: tuple[pd.DataFrame, dict[str, str], dict[str, int]] | None = None

    def read(self, split: Split) -> Reading:
        if self._read is None:
            notes: Counter[str] = Counter()
            table, excluded = self._labelled_csv(notes) if self._is_csv() else self._labelled_csd(notes)
            self._read = table, excluded, dict(notes)
        table, left_out, whole = self._read
        notes = Counter({f"whole corpus: {what}": n for what, n in whole.items()})
        table = table[table["split"] == split]
        keys = set(table["key"])
        excluded = {key: why for key, why in left_out.items() if key.split(" (row")[0] in keys}
        empty = table["text"] == ""
        excluded |= dict.fromkeys(table["key"][empty], "empty utterance")
        table = table[~empty].sort_values(["video", "clip"])
        label = self._single(table, notes)

        clips = self._clips(notes)
        samples: list[Sample] = []
        for video, rows in table.groupby("video"):
            turns: list[Turn] = []
            for row in rows.itertuples():
                clip = clips.get(row.key)
                turns.append(Turn(row.key, "", row.text, label[row.Index], video=clip, audio=clip))
            samples += dialogue_samples(turns, f"mosei/{split}", f"mosei/{split}/{video}", self.labels)
        notes.update(modalities(samples))
        return Reading(samples, None, excluded, dict(notes), clips_missing(samples))

    def _single(self, table: pd.DataFrame, notes: Counter[str]) -> dict[int, str | None]:
        """Return the one emotion of every row."""
        values = table[list(EMOTIONS)].to_numpy(dtype=float)
        labelled = ~np.isnan(values).any(1)
        values = np.where(values > self.intensity_threshold, values, 0.0)
        there, most = (values > 0).sum(1), values.max(1, initial=0.0)
        ties = (values == most[:, None]).sum(1) > 1
        words: list[str | None] = [self.labels.names[i] for i in values.argmax(1)]
        for i in range(len(words)):
            if not labelled[i]:
                notes["clips without a label, context only"] += 1
                words[i] = None
            elif there[i] == 0:
                words[i] = "neutral" if self.no_emotion_rule == "neutral" else None
                notes[f"clips with no emotion, {'neutral' if words[i] else 'left out'}"] += 1
            elif there[i] > 1 and self.multi_label_rule == "exclude":
                words[i] = None
                notes["clips with several emotions, left out"] += 1
            elif there[i] > 1:
                notes["clips with several emotions, most intense taken"] += 1
                notes["of these with several equally intense, first taken"] += int(ties[i])
        return dict(zip(table.index, words, strict=True))

    # ---- form 2: label.csv
    def _is_csv(self) -> bool:
        if self.root is not None and (self.folder / CSV).is_file():
            if (self.folder / CSD).is_file():
                raise ValueError(f"{self.root} holds both {CSV} and {CSD}; expected one of them. Move the other away")
            return True
        return False

    def _labelled_csv(self, notes: Counter[str]) -> tuple[pd.DataFrame, dict[str, str]]:
        path = self.folder / CSV
        columns = ["video_id", "clip_id", "text", *EMOTIONS] + ["split"] * (self.folds is None)
        raw = read_table(path, columns, encoding=self.read_as)
        notes.update(raw.attrs["notes"])
        fits = {name: pd.to_numeric(raw[name], errors="coerce").between(0, 3) for name in EMOTIONS}
        for column, good in fits.items():
            if len(bad := raw[column][~good]):
                raise ValueError(
                    f"{path}: {column} is {some(f'{value!r} in row {row}' for row, value in bad.items())}; expected "
                    "an intensity from 0 to 3. Correct the cells, or leave the rows out"
                )
        table = pd.DataFrame(
            {
                "video": raw["video_id"].str.strip(),
                "clip": whole_numbers(raw, ["clip_id"], path)["clip_id"],
                "text": raw["text"].map(clean_text),
                **{name: raw[name].astype(float) for name in EMOTIONS},
            }
        )
        table.insert(0, "key", table["video"] + "_" + table["clip"].astype(str))
        if self.folds is None:
            table["split"] = self._splits(raw["split"], path)
            table, excluded = drop_repeats(table, path)
            for a, b in (("train", "test"), ("train", "dev"), ("dev", "test")):
                videos = {s: table["video"][table["split"] == s].unique() for s in (a, b)}
                check_apart(videos[a], videos[b], Path(f"{path} ({a})"), Path(f"{path} ({b})"))
            return table, excluded
        table, excluded = drop_repeats(table, path)
        return self._folded(table, self._own_folds(self.folds, notes), notes), excluded

    @staticmethod
    def _splits(column: pd.Series, path: Path) -> pd.Series:
        splits = column.str.strip().str.lower().map(SPLITS)
        if (bad := splits.isna()).any():
            got = some(f"{column[row]!r} in row {row}" for row in column.index[bad])
            raise ValueError(f"{path}: split is {got}; expected train, valid or test. Correct the cells")
        return splits

    # ---- form 1: the authors' files
    def _labelled_csd(self, notes: Counter[str]) -> tuple[pd.DataFrame, dict[str, str]]:
        path = find_file(self.root, [CSD, f"Raw/{CSD}", f"labels/{CSD}", CSV], "CMU-MOSEI", ADVICE)
        folds = self._own_folds(self.folds, notes) if self.folds is not None else self._standard_folds()
        lines = self._transcripts(folds, notes)
        labelled: dict[tuple[str, int], np.ndarray] = {}
        excluded: dict[str, str] = {}
        for video, intervals, values in _read_csd(path):
            for interval, six in zip(intervals, values, strict=True):
                if video not in folds:
                    notes["labelled clips in no fold, left out"] += 1
                    continue
                clips = lines.get(video, {})
                near = [clip for clip, (span, _) in clips.items() if np.abs(np.subtract(span, interval)).max() <= CLOSE]
                if len(near) != 1:
                    notes["labelled clips without a transcript line, left out"] += 1
                elif (video, near[0]) in labelled and not np.array_equal(labelled[video, near[0]], six):
                    excluded[f"{video}_{near[0]}"] = "labelled twice, differently"
                else:
                    labelled[video, near[0]] = six
        rows = []
        for video, clips in lines.items():
            for clip, (_, text) in clips.items():
                key = f"{video}_{clip}"
                six = labelled.get((video, clip))
                known = [np.nan] * 6 if six is None or key in excluded else six
                rows.append((key, video, clip, text, *known, folds[video]))
        return pd.DataFrame(rows, columns=["key", "video", "clip", "text", *EMOTIONS, "split"]), excluded

    def _transcripts(self, folds: dict[str, str], notes: Counter[str]) -> dict[str, Lines]:
        """Read the transcripts of the videos in the folds."""
        places = [self.folder / place / "Transcript/Segmented/Combined" for place in ("", "Raw")]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise FileNotFoundError(
                f"CMU-MOSEI: neither {places[0]} nor {places[1]} exists; expected the transcripts there. {ADVICE}"
            )
        by_video: dict[str, Lines] = {}
        for video in folds:
            path = folder / f"{video}.txt"
            if not path.is_file():
                notes["videos of the folds without a transcript"] += 1
                continue
            video_lines = by_video[video] = {}
            text, more = read_text(path, self.read_as)
            for note, count in more.items():
                notes[note.replace(f"{path.name} is", "transcripts that are")] += count
            for number, line in enumerate(split_lines(text), 1):
                cells = line.split("___", 4)
                if not line.strip():
                    continue
                try:
                    owner, clip, start, end, words = cells
                    span = float(start), float(end)
                    if owner != video or int(clip) in video_lines:
                        raise ValueError
                except ValueError:
                    raise ValueError(
                        f"{path} line {number} is {line[:80]!r}; expected {video}___CLIP___START___END___TEXT, each "
                        "clip once. Use the released file"
                    ) from None
                video_lines[int(clip)] = span, clean_text(words)
        return by_video

    def _standard_folds(self) -> dict[str, str]:
        """Return the split of every video, from the lists of the SDK's file, which is parsed, never run."""
        path = find_file(self.root, [FOLDS, f"Raw/{FOLDS}"], "CMU-MOSEI", ADVICE)
        lists: dict[str, list[str]] = {}
        try:
            for node in ast.parse(read_text(path, self.read_as)[0]).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    name = node.targets[0].id
                    if name.startswith("standard_"):
                        lists[name] = [str(video) for video in ast.literal_eval(node.value)]
        except (SyntaxError, ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read as lists of video ids: {error}. Use the SDK's file") from None
        names = {"train": "standard_train_fold", "dev": "standard_valid_fold", "test": "standard_test_fold"}
        if missing := [name for name in names.values() if not lists.get(name)]:
            raise ValueError(
                f"{path} has the lists {', '.join(lists) or 'none'}; {', '.join(missing)} missing. Use the SDK's file"
            )
        for a, b in (("train", "test"), ("train", "dev"), ("dev", "test")):
            check_apart(lists[names[a]], lists[names[b]], Path(f"{path} ({a})"), Path(f"{path} ({b})"))
        return {video: split for split, name in names.items() for video in lists[name]}

    # ---- both
    def _own_folds(self, file: Path, notes: Counter[str]) -> dict[str, str]:
        raw = read_table(file, ("video_id", "split"), encoding=self.read_as)
        notes.update(raw.attrs["notes"])
        videos = pd.DataFrame({"key": raw["video_id"].str.strip(), "split": self._splits(raw["split"], file)})
        folds: dict[str, str] = drop_repeats(videos, file)[0].set_index("key")["split"].to_dict()
        return folds

    @staticmethod
    def _folded(table: pd.DataFrame, folds: dict[str, str], notes: Counter[str]) -> pd.DataFrame:
        table = table.assign(split=table["video"].map(folds))
        notes["labelled clips in no fold, left out"] = int(table["split"].isna().sum())
        return table.dropna(subset="split")

    def _clips(self, notes: Counter[str]) -> dict[str, Path]:
        """Map VIDEO_CLIP to its file."""
        for folder in CLIPS:
            if (self.folder / folder).is_dir():
                return find_clips(self.folder, [folder], notes=notes)
        paths: dict[str, Path] = {}
        for video in sorted(p for p in (self.folder / "Raw").glob("*") if p.is_dir()):
            clips = find_clips(self.folder / "Raw", [video.name], notes=notes)
            paths |= {f"{video.name}_{clip}": path for clip, path in clips.items()}
        return paths


def _read_csd(path: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Read (video, intervals (N, 2), six intensities (N, 6)) of every video."""
    import h5py  # here, because nothing else needs it

    try:
        with h5py.File(path, "r") as file:
            data = file["All Labels"]["data"]
            read = [(video, group["intervals"][()], group["features"][()]) for video, group in data.items()]
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no label file of CMU-MOSEI ({type(error).__name__}: {str(error)[:120]}); expected HDF5 with "
            "'All Labels/data/VIDEO/{intervals,features}'. Download it again"
        ) from None
    annotations = []
    for video, intervals, features in read:
        fits = intervals.ndim == features.ndim == 2 and intervals.shape[1] == 2 and features.shape[1] == 7
        if not fits or len(intervals) != len(features):
            raise ValueError(
                f"{path}: {video} has intervals {intervals.shape} and features {features.shape}; expected (N, 2) and "
                "(N, 7). Use the released file"
            )
        six = features[:, 1:].astype(float)
        if not np.isfinite(six).all() or six.min(initial=0) < 0 or six.max(initial=0) > 3:
            raise ValueError(f"{path}: {video} has intensities beyond 0..3. Use the released file")
        annotations.append((video, intervals.astype(float), six))
    return annotations
