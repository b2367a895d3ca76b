"""The script of the synthetic sitcom: dialogues whose every probability is known.

**Principle.** For a Bayes classifier more input never hurts: P(label | text, descriptions) is at least as good on
average as P(label | text). So any gain a system gets from *selecting* descriptions measures the miscalibration of its
classifier (a shift, little data, small capacity), not a property of the corpus. That is why both cells are offered: a
classifier *matched* to its captioner (trained and tested on the same ``descriptions``) and one that met a *shifted*
captioner (trained on ``clean``, tested on ``noisy``).

**Exactness.** Every choice that depends on the label is a draw from a `Table` and is written down in the utterance. The
likelihood of what was said multiplies the same tables over the written choices and sums over what is hidden: the theme
of the dialogue, the mode of the text, and the label that the descriptions show. Nothing is estimated. Choices that do
not depend on anything hidden (names, nouns, the order of words in a caption) cancel and are not written down.

**Ceilings.** Accuracy of the exact posterior in percent, measured on 10,136 utterances (``ceilings(generate(101,
1200))``, standard error at most 0.5; ``wild`` is within 0.2 for words, and the same for faces and voices)::

                                  clean   noisy   noisy_independent
    text                           68.5    68.5    68.5    (+ history 70.7, + past labels 72.7)
    descriptions                   78.2    61.1    59.3
    text + descriptions            86.5    79.8    75.1
    ... + past labels              88.1    82.2    78.3

    face                           73.3                    (+ history 74.7, + past labels 75.8)
    voice                          62.3                    (+ history 63.7, + past labels 66.8)
    text + face                    83.5
    text + voice                   76.8
    face + voice                   79.5
    text + face + voice            87.4                    (+ past labels 88.6)
    all four                       94.2

Source of the numbers: ours. The shares are those of MELD's training split; the others were tuned so that every modality
matters. Only numpy and the standard library are used.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from zoo.data.synthetic import faces, voices
from zoo.data.synthetic.cues import DISGUISE, LABELS, CueModel, CueState
from zoo.data.synthetic.phrases import WORDINGS, Topic, Wording

SHARES = (4710, 1205, 268, 683, 1743, 271, 1109)  # MELD train
CAST = ("Nina", "Omar", "Greta", "Felix", "Priya", "Marcus", "Lucia", "Teddy", "Joan", "Walt")

TextMode = Literal["explicit", "ambiguous", "misleading"]
TEXT_MODES: tuple[TextMode, ...] = ("explicit", "ambiguous", "misleading")
DescriptionState = Literal["good", "vague", "wrong"]

# ---- what depends on what (rows sum to one unless a comment says otherwise)
COPY = 0.70  # contagion: share that copies the previous utterance's label; the rest reacts to it
REACTIONS = {  # previous label -> how much likelier than its share a reaction is
    "neutral": {"neutral": 2},
    "surprise": {"joy": 3, "surprise": 2},
    "fear": {"fear": 4, "surprise": 3, "sadness": 3},
    "sadness": {"sadness": 4, "fear": 2, "neutral": 2},
    "joy": {"surprise": 3, "joy": 3},
    "disgust": {"anger": 4, "joy": 3, "disgust": 3},
    "anger": {"sadness": 4, "fear": 4, "anger": 3, "disgust": 2},
}
DESCRIPTIONS = {  # captioner -> text mode -> odds of good, vague and wrong
    "clean": dict.fromkeys(TEXT_MODES, (0.80, 0.14, 0.06)),
    "noisy": {"explicit": (0.30, 0.15, 0.55), "ambiguous": (0.75, 0.15, 0.10), "misleading": (0.75, 0.15, 0.10)},
    "noisy_independent": dict.fromkeys(TEXT_MODES, (0.50, 0.15, 0.35)),
}
UNSURE = {"right": 0.05, "wrong": 0.35}  # how often the video caption does not name the person
ZIPF = 0.7  # exponent of the use of cues and caption words: the r-th phrase of a bank has weight r ** -ZIPF

LEAK = 0.18  # share of explicit cues that come from a neighbour
NEAR = {  # label -> labels whose cues it borrows
    "neutral": ("joy", "surprise", "sadness"),
    "surprise": ("joy", "fear", "neutral"),
    "fear": ("surprise", "sadness", "anger"),
    "sadness": ("neutral", "fear", "anger"),
    "joy": ("surprise", "neutral"),
    "disgust": ("anger", "surprise", "neutral"),
    "anger": ("disgust", "sadness", "surprise"),
}
TELL = {"explicit": 0.04, "ambiguous": 0.04, "misleading": 0.45}  # how often a line has a tell
TELL_OWN = 0.5  # share of tells from the label's own bank; the rest from all banks
OPENER = {  # text mode -> odds of (no opener, one of any label, the label's own, a neighbour's)
    "explicit": (0.55, 0.15, 0.24, 0.06),
    "ambiguous": (0.50, 0.42, 0.06, 0.02),
    "misleading": (0.55, 0.33, 0.10, 0.02),
}
FORMS = {  # text mode -> odds of the sentences of a line
    "explicit": {"cue": 0.30, "cue remark": 0.48, "remark cue": 0.22},
    "ambiguous": {"remark": 0.72, "remark remark": 0.28},
    "misleading": {"cue": 0.25, "cue remark": 0.50, "remark cue": 0.25},
}
QUESTION = {
    "surprise": 0.35,
    "neutral": 0.22,
    "fear": 0.28,
    "sadness": 0.15,
    "joy": 0.15,
    "disgust": 0.20,
    "anger": 0.25,
}
MARKS = {  # label -> odds of . ! ... after a cue
    "neutral": (0.80, 0.14, 0.06),
    "surprise": (0.42, 0.52, 0.06),
    "fear": (0.45, 0.36, 0.19),
    "sadness": (0.64, 0.12, 0.24),
    "joy": (0.50, 0.46, 0.04),
    "disgust": (0.60, 0.31, 0.09),
    "anger": (0.49, 0.45, 0.06),
}
STATEMENT_MARKS = {  # label -> odds of . ! ... ? after a statement
    "neutral": (0.82, 0.07, 0.06, 0.05),
    "surprise": (0.48, 0.21, 0.04, 0.27),
    "fear": (0.60, 0.18, 0.15, 0.07),
    "sadness": (0.72, 0.06, 0.19, 0.03),
    "joy": (0.61, 0.32, 0.03, 0.04),
    "disgust": (0.69, 0.16, 0.09, 0.06),
    "anger": (0.63, 0.27, 0.05, 0.05),
}
QUESTION_MARKS = {  # label -> odds of ? ?! after a question
    "neutral": (0.97, 0.03),
    "surprise": (0.75, 0.25),
    "fear": (0.85, 0.15),
    "sadness": (0.95, 0.05),
    "joy": (0.92, 0.08),
    "disgust": (0.85, 0.15),
    "anger": (0.78, 0.22),
}
THEME = 0.45  # how often a line keeps to the dialogue's theme, whatever its label
FAVOURITE = 4  # how much likelier a favourite topic is otherwise
TOPICS = {  # label -> its favourite topics
    "neutral": ("work", "travel", "money", "home", "school"),
    "surprise": ("dating", "party", "family"),
    "fear": ("night", "health"),
    "sadness": ("health", "dating", "pets"),
    "joy": ("party", "food", "games", "family"),
    "disgust": ("mess", "food", "clothes"),
    "anger": ("neighbors", "money", "home"),
}
VOICE_CONFUSED = 0.30  # share of audio captions that hear a neighbour
VOICE_NEAR = {
    "neutral": ("sadness", "joy"),
    "surprise": ("joy", "fear"),
    "fear": ("surprise", "sadness"),
    "sadness": ("neutral", "fear"),
    "joy": ("surprise", "neutral"),
    "disgust": ("anger", "neutral"),
    "anger": ("disgust", "joy"),
}
FACE_CONFUSED = 0.20  # share of video captions that see a neighbour
FACE_NEAR = {
    "neutral": ("sadness", "joy"),
    "surprise": ("fear", "joy"),
    "fear": ("surprise", "sadness"),
    "sadness": ("neutral", "fear"),
    "joy": ("surprise", "neutral"),
    "disgust": ("anger", "sadness"),
    "anger": ("disgust", "neutral"),
}

# ---- how lines are built; none of this depends on a hidden thing
TURNS = (5, 12)
SECONDS = (1.0, 1.8)  # of a clip, in steps of one frame
THREE_SPEAKERS = 0.45
SPEAKS_ON = 0.12  # how often the same speaker goes on
ADDRESS = 0.20  # how often a line names whom it is said to
HEDGE = 0.30  # how often a plain statement has a hedge in front

Choices = tuple[tuple[str, object], ...]  # (name of a table, value drawn from it)
Hidden = tuple[int, int, int, int]  # indices of theme, text mode, shown label (or _VAGUE) and label
_VAGUE = len(LABELS)  # index of "shows nothing" after the labels


# ------------------------------------------------------------------------------------------------- settings and records
@dataclass(frozen=True)
class Settings:
    """The knobs of a corpus.

    Attributes:
        descriptions: captioner: ``clean``, ``noisy`` (wrong mostly where the text is explicit) or
            ``noisy_independent``.
        domain: ``studio``; ``wild``: other wordings of texts and captions, other faces, lights and microphones; or
            ``reworded``, between them: the wordings of ``wild``, the pictures and sounds of ``studio``.
        shares: weight of each label in the order of `LABELS`; positive, any scale.
        text_modes: share of explicit, ambiguous and misleading texts; sums to 1.
        inertia: how often a label is the speaker's own last one, 0..1.
        contagion: how often it follows the previous utterance (copy or reaction), 0..1; together at most 1.
        face_cues: how often a face shows nothing although there is an emotion, and how often another emotion.
        voice_cues: the same of the voice.

    Raises:
        ValueError: if a knob is outside its range.
    """

    descriptions: Literal["clean", "noisy", "noisy_independent"] = "clean"
    domain: Literal["studio", "wild", "reworded"] = "studio"
    shares: tuple[float, ...] = SHARES
    text_modes: tuple[float, float, float] = (0.50, 0.32, 0.18)
    inertia: float = 0.30
    contagion: float = 0.25
    face_cues: tuple[float, float] = (0.12, 0.04)
    voice_cues: tuple[float, float] = (0.12, 0.04)

    @property
    def look(self) -> Literal["studio", "wild"]:
        """How pictures and sounds are made."""
        return "wild" if self.domain == "wild" else "studio"

    def __post_init__(self) -> None:
        if self.descriptions not in DESCRIPTIONS:
            raise ValueError(f"descriptions must be one of {', '.join(DESCRIPTIONS)}, got {self.descriptions!r}")
        if self.domain not in WORDINGS:
            raise ValueError(f"domain must be one of {', '.join(WORDINGS)}, got {self.domain!r}")
        if len(self.shares) != len(LABELS) or not all(share > 0 for share in self.shares):
            raise ValueError(f"shares must be {len(LABELS)} positive weights ({', '.join(LABELS)}), got {self.shares}")
        if len(self.text_modes) != 3 or min(self.text_modes) < 0 or abs(sum(self.text_modes) - 1) > 1e-6:
            modes = ", ".join(TEXT_MODES)
            raise ValueError(f"text_modes must be 3 shares ({modes}) that sum to 1, got {self.text_modes}")
        if self.inertia < 0 or self.contagion < 0 or self.inertia + self.contagion > 1:
            got = f"{self.inertia} and {self.contagion}"
            raise ValueError(f"inertia and contagion must be at least 0 and together at most 1, got {got}")
        for name, cues in (("face_cues", self.face_cues), ("voice_cues", self.voice_cues)):
            if len(cues) != 2 or min(cues) < 0 or sum(cues) > 1:
                raise ValueError(f"{name} must be 2 shares (absent, misleading) of together at most 1, got {cues}")


@dataclass(frozen=True)
class Truth:
    """What a classifier must not see.

    Attributes:
        text_mode: explicit, ambiguous (no cue) or misleading (the cue of another label).
        description_state: good (shows the label), vague (shows nothing) or wrong (shows another label).
        shown: label the descriptions show; None if vague.
        face_state: clear, faint, absent (a poker face) or misleading (shows another label).
        face_shown: label the face shows.
        voice_state, voice_shown: the same of the voice.
        effect: ``help`` if the Bayes answer is wrong from the text and right with the descriptions, ``hurt`` for the
            reverse, ``needless`` if they do not change whether it is right.
    """

    text_mode: TextMode
    description_state: DescriptionState
    shown: str | None
    face_state: CueState
    face_shown: str
    voice_state: CueState
    voice_shown: str
    effect: Literal["help", "hurt", "needless"]


@dataclass(frozen=True)
class Utterance:
    """One line of a dialogue.

    Attributes:
        id: ``dia{i}_utt{j}``.
        speaker: a name of `CAST`.
        label: true label word.
        text: what is said.
        descriptions: captions under ``audio`` and ``video``.
        truth: hidden; for analysis only.
        own_last: label of the speaker's last utterance in this dialogue, or None.
        previous: label of the utterance before this one, or None.
        choices: modality (``text``, ``descriptions``, ``face``, ``voice``) -> the (table, value) pairs that its surface
            shows; what `posterior` scores.
        seconds: length of the clip.
        settings: the knobs the line was made with.
    """

    id: str
    speaker: str
    label: str
    text: str
    descriptions: Mapping[str, str]
    truth: Truth
    own_last: str | None
    previous: str | None
    choices: Mapping[str, Choices]
    seconds: float
    settings: Settings

    @property
    def expression(self) -> tuple[float, ...]:
        """Parameters of the face, in the order of ``faces.EXPRESSION.names``."""
        return self.choices["face"][0][1]

    @property
    def prosody(self) -> tuple[float, ...]:
        """Parameters of the voice, in the order of ``voices.PROSODY.names``."""
        return self.choices["voice"][0][1]


@dataclass(frozen=True)
class Dialogue:
    """A scene: ``dia{i}``, its theme (a topic; hidden), its place and 5-12 utterances by two or three speakers."""

    id: str
    theme: str
    place: faces.Scene
    utterances: tuple[Utterance, ...]


# -------------------------------------------------------------------------------------------------------- probabilities
class Table:
    """One random choice and its odds given what is hidden.

    Hidden things are the axes: theme T, text mode M, shown label (or nothing) S, label L. An axis of size 1 has no say.

    Args:
        values: what can be chosen, distinct.
        odds: ``(T or 1, M or 1, S or 1, L or 1, values)``; rows sum to 1.
    """

    def __init__(self, values: Sequence[object], odds: np.ndarray) -> None:
        odds = np.asarray(odds, dtype=np.float64)
        if odds.ndim != 5 or odds.shape[-1] != len(values) or not np.allclose(odds.sum(-1), 1):
            raise ValueError(f"odds of {len(values)} values must sum to 1 over the last of 5 axes, got {odds.shape}")
        self.values = tuple(values)
        self.odds = odds
        self.index = {value: i for i, value in enumerate(self.values)}
        if len(self.index) != len(self.values):
            raise ValueError(f"values of a table must be distinct, got {self.values}")
        cumulative = odds.cumsum(-1)
        self._cumulative = cumulative / cumulative[..., -1:]  # ends in exactly 1, so a value of odds 0 is never drawn
        self._columns = np.ascontiguousarray(np.moveaxis(odds, -1, 0))

    def draw(self, rng: random.Random, hidden: Hidden) -> object:
        """One value given the hidden state; takes exactly one number from ``rng``."""
        row = self._cumulative[tuple(i if size > 1 else 0 for i, size in zip(hidden, self.odds.shape[:4], strict=True))]
        return self.values[row.searchsorted(rng.random(), side="right")]

    def likelihood(self, value: object) -> np.ndarray:
        """P(value | hidden), ``(T or 1, M or 1, S or 1, L or 1)``."""
        return self._columns[self.index[value]]


@dataclass(frozen=True)
class Odds:
    """Everything random about a corpus of one setting.

    Attributes:
        prior: P(label), ``(L,)``; also the share of each label at every position of a dialogue.
        follows: P(label | previous label) if it follows the previous utterance, ``(L, L)``; keeps ``prior``.
        hidden: P(text mode, shown | label), ``(1, M, S, L)``.
        tables: name -> `Table`, or `CueModel` of what is a number. What a modality needs is ``likelihood`` here, and
            its pairs in ``Utterance.choices``.
    """

    prior: np.ndarray
    follows: np.ndarray
    hidden: np.ndarray
    tables: Mapping[str, Table | CueModel]


@lru_cache(maxsize=32)
def odds(settings: Settings) -> Odds:
    """The probabilities of a setting."""
    prior = np.array(settings.shares, dtype=np.float64)
    prior /= prior.sum()

    captioner = DESCRIPTIONS[settings.descriptions]
    hidden = np.zeros((1, len(TEXT_MODES), _VAGUE + 1, len(LABELS)))
    for m, mode in enumerate(TEXT_MODES):
        good, vague, wrong = captioner[mode]
        hidden[0, m, :_VAGUE] = wrong / (len(LABELS) - 1)
        hidden[0, m, range(_VAGUE), range(_VAGUE)] = good
        hidden[0, m, _VAGUE] = vague
        hidden[0, m] *= settings.text_modes[m]

    words = WORDINGS[settings.domain]
    tables = {
        "form": _by_mode(FORMS),
        "topic": _topics(words),
        "cue": _cues(words),
        "opener": _openers(words),
        "tell": _tells(words),
        "asks": _by_label((True, False), {label: (QUESTION[label], 1 - QUESTION[label]) for label in LABELS}),
        "cue mark": _by_label((".", "!", "..."), MARKS),
        "question mark": _by_label(("?", "?!"), QUESTION_MARKS),
        "statement mark": _by_label((".", "!", "...", "?"), STATEMENT_MARKS),
        "voice": _captions(words.voice, VOICE_CONFUSED, VOICE_NEAR),
        "face": _captions(words.face, FACE_CONFUSED, FACE_NEAR),
        "unsure": _unsure(),
        "expression": replace(faces.EXPRESSION, absent=settings.face_cues[0], misleading=settings.face_cues[1]),
        "prosody": replace(voices.PROSODY, absent=settings.voice_cues[0], misleading=settings.voice_cues[1]),
    }
    return Odds(prior, COPY * np.eye(len(LABELS)) + (1 - COPY) * _reactions(prior), hidden, tables)


def _reactions(prior: np.ndarray) -> np.ndarray:
    """P(reaction | previous label), ``(L, L)``, scaled (Sinkhorn) so that labels keep the shares ``prior``."""
    joint = np.array([[REACTIONS[a].get(b, 1) for b in LABELS] for a in LABELS]) * prior[:, None] * prior
    for _ in range(500):
        joint *= (prior / joint.sum(1))[:, None]
        joint *= prior / joint.sum(0)
    return joint / joint.sum(1, keepdims=True)


def _zipf(phrases: Sequence[str]) -> dict[str, float]:
    weights = np.arange(1, len(phrases) + 1) ** -ZIPF
    return dict(zip(phrases, weights / weights.sum(), strict=True))


def _row(*parts: tuple[float, Mapping[object, float]]) -> dict[object, float]:
    """Mixture of distributions; a value in several of them collects all its mass, so equal surfaces are summed over."""
    row: dict[object, float] = {}
    for weight, distribution in parts:
        for value, p in distribution.items():
            row[value] = row.get(value, 0.0) + weight * p
    return row


def _even(phrases: Sequence[str]) -> dict[str, float]:
    return {phrase: 1 / len(phrases) for phrase in phrases}


def _mixed(near: Sequence[str], banks: Mapping[str, Mapping[object, float]]) -> dict[object, float]:
    return _row(*((1 / len(near), banks[label]) for label in near))


def _table(axes: tuple[int, ...], rows: Sequence[Mapping[object, float]]) -> Table:
    """Rows in the order of the axes that matter -> Table."""
    values = list(dict.fromkeys(value for row in rows for value in row))
    odds = np.array([[row.get(value, 0.0) for value in values] for row in rows])
    return Table(values, odds.reshape(*axes, len(values)))


def _by_mode(rows: Mapping[str, Mapping[object, float]]) -> Table:
    return _table((1, len(TEXT_MODES), 1, 1), [rows[mode] for mode in TEXT_MODES])


def _by_label(values: Sequence[object], rows: Mapping[str, Sequence[float]]) -> Table:
    return _table((1, 1, 1, len(LABELS)), [dict(zip(values, rows[label], strict=True)) for label in LABELS])


def _by_mode_and_label(row: Callable[[str, str], Mapping[object, float]]) -> Table:
    return _table((1, len(TEXT_MODES), 1, len(LABELS)), [row(mode, label) for mode in TEXT_MODES for label in LABELS])


def _topics(words: Wording) -> Table:
    topics = tuple(words.topics)
    rows = []
    for theme in topics:
        for label in LABELS:
            liked = {topic: FAVOURITE if topic in TOPICS[label] else 1 for topic in topics}
            total = sum(liked.values())
            rows.append(_row((1 - THEME, {t: w / total for t, w in liked.items()}), (THEME, {theme: 1.0})))
    return _table((len(topics), 1, 1, len(LABELS)), rows)


def _cues(words: Wording) -> Table:
    banks = {label: _zipf(words.cues[label]) for label in LABELS}

    def row(mode: str, label: str) -> dict[object, float]:
        if mode == "misleading":
            return _mixed(DISGUISE[label], banks)
        return _row((1 - LEAK, banks[label]), (LEAK, _mixed(NEAR[label], banks)))  # not drawn for an ambiguous line

    return _by_mode_and_label(row)


def _openers(words: Wording) -> Table:
    banks = {label: _zipf(phrases) for label, phrases in words.openers.items()}

    def row(mode: str, label: str) -> dict[object, float]:
        parts = ({"": 1.0}, banks["any"], banks[label], _mixed(NEAR[label], banks))
        return _row(*zip(OPENER[mode], parts, strict=True))

    return _by_mode_and_label(row)


def _tells(words: Wording) -> Table:
    banks = {label: _even(words.leading[label] + words.trailing[label]) for label in LABELS}

    def row(mode: str, label: str) -> dict[object, float]:
        own, any_ = TELL[mode] * TELL_OWN, TELL[mode] * (1 - TELL_OWN)
        return _row((1 - TELL[mode], {"": 1.0}), (own, banks[label]), (any_, _mixed(LABELS, banks)))

    return _by_mode_and_label(row)


def _captions(
    banks: Mapping[str, tuple[Sequence[str], Sequence[str]]], confused: float, near: Mapping[str, Sequence[str]]
) -> Table:
    """Pairs of (word, detail) given the label that is shown: both from one bank, which may be a neighbour's."""
    pairs = {
        shown: {(w, d): p * q for w, p in _zipf(words).items() for d, q in _zipf(details).items()}
        for shown, (words, details) in banks.items()
    }
    rows = [_row((1 - confused, pairs[label]), (confused, _mixed(near[label], pairs))) for label in LABELS]
    return _table((1, 1, _VAGUE + 1, 1), [*rows, pairs["vague"]])


def _unsure() -> Table:
    rows = []
    for shown in range(_VAGUE + 1):
        for label in range(len(LABELS)):
            p = UNSURE["right" if shown in (label, _VAGUE) else "wrong"]
            rows.append({True: p, False: 1 - p})
    return _table((1, 1, _VAGUE + 1, len(LABELS)), rows)


# ----------------------------------------------------------------------------------------------------------- generation
def generate(
    seed: int,
    dialogues: int,
    *,
    descriptions: Literal["clean", "noisy", "noisy_independent"] = "clean",
    domain: Literal["studio", "wild"] = "studio",
    shares: tuple[float, ...] = SHARES,
    text_modes: tuple[float, float, float] = (0.50, 0.32, 0.18),
    inertia: float = 0.30,
    contagion: float = 0.25,
    face_cues: tuple[float, float] = (0.12, 0.04),
    voice_cues: tuple[float, float] = (0.12, 0.04),
) -> list[Dialogue]:
    """Dialogues of the sitcom.

    Dialogue i depends on ``(seed, i)`` and the knobs only, so a longer corpus extends a shorter one. Speakers, labels
    and text modes do not depend on ``descriptions`` or ``domain``, nor texts on ``descriptions``: corpora of one seed
    can be compared line by line.

    Args:
        seed: any integer.
        dialogues: how many, at least 1; one has 8.5 utterances on average.
        descriptions: captioner, see `Settings`.
        domain: wording, see `Settings`.
        shares: weight of each label.
        text_modes: share of explicit, ambiguous and misleading texts.
        inertia: how often a label is the speaker's own last one.
        contagion: how often it follows the previous utterance.
        face_cues, voice_cues: how often each shows nothing, and how often another label.

    Raises:
        ValueError: if ``dialogues`` is below 1 or a knob is outside its range.
    """
    if dialogues < 1:
        raise ValueError(f"dialogues must be at least 1, got {dialogues}")
    settings = Settings(
        descriptions, domain, tuple(shares), tuple(text_modes), inertia, contagion, tuple(face_cues), tuple(voice_cues)
    )
    return [_dialogue(seed, i, settings) for i in range(dialogues)]


def _dialogue(seed: int, number: int, settings: Settings) -> Dialogue:
    # one stream each, so that another captioner or wording leaves the plot as it is
    plot, talk, camera, face, voice, stage = (
        random.Random(f"{seed}/{number}/{stream}") for stream in ("plot", "talk", "camera", "face", "voice", "stage")
    )
    cast = sorted(CAST, key=lambda _: plot.random())
    speakers = cast[: 3 if plot.random() < THREE_SPEAKERS else 2]
    topics = tuple(WORDINGS[settings.domain].topics)
    scene = _Scene(settings, theme=int(plot.random() * len(topics)), away=cast[len(speakers) :])
    place, frames = faces.scene(stage), round((SECONDS[1] - SECONDS[0]) * faces.FPS)
    expression, prosody = (odds(settings).tables[name] for name in ("expression", "prosody"))
    utterances: list[Utterance] = []
    last: dict[str, str] = {}  # speaker -> label
    for turn in range(TURNS[0] + int(plot.random() * (TURNS[1] - TURNS[0] + 1))):
        previous = utterances[-1] if utterances else None
        if previous and plot.random() < SPEAKS_ON:
            speaker = previous.speaker
        else:
            speaker = _one(plot, [s for s in speakers if previous is None or s != previous.speaker])
        before = previous.label if previous else None
        label = _pick(plot, next_label(settings, last.get(speaker), before))
        mode = _pick(plot, np.array(settings.text_modes))
        shown = _pick(camera, odds(settings).hidden[0, mode, :, label])
        text, said = scene.line(talk, (scene.theme, mode, shown, label), [s for s in speakers if s != speaker])
        captions, seen = scene.captions(camera, (scene.theme, mode, shown, label), speaker)
        face_state, face_shown, expressed = expression.sample(face, LABELS[label])
        voice_state, voice_shown, spoken = prosody.sample(voice, LABELS[label])
        choices = {
            "text": said,
            "descriptions": seen,
            "face": (("expression", expressed),),
            "voice": (("prosody", spoken),),
        }
        utterances.append(
            Utterance(
                id=f"dia{number}_utt{turn}",
                speaker=speaker,
                label=LABELS[label],
                text=text,
                descriptions=captions,
                truth=Truth(
                    text_mode=TEXT_MODES[mode],
                    description_state="vague" if shown == _VAGUE else "good" if shown == label else "wrong",
                    shown=None if shown == _VAGUE else LABELS[shown],
                    face_state=face_state,
                    face_shown=face_shown,
                    voice_state=voice_state,
                    voice_shown=voice_shown,
                    effect=_effect(settings, label, choices),
                ),
                own_last=last.get(speaker),
                previous=before,
                choices=choices,
                seconds=round(SECONDS[0] + int(stage.random() * (frames + 1)) / faces.FPS, 3),
                settings=settings,
            )
        )
        last[speaker] = LABELS[label]
    return Dialogue(f"dia{number}", topics[scene.theme], place, tuple(utterances))


class _Scene:
    """Writes the lines and captions of one dialogue, and remembers what was said: no remark is made twice."""

    def __init__(self, settings: Settings, theme: int, away: Sequence[str]) -> None:
        self.words, self.tables = WORDINGS[settings.domain], odds(settings).tables
        self.theme, self.away = theme, away
        self.leading = {tell for tells in self.words.leading.values() for tell in tells}
        self.said: set[str] = set()  # in earlier lines
        self.now: set[str] = set()  # in this line

    def line(self, rng: random.Random, hidden: Hidden, listeners: Sequence[str]) -> tuple[str, Choices]:
        """[tell] [opener] cue and/or remarks [tell] -> the text and the choices it shows."""
        choices: list[tuple[str, object]] = []
        self.said, self.now = self.said | self.now, set()

        def draw(name: str) -> object:
            choices.append((name, self.tables[name].draw(rng, hidden)))
            return choices[-1][1]

        tell = draw("tell")
        start = tell if tell in self.leading else draw("opener")
        form = draw("form")
        cue = draw("cue") if "cue" in form else ""
        topic = self.words.topics[draw("topic")] if "remark" in form or "{thing}" in cue else None
        name = _one(rng, listeners) if rng.random() < ADDRESS else ""
        parts = [start]
        for kind in form.split():
            sentence = self._cue(rng, draw, cue, topic, name) if kind == "cue" else self._remark(rng, draw, topic, name)
            parts.append(sentence)
            name = ""  # only the first sentence is addressed
        parts.append("" if tell in self.leading else tell)
        return _join(parts), tuple(choices)

    def _cue(self, rng: random.Random, draw: Callable[[str], object], cue: str, topic: Topic | None, name: str) -> str:
        mark = draw("question mark" if cue.endswith("?") else "cue mark")
        cue = cue.removesuffix("?")
        if "{thing}" in cue:
            cue = cue.replace("{thing}", self._new(rng, topic.things))
        return cue + (f", {name}" if name else "") + mark

    def _remark(self, rng: random.Random, draw: Callable[[str], object], topic: Topic, name: str) -> str:
        if draw("asks"):
            remark, mark, hedge = self._new(rng, topic.questions), draw("question mark"), ""
        else:
            remark, mark = self._new(rng, topic.statements), draw("statement mark")
            hedge = _one(rng, self.words.hedges) + " " if mark in (".", "...") and rng.random() < HEDGE else ""
        remark = remark.removesuffix("?").replace("{who}", _one(rng, self.away), 1)
        return (f"{name}, " if name else "") + hedge + remark + mark

    def _new(self, rng: random.Random, phrases: Sequence[str]) -> str:
        """A phrase nobody said yet, or at least not in this line; by symmetry it says nothing about the label."""
        said = self.said | self.now
        phrase = _one(rng, [p for p in phrases if p not in said] or [p for p in phrases if p not in self.now])
        self.now.add(phrase)
        return phrase

    def captions(self, rng: random.Random, hidden: Hidden, speaker: str) -> tuple[dict[str, str], Choices]:
        """An audio and a video description -> the texts and the choices they show."""
        choices = tuple((name, self.tables[name].draw(rng, hidden)) for name in ("voice", "face", "unsure"))
        (_, voice), (_, face), (_, unsure) = choices
        texts = {}
        for kind, templates, (word, detail), names in (
            ("audio", self.words.audio, voice, self.words.sure),
            ("video", self.words.video, face, self.words.unsure if unsure else self.words.sure),
        ):
            subject = _one(rng, names).format(name=speaker)
            texts[kind] = _join([_one(rng, templates).format(subject=subject, word=word, detail=detail) + "."])
        return texts, choices


def _join(parts: Sequence[str]) -> str:
    """Sentences -> text; a sentence begins with a capital unless a comma comes before it."""
    text = ""
    for part in filter(None, parts):
        text += (" " if text else "") + (part if text.endswith(",") else part[0].upper() + part[1:])
    return text


def _one(rng: random.Random, values: Sequence[str]) -> str:
    return values[int(rng.random() * len(values))]


def _pick(rng: random.Random, weights: np.ndarray) -> int:
    cumulative = weights.cumsum()
    return int((cumulative / cumulative[-1]).searchsorted(rng.random(), side="right"))


def _effect(settings: Settings, label: int, choices: Mapping[str, Choices]) -> Literal["help", "hurt", "needless"]:
    prior = odds(settings).prior
    without, with_ = (
        int((prior * _likelihood(settings, choices, given).mean(0)).argmax()) == label
        for given in (("text",), ("text", "descriptions"))
    )
    return "needless" if with_ == without else "help" if with_ else "hurt"


# ----------------------------------------------------------------------------------------------------------- posteriors
def next_label(settings: Settings, own_last: str | None, previous: str | None) -> np.ndarray:
    """P(label | true labels before it), ``(L,)``; a label that does not exist yet leaves its weight to the shares."""
    world = odds(settings)
    inertia = settings.inertia if own_last is not None else 0.0
    contagion = settings.contagion if previous is not None else 0.0
    p = (1 - inertia - contagion) * world.prior
    if previous is not None:
        p = p + contagion * world.follows[LABELS.index(previous)]
    if own_last is not None:
        p[LABELS.index(own_last)] += inertia
    return p


def _likelihood(settings: Settings, choices: Mapping[str, Choices], given: Sequence[str]) -> np.ndarray:
    """P(what the modalities ``given`` show | theme, label), ``(T, L)``, summed over text mode and shown label."""
    world = odds(settings)
    p = world.hidden
    for modality in given:
        if modality not in choices:
            raise ValueError(f"given must be among {', '.join(choices)}, got {modality!r}")
        shown: np.ndarray | float = 1.0
        for name, value in choices[modality]:
            shown = shown * world.tables[name].likelihood(value)
        p = p * shown
    p = p.sum((1, 2))
    return np.broadcast_to(p, (len(WORDINGS[settings.domain].topics), len(LABELS)))


def posterior(
    utterance: Utterance, given: Sequence[str] = ("text", "descriptions"), past_labels: bool = False
) -> np.ndarray:
    """P(label | what this utterance shows), exact.

    Args:
        utterance: as generated.
        given: modalities that are seen, among ``text``, ``descriptions``, ``face`` and ``voice``; none gives the
            prior.
        past_labels: whether the true labels before the utterance are known too.

    Returns:
        ``(7,)`` in the order of `LABELS`, sums to 1.

    Raises:
        ValueError: if a modality is unknown.
    """
    settings = utterance.settings
    prior = next_label(settings, utterance.own_last, utterance.previous) if past_labels else odds(settings).prior
    p = prior * _likelihood(settings, utterance.choices, given).mean(0)  # themes are equally likely
    return p / p.sum()


def with_history(
    dialogue: Dialogue, given: Sequence[str] = ("text", "descriptions"), past_labels: bool = False
) -> np.ndarray:
    """P(label | this utterance and all before it in the dialogue), exact: a forward filter.

    Args:
        dialogue: as generated.
        given: modalities that are seen of every utterance.
        past_labels: whether the true labels before each utterance are known too.

    Returns:
        ``(turns, 7)``; rows sum to 1.
    """
    settings = dialogue.utterances[0].settings
    world, topics, n = odds(settings), len(WORDINGS[settings.domain].topics), len(LABELS)
    speakers = list(dict.fromkeys(u.speaker for u in dialogue.utterances))

    def along(odds_: np.ndarray, *axes: int) -> np.ndarray:
        return odds_.reshape([n if axis in axes else 1 for axis in range(1 + len(speakers))])

    # P(theme, last label of each speaker | so far), (T, L or 1, ...): size 1 until the speaker has spoken
    belief = np.full((topics,) + (1,) * len(speakers), 1 / topics)
    rows, previous = [], None
    for utterance in dialogue.utterances:
        own = 1 + speakers.index(utterance.speaker)  # the axis on which the new label takes the place of the old one
        others = belief.sum(own, keepdims=True)
        new, rest = np.zeros_like(others), 1.0
        if belief.shape[own] == n:
            new, rest = new + settings.inertia * belief, rest - settings.inertia
        if previous is not None:
            if previous == own:
                heard = np.moveaxis(np.tensordot(belief, world.follows, (own, 0)), -1, own)
            else:
                heard = others * along(world.follows if previous < own else world.follows.T, previous, own)
            new, rest = new + settings.contagion * heard, rest - settings.contagion
        new = new + rest * others * along(world.prior, own)
        likelihood = _likelihood(settings, utterance.choices, given)
        new = new * likelihood.reshape([topics, *along(world.prior, own).shape[1:]])
        belief = new / new.sum()
        rows.append(belief.sum(tuple(axis for axis in range(belief.ndim) if axis != own)))
        if past_labels:
            belief = belief * along(np.eye(n)[LABELS.index(utterance.label)], own)
            belief /= belief.sum()
        previous = own
    return np.stack(rows)


def ceilings(dialogues: Sequence[Dialogue], sets: Sequence[Sequence[str]] | None = None) -> dict[str, dict[str, float]]:
    """Best reachable scores on these dialogues, from the exact posteriors.

    For each set of modalities: from the utterance alone (``text``), with the true labels before it (``text + past
    labels``), with the same modalities of all earlier utterances (``text + history``), and with both. The score is that
    of the most probable label. No classifier beats its expected accuracy (on a finite corpus one may by luck, within
    the sampling error); for weighted F1 it is close to the best, not exactly the best.

    Args:
        dialogues: as generated.
        sets: sets of modalities; all of them if None.

    Returns:
        set -> ``accuracy`` and ``weighted_f1``, 0..1.

    Raises:
        ValueError: if there is no dialogue.
    """
    if not dialogues:
        raise ValueError("ceilings need at least one dialogue")
    utterances = [u for d in dialogues for u in d.utterances]
    truth = np.array([LABELS.index(u.label) for u in utterances])
    if sets is None:
        modalities = tuple(utterances[0].choices)
        sets = [given for n in range(1, len(modalities) + 1) for given in itertools.combinations(modalities, n)]
    scores = {}
    for given in sets:
        for past in (False, True):
            alone = np.stack([posterior(u, given, past) for u in utterances])
            history = np.concatenate([with_history(d, given, past) for d in dialogues])
            labels = ("past labels",) if past else ()
            scores[" + ".join((*given, *labels))] = _scores(alone.argmax(1), truth)
            scores[" + ".join((*given, "history", *labels))] = _scores(history.argmax(1), truth)
    return scores


def _scores(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    labels = np.arange(len(LABELS))[:, None]
    said, true = (predicted == labels).sum(1), (truth == labels).sum(1)
    hits = ((predicted == labels) & (truth == labels)).sum(1)
    f1 = 2 * hits / np.maximum(said + true, 1)
    return {"accuracy": float(hits.sum() / len(truth)), "weighted_f1": float((f1 * true).sum() / len(truth))}
