"""Rewards of a whole window: asynchronous, late, failing, remembered; and in a run."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path

import pytest

from tests.builders import make_home
from tests.runs_helper import QUIET, fit, flags, logged, refused, rows, zoo
from zoo.rl import Answer, BatchReward
from zoo.rl.rewards import FailedReward, check_reward
from zoo.schema import Labels, Sample, Turn

LABELS = Labels("meld", ("joy", "anger"))


def answers(*texts: str) -> list[Answer]:
    """Answers to two prompts in turn."""
    samples = [Sample(f"meld/test/{i}", "meld/test/d", LABELS, Turn(str(i), "", "hi")) for i in range(2)]
    return [Answer(text, 1, True, samples[i % 2]) for i, text in enumerate(texts)]


class Ranked(BatchReward):
    """The share of the others that are shorter: a number that depends on the whole window."""

    def __call__(self, answers):
        lengths = [len(a.text) for a in answers]
        return [sum(other < n for other in lengths) / max(1, len(lengths) - 1) for n in lengths]


class Remote(BatchReward):
    """As a service: asynchronous; fails or dawdles as often as it is told to, abstains where there is no text."""

    def __init__(self, fails: int = 0, dawdles: int = 0, seconds: float = 5.0, **options: object) -> None:
        super().__init__(pause=0.0, **options)
        self.fails, self.dawdles, self.seconds = fails, dawdles, seconds
        self.asked: list[list[str]] = []

    async def __call__(self, answers):
        self.asked.append([a.text for a in answers])
        if len(self.asked) <= self.fails:
            raise ConnectionError("the service is away")
        if len(self.asked) <= self.fails + self.dawdles:
            await asyncio.sleep(self.seconds)
        return await asyncio.gather(*(self.one(a) for a in answers))

    async def one(self, answer: Answer) -> float | None:
        await asyncio.sleep(0)
        return float(len(answer.text)) if answer.text else None


def test_a_reward_sees_the_window():
    assert Ranked().evaluate(answers("a", "abc", "ab")) == [0.0, 1.0, 0.5]


def test_an_asynchronous_reward_in_a_program_with_a_loop():
    async def inside():
        return Remote().evaluate(answers("ab", "", "c"))

    assert Remote().evaluate(answers("ab", "", "c")) == asyncio.run(inside()) == [2.0, None, 1.0]


def test_an_answer_to_a_prompt_is_asked_for_once():
    reward = Remote(cache=True)
    assert reward.evaluate(answers("ab", "ab", "ab", "")) == [2.0, 2.0, 2.0, None]
    assert reward.asked == [["ab", "ab", ""]]  # of the three, two are answers to the same prompt
    assert reward.evaluate(answers("", "ab", "c")) == [None, 2.0, 1.0]
    assert reward.asked[1:] == [["", "c"]]  # empty is new for this prompt
    assert reward.evaluate(answers("", "ab")) == [None, 2.0] and len(reward.asked) == 2
    without = Remote()
    assert without.evaluate(answers("ab", "ab", "ab")) == [2.0] * 3 and without.asked == [["ab"] * 3]


@pytest.mark.parametrize("cache", [True, False])
def test_what_fails_is_asked_again(cache):
    reward = Remote(fails=2, cache=cache)
    assert reward.evaluate(answers("ab")) == [2.0] and len(reward.asked) == 3
    with pytest.raises(
        FailedReward, match=r"reward remote raised ConnectionError: the service is away, in 3 calls for"
    ):
        Remote(fails=3, cache=cache).evaluate(answers("ab"))
    with pytest.warns(UserWarning, match=r"the service is away, in 1 calls for 2 answers; it does not count for them"):
        abstaining = Remote(fails=1, retries=0, on_failure="abstain", cache=cache)
        assert abstaining.evaluate(answers("ab", "c")) == [None, None]
    assert abstaining.evaluate(answers("ab", "c")) == [2.0, 1.0]  # nothing of a failure was remembered


def test_what_is_late_is_stopped_and_asked_again():
    reward, start = Remote(dawdles=1, timeout=0.3), time.perf_counter()
    assert reward.evaluate(answers("ab")) == [2.0] and len(reward.asked) == 2
    assert time.perf_counter() - start < 3
    with pytest.raises(FailedReward, match=r"took longer than its timeout of 0\.1 s, in 2 calls for 1 answers"):
        Remote(dawdles=5, timeout=0.1, retries=1).evaluate(answers("ab"))


def test_a_plain_function_that_is_late():
    release = threading.Event()

    class Slow(BatchReward):
        def __call__(self, answers):
            release.wait(10)
            return [1.0] * len(answers)

    start = time.perf_counter()
    with pytest.raises(FailedReward, match="took longer"):
        Slow(timeout=0.1, retries=0).evaluate(answers("ab"))
    assert time.perf_counter() - start < 3
    release.set()
    assert Slow(timeout=5).evaluate(answers("ab")) == [1.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], r"returned 1 values for 2 answers"),
        (1.0, r"returned a float for 2 answers"),
        ([1.0, "good"], r"returned 'good' \(str\) for the sample meld/test/1"),
        ([float("nan"), 1.0], r"not finite: nan for the sample meld/test/0"),
    ],
)
def test_what_is_no_number_is_refused_at_once(returned, message):
    class Odd(BatchReward):
        calls = 0

        def __call__(self, answers):
            self.calls += 1
            return returned

    odd = Odd(on_failure="abstain")
    with pytest.raises(ValueError, match=message):
        odd.evaluate(answers("a", "b"))
    assert odd.calls == 1


def test_what_is_no_reward_of_a_window():
    async def alone(answer):
        return 1.0

    with pytest.raises(ValueError, match=r"asynchronous, so it sees all answers .* derived from zoo\.rl\.BatchReward"):
        check_reward(alone)
    check_reward(Remote())
    for wrong in ({"timeout": 0.0}, {"retries": -1}):
        with pytest.raises(ValueError, match="need timeout > 0"):
            Ranked(**wrong)
    with pytest.raises(ValueError, match="expected one of stop, abstain"):
        Ranked(on_failure="ignore")


# ---- in a run
@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("judged"), (1, 1, 1))


def options(home: Path, *rewards: object, **more: object) -> list[str]:
    base = {"model": "GRPO", "model__llm": home / "llm", "data": "MELD", "data__root": home / "meld"}
    base |= {"model__max_new_tokens": 4, "trainer__max_steps": 2, "data__batch_size": 7, "model__num_generations": 2}
    return flags(**base | {"model__reward_funcs": json.dumps(rewards)} | more)


def test_a_window_is_one_call(home, elsewhere, tmp_path):
    """Seven prompts, two answers each: their ranks are of fourteen; beside a plain reward."""
    ranked = {"class_path": "tests.rl.test_batch_rewards.Ranked", "init_args": {"timeout": 30}}
    run = fit(tmp_path, *options(home, ranked, "tests.runs_helper.checksum", trainer__limit_val_batches=0))
    means = [mean * 14 * 13 for mean in logged(run, "train/rewards/ranked/mean")]  # a number of pairs
    assert all(0 < pairs <= 91 and abs(pairs - round(pairs)) < 1e-3 for pairs in means)
    assert logged(run, "train/rewards/ranked/abstained") == [0, 0] and logged(run, "train/rewards/checksum/mean")
    zoo("test", f"--ckpt_path={run}/checkpoints/last.ckpt", "--data.eval_batch_size=4")
    told = [row["details"]["rewards"]["ranked"] for row in rows(run)]
    batches = [[row["text"] for row in part] for part in (rows(run)[:4], rows(run)[4:])]
    assert told == [r for batch in batches for r in Ranked().evaluate(answers(*batch))] and len(told) == 7


def test_a_service_that_is_away(home, elsewhere, tmp_path):
    remote = {"class_path": "tests.rl.test_batch_rewards.Remote", "init_args": {"fails": 1, "retries": 0}}
    message = refused("fit", *QUIET, *options(home, remote, trainer__limit_val_batches=0))
    assert "reward remote raised ConnectionError: the service is away" in message
    remote["init_args"]["on_failure"] = "abstain"
    with pytest.warns(UserWarning, match="it does not count for them"):
        run = fit(tmp_path, *options(home, remote, "tests.runs_helper.checksum", trainer__limit_val_batches=0))
    assert logged(run, "train/rewards/remote/abstained")[0] == 1 > logged(run, "train/rewards/remote/abstained")[1]
