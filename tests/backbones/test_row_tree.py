"""Rows whose common beginnings are computed once: equal to the rows one by one, and fewer tokens."""

import pytest
import torch

from tests.backbones.test_token_decoder import small
from zoo.backbones.row_tree import LEAST_SAVING, TreePlan, share_rows

FIXED = [3, 4, 5, 6, 7, 8, 9]
WORDS = {  # rows as prompts make them: fixed words, a conversation, a question
    "one beginning": [FIXED + [20 + i, 40 + i] for i in range(5)],
    "unequal lengths": [FIXED + [20 + i] * (1 + 3 * i) + [90, 91] for i in range(4)],
    "growing": [FIXED + list(range(20, 20 + 4 * i)) + [90, 91] for i in range(1, 6)],
    "the beginning of another": [FIXED, FIXED + [20, 21, 22], FIXED + [20, 21, 22, 23]],
    "one row twice": [FIXED + [20], FIXED + [20], FIXED + [21]],
}
TWO_DIALOGUES = [FIXED + list(range(start, start + 5 * i)) + [90] for start in (20, 50) for i in range(1, 5)]


def padded(rows):
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (length - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def losses(llm, ids, mask, tree):
    """Every next-token log-probability of the rows, with a weight of its own, and the gradients."""
    llm.zero_grad()
    embedded = llm.embed(ids)
    hidden = llm.hidden(embedded, mask) if tree is None else llm.hidden_of_tree(embedded, tree)[tree.places]
    logprobs = llm.head(hidden[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    logprobs = logprobs.masked_fill(~(mask[:, :-1] & mask[:, 1:]), 0.0)
    (logprobs * torch.linspace(-1, 2, logprobs.numel()).view_as(logprobs)).sum().backward()
    return logprobs.detach(), {n: p.grad.clone() for n, p in llm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("name", WORDS)
def test_losses_and_gradients_are_those_of_the_rows(kind, name, monkeypatch):
    check_equal(small(monkeypatch, kind), WORDS[name])


def test_of_two_dialogues(monkeypatch):
    check_equal(small(monkeypatch), TWO_DIALOGUES)


def test_when_layers_are_recomputed(monkeypatch):
    check_equal(small(monkeypatch, gradient_checkpointing=True), WORDS["growing"])


def check_equal(llm, rows):
    ids, mask = padded(rows)
    tree = share_rows(rows)
    assert len(tree.tokens) < sum(map(len, rows))
    logprobs, gradients = losses(llm, ids, mask, tree)
    expected, expected_gradients = losses(llm, ids, mask, None)
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys() and gradients
    for key, one in gradients.items():
        other = expected_gradients[key]
        assert other.norm() > 0 and (one - other).norm() <= 1e-5 * other.norm(), key


@pytest.mark.parametrize("candidates", [[[5], [6], [7]], [[5, 6, 7], [5, 8], [9], [11, 5, 5, 5]]])
@pytest.mark.parametrize("name", [*WORDS, "two dialogues"])
def test_scores_are_those_of_the_rows(name, candidates, monkeypatch):
    rows = TWO_DIALOGUES if name == "two dialogues" else WORDS[name]
    llm = small(monkeypatch).eval()
    ids, mask = padded(rows)
    tree = share_rows(rows)
    shared = llm.score(llm.encode(ids, mask, tree=tree), candidates)
    torch.testing.assert_close(shared, llm.score(llm.encode(ids, mask), candidates), rtol=0, atol=1e-5)
    prefilled = llm.encode(ids, mask, tree=tree)
    llm.prefill(prefilled)
    torch.testing.assert_close(shared, llm.score(prefilled, candidates), rtol=0, atol=1e-5)


def test_a_branch_sees_its_own_beginning_alone(monkeypatch):
    """Other rows, and what of the trunk comes later, change nothing."""
    llm = small(monkeypatch).eval()
    rows = WORDS["growing"]
    changed = [*rows[:-1], rows[-1][:-6] + [99] * 6]
    first = []
    for some in (rows, changed):
        ids, _ = padded(some)
        tree = share_rows(some)
        with torch.no_grad():
            first.append(llm.hidden_of_tree(llm.embed(ids), tree)[tree.places[0, -2:]])
    torch.testing.assert_close(*first, rtol=0, atol=1e-6)


def test_a_mask_that_is_dropped_is_noticed(monkeypatch):
    llm = small(monkeypatch)
    made = TreePlan.__init__

    def without_mask(plan, tree, answers=None):
        made(plan, tree, answers)
        plan.branch_sees = torch.ones_like(plan.branch_sees)

    monkeypatch.setattr(TreePlan, "__init__", without_mask)
    with pytest.raises(AssertionError):
        check_equal(llm, WORDS["growing"])


# ---- which tokens are shared
def test_tokens_that_are_computed():
    tree = share_rows(WORDS["one beginning"])
    assert len(tree.tokens) == 7 + 5 * 2 and tree.trunks.shape == (1, 8) and tree.shared.tolist() == [8, 7, 7, 7, 7]
    rows = WORDS["growing"]  # each turn once, each question once
    tree = share_rows(rows)
    assert len(tree.tokens) == len(rows[-1]) + 4 * 2
    flat = torch.tensor([token for row in padded(rows)[0].tolist() for token in row])
    for i, row in enumerate(rows):
        assert flat[tree.tokens[tree.places[i, -len(row) :]]].tolist() == row


def test_every_dialogue_has_a_trunk_of_its_own_where_that_is_less_work():
    tree = share_rows([FIXED + list(range(start, start + 9 * i)) + [90] for start in (20, 60) for i in range(1, 5)])
    assert tree.trunks.shape[0] == 2 and len(set(tree.trunk_of[:4].tolist())) == 1 == len(
        set(tree.trunk_of[4:].tolist())
    )
    assert share_rows(WORDS["one beginning"]).trunks.shape[0] == 1


def test_one_row_that_differs_does_not_make_the_others_wide():
    """Padded to its length, attention of the others would cost more than the tree saves."""
    growing = [FIXED + list(range(100, 100 + 20 * i)) + [90] for i in range(1, 8)]
    tree = share_rows([*growing, FIXED + list(range(300, 500))])
    assert tree.branches.shape[1] < 30 and tree.trunks.shape[0] == 2


def test_rows_that_share_little_are_left_as_they_are():
    assert share_rows([[1, 2, 3], [4, 5, 6]]) is None
    assert share_rows([[1, 2, 3]]) is None and share_rows([[], [1, 2]]) is None
    ten = [[1] + [i] * 20 for i in range(2, 6)]
    assert LEAST_SAVING > 3 / (4 * 21) and share_rows(ten) is None


def test_the_last_token_of_a_row_is_its_own():
    """It predicts the answer, and is asked for by row."""
    tree = share_rows([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3]])
    assert tree.shared.max() == 3 and (tree.branches[:, 0] >= 0).all()


def test_prompts_that_are_sampled_behind_do_not_need_the_tree(monkeypatch):
    llm = small(monkeypatch).eval()
    ids, mask = padded(WORDS["growing"])
    tree = share_rows(WORDS["growing"])
    drawn = [llm.sample(llm.encode(ids, mask, tree=t), 2, max_new_tokens=5, temperature=0.0).ids for t in (tree, None)]
    assert torch.equal(*drawn)


def test_a_tree_stands_alone(monkeypatch):
    llm = small(monkeypatch)
    ids, mask = padded(WORDS["growing"])
    tree = share_rows(WORDS["growing"])
    with pytest.raises(ValueError, match="neither behind a fixed beginning"):
        llm.encode(ids, mask, llm.cache_prefix(torch.tensor([3, 4])), tree=tree)
