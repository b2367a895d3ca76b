"""What can be chosen about a sitcom, and what its dialogues consist of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from zoo.sitcom import faces
from zoo.sitcom.cues import LABELS, CueState
from zoo.sitcom.phrases import WORDINGS

SHARES = (4710, 1205, 268, 683, 1743, 271, 1109)  # MELD train
CAST = ("Nina", "Omar", "Greta", "Felix", "Priya", "Marcus", "Lucia", "Teddy", "Joan", "Walt")

TextMode = Literal["explicit", "ambiguous", "misleading"]
TEXT_MODES: tuple[TextMode, ...] = ("explicit", "ambiguous", "misleading")
DescriptionState = Literal["good", "vague", "wrong"]

# captioner -> text mode -> odds of good, vague and wrong
DESCRIPTIONS: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    "clean": dict.fromkeys(TEXT_MODES, (0.80, 0.14, 0.06)),
    "noisy": {"explicit": (0.30, 0.15, 0.55), "ambiguous": (0.75, 0.15, 0.10), "misleading": (0.75, 0.15, 0.10)},
    "noisy_independent": dict.fromkeys(TEXT_MODES, (0.50, 0.15, 0.35)),
}

Choices = tuple[tuple[str, Any], ...]  # (name of a table, value drawn from it)


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
        description_shown: label the descriptions show; None if vague.
        face_state: clear, faint, absent (a poker face) or misleading (shows another label).
        face_shown: label the face shows.
        voice_state, voice_shown: the same of the voice.
        effect: ``help`` if the Bayes answer is wrong from the text and right with the descriptions, ``hurt`` for the
            reverse, ``needless`` if they do not change whether it is right.
    """

    text_mode: TextMode
    description_state: DescriptionState
    description_shown: str | None
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
