"""What `zoo prepare captions` would ask, counted before anything is sent (``--dry_run``).

Tokens are those of the two models that the papers take: a picture costs Qwen2-VL one token per 28 x 28 pixels (Wang et
al. 2024, Sec. 2.1), a second of sound costs Qwen2-Audio 25 (Chu et al. 2024, Sec. 2). Other models count otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zoo.media import Media, Unreadable
from zoo.media.clips import RATE, utterance_frames, utterance_sound
from zoo.schema import Turn

PATCH = 28  # pixels of a side that make one token
TOKENS_PER_SECOND = 25.0
CHARACTERS_PER_TOKEN = 4.0  # of an English prompt
CLIPS_LOOKED_AT = 20


@dataclass(frozen=True)
class Estimate:
    """What the questions of one kind and split would be.

    Attributes:
        questions: utterances that have a clip and no answer yet.
        input_tokens: of all questions together, by the mean of the clips looked at.
        looked_at: clips that were decoded for it, at most `CLIPS_LOOKED_AT`, evenly spread.
        unreadable: how many of them could not be.
    """

    questions: int
    input_tokens: int
    looked_at: int
    unreadable: int


def estimate(turns: Sequence[Turn], kind: str, prompt: str, media: Media, frames: int, size: int) -> Estimate:
    """Return what describing some utterances would take.

    Args:
        turns: without those that are answered.
        kind: video or audio.
        prompt: that goes with every clip.
        frames, size: per clip, and their shorter side in pixels.
    """
    asked = [turn for turn in turns if (turn.video if kind == "video" else turn.audio) is not None]
    chosen = (
        [asked[i] for i in sorted({len(asked) * k // CLIPS_LOOKED_AT for k in range(CLIPS_LOOKED_AT)})] if asked else []
    )
    costs: list[float] = []
    for turn in chosen:
        try:
            if kind == "video":
                costs.append(_picture_tokens(utterance_frames(media, turn, frames, side=size)))
            else:
                costs.append(len(utterance_sound(media, turn)) / RATE * TOKENS_PER_SECOND)
        except Unreadable:
            continue
    per_clip = float(np.mean(costs)) if costs else 0.0
    tokens = len(asked) * (per_clip + len(prompt) / CHARACTERS_PER_TOKEN)
    return Estimate(len(asked), round(tokens), len(chosen), len(chosen) - len(costs))


def _picture_tokens(pictures: np.ndarray) -> int:
    count, height, width = len(pictures), int(pictures.shape[2]), int(pictures.shape[3])
    return count * max(round(height / PATCH), 1) * max(round(width / PATCH), 1)


def in_words(
    estimates: Sequence[tuple[str, Estimate]], max_words: int, max_tokens: int, price: Sequence[float] | None
) -> str:
    """Return the estimates as lines of text.

    Args:
        estimates: name of the file and what it would take.
        max_words: of an answer; what is longer is dropped, and has been paid for.
        max_tokens: at which the server cuts an answer off.
        price: per million tokens of questions, and of answers; None: not told.
    """
    lines = []
    for name, e in estimates:
        unread = f", {e.unreadable} of {e.looked_at} clips looked at cannot be read" if e.unreadable else ""
        lines.append(f"{name}: {e.questions} questions, about {e.input_tokens} tokens{unread}")
    asked, sent = sum(e.questions for _, e in estimates), sum(e.input_tokens for _, e in estimates)
    most = asked * max_tokens
    usual = min(most, round(asked * max_words * 1.5))  # a word is one to two tokens
    lines.append(
        f"together: {asked} questions, about {sent} tokens of questions and {usual} of answers of --max_words words "
        f"(at most {most}, were each cut off at --max_tokens)"
    )
    if price is not None:
        usual_cost, most_cost = ((sent * price[0] + answers * price[1]) / 1e6 for answers in (usual, most))
        lines.append(f"cost: about {usual_cost:.2f}, at most about {most_cost:.2f}, in the unit of --price")
    lines.append("nothing was sent (--dry_run)")
    return "\n".join(lines)
