"""Every probability of the synthetic sitcom, as tables over what is hidden."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from zoo.sitcom import faces, voices
from zoo.sitcom.cues import DISGUISE, LABELS, CueModel
from zoo.sitcom.phrases import WORDINGS, Wording
from zoo.sitcom.settings import DESCRIPTIONS, TEXT_MODES, Settings

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


Hidden = tuple[int, int, int, int]  # indices of theme, text mode, shown label (or VAGUE) and label
VAGUE = len(LABELS)  # index of "shows nothing" after the labels


class Table:
    """One random choice and its odds given what is hidden.

    Hidden things are the axes: theme T, text mode M, shown label (or nothing) S, label L. An axis of size 1 has no say.

    Args:
        values: what can be chosen, distinct.
        odds: ``(T or 1, M or 1, S or 1, L or 1, values)``; rows sum to 1.
    """

    def __init__(self, values: Sequence[Any], odds: np.ndarray) -> None:
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

    def draw(self, rng: random.Random, hidden: Hidden) -> Any:
        """Draw one value given the hidden state; takes exactly one number from ``rng``."""
        row = self._cumulative[tuple(i if size > 1 else 0 for i, size in zip(hidden, self.odds.shape[:4], strict=True))]
        return self.values[row.searchsorted(rng.random(), side="right")]

    def likelihood(self, value: object) -> np.ndarray:
        """Return P(value | hidden), ``(T or 1, M or 1, S or 1, L or 1)``."""
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
    """Return the probabilities of a setting."""
    prior = np.array(settings.shares, dtype=np.float64)
    prior /= prior.sum()

    captioner = DESCRIPTIONS[settings.descriptions]
    hidden = np.zeros((1, len(TEXT_MODES), VAGUE + 1, len(LABELS)))
    for m, mode in enumerate(TEXT_MODES):
        good, vague, wrong = captioner[mode]
        hidden[0, m, :VAGUE] = wrong / (len(LABELS) - 1)
        hidden[0, m, range(VAGUE), range(VAGUE)] = good
        hidden[0, m, VAGUE] = vague
        hidden[0, m] *= settings.text_modes[m]

    words = WORDINGS[settings.domain]
    tables: dict[str, Table | CueModel] = {
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
    """Return P(reaction | previous label), ``(L, L)``, scaled (Sinkhorn) so that labels keep the shares ``prior``."""
    joint = np.array([[REACTIONS[a].get(b, 1) for b in LABELS] for a in LABELS]) * prior[:, None] * prior
    for _ in range(500):
        joint *= (prior / joint.sum(1))[:, None]
        joint *= prior / joint.sum(0)
    return joint / joint.sum(1, keepdims=True)


def _zipf(phrases: Sequence[str]) -> dict[str, float]:
    weights = np.arange(1, len(phrases) + 1) ** -ZIPF
    return dict(zip(phrases, weights / weights.sum(), strict=True))


def _mixture(*parts: tuple[float, Mapping[Any, float]]) -> dict[Any, float]:
    """Mix distributions; a value in several of them collects all its mass, so equal surfaces are summed over."""
    row: dict[Any, float] = {}
    for weight, distribution in parts:
        for value, p in distribution.items():
            row[value] = row.get(value, 0.0) + weight * p
    return row


def _even(phrases: Sequence[str]) -> dict[str, float]:
    return {phrase: 1 / len(phrases) for phrase in phrases}


def _mixed(near: Sequence[str], banks: Mapping[str, Mapping[Any, float]]) -> dict[Any, float]:
    return _mixture(*((1 / len(near), banks[label]) for label in near))


def _table(axes: tuple[int, ...], rows: Sequence[Mapping[Any, float]]) -> Table:
    """Make a table from rows in the order of the axes that matter."""
    values = list(dict.fromkeys(value for row in rows for value in row))
    odds = np.array([[row.get(value, 0.0) for value in values] for row in rows])
    return Table(values, odds.reshape(*axes, len(values)))


def _by_mode(rows: Mapping[str, Mapping[Any, float]]) -> Table:
    return _table((1, len(TEXT_MODES), 1, 1), [rows[mode] for mode in TEXT_MODES])


def _by_label(values: Sequence[object], rows: Mapping[str, Sequence[float]]) -> Table:
    return _table((1, 1, 1, len(LABELS)), [dict(zip(values, rows[label], strict=True)) for label in LABELS])


def _by_mode_and_label(row: Callable[[str, str], Mapping[Any, float]]) -> Table:
    return _table((1, len(TEXT_MODES), 1, len(LABELS)), [row(mode, label) for mode in TEXT_MODES for label in LABELS])


def _topics(words: Wording) -> Table:
    topics = tuple(words.topics)
    rows = []
    for theme in topics:
        for label in LABELS:
            weights = {topic: FAVOURITE if topic in TOPICS[label] else 1 for topic in topics}
            total = sum(weights.values())
            rows.append(_mixture((1 - THEME, {t: w / total for t, w in weights.items()}), (THEME, {theme: 1.0})))
    return _table((len(topics), 1, 1, len(LABELS)), rows)


def _cues(words: Wording) -> Table:
    banks = {label: _zipf(words.cues[label]) for label in LABELS}

    def row(mode: str, label: str) -> dict[Any, float]:
        if mode == "misleading":
            return _mixed(DISGUISE[label], banks)
        return _mixture((1 - LEAK, banks[label]), (LEAK, _mixed(NEAR[label], banks)))  # not drawn for an ambiguous line

    return _by_mode_and_label(row)


def _openers(words: Wording) -> Table:
    banks = {label: _zipf(phrases) for label, phrases in words.openers.items()}

    def row(mode: str, label: str) -> dict[Any, float]:
        parts: tuple[Mapping[Any, float], ...] = ({"": 1.0}, banks["any"], banks[label], _mixed(NEAR[label], banks))
        return _mixture(*zip(OPENER[mode], parts, strict=True))

    return _by_mode_and_label(row)


def _tells(words: Wording) -> Table:
    banks = {label: _even(words.leading[label] + words.trailing[label]) for label in LABELS}

    def row(mode: str, label: str) -> dict[Any, float]:
        label_share, any_share = TELL[mode] * TELL_OWN, TELL[mode] * (1 - TELL_OWN)
        return _mixture((1 - TELL[mode], {"": 1.0}), (label_share, banks[label]), (any_share, _mixed(LABELS, banks)))

    return _by_mode_and_label(row)


def _captions(
    banks: Mapping[str, tuple[Sequence[str], Sequence[str]]], confused: float, near: Mapping[str, Sequence[str]]
) -> Table:
    """Make the table of (word, detail) pairs given the shown label: both from one bank, maybe a neighbour's."""
    pairs = {
        label: {(w, d): p * q for w, p in _zipf(words).items() for d, q in _zipf(details).items()}
        for label, (words, details) in banks.items()
    }
    rows = [_mixture((1 - confused, pairs[label]), (confused, _mixed(near[label], pairs))) for label in LABELS]
    return _table((1, 1, VAGUE + 1, 1), [*rows, pairs["vague"]])


def _unsure() -> Table:
    rows = []
    for described in range(VAGUE + 1):
        for label in range(len(LABELS)):
            p = UNSURE["right" if described in (label, VAGUE) else "wrong"]
            rows.append({True: p, False: 1 - p})
    return _table((1, 1, VAGUE + 1, len(LABELS)), rows)
