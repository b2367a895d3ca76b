"""Rewards that see all answers of a window at once: reward models, judges, services on other machines.

    class Judge(BatchReward):                               # in my_rewards.py
        async def __call__(self, answers):                  # or a plain def
            return await asyncio.gather(*(ask(a.text) for a in answers))

    --model.reward_funcs+=my_rewards.Judge --model.reward_funcs.timeout=30 --model.reward_funcs.cache=true

In evaluation a window is a batch. Of several processes each asks for its own answers.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

from zoo.rl.rewards import Answer, FailedReward, checked_number, reward_name

OnFailure = Literal["stop", "abstain"]


class BatchReward(ABC):
    """A reward of many answers together; a subclass fills in ``__call__``, as ``def`` or ``async def``.

    Args:
        timeout: seconds that one call may take; None: any time. A plain function that is late cannot be stopped: it
            goes on in a thread of its own, and what it returns is thrown away.
        retries: further calls after one that raised an error or was late.
        pause: seconds before each of them.
        on_failure: after the last: ``stop`` the run, or ``abstain``: the reward applies to none of these answers, which
            is told, and counted in ``rewards/NAME/abstained``.
        cache: ask once for an answer to a prompt, by the sample's id and the text; for rewards that do not depend on
            what else is in the window. It lasts as long as the process.
    """

    def __init__(
        self,
        *,
        timeout: float | None = None,
        retries: int = 2,
        pause: float = 1.0,
        on_failure: OnFailure = "stop",
        cache: bool = False,
    ) -> None:
        if (timeout is not None and not timeout > 0) or retries < 0 or not pause >= 0:
            raise ValueError(
                f"need timeout > 0 or null, retries >= 0 and pause >= 0; got {timeout}, {retries}, {pause}"
            )
        if on_failure not in get_args(OnFailure):
            raise ValueError(f"unknown on_failure {on_failure!r}; expected one of {', '.join(get_args(OnFailure))}")
        self.timeout, self.retries, self.pause, self.on_failure = timeout, retries, pause, on_failure
        self.known: dict[tuple[str, str], float | None] | None = {} if cache else None

    @abstractmethod
    def __call__(self, answers: Sequence[Answer]) -> Any:
        """Return one finite number for each answer, in their order, or None where the reward does not apply."""

    def evaluate(self, answers: Sequence[Answer]) -> list[float | None]:
        """Return the rewards of all answers of a window, some of them from the cache.

        Raises:
            ValueError: what was returned is not one finite number or None for each answer.
            FailedReward: every call raised an error, which is the cause, or was late.
        """
        if self.known is None:
            return self._ask(answers) or [None] * len(answers)
        keys = [(answer.sample.id, answer.text) for answer in answers]
        unknown = {key: answer for key, answer in zip(keys, answers, strict=True) if key not in self.known}
        values = self._ask(list(unknown.values())) if unknown else []
        if values is not None:  # a failure is no answer to keep
            self.known |= dict(zip(unknown, values, strict=True))
        return [self.known.get(key) for key in keys]

    def _ask(self, answers: Sequence[Answer]) -> list[float | None] | None:
        """Return the checked rewards; None if all calls failed and the reward may abstain."""
        name, problem, cause = reward_name(self), "", None
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause)
            try:
                return self._checked(self._call(answers), answers)
            except _Late:
                problem, cause = f"took longer than its timeout of {self.timeout:g} s", None
            except _Raised as error:
                cause = error.__cause__
                problem = f"raised {type(cause).__name__}: {cause}"
        calls = f"{self.retries + 1} calls for {len(answers)} answers"
        if self.on_failure == "abstain":
            warnings.warn(f"reward {name} {problem}, in {calls}; it does not count for them", stacklevel=2)
            return None
        raise FailedReward(
            f"reward {name} {problem}, in {calls}, of which the first is for the sample {answers[0].sample.id}; see to "
            "what it asks, or give it more timeout or retries, or on_failure abstain"
        ) from cause

    def _call(self, answers: Sequence[Answer]) -> Any:
        """Call once: in a thread if it is asynchronous or may be late, because a notebook has a loop in this one."""
        outcome: list[Any] = []

        def run() -> None:
            try:
                value = self(answers)
                if inspect.isawaitable(value):
                    value = asyncio.run(_within(value, self.timeout))
                outcome.append(value)
            except BaseException as error:  # whatever a user's own code raises, also to end the program
                outcome.append(_Raised(error))

        if self.timeout is None and not inspect.iscoroutinefunction(type(self).__call__):
            run()
        else:
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            thread.join(self.timeout)
        if not outcome:
            raise _Late
        (value,) = outcome
        if not isinstance(value, _Raised):
            return value
        error = value.args[0]
        if isinstance(error, _Late | TimeoutError) and self.timeout is not None:
            raise _Late
        if isinstance(error, KeyboardInterrupt):
            raise error
        raise value from error

    def _checked(self, values: Any, answers: Sequence[Answer]) -> list[float | None]:
        if isinstance(values, str | bytes) or not hasattr(values, "__len__") or len(values) != len(answers):
            count = f"{len(values)} values" if hasattr(values, "__len__") else f"a {type(values).__name__}"
            raise ValueError(
                f"reward {reward_name(self)} returned {count} for {len(answers)} answers; expected one finite number "
                "for each, in their order, or None where it does not apply"
            )
        return [checked_number(self, value, answer) for value, answer in zip(values, answers, strict=True)]


class _Late(Exception):
    """A call took longer than its timeout."""


class _Raised(Exception):
    """A call raised an error, its argument."""


async def _within(value: Any, timeout: float | None) -> Any:
    return await asyncio.wait_for(value, timeout)
