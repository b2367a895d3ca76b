"""The GRPO loop in Lightning: it learns, and its steps depend on neither the split into batches nor the processes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from tests.builders import make_home
from tests.runs_helper import QUIET, checkpoint, fit, flags, logged, metrics, newest, refused, zoo
from zoo.models.selector import ModalitySelector
from zoo.models.selector.parts import read_decision
from zoo.rl import Answer
from zoo.training.grpo import RewardBatch

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("reinforced"), (4, 1, 1), two=(2, 1, 1))


@pytest.fixture(scope="module")
def options(home):
    def options(corpus: str = "meld", **more: object) -> list[str]:
        base = {"model": "GRPO", "model__llm": home / "llm", "data": "MELD", "data__root": home / corpus}
        base |= {"model__lr": 3e-3, "model__max_new_tokens": 2, "trainer__limit_val_batches": 0}
        return flags(**base | more)

    return options


# ---- it learns
def says_joy(answer: Answer) -> float:
    """1 for one word of the 420; chance finds it once in some hundred answers."""
    return float(answer.text.strip().startswith("joy"))


def nothing(answer: Answer) -> float:
    return 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("objective", ["grpo_clip", "reinforce_group"])
def test_the_rewarded_answer_is_learnt(seed, objective, options, tmp_path):
    run = fit(
        tmp_path,
        *options(
            seed_everything=seed,
            data__batch_size=8,
            model__num_generations=16,
            model__lr=0.01,
            model__schedule="constant",
            model__warmup=0,
            trainer__max_steps=40,
            **{"model__reward_funcs+": "tests.test_reinforced.says_joy"},
            model__objective__kind=objective,
            model__objective__normalize="sequence",
            trainer__gradient_clip_val=1.0,
            model__max_new_tokens=1,
            model__temperature=1.5,
        ),
    )
    rewards = logged(run, "train/reward")
    assert len(rewards) == 40 and sum(rewards[:3]) / 3 < 0.1 and sum(rewards[-5:]) / 5 > 0.9


def test_a_constant_reward_teaches_nothing_and_takes_no_pass(options, home, tmp_path):
    run = fit(
        tmp_path,
        *options(
            **{"model__reward_funcs+": "tests.test_reinforced.nothing"},
            model__lora__r=4,
            data__batch_size=4,
            trainer__max_steps=3,
        ),
    )
    assert logged(run, "train/frac_reward_zero_std") == [1.0] * 3 and logged(run, "train/reward") == [0.5] * 3
    state = checkpoint(run)["state_dict"]
    assert all(float(v.abs().max()) == 0 for k, v in state.items() if ".lora_B." in k)  # as they were made


# ---- one step is one step, however it is split
class Odd(ModalitySelector):
    """Both decisions in every group, so nothing is drawn; their rewards differ from sample to sample."""

    def rewards(self, groups) -> RewardBatch:
        def reward(a: Answer) -> float:
            teaches = not a.sample.id.endswith("utt3")  # else it is worth as much as its opposite
            return sum(f"{a.sample.id}{read_decision(a.text, False)}".encode()) % 11 / 3 if teaches else 1.0

        return RewardBatch(torch.tensor([[reward(a) for a in group] for group in groups]), {}, {})


ODD = {
    "model": "tests.test_reinforced.Odd",
    "model__reasoning": "none",
    "model__exploration": "forced",
    "model__template": "decision",
    "model__window": 1,
    "model__num_generations": 2,
    "model__lora__r": 4,
    "model__objective__kind": "reinforce_group",
    "trainer__max_steps": 2,
    "model__schedule": "constant",
    "model__warmup": 0,
}


@pytest.mark.parametrize("normalize", ["token", "sum"])
def test_any_split_of_a_window_takes_the_same_steps(normalize, options, tmp_path):
    """14 samples are one step of: 14, 2 x 7, 14 x 1; the last two are also computed in other orders."""
    ended = []
    for batch_size, accumulated in ((14, 1), (7, 2), (1, 14)):
        run = fit(
            tmp_path / str(batch_size),
            *options(
                "two",
                **ODD | {"model__objective__normalize": normalize},
                data__batch_size=batch_size,
                trainer__accumulate_grad_batches=accumulated,
            ),
        )
        ended.append(checkpoint(run)["optimizer_states"][0]["state"])
    for other in ended[1:]:
        for key, state in ended[0].items():  # AdamW's mean of gradients: the weights only keep their signs
            torch.testing.assert_close(other[key]["exp_avg"], state["exp_avg"], rtol=1e-4, atol=1e-7)
    assert max(float(s["exp_avg"].abs().max()) for s in ended[0].values()) > 1e-4


@pytest.mark.parametrize("scale_rewards", ["group", "batch"])
def test_two_processes_take_the_steps_of_one(scale_rewards, options, tmp_path):
    """With groups that are skipped, so that the processes run different numbers of passes."""
    ended = []
    for devices, batch_size in ((1, 14), (2, 7)):
        args = options(
            "two",
            **ODD,
            data__batch_size=batch_size,
            model__scale_rewards=scale_rewards,
            trainer__devices=devices,
            trainer__strategy="ddp_fork" if devices > 1 else "auto",
            trainer__default_root_dir=tmp_path / str(devices),
        )
        done = subprocess.run(
            [sys.executable, "-m", "zoo", "fit", *QUIET, *args],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        assert done.returncode == 0, done.stderr[-2000:]
        ended.append(newest(tmp_path / str(devices)))
    one, two = (checkpoint(run)["optimizer_states"][0]["state"] for run in ended)
    for key, state in one.items():
        torch.testing.assert_close(two[key]["exp_avg"], state["exp_avg"], rtol=1e-4, atol=1e-7)
    for name in ("train/loss", "train/reward"):
        assert logged(ended[1], name) == pytest.approx(logged(ended[0], name), abs=1e-5)


# ---- Lightning's own options
class Norms(Callback):
    found: list[float] = []  # noqa: RUF012

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if outputs is None:  # no step yet
            return
        grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.found.append(math.sqrt(sum(float(g.square().sum()) for g in grads)))


def test_gradients_are_clipped_as_the_trainer_says(options, tmp_path):
    for clip in (None, 0.01):
        Norms.found.clear()
        fit(
            tmp_path / str(clip),
            *options("two", **ODD, data__batch_size=7),
            *([f"--trainer.gradient_clip_val={clip}"] if clip else []),
            "--trainer.callbacks+=tests.test_reinforced.Norms",
        )
        assert len(Norms.found) == 2
        assert max(Norms.found) <= 0.0101 if clip else min(Norms.found) > 0.0101


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_half_precision_runs(precision, options, tmp_path):
    run = fit(
        tmp_path,
        *options(
            **{"model__reward_funcs+": "tests.runs_helper.checksum"},
            data__batch_size=4,
            model__lora__r=4,
            model__objective__beta=0.04,
            trainer__max_steps=3,
            trainer__precision=precision,
        ),
    )
    assert all(map(math.isfinite, logged(run, "train/loss"))) and len(logged(run, "train/kl")) == 3


def test_several_steps_from_one_sample(options, tmp_path):
    run = fit(
        tmp_path,
        *options(
            **{"model__reward_funcs+": "tests.runs_helper.checksum"},
            data__batch_size=7,
            model__num_iterations=3,
            trainer__max_epochs=2,
            model__lr=0.05,
            model__objective__clip_high=0.3,
        ),
    )
    assert checkpoint(run)["global_step"] == 2 * 4 * 3  # epochs, windows, iterations
    assert checkpoint(run)["lr_schedulers"][0]["_last_lr"][0] == pytest.approx(0, abs=1e-9)  # the schedule knew
    clipped = logged(run, "train/clip_ratio/high_mean") + logged(run, "train/clip_ratio/low_mean")
    assert max(clipped) > 0  # the third step is off policy


# ---- what is written down
def test_sampled_answers_are_shown_with_their_rewards(options, tmp_path):
    run = fit(
        tmp_path,
        *options(
            data__batch_size=7,
            trainer__max_steps=4,
            model__log_completions_steps=2,
            model__num_generations=3,
            model__reward_funcs="[tests.runs_helper.checksum, tests.test_reinforced.says_joy]",
            model__reward_weights="[2, 1]",
        ),
    )
    rows = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1] * 6 + [3] * 6
    for r in rows:
        assert r["rewards"].keys() == {"checksum", "says_joy"}
        assert r["reward"] == pytest.approx(2 * r["rewards"]["checksum"] + r["rewards"]["says_joy"], abs=1e-5)
        assert r["rewards"]["checksum"] == pytest.approx(sum(r["answer"].encode()) % 7 / 7, abs=1e-5)
    for column in (
        "reward_std",
        "frac_reward_zero_std",
        "entropy",
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
        "completions/clipped_ratio",
        "rewards/says_joy/mean",
        "rewards/checksum/std",
        "clip_ratio/low_mean",
    ):
        assert len(logged(run, f"train/{column}")) == 4, column


def test_a_test_has_answers_in_words(options, tmp_path):
    run = fit(
        tmp_path,
        *options(**{"model__reward_funcs+": "tests.runs_helper.checksum"}, data__batch_size=7, trainer__max_steps=1),
    )
    zoo("test", f"--ckpt_path={run}/checkpoints/last.ckpt")
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert metrics(run)["n"] == len(rows) == 7
    assert all(r["details"]["reward"] == pytest.approx(sum(r["text"].encode()) % 7 / 7) for r in rows)


# ---- refusals
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model__objective__beta": 0.1}, "without lora there is no reference"),
        ({"model__num_generations": 0}, "num_generations >= 1"),
        ({"model__reward_weights": "[1, 2]"}, "1 rewards, but 2 reward_weights"),
        ({"model__objective__kind": "ppo_reward"}, "normalize must be sum or sequence"),
        ({"model__objective__dual_clip": 0.5}, "above 1"),
    ],
)
def test_what_cannot_work_is_refused_at_once(wrong, said, options):
    assert said in refused("fit", *QUIET, *options(**{"model__reward_funcs+": "tests.runs_helper.checksum"}, **wrong))


def infinite(answer: Answer) -> float:
    return float("nan")


def test_a_reward_that_is_no_number_stops_the_run(options, tmp_path):
    message = refused(
        "fit",
        *QUIET,
        *options(**{"model__reward_funcs+": "tests.test_reinforced.infinite"}, trainer__default_root_dir=tmp_path),
    )
    assert "reward infinite gave a number that is not finite" in message


def test_without_a_reward_there_is_nothing_to_learn(options):
    assert "needs at least one reward" in refused("fit", *QUIET, *options())
