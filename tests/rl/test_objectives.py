"""Objectives and advantages that are off by default, against written-out formulas and TRL's own trainer."""

import math

import pytest
import torch

from tests.rl.test_grpo import LOSSES, TOKENS, agree, both, case, inputs_of_trl, step_of_ours, step_of_trl  # noqa: F401
from zoo.rl import Objective, group_advantages, token_weights

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 4.0, 6.0, 8.0], [3.0, 3.0, 3.0, 3.0]])


# ----------------------------------------------------------------------------------------------------------- advantages
def test_scaled_by_the_deviation_of_the_whole_step():
    """Of all rewards of the step, those of other processes included; equal rewards have no advantage all the same."""
    mean = sum(REWARDS.flatten().tolist()) / 12
    deviation = math.sqrt(sum((r - mean) ** 2 for r in REWARDS.flatten().tolist()) / 11)
    centred = torch.tensor([[0.5, -0.5, -0.5, 0.5], [-3, -1, 1, 3], [0, 0, 0, 0]])
    torch.testing.assert_close(group_advantages(REWARDS, "batch"), centred / (deviation + 1e-4))
    part = group_advantages(REWARDS[:1], "batch", step_rewards=REWARDS)
    torch.testing.assert_close(part, centred[:1] / (deviation + 1e-4))
    assert torch.equal(Objective().advantages(REWARDS[:1], "batch", step_rewards=REWARDS), part)


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_each_answer_against_the_others(scale):
    found = group_advantages(REWARDS, scale, baseline="leave_one_out")
    for i, row in enumerate(REWARDS.tolist()):
        for j, reward in enumerate(row):
            others = row[:j] + row[j + 1 :]
            expected = reward - sum(others) / len(others)
            divisor = {"none": 1.0, "group": REWARDS[i].std() + 1e-4, "batch": REWARDS.std() + 1e-4}[scale]
            assert found[i, j].item() == pytest.approx(float(expected / divisor), abs=1e-6)
    assert torch.equal(group_advantages(torch.ones(2, 1), baseline="leave_one_out"), torch.zeros(2, 1))


def test_unknown_words():
    with pytest.raises(ValueError, match="unknown baseline 'mean'; expected one of group, leave_one_out"):
        group_advantages(REWARDS, baseline="mean")


# ----------------------------------------------------------------------------------------------------------- objectives
@pytest.mark.parametrize("normalize", ["sequence", "token", "constant", "sum"])
@pytest.mark.parametrize("kind", ["grpo_clip", "cispo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_loss_is_that_of_plain_loops(kind, level, normalize):
    high = 1.2 if kind == "cispo" else 0.3
    objective = Objective(kind, normalize, 0.1, high, importance_sampling_level=level)
    bounded = 0
    for seed in range(4):
        x = case(seed)
        advantages = objective.advantages(x.rewards)
        weights = token_weights(x.mask, normalize, 10).double()
        loss, counted = objective.loss(x.policy, x.old, None, advantages, weights)
        gain, clipped = 0.0, 0.0
        for b in range(x.mask.shape[0]):
            for n in range(x.mask.shape[1]):
                steps = [t for t in range(x.mask.shape[2]) if x.mask[b, n, t]]
                log_ratios = {t: float(x.policy[b, n, t] - x.old[b, n, t]) for t in steps}
                a = float(advantages[b, n])
                for t in steps:
                    mean = sum(log_ratios.values()) / len(steps)
                    ratio = math.exp(mean if level == "sequence" else log_ratios[t])
                    weight = float(weights[b, n, t])
                    if kind == "cispo":
                        gain += weight * min(ratio, high) * a * float(x.policy[b, n, t])
                        clipped += weight * (ratio > high and a > 0)
                    else:
                        gain += weight * min(ratio * a, min(max(ratio, 0.9), 1.3) * a)
                        clipped += weight * (ratio > 1.3 and a > 0)
        assert loss.item() == pytest.approx(-gain, rel=1e-6, abs=1e-7)
        name = "cispo_clip_ratio" if kind == "cispo" else "clip_ratio/high"
        assert set(counted) == set(objective.statistics) and counted[name].item() == pytest.approx(clipped, abs=1e-7)
        bounded += clipped > 0
    assert bounded


def test_a_bounded_weight_keeps_its_gradient():
    """CISPO beyond its bound: epsilon_high A for every token, where the clipped objective has none."""
    policy = torch.tensor([[[math.log(9.0) - 1]]], dtype=torch.float64, requires_grad=True)
    old, one = torch.full((1, 1, 1), -1.0, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    for objective, expected in ((Objective("cispo", epsilon_high=5.0), -10.0), (Objective(), 0.0)):
        (gradient,) = torch.autograd.grad(objective.loss(policy, old, None, 2 * one[0], one)[0], policy)
        assert gradient.item() == pytest.approx(expected)


@pytest.mark.parametrize("off_policy", [False, True], ids=["on policy", "off policy"])
@pytest.mark.parametrize("variant", ["gspo", "gspo by tokens", "cispo", "entropy", "entropy, dr_grpo"])
def test_loss_and_gradient_are_those_of_trl(both, variant, off_policy, monkeypatch):  # noqa: F811
    trainer, llm = both
    loss_type = {"gspo": "grpo", "gspo by tokens": "dapo", "entropy, dr_grpo": "dr_grpo"}.get(variant, "dapo")
    level = "sequence" if variant.startswith("gspo") else "token"
    high = 1.2 if variant == "cispo" else 0.3
    coefficient = 0.05 if variant.startswith("entropy") else 0.0
    monkeypatch.setattr(trainer, "loss_type", "cispo" if variant == "cispo" else loss_type)
    monkeypatch.setattr(trainer, "importance_sampling_level", level)
    monkeypatch.setattr(trainer, "entropy_coef", coefficient)
    monkeypatch.setattr(trainer, "_entropy_bonus_enabled", bool(coefficient))
    monkeypatch.setattr(trainer, "beta", 0.0)
    monkeypatch.setattr(trainer, "epsilon_low", 0.1)
    monkeypatch.setattr(trainer, "epsilon_high", high)
    monkeypatch.setattr(trainer.args, "delta", None)
    whole = inputs_of_trl(trainer, off_policy)
    passes = 1 if coefficient else 2  # TRL's bonus is a mean over each pass
    loss, expected = step_of_trl(trainer, whole, passes)
    kind = "cispo" if variant == "cispo" else "grpo_clip"
    objective = Objective(kind, LOSSES[loss_type], 0.1, high, importance_sampling_level=level, entropy_coef=coefficient)
    sums, found = step_of_ours(llm, whole, objective, on_policy=not off_policy)
    assert sums["loss"].item() == pytest.approx(loss, rel=1e-5, abs=1e-6)
    agree(found, expected)
    plain = Objective(normalize=LOSSES[loss_type], epsilon=0.1, epsilon_high=0.3)
    other = step_of_ours(llm, whole, plain, on_policy=not off_policy)
    if off_policy or coefficient:  # it is another objective
        assert abs(other[0]["loss"].item() - loss) > 1e-4


def test_entropy_of_the_whole_distribution(both):  # noqa: F811
    """H = - sum p log p of the tokens' distributions at the temperature, from logits of every position."""
    _, llm = both
    ids = torch.randint(5, 400, (2, 7), generator=torch.Generator().manual_seed(0))
    answers = torch.randint(5, 400, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(4) < torch.tensor([[4, 2, 1], [0, 3, 4]])[..., None]
    prefix = llm.encode(ids, torch.ones_like(ids))
    logprobs, entropies = llm.logprobs_and_entropies(prefix, answers, mask, 0.7)
    assert torch.equal(logprobs, llm.logprobs(prefix, answers, mask, 0.7))
    assert (entropies[~mask] == 0).all()
    for b in range(2):
        for n in range(3):
            row = torch.cat([ids[b], answers[b, n]])[None]
            logp = (llm.causal_lm(input_ids=row).logits[0, 6:-1].float() / 0.7).log_softmax(-1)
            expected = -(logp.exp() * logp).sum(-1)
            torch.testing.assert_close(entropies[b, n][mask[b, n]], expected[mask[b, n]], rtol=1e-4, atol=1e-4)


def test_the_bonus_pulls_also_where_no_answer_is_better():
    x = case()
    assert not Objective(entropy_coef=0.1).without_gradient(torch.zeros(2, 3)).any()
    assert Objective().without_gradient(torch.zeros(2, 3)).all() and TOKENS and x.mask.any()


# ---------------------------------------------------------------------------------------------------------- adaptive KL
@pytest.mark.parametrize(
    "kl, factor",
    [  # target 0.1, 50 answers of a horizon of 1000: 1 + error x 0.05, the error kept within 0.2
        (0.1, 1.0),
        (0.11, 1 + 0.1 * 0.05),
        (0.09, 1 - 0.1 * 0.05),
        (5.0, 1 + 0.2 * 0.05),
        (0.0, 1 - 0.2 * 0.05),
    ],
)
def test_the_weight_of_the_divergence_follows_its_target(kl, factor):
    objective = Objective(beta=0.04, target_kl=0.1, kl_horizon=1000)
    assert objective.adapted_beta(0.02, kl, 50) == pytest.approx(0.02 * factor, rel=1e-12)
    assert Objective(beta=0.04).adapted_beta(0.02, kl, 50) == 0.02


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"kind": "reinforce_group", "importance_sampling_level": "sequence"}, "no ratio"),
        ({"kind": "ppo_reward", "normalize": "sum", "importance_sampling_level": "sequence"}, "one ratio per answer"),
        ({"kind": "cispo"}, "at least 1, such as 5"),
        ({"kind": "cispo", "epsilon_high": 5.0, "dual_clip": 2.0}, "no dual_clip"),
        ({"target_kl": 0.1}, "a beta above 0 to begin with"),
        ({"entropy_coef": -1.0}, "entropy_coef >= 0"),
        ({"importance_sampling_level": "answer"}, "expected one of token, sequence"),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        Objective(**wrong)
