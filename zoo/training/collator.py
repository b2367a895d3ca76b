"""From samples to the token ids of prompts and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch

from zoo.backbones.row_tree import share_rows
from zoo.prompts import PromptTemplate, label_words, render
from zoo.schema import Problem, Sample
from zoo.training.batch import IGNORE_INDEX, PromptBatch, SampleBatch
from zoo.training.prompting import answer_ids, chat_text

Kind = TypeVar("Kind", bound="PromptCollator")


@dataclass(kw_only=True)
class PromptCollator:
    """Write samples as prompts and tokenize them into a `PromptBatch`, padded on the left.

    Args:
        window: earlier turns shown; None: all of them.
        later_window: later turns shown.
        descriptions: kinds of description shown.
        verbalizer: label -> word the model says, where it differs.
        max_length: a longer prompt loses later turns, the last first, then old ones, then examples, then its beginning;
            counted as ``truncated``.
        longest_answer: tokens that an answer may have beside a prompt of ``max_length``; in training a longer one loses
            its end, and is told of in ``problems``. None: any number.
        training: batches hold the answers, too.
        shots: solved examples in the prompt.
        pool: labelled samples that they are drawn from.
        word_dropout: share of the words of the target utterance left out in training.
        examples_seed: of the examples in evaluation, which are the same for all samples of a corpus.
        chat: the prompt is a user's message in the tokenizer's chat format, and the answer begins the assistant's
            turn. False: plain text, which the answer goes on with.
        share_beginnings: find what the rows of a batch begin with in common (`zoo.backbones.row_tree`).
        system_prompt: system message in front of a chat; None: none.
    """

    tokenizer: Any
    pad_id: int
    template: PromptTemplate
    window: int | None = 0
    later_window: int = 0
    descriptions: tuple[str, ...] = ()
    verbalizer: Mapping[str, str] | None = None
    max_length: int
    longest_answer: int | None = None
    training: bool = False
    shots: int = 0
    pool: Sequence[Sample] = field(default_factory=tuple)
    word_dropout: float = 0.0
    examples_seed: int = 0
    chat: bool = False
    system_prompt: str | None = None
    share_beginnings: bool = False
    # corpus -> label -> labelled samples of the pool
    _examples: dict[str, dict[int, list[Sample]]] = field(default_factory=dict, init=False, repr=False)

    def as_type(self, kind: type[Kind], **more: Any) -> Kind:
        """Return a collator of a derived class with the same settings and ``more``."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return kind(**settings | more)

    def length(self, sample: Sample) -> int:
        """Return the number of characters that vary between samples; only the order matters."""
        turns = (*sample.context(self.window), sample.target, *sample.later[: self.later_window])
        return sum(len(t.text) + sum(len(t.descriptions.get(k, "")) for k in self.descriptions) for t in turns)

    # ---- solved examples
    def examples(self, sample: Sample, rng: np.random.Generator) -> list[Sample]:
        """Return solved examples of the sample's corpus, as many labels as possible, in random order.

        Never the sample itself nor a turn of its dialogue. In evaluation all samples of a corpus see the same ones.

        Raises:
            ValueError: the pool has no other labelled dialogue of this corpus.
        """
        if not self.shots:
            return []
        if not self._examples:
            for s in self.pool:
                if s.target.label is not None:
                    self._examples.setdefault(s.labels.corpus, {}).setdefault(s.label, []).append(s)
        by_label = self._examples.get(sample.labels.corpus, {})
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

    # ---- from text to token ids
    def messages(self, text: str) -> list[dict[str, str]]:
        """Return the messages of a chat whose last one is the rendered prompt, without the system message."""
        return [{"role": "user", "content": text}]

    def render_chat(self, text: str) -> str:
        """Return the chat of a rendered prompt, up to where the answer begins; see `chat_text`."""
        return chat_text(self.tokenizer, self.messages(text), self.system_prompt)

    def chat_ids(self, text: str) -> list[int]:
        """Return the token ids of a rendered prompt as a chat."""
        ids: list[int] = self.tokenizer(self.render_chat(text), add_special_tokens=False)["input_ids"]
        return ids

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a rendered prompt."""
        ids = self.chat_ids(text) if self.chat else self.tokenizer(text)["input_ids"]
        if ids and ids[-1] == self.tokenizer.eos_token_id and not text.endswith(self.tokenizer.eos_token):
            ids = ids[:-1]  # a tokenizer that closes every text would end the prompt before the answer
        return ids

    def prompt_ids(
        self, sample: Sample, rng: np.random.Generator, variables: Mapping[str, str] | None = None
    ) -> tuple[list[int], bool]:
        """Return the token ids of the prompt, and whether anything had to be left out.

        Args:
            variables: further variables of the template.
        """
        sample = self._drop_words(sample, rng)
        examples = self.examples(sample, rng if self.training else np.random.default_rng(self.examples_seed))
        window, later_window, shortened = self.window, min(self.later_window, len(sample.later)), False
        while True:
            text = render(
                self.template,
                sample,
                window=window,
                later_window=later_window,
                descriptions=self.descriptions,
                words=label_words(sample.labels, self.verbalizer),
                examples=examples,
                verbalizer=self.verbalizer,
                variables=variables,
            )
            ids = self.tokenize(text)
            if len(ids) <= self.max_length:
                return ids, shortened
            shortened = True
            if later_window:
                later_window -= 1
            elif window is None or window > 0:
                turns = len(sample.history)
                window = (turns if window is None else min(window, turns)) - 1
            elif examples:
                examples = examples[1:]
            else:
                return self.truncate(text, ids), shortened

    def _drop_words(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if not (self.training and self.word_dropout):
            return sample
        words = [w for w in sample.target.text.split() if rng.random() >= self.word_dropout]
        return replace(sample, target=replace(sample.target, text=" ".join(words))) if words else sample

    def truncate(self, text: str, ids: list[int]) -> list[int]:
        """Return a prompt shortened from its beginning to ``max_length`` tokens; BOS or the system message stay.

        Args:
            text: the rendered prompt.
            ids: its token ids.
        """
        if not self.chat:
            return ids[:1] + ids[1 - self.max_length :]  # the beginning-of-text token, then the end
        text_ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]  # without the system message
        shorter = self.chat_ids(self.tokenizer.decode(text_ids[len(ids) - self.max_length :]))
        return shorter[-self.max_length :]  # what is written again may be a token longer

    # ---- batches
    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> PromptBatch:
        """Return the batch of some samples."""
        return self.batch(samples, [self.prompt_ids(s, rng) for s in samples], rng)

    def batch(
        self, samples: Sequence[Sample], prompts: Sequence[tuple[list[int], bool]], rng: np.random.Generator
    ) -> PromptBatch:
        """Return prompts and, in training, answers as one padded batch.

        Args:
            prompts: token ids of each prompt, and whether it was shortened.
        """
        answers: list[list[int]] = [[] for _ in samples]
        problems: list[Problem] = []
        if self.training:
            for s, (prompt, _), answer in zip(samples, prompts, answers, strict=True):
                answer += self._shortened(s, self.target_ids(s, rng), len(prompt), problems)
        length = max(len(p) + len(a) for (p, _), a in zip(prompts, answers, strict=True))
        ids = torch.full((len(samples), length), self.pad_id)
        mask = torch.zeros(len(samples), length, dtype=torch.bool)
        answer_mask = torch.zeros_like(mask)
        for i, ((p, _), a) in enumerate(zip(prompts, answers, strict=True)):
            ids[i, length - len(p) - len(a) :] = torch.tensor(p + a)
            mask[i, length - len(p) - len(a) :] = True
            answer_mask[i, length - len(a) :] = bool(a)
        batch: PromptBatch = {
            "samples": SampleBatch(samples),
            "truncated": sum(shortened for _, shortened in prompts),
            "input_ids": ids,
            "mask": mask,
            "problems": problems,
        }
        if self.share_beginnings:
            rows = [p + a for (p, _), a in zip(prompts, answers, strict=True)]
            tree = share_rows(rows)
            batch |= {} if tree is None else {"tree": tree}
        if self.training:
            batch |= {"target_ids": ids.masked_fill(~mask, IGNORE_INDEX), "answer": answer_mask}
        return batch

    def _shortened(self, sample: Sample, answer: list[int], prompt: int, problems: list[Problem]) -> list[int]:
        """Return the tokens of an answer that fit behind a prompt, without its end if it is too long.

        Args:
            prompt: length of the prompt in tokens.
            problems: gets an entry for an answer that was cut.
        """
        room = len(answer) if self.longest_answer is None else self.max_length + self.longest_answer - prompt
        if len(answer) > room:
            reason = (
                f"{len(answer)} tokens of the answer behind {prompt} of the prompt, cut to {room}; raise "
                "--model.max_length or --model.max_new_tokens as far as the model's positions go"
            )
            problems.append({"problem": "answers cut", "name": sample.id, "reason": reason, "samples": [sample.id]})
        return answer[:room]

    def target_ids(self, sample: Sample, rng: np.random.Generator) -> list[int]:
        """Return the tokens to be learnt after the prompt: label word and end token; none without a label."""
        if sample.target.label is None:
            return []
        word = label_words(sample.labels, self.verbalizer)[sample.label]
        return answer_ids(self.tokenizer, word, self.chat) + [self.tokenizer.eos_token_id]
