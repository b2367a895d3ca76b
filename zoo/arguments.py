"""Read the command line in the words of its user.

Classes go by their names, a typing error is answered with the nearest name, and a verb says what it needs.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterable
from typing import NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from zoo.configs import option_refusal, place_of
from zoo.data import EmotionData
from zoo.renaming import RenamingParser
from zoo.training.module import EmotionModule

SECTIONS: dict[str, type] = {"model": EmotionModule, "data": EmotionData}
HOMES = {EmotionModule: "zoo.models.", EmotionData: "zoo.data."}  # where those are that can be chosen, not their bases
NEAR = 0.6  # share of letters in common, from which a name is worth suggesting


class ZooParser(RenamingParser, LightningArgumentParser):
    """LightningCLI's parser, which names what was probably meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Leaves with exit code 2 after one sentence in terms of flags or files, and the nearest names."""
        if not self.exit_on_error:  # a parser inside this one, which says it
            super().error(message, ex)
        leave(getattr(ex, "subcommand_parser", None) or self, message, self._meant(message, ex))

    def _meant(self, message: str, ex: BaseException | None) -> list[str]:
        chain: list[str] = [message]
        while ex is not None:
            chain.append(str(ex))
            ex = ex.__cause__ or ex.__context__
        text = "\n".join(chain)
        guesses: list[str] = []
        for flag in re.findall(r"unrecognized arguments:.*?(--[\w.]+)", text):
            guesses += nearest(flag, self._flags())
        for name, option in re.findall(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", text):
            guesses += nearest(option, set(options_of(name)) - {option})
        for name in re.findall(r"dot import path string: (\w+)", text):
            guesses += nearest(name, [c for base in (*SECTIONS.values(), Callback, Logger) for c in named(base)])
        return [f"did you mean {' or '.join(dict.fromkeys(guesses))}?"] if guesses else []

    def _flags(self) -> list[str]:
        flags = list(self._option_string_actions)
        parsers = getattr(self._subcommands_action, "choices", None) if hasattr(self, "_subcommands_action") else None
        for parser in (parsers or {}).values():
            flags += list(parser._option_string_actions)
        return [*flags, "--import"]


class SentenceParser(ArgumentParser):
    """jsonargparse's parser, which says what is wrong in one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        leave(self, message)


def leave(parser: ArgumentParser, message: str, meant: Iterable[str] = ()) -> NoReturn:
    """Exit code 2 after what jsonargparse says, in one sentence that names the flag or the file."""
    args = sys.argv[1:]
    files = [
        value
        for i, arg in enumerate(args)
        for value in (
            [args[i + 1]]
            if arg in ("--config", "-c") and i + 1 < len(args)
            else [arg[9:]]
            if arg.startswith("--config=")
            else []
        )
    ]
    if 'Parser key "' in message or "does not accept option" in message:
        key, why = option_refusal(message)
        message = f"{place_of(key, args, files)} {why}"
    message = re.sub(r"required: (.+)", lambda m: f"required: {_flags(m[1])}", " ".join(message.split()))
    command = parser.prog.replace(" [options]", "")
    sentence = "; ".join([message, *meant])
    print(f"{command}: {sentence} (options: {command} --help)", file=sys.stderr)
    sys.exit(2)


def _flags(keys: str) -> str:
    """``fit.data, fit.model`` -> ``--data, --model``"""
    return ", ".join(f"--{key.strip().partition('.')[2] or key.strip()}" for key in keys.split(","))


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """At most two names that are written much like another."""
    by_lower = {n.lower(): n for n in names}
    return [by_lower[n] for n in difflib.get_close_matches(name.lower(), by_lower, 2, NEAR)]


def named(base: type) -> dict[str, type]:
    """Short name -> class, of what the command line knows of a kind; no abstract ones, no tests' own."""
    kinds: dict[str, type] = {}
    waiting = [base]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        public = not kind.__name__.startswith("_") and not inspect.isabstract(kind)
        if kind is not base and public and kind.__module__.startswith(HOMES.get(base, "")):
            kinds.setdefault(kind.__name__, kind)
    return kinds


def options_of(name: str) -> list[str]:
    """Names of the options of a class, by its short name or import path; none if it is not known."""
    kinds = {
        f"{k.__module__}.{k.__qualname__}": k
        for base in (*SECTIONS.values(), Callback, Logger)
        for k in named(base).values()
    }
    short = name.rpartition(".")[2]
    kind = kinds.get(name) or next((k for path, k in kinds.items() if path.rpartition(".")[2] == short), None)
    if kind is None:
        return []
    options: list[str] = []
    for one in kind.__mro__:
        if "__init__" in vars(one) and one is not object:
            options += [
                n
                for n, p in inspect.signature(vars(one)["__init__"]).parameters.items()
                if n != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            ]
    return list(dict.fromkeys(options))


def prepared(verb: str, args: list[str], evaluation: bool) -> list[str]:
    """Return the arguments as jsonargparse takes them.

    For ``--model.help`` without a name the classes are printed, and the command ends.

    Raises:
        ValueError: a class for help that there is not, or a verb without anything to work on.
    """
    args = list(args)
    for i, arg in enumerate(args):
        if arg == "--zero_shot" and (i + 1 == len(args) or args[i + 1].startswith("-")):
            args[i] = "--zero_shot=true"
    for section, base in SECTIONS.items():
        flag = f"--{section}.help"
        for i, arg in enumerate(args):
            if arg != flag and not arg.startswith(f"{flag}="):
                continue
            name = arg.partition("=")[2] or (args[i + 1] if i + 1 < len(args) else "")
            if not name or name.startswith("-"):
                print(classes(section, base, verb))
                sys.exit(0)
            if "." not in name and name not in named(base):
                near = nearest(name, named(base)) or sorted(named(base))
                raise ValueError(f"{flag}: there is no {name}; did you mean {' or '.join(near)}?")
    if not any(arg in ("-h", "--help") or re.match(r"--(print_config|[\w.]+\.help)\b", arg) for arg in args):
        _enough(verb, args, evaluation)
    return args


def _enough(verb: str, args: list[str], evaluation: bool) -> None:
    def has(*flags: str) -> bool:
        return any(arg in flags or arg.startswith(tuple(f"{flag}=" for flag in flags)) for arg in args)

    if has("--config", "-c", "--ckpt_path") or has("--model", "--model.class_path", "--data", "--data.class_path"):
        return
    if evaluation:
        raise ValueError(
            f"{verb} needs trained weights: --ckpt_path with a run folder (lightning_logs/version_0), a .ckpt, or "
            "a published name (zoo checkpoints list); or --config FILE --zero_shot for a model as it is"
        )
    raise ValueError(
        f"{verb} needs a system and a corpus: --config FILE (one of configs/), or --model NAME --data NAME with "
        f"the options that they ask for (zoo {verb} --model.help, zoo {verb} --data.help)"
    )


def classes(section: str, base: type, verb: str) -> str:
    """Return the names that a section may be given, a line each."""
    lines = [f"--{section} takes one of these, or the import path of a class of your own:", ""]
    for name, kind in sorted(named(base).items()):
        lines.append(f"  {name:<20} {(inspect.getdoc(kind) or '').partition(chr(10))[0][:96]}".rstrip())
    lines += ["", f"options of one: zoo {verb} --{section}.help NAME"]
    return "\n".join(lines)
