"""Input processing of Emotion-Qwen: pictures and videos of any size in a prompt, by pixel budget.

`QwenCollator` reads the clip of each sample (and of the earlier turns of a conversation), lets `FaceCapture` make the
second, masked stream of it, cuts both into the patches that the vision tower reads, and leaves as many positions in the
prompt as the compressor will give tokens. What is missing or unreadable has no position and is counted.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.backbones.mrope import Segment, mrope_positions
from zoo.backbones.patch_vision import to_patches
from zoo.media import Media, Unreadable
from zoo.media.clips import STILL
from zoo.media.frames import PixelBudget
from zoo.models.emotion_qwen.faces import FaceCapture
from zoo.models.emotion_qwen.sampling import FrameSampling
from zoo.prompts import escape
from zoo.schema import Problem, Sample, Turn
from zoo.training.batch import IGNORE_INDEX
from zoo.training.collator import PromptCollator
from zoo.training.multimodal import drop_oldest
from zoo.training.prompting import answer_ids, chat_text

# Marks of ours, which are written apart where a corpus' text holds them (`zoo.prompts.escape`).
LEARNT = ("<|learnt:begin|>", "<|learnt:end|>")  # an earlier answer that is learnt, too
MARK = re.compile(r"(<\|clip:\d+:\d+\|>|<\|learnt:(?:begin|end)\|>)")  # of a clip: which input, how many tokens
TURN = re.compile(r"<\|turn:(user|assistant|system)\|>")  # what follows was said by this one
PLACE = re.compile(r"<(?:image|video)>")  # in a question: here goes the clip
LARGEST = 8192 * 8192  # pixels of a picture; beyond, it counts as unreadable
IS_LEARNT = 2**32  # added to the ids of tokens of a prompt that are learnt, until they are a batch


@dataclass(frozen=True)
class ClipPatches:
    """A picture, a video or a stream of faces, as the tower reads it.

    Attributes:
        patches: uint8 (n, 3 * temporal * patch^2); a quarter of the normalised ones, to be sent to the device.
        grid: int64 (1, 3): t, h, w in patches.
        tokens: positions it takes in the prompt.
        seconds: between two steps of a video's time; None for a picture.
        key: identity of what was read.
    """

    patches: Tensor
    grid: Tensor
    tokens: int
    seconds: float | None
    key: tuple[Hashable, ...]


class NoRoom(ValueError):
    """Raised for a prompt whose clips leave no room for words."""


@dataclass
class ShownClips:
    """The clips of a sample as its prompt is written, oldest first; the faces of a clip come after it.

    Attributes:
        left_out: 0: all are shown; 1: no faces; from 2 on also not so many less one of the oldest.
        met: how many there are.
        inputs: those with positions.
    """

    left_out: int = 0
    met: int = 0
    inputs: list[ClipPatches] = field(default_factory=list)


@dataclass(kw_only=True)
class QwenCollator(PromptCollator):
    """Turn samples into the batch of `PromptCollator`, and

    - ``slots`` (B, T) bool: where the compressor's tokens go, in order; ``input_ids`` holds the tokenizer's image or
      video pad there, or padding if it has none;
    - ``patches`` (N, 3 * temporal * patch^2) uint8, ``grid`` (M, 3) int64, ``keys`` and ``rows`` (which sample), of
      the M pictures, videos and streams of faces, in the order of their slots; patches and grid are None if M is 0;
    - ``positions`` (3, B, T) int64, with ``mrope`` alone: time, height, width; 0 at padding;
    - counted: ``no_clip``, ``no_faces`` (clips without an expressive face, where faces are captured) and ``nothing``
      (samples without words or question either).

    Templates see ``vision`` and ``faces`` (what stands for the clip and for its faces, or an empty string), ``still``
    (the clip is a picture), ``question`` (empty: the emotion is asked for) and ``earlier`` (the conversation before the
    question).

    Args:
        show_text: whether the utterance's words are shown.
        sampling: which frames of a video are shown.
        min_pixels, max_pixels: budget of a picture (see `to_patches`).
        video_max_pixels: budget of each frame of a video.
        patch, merge, temporal: the tower's.
        capture: Facial Emotion Capture; None: off.
        mrope: whether prompts have three positions per token.
        tokens_per_second: positions in time per second of a video; the tower's.
    """

    media: Media = field(default_factory=Media)
    show_text: bool = True
    sampling: FrameSampling = FrameSampling()
    min_pixels: int = 56 * 56
    max_pixels: int = 1280 * 28 * 28
    video_max_pixels: int = 448 * 448
    patch: int = 14
    merge: int = 2
    temporal: int = 2
    capture: FaceCapture | None = None
    mrope: bool = False
    tokens_per_second: float = 2.0

    # ---- reading
    def read_clip(self, turn: Turn, sample_id: str, faces: bool) -> tuple[ClipPatches | None, ClipPatches | None]:
        """Return an utterance's clip and its stream of expressive faces; None where there is none.

        Args:
            faces: whether faces are looked for, if they are captured at all.
        """
        if turn.video is None:
            return None, None
        try:
            return self._read_clip(turn, turn.video, sample_id, self.capture if faces else None)
        except Unreadable as error:
            self.media.report(turn.video, error.reason)  # what is found without decoding `media` has not seen
            return None, None

    def _read_clip(
        self, turn: Turn, video: Path, sample_id: str, capture: FaceCapture | None
    ) -> tuple[ClipPatches | None, ClipPatches | None]:
        # faces are found, and cut out, in the picture's own pixels
        frames, seconds = self.sampling.read(self.media, turn, self._budgets() if capture is None else None)
        pixels = torch.from_numpy(np.ascontiguousarray(frames))
        captured = None if capture is None else capture(pixels, sample_id)
        key = (str(video), turn.start, turn.end, turn.crop, len(pixels))
        clip = self._to_patches(pixels, seconds, (*key, "all"))
        return clip, None if captured is None else self._to_patches(captured.frames, seconds, (*key, "faces"))

    def _budgets(self) -> tuple[PixelBudget, PixelBudget]:
        """Return the budgets of a picture, and of a video's frames."""
        factor = self.patch * self.merge
        picture, video = (
            PixelBudget(factor, min(self.min_pixels, most), most) for most in (self.max_pixels, self.video_max_pixels)
        )
        return picture, video

    def _to_patches(self, frames: Tensor, seconds: float | None, key: tuple[Hashable, ...]) -> ClipPatches:
        picture, video = self._budgets()
        _, least, most = picture if seconds is None else self.sampling.budget(video, len(frames))
        patches, grid = to_patches(frames, least, most, self.patch, self.merge, self.temporal, normalise=False)
        step = None if seconds is None else seconds * self.temporal
        return ClipPatches(patches, grid, len(patches) // self.merge**2, step, key)

    # ---- writing
    def __call__(  # type: ignore[override]  # a batch of prompts, with clips
        self, samples: Sequence[Sample], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Return the batch of some samples."""
        prompts, clips_of_row = [], []
        inputs: list[ClipPatches] = []  # in the order of their slots
        rows: list[int] = []
        no_clip = no_faces = nothing = 0
        problems: list[Problem] = []
        for row, sample in enumerate(samples):
            clips, variables, ids, shortened = self._write(sample, rng, problems)
            has_clip = bool(variables["has_clip"])
            no_clip += not has_clip
            no_faces += self.capture is not None and has_clip and not variables["faces"]
            nothing += not clips and not variables["question"] and not (self.show_text and sample.target.text)
            order = self._order_of_clips(sample, ids, clips)
            inputs += [clips[k] for k in order]
            rows += [row] * len(order)
            clips_of_row.append(clips)
            prompts.append((ids, shortened))
        batch: dict[str, Any] = {**self.batch(samples, prompts, rng)}
        learnt = batch["input_ids"] >= IS_LEARNT
        ids = batch["input_ids"].where(~learnt, batch["input_ids"] - IS_LEARNT)
        slots = ids < 0
        if self.mrope:
            batch["positions"] = self._positions(ids, batch["mask"], clips_of_row)
        batch["input_ids"] = self._filled(ids, clips_of_row)
        if self.training:
            batch["target_ids"] = ids.masked_fill(~batch["mask"] | slots, IGNORE_INDEX)
            batch["answer"] |= learnt
        return batch | {
            "problems": [*problems, *batch["problems"]],
            "slots": slots,
            "patches": torch.cat([x.patches for x in inputs]) if inputs else None,
            "grid": torch.cat([x.grid for x in inputs]) if inputs else None,
            "keys": tuple(x.key for x in inputs),
            "rows": tuple(rows),
            "no_clip": int(no_clip),
            "no_faces": int(no_faces),
            "nothing": int(nothing),
        }

    def _write(
        self, sample: Sample, rng: np.random.Generator, problems: list[Problem]
    ) -> tuple[list[ClipPatches], dict[str, Any], list[int], bool]:
        """Return the clips of a prompt, its variables, its token ids, and whether it was shortened.

        Where clips leave no room for words, faces and then the oldest clips are left out until they do.

        Args:
            problems: gets an entry for a sample whose clips were left out.

        Raises:
            ValueError: there is no room without any clip either.
        """
        visible = sample if self.show_text else replace(sample, target=replace(sample.target, text=""))
        reason, clips = "", ShownClips()
        while True:
            variables = self._variables(sample, clips)
            template_variables = {name: value for name, value in variables.items() if name != "has_clip"}
            try:
                ids, shortened = self.prompt_ids(visible, rng, template_variables)
                break
            except NoRoom as error:
                if not clips.inputs:
                    raise
                reason, clips = str(error), ShownClips(clips.left_out + 1)
        if reason:
            reason = f"{len(clips.inputs)} of its pictures, videos and streams of faces are shown: {reason}"
            problem = "clips left out" if clips.inputs else "all clips left out"
            problems.append({"problem": problem, "name": sample.id, "reason": reason, "samples": [sample.id]})
        return clips.inputs, variables, ids, shortened

    @staticmethod
    def _order_of_clips(sample: Sample, ids: Sequence[int], clips: Sequence[ClipPatches]) -> list[int]:
        """Return the numbers of a sample's clips as they stand in its prompt; each must stand there whole, once."""
        order = list(dict.fromkeys(-x - 1 for x in ids if x < 0))
        if sorted(order) != list(range(len(clips))) or any(ids.count(-k - 1) != clips[k].tokens for k in order):
            raise ValueError(
                f"the prompt template shows {len(order)} of {len(clips)} clips of {sample.id}; write "
                "{{ vision }} and {{ faces }} once each, and {{ earlier }} before {{ question }}"
            )
        return order

    def _variables(self, sample: Sample, clips: ShownClips) -> dict[str, Any]:
        """Return what the template shows beyond words, and ``has_clip``; ``clips`` gets the inputs."""
        earlier = "" if sample.question is None else self._earlier_turns(sample, clips)
        clip, faces = self.read_clip(sample.target, sample.id, faces=not clips.left_out)
        vision, masked = self._mark(clip, clips), self._mark(faces, clips)
        has_clip = bool(vision)
        question = ""
        if sample.question is not None:
            pieces = PLACE.split(sample.question)
            if len(pieces) > 2:
                raise ValueError(
                    f"{sample.id} asks with {len(pieces) - 1} places for a clip, but a turn has one clip; "
                    "give each its own turn"
                )
            question = (vision if len(pieces) == 2 else "").join(map(escape, pieces))
            vision = "" if len(pieces) == 2 else vision
        still = sample.target.video is not None and sample.target.video.suffix.lower() in STILL
        return {
            "vision": vision,
            "faces": masked,
            "question": question,
            "earlier": earlier,
            "still": still,
            "has_clip": has_clip,
        }

    def _earlier_turns(self, sample: Sample, clips: ShownClips) -> str:
        """Return the conversation before a question as text."""
        earlier = ""
        for turn in sample.history:
            text = self._text_with_clip(turn.text, turn, sample, clips)
            from_assistant = turn.speaker == "assistant"
            learnt = from_assistant and sample.learn_history
            if learnt:
                text = f"{LEARNT[0]}{text}{LEARNT[1]}"
            if self.chat:
                earlier += f"<|turn:{turn.speaker if turn.speaker in ('assistant', 'system') else 'user'}|>{text}"
            else:
                begin = "answer:" if learnt else "answer: "  # the space is one of the tokens that are learnt
                earlier += f"{begin if from_assistant else ''}{text}\n"
        return f"{earlier}<|turn:user|>" if earlier and self.chat else earlier

    def _text_with_clip(self, text: str, turn: Turn, sample: Sample, clips: ShownClips) -> str:
        """Return an earlier turn's words with its clip in its place."""
        pieces = PLACE.split(text)
        if len(pieces) > 2 or (len(pieces) == 2 and turn.video is None):
            raise ValueError(
                f"turn {turn.id} before {sample.id} has {len(pieces) - 1} places for a clip and "
                f"{'no' if turn.video is None else 'one'} clip; expected one each"
            )
        mark = self._mark(self.read_clip(turn, sample.id, faces=False)[0], clips) if len(pieces) == 2 else ""
        return mark.join(map(escape, pieces))

    def _mark(self, clip: ClipPatches | None, clips: ShownClips) -> str:
        if clip is None:
            return ""
        clips.met += 1
        if clips.met < clips.left_out:  # the first to go are the faces
            return ""
        clips.inputs.append(clip)
        mark = f"<|clip:{len(clips.inputs) - 1}:{clip.tokens}|>"
        return mark if self._special("<|vision_start|>") is None else f"<|vision_start|>{mark}<|vision_end|>"

    def _special(self, token: str) -> int | None:
        return self.tokenizer.get_added_vocab().get(token)

    def messages(self, text: str) -> list[dict[str, str]]:
        """Return the turns of a conversation; a question alone is one turn of the user."""
        first, *rest = TURN.split(text)
        messages = [{"role": "user", "content": first}] * bool(first)
        for role, content in zip(rest[::2], rest[1::2], strict=True):
            if messages and messages[-1]["role"] == role:  # a turn with several pictures is several turns here
                messages[-1] = {"role": role, "content": messages[-1]["content"] + content}
            else:
                messages.append({"role": role, "content": content})
        return messages

    def render_chat(self, text: str) -> str:
        """Return the chat of a rendered prompt; a conversation's own system message replaces the system prompt."""
        messages = self.messages(text)
        has_own = bool(messages) and messages[0]["role"] == "system"
        return chat_text(self.tokenizer, messages, None if has_own else self.system_prompt)

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a rendered prompt; the positions of clip k are -(k + 1).

        The text between two clips is tokenized by itself; so is an earlier answer that is learnt, whose ids, and that
        of the end token behind it, are `IS_LEARNT` higher.
        """
        if self.chat:
            text = self.render_chat(text)
        ids: list[int] = []
        mark = ""
        for i, piece in enumerate(MARK.split(text)):
            if piece in LEARNT:
                mark = piece
            elif mark == LEARNT[0]:
                ids += [IS_LEARNT + x for x in answer_ids(self.tokenizer, piece, self.chat)]
            elif i % 2:
                number, tokens = map(int, re.findall(r"\d+", piece))
                ids += [-number - 1] * tokens
            elif piece or i == 0:
                begins_text = i == 0 and not self.chat
                piece_ids = self.tokenizer(piece, add_special_tokens=begins_text)["input_ids"]
                closed = begins_text and piece_ids and piece_ids[-1] == self.tokenizer.eos_token_id
                ends = mark == LEARNT[1] and piece_ids[:1] == [self.tokenizer.eos_token_id]
                ids += [IS_LEARNT + piece_ids[0], *piece_ids[1:]] if ends else piece_ids[:-1] if closed else piece_ids
                mark = ""
        return ids

    def truncate(self, text: str, ids: list[int]) -> list[int]:
        """Return a prompt without its oldest text tokens; clips and control tokens stay."""
        special = self.tokenizer.all_special_ids
        shorter = drop_oldest(ids, self.max_length, frozenset([*special, *(IS_LEARNT + x for x in special)]))
        if shorter is None:
            raise NoRoom(
                f"{sum(x < 0 for x in ids)} positions of clips leave no room for words within --model.max_length "
                f"{self.max_length}; raise it, or lower max_pixels, video_max_pixels or max_frames"
            )
        return shorter

    def target_ids(self, sample: Sample, rng: np.random.Generator) -> list[int]:
        """Return the tokens to be learnt: written answer or label word, and end token; none without either."""
        if sample.answer is None:
            return super().target_ids(sample, rng)
        if not sample.answer:
            return []  # of a row that cannot be read: nothing is learnt
        ids = answer_ids(self.tokenizer, escape(sample.answer), self.chat)
        return ids + [self.tokenizer.eos_token_id]

    # ---- tensors
    def _positions(self, ids: Tensor, mask: Tensor, clips_of_row: list[list[ClipPatches]]) -> Tensor:
        positions = torch.zeros(3, *ids.shape, dtype=torch.int64)
        for row, (values, real, clips) in enumerate(zip(ids, mask, clips_of_row, strict=True)):
            segments: list[Segment] = []
            for number, run in itertools.groupby(min(x, 0) for x in values[real].tolist()):
                if number == 0:
                    segments.append(sum(1 for _ in run))
                    continue
                clip = clips[-number - 1]
                t, h, w = clip.grid[0].tolist()
                grid = (t, h // self.merge, w // self.merge)
                segments.append(grid if clip.seconds is None else (*grid, clip.seconds))
            positions[:, row, real] = mrope_positions(segments, self.tokens_per_second)
        return positions

    def _filled(self, ids: Tensor, clips_of_row: list[list[ClipPatches]]) -> Tensor:
        """Return ids with the tokenizer's pads where the clips go; the compressor's tokens replace them."""
        filled = ids.clone()
        pads = [self._special(token) for token in ("<|image_pad|>", "<|video_pad|>")]
        for row, clips in enumerate(clips_of_row):
            for k, clip in enumerate(clips):
                pad = pads[clip.seconds is not None]
                filled[row][ids[row] == -k - 1] = self.pad_id if pad is None else pad
        return filled
