"""Old names of options, which are still read for one release."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Renamed:
    """A new name of an option whose values were renamed, too.

    Attributes:
        name: the new name.
        values: old value -> new value; a value that is not named here stays.
    """

    name: str
    values: Mapping[Any, Any]


def renamed_options_of(kind: type) -> dict[str, str | Renamed]:
    """Return the old names that a class still reads, of its own and of its bases.

    A class declares them as ``renamed_options: ClassVar[Mapping[str, str | Renamed]] = {"old": "new"}``; ``a.b`` names
    the field ``b`` of the option ``a``. An old name is read for one release, with one line that says the new one.
    """
    options: dict[str, str | Renamed] = {}
    for base in reversed(kind.__mro__):
        options |= vars(base).get("renamed_options", {})
    return options


def rename_options(options: Mapping[str, Any], renamed: Mapping[str, str | Renamed], section: str) -> dict[str, Any]:
    """Return options with old names, and old values, replaced by the new ones; see `renamed_options_of`.

    Args:
        options: option -> value, as a config file gives them.
        section: ``model`` or ``data``, for the line that says what was renamed.

    Raises:
        ValueError: an option is given by its old and by its new name.
    """
    result = dict(options)
    for old, target in renamed.items():
        parent, _, old_name = old.rpartition(".")
        holder = result.get(parent) if parent else result
        if not isinstance(holder, Mapping) or old_name not in holder:
            continue
        new, values = (target.name, target.values) if isinstance(target, Renamed) else (target, {})
        new_name = new.rpartition(".")[2]
        if new_name in holder:
            raise ValueError(f"--{section}.{old} is the old name of --{section}.{new}; give the new one alone")
        _note(section, old, new)
        changed = {new_name if name == old_name else name: value for name, value in holder.items()}
        if isinstance(changed[new_name], str):
            changed[new_name] = values.get(changed[new_name], changed[new_name])
        if parent:
            result[parent] = changed
        else:
            result = changed
    return result


def rename_flag(flag: str, renamed: Mapping[str, str | Renamed], section: str) -> str:
    """Return a flag such as ``--answers=4`` or ``--rewards+=f`` under the new name of its option."""
    match = re.match(r"--([\w.]+?)(\+?)(=.*)?$", flag, re.DOTALL)
    target = renamed.get(match[1]) if match else None
    if match is None or target is None:
        return flag
    new, values = (target.name, target.values) if isinstance(target, Renamed) else (target, {})
    _note(section, match[1], new)
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
        if match[1] not in _NOTED:
            _NOTED.add(match[1])
            log.warning("--%s is now --%s; the hyphens are read in this release only", match[1], name)
        spelled.append(f"--{name}{match[2] or ''}")
    return [*spelled, *args[end:]]


_NOTED: set[str] = set()


def _note(section: str, old: str, new: str) -> None:
    """Say once per process that an option has a new name."""
    if f"{section}.{old}" not in _NOTED:
        _NOTED.add(f"{section}.{old}")
        log.warning("--%s.%s is now --%s.%s; the old name is read in this release only", section, old, section, new)
