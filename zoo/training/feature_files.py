"""Features of a frozen encoder on disk, so that no later epoch, run or process decodes and encodes a clip again.

    FOLDER/{encoder}/encoder.json                        what the features depend on beside the clip
    FOLDER/{encoder}/{clip[:2]}/{clip}.safetensors       one clip's

``{encoder}`` is the beginning of the hash of encoder.json, in which the encoder's weights and its preprocessing stand;
``{clip}`` is the sha256 of the clip's bytes, with its seconds and its half of the picture where it is a part of a film.
So the features of another encoder, of other settings or of a file that was replaced have another name. A file holds one
tensor, ``features`` (T, W) float32, and in its metadata those names and a checksum, so that a damaged file is noticed.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from zoo.backbones.frozen import FrozenEncoder
from zoo.media import Media, Unreadable
from zoo.media.clips import content_key, utterance_key
from zoo.schema import Problem, Turn
from zoo.storage import write_unsynced, write_whole

FORMAT = 1  # raise it whenever a change of the code changes features of equal names


class ClipFacts(NamedTuple):
    """What a clip is known for beside its features, which whoever reads these alone must still be told.

    Attributes:
        shortened: whether it was cut to its middle.
        damage: what is wrong with a file of which only a part could be read.
    """

    shortened: bool = False
    damage: str | None = None


class ReadClip(NamedTuple):
    """The frames or the sound of an utterance as a batch holds them.

    Attributes:
        key: what identifies it.
        array: frames or waveform; None where its features are known.
        features: (T, W) float32, where they stood in a file.
        facts: what is known of it beside.
    """

    key: tuple[Hashable, ...]
    array: np.ndarray | None
    features: Tensor | None
    facts: ClipFacts


class StoredFeatures(NamedTuple):
    """Features that were read: (T, W) float32, and what is known of their clip."""

    features: Tensor
    facts: ClipFacts


class DamagedFeatures(ValueError):
    """Raised for a file that is not what was written; the text says why."""


class FeatureFiles:
    """The features of one frozen encoder, by clip. Several processes may read and write at once.

    Args:
        folder: of the features of any number of encoders.
        encoder: whose features.
        settings: what they depend on beside its weights and the clip, as values of JSON.

    Raises:
        ValueError: the encoder is trained, so its features change.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, encoder: FrozenEncoder, settings: Mapping[str, Any]) -> None:
        if any(p.requires_grad for p in encoder.parameters()):
            raise ValueError(
                f"--model.feature_folder keeps features of frozen encoders, and {encoder.path} is trained; set it to "
                "null, or leave the encoder out of --model.train"
            )
        made_by = {
            "format": FORMAT,
            "encoder": type(encoder).__name__,
            "files": encoder.fingerprint() or encoder.path,  # with config and preprocessing; random weights have none
            "weights": encoder.weights_hash(),
            **settings,
        }
        text = json.dumps(made_by, indent=1, sort_keys=True) + "\n"
        self.encoder = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.home = folder / self.encoder
        write_whole(self.home / "encoder.json", text)  # also where it is there: a folder one may not write to is told

    @classmethod
    def written_before(cls, home: Path) -> FeatureFiles:
        """Return the features in ``FOLDER/{encoder}``, which one of these made, to be read without the encoder."""
        files = cls.__new__(cls)
        files.encoder, files.home = home.resolve().name, home
        return files

    def path(self, clip: tuple[Hashable, ...]) -> Path:
        """Return the file of a clip's features.

        Args:
            clip: its identity, see `zoo.media.clips.content_key`.
        """
        sha256, *part = (str(x) for x in clip if x is not None)
        return self.home / sha256[:2] / f"{'-'.join((sha256, *part))}.safetensors"

    def read(self, clip: tuple[Hashable, ...]) -> StoredFeatures | None:
        """Return the features of a clip; None if there are none.

        Raises:
            DamagedFeatures: the file is not what was written.
        """
        path = self.path(clip)
        if not path.exists():
            return None
        try:
            content = path.read_bytes()  # once: safe_open opens a file twice, and it may be replaced in between
            features = load(content)["features"].clone()  # this checks the header, too
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            metadata = header.get("__metadata__", {})
            expected = self._metadata(path.stem, features)
            facts = json.loads(metadata.pop("facts", ""))
            known = ClipFacts(bool(facts["shortened"]), facts["damage"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedFeatures(f"cannot be read ({error})") from error
        if metadata != expected or features.ndim != 2 or features.dtype != torch.float32:
            raise DamagedFeatures("holds other features than were written under its name")
        return StoredFeatures(features, known)

    def write(self, clip: tuple[Hashable, ...], features: Tensor, facts: ClipFacts) -> None:
        """Keep the features of a clip, (T, W) float32, whole or not at all."""
        path = self.path(clip)
        features = features.detach().cpu().contiguous()
        metadata = self._metadata(path.stem, features) | {"facts": json.dumps(facts._asdict())}
        write_unsynced(path, [save({"features": features}, metadata)])

    def write_all(
        self, part: Sequence[int], clips: Sequence[tuple[Hashable, ...]], facts: Sequence[ClipFacts], features: Tensor
    ) -> None:
        """Keep the features, (len(part), T, W), of some of the clips of a batch."""
        for i, row in zip(part, features.cpu(), strict=True):
            self.write(clips[i], row, facts[i])

    def _metadata(self, name: str, features: Tensor) -> dict[str, str]:
        checksum = zlib.crc32(features.numpy().tobytes())
        return {"encoder": self.encoder, "clip": name, "crc32": f"{checksum:08x}"}


def read_clip(
    media: Media,
    turn: Turn,
    path: Path,
    decode: Callable[[], tuple[np.ndarray, bool]],
    files: FeatureFiles | None,
    problems: list[Problem],
) -> ReadClip | None:
    """Return the frames or the sound of an utterance, or their features if there are any; None if it cannot be read.

    Args:
        media: decodes, and is told of what is wrong with a clip whose features are known.
        turn: the utterance.
        path: its file that is read.
        decode: returns the array, and whether it was shortened; raises `Unreadable`.
        files: features on disk; None: none.
        problems: gets an entry for a damaged file of features.
    """
    try:
        if files is None:
            array, shortened = decode()
            return ReadClip(utterance_key(turn, path), array, None, ClipFacts(shortened))
        key = content_key(media, turn, path)
        try:
            stored = files.read(key)
        except DamagedFeatures as error:
            stored, name = None, files.path(key).name
            reason = f"{error}; computed again"
            problems.append({"problem": "damaged features", "name": name, "reason": reason, "samples": []})
        if stored is not None:
            if stored.facts.damage is not None:
                media.report(path, stored.facts.damage, "damaged")
            return ReadClip(key, None, *stored)
        array, shortened = decode()
        return ReadClip(key, array, None, ClipFacts(shortened, media.damage(path)))
    except Unreadable:
        return None


def stacked_features(clips: Sequence[ReadClip]) -> Tensor | None:
    """Return the features of those clips whose features are known, (K, T, W); None if there are none."""
    features = [clip.features for clip in clips if clip.features is not None]
    return torch.stack(features) if features else None


def known_and_new(features: Tensor | None, known: Sequence[bool]) -> tuple[dict[int, Tensor], dict[int, int]]:
    """Return clip -> its features that were read, and clip -> its row among those that are to be computed.

    Args:
        features: (K, T, W) of the known clips; None if there are none.
        known: of each clip of a batch.
    """
    read = [i for i, is_known in enumerate(known) if is_known]
    new = [i for i, is_known in enumerate(known) if not is_known]
    return dict(zip(read, () if features is None else features, strict=True)), {i: row for row, i in enumerate(new)}


__all__ = [
    "ClipFacts",
    "DamagedFeatures",
    "FeatureFiles",
    "ReadClip",
    "StoredFeatures",
    "known_and_new",
    "read_clip",
    "stacked_features",
]
