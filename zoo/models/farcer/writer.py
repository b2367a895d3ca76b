"""FARCER's prompts (Fig. 2): dialogues written with image slots, behind solved dialogues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Template

from zoo.prompts import CONTROL, escape, label_words
from zoo.schema import Labels, Sample, Turn
from zoo.training.prompting import answer_ids, chat_text

# Two marks of a template. In a corpus' own texts both are written apart (`escape`), so that no corpus can say them.
SLOT = "<|image|>"  # where the vectors of an image go
FIXED = "<|fixed|>"  # end of what is the same for many prompts, and therefore computed once
SHOWN = "<image feature token>"  # stands for an image in a solved dialogue: plain text (Fig. 2)


@dataclass(frozen=True)
class Line:
    """An utterance as a template sees it.

    Attributes:
        picture: a slot, the words that stand for one, or empty.
        emotion: label word of an earlier turn, or None.
    """

    speaker: str
    text: str
    picture: str = ""
    emotion: str | None = None


@dataclass(frozen=True)
class Dialogue:
    """Lines, oldest first, the last one to be judged; ``label`` is the answer of a solved dialogue."""

    lines: tuple[Line, ...]
    label: str | None = None

    @property
    def pictures(self) -> list[str]:
        return [line.picture for line in self.lines if line.picture]


@dataclass(kw_only=True)
class PromptWriter:
    """Write samples as token ids, each piece of text by itself, without the tokens a tokenizer adds.

    Args:
        template: sees ``bos``, ``labels`` (words), ``shots`` and ``dialogue`` (`Dialogue`), ``pictures`` (bool: are
            there any), ``past`` (bool), ``block`` (bool).
        pictures: whether the system sees any.
        tokens_per_picture: positions one picture takes.
        window: earlier turns shown; None shows all.
        shot_window: the same in solved dialogues.
        shots: solved dialogues of each prompt, for each corpus: prompts x dialogues.
        chat, system_prompt: as of `zoo.training.collator.PromptCollator`; ``bos`` is empty in a chat, whose format has
            its own.
    """

    tokenizer: Any
    template: Template
    pictures: bool
    tokens_per_picture: int = 1
    window: int | None = None
    past_labels: bool = False
    block: bool = False
    verbalizer: Mapping[str, str] | None = None
    shot_window: int | None = None
    shots: Mapping[str, Sequence[tuple[Sample, ...]]] = field(default_factory=dict)
    chat: bool = False
    system_prompt: str | None = None
    _known: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False)
    _solved: dict[tuple[str, int], list[Dialogue]] = field(default_factory=dict, init=False, repr=False)
    _endings: dict[Labels, str] = field(default_factory=dict, init=False, repr=False)

    # ---- text
    def dialogue(self, sample: Sample, window: int | None, pictures: Sequence[str], solved: bool = False) -> Dialogue:
        """Return the sample's lines with what stands for their pictures.

        The label of the target is written only where the dialogue is ``solved``, and then as the answer, never inside.
        """
        words = label_words(sample.labels, self.verbalizer)
        turns = (*sample.context(window), sample.target)
        lines = [
            Line(
                escape(turn.speaker),
                escape(turn.text),
                picture,
                words[sample.labels.index(turn.label)]
                if self.past_labels and turn.label is not None and turn is not sample.target
                else None,
            )
            for turn, picture in zip(turns, pictures, strict=True)
        ]
        return Dialogue(tuple(lines), words[sample.label] if solved else None)

    def solved(self, corpus: str, prompt: int) -> list[Dialogue]:
        """Return the solved dialogues of a prompt. What stands for a picture is plain text (Fig. 2)."""
        if (corpus, prompt) not in self._solved:
            self._solved[corpus, prompt] = [
                self.dialogue(
                    shot,
                    self.shot_window,
                    [
                        SHOWN if self.pictures and turn.video is not None else ""
                        for turn in (*shot.context(self.shot_window), shot.target)
                    ],
                    solved=True,
                )
                for shot in (self.shots[corpus][prompt] if self.shots.get(corpus) else ())
            ]
        return self._solved[corpus, prompt]

    def text(self, sample: Sample, pictures: Sequence[str], window: int | None, prompt: int = 0) -> tuple[str, str]:
        """Return the fixed part and the sample's own part of a prompt.

        Raises:
            ValueError: a template without its two marks, or one that shows other than all pictures.
        """
        text = self.template.render(
            bos="" if self.chat else self.tokenizer.bos_token or "",
            labels=list(label_words(sample.labels, self.verbalizer)),
            shots=self.solved(sample.labels.corpus, prompt),
            dialogue=self.dialogue(sample, window, pictures),
            pictures=self.pictures,
            past=self.past_labels,
            block=self.block,
        )
        if text.count(FIXED) != 1:
            raise ValueError(
                f"the prompt template needs the mark {FIXED} once, where the part that all prompts share "
                f"ends; it has it {text.count(FIXED)} times"
            )
        if self.chat:
            text = chat_text(self.tokenizer, [{"role": "user", "content": text}], self.system_prompt)
        fixed, variable = text.split(FIXED)
        slots = sum(picture == SLOT for picture in pictures)
        if variable.count(SLOT) != slots or SLOT in fixed:
            raise ValueError(
                f"the prompt template shows {variable.count(SLOT)} of {slots} pictures; write `line.picture` of "
                "every line of the dialogue, or all of `dialogue.pictures`"
            )
        return fixed, variable

    # ---- tokens
    def ids(self, text: str) -> list[int]:
        """Return the token ids of a piece; ValueError if it holds a control token that the tokenizer does not have."""
        if text not in self._known:
            plain = {t: self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in CONTROL.findall(text)}
            unknown = [t for t, ids in plain.items() if len(ids) != 1]
            if unknown:
                raise ValueError(
                    f"the prompt template uses {', '.join(unknown)}, which are no single tokens of this "
                    "tokenizer; use --model.template plain, or a template with its own control tokens"
                )
            if len(self._known) > 4096:  # fixed parts and common beginnings come back, most utterances do not
                self._known.clear()
            self._known[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known[text]

    def encode(
        self, sample: Sample, pictures: Sequence[str], window: int | None, prompt: int = 0
    ) -> tuple[list[int], list[int | None]]:
        """Return the ids of the fixed part, and of the sample's own part with None at every position of an image."""
        fixed, variable = self.text(sample, pictures, window, prompt)
        pieces: list[int | None] = []
        for i, piece in enumerate(variable.split(SLOT)):
            pieces += [None] * (self.tokens_per_picture if i else 0) + (self.ids(piece) if piece else [])
        return self.ids(fixed) if fixed else [], pieces

    def ending(self, labels: Labels) -> str:
        """Render a dummy prompt once per label set, to detect how prompts end (colon, chat header)."""
        if labels not in self._endings:
            sample = Sample("", "", labels, Turn("", "Ada", "Oh."))
            self._endings[labels] = self.text(sample, [""], 0)[1]
        return self._endings[labels]

    def end_id(self, labels: Labels) -> int:
        """Return the token that ends an answer: ``<|eot_id|>`` where the prompt uses it, else the end of text."""
        if "<|eot_id|>" in self.ending(labels):
            return self.ids("<|eot_id|>")[0]
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer names no end-of-text token, so no answer could end; set eos_token in its "
                "tokenizer_config.json"
            )
        return self.tokenizer.eos_token_id

    def answers(self, labels: Labels) -> list[list[int]]:
        """Return the tokens of each label word behind a prompt, without end token: after a colon with a space."""
        words = label_words(labels, self.verbalizer)
        if self.ending(labels).endswith(":"):
            return [answer_ids(self.tokenizer, word) for word in words]
        return [self.ids(word) for word in words]
