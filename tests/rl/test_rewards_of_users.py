"""What a reward of the user's may return, and what becomes of everything else."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from tests.builders import make_home
from tests.runs_helper import QUIET, fit, flags, logged, metrics, refused, zoo
from zoo.rl import Answer
from zoo.rl.rewards import Correct, FailedReward, check_reward, evaluate_reward
from zoo.schema import Labels, Sample, Turn

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")

SAMPLE = Sample("toy/train/a", "toy/train/d", Labels("toy", ("joy", "anger")), Turn("a", "", "Hm.", "joy"))
ANSWER = Answer("joy", 2, True, SAMPLE)


def returns(value):
    def reward(answer):
        return value

    return reward


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        (0.5, 0.5),
        (-2.0, -2.0),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3.0),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([0.5]), 0.5),
        (np.array([2.0]), 2.0),
        (torch.tensor(1.0, requires_grad=True), 1.0),
    ],
)
def test_one_finite_number_is_a_reward(value, number):
    assert evaluate_reward(returns(value), ANSWER) == number


def test_none_abstains():
    assert evaluate_reward(returns(None), ANSWER) is None


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("good", "returned 'good' (str)"),
        ("0.5", "returned '0.5' (str)"),
        (b"1", "(bytes)"),
        ([1.0], "returned '[1.0]' (list)"),
        ({}, "(dict)"),
        (True, "returned 'True' (bool)"),
        (np.bool_(True), "(bool"),
        (1j, "(complex)"),
        (torch.tensor([1.0, 2.0]), "(Tensor)"),
        (torch.tensor(True), "(Tensor)"),
        (torch.empty(0), "(Tensor)"),
        (np.array([1.0, 2.0]), "(ndarray)"),
        (float("nan"), "not finite: nan"),
        (float("inf"), "not finite: inf"),
        (-math.inf, "not finite: -inf"),
        (1e308, "not finite: 1e+308"),  # rewards are summed in float32
        (len, "(builtin_function_or_method)"),
    ],
)
def test_everything_else_is_refused_with_reward_value_and_sample(value, problem):
    with pytest.raises(ValueError) as caught:
        evaluate_reward(returns(value), ANSWER)
    message = str(caught.value)
    assert problem in message and "reward reward " in message and "toy/train/a" in message
    assert "expected one finite number, or None" in message


def boom(answer):
    raise KeyError("oops")


def test_an_error_inside_a_reward_keeps_its_traceback_and_names_reward_and_sample():
    with pytest.raises(FailedReward, match="reward boom raised KeyError: 'oops', for the sample toy/train/a") as caught:
        evaluate_reward(boom, ANSWER)
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.__cause__.__traceback__ is not None


def exits(answer):
    raise SystemExit(0)


def test_a_reward_that_ends_the_program_is_refused():
    with pytest.raises(ValueError, match=r"reward exits ended the program \(exit code 0\) at the sample toy/train/a"):
        evaluate_reward(exits, ANSWER)


def interrupted(answer):
    raise KeyboardInterrupt


def test_an_interrupt_inside_a_reward_stays_one():
    with pytest.raises(KeyboardInterrupt):
        evaluate_reward(interrupted, ANSWER)


def two(answer, sample):
    return 1.0


def none_at_all():
    return 1.0


@pytest.mark.parametrize("reward", [two, none_at_all, 5, "name"])
def test_what_cannot_take_one_answer_is_refused_before_any_work(reward):
    with pytest.raises(ValueError, match="expected one"):
        check_reward(reward)
    check_reward(Correct())
    check_reward(lambda answer, scale=2.0: scale)
    check_reward(float)


def mutate(answer):
    object.__setattr__(answer, "text", "joy")
    return 1.0


def test_a_reward_cannot_change_what_the_next_one_sees():
    answer = Answer("anger", 1, True, SAMPLE)
    assert evaluate_reward(mutate, answer) == 1.0 and answer.text == "anger"


# ---- in a run
def abstains(answer):
    return None


def sometimes(answer):
    return None if len(answer.text) % 2 else 3.0


def one(answer):
    return 1.0


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("rewards"), (2, 1, 1))


def options(home, **more):
    base = {
        "model": "GRPO",
        "model__llm": home / "llm",
        "data": "MELD",
        "data__root": home / "meld",
        "model__max_new_tokens": 3,
        "model__temperature": 2.0,
        "trainer__max_steps": 1,
        "data__batch_size": 7,
        "trainer__limit_val_batches": 0,
    }
    return flags(**base | more)


HERE = "tests.rl.test_rewards_of_users"


def test_means_leave_abstentions_out_and_an_answer_without_any_reward_is_worth_zero(home, tmp_path):
    run = fit(
        tmp_path,
        *options(
            home,
            model__reward_funcs=f"[{HERE}.sometimes, {HERE}.abstains]",
            model__log_completions_steps=1,
            trainer__default_root_dir=tmp_path,
        ),
    )
    assert logged(run, "train/rewards/sometimes/mean") == [3.0]
    assert "train/rewards/abstains/mean" not in logged(run)[0]
    rows = [json.loads(line) for line in (run / "answers.jsonl").read_text().split("\n") if line]
    assert len({len(r["answer"]) % 2 for r in rows}) == 2
    assert {(len(r["answer"]) % 2, r["rewards"]["sometimes"], r["rewards"]["abstains"], r["reward"]) for r in rows} <= {
        (1, None, None, 0.0),
        (0, 3.0, None, 3.0),
    }
    zoo("test", f"--ckpt_path={run}/checkpoints/last.ckpt")
    assert metrics(run)["n"] == 7  # predictions.jsonl holds the abstentions as null
    tested = [json.loads(line) for line in (run / "predictions.jsonl").read_text().split("\n") if line]
    assert all(r["details"]["rewards"]["abstains"] is None for r in tested)


def test_a_step_in_which_every_reward_abstains_is_said(home, tmp_path):
    with pytest.warns(UserWarning, match=r"none of the rewards \(abstains\) applies to any of the 28 answers"):
        run = fit(tmp_path, *options(home, model__reward_funcs=f"[{HERE}.abstains]"))
    assert logged(run, "train/reward") == [0.0] and logged(run, "train/frac_reward_zero_std") == [1.0]


def test_one_rollout_has_one_entropy_whether_cut_answers_are_dropped_or_not(home, tmp_path):
    values = {}
    for tokens in (1, 3):
        for drop in ("false", "true"):
            how = {"model__mask_truncated_completions": drop, "model__max_new_tokens": tokens}
            run = fit(tmp_path / f"{tokens}{drop}", *options(home, model__reward_funcs=f"[{HERE}.one]", **how))
            names = ("entropy", "completions/mean_length", "completions/clipped_ratio")
            values[tokens, drop] = [logged(run, f"train/{name}") for name in names]
    for tokens in (1, 3):
        assert values[tokens, "true"] == values[tokens, "false"]
        assert 0 < values[tokens, "true"][0][0] < math.log(4096)
    assert values[1, "true"][2][0] > 0.5 and values[3, "true"][2][0] > 0


def test_a_reward_of_a_run_is_refused_by_name(home, tmp_path):
    args = options(home, model__reward_funcs=f"[{HERE}.two]", trainer__default_root_dir=tmp_path)
    message = refused("fit", *QUIET, *args)
    assert "reward two takes (answer, sample); expected one argument, the Answer" in message


def test_a_reward_with_other_words_than_the_evaluation_is_refused(home, tmp_path):
    rewards = '[{"class_path": "zoo.rl.rewards.Correct", "init_args": {"words": {"joy": "joyful"}}}]'
    message = refused("fit", *QUIET, *options(home, model__reward_funcs=rewards, trainer__default_root_dir=tmp_path))
    assert "joyful" in message and "give the words as --model.verbalizer" in message


@pytest.mark.parametrize("wrong", [{"model__log_completions_steps": -1}, {"model__reward_weights": "[.nan]"}])
def test_numbers_that_mean_nothing_are_refused(home, wrong):
    assert "got" in refused("fit", *QUIET, *options(home, model__reward_funcs=f"[{HERE}.one]", **wrong))
