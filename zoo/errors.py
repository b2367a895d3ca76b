"""Whose fault an error is: the user's or the zoo's. Plain Python; nothing here knows what an error is about."""

from __future__ import annotations

import dis
import types
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
RAISE = dis.opmap["RAISE_VARARGS"]


def is_refusal(error: BaseException) -> bool:
    """Return whether the zoo refuses something with this error, so that its message is for the user.

    It was then raised by a ``raise`` in a file of the zoo. ``int("x")`` in such a file raises a ValueError, too, but is
    none.

    The type does not say it: whoever uses the zoo as a library catches ordinary ValueErrors and FileNotFoundErrors.
    """
    code, instruction = raised_by(error)
    if code is None or isinstance(error, NotImplementedError | AssertionError):
        return False
    return Path(code.co_filename).is_relative_to(PACKAGE) and code.co_code[instruction] == RAISE


def raised_by(error: BaseException) -> tuple[types.CodeType | None, int]:
    """Return the code that raised an error, and the place of the instruction in it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (None, 0) if trace is None else (trace.tb_frame.f_code, trace.tb_lasti)


def one_line(error: BaseException, most: int = 300) -> str:
    """Return an error of a library in one line: its kind and its message."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:most]}{'...' if len(message) > most else ''}"
