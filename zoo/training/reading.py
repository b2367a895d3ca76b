"""What could not be read, or not be shown whole, of the splits that a run goes through.

It is counted, listed in metrics.json and told in a line. It ends a run only where it is more than ``max_unreadable`` of
a split. A batch of which nothing is left is a step with a gradient of zero: `EmotionModule.backward`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from zoo.runs import METRICS, portable, portable_path, problems_of_fit, read_record, run_folder, set_aside_results
from zoo.schema import CorpusView, LazySamples, Problem, Sample, Split
from zoo.storage import write_whole
from zoo.training.batch import Batch
from zoo.training.checkpointing import CheckpointedModule
from zoo.training.given_features import FeatureFolder

NAMED = 3  # files and samples that a line in the terminal names
NAMED_IN_ERRORS = 20
LOST = ("missing", "unreadable", "all clips left out")  # which leave a sample without what the system reads of it


class Problems:
    """The problems of the splits of a run.

    Attributes:
        found: split -> problem -> name of the file or sample -> what was wrong.
        lost: split -> ids of the samples whose file is missing or unreadable, and rows left out for want of it.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[str, dict[str, str]]] = {}
        self.lost: dict[str, set[str]] = {}

    def add(self, split: str, problems: Iterable[Problem]) -> None:
        """Add what was wrong with a batch of a split; what is known already changes nothing."""
        for row in problems:
            names = self.found.setdefault(split, {}).setdefault(row["problem"], {})
            names[portable_path(row["name"])] = row["reason"]
            if row["problem"] in LOST:
                self.lost.setdefault(split, set()).update(row["samples"])

    @classmethod
    def joined(cls, parts: Iterable[Problems]) -> Problems:
        """Return the problems that several processes have met."""
        whole = cls()
        for part in parts:
            for split, kinds in part.found.items():
                for problem, names in kinds.items():
                    whole.found.setdefault(split, {}).setdefault(problem, {}).update(names)
            for split, samples in part.lost.items():
                whole.lost.setdefault(split, set()).update(samples)
        return whole

    def report(self, split: str, samples: int) -> dict[str, Any]:
        """Return what metrics.json says about a split.

        Args:
            samples: how many the split has.
        """
        kinds = self.found.get(split, {})
        listed = {problem: dict(sorted(kinds[problem].items())) for problem in sorted(kinds)}
        lost = sorted(self.lost.get(split, ()))
        return {"samples": samples, "lost": len(lost), "lost_samples": lost, "listed": listed}

    def line(self, split: str, samples: int) -> str:
        """Return one line about a split for the terminal."""
        counts = ", ".join(f"{len(names)} {problem}" for problem, names in sorted(self.found[split].items()))
        lost = len(self.lost.get(split, ()))
        return (
            f"{split}: {counts}; {lost} of {samples} samples are without what the system reads. "
            f"{self._examples(split, NAMED)}; metrics.json lists all"
        )

    def refusal(self, split: str, samples: int, share: float) -> str:
        """Return the message of a run that ends because more samples were lost than may be."""
        examples = self._examples(split, NAMED_IN_ERRORS, LOST)
        return (
            f"{len(self.lost[split])} of {samples} {split} samples have no clip, picture or features that can be read, "
            f"more than the {100 * share:g} % of --data.max_unreadable: {examples}. Put the files "
            "where the corpus' reader looks (`zoo prepare media --root DIR` lists what is wrong with each), or raise "
            "--data.max_unreadable"
        )

    def _examples(self, split: str, most: int, kinds: tuple[str, ...] | None = None) -> str:
        chosen = {k: names for k, names in sorted(self.found[split].items()) if kinds is None or k in kinds}
        rows = [f"{name}: {why}" for names in chosen.values() for name, why in names.items()]
        return "; ".join(rows[:most]) + (f"; and {len(rows) - most} more" if len(rows) > most else "")


class ReadingModule(CheckpointedModule):
    """A module that says which files it reads, and lists what of them could not be read."""

    data: CorpusView  # of the run, from `setup` on

    def __init__(self, train: list[str] | None = None, start_from: str | None = None) -> None:
        super().__init__(train, start_from)
        self.problems = Problems()

    # ---- what a system fills in
    def required_files(self, stage: str) -> Mapping[str, str]:
        """Return which files of an utterance are read (``video``, ``audio``), each with the option that does without.

        Features that are given instead are a ``part`` of their own, with what to do where there are none.

        A split in which no sample has such a file is refused before any work: its scores would be those of an empty
        input.
        """
        return {}

    @property
    def feature_folders(self) -> Mapping[str, FeatureFolder]:
        """The folders of features that are given in place of clips, by modality: ``vision``, ``audio``."""
        return {}

    def has_file(self, sample: Sample, part: str) -> bool:
        """Return whether a sample has a file that is read as its ``video`` or ``audio``, or given features of it."""
        for folder in self.feature_folders.values():
            if folder.part == part:
                return folder.has(sample.dialogue, sample.target)
        return getattr(sample.target, part) is not None

    def lacks_file(self, sample: Sample, part: str) -> bool:
        """Return whether a sample should have a file that is read as its ``video`` or ``audio``, and has none."""
        return not self.has_file(sample, part)

    # ---- what is missing is known at the start
    def note_missing_files(self, stage: str) -> None:
        """Note the samples without a file that is read of them.

        A corpus of which no sample has such a file never had any, and is not meant.

        Raises:
            ValueError: more of a split than ``max_unreadable``.
        """
        parts = self.required_files(stage)
        for name in self.data.splits_of(stage):
            split = "predict" if stage == "predict" else name
            samples = self.data.samples(name)
            missing = dict(self.data.rows_without_file(name))
            # what samples that are made when they are asked for lack shows when they are read
            for part in () if isinstance(samples, LazySamples) else parts:
                corpora = {s.labels.corpus for s in samples if self.has_file(s, part)}
                for s in samples:
                    if s.labels.corpus in corpora and self.lacks_file(s, part):
                        missing.setdefault(s.id, f"has no {part} file")
            self.problems.add(
                split,
                [{"problem": "missing", "name": key, "reason": why, "samples": [key]} for key, why in missing.items()],
            )
            self._refuse_if_too_many_lost(self.problems, split)

    # ---- what is unreadable shows on the way
    def note_problems(self, batch: Batch, split: str) -> None:
        """Note what of a batch of a split could not be read, or not be shown whole.

        Raises:
            ValueError: more samples of a test or prediction are lost than ``max_unreadable``. Several processes find
                that out together at its end, and a training ends with its checkpoint, see `on_train_end`.
        """
        self.problems.add(split, batch.get("problems", ()))
        if split in ("test", "predict") and self.trainer.world_size == 1:
            self._refuse_if_too_many_lost(self.problems, split)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note what of a batch could not be read, and stop where it is too much."""
        self.note_problems(batch, "train")
        self._stop_if_too_many_lost("train")

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Note what of a batch could not be read."""
        self.note_problems(batch, "dev")

    def on_validation_end(self) -> None:
        """Write down what could not be read so far, and stop where it is too much."""
        if self.trainer.sanity_checking:
            return
        if self.trainer.state.fn == "fit":
            self._write_problems_of_fit()
            self._stop_if_too_many_lost("dev")
        else:
            self.report_problems("dev")

    def on_train_end(self) -> None:
        """Write what could not be read into metrics.json, and say it in a line for each split.

        Raises:
            ValueError: it was too much, which has ended the training.
        """
        problems = self._write_problems_of_fit()
        for split in problems.found:
            rank_zero_warn(problems.line(split, self.split_size(split)))
        for split in problems.found:
            self._refuse_if_too_many_lost(problems, split)

    def report_problems(self, split: str) -> Problems:
        """Return what all processes have met, after a line about a split in the terminal.

        Raises:
            ValueError: more samples of the split are lost than ``max_unreadable``.
        """
        problems = self.gathered_problems()
        self._refuse_if_too_many_lost(problems, split)
        if split in problems.found:
            rank_zero_warn(problems.line(split, self.split_size(split)))
        return problems

    def gathered_problems(self) -> Problems:
        """Return the problems that all processes have met."""
        return Problems.joined(self.gather_objects(self.problems))

    def split_size(self, split: str) -> int:
        """Return the number of samples of a split, or of ``predict``, with the rows left out for want of their file."""
        if split == "predict":
            names = self.data.splits_of("predict")
            return len(self.data.to_predict()) + sum(len(self.data.rows_without_file(name)) for name in names)
        name = cast(Split, split)
        return len(self.data.samples(name)) + len(self.data.rows_without_file(name))

    # ---- more than may be
    def _most_lost(self, split: str) -> float:
        """Return how many samples of a split may be lost; of single ones that a user asks about, all."""
        return math.inf if self.data.is_ad_hoc else self.data.max_unreadable * self.split_size(split)

    def _refuse_if_too_many_lost(self, problems: Problems, split: str) -> None:
        if len(problems.lost.get(split, ())) > self._most_lost(split):
            raise ValueError(problems.refusal(split, self.split_size(split), self.data.max_unreadable))

    def _stop_if_too_many_lost(self, split: str) -> None:
        """Let the training end, with its checkpoint; called on every process: only together they know the number."""
        most = self._most_lost(split)
        # a sample that two processes met is counted twice here, and once below
        lost = int(self.sum_over_processes(torch.tensor(float(len(self.problems.lost.get(split, ()))))))
        if lost > most and len(self.gathered_problems().lost[split]) > most:
            self.trainer.should_stop = True

    def _write_problems_of_fit(self) -> Problems:
        """Write what the training has met so far into metrics.json, if it has met anything; return it."""
        problems = self.gathered_problems()
        if problems.found and self.trainer.is_global_zero:
            reports = {split: problems.report(split, self.split_size(split)) for split in problems.found}
            write_problems_of_fit(run_folder(self.trainer), portable(reports))
        return problems

    # ---- several processes
    def gather_objects(self, value: Any) -> list[Any]:
        """Return this value of every process, in their order."""
        if self.trainer.world_size == 1:
            return [value]
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, value)
        return parts

    def sum_over_processes(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, on its own device; one on the model's device is changed.

        Numbers in float64 stay on the CPU until they travel: Apple's GPUs have no float64.
        """
        if self.trainer.world_size == 1:
            return value
        travelling = value.to(self.device)
        torch.distributed.all_reduce(travelling)
        return travelling.to(value.device)


def write_problems_of_fit(run: Path, reports: Mapping[str, Any]) -> None:
    """Write the reports of a training into metrics.json of its run, where those of a part before a resume stand.

    The scores of a test that stand there stay.

    Args:
        run: the folder of the run.
        reports: split -> what `Problems.report` says.
    """
    record, problems = read_record(run), problems_of_fit(run)
    if not record:
        set_aside_results(run)  # a file of somebody else, perhaps
    for split, report in reports.items():
        earlier = problems.get(split, {"lost_samples": [], "listed": {}})
        lost = sorted({*earlier["lost_samples"], *report["lost_samples"]})
        listed = {
            problem: dict(sorted((earlier["listed"].get(problem, {}) | report["listed"].get(problem, {})).items()))
            for problem in sorted(earlier["listed"].keys() | report["listed"].keys())
        }
        problems[split] = report | {"lost": len(lost), "lost_samples": lost, "listed": listed}
    run.mkdir(parents=True, exist_ok=True)
    record["problems"] = record.get("problems", {}) | problems
    write_whole(run / METRICS, json.dumps(record, indent=2) + "\n")
