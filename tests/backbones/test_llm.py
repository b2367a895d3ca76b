"""The verbs of LLM against plain forward passes of transformers, one unpadded row at a time, without a cache."""

import contextlib
import copy
import functools
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import rms_norm
from transformers import AutoModelForCausalLM

from tests.conftest import make_tiny
from tests.runs_helper import REPOSITORY
from zoo.backbones import LLM, LoRA
from zoo.backbones.llm import Prefix
from zoo.backbones.shared_prefix import PackedPlan
from zoo.backbones.tiny import make_folder

RAGGED = (1, 4, 9, 6)  # prompt lengths
# a trie: 1 to 3 tokens, some with the same first or first two tokens
CANDIDATES = [(40,), (50, 60), (50, 61, 70), (50, 61, 71), (51, 60, 70), (52, 50), (53, 53, 53), (53, 53, 54)]


def random_rows(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 500, (n,), generator=generator).tolist() for n in lengths]


def pad_left(rows, pad=0):
    """(B, P) ids and mask."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def pad_right(rows, pad=0):
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])


def load_plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def next_logprobs(plain, row):
    """(V,) of the token after an unpadded row."""
    return plain(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(-1)


@torch.no_grad()
def answer_logprobs(plain, row, answer):
    """Log-probability of each answer token: one forward pass over prompt and answer."""
    logits = plain(input_ids=torch.tensor([row + list(answer)])).logits[0, len(row) - 1 : -1]
    return logits.log_softmax(-1)[range(len(answer)), list(answer)]


def close(got, expected, within=1e-5):
    """Equal up to rounding: relative to the value where it is larger than 1 (one float32 step at 20 is 2e-6)."""
    assert got.shape == expected.shape
    error = ((got - expected).abs() / expected.abs().clamp(min=1)).max()
    assert error < within, error


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_qwen2"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(str(folder)).eval()


@pytest.fixture(scope="module")
def plain(folder):
    return load_plain(folder)


@pytest.fixture
def rows():
    return random_rows(RAGGED)


@pytest.fixture
def adapted(folder):
    """A fresh LLM whose adapter does something."""
    llm = LLM(str(folder))
    llm.add_lora(LoRA(r=4, alpha=8))
    generator = torch.Generator().manual_seed(3)
    for name, p in llm.named_parameters():
        if "lora_B" in name:
            p.data = torch.randn(p.shape, generator=generator) * 0.3
    return llm.eval()


# ---- the model of the tests can tell right from wrong
def test_logits_are_far_from_uniform_and_depend_on_the_past(plain, rows):
    logp = next_logprobs(plain, rows[2])
    assert logp.exp().max() > 0.05 and logp.std() > 1
    other = [rows[2][0] + 1, *rows[2][1:]]
    assert (next_logprobs(plain, other) - logp).abs().max() > 0.1


def test_label_words_are_single_tokens(llm):
    for word in ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"):
        assert len(llm.tokenizer.encode(f" {word}", add_special_tokens=False)) == 1


# ---- encode
def test_encode(llm, plain, rows):
    ids, mask = pad_left(rows)
    prefix = llm.encode(ids, mask.long())
    assert prefix.lengths.tolist() == list(RAGGED) and prefix.mask.dtype == torch.bool
    assert torch.equal(prefix.embeddings, plain.get_input_embeddings()(ids))
    assert (llm.width, prefix.embeddings.shape[-1]) == (32, 32)
    assert prefix.cache is None and prefix.logits is None
    llm.score(prefix, [(3,)])
    assert prefix.cache.get_seq_length() == max(RAGGED)
    close(prefix.logits.log_softmax(-1), torch.stack([next_logprobs(plain, row) for row in rows]))


def test_prompts_padded_on_the_right_or_empty_are_refused(llm, rows):
    with pytest.raises(ValueError, match="padded on the left and hold at least one token"):
        llm.encode(*pad_right(rows))
    ids, mask = pad_left(rows)
    mask[0] = False
    with pytest.raises(ValueError, match="padded on the left and hold at least one token"):
        llm.encode(ids, mask)


# ---- score
def test_score_equals_one_pass_per_label(llm, plain, rows):
    scores = llm.score(llm.encode(*pad_left(rows)), CANDIDATES)
    expected = torch.stack([torch.stack([answer_logprobs(plain, row, c).sum() for c in CANDIDATES]) for row in rows])
    close(scores, expected)
    assert scores.dtype == torch.float32 and (scores - scores.roll(1, 1)).abs().min() > 1e-3  # order would show
    shuffled = [4, 0, 7, 3, 2, 6, 1, 5]
    again = llm.score(llm.encode(*pad_left(rows)), [CANDIDATES[i] for i in shuffled])
    close(again, expected[:, shuffled])


@pytest.mark.parametrize("candidates", [[(40,), (41,), (42,)], [(50, 61, 70)], [[50, 60], [51, 60]]])
def test_score_of_other_tries(llm, plain, rows, candidates):
    expected = torch.stack([torch.stack([answer_logprobs(plain, row, c).sum() for c in candidates]) for row in rows])
    close(llm.score(llm.encode(*pad_left(rows)), candidates), expected)


def test_score_twice_and_after_sampling_from_one_prefix(llm, rows):
    prefix = llm.encode(*pad_left(rows))
    first = llm.score(prefix, CANDIDATES)
    llm.sample(prefix, 2, max_new_tokens=3)
    assert torch.equal(llm.score(prefix, CANDIDATES), first)  # neither verb changes the cache


@pytest.mark.parametrize(
    "candidates", [[(5,), (5, 6)], [(5, 6), (5,)], [(5, 6), (7,), (5, 6)], [()], [(5,), ()], [(5,)] * 2]
)
def test_unfair_candidates_are_refused(llm, rows, candidates):
    with pytest.raises(ValueError, match="none the beginning of another"):
        llm.score(llm.encode(*pad_left(rows)), candidates)


# ---- logprobs
ANSWERS = [[[40, 41, 2], [50]], [[60, 61], [62, 63, 64, 2]], [[70], [71]], [[80, 81, 82, 83], [84, 2]]]  # B=4, n=2


def answers_tensor():
    ids, mask = pad_right([answer for group in ANSWERS for answer in group])
    return ids.view(4, 2, -1), mask.view(4, 2, -1)


def test_logprobs_equal_one_pass_per_answer(llm, plain, rows):
    answers, mask = answers_tensor()
    got = llm.logprobs(llm.encode(*pad_left(rows)), answers, mask)
    assert got.shape == (4, 2, 4) and got.dtype == torch.float32
    assert (got[~mask] == 0).all() and (got[mask] < 0).all()
    for b, row in enumerate(rows):
        for i, answer in enumerate(ANSWERS[b]):
            close(got[b, i, : len(answer)], answer_logprobs(plain, row, answer))


def test_ids_in_padding_never_matter(llm, rows):
    answers, mask = answers_tensor()
    ids, prompt_mask = pad_left(rows)
    noisy_ids, noisy_answers = ids.masked_fill(~prompt_mask, 77), answers.masked_fill(~mask, 78)
    got = llm.logprobs(llm.encode(ids, prompt_mask), answers, mask)
    close(llm.logprobs(llm.encode(noisy_ids, prompt_mask), noisy_answers, mask), got)
    scores = llm.score(llm.encode(ids, prompt_mask), CANDIDATES)
    close(llm.score(llm.encode(noisy_ids, prompt_mask), CANDIDATES), scores)


def test_logprobs_have_the_gradients_of_the_plain_loss(folder, plain, rows):
    """Summed log-probabilities of ragged answers after ragged prompts, against transformers' own cross-entropy."""
    llm = LLM(str(folder))
    plain.zero_grad()
    answers, mask = answers_tensor()
    llm.logprobs(llm.encode(*pad_left(rows)), answers, mask).sum().backward()
    for row, group in zip(rows, ANSWERS, strict=True):
        for answer in group:
            labels = torch.tensor([[-100] * len(row) + answer])
            loss = plain(input_ids=torch.tensor([row + answer]), labels=labels).loss  # a mean over the answer
            (-loss * len(answer)).backward()
    expected = dict(plain.named_parameters())
    assert len(expected) > 15
    for name, p in llm.model.named_parameters():
        scale = expected[name].grad.abs().max()
        assert scale > 1e-2, name
        close(p.grad / scale, expected[name].grad / scale, 1e-4)

    llm.zero_grad()  # a broken variant: no gradient through the prompt
    prefix = llm.encode(*pad_left(rows))
    llm.logprobs(Prefix(prefix.embeddings.detach(), prefix.mask), answers, mask).sum().backward()
    name = "model.embed_tokens.weight"
    difference = (dict(llm.model.named_parameters())[name].grad - expected[name].grad).abs().max()
    assert difference > 1e-2 * expected[name].grad.abs().max()


# ---- sample
@pytest.mark.parametrize("steps", [1, 12])
def test_greedy_equals_generate(llm, plain, rows, steps):
    got = llm.sample(llm.encode(*pad_left(rows)), 1, max_new_tokens=steps, temperature=0)
    for b, row in enumerate(rows):
        alone = plain.generate(
            torch.tensor([row]), attention_mask=torch.ones(1, len(row)), do_sample=False, max_new_tokens=steps
        )[0, len(row) :].tolist()
        assert got.ids[b, 0][got.mask[b, 0]].tolist() == alone
    ids, mask = pad_left(rows)
    batch = plain.generate(ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=steps)[:, ids.shape[1] :]
    assert torch.equal(got.ids[:, 0], batch)


def test_greedy_logprobs(llm, plain, rows):
    got = llm.sample(llm.encode(*pad_left(rows)), 1, max_new_tokens=5, temperature=0)
    for b, row in enumerate(rows):
        answer = got.ids[b, 0][got.mask[b, 0]].tolist()
        close(got.logprobs[b, 0, : len(answer)], answer_logprobs(plain, row, answer))


def test_sampled_logprobs_equal_logprobs(llm, rows):
    prefix = llm.encode(*pad_left(rows))
    got = llm.sample(prefix, 5, max_new_tokens=8, generator=torch.Generator().manual_seed(0))
    assert got.ids.shape == got.mask.shape == got.logprobs.shape == (4, 5, 8) and got.finished.shape == (4, 5)
    assert len({tuple(x) for x in got.ids[1].tolist()}) == 5  # n different answers
    with torch.no_grad():
        close(got.logprobs, llm.logprobs(prefix, got.ids, got.mask))
        assert (got.logprobs - llm.logprobs(prefix, got.ids.roll(1, 0), got.mask)).abs().max() > 0.1


def test_logprobs_of_a_temperature_are_those_of_its_distribution(llm, plain, rows):
    got = llm.sample(
        llm.encode(*pad_left(rows)), 3, max_new_tokens=1, temperature=0.5, generator=torch.Generator().manual_seed(0)
    )
    for b, row in enumerate(rows):
        cold = (next_logprobs(plain, row) / 0.5).log_softmax(-1)
        close(got.logprobs[b, :, 0], cold[got.ids[b, :, 0]])


def test_the_same_generator_gives_the_same_answers_and_the_global_one_is_left_alone(llm, rows):
    prefix, before = llm.encode(*pad_left(rows)), torch.get_rng_state()
    a, b, c = (
        llm.sample(prefix, 2, max_new_tokens=4, generator=torch.Generator().manual_seed(seed)).ids for seed in (1, 1, 2)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def chi_square(counts, probabilities):
    """Pearson's statistic and its degrees of freedom; tokens expected fewer than 5 times share one bin."""
    expected = probabilities * counts.sum()
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    return ((observed - expected) ** 2 / expected).sum().item(), len(observed) - 1


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampling_is_a_fair_draw(llm, plain, rows, temperature):
    rows, n = rows[:2], 10_000
    got = llm.sample(
        llm.encode(*pad_left(rows)),
        n,
        max_new_tokens=1,
        temperature=temperature,
        generator=torch.Generator().manual_seed(5),
    ).ids[:, :, 0]
    vocabulary = len(next_logprobs(plain, rows[0]))
    for b, row in enumerate(rows):
        counts = torch.bincount(got[b], minlength=vocabulary).double()
        logp = next_logprobs(plain, row).double()
        statistic, degrees = chi_square(counts, (logp / temperature).softmax(-1))
        assert degrees > 50 and statistic < degrees + 4 * (2 * degrees) ** 0.5
        for wrong in (logp / (1.4 * temperature), next_logprobs(plain, rows[1 - b]).double() / temperature):
            statistic, degrees = chi_square(counts, wrong.softmax(-1))
            assert statistic > degrees + 8 * (2 * degrees) ** 0.5  # another temperature, or the other row, would show
    independent = (got[:, : n // 2] == got[:, n // 2 :]).double().mean(1)  # two draws agree as often as they should
    for b, row in enumerate(rows):
        expected = (next_logprobs(plain, row).double() / temperature).softmax(-1).square().sum().item()
        assert abs(independent[b].item() - expected) < 5 * (expected / (n // 2)) ** 0.5


def test_a_tiny_temperature_is_greedy(llm, rows):
    prefix = llm.encode(*pad_left(rows))
    greedy = llm.sample(prefix, 3, max_new_tokens=8, temperature=0)
    cold = llm.sample(prefix, 3, max_new_tokens=8, temperature=1e-4, generator=torch.Generator().manual_seed(0))
    warm = llm.sample(prefix, 3, max_new_tokens=8, temperature=1.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(greedy.ids, cold.ids) and not torch.equal(greedy.ids, warm.ids)


def test_answers_end_at_an_end_token(folder, plain, rows):
    """The third greedy token of one row is declared an end token; that row stops there, the others go on."""
    llm = LLM(str(folder)).eval()
    free = llm.sample(llm.encode(*pad_left(rows)), 1, max_new_tokens=8, temperature=0)
    assert not free.finished.any() and free.mask.all()
    end = free.ids[2, 0, 2].item()
    llm.causal_lm.generation_config.eos_token_id = [end, 499]
    assert llm.eos_ids == sorted({2, end, 499})
    got = llm.sample(llm.encode(*pad_left(rows)), 1, max_new_tokens=8, temperature=0)
    for b in range(4):
        whole = free.ids[b, 0].tolist()
        length = whole.index(end) + 1 if end in whole else 8
        assert got.ids[b, 0, :length].tolist() == whole[:length]
        assert (got.ids[b, 0, length:] == llm.pad_id).all() and (got.logprobs[b, 0, length:] == 0).all()
        assert got.mask[b, 0].tolist() == [True] * length + [False] * (8 - length)
        assert bool(got.finished[b, 0]) == (end in whole)
    assert got.finished[2, 0] and not got.finished.all()
    close(got.logprobs[1, 0], free.logprobs[1, 0])  # a neighbour's end changes nothing

    alone = llm.sample(llm.encode(*pad_left(rows[2:3])), 2, max_new_tokens=8, temperature=0)
    assert alone.ids.shape == (1, 2, 3) and alone.finished.all()  # stops as soon as all have ended
    last = llm.sample(llm.encode(*pad_left(rows[2:3])), 1, max_new_tokens=3, temperature=0)
    assert last.finished.all()  # an end token at the very last place counts
    cut = llm.sample(llm.encode(*pad_left(rows[2:3])), 1, max_new_tokens=2, temperature=0)
    assert not cut.finished.any() and cut.mask.all()


def test_beam(llm, plain, rows):
    ids, mask = pad_left(rows)
    greedy = llm.sample(llm.encode(ids, mask), 1, max_new_tokens=6, temperature=0)
    texts = llm.beam(ids, mask, beams=1, max_new_tokens=6)
    assert texts == [llm.tokenizer.decode(row, skip_special_tokens=True) for row in greedy.ids[:, 0]]
    for b, row in enumerate(rows):  # alone and unpadded, from transformers itself
        out = plain.generate(
            torch.tensor([row]),
            attention_mask=torch.ones(1, len(row)),
            num_beams=4,
            do_sample=False,
            max_new_tokens=6,
            repetition_penalty=1.15,
        )
        wide = llm.beam(*pad_left([row]), beams=4, max_new_tokens=6, repetition_penalty=1.15)
        assert wide == [llm.tokenizer.decode(out[0, len(row) :], skip_special_tokens=True)]
        assert b > 0 or wide != texts[:1]


# ---- batches
def test_greedy_text(llm, rows):
    prefix = llm.encode(*pad_left(rows))
    texts = llm.greedy_text(prefix, 6)
    answers = llm.sample(prefix, 1, max_new_tokens=6, temperature=0)
    assert texts == [
        llm.tokenizer.decode([i for i in row.tolist() if i > 2], skip_special_tokens=True) for row in answers.ids[:, 0]
    ]
    assert len(set(texts)) > 1 and texts == llm.beam(*pad_left(rows), beams=1, max_new_tokens=6)


def test_batch_composition_never_matters(llm, rows):
    """Alone, in a batch, in another order, beside a far longer prompt, repeated."""
    long = random_rows([30], seed=9)
    together = llm.score(llm.encode(*pad_left(rows)), CANDIDATES)
    greedy = llm.sample(llm.encode(*pad_left(rows)), 1, max_new_tokens=6, temperature=0).ids
    for b, row in enumerate(rows):
        for batch, place in (([row], 0), (rows[::-1], 3 - b), ([*long, row], 1), ([row] * 3, 2)):
            close(llm.score(llm.encode(*pad_left(batch)), CANDIDATES)[place], together[b])
            ids = llm.sample(llm.encode(*pad_left(batch)), 1, max_new_tokens=6, temperature=0).ids[place]
            assert torch.equal(ids, greedy[b])


@pytest.mark.parametrize("broken", ["positions", "mask"])
def test_a_model_that_counts_padding_would_be_caught(llm, rows, monkeypatch, broken):
    ids, mask = pad_left(rows)
    right = llm.score(llm.encode(ids, mask), CANDIDATES)
    if broken == "positions":  # new tokens numbered from the left edge of the batch
        right_ones = PackedPlan.positions.fget
        shift = torch.cat([torch.zeros_like(mask).long(), (~mask).sum(1, keepdim=True).expand(-1, 99)], 1)
        monkeypatch.setattr(
            PackedPlan, "positions", property(lambda plan: right_ones(plan) + shift[:, : right_ones(plan).shape[1]])
        )
        wrong = llm.score(llm.encode(ids, mask), CANDIDATES)
    else:
        wrong = llm.score(llm.encode(ids, torch.ones_like(mask)), CANDIDATES)
    assert (wrong - right)[2].abs().max() < 1e-5  # the longest row has no padding
    assert (wrong - right)[[0, 1, 3]].abs().amax(1).min() > 1e-2


def test_scores_of_one_pass_are_those_behind_a_kept_prompt(llm, rows, monkeypatch):
    ids, mask = pad_left(rows)
    passes = []
    follow = llm.forward_with_plan

    def counted(embeddings, plan):
        passes.append(plan.prompt.shape[1])
        return follow(embeddings, plan)

    monkeypatch.setattr(llm, "forward_with_plan", counted)
    prefix = llm.encode(ids, mask)
    at_once = llm.score(prefix, CANDIDATES)
    assert passes == [ids.shape[1]] and prefix.cache is None
    llm.prefill(prefix)
    close(llm.score(prefix, CANDIDATES), at_once)
    assert passes == [ids.shape[1], 0]  # the second time the prompt was there


def test_embeddings_as_prompts_equal_ids(llm, rows):
    ids, mask = pad_left(rows)
    answers, answer_mask = answers_tensor()
    by_ids, by_embeddings = llm.encode(ids, mask), llm.encode(llm.embed(ids).detach(), mask)
    assert torch.equal(llm.score(by_ids, CANDIDATES), llm.score(by_embeddings, CANDIDATES))
    assert torch.equal(llm.logprobs(by_ids, answers, answer_mask), llm.logprobs(by_embeddings, answers, answer_mask))
    a, b = (llm.sample(p, 1, max_new_tokens=4, temperature=0) for p in (by_ids, by_embeddings))
    assert torch.equal(a.ids, b.ids)
    louder = llm.encode(llm.embed(ids).detach() * 1.5, mask)  # what is embedded is what is read
    assert (llm.score(louder, CANDIDATES) - llm.score(by_ids, CANDIDATES)).abs().max() > 0.1


def test_all_verbs_in_float64(folder, rows, monkeypatch):
    """What is left at fp32 is rounding: in double precision the verbs agree with plain passes to 1e-10. `head` promises
    float32, and the norms and the eager attention of transformers go through float32, so these are replaced."""
    llm, plain = LLM(str(folder)).eval().double(), load_plain(folder).double()
    plain.set_attn_implementation("sdpa")
    monkeypatch.setattr(LLM, "head", lambda llm, hidden: llm.causal_lm.get_output_embeddings()(hidden))
    for module in (*llm.modules(), *plain.modules()):
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(rms_norm, normalized_shape=(32,), weight=module.weight, eps=1e-6)
    prefix = llm.encode(*pad_left(rows))
    expected = torch.stack([torch.stack([answer_logprobs(plain, row, c).sum() for c in CANDIDATES]) for row in rows])
    scores = llm.score(prefix, CANDIDATES)
    assert scores.dtype == expected.dtype == torch.float64
    close(scores, expected, 1e-10)
    answers, mask = answers_tensor()
    logprobs = llm.logprobs(prefix, answers, mask)
    for b, row in enumerate(rows):
        for i, answer in enumerate(ANSWERS[b]):
            close(logprobs[b, i, : len(answer)], answer_logprobs(plain, row, answer), 1e-10)
    drawn = llm.sample(prefix, 3, max_new_tokens=6, generator=torch.Generator().manual_seed(0))
    close(drawn.logprobs, llm.logprobs(prefix, drawn.ids, drawn.mask), 1e-10)


# ---- adapters
Q_V = r"model\.layers\.\d+\.self_attn\.(q|v)_proj"


def test_reference_is_the_model_before_lora(adapted, plain, rows):
    answers, mask = answers_tensor()
    expected = torch.stack([torch.stack([answer_logprobs(plain, row, c).sum() for c in CANDIDATES]) for row in rows])
    with_adapter = adapted.score(adapted.encode(*pad_left(rows)), CANDIDATES)
    assert (with_adapter - expected).abs().max() > 0.5
    with adapted.reference():
        close(adapted.score(adapted.encode(*pad_left(rows)), CANDIDATES), expected)
        logprobs = adapted.logprobs(adapted.encode(*pad_left(rows)), answers, mask)
        close(logprobs[1, 1], answer_logprobs(plain, rows[1], ANSWERS[1][1]))
    assert torch.equal(adapted.score(adapted.encode(*pad_left(rows)), CANDIDATES), with_adapter)


def test_a_prefix_knows_which_weights_its_cache_is_of(adapted, rows):
    """One prefix used on both sides: the cache of the other side must not be taken."""
    prefix = adapted.encode(*pad_left(rows))
    with_adapter = adapted.score(prefix, CANDIDATES)
    with adapted.reference():
        reference = adapted.score(prefix, CANDIDATES)
        assert torch.equal(reference, adapted.score(adapted.encode(*pad_left(rows)), CANDIDATES))
        drawn = adapted.sample(prefix, 1, max_new_tokens=4, temperature=0)
    assert torch.equal(adapted.score(prefix, CANDIDATES), with_adapter)
    assert (with_adapter - reference).abs().max() > 0.5
    assert not torch.equal(drawn.ids, adapted.sample(prefix, 1, max_new_tokens=4, temperature=0).ids)


def test_the_adapter_comes_back_after_an_error(adapted, rows):
    before = adapted.score(adapted.encode(*pad_left(rows)), CANDIDATES)
    with contextlib.suppress(RuntimeError), adapted.reference():
        raise RuntimeError
    assert torch.equal(adapted.score(adapted.encode(*pad_left(rows)), CANDIDATES), before)


def test_reference_needs_lora(llm):
    with pytest.raises(ValueError, match=r"reference\(\) needs LoRA"), llm.reference():
        pass


def trained(llm):
    return {n: p.numel() for n, p in llm.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "targets, per_layer",
    [
        (Q_V, {"tiny_llama": 4 * 64 * 2, "tiny_qwen2": 4 * (64 + 32 + 16)}),  # r (in + out), qwen2: v gives 16
        (r"model\.layers\.\d+\.mlp\.down_proj", {"tiny_llama": 4 * 96, "tiny_qwen2": 4 * 96}),
        (r".*_proj", {"tiny_llama": 4 * (4 * 64 + 3 * 96), "tiny_qwen2": 4 * (2 * 64 + 2 * 48 + 3 * 96)}),
    ],
)
def test_lora_counts(folder, targets, per_layer):
    llm = LLM(str(folder))
    whole = sum(p.numel() for p in llm.parameters())
    llm.add_lora(LoRA(r=4, targets=targets))
    assert sum(trained(llm).values()) == 2 * per_layer[folder.name]
    assert all(".lora_" in name for name in trained(llm))
    assert sum(p.numel() for p in llm.parameters()) == whole + 2 * per_layer[folder.name]


def test_one_layer_alone_can_be_adapted(folder):
    llm = LLM(str(folder))
    llm.add_lora(LoRA(r=4, targets=r"model\.layers\.1\.self_attn\.q_proj"))
    assert len(trained(llm)) == 2 and all(".layers.1.self_attn.q_proj." in name for name in trained(llm))


@pytest.mark.parametrize("targets", ["q_proj", r"self_attn\.q_proj", r"layers\.\d+\.self_attn\.q_proj", r"model\.norm"])
def test_a_part_of_a_name_matches_nothing_and_the_names_are_listed(folder, targets):
    llm = LLM(str(folder))
    with pytest.raises(ValueError, match=re.escape(repr(targets))) as error:
        llm.add_lora(LoRA(targets=targets))
    assert "'model.layers.N.self_attn.q_proj'" in str(error.value) and llm.lora is None
    assert sum(trained(llm).values()) == sum(p.numel() for p in llm.parameters())


def test_a_part_whose_names_end_alike_is_not_adapted(folder):
    """A vision encoder inside the model with layers of the same names: only the full name counts."""
    llm = LLM(str(folder))
    llm.model.vision = copy.deepcopy(llm.model)
    llm.add_lora(LoRA(targets=Q_V))
    assert len(trained(llm)) == 2 * 2 * 2 and not any("vision" in name for name in trained(llm))


def test_lora_starts_as_the_model_itself_and_its_scale_is_alpha_over_r(folder, rows):
    llm = LLM(str(folder)).eval()
    before = llm.score(llm.encode(*pad_left(rows)), CANDIDATES)
    llm.add_lora(LoRA(r=4, alpha=32, dropout=0.25, targets=Q_V))
    close(llm.score(llm.encode(*pad_left(rows)), CANDIDATES), before)
    layer = llm.causal_lm.get_decoder().layers[0].self_attn.q_proj
    layer.lora_B["default"].weight.data.fill_(0.1)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 32 / 4
    close(llm.eval().causal_lm.get_decoder().layers[0].self_attn.q_proj(x), layer.base_layer(x) + x @ update.T)
    assert layer.lora_dropout["default"].p == 0.25


def test_gradient_checkpointing_changes_neither_gradients_nor_cached_verbs(folder, llm, rows):
    """In training mode transformers drops the cache under gradient checkpointing: sampling would go on without it."""
    other = LLM(str(folder), gradient_checkpointing=True)
    assert other.training and other.causal_lm.get_decoder().layers[0].gradient_checkpointing
    answers, mask = answers_tensor()
    for model in (llm, other):
        model.zero_grad()
        model.logprobs(model.encode(*pad_left(rows)), answers, mask).sum().backward()
    for (name, p), q in zip(other.named_parameters(), llm.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-4), name
    llm.zero_grad()
    close(*(m.score(m.encode(*pad_left(rows)), CANDIDATES) for m in (other, llm)))
    a, b = (m.sample(m.encode(*pad_left(rows)), 1, max_new_tokens=6, temperature=0) for m in (other, llm))
    assert torch.equal(a.ids, b.ids)
    assert other.causal_lm.get_decoder().layers[0].gradient_checkpointing  # still on for the next step


def test_cached_verbs_have_no_gradients_whatever_the_mode(folder, rows):
    llm = LLM(str(folder))
    prefix = llm.encode(*pad_left(rows))  # with gradients
    assert prefix.embeddings.requires_grad
    scores = llm.score(prefix, CANDIDATES)
    drawn = llm.sample(prefix, 2, max_new_tokens=2)
    assert not scores.requires_grad and not drawn.logprobs.requires_grad and not prefix.logits.requires_grad
    assert llm.logprobs(prefix, drawn.ids, drawn.mask).requires_grad


# ---- loading
def test_a_model_is_loaded_in_training_mode_and_in_the_asked_dtype(tiny_llama, tmp_path):
    """transformers would take the folder's own dtype and evaluation mode."""
    half = shutil.copytree(tiny_llama, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float16).save_pretrained(half)
    assert json.loads((half / "config.json").read_text())["dtype"] == "float16"
    assert {p.dtype for p in LLM(str(half)).parameters()} == {torch.float32}
    assert {p.dtype for p in LLM(str(half), dtype="bfloat16").parameters()} == {torch.bfloat16}
    llm = LLM(str(half))
    assert all(m.training for m in llm.modules())
    assert llm.head(torch.zeros(1, 32)).dtype == torch.float32
    assert LLM(str(half), dtype="bfloat16").head(torch.zeros(1, 32, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.fixture
def broken(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "broken")


def test_missing_folder_and_missing_weights(broken, tmp_path):
    with pytest.raises(FileNotFoundError, match="no language model at"):
        LLM(str(tmp_path / "nowhere"))
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors: its weights are in pytorch_model.bin"):
        LLM(str(broken))


@pytest.mark.parametrize("kept", [0.6, 0.01, 0.0])
def test_truncated_weights(broken, kept):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(ValueError, match="could not be read .* truncated or damaged download"):
        LLM(str(broken))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(broken, value):
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"not finite .* 1 tensors: \['model.layers.1.mlp.up_proj.weight'\]"):
        LLM(str(broken))


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("hidden_size", 48, "20 mismatched keys: .*model.embed_tokens.weight"),
        ("intermediate_size", 32, "6 mismatched keys: .*mlp.down_proj.weight"),
        ("vocab_size", 700, "1 mismatched keys: .*model.embed_tokens.weight"),
        ("num_hidden_layers", 3, "9 missing keys: .*model.layers.2"),
        ("num_hidden_layers", 1, "9 unexpected keys: .*model.layers.1"),
    ],
)
def test_a_config_of_another_shape(broken, key, value, message):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError, match=f"do not fit its config.json: {message}"):
        LLM(str(broken))


def test_unknown_shape():
    with pytest.raises(ValueError, match="unknown shape 'llama-9'; expected one of llama-2-7b, llama-3-8b"):
        LLM("shape:llama-9", device="meta")


# ---- padding of tokenizers that have no (usable) pad token
def change_tokenizer(folder, **values):
    file = folder / "tokenizer_config.json"
    config = {k: v for k, v in (json.loads(file.read_text()) | values).items() if v is not None}
    file.write_text(json.dumps(config))


def test_a_tokenizer_without_pad_token_pads_with_unk_or_end_of_text(broken, rows):
    change_tokenizer(broken, pad_token=None)
    llm = LLM(str(broken))
    assert llm.tokenizer.pad_token is None and llm.pad_id == llm.tokenizer.eos_token_id == 2
    change_tokenizer(broken, unk_token="<s>")  # any token serves
    assert LLM(str(broken)).pad_id == 1
    plain = load_plain(broken)
    got = llm.eval().score(llm.encode(*pad_left(rows, llm.pad_id)), CANDIDATES)  # padding with the end token is masked
    close(got[0], torch.stack([answer_logprobs(plain, rows[0], c).sum() for c in CANDIDATES]))
    drawn = llm.sample(llm.encode(*pad_left(rows, llm.pad_id)), 2, max_new_tokens=4)
    assert drawn.ids.max() < 640


def test_a_pad_token_beyond_the_embedding_is_not_used(broken, rows):
    """As copies of Llama-2 have it: [PAD] = 32000 of 32000 rows."""
    size = json.loads((broken / "config.json").read_text())["vocab_size"]
    tokenizer = json.loads((broken / "tokenizer.json").read_text())
    pad = tokenizer["added_tokens"][0] | {"id": size, "content": "[PAD]"}
    tokenizer["added_tokens"].append(pad)
    (broken / "tokenizer.json").write_text(json.dumps(tokenizer))
    change_tokenizer(broken, pad_token="[PAD]")
    llm = LLM(str(broken)).eval()
    assert llm.tokenizer.pad_token_id == size == len(llm.tokenizer) - 1
    assert llm.pad_id == 2 and llm.causal_lm.generation_config.pad_token_id == 2
    with pytest.raises(IndexError):
        llm.embed(torch.tensor([llm.tokenizer.pad_token_id]))
    ids, mask = pad_left(rows, llm.pad_id)
    assert llm.sample(llm.encode(ids, mask), 2, max_new_tokens=4).ids.max() < size
    assert len(llm.beam(ids, mask, beams=2, max_new_tokens=3)) == 4


def test_a_second_model_has_other_weights(tmp_path, tiny_llama):
    """The fixtures' seed is used: otherwise 'equal' above could mean 'all models are equal'."""
    other = make_tiny(tmp_path / "other", seed=1)
    a, b = (load_file(f / "model.safetensors")["model.norm.weight"] for f in (tiny_llama, other))
    assert not torch.equal(a, b)
    assert isinstance(LLM(str(other)).model, nn.Module)


# loads a language model in a process of its own; prints by how much its private memory grew, and the weights' dtypes
MEASURED = """
import sys
from tests.memory_use import Memory
from zoo.backbones import LLM

LLM(sys.argv[1])  # imports what a model needs
with Memory() as memory:
    llm = LLM(sys.argv[2], dtype=sys.argv[3], mapped=sys.argv[4] == "mapped")
print(memory.own, *{str(p.dtype) for p in llm.parameters()})
"""


def test_mapped_weights_stay_in_their_file_until_they_are_divided(tiny_llama, tmp_path):
    """100 MB of them are no memory of the process, whatever dtype is wanted."""
    large = make_folder(tmp_path / "large", ["joy"], hidden_size=512, layers=8, heads=8, intermediate_size=1500)
    size = (large / "model.safetensors").stat().st_size
    assert size > 100_000_000

    def grown(dtype: str, mapped: str) -> tuple[int, str]:
        command = [sys.executable, "-c", MEASURED, tiny_llama, large, dtype, mapped]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
        number, kind = done.stdout.split()
        return int(number), kind

    for dtype in ("float32", "bfloat16"):
        number, kind = grown(dtype, "mapped")
        assert number < 0.2 * size and kind == "torch.float32"
    number, kind = grown("bfloat16", "converted")
    assert number > 0.4 * size and kind == "torch.bfloat16"


@pytest.mark.parametrize("stored", ["as one dtype", "as several"])
def test_mapped_weights_are_those_of_the_file_whatever_the_config_says_of_their_dtype(tiny_llama, tmp_path, stored):
    folder = shutil.copytree(tiny_llama, tmp_path / "llama")
    weights = load_file(folder / "model.safetensors")
    if stored == "as several":
        other = {"model.embed_tokens.weight": weights["model.embed_tokens.weight"].bfloat16()}
        save_file(weights | other, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    whole, mapped = (dict(LLM(str(folder), mapped=m).named_parameters()) for m in (False, True))
    assert len(whole) > 10
    for name, parameter in whole.items():
        assert torch.equal(mapped[name], parameter), name
