"""``zoo doctor [FOLDER ...]``: what this machine can run, and what to do about what it cannot."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from zoo import __version__
from zoo.shipped import SHIPPED

GIB = 2**30
DISTRIBUTION = "emotion-zoo"
EXTRAS = {  # extra -> the module it brings, and what for
    "gguf": ("gguf", "--model.llm of a GGUF file, such as smollm2-135m"),
    "faces": ("dlib", "zoo prepare faces and describe"),
    "sentence": ("all_minilm_l6_v2", "the sentence encoder among the baselines"),
    "quantize": ("bitsandbytes", "--model.quantize"),
    "serve": ("aiohttp", "zoo serve"),
    "transcribe": ("faster_whisper", "zoo label --transcribe"),
    "wandb": ("wandb", "--trainer.logger WandbLogger"),
    "mlflow": ("mlflow", "--trainer.logger MLFlowLogger"),
}
State = Literal["ok", "note", "fault"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        state: ``ok``; ``note``, something optional is missing; ``fault``, commands will fail.
        what: the part of the machine, in a word or two.
        text: what was found, and for a note or fault what to do.
    """

    state: State
    what: str
    text: str


def main(args: list[str]) -> None:
    """Run ``zoo doctor``; leave with exit code 1 if something is at fault."""
    parser = argparse.ArgumentParser("zoo doctor", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="a corpus to look for a reader of")
    folders = parser.parse_args(args).folders
    faults = 0
    for finding in examine(folders):
        print(f"{finding.state:<5}  {finding.what:<12}  {finding.text}", flush=True)
        faults += finding.state == "fault"
    if faults:
        sys.exit(1)


def examine(folders: Sequence[Path] = ()) -> Iterator[Finding]:
    """Yield what is found, quick things first.

    Args:
        folders: in which corpora are looked for.
    """
    yield Finding("ok", "zoo", f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    yield from _packages()
    yield from _extras()
    yield from _disks()
    yield from _devices()
    yield _decoder()
    yield from _models()
    for folder in folders:
        yield _corpus(folder)


# ---- what is installed
def _requirements() -> list[Requirement] | None:
    try:
        return [Requirement(line) for line in requires(DISTRIBUTION) or ()]
    except PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    requirements = _requirements()
    if requirements is None:
        yield Finding("note", "packages", "not compared, since the zoo is not installed: pip install .")
        return
    needed = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = []
    for requirement in needed:
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, expected {requirement.specifier}")
    if wrong:
        yield Finding("fault", "packages", f"{'; '.join(wrong)}. Install the zoo again, with -c constraints.txt")
    else:
        yield Finding("ok", "packages", f"{len(needed)} that are needed, in the versions that were tried")


def _extras() -> Iterator[Finding]:
    requirements = [one for one in _requirements() or () if one.marker is not None]
    for extra, (module, purpose) in EXTRAS.items():
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:  # a mere folder of that name, such as a logger's, has none
            yield Finding("ok", "extra", f"{extra}: {purpose}")
            continue
        # by their own names: a registry's package of the zoo's name may be somebody else's
        packages = [f"'{one.name}{one.specifier}'" for one in requirements if _belongs_to(one, extra)]
        yield Finding("note", "extra", f"none for {purpose}: pip install {' '.join(packages) or extra}")


def _belongs_to(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is not None and requirement.marker.evaluate({"extra": extra})


# ---- the machine
def _disks() -> Iterator[Finding]:
    for what, folder in (("disk", Path.cwd()), ("temporary", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free / GIB
        if not os.access(folder, os.W_OK):
            yield Finding("fault", what, f"{folder} cannot be written to; work in another folder, or set TMPDIR")
        elif free < 2:
            yield Finding("fault", what, f"{free:.1f} GiB free in {folder}; make room: a run writes checkpoints there")
        else:
            yield Finding("ok", what, f"{free:.0f} GiB free in {folder}")
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free / GIB) < 1:
        yield Finding(
            "note",
            "shared",
            f"{free:.2f} GiB free in {shared}: --data.num_workers above 0 may fail; docker run --shm-size 8g",
        )


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("fault", "torch", f"cannot be imported: {error}")
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB if hasattr(os, "sysconf") else 0
    yield Finding("ok", "CPU", f"{os.cpu_count()} cores, {memory:.0f} GiB of memory, torch {torch.__version__}")
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        precision = "bfloat16" if card.major >= 8 else "no bfloat16, so give --trainer.precision 16-mixed"
        yield Finding("ok", "GPU", f"{index}: {card.name}, {card.total_memory / GIB:.0f} GiB, {precision}")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = f"torch is built for CUDA {built}, no card answers (nvidia-smi)" if built else "torch is built without"
        yield Finding("note", "GPU", f"none: {reason}. Small systems need none; zoo memory says what a config needs")
    if torch.backends.mps.is_available():
        yield Finding("note", "GPU", "Apple's: untried, and it has no float64; give --trainer.accelerator cpu")


def _decoder() -> Finding:
    from zoo.media import Media, Unreadable

    clips = sorted(SHIPPED.glob("checkpoints/*/*.mp4"))
    if not clips:
        return Finding("fault", "decoder", f"no example clip in {SHIPPED / 'checkpoints'}; install the zoo again")
    try:
        frames = Media().frames(clips[0], 2)
    except (Unreadable, ImportError, OSError) as error:
        return Finding("fault", "decoder", f"an example clip cannot be decoded: {error}; install the package av again")
    return Finding("ok", "decoder", f"video: {len(frames)} frames of an example clip in a process of its own")


# ---- what was fetched
def _models() -> Iterator[Finding]:
    from zoo.backbones.hub import FETCHED
    from zoo.checkpoints.listing import folder_of, index

    try:
        entries = index()
    except (OSError, ValueError) as error:
        yield Finding("fault", "published", f"{error}")
        return
    shipped = [name for name, entry in entries.items() if entry["source"] == "shipped"]
    files = [folder_of(name) / file for name in shipped for file in entries[name]["files"]]
    missing = [f"{file.parent.name}/{file.name}" for file in files if not file.is_file()]
    if missing:
        yield Finding("fault", "published", f"missing: {', '.join(missing[:3])}; install the zoo again")
    else:
        yield Finding("ok", "published", f"{len(shipped)} come with the zoo (zoo checkpoints verify)")
    for name, entry in entries.items():
        if entry["source"] == "shipped":
            continue
        if (FETCHED / name).is_dir():
            yield Finding("ok", "model", f"{name} in {FETCHED / name}; licence: {entry['licence']}")
        else:
            yield Finding("note", "model", f"zoo checkpoints pull {name} brings one more; licence: {entry['licence']}")
    yield _hub()


def _hub() -> Finding:
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    try:
        has_token = huggingface_hub.get_token() is not None
        cache = huggingface_hub.scan_cache_dir()
        models = sorted(repo.repo_id for repo in cache.repos if repo.repo_type == "model")
    except huggingface_hub.errors.CacheNotFound:
        models = []
    except (OSError, ValueError) as error:
        return Finding("fault", "hub", f"{HF_HUB_CACHE} cannot be read: {error}; set HF_HOME to a folder of yours")
    there = ", ".join(models) if models else "no model"
    token = "a token is set" if has_token else "no token is set (for gated models: hf auth login)"
    offline = "HF_HUB_OFFLINE is set, so nothing is fetched" if HF_HUB_OFFLINE else token
    return Finding("ok", "hub", f"{there} in {HF_HUB_CACHE}; {offline}")


# ---- corpora
def _corpus(folder: Path) -> Finding:
    """What reader of the zoo a folder suits."""
    from zoo import data

    if not folder.is_dir():
        return Finding("fault", "corpus", f"{folder} is no folder; correct the path")
    readers = (data.MELD, data.EmoryNLP, data.IEMOCAP, data.GoEmotions, data.MOSEI, data.MER2024, data.DFEW, data.EMER)
    for reader in (*readers, data.EmoSet, data.Synthetic, data.Table):
        try:
            corpus = reader(root=folder)
            sizes = {split: len(corpus.read(split).samples) for split in corpus.splits()}
        except (OSError, ValueError):  # another corpus' folder; each reader says what it lacks
            continue
        counts = ", ".join(f"{split} {n}" for split, n in sizes.items())
        return Finding("ok", "corpus", f"{folder}: --data {reader.__name__}, {counts}; licence: {reader.licence}")
    return Finding(
        "note",
        "corpus",
        f"{folder} suits no reader as it is; zoo data show --data NAME --data.root {folder} says what NAME lacks",
    )
