"""One modality alone: an image encoder on the speaker's face, or HuBERT on the voice, with a linear head.

Not a paper: the baselines that show how far a face or a voice goes without words, and the way the zoo's own small
encoders are made. The encoder is whatever `Vision` or `Audio` reads; a head that comes with it is used, by name of its
classes, so a published expression classifier can be tested as it is (``--zero_shot``). Features that somebody else has
computed (``features:FOLDER``, `zoo.training.given_features`) take the encoder's place under a new head.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchaudio.functional import melscale_fbanks

from zoo.backbones import Audio, Vision
from zoo.backbones.llm import Dtype
from zoo.media import MAX_SECONDS, Media, Unreadable
from zoo.media.clips import RATE, middle_of_sound, utterance_frames, utterance_sound
from zoo.models.unimodal.features import FeatureCollator
from zoo.prompts import label_words
from zoo.schema import Labels, Prediction, Sample
from zoo.training.batch import SampleBatch
from zoo.training.checkpointing import Backbone
from zoo.training.evaluation import score_predictions
from zoo.training.given_features import FeatureFolder, GivenFeatures, Modality, is_given, refuse_idle_options
from zoo.training.module import EmotionModule
from zoo.training.multimodal import pad_waves
from zoo.training.optimization import class_weights

MELS, FFT = 40, 512  # of the acoustic task


class Unimodal(EmotionModule):
    """An encoder and a softmax over the labels, trained by cross-entropy.

    A sample whose clip is missing or unreadable is left out of the loss and gets no answer (``unparsed``); both are
    counted.

    Args:
        verbalizer: label -> class word of the encoder's head, where it differs, e.g. ``{joy: happy}``.
        new_head: label words of a new linear head, instead of the encoder's own, e.g. ``[neutral, joy]``.
        dropout: before the new head.
        class_weight: exponent p of class weights n^-p in the loss; 0 = none, 1 = fully balanced.
        label_smoothing: share of the target spread over all labels.
        cache: folder of decoded clips (see `zoo.media.Media`); None decodes at every visit.
        timeout: seconds one clip may take to decode.
        max_clip_seconds: a longer clip or film is not read, and counted.
        standardise: give features of a ``features:FOLDER`` mean 0 and deviation 1 in every dimension, measured on 512
            training utterances before the first step and stored with the weights.
    """

    def __init__(
        self,
        verbalizer: dict[str, str] | None = None,
        new_head: list[str] | None = None,
        dropout: float = 0.0,
        class_weight: float = 0.0,
        label_smoothing: float = 0.0,
        cache: Path | None = None,
        timeout: float = 30.0,
        max_clip_seconds: float = MAX_SECONDS,
        standardise: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.standardise = standardise
        self.given_features: FeatureFolder | None = None
        self.verbalizer, self.new_head, self.dropout = verbalizer, new_head, dropout
        self.class_weight, self.label_smoothing = class_weight, label_smoothing
        self.media = Media(Path(cache) if cache else None, timeout=timeout, max_seconds=max_clip_seconds)
        self.head: nn.Module | None = None

    modality: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.modality,)

    # ---- what the two modalities fill in
    @property
    @abstractmethod
    def encoder(self) -> Vision | Audio | GivenFeatures:
        """The encoder, or the features in its place, once built."""

    @abstractmethod
    def pooled(self, batch: dict[str, Any]) -> Tensor:
        """Batch -> one vector per clip, (B, width); a new head goes on it."""

    @abstractmethod
    def own_logits(self, batch: dict[str, Any]) -> Tensor:
        """Batch -> logits of the encoder's own head, (B, classes)."""

    # ---- shared
    @property
    def unreadable_events(self) -> tuple[str, ...]:
        return (f"no readable {self.modality}",)

    def required_files(self, stage: str) -> Mapping[str, str]:
        """Return the file of the modality, or the features of it that are given."""
        if self.given_features is not None:
            return {self.given_features.part: self.given_features.remedy()}
        return {"video" if self.modality == "face" else "audio": ""}

    @property
    def feature_folders(self) -> Mapping[str, FeatureFolder]:
        """The folder of features that are given in place of clips."""
        return {} if self.given_features is None else {self.modality: self.given_features}

    def give_features(self, modality: Modality, path: str, dtype: Dtype, revision: str | None, idle: str) -> None:
        """Take a folder of features in place of an encoder, if that is what the option names.

        Args:
            modality: that of the option.
            path, dtype, revision: of the option.
            idle: names of options that were given and would do nothing to features.

        Raises:
            ValueError: options that would do nothing.
        """
        if is_given(path):
            if idle or self.new_head is None:
                need = f"leave out {idle}" if idle else "put a head on them: --model.new_head '[neutral, ...]'"
                raise ValueError(f"--model.{modality} {path} gives features, not clips, and no classes; {need}")
            self.given_features = FeatureFolder.of_option(modality, (path, dtype, revision), self.media)
        refuse_idle_options([modality] * is_given(path), self.standardise, None, encoded=1)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        label_sets = list(self.data.label_sets.values())
        if len({labels.names for labels in label_sets}) != 1:
            raise ValueError(f"one head needs one label set; the joined corpora have {len(label_sets)}")
        self.labels: Labels = label_sets[0]
        self.class_weights: list[float] | None = None
        if self.class_weight and stage == "fit":
            labels = [s.label for s in self.data.samples("train")]
            self.class_weights = class_weights(labels, len(self.labels), self.class_weight)

    def add_head(self) -> None:
        """Make a new linear head, if one is wanted."""
        if self.new_head:
            self.head = nn.Sequential(nn.Dropout(self.dropout), nn.Linear(self.encoder.width, len(self.new_head)))

    @property
    def order(self) -> list[int]:
        """Index of each label in the logits.

        Raises:
            ValueError: a label has no class of its name.
        """
        words, classes = label_words(self.labels, self.verbalizer), self.new_head or self.encoder.labels or ()
        missing = [word for word in words if word not in classes]
        if missing:
            raise ValueError(
                f"the head of {self.encoder.path} has no class {missing}; it has {classes or 'no named classes'}. Map "
                "the labels with --model.verbalizer, or put a new head on it with --model.new_head '[neutral, ...]'"
            )
        return [classes.index(word) for word in words]

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """(B, labels), in the order of the corpus' labels; rows of missing clips are arbitrary but finite."""
        logits = self.own_logits(batch) if self.head is None else self.head(self.pooled(batch))
        return logits[:, self.order]

    def extra_loss(self, batch: dict[str, Any]) -> Tensor | float:
        """Return the loss of a second task in training."""
        return 0.0

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        used = batch["present"] & (batch["label"] >= 0)
        loss = torch.zeros((), device=self.device)  # of a batch without a readable clip and a label
        if used.any():
            loss = cross_entropy(
                self.logits(batch)[used].float(),
                batch["label"][used],
                torch.tensor(self.class_weights, device=self.device) if self.class_weights else None,
                label_smoothing=self.label_smoothing,
            )
            loss = loss + self.extra_loss(batch)
            self.check_finite(loss, batch)
            self.log("train/loss", loss, prog_bar=True)
        self.log("train/missing", (~batch["present"]).float().sum(), reduce_fx="sum", on_step=False, on_epoch=True)
        return loss

    @torch.no_grad()
    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        logits = self.logits(batch)
        if not torch.isfinite(logits).all():
            raise FloatingPointError(f"the scores of {batch['samples'].ids()} are not finite: the training diverged")
        probabilities = torch.softmax(logits.cpu().double(), 1).tolist()
        self.events[f"no readable {self.modality}"] += int((~batch["present"]).sum())
        answered = score_predictions(batch["samples"], probabilities)
        return [
            p if present else replace(p, predicted=None, scores=None)
            for p, present in zip(answered, batch["present"].tolist(), strict=True)
        ]


class FaceClassifier(Unimodal):
    """Face alone.

    Args:
        vision: folder, published name, hub id or file of the image encoder (see `zoo.backbones.Vision`), or
            ``features:FOLDER``, of which a sequence counts as its mean.
        dtype: dtype of its weights.
        revision: hub revision to pin.
        frames: frames per clip, evenly spaced over its middle part; training sees one of them, drawn anew at each
            visit, evaluation takes the mean of the log-probabilities of all.
        middle: share of the clip around its middle that frames are taken from; an expression rises and falls.
        shift: in training a frame is moved by up to this many pixels (of ``size``) each way.
        light: in training brightness and contrast vary by up to this share.
        flip: in training half of the frames are mirrored.
        size: frames are decoded to this length of the shorter side, and the middle square is taken; the encoder resizes
            to its own in any case.
    """

    modality = "face"

    def __init__(
        self,
        vision: str,
        dtype: Dtype = "float32",
        revision: str | None = None,
        frames: int = 4,
        middle: float = 0.5,
        shift: int = 0,
        light: float = 0.0,
        flip: bool = False,
        size: int = 96,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if frames < 1 or not 0 < middle <= 1 or shift < 0 or not 0 <= light < 1:
            raise ValueError(
                "need frames >= 1, 0 < middle <= 1, shift >= 0 and 0 <= light < 1; got "
                f"{frames}, {middle}, {shift}, {light}"
            )
        options = {"shift": shift, "light": light, "flip": flip}
        self.give_features("vision", vision, dtype, revision, ", ".join(k for k, value in options.items() if value))
        self.make_vision = functools.partial(Vision, vision, dtype=dtype, revision=revision)
        self.frames, self.middle, self.size = frames, middle, size
        self.shift, self.light, self.flip = shift, light, flip

    @property
    def encoder(self) -> Vision | GivenFeatures:
        return self.vision

    def build(self) -> None:
        features = None if self.given_features is None else GivenFeatures(self.given_features, 1, self.standardise)
        self.vision: Vision | GivenFeatures = features or self.make_vision()
        self.add_head()

    def backbones(self) -> Mapping[str, Backbone]:
        """Return the image encoder."""
        return {"vision": self.vision}

    def collator(self, training: bool) -> FaceCollator | FeatureCollator:
        if self.given_features is not None:
            return FeatureCollator(self.given_features)
        look = (self.frames, self.middle, self.size)
        return FaceCollator(self.media, *look, training, self.shift, self.light, self.flip)

    def _frames(self, batch: dict[str, Any], per_frame: Callable[[Tensor], Tensor]) -> Tensor:
        frames = batch["frames"]  # (B, F, 3, H, W)
        return per_frame(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def pooled(self, batch: dict[str, Any]) -> Tensor:
        vision = self.vision
        if isinstance(vision, GivenFeatures):
            return cast(Tensor, vision(batch["features"]))

        def one(frames: Tensor) -> Tensor:
            hidden = vision.hidden(frames, normed=True)
            return hidden[:, 0] if vision.has_cls else hidden.mean(1)

        return self._frames(batch, one).mean(1)

    def own_logits(self, batch: dict[str, Any]) -> Tensor:
        return torch.log_softmax(self._frames(batch, cast(Vision, self.vision).logits).float(), -1).mean(1)


class VoiceClassifier(Unimodal):
    """Voice alone.

    Args:
        audio: folder, published name, hub id or file of HuBERT weights (see `zoo.backbones.Audio`), or
            ``features:FOLDER``, of which a sequence counts as its mean.
        dtype: dtype of its weights.
        revision: hub revision to pin.
        max_seconds: a longer waveform is cut to its middle part, counted.
        gain: in training the level varies by up to this many dB.
        acoustic_loss: weight of a second task in training, to read the log-mel spectrum of the waveform off the
            encoder's frames (mean squared error in units of 10 dB; its linear head is not part of the encoder). An
            encoder that starts from random weights learns to listen in a few hundred steps with it (ours).
    """

    modality = "voice"

    def __init__(
        self,
        audio: str,
        dtype: Dtype = "float32",
        revision: str | None = None,
        max_seconds: float = 15.0,
        gain: float = 0.0,
        acoustic_loss: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_seconds <= 0 or gain < 0 or acoustic_loss < 0:
            raise ValueError(
                f"need max_seconds > 0, gain >= 0 and acoustic_loss >= 0, got {max_seconds}, {gain}, {acoustic_loss}"
            )
        options = {"gain": gain, "acoustic_loss": acoustic_loss}
        self.give_features("audio", audio, dtype, revision, ", ".join(k for k, value in options.items() if value))
        self.make_audio = functools.partial(Audio, audio, dtype=dtype, revision=revision)
        self.max_seconds, self.gain, self.acoustic_loss = max_seconds, gain, acoustic_loss
        self.spectrum: nn.Linear | None = None

    @property
    def encoder(self) -> Audio | GivenFeatures:
        return self.audio

    def backbones(self) -> Mapping[str, Backbone]:
        """Return the audio encoder."""
        return {"audio": self.audio}

    def build(self) -> None:
        features = None if self.given_features is None else GivenFeatures(self.given_features, 1, self.standardise)
        self.audio: Audio | GivenFeatures = features or self.make_audio()
        self.add_head()
        if self.acoustic_loss:
            self.spectrum = nn.Linear(self.audio.width, MELS)

    def collator(self, training: bool) -> VoiceCollator | FeatureCollator:
        if self.given_features is not None:
            return FeatureCollator(self.given_features)
        return VoiceCollator(self.media, self.max_seconds, training, self.gain)

    def _hidden(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the encoder's frames, computed once per batch: both tasks read them."""
        if "hidden" not in batch:
            batch["hidden"] = cast(Audio, self.audio).hidden(batch["waves"], batch["lengths"])
        return batch["hidden"]

    def pooled(self, batch: dict[str, Any]) -> Tensor:
        if isinstance(self.audio, GivenFeatures):
            return cast(Tensor, self.audio(batch["features"]))
        hidden, frames = self._hidden(batch)  # zero after the end
        return hidden.sum(1) / frames[:, None].to(hidden.dtype)

    def own_logits(self, batch: dict[str, Any]) -> Tensor:
        audio = cast(Audio, self.audio)
        if self.spectrum is None or audio.layer_weights is not None:
            return audio.logits(batch["waves"], batch["lengths"])
        return audio.classify(*self._hidden(batch))

    def extra_loss(self, batch: dict[str, Any]) -> Tensor | float:
        if self.spectrum is None:
            return 0.0
        audio = cast(Audio, self.audio)
        hidden, frames = self._hidden(batch)
        target = log_mel(batch["waves"], audio.stride, audio.shortest)  # (B, T', MELS)
        t = min(hidden.shape[1], target.shape[1])
        used = (torch.arange(t, device=hidden.device) < frames[:, None]) & batch["present"][:, None]
        error = (self.spectrum(hidden[:, :t].float()) - target[:, :t])[used]
        loss = error.square().mean()
        self.log("train/acoustic_loss", loss)
        return self.acoustic_loss * loss

    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        self.events["waveforms cut to max_seconds"] += batch["cut"]
        return super().predict(batch)


def log_mel(waves: Tensor, stride: int, window: int) -> Tensor:
    """Log-mel spectrum in units of 10 dB, one row for each frame of the encoder: (B, N) -> (B, T, MELS)."""
    banks = melscale_fbanks(FFT // 2 + 1, 60.0, 7600.0, MELS, 16_000).to(waves.device)
    windows = waves.unfold(1, window, stride) * torch.hann_window(window, device=waves.device)
    return torch.log10(torch.fft.rfft(windows, FFT).abs().square() @ banks + 1e-6)


# ----------------------------------------------------------------------------------------------------- input processing
@dataclass
class FaceCollator:
    """Turn samples into frames of their clips.

    ``frames`` (B, F, 3, S, S) uint8 (zeros where there is no clip; F is 1 in training), ``present`` (B,) bool,
    ``label`` (B,) int64 (-1 = unlabelled) and ``samples``.
    """

    media: Media
    frames: int
    middle: float
    size: int
    training: bool
    shift: int = 0
    light: float = 0.0
    flip: bool = False

    def length(self, sample: Sample) -> int:
        return 0  # all alike

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> dict[str, Any]:
        read = [self._read(s, rng) for s in samples]
        blank = np.zeros((1 if self.training else self.frames, 3, self.size, self.size), np.uint8)
        return {
            "samples": SampleBatch(samples),
            "frames": torch.from_numpy(np.stack([blank if x is None else x for x in read])),
            "present": torch.tensor([x is not None for x in read]),
            "label": torch.tensor([s.label for s in samples]),
        }

    def _read(self, sample: Sample, rng: np.random.Generator) -> np.ndarray | None:
        # as many draws for a missing clip: the rest of the batch stays as it is
        which, dy, dx = rng.integers(self.frames), *rng.integers(-self.shift, self.shift + 1, 2)
        gain, offset, mirrored = *rng.uniform(-self.light, self.light, 2), rng.random() < 0.5
        if sample.target.video is None:
            return None
        try:
            frames = utterance_frames(
                self.media, sample.target, self.frames, side=self.size, square=True, middle=self.middle
            )
        except Unreadable:
            return None
        if not self.training:
            return frames
        frame = np.pad(frames[which], ((0, 0), *((self.shift, self.shift),) * 2), mode="edge")
        frame = frame[:, self.shift + dy :, self.shift + dx :][:, : self.size, : self.size]
        if self.flip and mirrored:
            frame = frame[:, :, ::-1]
        if self.light:
            mean = frame.mean()
            frame = (frame - mean) * (1 + gain) + mean * (1 + offset)
        return np.clip(frame, 0, 255).astype(np.uint8)[None]


@dataclass
class VoiceCollator:
    """Turn samples into waveforms.

    ``waves`` (B, N) float32 at 16 kHz (zeros after the end), ``lengths`` (B,) int64, ``present``, ``label``,
    ``samples`` as `FaceCollator`, and ``cut`` (int, waveforms longer than ``max_seconds``).
    """

    media: Media
    max_seconds: float
    training: bool
    gain: float = 0.0

    def length(self, sample: Sample) -> int:
        return 0  # not known before decoding

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> dict[str, Any]:
        cut, waves = 0, []
        for sample in samples:
            decibels = rng.uniform(-self.gain, self.gain)
            wave, shortened = self._read(sample)
            cut += shortened
            if wave is not None and self.training and self.gain:
                wave = wave * np.float32(10 ** (decibels / 20))
            waves.append(wave)
        padded, lengths = pad_waves([np.zeros(1, np.float32) if w is None else w for w in waves])
        return {
            "samples": SampleBatch(samples),
            "waves": padded,
            "lengths": lengths,
            "present": torch.tensor([w is not None for w in waves]),
            "label": torch.tensor([s.label for s in samples]),
            "cut": cut,
        }

    def _read(self, sample: Sample) -> tuple[np.ndarray | None, bool]:
        if sample.target.audio is None:
            return None, False
        try:
            return middle_of_sound(utterance_sound(self.media, sample.target), round(self.max_seconds * RATE))
        except Unreadable:
            return None, False
