"""Advantages, divergences, weights and objectives against written-out numbers, loops, exact expectations, and TRL.

TRL's side of a comparison is its own GRPOTrainer, model included.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from zoo.backbones import LLM, LoRA
from zoo.rl import Objective, Rollout, accumulate_gradients, group_advantages, kl_divergence, roll_out, token_weights

few = settings(max_examples=40, deadline=None)


# ----------------------------------------------------------------------------------------------------------- advantages
def test_advantages_written_out():
    rewards = torch.tensor([[1, 0, 0, 1], [2, 4, 6, 8], [3, 3, 3, 3]])
    expected = torch.tensor(
        [  # (r - mean) / (std + 1e-4), std over n - 1: 0.5773503 and 2.5819889
            [0.8658754, -0.8658754, -0.8658754, 0.8658754],
            [-1.1618500, -0.3872833, 0.3872833, 1.1618500],
            [0, 0, 0, 0],
        ]
    )
    torch.testing.assert_close(group_advantages(rewards), expected, rtol=0, atol=3e-7)
    centred = torch.tensor([[0.5, -0.5, -0.5, 0.5], [-3, -1, 1, 3], [0, 0, 0, 0]])
    assert torch.equal(group_advantages(rewards, "none"), centred)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_equal_rewards_have_no_advantage_at_all(scale):
    """Their mean may be off by rounding, which a small std would blow up."""
    values = [x / 10 for x in range(-20, 21)] + [0.1 + 0.2]
    off = 0
    for n in range(1, 12):
        rewards = torch.tensor(values)[:, None].repeat(1, n)
        off += int((rewards - rewards.mean(1, keepdim=True)).count_nonzero())
        assert (group_advantages(rewards, scale) == 0).all()
    assert off > 50  # rounding does happen
    assert (group_advantages(torch.tensor([[0.3, 0.1 + 0.2]], dtype=torch.float64), scale) == 0).all()


def test_one_answer_has_no_advantage():
    assert torch.equal(group_advantages(torch.tensor([[1.0], [-3.0]])), torch.zeros(2, 1))


rewards_of = st.integers(2, 8).flatmap(
    lambda n: st.lists(st.lists(st.integers(-64, 64), min_size=n, max_size=n), min_size=1, max_size=4)
)  # in eighths: sums are exact, so that equal stays equal


@few
@given(rewards_of, st.integers(-64, 64), st.randoms(use_true_random=False), st.sampled_from(["group", "none"]))
def test_advantages_follow_shifts_and_permutations(rewards, shift, random, scale):
    rewards = torch.tensor(rewards) / 8
    found = group_advantages(rewards, scale)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.mean(1), torch.zeros(len(found)), rtol=0, atol=2e-6)
    torch.testing.assert_close(group_advantages(rewards + shift / 8, scale), found, rtol=1e-4, atol=1e-5)
    order = random.sample(range(rewards.shape[1]), rewards.shape[1])
    torch.testing.assert_close(group_advantages(rewards[:, order], scale), found[:, order], rtol=1e-5, atol=1e-6)
    assert torch.equal((found == 0).all(1), (rewards == rewards[:, :1]).all(1))


# ----------------------------------------------------------------------------------------------------------- divergence
class Toy:
    """Three categorical distributions; every expectation is a sum over all outcomes."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.logits, other, third = torch.randn(3, 7, generator=generator, dtype=torch.float64)
        self.logits = self.logits.clone().requires_grad_()
        self.policy = self.logits.log_softmax(0)
        self.reference, self.older = other.log_softmax(0), third.log_softmax(0)

    def gradient(self, value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, self.logits, retain_graph=True)[0]

    def reverse(self) -> torch.Tensor:
        """KL(policy || reference)"""
        return (self.policy.exp() * (self.policy - self.reference)).sum()

    def forward(self) -> torch.Tensor:
        """KL(reference || policy)"""
        return (self.reference.exp() * (self.reference - self.policy)).sum()

    def expected(self, kind: str, sampler: torch.Tensor) -> torch.Tensor:
        """Mean of the estimates of outcomes drawn from a sampler, which has no gradient."""
        sampler = sampler.detach()
        return (sampler.exp() * kl_divergence(self.policy, self.reference, kind, sampler)).sum()


def test_estimates_are_of_the_reverse_divergence():
    toy = Toy()
    for kind in ("k1", "k3", "k3_corrected"):
        torch.testing.assert_close(toy.expected(kind, toy.policy), toy.reverse(), rtol=0, atol=1e-12)
    assert abs(toy.expected("k2", toy.policy) - toy.reverse()) > 1e-2  # biased
    k1, k2, k3 = (kl_divergence(toy.policy, toy.reference, kind) for kind in ("k1", "k2", "k3"))
    assert (k3 >= 0).all() and (k2 >= 0).all() and (k1 < 0).any()
    for kind in ("k1", "k2", "k3", "k3_corrected"):
        assert (kl_divergence(toy.policy, toy.policy, kind, toy.policy) == 0).all()


def test_expected_gradients_of_estimates_as_losses():
    toy = Toy()
    found = {kind: toy.gradient(toy.expected(kind, toy.policy)) for kind in ("k1", "k2", "k3", "k3_corrected")}
    reverse, forward = toy.gradient(toy.reverse()), toy.gradient(toy.forward())
    assert (reverse - forward).norm() > 0.1
    for kind, expected in (
        ("k1", torch.zeros(7, dtype=torch.float64)),
        ("k2", reverse),
        ("k3", forward),
        ("k3_corrected", reverse),
    ):
        torch.testing.assert_close(found[kind], expected, rtol=0, atol=1e-12)


def test_correction_holds_for_an_older_sampler():
    toy = Toy()
    found = toy.expected("k3_corrected", toy.older)
    torch.testing.assert_close(found, toy.reverse(), rtol=0, atol=1e-12)
    torch.testing.assert_close(toy.gradient(found), toy.gradient(toy.reverse()), rtol=0, atol=1e-12)
    uncorrected = toy.expected("k3", toy.older)
    assert abs(uncorrected - toy.reverse()) > 1e-2


# -------------------------------------------------------------------------------------------------------------- weights
LENGTHS = [[3, 0, 5], [1, 4, 0]]
NORMALIZE = ("sequence", "token", "constant", "sum")


def mask_of(lengths, max_tokens=None):
    lengths = torch.tensor(lengths)
    return torch.arange(max_tokens or int(lengths.max())) < lengths[..., None]


@pytest.mark.parametrize(
    "normalize, per_token",
    [  # of answers with 3, 0, 5, 1, 4, 0 tokens
        ("sequence", [1 / 18, 0, 1 / 30, 1 / 6, 1 / 24, 0]),
        ("token", [1 / 13] * 6),
        ("constant", [1 / 60] * 6),
        ("sum", [1 / 6] * 6),
    ],
)
def test_weights_written_out(normalize, per_token):
    mask = mask_of(LENGTHS)
    found = token_weights(mask, normalize, max_tokens=10)
    torch.testing.assert_close(found, torch.tensor(per_token).view(2, 3, 1) * mask)
    assert found.dtype == torch.float32


def test_no_tokens_at_all():
    for normalize in NORMALIZE:
        assert torch.equal(token_weights(mask_of([[0, 0]], 4), normalize, 4), torch.zeros(1, 2, 4))


@few
@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 6), min_size=n, max_size=n), min_size=2, max_size=5)
    ),
    st.data(),
)
def test_weights_of_the_parts_of_a_step(lengths, data):
    """Processes that know the totals weigh their tokens as one process does."""
    mask = mask_of(lengths, 6)
    cut = data.draw(st.integers(1, len(lengths) - 1))
    answers, tokens = mask[..., 0].numel(), int(mask.sum())
    for normalize in NORMALIZE:
        whole = token_weights(mask, normalize, 6)
        parts = [token_weights(m, normalize, 6, (answers, tokens)) for m in (mask[:cut], mask[cut:])]
        torch.testing.assert_close(torch.cat(parts), whole)
        assert (whole[~mask] == 0).all() and (whole[mask] > 0).all()
        expected = {
            "sequence": int((mask.sum(2) > 0).sum()) / answers,
            "token": float(tokens > 0),
            "constant": tokens / answers / 6,
            "sum": tokens / answers,
        }[normalize]
        assert whole.sum().item() == pytest.approx(expected, rel=1e-5)


# ----------------------------------------------------------------------------------------------------------- objectives
def case(seed=0, lengths=LENGTHS, spread=0.5):
    """Log-probabilities of policy, sampler and reference, and rewards, of ragged answers; 0 where there is no token."""
    generator = torch.Generator().manual_seed(seed)
    mask = mask_of(lengths)
    policy = torch.randn(mask.shape, generator=generator, dtype=torch.float64) - 2
    old, reference = (
        policy + spread * torch.randn(mask.shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    rewards = torch.randn(mask.shape[:2], generator=generator)
    policy, old, reference = (x.masked_fill(~mask, 0.0) for x in (policy, old, reference))
    return SimpleNamespace(mask=mask, policy=policy.requires_grad_(), old=old, reference=reference, rewards=rewards)


def by_loops(objective, policy, old, reference, signal, mask):
    """The loss, the divergence and the clipped shares of answers (lists of numbers), as the docstrings say them."""
    answers = [
        (a, [t for t, real in enumerate(row) if real], p, o, r)
        for signals, rows, ps, os, rs in zip(signal, mask, policy, old, reference, strict=True)
        for a, row, p, o, r in zip(signals, rows, ps, os, rs, strict=True)
    ]
    tokens = sum(len(steps) for _, steps, *_ in answers)
    gain, kl, low, high = 0.0, 0.0, 0.0, 0.0

    def clipped(ratio, a):
        bounded = min(max(ratio, 1 - objective.epsilon), 1 + objective.epsilon_high)
        term = min(ratio * a, bounded * a)
        if objective.dual_clip is not None and a < 0:
            term = max(term, objective.dual_clip * a)
        return term, ratio < 1 - objective.epsilon and a < 0, ratio > 1 + objective.epsilon_high and a > 0

    for a, steps, p, o, r in answers:
        weight = {
            "sequence": 1 / max(len(steps), 1) / len(answers),
            "token": 1 / tokens,
            "constant": 1 / 10 / len(answers),
            "sum": 1 / len(answers),
        }[objective.normalize]
        if objective.kind == "reinforce_group":
            gain += sum(weight * a * p[t] for t in steps)
        elif objective.kind == "grpo_clip":
            for t in steps:
                term, below, above = clipped(math.exp(p[t] - o[t]), a)
                gain, low, high = gain + weight * term, low + weight * below, high + weight * above
        elif steps:
            log_ratio = sum(p[t] - o[t] for t in steps)
            if objective.normalize == "sequence":
                log_ratio /= len(steps)
            term, below, above = clipped(math.exp(log_ratio), a)
            gain, low, high = (x + y / len(answers) for x, y in ((gain, term), (low, below), (high, above)))
        for t in steps if objective.beta else ():
            d = r[t] - p[t]
            k3 = math.exp(d) - d - 1
            estimates = {"k1": -d, "k2": d * d / 2, "k3": k3, "k3_corrected": k3 * math.exp(p[t] - o[t])}
            kl += weight * estimates[objective.kl]
    return -gain + objective.beta * kl, {"kl": kl, "clip_ratio/low": low, "clip_ratio/high": high}


PPO_REWARD, PPO_ADVANTAGE = ({"kind": kind, "normalize": "sum"} for kind in ("ppo_reward", "ppo_advantage"))
VARIANTS = [
    *({"kind": kind, "normalize": normalize} for kind in ("grpo_clip", "reinforce_group") for normalize in NORMALIZE),
    *(
        {"kind": kind, "normalize": normalize}
        for kind in ("ppo_reward", "ppo_advantage")
        for normalize in ("sequence", "sum")
    ),
    {"epsilon": 0.1, "epsilon_high": 0.4},
    {"epsilon": 0.3, "epsilon_high": 0.0},
    {"epsilon": 0.0, "epsilon_high": 0.2},
    {"dual_clip": 1.5},
    {"dual_clip": 1.5, "epsilon_high": 0.9},
    PPO_ADVANTAGE | {"dual_clip": 1.5},
    {"positive_only": True},
    PPO_REWARD | {"positive_only": True},
    *({"beta": 0.3, "kl": kl} for kl in ("k1", "k2", "k3", "k3_corrected")),
    {"kind": "reinforce_group", "normalize": "sum", "beta": 0.3},
    PPO_REWARD | {"beta": 0.3},
    {"kind": "ppo_advantage", "normalize": "sequence", "beta": 0.3, "epsilon": 0.1, "epsilon_high": 0.3},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_loss_is_that_of_plain_loops(variant):
    objective = Objective(**variant)
    clipped = 0.0
    for seed in range(4):
        x = case(seed)
        signal = objective.advantages(x.rewards)
        reference = x.reference if objective.beta else None
        weights = token_weights(x.mask, objective.normalize, 10)
        loss, counted = objective.loss(x.policy, x.old, reference, signal, weights.double())
        lists = [v.tolist() for v in (x.policy, x.old, x.reference, signal.double(), x.mask)]
        expected, counts = by_loops(objective, *lists[:3], lists[3], lists[4])
        assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-7)
        assert set(counted) == set(objective.statistics) and ("kl" in counted) == bool(objective.beta)
        assert ("clip_ratio/low" in counted) == (objective.kind != "reinforce_group")
        for name, value in counted.items():
            assert value.item() == pytest.approx(counts[name], rel=1e-6, abs=1e-9) and not value.requires_grad
        clipped += counts["clip_ratio/low"] + counts["clip_ratio/high"]
    assert clipped > 0 or objective.kind == "reinforce_group"  # the bounds were at work


def one_token(objective, ratio, signal):
    """Loss and its gradient by the log-probability, of a single token."""
    policy = torch.tensor([[[math.log(ratio) - 1]]], dtype=torch.float64, requires_grad=True)
    old, weights = torch.full((1, 1, 1), -1.0, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    loss, _ = objective.loss(policy, old, None, torch.tensor([[signal]], dtype=torch.float64), weights)
    loss.backward()
    return loss.item(), policy.grad.item()


@pytest.mark.parametrize(
    "ratio, signal, loss, gradient",
    [  # epsilon 0.1, epsilon_high 0.4, dual_clip 3
        (1.3, 2.0, -2.6, -2.6),
        (1.5, 2.0, -2.8, 0.0),  # bounded by 1 + epsilon_high
        (0.5, 2.0, -1.0, -1.0),  # a good answer that has become rare is never bounded
        (0.95, -2.0, 1.9, 1.9),
        (0.8, -2.0, 1.8, 0.0),  # bounded by 1 - epsilon
        (2.5, -2.0, 5.0, 5.0),  # left open by the clip
        (3.5, -2.0, 6.0, 0.0),  # bounded by dual_clip
        (3.5, 0.0, 0.0, 0.0),
    ],
)
def test_where_the_ratio_is_bounded(ratio, signal, loss, gradient):
    objective = Objective(epsilon=0.1, epsilon_high=0.4, dual_clip=3.0)
    assert one_token(objective, ratio, signal) == pytest.approx((loss, gradient), abs=1e-12)


@pytest.mark.parametrize("kind", ["grpo_clip", "reinforce_group", "ppo_reward", "ppo_advantage"])
@pytest.mark.parametrize("normalize", ["sequence", "sum"])
def test_the_first_update_is_the_policy_gradient(kind, normalize):
    """Ratio exactly 1: nothing is clipped, and each log-probability is pulled by weight times signal."""
    objective = (
        Objective(kind, normalize, epsilon=0.0, epsilon_high=0.0)
        if kind != "reinforce_group"
        else (Objective(kind, normalize))
    )
    x = case()
    signal, weights = objective.advantages(x.rewards), token_weights(x.mask, normalize, 10).double()
    loss, counted = objective.loss(x.policy, x.policy.detach(), None, signal, weights)
    loss.backward()
    torch.testing.assert_close(x.policy.grad, -weights * signal[..., None], rtol=1e-6, atol=0)
    assert all(v == 0 for v in counted.values())


def test_rewards_in_place_of_advantages_push_everything_up():
    x = case()
    rewards = x.rewards.abs() + 0.1
    x.old = x.policy.detach()
    for kind, all_up in (("ppo_reward", True), ("ppo_advantage", False)):
        objective = Objective(kind, "sum")
        signal = objective.advantages(rewards)
        (gradient,) = torch.autograd.grad(
            objective.loss(x.policy, x.old, None, signal, token_weights(x.mask, "sum", 10))[0], x.policy
        )
        assert (gradient[x.mask] < 0).all() == all_up
    assert torch.equal(Objective("ppo_reward", "sum").advantages(rewards), rewards)


def test_group_reinforce_looks_at_no_sampler():
    x, objective = case(), Objective("reinforce_group", "sum")
    signal, weights = objective.advantages(x.rewards), token_weights(x.mask, "sum", 10)
    losses = [objective.loss(x.policy, old, None, signal, weights)[0].item() for old in (x.old, x.old - 5, x.old * 9)]
    assert losses[0] == losses[1] == losses[2]


def test_only_answers_above_the_mean():
    x = case()
    whole, part = Objective().advantages(x.rewards), Objective(positive_only=True).advantages(x.rewards)
    assert (whole < 0).any() and torch.equal(part, torch.where(whole > 0, whole, 0.0))
    objective = Objective(positive_only=True)
    objective.loss(x.policy, x.policy.detach(), None, part, token_weights(x.mask, "token", 10))[0].backward()
    pulled = x.policy.grad.abs().sum(2) > 0
    assert torch.equal(pulled, (whole > 0) & x.mask.any(2))


def test_what_masked_places_hold_does_not_matter():
    x, objective = case(), Objective(beta=0.1, kl="k3_corrected")
    signal, weights = objective.advantages(x.rewards), token_weights(x.mask, "token", 10)
    losses = []
    for junk in (0.0, 5.0):
        policy, old, reference = (
            v.detach().masked_fill(~x.mask, f * junk).requires_grad_()
            for v, f in ((x.policy, 1), (x.old, -9), (x.reference, 9))
        )
        loss, _ = objective.loss(policy, old, reference, signal, weights)
        loss.backward()
        assert (policy.grad[~x.mask] == 0).all()
        losses.append(loss.item())
    assert losses[0] == losses[1]


def test_groups_that_need_no_pass():
    signal = torch.tensor([[0.0, 0.0], [1.0, -1.0], [0.0, 1.0]])
    assert Objective().without_gradient(signal).tolist() == [True, False, False]
    assert Objective("reinforce_group", "sum").without_gradient(signal).tolist() == [True, False, False]
    assert Objective(beta=1e-6).without_gradient(signal).tolist() == [False] * 3  # the divergence still pulls


def test_settings_that_make_no_sense():
    for wrong, message in (
        ({"epsilon": 1.1}, "epsilon"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"epsilon_high": -0.1}, "epsilon_high"),
        ({"beta": -1.0}, "beta"),
        ({"dual_clip": 1.0}, "above 1"),
        ({"kind": "ppo_reward"}, "sum or sequence, not token"),
        ({"kind": "ppo_advantage", "normalize": "constant"}, "sum or sequence, not constant"),
    ):
        with pytest.raises(ValueError, match=message):
            Objective(**wrong)
    x = case()
    with pytest.raises(ValueError, match="needs the reference"):
        Objective(beta=0.1).loss(x.policy, x.old, None, x.rewards, token_weights(x.mask, "token", 10))


# ------------------------------------------------------------------------------------------------------------------ TRL
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS, GROUP, TOKENS = 2, 4, 6  # prompts of a step (each a pass of its own), answers of each, longest answer
LOSSES = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}


def fill(model):
    """Adapters far from zero, the same ones for the same names."""
    generator = torch.Generator().manual_seed(1)
    for name, p in sorted(model.named_parameters()):
        if "lora_" in name:
            p.data = 0.1 * torch.randn(p.shape, generator=generator)


@pytest.fixture(scope="module")
def both(tiny_qwen2, tmp_path_factory):
    """TRL's trainer and our language model, of the same weights."""
    torch.manual_seed(0)
    ours = LLM(str(tiny_qwen2))
    ours.add_lora(LoRA(r=4, alpha=8, dropout=0.0, targets=rf"model\.layers\.\d+\.\w+\.({'|'.join(LINEARS)})"))
    fill(ours.model)
    folder = tmp_path_factory.mktemp("trl")
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32),
        reward_funcs=lambda completion_ids, **_: [float(sum(ids) % 5) for ids in completion_ids],
        train_dataset=Dataset.from_list([{"prompt": "x"}]),
        processing_class=ours.tokenizer,
        peft_config=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM"),
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=GROUP,
            gradient_accumulation_steps=STEPS,
            num_generations=GROUP,
            max_completion_length=TOKENS,
            beta=0.04,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
    )
    fill(trainer.model)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = STEPS
    return trainer, ours


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def agree(ours, theirs):
    assert ours.keys() == theirs.keys() and len(ours) == 2 * 2 * 7
    for name, one in ours.items():
        assert theirs[name].norm() > 0 and (one - theirs[name]).norm() <= 1e-5 * theirs[name].norm(), name


def step_of_trl(trainer, whole, passes):
    """Loss of a step, summed over its passes, and the gradient they leave."""
    rows = len(whole["completion_ids"]) // passes
    trainer.current_gradient_accumulation_steps = passes
    trainer.args.steps_per_generation = passes
    loss = 0.0
    for i in range(passes):
        part = {k: v[i * rows : (i + 1) * rows] if v.ndim else v for k, v in whole.items()}
        one = trainer._compute_loss(trainer.model, part)
        one.backward()
        loss += one.item()
    return loss, gradients(trainer.model)


def step_of_ours(llm, whole, objective, on_policy):
    """The same of the same inputs, through `accumulate`."""
    ids, mask = (whole[k][::GROUP] for k in ("prompt_ids", "prompt_mask"))
    answers, real = (whole[k].view(STEPS, GROUP, -1) for k in ("completion_ids", "completion_mask"))
    old = whole["old_per_token_logps"].view(real.shape) if "old_per_token_logps" in whole else torch.zeros(real.shape)
    rollout = Rollout(answers, real.bool(), old, real.bool().any(2), torch.zeros(real.shape))
    weights = token_weights(rollout.loss_mask, objective.normalize, TOKENS)
    sums = accumulate_gradients(
        llm,
        [lambda i=i: llm.encode(ids[i : i + 1], mask[i : i + 1]) for i in range(STEPS)],
        rollout,
        whole["advantages"].view(STEPS, GROUP),
        weights,
        objective,
        on_policy=on_policy,
    )
    return sums, gradients(llm.model)


def inputs_of_trl(trainer, off_policy):
    """Ragged prompts and answers, one answer left out (as a truncated one is), advantages, and log-probabilities of
    sampler and reference."""
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(5, 400, (STEPS, 7), generator=generator).repeat_interleave(GROUP, 0)
    lengths = torch.tensor([7, 4]).repeat_interleave(GROUP)
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": (torch.arange(7) >= 7 - lengths[:, None]).long(),
        "completion_ids": torch.randint(5, 400, (STEPS * GROUP, TOKENS), generator=generator),
        "completion_mask": mask_of([3, 6, 1, 5, 0, 2, 4, 6]).long(),
        "advantages": group_advantages(torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 3.0, -1.0]])).flatten(),
    }
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    rows = [torch.cat([inputs[f"prompt_{k}"], inputs[f"completion_{k}"]], 1) for k in ("ids", "mask")]
    with torch.no_grad():
        score = trainer._get_per_token_logps_and_entropies
        policy = score(trainer.model, *rows, TOKENS)[0]
        with trainer.model.disable_adapter():
            inputs["ref_per_token_logps"] = score(trainer.model, *rows, TOKENS)[0]
    if off_policy:
        inputs["old_per_token_logps"] = policy + 0.4 * torch.randn(policy.shape, generator=generator)
    return inputs


@pytest.mark.parametrize("off_policy", [False, True], ids=["on policy", "off policy"])
@pytest.mark.parametrize("kl", [None, "k3", "k3_corrected"])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_and_gradient_are_those_of_trl(both, loss_type, kl, off_policy):
    """Asymmetric clip, and TRL's ``delta``: it bounds the ratio from above before the minimum is taken, which for
    delta >= 1 + epsilon_high is the dual clip."""
    trainer, llm = both
    beta = 0.0 if kl is None else 0.04
    trainer.loss_type, trainer.beta, trainer.args.use_bias_correction_kl = loss_type, beta, kl == "k3_corrected"
    trainer.epsilon_low, trainer.epsilon_high, trainer.args.delta = 0.1, 0.3, 1.5
    whole = inputs_of_trl(trainer, off_policy)
    passes = 1 if loss_type == "bnpo" else STEPS  # TRL averages over the tokens of each pass: only one is a mean of all
    loss, expected = step_of_trl(trainer, whole, passes)
    objective = Objective("grpo_clip", LOSSES[loss_type], 0.1, 0.3, 1.5, beta, kl or "k3")
    sums, found = step_of_ours(llm, whole, objective, on_policy=not off_policy)
    assert sums["loss"].item() == pytest.approx(loss, rel=1e-5, abs=1e-6)  # terms cancel; CPUs add up in another order
    agree(found, expected)
    if off_policy:  # every bound was at work
        without = Objective("grpo_clip", LOSSES[loss_type], 0.1, 0.3, None, beta, kl or "k3")
        assert abs(step_of_ours(llm, whole, without, on_policy=False)[0]["loss"] - loss) > 1e-3 * abs(loss)
        assert sums["clip_ratio/low"] > 0 and sums["clip_ratio/high"] > 0


def test_a_whole_step_is_that_of_trl(both, monkeypatch):
    """What TRL samples, scores and leaves out as truncated, and its loss, from rewards to gradient."""
    trainer, llm = both
    ends = list(range(0, 640, 8))
    monkeypatch.setattr(trainer, "eos_token_ids", ends)
    monkeypatch.setattr(trainer.generation_config, "eos_token_id", ends)
    monkeypatch.setattr(trainer, "mask_truncated_completions", True)
    monkeypatch.setattr(trainer, "loss_type", "dapo")
    monkeypatch.setattr(trainer, "beta", 0.04)
    monkeypatch.setattr(trainer.args, "use_bias_correction_kl", True)
    monkeypatch.setattr(trainer.args, "delta", None)
    torch.manual_seed(1)
    texts = ["we did it", "where is the ladder we need"]
    whole = trainer._generate_and_score_completions([{"prompt": t} for t in texts for _ in range(GROUP)])
    whole = {k: v for k, v in whole.items() if isinstance(v, torch.Tensor)}
    loss, expected = step_of_trl(trainer, whole, STEPS)

    ids = whole["completion_ids"].view(STEPS, GROUP, -1)
    end = torch.isin(ids, torch.tensor(ends))
    mask = end.cumsum(2) - end.int() == 0  # up to the first end
    lengths, finished = mask.sum(2), end.any(2)
    assert 0 < finished.sum() < finished.numel() and lengths.unique().numel() > 2
    drawn = SimpleNamespace(
        ids=ids, mask=mask, logprobs=torch.zeros(ids.shape), finished=finished, entropy=torch.zeros(ids.shape)
    )
    rollout = roll_out(
        SimpleNamespace(sample=lambda *a, **k: drawn), None, GROUP, max_new_tokens=TOKENS, mask_truncated=True
    )
    assert torch.equal(rollout.loss_mask.long(), whole["completion_mask"].view(mask.shape))
    objective = Objective(
        normalize="token", beta=0.04, kl="k3_corrected", epsilon=trainer.epsilon_low, epsilon_high=trainer.epsilon_high
    )
    rewards = [
        [float(sum(row[:n]) % 5) for row, n in zip(*group, strict=True)]
        for group in zip(ids.tolist(), lengths.tolist(), strict=True)
    ]
    signal = objective.advantages(torch.tensor(rewards))
    assert signal.abs().min(1).values.max() > 0
    torch.testing.assert_close(signal.flatten(), whole["advantages"], rtol=1e-5, atol=1e-6)
    sums, found = step_of_ours(llm, whole | {"advantages": signal}, objective, on_policy=True)
    assert sums["loss"].item() == pytest.approx(loss, rel=1e-5, abs=1e-6)  # terms cancel; CPUs add up in another order
    agree(found, expected)


@pytest.mark.parametrize("wrong", [{"kind": "grpo"}, {"normalize": "mean"}, {"kl": "k4"}])
def test_unknown_words_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"unknown {name} '{value}'; expected one of"):
        Objective(**wrong)
