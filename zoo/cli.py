"""The front door: ``zoo`` and ``lightning`` (one entry point), and ``python -m zoo``.

``fit``, ``validate``, ``test`` and ``predict`` are LightningCLI's verbs. Precedence is flag > later --config > earlier
--config > the config.yaml of the run that --ckpt_path names; the checkpoint itself never sets a value. torch is
imported only when a verb needs it, so ``zoo --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import gc
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from zoo import interrupts
from zoo.errors import is_refusal, raised_by
from zoo.shipped import name_shipped_configs

if TYPE_CHECKING:
    from zoo.memory import Request

LIGHTNING_VERBS = {
    "fit": "train a system: zoo fit --config configs/dialoguellm/demo.yaml",
    "validate": "score a checkpoint on the validation split",
    "test": "score a checkpoint on the test split: zoo test --ckpt_path RUN",
    "predict": "write predictions.jsonl without scores",
}
ZOO_VERBS = {
    "init": "a folder to begin with: a config, a table of lines to replace by your own, a README: zoo init my-project",
    "bench": "rows side by side on one corpus, with a report: zoo bench --config configs/bench/sitcom.yaml",
    "prepare": "make what a run needs: the embedded sitcom with clips, a small backbone, descriptions, a leak report",
    "data": "a corpus as a system sees it: first rows, labels, what is left out: zoo data show --config FILE",
    "memory": "the GPU memory that a fit will need, and the cards it fits on: zoo memory --config FILE --card 24",
    "compare": "tested runs side by side, each against the first: zoo compare RUN RUN",
    "doctor": "what this machine can run: packages, devices, disks, models, corpora: zoo doctor [FOLDER ...]",
    "export": "a run's model or adapter as an ordinary folder, or the whole system to publish (--system)",
    "label": "the emotion of one clip, line, folder, table or film: zoo label CLIP --text 'What?' [--ckpt_path NAME]",
    "serve": "a page on this machine that labels clips and conversations, and compares two systems",
    "rollouts": "the line that starts an engine (vLLM) for a config: zoo rollouts serve --config FILE [--run]",
    "checkpoints": "list, show, pull, convert, verify and push published checkpoints",
    "completion": "a script for the shell: source <(zoo completion bash)",
}


AT_ONCE = ("init", "completion", "doctor")  # verbs that answer without torch, or begin to
KEPT = {  # what an interrupted command leaves behind, if more than nothing
    "label": "with --out the labels so far are kept; to go on, ",
    "prepare": "what is done is kept; to go on, ",
    "bench": "what is done is kept; to go on, ",
}


def usage() -> str:
    lines = ["usage: zoo VERB [options]       (zoo VERB --help for its options)", ""]
    lines += [f"  {verb:<12} {what}" for verb, what in {**LIGHTNING_VERBS, **ZOO_VERBS}.items()]
    lines += ["", "  lightning VERB ...           the first four, under Lightning's own name"]
    lines += ["  --import DIR                 the config.yaml of a checkpoint may name modules of this folder"]
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
        near = difflib.get_close_matches(args[0], verbs, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        sys.exit(f"zoo: unknown verb {args[0]!r}; expected one of {', '.join(verbs)} (zoo --help){meant}")
    is_first_process = os.environ.get("LOCAL_RANK", "0") == "0"
    if args[0] not in AT_ONCE and "torch" not in sys.modules and is_first_process:
        print(f"zoo {args[0]}: loading PyTorch and what else it needs takes some seconds", file=sys.stderr, flush=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else every loader worker warns about forking
    # of transformers about itself: nothing here asks for that property
    warnings.filterwarnings("ignore", r".*`is_gradient_checkpointing` is deprecated.*")
    interrupts.listen()
    try:
        _run(args[0], args[1:])
    except BaseException as error:  # every error of a command ends here, in one sentence if `explained` knows it
        if interrupts.requested() is not None:
            _leave_interrupted(args[0], error)
        if os.environ.get("ZOO_DEBUG") or not isinstance(error, Exception):
            raise
        message = explained(error)
        if message is None:
            print(f"zoo {args[0]}: {_whose(error)}", file=sys.stderr)
            raise
        sys.exit(f"zoo {args[0]}: {message}\n(ZOO_DEBUG=1 shows the traceback)")


def _leave_interrupted(verb: str, error: BaseException) -> NoReturn:
    """End a command that a signal interrupted."""
    if not isinstance(error, KeyboardInterrupt | SystemExit):  # of what was being stopped, e.g. a killed worker
        print(f"zoo {verb}: {type(error).__name__}: {error}", file=sys.stderr)
    if verb != "fit":  # which says itself how to go on
        print(f"zoo {verb}: interrupted; {KEPT.get(verb, '')}give the same command again", file=sys.stderr)
    sys.exit(interrupts.exit_code())


# ------------------------------------------------------------------------------------------------------ errors
# What libraries say when a machine cannot do what was asked: exception, text -> sentence. Nothing of it is a fault of
# the zoo, and none of it can be known before it happens.
OF_THE_MACHINE = (
    (
        "RuntimeError|OSError",
        r"killed by signal: Bus error|shared memory object|out of shared memory|/torch_\d+",
        "the loader's processes could not get shared memory; give --data.num_workers 0, or make /dev/shm larger "
        "(docker run --shm-size 8g)",
    ),
    (
        "RuntimeError",
        r"DataLoader worker \(pid.*\) (?:is killed by signal|exited unexpectedly)",
        "a process of the loader was ended from outside, most often for want of memory ({message}); give "
        "--data.num_workers 0 or a smaller --data.batch_size",
    ),
    (
        "OutOfMemoryError",
        r"",
        "the accelerator's memory is full ({message}); give a smaller --data.batch_size with a larger "
        "--trainer.accumulate_grad_batches, or --model.gradient_checkpointing true",
    ),
    (
        "RuntimeError",
        r"PytorchStreamWriter|inline_container|unexpected pos|Parent directory .* does not exist",
        "a checkpoint could not be written whole ({message}); is the disk full?",
    ),
    (
        "SafetensorError",
        r"",
        "a safetensors file could not be read or written ({message}); is it damaged, or the disk full?",
    ),
    ("UsageError|CommError", r"", "{message}"),  # wandb: no login
    ("MisconfigurationException", r"", "{message}"),  # Lightning: options that do not go together
    (
        "ModuleNotFoundError|ImportError",
        r"(?:No module named|Module not found:|Requirement) '([\w.-]+)",
        "this needs the package {0}, which is not installed: pip install {0}, or leave the option out that asks for it",
    ),
    ("MemoryError", r"", "the memory of this machine is full; give a smaller --data.batch_size, or a smaller model"),
)


def explained(error: BaseException) -> str | None:
    """Return one sentence for the user; None for an error that is a fault of ours (`zoo.errors.is_refusal`).

    Refusals count as such also where jsonargparse wrapped them, or a process of the loader passed them on.
    """
    cause: BaseException | None = error
    wrapped, place = False, Path()
    while cause is not None:
        if is_refusal(cause):
            return str(cause)
        known = _of_a_loader(cause) or _of_the_machine(cause)
        if known is not None:
            return known
        code, _ = raised_by(cause)
        place = Path(code.co_filename) if code is not None else Path()
        if "jsonargparse" not in place.parts:
            break
        wrapped, cause = True, cause.__cause__ or cause.__context__
    if not wrapped or (cause is not None and place.is_relative_to(Path(__file__).parent)):
        return None
    messages = [" ".join(str(one).split()) for one in (error, cause) if one is not None]  # a value, and who refuses it
    return ": ".join(messages)[:800]


def _of_a_loader(error: BaseException) -> str | None:
    """Return what the zoo refused in a process of the loader, which arrives as a text with its traceback."""
    if not re.match(r"Caught \w+ in DataLoader worker process", str(error)):
        return None
    places = re.findall(r'  File "(.+)", line \d+, in .+\n +(.+)\n(?: +[~^]+\n)?', str(error))
    _, _, message = str(error).rstrip().rpartition("\n")[2].partition(": ")
    if places and Path(places[-1][0]).is_relative_to(Path(__file__).parent) and places[-1][1].startswith("raise "):
        return message
    return None


def _of_the_machine(error: BaseException) -> str | None:
    """Return what files and machines refuse, in one sentence; None for any other error."""
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in NOT_OURS:
        place = " and ".join(str(p) for p in (error.filename, error.filename2) if p is not None)
        problem = f"{place}: {error.strerror}" if place else error.strerror or message
        return f"{problem} ({NOT_OURS[error.errno]})"
    names = {kind.__name__ for kind in type(error).__mro__}
    for kinds, pattern, sentence in OF_THE_MACHINE:
        match = re.search(pattern, message)
        if match and names & set(kinds.split("|")):
            return sentence.format(*match.groups(), message=message[:500])
    return None


NOT_OURS = {
    errno.EACCES: "you may not read or write it; change its permissions or choose another place",
    errno.EPERM: "you may not do this there; choose another place",
    errno.EISDIR: "a file was expected and this is a folder; give a file",
    errno.ENOTDIR: "a folder was expected and this is a file; give a folder",
    errno.ENOENT: "it does not exist; correct the path",
    errno.EEXIST: "it exists already; choose another place",
    errno.ENOTEMPTY: "it is not empty; choose another place",
    errno.ENOSPC: "the disk is full; make room or choose another place",
    errno.EDQUOT: "your quota on this disk is used up; make room or choose another place",
    errno.EFBIG: "the file is larger than allowed here; choose another place",
    errno.EROFS: "nothing can be written there; choose another place",
    errno.ENAMETOOLONG: "shorten it",
    errno.ELOOP: "its links lead in a circle; correct them",
    errno.EMFILE: "too many files are open; give fewer --data.num_workers or raise the limit: ulimit -n 4096",
    errno.ENFILE: "too many files are open on this machine; wait, or give fewer --data.num_workers",
    errno.ENOMEM: "the memory of this machine is full; give fewer --data.num_workers or a smaller --data.batch_size",
    errno.EIO: "the disk or network drive does not answer as it should; check it",
    errno.ESTALE: "the network drive was mounted anew; give the command again",
    errno.ENXIO: "it is no ordinary file; give one",
    errno.ENODEV: "it is no ordinary file; give one",
    errno.EBUSY: "another program uses it; wait or choose another place",
    errno.ETXTBSY: "another program uses it; wait or choose another place",
    errno.EINVAL: "it cannot be used as a file here; choose another place",
    errno.EPIPE: "whoever read the output has stopped",
}


def _whose(error: BaseException) -> str:
    """Whose fault an unexpected error is: that of the user's own code, or ours."""
    trace, users_file = error.__traceback__, None
    while trace is not None:
        place = Path(trace.tb_frame.f_code.co_filename)
        if (
            place.is_file()
            and not {"site-packages", "dist-packages"} & set(place.parts)
            and not any(
                place.is_relative_to(home)
                for home in (Path(__file__).parent, *map(Path, {sys.base_prefix, sys.prefix}))
            )
        ):
            users_file = place
        trace = trace.tb_next
    if users_file is not None:
        return f"the code in {users_file} raised an error that the zoo does not know; its traceback follows"
    return "this is a fault of the zoo; please report it with the command and the traceback that follows"


def _request(args: Sequence[str]) -> Request:
    """Return what ``zoo fit ARGS`` asks of a cluster; only who asks waits for the import."""
    from zoo.memory import request

    return request(args)


@contextlib.contextmanager
def _imports() -> Iterator[None]:
    """Leave the search for garbage out while a verb imports what it needs.

    Imports make millions of objects that stay. Looking through them again and again, once more when the process ends,
    takes a good part of the start.
    """
    if "torch" in sys.modules:  # in a process that runs several commands nothing may be kept for ever but imports
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _run(verb: str, args: list[str]) -> None:
    from zoo.renaming import underscore_flags  # and with it jsonargparse, which `zoo --help` does not need

    args = name_shipped_configs(underscore_flags(args))
    if verb == "bench":
        from zoo.benchmark.server import start_server

        if "--help" not in args and "-h" not in args:
            start_server()
        from zoo.benchmark.command import main as bench

        bench(args, _request)
        return
    with _imports():
        command = _command(verb)
    command(args)


def _command(verb: str) -> Callable[[list[str]], None]:
    """Import what a verb needs, and return what runs it."""
    command: Callable[[list[str]], None]
    if verb in LIGHTNING_VERBS:
        from zoo.lightning_cli import run

        return functools.partial(run, verb)
    if verb == "prepare":
        from zoo.prepare.command import main as command
    elif verb == "label":
        from zoo.label.command import main as command
    elif verb == "serve":
        from zoo.serve.command import main as command
    elif verb == "data":
        from zoo.data_show import main as command
    elif verb == "init":
        from zoo.init import main as command
    elif verb == "compare":
        from zoo.compare import main as command
    elif verb == "completion":
        from zoo.completion import main as complete

        return functools.partial(complete, verbs=LIGHTNING_VERBS | ZOO_VERBS)
    elif verb == "doctor":
        from zoo.doctor import main as command
    elif verb == "memory":
        from zoo.memory import main as command
    elif verb == "rollouts":
        from zoo.rollouts import main as command
    elif verb == "export":
        from zoo.checkpoints import export as command
    else:
        from zoo.checkpoints import published as command
    return command
