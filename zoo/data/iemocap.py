"""IEMOCAP: acted and improvised dialogues of two people, filmed and recorded (Busso et al. 2008)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from zoo.data.base import EmotionData, Reading, dialogue_samples
from zoo.data.clips import draw_share
from zoo.data.descriptions import load_descriptions
from zoo.data.iemocap_files import NO_AGREEMENT, SESSIONS, CorpusFiles, DialogueFiles, read_files
from zoo.data.text import one_of, read_text, some
from zoo.schema import Labels, Split, Turn

ADVICE = (
    "This is the tree of IEMOCAP_full_release, which USC's SAIL gives to those who sign its release form "
    "(https://sail.usc.edu/iemocap/); give its folder as --data.root"
)
OFFICIAL = {"train": 5163, "dev": 647, "test": 1623}  # the papers' utterances of six classes; 108, 12, 31 dialogues
DEV_SHARE = 0.1  # of the dialogues that are not of the test session: 12 of 120

CLASSES: Mapping[int, Mapping[str, tuple[str, ...]]] = {  # label word -> the release's codes, in the papers' order
    4: {"happy": ("hap", "exc"), "sad": ("sad",), "neutral": ("neu",), "angry": ("ang",)},
    6: {
        "happy": ("hap",),
        "sad": ("sad",),
        "neutral": ("neu",),
        "angry": ("ang",),
        "excited": ("exc",),
        "frustrated": ("fru",),
    },
    8: {
        "neutral": ("neu",),
        "joy": ("hap",),
        "sadness": ("sad",),
        "anger": ("ang",),
        "fear": ("fea",),
        "excitement": ("exc",),
        "surprise": ("sur",),
        "frustration": ("fru",),
    },
    10: {
        "neutral": ("neu",),
        "happiness": ("hap",),
        "sadness": ("sad",),
        "anger": ("ang",),
        "surprise": ("sur",),
        "disgust": ("dis",),
        "fear": ("fea",),
        "frustration": ("fru",),
        "excitement": ("exc",),
        "other": ("oth",),
    },
}

# The 53 utterances without agreement (xxx) that the feature files of DialogueRNN and its successors call happy: the
# release has 7,380 utterances of six classes, those papers 7,433. As listed by github.com/snailcoder/emodet, who
# compared the two; the sessions' sums agree with the papers' counts, the list itself could not be checked here.
HAPPY_IN_THE_PAPERS = frozenset(
    f"Ses0{dialogue}_{utterance}"
    for dialogue, utterances in {
        "1F_impro03": "F007 F011 F014 M012",
        "1F_impro06": "M017",
        "1F_impro07": "F007",
        "1M_impro03": "F000",
        "1M_impro07": "F002",
        "2F_impro03": "F002 F005 F006 F007 F020",
        "2M_impro03": "F010 F026 F027",
        "3F_impro02": "M003",
        "3F_impro03": "F000 F003 F010 M003 M008 M013 M016 M019",
        "3F_impro04": "M020",
        "3F_impro07": "F000 F002 F006 M016 M020 M031",
        "3M_impro02": "F001",
        "3M_impro03": "F000 F019 M005 M006 M008 M009 M010 M024 M025 M026 M027 M034 M036 M037",
        "3M_impro05a": "F017",
        "3M_impro07": "F020 M001 M012 M021",
        "5F_impro07": "M010",
    }.items()
    for utterance in utterances.split()
)


class IEMOCAP(EmotionData):
    """IEMOCAP in the tree of its release.

    Expects in ``root`` or ``root/IEMOCAP_full_release``, for each of the five sessions (all lines made up)::

        Session1/dialog/transcriptions/Ses01F_impro01.txt:

            Ses01F_impro01_F000 [003.1400-005.9200]: Is it mine?

        Session1/dialog/EmoEvaluation/Ses01F_impro01.txt, with tabs:

            [3.1400 - 5.9200]   Ses01F_impro01_F000     fru     [2.0000, 3.5000, 3.0000]
            C-E1:       Frustration;    ()

        Session1/dialog/avi/DivX/Ses01F_impro01.avi, optional: both people, side by side
        Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav, optional

    A turn's ``video`` is the film of the whole dialogue; ``start`` and ``end`` say when the utterance is in it, and
    ``crop`` which half shows the speaker: the left one if the speaker's letter is that of the file's name (the actor
    with the markers), as FARCER's code has it. ``audio`` is the utterance's own file.

    Labels: ``ang hap exc sad fru fea sur dis neu oth``, and ``xxx`` where the annotators disagree (2,507 of 10,039):

    ========= ============================================================== =============================
    classes   label words                                                    utterances of the release
    ========= ============================================================== =============================
    4         happy (hap and exc), sad, neutral, angry                       5,531 (1636, 1084, 1708, 1103)
    6         happy, sad, neutral, angry, excited, frustrated                7,380
    8         neutral, joy, sadness, anger, fear, excitement, surprise,      7,527 (DialogueLLM)
              frustration
    10        neutral, happiness, sadness, anger, surprise, disgust, fear,   7,532 (FARCER)
              frustration, excitement, other
    ========= ============================================================== =============================

    An utterance of another label is not classified and has no label as context, see ``out_of_set_utterances``;
    scores of different class sets cannot be compared, so each is a corpus of its own (``iemocap6``).

    Splits: Session 5 is test (31 dialogues), 12 of the other 120 dialogues are dev. The papers' dev dialogues are
    published in a pickle only, which the zoo does not read: ours are drawn with ``split_seed``, or give
    ``dev_dialogues``. The papers' 5,163 / 647 / 1,623 utterances of six classes come out with their dev dialogues and
    ``unagreed_labels: papers``: 53 utterances without agreement are happy there, one of them in the test session.
    Without it the test session has 1,622.

    Licence: free for academic use under a signed release form, no passing on: https://sail.usc.edu/iemocap/. The zoo
    ships nothing of it, and was never run on it: what is written here is from its documentation and its users.

    Args:
        classes: 4, 6, 8 or 10, as above.
        merge_excited: with four classes, excited is happy; if not, it is another label.
        unagreed_labels: what ``xxx`` is: no label (``unlabelled``); happy for the papers' 53 (``papers``); or one of
            the annotators' own words, drawn with ``split_seed`` from those in the class set (``drawn``, as FARCER).
        out_of_set_utterances: an utterance outside the classes stays as ``context``, or is left out of its dialogue
            (``drop``), as in the papers' feature files.
        protocol: which utterances are classified, all or the last of each dialogue or piece.
        subdialogue_lengths: cut every dialogue into pieces of one length drawn between these two, e.g. [5, 14] as in
            FARCER; the last piece takes the remainder, a shorter dialogue is one piece. The unit of intervals stays the
            dialogue.
        speakers: names for F and M, e.g. {F: Person A, M: Person B}; F and M if not given.
        test_session: the session that is scored, 1 to 5.
        dev_dialogues: text file with the dialogues of the dev split, one name per line.
        split_seed: seed of the dev dialogues, of the lengths of pieces and of ``drawn``; not of the training.
        descriptions: files with descriptions, or folders of them: ``{kind}_description_{split}.json``, or
            ``{kind}_description.json`` with the utterances of all sessions.
    """

    unpublished_options = ("descriptions", "dev_dialogues")
    renamed_options: ClassVar[Mapping[str, str]] = {
        "captions": "descriptions",
        "no_agreement": "unagreed_labels",
        "unscored": "out_of_set_utterances",
        "pieces": "subdialogue_lengths",
    }
    licence = "academic use only, by signed release form"
    material = "acted English dialogues of two people: words, video and sound"
    labels = Labels("iemocap6", tuple(CLASSES[6]))
    encodings = ("cp1252",)

    def __init__(
        self,
        classes: Literal[4, 6, 8, 10] = 6,
        merge_excited: bool = True,
        unagreed_labels: Literal["unlabelled", "papers", "drawn"] = "unlabelled",
        out_of_set_utterances: Literal["context", "drop"] = "context",
        protocol: Literal["all_utterances", "last_utterance"] = "all_utterances",
        subdialogue_lengths: tuple[int, int] | None = None,
        speakers: dict[str, str] | None = None,
        test_session: Literal[1, 2, 3, 4, 5] = 5,
        dev_dialogues: Path | None = None,
        split_seed: int = 0,
        descriptions: list[Path] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        one_of("classes", classes, tuple(CLASSES))
        one_of("unagreed_labels", unagreed_labels, ("unlabelled", "papers", "drawn"))
        one_of("out_of_set_utterances", out_of_set_utterances, ("context", "drop"))
        one_of("protocol", protocol, ("all_utterances", "last_utterance"))
        one_of("test_session", test_session, SESSIONS)
        if subdialogue_lengths is not None and not 1 <= subdialogue_lengths[0] <= subdialogue_lengths[1]:
            raise ValueError(
                "subdialogue_lengths is the shortest and the longest length of a piece, like [5, 14]; got "
                f"{subdialogue_lengths}"
            )
        if speakers is not None and set(speakers) != {"F", "M"}:
            raise ValueError(f"speakers names F and M, like {{F: Person A, M: Person B}}; got {speakers}")
        words, corpus = dict(CLASSES[classes]), f"iemocap{classes}"
        if classes == 4 and not merge_excited:
            words["happy"], corpus = ("hap",), "iemocap4_without_excited"
        self.labels = Labels(corpus, tuple(words))
        self.words = {code: word for word, codes in words.items() for code in codes}
        self.unagreed_labels, self.out_of_set_utterances = unagreed_labels, out_of_set_utterances
        self.last_only, self.subdialogue_lengths = protocol == "last_utterance", subdialogue_lengths
        self.speakers = speakers or {"F": "F", "M": "M"}
        self.test_session, self.split_seed = test_session, split_seed
        self.dev_dialogues, self.description_files = dev_dialogues, descriptions
        lengths = "_of_pieces_{}_{}".format(*subdialogue_lengths) if subdialogue_lengths and self.last_only else ""
        session = f"_session_{test_session}" * (test_session != 5)
        self.protocol = protocol + lengths + session + "_xxx_drawn" * (unagreed_labels == "drawn")
        self._tree: CorpusFiles | None = None

    def read(self, split: Split) -> Reading:
        if self._tree is None:
            self._tree = read_files(self._root(), self.read_as)
        dialogues = self._split(self._tree, split)
        notes: Counter[str] = Counter()
        for session in SESSIONS:
            if split == ("test" if session == self.test_session else "train"):
                notes.update(self._tree.notes[session])
        excluded: dict[str, str] = {}
        turns = {}
        for dialogue in dialogues:
            excluded |= dialogue.faults
            notes.update(dialogue.notes)
            turns[dialogue.name] = self._labelled(dialogue, notes)
        if self.description_files:
            keys = [turn.id for spoken in turns.values() for turn in spoken]
            texts, more = load_descriptions(self.description_files, split, keys, self.read_as)
            notes.update(more)
            turns = {
                name: [replace(turn, descriptions=texts.get(turn.id, {})) for turn in spoken]
                for name, spoken in turns.items()
            }
        where = f"{self.labels.corpus}/{split}"
        samples = []
        for name, spoken in turns.items():
            for piece in self._cut(name, spoken):
                made = dialogue_samples(piece, where, f"{where}/{name}", self.labels, self.last_only)
                labelled = sum(turn.label is not None for turn in piece)
                notes["not the last to be classified, context only"] += labelled - len(made)
                notes["dialogues or pieces with nothing to classify"] += not made
                samples += made
        papers = len(self.labels) == 6 and self.test_session == 5 and not self.last_only
        return Reading(samples, OFFICIAL[split] if papers else None, excluded, dict(notes))

    # ---- the steps of read
    def _root(self) -> Path:
        if self.root is None:
            raise FileNotFoundError(f"IEMOCAP needs its folder: give --data.root, expected to hold Session1. {ADVICE}")
        inner = self.root / "IEMOCAP_full_release"
        root = inner if inner.is_dir() else self.root
        needed = [f"Session{k}/dialog/{part}" for k in SESSIONS for part in ("transcriptions", "EmoEvaluation")]
        if missing := [name for name in needed if not (root / name).is_dir()]:
            got = some(sorted(p.name for p in root.iterdir())) or "nothing" if root.is_dir() else "no folder"
            raise FileNotFoundError(
                f"IEMOCAP: {root} lacks {some(missing)}; expected five sessions, got {got}. A split of fewer sessions "
                f"would be another one. {ADVICE}"
            )
        return root

    def _split(self, files: CorpusFiles, split: Split) -> list[DialogueFiles]:
        """Return the split's dialogues by name; one without transcription is of train or test, where it is noted."""
        test = [d for d in files.dialogues if d.session == self.test_session]
        if split == "test":
            return test
        others = [d for d in files.dialogues if d.session != self.test_session]
        names = {d.name for d in others if d.turns}
        if self.dev_dialogues is None:
            dev = draw_share(names, DEV_SHARE, self.split_seed)
        else:
            dev = set(read_text(self.dev_dialogues, self.read_as)[0].split())
            if unknown := sorted(dev - names):
                raise ValueError(
                    f"{self.dev_dialogues} names {some(unknown)}; expected dialogues of the sessions other than "
                    f"{self.test_session}, like {some(sorted(names), 2)}, one per line. Correct the file"
                )
        return [d for d in others if (d.name in dev) == (split == "dev")]

    def _labelled(self, dialogue: DialogueFiles, notes: Counter[str]) -> list[Turn]:
        """Return the dialogue's turns with label words and names of speakers."""
        turns = []
        for turn in dialogue.turns:
            code = turn.label
            if code == NO_AGREEMENT and self.unagreed_labels == "papers" and turn.id in HAPPY_IN_THE_PAPERS:
                code = "hap"
                notes["xxx, happy as in the papers"] += 1
            elif code == NO_AGREEMENT and self.unagreed_labels == "drawn":
                words = [c for c in dialogue.opinions.get(turn.id, ()) if c in self.words]
                if words:
                    code = words[_draw(len(words), "xxx", self.split_seed, turn.id)]
                    notes["xxx, one of the annotators' words drawn"] += 1
            label = None if code is None else self.words.get(code)
            if label is None:
                why = "no label" if code is None else f"{code} is none of the {len(self.labels)} classes"
                notes[f"{why}, {'context only' if self.out_of_set_utterances == 'context' else 'left out'}"] += 1
                if self.out_of_set_utterances == "drop":
                    continue
            turns.append(replace(turn, label=label, speaker=self.speakers[turn.speaker]))
        return turns

    def _cut(self, name: str, turns: Sequence[Turn]) -> list[Sequence[Turn]]:
        if self.subdialogue_lengths is None:
            return [turns]
        low, high = self.subdialogue_lengths
        length = low + _draw(high - low + 1, "length", self.split_seed, name)
        starts = [i * length for i in range(max(1, len(turns) // length))]
        return [turns[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]


def _draw(n: int, *what: object) -> int:
    """Draw one of 0..n-1 by these words alone: the same on every machine, whatever else was drawn."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, what)).encode()).digest()[:8], "big") % n


# ---- the tree as it is, whatever the class set
