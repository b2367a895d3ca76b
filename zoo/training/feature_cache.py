"""FeatureCache: what frozen encoders make of a clip is computed once per run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

MAX_BYTES = 2**28  # of features per encoder
CLIPS_AT_ONCE = 16  # that pass an encoder together

Features = tuple[Tensor | None, ...]


class FeatureCache:
    """A first-in, first-out cache of frozen encoders' features, by what identifies the clip.

    Args:
        max_bytes: beyond this size the oldest features are dropped.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes, self.size = max_bytes, 0
        self._features = OrderedDict[Hashable, Features]()

    def clear(self) -> None:
        """Forget everything."""
        self._features.clear()
        self.size = 0

    @torch.no_grad()
    def rows(
        self,
        keys: Sequence[Hashable],
        compute: Callable[[list[int]], Iterable[Features]],
        read: Mapping[int, Features] | None = None,
    ) -> list[Features]:
        """Return the features of each key, computing those that are missing.

        Args:
            compute: indices into `keys`, at most `CLIPS_AT_ONCE` -> some tensors for each, of any shape.
            read: index into `keys` -> features that were read from a file, which are not computed.
        """
        known = {keys[i]: features for i, features in (read or {}).items()}
        known |= {key: self._features[key] for key in keys if key in self._features}
        new = list({key: i for i, key in enumerate(keys) if key not in known}.values())
        with torch.inference_mode(False), torch.no_grad():  # training needs what a validation computed, too
            for part in (new[i : i + CLIPS_AT_ONCE] for i in range(0, len(new), CLIPS_AT_ONCE)):
                for i, features in zip(part, compute(part), strict=True):
                    known[keys[i]] = tuple(None if x is None else x.clone() for x in features)
                    self._features[keys[i]] = known[keys[i]]
                    self.size += _bytes(known[keys[i]])
        while self.size > self.max_bytes:
            self.size -= _bytes(self._features.popitem(last=False)[1])
        return [known[key] for key in keys]

    def stacked(
        self, keys: Sequence[Hashable], compute: Callable[[list[int]], Tensor], read: Mapping[int, Tensor] | None = None
    ) -> Tensor:
        """Return the features of all keys as one tensor, one row each; they have one shape.

        Args:
            compute: indices into `keys`, at most `CLIPS_AT_ONCE` -> their features, one row each.
            read: see `rows`.
        """
        known: dict[int, Features] = {i: (features,) for i, features in (read or {}).items()}
        rows = self.rows(keys, lambda part: ((features,) for features in compute(part)), known)
        return torch.stack([features for (features,) in rows if features is not None])


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)
