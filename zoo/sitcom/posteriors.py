"""Exact posteriors of the labels of a synthetic sitcom, and the best scores that they allow."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from zoo.sitcom.cues import LABELS
from zoo.sitcom.odds import odds
from zoo.sitcom.phrases import WORDINGS
from zoo.sitcom.settings import Choices, Dialogue, Settings, Utterance


def next_label(settings: Settings, own_last: str | None, previous: str | None) -> np.ndarray:
    """Return P(label | true labels before it), ``(L,)``.

    A label that does not exist yet leaves its weight to the shares.
    """
    world = odds(settings)
    inertia = settings.inertia if own_last is not None else 0.0
    contagion = settings.contagion if previous is not None else 0.0
    p = (1 - inertia - contagion) * world.prior
    if previous is not None:
        p = p + contagion * world.follows[LABELS.index(previous)]
    if own_last is not None:
        p[LABELS.index(own_last)] += inertia
    return p


def likelihood(settings: Settings, choices: Mapping[str, Choices], modalities: Sequence[str]) -> np.ndarray:
    """Return P(what these modalities show | theme, label), ``(T, L)``, summed over text mode and shown label."""
    world = odds(settings)
    p = world.hidden
    for modality in modalities:
        if modality not in choices:
            raise ValueError(f"given must be among {', '.join(choices)}, got {modality!r}")
        p_modality: np.ndarray | float = 1.0
        for name, value in choices[modality]:
            p_modality = p_modality * world.tables[name].likelihood(value)
        p = p * p_modality
    p = p.sum((1, 2))
    return np.broadcast_to(p, (len(WORDINGS[settings.domain].topics), len(LABELS)))


def posterior(
    utterance: Utterance, modalities: Sequence[str] = ("text", "descriptions"), past_labels: bool = False
) -> np.ndarray:
    """Return the exact P(label | what this utterance shows).

    Args:
        utterance: as generated.
        modalities: modalities that are seen, among ``text``, ``descriptions``, ``face`` and ``voice``; none gives the
            prior.
        past_labels: whether the true labels before the utterance are known too.

    Returns:
        ``(7,)`` in the order of `LABELS`, sums to 1.

    Raises:
        ValueError: if a modality is unknown.
    """
    settings = utterance.settings
    prior = next_label(settings, utterance.own_last, utterance.previous) if past_labels else odds(settings).prior
    p = prior * likelihood(settings, utterance.choices, modalities).mean(0)  # themes are equally likely
    return p / p.sum()


def with_history(
    dialogue: Dialogue, modalities: Sequence[str] = ("text", "descriptions"), past_labels: bool = False
) -> np.ndarray:
    """Return the exact P(label | this utterance and all before it in the dialogue), by a forward filter.

    Args:
        dialogue: as generated.
        modalities: modalities that are seen of every utterance.
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
        axis = 1 + speakers.index(utterance.speaker)  # the axis on which the new label takes the place of the old one
        others = belief.sum(axis, keepdims=True)
        new, rest = np.zeros_like(others), 1.0
        if belief.shape[axis] == n:
            new, rest = new + settings.inertia * belief, rest - settings.inertia
        if previous is not None:
            if previous == axis:
                follow = np.moveaxis(np.tensordot(belief, world.follows, (axis, 0)), -1, axis)
            else:
                follow = others * along(world.follows if previous < axis else world.follows.T, previous, axis)
            new, rest = new + settings.contagion * follow, rest - settings.contagion
        new = new + rest * others * along(world.prior, axis)
        p_choices = likelihood(settings, utterance.choices, modalities)
        new = new * p_choices.reshape([topics, *along(world.prior, axis).shape[1:]])
        belief = new / new.sum()
        rows.append(belief.sum(tuple(i for i in range(belief.ndim) if i != axis)))
        if past_labels:
            belief = belief * along(np.eye(n)[LABELS.index(utterance.label)], axis)
            belief /= belief.sum()
        previous = axis
    return np.stack(rows)


def ceilings(dialogues: Sequence[Dialogue], sets: Sequence[Sequence[str]] | None = None) -> dict[str, dict[str, float]]:
    """Compute the best reachable scores on these dialogues from the exact posteriors.

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
        every = tuple(utterances[0].choices)
        sets = [chosen for n in range(1, len(every) + 1) for chosen in itertools.combinations(every, n)]
    scores = {}
    for modalities in sets:
        for past in (False, True):
            alone = np.stack([posterior(u, modalities, past) for u in utterances])
            history = np.concatenate([with_history(d, modalities, past) for d in dialogues])
            labels = ("past labels",) if past else ()
            scores[" + ".join((*modalities, *labels))] = _scores(alone.argmax(1), truth)
            scores[" + ".join((*modalities, "history", *labels))] = _scores(history.argmax(1), truth)
    return scores


def _scores(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    labels = np.arange(len(LABELS))[:, None]
    predictions, truths = (predicted == labels).sum(1), (truth == labels).sum(1)
    hits = ((predicted == labels) & (truth == labels)).sum(1)
    f1 = 2 * hits / np.maximum(predictions + truths, 1)
    return {"accuracy": float(hits.sum() / len(truth)), "weighted_f1": float((f1 * truths).sum() / len(truth))}
