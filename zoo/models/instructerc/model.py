"""InstructERC: emotion recognition in conversation as an instruction to a language model (Lei et al. 2023).

arXiv 2309.11911; text alone.

The model reads the dialogue up to the utterance and answers with the label word. Two auxiliary tasks teach it about
people: in a first stage it learns who says an utterance (``task: speaker``); in the second, beside the emotion itself,
what the emotion of the next speaker will be, from the history alone (emotion impact; ``impact`` weighs its loss).

Differs from the paper (P) and its published code (C):
- Prompt wording is ours, after the structure of P: instruction, history, label list; the tasks as in P and C.
- P puts the most similar labelled training utterance into the prompt as a demonstration; C has no retrieval. Here
  ``shots`` draws solved examples from the training split, spread over the labels, and the default is none.
- Speakers go by the names of the corpus; in C they are numbered Speaker_0 to Speaker_8. The first stage chooses among
  the most frequent names of the training split and ``other``; in C from all nine numbers.
- Loss of stage 2: emotion + ``impact`` times emotion impact, each a mean over its answers, P's joint loss with its
  alpha. C puts both prompts into one batch, all answers alike, and has a KL term commented out. An utterance without
  history has no impact task; C repeats its emotion prompt instead.
- Settings of C are the defaults: lr 2e-4, betas .9 and .95, linear decay, warm-up over a tenth, 1024 tokens, window 12.
  LLaMA-2-7B with LoRA r 16, alpha 16, dropout .05 on q, k, v: ``configs/instructerc/meld.yaml``.
- best.ckpt is chosen on dev. C scores test after every epoch and keeps the best.
- Answers are compared by the log-probabilities of the label words (``decode: score``). C generates, and takes an
  unreadable answer for the label of the smallest edit distance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from zoo.backbones import LoRA
from zoo.backbones.divided import is_divided
from zoo.metrics import EmotionMetrics
from zoo.prompts import load_template
from zoo.schema import Labels, Sample
from zoo.training.batch import PromptBatch
from zoo.training.collator import PromptCollator
from zoo.training.sft import SupervisedFineTuning

OTHER = "other"  # stands for all but the most frequent speakers


class InstructERC(SupervisedFineTuning):
    """A language model tuned to name the emotion of the last utterance of a dialogue, with speaker and impact tasks.

    Args:
        llm: folder, published name or hub id of the language model; P: LLaMA-2-7B.
        lora: C: rank 16, alpha 16, dropout .05 on q, k and v; null trains all weights.
        task: ``speaker``: stage 1, naming the speaker of the utterance; its run is the ``start_from`` of the second
            stage and is not tested. ``emotion``: stage 2, or the only one.
        impact: weight of the emotion impact task in stage 2; 0 leaves it out.
        speakers: so many of the most frequent speakers are told apart in stage 1.
        template: ``default``, ``short`` (for small models), or a file; NAME_impact and NAME_speaker beside it are the
            prompts of the other tasks (``impact`` and ``speaker`` those of ``default``).
        window: earlier turns shown; C: 12, for IEMOCAP 20.
    """

    templates = Path(__file__).parent / "templates"

    def __init__(
        self,
        *,
        lora: LoRA | None = None,
        task: Literal["emotion", "speaker"] = "emotion",
        impact: float = 1.0,
        speakers: int = 8,
        template: str = "default",
        window: int = 12,
        max_length: int = 1024,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup: float = 0.1,
        schedule: Literal["cosine", "linear", "constant"] = "linear",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            lora=lora,
            template=template,
            window=window,
            max_length=max_length,
            lr=lr,
            betas=betas,
            warmup=warmup,
            schedule=schedule,
            **kwargs,
        )
        if impact < 0 or speakers < 1:
            raise ValueError(f"need impact >= 0 and speakers >= 1, got {impact} and {speakers}")
        if task == "emotion" and impact and not window:
            raise ValueError("the emotion impact task reads the history: give --model.window, or --model.impact 0")
        self.task, self.impact, self.speakers = task, impact, speakers
        other_task = "speaker" if task == "speaker" else "impact" if impact else None
        self.other_template = load_template(_beside(template, other_task), self.templates) if other_task else None

    @property
    def prompts_per_sample(self) -> int:
        """The emotion's and, in stage 2, that of its impact."""
        return 2 if self.task == "emotion" and self.impact else 1

    @property
    def impact_is_due(self) -> bool:
        """Whether every batch has a second pass, even without a history: other processes may have one."""
        return is_divided(self.llm) and self.task == "emotion" and self.other_template is not None

    # ---- stage 1: the speaker
    def setup(self, stage: str) -> None:
        """Count the speakers of the training split in stage 1, beside what every prompted system checks."""
        super().setup(stage)
        if self.task == "emotion":
            return
        if stage in ("test", "predict"):
            raise ValueError(
                "this run learnt who speaks, and no emotion; it is a beginning: zoo fit --model.task emotion "
                "--model.start_from RUN"
            )
        samples = self.data.samples("train")
        self.speaker_labels = {c: frequent_speakers(samples, c, self.speakers) for c in self.data.label_sets}
        self.val_metrics = {corpus: EmotionMetrics(names) for corpus, names in self.speaker_labels.items()}
        if self.class_weight:
            self.set_class_weights([label_speaker(s, self.speaker_labels) for s in samples])

    # ---- input processing
    def collator(self, training: bool) -> PromptCollator:
        """Return what writes samples as prompts of the task."""
        plain = super().collator(training)
        if self.task == "speaker":
            return plain.as_type(SpeakerCollator, template=self.other_template, shots=0, names=self.speaker_labels)
        if not training or self.other_template is None:
            return plain
        return plain.as_type(ImpactCollator, impact=replace(plain, template=self.other_template, shots=0))

    # ---- training
    def loss(self, batch: Any) -> Tensor:
        """Return the loss of the emotions, plus that of the emotion impact in stage 2."""
        emotion = super().loss(batch)
        if batch.get("impact") is None:
            # divided weights are gathered as often as in processes that have a history in their batch
            return emotion + 0.0 * super().loss(batch) if self.impact_is_due else emotion
        impact = super().loss(batch["impact"])
        self.log("train/impact_loss", impact, batch_size=len(batch["impact"]["samples"]))
        return emotion + self.impact * impact


def frequent_speakers(samples: Sequence[Sample], corpus: str, most: int) -> Labels:
    """Return the most frequent speakers of a corpus, lower case, and `OTHER`.

    Raises:
        ValueError: its utterances name no speakers, or one alone.
    """
    names = Counter(s.target.speaker.strip().lower() for s in samples if s.labels.corpus == corpus)
    del names[""], names[OTHER]
    if len(names) < 2:
        raise ValueError(
            f"the speaker task needs two speakers or more; the training split of {corpus} names "
            f"{list(names) or 'none'}. Leave stage 1 out: --model.task emotion"
        )
    return Labels(corpus, (*(name for name, _ in names.most_common(most)), OTHER))


def label_speaker(sample: Sample, names: Mapping[str, Labels]) -> Sample:
    """Return a sample whose label is its speaker.

    Args:
        names: corpus -> names of its speakers.
    """
    labels = names[sample.labels.corpus]
    name = sample.target.speaker.strip().lower()
    label = name if name in labels.names else OTHER
    return replace(sample, labels=labels, target=replace(sample.target, label=label))


def _beside(template: str, task: str) -> str:
    """Return the prompt of another task: ``impact``, ``short_impact``, ``mine_impact.txt``."""
    if template == "default":
        return task
    path = Path(template)
    return str(path.with_stem(f"{path.stem}_{task}")) if path.suffix else f"{template}_{task}"


@dataclass(kw_only=True)
class ImpactCollator(PromptCollator):
    """Write emotion prompts, and under ``impact`` a batch of prompts that show the history alone.

    That batch is None where no sample has a history.
    """

    impact: PromptCollator

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> Any:
        """Return the batch of some samples."""
        later = [s for s in samples if s.history]
        return {**super().__call__(samples, rng), "impact": self.impact(later, rng) if later else None}


@dataclass(kw_only=True)
class SpeakerCollator(PromptCollator):
    """Write prompts that show one utterance without its speaker; the speakers stand where labels do.

    Args:
        names: corpus -> names of its speakers.
    """

    names: Mapping[str, Labels]

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> PromptBatch:
        """Return the batch of some samples."""
        return super().__call__([label_speaker(s, self.names) for s in samples], rng)
