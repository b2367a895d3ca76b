"""Clips in a prompt: two frozen encoders whose projected features stand between the words of a language model.

`MultimodalCollator` reads the clip of each utterance and leaves slots in its prompt; `ProjectedEncoders`, a part that a
system owns, fills them. What is missing or unreadable has no slot: nothing pretends to be input.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo.backbones import LLM, Audio, Vision
from zoo.backbones.divided import is_divided
from zoo.backbones.llm import Dtype
from zoo.media import Media
from zoo.media.cache import VERSION as MEDIA_VERSION
from zoo.media.clips import RATE, middle_of_sound, utterance_frames, utterance_sound
from zoo.schema import Problem, Sample
from zoo.training.batch import IGNORE_INDEX, MultimodalBatch
from zoo.training.collator import PromptCollator
from zoo.training.feature_cache import FeatureCache
from zoo.training.feature_files import FeatureFiles, ReadClip, known_and_new, read_clip, stacked_features
from zoo.training.given_features import FeatureFolder, GivenFeatures, Modality, is_given, refuse_idle_options

# Marks of a template. In a corpus' own texts both are written apart (`zoo.prompts.escape`): no corpus can say them.
VISION, AUDIO = "<|vision|>", "<|audio|>"
MARKS = {VISION: 1, AUDIO: 2}  # mark -> what stands at its positions in a batch's ``slots``


# ----------------------------------------------------------------------------------------------------- input processing
@dataclass(kw_only=True)
class MultimodalCollator(PromptCollator):
    """Write samples as prompts with slots for their clips, and read the clips: a `MultimodalBatch`.

    ``no_vision`` and ``no_audio`` count samples whose clip is missing or unreadable, ``nothing`` those without words
    either, ``waves_cut`` the waveforms that were shortened. Templates see ``vision`` and ``audio``: a mark where the
    tokens go, or an empty string.

    Args:
        show_text: whether the utterance's words are shown.
        frames: frames per clip; 0: no vision.
        size: their side in pixels.
        vision_tokens, audio_tokens: positions per clip; 0 audio tokens: no sound.
        max_seconds: a longer waveform is cut to its middle part.
        vision_files, audio_files: features on disk; a clip that is found there is not decoded. One whose file is
            damaged is, and stands in ``problems``.
        given_features: folders of features that are read instead of clips.
    """

    media: Media = field(default_factory=Media)
    show_text: bool = True
    frames: int = 0
    size: int = 0
    vision_tokens: int = 0
    audio_tokens: int = 0
    max_seconds: float = 15.0
    vision_files: FeatureFiles | None = None
    audio_files: FeatureFiles | None = None
    given_features: Mapping[Modality, FeatureFolder] = field(default_factory=dict)

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a rendered prompt; the positions of a mark are -1 (vision) or -2 (audio).

        The text between two marks is tokenized by itself.
        """
        if self.chat:
            text = self.render_chat(text)
        count = {VISION: self.vision_tokens, AUDIO: self.audio_tokens}
        ids: list[int] = []
        for i, piece in enumerate(re.split(f"({'|'.join(map(re.escape, MARKS))})", text)):
            if piece in MARKS:
                ids += [-MARKS[piece]] * count[piece]
                continue
            begins_text = i == 0 and not self.chat
            piece_ids = self.tokenizer(piece, add_special_tokens=begins_text)["input_ids"]
            if begins_text and piece_ids and piece_ids[-1] == self.tokenizer.eos_token_id:
                piece_ids = piece_ids[:-1]
            ids += piece_ids
        return ids

    def truncate(self, text: str, ids: list[int]) -> list[int]:
        """Return a prompt without its oldest text tokens; slots of clips are never dropped."""
        shorter = drop_oldest(ids, self.max_length)
        if shorter is None:
            raise ValueError(
                f"{sum(x < 0 for x in ids)} positions of a clip leave no room for words within "
                f"--model.max_length {self.max_length}; raise it"
            )
        return shorter

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> MultimodalBatch:
        """Return the batch of some samples."""
        clips: list[ReadClip] = []
        sounds: list[ReadClip] = []
        prompts, problems = [], list[Problem]()
        nothing = 0
        for sample in samples:
            clip, sound = self._read_frames(sample, problems), self._read_wave(sample, problems)
            nothing += clip is None and sound is None and not (self.show_text and sample.target.text)
            clips += filter(None, [clip])
            sounds += filter(None, [sound])
            prompts.append(self._prompt(sample, rng, clip is not None, sound is not None))
        batch = self.batch(samples, prompts, rng)
        slots = (-batch["input_ids"]).clamp(min=0)
        batch["input_ids"] = batch["input_ids"].masked_fill(slots > 0, self.pad_id)
        if self.training:
            batch["target_ids"] = batch["target_ids"].masked_fill(slots > 0, IGNORE_INDEX)
        frames, waves = ([clip.array for clip in part if clip.array is not None] for part in (clips, sounds))
        padded, lengths = pad_waves(waves)
        return {
            **batch,
            "problems": [*batch.get("problems", ()), *problems],
            "slots": slots,
            "frames": torch.from_numpy(np.stack(frames)) if frames else None,
            "frame_keys": tuple(clip.key for clip in clips),
            "frame_features": stacked_features(clips),
            "frame_facts": tuple(clip.facts for clip in clips),
            "frames_known": tuple(clip.features is not None for clip in clips),
            "waves": padded,
            "wave_lengths": lengths,
            "wave_keys": tuple(sound.key for sound in sounds),
            "wave_features": stacked_features(sounds),
            "wave_facts": tuple(sound.facts for sound in sounds),
            "waves_known": tuple(sound.features is not None for sound in sounds),
            "no_vision": (len(samples) - len(clips)) * bool(self.frames),
            "no_audio": (len(samples) - len(sounds)) * bool(self.audio_tokens),
            "nothing": int(nothing),
            "waves_cut": sum(sound.facts.shortened for sound in sounds),
        }

    def _prompt(
        self, sample: Sample, rng: np.random.Generator, has_vision: bool, has_audio: bool
    ) -> tuple[list[int], bool]:
        """Return the token ids of a prompt and whether it was shortened; every clip has its slots, once."""
        variables = {"vision": VISION if has_vision else "", "audio": AUDIO if has_audio else ""}
        visible = sample if self.show_text else replace(sample, target=replace(sample.target, text=""))
        ids, shortened = self.prompt_ids(visible, rng, variables)
        tokens = {VISION: self.vision_tokens, AUDIO: self.audio_tokens}
        for mark, number in MARKS.items():
            expected = tokens[mark] * (mark in variables.values())
            if ids.count(-number) != expected:
                raise ValueError(
                    f"the prompt template has {ids.count(-number)} of {expected} positions for {mark}; "
                    "write {{ vision }} and {{ audio }} once each"
                )
        return ids, shortened

    def _read_frames(self, sample: Sample, problems: list[Problem]) -> ReadClip | None:
        def decode() -> tuple[np.ndarray, bool]:
            return utterance_frames(self.media, sample.target, self.frames, side=self.size, square=True), False

        if "vision" in self.given_features:
            return self.given_features["vision"].read(sample.dialogue, sample.target, self.vision_tokens, problems)
        path = sample.target.video if self.frames else None
        return None if path is None else read_clip(self.media, sample.target, path, decode, self.vision_files, problems)

    def _read_wave(self, sample: Sample, problems: list[Problem]) -> ReadClip | None:
        def decode() -> tuple[np.ndarray, bool]:
            return middle_of_sound(utterance_sound(self.media, sample.target), round(self.max_seconds * RATE))

        if "audio" in self.given_features:
            return self.given_features["audio"].read(sample.dialogue, sample.target, self.audio_tokens, problems)
        path = sample.target.audio if self.audio_tokens else None
        return None if path is None else read_clip(self.media, sample.target, path, decode, self.audio_files, problems)


def drop_oldest(ids: list[int], max_length: int, protected: frozenset[int] = frozenset()) -> list[int] | None:
    """Return token ids without the oldest text tokens, so that ``max_length`` are left; None if that is impossible.

    The first token, negative ids (the slots of clips) and ``protected`` ids always stay.
    """
    first = next((i for i, x in enumerate(ids) if x >= 0), 0)  # beginning of text, or of the chat
    droppable = [i for i, x in enumerate(ids) if x >= 0 and x not in protected and i > first]
    excess = len(ids) - max_length
    if excess >= len(droppable):
        return None
    dropped = set(droppable[:excess])
    return [x for i, x in enumerate(ids) if i not in dropped]


def pad_waves(waves: Sequence[np.ndarray]) -> tuple[Tensor | None, Tensor | None]:
    """Return waves as (K, N) float32 with zeros after the end, and their lengths (K,); None without waves."""
    if not waves:
        return None, None
    padded = np.zeros((len(waves), max(map(len, waves))), np.float32)
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = wave
    return torch.from_numpy(padded), torch.tensor([len(w) for w in waves])


# ------------------------------------------------------------------------------------------------------------- encoders
class ProjectedEncoders(nn.Module):
    """Two frozen encoders, and a linear layer each into the input space of a language model.

    Every frame gives one vision token (the encoder's CLS token, or its mean); a waveform gives ``audio_tokens`` means
    over equal parts. Features that are given in files (`zoo.training.given_features`) take as many positions, or one
    where a file holds a single vector.

    Args:
        make_vision: makes the image encoder, or the features in its place; None: none.
        make_audio: makes the HuBERT, or the features in its place; None: none.
        show_text: whether the utterance's words are shown.
        frames, audio_tokens: positions of a clip in the prompt, and of its sound.
        max_seconds: a longer waveform is cut to its middle part.
        embedding_scale: the projections' first outputs have this many times the deviation of the language model's input
            embeddings; None leaves PyTorch's initial weights.
        media: reads the clips.
        feature_folder: where the encoders' features are kept (`zoo.training.feature_files`); None: nowhere.
        given_features: the folders of features that are given.
    """

    unreadable_events = ("samples without a readable clip", "samples without readable sound")

    def __init__(
        self,
        make_vision: Callable[[], Vision | GivenFeatures] | None,
        make_audio: Callable[[], Audio | GivenFeatures] | None,
        show_text: bool,
        frames: int,
        audio_tokens: int,
        max_seconds: float,
        embedding_scale: float | None,
        media: Media,
        feature_folder: Path | None = None,
        given_features: Mapping[Modality, FeatureFolder] | None = None,
    ) -> None:
        super().__init__()
        self.make_vision, self.make_audio, self.media = make_vision, make_audio, media
        self.show_text, self.frames, self.audio_tokens, self.max_seconds = show_text, frames, audio_tokens, max_seconds
        self.embedding_scale = embedding_scale
        self.vision_features, self.audio_features = FeatureCache(), FeatureCache()
        self.feature_folder, self.given_features = feature_folder, dict(given_features or {})
        self.vision_files: FeatureFiles | None = None
        self.audio_files: FeatureFiles | None = None

    @classmethod
    def of_paths(
        cls,
        vision: tuple[str | None, Dtype, str | None],
        audio: tuple[str | None, Dtype, str | None],
        media: Media,
        show_text: bool,
        frames: int,
        audio_tokens: int,
        max_seconds: float,
        embedding_scale: float | None,
        feature_folder: Path | None = None,
        standardise: bool = False,
    ) -> ProjectedEncoders:
        """Return encoders that will be read from folders, published names, hub ids or files.

        Args:
            vision, audio: path, dtype and hub revision of each; path None: none.
            media, show_text, frames, audio_tokens, max_seconds, embedding_scale, feature_folder: as of the class.
            standardise: give features that are given mean 0 and deviation 1.

        Raises:
            ValueError: numbers that make no sense, nothing to show, or nothing to standardise or to keep.
        """
        if frames < 1 or audio_tokens < 1 or max_seconds <= 0 or not (show_text or vision[0] or audio[0]):
            raise ValueError(
                "need frames >= 1, audio_tokens >= 1, max_seconds > 0, and show_text, vision or audio; got "
                f"{frames}, {audio_tokens}, {max_seconds}, {show_text}, {vision[0]}, {audio[0]}"
            )
        make_vision: Callable[[], Vision | GivenFeatures] | None = None
        make_audio: Callable[[], Audio | GivenFeatures] | None = None
        given_features: dict[Modality, FeatureFolder] = {}
        if is_given(vision[0]):
            given_features["vision"] = folder = FeatureFolder.of_option("vision", vision, media)
            make_vision = functools.partial(GivenFeatures, folder, frames, standardise)
        elif vision[0] is not None:
            make_vision = functools.partial(Vision, vision[0], dtype=vision[1], revision=vision[2])
        if is_given(audio[0]):
            given_features["audio"] = folder = FeatureFolder.of_option("audio", audio, media)
            make_audio = functools.partial(GivenFeatures, folder, audio_tokens, standardise)
        elif audio[0] is not None:
            make_audio = functools.partial(Audio, audio[0], dtype=audio[1], revision=audio[2])
        refuse_idle_options(
            given_features, standardise, feature_folder, encoded=sum(x[0] is not None for x in (vision, audio))
        )
        return cls(
            make_vision,
            make_audio,
            show_text,
            frames,
            audio_tokens,
            max_seconds,
            embedding_scale,
            media,
            None if feature_folder is None else Path(feature_folder),
            given_features,
        )

    def build(self, llm: LLM) -> None:
        """Make the encoders and their projections into the input space of a language model."""
        if self.make_vision is not None:
            self.vision = self.make_vision().freeze()
            self.vision_projection = self._projection(self.vision.width, llm)
        if self.make_audio is not None:
            self.audio = self.make_audio().freeze()
            self.audio_projection = self._projection(self.audio.width, llm)

    def _projection(self, width: int, llm: LLM) -> nn.Linear:
        layer = nn.Linear(width, llm.width)
        if self.embedding_scale is not None:  # the encoders' features have about mean 0 and deviation 1: a layer norm
            embeddings = cast(nn.Embedding, llm.causal_lm.get_input_embeddings())
            if embeddings.weight.is_meta:  # sizes alone are wanted
                return layer
            deviation = float(embeddings.weight.detach().float().std())
            nn.init.normal_(layer.weight, std=self.embedding_scale * deviation / math.sqrt(width))
            nn.init.zeros_(layer.bias)
        return layer

    def freeze_projections(self) -> None:
        """Train the projections no further."""
        for name in ("vision_projection", "audio_projection"):
            if hasattr(self, name):
                getattr(self, name).requires_grad_(False)

    def backbones(self) -> dict[str, Vision | Audio | GivenFeatures]:
        """Return the encoders, or the features in their place, by name."""
        return {name: getattr(self, name) for name in ("vision", "audio") if hasattr(self, name)}

    # ---- what is read
    def parts(self, in_words: Sequence[str]) -> set[str]:
        """Return which parts of a sample are read, given those that its prompt shows in words."""
        encoded = {"face"} if self.make_vision is not None else set()
        encoded |= {"voice"} if self.make_audio is not None else set()
        return {*in_words, *encoded} - (set() if self.show_text else {"text"})

    def has_input(self, sample: Sample) -> bool:
        """Return whether a sample has words that are shown, or a clip that is encoded."""
        turn = sample.target
        has = {name: folder.has(sample.dialogue, turn) for name, folder in self.given_features.items()}
        has_vision = has.get("vision", turn.video is not None) and self.make_vision is not None
        has_audio = has.get("audio", turn.audio is not None) and self.make_audio is not None
        return bool(self.show_text and turn.text) or has_vision or has_audio

    def required_files(self) -> dict[str, str]:
        """Return which files are read, each with the option that does without."""
        makers = {"vision": ("video", self.make_vision), "audio": ("audio", self.make_audio)}
        remedies = {
            part: f"set --model.{name} null"
            for name, (part, make) in makers.items()
            if make is not None and name not in self.given_features
        }
        return remedies | {folder.part: folder.remedy() for folder in self.given_features.values()}

    def input_settings(self, precision: str) -> dict[str, Any]:
        """Return the arguments of `MultimodalCollator` beyond those of `PromptCollator`.

        Args:
            precision: of the trainer, in which features are computed.
        """
        has_vision, has_audio = hasattr(self, "vision"), hasattr(self, "audio")
        self._open_files(precision)
        positions: dict[Modality, int] = {"vision": self.frames * has_vision, "audio": self.audio_tokens * has_audio}
        positions |= {name: folder.positions(positions[name]) for name, folder in self.given_features.items()}
        return {
            "media": self.media,
            "show_text": self.show_text,
            "frames": self.frames * has_vision,
            "size": (self.vision.size or 224) if has_vision and "vision" not in self.given_features else 0,
            "vision_tokens": positions["vision"],
            "audio_tokens": positions["audio"],
            "max_seconds": self.max_seconds,
            "vision_files": self.vision_files,
            "audio_files": self.audio_files,
            "given_features": self.given_features,
        }

    def _open_files(self, precision: str) -> None:
        """Find the features on disk of the encoders as they are now, with the weights of a checkpoint if they have."""
        if self.feature_folder is None:
            return
        limits = [MEDIA_VERSION, self.media.max_seconds, self.media.max_pixels]
        shared = {"precision": precision, "media": limits}
        if isinstance(vision := getattr(self, "vision", None), Vision):
            of_frames = {"frames": self.frames, "of a frame": "cls" if vision.has_cls else "mean"}
            self.vision_files = FeatureFiles(self.feature_folder, vision, {**shared, **of_frames})
        if isinstance(audio := getattr(self, "audio", None), Audio):
            parts = {"means": self.audio_tokens, "seconds": self.max_seconds}
            self.audio_files = FeatureFiles(self.feature_folder, audio, {**shared, **parts})

    def count_missing(self, batch: Mapping[str, Any], events: Counter[str]) -> None:
        """Add what a batch lacked to the events of a test."""
        events["samples without a readable clip"] += batch["no_vision"]
        events["samples without readable sound"] += batch["no_audio"]
        events["samples with nothing to go by"] += batch["nothing"]
        events["waveforms cut to max_seconds"] += batch["waves_cut"]

    # ---- features
    def encode_frames(self, batch: MultimodalBatch) -> Tensor:
        """Return (M, F, W) features of the M clips of a batch, one per frame; each clip is encoded once per run."""
        if isinstance(self.vision, GivenFeatures):
            return cast(Tensor, self.vision(batch["frame_features"]))
        vision = self.vision
        known, new = known_and_new(batch["frame_features"], batch["frames_known"])

        def compute(part: list[int]) -> Tensor:
            pixels = cast(Tensor, batch["frames"])[[new[i] for i in part]]
            hidden = vision.hidden(pixels.flatten(0, 1).clone(), normed=True).float()
            features = hidden[:, 0] if vision.has_cls else hidden.mean(1)
            features = torch.unflatten(features, 0, (len(part), -1))
            if self.vision_files is not None:
                self.vision_files.write_all(part, batch["frame_keys"], batch["frame_facts"], features)
            return features

        return self.vision_features.stacked(batch["frame_keys"], compute, known)

    def encode_waves(self, batch: MultimodalBatch) -> Tensor:
        """Return (K, audio_tokens, W) features of the K sounds of a batch; each is encoded once per run."""
        if isinstance(self.audio, GivenFeatures):
            return cast(Tensor, self.audio(batch["wave_features"]))
        audio = self.audio
        known, new = known_and_new(batch["wave_features"], batch["waves_known"])

        def compute(part: list[int]) -> Tensor:
            rows = [new[i] for i in part]
            lengths = cast(Tensor, batch["wave_lengths"])[rows].clone()
            waves = cast(Tensor, batch["waves"])[rows][:, : int(lengths.max())].clone()
            features = audio.pooled(waves, lengths, self.audio_tokens).float()
            if self.audio_files is not None:
                self.audio_files.write_all(part, batch["wave_keys"], batch["wave_facts"], features)
            return features

        return self.audio_features.stacked(batch["wave_keys"], compute, known)

    def place(self, embedded: Tensor, batch: MultimodalBatch) -> Tensor:
        """Return (B, T, D) input embeddings with projected features in the slots of a batch."""
        if batch["frame_keys"]:
            features = self.encode_frames(batch)
            embedded = _put(embedded, batch["slots"] == MARKS[VISION], features, self.vision_projection)
        elif self.make_vision is not None:
            embedded = _put_nothing(embedded, self.vision_projection)
        if batch["wave_keys"]:
            features = self.encode_waves(batch)
            embedded = _put(embedded, batch["slots"] == MARKS[AUDIO], features, self.audio_projection)
        elif self.make_audio is not None:
            embedded = _put_nothing(embedded, self.audio_projection)
        return embedded


def _put_nothing(embedded: Tensor, projection: nn.Linear) -> Tensor:
    """Let a projection that is divided over processes compute in a batch without clips, as it does in the others."""
    if not is_divided(projection):
        return embedded
    features = embedded.new_zeros(1, projection.in_features, dtype=projection.weight.dtype)
    nothing: Tensor = projection(features)
    return embedded + 0.0 * nothing.sum().to(embedded.dtype)


def _put(embedded: Tensor, slots: Tensor, features: Tensor, projection: nn.Linear) -> Tensor:
    vectors = projection(features.to(projection.weight.dtype)).flatten(0, 1)
    return embedded.index_put((slots,), vectors.to(embedded.dtype))
