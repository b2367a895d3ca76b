"""Features that somebody else has computed, in files, in the place of an encoder: ``features:FOLDER``.

    FOLDER/{split}/{utterance}.npy             or FOLDER/{corpus}/{split}/..., or FOLDER/{utterance}.npy where no two
    FOLDER/{split}/{utterance}.safetensors     splits of the corpus have an utterance of one name
    FOLDER/encoder.json                        a folder that --model.feature_folder wrote: its files are found by clip

``{utterance}`` is the last part of a sample's id: ``dia0_utt0`` of ``meld/train/dia0_utt0``. A file holds (W,) numbers,
or (T, W) with T frames, in floating point; a .safetensors names them ``features``. All files of a folder have one W,
and are all vectors or all sequences. Nothing is unpickled, and no more than a batch is in memory.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.lib.format import open_memmap
from safetensors.torch import load
from torch import Tensor, nn

from zoo.backbones.llm import Dtype
from zoo.media import Media, Unreadable
from zoo.media.clips import content_key
from zoo.runs import portable_path
from zoo.schema import Problem, Sample, Turn
from zoo.training.feature_files import ClipFacts, DamagedFeatures, FeatureFiles, ReadClip

PREFIX = "features:"
SUFFIXES = (".npy", ".safetensors")
LOOKED_AT = 16  # files that say what a folder holds, and by which it is known again
STANDARDISING = 512  # training utterances whose mean and deviation are taken
MAX_BYTES = 2**29  # of a file

Modality = Literal["text", "vision", "audio"]


class UnusableFeatures(ValueError):
    """Raised for a file that holds no features; the text says what it holds and what was expected."""


def is_given(path: str | None) -> bool:
    """Return whether an option names a folder of features instead of an encoder."""
    return path is not None and path.startswith(PREFIX)


def refuse_idle_options(
    modalities: Collection[Modality], standardise: bool, feature_folder: Path | None, encoded: int
) -> None:
    """Refuse options that would do nothing.

    Args:
        modalities: those whose features are given.
        standardise: as the option says.
        feature_folder: as the option says.
        encoded: modalities that are read at all.

    Raises:
        ValueError: there is nothing given to standardise, or no encoder whose features could be kept.
    """
    if standardise and not modalities:
        raise ValueError(
            "--model.standardise is for features that are given (--model.vision or --model.audio features:FOLDER), and "
            "there are none; leave it out"
        )
    if feature_folder is not None and modalities and len(modalities) == encoded:
        raise ValueError(
            "--model.feature_folder keeps features of encoders, and here all are given in files; leave it out"
        )


def read_features(path: Path) -> Tensor:
    """Return what a file holds: (W,) or (T, W) float32, all of it finite.

    Raises:
        UnusableFeatures: the file is damaged, is no file of numbers, or holds others.
    """
    try:
        if not path.is_file():
            raise UnusableFeatures("is no file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UnusableFeatures(f"has {size / 2**20:.0f} MB; expected the features of one utterance")
        features = _read_array(path) if path.suffix == ".npy" else _read_tensor(path)
    except UnusableFeatures:
        raise
    except Exception as error:  # numpy parses a damaged header as Python, with whatever errors that has; no pickle
        raise UnusableFeatures(f"cannot be read as {path.suffix} ({error})") from error
    if not torch.isfinite(features).all():
        raise UnusableFeatures("holds NaN or infinity; expected finite numbers")
    return features


def _read_array(path: Path) -> Tensor:
    mapped = open_memmap(path, mode="r")  # compares the header with the size of the file before anything is read
    _refuse_other_numbers(mapped.shape, mapped.dtype.name, mapped.dtype.kind == "f")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, which is refused
        return torch.from_numpy(np.array(mapped, dtype=np.float32))


def _read_tensor(path: Path) -> Tensor:
    tensors = load(path.read_bytes())
    if set(tensors) != {"features"}:
        raise UnusableFeatures(f"holds the tensors {sorted(tensors)[:3]}; expected one, named 'features'")
    features = tensors["features"]
    _refuse_other_numbers(
        tuple(features.shape), str(features.dtype).removeprefix("torch."), features.is_floating_point()
    )
    return features.to(torch.float32, copy=True)


def _refuse_other_numbers(shape: tuple[int, ...], dtype: str, is_float: bool) -> None:
    if not is_float or len(shape) not in (1, 2) or 0 in shape:
        raise UnusableFeatures(f"holds {dtype} {shape}; expected floating point, (W,) or (T, W), not empty")


def mean_of_parts(features: Tensor, parts: int) -> Tensor:
    """Average a sequence (T, W) over equal parts of it: (parts, W).

    Part k of K covers frames floor(k T / K) up to ceil((k + 1) T / K), as `zoo.backbones.Audio.pooled` does: as many
    frames as parts stay as they are, and fewer are repeated.
    """
    length = len(features)
    bounds = [(k * length // parts, -(-(k + 1) * length // parts)) for k in range(parts)]
    return torch.stack([features[start:end].mean(0) for start, end in bounds])


# ------------------------------------------------------------------------------------------------------------ a folder
class FeatureFolder:
    """A folder of features, which is looked through when it is first asked for. Read by a loader's processes, too.

    Args:
        path: ``features:FOLDER``.
        modality: what the features stand for.
        media: reads the bytes of a clip, where features are found by them.

    Attributes:
        option: the option that named the folder.
        part: what the features are called in lists of what is missing.

    Raises:
        ValueError: an encoder's option was given beside it.
    """

    def __init__(
        self, path: str, modality: Modality, media: Media, dtype: Dtype = "float32", revision: str | None = None
    ) -> None:
        self.option, self.part = f"--model.{modality}", f"{modality} features"
        self.home, self.media = Path(path.removeprefix(PREFIX)), media
        self.attribute = {"text": "text", "vision": "video", "audio": "audio"}[modality]
        self._owners: dict[str, str] = {}
        if dtype != "float32" or revision is not None:
            raise ValueError(f"{self.option} {path} names files, which have no dtype or revision; leave the two out")

    @classmethod
    def of_option(cls, modality: Modality, option: tuple[str | None, Dtype, str | None], media: Media) -> FeatureFolder:
        """Return the folder that an option names; the option is path, dtype and revision."""
        path, dtype, revision = option
        return cls(path or "", modality, media, dtype, revision)

    # ---- what is there
    @cached_property
    def files(self) -> dict[str, str]:
        """Name of each file below the folder, without its ending -> that ending; sorted.

        Raises:
            FileNotFoundError: there is no such folder, or none in it.
            ValueError: two files of one name.
        """
        if not self.home.is_dir():
            raise FileNotFoundError(
                f"{self.option} {PREFIX}{self.home}: no such folder; give the one that holds the features, a .npy or "
                ".safetensors for each utterance (docs/clips.md)"
            )
        endings: dict[str, str] = {}
        for folder, _, names in os.walk(self.home, followlinks=True):
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix not in SUFFIXES or name.startswith("."):
                    continue
                key = (Path(folder).relative_to(self.home) / stem).as_posix()
                if key in endings:
                    raise ValueError(f"{self.home} holds {key}.npy and {key}.safetensors; keep one of the two")
                endings[key] = suffix
        if not endings:
            raise FileNotFoundError(
                f"{self.option} {PREFIX}{self.home}: no {' or '.join(SUFFIXES)} there, or in a folder below it; name "
                "each file after its utterance, as train/dia0_utt0.npy (docs/clips.md)"
            )
        return dict(sorted(endings.items()))

    @cached_property
    def by_clip(self) -> FeatureFiles | None:
        """The files, where --model.feature_folder wrote them under their clips' hashes; words have no clip."""
        if self.attribute == "text":
            return None
        return FeatureFiles.written_before(self.home) if (self.home / "encoder.json").is_file() else None

    @cached_property
    def looked_at(self) -> list[str]:
        """Names of some files, evenly spread over all."""
        names = list(self.files)
        return [names[i] for i in np.linspace(0, len(names) - 1, min(LOOKED_AT, len(names))).astype(int)]

    @cached_property
    def shape(self) -> tuple[bool, int]:
        """Whether files hold sequences, and the numbers W of a vector: as most of some files have it.

        Raises:
            ValueError: none of them can be read.
        """
        shapes, wrong = Counter[tuple[bool, int]](), ""
        for name in self.looked_at:
            try:
                features = read_features(self.path(name))
                shapes[features.ndim == 2, features.shape[-1]] += 1
            except UnusableFeatures as error:
                wrong = wrong or f"{self.path(name)} {error}"
        if not shapes:
            raise ValueError(f"not one of {len(self.looked_at)} files that were looked at can be read: {wrong}")
        return shapes.most_common(1)[0][0]

    def path(self, name: str) -> Path:
        """Return the file of a name of `files`."""
        return self.home / f"{name}{self.files[name]}"

    def positions(self, parts: int) -> int:
        """Return how many vectors an utterance gives, where ``parts`` are wanted: one, if files hold single ones."""
        return parts if self.shape[0] else 1

    def remedy(self) -> str:
        """Return what to do where no utterance has a file."""
        example = self.path(next(iter(self.files))).relative_to(self.home)
        return (
            f"{self.home} holds {len(self.files)} files such as {example}; name them after the utterances, as "
            f"train/dia0_utt0.npy (`zoo data show` prints the ids), or set {self.option} null"
        )

    # ---- of an utterance
    def name(self, dialogue: str, turn: Turn) -> str | None:
        """Return the name of an utterance's file; None if there is none.

        Args:
            dialogue: id of its dialogue, which begins with corpus and split.
            turn: the utterance.

        Raises:
            ValueError: the file would stand for utterances of two splits or corpora.
        """
        corpus, split, *_ = dialogue.split("/")
        for place, owner in ((f"{corpus}/{split}/", ""), (f"{split}/", corpus), ("", f"{corpus}/{split}")):
            name = f"{place}{turn.id}"
            if name not in self.files:
                continue
            if owner and (other := self._owners.setdefault(name, owner)) != owner:
                raise ValueError(
                    f"{self.path(name)} would stand for an utterance of {other} and one of {owner}; put the files into "
                    f"a folder for each split, {self.home}/train/{turn.id}{self.files[name]}, below one for each "
                    "corpus if there are several"
                )
            return name
        return None

    def has(self, dialogue: str, turn: Turn) -> bool:
        """Return whether an utterance has features, as far as names tell."""
        if self.by_clip is not None:
            return getattr(turn, self.attribute) is not None
        return self.name(dialogue, turn) is not None

    def read(self, dialogue: str, turn: Turn, parts: int, problems: list[Problem]) -> ReadClip | None:
        """Return the features of an utterance, (parts, W) float32, or (1, W); None without.

        Args:
            dialogue: see `name`.
            turn: the utterance.
            parts: a sequence is averaged over so many equal parts, see `mean_of_parts`.
            problems: gets an entry for features that are missing or cannot be used.
        """
        sample = f"{'/'.join(dialogue.split('/')[:2])}/{turn.id}"
        file: Path | None = None
        try:
            if self.by_clip is not None:
                file, features, facts = self._of_clip(self.by_clip, turn)
            else:
                name = self.name(dialogue, turn)
                file = None if name is None else self.path(name)
                features, facts = None if file is None else read_features(file), ClipFacts()
            if file is None or features is None:
                reason = f"has no {self.part} in {portable_path(str(self.home))}"
                problems.append({"problem": "missing", "name": sample, "reason": reason, "samples": [sample]})
                return None
            self._refuse_other_shape(features)
        except (UnusableFeatures, DamagedFeatures) as error:
            where = str(file or self.home)
            problems.append({"problem": "unreadable", "name": where, "reason": str(error), "samples": [sample]})
            return None
        rows = mean_of_parts(features, parts) if features.ndim == 2 else features[None]
        return ReadClip((str(file), parts), None, rows, facts)

    def _of_clip(self, files: FeatureFiles, turn: Turn) -> tuple[Path | None, Tensor | None, ClipFacts]:
        clip = getattr(turn, self.attribute)
        if clip is None:
            return None, None, ClipFacts()
        try:
            key = content_key(self.media, turn, clip)
        except Unreadable:  # which `media` has noted
            return None, None, ClipFacts()
        file = files.path(key)
        try:
            stored = files.read(key)
        except DamagedFeatures as error:
            raise UnusableFeatures(f"{error}; delete it, and have --model.feature_folder write it again") from error
        if stored is None:
            return None, None, ClipFacts()
        if stored.facts.damage is not None:
            self.media.report(clip, stored.facts.damage, "damaged")
        return file, stored.features, stored.facts

    def _refuse_other_shape(self, features: Tensor) -> None:
        is_sequence, width = self.shape
        if (features.ndim == 2, features.shape[-1]) != (is_sequence, width):
            expected = f"(T, {width})" if is_sequence else f"({width},)"
            raise UnusableFeatures(f"holds {tuple(features.shape)}; expected {expected} as the other files")


# --------------------------------------------------------------------------------------------------------------- a part
class GivenFeatures(nn.Module):
    """What stands in a system where an encoder would: features of a folder, of which nothing is trained.

    Args:
        folder: the features.
        parts: vectors that an utterance gives, where files hold sequences.
        standardise: give every dimension mean 0 and deviation 1, see `measure`.

    Attributes:
        width: numbers W of a vector.
        path, revision, labels: as of an encoder; there are no revision and no labels.
    """

    mean: Tensor  # (W,) float32, where features are standardised
    deviation: Tensor  # (W,) float32
    measured: Tensor  # () bool: whether the two are those of training utterances

    revision: None = None
    labels: None = None

    def __init__(self, folder: FeatureFolder, parts: int, standardise: bool = False) -> None:
        super().__init__()
        self.folder, self.parts, self.standardise = folder, parts, standardise
        self.path = f"{PREFIX}{portable_path(str(folder.home))}"
        self.width = folder.shape[1]
        if standardise:
            self.register_buffer("mean", torch.zeros(self.width))
            self.register_buffer("deviation", torch.ones(self.width))
            self.register_buffer("measured", torch.tensor(False))

    def freeze(self) -> Self:
        """Return itself: there are no weights."""
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Return features (..., W) as they enter the projection: standardised, if they are to be."""
        return (features - self.mean) / self.deviation if self.standardise else features

    @torch.no_grad()
    def measure(self, samples: Sequence[Sample]) -> None:
        """Take mean and deviation of every dimension over 512 utterances, evenly spread, unless that was done before.

        Raises:
            ValueError: no utterance has features, or all are the same.
        """
        if not self.standardise or self.measured:  # by an earlier stage, or by this run before it was resumed
            return
        numbers = np.linspace(0, len(samples) - 1, min(STANDARDISING, len(samples))).astype(int)
        chosen = [samples[int(i)] for i in numbers]
        read = [self.folder.read(s.dialogue, s.target, self.parts, []) for s in chosen]
        rows = [clip.features for clip in read if clip is not None and clip.features is not None]
        whole = torch.cat(rows).double() if rows else torch.zeros(1, self.width)
        spread = whole.std(0, unbiased=False)
        if not spread.any():
            raise ValueError(
                f"{len(rows)} of {len(chosen)} training utterances have {self.folder.part}, and all of these are the "
                f"same, so they cannot be standardised; look into {self.folder.home}, or set --model.standardise false"
            )
        self.mean.copy_(whole.mean(0))
        self.deviation.copy_(spread.clamp(min=1e-3 * math.sqrt(float(spread.square().mean()))))
        self.measured.fill_(True)

    # ---- which features they are
    def fingerprint(self) -> str:
        """Return the identity of the features' shape; which ones they are is compared by `require_same`."""
        is_sequence, width = self.folder.shape
        return hashlib.sha256(f"{PREFIX} {is_sequence} {width}".encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint says of the features that it was trained on, with the sha256 of some files."""
        hashes = {name: self._hash(name) for name in self.folder.looked_at}
        return {"width": self.width, "standardise": self.standardise, "parts": self._parts(), "files": hashes}

    def _parts(self) -> int:
        return self.folder.positions(self.parts)

    def _hash(self, name: str) -> str:
        with self.folder.path(name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def require_same(self, trained_on: Mapping[str, Any], checkpoint: object) -> None:
        """Compare the features with those that a checkpoint was trained on, and warn where that is not possible.

        Args:
            trained_on: what `record` said.
            checkpoint: for messages.

        Raises:
            ValueError: they have another width, are used in another way, or a file of one name holds another content.
        """
        present = {"width": self.width, "standardise": self.standardise, "parts": self._parts()}
        for name, value in present.items():
            if trained_on.get(name) != value:
                raise ValueError(
                    f"{checkpoint} was trained on {self.folder.part} with {name} {trained_on.get(name)}, but "
                    f"{self.path} has {value}; give the folder and the options of the training"
                )
        files = trained_on.get("files")
        if not isinstance(files, Mapping):
            raise ValueError(f"{checkpoint} is damaged: its contract names no files of {self.folder.part}")
        known = [name for name in files if name in self.folder.files]
        others = [name for name in known if self._hash(name) != files[name]]
        if others:
            raise ValueError(
                f"{checkpoint} was trained on other {self.folder.part}: {self.folder.path(others[0])} and "
                f"{len(others) - 1} more of {len(known)} files compared have another content than the files of their "
                f"names then; give {self.folder.option} the features of the training, or train anew"
            )
        if not known:
            rank_zero_warn(
                f"{self.path} holds none of the files by which {checkpoint} knows the {self.folder.part} of its "
                "training: whether the same encoder made these cannot be told"
            )


__all__ = [
    "PREFIX",
    "FeatureFolder",
    "GivenFeatures",
    "Modality",
    "UnusableFeatures",
    "is_given",
    "mean_of_parts",
    "read_features",
    "refuse_idle_options",
]
