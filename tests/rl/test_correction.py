"""Truncated importance sampling against its formula written out, and what it repairs."""

import math

import pytest
import torch

from zoo.rl.correction import correction_weights, mismatch

TRAINER = torch.log(torch.tensor([[[0.5, 0.2, 0.9], [0.4, 0.3, 0.1]]]))
SAMPLER = torch.log(torch.tensor([[[0.25, 0.4, 0.9], [0.1, 0.3, 0.1]]]))
MASK = torch.tensor([[[True, True, True], [True, True, False]]])  # ratios 2, .5, 1 and 4, 1


@pytest.mark.parametrize(
    ("kind", "per_answer", "threshold", "expected"),
    [
        ("none", False, 1.5, [[1, 1, 1], [1, 1, 0]]),
        ("truncate", False, 3.0, [[2, 0.5, 1], [3, 1, 0]]),
        ("mask", False, 3.0, [[2, 0.5, 1], [0, 1, 0]]),
        ("truncate", True, 3.0, [[1, 1, 1], [3, 3, 0]]),  # 2 x .5 x 1 and 4 x 1
        ("mask", True, 3.0, [[1, 1, 1], [0, 0, 0]]),
        ("mask", True, 5.0, [[1, 1, 1], [4, 4, 0]]),
    ],
)
def test_written_out(kind, per_answer, threshold, expected):
    found = correction_weights(TRAINER, SAMPLER, MASK, kind, threshold, per_answer)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float32), rtol=1e-5, atol=0)


def test_what_is_masked_does_not_matter():
    wild = SAMPLER.masked_fill(~MASK, -1e30)
    for per_answer in (False, True):
        found = correction_weights(TRAINER, wild, MASK, "truncate", 3.0, per_answer)
        assert torch.equal(found, correction_weights(TRAINER, SAMPLER, MASK, "truncate", 3.0, per_answer))


def test_weighted_samples_have_the_trainers_mean():
    """Over all outcomes of a distribution, the sampler's mean of r f is the trainer's mean of f, if nothing is cut."""
    generator = torch.Generator().manual_seed(0)
    trainer, sampler, values = torch.randn(3, 1, 7, 1, generator=generator)
    trainer, sampler = trainer.log_softmax(1), sampler.log_softmax(1)  # one token, seven answers
    weights = correction_weights(trainer, sampler, torch.ones(1, 7, 1, dtype=torch.bool), "truncate", 1e6)
    expected = (trainer.exp() * values).sum()
    torch.testing.assert_close((sampler.exp() * weights * values).sum(), expected)
    assert abs((sampler.exp() * values).sum() - expected) > 0.05


def test_no_gradient():
    trainer = TRAINER.clone().requires_grad_()
    assert not correction_weights(trainer, SAMPLER, MASK, "truncate", 2.0).requires_grad


def test_mismatch():
    total, largest, tokens = mismatch(TRAINER, SAMPLER, MASK)
    assert float(total) == pytest.approx(2 * math.log(2) + math.log(4)) and int(tokens) == 5
    assert float(largest) == pytest.approx(math.log(4))
    assert [float(x) for x in mismatch(TRAINER, SAMPLER, torch.zeros_like(MASK))] == [0, 0, 0]


@pytest.mark.parametrize(("kind", "threshold"), [("clip", 2.0), ("truncate", 0.0), ("mask", math.nan)])
def test_refused(kind, threshold):
    with pytest.raises(ValueError, match="sampler_"):
        correction_weights(TRAINER, SAMPLER, MASK, kind, threshold)
