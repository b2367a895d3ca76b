"""Old names of options, which are still read for one release."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Renamed:
    """A new name of an option whose values were renamed, too.

    Attributes:
        name: the new name.
        values: old value -> new value; a value that is not named here stays.
    """

    name: str
    values: Mapping[str, Any]


def renamed_options_of(kind: type) -> dict[str, str | Renamed]:
    """Return the old names of options that a class still reads, of its own and of its bases.

    A class declares them as ``renamed_options = {"old": "new"}``; ``a.b`` names the field ``b`` of the option ``a``. An
    old name is read for one release, with one line that says the new one.
    """
    options: dict[str, str | Renamed] = {}
    for base in reversed(kind.__mro__):
        options |= vars(base).get("renamed_options", {})
    return options


def rename_options(options: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return options of a class with old names, and old values, replaced by the new ones.

    Args:
        options: option -> value, as a config file gives them.
        kind: the class, see `renamed_options_of`.

    Raises:
        ValueError: an option is given by its old and by its new name.
    """
    result = dict(options)
    for old, target in renamed_options_of(kind).items():
        parent, _, old_name = old.rpartition(".")
        holder = result.get(parent) if parent else result
        if not isinstance(holder, Mapping) or old_name not in holder:
            continue
        new, values = (target.name, target.values) if isinstance(target, Renamed) else (target, {})
        new_name = new.rpartition(".")[2]
        if new_name in holder:
            raise ValueError(f"{old} is the old name of the option {new} of {kind.__name__}; give the new one alone")
        _note(kind, old, new)
        changed = {new_name if name == old_name else name: value for name, value in holder.items()}
        if isinstance(changed[new_name], str):
            changed[new_name] = values.get(changed[new_name], changed[new_name])
        if parent:
            result[parent] = changed
        else:
            result = changed
    return result


def rename_flag(flag: str, kind: type) -> str:
    """Return a flag such as ``--answers=4`` or ``--rewards+=f`` under the new name of the option of a class."""
    match = re.match(r"--([\w.]+?)(\+?)(=.*)?$", flag, re.DOTALL)
    target = renamed_options_of(kind).get(match[1]) if match else None
    if match is None or target is None:
        return flag
    new, values = (target.name, target.values) if isinstance(target, Renamed) else (target, {})
    _note(kind, match[1], new)
    if match[3] is None:
        return f"--{new}{match[2]}"
    value = values.get(match[3][1:], match[3][1:])
    return f"--{new}{match[2]}={str(value).lower() if isinstance(value, bool) else value}"


def underscore_flags(args: Sequence[str]) -> list[str]:
    """Return a command's arguments with underscores in the names of flags: ``--send-to=URL`` -> ``--send_to=URL``.

    Hyphens are read for one release, with one line that says the new name. What follows a bare ``--`` is left alone.
    """
    end = list(args).index("--") if "--" in args else len(args)
    spelled: list[str] = []
    for arg in args[:end]:
        match = re.match(r"--([a-z]\w*(?:-\w+)+)(=.*)?$", arg, re.DOTALL)
        if match is None:
            spelled.append(arg)
            continue
        name = match[1].replace("-", "_")
        if ("flag", match[1]) not in _NOTED:
            _NOTED.add(("flag", match[1]))
            log.warning("--%s is now --%s; the hyphens are read in this release only", match[1], name)
        spelled.append(f"--{name}{match[2] or ''}")
    return [*spelled, *args[end:]]


_NOTED: set[tuple[str, str]] = set()


def _note(kind: type, old: str, new: str) -> None:
    """Say once per process that an option has a new name."""
    if (kind.__name__, old) not in _NOTED:
        _NOTED.add((kind.__name__, old))
        log.warning("the option %s of %s is now %s; the old name is read in this release only", old, kind.__name__, new)


class RenamingParser(ArgumentParser):
    """jsonargparse's parser, which reads old names of options.

    jsonargparse makes one more of these for the options of every class that is named.
    """

    _class: type | None = None  # whose options are parsed

    def add_class_arguments(self, class_type: type, nested_key: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Add the options of a class, as jsonargparse does, and remember which class it is."""
        if nested_key is None and inspect.isclass(class_type):
            self._class = class_type
        return super().add_class_arguments(class_type, nested_key, *args, **kwargs)

    def parse_object(self, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse options that a config gives, also under their old names."""
        if self._class is not None and obj:
            obj = rename_options(obj.as_dict() if isinstance(obj, Namespace) else obj, self._class)
        return super().parse_object(obj, *args, **kwargs)

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """Parse options that the command line gives, also under their old names."""
        if self._class is not None and args:
            args = [rename_flag(arg, self._class) for arg in args]
        return super().parse_args(args, *rest, **kwargs)
