"""Read the command line in the words of its user.

Classes go by their names, a typing error is answered with the nearest name, and a verb says what it needs.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]  # public, but not listed
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

import zoo.data
import zoo.models
from zoo.configs import option_refusal, place_of, read_run_config, refuse_unreadable
from zoo.data import EmotionData
from zoo.imports import take_imports, trust_words
from zoo.renaming import RenamingParser
from zoo.runs import find_checkpoint, newest_config, published, run_in_use, run_of
from zoo.training.module import EmotionModule

SECTIONS: dict[str, type] = {"model": EmotionModule, "data": EmotionData}
HOMES = {EmotionModule: "zoo.models.", EmotionData: "zoo.data."}  # where those are that can be chosen, not their bases
WITHOUT_EFFECT = (  # options of a fit where a question about it is asked
    *("seed_everything", "checkpoint", "save_last_every", "save_last_minutes", "zero_shot"),
    *("optimizer", "lr_scheduler", "ckpt_path", "weights_only", "verbose"),
)
NEAR = 0.6  # share of letters in common, from which a name is worth suggesting


def know_short_names() -> None:
    """Import all corpora and papers: the command line knows them by the short names of their classes."""
    for package in (zoo.data, zoo.models):
        for module_info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module_info.name)


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
        section = re.search(r'[Pp]arser key "(?:\w+\.)?(model|data)\b', text)
        bases = [SECTIONS[section[1]]] if section else [*SECTIONS.values(), Callback, Logger]
        for name in re.findall(r"dot import path string: (\w+)", text):
            guesses += nearest(name, [c for base in bases for c in named(base)])
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
    if 'Parser key "' in message or "does not accept option" in message:
        key, why = option_refusal(message)
        message = f"{place_of(key, args, flag_values(args, '--config', '-c'))} {why}"
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
        _answer_help(verb, args, section, base)
    if not any(arg in ("-h", "--help") or re.match(r"--(print_config|[\w.]+\.help)\b", arg) for arg in args):
        _enough(verb, args, evaluation)
    return args


def _answer_help(verb: str, args: list[str], section: str, base: type) -> None:
    """Print the classes that a section takes where its help is asked for without a name, and leave.

    Raises:
        ValueError: help is asked for a name that there is not.
    """
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
            raise ValueError(
                f"{flag}: there is no {name}; did you mean {' or '.join(near)}? A class of your own goes by its import "
                "path, my_module.MyClass"
            )


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


# ------------------------------------------------------------------------------------- verbs that ask about a fit
def parser_of_fit(verb: str, usage: str, description: str, model_required: bool = True) -> ZooParser:
    """Return a parser of the options of a fit, for a verb that answers a question about it.

    It takes the config.yaml of a run, too.
    """
    parser = ZooParser(prog=f"zoo {verb}", allow_abbrev=False, description=description)
    parser.usage = f"zoo {verb} --config FILE [...] {usage} [options of a fit]"
    add = parser.add_argument
    add("-c", "--config", action=ActionConfigFile, help="options in a file, as in zoo fit; later files rule")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(EmotionModule, "model", subclass_mode=True, required=model_required)
    parser.add_lightning_class_args(EmotionData, "data", subclass_mode=True)
    for name in WITHOUT_EFFECT:
        add(f"--{name}", type=Any, default=None, help="as in zoo fit; without effect here")
    return parser


def options_of_fit(verb: str, args: list[str], make_parser: Callable[[], ZooParser]) -> dict[str, Any]:
    """Return the options of a fit as plain values, with ``config``, the last of the files that they came from."""
    know_short_names()
    args = prepared(verb, take_imports(args), False)
    configs = flag_values(args, "--config", "-c")
    refuse_unreadable(configs)
    trust_words(args, configs)
    before = sys.argv
    sys.argv = [*before[:1], *verb.split(), *args]  # where the parser's errors look
    try:
        parser = make_parser()
        parsed = parser.parse_args(args)
    finally:
        sys.argv = before
    options: dict[str, Any] = yaml.safe_load(parser.dump(parsed, skip_validation=True, skip_none=False))
    return options | {"config": configs[-1] if configs else None}


# ------------------------------------------------------------------------------------------------ --ckpt_path and files
def resolve_checkpoint(verb: str, args: list[str]) -> list[str]:
    """Turn --ckpt_path RUN | NAME | best | last into a file, and put the run's own config.yaml before all other
    configs.

    ``best`` and ``last`` mean the run that --config's folder is, else the newest run of --trainer.default_root_dir.
    """
    path = flag_value(args, "--ckpt_path")
    if path is None or path == "null":
        return args
    if path in ("best", "last"):
        file = find_checkpoint(_run_in_use(args, path), path)
    else:
        file = find_checkpoint(path, "last" if verb == "fit" else "best")
    home = run_of(file) or (file.parent if (file.parent / "config.yaml").is_file() else None)
    rest = without_flag(args, "--ckpt_path")
    if home is not None:
        read_run_config(newest_config(home))  # before anything that it names is imported
        rest = ["--config", str(newest_config(home)), *rest]
    if file.name == "model.safetensors":  # a published backbone: its folder is the model, there is nothing more to load
        options = read_run_config(home / "config.yaml")["model"]["init_args"] if home else {}
        part = next((name for name in ("llm", "vision", "audio") if name in options), "llm")
        return [*rest, f"--model.{part}={published(path) or file.parent}", "--zero_shot=true"]
    return [*rest, f"--ckpt_path={file}"]


def _run_in_use(args: list[str], path: str) -> Path:
    """Return the run folder that --ckpt_path best or last means. FileNotFoundError if there is none."""
    config = flag_value(args, "--config") or flag_value(args, "-c")
    beside = Path(config).parent if config else None
    if beside is not None and (beside / "checkpoints").is_dir():
        return beside
    return run_in_use(path, Path(flag_value(args, "--trainer.default_root_dir") or "."))


def flag_value(args: list[str], flag: str) -> str | None:
    """Return the last value of a flag, in either spelling (``--flag value``, ``--flag=value``); None without one."""
    return next(reversed(flag_values(args, flag)), None)


def flag_values(args: list[str], *flags: str) -> list[str]:
    """Return all values of a flag in their order, under each of its names and in either spelling."""
    values = []
    for i, arg in enumerate(args):
        if arg in flags and i + 1 < len(args):
            values.append(args[i + 1])
        elif arg.startswith(tuple(f"{flag}=" for flag in flags)):
            values.append(arg.split("=", 1)[1])
    return values


def without_flag(args: list[str], flag: str) -> list[str]:
    """Return the arguments without a flag and its values, in either spelling."""
    rest, skip = [], False
    for arg in args:
        if skip:
            skip = False
        elif arg == flag:
            skip = True
        elif not arg.startswith(f"{flag}="):
            rest.append(arg)
    return rest
