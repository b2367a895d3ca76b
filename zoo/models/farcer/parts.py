"""What FARCER reads: dialogues written with image slots, solved dialogues in front of them, pictures, and Eq. 7."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jinja2 import Template
from torch import Tensor, nn

from zoo.media import Media, Unreadable
from zoo.media.clips import utterance_frames
from zoo.module import Rows, answer_ids, chat_text
from zoo.prompts import CONTROL, escape, words
from zoo.schema import Labels, Sample, Turn

# Two marks of a template. In a corpus' own texts both are written apart (`escape`), so that nobody can say them.
SLOT = "<|image|>"  # where the vectors of an image go
FIXED = "<|fixed|>"  # end of what is the same for many prompts, and therefore computed once
SHOWN = "<image feature token>"  # stands for an image in a solved dialogue: plain text (Fig. 2)
ROWS = (0.2, 0.8)  # height of a film of two people that is kept (C, IEMOCAP)

Faces = Literal["own", "none", "constant", "another"]


# -------------------------------------------------------------------------------------------------- projection and loss
def projection(width: int, to: int, layers: int, dropout: float) -> nn.Sequential:
    """(..., width) -> (..., to). One linear layer, or before it ``layers`` - 1 of [linear, GELU, dropout] that keep the
    width; weights then lie at 0, 3, 6, as in the authors' files."""
    inner = [part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout))]
    return nn.Sequential(*inner, nn.Linear(width, to))


def token_weights(answers: Sequence[Sequence[int]], end: int) -> dict[int, float]:
    """Weights of answer tokens: N / (K count) over all N tokens of the training answers, of which K are different
    (scikit-learn's "balanced"), and the end token half a point more (C)."""
    counts = Counter(token for answer in answers for token in answer)
    total = sum(counts.values())
    weights = {token: total / (len(counts) * n) for token, n in counts.items()}
    weights[end] += 0.5
    return weights


def weighted_loss(logp: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Eq. 7 of each answer, then their mean (P: one answer per step). All (B, T): log-probability of each label token,
    its weight, and whether it is one. Rows without tokens do not count."""
    weight = weight * mask
    total = weight.sum(1)
    labelled = total > 0
    return -((logp * weight).sum(1)[labelled] / total[labelled]).mean()


# ----------------------------------------------------------------------------------------------------- solved dialogues
def draw_shots(pool: Sequence[Sample], count: int, seed: int) -> tuple[Sample, ...]:
    """``count`` solved dialogues in random order, each of another label as long as there are labels. A dialogue is
    taken whole, up to its last labelled utterance; a label that ends none comes from inside one.

    Raises:
        ValueError: the pool has no labelled dialogue, or fewer than ``count``.
    """
    last = {s.dialogue: s for s in pool if s.target.label is not None}  # later ones replace earlier ones
    if len(last) < count:
        raise ValueError(
            f"{count} solved dialogues are wanted, but only {len(last)} labelled ones are there; lower "
            "--model.shots and --model.train_shots, or take them from another split (--model.shots_from)"
        )
    by_label: dict[int, list[Sample]] = {}
    for s in last.values():
        by_label.setdefault(s.label, []).append(s)
    ending = set(by_label)
    for s in pool:
        if s.target.label is not None and s.label not in ending:
            by_label.setdefault(s.label, []).append(s)
    rng = np.random.default_rng(seed)
    chosen: list[Sample] = []
    used: set[str] = set()
    while len(chosen) < count:
        for label in rng.permutation(sorted(by_label)):
            free = [s for s in by_label[label] if s.dialogue not in used]
            if free and len(chosen) < count:
                chosen.append(free[int(rng.integers(len(free)))])
                used.add(chosen[-1].dialogue)
    return tuple(chosen[i] for i in rng.permutation(count))


# --------------------------------------------------------------------------------------------------------------- prompt
@dataclass(frozen=True)
class Line:
    """An utterance as a template sees it: ``picture`` is a slot, the words that stand for one, or empty; ``emotion`` is
    a label word of an earlier turn, or None."""

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


@dataclass
class Writer:
    """Samples -> token ids, each piece of text by itself, without the tokens a tokenizer adds on its own.

    Args:
        template: sees ``bos``, ``labels`` (words), ``shots`` and ``dialogue`` (`Dialogue`), ``pictures`` (bool: are
            there any), ``past`` (bool), ``block`` (bool).
        pictures: whether the system sees any.
        slots: positions one image takes.
        window: earlier turns shown; None shows all.
        shot_window: the same in solved dialogues.
        shots: solved dialogues of each prompt, for each corpus: prompts x dialogues.
        chat, system: as of `zoo.module.PromptCollator`; ``bos`` is empty in a chat, whose format has its own.
    """

    tokenizer: Any
    template: Template
    pictures: bool
    slots: int = 1
    window: int | None = None
    past_labels: bool = False
    block: bool = False
    verbalizer: Mapping[str, str] | None = None
    shot_window: int | None = None
    shots: Mapping[str, Sequence[tuple[Sample, ...]]] = field(default_factory=dict)
    chat: bool = False
    system: str | None = None
    _known: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False)
    _solved: dict[tuple[str, int], list[Dialogue]] = field(default_factory=dict, init=False, repr=False)
    _endings: dict[Labels, str] = field(default_factory=dict, init=False, repr=False)

    # ---- text
    def history(self, sample: Sample, window: int | None) -> tuple[Turn, ...]:
        return sample.history if window is None else sample.history[max(0, len(sample.history) - window) :]

    def dialogue(self, sample: Sample, window: int | None, pictures: Sequence[str], solved: bool = False) -> Dialogue:
        """The sample's lines with what stands for their pictures. The label of the target is written only where the
        dialogue is ``solved``, and then as the answer, never inside."""
        said = words(sample.labels, self.verbalizer)
        turns = (*self.history(sample, window), sample.target)
        lines = [
            Line(
                escape(turn.speaker),
                escape(turn.text),
                picture,
                said[sample.labels.index(turn.label)]
                if self.past_labels and turn.label is not None and turn is not sample.target
                else None,
            )
            for turn, picture in zip(turns, pictures, strict=True)
        ]
        return Dialogue(tuple(lines), said[sample.label] if solved else None)

    def solved(self, corpus: str, prompt: int) -> list[Dialogue]:
        """The solved dialogues of a prompt. What stands for a picture is plain text (Fig. 2)."""
        if (corpus, prompt) not in self._solved:
            self._solved[corpus, prompt] = [
                self.dialogue(
                    shot,
                    self.shot_window,
                    [
                        SHOWN if self.pictures and turn.video is not None else ""
                        for turn in (*self.history(shot, self.shot_window), shot.target)
                    ],
                    solved=True,
                )
                for shot in (self.shots[corpus][prompt] if self.shots.get(corpus) else ())
            ]
        return self._solved[corpus, prompt]

    def text(self, sample: Sample, pictures: Sequence[str], window: int | None, prompt: int = 0) -> tuple[str, str]:
        """The fixed part and the sample's own part of a prompt.

        Raises:
            ValueError: a template without its two marks, or one that shows other than all pictures.
        """
        text = self.template.render(
            bos="" if self.chat else self.tokenizer.bos_token or "",
            labels=list(words(sample.labels, self.verbalizer)),
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
            text = chat_text(self.tokenizer, [{"role": "user", "content": text}], self.system)
        fixed, own = text.split(FIXED)
        shown = sum(picture == SLOT for picture in pictures)
        if own.count(SLOT) != shown or SLOT in fixed:
            raise ValueError(
                f"the prompt template shows {own.count(SLOT)} of {shown} pictures; write `line.picture` of "
                "every line of the dialogue, or all of `dialogue.pictures`"
            )
        return fixed, own

    # ---- tokens
    def ids(self, text: str) -> list[int]:
        """Token ids of a piece. ValueError if it holds a control token that the tokenizer does not have."""
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
        """Ids of the fixed part, and of the sample's own part with None at every position of an image."""
        fixed, own = self.text(sample, pictures, window, prompt)
        pieces: list[int | None] = []
        for i, piece in enumerate(own.split(SLOT)):
            pieces += [None] * (self.slots if i else 0) + (self.ids(piece) if piece else [])
        return self.ids(fixed) if fixed else [], pieces

    def ending(self, labels: Labels) -> str:
        """The own part of some prompt, from which it is seen how prompts end."""
        if labels not in self._endings:
            sample = Sample("", "", labels, Turn("", "Ada", "Oh."))
            self._endings[labels] = self.text(sample, [""], 0)[1]
        return self._endings[labels]

    def end_id(self, labels: Labels) -> int:
        """The token that ends an answer: ``<|eot_id|>`` where the prompt uses it, else the tokenizer's end of text."""
        if "<|eot_id|>" in self.ending(labels):
            return self.ids("<|eot_id|>")[0]
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer names no end-of-text token, so no answer could end; set eos_token in its "
                "tokenizer_config.json"
            )
        return self.tokenizer.eos_token_id

    def answers(self, labels: Labels) -> list[list[int]]:
        """Tokens of each label word as it stands behind a prompt, without end token: after a colon with a space."""
        said = words(labels, self.verbalizer)
        if self.ending(labels).endswith(":"):
            return [answer_ids(self.tokenizer, word) for word in said]
        return [self.ids(word) for word in said]


# ------------------------------------------------------------------------------------------------------------- pictures
@dataclass
class Pictures:
    """The one frame of an utterance: at half of its time (P), squeezed to the encoder's square as its own
    preprocessing does; of a film of two people the speaker's half, without the top and bottom fifth (C, IEMOCAP).

    Args:
        size: side in pixels.
        faces: whose face is shown: the speaker's ``own``; in controls one ``constant`` face, or that of ``another``
            speaker in another dialogue.
        pool: (dialogue, turn) of the training split, from which the controls take their faces.
    """

    media: Media
    size: int
    faces: Faces = "own"
    pool: Sequence[tuple[str, Turn]] = ()

    def of(self, turn: Turn, dialogue: str) -> Turn | None:
        """The turn whose picture is shown for a turn; None if it has none of its own."""
        if turn.video is None:
            return None
        if self.faces == "constant":
            return self.pool[0][1]
        if self.faces == "another":
            start = zlib.crc32(f"{dialogue}/{turn.id}".encode())
            ring = (self.pool[(start + i) % len(self.pool)] for i in range(len(self.pool)))
            return next(other for name, other in ring if name != dialogue and other.speaker != turn.speaker)
        return turn

    @staticmethod
    def key(turn: Turn) -> str:
        return f"{turn.video}|{turn.frame_at}|{turn.crop}"

    def read(self, turn: Turn) -> np.ndarray | None:
        """uint8 (3, S, S); None if the file gives no picture (`Media` notes why)."""
        try:
            return utterance_frames(self.media, turn, 1, side=(self.size, self.size), rows=ROWS)[0]
        except Unreadable:
            return None


# ------------------------------------------------------------------------------------------------------------- collator
@dataclass
class Collator:
    """Samples -> a batch of

    - ``fixed`` (S,) int64: the beginning shared by all prompts; empty if they differ in it, then it is part of each;
    - ``input_ids`` (B, P) int64, ``mask`` (B, P) bool, left-padded: the rest of each prompt;
    - ``image_at`` (B, P) bool: positions of image vectors, and ``image`` (M,) int64: which image each slot shows, in
      the order of the positions (``slots`` positions per entry);
    - ``frames`` (U, 3, S, S) uint8 and ``keys``: the different images and what identifies them;
    - ``missing``: pictures that should be there and are not (no clip, or unreadable): no slot stands in their place;
    - ``without_picture``: samples whose prompt shows none;
    - ``truncated``: prompts that lost turns to ``max_length``;
    - in training ``answer`` (B, T) int64 and ``answer_mask`` (B, T) bool: label tokens and end token, right-padded;
    - ``samples``.
    """

    writer: Writer
    pictures: Pictures | None
    pad_id: int
    max_length: int
    training: bool

    @property
    def media(self) -> Media | None:
        return None if self.pictures is None else self.pictures.media

    def length(self, sample: Sample) -> int:
        """Characters that vary between samples; only the order matters."""
        turns = (*self.writer.history(sample, self.writer.window), sample.target)
        return sum(len(t.text) for t in turns)

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> dict[str, Any]:
        drawn = int(rng.integers(1 << 30)) if self.training else 0
        read: dict[str, np.ndarray | None] = {}
        shown: dict[str, int] = {}  # key of an image that is used -> its number
        rows, image, shown_in, missing, truncated = [], [], [], 0, 0
        for sample in samples:
            fixed, own, keys, absent, cut = self._prompt(sample, self._number(sample, drawn), read)
            rows.append((fixed, own))
            image += [shown.setdefault(key, len(shown)) for key in keys]
            shown_in.append(keys)
            missing, truncated = missing + absent, truncated + cut
        same = all(fixed == rows[0][0] for fixed, _ in rows)
        owns = [own if same else fixed + own for fixed, own in rows]
        length = max(map(len, owns))
        ids = torch.full((len(rows), length), self.pad_id)
        mask, image_at = (
            torch.zeros(len(rows), length, dtype=torch.bool),
            torch.zeros(len(rows), length, dtype=torch.bool),
        )
        for i, own in enumerate(owns):
            ids[i, length - len(own) :] = torch.tensor([self.pad_id if x is None else x for x in own])
            image_at[i, length - len(own) :] = torch.tensor([x is None for x in own])
            mask[i, length - len(own) :] = True
        batch = {
            "samples": Rows(samples),
            "fixed": torch.tensor(rows[0][0] if same else [], dtype=torch.int64),
            "input_ids": ids,
            "mask": mask,
            "image_at": image_at,
            "image": torch.tensor(image, dtype=torch.int64),
            "keys": tuple(shown),
            "frames": torch.from_numpy(np.stack([read[key] for key in shown])) if shown else None,
            "missing": missing,
            "without_picture": sum(not keys for keys in shown_in),
            "truncated": truncated,
        }
        return batch | (self._answers(samples) if self.training else {})

    def _number(self, sample: Sample, drawn: int) -> int:
        """Which prompt: the batch's, or the next one without a dialogue of the sample, which would tell its label.

        Raises:
            ValueError: the sample's dialogue is in all of them.
        """
        prompts = self.writer.shots.get(sample.labels.corpus, ())
        if not self.training or not prompts:
            return 0
        for i in range(len(prompts)):
            number = (drawn + i) % len(prompts)
            if all(shot.dialogue != sample.dialogue for shot in prompts[number]):
                return number
        raise ValueError(
            f"the dialogue of {sample.id} is a solved example in each of the {len(prompts)} prompts; take "
            "them from another split (--model.shots_from dev), or give more dialogues"
        )

    def _prompt(
        self, sample: Sample, number: int, read: dict[str, np.ndarray | None]
    ) -> tuple[list[int], list[int | None], list[str], int, bool]:
        """Fixed ids, own ids, the images in them, how many are missing, and whether turns were left out.

        Raises:
            ValueError: the prompt is too long even without earlier turns.
        """
        window, cut = self.writer.window, False
        while True:
            turns = (*self.writer.history(sample, window), sample.target)
            keys = [self._key(turn, sample.dialogue, read) for turn in turns] if self.pictures else [None] * len(turns)
            fixed, own = self.writer.encode(sample, [SLOT if key else "" for key in keys], window, number)
            if len(fixed) + len(own) <= self.max_length:
                used = [key for key in keys if key]
                return fixed, own, used, (len(keys) - len(used)) if self.pictures else 0, cut
            if len(turns) == 1:
                raise ValueError(
                    f"the prompt of {sample.id} has {len(fixed)} + {len(own)} tokens without any earlier turn, more "
                    f"than --model.max_length {self.max_length}; raise it as far as the model's positions go, or show "
                    "fewer or shorter solved dialogues (--model.shots, --model.train_shots, --model.shot_window)"
                )
            window, cut = len(turns) - 2, True

    def _key(self, turn: Turn, dialogue: str, read: dict[str, np.ndarray | None]) -> str | None:
        """Identity of the picture of a turn, which is read once per batch; None if there is none."""
        seen = self.pictures.of(turn, dialogue)
        if seen is None:
            return None
        key = self.pictures.key(seen)
        if key not in read:
            read[key] = self.pictures.read(seen)
        return None if read[key] is None else key

    def _answers(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        answers = []
        for s in samples:
            labelled = s.target.label is not None
            answers.append([*self.writer.answers(s.labels)[s.label], self.writer.end_id(s.labels)] if labelled else [])
        length = max(map(len, answers))
        ids, mask = torch.full((len(samples), length), self.pad_id), torch.zeros(len(samples), length, dtype=torch.bool)
        for i, answer in enumerate(answers):
            ids[i, : len(answer)] = torch.tensor(answer, dtype=torch.int64)
            mask[i, : len(answer)] = True
        return {"answer": ids, "answer_mask": mask}
