"""Validate, test and predict: what every system shares from its predictions to metrics.json."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from zoo.metrics import EmotionMetrics, confusion_picture, evaluate, general_scores
from zoo.runs import portable, portable_path, problems_of_fit, run_folder, set_aside_results
from zoo.schema import UNPARSED, Prediction, Sample
from zoo.storage import write_jsonl, write_whole
from zoo.training.batch import Batch, SampleBatch
from zoo.training.checkpointing import public_path
from zoo.training.provenance import provenance
from zoo.training.reading import Problems, ReadingModule

log = logging.getLogger(__name__)

# of a sample; turns: what was said before
PARTS = ("text", "turns", "later turns", "descriptions", "face", "voice")
SHORT_NAMES = {
    "weighted_f1": "wf1",
    "accuracy": "acc",
    "macro_f1": "macro_f1",
    "uar": "uar",
    "unparsed": "unparsed",
}  # score -> the name under which a validation logs it


class EvaluatedModule(ReadingModule):
    """A module that answers samples, and whose answers are scored and written down."""

    scores: tuple[str, ...] = ("weighted_f1", "accuracy", "macro_f1", "uar", "unparsed")  # of a test, logged by name
    monitor = "val/wf1"  # the larger, the better: which checkpoint becomes best.ckpt
    predictions_file = "predictions.jsonl"  # where the rows of a test or prediction go
    answers_questions = False  # whether a sample's own question is put to the system, and answered in writing

    def __init__(self, train: list[str] | None = None, start_from: str | None = None) -> None:
        super().__init__(train, start_from)
        self.predictions: list[Prediction] = []
        self.earlier_rows: dict[str, dict[str, Any]] = {}  # id -> row, of an interrupted prediction that goes on
        self.events: Counter[str] = Counter()  # counted in a test, e.g. truncated prompts

    # ---- what a system fills in
    @property
    def unreadable_events(self) -> tuple[str, ...]:
        """Events that are counted where no clip could be read; not every sample of a test may be so."""
        return ()

    @abstractmethod
    def predict(self, batch: Any) -> list[Prediction]:
        """Return the answers to the samples of a batch, in order."""

    @property
    def reads(self) -> tuple[str, ...] | None:
        """Parts of a sample that can change the answer with the options given, in the order of `PARTS`.

        None if a system does not know. Written into metrics.json; the best possible score is computed from it.
        """
        return None

    def check_split(self, samples: Sequence[Sample], split: str, stage: str) -> None:
        """Check that a split has what the system reads: clips, words, descriptions.

        Called before any work with the first split of the stage; never for the single samples of `zoo label`, which
        may lack it.

        Raises:
            ValueError: the split as a whole lacks something.
        """

    # ---- the corpus
    def setup(self, stage: str) -> None:
        """Take the data of the run, and check that its splits have what the system reads."""
        self.data = self.trainer.datamodule  # type: ignore[attr-defined]  # set by one of its connectors
        self.on_new_data()
        self.val_metrics = {c: EmotionMetrics(labels) for c, labels in self.data.label_sets.items()}
        self.problems = Problems()
        if self.data.is_ad_hoc:
            return
        for split in self.data.splits_of(stage):
            self._check_questions(split)
            self._check_files(split, stage)
        self.note_missing_files(stage)
        split = self.data.splits_of(stage)[0]
        self.check_split(self.data.samples(split), split, stage)

    def on_new_data(self) -> None:
        """Forget everything that was computed from the data of an earlier run with the same module."""

    def _check_questions(self, split: Any) -> None:
        if self.data.scored_questions(split) and not self.answers_questions:
            raise ValueError(
                f"{type(self.data).__name__} asks questions of its own, and {type(self).__name__} asks for an emotion; "
                "EmotionQwen and ImageText take them"
            )

    def _check_files(self, split: Any, stage: str) -> None:
        for part, remedy in self.required_files(stage).items():
            if any(self.has_file(s, part) for s in self.data.samples(split)):
                continue
            corpus, root = type(self.data).__name__, getattr(self.data, "root", None)
            if part not in ("video", "audio"):
                raise ValueError(f"no {split} sample of {corpus} has {part}: {remedy}")
            what = "a clip or picture (video)" if part == "video" else "a clip or recording (audio)"
            where = "give the folder that holds the files (--data.root)"
            if root is not None:
                where = f"the folder {root} has none where its reader looks (--data.help {corpus} says where)"
            raise ValueError(
                f"no {split} sample of {corpus} has {what}, so {type(self).__name__} would read nothing; {where}"
                + (f", or {remedy}" if remedy else "")
            )

    # ---- validation
    def on_validation_start(self) -> None:
        """Begin a new count of events."""
        self.events = Counter()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Answer a batch and count the answers."""
        if self.keeps_step(batch):
            return
        self.update_validation_metrics(batch["samples"], self.predict(batch))

    def update_validation_metrics(self, samples: SampleBatch, predictions: Sequence[Prediction]) -> None:
        """Add the predictions of a validation batch to the metrics of their corpora."""
        indices: dict[str, tuple[list[int], list[int]]] = {}
        for sample, prediction in zip(samples, predictions, strict=True):
            predicted, true = indices.setdefault(sample.labels.corpus, ([], []))
            predicted.append(predicted_index(sample, prediction))
            true.append(sample.label)
        for corpus, (predicted, true) in indices.items():
            self.val_metrics[corpus].to(self.device).update(
                torch.tensor(predicted, device=self.device), torch.tensor(true, device=self.device)
            )

    def on_validation_epoch_end(self) -> None:
        """Log the scores of every corpus and their plain mean."""
        # with --trainer.limit_val_batches a corpus of a joint run may not have been met at all
        met = {c: m for c, m in self.val_metrics.items() if m.update_called or self.trainer.world_size > 1}
        results = {} if self.trainer.sanity_checking else {c: m.compute() for c, m in met.items()}
        for metric in self.val_metrics.values():
            metric.reset()
        if not results:
            return
        for score, name in SHORT_NAMES.items():
            values = {c: float(r[score]) for c, r in results.items()}
            self.log(f"val/{name}", sum(values.values()) / len(values), prog_bar=name == "wf1", sync_dist=False)
            if len(values) > 1:
                self.log_dict({f"val/{c}/{name}": v for c, v in values.items()})
        whole = self.trainer.world_size == 1 and self.trainer.limit_val_batches == 1.0
        if whole and (problem := self._nothing_readable(len(self.data.samples("dev")), self.events, "fit")):
            if self.trainer.state.fn == "validate":
                raise ValueError(problem)
            log.warning("the validation scores mean nothing: %s", problem)

    # ---- clips
    def _nothing_readable(self, n: int, events: Mapping[str, int], stage: str = "test") -> str | None:
        """Return what is wrong if not a single one of n samples had a clip that could be read."""
        if n and self.required_files(stage) and any(events[event] >= n for event in self.unreadable_events):
            return (
                f"not one of the {n} samples has a clip that {type(self).__name__} could read; `zoo prepare media "
                "--root DIR` lists what is wrong with each"
            )
        return None

    # ---- test
    def on_test_start(self) -> None:
        """Begin a new list of answers."""
        self.predictions, self.events = [], Counter()
        self._prompt_tokens = 0  # padding left out
        self._started = time.perf_counter()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Answer a batch."""
        if self.keeps_step(batch):
            return
        self.predictions += self.predict(batch)
        self.note_problems(batch, "test")
        self.events["prompts cut to max_length"] += batch.get("truncated", 0)
        mask = dict(batch).get("mask")  # of prompts
        self._prompt_tokens += int(mask.sum()) if isinstance(mask, Tensor) else 0

    def on_test_epoch_end(self) -> None:
        """Write predictions.jsonl and metrics.json into the run folder, and log the scores."""
        seconds = time.perf_counter() - self._started
        rows = [p.row() for p in self._gathered_predictions()]
        events: Counter[str] = sum(self.gather_objects(self.events), Counter())
        problems = self.report_problems("test")
        if problem := self._nothing_readable(len(rows), events):
            raise ValueError(problem)
        if not self.trainer.is_global_zero:
            return
        run = self._write_predictions(rows)
        reports = problems_of_fit(run)
        if "test" in problems.found:
            reports["test"] = problems.report("test", self.split_size("test"))
        questions = self.data.scored_questions("test")
        summary = general_scores(rows, questions) if questions else self.summary(rows, run)
        record = self._record(summary, rows, events, reports, seconds)
        text = json.dumps(portable(record), indent=2)
        text = re.sub(r"\[[^\[\]{}]*\]", lambda m: " ".join(m[0].split()), text)  # a row of numbers on one line
        write_whole(run / "metrics.json", text + "\n")
        scores = {key: summary[key] for key in self.scores if key in summary}
        for key, value in scores.items():
            self.log(f"test/{'wf1' if key == 'weighted_f1' else key}", value, rank_zero_only=True)
        if not all(map(math.isfinite, scores.values())):
            raise FloatingPointError(f"the scores are not finite: {summary}")

    def _record(
        self,
        summary: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        events: Mapping[str, int],
        problems: Mapping[str, Any],
        seconds: float,
    ) -> dict[str, Any]:
        """Return what metrics.json says."""
        data = self.data
        return {
            "split": "test",
            "corpus": "+".join(data.label_sets),
            "eval_protocol": data.protocol,
            **summary,
            "population": self._population(len(rows)),
            "events": {k: v for k, v in events.items() if v},
            **({"problems": problems} if problems else {}),
            "seconds_per_sample": seconds / max(1, len(rows)),
            "tokens_per_sample": self._prompt_tokens / max(1, len(self.predictions)) or None,
            "batch_size": data.eval_batch_size,
            "reads": self.reads,
            "model": public_path(type(self)),
            "seed": data.run_seed,
            "parameters": sum(p.numel() for p in self.parameters()),
            "trainable_parameters": sum(p.numel() for p in self.parameters() if p.requires_grad),
            "checkpoint": portable_path(str(self.trainer.ckpt_path)) if self.trainer.ckpt_path else None,
            **(provenance() or {}),
        }

    def _population(self, scored: int) -> dict[str, Any]:
        """Return what metrics.json says about the samples of the test split and how many of them were scored."""
        report = self.data.population("test")
        left_out = report["n_used"] - scored
        if left_out:
            report["notes"] = report["notes"] | {"left out by --trainer.limit_test_batches": left_out}
        return report | {"n_used": scored}

    def summary(self, rows: Sequence[Mapping[str, Any]], run: Path) -> dict[str, Any]:
        """Return what metrics.json says about the rows of predictions.jsonl; pictures go into the run folder."""
        label_sets = self.data.label_sets
        evaluations: dict[str, dict[str, Any]] = {}
        for corpus, labels in label_sets.items():
            answered = rows_of_corpus(rows, corpus)
            if not answered and len(label_sets) > 1:  # a part without this split, or not met before a limit
                evaluations[corpus] = {"n": 0}
                continue
            evaluations[corpus] = evaluate(answered, labels)
            picture = "confusion.png" if len(label_sets) == 1 else f"confusion_{corpus}.png"
            confusion_picture(evaluations[corpus], labels, run / picture, f"{type(self).__name__} on {corpus} test")
        return self.join_evaluations(evaluations, len(rows))

    def join_evaluations(self, evaluations: Mapping[str, dict[str, Any]], n: int) -> dict[str, Any]:
        """Return what metrics.json says about several corpora: their plain mean, unless their protocols differ.

        Args:
            evaluations: corpus -> its scores and their n; those of a single corpus are returned as they are.
            n: of all corpora together.
        """
        if len(evaluations) == 1:
            return next(iter(evaluations.values()))
        protocols = self.data.protocols
        alike = len({protocols[corpus] for corpus in evaluations}) == 1
        means = {
            score: float(np.mean([e[score] for e in evaluations.values()]))
            for score in self.scores
            if alike and all(score in e for e in evaluations.values())  # some may lack a score of a system's own
        }
        none = "none: the protocols of the corpora differ" if not alike else "none: the corpora have no score in common"
        return {
            "n": n,
            **means,
            "aggregation": "plain mean over corpora" if means else none,
            "corpora": {corpus: {"eval_protocol": protocols[corpus], **e} for corpus, e in evaluations.items()},
        }

    # ---- prediction
    def on_predict_start(self) -> None:
        """Begin a new list of answers."""
        self.predictions, self.events = [], Counter()

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return (B,) label indices, -1 = unparsed; the full rows are written to predictions.jsonl of the run."""
        if self.keeps_step(batch):
            return torch.empty(0, dtype=torch.int64)
        predictions = self.predict(batch)
        self.note_problems(batch, "predict")
        self.predictions += predictions
        return torch.tensor([predicted_index(s, p) for s, p in zip(batch["samples"], predictions, strict=True)])

    def on_predict_epoch_end(self) -> None:
        """Write predictions.jsonl into the run folder."""
        predictions = self._gathered_predictions()
        events: Counter[str] = sum(self.gather_objects(self.events), Counter())
        self.report_problems("predict")
        if not self.data.is_ad_hoc and (problem := self._nothing_readable(len(predictions), events)):
            raise ValueError(problem)
        rows = list((self.earlier_rows | {p.id: p.row() for p in predictions}).values())
        if self.trainer.is_global_zero:
            self._write_predictions(rows)

    def _write_predictions(self, rows: list[dict[str, Any]]) -> Path:
        """Write the rows in the corpus' order, after setting earlier results aside; return the run folder."""
        run = run_folder(self.trainer)
        run.mkdir(parents=True, exist_ok=True)
        moved = set_aside_results(run)
        if moved:
            rank_zero_info(f"the results of an earlier test were moved to {moved}")
        samples = self.data.to_predict() if self.trainer.state.fn == "predict" else self.data.samples("test")
        order = {s.id: i for i, s in enumerate(samples)}
        write_jsonl(run / self.predictions_file, sorted(rows, key=lambda row: order[row["id"]]))
        return run

    # ---- several processes
    def keeps_step(self, batch: Any) -> bool:
        """Answer a batch that this process has only because others have one more; return whether it is such a one."""
        if not batch.get("extra"):
            return False
        events = self.events.copy()
        self.predict(batch)
        self.events = events
        return True

    def on_validation_batch_end(self, *args: Any) -> None:
        """Note what could not be read, and go on to the next batch together with the other processes."""
        super().on_validation_batch_end(*args)
        self.finish_passes()

    def on_test_batch_end(self, *args: Any) -> None:
        """Go on to the next batch together with the other processes."""
        self.finish_passes()

    def on_predict_batch_end(self, *args: Any) -> None:
        """Go on to the next batch together with the other processes."""
        self.finish_passes()

    def _gathered_predictions(self) -> list[Prediction]:
        return [p for part in self.gather_objects(self.predictions) for p in part]


def predicted_index(sample: Sample, prediction: Prediction) -> int:
    """Return the label index of a prediction; -1 if it is unparsed."""
    return UNPARSED if prediction.predicted is None else sample.labels.index(prediction.predicted)


def rows_of_corpus(rows: Sequence[Mapping[str, Any]], corpus: str) -> list[Mapping[str, Any]]:
    """Return the rows of predictions.jsonl that belong to one corpus."""
    return [row for row in rows if row["id"].startswith(f"{corpus}/")]


def ordered_parts(parts: Sequence[str] | set[str]) -> tuple[str, ...]:
    """Return parts of a sample in the order of `PARTS`."""
    return tuple(part for part in PARTS if part in set(parts))


def score_predictions(samples: SampleBatch, probabilities: Sequence[Sequence[float] | np.ndarray]) -> list[Prediction]:
    """Return each sample's most probable label (of two alike the first), with all probabilities.

    Args:
        probabilities: (C,) of each sample, in the order of its corpus' labels.

    Raises:
        FloatingPointError: a probability is not finite.
    """
    predictions = []
    for sample, p in zip(samples, probabilities, strict=True):
        if not np.isfinite(p).all():
            raise FloatingPointError(f"the scores of {sample.id} are not finite: the training diverged")
        names = sample.labels.names
        scores = {name: round(float(x), 6) for name, x in zip(names, p, strict=True)}
        predictions.append(Prediction.of(sample, names[int(np.argmax(p))], scores=scores))
    return predictions
