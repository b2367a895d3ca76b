"""A film, or a file of subtitles, as the utterances of a dialogue: where somebody speaks, or as the subtitles say."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.table_rows import STILL, clip_turn
from zoo.data.text import some
from zoo.label.requests import Request, display_path, open_clip, sample_of
from zoo.label.subtitles import read_subtitles
from zoo.label.transcription import Transcriber
from zoo.media import Media, Unreadable
from zoo.media.clips import RATE, utterance_sound
from zoo.prepare.describe import voice_activity
from zoo.schema import Labels, Sample, Turn

PAUSE = 0.5  # seconds of silence between two utterances
LONGEST = 15.0  # seconds of an utterance; a longer one is parted where it pauses longest
SHORTEST = 0.3  # seconds; what is shorter is a cough
MARGIN = 0.1  # seconds that are added before and behind, where nobody speaks
HISTORY = 100  # earlier utterances that a system may look at: more than any reads
MOST = 20_000  # utterances of a file: the lines of a day of film

Span = tuple[float, float]  # from, to; seconds


def read_utterances(request: Request, labels: Labels, media: Media) -> list[Sample]:
    """Return the utterances of a request with ``--segments`` or ``--subtitles``, each with those before it.

    Blocks of the subtitles that cannot be read are listed on stderr.

    Raises:
        FileNotFoundError, ValueError: options that do not go together, no clip, a picture, a sound that cannot be
            read, nobody who speaks, or subtitles without one readable block.
    """
    of_one = [name for name in ("text", "speaker", "context", "descriptions", "clips") if getattr(request, name)]
    if request.segments and request.subtitles is not None:
        raise ValueError("--segments and --subtitles both cut the clip into utterances; give one of them")
    if of_one:
        raise ValueError(f"--{of_one[0]} goes with one utterance; --segments and --subtitles make many")
    if request.asks_for_many or request.clip is not None and request.clip.suffix.lower() in STILL:
        raise ValueError(f"{request.clip} is no film or sound; --segments and --subtitles take one of these")
    clip = open_clip(request.clip)
    if request.subtitles is not None:
        turns = _from_subtitles(request.subtitles, clip, request.encoding)
    elif clip is not None:
        turns = _from_voice(clip, media)
    else:
        raise ValueError("--segments cuts a film or sound into utterances; give CLIP")
    if len(turns) > MOST:
        raise ValueError(f"that is {len(turns)} utterances; expected at most {MOST}. Cut the file into parts")
    name = display_path(Path((clip or request.subtitles or Path()).name))
    return [sample_of(turn, name, labels, turns[max(0, i - HISTORY) : i]) for i, turn in enumerate(turns)]


def _from_subtitles(path: Path, clip: Path | None, encoding: str | None) -> list[Turn]:
    """Return a turn for every subtitle, and list what could not be read."""
    subtitles = read_subtitles(path, encoding)
    if subtitles.problems:
        count = len(subtitles.problems)
        print(f"{path}: {count} blocks left out: {some(subtitles.problems, 20)}", file=sys.stderr)
    return [
        _turn(number, clip, path, (line.start, line.end), text=line.text, speaker=line.speaker)
        for number, line in enumerate(subtitles.lines, 1)
    ]


def _from_voice(clip: Path, media: Media) -> list[Turn]:
    """Return a turn for every utterance that is heard. ValueError if the sound cannot be read, or nobody speaks."""
    wave = media.waveform(clip, RATE)
    spans = utterance_spans(voice_activity(wave, RATE), len(wave) / RATE)
    if not spans:
        raise ValueError(
            f"{clip}: nobody speaks in it, as far as can be told by loudness and pitch, so it has no "
            "utterances; give it without --segments, or the times with --subtitles"
        )
    return [_turn(number, clip, clip, span) for number, span in enumerate(spans, 1)]


def _turn(number: int, clip: Path | None, file: Path, span: Span, **fields: Any) -> Turn:
    """Return the utterance of these seconds of a clip, named by its number in a file."""
    name = f"{display_path(Path((clip or file).name))}#{number:04d}"
    return clip_turn(name, clip, start=round(span[0], 3), end=round(span[1], 3), **fields)


def utterance_spans(speech: Sequence[Span], seconds: float) -> list[Span]:
    """Join spans of speech to utterances.

    >>> utterance_spans([(1.0, 2.0), (2.3, 3.0), (4.0, 4.1), (5.0, 6.0)], 6.05)
    [(0.9, 3.1), (4.9, 6.05)]

    Args:
        speech: where somebody speaks, rising.
        seconds: how long the sound is.

    Returns:
        spans between which nobody speaks for `PAUSE`, or, where that makes one of over `LONGEST`, which are parted at
        their longest pause or into equal parts; each with `MARGIN` around it.
    """
    groups: list[list[Span]] = []
    for span in speech:
        if groups and span[0] - groups[-1][-1][1] < PAUSE:
            groups[-1].append(span)
        else:
            groups.append([span])
    whole: list[Span] = []
    waiting = groups[::-1]
    while waiting:
        group = waiting.pop()
        start, end = group[0][0], group[-1][1]
        if end - start <= LONGEST:
            whole.append((start, end))
        elif len(group) > 1:
            cut = max(range(1, len(group)), key=lambda i: (group[i][0] - group[i - 1][1], -i))
            waiting += [group[cut:], group[:cut]]
        else:
            edges = np.linspace(start, end, int((end - start) // LONGEST) + 2).tolist()
            whole += itertools.pairwise(edges)
    whole = [span for span in whole if span[1] - span[0] >= SHORTEST]
    if not whole:
        return []
    befores = [0.0, *((end + start) / 2 for (_, end), (start, _) in itertools.pairwise(whole))]
    return [
        (max(start - MARGIN, before), min(end + MARGIN, after))
        for (start, end), before, after in zip(whole, befores, [*befores[1:], seconds], strict=True)
    ]


def with_words(samples: Sequence[Sample], transcriber: Transcriber, media: Media) -> list[Sample]:
    """Return samples, with what is said where no words were given; also in the earlier turns of the same command."""
    words: dict[str, str] = {}
    for sample in samples:
        turn = sample.target
        if not turn.text and turn.audio is not None:
            try:
                words[turn.id] = transcriber(utterance_sound(media, turn))
            except Unreadable as error:
                print(f"{turn.id}: not transcribed: {error.reason}", file=sys.stderr)

    def told(turn: Turn) -> Turn:
        return replace(turn, text=words[turn.id]) if turn.id in words else turn

    return [
        replace(s, target=told(s.target), history=tuple(map(told, s.history)), later=tuple(map(told, s.later)))
        for s in samples
    ]
