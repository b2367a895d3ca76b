"""The run that a run started from: what identifies its weights, and how it is found again when they are needed.

A checkpoint leaves out what its start holds, and the start may leave out what its own start holds: such a row of
checkpoints, the newest first, is called a chain here. A run keeps the files of its chain beside its own checkpoints, in
the folder ``starts``, named after their fingerprints.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zoo.configs import read_run_config
from zoo.runs import find_checkpoint, newest_config, portable_path, run_of
from zoo.storage import replacing
from zoo.weights import Checkpoint, read_checkpoint

SHOWN = 12  # characters of a fingerprint in a message, and in the name of a file that is kept
KEPT = "starts"  # folder beside a run's checkpoints


@dataclass(frozen=True)
class Start:
    """The weights that a run began with.

    Attributes:
        path: of the run or published folder, else of the file, as it may stand in a file that travels.
        fingerprint: of their file's tensors, see `fingerprint`.
        names: of the tensors that the model has from there and from no backbone.
        files: by fingerprint, where it and what it started from in turn was read.
    """

    path: str
    fingerprint: str
    names: frozenset[str]
    files: Mapping[str, Path]


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return the identity of a checkpoint's weights, all of whose bytes are read (a GB takes about a second).

    It is the sha256 over name, dtype, shape and bytes of every tensor, and over the fingerprint of the start if it has
    one. Two files with the same weights have the same, whatever else they hold and whether they are a .ckpt or a
    weights.safetensors.
    """
    digest = hashlib.sha256(str((checkpoint.contract.get("start") or {}).get("fingerprint")).encode())
    for name, tensor in sorted(checkpoint.state.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_chain(path: Path) -> list[Checkpoint]:
    """Return a checkpoint and those that it started from, as far as they hold what it leaves out, the newest first.

    Raises:
        FileNotFoundError: a start is needed and not found.
        ValueError: what was found is damaged, or holds other weights.
    """
    checkpoint = read_checkpoint(path)
    return [checkpoint, *read_starts(checkpoint.contract.get("start"), path, _configured(path))]


def read_starts(
    named: Mapping[str, str] | None, path: Path, place: str | None, option: str | None = None
) -> list[Checkpoint]:
    """Return the start that a checkpoint names, and those before it, the newest first.

    Looked for are what is kept beside the checkpoint, the place that is given, the place that the checkpoint names, and
    both places seen from every folder above the checkpoint: a tree of runs may be moved as a whole. What holds other
    weights than the named ones, or cannot be read, is passed over.

    Args:
        named: ``start`` of the checkpoint's contract; None: it has no start, or leaves out nothing of it.
        path: the checkpoint's file.
        place: run folder, checkpoint or published name where the start is to be found.
        option: with which a user gives that, for the message.

    Raises:
        FileNotFoundError: there is nothing in any of these places.
        ValueError: all that was found there holds other weights or cannot be read.
    """
    if named is None:
        return []
    places = [one for one in (place, named["path"]) if one]
    files = itertools.chain(_kept(named["fingerprint"], path), _candidates(places, path))
    start, others = _find(named["fingerprint"], files)
    if start is not None:
        return [start, *read_starts(start.contract["start"], start.path, _configured(start.path))]
    what = (
        f"{path} holds only what was learnt since its start, the run {named['path']} with the weights "
        f"{named['fingerprint'][:SHOWN]}, and needs it"
    )
    do = (
        f"Copy the whole run folder, where checkpoints/{KEPT} keeps it, or put that run beside this one as it was then"
        + (f", or say where it is: {option}" if option else "")
    )
    if others:
        raise ValueError(
            f"{what}; but what was found is not it: {', '.join(others)}. Trained further, written anew or damaged? {do}"
        )
    raise FileNotFoundError(f"{what}; but it is not there{f', nor at {place}' if place else ''}. {do}")


def refuse_other_start(place: str, named: Mapping[str, str], path: Path) -> None:
    """Refuse a place of a start that is not the one that a checkpoint names.

    Args:
        place: run folder, checkpoint or published name.
        named: ``start`` of the checkpoint's contract.
        path: the checkpoint's file.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it holds other weights, or cannot be read.
    """
    find_checkpoint(place)
    start, others = _find(named["fingerprint"], _files_of(place))
    if start is None:
        raise ValueError(
            f"{path} started from {named['path']} with the weights {named['fingerprint'][:SHOWN]}, but "
            f"--model.start_from {place} is not it: {', '.join(others)}. Leave the option out, or give that run as it "
            "was then; a new run with the other weights is one without --ckpt_path"
        )


def files_of(chain: Sequence[Checkpoint], identity: str) -> dict[str, Path]:
    """Return the files of a chain by fingerprint, of which that of its first is given."""
    others = [str(checkpoint.contract["start"]["fingerprint"]) for checkpoint in chain[:-1]]
    return dict(zip([identity, *others], [checkpoint.path for checkpoint in chain], strict=True))


def keep(start: Start, folder: Path) -> None:
    """Keep a start and what it started from in turn beside the checkpoints of a run, so that they need no other run.

    Where the file system allows it a file is linked, which takes no space: checkpoints are replaced and never written
    in place (`zoo.storage.replacing`), so the link leads to the same bytes after the start was trained further or
    deleted. Elsewhere it is copied.

    Args:
        start: with the files that were read.
        folder: of the run's checkpoints.

    Raises:
        ValueError: a file was written anew since it was read.
    """
    for identity, file in start.files.items():
        target = folder / KEPT / f"{identity[:SHOWN]}{file.suffix}"
        if target.is_file() and target.samefile(file):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(file.resolve(), target)
        except OSError:  # another file system, or one without links, or the file is somebody else's
            with replacing(target) as temporary:
                shutil.copyfile(file, temporary)
        if fingerprint(read_checkpoint(target)) != identity:
            target.unlink()
            raise ValueError(
                f"{file} was written anew after this run began with its weights {identity[:SHOWN]}, so they cannot be "
                "kept; begin again, with a run that is not being trained"
            )


def state_of(chain: Sequence[Checkpoint]) -> dict[str, Tensor]:
    """Return the tensors of a chain by name, each from the newest checkpoint that holds it."""
    return {name: tensor for checkpoint in reversed(chain) for name, tensor in checkpoint.state.items()}


def place_of(file: Path) -> str:
    """Return where a checkpoint lies, as another one names it: its run, the folder it was published in, or its file."""
    return portable_path(str(run_of(file) or (file.parent if file.suffix == ".safetensors" else file)))


def _configured(path: Path) -> str | None:
    """Return the start that the config of a checkpoint's run names; None if it lies in no run, or names none."""
    home = run_of(path)
    options = (read_run_config(newest_config(home))["model"].get("init_args") or {}) if home is not None else {}
    start = options.get("start_from")
    return start if isinstance(start, str) else None


def _find(identity: str, files: Iterable[Path]) -> tuple[Checkpoint | None, list[str]]:
    """Return the first checkpoint with the weights of a fingerprint, and in words what else was found before it."""
    others: list[str] = []
    for file in files:
        try:
            checkpoint = read_checkpoint(file)
        except (OSError, ValueError) as error:
            others.append(f"{file} (unreadable: {error})")
            continue
        if (checkpoint.contract["start"] or {}).get("fingerprint") == identity:
            continue  # it started there itself: a neighbour of the checkpoint
        present = fingerprint(checkpoint)
        if present == identity:
            return checkpoint, others
        others.append(f"{file} ({present[:SHOWN]})")
    return None, others


def _kept(identity: str, path: Path) -> list[Path]:
    """Return the files in which a start is kept beside a checkpoint, which may be one that is kept itself."""
    return [file for folder in (path.parent / KEPT, path.parent) for file in folder.glob(f"{identity[:SHOWN]}*")]


def _files_of(place: str | Path) -> list[Path]:
    """Return the checkpoints of a place, the best before the last."""
    files: list[Path] = []
    for prefer in ("best", "last"):
        with contextlib.suppress(FileNotFoundError):
            files.append(find_checkpoint(place, prefer))
    return list(dict.fromkeys(files))


def _candidates(places: Sequence[str], path: Path) -> Iterator[Path]:
    """Yield the files of checkpoints at places, and at their ends seen from each folder above another checkpoint."""
    yielded = {path.resolve()}
    paths = [Path(place) for place in places]
    ends = (
        folder.joinpath(*parts[i:])
        for parts in ([part for part in place.parts if part != place.anchor] for place in paths)
        for i in range(len(parts))
        for folder in path.resolve().parents
    )
    for place in (*paths, *ends):
        for file in _files_of(place):
            if file.resolve() not in yielded:
                yielded.add(file.resolve())
                yield file
