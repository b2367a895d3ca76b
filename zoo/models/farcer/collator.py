"""FARCER's input: prompts with image slots (Fig. 2), the pictures in them, and the batches of both."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.media import Media
from zoo.media.clips import utterance_frames
from zoo.prompts import CONTROL, PromptTemplate, escape, label_words
from zoo.schema import Labels, Problem, Sample, Turn
from zoo.training.batch import SampleBatch
from zoo.training.feature_files import FeatureFiles, ReadClip, read_clip, stacked_features
from zoo.training.given_features import FeatureFolder
from zoo.training.prompting import answer_ids, chat_text

# Two marks of a template. In a corpus' own texts both are written apart (`escape`), so that no corpus can say them.
SLOT = "<|image|>"  # where the vectors of an image go
FIXED = "<|fixed|>"  # end of what is the same for many prompts, and therefore computed once
SHOWN = "<image feature token>"  # stands for an image in a solved dialogue: plain text (Fig. 2)
KEPT_ROWS = (0.2, 0.8)  # height of a film of two people that is kept (C, IEMOCAP)

Faces = Literal["own", "none", "constant", "another"]


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
    template: PromptTemplate
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
            pieces += [None] * (self.tokens_per_picture if i else 0)
            pieces += self.ids(piece) if piece else []
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


# ------------------------------------------------------------------------------------------------------------- pictures
@dataclass
class PictureReader:
    """Read the one frame of an utterance: at half of its time (P), squeezed to the encoder's square.

    That is how the encoder's own preprocessing does it. Of a film of two people it is the speaker's half, without the
    top and bottom fifth (C, IEMOCAP).

    Args:
        size: side in pixels.
        faces: whose face is shown: the speaker's ``own``; in controls one ``constant`` face, or that of ``another``
            speaker in another dialogue.
        pool: (dialogue, turn) of the training split, from which the controls take their faces.
        files: features on disk; a picture that is found there is not decoded.
        given_features: features that stand for pictures: a vector, or the mean of a sequence.
    """

    media: Media
    size: int
    faces: Faces = "own"
    pool: Sequence[tuple[str, Turn]] = ()
    files: FeatureFiles | None = None
    given_features: FeatureFolder | None = None

    def has(self, dialogue: str, turn: Turn) -> bool:
        """Return whether a turn has a picture of its own, or features of one."""
        return turn.video is not None if self.given_features is None else self.given_features.has(dialogue, turn)

    def choose(self, turn: Turn, dialogue: str) -> tuple[str, Turn] | None:
        """Return dialogue and turn whose picture is shown for a turn; None if it has none of its own."""
        if not self.has(dialogue, turn):
            return None
        if self.faces == "constant":
            return self.pool[0]
        if self.faces == "another":
            start = zlib.crc32(f"{dialogue}/{turn.id}".encode())
            ring = (self.pool[(start + i) % len(self.pool)] for i in range(len(self.pool)))
            return next((name, x) for name, x in ring if name != dialogue and x.speaker != turn.speaker)
        return dialogue, turn

    def key(self, dialogue: str, turn: Turn) -> str:
        """Return what identifies the picture of a turn."""
        if self.given_features is not None:
            return f"{dialogue}|{turn.id}"
        return f"{turn.video}|{turn.frame_at}|{turn.crop}"

    def decode(self, turn: Turn) -> np.ndarray:
        """Return the picture, uint8 (3, S, S). Unreadable if the file gives none."""
        return utterance_frames(self.media, turn, 1, side=(self.size, self.size), rows=KEPT_ROWS)[0]

    def read(self, dialogue: str, turn: Turn, problems: list[Problem]) -> ReadClip | None:
        """Return the picture, or its features; None if the file gives none (`Media` or ``problems`` say why)."""
        if self.given_features is not None:
            return self.given_features.read(dialogue, turn, 1, problems)
        if turn.video is None:
            return None
        return read_clip(self.media, turn, turn.video, lambda: (self.decode(turn), False), self.files, problems)


def _of_samples(problems: Sequence[Problem], samples: Sequence[Sample]) -> list[Problem]:
    """Return problems with the samples of a batch that they concern; an earlier turn without features is none."""
    ids = {sample.id for sample in samples}
    of_batch: list[Problem] = [{**row, "samples": [x for x in row["samples"] if x in ids]} for row in problems]
    return [row for row in of_batch if row["samples"] or row["problem"] != "missing"]


def image_batch(clips: Sequence[ReadClip]) -> dict[str, Any]:
    """Return the part of a batch that its images are, see `FarcerCollator`."""
    pixels = [clip.array for clip in clips if clip.array is not None]
    return {
        "keys": tuple(clip.key for clip in clips),
        "frames_known": tuple(clip.features is not None for clip in clips),
        "frame_features": stacked_features(clips),
        "frames": torch.from_numpy(np.stack(pixels)) if pixels else None,
        "frame_facts": tuple(clip.facts for clip in clips),
    }


# -------------------------------------------------------------------------------------------------------------- batches
class WrittenPrompt(NamedTuple):
    """A prompt as token ids.

    Attributes:
        fixed: ids of the part that other prompts share.
        variable: ids of the sample's own part; None at the positions of images.
        images: keys of the images in it, in order.
        missing: number of pictures that should be there and are not.
        truncated: whether earlier turns were left out.
    """

    fixed: list[int]
    variable: list[int | None]
    images: list[str]
    missing: int
    truncated: bool


@dataclass(kw_only=True)
class FarcerCollator:
    """Turn samples into a batch of

    - ``fixed`` (S,) int64: the beginning shared by all prompts; empty if they differ in it, then it is part of each;
    - ``input_ids`` (B, P) int64, ``mask`` (B, P) bool, left-padded: the rest of each prompt;
    - ``image_at`` (B, P) bool: positions of image vectors, and ``image`` (M,) int64: which image each slot shows, in
      the order of the positions (``tokens_per_picture`` positions per entry);
    - ``keys``: what identifies the U different images; ``frames_known``: whether the features of each stood in a file,
      ``frame_features`` those features, one row per known image, ``frames`` (., 3, S, S) uint8 the others (both None if
      there are none), and ``frame_facts`` what is kept beside the features of each;
    - ``missing``: pictures that should be there and are not (no clip, or unreadable): no slot stands in their place;
    - ``without_picture``: samples whose prompt shows none;
    - ``truncated``: prompts that lost turns to ``max_length``;
    - in training ``answer`` (B, T) int64 and ``answer_mask`` (B, T) bool: label tokens and end token, right-padded;
    - ``samples``.
    """

    writer: PromptWriter
    pictures: PictureReader | None
    pad_id: int
    max_length: int
    training: bool

    @property
    def media(self) -> Media | None:
        """What reads the clips; None if no faces are shown."""
        return None if self.pictures is None else self.pictures.media

    def length(self, sample: Sample) -> int:
        """Return the number of characters that vary between samples; only the order matters."""
        return sum(len(t.text) for t in (*sample.context(self.writer.window), sample.target))

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> dict[str, Any]:
        """Return the batch of some samples."""
        drawn = int(rng.integers(1 << 30)) if self.training else 0
        frames: dict[str, ReadClip | None] = {}
        problems: list[Problem] = []
        prompts = [self._write(sample, self._prompt_number(sample, drawn), frames, problems) for sample in samples]
        number: dict[str, int] = {}  # of each image that is used, by its key
        image = [number.setdefault(key, len(number)) for prompt in prompts for key in prompt.images]
        shared = all(prompt.fixed == prompts[0].fixed for prompt in prompts)
        rows = [prompt.variable if shared else [*prompt.fixed, *prompt.variable] for prompt in prompts]
        ids, mask, image_at = self._padded(rows)
        readable = [clip for key in number if (clip := frames[key]) is not None]
        batch = {
            "samples": SampleBatch(samples),
            "fixed": torch.tensor(prompts[0].fixed if shared else [], dtype=torch.int64),
            "input_ids": ids,
            "mask": mask,
            "image_at": image_at,
            "image": torch.tensor(image, dtype=torch.int64),
            "problems": _of_samples(problems, samples),
            **image_batch(readable),
            "missing": sum(prompt.missing for prompt in prompts),
            "without_picture": sum(not prompt.images for prompt in prompts),
            "truncated": sum(prompt.truncated for prompt in prompts),
        }
        return batch | (self._answers(samples) if self.training else {})

    def _padded(self, rows: Sequence[Sequence[int | None]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return token ids, padded on the left, which are real, and which stand for images (None): (B, P) each."""
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.pad_id)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        image_at = torch.zeros_like(mask)
        for i, row in enumerate(rows):
            start = length - len(row)
            ids[i, start:] = torch.tensor([self.pad_id if x is None else x for x in row])
            image_at[i, start:] = torch.tensor([x is None for x in row])
            mask[i, start:] = True
        return ids, mask, image_at

    def _prompt_number(self, sample: Sample, drawn: int) -> int:
        """Return the prompt's number: the batch's, or the next one without a dialogue of the sample.

        A solved example from the same dialogue would tell its label.

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

    def _write(
        self, sample: Sample, number: int, frames: dict[str, ReadClip | None], problems: list[Problem]
    ) -> WrittenPrompt:
        """Write the prompt of a sample, and read the images that are not among ``frames`` yet.

        Args:
            number: of the prompt.
            frames: what was read for the batch, by key.
            problems: gets what was wrong with files of features.

        Raises:
            ValueError: the prompt is too long even without earlier turns and words.
        """
        window, truncated = self.writer.window, False
        while True:
            turns = (*sample.context(window), sample.target)
            keys = [self._read_picture(turn, sample.dialogue, frames, problems) for turn in turns]
            slots = [SLOT if key else "" for key in keys]
            fixed, variable = self.writer.encode(sample, slots, window, number)
            if len(fixed) + len(variable) <= self.max_length:
                images = [key for key in keys if key]
                missing = len(keys) - len(images) if self.pictures else 0
                return WrittenPrompt(fixed, variable, images, missing, truncated)
            if len(turns) == 1:
                if sample.target.text:
                    excess = len(fixed) + len(variable) - self.max_length
                    # a token is a character at least, mostly: what is still too long loses more
                    target = replace(sample.target, text=sample.target.text[excess:].lstrip())
                    sample, truncated = replace(sample, target=target), True
                    continue
                raise ValueError(
                    f"the prompt of {sample.id} has {len(fixed)} + {len(variable)} tokens without any earlier turn or "
                    f"word, more than --model.max_length {self.max_length}; raise it as far as the model's positions "
                    "go, or show fewer or shorter solved dialogues (--model.shots, --model.train_shots, "
                    "--model.shot_window)"
                )
            window, truncated = len(turns) - 2, True

    def _read_picture(
        self, turn: Turn, dialogue: str, frames: dict[str, ReadClip | None], problems: list[Problem]
    ) -> str | None:
        """Return the key of the picture of a turn, which is read once per batch; None if there is none."""
        chosen = None if self.pictures is None else self.pictures.choose(turn, dialogue)
        if self.pictures is None or chosen is None:
            return None
        key = self.pictures.key(*chosen)
        if key not in frames:
            frames[key] = self.pictures.read(*chosen, problems)
        return None if frames[key] is None else key

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
