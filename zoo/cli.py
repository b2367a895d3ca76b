"""The front door: ``zoo`` and ``lightning`` (one entry point), and ``python -m zoo``.

``fit``, ``validate``, ``test`` and ``predict`` are LightningCLI's verbs. Precedence is flag > later --config > earlier
--config > the config.yaml of the run that --ckpt_path names; the checkpoint itself never sets a value. torch is
imported only when a verb needs it, so ``zoo --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from zoo import interrupts

LIGHTNING_VERBS = {
    "fit": "train a system: zoo fit --config configs/dialoguellm/demo.yaml",
    "validate": "score a checkpoint on the validation split",
    "test": "score a checkpoint on the test split: zoo test --ckpt_path RUN",
    "predict": "write predictions.jsonl without scores",
}
ZOO_VERBS = {
    "bench": "rows side by side on one corpus, with a report: zoo bench --config configs/bench/sitcom.yaml",
    "prepare": "make what a run needs: the embedded sitcom with clips, a small backbone, descriptions, a leak report",
    "export": "a run's model or adapter as an ordinary folder, or the whole system to publish (--system)",
    "label": "the emotion of one clip, line, folder or table: zoo label CLIP --ckpt_path NAME --text 'What?'",
    "checkpoints": "list, show, pull, convert and verify published checkpoints",
}
KEPT = {  # what an interrupted command leaves behind, if more than nothing
    "label": "with --out the labels so far are kept; to go on, ",
    "prepare": "what is done is kept; to go on, ",
    "bench": "what is done is kept; to go on, ",
}


USERS_ERRORS = (ValueError, FileNotFoundError, FileExistsError, FloatingPointError, NotADirectoryError)


def usage() -> str:
    lines = ["usage: zoo VERB [options]       (zoo VERB --help for its options)", ""]
    lines += [f"  {verb:<12} {what}" for verb, what in {**LIGHTNING_VERBS, **ZOO_VERBS}.items()]
    lines += ["", "  lightning VERB ...           the first four, under Lightning's own name"]
    lines += ["  zoo fit --model.help NAME    options of a system, e.g. DialogueLLM; --data.help NAME of a corpus"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the scripts. Returns None on success; every failure leaves with an exit code other than 0."""
    args = list(sys.argv[1:] if argv is None else argv)
    verbs = LIGHTNING_VERBS if Path(sys.argv[0]).name == "lightning" and argv is None else LIGHTNING_VERBS | ZOO_VERBS
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return
    if args[0] == "--version":
        from zoo import __version__

        print(f"zoo {__version__}")
        return
    if args[0] not in verbs:
        sys.exit(f"zoo: unknown verb {args[0]!r}; expected one of {', '.join(verbs)} (zoo --help)")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else every loader worker warns about forking
    interrupts.listen()
    try:
        _run(args[0], args[1:])
    except BaseException as error:
        if interrupts.requested() is not None:
            _leave_interrupted(args[0], error)
        ours = _ours(error) if isinstance(error, USERS_ERRORS) else None
        if os.environ.get("ZOO_DEBUG") or ours is None:
            raise
        sys.exit(f"zoo {args[0]}: {ours}\n(ZOO_DEBUG=1 shows the traceback)")


def _leave_interrupted(verb: str, error: BaseException) -> NoReturn:
    """Ends a command that a signal interrupted."""
    if not isinstance(error, KeyboardInterrupt | SystemExit):  # of what was being stopped, e.g. a killed worker
        print(f"zoo {verb}: {type(error).__name__}: {error}", file=sys.stderr)
    if verb != "fit":  # which says itself how to go on
        print(f"zoo {verb}: interrupted; {KEPT.get(verb, '')}give the same command again", file=sys.stderr)
    sys.exit(interrupts.exit_code())


def _ours(error: BaseException | None) -> BaseException | None:
    """The zoo's own error, whose message says what to do, also where jsonargparse wrapped it. None for a library's
    error: that one keeps its traceback."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        raised_in = Path(trace.tb_frame.f_code.co_filename) if trace is not None else Path()
        if raised_in.is_relative_to(Path(__file__).parent):
            return error
        error = error.__cause__ if "jsonargparse" in raised_in.parts else None
    return None


def _run(verb: str, args: list[str]) -> None:
    if verb in LIGHTNING_VERBS:
        from zoo.lightning_cli import run

        run(verb, args)
        return
    command: Callable[[list[str]], None]
    if verb == "bench":
        from zoo.benchmark import main as command
    elif verb == "prepare":
        from zoo.prepare import main as command
    elif verb == "label":
        from zoo.label import main as command
    elif verb == "export":
        from zoo.checkpoints import export as command
    else:
        from zoo.checkpoints import published as command
    command(args)
