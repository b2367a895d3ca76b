"""Three positions per token, against transformers' Qwen2.5-VL: its counting of positions, its rotary module, and its
text model with the same weights as ours, one unpadded row at a time and without a cache."""

import copy
import functools
import pickle

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLModel,
    Qwen2_5_VLRotaryEmbedding,
    Qwen2_5_VLTextModel,
)

from tests.conftest import redraw, tiny_texts
from zoo.backbones import LLM, LoRA, Prefix
from zoo.backbones.mrope import SectionedRotary, mrope_positions
from zoo.backbones.shared_prefix import PackedPlan
from zoo.backbones.tiny import make_folder

SECTIONS = (2, 3, 3)  # Qwen2.5-VL's 16, 24, 24 for a head of 16 instead of 128
PROMPTS = [
    [3, (1, 2, 5), 2, (1, 4, 3), 1],
    [(1, 3, 2), 4],
    [2, (1, 5, 2)],
    [1, (3, 2, 2, 1.5), 2],  # counted as transformers 5 does: its largest position is inside
    [5],
]
CANDIDATES = [(40,), (50, 60), (50, 61, 70), (50, 61, 71), (51, 60, 70)]
ADAPTED = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.up_proj)"


# ---- counting positions
@functools.cache
def their_counting(tokens_per_second):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"spatial_merge_size": 2, "tokens_per_second": tokens_per_second}
    config = Qwen2_5_VLConfig(text_config={**sizes, "num_key_value_heads": 1, "vocab_size": 8}, vision_config=vision)
    with torch.device("meta"):
        return Qwen2_5_VLModel(config).get_rope_index


def their_positions(segments, tokens_per_second):
    """(3, P), and by how much the next token's position is above the number of tokens."""
    kinds, images, videos, seconds = [], [], [], []
    for segment in segments:
        if isinstance(segment, int):
            kinds += [0] * segment
        else:
            t, h, w, *second = segment
            (videos if second else images).append([t, 2 * h, 2 * w])  # before merging
            kinds += [2 if second else 1] * (t * h * w)
            seconds += second
    kinds = torch.tensor([kinds])
    grids = [torch.tensor(grid) if grid else None for grid in (images, videos)]
    seconds = torch.tensor(seconds) if seconds else None
    positions, delta = their_counting(tokens_per_second)(torch.zeros_like(kinds), kinds, *grids, seconds)
    return positions[:, 0], delta.item()


@pytest.mark.parametrize(
    "tokens_per_second, segments",
    [
        (2, [7]),
        (2, [3, (1, 2, 5), 2]),
        (25, [(1, 4, 3)]),
        (2, [4, (1, 2, 5), 1, (1, 6, 2), 3, (1, 1, 1), 2]),
        (2, [1, (2, 4, 3), 2]),  # two pictures in one
        (2, [2, (1, 3, 3), 1, (4, 6, 2, 0.5), 3]),
        (2, [2, (3, 7, 2, 1.0), 1, (1, 2, 2), 1, (2, 3, 9, 1.7), 4]),
        (2, [1, (9, 2, 3, 0.083), 1]),  # steps below one
        (25, [1, (6, 2, 3, 0.12)]),  # at the end, longer than it is wide
        (25, [1, (2, 5, 2), 2, (6, 2, 3, 0.28)]),
    ],
)
def test_positions_are_those_of_transformers(segments, tokens_per_second):
    theirs, delta = their_positions(segments, tokens_per_second)
    ours = mrope_positions(segments, tokens_per_second)
    assert ours.dtype == torch.int64 and torch.equal(ours, theirs)
    assert ours.max() + 1 - ours.shape[1] == delta  # where an answer begins


def test_positions_by_hand():
    time, height, width = mrope_positions([2, (1, 2, 3), 2]).tolist()
    assert time == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]
    assert height == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert width == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    assert mrope_positions([]).shape == (3, 0)


def test_text_behind_a_long_video_goes_on_after_its_last_moment():
    """The example of transformers' documentation: three moments of 2 x 2 tokens, 50 apart, text from 101 on; its
    version 5 has the text at 2."""
    video = (3, 2, 2, 2.0)
    ours = mrope_positions([video, 2], 25)
    assert ours[0].tolist() == [0] * 4 + [50] * 4 + [100] * 4 + [101, 102]
    assert ours[:, -2:].tolist() == [[101, 102]] * 3
    theirs, _ = their_positions([video, 2], 25)
    assert torch.equal(theirs[:, :12], ours[:, :12])


@pytest.mark.parametrize("segment", [0, -1, (2, 2), (1, 0, 2), (1, 2, 2, -0.5), (1, 2, 2, float("inf")), (1.0, 2, 2)])
def test_other_segments_are_refused(segment):
    with pytest.raises(ValueError, match=r"segment is n|seconds between"):
        mrope_positions([3, segment])


# ---- rotating
@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, {"rope_type": "yarn", "factor": 4.0}])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_cosines_and_sines_are_those_of_transformers(family, scaling):
    rope = {"rope_theta": 1e4, "original_max_position_embeddings": 64, **scaling}
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 64}
    config = AutoConfig.for_model(
        family, **sizes, vocab_size=8, intermediate_size=8, head_dim=16, num_key_value_heads=1, rope_parameters=rope
    )
    own = AutoModelForCausalLM.from_config(config).get_decoder().rotary_emb
    theirs = Qwen2_5_VLRotaryEmbedding(
        Qwen2_5_VLTextConfig(**sizes, rope_parameters={**rope, "mrope_section": list(SECTIONS)})
    )
    ours, x = SectionedRotary(own, SECTIONS), torch.zeros(2, 5, 32)
    at = torch.randint(0, 60, (3, 2, 5), generator=torch.Generator().manual_seed(0))
    for got, expected, swapped in zip(ours(x, at), theirs(x, at), ours(x, at[[0, 2, 1]]), strict=True):
        assert torch.equal(got, expected) and not torch.allclose(got, swapped, atol=0.1)
    for got, same, expected in zip(ours(x, at[0]), ours(x, at[:1].expand(3, -1, -1)), own(x, at[0]), strict=True):
        assert torch.equal(got, expected) and torch.equal(same, expected)


# ---- the language model
class Reference:
    """Qwen2.5-VL's text model with the weights of a LLaMA or Qwen2."""

    def __init__(self, llm):
        own = llm.causal_lm.config
        names = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "rms_norm_eps",
        )
        rope = {"rope_type": "default", "rope_theta": own.rope_parameters["rope_theta"], "mrope_section": [*SECTIONS]}
        config = Qwen2_5_VLTextConfig(**{name: getattr(own, name) for name in names}, rope_parameters=rope)
        config._attn_implementation = "eager"
        self.model = Qwen2_5_VLTextModel(config).eval().requires_grad_(False)
        weights = {k: v.clone() for k, v in llm.causal_lm.get_decoder().state_dict().items()}
        for name, value in self.model.state_dict().items():
            if name.endswith("_proj.bias") and name not in weights:  # LLaMA has none
                weights[name] = torch.zeros_like(value)
        self.model.load_state_dict(weights)

    def hidden(self, embeddings, positions):
        """(P, D) and (3, P) -> (P, D)."""
        return self.model(inputs_embeds=embeddings[None], position_ids=positions[:, None]).last_hidden_state[0]

    def logprobs(self, embeddings, positions, answer):
        """(T,) of an answer's tokens."""
        table = self.model.embed_tokens.weight
        behind = (positions.max() + 1 + torch.arange(len(answer))).expand(3, -1)
        hidden = self.hidden(torch.cat([embeddings, table[answer]]), torch.cat([positions, behind], 1))
        logp = (hidden[len(embeddings) - 1 : -1] @ table.T).log_softmax(-1)
        return logp[range(len(answer)), answer]

    def greedy(self, embeddings, positions, count):
        answer = torch.zeros(0, dtype=torch.int64)
        for _ in range(count):
            behind = (positions.max() + 1 + torch.arange(len(answer))).expand(3, -1)
            rows = torch.cat([embeddings, self.model.embed_tokens.weight[answer]])
            hidden = self.hidden(rows, torch.cat([positions, behind], 1))[-1]
            answer = torch.cat([answer, (hidden @ self.model.embed_tokens.weight.T).argmax()[None]])
        return answer


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def folder(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("mrope") / request.param
    made = make_folder(out, tiny_texts(), request.param, 640, 32, 2, 2, 1 if request.param == "qwen2" else 2, 64)
    redraw(made)
    return made


@pytest.fixture(scope="module")
def reference(folder):
    return Reference(LLM(str(folder)))


@pytest.fixture(scope="module", params=["shared", "plain"])
def llm(folder, request):
    made = LLM(str(folder), attention="sdpa" if request.param == "shared" else "eager", mrope=SECTIONS).eval()
    assert (made.prefix_sharing_unsupported_reason is None) == (request.param == "shared")
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def rows():
    """Embeddings (P, D) and positions (3, P) of every prompt."""
    generator = torch.Generator().manual_seed(0)
    positions = [mrope_positions(segments) for segments in PROMPTS]
    positions[3], _ = their_positions(PROMPTS[3], 2)
    assert positions[3].max() == 7 and positions[3][:, -1].max() == 4
    return [(torch.randn(at.shape[1], 32, generator=generator) * 0.3, at) for at in positions]


@pytest.fixture(scope="module")
def answers():
    """(B, 3, T) ids and mask."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([[3, 1, 4], [2, 2, 2], [1, 4, 3], [4, 2, 1], [0, 2, 4]])
    return torch.randint(3, 500, (5, 3, 4), generator=generator), torch.arange(4) < lengths[..., None]


def padded(rows):
    """Embeddings (B, P, D), mask (B, P), positions (3, B, P); left-padded with something that is not 0."""
    longest = max(at.shape[1] for _, at in rows)
    pad = functools.partial(torch.nn.functional.pad, value=-7)
    embeddings = torch.stack([pad(x, (0, 0, longest - len(x), 0)) for x, _ in rows])
    mask = torch.arange(longest) >= longest - torch.tensor([len(x) for x, _ in rows])[:, None]
    return embeddings, mask, torch.stack([pad(at, (longest - at.shape[1], 0)) for _, at in rows], 1)


def encode(llm, rows, static_prefix=None):
    embeddings, mask, at = padded(rows)
    return llm.encode(embeddings, mask, static_prefix, positions=at)


def expected_logprobs(reference, rows, ids, mask):
    out = torch.zeros(mask.shape)
    for b, (embeddings, at) in enumerate(rows):
        for n in range(mask.shape[1]):
            if mask[b, n].any():
                out[b, n, mask[b, n]] = reference.logprobs(embeddings, at, ids[b, n][mask[b, n]])
    return out


def close(got, expected, within=1e-5):
    assert got.shape == expected.shape
    error = ((got - expected).abs() / expected.abs().clamp(min=1)).max()
    assert error < within, error


def test_hidden_states(llm, reference, rows):
    prefix = encode(llm, rows)
    hidden = llm.hidden(prefix.embeddings, prefix.mask, positions=prefix.positions)
    for b, (embeddings, at) in enumerate(rows):
        close(hidden[b, prefix.mask[b]], reference.hidden(embeddings, at))


def test_logprobs(llm, reference, rows, answers):
    expected = expected_logprobs(reference, rows, *answers)
    close(llm.logprobs(encode(llm, rows), *answers), expected)
    swapped = [(x, at[[0, 2, 1]]) for x, at in rows]
    for other in (encode(llm, swapped), llm.encode(*padded(rows)[:2])):
        off = (llm.logprobs(other, *answers) - expected).abs().amax((1, 2))
        assert off[:4].min() > 0.01 and off[4] < 1e-4  # the last prompt is text alone


def test_gradients_of_prompts(llm, reference, rows, answers):
    ids, mask = answers
    weight = torch.linspace(-1, 2, mask.numel()).view_as(mask.float())
    embeddings, real, at = padded(rows)
    embeddings.requires_grad_()
    (llm.logprobs(llm.encode(embeddings, real, positions=at), ids, mask) * weight).sum().backward()
    own = [(x.clone().requires_grad_(), at) for x, at in rows]
    (expected_logprobs(reference, own, ids, mask) * weight).sum().backward()
    for b, (x, _) in enumerate(own):
        assert x.grad.abs().max() > 0.1
        torch.testing.assert_close(embeddings.grad[b, real[b]], x.grad, rtol=1e-4, atol=1e-4 * x.grad.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("prefilled", [False, True])
def test_score(llm, reference, rows, prefilled):
    prefix = encode(llm, rows)
    if prefilled:
        llm.prefill(prefix)
    for candidates in (CANDIDATES, [(40,), (41,)]):
        expected = [[reference.logprobs(*row, torch.tensor(c)).sum() for c in candidates] for row in rows]
        close(llm.score(prefix, candidates), torch.tensor(expected))


@torch.no_grad()
def test_greedy_answers(llm, reference, rows, monkeypatch):
    monkeypatch.setattr(type(llm), "eos_ids", [])
    out = llm.sample(encode(llm, rows), 2, max_new_tokens=5, temperature=0)
    for b, row in enumerate(rows):
        assert out.ids[b].tolist() == [reference.greedy(*row, 5).tolist()] * 2


@torch.no_grad()
def test_drawn_answers_of_which_some_end_early(llm, reference, rows, monkeypatch):
    monkeypatch.setattr(type(llm), "eos_ids", list(range(0, 640, 3)))
    out = llm.sample(encode(llm, rows), 4, max_new_tokens=6, generator=torch.Generator().manual_seed(0))
    lengths = out.mask.sum(-1)
    assert lengths.min() == 1 and lengths.max() > 4 and (lengths.amax(1) < 6).any()  # a whole prompt left the batch
    close(out.logprobs, expected_logprobs(reference, rows, out.ids, out.mask))


@torch.no_grad()
def test_three_equal_positions_are_one(llm, rows, answers):
    embeddings, mask, _ = padded(rows)
    prefixes = [llm.encode(embeddings, mask, positions=at) for at in (None, (mask.cumsum(1) - 1).expand(3, -1, -1))]
    assert prefixes[0].positions is None
    assert torch.equal(*(llm.logprobs(prefix, *answers) for prefix in prefixes))
    assert torch.equal(*(llm.score(prefix, CANDIDATES) for prefix in prefixes))
    drawn = [llm.sample(p, 2, max_new_tokens=4, generator=torch.Generator().manual_seed(0)) for p in prefixes]
    assert torch.equal(drawn[0].ids, drawn[1].ids) and torch.equal(drawn[0].logprobs, drawn[1].logprobs)


@torch.no_grad()
def test_a_model_that_could_is_as_one_that_cannot(folder, llm, rows, answers):
    """No positions given: the model without `mrope`, in every verb, bit for bit; scores but for the order of sums,
    which differs on some CPUs."""
    without = LLM(str(folder), attention="sdpa" if llm.prefix_sharing_unsupported_reason is None else "eager").eval()
    assert not any(isinstance(m, SectionedRotary) for m in without.modules())
    inputs = padded(rows)[:2]
    assert torch.equal(*(m.logprobs(m.encode(*inputs), *answers) for m in (llm, without)))
    torch.testing.assert_close(*(m.score(m.encode(*inputs), CANDIDATES) for m in (llm, without)), rtol=1e-6, atol=1e-6)
    ids, mask = torch.arange(3, 15).view(2, 6), torch.ones(2, 6, dtype=torch.bool)
    texts = [m.beam(ids, mask, beams=2, max_new_tokens=4) for m in (llm, without)]
    assert texts[0] == texts[1]
    llm.check_sharing()


@torch.no_grad()
def test_behind_a_kept_beginning(llm, reference, rows, answers):
    fixed = torch.tensor([7, 8, 9])
    first, counted = reference.model.embed_tokens.weight[fixed], torch.arange(3).expand(3, -1)
    whole = [(torch.cat([first, x]), torch.cat([counted, at + 3], 1)) for x, at in rows]
    prefix = encode(llm, rows, llm.cache_prefix(fixed))
    expected = expected_logprobs(reference, whole, *answers)
    close(llm.logprobs(prefix, *answers), expected)
    scores = torch.tensor([[reference.logprobs(*row, torch.tensor(c)).sum() for c in CANDIDATES] for row in whole])
    close(llm.score(prefix, CANDIDATES), scores)
    drawn = llm.sample(prefix, 2, max_new_tokens=4, generator=torch.Generator().manual_seed(0))
    close(drawn.logprobs, expected_logprobs(reference, whole, drawn.ids, drawn.mask))
    close(llm.score(prefix, CANDIDATES), scores)  # with what `sample` kept
    own = torch.tensor([3, 1])
    close(llm.logprobs(prefix.rows(own), answers[0][own], answers[1][own]), expected[own])
    joined = Prefix.join([prefix.rows(torch.tensor([1])), prefix.rows(torch.tensor([0, 2]))])
    close(llm.logprobs(joined, *(x[[1, 0, 2]] for x in answers)), expected[[1, 0, 2]])
    try:  # trained weights: the beginning is computed again, with gradients
        llm.requires_grad_(True)
        close(llm.logprobs(prefix, *answers), expected)
    finally:
        llm.requires_grad_(False)


@torch.no_grad()
def test_rows_and_join(llm, rows, answers):
    expected = llm.logprobs(encode(llm, rows), *answers)
    order = [4, 1, 3, 0, 2]
    text = llm.encode(rows[4][0][None], torch.ones(1, 5, dtype=torch.bool))  # positions are counted
    parts = [text, encode(llm, [rows[1], rows[3]]), encode(llm, rows).rows(torch.tensor([0, 2]))]
    joined = Prefix.join(parts)
    assert joined.positions.shape == (3, 5, 28) and (joined.positions[:, ~joined.mask] == 0).all()
    close(llm.logprobs(joined, *(x[order] for x in answers)), expected[order])
    short = joined.rows(torch.tensor([0, 2]))
    assert short.positions.shape == (3, 2, 15) and short.positions[:, 1].amax() == 7
    close(llm.logprobs(short, *(x[[4, 3]] for x in answers)), expected[[4, 3]])
    assert Prefix.join([text, text]).positions is None and text.rows(torch.tensor([0])).positions is None


def adapted(folder, **options):
    llm = LLM(str(folder), mrope=SECTIONS, **options)
    llm.add_lora(LoRA(r=4, alpha=8, targets=ADAPTED))
    generator = torch.Generator().manual_seed(3)
    for name, p in sorted(llm.named_parameters()):
        if ".lora_" in name:
            p.data = torch.randn(p.shape, generator=generator) * 0.3
    return llm


def test_adapters(folder, reference, rows, answers):
    found = {}
    for attention in ("sdpa", "eager"):
        for checkpointing in (False, True):
            model = adapted(folder, attention=attention, gradient_checkpointing=checkpointing)
            prefix = encode(model, rows)
            logp = model.logprobs(prefix, *answers)
            (logp * torch.linspace(-1, 2, logp.numel()).view_as(logp)).sum().backward()
            grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            found[attention, checkpointing] = logp.detach(), grads
            with torch.no_grad(), model.reference():
                close(model.logprobs(prefix, *answers), expected_logprobs(reference, rows, *answers))
                drawn = model.sample(prefix, 2, max_new_tokens=4, generator=torch.Generator().manual_seed(0))
                close(drawn.logprobs, expected_logprobs(reference, rows, drawn.ids, drawn.mask))
            scores = model.score(prefix, CANDIDATES)  # what was kept with the adapter off is not used
            close(scores, model.score(encode(model, rows), CANDIDATES))
    first, grads = found.pop(("sdpa", False))
    assert (first - expected_logprobs(reference, rows, *answers)).abs().max() > 0.1 and grads.norm() > 0.1
    for logp, other in found.values():
        close(logp, first)
        assert (other - grads).norm() < 1e-5 * grads.norm()


# ---- the module
def test_nothing_new_is_saved_and_copies_work(folder, rows, answers, tmp_path):
    llm, without = LLM(str(folder), mrope=SECTIONS).eval(), LLM(str(folder))
    assert llm.state_dict().keys() == without.state_dict().keys()
    llm.causal_lm.save_pretrained(tmp_path)
    llm.tokenizer.save_pretrained(tmp_path)
    again = LLM(str(tmp_path), mrope=SECTIONS).eval()
    with torch.no_grad():
        expected = llm.logprobs(encode(llm, rows), *answers)
        for other in (copy.deepcopy(llm), pickle.loads(pickle.dumps(llm)), again):
            assert torch.equal(other.logprobs(encode(other, rows), *answers), expected)


def test_without_weights():
    llm = LLM("shape:llama-2-7b", device="meta", mrope=(16, 24, 24))
    embeddings = torch.empty(1, 4, llm.width, device="meta")
    plan = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 1, 2, dtype=torch.bool)
    assert PackedPlan(*plan, prompt_positions=torch.zeros(3, 1, 4, dtype=torch.int64)).positions.shape == (3, 1, 6)
    rotary = llm.causal_lm.get_decoder().rotary_emb
    assert rotary(embeddings, torch.zeros(3, 1, 4, dtype=torch.int64, device="meta"))[0].shape == (1, 4, 128)


def test_what_is_refused(folder, rows, llm):
    for sections in ((2, 3, 4), (8,), (4, 4), (9, -2, 1)):
        with pytest.raises(ValueError, match="three sections .* 8 pairs"):
            LLM(str(folder), mrope=sections)
    embeddings, mask, at = padded(rows)
    with pytest.raises(ValueError, match="this one has none"):
        LLM(str(folder)).encode(embeddings, mask, positions=at)
    for wrong in (at[:, :, 1:], at[0], at[:2], at.transpose(0, 1), at.float()):
        with pytest.raises(ValueError, match=r"int64 of shape \(3, 5, 28\)"):
            llm.encode(embeddings, mask, positions=wrong)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        llm.encode(embeddings, mask, positions=at.masked_fill(at == 0, -1))


@pytest.mark.parametrize("family, why", [("gpt2", "one rotary module"), ("cohere", "pairs channel")])
def test_other_decoders_are_refused(family, why):
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 8, "pad_token_id": 0}
    config = AutoConfig.for_model(family, **sizes, **({} if family == "gpt2" else {"intermediate_size": 8}))
    decoder = AutoModelForCausalLM.from_config(config).get_decoder()
    with pytest.raises(ValueError, match=why):
        SectionedRotary(getattr(decoder, "rotary_emb", None), SECTIONS)
