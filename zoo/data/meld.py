"""MELD: seven emotions in multi-party dialogues of a TV show (Poria et al. 2019)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from zoo.data.base import EmotionData, Reading, dialogue_samples
from zoo.data.clips import SOUND, VIDEO, check_labels, find_clips
from zoo.data.descriptions import load_descriptions
from zoo.data.text import clean_text, count_repaired, drop_repeats, find_file, one_of, read_table, whole_numbers
from zoo.schema import Labels, Split, Turn

ADVICE = (
    "These are the files of the MELD release (https://github.com/declare-lab/MELD, MELD.Raw.tar.gz, or the CSVs of its "
    "folder data/MELD for text only); give their folder as --data.root"
)
COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
# utterances, dialogues
OFFICIAL: dict[Split, tuple[int, int]] = {"train": (9989, 1038), "dev": (1109, 114), "test": (2610, 280)}
CLIPS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
SOUNDS = (
    "{clips}_wav",
    "{clips}_audio",
    "{split}_splits_wav",
    "{split}_wav",
    "{split}_audio",
    "wav/{split}",
    "audio/{split}",
)
KEY = re.compile(r"dia\d+_utt\d+")
RECUT = "final_videos_test"  # prefix of 132 second cuts among the test clips

# Faults of the release. The text stays, the clip (picture and sound) is not used.
KNOWN_BAD: dict[tuple[Split, str], str] = {
    ("train", "dia125_utt3"): "clip unreadable",
    ("dev", "dia110_utt7"): "clip missing",
    ("test", "dia38_utt4"): "clip mis-cut, 305 s",
    ("test", "dia220_utt0"): "clip mis-cut, 235 s",
}


class MELD(EmotionData):
    """MELD from the user's own copy of the release.

    Expects ``{train,dev,test}_sent_emo.csv`` in ``root`` or in ``root/{split}``, as the release unpacks, with rows like
    (made up; the columns from Season on need not be there)::

        Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime
        1,"Well, who took the last muffin?",Ada,anger,negative,0,0,1,2,"00:01:02,345","00:01:04,000"

    Clips are optional: files ``dia0_utt0.mp4`` (or .avi, .mkv, .mov, .webm) in ``train_splits``,
    ``dev_splits_complete`` and ``output_repeated_splits_test`` of ``root`` or ``root/{split}``; a turn whose clip
    exists has it as ``video`` and as ``audio``. Sound that was extracted, ``dia0_utt0.wav`` (or .flac, .ogg, .mp3,
    .m4a), is taken from these folders, or from ``{split}_splits_wav``, ``{split}_wav``, ``{split}_audio``,
    ``wav/{split}`` or ``audio/{split}``, before that of the clips. Clips without a row are ignored, and so are the
    release's second cuts ``final_videos_test*`` (counted: users report that where both exist the second cut is the one
    that fits the text; not checked here).

    Licence: annotations GPL-3.0; the clips are cut from a TV show and may not be passed on. The zoo ships neither.

    Args:
        descriptions: files with descriptions, or folders of them: ``{kind}_description_{split}.json``,
            ``meld_audio_features.csv``, ``meld_stage_directions.jsonl``.
        protocol: which utterances are classified, all (test: 2610) or the last one of each dialogue (test: 280).
            Scores of the two cannot be compared.
    """

    unpublished_options = ("descriptions",)
    renamed_options: ClassVar[Mapping[str, str]] = {"captions": "descriptions"}
    licence = "annotations GPL-3.0; clips may not be passed on"
    material = "English dialogue of a TV show: words, video and sound"
    labels = Labels("meld", ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"))
    encodings = ("cp1252",)  # of some copies
    official: Mapping[Split, tuple[int, int]] = OFFICIAL
    known_bad: Mapping[tuple[Split, str], str] = KNOWN_BAD

    def __init__(
        self,
        descriptions: list[Path] | None = None,
        protocol: Literal["all_utterances", "last_utterance"] = "all_utterances",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        one_of("protocol", protocol, ("all_utterances", "last_utterance"))
        self.description_files = descriptions
        self.protocol = protocol

    def read(self, split: Split) -> Reading:
        name = f"{split}_sent_emo.csv"
        path = find_file(self.root, [name, f"{split}/{name}"], "MELD", ADVICE)
        notes: Counter[str] = Counter()
        table = self._table(path, notes)
        table, excluded = drop_repeats(table, path)

        descriptions: dict[str, dict[str, str]] = {}
        if self.description_files:
            descriptions, more = load_descriptions(self.description_files, split, table["key"], self.read_as)
            notes.update(more)

        empty = table["text"] == ""
        excluded |= dict.fromkeys(table["key"][empty], "empty utterance")
        table = table[~empty].sort_values(["dialogue", "utterance"])

        listed: dict[str, list[str]] = {}
        clips, sounds = self._clips(split, notes, listed)
        samples = []
        for dialogue, rows in table.groupby("dialogue"):
            turns: list[Turn] = []
            for row in rows.itertuples():
                clip = sound = None
                if (split, row.key) in self.known_bad:
                    notes["clips known to be bad, not used"] += 1
                else:
                    clip = clips.get(row.key) if clips is not None else None
                    sound = sounds.get(row.key, clip) if sounds is not None else clip
                    if clips is not None and clip is None:
                        listed.setdefault("clips missing", []).append(row.key)
                    if sounds is not None and sound is None:
                        listed.setdefault("sounds missing", []).append(row.key)
                described = descriptions.get(row.key, {})
                turns.append(Turn(row.key, row.speaker, row.text, row.label, described, video=clip, audio=sound))
            where = f"{self.labels.corpus}/{split}"
            last_only = self.protocol == "last_utterance"
            scored = dialogue_samples(turns, where, f"{where}/dia{dialogue}", self.labels, last_only)
            notes["not the last of their dialogue, context only"] += len(turns) - len(scored)
            samples += scored
        for what, members in listed.items():
            notes[what] = len(members)
        utterances, dialogues = self.official[split]
        return Reading(
            samples, dialogues if self.protocol == "last_utterance" else utterances, excluded, dict(notes), listed
        )

    def _table(self, path: Path, notes: Counter[str]) -> pd.DataFrame:
        """Read key, dialogue, utterance, speaker, text and label: checked and cleaned, rows as in the file."""
        raw = read_table(path, COLUMNS, encoding=self.read_as)
        notes.update(raw.attrs["notes"])
        ids = whole_numbers(raw, ("Dialogue_ID", "Utterance_ID"), path)
        table = pd.DataFrame(
            {
                "dialogue": ids["Dialogue_ID"],
                "utterance": ids["Utterance_ID"],
                "speaker": raw["Speaker"].map(clean_text),
                "text": raw["Utterance"].map(clean_text),
            }
        )
        table["key"] = [f"dia{d}_utt{u}" for d, u in zip(table["dialogue"], table["utterance"], strict=True)]
        table["label"] = check_labels(raw["Emotion"], table["key"], {n: n for n in self.labels.names}, path)
        notes["labels written in another case or padded"] = int((table["label"] != raw["Emotion"]).sum())
        notes["texts with encoding leftovers, repaired"] = count_repaired(raw["Utterance"], table["text"])
        order = list(zip(table["dialogue"], table["utterance"], strict=True))
        notes["rows out of order"] = sum(after < before for before, after in pairwise(order))
        return table

    def _clips(
        self, split: Split, notes: Counter[str], listed: dict[str, list[str]]
    ) -> tuple[dict[str, Path] | None, dict[str, Path] | None]:
        """Map key to clip, and key to extracted sound; None without a folder of such files."""
        homes = [f"{parent}{CLIPS[split]}" for parent in ("", f"{split}/")]
        names = [name.format(clips=CLIPS[split], split=split) for name in SOUNDS]
        beside = [f"{parent}{name}" for parent in ("", f"{split}/") for name in names]
        clips = self._files(homes, VIDEO, notes, listed)
        sounds = self._files(beside, SOUND, notes, listed) or self._files(homes, SOUND, notes, listed) or None
        if sounds is not None and not clips:
            clips = None  # sound alone
        return clips, sounds

    def _files(
        self, folders: list[str], endings: tuple[str, ...], notes: Counter[str], listed: dict[str, list[str]]
    ) -> dict[str, Path] | None:
        if not any((self.folder / folder).is_dir() for folder in folders):
            return None
        clips = find_clips(self.folder, folders, endings, notes)
        recut = sorted(name for name in clips if name.startswith(f"{RECUT}dia"))
        if recut:
            listed[f"second cuts ({RECUT}*), not used"] = recut
        return {name: path for name, path in clips.items() if KEY.fullmatch(name)}
