"""SupervisedFineTuning: next-token cross-entropy on the answers to prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo.schema import Prediction, Sample
from zoo.training.batch import IGNORE_INDEX, PromptBatch
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
    def collator(self, training: bool) -> PromptCollator:
        """Return what writes samples as prompts, in training with their answers."""
        # one mask of dropout for what rows share would not be one for each of them
        in_attention = getattr(self.llm.causal_lm.config, "attention_dropout", 0.0)
        drops_out = self.dropout.p > 0 or in_attention > 0 or (self.lora is not None and self.lora.dropout > 0)
        drops_out = drops_out or self.embedding_noise > 0
        return replace(
            super().collator(training),
            training=training,
            longest_answer=self.longest_answer(),
            share_beginnings=self.shares_beginnings and not (training and drops_out),
            shots=self.shots,
            pool=self.data.samples("train") if self.shots else (),
            word_dropout=self.word_dropout,
            examples_seed=self.data.run_seed,
        )

    def setup(self, stage: str) -> None:
        """Count the classes of the training split, beside what every prompted system checks."""
        super().setup(stage)
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
