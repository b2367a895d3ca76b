"""What a classifier of the synthetic sitcom must not see: rationales, hidden states and exact posteriors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict

from zoo.schema import Split
from zoo.sitcom import faces, voices
from zoo.sitcom.cues import LABELS
from zoo.sitcom.posteriors import posterior
from zoo.sitcom.settings import Utterance

MODALITIES = ("text", "descriptions", "face", "voice")


def rationale(utterance: Utterance) -> str:
    """Return a reference rationale: which cue shows what, and the label, in two to five sentences."""
    truth, parts = utterance.truth, []
    parts.append(
        {
            "explicit": f"The words express {utterance.label}.",
            "ambiguous": "The words name no emotion.",
            "misleading": "The words are not meant as they sound.",
        }[truth.text_mode]
    )
    for what, state, text in (
        ("face", truth.face_state, truth.face_shown),
        ("voice", truth.voice_state, truth.voice_shown),
    ):
        parts.append(
            {
                "clear": f"The {what} clearly shows {text}.",
                "faint": f"The {what} faintly shows {text}.",
                "absent": f"The {what} shows nothing.",
                "misleading": f"The {what} shows {text}, which misleads.",
            }[state]
        )
    return " ".join((*parts, f"So the emotion is {utterance.label}."))


def truth_row(utterance: Utterance, split: Split) -> dict[str, object]:
    """Return a row of ``truth.jsonl``."""
    sets = [modalities for n in range(1, 5) for modalities in itertools.combinations(MODALITIES, n)]
    posteriors = {" + ".join(modalities): posterior(utterance, modalities) for modalities in sets}
    posteriors["past labels"] = posterior(utterance, (), past_labels=True)
    posteriors[" + ".join((*MODALITIES, "past labels"))] = posterior(utterance, MODALITIES, past_labels=True)
    return {
        "id": f"synthetic/{split}/{utterance.id}",
        "label": utterance.label,
        **asdict(utterance.truth),
        "expression": dict(zip(faces.EXPRESSION.names, _rounded(utterance.expression), strict=True)),
        "prosody": dict(zip(voices.PROSODY.names, _rounded(utterance.prosody), strict=True)),
        "rationale": rationale(utterance),
        "labels": LABELS,
        "posteriors": {name: _rounded(p) for name, p in posteriors.items()},
    }


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(v), 6) for v in values]
