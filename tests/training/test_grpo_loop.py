"""The options of the GRPO loop that are off by default, and what it logs at every step, in whole runs."""

from __future__ import annotations

import csv
import functools
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from tests.builders import make_home
from tests.runs_helper import QUIET, checkpoint, fit, grpo_flags, logged, refused
from zoo.training.grpo_metrics import PHASES

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("loop"), (2, 1, 1))  # 14 samples to train on


@pytest.fixture(scope="module")
def options(home):
    return functools.partial(grpo_flags, home, data__batch_size=7)


LORA = {"model__lora__r": 4, "model__objective__beta": 0.04}


class Adapters(Callback):
    """After every optimiser step: the trained adapters, the reference's, the weight of the divergence, the gradient."""

    steps: list[dict] = []  # noqa: RUF012

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if outputs is None:
            return
        named = {n: p.detach().clone() for n, p in pl_module.named_parameters() if ".lora_" in n}
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in pl_module.parameters() if p.grad is not None))
        self.steps.append(
            {
                "trained": {n: p for n, p in named.items() if ".default." in n},
                "reference": {n.replace("reference", "default"): p for n, p in named.items() if ".reference." in n},
                "beta": pl_module.beta,
                "norm": norm,
            }
        )


ADAPTERS = "--trainer.callbacks+=tests.training.test_grpo_loop.Adapters"


@pytest.fixture
def steps():
    Adapters.steps.clear()
    return Adapters.steps


def test_every_step_says_how_it_went_and_what_it_cost(options, tmp_path, steps):
    run = fit(tmp_path, *options(**LORA, trainer__max_steps=4, model__max_length=12, model__warmup=2), ADAPTERS)
    assert logged(run, "train/grad_norm") == pytest.approx([s["norm"] for s in steps], rel=1e-5)
    rates = [3e-3 * 0.5, 3e-3, 3e-3, 3e-3 * 0.5]  # two steps of warm-up, then half a cosine over two
    assert logged(run, "train/learning_rate") == pytest.approx(rates)
    assert logged(run, "train/prompts/clipped_ratio") == [1.0] * 4
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        seconds = {name: float(row[f"perf/{name}_seconds"]) for name in PHASES}
        assert min(seconds.values()) > 0
        tokens = float(row["train/completions/mean_length"]) * 28
        assert float(row["perf/sampled_tokens_per_second"]) == pytest.approx(tokens / seconds["sampling"], rel=1e-4)
        assert 0.1 < float(row["perf/peak_memory_gib"]) < 100
    assert not any(name.startswith("perf/") for name in logged(run)[0])  # runs are compared without it


def test_a_gradient_is_measured_before_it_is_clipped(options, tmp_path, steps):
    run = fit(tmp_path, *options(**LORA, trainer__max_steps=2, trainer__gradient_clip_val=1e-4), ADAPTERS)
    assert max(s["norm"] for s in steps) <= 1.01e-4 and min(logged(run, "train/grad_norm")) > 1e-3


@pytest.mark.parametrize(("every", "rows"), [(2, 2), (3, 2), (5, 1)])
def test_a_window_of_several_steps_is_logged_when_one_of_them_is_due(every, rows, options, tmp_path):
    more = {"model__num_iterations": 3, "trainer__max_steps": 6}
    run = fit(tmp_path, *options(**more), f"--trainer.log_every_n_steps={every}")
    assert len(logged(run, "train/reward")) == rows


# ---- a reference that moves, a weight that adapts
def test_the_reference_follows_what_is_trained(options, tmp_path, steps):
    more = {"model__sync_ref_model": "true", "model__ref_model_mixup_alpha": 0.25, "model__ref_model_sync_steps": 2}
    run = fit(tmp_path, *options(**LORA, **more, trainer__max_steps=4, trainer__max_epochs=2), ADAPTERS)
    assert len(steps) == 4 and len(steps[0]["reference"]) > 4
    for name, value in steps[0]["reference"].items():
        assert ".lora_B." not in name or not value.any()  # it begins as the model without adapters
        expected = value
        for i, step in enumerate(steps, 1):
            if i % 2 == 0:  # reference = alpha trained + (1 - alpha) reference
                expected = 0.25 * step["trained"][name] + 0.75 * expected
            torch.testing.assert_close(step["reference"][name], expected)
        assert i == 4 and not torch.equal(expected, value)
    stored = checkpoint(run)["state_dict"]
    last = {n.replace("default", "reference"): v for n, v in steps[-1]["reference"].items()}
    assert last and all(torch.equal(stored[n], v) for n, v in last.items())


def test_the_weight_of_the_divergence_adapts(options, tmp_path, steps):
    more = {"model__objective__target_kl": 1e-3, "model__objective__kl_horizon": 280}  # 28 answers a step
    run = fit(tmp_path, *options(**LORA, **more, model__lr=0.03, trainer__max_steps=4), ADAPTERS)
    beta, kl = 0.04, logged(run, "train/kl")
    assert logged(run, "train/beta")[0] == pytest.approx(beta)
    for step, divergence in zip(steps, kl, strict=True):
        beta *= 1 + max(-0.2, min(0.2, divergence / 1e-3 - 1)) * 0.1
        assert step["beta"] == pytest.approx(beta, rel=1e-6)
    assert min(kl) < 1e-3 < max(kl) and checkpoint(run)["beta"] == steps[-1]["beta"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model__sync_ref_model": "true"}, "which objective.beta 0 does not look at"),
        (
            LORA | {"model__sync_ref_model": "true", "model__ref_model_sync_steps": 0},
            "ref_model_sync_steps of at least",
        ),
        (LORA | {"model__ref_model_mixup_alpha": 1.5}, "ref_model_mixup_alpha from 0 to 1"),
    ],
)
def test_what_cannot_work_is_refused_at_once(more, message, options):
    assert message in refused("fit", *QUIET, *options(**more))


OBJECTIVES = {
    "cispo": {"model__objective__kind": "cispo", "model__objective__epsilon_high": 5},
    "gspo": {"model__objective__importance_sampling_level": "sequence", "model__objective__normalize": "sequence"},
    "entropy": {"model__objective__entropy_coef": 0.1},
    "batch": {"model__scale_rewards": "batch"},
    "rloo": {"model__scale_rewards": "none", "model__baseline": "leave_one_out"},
}


def test_every_option_reaches_the_step(options, tmp_path):
    """Two steps of each option, of which only it differs, end with other weights than those of the default."""
    ended = {}
    for name, more in {"default": {}, **OBJECTIVES}.items():
        more = LORA | {"trainer__max_steps": 2, "model__num_iterations": 2, "model__lr": 0.03} | more
        run = fit(tmp_path / name, *options(**more))
        ended[name] = torch.cat([v.flatten() for v in checkpoint(run)["state_dict"].values()])
        assert ("train/cispo_clip_ratio" in logged(run)[0]) == (name == "cispo")
    for name in OBJECTIVES:
        assert not torch.allclose(ended[name], ended["default"], atol=1e-6), name
