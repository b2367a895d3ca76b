import itertools
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from zoo.sitcom.cues import DISGUISE, LABELS, CueModel
from zoo.sitcom.faces import EXPRESSION
from zoo.sitcom.voices import PROSODY

PRIOR = np.array((4710, 1205, 268, 683, 1743, 271, 1109)) / 9989
models = pytest.mark.parametrize("model", [EXPRESSION, PROSODY], ids=["face", "voice"])


def written_out(model, values, label):
    """p(values | label), every term of the sum by hand."""
    own = 1 - model.misleading - (model.absent if label != "neutral" else 0)
    odds = Counter({label: own})
    for mask in model.masks[label]:
        odds[mask] += model.misleading / len(model.masks[label])
    if label != "neutral":
        odds["neutral"] += model.absent
    total = 0.0
    for (shown, p), intensity in itertools.product(odds.items(), model.intensities):
        density = 1.0
        for x, d, sd in zip(values, model.directions[shown], model.noise, strict=True):
            density *= np.exp(-0.5 * ((x - intensity * d) / sd) ** 2) / sd / np.sqrt(2 * np.pi)
        total += p * density / len(model.intensities)
    return total


@models
def test_likelihood_is_the_written_out_mixture(model):
    rng = random.Random(0)
    for label in LABELS:
        for _ in range(5):
            values = model.sample(rng, label)[2]
            by_hand = np.array([written_out(model, values, other) for other in LABELS])
            got = model.likelihood(values)
            np.testing.assert_allclose(got / got.sum(), by_hand / by_hand.sum())


@models
def test_posterior_is_calibrated(model):
    """How often the best answer is right is how probable it says it is."""
    rng, n = random.Random(1), 6000
    drawn = rng.choices(range(7), PRIOR, k=n)
    p = np.stack([PRIOR * model.likelihood(model.sample(rng, LABELS[y])[2]) for y in drawn])
    p /= p.sum(1, keepdims=True)
    right, top = (p.argmax(1) == drawn).mean(), p.max(1)
    assert abs(right - top.mean()) < 3 * np.sqrt((top * (1 - top)).sum()) / n
    wrong = PRIOR * np.stack(
        [replace(model, misleading=0.3).likelihood(x) for x in (model.sample(rng, LABELS[y])[2] for y in drawn)]
    )
    wrong /= wrong.sum(1, keepdims=True)  # another model is not calibrated: the test can fail
    top = wrong.max(1)
    assert abs((wrong.argmax(1) == drawn).mean() - top.mean()) > 3 * np.sqrt((top * (1 - top)).sum()) / n


@models
def test_states(model):
    rng, n = random.Random(2), 20_000
    for label in ("neutral", "anger"):
        states, shown = Counter(), Counter()
        for _ in range(n):
            state, what, values = model.sample(rng, label)
            states[state] += 1
            shown[what] += 1
            assert len(values) == len(model.names)
            assert (state == "misleading") == (what in DISGUISE[label] and state != "absent")
        for what, p in zip(LABELS, model.shown[LABELS.index(label)], strict=True):
            assert abs(shown[what] - n * p) <= 4 * np.sqrt(n * p * (1 - p)) + 1e-9, (label, what)
        assert set(states) == (
            {"clear", "misleading"} if label == "neutral" else {"clear", "faint", "absent", "misleading"}
        )


def test_every_label_takes_as_many_draws():
    """Else the labels of one utterance would shift the noise of the next."""
    after = set()
    for label in LABELS:
        rng = random.Random(5)
        EXPRESSION.sample(rng, label)
        after.add(rng.random())
    assert len(after) == 1


def test_far_away_values_still_have_a_likelihood():
    p = EXPRESSION.likelihood((50.0,) * 8)
    assert np.isfinite(p).all() and p.max() > 0


@pytest.mark.parametrize(
    "change, said",
    [
        ({"absent": -0.1}, "at most 1"),
        ({"absent": 0.7, "misleading": 0.4}, "at most 1"),
        ({"noise": (0.1,) * 7}, "8 positive"),
        ({"noise": (0.0,) * 8}, "8 positive"),
        ({"directions": {**EXPRESSION.directions, "joy": (1.0,)}}, "joy needs 8"),
        ({"masks": {**DISGUISE, "joy": ("joy",)}}, "no mask of its own"),
    ],
)
def test_what_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        replace(EXPRESSION, **change)


def test_of_one_parameter_by_hand():
    model = CueModel(
        ("neutral", "joy"),
        ("smile",),
        {"neutral": (0.0,), "joy": (1.0,)},
        (1.0,),
        0.2,
        0.0,
        {"neutral": ("joy",), "joy": ("neutral",)},
        intensities=(1.0,),
    )
    normal = [np.exp(-0.5 * (0.5 - centre) ** 2) for centre in (0, 1)]
    expected = np.array([normal[0], 0.2 * normal[0] + 0.8 * normal[1]])
    got = model.likelihood((0.5,))
    np.testing.assert_allclose(got / got.sum(), expected / expected.sum())
