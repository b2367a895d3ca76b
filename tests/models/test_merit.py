"""MERIT: distances, votes and rewards against written-out tables, what adaptation trains and what it cannot see, the
guard, answers by vote, and the sizes of the paper. Whole runs are in test_contract.py, too."""

import csv
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from tests.builders import make_home
from tests.fake_corpus import attach
from tests.runs_helper import TRACE, checkpoint, fit, flags, logged, metrics, refused, rows, same, trace, zoo
from zoo import checkpoints
from zoo.data import IEMOCAP, MELD, MOSEI
from zoo.data.meld import CLIPS
from zoo.models.merit import Merit, MeritRLVR, MeritTTRL
from zoo.models.merit import model as merit
from zoo.models.merit.parts import (
    WHEEL,
    AnswerStatistics,
    Guard,
    LabelOnly,
    cosine_distances,
    gold_consistency,
    majority,
    plutchik,
    self_consistency,
    statistics_sums,
    vote_accuracy,
    vote_agreement,
    vote_reward,
)
from zoo.rl import Answer, Objective, token_weights
from zoo.schema import Labels, Sample, Turn
from zoo.training import starts
from zoo.training.batch import SampleBatch

SEVEN = MELD.labels
NEUTRAL, SURPRISE, FEAR, SADNESS, JOY, DISGUST, ANGER = range(7)

# ------------------------------------------------------------------------------------------------------------ distances
# Degrees: joy 0, fear 90, surprise 135, sadness 180, disgust 225, anger 270; over 180. Neutral: .5 from all.
W_MELD = [  # neutral, surprise, fear, sadness, joy, disgust, anger
    [0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
    [0.5, 0, 0.25, 0.25, 0.75, 0.5, 0.75],
    [0.5, 0.25, 0, 0.5, 0.5, 0.75, 1],
    [0.5, 0.25, 0.5, 0, 1, 0.25, 0.5],
    [0.5, 0.75, 0.5, 1, 0, 0.75, 0.5],
    [0.5, 0.5, 0.75, 0.25, 0.75, 0, 0.25],
    [0.5, 0.75, 1, 0.5, 0.5, 0.25, 0],
]
W_MOSEI = [  # happiness, sadness, anger, surprise, disgust, fear
    [0, 1, 0.5, 0.75, 0.75, 0.5],
    [1, 0, 0.5, 0.25, 0.25, 0.5],
    [0.5, 0.5, 0, 0.75, 0.25, 1],
    [0.75, 0.25, 0.75, 0, 0.5, 0.25],
    [0.75, 0.25, 0.25, 0.5, 0, 0.75],
    [0.5, 0.5, 1, 0.25, 0.75, 0],
]
W_IEMOCAP = [  # happy, sad, neutral, angry, excited (337.5), frustrated (247.5)
    [0, 1, 0.5, 0.5, 0.125, 0.625],
    [1, 0, 0.5, 0.5, 0.875, 0.375],
    [0.5, 0.5, 0, 0.5, 0.5, 0.5],
    [0.5, 0.5, 0.5, 0, 0.375, 0.125],
    [0.125, 0.875, 0.5, 0.375, 0, 0.5],
    [0.625, 0.375, 0.5, 0.125, 0.5, 0],
]


@pytest.mark.parametrize(
    "labels, names, table",
    [
        (MELD.labels, ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"), W_MELD),
        (MOSEI.labels, ("happiness", "sadness", "anger", "surprise", "disgust", "fear"), W_MOSEI),
        (IEMOCAP(classes=6).labels, ("happy", "sad", "neutral", "angry", "excited", "frustrated"), W_IEMOCAP),
    ],
    ids=["meld", "mosei", "iemocap"],
)
def test_distances_on_the_wheel_written_out(labels, names, table):
    w = plutchik(labels)
    assert labels.names == names and w.dtype == torch.float32
    assert torch.equal(w, torch.tensor(table))
    assert torch.equal(w, w.T) and not w.diagonal().any() and w.min() >= 0 and w.max() == 1


def test_order_of_distances():
    w = plutchik(SEVEN)
    assert w[JOY, SADNESS] == w[JOY].max() == 1 > w[JOY, DISGUST] == w[JOY, SURPRISE] > w[JOY, FEAR] == w[JOY, ANGER]
    assert w[FEAR, SURPRISE] == w[FEAR][w[FEAR] > 0].min() < w[FEAR, SADNESS] < w[FEAR, DISGUST] < w[FEAR, ANGER]


def test_other_angles_and_another_centre():
    labels = Labels("own", ("joy", "hope", "neutral"))
    with pytest.raises(ValueError, match=r"no place for hope of own; give degrees .*--model.angles '\{hope: \.\.\.\}'"):
        plutchik(labels)
    w = plutchik(labels, neutral=0.2, angles={"hope": 315.0})
    torch.testing.assert_close(w, torch.tensor([[0, 0.25, 0.2], [0.25, 0, 0.2], [0.2, 0.2, 0]]))
    both = plutchik(labels, neutral=0.2, angles={"hope": None})
    assert both[1].tolist() == pytest.approx([0.2, 0, 0]) and "hope" not in WHEEL
    moved = plutchik(Labels("own", ("joy", "sad")), angles={"sad": 90.0})  # elsewhere than on the wheel
    assert moved[0, 1] == 0.5


def test_distances_of_embeddings():
    vectors = np.random.default_rng(0).standard_normal((5, 9))
    vectors[1] = 3 * vectors[0]  # the same direction
    expected = np.zeros((5, 5))
    for i in range(5):
        for j in range(5):
            cosine = vectors[i] @ vectors[j] / np.sqrt((vectors[i] ** 2).sum() * (vectors[j] ** 2).sum())
            expected[i, j] = max(0.0, 1 - cosine)
    w = cosine_distances(torch.from_numpy(vectors))
    np.testing.assert_allclose(w, expected / expected.max(), atol=1e-6)
    assert torch.equal(w, w.T) and not w.diagonal().any() and w.min() >= 0 and w.max() == 1
    parallel = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 60)[:, None]
    assert (1 - torch.nn.functional.normalize(parallel).square().sum(1)).min() < 0  # by rounding
    assert cosine_distances(torch.cat([parallel, -parallel[:1]])).min() == 0
    with pytest.raises(ValueError, match="all labels have the same embedding"):
        cosine_distances(torch.ones(3, 4))


# ---------------------------------------------------------------------------------------------------- votes and rewards
@pytest.mark.parametrize(
    "votes, weights, winner",
    [
        ([2, 1, 1], None, 1),
        ([2, 1, 1, 2], None, 2),  # a tie: seen first
        ([1, 2, 2, 1], None, 1),
        ([None, None, None, 3], None, 3),  # unreadable answers do not vote, however many
        ([None, 0, 4, None], None, 0),
        ([None, None], None, None),
        ([], None, None),
        ([0, 0, 1], [0.4, 1.0], 1),  # 0.8 against 1
        ([0, 0, 1], [0.5, 1.0], 0),
        ([1, 0, 0], [0.1, 0.2], 1),  # equal but for rounding, or not at all: 0.2 and 0.1 + 0.1
        ([2, 0, 1, 0, 1, 1], [0.3, 0.2, 0.7], 2),  # 0.7, 0.6 and 0.2 * 3 = 0.6000000000000001
        ([0, 1, 1, 1, 0], [0.3, 0.2], 0),  # 0.6 and 0.6000000000000001
    ],
)
def test_majority(votes, weights, winner):
    assert majority(votes, weights) == winner


@pytest.mark.parametrize(
    "alpha, rewards",
    [  # of joy, neutral (.5), fear (.5), disgust (.75), sadness (1) and an unreadable answer, the winner being joy
        (0.5, [1, 0.8, 0.8, 0.7272727, 0.6666667, 0]),
        (1.0, [1, 0.6666667, 0.6666667, 0.5714286, 0.5, 0]),
        (2.0, [1, 0.5, 0.5, 0.4, 0.3333333, 0]),
        (None, [1, 0, 0, 0, 0, 0]),
    ],
)
def test_rewards_written_out(alpha, rewards):
    votes = [JOY, NEUTRAL, FEAR, DISGUST, SADNESS, None]
    assert vote_reward(votes, JOY, plutchik(SEVEN), alpha) == pytest.approx(rewards, abs=1e-6)
    assert vote_reward(votes, None, plutchik(SEVEN), alpha) == [0.0] * 6


@pytest.mark.parametrize(
    "text, finished, worth",
    [(" joy", True, 1), ("JOY ", True, 1), ("joy", False, 0), ("joy.", True, 0), ("glad", True, 0), ("", True, 0)],
)
def test_the_form_of_an_answer(text, finished, worth):
    sample = Sample("meld/test/a", "meld/test/d", SEVEN, Turn("a", "", "hi", "joy"))
    assert LabelOnly()(Answer(text, 2, finished, sample)) == worth
    assert LabelOnly({"joy": "glad"})(Answer("glad", 2, True, sample)) == 1


# ---- from votes to the loss (Sec. 3.4.1 and 3.4.2)
RATIO = [0.1, -0.3, 0.25, 0.0]  # log of policy over sampler, of whole answers
WHOLE = [-1.4, -2.3, -0.75, -3.0]  # log-probabilities of whole answers
SHARE = [[0.5, 0.5], [0.25, 0.75], [0.9, 0.1], [1.0, 0.0]]  # of their two tokens; the last one has one token


def clip(ratio):
    return min(max(ratio, 0.8), 1.2)


def objectives(reward):
    """Gains as Sec. 3.4.2 writes them, in plain Python: means over the answers of one group."""
    mean, n = sum(reward) / len(reward), len(reward)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in reward) / (n - 1))
    advantage = [(r - mean) / (deviation + 1e-4) for r in reward]
    ratios = [math.exp(x) for x in RATIO]
    centred = [r - mean for r in reward]
    tokens = [[math.exp(x * s) for s in share if s] for x, share in zip(RATIO, SHARE, strict=True)]
    return {
        "ppo_reward": sum(min(r * x, clip(r) * x) for r, x in zip(ratios, reward, strict=True)) / n,
        "ppo_advantage": sum(min(r * x, clip(r) * x) for r, x in zip(ratios, centred, strict=True)) / n,
        "reinforce_group": sum(a * p for a, p in zip(advantage, WHOLE, strict=True)) / n,
        "grpo_clip": sum(min(r * a, clip(r) * a) for a, own in zip(advantage, tokens, strict=True) for r in own) / n,
    }


@pytest.mark.parametrize(
    "kind, gain",
    [("ppo_reward", 0.6614974), ("ppo_advantage", -0.0128342), ("reinforce_group", 0.40650), ("grpo_clip", 0.32322)],
)
@pytest.mark.parametrize("alpha", [None, 0.5, 1.0, 2.0])
def test_votes_to_loss(kind, gain, alpha):
    """Two for joy, one neutral, one unreadable: with alpha 1 the rewards are 1, 1, 2/3 and 0."""
    votes = [JOY, JOY, NEUTRAL, None]
    reward = vote_reward(votes, majority(votes), plutchik(SEVEN), alpha)
    share, whole = torch.tensor(SHARE, dtype=torch.float64), torch.tensor(WHOLE, dtype=torch.float64)
    policy = (whole[:, None] * share)[None].requires_grad_()
    old = policy.detach() - (torch.tensor(RATIO, dtype=torch.float64)[:, None] * share)[None]
    mask = torch.tensor(SHARE)[None] > 0
    objective = Objective(kind, "sum")
    signal = objective.advantages(torch.tensor([reward]), "none" if kind == "ppo_advantage" else "group")
    loss, _ = objective.loss(policy, old, None, signal, token_weights(mask, "sum", 8).double())
    assert -loss.item() == pytest.approx(objectives(reward)[kind], abs=1e-6)
    if alpha == 1:
        assert -loss.item() == pytest.approx(gain, abs=2e-5)
    loss.backward()
    if kind == "ppo_reward":  # what P's PPO does: an answer is pushed up even if it is worth less than the others
        assert policy.grad[0, 0, 0] < 0 and policy.grad[0, 1, 0] < 0 and policy.grad[0, 3, 0] == 0
    if kind == "reinforce_group":
        assert policy.grad[0, 0, 0] < 0 < policy.grad[0, 3, 0]  # away from what nobody can read


# ---------------------------------------------------------------------------------------------------------- consistency
def test_consistency_written_out():
    w = plutchik(SEVEN)
    assert self_consistency([JOY] * 5, w) == 1
    assert self_consistency([JOY, NEUTRAL, NEUTRAL], w) == pytest.approx(1 - (0.5 + 0.5) / 3)
    assert self_consistency([JOY, JOY, SADNESS, None], w) == pytest.approx(1 - (0 + 1 + 1 + 1 + 1 + 1) / 6)
    assert self_consistency([None, None], w) == 0
    said, true = [JOY, None, NEUTRAL, FEAR], [JOY, JOY, ANGER, ANGER]
    assert gold_consistency(said, true, w) == pytest.approx(1 - (0 + 1 + 0.5 + 1) / 4)
    assert gold_consistency(said, true, 0.3 * w) == pytest.approx(1 - 2.5 / 4)  # over its largest


@pytest.mark.parametrize("seed", range(5))
def test_consistency_is_raos_quadratic_entropy(seed):
    """Rao (1982) from shares p of the labels: p' W p, unbiased by n / (n - 1)."""
    rng = np.random.default_rng(seed)
    votes, true, n = rng.integers(0, 7, 9), rng.integers(0, 7, 9), 9
    w = np.array(W_MELD) * 0.7
    p = np.bincount(votes, minlength=7) / n
    expected = 1 - n / (n - 1) * p @ (w / 0.7) @ p
    assert self_consistency(votes.tolist(), torch.tensor(w)) == pytest.approx(expected)
    assert gold_consistency(votes.tolist(), true.tolist(), torch.tensor(w)) == pytest.approx(
        1 - (w[votes, true] / 0.7).mean()
    )


# ------------------------------------------------------------------------------------------------- what needs no labels
P = torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5], [0.9, 0.1]])  # a tie is the first label's


def entropy(*p):
    return -sum(x * math.log(x) for x in p if x)


def test_what_is_seen_of_answers():
    seen = AnswerStatistics.from_sums(statistics_sums(P))
    mean = (entropy(0.25, 0.75) + 0 + entropy(0.5, 0.5) + entropy(0.9, 0.1)) / 4
    assert seen.entropy == pytest.approx(mean, abs=1e-6) and seen.confidence == pytest.approx(3.15 / 4, abs=1e-6)
    assert seen.shares == (0.75, 0.25) and seen.mean == pytest.approx((2.65 / 4, 1.35 / 4), abs=1e-6)
    assert seen.information == pytest.approx(entropy(2.65 / 4, 1.35 / 4) - mean, abs=1e-6) and seen.information > 0


def test_sums_of_parts_add_up():
    whole = statistics_sums(P)
    parts = sum(statistics_sums(part) for part in (P[:1], P[1:3], P[3:]))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    assert whole[0] == 4 and len(whole) == 3 + 2 * 2


def seen(shares, entropy=1.0, information=0.5):
    return AnswerStatistics(entropy, 0.5, tuple(shares), tuple(shares), information)


def test_drift_and_guard():
    start = seen([0.5, 0.3, 0.2])
    assert seen([0.2, 0.3, 0.5]).drift(start) == pytest.approx(0.3) and start.drift(start) == 0
    guard = Guard(drift=0.25, entropy=0.5, information=0.1)
    assert guard.violation(start, start, 0.5) is None
    assert guard.violation(seen([0.3, 0.3, 0.4]), start, 0.5) is None
    moved = guard.violation(seen([0.2, 0.3, 0.5]), start, 0.5)
    assert moved.startswith("the shares of the labels moved by 0.30, more than 0.25")
    assert guard.violation(seen(start.shares, 0.51), start, 0.5) is None
    assert "entropy fell to 0.49 of its start" in guard.violation(seen(start.shares, 0.49), start, 0.5)
    assert guard.violation(seen(start.shares, information=0.45), start, 0.54) is None
    assert "information fell 0.110 nats" in guard.violation(seen(start.shares, information=0.45), start, 0.56)
    for wrong in ({"drift": 0}, {"drift": 1.1}, {"entropy": 1}, {"entropy": -0.1}, {"information": -1}):
        with pytest.raises(ValueError, match="need 0 < drift <= 1"):
            Guard(**wrong)


GROUPS = [[0, 0, 1], [2, None, 2], [None, None, None]]


def test_numbers_of_votes_written_out():
    assert vote_agreement(GROUPS, [0, 2, None]) == pytest.approx(
        {"majority_ratio": (2 / 3 + 2 / 3 + 0) / 3, "unparsed": 4 / 9, "top_share": 1 / 3}
    )
    assert vote_agreement([[1, 1], [1, 0]], [1, 1])["top_share"] == 1
    # the first is right; in the second both votes for 2 are rewarded, wrongly; the third has nobody to reward
    assert vote_accuracy(GROUPS, [0, 2, None], [0, 1, 2]) == pytest.approx(
        {"label_accuracy": 1 / 3, "reward_accuracy": 7 / 9, "pass@k": 1 / 3}
    )
    assert vote_accuracy([[0, 1]], [0], [1]) == {"label_accuracy": 0, "reward_accuracy": 0, "pass@k": 1}


# ---------------------------------------------------------------------------------------------- the reward of a window
def adapting(truth=None, **options):
    """A `MeritTTRL` without weights, whose data knows some truths."""
    model = MeritTTRL(llm="none", template="plain", **options)
    data = SimpleNamespace(truth=(truth or {}).get, labelled=truth is not None, label_sets={"meld": SEVEN})
    return attach(model, data)


def said(*groups):
    """Answers of each group; the samples carry no label."""
    made = [Sample(f"meld/test/{i}", "meld/test/d", SEVEN, Turn(str(i), "", "hi")) for i in range(len(groups))]
    return [[Answer(text, 2, True, s) for text in group] for s, group in zip(made, groups, strict=True)]


def test_all_answers_vote_and_the_first_are_trained():
    """Of five votes joy wins, though of the first two it has one."""
    groups = said(["neutral", "joy", "joy", "fear", "joy"], ["fear", "fear", "anger", "anger", "anger"])
    model = adapting(num_generations=2, num_votes=5)
    assert model.answers_per_prompt == 5 and adapting(num_generations=2).answers_per_prompt == 2
    found = model.rewards(groups)
    torch.testing.assert_close(found.first(2).total, torch.tensor([[2 / 3, 1], [0.5, 0.5]]))
    assert found.metrics["majority_ratio"] == pytest.approx(0.6)  # of the five
    with pytest.raises(ValueError, match="num_votes 3 is below num_generations 4"):
        adapting(num_generations=4, num_votes=3)


def test_the_winner_teaches_and_the_truth_is_only_logged():
    groups = said(["joy", "neutral", "joy.", "blah"], ["fear", "anger", "x", "joy or fear"], ["x", "y", "z", ""])
    found = adapting().rewards(groups)
    expected = [[1, 2 / 3, 1, 0], [1, 0.5, 0, 0], [0, 0, 0, 0]]  # fear was seen before anger; two labels are none
    torch.testing.assert_close(found.total, torch.tensor(expected))
    assert torch.equal(found.parts["vote"], found.total)
    assert set(found.metrics) == {"majority_ratio", "unparsed", "top_share", "used"}
    assert found.metrics["used"] == pytest.approx(2 / 3) and found.metrics["majority_ratio"] == pytest.approx(0.25)
    knowing = adapting({f"meld/test/{i}": JOY for i in range(3)}).rewards(groups)
    assert torch.equal(knowing.total, found.total)
    told = {k: v for k, v in knowing.metrics.items() if k not in found.metrics}
    assert told == pytest.approx({"label_accuracy": 1 / 3, "reward_accuracy": 11 / 12, "pass@k": 1 / 3})


def test_unsure_winners_teach_nothing():
    groups = said(["joy", "joy", "fear", "x"], ["joy", "fear", "x", "y"])
    found = adapting(min_agreement=0.5).rewards(groups)
    assert found.total.tolist() == [pytest.approx([1, 1, 2 / 3, 0]), [0, 0, 0, 0]] and found.metrics["used"] == 0.5
    assert adapting(min_agreement=0.51).rewards(groups).total.any() == False  # noqa: E712


def test_labels_that_spread_weigh_less():
    """(before / now)^balance, where 'now' follows what was drawn with 0.9 per step."""
    groups = said(["joy", "joy", "fear", "fear"], ["joy", "joy", "joy", "x"])
    model = adapting(vote_balance=2.0)
    model.start = seen([0.1, 0.1, 0.1, 0.1, 0.4, 0.1, 0.1])
    assert majority([JOY, JOY, FEAR, FEAR]) == JOY
    total = model.rewards(groups).total
    drawn = [1e-3, 1e-3, 2 / 7, 1e-3, 5 / 7, 1e-3, 1e-3]
    now = [0.9 * b + 0.1 * share for b, share in zip(model.start.mean, drawn, strict=True)]
    assert model.vote_shares.tolist() == pytest.approx(now)
    weights = [(b / n) ** 2 for b, n in zip(model.start.mean, now, strict=True)]
    assert weights[JOY] > weights[FEAR]
    assert total[0].tolist() == pytest.approx([1, 1, 2 / 3, 2 / 3])  # joy still wins: fear spread more
    model = adapting(vote_balance=1.0)
    model.start = seen([0.1, 0.1, 0.3, 0.1, 0.2, 0.1, 0.1])
    total = model.rewards(groups).total
    assert total[0].tolist() == pytest.approx([2 / 3, 2 / 3, 1, 1])  # joy spread: the tie is fear's
    assert total[1].tolist() == pytest.approx([1, 1, 1, 0])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"alpha": 0.0}, "alpha > 0 or null"),
        ({"min_agreement": 1.5}, "min_agreement <= 1"),
        ({"vote_balance": -1.0}, "vote_balance >= 0"),
        ({"reward_funcs": [LabelOnly()]}, "the vote is the reward"),
        ({"lora": None}, "set --model.lora"),
        ({"votes": 1}, "votes >= 2"),
        ({"neutral_distance": -0.1}, "neutral_distance >= 0"),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        adapting(**wrong)


def test_labelled_reinforcement_needs_rewards():
    with pytest.raises(ValueError, match="needs rewards"):
        MeritRLVR(llm="none")
    assert MeritRLVR(llm="none", reward_funcs=[LabelOnly()]).reward_funcs


# ----------------------------------------------------------------------------------------------------------- paper size
def test_paper_size():
    """Qwen2.5-32B, CLIP-ViT-L/14 and HuBERT-base on the meta device: r 16 on q, k, v, o, and the two projections."""
    model = Merit(
        llm="shape:qwen2.5-32b", vision="shape:clip-vit-large-patch14", audio="shape:hubert-base", dtype="bfloat16"
    )
    for make in (model.make_llm, model.encoders.make_vision, model.encoders.make_audio):
        make.keywords["device"] = "meta"
    model.configure_model()
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    lora = {n: k for n, k in trained.items() if ".lora_" in n}
    assert sum(lora.values()) == 33_554_432 and len(lora) == 64 * 4 * 2
    assert all(re.search(r"llm\..*\.self_attn\.[qkvo]_proj\.lora_[AB]\.", n) for n in lora)
    sizes = {"vision_projection": 1024 * 5120 + 5120, "audio_projection": 768 * 5120 + 5120}
    assert sizes == {"vision_projection": 5_248_000, "audio_projection": 3_937_280}
    for name, size in sizes.items():
        assert sum(k for n, k in trained.items() if n.startswith(f"{name}.")) == size
    assert sum(trained.values()) == 33_554_432 + 5_248_000 + 3_937_280
    assert sum(p.numel() for n, p in model.llm.named_parameters() if ".lora_" not in n) == 32_763_876_352


# ----------------------------------------------------------------------------------------------------------- whole runs
pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
ALL = r"model\.layers\.\d+\..*"


def poison(folder: Path) -> Path:
    """Every test label becomes another one."""
    path = folder / "test_sent_emo.csv"
    with path.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    for row in table:
        row["Emotion"] = SEVEN.names[(SEVEN.index(row["Emotion"]) + 3) % 7]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = make_home(tmp_path_factory.mktemp("merit"), (2, 1, 2), test_is="train", clips=True)
    poison(copytree(home / "meld", home / "poisoned"))
    lacking = copytree(home / "meld", home / "lacking") / CLIPS["test"]
    (lacking / "dia0_utt1.mp4").unlink()
    (lacking / "dia1_utt2.mp4").write_bytes(b"no clip")
    return home


@pytest.fixture(scope="module")
def options(home):
    """Options of a run beyond its data; those that are None are left out."""

    def options(model="Merit", **more: object) -> list[str]:
        base = {f"model__{part}": home / part for part in ("llm", "vision", "audio")}
        base |= {
            "model__template": "plain",
            "model__window": 1,
            "model__frames": 2,
            "model__audio_tokens": 2,
            "model__lora__r": 8,
            "model__lora__alpha": 8,
            "model__lora__targets": ALL,
            "model__max_new_tokens": 3,
            "model__cache": home / "cache",
            "model__schedule": "constant",
            "model__warmup": 0,
            "data__batch_size": 7,
        }
        return [f"--model={model}", *flags(**{k: v for k, v in (base | more).items() if v is not None})]

    return options


@pytest.fixture(scope="module")
def labelled(home):
    return {"data": "MELD", "data__root": home / "meld"}


@pytest.fixture(scope="module")
def sft(options, labelled, home) -> Path:
    """A supervised run that knows its fourteen training samples, of which the test split is a copy."""
    return fit(
        home / "sft",
        *options(
            **labelled | {"data__batch_size": 14}, model__lr=0.02, trainer__max_epochs=40, trainer__limit_val_batches=0
        ),
    )


@pytest.fixture(scope="module")
def adapt(options, sft, home):
    """Options -> a finished adaptation under a folder."""

    def adapt(root: Path, *args: str, corpus: str = "meld", model: str = "MeritTTRL", **more: object) -> Path:
        base = {
            "data": "Adaptation",
            "data__corpus": "MELD",
            "data__corpus__root": home / corpus,
            "model__start_from": sft,
            "model__lr": 3e-3,
            "model__num_generations": 5,
            "model__temperature": 0.8,
            "model__guard": "null",
            "trainer__max_epochs": 2,
        }
        return fit(root, *args, *options(model, **(base | more)))

    return adapt


@pytest.fixture(scope="module")
def adapted(adapt, home) -> Path:
    """Two epochs of two steps, with balanced votes."""
    return adapt(home / "adapted", TRACE, model__vote_balance=1, save_last_every=1)


def state_of(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return checkpoint(run, name)["state_dict"]


PROJECTIONS = {f"{name}_projection.{part}" for name in ("vision", "audio") for part in ("weight", "bias")}


def test_the_supervised_start_learns(sft):
    zoo("test", f"--ckpt_path={sft}")
    assert metrics(sft)["accuracy"] == 1 and metrics(sft)["consistency_gold"] == 1 and metrics(sft)["events"] == {}
    assert logged(sft, "train/loss")[-1] < 2.5 < logged(sft, "train/loss")[0] / 2


def test_adaptation_trains_lora_alone(adapted, sft, home):
    """Names are those of the supervised start; all but LoRA is bit for bit as it was, in and beyond the checkpoint."""
    before, after = state_of(sft), state_of(adapted)
    assert set(before) - set(after) == PROJECTIONS and set(after) < set(before)  # the checkpoint names its start
    lora = list(after)
    assert all(".lora_A.default." in n or ".lora_B.default." in n for n in lora) and len(lora) == 2 * 7 * 2
    assert not any(torch.equal(after[n], before[n]) for n in lora)
    (end,) = trace(adapted, "end")
    assert end["trained"] == len(lora) and end["without_gradient"] == []
    assert len(checkpoint(adapted)["optimizer_states"][0]["state"]) == len(lora)
    whole, start = (checkpoints.load(str(run)).state_dict() for run in (adapted, sft))
    assert whole.keys() == start.keys() and any(n.startswith("vision.") for n in whole)
    assert {n for n in whole if not torch.equal(whole[n], start[n])} == set(lora)


def test_the_adapted_file_loads_strictly_onto_the_supervised_model(adapted, sft, options, labelled, tmp_path):
    onto = checkpoints.load(str(sft))
    state = starts.state_of(starts.read_chain(adapted / "checkpoints" / "best.ckpt"))
    fits = onto.load_state_dict(state, strict=False)  # the chain lacks what is frozen: asserted below
    every = (*onto.named_parameters(remove_duplicate=False), *onto.named_buffers())
    frozen = {n for n, p in every if not p.requires_grad}
    assert fits.unexpected_keys == [] and set(fits.missing_keys) <= frozen
    zoo("test", f"--ckpt_path={adapted}")
    want = rows(adapted)
    run = fit(tmp_path, *options(**labelled, model__start_from=adapted, model__lr=0, trainer__max_steps=1))
    zoo("test", f"--ckpt_path={run}")
    assert rows(run) == want and same(state_of(run), state)


def test_adaptation_is_logged(adapted):
    told = ["label_accuracy", "reward_accuracy", "majority_ratio", "pass@k", "top_share", "unparsed", "used", "reward"]
    for name in told:
        values = logged(adapted, f"train/{name}")
        assert len(values) == 4 and all(0 <= x <= 1 for x in values), name
    assert min(logged(adapted, "train/used")) > 0.3 and len(set(logged(adapted, "train/reward"))) > 1
    for name in ("entropy", "confidence", "information", "top_share", "drift", "collapsed", "keep"):
        assert len(logged(adapted, f"val/{name}")) == 2, name
    zoo("test", f"--ckpt_path={adapted}")
    assert metrics(adapted)["eval_protocol"] == "all_utterances, transductive" and metrics(adapted)["n"] == 14


# ---- the reference
def probabilities(module, adapted=False):
    """Log-probabilities of some tokens behind some prompts."""
    ids = torch.arange(3, 27).view(2, 12)
    prefix = module.llm.encode(ids, torch.ones_like(ids))
    answers = torch.arange(30, 42).view(2, 2, 3)
    with torch.no_grad():
        return module.llm.logprobs(prefix, answers, torch.ones_like(answers, dtype=torch.bool))


def test_the_reference_is_the_supervised_model(adapt, sft, tmp_path):
    """Also after a resume, which finds it in the checkpoint and not in what it would start from."""
    run = adapt(tmp_path, model__objective__beta=0.5, model__lr=0.02, trainer__max_epochs=1)
    want = probabilities(checkpoints.load(str(sft)).eval())
    divergence = logged(run, "train/kl")
    assert divergence[0] == pytest.approx(0, abs=1e-6) and divergence[1] > 1e-3  # with LoRA off it would not begin at 0

    def compare():
        module = checkpoints.load(str(run / "checkpoints" / "last.ckpt")).eval()
        with module.llm.reference():
            torch.testing.assert_close(probabilities(module), want, rtol=0, atol=1e-5)
        now = probabilities(module)
        assert (now - want).abs().max() > 0.1
        return now

    first = compare()
    zoo("fit", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", "--trainer.max_epochs=2", "--data.seed=0")
    assert checkpoint(run)["global_step"] == 4 and not torch.equal(compare(), first)
    # a further stage begins with what this one learnt, which then is the reference
    then = adapt(
        tmp_path / "then", model__start_from=run, model__objective__beta=0.5, model__lr=0, trainer__max_steps=1
    )
    module = checkpoints.load(str(then)).eval()
    with module.llm.reference():
        again = probabilities(module)
    torch.testing.assert_close(again, probabilities(checkpoints.load(str(run)).eval()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "other, told",
    [
        ({"model__lora__r": 4, "model__lora__alpha": 4}, "another LoRA on llm: r 8, not 4; alpha 8.0, not 4.0"),
        ({"model__lora__alpha": 16}, "another LoRA on llm: alpha 8.0, not 16.0"),
        ({"model__lora__targets": r"model\.layers\.\d+\.mlp\..*"}, "another LoRA on llm: targets"),
        ({"model__vision": None}, "holds 2 tensors that this model lacks: ['vision_projection.bias'"),
    ],
)
def test_a_start_with_other_parts_is_refused(other, told, options, sft, home):
    data = {"data": "Adaptation", "data__corpus": "MELD", "data__corpus__root": home / "meld"}
    message = refused("fit", *options("MeritTTRL", **data, **{"model__start_from": sft} | other))
    assert told in message and ("give the same --model.lora" in message or "lacks" in message)


def test_without_a_start_it_is_said(options, home):
    data = {"data": "Adaptation", "data__corpus": "MELD", "data__corpus__root": home / "meld"}
    with pytest.warns(UserWarning, match="no --model.start_from: the projections are random and stay so"):
        zoo("fit", *options("MeritTTRL", **data, model__vote_balance=1, trainer__fast_dev_run=True))


def test_labelled_data_is_refused(options, labelled, sft):
    message = refused("fit", *options("MeritTTRL", **labelled, model__start_from=sft))
    assert "Wrap it: --data Adaptation --data.corpus MELD" in message


# ---- labels cannot reach it
class Blind(Callback):
    """Notes which labels stand in what is trained on and checked."""

    seen: list[tuple[str, str | None]] = []  # noqa: RUF012

    def note(self, batch) -> None:
        assert isinstance(batch["samples"], SampleBatch)
        self.seen += [(s.id, t.label) for s in batch["samples"] for t in (s.target, *s.history)]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.note(batch)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self.note(batch)


def test_poisoned_labels_change_nothing_but_what_is_said_about_them(adapt, adapted, tmp_path):
    Blind.seen.clear()
    run = adapt(
        tmp_path,
        TRACE,
        "--trainer.callbacks+=tests.models.test_merit.Blind",
        corpus="poisoned",
        model__vote_balance=1,
        save_last_every=1,
    )
    assert {label for _, label in Blind.seen} == {None} and len({i for i, _ in Blind.seen}) == 14
    assert len(Blind.seen) > 14 * 5 * 2  # targets and history, in training, the start and every check
    for name in ("last", "best"):
        for part in ("state_dict", "adaptation", *(("optimizer_states",) if name == "last" else ())):
            assert same(checkpoint(run, name)[part], checkpoint(adapted, name)[part])
    ours, theirs = logged(run), logged(adapted)
    for a, b in zip(ours, theirs, strict=True):
        for about_labels in ("label_accuracy", "reward_accuracy", "pass@k"):
            a.pop(f"train/{about_labels}"), b.pop(f"train/{about_labels}")
        assert a == b
    poisoned, true = logged(run, "train/label_accuracy"), logged(adapted, "train/label_accuracy")
    assert max(poisoned) < min(true) and [e["loss"] for e in trace(run)] == [e["loss"] for e in trace(adapted)]


def test_a_run_that_is_resumed_ends_like_one_that_was_not(adapt, adapted, tmp_path):
    """Votes are balanced by what was drawn so far, which is part of what is resumed."""
    run = adapt(tmp_path, model__vote_balance=1, save_last_every=1, trainer__max_steps=3)
    held = json.loads(checkpoint(run)["adaptation"])
    assert checkpoint(run)["global_step"] == 3 and held["start"]["shares"] and sum(held["drawn"]) > 0.5
    zoo("fit", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", "--trainer.max_steps=-1")
    for part in ("state_dict", "optimizer_states", "adaptation", "global_step"):
        assert same(checkpoint(run)[part], checkpoint(adapted)[part]), part
    assert held["drawn"] != json.loads(checkpoint(adapted)["adaptation"])["drawn"]


# ---- the guard
def test_a_collapse_is_taken_back_and_ends_the_run(adapt, sft, tmp_path):
    run = adapt(tmp_path / "guarded", model__lr=0.5, model__guard__drift=0.1, trainer__max_epochs=4)
    assert logged(run, "val/collapsed") == [1.0] and checkpoint(run)["global_step"] == 2
    assert logged(run, "val/drift")[0] > 0.1
    begun = {name: value for name, value in state_of(sft).items() if name not in PROJECTIONS}
    for name in ("last", "best"):
        assert same(state_of(run, name), begun)
    free = adapt(tmp_path / "free", model__lr=0.5, trainer__max_epochs=3)
    assert logged(free, "val/collapsed") == [0.0] * 3 and checkpoint(free)["global_step"] == 6
    assert max(logged(free, "val/drift")) > 0.1 and not same(state_of(free), begun)


class Taken(Callback):
    """Keeps the adapters after every check, before anything is taken back, and which step it was."""

    states: list[dict[str, torch.Tensor]] = []  # noqa: RUF012

    def on_validation_start(self, trainer, pl_module) -> None:
        self.states.append({n: p.detach().clone() for n, p in pl_module.named_parameters() if p.requires_grad})


TAKEN = "--trainer.callbacks+=tests.models.test_merit.Taken"


@pytest.fixture
def scripted(monkeypatch):
    """Checks see what they are told: (share of the first label, entropy, information) each; the first is the start."""

    def scripted(*told):
        Taken.states.clear()
        script = iter([seen([share, 1 - share], entropy, information) for share, entropy, information in told])
        monkeypatch.setattr(merit.AnswerStatistics, "from_sums", classmethod(lambda cls, sums: next(script)))

    return scripted


def test_the_last_good_check_is_taken_back(adapt, scripted, tmp_path):
    scripted((0.5, 1, 0.5), (0.55, 1, 0.6), (0.58, 1, 0.6), (0.3, 1, 0.6))
    run = adapt(tmp_path, TAKEN, model__guard__drift=0.1, trainer__val_check_interval=1, model__best_by="last")
    assert logged(run, "val/collapsed") == [0, 0, 1] and checkpoint(run)["global_step"] == 3
    start, first, second, third = Taken.states
    for a, b in pairwise(Taken.states):
        assert not same(a, b)
    for name in ("last", "best"):
        state = state_of(run, name)
        assert same({n: state[n] for n in second}, second)


def test_a_resumed_run_takes_back_what_it_resumed(adapt, scripted, tmp_path):
    scripted((0.5, 1, 0.5), (0.5, 1, 0.5), (0.1, 1, 0.5))
    run = adapt(tmp_path, model__guard__drift=0.1, trainer__max_epochs=1)
    before = state_of(run)
    zoo("fit", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", "--trainer.max_epochs=3")
    assert checkpoint(run)["global_step"] == 4 and same(state_of(run), before)


@pytest.mark.parametrize("keep, best", [("last", 4), ("information", 2)])
def test_which_check_is_kept(keep, best, adapt, scripted, tmp_path):
    scripted((0.5, 1, 0.9), (0.5, 1, 0.5), (0.5, 1, 0.7), (0.5, 1, 0.6), (0.5, 1, 0.7))
    run = adapt(tmp_path, TAKEN, trainer__val_check_interval=1, model__best_by=keep)
    assert logged(run, "val/keep") == ([1, 2, 3, 4] if keep == "last" else pytest.approx([0.5, 0.7, 0.6, 0.7]))
    state = state_of(run, "best")
    assert same({n: state[n] for n in Taken.states[best]}, Taken.states[best])


# ---- answers
def apart(a, b):
    """Distance of two answers: of the wheel, and 1 to what nobody can read."""
    return 1 if a is None or b is None else W_MELD[SEVEN.index(a)][SEVEN.index(b)]


def test_answers_by_vote(sft):
    """The same draw with the same seed and batches; every number follows from predictions.jsonl."""
    args = (
        f"--ckpt_path={sft}",
        "--model.decode=vote",
        "--model.votes=6",
        "--model.vote_temperature=0.5",
        "--model.show_text=false",
        "--model.window=0",
    )
    zoo("test", *args)
    first, told = rows(sft), metrics(sft)
    zoo("test", *args)
    assert rows(sft) == first
    zoo("test", *args, "--data.seed=1")
    assert rows(sft) != first
    own, agree, gold, found = [], [], [], []
    for r in first:
        answers = r["details"]["answers"]
        votes = [a for a in answers if a is not None]
        winner = max(dict.fromkeys(votes), key=votes.count) if votes else None  # the first of equals
        assert len(answers) == 6 and r["predicted"] == winner and "scores" not in r
        own.append(1 - np.mean([apart(answers[i], answers[j]) for i in range(6) for j in range(i)]))
        agree.append(votes.count(winner) / 6)
        gold.append(1 - apart(winner, r["label"]))
        found.append(r["label"] in votes)
    assert any(len(set(r["details"]["answers"]) - {None}) > 1 for r in first) and 0 < np.mean(found) < 1
    assert any(r["predicted"] is None or None in r["details"]["answers"] for r in first)
    want = {
        "consistency_self": own,
        "consistency_gold": gold,
        "majority_ratio": agree,
        "pass@k": found,
        "accuracy": [r["predicted"] == r["label"] for r in first],
        "votes": [6],
        "unparsed": [r["predicted"] is None for r in first],
    }
    assert {k: told[k] for k in want} == pytest.approx({k: np.mean(v) for k, v in want.items()})


def test_written_answers_do_not_depend_on_the_batch(sft):
    found = []
    for size in (1, 16):
        zoo("test", f"--ckpt_path={sft}", "--model.decode=greedy", f"--data.eval_batch_size={size}")
        found.append(rows(sft))
    assert found[0] == found[1] and any(r["predicted"] for r in found[0])
    assert all(isinstance(r["text"], str) and "scores" not in r for r in found[0])
    assert "consistency_self" not in metrics(sft) and 0 <= metrics(sft)["consistency_gold"] <= 1


def test_beam_search_is_refused(options, labelled):
    assert "beam" in refused("test", "--zero_shot=true", *options(**labelled, model__decode="beam"))
    with pytest.raises(ValueError, match="decode beam takes prompts of words only"):
        Merit(llm="none", decode="beam")


def test_distances_may_come_from_the_language_model(sft):
    zoo("test", f"--ckpt_path={sft}", "--model.distance=lm", "--data.eval_batch_size=14", "--model.decode=vote")
    module = checkpoints.load(str(sft))
    table = module.llm.causal_lm.get_input_embeddings().weight.detach()
    ids = [module.llm.tokenizer(f": {name}", add_special_tokens=False)["input_ids"][1:] for name in SEVEN.names]
    words = np.stack([table[i].mean(0).double().numpy() for i in ids])
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    w = np.maximum(1 - words @ words.T, 0)
    w /= w.max()
    gold = [(r["predicted"], SEVEN.index(r["label"])) for r in rows(sft)]
    far = [1 if said is None else w[SEVEN.index(said), true] for said, true in gold]
    assert metrics(sft)["consistency_gold"] == pytest.approx(1 - np.mean(far), abs=1e-5)


# ---- some senses
SUBSETS = {
    "words": {"model__vision": None, "model__audio": None},
    "eyes": {"model__audio": None, "model__show_text": "false"},
    "ears": {"model__vision": None, "model__show_text": "false"},
    "eyes and ears": {"model__show_text": "false"},
}


@pytest.mark.parametrize("which", SUBSETS)
def test_any_subset_of_senses_is_trained_and_tested(which, options, labelled, tmp_path):
    run = fit(tmp_path, TRACE, *options(**labelled | SUBSETS[which], trainer__max_epochs=1, model__lr=0.01))
    held = {n.split("_projection")[0] for n in state_of(run) if n in PROJECTIONS}
    assert held == {"words": set(), "eyes": {"vision"}, "ears": {"audio"}, "eyes and ears": {"vision", "audio"}}[which]
    (end,) = trace(run, "end")
    assert end["without_gradient"] == []
    zoo("test", f"--ckpt_path={run}")
    assert metrics(run)["events"] == {} and len({json.dumps(r["scores"]) for r in rows(run)}) > 1


def test_without_any_sense_there_is_nothing_to_read(options, labelled):
    assert "show_text, vision or audio" in refused(
        "fit", *options(**labelled | SUBSETS["words"], model__show_text="false")
    )


def test_missing_clips_leave_no_trace_in_other_samples(sft, home):
    """One clip is missing, one cannot be read; with words hidden nothing is left to go by."""
    args = (f"--ckpt_path={sft}", "--model.window=0", "--data.max_unreadable=0.2")
    zoo("test", *args)
    whole = rows(sft)
    for words, nothing in (("true", {}), ("false", {"samples with nothing to go by": 2})):
        zoo("test", *args, f"--data.root={home / 'lacking'}", f"--model.show_text={words}")
        lost = {"samples without a readable clip": 2, "samples without readable sound": 2}
        assert metrics(sft)["events"] == lost | nothing and metrics(sft)["n"] == 14
        if words == "true":
            for a, b in zip(rows(sft), whole, strict=True):
                far = max(abs(a["scores"][k] - b["scores"][k]) for k in a["scores"])
                assert far > 1e-3 if a["id"].endswith(("dia0_utt1", "dia1_utt2")) else far < 1e-5
