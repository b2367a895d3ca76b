"""Read config files strictly, and build classes from their sections."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from jsonargparse._loaders_dumpers import yaml_load  # the public get_loader("yaml") is ours after the first import

from zoo.imports import check_imports
from zoo.renaming import RenamingParser
from zoo.storage import parse_yaml, read_yaml, split_lines


# ------------------------------------------------------------------------------------------------------ strict YAML
def _load(text: str) -> Any:
    """A value of the command line or of a config, as jsonargparse reads it (``1e-5`` is a number), strictly: see
    `zoo.storage.parse_yaml`."""
    if any(c in text for c in "{[:\n&*!"):
        try:
            value = yaml_load(text)
        except yaml.YAMLError:
            if "\n" in text.strip():  # a file; a single word like `a: b: c` may well be plain text
                _strict(text)
            raise
        if isinstance(value, dict | list):
            _strict(text)
        return value
    return yaml_load(text)


def _strict(text: str) -> None:
    try:
        parse_yaml(text, "the text")
    except ValueError as error:  # the kind that jsonargparse reports with the file or the option
        raise yaml.YAMLError(str(error).removeprefix("the text").lstrip(", ")) from error


jsonargparse.set_loader("yaml", _load, (yaml.YAMLError,))
jsonargparse.set_parsing_settings(import_path_denylist=["shutil"])  # also makes it enforce its own list


def refuse_unreadable(files: Iterable[str | Path]) -> None:
    """ValueError naming the first file that is no YAML of plain values; what is no file is passed over."""
    for file in map(Path, files):
        with contextlib.suppress(OSError):  # a text, or a file that its reader refuses
            if file.is_file():
                read_yaml(file)


# ------------------------------------------------------------------------------------------------------ option values
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "NoneType": "null",
    "dict": "a mapping",
    "list": "a list",
}
NO_REASON = re.compile(r"Does not validate|Subtypes:|Errors:|Given value type:|Expected a <class 'NoneType'>$|$")


@dataclass
class _Refusal:
    """What the lines of one of jsonargparse's messages say.

    Attributes:
        keys: parts of the option's dotted name, in their order.
        reasons: what is wrong, as predicates or whole sentences.
        expected: what would have been accepted.
        value: what was given; empty if it is not named, or is a whole section.
        kind: class of the section.
    """

    keys: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    value: str = ""
    kind: str = ""

    def read(self, line: str) -> None:
        """Take in one line of the message."""
        text = re.sub(r"NestedArg\(key='.*?', val='?(.*?)'?\)", r"\1", line.strip().removeprefix("- "))
        if match := re.match(r'Parser key "(.+?)":\s*(.*)', text):
            self.keys.append(match[1])
            text = match[2]
        if match := re.match(r"Problem with given class_path '(.+?)':\s*(.*)", text):
            self.kind, text = match[1], match[2]
        if match := re.match(r"Given value: (.*)", text):
            self.value = self.value or (match[1] if not match[1].startswith("{") else "")
        elif match := re.match(r"Option '(.+?)' is not accepted", text):
            self.keys.append(match[1])
            self.reasons.append(f"is no option of {self.kind.rpartition('.')[2] or 'it'}")
        elif match := re.match(r"Subcommand '(.+?)' does not accept option '(.+?)'", text):
            self.keys.append(match[2])
            self.reasons.append(f"is no option of zoo {match[1]}")
        elif match := re.match(r"Expected a typing.Literal\[(.+?)\](?:\. Got value: (.*))?", text):
            self.value = self.value or match[2] or ""
            self.expected.append(f"one of {match[1]}")
        elif match := re.match(r"Expected a <class '([\w.]+)'>(?:\. Got value: (.*))?$", text):
            self.value = self.value or match[2] or ""
            self.expected.append(TYPES.get(match[1], match[1]))
        elif not NO_REASON.match(text):
            self.reasons.append(text.rstrip("."))

    def causes(self) -> list[str]:
        """Return the reasons, each once; what was expected where there is none."""
        if self.reasons:
            return list(dict.fromkeys(self.reasons))
        expected = [what for what in dict.fromkeys(self.expected) if what != "null"] or self.expected
        return [f"expected {' or '.join(expected) or 'another value'}"]


def option_refusal(message: str) -> tuple[str, str]:
    """Return the option that a message of jsonargparse is about by its dotted name, and one sentence without its
    beginning: ``is 'abc', expected a number``. The message itself repeats every type that was tried, and the whole
    section."""
    refusal = _Refusal()
    for line in split_lines(message.partition("Subclass types expect one of:")[0]):
        refusal.read(line)
    keys, value, causes = refusal.keys, refusal.value, refusal.causes()
    if refusal.kind and len(keys) == 1 and not causes[0].startswith("is "):
        keys.append("class_path")
        value = refusal.kind
    first = "" if causes[0].startswith("is ") else f"is {value:.80}, " if value else "is wrong: "
    return ".".join(keys), f"{first}{'; '.join(causes)[:400]}"


def place_of(key: str, args: Sequence[str], files: Iterable[str | Path]) -> str:
    """Where an option was set, as a message begins: ``--model.lr``, or ``run/config.yaml: model.lr``."""
    if any(re.match(rf"--{re.escape(key)}(?:\+?=|$)", arg) for arg in args):
        return f"--{key}"
    for file in reversed(list(files)):
        with contextlib.suppress(OSError, ValueError):
            node = read_yaml(Path(file))
            for part in key.split("."):
                if not isinstance(node, dict):
                    break
                inner = node.get("init_args")
                node = node[part] if part in node else inner.get(part, ...) if isinstance(inner, dict) else ...
            if node is not ...:
                return f"{file}: {key}"
    return f"--{key}"


def instantiated(section: str, base: type, content: Any, file: Path | None, changes: Iterable[str] = ()) -> Any:
    """Return the object that a section of a run's config.yaml describes.

    Args:
        file: the config.yaml, where it is known.
        changes: options that the command line replaced, by dotted name.

    Raises:
        ValueError: a value that the class does not take; names the file or the flag, the option and what is expected.
    """
    parser = RenamingParser(exit_on_error=False)
    parser.add_subclass_arguments(base, section, required=True)
    try:
        parsed = parser.parse_object({section: content})
    except (jsonargparse.ArgumentError, TypeError, ValueError, KeyError) as error:
        key, why = option_refusal(str(error))
        flags = [f"--{change}" for change in changes]
        place = place_of(key, flags, [file]) if file is not None else f"the run's config.yaml: {key}"
        raise ValueError(f"{place} {why}; correct it") from error
    return getattr(parser.instantiate_classes(parsed), section)


# ------------------------------------------------------------------------------------------------------ run configs
def read_run_config(path: Path, data: bool = False) -> dict[str, Any]:
    """The config.yaml of a run or a published folder, its types checked, nothing of it imported.

    Args:
        data: its ``data`` is needed as well as its ``model``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no config of a run (says what it is), or names what it may not import: see `check_imports`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a run folder or published folder has its config.yaml")
    config = read_yaml(path)
    if not isinstance(config, dict):
        content = "nothing" if config is None else f"a {type(config).__name__}"
        raise ValueError(f"{path} holds {content}, expected the config of a run with model and data; restore the file")
    for section in ("model", "data"):
        if section == "data" and not data and section not in config:
            continue
        part = config.get(section)
        if part is None:
            raise ValueError(f"{path} has no {section}, so it is no config of a run; restore the file")
        if not isinstance(part, dict) or not isinstance(part.get("class_path"), str):
            raise ValueError(f"{path}: {section} is {part!r:.60}, expected class_path and init_args; restore the file")
        if not isinstance(part.get("init_args", {}), dict | None):
            raise ValueError(
                f"{path}: the init_args of {section} are {part['init_args']!r:.60}, expected a mapping; "
                "restore the file"
            )
        config[section] = part | {"init_args": part.get("init_args") or {}}
    for section, kinds in {"trainer": dict, "checkpoint": dict, "seed_everything": int | bool | None}.items():
        if section in config and not isinstance(config[section], kinds | None):
            raise ValueError(
                f"{path}: {section} is {config[section]!r:.60}, expected {_named(kinds)}; restore the file"
            )
    check_imports(config, path)
    return config


def _named(kinds: Any) -> str:
    return "a mapping" if kinds is dict else "a number"
