"""Fusion of given features: each fusion against its formula, and runs on files of two and three modalities."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.builders import make_corpus
from tests.data.miniature import LABELS
from tests.runs_helper import TRACE, checkpoint, fit, flags, metrics, refused, rows, same, trace, zoo
from zoo.data import MELD
from zoo.models.fusion.fusions import (
    AttentionFusion,
    LowRankFusion,
    MisaFusion,
    central_moment_discrepancy,
    orthogonality,
)

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")

B, M, D, R = 5, 3, 4, 2


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(B, M, D, generator=torch.Generator().manual_seed(0))


EVERYTHING = torch.ones(B, M, dtype=torch.bool)


def made(name: str) -> nn.Module:
    torch.manual_seed(1)
    kinds = {
        "attention": (AttentionFusion, ()),
        "lmf": (LowRankFusion, (R,)),
        "misa": (MisaFusion, (2, 0.0, 1, 0.3, 1)),
    }
    kind, more = kinds[name]
    return kind(M, D, *more).eval()


# ---- formulas
def test_lmf_is_the_product_with_the_full_tensor(vectors):
    fusion = made("lmf")
    nn.init.normal_(fusion.factors)
    nn.init.normal_(fusion.weight)
    nn.init.normal_(fusion.bias)
    a, b, c = (torch.cat([vectors[:, m], torch.ones(B, 1)], 1) for m in range(M))
    whole = sum(
        fusion.weight[r] * torch.einsum("iw,jw,kw->ijkw", *(fusion.factors[m, r] for m in range(M))) for r in range(R)
    )
    assert whole.shape == (D + 1, D + 1, D + 1, D)
    expected = torch.einsum("bi,bj,bk,ijkw->bw", a, b, c, whole) + fusion.bias
    fused, loss = fusion(vectors, EVERYTHING)
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-4)
    assert loss == 0 and expected.std() > 0.5


def test_attention_is_a_weighted_mean(vectors):
    fusion = made("attention")
    weights = fusion.weights(vectors, EVERYTHING)
    torch.testing.assert_close(weights, torch.softmax(fusion.weigh(vectors.flatten(1)), 1))
    fused, loss = fusion(vectors, EVERYTHING)
    torch.testing.assert_close(fused, sum(weights[:, m, None] * vectors[:, m] for m in range(M)))
    assert loss == 0 and weights.std() > 0.01


def test_similarity():
    """MISA Eq. 10 by hand, and zero for two batches of one distribution."""
    a = torch.tensor([[0.0, 0.2], [1.0, 0.4]])
    assert central_moment_discrepancy(a, a.flip(0)) == 0
    # means apart by .3 in each dimension, all central moments alike
    torch.testing.assert_close(central_moment_discrepancy(a, a + 0.3), torch.tensor(0.3 * math.sqrt(2)))
    b = torch.tensor([[0.4, 0.3], [0.6, 0.3]])  # same means; half-widths .5 and .1 against .1 and 0
    even = [math.hypot(0.5**k - 0.1**k, 0.1**k) for k in (2, 4)]  # odd moments are 0
    torch.testing.assert_close(central_moment_discrepancy(a, b), torch.tensor(sum(even)))


def test_difference():
    """MISA Eq. 12: zero for dimensions that never vary together, and the mean square of A^T B."""
    a = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    b = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, -1.0], [0.0, -1.0]])
    assert orthogonality(a, b) == 0
    torch.testing.assert_close(orthogonality(a, a), torch.tensor(4.0**2 / 4))  # A^T A = [[4, 0], [0, 0]]
    torch.testing.assert_close(orthogonality(a + 5, 3 * a), orthogonality(a, a))  # centred, and of length 1


def test_reconstruction_and_the_weights_of_the_losses(vectors):
    fusion = made("misa")
    shared, own = fusion.parts(vectors)
    for decoder in fusion.decoders:
        nn.init.eye_(decoder.weight)
        nn.init.zeros_(decoder.bias)
    fusion.loss_weights = (0, 0, 1)
    assert fusion.loss(shared + own, shared, own, EVERYTHING) < 1e-12  # decoders that copy rebuild their sum
    off = fusion.loss(shared + own + 0.5, shared, own, EVERYTHING)
    torch.testing.assert_close(off, torch.tensor(0.25))
    fusion.loss_weights = (1, 0, 0)
    pairs = [(0, 1), (0, 2), (1, 2)]
    alike = sum(central_moment_discrepancy(shared[:, i], shared[:, j]) for i, j in pairs) / 3
    torch.testing.assert_close(fusion.loss(vectors, shared, own, EVERYTHING), alike)
    fusion.loss_weights = (0, 1, 0)
    apart = sum(orthogonality(shared[:, m], own[:, m]) for m in range(M))
    apart = apart + sum(orthogonality(own[:, i], own[:, j]) for i, j in pairs)
    torch.testing.assert_close(fusion.loss(vectors, shared, own, EVERYTHING), apart)


@pytest.mark.parametrize("name", ["attention", "lmf", "misa"])
def test_what_is_not_there_has_no_influence(name, vectors):
    fusion, present = made(name), EVERYTHING.clone()
    present[0, 1] = present[2, 0] = False
    present[4] = False
    other = torch.where(present[..., None], vectors, vectors + 7)
    for part in zip(fusion(vectors, present), fusion(other, present), strict=True):
        torch.testing.assert_close(*part, rtol=1e-4, atol=1e-5)
    assert all(torch.isfinite(x).all() for x in fusion(vectors, present))
    assert not torch.allclose(fusion(vectors, EVERYTHING)[0][0], fusion(vectors, present)[0][0])


def test_a_batch_without_anything_has_a_finite_gradient(vectors):
    for name in ("attention", "lmf", "misa"):
        fusion = made(name)
        fused, loss = fusion(vectors, ~EVERYTHING)
        (fused.sum() + loss).backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in fusion.parameters())


# ---- runs
@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A miniature MELD, and features that tell the label: text vectors, vision sequences."""
    home = tmp_path_factory.mktemp("fusion")
    make_corpus(home / "meld", (3, 2, 2))
    rng, data = np.random.default_rng(0), MELD(root=home / "meld")
    for split in ("train", "dev", "test"):
        for modality, shape in (("text", (9,)), ("vision", (3, 8)), ("audio", (8,))):
            folder = home / modality / split
            folder.mkdir(parents=True)
            for s in data.samples(split):
                vector = rng.normal(0, 0.3, shape)
                vector[..., s.label] += 2
                np.save(folder / f"{s.target.id}.npy", vector.astype(np.float32))
    return home


@pytest.fixture
def options(home):
    def options(**more: object) -> list[str]:
        base = {f"model__{m}": f"features:{home / m}" for m in ("text", "vision")}
        base |= {"model__width": 16, "model__lr": 0.01, "trainer__max_epochs": 8, "data": "MELD"}
        return ["--model=FeatureFusion", *flags(**base | {"data__root": home / "meld", "data__batch_size": 4} | more)]

    return options


@pytest.mark.parametrize("fusion", ["attention", "lmf", "misa"])
def test_a_run_learns_and_repeats_itself(fusion, options, tmp_path, home):
    longer = (
        {"trainer__max_epochs": 40, "trainer__check_val_every_n_epoch": 20, "model__lr": 0.005}
        if fusion == "misa"
        else {}
    )
    chosen = options(model__fusion=fusion, model__audio=f"features:{home / 'audio'}", **longer)
    run, again = (fit(tmp_path / name, TRACE, *chosen) for name in ("run", "again"))
    zoo("test", f"--ckpt_path={run}")
    assert metrics(run)["accuracy"] > 0.7 and metrics(run)["reads"] == ["text", "face", "voice"]
    assert all(set(r["scores"]) == set(LABELS) for r in rows(run))
    assert trace(again) == trace(run) and same(checkpoint(again)["state_dict"], checkpoint(run)["state_dict"])
    assert trace(run, "end")[0]["without_gradient"] == []
    before = rows(run)
    zoo("test", f"--ckpt_path={run}", "--data.eval_batch_size=1")
    for a, b in zip(rows(run), before, strict=True):
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-5)


def test_a_missing_modality_is_counted_and_others_answer(options, tmp_path, home):
    run = fit(tmp_path / "run", *options())
    files = [home / m / "test" / "dia0_utt0.npy" for m in ("vision", "text")]
    kept = [file.read_bytes() for file in files]
    try:
        files[0].unlink()
        zoo("test", f"--ckpt_path={run}", "--data.max_unreadable=0.5")
        assert metrics(run)["events"]["samples without vision features"] == 1 and metrics(run)["unparsed"] == 0
        files[1].unlink()
        zoo("test", f"--ckpt_path={run}", "--data.max_unreadable=0.5")
        assert rows(run)[0]["predicted"] is None and metrics(run)["events"]["samples without any features"] == 1
        assert "test samples have no clip, picture or features" in refused("test", f"--ckpt_path={run}")
    finally:
        for file, content in zip(files, kept, strict=True):
            file.write_bytes(content)


def test_bad_options(options, home):
    assert "nothing to fuse" in refused("fit", *options(model__vision="null"))
    assert "is no folder of features" in refused("fit", *options(model__vision="tiny-vit-sitcom"))
    assert "multiple of heads" in refused("fit", *options(model__heads=3))
    assert "no such folder" in refused("fit", *options(model__text=f"features:{home / 'none'}"))
