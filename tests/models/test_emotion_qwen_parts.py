"""The Hybrid Compressor against Eqs. 1-4 written out with loops, and the projectors it is compared with."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.backbones.patch_vision import PatchVision, small_patch_vision
from zoo.models.emotion_qwen.parts import Expert, FusionProjector, Gate, HybridCompressor, MLPProjector, inner_to_match

WIDTH, TO, HEADS = 16, 12, 4
GRID = torch.tensor([[1, 4, 6], [2, 2, 8], [1, 2, 2]])
KINDS = [HybridCompressor, MLPProjector, FusionProjector]


def inputs(grid=GRID, width=WIDTH, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(int(grid.prod(1).sum()), width, generator=generator, dtype=dtype)
    parts = [torch.randperm(n // 4, generator=generator) for n in grid.prod(1).tolist()]
    starts = (grid.prod(1) // 4).cumsum(0) - grid.prod(1) // 4
    return features, grid, torch.cat([p + s for p, s in zip(parts, starts, strict=True)])


def made(kind, seed=0, **options):
    torch.manual_seed(seed)
    if kind is HybridCompressor:
        options = {"heads": HEADS} | options
    module = kind(WIDTH, TO, **options).double()
    for parameter in module.parameters():  # far from the usual start: biases and norms count too
        nn.init.normal_(parameter, std=0.5)
    return module.eval()


# ---- the equations, one number at a time where it matters
def written_expert(expert, group):
    """Eq. 1 for one token; group is (merge^2, D)."""
    x = torch.cat(list(group))
    inner = expert.fc1.weight @ x + expert.fc1.bias
    gelu = torch.stack([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in inner])
    y = expert.fc2.weight @ gelu + expert.fc2.bias
    centred = y - y.mean()
    return centred / ((centred**2).mean() + 1e-5).sqrt() * expert.norm.weight + expert.norm.bias


def written_attention(attention, x):
    """Multi-head self-attention over (n, D), head by head, row by row."""
    q, k, v = (
        F.linear(x, w, b)
        for w, b in zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    )
    out, size = torch.zeros_like(x), WIDTH // HEADS
    for head in range(HEADS):
        at = slice(head * size, (head + 1) * size)
        for row in range(len(x)):
            weights = torch.stack([q[row, at] @ k[other, at] / math.sqrt(size) for other in range(len(x))]).exp()
            out[row, at] = sum(w * v[other, at] for other, w in enumerate(weights / weights.sum()))
    return F.linear(out, attention.out_proj.weight, attention.out_proj.bias)


def written_gate(gate, x):
    """Eq. 3 for one input (n, D)."""
    if gate.pool == "before":
        seen = written_attention(gate.attention, x.mean(0, keepdim=True))[0]
    else:
        seen = written_attention(gate.attention, x).mean(0)
    return (gate.linear.weight @ seen + gate.linear.bias).softmax(0)


@pytest.mark.parametrize("pool", ["before", "after"])
@pytest.mark.parametrize("first", ["emotion", "general"])
def test_equations(pool, first):
    order_of_gate = (first, "general" if first == "emotion" else "emotion")
    module = made(HybridCompressor, gate_pool=pool, gate_order=order_of_gate)
    features, grid, order = inputs()
    with torch.no_grad():
        tokens, gates = module(features, grid, order)
        start, expected, pairs = 0, [], []
        for t, h, w in grid.tolist():
            own = features[start : start + t * h * w]
            pair = written_gate(module.gate, own)
            g_emotion, g_general = pair if first == "emotion" else pair.flip(0)
            pairs.append([g_emotion, g_general])
            for group in range(start // 4, (start + t * h * w) // 4):
                four = features[4 * group : 4 * group + 4]  # four in, one out
                emotion, general = written_expert(module.emotion, four), written_expert(module.general, four)
                expected.append(g_emotion * emotion + (1 - g_emotion) * general)  # Eq. 4
            start += t * h * w
    assert [len(t) for t in tokens] == [6, 8, 1]
    torch.testing.assert_close(torch.cat(tokens), torch.stack(expected)[order], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gates, torch.tensor(pairs, dtype=torch.float32), atol=1e-6, rtol=0)
    assert gates.dtype == torch.float32
    assert gates.amin(1).median() > 0.02 and gates[:, 0].std() > 0.05  # both experts count, each input has its own


def test_the_equations_could_fail():
    """Each choice above changes the answer, so that a wrong one cannot hide."""
    features, grid, order = inputs()
    base, gates = made(HybridCompressor)(features, grid, order)
    for options in ({"gate_pool": "after"}, {"gate_order": ("general", "emotion")}, {"heads": 2}):
        other, pairs = made(HybridCompressor, **options)(features, grid, order)
        changed = not torch.allclose(torch.cat(base), torch.cat(other), atol=1e-3)
        # attention over one vector has one weight, 1: the number of heads is without effect before pooling
        assert changed == ("heads" not in options), options
        if "gate_order" in options:
            torch.testing.assert_close(pairs, gates.flip(1))
    for wrong in (order.argsort(), torch.arange(len(order))):
        assert not torch.allclose(torch.cat(base), torch.cat(made(HybridCompressor)(features, grid, wrong)[0]))
    two, four = (made(HybridCompressor, gate_pool="after", heads=n)(features, grid, order).gates for n in (2, 4))
    assert not torch.allclose(two, four)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_one_call_do_not_see_each_other(kind):
    options = {"gate_pool": "after"} if kind is HybridCompressor else {}
    module, (features, grid, order) = made(kind, **options), inputs()
    with torch.no_grad():
        together, gates = module(features, grid, order)
        start = 0
        for i, (size, own) in enumerate(zip(grid.prod(1).tolist(), grid, strict=True)):
            there = order[start // 4 : (start + size) // 4] - start // 4
            (alone,), gate = module(features[start : start + size], own[None], there)
            torch.testing.assert_close(alone, together[i], atol=1e-12, rtol=0)
            assert alone.shape == (size // 4, TO)
            if gates is not None:
                torch.testing.assert_close(gate[0], gates[i])
            start += size
    assert (gates is None) == (kind is MLPProjector)


@pytest.mark.parametrize("forced", ["emotion", "general"])
def test_forced_gate_runs_one_expert_only(forced):
    features, grid, order = inputs()
    module = made(HybridCompressor, force_gate=forced)
    tokens, gates = module(features, grid, order)
    assert gates.tolist() == [[float(forced == "emotion"), float(forced == "general")]] * 3
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(tokens), getattr(module, forced)(features)[order])
    torch.cat(tokens).square().sum().backward()
    touched = {name.split(".")[0] for name, p in module.named_parameters() if p.grad is not None}
    assert touched == {forced}
    with torch.no_grad():  # a broken other expert (0 * NaN) must not leak in
        getattr(module, "general" if forced == "emotion" else "emotion").fc1.weight.fill_(math.nan)
        assert torch.isfinite(torch.cat(module(features, grid, order)[0])).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind):
    features, grid, order = inputs()
    module = made(kind)
    torch.cat(module(features, grid, order).tokens).square().sum().backward()
    dead = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
    if kind is HybridCompressor:
        # one vector attends to itself with weight 1 whatever queries and keys say: only values get a gradient
        thirds = module.gate.attention.in_proj_weight.grad.chunk(3)
        assert [bool(t.abs().max() > 1e-12) for t in thirds] == [False, False, True]
        names = dict(module.named_parameters())
        assert {n.split(".")[0] for n in names} == {"emotion", "general", "gate"}


def test_with_the_tower(tmp_path):
    """From the tower's window order to raster order: a mark on one corner of the picture comes out in that corner."""
    path = small_patch_vision(tmp_path / "tower", 2, 32, 2, 48, full_attention=())
    vision, grid = PatchVision(str(path)).eval(), torch.tensor([[1, 12, 20], [1, 6, 8]])
    torch.manual_seed(0)
    module = HybridCompressor(vision.width, TO, vision.merge, heads=4, force_gate="general").eval()
    patches = torch.randn(240 + 48, 384)
    with torch.no_grad():
        features, order = vision.hidden(patches, grid)
        before, _ = module(features, grid, order)
        patches[4 * (10 * 6 - 1) : 240] += 5.0  # the last token of the first picture
        features, order = vision.hidden(patches, grid)
        after, _ = module(features, grid, order)
        skipped, _ = module(features, grid, torch.arange(len(order)))
    changed = ((after[0] - before[0]).abs().amax(1) > 1e-4).view(6, 10)
    expected = torch.zeros(6, 10, dtype=torch.bool)
    expected[3:, 9:] = True  # its window: rows 3-5, columns 9 (windows are 3 x 3 tokens, the last column stands alone)
    assert torch.equal(changed, expected) and torch.equal(after[1], before[1])
    wrong = ((skipped[0] - before[0]).abs().amax(1) > 1e-4).view(6, 10)
    assert not torch.equal(wrong, expected)


# ---- sizes
def count(module):
    return sum(p.numel() for p in module.parameters())


def test_paper_size():
    with torch.device("meta"):
        expert, hybrid = Expert(1280, 3584), HybridCompressor(1280, 3584)
        single = MLPProjector(1280, 3584)
        fusion = FusionProjector(1280, 3584)
    assert expert.fc1.weight.shape == (5120, 5120)
    assert count(expert) == 5120 * 5120 + 5120 + 5120 * 3584 + 3584 + 2 * 3584 == 44_580_352
    gate = 4 * (1280**2 + 1280) + 2 * 1280 + 2
    assert count(hybrid) == 2 * 44_580_352 + gate == 95_721_986
    assert count(single) == 44_580_352 - 2 * 3584 and count(fusion) == 2 * count(single) + 1280**2 + 1280 + 2 * 1280 + 2
    with torch.device("meta"):
        wide = MLPProjector(1280, 3584, inner=inner_to_match(count(hybrid), 1280, 3584))
    assert abs(count(wide) - count(hybrid)) < 1e-3 * count(hybrid) and count(wide) > 2 * count(single)
    grid = torch.tensor([[4, 28, 48]])  # the shapes of a probe of the published weights
    features, order = torch.zeros(5376, 1280, device="meta"), torch.zeros(1344, dtype=torch.int64, device="meta")
    tokens, gates = hybrid(features, grid, order)
    assert tokens[0].shape == (1344, 3584) and gates.shape == (1, 2)


def test_inner_to_match():
    for width, to in ((96, 192), (32, 64), (1280, 3584)):
        with torch.device("meta"):
            target = count(HybridCompressor(width, to, heads=4))
            made_to_match = MLPProjector(width, to, inner=inner_to_match(target, width, to))
        assert abs(count(made_to_match) - target) <= 1e-3 * target
    assert inner_to_match(7 * (64 + 1 + 5) + 5, 16, 5) == 7
    with pytest.raises(ValueError, match="no inner width gives an MLP projector 530 parameters to within 0.1 %: 8"):
        inner_to_match(530, 16, 5)


def test_inner_widths_and_merge():
    module = HybridCompressor(8, 5, merge=3, inner=7, heads=2)
    assert module.emotion.fc1.weight.shape == (7, 72) and module.general.fc2.weight.shape == (5, 7)
    grid = torch.tensor([[1, 3, 6]])
    tokens, _ = module(torch.randn(18, 8), grid, torch.tensor([1, 0]))
    assert tokens[0].shape == (2, 5)
    assert FusionProjector(8, 5, inner=7, gate_inner=3).gate[0].weight.shape == (3, 8)


def test_mlp_and_fusion_written_out():
    features, grid, order = inputs()

    def mlp(m, group):
        return m.fc2.weight @ (m.fc1.weight @ torch.cat(list(group)) + m.fc1.bias).clamp(min=0) + m.fc2.bias

    single, fusion = made(MLPProjector), made(FusionProjector)
    groups = features.view(-1, 4, WIDTH)
    with torch.no_grad():
        expected = torch.stack([mlp(single.mlp, g) for g in groups])[order]
        torch.testing.assert_close(torch.cat(single(features, grid, order).tokens), expected)
        rows, start = [], 0
        for size in grid.prod(1).tolist():
            pooled = features[start : start + size].mean(0)
            a, b = fusion.gate[2](fusion.gate[0](pooled).clamp(min=0)).softmax(0)
            own = groups[start // 4 : (start + size) // 4]
            rows += [a * mlp(fusion.first, g) + b * mlp(fusion.second, g) for g in own]
            start += size
        tokens, gates = fusion(features, grid, order)
    torch.testing.assert_close(torch.cat(tokens), torch.stack(rows)[order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gates.sum(1), torch.ones(3))


def test_half_precision():
    features, grid, order = inputs(dtype=torch.bfloat16)
    tokens, gates = HybridCompressor(WIDTH, TO, heads=HEADS).bfloat16()(features, grid, order)
    assert tokens[0].dtype == torch.bfloat16 and gates.dtype == torch.float32


# ---- refusals
@pytest.mark.parametrize(
    "options, said",
    [
        ({"heads": 3}, "heads 3 do not divide the width 16"),
        ({"gate_pool": "middle"}, "gate_pool is 'middle'; expected 'before' or 'after'"),
        ({"gate_order": ("emotion", "emotion")}, "expected emotion and general, each once"),
        ({"force_gate": "both"}, "force_gate is 'both'; expected 'none', 'emotion' or 'general'"),
    ],
)
def test_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        HybridCompressor(WIDTH, TO, **{"heads": HEADS} | options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change, said",
    [
        (lambda f, g, o: (f[:-4], g, o), r"expected features \(N, 16\) with N the sum"),
        (lambda f, g, o: (f[:, :8], g, o), r"expected features \(N, 16\)"),
        (lambda f, g, o: (f, g[:2], o), r"expected features \(N, 16\)"),
        (lambda f, g, o: (f, g[0], o), r"expected features \(N, 16\)"),
        (lambda f, g, o: (f[:0], g[:0], o[:0]), r"expected features \(N, 16\)"),
        (lambda f, g, o: (f, g, o[:-1]), r"make 15 tokens of 4, but order is \(14,\)"),
        (lambda f, g, o: (f[:60], torch.tensor([[1, 6, 9], [1, 2, 3]]), o), "is merge 2 the tower's"),
    ],
)
def test_inputs_that_do_not_belong_together_are_refused(kind, change, said):
    with pytest.raises(ValueError, match=said):
        made(kind)(*change(*inputs()))


def test_gate_alone():
    """Published shapes: [1, D] -> [1, 2]."""
    gate = Gate(WIDTH, HEADS)
    assert gate((torch.randn(5, WIDTH),)).shape == (1, 2)
    assert set(gate.state_dict()) == {
        "attention.in_proj_weight",
        "attention.in_proj_bias",
        "attention.out_proj.weight",
        "attention.out_proj.bias",
        "linear.weight",
        "linear.bias",
    }
