"""How an utterance sounds, in one sentence of levels; the thresholds between them are tensors of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.media import Media, Unreadable
from zoo.media.clips import utterance_key, utterance_sound
from zoo.media.speech import MEASURES, PERCENTILES, Bins, NotSpeech, Values, fit_bins, measure
from zoo.progress import reported
from zoo.schema import Problem, Sample, Turn
from zoo.training.collator import PromptCollator

LEVELS = ("very low", "low", "medium", "high", "very high")  # P
# measure of zoo.media.speech -> its name in the sentence
SAID = {
    "loudness": "intensity",
    "loudness variation": "variation of intensity",
    "pitch": "pitch",
    "pitch variation": "variation of pitch",
    "rate": "speaking rate",
}
UNKNOWN = "unknown"  # level of what could not be measured, e.g. the pitch of a whisper
NO_VOICE = "no sound of it is known"


class VoiceLevels(nn.Module):
    """Thresholds of every measure over all training utterances, and over those of each group of speakers.

    Args:
        groups: names of the groups, e.g. ``(female, male)``; thresholds are stored in their order, those of all first.
    """

    thresholds: Tensor  # (1 + groups, measures, 4) float32
    fitted: Tensor  # () bool: whether the thresholds are those of training utterances

    def __init__(self, groups: Sequence[str]) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.register_buffer("thresholds", torch.zeros(1 + len(self.groups), len(MEASURES), len(PERCENTILES)))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, heard: Sequence[tuple[str, Values]]) -> None:
        """Take the thresholds of training utterances, each (group or "", values).

        A group without a value of some measure has the thresholds of all.

        Raises:
            ValueError: no utterance was measured, or none has some measure.
        """
        bins = fit_bins(heard, least=1)
        if lacking := sorted(MEASURES.keys() - bins.overall.keys()):
            raise ValueError(
                f"not one of {len(heard)} training utterances has a measurable {' or '.join(lacking)}, so there are no "
                "thresholds; expected voices. Listen to some clips"
            )
        rows = [
            [bins.speakers.get(group, {}).get(name, bins.overall[name]) for name in MEASURES]
            for group in ("", *self.groups)
        ]
        self.thresholds.copy_(torch.tensor(rows))
        self.fitted.fill_(True)

    def bins(self) -> Bins:
        """Return the thresholds, by group, in the form that tells a value's level."""
        overall, *others = (
            {name: tuple(row) for name, row in zip(MEASURES, rows, strict=True)} for rows in self.thresholds.tolist()
        )
        return Bins(overall, dict(zip(self.groups, others, strict=True)), {}, {})


@dataclass
class Ear:
    """Measures how utterances sound, each once.

    Args:
        media: reads the clips.
        groups: speaker -> group, e.g. gender; a speaker who is not in it has none.
    """

    media: Media
    groups: Mapping[str, str]
    _heard: dict[tuple[Any, ...], Values | str] = field(default_factory=dict, repr=False)

    def group(self, turn: Turn) -> str:
        """Return the group of an utterance's speaker; empty if it is not known."""
        return self.groups.get(turn.speaker, "")

    def hear(self, turn: Turn) -> Values | str:
        """Return the measures of an utterance, or why there are none."""
        if turn.audio is None:
            return "has no sound"
        key = utterance_key(turn, turn.audio)
        if key not in self._heard:
            try:
                self._heard[key] = measure(utterance_sound(self.media, turn))
            except Unreadable as error:
                self._heard[key] = error.reason
            except NotSpeech as error:
                self._heard[key] = str(error)
        return self._heard[key]

    def hear_training(self, samples: Sequence[Sample]) -> list[tuple[str, Values]]:
        """Return (group, values) of every utterance that can be measured, with lines of progress."""
        heard = ((self.group(s.target), self.hear(s.target)) for s in samples)
        return [
            (group, values)
            for group, values in reported(heard, len(samples), "voices measured", "utterances")
            if not isinstance(values, str)
        ]


def cue_sentence(values: Values, bins: Bins, group: str) -> str:
    """Say how an utterance sounds: ``intensity high, ..., pitch very low, ..., speaking rate medium``."""
    levels = {name: LEVELS[bins.level(group, name, value)] for name, value in values.items()}
    return ", ".join(f"{words} {levels.get(name, UNKNOWN)}" for name, words in SAID.items())


@dataclass(kw_only=True)
class CueCollator(PromptCollator):
    """Write prompts in which a sentence says how the utterance sounds; ``no_voice`` counts those without one.

    Args:
        ear: measures the utterances.
        bins: thresholds of their levels.
    """

    ear: Ear
    bins: Bins

    @property
    def media(self) -> Media:
        """What reads the clips."""
        return self.ear.media

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> Any:
        """Return the batch of some samples."""
        prompts, problems = [], list[Problem]()
        for s in samples:
            values, voice = self.ear.hear(s.target), NO_VOICE
            if isinstance(values, str):
                row: Problem = {"problem": "voices not measured", "name": s.id, "reason": values, "samples": [s.id]}
                problems.append(row)
            else:
                voice = cue_sentence(values, self.bins, self.ear.group(s.target))
            prompts.append(self.prompt_ids(s, rng, {"voice": voice}))
        batch = self.batch(samples, prompts, rng)
        return {**batch, "no_voice": len(problems), "problems": [*batch.get("problems", ()), *problems]}
