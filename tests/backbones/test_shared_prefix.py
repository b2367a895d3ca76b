"""Answers that share their prompt give what separate rows give: losses, gradients, and what is decoded.

The other side of every comparison is the plain path of the same weights, which computes each prompt again for every
answer; that path is compared with transformers' own forward pass in test_llm.py.
"""

from types import SimpleNamespace

import pytest
import torch

from zoo.backbones import LLM, LoRA, shared_prefix
from zoo.backbones.llm import Prefix
from zoo.backbones.shared_prefix import PackedPlan, repeat_heads
from zoo.backbones.token_decoder import AnswerCache

TARGETS = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
CASES = {  # lengths of the prompts, lengths of the answers of each; 0 is an answer that is left out
    "ragged": ([5, 1, 9], [[3, 1, 4], [2, 2, 2], [1, 5, 3]]),
    "one answer": ([4, 7], [[3], [2]]),
    "one prompt": ([6], [[2, 4, 1, 3]]),
    "prompts of one token": ([1, 1], [[2, 3], [4, 1]]),
    "answers of one token": ([3, 8], [[1, 1, 1], [1, 1, 1]]),
    "answers left out": ([5, 3], [[3, 0, 2], [0, 0, 4]]),
}


def pair(folder, dtype="float32", lora=True):
    """The same weights twice: sharing and plain, with the same adapters far from zero."""
    models = [LLM(str(folder), dtype=dtype) for _ in range(2)]
    assert (
        models[0].prefix_sharing_unsupported_reason is None
        and "eager" in LLM(str(folder), attention="eager").prefix_sharing_unsupported_reason
    )
    models[1].prefix_sharing_unsupported_reason = "this is the plain one"
    if dtype == "float64":  # transformers' norms go through float32: a flip of its last bit would be 1e-7
        for norm in (m for model in models for m in model.modules() if type(m).__name__.endswith("RMSNorm")):
            norm.forward = lambda x, n=norm: n.weight * x * torch.rsqrt(x.square().mean(-1, True) + n.variance_epsilon)
    for model in models:
        if lora:
            model.add_lora(LoRA(r=4, alpha=8, dropout=0.0, targets=TARGETS))
            generator = torch.Generator().manual_seed(1)
            for name, p in sorted(model.named_parameters()):
                if ".lora_" in name:
                    p.data = 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
    return models


def batch(case, vocabulary=400):
    prompts, lengths = CASES[case]
    generator = torch.Generator().manual_seed(3)
    p, t = max(prompts), max(max(row) for row in lengths)
    ids = torch.randint(3, vocabulary, (len(prompts), p), generator=generator)
    mask = torch.arange(p) >= p - torch.tensor(prompts)[:, None]
    answers = torch.randint(3, vocabulary, (len(prompts), len(lengths[0]), t), generator=generator)
    return ids, mask, answers, torch.arange(t) < torch.tensor(lengths)[..., None]


def loss_of(model, ids, mask, answers, real, embeddings=None):
    """A loss with a weight of its own for every token, so that no error can cancel."""
    prefix = model.encode(ids if embeddings is None else embeddings, mask)
    logp = model.logprobs(prefix, answers, real)
    weight = torch.linspace(-1, 2, logp.numel(), dtype=logp.dtype).view_as(logp)
    assert (logp[~real] == 0).all()
    return (logp * weight).sum() / real.sum()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2"])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-10)])
def test_loss_and_every_gradient(family, case, dtype, tolerance, request):
    losses, gradients = [], []
    for model in pair(request.getfixturevalue(family), dtype):
        loss = loss_of(model, *batch(case))
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=tolerance / 10)
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 2 * 2 * 7
    for name, one in gradients[0].items():
        other = gradients[1][name]
        assert other.norm() > 0 and (one - other).norm() <= tolerance * other.norm(), name


def test_gradients_reach_embedded_prompts(tiny_llama):
    """Images and voices enter as embeddings: the gradient of a prompt is the sum over its answers."""
    ids, mask, answers, real = batch("ragged")
    found = []
    for model in pair(tiny_llama):
        embeddings = model.embed(ids).detach().requires_grad_()
        loss_of(model, ids, mask, answers, real, embeddings).backward()
        found.append(embeddings.grad[mask])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    assert found[0].abs().amax(1).min() > 0


def test_what_padding_holds_does_not_matter(tiny_qwen2):
    model = pair(tiny_qwen2)[0]
    ids, mask, answers, real = batch("ragged")
    with torch.no_grad():
        expected = model.logprobs(model.encode(ids, mask), answers, real)
        other = model.logprobs(model.encode(ids.masked_fill(~mask, 7), mask), answers.masked_fill(~real, 9), real)
    torch.testing.assert_close(other, expected, rtol=0, atol=0)


def test_answers_do_not_see_each_other(tiny_llama):
    model = pair(tiny_llama)[0]
    ids, mask, answers, real = batch("ragged")
    changed = answers.clone()
    changed[:, 1] = changed[:, 1].roll(1, -1)
    with torch.no_grad():
        prefix = model.encode(ids, mask)
        a, b = (model.logprobs(prefix, x, real) for x in (answers, changed))
    assert torch.equal(a[:, [0, 2]], b[:, [0, 2]]) and not torch.equal(a[:, 1], b[:, 1])


def test_some_logits_at_a_time(tiny_llama, monkeypatch):
    """Pieces of the vocabulary's input, each computed again in the backward pass, change nothing."""
    results = []
    for at_once in (2**25, 640 * 3):
        monkeypatch.setattr("zoo.backbones.decoding.LOGITS_AT_ONCE", at_once)
        model = pair(tiny_llama)[0]
        loss = loss_of(model, *batch("ragged"))
        loss.backward()
        results.append((loss.item(), [p.grad for p in model.parameters() if p.grad is not None]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # sums in another order, which CPUs do differently


def test_temperature(tiny_llama):
    model = pair(tiny_llama)[0]
    ids, mask, answers, real = batch("ragged")
    with torch.no_grad():
        prefix = model.encode(ids, mask)
        drawn = model.sample(prefix, 3, max_new_tokens=5, temperature=0.7, generator=torch.Generator().manual_seed(0))
        again = model.logprobs(prefix, drawn.ids, drawn.mask, 0.7)
        torch.testing.assert_close(again, drawn.logprobs, rtol=0, atol=1e-5)
        assert (model.logprobs(prefix, drawn.ids, drawn.mask) - drawn.logprobs).abs().max() > 0.1


def test_checkpointed_layers_attend_alike(tiny_llama):
    """Recomputed activations meet the same plan."""
    found = []
    for checkpointing in (False, True):
        model = LLM(str(tiny_llama), gradient_checkpointing=checkpointing)
        loss_of(model, *batch("ragged")).backward()
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


# ---- decoding
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2"])
def test_greedy_answers_are_those_of_separate_rows(family, request):
    ids, mask, *_ = batch("ragged")
    shared, plain = pair(request.getfixturevalue(family))
    a, b = (m.sample(m.encode(ids, mask), 2, max_new_tokens=7, temperature=0) for m in (shared, plain))
    assert torch.equal(a.ids, b.ids) and torch.equal(a.mask, b.mask) and torch.equal(a.finished, b.finished)
    torch.testing.assert_close(a.logprobs, b.logprobs, rtol=0, atol=1e-5)


def test_finished_answers_leave_and_the_others_go_on_unchanged(tiny_llama, monkeypatch):
    """Half of the vocabulary ends an answer: rows end one after the other, prompts too."""
    shared, plain = pair(tiny_llama, dtype="float64")
    ids, mask, *_ = batch("ragged")
    sizes: list[int] = []
    attend = AnswerCache.attend

    def counted(cache, layer, heads, scaling):
        sizes.append(len(heads))
        return attend(cache, layer, heads, scaling)

    monkeypatch.setattr(AnswerCache, "attend", counted)
    for model in (shared, plain):
        model.causal_lm.generation_config.eos_token_id = list(range(0, 400, 6))
    drawn = shared.sample(shared.encode(ids, mask), 16, max_new_tokens=12, generator=torch.Generator().manual_seed(5))
    assert sizes[0] == 48 and min(sizes) < 30  # they left
    lengths = drawn.mask.sum(-1)
    assert lengths.min() < 3 and lengths.max() > 6
    with torch.no_grad():  # every log-probability, whenever its neighbours left, is that of separate rows
        expected = plain.logprobs(plain.encode(ids, mask), drawn.ids, drawn.mask)
    torch.testing.assert_close(drawn.logprobs, expected, rtol=0, atol=2e-6)  # logits are float32
    ends = drawn.ids.gather(2, (lengths - 1)[..., None])[..., 0]
    stops = torch.isin(ends, torch.tensor(shared.eos_ids))
    assert torch.equal(stops, drawn.finished) and (drawn.ids[~drawn.mask] == shared.pad_id).all()
    assert torch.equal(drawn.mask, torch.arange(drawn.mask.shape[2]) < lengths[..., None])


def test_sampling_switches_dropout_off_and_back_on(tiny_llama):
    model = LLM(str(tiny_llama))
    model.add_lora(LoRA(r=4, alpha=8, dropout=0.5, targets=TARGETS))
    for name, p in model.named_parameters():
        if ".lora_B" in name:
            p.data.normal_()
    ids, mask, *_ = batch("ragged")
    assert model.training
    a, b = (model.sample(model.encode(ids, mask), 1, max_new_tokens=5, temperature=0) for _ in range(2))
    assert torch.equal(a.logprobs, b.logprobs)
    assert model.training and all(m.training for m in model.modules())


# ---- what is served
def test_models_that_cannot_share_say_why():
    def config(**values):
        return SimpleNamespace(**values)

    assert shared_prefix.unsupported_reason(config(model_type="qwen2", layer_types=["full_attention"] * 2)) is None
    assert shared_prefix.unsupported_reason(config(model_type="llama")) is None
    assert "sliding_attention" in shared_prefix.unsupported_reason(
        config(model_type="qwen2", layer_types=["full_attention", "sliding_attention"])
    )
    assert "glm4" in shared_prefix.unsupported_reason(config(model_type="glm4"))


def test_a_dropped_mask_would_be_noticed(tiny_llama, monkeypatch):
    """The comparison with plain rows fails if answers see each other, or positions do not restart."""
    shared, plain = pair(tiny_llama)
    inputs = batch("ragged")

    def differs():
        with torch.no_grad():
            return abs(loss_of(shared, *inputs).item() - loss_of(plain, *inputs).item()) > 1e-3

    assert not differs()
    assert shared.check_sharing() < 1e-5 and plain.check_sharing() is None
    right = PackedPlan.positions.fget
    with monkeypatch.context() as patch:
        patch.setattr(PackedPlan, "positions", property(lambda p: torch.arange(right(p).shape[1]).expand_as(right(p))))
        assert differs()
        with pytest.raises(RuntimeError, match="does not apply the attention mask"):
            shared.check_sharing()
    with monkeypatch.context() as patch:
        patch.setattr(
            PackedPlan,
            "__post_init__",
            lambda plan: setattr(
                plan,
                "_masks",
                (
                    torch.ones(plan.prompt.shape[1], plan.prompt.shape[1], dtype=torch.bool).tril(),
                    torch.ones(
                        plan.answers[0].numel(), plan.prompt.shape[1] + plan.answers[0].numel(), dtype=torch.bool
                    ).tril(plan.prompt.shape[1]),
                ),
            ),
        )
        assert differs()
        with pytest.raises(RuntimeError, match="does not apply the attention mask"):
            shared.check_sharing()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_check_at_the_start_of_training_passes_in_every_precision(tiny_llama, tiny_qwen2, dtype):
    for folder in (tiny_llama, tiny_qwen2):
        model = LLM(str(folder), dtype=dtype)
        assert model.check_sharing() < (1e-5 if dtype == "float32" else 0.1)
        assert model.training  # as it was


# ---- a fixed beginning, kept between calls
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_prompts_behind_a_kept_beginning_are_whole_prompts(tiny_llama, case, plain, frozen):
    ids, mask, answers, real = batch(case)
    model = pair(tiny_llama, lora=not frozen)[plain]
    model.requires_grad_(not frozen) if frozen else None
    fixed = torch.tensor([7, 5, 9, 4])
    b = len(ids)
    behind = model.encode(ids, mask, static_prefix=model.cache_prefix(fixed))
    whole = model.encode(torch.cat([fixed.expand(b, -1), ids], 1), torch.cat([mask.new_ones(b, 4), mask], 1))
    assert behind.lengths.tolist() == whole.lengths.tolist() == [n + 4 for n in CASES[case][0]]
    torch.testing.assert_close(
        model.logprobs(behind, answers, real), model.logprobs(whole, answers, real), atol=2e-5, rtol=0
    )
    labels = [[3, 4], [3, 5, 6], [8]]
    torch.testing.assert_close(model.score(behind, labels), model.score(whole, labels), atol=2e-5, rtol=0)
    drawn = [model.sample(p, 2, max_new_tokens=5, generator=torch.Generator().manual_seed(0)) for p in (behind, whole)]
    assert (drawn[0].ids == drawn[1].ids).all()


def test_gradients_reach_what_stands_behind_a_kept_beginning(tiny_llama):
    """FARCER's case: a frozen model, and a projection that is trained through it."""
    model = pair(tiny_llama, lora=False)[0].requires_grad_(False)
    ids, mask, answers, real = batch("ragged")
    found = []
    for behind in (True, False):
        embeddings = model.embed(ids).clone().requires_grad_()
        fixed = torch.tensor([7, 5, 9, 4])
        if behind:
            prefix = model.encode(embeddings, mask, static_prefix=model.cache_prefix(fixed))
        else:
            whole = torch.cat([model.embed(fixed).expand(len(ids), -1, -1), embeddings], 1)
            prefix = model.encode(whole, torch.cat([mask.new_ones(len(ids), 4), mask], 1))
        model.logprobs(prefix, answers, real).sum().backward()
        found.append(embeddings.grad)
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_a_kept_beginning_follows_weights_and_adapter_switch(tiny_llama):
    model = pair(tiny_llama)[0]
    ids, mask, *_ = batch("ragged")
    fixed, labels = torch.tensor([7, 5, 9, 4]), [[3, 4], [8]]
    kept = model.cache_prefix(fixed)

    def scores():
        whole = torch.cat([fixed.expand(len(ids), -1), ids], 1), torch.cat([mask.new_ones(len(ids), 4), mask], 1)
        torch.testing.assert_close(
            model.score(model.encode(ids, mask, static_prefix=kept), labels),
            model.score(model.encode(*whole), labels),
            atol=2e-5,
            rtol=0,
        )
        return kept.key_values[0][0]

    with torch.inference_mode():
        first = scores()
    assert scores() is first and not first.is_inference()  # once, and fit for training even if a test came first
    with model.reference():
        assert scores() is not first
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = scores()
    model.logprobs(model.encode(ids, mask), *batch("ragged")[2:]).sum().backward()
    assert scores() is before
    optimizer.step()
    assert scores() is not before
    with pytest.raises(ValueError, match="at least one token"):
        model.cache_prefix(torch.tensor([], dtype=torch.long))


def test_prompts_are_split_and_joined_without_a_trace(tiny_llama):
    model = pair(tiny_llama, lora=False)[0]
    ids, mask, answers, real = batch("ragged")
    kept = model.cache_prefix(torch.tensor([7, 5]))
    for behind in (None, kept):
        whole = model.encode(ids, mask, static_prefix=behind)
        expected = model.logprobs(whole, answers, real)
        parts = [whole.rows(torch.tensor(rows)) for rows in ([1], [2, 0])]
        assert parts[0].embeddings.shape[1] == 1  # the padding is gone
        again = Prefix.join(parts)
        order = torch.tensor([1, 2, 0])
        torch.testing.assert_close(
            model.logprobs(again, answers[order], real[order]), expected[order], atol=2e-5, rtol=0
        )
    with pytest.raises(ValueError, match="same fixed beginning"):
        Prefix.join([model.encode(ids, mask), model.encode(ids, mask, static_prefix=kept)])


def test_entropy_of_what_was_sampled(tiny_llama):
    """Of the distribution each token was drawn from: its mean surprise, averaged over all tokens, is its entropy."""
    model = pair(tiny_llama)[0]
    ids, mask, *_ = batch("ragged")
    prefix = model.encode(ids, mask)
    drawn = model.sample(prefix, 4, max_new_tokens=1, temperature=0.7)
    logp = torch.log_softmax(prefix.logits / 0.7, 1)
    expected = -(logp.exp() * logp).sum(1)
    torch.testing.assert_close(drawn.entropy[..., 0], expected[:, None].expand(-1, 4), atol=1e-5, rtol=1e-5)
    longer = model.sample(prefix, 4, max_new_tokens=6)
    assert (longer.entropy[~longer.mask] == 0).all() and (longer.entropy[longer.mask] > 0).all()


def test_a_saved_model_is_an_ordinary_one(tiny_llama, tmp_path):
    """The name of our attention must not get into a folder that others load."""
    LLM(str(tiny_llama)).model.save_pretrained(tmp_path)
    assert shared_prefix.NAME not in (tmp_path / "config.json").read_text()


def test_prefix_is_computed_once(tiny_llama, monkeypatch):
    model = pair(tiny_llama)[0]
    prefix: Prefix = model.encode(*batch("ragged")[:2])
    seen = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda *a, **k: seen.append(1) or hidden(*a, **k))
    for _ in range(2):
        model.sample(prefix, 3, max_new_tokens=2)
        model.score(prefix, [[5, 6], [5, 7], [8]])
    assert len(seen) == 1


@pytest.mark.parametrize("at_once", [2**22, 2**10])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_frozen_head_takes_its_slopes_in_the_forward_pass(tiny_llama, monkeypatch, at_once, temperature):
    """The gradients are those of automatic differentiation, which a trained head still goes through."""
    monkeypatch.setattr("zoo.backbones.decoding.LOGITS_AT_ONCE", at_once)
    ids, mask, answers, real = batch("ragged")
    found = []
    for trained in (True, False):
        model = pair(tiny_llama, lora=False)[0].requires_grad_(False)
        model.causal_lm.get_output_embeddings().requires_grad_(trained)
        embeddings = model.embed(ids).detach().requires_grad_()
        logp = model.logprobs(model.encode(embeddings, mask), answers, real, temperature)
        assert ("RowwiseGradient" in str(logp.grad_fn.next_functions)) is not trained
        (logp * torch.linspace(-1, 2, logp.numel()).view_as(logp)).sum().backward()
        found.append((logp.detach(), embeddings.grad))
    torch.testing.assert_close(found[0], found[1], atol=5e-5, rtol=1e-4)


def test_repeated_heads_attend_as_grouped_ones():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 5, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, 5, 8, generator=generator)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    attend = torch.nn.functional.scaled_dot_product_attention
    grouped = attend(query, key, value, mask, enable_gqa=True)
    repeated = attend(query, repeat_heads(key, 6), repeat_heads(value, 6), mask)
    torch.testing.assert_close(repeated, grouped)
    assert repeat_heads(query, 6) is query
