"""How a voice sounds: measures with units, and a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.media.clips import RATE
from zoo.media.speech import MEASURES, Bins, NotSpeech, Values, measure
from zoo.prepare.describe.activity import Span, pauses_between, voice_activity

UNITS = {  # measure of a voice -> its unit
    "seconds": "s",
    "loudness": "dB",
    "loudness variation": "dB",
    "pitch": "Hz",
    "pitch variation": "Hz",
    "rate": "syllables per second",
    "speech": "share of the sound, 0 to 1",
    "pauses": "",
    "longest pause": "s",
}
SILENCE, NO_VOICE, NO_SOUND = "Silence.", "No voice.", "No sound."


def measure_voice(wave: np.ndarray) -> tuple[Values, list[Span]]:
    """Measure a voice.

    Args:
        wave: (N,) at 16 kHz in [-1, 1].

    Returns:
        the measures of `UNITS`, without those that could not be had: of silence ``seconds`` and ``speech`` alone; and
        where somebody speaks, (from, to) in seconds.

    Raises:
        NotSpeech: a sound too short or too long to be one utterance.
    """
    seconds = len(wave) / RATE
    try:
        values = measure(wave)
    except NotSpeech as error:
        if "silent" not in str(error):
            raise
        return {"seconds": seconds, "speech": 0.0}, []
    speech = voice_activity(wave, RATE)
    pauses = pauses_between(speech)
    values |= {"seconds": seconds, "speech": sum(end - start for start, end in speech) / seconds}
    values["pauses"] = float(len(pauses))
    values["longest pause"] = max((end - start for start, end in pauses), default=0.0)
    return values, speech


def voice_sentence(values: Mapping[str, float], bins: Bins | None = None, speaker: str = "") -> str:
    """Say in plain words how a voice sounds.

    ``Loud voice, even; high pitch, very lively; slow pace; speaking 83 % of the time, one pause (0.4 s).`` Words of
    loudness, pitch and pace need thresholds of a corpus; without them the numbers themselves stand there: ``Voice at 62
    dB, pitch 212 Hz (varies by 41 Hz), 4.1 syllables per second; ...``.

    Args:
        values: of `measure_voice`.
        bins: thresholds of a corpus.
        speaker: whose thresholds to take, where the corpus has enough of their voice.
    """
    if "loudness" not in values:
        return SILENCE
    if not values["speech"]:
        return NO_VOICE
    measured = {name: values[name] for name in MEASURES if name in values}
    text = _numbers(measured) if bins is None else bins.sentence(speaker, measured).capitalize()
    count, share = round(values["pauses"]), round(100 * values["speech"])
    pauses = {0: "no pause", 1: "one pause"}.get(count, f"{count} pauses, the longest")
    longest = f" ({values['longest pause']:.1f} s)" if count else ""
    return f"{text}; speaking {share} % of the time, {pauses}{longest}."


def _numbers(values: Mapping[str, float]) -> str:
    parts = [f"Voice at {values['loudness']:.0f} dB"]
    if "pitch" in values:
        parts.append(f"pitch {values['pitch']:.0f} Hz (varies by {values['pitch variation']:.0f} Hz)")
    if "rate" in values:
        parts.append(f"{values['rate']:.1f} syllables per second")
    return ", ".join(parts)


# ----------------------------------------------------------------------------------------------------------- thresholds
def bins_record(bins: Bins) -> dict[str, Any]:
    """Return thresholds as JSON, which `read_bins` reads."""
    return {
        "all": {name: {"n": bins.n[name], "thresholds": t} for name, t in bins.overall.items()},
        "speakers": {
            speaker: {name: {"n": bins.spoken[speaker][name], "thresholds": t} for name, t in measures.items()}
            for speaker, measures in bins.speakers.items()
        },
    }


def read_bins(path: Path) -> Bins:
    """Read thresholds: describe.json of ``zoo prepare describe``, or speech_bins.json of ``zoo prepare speech``.

    Raises:
        ValueError: another file, or numbers that are no thresholds.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record = record.get("thresholds", record)
        overall, everyone = record["all"], record["speakers"]
        bins = Bins(
            overall={name: _thresholds(name, row) for name, row in overall.items()},
            speakers={s: {name: _thresholds(name, row) for name, row in rows.items()} for s, rows in everyone.items()},
            n={name: int(row["n"]) for name, row in overall.items()},
            spoken={s: {name: int(row["n"]) for name, row in rows.items()} for s, rows in everyone.items()},
        )
        if not bins.overall:
            raise ValueError("it has none")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no thresholds of voices ({error}); expected describe.json of zoo prepare describe, or "
            "speech_bins.json of zoo prepare speech"
        ) from None
    return bins


def _thresholds(name: str, row: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the four thresholds of a measure. ValueError unless they rise."""
    values: Sequence[float] = [float(value) for value in row["thresholds"]]
    if name not in MEASURES or len(values) != 4 or list(values) != sorted(values):
        raise ValueError(f"{name}: {row['thresholds']}, expected four rising numbers of {', '.join(MEASURES)}")
    return tuple(values)
