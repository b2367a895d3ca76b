"""The two passes of a step: any split of it, into passes or processes, leaves the gradient of a single pass."""

import multiprocessing
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from zoo.backbones import LLM, LoRA
from zoo.rl import Objective, Rollout, accumulate_gradients, group_advantages, roll_out, token_weights

PROMPTS = [5, 1, 9, 4]  # lengths; those of the answers:
ANSWERS = [[3, 1, 4], [2, 2, 2], [6, 0, 3], [1, 5, 2]]
REWARDS = torch.tensor([[1.0, 0.0, 0.5], [0.3, 0.3, 0.3], [0.0, 2.0, 1.0], [1.0, 1.0, 0.0]])  # the second group is dead
DEAD = 1
OBJECTIVES = {
    "clip": Objective(epsilon=0.1, epsilon_high=0.3),
    "clip, divergence": Objective(normalize="sequence", beta=0.04, kl="k3_corrected"),
    "constant": Objective(normalize="constant", beta=0.04),
    "merit": Objective("reinforce_group", "sum"),
    "merit ppo": Objective("ppo_advantage", "sum"),
}


@pytest.fixture(scope="module")
def llm(tiny_qwen2):
    """With adapters far from zero."""
    model = LLM(str(tiny_qwen2))
    model.add_lora(
        LoRA(
            r=4, alpha=8, dropout=0.0, targets=r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
        )
    )
    generator = torch.Generator().manual_seed(1)
    for name, p in sorted(model.named_parameters()):
        if ".lora_" in name:
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    return model


def step_of(lengths=ANSWERS, seed=3):
    """Ragged prompts and answers, and a sampler that was another policy."""
    generator = torch.Generator().manual_seed(seed)
    p, t = max(PROMPTS), max(max(row) for row in lengths)
    ids = torch.randint(3, 400, (len(PROMPTS), p), generator=generator)
    real = torch.arange(p) >= p - torch.tensor(PROMPTS)[:, None]
    answers = torch.randint(3, 400, (len(lengths), len(lengths[0]), t), generator=generator)
    mask = torch.arange(t) < torch.tensor(lengths)[..., None]
    return ids, real, Rollout(answers, mask, torch.zeros(mask.shape), mask.any(2), torch.zeros(mask.shape))


def gradients(llm):
    found = {name: p.grad.clone() for name, p in llm.named_parameters() if p.grad is not None}
    llm.zero_grad()
    return found


def agree(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys() and len(found) == 2 * 2 * 7
    for name, one in expected.items():
        assert one.norm() > 0 and (found[name] - one).norm() <= tolerance * one.norm(), name


def at_once(llm, objective, ids, real, rollout, signal, on_policy=True, temperature=1.0):
    """Loss and gradient without `accumulate`: everything, the dead group too, in one pass."""
    weights = token_weights(rollout.loss_mask, objective.normalize, 8)
    reference = None
    if objective.beta:
        with torch.no_grad(), llm.reference():
            reference = llm.logprobs(llm.encode(ids, real), rollout.ids, rollout.loss_mask, temperature)
    logprobs = llm.logprobs(llm.encode(ids, real), rollout.ids, rollout.loss_mask, temperature)
    old = logprobs.detach() if on_policy else rollout.old_logprobs
    loss, counted = objective.loss(logprobs, old, reference, signal, weights)
    loss.backward()
    return {"loss": loss.item()} | {name: v.item() for name, v in counted.items()}, gradients(llm)


def in_passes(llm, objective, ids, real, rollout, signal, sizes, totals=None, **options):
    """The same with `accumulate`, in passes over so many prompts each."""
    weights = token_weights(rollout.loss_mask, objective.normalize, 8, totals)
    stops = torch.tensor(sizes).cumsum(0).tolist()
    batches = [lambda a=b - n, b=b: llm.encode(ids[a:b], real[a:b]) for n, b in zip(sizes, stops, strict=True)]
    sums = accumulate_gradients(llm, batches, rollout, signal, weights, objective, **options)
    return {name: v.item() for name, v in sums.items()}, gradients(llm)


# ------------------------------------------------------------------------------------------------------------ the split
@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_split_leaves_the_gradient_of_one_pass(llm, name):
    objective, (ids, real, rollout) = OBJECTIVES[name], step_of()
    signal = objective.advantages(REWARDS)
    sums, expected = at_once(llm, objective, ids, real, rollout, signal)
    for sizes in ([4], [1, 1, 1, 1], [3, 1], [1, 3], [2, 2]):
        found, gradient = in_passes(llm, objective, ids, real, rollout, signal, sizes)
        agree(gradient, expected)
        assert found == pytest.approx(sums, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["clip", "clip, divergence"])
def test_later_updates_look_at_the_sampler(llm, name):
    objective, (ids, real, rollout) = OBJECTIVES[name], step_of()
    with torch.no_grad():
        policy = llm.logprobs(llm.encode(ids, real), rollout.ids, rollout.loss_mask, 0.7)
    noise = 0.3 * torch.randn(policy.shape, generator=torch.Generator().manual_seed(0))
    rollout = rollout._replace(old_logprobs=(policy + noise).masked_fill(~rollout.loss_mask, 0.0))
    signal = objective.advantages(REWARDS)
    sums, expected = at_once(llm, objective, ids, real, rollout, signal, on_policy=False, temperature=0.7)
    assert sums["clip_ratio/low"] > 0 and sums["clip_ratio/high"] > 0
    for sizes in ([1, 1, 1, 1], [1, 3]):
        found, gradient = in_passes(llm, objective, ids, real, rollout, signal, sizes, on_policy=False, temperature=0.7)
        agree(gradient, expected)
        assert found == pytest.approx(sums, rel=1e-5, abs=1e-7)


def test_the_first_update_after_sampling(llm):
    """What decoding says of its own tokens is what training says: looking at the sampler changes nothing yet."""
    ids, real, _ = step_of()
    rollout = roll_out(
        llm, llm.encode(ids, real), 3, max_new_tokens=6, temperature=0.8, generator=torch.Generator().manual_seed(0)
    )
    objective = Objective(beta=0.04, epsilon=0.5)
    signal = objective.advantages(REWARDS)
    runs = [
        in_passes(llm, objective, ids, real, rollout, signal, [2, 2], on_policy=on, temperature=0.8)
        for on in (True, False)
    ]
    agree(runs[1][1], runs[0][1], 1e-4)
    assert runs[0][0]["clip_ratio/low"] == runs[0][0]["clip_ratio/high"] == 0
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-3, abs=1e-6)
    hot = in_passes(llm, objective, ids, real, rollout, signal, [2, 2], on_policy=False)[1]  # temperature forgotten
    assert any((hot[n] - g).norm() > 0.1 * g.norm() for n, g in runs[0][1].items())


# ----------------------------------------------------------------------------------------------------- groups of no use
def watched(llm, monkeypatch):
    """Number of prompts of every forward pass, and whether it had the adapter on."""
    seen = []
    inner = llm.logprobs

    def logprobs(prefix, answers, *rest):
        assert len(prefix.embeddings) == len(answers)
        seen.append((len(answers), not llm.adapter_state))
        return inner(prefix, answers, *rest)

    monkeypatch.setattr(llm, "logprobs", logprobs)
    return seen


@pytest.mark.parametrize("sizes, expected", [([1, 1, 1, 1], [1, 1, 1]), ([4], [3]), ([2, 2], [1, 2]), ([3, 1], [2, 1])])
def test_a_dead_group_costs_nothing_and_changes_nothing(llm, monkeypatch, sizes, expected):
    ids, real, rollout = step_of()
    objective = OBJECTIVES["merit"]
    signal = objective.advantages(REWARDS)
    assert (signal[DEAD] == 0).all() and (signal != 0).any(1).sum() == 3
    _, computed = at_once(llm, objective, ids, real, rollout, signal)
    seen = watched(llm, monkeypatch)
    backwards = []
    _, skipped = in_passes(
        llm, objective, ids, real, rollout, signal, sizes, backward=lambda loss: backwards.append(1) or loss.backward()
    )
    assert seen == [(n, True) for n in expected] and len(backwards) == len(expected)
    agree(skipped, computed)


def test_with_a_divergence_a_dead_group_still_counts(llm, monkeypatch):
    ids, real, rollout = step_of()
    objective = OBJECTIVES["clip, divergence"]
    signal = objective.advantages(REWARDS)
    seen = watched(llm, monkeypatch)
    _, found = in_passes(llm, objective, ids, real, rollout, signal, [1] * 4)
    assert seen == [(1, False), (1, True)] * 4  # the reference, then the policy
    weights = token_weights(rollout.loss_mask, objective.normalize, 8)
    weights[DEAD] = 0
    accumulate_gradients(llm, [lambda: llm.encode(ids, real)], rollout, signal, weights, objective)
    without = gradients(llm)
    assert any((found[n] - g).norm() > 1e-3 * g.norm() for n, g in without.items())


def test_nothing_but_dead_groups(llm, monkeypatch):
    ids, real, rollout = step_of()
    seen = watched(llm, monkeypatch)
    sums, found = in_passes(llm, Objective(), ids, real, rollout, torch.zeros(4, 3), [2, 2])
    assert sums == {"loss": 0.0, "clip_ratio/low": 0.0, "clip_ratio/high": 0.0} and not found and not seen


@pytest.mark.parametrize("sizes", [[1, 1, 1], [3], [1] * 5, [4, 1], [2, 3]])
def test_another_number_of_prompts(llm, sizes):
    ids, real, rollout = step_of()
    ids, real = torch.cat([ids, ids]), torch.cat([real, real])
    for signal in (REWARDS, torch.zeros(4, 3)):  # also where nothing is computed
        with pytest.raises(ValueError, match="prompts"):
            in_passes(llm, Objective(), ids, real, rollout, signal, sizes)
        llm.zero_grad()


# ------------------------------------------------------------------------------------------------ answers that were cut
def drawn_by(rollout, finished):
    completions = SimpleNamespace(
        ids=rollout.ids,
        mask=rollout.loss_mask,
        logprobs=rollout.loss_mask * -1.5,
        finished=finished,
        entropy=rollout.entropy,
    )
    return SimpleNamespace(sample=lambda prefix, n, **options: completions)


def test_cut_answers_are_left_out_of_the_loss_but_not_of_their_group(llm):
    ids, real, rollout = step_of([[3, 6, 4], [2, 2, 6], [6, 1, 3], [6, 6, 6]])
    finished = rollout.loss_mask.sum(2) < 6
    kept = roll_out(drawn_by(rollout, finished), None, 3, max_new_tokens=6)
    assert torch.equal(kept.loss_mask, rollout.loss_mask) and torch.equal(kept.old_logprobs, rollout.loss_mask * -1.5)
    left = roll_out(drawn_by(rollout, finished), None, 3, max_new_tokens=6, mask_truncated=True)
    assert torch.equal(left.loss_mask, rollout.loss_mask & finished[..., None])
    assert torch.equal(left.old_logprobs, left.loss_mask * -1.5)
    assert torch.equal(left.finished, finished) and torch.equal(left.ids, rollout.ids)

    objective = Objective(normalize="sequence")
    signal = group_advantages(torch.tensor([[1.0, 0.0, 0.5], [0.3, 0.1, 0.9], [0.0, 2.0, 1.0], [1.0, 0.0, 1.0]]))
    _, found = in_passes(llm, objective, ids, real, left, signal, [1] * 4)  # the last group has no token left
    other = left.ids.masked_fill(~left.loss_mask, 17)
    _, same = in_passes(llm, objective, ids, real, left._replace(ids=other), signal, [1] * 4)
    agree(same, found, 0.0)
    # by hand: the advantages are those of all twelve answers, the mean is over twelve answers
    logprobs = llm.logprobs(llm.encode(ids, real), rollout.ids, rollout.loss_mask)
    per = (logprobs.sum(2) / rollout.loss_mask.sum(2))[finished]
    (-(per * signal[finished]).sum() / 12).backward()
    agree(found, gradients(llm))


def test_rows_of_a_rollout():
    _, _, rollout = step_of()
    part = rollout.rows(torch.tensor([1, 3]))
    assert part.ids.shape == (2, 3, 5) and torch.equal(part.loss_mask.sum(2), torch.tensor([[2, 2, 2], [1, 5, 2]]))
    assert torch.equal(part.ids, rollout.ids[[1, 3], :, :5]) and torch.equal(part.finished, rollout.finished[[1, 3]])
    nothing = rollout._replace(loss_mask=torch.zeros_like(rollout.loss_mask)).rows(torch.tensor([0]))
    assert nothing.ids.shape == (1, 3, 1)  # not empty: a pass over it is still a pass


# ------------------------------------------------------------------------------------------------------------ processes
SHARDS = ([0], [1, 2, 3])  # prompts of each process


def one_process(rank, folder, llm, name):
    """Its shard of the step, weighted by the totals of both, and the sum of both gradients. The second process meets
    the dead group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    objective, (ids, real, rollout) = OBJECTIVES[name], step_of()
    mine = torch.tensor(SHARDS[rank])
    ids, real, rollout = ids[mine], real[mine], rollout.rows(mine)
    totals = torch.tensor([float(rollout.loss_mask[..., 0].numel()), float(rollout.loss_mask.sum())])
    dist.all_reduce(totals)
    _, found = in_passes(
        llm, objective, ids, real, rollout, objective.advantages(REWARDS)[mine], [1] * len(mine), tuple(totals.tolist())
    )
    for _, gradient in sorted(found.items()):
        dist.all_reduce(gradient)
    torch.save(found, folder / f"{name}.{rank}")
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["clip", "clip, divergence", "constant"])
def test_two_processes_leave_the_gradient_of_one(llm, tmp_path, one_threaded, name):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=one_process, args=(rank, tmp_path, llm, name)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        if child.is_alive():
            child.kill()
    assert [child.exitcode for child in children] == [0, 0]
    objective = OBJECTIVES[name]
    _, expected = at_once(llm, objective, *step_of(), objective.advantages(REWARDS))
    for rank in range(2):
        agree(torch.load(tmp_path / f"{name}.{rank}", weights_only=True), expected)
