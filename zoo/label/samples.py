"""The user's samples as the data of a run, and every answer handed on as soon as it is there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from zoo.data.base import EmotionData, Reading
from zoo.data.wrapped import WrappedCorpus
from zoo.label.used_inputs import NOT_GIVEN, UsedInputs, ablations, batch_tensors, equal_inputs, unused_reason
from zoo.schema import Prediction, Problem, Sample, Split
from zoo.training.module import EmotionModule


class RequestedSamples(WrappedCorpus):
    """The user's samples as the data of a run.

    The run's own corpus is asked for its labels, which takes no files, and for solved examples if the system shows
    some.

    Args:
        samples: what is asked about.
        corpus: the run's own.
        absent: folders of the corpus that are not here.
        seed: of the run.
    """

    is_ad_hoc = True

    def __init__(self, samples: Sequence[Sample], corpus: EmotionData, absent: Sequence[str], seed: int) -> None:
        super().__init__(corpus, batch_size=corpus.eval_batch_size, bucket=False, seed=seed)
        self.requested, self.absent = list(samples), absent
        self.protocol = corpus.protocol
        self.used: dict[str, UsedInputs] = {}  # id -> what was used
        self.failed: dict[str, str] = {}  # id -> why there is no label
        self.batch_started = 0.0

    def read(self, split: Split) -> Reading:
        if split == "test":
            return Reading(self.requested)
        need = f"this system shows solved examples of the {split} split that it was trained with"
        if self.absent:
            raise FileNotFoundError(f"{need}, but {', '.join(self.absent)} is not here; give its folder, --data.root")
        try:
            return self.corpus.reading(split)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{need}: {error}") from error

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(_AnswerableBatches(self), batch_size=None, collate_fn=lambda batch: batch)

    def inspect(self, sample: Sample, collator: Any) -> bool:
        """Note which parts of a sample are used; False if it cannot be answered."""
        module = cast(EmotionModule, self.trainer.lightning_module)

        def system_input(one: Sample) -> list[Any]:
            batch = collator([one], np.random.default_rng(0))
            problems[:] = batch.get("problems", ())
            return batch_tensors(batch) or [json.dumps(p.row(), sort_keys=True) for p in module.predict(batch)]

        used, unused, media = [], {}, getattr(collator, "media", None)
        problems: list[Problem] = []  # of the batch that was made last
        try:
            whole = system_input(sample)
            not_whole = [f"{sample.id}: {row['reason']}" for row in problems]
            media_notes = [] if media is None else media.new_problems()
            for part, ablated in ablations(sample).items():
                if ablated is None:
                    unused[part] = NOT_GIVEN
                elif equal_inputs(whole, system_input(ablated)):
                    unused[part] = unused_reason(sample, part)
                else:
                    used.append(part)
        except ValueError as error:  # its prompt cannot be written
            self.failed[sample.id] = str(error)
            return False
        not_whole += [f"{row['file']}: {row['reason']}" for row in media_notes if row["problem"] == "damaged"]
        usage = self.used[sample.id] = UsedInputs(tuple(used), unused, tuple(not_whole))
        if not used:
            self.failed[sample.id] = f"nothing of it reached the system ({'; '.join((str(usage), *not_whole))})"
        return bool(used)


class _AnswerableBatches(IterableDataset[dict[str, Any]]):
    """Batches of the samples that give the system something to go by, prepared one after the other."""

    def __init__(self, data: RequestedSamples) -> None:
        self.data = data

    def __iter__(self) -> Iterator[dict[str, Any]]:
        data = self.data
        collator = cast(EmotionModule, data.trainer.lightning_module).collator(training=False)
        for start in range(0, len(data.requested), data.batch_size):
            batch = [s for s in data.requested[start : start + data.batch_size] if data.inspect(s, collator)]
            if batch:
                data.batch_started = time.perf_counter()
                yield collator(batch, np.random.default_rng((data.run_seed, start)))


AnswerHandler = Callable[[Sample, Prediction, UsedInputs, float], None]  # the last: seconds


class AnswerCallback(Callback):
    """A callback that hands every answer on as soon as it is there."""

    def __init__(self, handle: AnswerHandler) -> None:
        self.handle = handle

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        module = cast(EmotionModule, pl_module)
        data: RequestedSamples = trainer.datamodule  # type: ignore[attr-defined]  # set by one of its connectors
        samples = list(batch["samples"])
        seconds = (time.perf_counter() - data.batch_started) / len(samples)
        for sample, prediction in zip(samples, module.predictions[-len(samples) :], strict=True):
            self.handle(sample, prediction, data.used[sample.id], seconds)
