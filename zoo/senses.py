"""Clips in a prompt: what systems share that show a language model frames and sound beside words.

`SensesCollator` reads the clip of each utterance and leaves slots in its prompt; `Senses` fills them with the projected
features of two frozen encoders. What is missing or unreadable has no slot: nothing pretends to be input.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.backbones import LLM, Audio, Vision
from zoo.backbones.llm import Dtype
from zoo.media import MAX_SECONDS, Media, Unreadable
from zoo.media.clips import RATE, middle_of_sound, utterance_frames, utterance_key, utterance_sound
from zoo.module import IGNORE, EmotionModule, PromptCollator, readable_parts
from zoo.schema import Sample, Turn

# Marks of a template. In a corpus' own texts both are written apart (`zoo.prompts.escape`): nobody can say them.
VISION, AUDIO = "<|vision|>", "<|audio|>"
MARKS = {VISION: 1, AUDIO: 2}  # mark -> what stands at its positions in a batch's ``slots``
REMEMBERED = 2**28  # bytes of features that are kept per encoder
AT_ONCE = 16  # clips that pass an encoder together


class Remembered:
    """What frozen encoders make of each clip, computed once; beyond `most` bytes the oldest are forgotten."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self.most, self.size, self.held = most, 0, OrderedDict[Hashable, tuple[Tensor | None, ...]]()

    def clear(self) -> None:
        self.held.clear()
        self.size = 0

    @torch.no_grad()
    def rows(
        self, keys: Sequence[Hashable], compute: Callable[[list[int]], Iterable[tuple[Tensor | None, ...]]]
    ) -> list[tuple[Tensor | None, ...]]:
        """What belongs to each of `keys`.

        Args:
            compute: indices into `keys`, at most `AT_ONCE` -> some tensors each, of any shape.
        """
        found = {key: self.held[key] for key in keys if key in self.held}
        new = list({key: i for i, key in enumerate(keys) if key not in found}.values())
        with torch.inference_mode(False), torch.no_grad():  # what a validation remembers, training needs, too
            for part in (new[i : i + AT_ONCE] for i in range(0, len(new), AT_ONCE)):
                for i, own in zip(part, compute(part), strict=True):
                    found[keys[i]] = self.held[keys[i]] = tuple(None if x is None else x.clone() for x in own)
                    self.size += _bytes(found[keys[i]])
        while self.size > self.most:
            self.size -= _bytes(self.held.popitem(last=False)[1])
        return [found[key] for key in keys]

    def __call__(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """The same for features of one shape, stacked.

        Args:
            compute: indices into `keys`, at most `AT_ONCE` -> their features, one row each.
        """
        return torch.stack([own for (own,) in self.rows(keys, lambda part: ((own,) for own in compute(part)))])


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


# ----------------------------------------------------------------------------------------------------- input processing
@dataclass
class SensesCollator(PromptCollator):
    """Samples -> the batch of `PromptCollator`, and

    - ``slots`` (B, T) int64: 1 at the positions of vision tokens, 2 at those of audio tokens, else 0; ``input_ids``
      holds padding there;
    - ``frames`` (M, F, 3, S, S) uint8 and ``frame_keys``, of the M samples with vision, in order; None if M is 0;
    - ``waves`` (K, N) float32 at 16 kHz (zeros after the end), ``wave_lengths`` (K,) and ``wave_keys``, as well;
    - counted: ``no_vision``, ``no_audio``, ``nothing`` (samples without words either) and ``waves_cut``.

    Templates see ``vision`` and ``audio``: a mark where the tokens go, or an empty string.

    Args:
        words: whether the utterance's words are shown.
        frames, size: frames per clip and their side in pixels; 0 frames: no vision.
        vision_tokens, audio_tokens: positions per clip; 0 audio tokens: no sound.
        max_seconds: a longer waveform is cut to its middle part.
    """

    media: Media = field(default_factory=Media)
    words: bool = True
    frames: int = 0
    size: int = 0
    vision_tokens: int = 0
    audio_tokens: int = 0
    max_seconds: float = 15.0

    def tokenise(self, text: str) -> list[int]:
        """As usual, each piece between two marks by itself; a mark's positions are -1 or -2."""
        if self.chat:
            text = self.written_chat(text)
        count = {VISION: self.vision_tokens, AUDIO: self.audio_tokens}
        ids: list[int] = []
        for i, piece in enumerate(re.split(f"({'|'.join(map(re.escape, MARKS))})", text)):
            if piece in MARKS:
                ids += [-MARKS[piece]] * count[piece]
                continue
            plain = i > 0 or self.chat
            own = self.tokenizer(piece, add_special_tokens=not plain)["input_ids"]
            if not plain and own and own[-1] == self.tokenizer.eos_token_id:
                own = own[:-1]
            ids += own
        return ids

    def cut(self, text: str, ids: list[int]) -> list[int]:
        """The oldest words go, the clip stays."""
        first = next((i for i, x in enumerate(ids) if x >= 0), 0)  # beginning of text, or of the chat
        droppable = [i for i, x in enumerate(ids) if x >= 0 and i > first]
        over = len(ids) - self.max_length
        if over >= len(droppable):
            raise ValueError(
                f"{len(ids) - len(droppable) - 1} positions of a clip leave no room for words within "
                f"--model.max_length {self.max_length}; raise it"
            )
        gone = set(droppable[:over])
        return [x for i, x in enumerate(ids) if i not in gone]

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> dict[str, Any]:
        frames, waves, written = [], [], []
        cut = nothing = 0
        for sample in samples:
            seen, (heard, shortened) = self._see(sample.target), self._hear(sample.target)
            cut += shortened
            nothing += seen is None and heard is None and not (self.words and sample.target.text)
            if seen is not None:
                frames.append((utterance_key(sample.target, sample.target.video), seen))
            if heard is not None:
                waves.append((utterance_key(sample.target, sample.target.audio), heard))
            shown = {"vision": VISION if seen is not None else "", "audio": AUDIO if heard is not None else ""}
            said = sample if self.words else replace(sample, target=replace(sample.target, text=""))
            ids, short = self.prompt_ids(said, rng, shown)
            for mark, number in MARKS.items():
                count = {VISION: self.vision_tokens, AUDIO: self.audio_tokens}[mark]
                wanted = count * (mark in shown.values())
                if ids.count(-number) != wanted:
                    raise ValueError(
                        f"the prompt template has {ids.count(-number)} of {wanted} positions for {mark}; "
                        "write {{ vision }} and {{ audio }} once each"
                    )
            written.append((ids, short))
        content = self.batch(samples, written, rng)
        slots = (-content["input_ids"]).clamp(min=0)
        content["input_ids"] = content["input_ids"].masked_fill(slots > 0, self.pad_id)
        if self.training:
            content["target_ids"] = content["target_ids"].masked_fill(slots > 0, IGNORE)
        return content | {
            "slots": slots,
            "frames": torch.from_numpy(np.stack([x for _, x in frames])) if frames else None,
            "frame_keys": tuple(key for key, _ in frames),
            **_padded([x for _, x in waves]),
            "wave_keys": tuple(key for key, _ in waves),
            "no_vision": (len(samples) - len(frames)) * bool(self.frames),
            "no_audio": (len(samples) - len(waves)) * bool(self.audio_tokens),
            "nothing": int(nothing),
            "waves_cut": int(cut),
        }

    def _see(self, turn: Turn) -> np.ndarray | None:
        if not self.frames or turn.video is None:
            return None
        try:
            return utterance_frames(self.media, turn, self.frames, side=self.size, square=True)
        except Unreadable:
            return None

    def _hear(self, turn: Turn) -> tuple[np.ndarray | None, bool]:
        if not self.audio_tokens or turn.audio is None:
            return None, False
        try:
            return middle_of_sound(utterance_sound(self.media, turn), round(self.max_seconds * RATE))
        except Unreadable:
            return None, False


def _padded(waves: Sequence[np.ndarray]) -> dict[str, Tensor | None]:
    if not waves:
        return {"waves": None, "wave_lengths": None}
    padded = np.zeros((len(waves), max(map(len, waves))), np.float32)
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = wave
    return {"waves": torch.from_numpy(padded), "wave_lengths": torch.tensor([len(w) for w in waves])}


# --------------------------------------------------------------------------------------------------------------- system
class Senses(EmotionModule):
    """Two frozen encoders and their projections in front of a language model; goes before `Supervised` or `Reinforced`
    in a system's bases, which make the language model and embed the words.

    Every frame gives one vision token (the encoder's CLS token, or its mean), a waveform gives `audio_tokens` means
    over equal parts; a linear layer each takes them into the input space of the language model.

    Args:
        vision: folder, published name, hub id or file of the image encoder (see `zoo.backbones.Vision`); None: the
            system sees nothing.
        audio: the same of the HuBERT (see `zoo.backbones.Audio`); None: it hears nothing.
        vision_dtype, audio_dtype: dtypes of their weights.
        vision_revision, audio_revision: hub revisions to pin.
        words: whether the utterance's words are shown; False leaves the clip alone.
        frames: vision tokens: frames per clip, evenly spaced.
        audio_tokens: parts of the waveform.
        max_seconds: a longer waveform is cut to its middle part, counted.
        projection_scale: the projections' first outputs have this many times the deviation of the input embeddings of
            the language model (ours); None leaves PyTorch's initial weights.
        cache: folder of decoded clips (see `zoo.media.Media`); None decodes at every visit.
        timeout: seconds one clip may take to decode.
        max_clip_seconds: a longer clip or film is not read, and counted.
    """

    def __init__(
        self,
        vision: str | None = None,
        audio: str | None = None,
        vision_dtype: Dtype = "float32",
        audio_dtype: Dtype = "float32",
        vision_revision: str | None = None,
        audio_revision: str | None = None,
        words: bool = True,
        frames: int = 8,
        audio_tokens: int = 8,
        max_seconds: float = 15.0,
        projection_scale: float | None = None,
        cache: Path | None = None,
        timeout: float = 30.0,
        max_clip_seconds: float = MAX_SECONDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if frames < 1 or audio_tokens < 1 or max_seconds <= 0 or not (words or vision or audio):
            raise ValueError(
                "need frames >= 1, audio_tokens >= 1, max_seconds > 0, and words, vision or audio; got "
                f"{frames}, {audio_tokens}, {max_seconds}, {words}, {vision}, {audio}"
            )
        self.vision_args = {"path": vision, "dtype": vision_dtype, "revision": vision_revision}
        self.audio_args = {"path": audio, "dtype": audio_dtype, "revision": audio_revision}
        self.words, self.frames, self.audio_tokens, self.max_seconds = words, frames, audio_tokens, max_seconds
        self.projection_scale = projection_scale
        self.media = Media(Path(cache) if cache else None, timeout=timeout, max_seconds=max_clip_seconds)
        self.seen, self.heard = Remembered(), Remembered()

    # ---- parts
    llm: LLM

    def build(self) -> None:
        super().build()
        if self.vision_args["path"] is not None:
            self.vision = Vision(**self.vision_args).freeze()
            self.vision_projection = self._projection(self.vision.width)
        if self.audio_args["path"] is not None:
            self.audio = Audio(**self.audio_args).freeze()
            self.audio_projection = self._projection(self.audio.width)

    def _projection(self, width: int) -> nn.Linear:
        layer = nn.Linear(width, self.llm.width)
        if self.projection_scale is not None:  # the encoders' features have about mean 0 and deviation 1: a layer norm
            spread = float(self.llm.causal_lm.get_input_embeddings().weight.detach().float().std())
            nn.init.normal_(layer.weight, std=self.projection_scale * spread / math.sqrt(width))
            nn.init.zeros_(layer.bias)
        return layer

    def bases(self) -> dict[str, LLM | Vision | Audio]:
        own = {name: getattr(self, name) for name in ("vision", "audio") if hasattr(self, name)}
        return super().bases() | own

    # ---- input
    template_variables = {"vision": "", "audio": ""}

    def with_senses(self, parts: Sequence[str]) -> tuple[str, ...]:
        """What is read of a sample, from what its prompt shows in words."""
        senses = [name for name, args in (("face", self.vision_args), ("voice", self.audio_args)) if args["path"]]
        return readable_parts({*parts, *senses} - ({"text"} if not self.words else set()))

    def shows(self, sample: Sample) -> bool:
        """Whether a prompt says anything about its sample."""
        turn = sample.target
        seen = turn.video is not None and self.vision_args["path"] is not None
        heard = turn.audio is not None and self.audio_args["path"] is not None
        return bool(self.words and turn.text) or seen or heard

    unread_events = ("samples without a readable clip", "samples without readable sound")

    def needs(self, stage: str) -> Mapping[str, str]:
        remedies = {"video": "set --model.vision null"} if self.vision_args["path"] is not None else {}
        return remedies | ({"audio": "set --model.audio null"} if self.audio_args["path"] is not None else {})

    def senses(self) -> dict[str, Any]:
        """The arguments of `SensesCollator` beyond those of `PromptCollator`."""
        seeing, hearing = hasattr(self, "vision"), hasattr(self, "audio")
        return {
            "media": self.media,
            "words": self.words,
            "frames": self.frames * seeing,
            "size": (self.vision.size or 224) if seeing else 0,
            "vision_tokens": self.frames * seeing,
            "audio_tokens": self.audio_tokens * hearing,
            "max_seconds": self.max_seconds,
        }

    def see(self, keys: Sequence[Hashable], frames: Tensor) -> Tensor:
        """(M, F, 3, S, S) uint8 -> (M, F, W) features, one per frame, each clip encoded once per run."""

        def compute(part: list[int]) -> Tensor:
            hidden = self.vision.hidden(frames[part].flatten(0, 1).clone(), normed=True).float()
            own = hidden[:, 0] if self.vision.has_cls else hidden.mean(1)
            return own.unflatten(0, (len(part), -1))

        return self.seen([(*key, self.frames) for key in keys], compute)

    def hear(self, keys: Sequence[Hashable], waves: Tensor, lengths: Tensor) -> Tensor:
        """(K, N) waves of true lengths (K,) -> (K, audio_tokens, W) features, each clip encoded once per run."""

        def compute(part: list[int]) -> Tensor:
            own = lengths[part].clone()
            return self.audio.pooled(waves[part][:, : int(own.max())].clone(), own, self.audio_tokens).float()

        return self.heard([(*key, self.audio_tokens, self.max_seconds) for key in keys], compute)

    def embedded(self, batch: dict[str, Any]) -> Tensor:
        """(B, T, D): the words' embeddings with projected features in the slots."""
        embedded = super().embedded(batch)
        for number, has, features, projection in (
            (1, batch["frames"] is not None, lambda: self.see(batch["frame_keys"], batch["frames"]), "vision"),
            (
                2,
                batch["waves"] is not None,
                lambda: self.hear(batch["wave_keys"], batch["waves"], batch["wave_lengths"]),
                "audio",
            ),
        ):
            if has:
                layer = getattr(self, f"{projection}_projection")
                vectors = layer(features().to(layer.weight.dtype)).flatten(0, 1)
                embedded = embedded.index_put((batch["slots"] == number,), vectors.to(embedded.dtype))
        return embedded

    def count(self, batch: Mapping[str, Any]) -> None:
        """Adds what a batch lacked to the events of a test."""
        self.counts["samples without a readable clip"] += batch["no_vision"]
        self.counts["samples without readable sound"] += batch["no_audio"]
        self.counts["samples with nothing to go by"] += batch["nothing"]
        self.counts["waveforms cut to max_seconds"] += batch["waves_cut"]
