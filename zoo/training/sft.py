"""SupervisedFineTuning: next-token cross-entropy on the answers to prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo.schema import Prediction, Sample, Split, Stage
from zoo.training.batch import IGNORE_INDEX, PromptBatch
from zoo.training.calibration import (
    CalibrationKind,
    batch_preference,
    by_corpus,
    content_free_preference,
    stored_preferences,
    to_store,
    without_content,
    without_label,
)
from zoo.training.collator import PromptCollator
from zoo.training.language_model import LanguageModelModule
from zoo.training.optimization import class_weights


class SupervisedFineTuning(LanguageModelModule):
    """A language model that answers a prompt with a label word, trained by next-token cross-entropy.

    Args:
        shots: solved examples in the prompt, drawn from the training split.
        prompt_loss: weight of the prompt's own tokens in the loss; 0 trains on the answer alone, 1 on the whole text.
        class_weight: exponent p of class weights n^-p in the answer's loss; 0 = none, 1 = fully balanced.
        word_dropout: share of words of the utterance left out in training (ours).
        dropout: on the language model's input embeddings and last hidden states in training (ours; LLaMA itself has
            none).
        embedding_noise: alpha of NEFTune (Jain et al. 2024): in training the input embeddings of a text of T tokens and
            width D get uniform noise of up to alpha / sqrt(T D); 0 = none.
        decode: ``score`` compares the log-probabilities of the label words, ``greedy`` and ``beam`` generate and parse.
        beams, repetition_penalty: for ``beam``.
        calibration: what of ``score`` is due to the prompt alone, b(y), is taken out of it: the answer is
            argmax log p(y | x) - b(y). ``content_free``: b from the same prompt about a text that says nothing (Zhao et
            al. 2021); ``batch``: the mean score of each label over the unlabelled texts of the validation split (Zhou
            et al. 2023), which is another pass over it before each validation and test; see
            `zoo.training.calibration`.
    """

    example_options = ("shots",)

    def __init__(
        self,
        *,
        shots: int = 0,
        prompt_loss: float = 0.0,
        class_weight: float = 0.0,
        word_dropout: float = 0.0,
        dropout: float = 0.0,
        embedding_noise: float = 0.0,
        decode: Literal["score", "greedy", "beam"] = "score",
        beams: int = 4,
        repetition_penalty: float = 1.0,
        calibration: CalibrationKind = "none",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if shots < 0 or not 0 <= word_dropout < 1 or prompt_loss < 0:
            raise ValueError(
                f"need shots >= 0, 0 <= word_dropout < 1 and prompt_loss >= 0; got {shots}, {word_dropout}, "
                f"{prompt_loss}"
            )
        if beams < 1 or not 0 < repetition_penalty < math.inf or not 0 <= dropout < 1:
            raise ValueError(
                "need beams >= 1, repetition_penalty > 0 and 0 <= dropout < 1; got "
                f"{beams}, {repetition_penalty} and {dropout}"
            )
        if not (math.isfinite(class_weight) and class_weight >= 0 and math.isfinite(prompt_loss)):
            raise ValueError(f"need finite class_weight >= 0 and prompt_loss; got {class_weight} and {prompt_loss}")
        if not (math.isfinite(embedding_noise) and embedding_noise >= 0):
            raise ValueError(f"need a finite embedding_noise >= 0; got {embedding_noise}")
        if calibration != "none" and decode != "score":
            raise ValueError(
                f"calibration {calibration} corrects the scores of label words, but decode: {decode} scores none; set "
                "--model.decode score, or --model.calibration none"
            )
        self.calibration: CalibrationKind = calibration
        self.embedding_noise = embedding_noise
        self.shots, self.prompt_loss, self.class_weight = shots, prompt_loss, class_weight
        self.word_dropout, self.dropout = word_dropout, nn.Dropout(dropout)
        self.decode, self.beams, self.repetition_penalty = decode, beams, repetition_penalty

    # ---- parts
    def build(self) -> None:
        """Make the language model, which must have an end-of-text token."""
        super().build()
        if self.llm.tokenizer is not None and self.llm.tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer in {self.llm.path} names no end-of-text token, so no answer could end; "
                "set eos_token in its tokenizer_config.json"
            )

    # ---- input
    def why_separate(self, training: bool) -> str | None:
        """Return why every prompt is computed by itself: in training also what is drawn anew for every row.

        One mask of dropout for what rows share would not be one for each of them.
        """
        in_attention = getattr(self.llm.causal_lm.config, "attention_dropout", 0.0)
        drawn = {
            "--model.dropout": self.dropout.p,
            "the dropout of --model.lora": 0.0 if self.lora is None else self.lora.dropout,
            "--model.embedding_noise": self.embedding_noise,
            f"the attention_dropout of {self.llm.path}": in_attention,
        }
        options = [f"{name} ({value:g})" for name, value in drawn.items() if value > 0]
        redrawn = f"{' and '.join(options)} is drawn anew for every row" if training and options else None
        return super().why_separate(training) or redrawn

    def collator(self, training: bool) -> PromptCollator:
        """Return what writes samples as prompts, in training with their answers."""
        return replace(
            super().collator(training),
            training=training,
            longest_answer=self.longest_answer(),
            share_beginnings=self.shares_beginnings and self.why_separate(training) is None,
            shots=self.shots,
            pool=self.data.samples("train") if self.shots else (),
            word_dropout=self.word_dropout,
            examples_seed=self.data.run_seed,
        )

    def setup(self, stage: str) -> None:
        """Count the classes of the training split, beside what every prompted system checks."""
        super().setup(stage)
        self.check_calibration()
        if stage == "fit" and self.class_weight:
            self.set_class_weights(self.data.samples("train"))

    def set_class_weights(self, samples: Sequence[Sample]) -> None:
        """Weigh the classes of every corpus by their frequency among these samples."""
        label_sets = {s.labels.corpus: s.labels for s in samples}
        self.class_weights = {
            corpus: class_weights(
                [s.label for s in samples if s.labels.corpus == corpus], len(labels), self.class_weight
            )
            for corpus, labels in label_sets.items()
        }

    # ---- training
    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self.loss(batch)
        self.check_finite(loss, batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["samples"]))
        return loss

    def loss(self, batch: PromptBatch) -> Tensor:
        """Return the weighted mean of -log p over tokens.

        Answer tokens weigh their class weight, prompt tokens ``prompt_loss``.
        """
        targets = batch["target_ids"][:, 1:]
        weight = batch["answer"][:, 1:].float()
        if self.class_weight:
            per_sample = torch.tensor(
                [self.class_weights[s.labels.corpus][s.label] if s.label >= 0 else 1.0 for s in batch["samples"]]
            )
            weight = weight * per_sample.to(weight)[:, None]
        if self.prompt_loss:
            weight = torch.where(batch["answer"][:, 1:], weight, self.prompt_loss)
        weight = weight * ((targets != IGNORE_INDEX) & batch["mask"][:, :-1])
        chosen = weight > 0  # only these positions reach the vocabulary
        embedded, tree = self.dropout(self.with_noise(self.embed(batch), batch["mask"])), batch.get("tree")
        if tree is None:
            states = self.llm.hidden(embedded, batch["mask"], positions=batch.get("positions"))
            hidden = states[:, :-1][chosen]  # (N, D)
        else:
            hidden = self.llm.hidden_of_tree(embedded, tree)[tree.places[:, :-1][chosen]]
        token_loss = cross_entropy(self.llm.head(self.dropout(hidden)), targets[chosen], reduction="none")
        return (token_loss * weight[chosen]).sum() / weight.sum().clamp(min=1e-9)

    def with_noise(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """Add the noise of `embedding_noise` to input embeddings, in training only.

        Args:
            embedded: (B, T, D).
            mask: (B, T) bool, False on padding, which does not count as length.
        """
        if not (self.training and self.embedding_noise):
            return embedded
        lengths = mask.sum(1).clamp(min=1)[:, None, None]  # (B, 1, 1)
        bound = self.embedding_noise / (lengths * embedded.shape[-1]).sqrt()
        return embedded + (2 * torch.rand_like(embedded) - 1) * bound.to(embedded.dtype)

    # ---- calibration
    def check_calibration(self) -> None:
        """Raise ValueError if answers are to be calibrated that are no scores, or not those of words alone."""
        if self.calibration != "none" and (self.decode != "score" or not self.shows_words_alone):
            what = f"decode: {self.decode}" if self.decode != "score" else f"{type(self).__name__}, which shows more"
            raise ValueError(
                f"calibration {self.calibration} corrects the scores of label words behind prompts of words alone, and "
                f"this is {what}; set --model.calibration none"
            )

    def splits_read(self, stage: str) -> tuple[Split, ...]:
        """Return the splits that a stage makes prompts of."""
        splits = tuple(self.data.splits_of(stage))
        return splits if self.calibration != "batch" or "dev" in splits else (*splits, "dev")

    def on_validation_start(self) -> None:
        """Calibrate by the weights of now."""
        super().on_validation_start()
        if not self.trainer.sanity_checking:
            self.calibrate("validate" if self.trainer.state.fn == "validate" else "fit")

    def on_test_start(self) -> None:
        """Calibrate before the first answer."""
        super().on_test_start()
        self.calibrate("test")

    def on_predict_start(self) -> None:
        """Calibrate before the first answer."""
        super().on_predict_start()
        self.calibrate("predict")

    def calibrate(self, stage: Stage) -> None:
        """Estimate what the prompt says about the labels by itself; nothing without `calibration`.

        Raises:
            ValueError: ``batch``, and there are no validation texts, nor is anything stored with the weights.
        """
        if self.calibration == "none":
            return
        if self.calibration == "content_free":
            samples = (
                self.data.to_predict() if stage == "predict" else self.data.samples(self.data.splits_of(stage)[-1])
            )
            one_of_each = {s.labels.corpus: s for s in reversed(samples)}
            self.preferences = {
                corpus: content_free_preference(self.label_scores(without_content(sample)))
                for corpus, sample in one_of_each.items()
            }
            return
        if self.data.is_ad_hoc or "dev" not in self.data.splits():
            known = {corpus: len(preference.logprobs) for corpus, preference in self.preferences.items()}
            if any(known.get(corpus) != len(labels) for corpus, labels in self.data.label_sets.items()):
                raise ValueError(
                    "calibration batch needs the texts of a validation split, which this data does not have, nor are "
                    "scores of one stored with the weights; use --model.calibration content_free, or none"
                )
            return
        texts = by_corpus([without_label(s) for s in self.data.samples("dev")])
        self.preferences = {c: batch_preference(self.label_scores(group)) for c, group in texts.items()}

    @torch.no_grad()
    def label_scores(self, samples: Sequence[Sample]) -> Tensor:
        """Return the log-probability of each label word about each of some samples of one corpus, (M, L) float64.

        In the order of `samples`, and without any calibration.
        """
        collator, labels = self.collator(training=False), samples[0].labels
        order = sorted(range(len(samples)), key=lambda i: collator.length(samples[i]))  # alike lengths: little padding
        scores = torch.empty(len(samples), len(labels), dtype=torch.float64)
        with self.trainer.precision_plugin.forward_context():
            for start in range(0, len(order), self.data.eval_batch_size):
                rows = order[start : start + self.data.eval_batch_size]
                batch = collator([samples[i] for i in rows], np.random.default_rng(0))  # evaluation draws nothing
                prefix = self.encode(move_data_to_device(batch, self.device))
                scores[rows] = self.llm.score(prefix, self.candidates(labels)).double().cpu()
        return scores

    def contract(self) -> dict[str, Any]:
        """Return the contract, with what calibrates the answers of these weights."""
        stored = to_store(self.preferences, self.calibration)
        return super().contract() | ({"calibration": stored} if self.preferences else {})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what calibrates the answers of these weights, for data without a validation split."""
        super().on_load_checkpoint(checkpoint)
        self.preferences = stored_preferences(checkpoint["zoo"].get("calibration"), self.calibration, "the checkpoint")

    def _record(self, *args: Any) -> dict[str, Any]:
        """Return what metrics.json says, with what was taken out of the scores."""
        if self.calibration == "none":
            return super()._record(*args)
        split = "dev" if self.calibration == "batch" else None
        taken_out: Mapping[str, Any] = {
            corpus: dict(zip(self.data.label_sets[corpus].names, p.logprobs, strict=True)) | {"inputs": p.inputs}
            for corpus, p in self.preferences.items()
        }
        about = {"kind": self.calibration, "inputs_from": split, "label_logprobs": taken_out}
        return super()._record(*args) | {"calibration": about}

    # ---- answers
    def predict(self, batch: Any) -> list[Prediction]:
        """Return the answers to a batch; see ``decode``."""
        if self.decode != "beam":
            return super().predict(batch)
        texts = self.llm.beam(
            batch["input_ids"],
            batch["mask"],
            beams=self.beams,
            max_new_tokens=self.max_new_tokens,
            repetition_penalty=self.repetition_penalty,
        )
        return self.read_answers(batch["samples"], texts)
