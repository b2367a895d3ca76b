"""Filters against those of transformers, stop strings against answers cut by hand, and the default against neither."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from zoo.backbones import LLM, Sampling


@pytest.fixture(scope="module")
def llm(tiny_qwen2):
    return LLM(str(tiny_qwen2))


def prompts(llm):
    ids = torch.randint(5, 400, (3, 6), generator=torch.Generator().manual_seed(0))
    return llm.encode(ids, torch.ones_like(ids))


def drawn(llm, n=5, tokens=12, seed=0, temperature=0.9, **how):
    generator = torch.Generator().manual_seed(seed)
    return llm.sample(
        prompts(llm), n, max_new_tokens=tokens, temperature=temperature, generator=generator, sampling=Sampling(**how)
    )


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(top_k=3),
        Sampling(top_p=0.7),
        Sampling(min_p=0.2),
        Sampling(top_k=500),  # more than there are
        Sampling(top_p=1e-6),  # the first one stays
        Sampling(0.8, 20, 0.1),
    ],
    ids=str,
)
def test_filters_are_those_of_transformers(sampling):
    logits = 3 * torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    expected = logits
    if sampling.top_k:
        expected = TopKLogitsWarper(sampling.top_k)(None, expected)
    if sampling.top_p < 1:
        expected = TopPLogitsWarper(sampling.top_p)(None, expected)
    if sampling.min_p:
        expected = MinPLogitsWarper(sampling.min_p)(None, expected)
    filtered = sampling.probabilities(logits.log_softmax(1))
    torch.testing.assert_close(filtered / filtered.sum(1, keepdim=True), expected.softmax(1))


def test_written_out():
    logp = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    for sampling, kept in (
        (Sampling(top_k=2), [1, 1, 0, 0]),
        (Sampling(top_p=0.75), [1, 1, 0, 0]),
        (Sampling(top_p=0.76), [1, 1, 1, 0]),
        (Sampling(min_p=0.25), [1, 1, 1, 0]),
        (Sampling(top_k=3, top_p=0.83), [1, 1, 0, 0]),  # of .9: .5 and .25 are .833 of it
    ):
        assert (sampling.probabilities(logp)[0] > 0).tolist() == [bool(k) for k in kept], sampling
        assert sampling.filters
    assert not Sampling().filters and not Sampling(stop_strings=("x",)).filters


def test_log_probabilities_stay_those_of_the_whole_distribution(llm):
    answers = drawn(llm, top_k=2)
    whole = llm.logprobs(prompts(llm), answers.ids, answers.mask, 0.9)
    torch.testing.assert_close(answers.logprobs, whole, rtol=1e-4, atol=1e-4)
    logits = torch.stack([llm.causal_lm(input_ids=prompts_ids).logits[0, -1] for prompts_ids in heads(llm)])
    best = logits.topk(2).indices
    assert all(int(token) in best[b].tolist() for b in range(3) for token in answers.ids[b, :, 0])
    assert len(set(answers.ids[:, :, 0].flatten().tolist())) > 1 and math.isfinite(float(answers.logprobs.sum()))


def heads(llm):
    ids = torch.randint(5, 400, (3, 6), generator=torch.Generator().manual_seed(0))
    return ids[:, None]


def test_a_filter_that_keeps_all_draws_the_same(llm):
    one, other = drawn(llm), drawn(llm, top_k=10_000)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---- stop strings
@pytest.mark.parametrize("ahead", [1, 5])
def test_an_answer_ends_with_its_stop_string(llm, ahead, monkeypatch):
    """As if each answer had been written to its end and cut behind the token that completes the string; on a GPU, which
    works some tokens ahead, too."""
    if ahead > 1:
        monkeypatch.setattr("zoo.backbones.decoding.ahead_of_checks", lambda device, tokens: ahead)
    free = drawn(llm)
    texts = {i: llm.tokenizer.decode(row[:4].tolist()) for i, row in enumerate(free.ids.flatten(0, 1))}
    stop = next(text[1:3] for text in texts.values() if len(text.strip()) > 4)
    answers = drawn(llm, stop_strings=(stop, "never this"))
    stopped = 0
    # a first answer draws what it drew without: what is drawn for others behind it may differ
    for ids, mask, done, logp in zip(
        *(x.flatten(0, 1) for x in answers[:2]), answers.finished.flatten(), answers.logprobs.flatten(0, 1), strict=True
    ):
        length = int(mask.sum())
        text = [llm.tokenizer.decode(ids[:i].tolist(), skip_special_tokens=True) for i in range(length + 1)]
        assert stop not in text[length - 1] and mask[:length].all()
        assert (ids[length:] == llm.pad_id).all() and (logp[length:] == 0).all()
        ended = int(ids[length - 1]) in llm.eos_ids
        assert bool(done) == (ended or stop in text[length])
        stopped += stop in text[length]
    assert stopped > 0


def test_greedy_answers_stop_too(llm):
    free = drawn(llm, 1, temperature=0.0)
    stop = llm.tokenizer.decode(free.ids[0, 0, :3].tolist())[-2:]
    answers = drawn(llm, 1, temperature=0.0, stop_strings=(stop,))
    length = int(answers.mask[0, 0].sum())
    assert (
        0 < length <= 3
        and bool(answers.finished[0, 0])
        and torch.equal(answers.ids[0, 0, :length], free.ids[0, 0, :length])
    )


def test_a_string_that_ends_with_the_last_token(llm):
    """Also there, where no look for finished answers follows."""
    free = drawn(llm, 1, tokens=3, temperature=0.0)
    text = llm.tokenizer.decode(free.ids[0, 0].tolist())
    answers = drawn(llm, 1, tokens=3, temperature=0.0, stop_strings=(text,))
    assert bool(answers.finished[0, 0]) and int(answers.mask[0, 0].sum()) == 3 and not bool(free.finished[0, 0])


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"min_p": 2.0}])
def test_what_is_no_share(wrong):
    with pytest.raises(ValueError, match="top_p above 0 and up to 1"):
        Sampling(**wrong)


def test_an_empty_stop_string():
    with pytest.raises(ValueError, match="at least one character"):
        Sampling(stop_strings=("a", ""))
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "ab" * len(ids))
    assert Sampling(stop_strings=("ba",))._end(SimpleNamespace(tokenizer=tokenizer), [1, 2, 3]) == 2
