"""The order of samples in batches: a function of (seed, epoch) alone, the same in every worker and after a restart."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, SequentialSampler

from zoo.data.lazy import dialogue_numbers, lengths
from zoo.schema import Collator, Problem, Sample

EXTRA = -1  # in place of an epoch: a batch that only keeps a rank in step


class Batches(Dataset[dict[str, Any]]):
    """Maps (epoch, batch number) to a collated batch; holds no state, so every worker and every restart agrees."""

    def __init__(
        self,
        samples: Sequence[Sample],
        collator: Collator,
        batch_size: int,
        shuffle: bool,
        bucket: bool,
        whole_dialogues: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.samples, self.collator, self.batch_size = samples, collator, batch_size
        self.shuffle, self.bucket, self.seed = shuffle, bucket, seed
        self.rank, self.world_size = rank, world_size
        by_length = bucket and not whole_dialogues
        self.lengths = lengths(samples, collator) if by_length else None
        self.dialogues = dialogue_numbers(samples) if whole_dialogues else None
        self._cached: tuple[int, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        if self.shuffle:  # every rank the same number of steps: the last incomplete round is padded with repeats
            return -(-len(self.samples) // (self.batch_size * self.world_size))
        return -(-len(self._own()) // self.batch_size)

    def _own(self) -> np.ndarray:
        """Return the samples of this rank in evaluation: each exactly once over all ranks."""
        if self.dialogues is not None:
            return np.array_split(np.argsort(self.dialogues, kind="stable"), self.world_size)[self.rank]
        return np.arange(self.rank, len(self.samples), self.world_size)

    def order(self, epoch: int) -> list[np.ndarray]:
        """Sample indices of each batch of this rank."""
        return [self.indices(epoch, number) for number in range(len(self))]

    def indices(self, epoch: int, number: int) -> np.ndarray:
        """Sample indices of one batch of this rank."""
        samples, rounds = self._arrange(epoch)
        if not self.shuffle:
            return samples[number * self.batch_size : (number + 1) * self.batch_size]
        step = self.batch_size * self.world_size
        batch = samples[rounds[number] * step : (rounds[number] + 1) * step]
        if self.world_size > 1 and len(batch) < step:
            batch = np.resize(batch, step)
        # a rank takes every so-manieth sample, or a stretch of them where dialogues stay together
        whole = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return batch[slice(self.rank, None, self.world_size) if self.dialogues is None else whole]

    def _arrange(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples of an epoch in order, and in training the order of the rounds that they are cut into.

        A round is one batch of every rank. Two arrays, not a list of batches: of single samples that would take more
        memory than they.
        """
        if self._cached is not None and self._cached[0] == epoch:
            return self._cached[1:]
        rounds = np.empty(0, np.int64)
        if not self.shuffle:
            indices = self._own()
            if self.lengths is not None:
                indices = indices[np.argsort(self.lengths[indices], kind="stable")]
        else:
            rng = np.random.default_rng((self.seed, epoch))
            indices = rng.permutation(len(self.samples))
            step = self.batch_size * self.world_size
            if self.dialogues is not None:  # dialogues in random order, the utterances of each in their own
                place = rng.permutation(self.dialogues.max(initial=0) + 1)
                indices = np.argsort(place[self.dialogues], kind="stable")
            if self.lengths is not None:  # sort inside groups of 50 batches, then shuffle the batches again
                group = 50 * step
                parts = [
                    p[np.argsort(self.lengths[p], kind="stable")]
                    for p in (indices[i : i + group] for i in range(0, len(indices), group))
                ]
                indices = np.concatenate(parts)
            rounds = rng.permutation(-(-len(indices) // step))
        self._cached = (epoch, indices, rounds)
        return indices, rounds

    def unanswered(self, answered: Collection[str]) -> Sequence[int]:
        """Return the numbers of the batches of an evaluation in which not all samples have one of these ids."""
        numbers = range(len(self))
        if not answered:
            return numbers
        return [i for i in numbers if any(self.samples[j].id not in answered for j in self.indices(0, i).tolist())]

    def of_rank(self, rank: int) -> Batches:
        """Return the batches of another rank."""
        other = copy.copy(self)
        other.rank, other._cached = rank, None
        return other

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, number = key
        if epoch == EXTRA:  # the same sample for all, whose answer is dropped: see `EvaluationOrder`
            return {**self.collator([self.samples[0]], np.random.default_rng(0)), "extra": True, "problems": []}
        samples = [self.samples[i] for i in self.indices(epoch, number).tolist()]
        batch: dict[str, Any] = self.collator(samples, np.random.default_rng((self.seed, epoch, number, self.rank)))
        media = getattr(self.collator, "media", None)  # of a collator that reads clips
        of_files = [] if media is None else file_problems(samples, media.new_problems())
        return batch | {"problems": [*batch.get("problems", ()), *of_files]}


def file_problems(samples: Sequence[Sample], rows: Sequence[Mapping[str, str]]) -> list[Problem]:
    """Return what was wrong with files that a batch read, with the samples that each belongs to.

    A picture of an earlier turn is the sample's own only where a question is asked about it: a dialogue that lacks one
    of its pictures is not lost with it.

    Args:
        samples: of the batch.
        rows: of `zoo.media.Media.new_problems`.
    """
    readers: dict[str, list[str]] = {}  # path -> samples
    for sample in samples:
        turns = (sample.target, *(sample.history if sample.question is not None else ()))
        for path in {os.fsdecode(p) for turn in turns for p in (turn.video, turn.audio) if p is not None}:
            readers.setdefault(path, []).append(sample.id)
    return [
        {
            "problem": row["problem"],
            "name": row["path"],
            "reason": row["reason"],
            "samples": readers.get(row["path"], []),
        }
        for row in rows
    ]


class EvaluationOrder(SequentialSampler):
    """Yields (0, batch number), for each batch in which not all samples are answered already.

    Every rank has as many as the one with most: what it lacks are batches of (`EXTRA`, 0), whose answers nobody counts.
    Processes that divide a model's weights, or sum up scores, would else wait for each other. Calls itself sequential
    as `BatchOrder` does.

    Args:
        answered: ids of samples.
    """

    def __init__(self, batches: Batches, answered: Collection[str] = ()) -> None:
        super().__init__(batches)
        ranks = range(batches.world_size)
        numbers = [batches.of_rank(rank).unanswered(answered) for rank in ranks]
        most = max(1, *map(len, numbers))  # Lightning has no use for an empty loader
        self.keys = [(0, number) for number in numbers[batches.rank]]
        self.keys += [(EXTRA, 0)] * (most - len(self.keys))

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]  # what `Batches` takes for an index
        return iter(self.keys)


class BatchOrder(SequentialSampler):
    """The order of training: (epoch, batch number); in the epoch ``resume[0]`` from batch ``resume[1]`` on.

    Lightning calls ``set_epoch``, and a loader with workers asks for the order more than once, so nothing is used up.

    It is no sequential sampler but calls itself one, since Lightning replaces any other for ``overfit_batches``.

    Args:
        repeat: every epoch has the batches of the first one, as ``overfit_batches`` wants.
    """

    def __init__(self, batches: Batches, resume: tuple[int, int] = (0, 0), repeat: bool = False) -> None:
        super().__init__(batches)
        self.batches, self.resume, self.repeat, self.epoch = batches, resume, repeat, resume[0]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]  # what `Batches` takes for an index
        start = self.resume[1] if self.epoch == self.resume[0] else 0
        epoch = 0 if self.repeat else self.epoch
        return ((epoch, number) for number in range(start, len(self.batches)))
