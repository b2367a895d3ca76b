"""A window of the GRPO loop: in several steps, with groups that are drawn again, filtered and stopped answers."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import pytest
import torch

from tests.builders import make_home
from tests.runs_helper import QUIET, checkpoint, fit, flags, grpo_flags, logged, refused
from zoo.models.grpo import GRPO
from zoo.models.merit import MeritTTRL
from zoo.rl import Answer

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("windows"), (2, 1, 1))  # 14 samples to train on


@pytest.fixture(scope="module")
def options(home):
    return functools.partial(grpo_flags, home, data__batch_size=5, trainer__max_epochs=1)


# ---- several steps per window
class Written(GRPO):
    """Compares the loss of every optimiser step with the formula over its answers."""

    steps: list[tuple[int, bool]] = []  # noqa: RUF012

    def update(self, window, rollout, advantages, on_policy):
        prompts = [s for batch in window for s in batch["samples"]]
        assert len(prompts) == len(rollout.ids) == len(advantages)
        mask = rollout.loss_mask
        with torch.no_grad():
            before = self.llm.training
            self.llm.eval()
            parts, start = [], 0
            for batch in window:
                part = rollout.rows(torch.arange(start, start + len(batch["samples"])))
                values = self.llm.logprobs(self.encode(batch), part.ids, part.loss_mask, self.temperature)
                parts.append(torch.nn.functional.pad(values, (0, mask.shape[2] - values.shape[2])))
                start += len(batch["samples"])
            self.llm.train(before)
        logprobs = torch.cat(parts)
        expected = 0.0
        for b, n, t in mask.nonzero().tolist():
            ratio = 1.0 if on_policy else math.exp(float(logprobs[b, n, t] - rollout.old_logprobs[b, n, t]))
            a = float(advantages[b, n])
            expected -= min(ratio * a, min(max(ratio, 0.8), 1.2) * a) / int(mask.sum())
        sums = super().update(window, rollout, advantages, on_policy)
        assert sums["loss"].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)
        self.steps.append((len(prompts), on_policy))
        return sums


def test_a_window_in_several_steps(options, tmp_path):
    """Three batches of 5, 5 and 4 are windows of two and of one; a window takes a step per batch, twice."""
    Written.steps.clear()
    more = {"model": "tests.training.test_grpo_windows.Written", "trainer__accumulate_grad_batches": 2}
    more |= {"model__num_mini_batches": 2, "model__num_iterations": 2, "model__lr": 0.02, "trainer__max_epochs": 2}
    run = fit(tmp_path, *options(**more))
    sizes = [size for size, _ in Written.steps]
    assert len(sizes) == 2 * 3 * 2 and sum(sizes) == 2 * 14 * 2  # epochs, batches, iterations
    assert [on for _, on in Written.steps] == 2 * [True, False, False, False, True, False]
    state = checkpoint(run)
    assert state["global_step"] == 12
    assert state["lr_schedulers"][0]["_last_lr"][0] == pytest.approx(0, abs=1e-9)  # the schedule knew
    assert min(logged(run, "train/learning_rate")) > 0  # and did not end before
    assert len(logged(run, "train/reward")) == 4  # windows


def test_a_window_that_cannot_be_divided(options):
    more = {"trainer__accumulate_grad_batches": 3, "model__num_mini_batches": 2}
    assert "a window of 3 batches" in refused("fit", *QUIET, *options(**more))


# ---- groups that are drawn again
def coarse(answer: Answer) -> float:
    """So coarse that many groups earn the same."""
    return float(sum(answer.text.encode()) % 5 == 0)


class Again(GRPO):
    """Keeps what was sampled, and what the step learns from."""

    drawn: list = []  # noqa: RUF012
    ended: list = []  # noqa: RUF012

    def sample(self, window, answers=None, prompts=None):
        rollout = super().sample(window, answers, prompts)
        self.drawn.append((prompts, rollout))
        return rollout

    def sample_and_reward(self, window, cost):
        self.drawn.clear()
        result = super().sample_and_reward(window, cost)
        self.ended.append((list(self.drawn), *result, cost))
        return result


@pytest.mark.parametrize("times", [1, 4])
def test_groups_without_variance_are_drawn_again(times, options, tmp_path):
    Again.ended.clear()
    more = {"model": "tests.training.test_grpo_windows.Again", "model__max_resample_times": times}
    more |= {"model__reward_funcs+": "tests.training.test_grpo_windows.coarse", "model__num_generations": 3}
    run = fit(tmp_path, *options(**more, data__batch_size=14))
    ((drawn, rollout, groups, rewards, cost),) = Again.ended
    assert 1 < len(drawn) <= times + 1 and drawn[0][0] is None
    texts = lambda r: [[r.ids[b, n][r.sampled[b, n]].tolist() for n in range(3)] for b in range(len(r.ids))]  # noqa: E731
    expected, dropped, tokens = texts(drawn[0][1]), 0, int(drawn[0][1].sampled.sum())
    for prompts, again in drawn[1:]:
        assert 0 < len(prompts) == len(again.ids)
        for b, answers in zip(prompts.tolist(), texts(again), strict=True):
            expected[b] = answers
        dropped, tokens = dropped + len(prompts), tokens + int(again.sampled.sum())
    assert texts(rollout) == expected  # each group is the one drawn last
    assert (rewards.total == torch.tensor([[coarse(a) for a in group] for group in groups])).all()
    assert logged(run, "train/dynamic_sampling/dropped_groups") == [dropped] and cost.sampled_tokens == tokens
    for b, answers in enumerate(rewards.total.tolist()):
        drawn_last = max(i for i, (prompts, _) in enumerate(drawn) if prompts is None or b in prompts.tolist())
        assert len(set(answers)) > 1 or drawn_last == times  # one without variance was drawn as often as allowed


def test_without_variance_for_good(options, tmp_path):
    more = {"model__reward_funcs+": "tests.test_reinforced.nothing", "model__max_resample_times": 2}
    run = fit(tmp_path, *options(**more, data__batch_size=14))
    assert logged(run, "train/dynamic_sampling/dropped_groups") == [28]  # fourteen, twice
    assert logged(run, "train/frac_reward_zero_std") == [1.0]
    assert "never has variance" in refused("fit", *QUIET, *options(**more, model__num_generations=1))


# ---- filters and stop strings
def test_only_the_most_probable_token(options, tmp_path):
    run = fit(tmp_path, *options(model__top_k=1, data__batch_size=14))
    assert logged(run, "train/frac_reward_zero_std") == [1.0]  # all answers to a prompt are the same
    assert min(logged(run, "train/entropy")) > 0  # of the whole distribution


def test_answers_end_with_a_stop_string(options, tmp_path):
    more = {"model__max_new_tokens": 12, "model__log_completions_steps": 1, "model__stop_strings": "[e, a, o]"}
    run = fit(tmp_path, *options(**more))
    answers = [json.loads(line)["answer"] for line in (run / "answers.jsonl").read_text().splitlines()]
    stopped = [a for a in answers if any(x in a for x in "eao")]
    assert len(stopped) > 5
    assert all(sum(a.count(x) for x in "eao") <= 3 for a in stopped)  # the last token may hold several
    assert max(logged(run, "train/completions/clipped_ratio")) < 1


# ---- votes of which some are trained
class FewOfMany(MeritTTRL):
    seen: list = []  # noqa: RUF012

    def rewards(self, groups):
        batch = super().rewards(groups)
        self.seen.append([[a.text for a in group] for group in groups])
        return batch

    def update(self, window, rollout, advantages, on_policy):
        assert rollout.ids.shape[1] == advantages.shape[1] == 2
        return super().update(window, rollout, advantages, on_policy)


def test_few_of_many_votes_are_trained(home, tmp_path):
    FewOfMany.seen.clear()
    base = {"model": "tests.training.test_grpo_windows.FewOfMany", "model__llm": home / "llm", "data": "Adaptation"}
    base |= {"data__corpus": "MELD", "data__corpus__root": home / "meld", "data__batch_size": 7}
    base |= {"model__template": "plain", "model__guard": "null", "model__lora__r": 4, "trainer__max_steps": 1}
    base |= {"model__num_generations": 2, "model__num_votes": 6, "model__log_completions_steps": 1}
    run = fit(tmp_path, *flags(**base))
    (groups,) = FewOfMany.seen
    assert [len(group) for group in groups] == [6] * 7
    written = [json.loads(line)["answer"] for line in (run / "answers.jsonl").read_text().splitlines()]
    assert written == [text for group in groups[:2] for text in group[:2]]
