"""Decide what a config may import, before anything of it is imported.

A user's words (flags, and the files of --config) may name classes and functions of his working directory. The
config.yaml that lies with a checkpoint may be somebody else's: what it names must come from the zoo, from lightning,
torch and torchmetrics, or from another installed package. ``--import DIR`` allows the modules of one folder as well.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.machinery
import inspect
import os
import re
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from zoo.storage import parse_yaml, read_yaml

OURS = ("zoo", "lightning", "lightning_fabric", "pytorch_lightning", "torch", "torchmetrics")
DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
FLAG = re.compile(r"--(?:model|data|trainer|optimizer|lr_scheduler|checkpoint|rows)\b")
LARGE = 1 << 20  # bytes of a file that a config names: no config is as large
FOLDERS, NAMED = "ZOO_IMPORT", "ZOO_IMPORT_MODULES"  # the same for commands that a command starts


class Imports:
    """What may be imported in this process beyond installed packages.

    Attributes:
        folders: of --import; a checkpoint's config may name their modules.
        modules: names of modules that the user named himself.
    """

    def __init__(self) -> None:
        self.folders: list[Path] = [Path(f) for f in os.environ.get(FOLDERS, "").split(os.pathsep) if f]
        self.modules: set[str] = {m for m in os.environ.get(NAMED, "").split(",") if m}


imports = Imports()


def allow_imports(folder: str | Path) -> None:
    """A checkpoint's config may name the modules of this folder from now on, also in commands that this one starts.

    Raises:
        FileNotFoundError: no such folder.
    """
    path = Path(folder).resolve()
    if not path.is_dir():
        raise FileNotFoundError(f"--import {folder}: no such folder; give the one that holds the module")
    if path not in imports.folders:
        imports.folders.append(path)
    os.environ[FOLDERS] = os.pathsep.join(map(str, imports.folders))
    _on_path(path)


def take_imports(args: Sequence[str]) -> list[str]:
    """Obeys every ``--import DIR`` and returns the other arguments."""
    rest, waiting = [], list(args)
    for folder in list(imports.folders):
        _on_path(folder)  # from the command that started this one
    while waiting:
        arg = waiting.pop(0)
        name, equals, value = arg.partition("=")
        if name != "--import":
            rest.append(arg)
            continue
        if not equals and not waiting:
            raise ValueError("--import needs a folder: the one that holds the module that a checkpoint's config names")
        allow_imports(value if equals else waiting.pop(0))
    return rest


def trust_words(args: Sequence[str], configs: Iterable[str | Path] = ()) -> None:
    """Modules of the working directory that the user names himself, in flags or in a config file of his, may be
    imported. Only if there are any does the working directory become a place to import from: in a foreign folder
    nothing lies on the way of an ordinary import.

    Args:
        args: the command line.
        configs: files that it names and that are the user's own.
    """
    words = _words_of_flags(args) | _words_of_files(configs)
    here = Path.cwd()
    for place in _unsafe_places():
        modules = {word.partition(".")[0] for word in words if _lies_in(place, word)}
        imports.modules |= modules - set(OURS)
        if place == here and (modules | {top for top in imports.modules if _lies_in(here, f"{top}.x")}):
            _on_path(here)
    if imports.modules:
        os.environ[NAMED] = ",".join(sorted(imports.modules))


def _words_of_flags(args: Sequence[str]) -> set[str]:
    """Return the import paths in the values of the flags that may name a class or a function."""
    words: set[str] = set()
    for i, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if FLAG.match(name):
            words |= _words(value if equals or i + 1 == len(args) else args[i + 1])
    return words


def _words_of_files(configs: Iterable[str | Path]) -> set[str]:
    """Return the import paths in config files, and in the files that these name."""
    words: set[str] = set()
    visited: set[Path] = set()
    files = [Path(file) for file in configs]
    while files:
        file = files.pop()
        with contextlib.suppress(OSError, ValueError):  # whoever reads it next says what is wrong with it
            if file.resolve() in visited or not file.is_file() or file.stat().st_size > LARGE:
                continue
            visited.add(file.resolve())
            words |= _words(file.read_text(encoding="utf-8"))
            files += [Path(word) for word in _strings(read_yaml(file)) if word.endswith((".yaml", ".yml"))]
    return words


def import_flags() -> list[str]:
    """What was allowed here, as flags of a command that this one starts."""
    here = Path.cwd()
    working_directory = [here] if any(_lies_in(here, f"{top}.x") for top in imports.modules) else []
    return [f"--import={folder}" for folder in dict.fromkeys([*imports.folders, *working_directory])]


def check_imports(config: Any, where: object) -> None:
    """Looks at everything in a checkpoint's config that could be imported, before anything is.

    Raises:
        ValueError: naming the module that comes from elsewhere, and the flag that allows it.
    """

    base = where.parent if isinstance(where, Path) else Path()
    for name, is_class in _names(config, base):
        # what is no import path is the short name of a class that is imported already, or plain text
        if DOTTED.fullmatch(name):
            _check_import(name, is_class, where)
        elif is_class and not name.isidentifier():
            raise ValueError(f"{where} names the class {name!r:.80}, which is no import path; restore the file")


def _check_import(name: str, is_class: bool, where: object) -> None:
    """ValueError if an import path leads to a module that a checkpoint's config may not name."""
    top = name.partition(".")[0]
    if top in OURS or top in imports.modules or _loaded_by_the_user(top):
        _refuse_foreign(name, where)
        return
    folder = next((f for f in imports.folders if _lies_in(f, name)), None)
    if folder is not None:
        _on_path(folder)
        _refuse_foreign(name, where)
        return
    here = next((f for f in _unsafe_places() if _lies_in(f, name)), None)
    if here is not None:
        argument = "." if here == Path.cwd() else str(here)
        raise ValueError(
            f"{where} names {name}, and the module {top} would be imported from {here}: a checkpoint's config may "
            f"name the zoo and installed packages alone. If you know what is in that module, repeat the command "
            f"with --import {argument}"
        )
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        if is_class or _exists(name):
            raise ValueError(
                f"{where} names {name} of Python itself, which no part of a system is; a checkpoint's "
                "config names classes of the zoo. Restore the file"
            )
    elif _installed(top):
        _refuse_foreign(name, where)
    elif is_class:
        near = difflib.get_close_matches(top, OURS, 1)
        raise ValueError(
            f"{where} names {name}, but no module {top} is installed"
            + (f" (did it mean {near[0]}?)" if near else "")
            + f"; if it is a module of yours, repeat the command with --import and the folder that holds {top}.py"
        )


def _refuse_foreign(name: str, where: object) -> None:
    """ValueError if an import path leads out of its package: ``torch.os.system`` is no part of torch."""
    home = _foreign_home(name)
    if home is not None:
        raise ValueError(
            f"{where} names {name}, which is {home} in truth; a checkpoint's config names classes of "
            "the zoo. Restore the file"
        )


def _foreign_home(name: str) -> str | None:
    """Where an import path really leads, if that is no allowed module: ``torch.os.system`` is no part of torch."""
    try:
        target = import_object(name)
    except Exception:  # the import of a package may raise anything; jsonargparse names it when it needs it
        return None
    while True:
        home = target.__name__ if inspect.ismodule(target) else getattr(target, "__module__", None)
        home = str(home or type(target).__module__)
        top = home.partition(".")[0]
        allowed = (
            top in OURS
            or top in imports.modules
            or _loaded_by_the_user(top)
            or _installed(top)
            or any(_lies_in(f, f"{top}.x") for f in imports.folders)
        )
        if (callable(target) or inspect.ismodule(target)) and not allowed:
            return home
        if not hasattr(target, "func"):  # a partial is what it calls
            return None
        target = target.func


def import_object(name: str) -> Any:
    """Return what an import path of an allowed module leads to. ImportError or AttributeError if it leads nowhere."""
    parts = name.split(".")
    target: Any = None
    for i in range(len(parts) - 1, 0, -1):
        if "__main__" in parts[:i]:
            raise ImportError(name)
        try:
            target = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            target = getattr(target, part)
        return target
    raise ImportError(name)


def _names(node: Any, base: Path, key: str = "", depth: int = 0) -> Iterator[tuple[str, bool]]:
    """Every string of a config that could be imported, and whether it must be a class; also in files that it names."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _names(value, base, str(name), depth)
            if isinstance(name, str) and DOTTED.fullmatch(name):
                yield name, False
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _names(value, base, "", depth)
    elif isinstance(node, str):
        yield node.strip(), key.rpartition(".")[2] == "class_path"
        if depth < 3:
            for content in _contents(node, base):
                yield from _names(content, base, depth=depth + 1)


def _contents(text: str, base: Path) -> Iterator[Any]:
    """The config file that a string of a config names, seen from here and from the config; or the YAML inside it."""
    files = []
    with contextlib.suppress(OSError, ValueError):
        files = [f for f in (Path(text), base / text) if len(text) < 4096 and f.is_file()]
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            if file.stat().st_size <= LARGE:
                yield read_yaml(file)
            elif b"class_path" in file.read_bytes():
                yield {"class_path": f"{file} "}  # no config is as large
    if not files and any(c in text for c in "{[\n") and "." in text:
        with contextlib.suppress(ValueError):
            yield parse_yaml(text, "a value")


def _words(text: str) -> set[str]:
    """Import paths in a text."""
    return set(re.findall(rf"(?<![\w./\\]){DOTTED.pattern}(?![\w/\\])", text))


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)
    elif isinstance(node, str):
        yield node


def _lies_in(folder: Path, name: str) -> bool:
    """Whether an import path's module is a file of this folder: a package without ``__init__.py`` counts if the path
    leads to a module in it."""
    top, *rest = name.split(".")
    with contextlib.suppress(OSError):
        if any((folder / f"{top}{ending}").is_file() for ending in importlib.machinery.all_suffixes()):
            return True
        place = folder / top
        if (place / "__init__.py").is_file() or (place / "__init__.pyc").is_file():
            return True
        for part in rest:
            if any((place / f"{part}{ending}").is_file() for ending in importlib.machinery.all_suffixes()):
                return True
            place /= part
            if (place / "__init__.py").is_file():
                return True
    return False


def _unsafe_places() -> list[Path]:
    """Folders that are no place of installed packages: the working directory, PYTHONPATH, and what a script added."""
    installed, here = _places_of_packages(), Path.cwd()
    return [here, *(p for p in map(_resolved, sys.path) if p is not None and p != here and p not in installed)]


@functools.cache
def _places_of_packages() -> set[Path]:
    paths = sysconfig.get_paths()
    places = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")} | set(site.getsitepackages())
    places |= {site.getusersitepackages(), str(Path(paths["stdlib"]) / "lib-dynload")}
    return {Path(p).resolve() for p in places}


@functools.cache
def _installed(top: str) -> bool:
    """Whether a package is one that was installed (also editable), not one that lies on the way."""
    if top in sys.stdlib_module_names:
        return False
    places = _places_of_packages()
    if importlib.machinery.PathFinder.find_spec(top, [str(p) for p in places if p.is_dir()]) is not None:
        return True
    return any(top in names.split() for names in _editable())


@functools.cache
def _editable() -> tuple[str, ...]:
    """Names of top-level packages of editable installs."""
    return tuple(
        one.read_text("top_level.txt") or one.metadata["Name"].replace("-", "_")
        for one in distributions(path=[str(p) for p in _places_of_packages()])
        if '"editable": true' in (one.read_text("direct_url.json") or "")
    )


def _loaded_by_the_user(top: str) -> bool:
    """Whether a script or notebook has imported a module already: whatever it does is done."""
    return top in sys.modules and top not in sys.stdlib_module_names and not _installed(top)


def _exists(name: str) -> bool:
    """Whether an import path of Python's own library leads to something that can be called."""
    if name.startswith(("antigravity", "this.", "idlelib")):
        return True
    with contextlib.suppress(ImportError, AttributeError, ValueError):
        return callable(import_object(name))
    return False


def _on_path(folder: Path) -> None:
    """Behind everything that is installed: no file of the folder takes the place of a package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _resolved(place: str) -> Path | None:
    with contextlib.suppress(OSError):
        path = Path(place or ".").resolve()
        return path if path.is_dir() else None
    return None
