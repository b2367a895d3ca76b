"""LanguageModelModule: a language model that is asked by a prompt and answers with a label word."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jinja2 import UndefinedError
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from zoo.backbones import LLM, LoRA, Prefix
from zoo.backbones.engine import Engine, Sampler
from zoo.backbones.llm import Attention, Dtype
from zoo.backbones.quantization import Quantization
from zoo.prompts import label_words, load_template, parse_label
from zoo.renaming import Renamed
from zoo.runs import run_folder
from zoo.schema import Labels, Prediction, Sample
from zoo.training.batch import Batch, PromptBatch, SampleBatch
from zoo.training.calibration import Preference
from zoo.training.checkpointing import Backbone
from zoo.training.collator import PromptCollator
from zoo.training.evaluation import ordered_parts, score_predictions
from zoo.training.given_features import FeatureFolder
from zoo.training.module import EmotionModule
from zoo.training.multimodal import MultimodalCollator, ProjectedEncoders
from zoo.training.prompting import (
    LABEL_TOKENS,
    answer_ids,
    has_chat_format,
    parts_shown,
    report_control_tokens,
    report_plain_text,
    require_descriptions,
    usable_prompt_length,
)

log = logging.getLogger(__name__)

FIRST_ANSWERS = 16  # written answers after which it is worth a warning that none could be read


class LanguageModelModule(EmotionModule):
    """Base of the systems that ask a language model, ``llm``; how it is trained is left to the derived classes.

    A system that shows the model more than words gives it `encoders`, or overrides `embed`.

    Args:
        llm: folder, published name (e.g. ``tiny-llama``) or hub id of the language model.
        dtype: dtype of its weights.
        revision: hub revision to pin.
        attention: attention implementation; ``sdpa`` shares a prompt between its answers. ``flash_attention_2`` needs
            the package flash-attn.
        gradient_checkpointing: recompute activations in the backward pass.
        merge_adapters: write answers with the adapters added to copies of their layers' weights: faster on a GPU, for
            the memory of the copies; in bfloat16 small adapters are rounded to the weights' precision.
        cuda_graph: record the operations of a written token once and replay them: faster on a GPU, refused elsewhere.
        quantize: the language model frozen, its linear layers in 4 bits (``nf4``) or 8 (``int8``), which needs the
            package bitsandbytes; `lora` is trained on top.
        lora: adapters on the frozen language model; None trains all of it.
        template: prompt template, a name from the paper's ``templates/`` or a file.
        window: earlier turns shown.
        descriptions: kinds of description shown, e.g. ``[video]``; the corpus must provide them.
        verbalizer: label -> word the model says, where it differs.
        max_length: prompts longer than this many tokens, or than the model's positions leave beside an answer, lose old
            turns, then examples, then their beginning; counted.
        max_new_tokens: longest answer in tokens, where answers are written.
        chat: write every prompt as a user's message in the chat format of the model's folder (``chat_template``), the
            answer as the assistant's turn. None: wherever the folder has such a format, because an instruct model is
            trained on nothing else. false: as plain text that the model goes on with; configs of papers that prescribe
            plain text say so, since base models may have a chat format, too.
        system_prompt: system message of the chat, which `chat` then is; None: none.
        sampler: who writes answers: ``own``, this process, or ``vllm``, an engine that `zoo rollouts serve` starts.
    """

    renamed_options: ClassVar[Mapping[str, str | Renamed]] = {"system": "system_prompt"}
    templates = Path(__file__).parents[1] / "models"  # folder of the paper's prompt templates
    # variables of the paper's own templates -> a value without content, e.g. an empty text
    template_variables: Mapping[str, Any] = {}
    encoders: ProjectedEncoders | None = None  # of a system that shows clips
    decode: str = "greedy"  # how answers are read: ``score`` or ``greedy``; a system may know others
    temperature: float = 1.0  # of sampled answers, in systems that sample
    later_window: int = 0  # later turns shown
    # corpus -> what is taken out of the scores of its labels, in systems that calibrate them
    preferences: Mapping[str, Preference] = {}

    llm: LLM

    def __init__(
        self,
        *,
        llm: str,
        dtype: Dtype = "float32",
        revision: str | None = None,
        attention: Attention = "sdpa",
        gradient_checkpointing: bool = False,
        merge_adapters: bool = False,
        cuda_graph: bool = False,
        quantize: Quantization | None = None,
        lora: LoRA | None = None,
        template: str = "default",
        window: int | None = 0,
        descriptions: list[str] | None = None,
        verbalizer: dict[str, str] | None = None,
        max_length: int = 1024,
        max_new_tokens: int = 16,
        chat: bool | None = None,
        system_prompt: str | None = None,
        sampler: Sampler = Sampler(),  # noqa: B008 - frozen
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (window or 0) < 0 or max_length < 2 or max_new_tokens < 1:
            raise ValueError(
                "need window >= 0, max_length >= 2 and max_new_tokens >= 1; got "
                f"{window}, {max_length} and {max_new_tokens}"
            )
        if system_prompt is not None and chat is False:
            raise ValueError(
                "a system prompt is part of a chat, but chat is false; set --model.chat true or "
                "--model.system_prompt null"
            )
        self.make_llm = functools.partial(
            LLM,
            llm,
            dtype=dtype,
            revision=revision,
            attention=attention,
            gradient_checkpointing=gradient_checkpointing,
            merge_adapters=merge_adapters,
            cuda_graph=cuda_graph,
            quantize=quantize,
        )
        self.lora = lora
        self.template = load_template(template, self.templates)
        self.window, self.descriptions, self.verbalizer = window, tuple(descriptions or ()), verbalizer
        self.max_length, self.max_new_tokens = max_length, max_new_tokens
        self.sampler, self._engine = sampler, None  # type: Sampler, Engine | None
        self.chat, self.system_prompt = True if system_prompt is not None else chat, system_prompt
        # written answers so far, all of which were unreadable; None once one was readable
        self._unreadable_answers: list[str] | None = []

    # ---- parts
    def own_encoders(self, encoders: ProjectedEncoders) -> None:
        """Show the features of these encoders in the prompts.

        Their parts become parts of this module, under their own names, when the model is built.
        """
        object.__setattr__(self, "encoders", encoders)  # else tensors' names would begin with "encoders."

    def build(self) -> None:
        """Make the language model, and the encoders if there are any."""
        self.llm = self.make_llm(mapped=self.device_mesh is not None)
        report_plain_text(self.llm, self.chat)
        self.max_length = usable_prompt_length(self.llm, self.max_length, self.longest_answer())
        if self.encoders is not None:
            self.encoders.build(self.llm)
            for name, part in self.encoders.named_children():
                self.add_module(name, part)

    def longest_answer(self) -> int:
        """Return for how many tokens of an answer a prompt must leave room."""
        return max(self.max_new_tokens, LABEL_TOKENS)

    def add_adapters(self) -> None:
        """Put the adapters on the language model."""
        if self.lora is not None:
            self.llm.add_lora(self.lora)

    def backbones(self) -> Mapping[str, Backbone]:
        """Return the language model, and the encoders if there are any."""
        return {"llm": self.llm} | (self.encoders.backbones() if self.encoders is not None else {})

    @property
    def prompts_per_sample(self) -> int:
        """How many prompts of a sample are computed before the backward pass: for predictions of memory."""
        return 1

    # ---- input
    @property
    def uses_chat(self) -> bool:
        """Whether prompts are chats."""
        return has_chat_format(self.llm.tokenizer) if self.chat is None else self.chat

    def why_separate(self, training: bool) -> str | None:
        """Return why every prompt of a batch is computed by itself, or None where their common beginnings are not.

        Args:
            training: in training, or where answers are scored.
        """
        kind = type(self)
        if self.encoders is not None:
            return f"{kind.__name__} shows clips between the words"
        if not self.shows_words_alone:
            return f"{kind.__name__} puts more than tokens into its prompts, or encodes them in its own way"
        return self.llm.prefix_sharing_unsupported_reason

    def report_separate_prompts(self, training: bool) -> None:
        """Say in one line why what the prompts of a batch begin with is computed again for each, where it is."""
        reason = self.why_separate(training)
        if reason is not None:
            doing = "training" if training else "scoring"
            rank_zero_info(f"{doing} computes every prompt of a batch whole, also what it shares with others: {reason}")

    def on_fit_start(self) -> None:
        """Say how prompts are computed."""
        super().on_fit_start()
        self.report_separate_prompts(training=True)

    @property
    def shares_beginnings(self) -> bool:
        """Whether what the prompts of a batch begin with in common is computed once where answers are scored."""
        return self.why_separate(training=False) is None

    @property
    def shows_words_alone(self) -> bool:
        """Whether the language model reads nothing but the tokens of its prompts."""
        kind = type(self)
        plain = kind.embed is LanguageModelModule.embed and kind.encode is LanguageModelModule.encode
        return plain and self.encoders is None

    @property
    def reads(self) -> tuple[str, ...] | None:
        """What the prompt shows, and what the encoders read."""
        parts = parts_shown(self.template, self.window, self.descriptions, self.template_variables, self.later_window)
        return parts if self.encoders is None else ordered_parts(self.encoders.parts(parts))

    @property
    def unreadable_events(self) -> tuple[str, ...]:
        """Events of the encoders, if there are any."""
        return () if self.encoders is None else self.encoders.unreadable_events

    def required_files(self, stage: str) -> Mapping[str, str]:
        """Return the files that the encoders read."""
        return {} if self.encoders is None else self.encoders.required_files()

    @property
    def feature_folders(self) -> Mapping[str, FeatureFolder]:
        """The folders of features that are given in place of encoders."""
        return (
            {}
            if self.encoders is None
            else {str(name): folder for name, folder in self.encoders.given_features.items()}
        )

    def has_input(self, sample: Sample) -> bool:
        """Return whether a prompt says anything about its sample."""
        described = bool(set(self.descriptions) & set(sample.target.descriptions))
        if self.encoders is not None:
            return described or self.encoders.has_input(sample)
        return described or bool(sample.target.text)

    def collator(self, training: bool) -> PromptCollator:
        """Return what writes samples as prompts; without answers, which a way of training may add."""
        plain = PromptCollator(
            tokenizer=self.llm.tokenizer,
            pad_id=self.llm.pad_id,
            template=self.template,
            window=self.window,
            later_window=self.later_window,
            descriptions=self.descriptions,
            verbalizer=self.verbalizer,
            max_length=self.max_length,
            chat=self.uses_chat,
            system_prompt=self.system_prompt,
            share_beginnings=self.shares_beginnings and not training,  # scores use it; a way of training may, too
        )
        if self.encoders is None:
            return plain
        return plain.as_type(MultimodalCollator, **self.encoders.input_settings(str(self.trainer.precision)))

    def asks_engine(self, stage: str) -> bool:
        """Return whether a stage has answers written that an engine could write."""
        return self.decode != "score"

    @property
    def sends_embeddings(self) -> bool:
        """Whether its prompts hold more than words."""
        return self.encoders is not None or type(self).embed is not LanguageModelModule.embed

    @property
    def writer(self) -> LLM | Engine:
        """What writes answers: the language model itself, or an engine, which is checked when it is first needed."""
        if self.sampler.kind == "own":
            return self.llm
        if self._engine is None:
            engine = Engine(self.llm, self.sampler, adapter_folder(self.sampler.folder, run_folder(self.trainer)))
            engine.check(self.max_length + self.longest_answer(), self.temperature, self.sends_embeddings)
            self._engine = engine
        return self._engine

    def setup(self, stage: str) -> None:
        """Check dtypes, label words and control tokens of the corpus, beside what every system checks."""
        if self.trainer.precision == "16-mixed" and self.make_llm.keywords["dtype"] == "bfloat16":
            raise ValueError(
                "--trainer.precision 16-mixed computes in float16, but --model.dtype is bfloat16, and the two do not "
                "mix; set --model.dtype float16, or use --trainer.precision bf16-mixed"
            )
        if self.sampler.kind != "own" and not self.asks_engine(stage):
            raise ValueError(
                f"--model.sampler.kind {self.sampler.kind} writes answers, but --model.decode score compares the "
                "probabilities of given words; use --model.decode greedy, or --model.sampler.kind own"
            )
        super().setup(stage)
        try:
            _ = self.reads  # renders the template
        except UndefinedError as error:
            raise ValueError(
                f"the prompt template uses a variable that is not known: {error}; correct the template, or name the "
                f"variable in {type(self).__name__}.template_variables"
            ) from error
        for labels in self.data.label_sets.values():
            label_words(labels, self.verbalizer)  # two labels with one word: say so before any work
        report_control_tokens(self.data, self.data.splits_of(stage)[0])

    def check_split(self, samples: Sequence[Sample], split: str, stage: str) -> None:
        """Check that prompts differ and that every kind of description occurs; see `EmotionModule.check_split`."""
        super().check_split(samples, split, stage)
        if not any(self.has_input(s) for s in samples):
            message = (
                f"no {split} sample of {type(self.data).__name__} has words, so every prompt is the "
                "same; use a system that reads pictures or voices, or show descriptions (--model.descriptions, "
                "--data.descriptions)"
            )
            if stage == "fit":
                raise ValueError(message)
            log.warning(message)
        require_descriptions(samples, self.descriptions, split)

    def embed(self, batch: Any) -> Tensor:
        """Return (B, T, D) input embeddings of a batch, with the features of clips in their slots."""
        embedded = self.llm.embed(batch["input_ids"])
        return embedded if self.encoders is None else self.encoders.place(embedded, batch)

    def encode(self, batch: Any) -> Prefix:
        """Return the encoded prompts of a batch; called anew for every forward pass."""
        return self.llm.encode(
            self.embed(batch) if self.sends_embeddings else batch["input_ids"],
            batch["mask"],
            positions=batch.get("positions"),
            tree=batch.get("tree"),
        )

    # ---- answers
    def answer_ids(self, text: str) -> list[int]:
        """Return the tokens of an answer as it stands behind a prompt."""
        return answer_ids(self.llm.tokenizer, text, self.uses_chat)

    def candidates(self, labels: Labels) -> list[list[int]]:
        """Return the tokens of each label word as an answer."""
        return [self.answer_ids(word) for word in label_words(labels, self.verbalizer)]

    def read_label(self, sample: Sample, text: str) -> int | None:
        """Return the index of the label that an answer names, or None if it is unreadable."""
        return parse_label(text, label_words(sample.labels, self.verbalizer))

    def read_answer(self, sample: Sample, text: str) -> str | None:
        """Return the label that an answer names, or None if it is unreadable."""
        index = self.read_label(sample, text)
        return None if index is None else sample.labels.names[index]

    def predict(self, batch: Any) -> list[Prediction]:
        """Return the answers to a batch, and count what it lacked."""
        if self.encoders is not None:
            self.encoders.count_missing(batch, self.events)
        return self.answer(self.encode(batch), batch["samples"])

    def answer(self, prefix: Prefix, samples: SampleBatch) -> list[Prediction]:
        """Return the answers to encoded prompts: by scores of the label words, or in writing; see `decode`."""
        if self.decode == "score":
            return self.scored_answers(prefix, samples)
        return self.read_answers(samples, self.writer.greedy_text(prefix, self.max_new_tokens))

    def scored_answers(self, prefix: Prefix, samples: SampleBatch) -> list[Prediction]:
        """Return the answers to encoded prompts by the scores of the label words."""
        return score_labels(self.llm, prefix, samples, self.candidates, self.preferences)

    def read_answers(self, samples: SampleBatch, texts: Sequence[str]) -> list[Prediction]:
        """Return the predictions that written answers are."""
        return [Prediction.of(s, self.read_answer(s, text), text=text) for s, text in zip(samples, texts, strict=True)]

    # ---- checkpoints
    def contract(self) -> dict[str, Any]:
        """Return the contract, with whether prompts were chats."""
        return super().contract() | {"chat": self.uses_chat}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that were trained with the other form of prompt, unless `chat` says which is wanted."""
        super().on_load_checkpoint(checkpoint)
        # before `chat` was recorded, a prompt was a chat only where the config said so, and then `chat` is not None
        trained = checkpoint.get("zoo", {}).get("chat", False)
        if self.chat is None and trained != self.uses_chat:
            form, other = ("chats", "plain text") if trained else ("plain text", "chats")
            raise ValueError(
                f"the prompts of this checkpoint were {form}, but with the tokenizer in {self.llm.path} they would be "
                f"{other}; give --model.chat {json.dumps(trained)} to keep them as they were trained"
            )

    # ---- answers that say nothing
    def is_readable(self, prediction: Prediction) -> bool:
        """Return whether a written answer could be read."""
        return prediction.predicted is not None

    def on_validation_start(self) -> None:
        """Watch the answers of this validation anew."""
        super().on_validation_start()
        self._unreadable_answers = []

    def on_test_start(self) -> None:
        """Watch the answers of this test anew, and say how prompts are computed."""
        super().on_test_start()
        self._unreadable_answers = []
        if self.decode == "score":
            self.report_separate_prompts(training=False)

    def update_validation_metrics(self, samples: SampleBatch, predictions: Sequence[Prediction]) -> None:
        """Add the predictions to the metrics, and warn if none can be read."""
        super().update_validation_metrics(samples, predictions)
        self.warn_if_unreadable(predictions)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Answer a batch, and warn if no answer can be read."""
        before = len(self.predictions)
        super().test_step(batch, batch_idx)
        self.warn_if_unreadable(self.predictions[before:])

    def warn_if_unreadable(self, predictions: Sequence[Prediction]) -> None:
        """Warn once, with two of them, if not one of the first `FIRST_ANSWERS` written answers can be read."""
        if self._unreadable_answers is None:
            return
        written = [p for p in predictions if p.text is not None and p.label is not None]
        if any(self.is_readable(p) for p in written):
            self._unreadable_answers = None
            return
        self._unreadable_answers += [p.text for p in written if p.text is not None]
        if len(self._unreadable_answers) >= FIRST_ANSWERS:
            log.warning(
                "none of the first %d answers could be read. %s",
                len(self._unreadable_answers),
                self.describe_answers(self._unreadable_answers),
            )
            self._unreadable_answers = None

    def describe_answers(self, answers: Sequence[str]) -> str:
        """Return two answers that fail, and what may be the reason, for a warning."""
        examples = " and ".join(repr(text[:200]) for text in list(dict.fromkeys(answers))[:2])
        form = f"The prompts are {'chats' if self.uses_chat else 'plain text'} (--model.chat)"
        return f"For example: {examples}. {form}; does the template (--model.template) say which words are wanted?"


def adapter_folder(shared: str | None, run: Path) -> Path:
    """Return where a run writes adapters for an engine: a folder of its own, also where several share a place."""
    if shared is None:
        return run / "adapters"
    return Path(shared) / f"{run.name}-{hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:12]}"


@torch.no_grad()
def score_labels(
    llm: LLM,
    prefix: Prefix,
    samples: SampleBatch,
    candidates: Callable[[Labels], Sequence[Sequence[int]]],
    preferences: Mapping[str, Preference] | None = None,
) -> list[Prediction]:
    """Answer each sample with the most probable label of its own corpus.

    Batches may mix corpora, which share the computed prompt but not their candidates: one corpus' word may begin
    another's.

    Args:
        candidates: labels of a corpus -> tokens of each label word.
        preferences: corpus -> what is taken out of the scores of its labels; see `zoo.training.calibration`.

    Raises:
        FloatingPointError: scores are not finite.
    """
    label_sets = {s.labels.corpus: s.labels for s in samples}
    if len(label_sets) > 1 and prefix.tree is None:
        llm.prefill(prefix)
    scores = {corpus: llm.score(prefix, candidates(labels)) for corpus, labels in label_sets.items()}  # (B, L) each
    if not all(torch.isfinite(s).all() for s in scores.values()):
        raise FloatingPointError(f"the scores of {samples.ids()} are not finite: the training diverged")
    table = {corpus: rows.cpu().double() for corpus, rows in scores.items()}
    for corpus in set(table) & set(preferences or {}):
        table[corpus] -= torch.tensor((preferences or {})[corpus].logprobs, dtype=torch.float64)
    rows = (table[s.labels.corpus][i] for i, s in enumerate(samples))
    return score_predictions(samples, [torch.softmax(row, 0).tolist() for row in rows])


__all__ = ["LanguageModelModule", "PromptBatch", "score_labels"]
