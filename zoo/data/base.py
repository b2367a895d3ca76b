"""EmotionData: samples of one corpus -> loaders, in an order that is a pure function of (seed, epoch).

A corpus is one subclass that fills ``read(split)``. Batches are made by the model's collator, which `trainer` hands
over, so tokenizer and prompt belong to the paper and never to the corpus.

Exact resume: the order of an epoch depends on (seed, epoch) only, the randomness inside a batch on (seed, epoch, batch
number) only, and ``state_dict`` holds how many batches of the epoch were trained on; workers and restarts therefore
change nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Sampler

from zoo.data.batches import Batches, BatchOrder, EvaluationOrder
from zoo.data.lazy import dialogue_numbers, select
from zoo.data.text import check_encoding, whole_number
from zoo.schema import Collator, Labels, LazySamples, Sample, ScoredQuestion, Split, Turn

log = logging.getLogger(__name__)

LISTED = 5  # excluded utterances that are named on the terminal


@dataclass
class Reading:
    """One split as read: the samples and everything that was left out or changed, so that nothing happens silently.

    Attributes:
        samples: in the corpus' own order.
        official: number of utterances the corpus' authors state for this split; None if they state none.
        excluded: utterance key -> reason it is not among the samples.
        notes: other counted facts, e.g. ``{"audio descriptions missing": 1}``; zero counts are left out.
        listed: names behind such a count, e.g. ``{"clips missing": ["dia0_utt3"]}``.
        without_file: keys of those of ``excluded`` that name a picture or clip that is not there.
    """

    samples: Sequence[Sample]
    official: int | None = None
    excluded: dict[str, str] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    listed: dict[str, list[str]] = field(default_factory=dict)
    without_file: set[str] = field(default_factory=set)

    def report(self) -> dict[str, Any]:
        """Return what ``metrics.json`` says about the population."""
        return {
            "n_used": len(self.samples),
            "n_official": self.official,
            "excluded": dict(self.excluded),
            "notes": {k: v for k, v in self.notes.items() if v},
            **({"listed": listed} if (listed := {k: v for k, v in self.listed.items() if v}) else {}),
        }


def dialogue_samples(
    turns: Sequence[Turn], where: str, dialogue: str, labels: Labels, last_only: bool = False
) -> list[Sample]:
    """Return the labelled turns of one dialogue as samples, each with all turns before and after it.

    Args:
        where: ``{corpus}/{split}``; ids are ``{where}/{turn id}``.
        dialogue: ``Sample.dialogue``.
    """
    scored = [i for i, turn in enumerate(turns) if turn.label is not None]
    return [
        Sample(f"{where}/{turns[i].id}", dialogue, labels, turns[i], tuple(turns[:i]), later=tuple(turns[i + 1 :]))
        for i in (scored[-1:] if last_only else scored)
    ]


class _System(Protocol):
    """What the loaders need of the system that is run."""

    earlier_rows: Collection[str]  # ids that the same command answered before it was interrupted

    def collator(self, training: bool) -> Collator: ...


class EmotionData(LightningDataModule):
    """Base of every corpus.

    Args:
        root: the corpus' own folder in its released layout; None for a corpus that is generated.
        batch_size: samples per training batch, per process.
        eval_batch_size: samples per validation/test batch; ``batch_size`` if None. Does not change predictions.
        num_workers: loader processes, which live as long as a fit; does not change what is trained on.
        seed: seed of the training order and of every random choice a collator makes; None takes --seed_everything.
        bucket: put samples of similar length into one batch (order of batches stays random); saves padding.
        whole_dialogues: put utterances of a dialogue into one batch, until it is full, in place of ``bucket``. Prompts
            that show the whole conversation (``window: null``) then share most of their tokens, and what they share is
            computed once; a batch is less varied than one of single utterances.
        limit: use only the first so many dialogues of each split (for trying things out); None for all.
        predict_splits: what ``zoo predict`` predicts; None: the test split.
        max_unreadable: the share of a split's samples whose clip or picture may be missing or unreadable, where the
            system reads clips; with more a run is refused at its start, or stopped. Up to it they are counted and
            listed in metrics.json.
        encoding: of the corpus' text files, e.g. ``gb18030``; None: UTF-8, else what the corpus is known to be in, else
            refused.
    """

    trainer: Trainer  # set before the first loader is asked for
    labels: Labels
    # options that a published config does not hold: places on a machine, and what whoever tests says anew
    unpublished_options: ClassVar[tuple[str, ...]] = ("root", "limit", "seed", "num_workers", "predict_splits")
    licence = "?"  # of the corpus, as its owners state it
    material = "?"  # what its samples are, so that a user of weights trained on it knows what they have met
    encodings: tuple[str, ...] = ()  # what the released files are known to be in where they are not UTF-8
    is_ad_hoc = False  # single samples of `zoo label`: a modality that every sample lacks is then no reading error
    protocol = "all_utterances"  # which utterances are scored; results of different protocols are never ranked together

    def __init__(
        self,
        root: Path | None = None,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        bucket: bool = True,
        whole_dialogues: bool = False,
        limit: int | None = None,
        predict_splits: list[Split] | None = None,
        max_unreadable: float = 0.05,
        encoding: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (eval_batch_size is not None and eval_batch_size < 1):
            raise ValueError(f"batch sizes must be at least 1, got {batch_size} and {eval_batch_size}")
        for option, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
            ("limit", limit, 1),
        ):
            if value is not None:
                whole_number(f"--data.{option}", value, least)
        if predict_splits is not None and (
            not predict_splits
            or len(set(predict_splits)) < len(predict_splits)
            or set(predict_splits) - {"train", "dev", "test"}
        ):
            raise ValueError(f"--data.predict_splits is some of train, dev and test, each once; got {predict_splits}")
        if not 0 <= max_unreadable <= 1:
            raise ValueError(f"--data.max_unreadable is a share from 0 to 1; got {max_unreadable}")
        self.root = Path(root) if root is not None else None
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.bucket, self.whole_dialogues = bucket, whole_dialogues
        self.limit = limit
        self.predict_splits: tuple[Split, ...] = tuple(predict_splits or ("test",))
        self.max_unreadable = max_unreadable
        self.encoding = check_encoding("encoding", encoding)
        self.readings: dict[str, Reading] = {}
        self._resume_at = (0, 0)  # (epoch, batches of it already trained on) of the run that is resumed

    # ---- what a corpus fills in
    def read(self, split: Split) -> Reading:
        """Read one split.

        Raises:
            FileNotFoundError, ValueError: naming the file, what was got, what was expected and what to do.
        """
        raise NotImplementedError

    @property
    def folder(self) -> Path:
        """`root`, of a corpus that is read from files. FileNotFoundError without one."""
        if self.root is None:
            raise FileNotFoundError(f"{type(self).__name__} needs its folder: give --data.root")
        return self.root

    @property
    def read_as(self) -> str | tuple[str, ...]:
        """``encoding`` of `zoo.data.text.read_text` and `read_table` for the corpus' own files."""
        return self.encodings if self.encoding is None else self.encoding

    @property
    def label_sets(self) -> dict[str, Labels]:
        """corpus name -> Labels; several when corpora are joined."""
        return {self.labels.corpus: self.labels}

    @property
    def protocols(self) -> dict[str, str]:
        """corpus name -> its own protocol; different ones where such corpora are joined."""
        return dict.fromkeys(self.label_sets, self.protocol)

    def corpora(self) -> list[EmotionData]:
        """Return the corpora that the samples come from: itself, or those that it joins, divides or adapts."""
        return [self]

    def splits(self) -> tuple[Split, ...]:
        return ("train", "dev", "test")

    @property
    def table_columns(self) -> Mapping[str, str]:
        """Content -> heading, of columns that have names of their own in tables of such samples; for `zoo label`."""
        return {}

    def found_options(self) -> Mapping[str, Any]:
        """Return options that were left open and that the corpus' files decide, e.g. the labels of a table."""
        return {}

    def settle(self, section: Any) -> None:
        """Write `found_options` into the section of a config that made this corpus.

        A run keeps its config, so its checkpoint knows them without the files.
        """
        for name, value in self.found_options().items():
            section["init_args"][name] = value

    def reachable(self, split: Split, reads: Sequence[str]) -> dict[str, str] | None:
        """Return the best possible answer to each sample for a reader of only these parts: sample id -> label.

        None for a corpus of which that is not known.

        Args:
            reads: of text, turns, descriptions, face and voice.
        """
        return None

    def scored_questions(self, split: Split) -> Mapping[str, ScoredQuestion]:
        """Return how each answer is scored, by sample id, where a benchmark has a rule of its own; else nothing."""
        return {}

    # ---- shared by all
    @property
    def run_seed(self) -> int:
        """``seed``, else the run's --seed_everything, else 0."""
        return self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))

    def reading(self, split: Split) -> Reading:
        """Return the split, read once."""
        if split not in self.readings:
            reading = self.read(split)
            self._check_reading(reading, split)
            if self.limit is not None:
                samples = select(reading.samples, np.flatnonzero(dialogue_numbers(reading.samples) < self.limit))
                reading.notes["left out by --data.limit"] = len(reading.samples) - len(samples)
                reading.samples = samples
            if not reading.samples:
                raise ValueError(
                    f"{type(self).__name__} has no {split} samples (root {self.root}); "
                    f"excluded: {len(reading.excluded)}"
                )
            for what, n in reading.report()["notes"].items():
                log.info("%s %s: %d %s", type(self).__name__, split, n, what)
            for key, reason in list(reading.excluded.items())[:LISTED]:
                log.warning("%s %s: %s left out: %s", type(self).__name__, split, key, reason)
            if len(reading.excluded) > LISTED:
                more = len(reading.excluded) - LISTED
                log.warning(
                    "%s %s: %d more left out; metrics.json of a test lists all", type(self).__name__, split, more
                )
            self.readings[split] = reading
        return self.readings[split]

    def _check_reading(self, reading: Reading, split: Split) -> None:
        """Check what a corpus read: a `Reading` whose samples have proper ids, each once, and known labels."""
        corpus = type(self).__name__
        if not isinstance(reading, Reading):
            raise ValueError(f"{corpus}.read returned a {type(reading).__name__}; expected a Reading of the samples")
        if self.is_ad_hoc or isinstance(reading.samples, LazySamples):
            return
        ids: set[str] = set()
        for sample in reading.samples:
            name = sample.labels.corpus
            for what, value in (("id", sample.id), ("dialogue", sample.dialogue)):
                if not value.startswith(f"{name}/"):
                    raise ValueError(
                        f"a {split} sample of {corpus} has the {what} {value!r}; expected {name}/<split>/<name>, see "
                        "'Add a corpus' in CONTRIBUTING.md"
                    )
            if sample.id in ids:
                raise ValueError(f"two {split} samples of {corpus} have the id {sample.id!r}; expected each id once")
            ids.add(sample.id)
            if sample.target.label is not None and sample.target.label not in sample.labels.names:
                known = ", ".join(sample.labels.names)
                raise ValueError(f"{sample.id} has the label {sample.target.label!r}; expected one of {known}")

    def samples(self, split: Split) -> Sequence[Sample]:
        """Return the samples of a split, in the corpus' own order."""
        return self.reading(split).samples

    def population(self, split: Split) -> dict[str, Any]:
        """Return what metrics.json says about the samples of a split."""
        return self.reading(split).report()

    def rows_without_file(self, split: Split) -> dict[str, str]:
        """Return the rows that were left out because they name a file that is not there: key -> reason.

        None with ``limit``, which takes no share of them.
        """
        reading = self.reading(split)
        if self.limit is not None:
            return {}
        return {key: reading.excluded[key] for key in sorted(reading.without_file)}

    def add_note(self, split: Split, what: str, count: int) -> None:
        """Note a counted fact about a split for metrics.json."""
        self.reading(split).notes[what] = count

    def splits_of(self, stage: str) -> tuple[Split, ...]:
        """Return the splits that fit, validate, test or predict reads."""
        read: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "dev"),
            "validate": ("dev",),
            "test": ("test",),
            "predict": self.predict_splits,
        }
        return read[stage]

    def setup(self, stage: str) -> None:
        for split in self.splits_of(stage):
            self.reading(split)  # fail before any training work; the test split is not even read during fit

    @property
    def _system(self) -> _System:
        return cast(_System, self.trainer.lightning_module)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader(self.samples("train"), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader(self._limited(self.samples("dev"), "val"), self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader(self._limited(self.samples("test"), "test"), self.eval_batch_size, shuffle=False)

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        samples = self._limited(self.to_predict(), "predict")
        return self._loader(samples, self.eval_batch_size, shuffle=False, answered=self._system.earlier_rows)

    def _limited(self, samples: Sequence[Sample], what: Literal["val", "test", "predict"]) -> Sequence[Sample]:
        """Return as many samples as --trainer.limit_{what}_batches allows, drawn by the run's seed, in their own order.

        The first batches would be those of the shortest prompts, which score otherwise.
        """
        limit = getattr(self.trainer, f"limit_{what}_batches")
        step = self.eval_batch_size * self.trainer.world_size
        batches = -(-len(samples) // step)
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        if limit == 1.0 and isinstance(limit, float) or batches * step >= len(samples):
            return samples
        if not batches and limit:
            whole = -(-len(samples) // step)
            raise ValueError(
                f"--trainer.limit_{what}_batches {limit} of {whole} batches is none; give a larger share, or a number"
            )
        setattr(self.trainer, f"limit_{what}_batches", batches)  # a share would be taken once more
        chosen = np.random.default_rng((self.run_seed, len(samples))).permutation(len(samples))[: batches * step]
        log.warning(
            "--trainer.limit_%s_batches: %d of %d samples, drawn by seed %d",
            what,
            len(chosen),
            len(samples),
            self.run_seed,
        )
        return select(samples, np.sort(chosen))

    def to_predict(self) -> Sequence[Sample]:
        """Return the samples of ``zoo predict``."""
        if len(self.predict_splits) == 1:
            return self.samples(self.predict_splits[0])
        return [sample for split in self.predict_splits for sample in self.samples(split)]

    def _loader(
        self, samples: Sequence[Sample], batch_size: int, shuffle: bool, answered: Collection[str] = ()
    ) -> DataLoader[dict[str, Any]]:
        """Return the loader of some samples, in the order of the run's seed.

        Args:
            answered: ids of samples whose batches are left out; the others keep their batches, and so their numbers to
                the last digit.
        """
        collator = self._system.collator(training=shuffle)
        batches = Batches(
            samples,
            collator,
            batch_size,
            shuffle,
            self.bucket,
            self.whole_dialogues,
            self.run_seed,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        # The training loader's sampler knows the epoch before workers prefetch, and where in it to go on.
        order: Sampler[Any]
        if shuffle:
            overfit_batches = self.trainer.overfit_batches  # type: ignore[attr-defined]  # set by one of its connectors
            order = BatchOrder(batches, self._resume_at, repeat=overfit_batches > 0)
        else:
            order = EvaluationOrder(batches, answered)
        device = self.trainer.strategy.root_device
        return DataLoader(
            batches,
            batch_size=None,
            sampler=order,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda" and torch.cuda.is_available(),  # copied to the card while it computes
            # a fit asks for many epochs, anything else for one; what a worker keeps changes no batch, see `Batches`
            persistent_workers=self.num_workers > 0 and self.trainer.state.fn == "fit",
        )

    # ---- exact resume
    def _order(self) -> dict[str, Any]:
        """Return what the order of training depends on."""
        return {
            "seed": self.run_seed,
            "batch_size": self.batch_size,
            "bucket": self.bucket,
            "whole_dialogues": self.whole_dialogues,
            "training samples": len(self.samples("train")),
            "processes": self.trainer.world_size,
        }

    def state_dict(self) -> dict[str, Any]:
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        epoch, done = self.trainer.current_epoch, progress.current.processed  # type: ignore[attr-defined]  # a narrower one
        return {
            "epoch": epoch + progress.is_last_batch,
            "batches_done": 0 if progress.is_last_batch else done,
            **self._order(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.trainer.state.fn != "fit":
            return  # an evaluation reads no training order; its batch size is its own
        for key, now in self._order().items():
            written = state.get(key, False)  # checkpoints of earlier versions know no whole_dialogues
            if written != now:
                raise ValueError(
                    f"resuming with {key} {now}, but the checkpoint was written with {written}; the run would "
                    "not continue the same order. Use the checkpoint's value, or start a new run (--model.start_from)"
                )
        self._resume_at = (state["epoch"], state["batches_done"])


def _as_it_is(batch: Any) -> Any:
    """Return a batch unchanged: torch's default would rebuild its tuples as lists."""
    return batch
