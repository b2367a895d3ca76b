"""EmotionModule: what every system shares (validate, test, predict, small strict checkpoints, exact resume), and
Supervised: the one fine-tuning step of the systems that answer a text prompt with a label word.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jinja2 import Template
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.functional import cross_entropy

from zoo import weights
from zoo.backbones import LLM, Audio, LoRA, Vision
from zoo.backbones.adapters import REFERENCE
from zoo.backbones.llm import Dtype, Prefix
from zoo.metrics import EmotionMetrics, confusion_picture, evaluate
from zoo.prompts import count_control_tokens, load_template, parse_label, render, words
from zoo.runs import find_checkpoint, portable, portable_path, run_folder, set_aside_results
from zoo.schema import UNPARSED, Labels, Prediction, Sample, Turn
from zoo.storage import write_jsonl, write_whole

log = logging.getLogger(__name__)

IGNORE = -100  # target id that carries no loss
LABEL_TOKENS = 16  # positions that are kept free for a label word and its end
READABLE = ("text", "turns", "descriptions", "face", "voice")  # parts of a sample; turns: what was said before
FIRST_ANSWERS = 16  # written answers after which it is worth a warning that none could be read


def read_checkpoint(path: Path) -> dict[str, Any]:
    """``state_dict`` and ``zoo`` (the contract) of a .ckpt or weights.safetensors; see `zoo.weights.read_checkpoint`.

    Raises:
        ValueError: if the file is damaged, holds more than tensors and plain values, or no contract.
    """
    checkpoint = weights.read_checkpoint(path)
    return {"state_dict": dict(checkpoint.state), "zoo": dict(checkpoint.contract)}


class EmotionModule(LightningModule):
    """Base of every system.

    A system overrides `build` (its parts), `collator`, `training_step` and `predict`.

    Args:
        train: regular expressions; a parameter is trained if one matches the whole of its name. None trains whatever
            `build` left trainable (with LoRA: the adapters; else everything).
        start_from: run folder, checkpoint or published name whose weights to begin with. To *resume* a run use
            --ckpt_path.
        lr: peak learning rate of AdamW.
        betas, weight_decay: of AdamW; matrices decay, vectors do not.
        warmup: steps of linear warm-up; below 1 a share of all steps.
        schedule: what follows the warm-up, down to zero at the last step.
    """

    scores: tuple[str, ...] = ("weighted_f1", "accuracy", "macro_f1", "uar", "unparsed")  # of a test, logged by name
    monitor = "val/wf1"  # the larger, the better: which checkpoint becomes best.ckpt
    rows_file = "predictions.jsonl"  # where the rows of a test or prediction go
    unread_events: tuple[str, ...] = ()  # counted for samples whose clip could not be read; not all of a test may be
    # options that a published config does not hold: files of the run's machine that nobody else needs
    unpublished_options: ClassVar[tuple[str, ...]] = ("start_from", "cache")
    example_options: ClassVar[tuple[str, ...]] = ()  # those that say how many solved examples a prompt shows
    weights_elsewhere = False  # its weights all come from the runs that its arguments name; it needs no checkpoint

    def __init__(
        self,
        train: list[str] | None = None,
        start_from: str | None = None,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup: float = 0.03,
        schedule: Literal["cosine", "linear", "constant"] = "cosine",
    ) -> None:
        super().__init__()
        _check_patterns(train)
        self.patterns, self.start_from = train, start_from
        self.lr, self.betas, self.weight_decay, self.warmup, self.schedule = lr, betas, weight_decay, warmup, schedule
        if not (lr >= 0 and all(0 <= b < 1 for b in betas) and weight_decay >= 0 and warmup >= 0):  # also false for NaN
            raise ValueError(
                f"need lr >= 0, betas from 0 to below 1, weight_decay >= 0 and warmup >= 0; got {lr}, {betas}, "
                f"{weight_decay}, {warmup}"
            )
        self._built = False
        self.restored = False  # set by whoever will load a checkpoint of its own: then `start_from` is not read
        self.from_hub: set[str] = set()  # names of tensors that hold exactly what a backbone's folder holds
        self.rows: list[Prediction] = []
        self.clip_problems: dict[str, dict[str, str]] = {}  # of a test: damaged or unreadable -> file -> reason
        self.rows_before: dict[str, dict[str, Any]] = {}  # id -> row, of an interrupted prediction that goes on
        self.counts: Counter[str] = Counter()  # counted events of a test, e.g. truncated prompts

    # ---- what a system fills in
    def build(self) -> None:
        """Makes the parts with their pretrained weights, without adapters."""
        raise NotImplementedError

    def add_adapters(self) -> None:
        """Adds adapters, after ``start_from`` was loaded unless it has adapters itself (peft renames what it wraps)."""

    def after_start(self) -> None:
        """Called once the model is whole and, in a new run, holds the weights of ``start_from``."""

    def collator(self, training: bool) -> Callable:
        """A picklable (samples, rng) -> batch dict with at least ``samples`` (see `Rows`)."""
        raise NotImplementedError

    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        raise NotImplementedError

    @property
    def reads(self) -> tuple[str, ...] | None:
        """What of a sample can change the system's answer with the options it has, in the order of `READABLE`; None if
        a system does not say. Written into metrics.json; the share of the reachable score is computed from it."""
        return None

    def bases(self) -> dict[str, LLM | Vision | Audio]:
        """attribute name -> backbone whose frozen weights are not stored in checkpoints, as long as something
        identifies them (`fingerprint`; random weights of a ``shape:`` exist nowhere else, so they are stored)."""
        return {}

    # ---- weights
    def configure_model(self) -> None:
        if self._built:
            return
        self._built = True
        self.build()
        marks = {name: base.fingerprint() for name, base in self.bases().items()}  # read once per run
        self.identities = {
            name: {"path": portable_path(base.path), "revision": base.revision, "fingerprint": marks[name]}
            for name, base in self.bases().items()
            if marks[name] is not None
        }
        self.from_hub = {f"{name}.{key}" for name in self.identities for key in self.bases()[name].state_dict()}
        # a run that is resumed or evaluated has the earlier stage's weights in its own checkpoint
        start = None if self.start_from is None or self.restored else find_checkpoint(self.start_from)
        earlier = read_checkpoint(start) if start is not None else {"state_dict": {}}
        adapted = any(".lora_" in k for k in earlier["state_dict"])  # then its adapters are trained further
        if start is not None and not adapted:
            self._start(start, earlier)
        before = self._names()
        self.add_adapters()
        after = self._names()
        renamed = {old: new for key, names in before.items() for old, new in zip(names, after[key], strict=True)}
        self.from_hub = {renamed.get(name, name) for name in self.from_hub} & set(self.state_dict())
        if adapted:
            self._start(start, earlier)
        self.after_start()
        if self.patterns is not None:
            named = dict(self.named_parameters())
            for pattern in self.patterns:
                if not any(re.fullmatch(pattern, n) for n in named):
                    raise ValueError(
                        f"train pattern {pattern!r} matches no parameter; names are like {list(named)[:3]}"
                    )
            for name, parameter in named.items():
                parameter.requires_grad_(any(re.fullmatch(p, name) for p in self.patterns))
        if self.device_mesh is not None:  # Lightning's ModelParallelStrategy
            if self.device_mesh["tensor_parallel"].size() > 1:
                raise ValueError(
                    "weights are divided by FSDP2 alone, not by tensor parallelism: set "
                    "--trainer.strategy.data_parallel_size to the number of processes, and tensor_parallel_size to 1"
                )
            self.strict_loading = False  # `on_load_checkpoint` is stricter: a checkpoint leaves out what never changed
            self.shard(self.device_mesh["data_parallel"])

    def shard(self, mesh: DeviceMesh) -> None:
        """Divides the weights over processes (FSDP2). ValueError where a system cannot."""
        raise ValueError(
            f"{type(self).__name__} does not divide its weights over processes; use --trainer.strategy ddp, or "
            "deepspeed_stage_2"
        )

    def _names(self) -> dict[int, list[str]]:
        """identity of a parameter -> its names; tied weights have several."""
        names: dict[int, list[str]] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        return names

    def _start(self, path: Path, content: dict[str, Any]) -> None:
        """Loads every tensor of an earlier stage; each must have a place of the same shape here."""
        # the earlier stage's own reference is no part of what it learnt
        state = {k: v for k, v in content["state_dict"].items() if f".{REFERENCE}." not in k}
        own = self.state_dict()
        if any(".lora_" in k for k in state) and not self._adapters():
            raise ValueError(
                f"{path} holds adapters, this model has none; train them further with the same --model.lora, or merge "
                f"them first (zoo export --ckpt_path {path} --out FOLDER --merge) and start from --model.llm FOLDER"
            )
        self._check_bases(content["zoo"], path)
        self._check_adapters(content["zoo"], path)
        _check_shapes(state, own, path)
        unknown = sorted(set(state) - set(own))
        if unknown:
            raise ValueError(f"{path} holds {len(unknown)} tensors that this model lacks: {unknown[:3]} ...")
        weights.refuse_not_finite(state, path)
        state = {k: v.to(own[k].dtype) for k, v in state.items()}  # published weights may be stored in half precision
        self.from_hub -= {k for k, v in state.items() if not torch.equal(v, own[k].cpu())}  # `own` is alive
        self.load_state_dict(own | state)
        rank_zero_info(f"started from {path}: {len(state)} tensors")

    def _adapters(self) -> dict[str, dict[str, Any]]:
        """Name of each backbone that has adapters -> their settings."""
        lora = {name: getattr(base, "lora", None) for name, base in self.bases().items()}
        return {name: asdict(own) for name, own in lora.items() if own is not None}

    def pristine(self) -> set[str]:
        """Tensors that still hold exactly what the backbone's folder holds, because nothing ever trains them."""
        frozen = {n for n, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return self.from_hub & frozen

    def contract(self) -> dict[str, Any]:
        """What a checkpoint says about itself: the class, the exact names, and which base models its missing tensors
        are."""
        return {
            "format": weights.FORMAT,
            "class": f"{type(self).__module__}.{type(self).__qualname__}",
            "bases": self.identities,
            "adapters": self._adapters(),
            "pristine": _digest(self.pristine()),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        pristine = self.pristine()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in pristine}
        checkpoint["zoo"] = self.contract()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks the checkpoint against this model, then adds the backbone's own tensors, so that Lightning loads
        strictly. (Where weights are divided over processes, Lightning has loaded them already and does not show them.)
        """
        path = self.trainer.ckpt_path if self._trainer is not None else "checkpoint"
        if "zoo" not in checkpoint:
            raise ValueError(
                f"{path} was not written by the zoo: it has no contract. Published weights are converted first"
            )
        contract = weights.checked_contract(checkpoint["zoo"], path)
        model_state, divided = self.state_dict(), self.device_mesh is not None
        state = read_checkpoint(Path(path))["state_dict"] if divided else checkpoint["state_dict"]
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        if contract["class"] != name:
            raise ValueError(f"{path} holds a {contract['class']}, but the config builds a {name}")
        self._check_bases(contract, path)
        self._check_adapters(contract, path)
        _check_shapes(state, model_state, path)
        absent, unknown = set(model_state) - set(state), sorted(set(state) - set(model_state))
        missing = sorted(absent - self.pristine())
        if missing or unknown or contract["pristine"] != _digest(absent):
            raise ValueError(
                f"{path} does not fit this model: {len(missing)} tensors are missing and would stay at random values "
                f"{missing[:3]}, {len(unknown)} are unknown {unknown[:3]}. Were LoRA, train or the base model changed?"
            )
        weights.refuse_not_finite(state, path)
        self.from_hub -= set(state)  # what was stored once is stored again
        if not divided:
            checkpoint["state_dict"] = {k: state.get(k, model_state[k]) for k in model_state}

    def _check_bases(self, contract: dict[str, Any], path: object) -> None:
        for name, own in self.identities.items():
            said = contract["bases"].get(name)
            if said and said["fingerprint"] != own["fingerprint"]:
                raise ValueError(
                    f"{path} was trained on the base model {said['path']!r} (revision {said['revision']}), but "
                    f"{own['path']!r} holds other weights or another config; give its folder with --model.{name}"
                )

    def _check_adapters(self, contract: dict[str, Any], path: object) -> None:
        """The scale of an adapter stands in no tensor, so it would be wrong without a word."""
        for name, said in contract.get("adapters", {}).items():
            own = self._adapters().get(name, {})
            wrong = {k: (v, own[k]) for k, v in said.items() if k in own and k != "dropout" and own[k] != v}
            if wrong:
                told = "; ".join(f"{k} {a!r}, not {b!r}" for k, (a, b) in wrong.items())
                raise ValueError(f"{path} was trained with another LoRA on {name}: {told}; give the same --model.lora")

    # ---- training
    def configure_optimizers(self) -> dict[str, Any]:
        trained = {n: p for n, p in self.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError("nothing to train: no parameter is trainable; check `train` and `lora`")
        groups = [
            {"params": [p for p in trained.values() if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.weight_decays = [group["weight_decay"] for group in groups]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)
        total = self.optimizer_steps()
        if self.schedule != "constant" and not math.isfinite(total):
            raise ValueError(
                f"a {self.schedule} schedule needs an end: set --trainer.max_epochs or --trainer.max_steps"
            )
        warmup = self.warmup if self.warmup >= 1 else self.warmup * (total if math.isfinite(total) else 0)
        factor = learning_rate_factor(self.schedule, warmup, total)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_steps(self) -> float:
        """How many steps the run will take; infinite if nothing ends it."""
        return self.trainer.estimated_stepping_batches

    def on_train_start(self) -> None:
        """In a resumed run the optimizer's settings are the options of now, not those of the checkpoint, and the
        schedule is that of the run's present length."""
        if self.trainer.ckpt_path is None:
            return
        for config in self.trainer.lr_scheduler_configs:
            scheduler, step = config.scheduler, config.scheduler.last_epoch
            rates = [self.lr * factor(step) for factor in scheduler.lr_lambdas]
            before = [group["lr"] for group in scheduler.optimizer.param_groups]
            scheduler.base_lrs, scheduler._last_lr = [self.lr] * len(rates), list(rates)
            groups = scheduler.optimizer.param_groups
            for group, rate, weight_decay in zip(groups, rates, self.weight_decays, strict=True):
                group |= {"lr": rate, "initial_lr": self.lr, "betas": self.betas, "weight_decay": weight_decay}
            total = self.optimizer_steps()
            rank_zero_info(
                f"resumed at step {step} of {total:.0f}: learning rate {rates[0]:.3g} ({before[0]:.3g} in the "
                f"checkpoint), {self.schedule} schedule, betas {self.betas}, weight decay {self.weight_decay}"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Dropout and sampling of a step depend on (seed, epoch, batch, rank) only, so a resumed run repeats them
        exactly."""
        key = (self.trainer.datamodule.run_seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def check_finite(self, loss: Tensor, batch: dict[str, Any]) -> None:
        """FloatingPointError naming the batch if the loss is NaN or infinite; the run stops and nothing is saved as
        best."""
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.global_step}; samples: {batch['samples'].ids()}. "
                "A lower --model.lr, or --trainer.gradient_clip_val 1, usually helps"
            )

    # ---- evaluation
    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        self.val_metrics = {c: EmotionMetrics(labels) for c, labels in data.label_sets.items()}
        if not data.asked:
            for split in data.splits_of(stage):
                self._require_files(split, stage)
            split = data.splits_of(stage)[0]
            self.require(data.samples(split), split, stage)

    def needs(self, stage: str) -> Mapping[str, str]:
        """Which files of an utterance this system reads (``video``, ``audio``) -> the option that does without. A split
        in which no sample has such a file is refused before any work: its scores would be those of an empty input."""
        return {}

    def has_file(self, sample: Sample, part: str) -> bool:
        """Whether a sample has a file that this system may read as its ``video`` or ``audio``."""
        return getattr(sample.target, part) is not None

    def _require_files(self, split: str, stage: str) -> None:
        data = self.trainer.datamodule
        for part, otherwise in self.needs(stage).items():
            if any(self.has_file(s, part) for s in data.samples(split)):
                continue
            corpus, root = type(data).__name__, getattr(data, "root", None)
            what = "a clip or picture (video)" if part == "video" else "a clip or recording (audio)"
            where = "give the folder that holds the files (--data.root)"
            if root is not None:
                where = f"the folder {root} has none where its reader looks (--data.help {corpus} says where)"
            raise ValueError(
                f"no {split} sample of {corpus} has {what}, so {type(self).__name__} would read nothing; {where}"
                + (f", or {otherwise}" if otherwise else "")
            )

    def require(self, samples: Sequence[Sample], split: str, stage: str) -> None:
        """Raises ValueError if a split as a whole lacks what the system reads: clips, words, descriptions. Called
        before any work with the first split of the stage; never for the single samples of `zoo label`, which may lack
        it."""

    def on_validation_start(self) -> None:
        self.counts = Counter()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.judge(batch["samples"], self.predict(batch))

    def judge(self, samples: Rows, predictions: Sequence[Prediction]) -> None:
        """Counts the predictions of a validation batch."""
        by_corpus: dict[str, tuple[list[int], list[int]]] = {}
        for sample, p in zip(samples, predictions, strict=True):
            said, true = by_corpus.setdefault(sample.labels.corpus, ([], []))
            said.append(_predicted_index(sample, p))
            true.append(sample.label)
        for corpus, (said, true) in by_corpus.items():
            self.val_metrics[corpus].to(self.device).update(
                torch.tensor(said, device=self.device), torch.tensor(true, device=self.device)
            )

    def on_validation_epoch_end(self) -> None:
        # with --trainer.limit_val_batches a corpus of a joint run may not have been met at all
        met = {c: m for c, m in self.val_metrics.items() if m.update_called or self.trainer.world_size > 1}
        results = {} if self.trainer.sanity_checking else {c: m.compute() for c, m in met.items()}
        for m in self.val_metrics.values():
            m.reset()
        if not results:
            return
        short = {"weighted_f1": "wf1", "accuracy": "acc", "macro_f1": "macro_f1", "uar": "uar", "unparsed": "unparsed"}
        for key, name in short.items():  # over several corpora: their plain mean, each beside it
            values = {c: float(r[key]) for c, r in results.items()}
            self.log(f"val/{name}", sum(values.values()) / len(values), prog_bar=name == "wf1", sync_dist=False)
            if len(values) > 1:
                self.log_dict({f"val/{c}/{name}": v for c, v in values.items()})
        whole = self.trainer.world_size == 1 and self.trainer.limit_val_batches == 1.0
        if whole and (problem := self._nothing_read(len(self.trainer.datamodule.samples("dev")), self.counts, "fit")):
            if self.trainer.state.fn == "validate":
                raise ValueError(problem)
            log.warning("the validation scores mean nothing: %s", problem)

    def _nothing_read(self, n: int, counts: Mapping[str, int], stage: str = "test") -> str | None:
        """What is wrong if not a single one of n samples had a clip that could be read."""
        if n and self.needs(stage) and any(counts[event] >= n for event in self.unread_events):
            return (
                f"not one of the {n} samples has a clip that {type(self).__name__} could read; `zoo prepare media "
                "--root DIR` lists what is wrong with each"
            )
        return None

    def note_clips(self, batch: Mapping[str, Any]) -> None:
        """Remembers which files of a batch could not be read, or not whole."""
        for row in batch.get("clip_problems", ()):
            self.clip_problems.setdefault(row["problem"], {})[row["file"]] = row["reason"]

    def _clip_report(self) -> dict[str, dict[str, str]]:
        """``damaged`` (what decodes of them was used) and ``unreadable`` files of all processes -> the reason."""
        problems: dict[str, dict[str, str]] = {}
        for part in self._of_all_processes(self.clip_problems):
            for problem, files in part.items():
                problems.setdefault(problem, {}).update(files)
        for problem, files in problems.items():
            what = "cut off or damaged, what decodes of them was used" if problem == "damaged" else problem
            some = "; ".join(f"{name}: {why}" for name, why in list(files.items())[:5])
            rank_zero_warn(f"{len(files)} clips were {what}: {some}{' ...' if len(files) > 5 else ''}")
        return {problem: dict(sorted(files.items())) for problem, files in sorted(problems.items())}

    def on_test_start(self) -> None:
        self.rows, self.counts, self.clip_problems = [], Counter(), {}
        self._tokens = 0  # of prompts, padding left out
        self._started = time.perf_counter()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.rows += self.predict(batch)
        self.note_clips(batch)
        self.counts["prompts cut to max_length"] += batch.get("truncated", 0)
        self._tokens += int(batch["mask"].sum()) if "mask" in batch else 0

    def on_test_epoch_end(self) -> None:
        seconds = time.perf_counter() - self._started
        rows = [p.row() for p in self._gathered()]
        counts: Counter[str] = sum(self._of_all_processes(self.counts), Counter())
        clips = self._clip_report()
        if problem := self._nothing_read(len(rows), counts):
            raise ValueError(problem)
        if not self.trainer.is_global_zero:
            return
        data, run = self.trainer.datamodule, self._write_predictions(rows)
        summary = self.summary(rows, run)
        record = {
            "split": "test",
            "corpus": "+".join(data.label_sets),
            "eval_protocol": data.protocol,
            **summary,
            "population": self._population(len(rows)),
            "events": {k: v for k, v in counts.items() if v},
            **({"clips": clips} if clips else {}),
            "seconds_per_sample": seconds / max(1, len(rows)),
            "tokens_per_sample": self._tokens / max(1, len(self.rows)) or None,
            "batch_size": data.eval_batch_size,
            "reads": self.reads,
            "model": f"{type(self).__module__}.{type(self).__qualname__}",
            "seed": data.run_seed,
            "parameters": sum(p.numel() for p in self.parameters()),
            "trainable_parameters": sum(p.numel() for p in self.parameters() if p.requires_grad),
            "checkpoint": portable_path(str(self.trainer.ckpt_path)) if self.trainer.ckpt_path else None,
            **provenance(),
        }
        text = json.dumps(portable(record), indent=2)
        text = re.sub(r"\[[^\[\]{}]*\]", lambda m: " ".join(m[0].split()), text)  # a row of numbers on one line
        write_whole(run / "metrics.json", text + "\n")
        scores = {key: summary[key] for key in self.scores if key in summary}
        for key, value in scores.items():
            self.log(f"test/{'wf1' if key == 'weighted_f1' else key}", value, rank_zero_only=True)
        if not all(map(math.isfinite, scores.values())):
            raise FloatingPointError(f"the scores are not finite: {summary}")

    def _population(self, scored: int) -> dict[str, Any]:
        """What ``metrics.json`` says about the samples of the test split and how many of them were scored."""
        report = self.trainer.datamodule.reading("test").report()
        left_out = report["n_used"] - scored
        if left_out:
            report["notes"] = report["notes"] | {"left out by --trainer.limit_test_batches": left_out}
        return report | {"n_used": scored}

    def summary(self, rows: Sequence[Mapping[str, Any]], run: Path) -> dict[str, Any]:
        """What ``metrics.json`` says about the rows of ``predictions.jsonl``; pictures go into the run folder."""
        found = {}
        sets = self.trainer.datamodule.label_sets
        for corpus, labels in sets.items():
            found[corpus] = evaluate([r for r in rows if r["id"].startswith(f"{corpus}/")], labels)
            picture = "confusion.png" if len(sets) == 1 else f"confusion_{corpus}.png"
            confusion_picture(found[corpus], labels, run / picture, f"{type(self).__name__} on {corpus} test")
        if len(found) == 1:
            return next(iter(found.values()))
        return {
            "n": len(rows),
            **{
                k: float(np.mean([s[k] for s in found.values()]))
                for k in self.scores
                if all(k in s for s in found.values())  # some corpora may lack a score of a system's own
            },
            "aggregation": "plain mean over corpora",
            "corpora": found,
        }

    def on_predict_start(self) -> None:
        self.rows, self.counts, self.clip_problems = [], Counter(), {}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """(B,) label indices, -1 = unparsed; the full rows are written to ``predictions.jsonl`` of the run."""
        predictions = self.predict(batch)
        self.note_clips(batch)
        self.rows += predictions
        return torch.tensor([_predicted_index(s, p) for s, p in zip(batch["samples"], predictions, strict=True)])

    def on_predict_epoch_end(self) -> None:
        predictions = self._gathered()
        counts: Counter[str] = sum(self._of_all_processes(self.counts), Counter())
        self._clip_report()
        if not self.trainer.datamodule.asked and (problem := self._nothing_read(len(predictions), counts)):
            raise ValueError(problem)
        rows = list((self.rows_before | {p.id: p.row() for p in predictions}).values())
        if self.trainer.is_global_zero:
            self._write_predictions(rows)

    def _write_predictions(self, rows: list[dict[str, Any]]) -> Path:
        """Writes the rows in the corpus' own order, after setting earlier results aside; returns the run folder."""
        run = run_folder(self.trainer)
        run.mkdir(parents=True, exist_ok=True)
        moved = set_aside_results(run)
        if moved:
            rank_zero_info(f"the results of an earlier test were moved to {moved}")
        data = self.trainer.datamodule
        samples = data.to_predict() if self.trainer.state.fn == "predict" else data.samples("test")
        place = {s.id: i for i, s in enumerate(samples)}
        write_jsonl(run / self.rows_file, sorted(rows, key=lambda r: place[r["id"]]))
        return run

    def _gathered(self) -> list[Prediction]:
        """The predictions of all processes."""
        return [p for part in self._of_all_processes(self.rows) for p in part]

    def _of_all_processes(self, value: Any) -> list[Any]:
        """This value of every process, in their order."""
        if self.trainer.world_size == 1:
            return [value]
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, value)
        return parts


def learning_rate_factor(
    kind: Literal["cosine", "linear", "constant"], warmup: float, total: float
) -> Callable[[int], float]:
    """Step -> what the peak learning rate is multiplied by: a linear rise, then down to 0 at the last step.

    A function, not an object: a scheduler would store an object's fields in the checkpoint, and a resumed run would get
    the length of the run before back.

    Args:
        kind: what follows the rise; ``constant`` stays at 1.
        warmup: steps of the rise.
        total: steps of the run.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup if warmup >= 1 else 1.0
        if kind == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / max(1.0, total - warmup))
        return 1 - done if kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    return factor


class Rows:
    """The samples of a batch. Not a tuple: Lightning moves and converts batches by rebuilding tuples and dataclasses,
    and leaves alone what it does not know."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = tuple(samples)

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def ids(self) -> list[str]:
        return [s.id for s in self]


@dataclass
class PromptCollator:
    """Input processing of a prompted language model: samples -> padded token ids.

    The batch holds ``input_ids`` (B, T) int64, ``mask`` (B, T) bool, ``target_ids`` (B, T) int64 (-100 = no loss; in
    training only), ``answer`` (B, T) bool (True on answer tokens; in training only), ``samples`` (Rows) and
    ``truncated`` (int, prompts that lost turns, examples or their beginning to ``max_length``). Prompts are padded on
    the left.

    Args:
        pool: labelled samples that solved examples are drawn from.
        word_dropout: share of the words of the target utterance left out in training.
        chat: the prompt is a user's message in the tokenizer's chat format, and the answer begins the assistant's
            turn. False: plain text, which the answer goes on with.
        system: system message in front of a chat; None: none.
    """

    tokenizer: Any
    pad_id: int
    template: Template
    window: int
    kinds: tuple[str, ...]
    verbalizer: Mapping[str, str] | None
    max_length: int
    training: bool
    shots: int = 0
    pool: Sequence[Sample] = field(default_factory=tuple)
    word_dropout: float = 0.0
    examples_seed: int = 0
    chat: bool = False
    system: str | None = None
    _labelled: dict[str, dict[int, list[Sample]]] = field(default_factory=dict, init=False)  # corpus -> label -> pool

    def length(self, sample: Sample) -> int:
        """Characters that vary between samples; only the order matters."""
        window = sample.history[max(0, len(sample.history) - self.window) :] if self.window else ()
        return sum(
            len(t.text) + sum(len(t.descriptions.get(k, "")) for k in self.kinds) for t in (*window, sample.target)
        )

    def examples(self, sample: Sample, rng: np.random.Generator) -> list[Sample]:
        """Solved examples of the sample's corpus, as many labels as possible, in random order, never the sample itself
        nor a turn of its dialogue. In evaluation all samples of a corpus see the same ones.

        Raises:
            ValueError: the pool has no other labelled dialogue of this corpus.
        """
        if not self.shots:
            return []
        if not self._labelled:
            for s in self.pool:
                if s.target.label is not None:
                    self._labelled.setdefault(s.labels.corpus, {}).setdefault(s.label, []).append(s)
        by_label = self._labelled.get(sample.labels.corpus, {})
        chosen: list[Sample] = []
        while len(chosen) < self.shots:
            before = len(chosen)
            for label in rng.permutation(sorted(by_label)):
                same = by_label[label]
                start = int(rng.integers(len(same)))
                ring = (same[(start + i) % len(same)] for i in range(len(same)))
                pick = next((s for s in ring if s.dialogue != sample.dialogue), None)
                chosen += [pick] if pick else []
            if len(chosen) == before:
                raise ValueError(
                    f"no solved examples for {sample.id}: the training split holds no other labelled dialogue of "
                    f"{sample.labels.corpus}; set --model.shots 0 or give more data"
                )
        return [chosen[i] for i in rng.permutation(self.shots)]

    def messages(self, text: str) -> list[dict[str, str]]:
        """The messages of a chat whose last one is the rendered prompt ``text``, without the system message."""
        return [{"role": "user", "content": text}]

    def written_chat(self, text: str) -> str:
        """The chat of a rendered prompt, up to where the answer begins. See `chat_text`."""
        return chat_text(self.tokenizer, self.messages(text), self.system)

    def chat_ids(self, text: str) -> list[int]:
        """Token ids of the chat of a rendered prompt."""
        return self.tokenizer(self.written_chat(text), add_special_tokens=False)["input_ids"]

    def tokenise(self, text: str) -> list[int]:
        """Token ids of a rendered prompt."""
        ids = self.chat_ids(text) if self.chat else self.tokenizer(text)["input_ids"]
        if ids and ids[-1] == self.tokenizer.eos_token_id and not text.endswith(self.tokenizer.eos_token):
            ids = ids[:-1]  # a tokenizer that closes every text would end the prompt before the answer
        return ids

    def prompt_ids(
        self, sample: Sample, rng: np.random.Generator, shown: Mapping[str, str] | None = None
    ) -> tuple[list[int], bool]:
        """Token ids of the prompt, and whether anything had to be left out.

        Args:
            shown: further variables of the template.
        """
        if self.training and self.word_dropout:
            kept = [w for w in sample.target.text.split() if rng.random() >= self.word_dropout]
            if kept:
                target = type(sample.target)(**{**vars(sample.target), "text": " ".join(kept)})
                sample = type(sample)(**{**vars(sample), "target": target})
        examples = self.examples(sample, rng if self.training else np.random.default_rng(self.examples_seed))
        said = words(sample.labels, self.verbalizer)
        window, cut = self.window, False
        while True:
            text = render(
                self.template,
                sample,
                window=window,
                kinds=self.kinds,
                said=said,
                examples=examples,
                verbalizer=self.verbalizer,
                shown=shown or {},
            )
            ids = self.tokenise(text)
            if len(ids) <= self.max_length:
                return ids, cut
            cut = True
            if window > 0:
                window = min(window, len(sample.history)) - 1
            elif examples:
                examples = examples[1:]
            else:
                return self.cut(text, ids), cut

    def cut(self, text: str, ids: list[int]) -> list[int]:
        """A prompt without the beginning of what it says, so that it has `max_length` tokens."""
        if not self.chat:
            return ids[:1] + ids[1 - self.max_length :]  # the beginning-of-text token, then the end
        own = self.tokenizer(text, add_special_tokens=False)["input_ids"]  # not the system message
        shorter = self.chat_ids(self.tokenizer.decode(own[len(ids) - self.max_length :]))
        return shorter[-self.max_length :]  # what is written again may be a token longer

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> dict[str, Any]:
        return self.batch(samples, [self.prompt_ids(s, rng) for s in samples], rng)

    def batch(
        self, samples: Sequence[Sample], written: Sequence[tuple[list[int], bool]], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Prompts (token ids, and whether they were cut) and, in training, answers as one padded batch."""
        prompts, cuts = zip(*written, strict=True)
        content: dict[str, Any] = {"samples": Rows(samples), "truncated": sum(cuts)}
        answers: list[list[int]] = [[] for _ in samples]
        if self.training:
            for s, answer in zip(samples, answers, strict=True):
                answer += self.target_ids(s, rng)
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.full((len(samples), length), self.pad_id)
        mask = torch.zeros(len(samples), length, dtype=torch.bool)
        answer_mask = torch.zeros_like(mask)
        for i, (p, a) in enumerate(zip(prompts, answers, strict=True)):
            ids[i, length - len(p) - len(a) :] = torch.tensor(p + a)
            mask[i, length - len(p) - len(a) :] = True
            answer_mask[i, length - len(a) :] = bool(a)
        content |= {"input_ids": ids, "mask": mask}
        if self.training:
            content |= {"target_ids": ids.masked_fill(~mask, IGNORE), "answer": answer_mask}
        return content

    def target_ids(self, sample: Sample, rng: np.random.Generator) -> list[int]:
        """Tokens to be learnt after the prompt: the label word and the end token; none without a label."""
        if sample.target.label is None:
            return []
        word = words(sample.labels, self.verbalizer)[sample.label]
        return answer_ids(self.tokenizer, word, self.chat) + [self.tokenizer.eos_token_id]


def prompt_reads(
    template: Template, window: int, kinds: Sequence[str], variables: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Which of text, turns and descriptions a prompt shows: those without which the template writes another text.

    Args:
        window, kinds: as `zoo.prompts.render` takes them.
        variables: values of the template's other variables; ``shown`` of `zoo.prompts.render`.
    """
    described = dict.fromkeys(kinds, "a description")
    earlier = Turn("earlier", "A", "an earlier turn", descriptions=described)
    target = Turn("target", "B", "the utterance", descriptions=described)
    whole = Sample("sample", "dialogue", Labels("any", ("one", "other")), target, (earlier,))
    without = {
        "text": replace(whole, target=replace(target, text="")),
        "turns": replace(whole, history=()),
        "descriptions": replace(
            whole, target=replace(target, descriptions={}), history=(replace(earlier, descriptions={}),)
        ),
    }

    def text(sample: Sample) -> str:
        return render(template, sample, window=window, kinds=kinds, said=sample.labels.names, shown=variables)

    return tuple(part for part, bare in without.items() if text(bare) != text(whole))


def readable_parts(parts: Iterable[str]) -> tuple[str, ...]:
    """Parts of a sample in the order of `READABLE`."""
    names = set(parts)
    return tuple(part for part in READABLE if part in names)


def note_control_tokens(data: Any, split: str) -> None:
    """Says, and writes down for ``metrics.json``, how many utterances of a split hold chat-template tokens."""
    samples = data.samples(split)
    control = count_control_tokens(samples)
    if control:
        log.warning(
            "%d of %d %s utterances hold chat-template tokens; they are written apart in the prompt",
            control,
            len(samples),
            split,
        )
        data.reading(split).notes["utterances with chat-template tokens, written apart"] = control


def require_descriptions(samples: Sequence[Sample], kinds: Sequence[str], split: str) -> None:
    """ValueError naming the kind of description that not a single sample of the split has."""
    for kind in kinds:
        if not any(kind in s.target.descriptions for s in samples):
            held = sorted({k for s in samples for k in s.target.descriptions})
            raise ValueError(
                f"no {split} sample has a description of kind {kind!r}; the data has {held or 'none'}. "
                "Give the description files with --data.descriptions"
            )


def answer_ids(tokenizer: Any, word: str, chat: bool = False) -> list[int]:
    """Tokens of `` word`` as they stand after a colon: training and scoring agree, and sentencepiece adds no second
    space. In a ``chat`` the answer begins a line."""
    if chat:
        return tokenizer(word, add_special_tokens=False)["input_ids"]
    before, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (":", f": {word}"))
    if whole[: len(before)] != before:
        raise ValueError(
            f"this tokenizer merges ':' with what follows ({word!r}); answers cannot be separated from prompts"
        )
    return whole[len(before) :]


def fitting_length(llm: LLM, max_length: int, answer: int) -> int:
    """Longest prompt in tokens: ``max_length``, or what the model's positions leave beside an answer; then says so.

    Args:
        answer: tokens of the longest answer.

    Raises:
        ValueError: the answer alone takes all positions.
    """
    positions = getattr(getattr(llm.causal_lm, "config", None), "max_position_embeddings", None)
    if not isinstance(positions, int) or max_length + answer <= positions:
        return max_length
    if positions - answer < 2:
        raise ValueError(
            f"{llm.path} has {positions} positions, and an answer may take {answer} of them, which leaves no room for "
            "a prompt; lower --model.max_new_tokens"
        )
    if max_length > positions:  # else only the room of the answer is missing
        rank_zero_info(
            f"{llm.path} has {positions} positions: prompts of more than {positions - answer} tokens are cut, as an "
            f"answer may take {answer} (--model.max_length {max_length})"
        )
    return positions - answer


def has_chat_format(tokenizer: Any) -> bool:
    """Whether a tokenizer (or None) has a chat format (``chat_template``)."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, str]], system: str | None) -> str:
    """A chat as text in the tokenizer's format, up to where the assistant's next turn begins.

    Args:
        messages: ``role`` (user or assistant) and ``content`` of each turn, oldest first.
        system: system message in front of them, or None.

    Raises:
        ValueError: the tokenizer has no chat format.
    """
    if not has_chat_format(tokenizer):
        raise ValueError(
            "chat needs a tokenizer with a chat format (chat_template); set --model.chat false, and --model.system null"
        )
    first = [] if system is None else [{"role": "system", "content": system}]
    return tokenizer.apply_chat_template([*first, *messages], tokenize=False, add_generation_prompt=True)


class Prompted(EmotionModule):
    """Base of the systems that ask a language model, ``llm``: how a prompt is handed to it.

    Args:
        chat: write every prompt as a user's message in the chat format of the model's folder (``chat_template``), the
            answer as the assistant's turn. None: wherever the folder has such a format, because an instruct model is
            trained on nothing else. false: as plain text that the model goes on with; configs of papers that prescribe
            plain text say so, since base models may have a chat format, too.
        system: system message of the chat, which `chat` then is; None: none.
    """

    llm: LLM

    def __init__(self, chat: bool | None = None, system: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if system is not None and chat is False:
            raise ValueError(
                "a system message is part of a chat, but chat is false; set --model.chat true or --model.system null"
            )
        self.chat, self.system = True if system is not None else chat, system
        self._unreadable: list[str] | None = []  # written answers so far, all unreadable; None once one was readable

    @property
    def chats(self) -> bool:
        """Whether prompts are chats."""
        return has_chat_format(self.llm.tokenizer) if self.chat is None else self.chat

    def answer_ids(self, text: str) -> list[int]:
        """Tokens of an answer as it stands behind a prompt."""
        return answer_ids(self.llm.tokenizer, text, self.chats)

    def contract(self) -> dict[str, Any]:
        return super().contract() | {"chat": self.chats}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also refuses weights that were trained with the other form of prompt, unless `chat` says which is wanted."""
        # before `chat` was recorded, a prompt was a chat only where the config said so, and then `chat` is not None
        trained = checkpoint.get("zoo", {}).get("chat", False)
        if self.chat is None and trained != self.chats:
            form, other = ("chats", "plain text") if trained else ("plain text", "chats")
            raise ValueError(
                f"the prompts of this checkpoint were {form}, but with the tokenizer in {self.llm.path} they would be "
                f"{other}; give --model.chat {json.dumps(trained)} to keep them as they were trained"
            )
        super().on_load_checkpoint(checkpoint)

    # ---- answers that say nothing
    def readable(self, prediction: Prediction) -> bool:
        """Whether a written answer could be read."""
        return prediction.predicted is not None

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._unreadable = []

    def on_test_start(self) -> None:
        super().on_test_start()
        self._unreadable = []

    def judge(self, samples: Rows, predictions: Sequence[Prediction]) -> None:
        super().judge(samples, predictions)
        self.watch_answers(predictions)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        before = len(self.rows)
        super().test_step(batch, batch_idx)
        self.watch_answers(self.rows[before:])

    def watch_answers(self, predictions: Sequence[Prediction]) -> None:
        """Warns once, with two of them, if not one of the first `FIRST_ANSWERS` written answers can be read."""
        if self._unreadable is None:
            return
        written = [p for p in predictions if p.text is not None and p.label is not None]
        if any(self.readable(p) for p in written):
            self._unreadable = None
            return
        self._unreadable += [p.text for p in written]
        if len(self._unreadable) >= FIRST_ANSWERS:
            log.warning(
                "none of the first %d answers could be read. %s",
                len(self._unreadable),
                self.two_answers(self._unreadable),
            )
            self._unreadable = None

    def two_answers(self, answers: Sequence[str]) -> str:
        """Two answers that fail, and what may be the reason, for a warning."""
        some = " and ".join(repr(text[:200]) for text in list(dict.fromkeys(answers))[:2])
        form = f"The prompts are {'chats' if self.chats else 'plain text'} (--model.chat)"
        return f"For example: {some}. {form}; does the template (--model.template) say which words are wanted?"


class Supervised(Prompted):
    """A language model that answers a prompt with a label word, trained by next-token cross-entropy.

    Args:
        llm: folder, published name (e.g. ``tiny-llama``) or hub id of the language model.
        dtype: dtype of its weights.
        revision: hub revision to pin.
        attention: attention implementation.
        gradient_checkpointing: recompute activations in the backward pass.
        lora: adapters on the frozen language model; None trains all of it.
        template: prompt template, a name from the paper's ``templates/`` or a file.
        window: earlier turns shown.
        descriptions: kinds of description shown, e.g. ``[video]``; the corpus must provide them.
        shots: solved examples in the prompt, drawn from the training split.
        verbalizer: label -> word the model says, where it differs.
        max_length: prompts longer than this many tokens, or than the model's positions leave beside an answer, lose old
            turns, then examples, then their beginning; counted.
        prompt_loss: weight of the prompt's own tokens in the loss; 0 trains on the answer alone, 1 on the whole text.
        class_weight: exponent p of class weights n^-p in the answer's loss; 0 = none, 1 = fully balanced.
        word_dropout: share of words of the utterance left out in training (ours).
        dropout: on the language model's input embeddings and last hidden states in training (ours; LLaMA itself has
            none).
        decode: ``score`` compares the log-probabilities of the label words, ``greedy`` and ``beam`` generate and parse.
        beams, repetition_penalty: for ``beam``.
        max_new_tokens: for ``greedy`` and ``beam``.
    """

    example_options = ("shots",)

    templates = Path(__file__).parent / "models"

    def __init__(
        self,
        llm: str,
        dtype: Dtype = "float32",
        revision: str | None = None,
        attention: Literal["sdpa", "eager"] = "sdpa",
        gradient_checkpointing: bool = False,
        lora: LoRA | None = None,
        template: str = "default",
        window: int = 0,
        descriptions: list[str] | None = None,
        shots: int = 0,
        verbalizer: dict[str, str] | None = None,
        max_length: int = 1024,
        prompt_loss: float = 0.0,
        class_weight: float = 0.0,
        word_dropout: float = 0.0,
        dropout: float = 0.0,
        decode: Literal["score", "greedy", "beam"] = "score",
        beams: int = 4,
        repetition_penalty: float = 1.0,
        max_new_tokens: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if window < 0 or shots < 0 or max_length < 2 or not 0 <= word_dropout < 1 or prompt_loss < 0:
            raise ValueError(
                f"need window >= 0, shots >= 0, max_length >= 2, 0 <= word_dropout < 1 and prompt_loss >= 0; got "
                f"{window}, {shots}, {max_length}, {word_dropout}, {prompt_loss}"
            )
        if beams < 1 or max_new_tokens < 1 or not 0 < repetition_penalty < math.inf or not 0 <= dropout < 1:
            raise ValueError(
                "need beams >= 1, max_new_tokens >= 1, repetition_penalty > 0 and 0 <= dropout < 1; got "
                f"{beams}, {max_new_tokens}, {repetition_penalty} and {dropout}"
            )
        if not (math.isfinite(class_weight) and class_weight >= 0 and math.isfinite(prompt_loss)):
            raise ValueError(f"need finite class_weight >= 0 and prompt_loss; got {class_weight} and {prompt_loss}")
        self.llm_args = {
            "path": llm,
            "dtype": dtype,
            "revision": revision,
            "attention": attention,
            "gradient_checkpointing": gradient_checkpointing,
        }
        self.lora = lora
        self.template = load_template(template, self.templates)
        self.window, self.descriptions, self.shots = window, tuple(descriptions or ()), shots
        self.verbalizer, self.max_length = verbalizer, max_length
        self.prompt_loss, self.class_weight, self.word_dropout = prompt_loss, class_weight, word_dropout
        self.dropout = nn.Dropout(dropout)
        self.decode, self.beams, self.repetition_penalty, self.max_new_tokens = (
            decode,
            beams,
            repetition_penalty,
            max_new_tokens,
        )

    template_variables: Mapping[str, Any] = {}  # of a system, beyond those of every template; without content

    @property
    def reads(self) -> tuple[str, ...] | None:
        return prompt_reads(self.template, self.window, self.descriptions, self.template_variables)

    # ---- parts
    def build(self) -> None:
        self.llm = LLM(**self.llm_args)
        if self.llm.tokenizer is not None and self.llm.tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer in {self.llm.path} names no end-of-text token, so no answer could end; "
                "set eos_token in its tokenizer_config.json"
            )
        self.max_length = fitting_length(self.llm, self.max_length, max(self.max_new_tokens, LABEL_TOKENS))

    def add_adapters(self) -> None:
        if self.lora is not None:
            self.llm.add_lora(self.lora)

    def bases(self) -> dict[str, LLM]:
        return {"llm": self.llm}

    def collator(self, training: bool) -> PromptCollator:
        pool = self.trainer.datamodule.samples("train") if self.shots else ()
        return PromptCollator(
            self.llm.tokenizer,
            self.llm.pad_id,
            self.template,
            self.window,
            self.descriptions,
            self.verbalizer,
            self.max_length,
            training,
            self.shots,
            pool,
            self.word_dropout,
            self.trainer.datamodule.run_seed,
            self.chats,
            self.system,
        )

    def shows(self, sample: Sample) -> bool:
        """Whether a prompt says anything about its sample."""
        return bool(sample.target.text or set(self.descriptions) & set(sample.target.descriptions))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule
        for labels in data.label_sets.values():
            words(labels, self.verbalizer)  # two labels with one word: say so before any work
        split = data.splits_of(stage)[0]
        note_control_tokens(data, split)
        if stage == "fit" and self.class_weight:
            samples = data.samples(split)
            self.weights = {
                c: class_weights([s.label for s in samples if s.labels.corpus == c], len(labels), self.class_weight)
                for c, labels in data.label_sets.items()
            }

    def require(self, samples: Sequence[Sample], split: str, stage: str) -> None:
        super().require(samples, split, stage)
        if not any(self.shows(s) for s in samples):
            message = (
                f"no {split} sample of {type(self.trainer.datamodule).__name__} has words, so every prompt is the "
                "same; use a system that reads pictures or voices, or show descriptions (--model.descriptions, "
                "--data.descriptions)"
            )
            if stage == "fit":
                raise ValueError(message)
            log.warning(message)
        require_descriptions(samples, self.descriptions, split)

    def embedded(self, batch: dict[str, Any]) -> Tensor:
        """(B, T, D) input embeddings of a batch."""
        return self.llm.embed(batch["input_ids"])

    def encode(self, batch: dict[str, Any]) -> Prefix:
        """The prompts of a batch. ``positions`` (3, B, T), if a batch has them, see `LLM.encode`."""
        return self.llm.encode(self.embedded(batch), batch["mask"], positions=batch.get("positions"))

    # ---- training
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.check_finite(loss, batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["samples"]))
        return loss

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Weighted mean of -log p over tokens: answer tokens weigh their class weight, prompt tokens
        ``prompt_loss``."""
        targets = batch["target_ids"][:, 1:]
        weight = batch["answer"][:, 1:].float()
        if self.class_weight:
            per_sample = torch.tensor(
                [self.weights[s.labels.corpus][s.label] if s.label >= 0 else 1.0 for s in batch["samples"]]
            )
            weight = weight * per_sample.to(weight)[:, None]
        if self.prompt_loss:
            weight = torch.where(batch["answer"][:, 1:], weight, self.prompt_loss)
        weight = weight * ((targets != IGNORE) & batch["mask"][:, :-1])
        chosen = weight > 0  # only these positions reach the vocabulary
        embedded, positions = self.dropout(self.embedded(batch)), batch.get("positions")
        hidden = self.llm.hidden(embedded, batch["mask"], positions=positions)[:, :-1][chosen]  # (N, D)
        token_loss = cross_entropy(self.llm.head(self.dropout(hidden)), targets[chosen], reduction="none")
        return (token_loss * weight[chosen]).sum() / weight.sum().clamp(min=1e-9)

    # ---- answers
    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        samples: Rows = batch["samples"]
        if self.decode == "score":
            return label_scores(self.llm, self.encode(batch), samples, self.candidates)
        if self.decode == "beam":
            texts = self.llm.beam(
                batch["input_ids"],
                batch["mask"],
                beams=self.beams,
                max_new_tokens=self.max_new_tokens,
                repetition_penalty=self.repetition_penalty,
            )
        else:
            prefix = self.encode(batch)
            answers = self.llm.sample(prefix, 1, max_new_tokens=self.max_new_tokens, temperature=0.0)
            texts = [
                self.llm.tokenizer.decode(i[m], skip_special_tokens=True)
                for i, m in zip(answers.ids[:, 0], answers.mask[:, 0], strict=True)
            ]
        return [
            Prediction(s.id, s.dialogue, s.target.label, self.read_answer(s, text), text=text)
            for s, text in zip(samples, texts, strict=True)
        ]

    def read_answer(self, sample: Sample, text: str) -> str | None:
        """Label word of an answer, or None if it is unreadable."""
        index = parse_label(text, words(sample.labels, self.verbalizer))
        return None if index is None else sample.labels.names[index]

    def candidates(self, labels: Labels) -> list[list[int]]:
        """Tokens of each label word as an answer."""
        return [self.answer_ids(word) for word in words(labels, self.verbalizer)]


@torch.no_grad()
def label_scores(
    llm: LLM, prefix: Prefix, samples: Rows, candidates: Callable[[Labels], Sequence[Sequence[int]]]
) -> list[Prediction]:
    """Each sample's answer is the most probable of its own corpus' labels; batches may mix corpora, which share the
    computed prompt but not their candidates (one corpus' word may begin another's)."""
    scores: dict[str, Tensor] = {}  # corpus -> (B, L)
    sets = {s.labels.corpus: s.labels for s in samples}
    if len(sets) > 1:
        llm.prefill(prefix)
    for labels in sets.values():
        scores[labels.corpus] = llm.score(prefix, candidates(labels))
    if not all(torch.isfinite(s).all() for s in scores.values()):
        raise FloatingPointError(f"the scores of {samples.ids()} are not finite: the training diverged")
    predictions = []
    for i, s in enumerate(samples):
        p = torch.softmax(scores[s.labels.corpus][i].double(), 0).tolist()
        rounded = {name: round(x, 6) for name, x in zip(s.labels.names, p, strict=True)}
        best = s.labels.names[int(np.argmax(p))]
        predictions.append(Prediction(s.id, s.dialogue, s.target.label, best, scores=rounded))
    return predictions


def _predicted_index(sample: Sample, prediction: Prediction) -> int:
    return UNPARSED if prediction.predicted is None else sample.labels.index(prediction.predicted)


def class_weights(labels: Sequence[int], classes: int, power: float) -> list[float]:
    """n^-power per class, scaled so that the mean over samples is 1; a class that never occurs gets the largest
    weight."""
    counts = np.bincount([x for x in labels if x >= 0], minlength=classes).astype(float)
    weights = np.maximum(counts, 1.0) ** -power
    return (weights * counts.sum() / (weights * counts).sum()).tolist()


def _check_patterns(patterns: Sequence[str] | None) -> None:
    for pattern in patterns or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"train pattern {pattern!r} is no regular expression ({error}); correct it") from error


def _check_shapes(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: object) -> None:
    wrong = [
        f"{k} is {tuple(v.shape)}, expected {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and v.shape != own[k].shape
    ]
    if wrong:
        raise ValueError(
            f"{path} has {len(wrong)} tensors of another shape (another LoRA rank or base model?): "
            + "; ".join(wrong[:3])
        )


def _digest(names: set[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


@rank_zero_only
def provenance() -> dict[str, Any]:
    """What produced a number: commit of the zoo (with ``+`` if the tree was changed) and versions."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    versions = {name: version(name) for name in ("torch", "lightning", "transformers", "peft")}
    return {
        "git": (commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")) or None,
        "versions": versions | {"python": platform.python_version()},
    }
