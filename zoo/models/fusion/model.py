"""Features of words, face and voice, fused by a small network without a language model: the baselines of MERBench.

Lian et al. 2024 (arXiv 2401.03429) compare ways to fuse features that frozen encoders made before; here are three of
them: attention (their own baseline), LMF (Liu et al. 2018, arXiv 1806.00064), MISA (Hazarika et al. 2020, arXiv
2005.03545). Features are files (`zoo.training.given_features`) that ``zoo prepare features`` or others made, such as
MERBench's ``UTT`` folders of .npy; of ``FRA`` sequences the mean is taken).

Differs from the papers:
- Every modality enters by one linear layer with ReLU and dropout; of sequences the mean is fused, by LMF and MISA too,
  which have recurrent encoders of their own.
- The weights of the attention are a softmax over the modalities that a sample has.
- A sample that lacks a modality is answered by the others; one that lacks all is not answered, and counted.
- MISA's domain classifier, an alternative to its similarity loss, is left out; weights of its losses are options.
- Widths and training are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo.media import Media
from zoo.models.fusion.fusions import AttentionFusion, LowRankFusion, MisaFusion
from zoo.schema import Labels, Prediction, Problem, Sample
from zoo.training.batch import SampleBatch
from zoo.training.checkpointing import Backbone
from zoo.training.evaluation import ordered_parts, score_predictions
from zoo.training.given_features import FeatureFolder, GivenFeatures, Modality, is_given
from zoo.training.module import EmotionModule
from zoo.training.optimization import class_weights

PARTS: Mapping[Modality, str] = {"text": "text", "vision": "face", "audio": "voice"}
NOTHING = "samples without any features"


class FeatureFusion(EmotionModule):
    """Vectors of two or three modalities, fused, and a softmax over the labels; trained by cross-entropy.

    Args:
        text, vision, audio: ``features:FOLDER`` of each modality, two of them at least; null: none.
        fusion: ``attention``, ``lmf`` or ``misa``.
        width: numbers of a modality's vector when it is fused.
        rank: of LMF.
        heads: of MISA's attention.
        similarity, difference, reconstruction: weights of MISA's losses.
        dropout: behind every layer that a modality enters by, and before the classes.
        standardise: give every dimension of the features mean 0 and deviation 1, measured on 512 training utterances.
        class_weight: exponent p of class weights n^-p in the loss; 0 = none, 1 = fully balanced.
    """

    def __init__(
        self,
        *,
        text: str | None = None,
        vision: str | None = None,
        audio: str | None = None,
        fusion: Literal["attention", "lmf", "misa"] = "attention",
        width: int = 128,
        rank: int = 4,
        heads: int = 2,
        similarity: float = 1.0,
        difference: float = 0.3,
        reconstruction: float = 1.0,
        dropout: float = 0.3,
        standardise: bool = True,
        class_weight: float = 0.0,
        lr: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(lr=lr, **kwargs)
        paths: dict[Modality, str | None] = {"text": text, "vision": vision, "audio": audio}
        chosen = {modality: path for modality, path in paths.items() if path is not None}
        for modality, path in chosen.items():
            if not is_given(path):
                raise ValueError(
                    f"--model.{modality} {path} is no folder of features; give features:FOLDER, which zoo prepare "
                    "features writes"
                )
        if len(chosen) < 2:
            raise ValueError(
                "there is nothing to fuse: give features:FOLDER for two or three of --model.text, --model.vision and "
                f"--model.audio; got {', '.join(chosen) or 'none'}"
            )
        if min(width, rank, heads) < 1 or width % heads or not 0 <= dropout < 1:
            raise ValueError(
                "need width, rank and heads of 1 or more, width a multiple of heads, and 0 <= dropout < 1; got "
                f"{width}, {rank}, {heads} and {dropout}"
            )
        if min(similarity, difference, reconstruction, class_weight) < 0:
            raise ValueError(
                "weights are 0 or more, got similarity, difference, reconstruction and class_weight "
                f"{similarity}, {difference}, {reconstruction} and {class_weight}"
            )
        media = Media()
        self.folders = {m: FeatureFolder.of_option(m, (path, "float32", None), media) for m, path in chosen.items()}
        self.fusion_name, self.width, self.rank, self.heads = fusion, width, rank, heads
        self.misa_weights = similarity, difference, reconstruction
        self.dropout, self.standardise, self.class_weight = dropout, standardise, class_weight

    # ---- parts
    def build(self) -> None:
        """Make the places of the features, a layer for each, the fusion, and the classes."""
        for modality, folder in self.folders.items():
            self.add_module(modality, GivenFeatures(folder, 1, self.standardise))
        self.enter = nn.ModuleDict(
            {
                modality: nn.Sequential(
                    nn.Linear(self.features(modality).width, self.width), nn.ReLU(), nn.Dropout(self.dropout)
                )
                for modality in self.folders
            }
        )
        self.fusion = self._fusion(len(self.folders))
        self.classes = nn.Sequential(nn.Dropout(self.dropout), nn.Linear(self.fusion.width, len(self.labels)))

    def _fusion(self, modalities: int) -> AttentionFusion | LowRankFusion | MisaFusion:
        if self.fusion_name == "attention":
            return AttentionFusion(modalities, self.width)
        if self.fusion_name == "lmf":
            return LowRankFusion(modalities, self.width, self.rank)
        return MisaFusion(modalities, self.width, self.heads, self.dropout, *self.misa_weights)

    def features(self, modality: str) -> GivenFeatures:
        """Return the features of a modality."""
        return cast(GivenFeatures, getattr(self, modality))

    def backbones(self) -> Mapping[str, Backbone]:
        """Return the features."""
        return {modality: self.features(modality) for modality in self.folders}

    @property
    def labels(self) -> Labels:
        """The labels of the run's corpus.

        Raises:
            ValueError: there is no run, or one of several label sets.
        """
        sets = [] if self._trainer is None else list(self.data.label_sets.values())
        if len({labels.names for labels in sets}) != 1:
            raise ValueError(
                f"{type(self).__name__} has a class for each label of the corpus of its run, and needs one label set; "
                f"got {len(sets)}. Use zoo test or zoo predict --ckpt_path RUN with one corpus"
            )
        return sets[0]

    def setup(self, stage: str) -> None:
        """Take the data, and count the classes of its training split."""
        super().setup(stage)
        self.class_weights: list[float] | None = None
        if self.class_weight and stage == "fit":
            labels = [s.label for s in self.data.samples("train")]
            self.class_weights = class_weights(labels, len(self.labels), self.class_weight)

    # ---- input
    @property
    def reads(self) -> tuple[str, ...]:
        """What the features stand for."""
        return ordered_parts([PARTS[modality] for modality in self.folders])

    @property
    def unreadable_events(self) -> tuple[str, ...]:
        """The count of samples without anything."""
        return (NOTHING,)

    @property
    def feature_folders(self) -> Mapping[str, FeatureFolder]:
        """The folders of the features, by modality."""
        return {str(modality): folder for modality, folder in self.folders.items()}

    def required_files(self, stage: str) -> Mapping[str, str]:
        """Return the features that are read, with what to do where there are none."""
        return {folder.part: folder.remedy() for folder in self.folders.values()}

    def collator(self, training: bool) -> FusionCollator:
        """Return what reads the features of samples."""
        return FusionCollator(self.feature_folders)

    # ---- training
    def logits(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return (B, labels), arbitrary but finite of a sample without features, and the fusion's own loss."""
        vectors = [self.enter[m](self.features(m)(batch["features"][m])) for m in self.folders]
        fused, loss = self.fusion(torch.stack(vectors, 1), batch["present"])
        return self.classes(fused), loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the cross-entropy of the samples that have features and a label, and the fusion's own loss."""
        used = batch["present"].any(1) & (batch["label"] >= 0)
        loss = torch.zeros((), device=self.device)
        if used.any():
            logits, own_loss = self.logits(batch)
            weight = torch.tensor(self.class_weights, device=self.device) if self.class_weights else None
            loss = cross_entropy(logits[used].float(), batch["label"][used], weight) + own_loss
            self.check_finite(loss, batch)
            self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["samples"]))
        return loss

    # ---- answers
    @torch.no_grad()
    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        """Return the answers to a batch, and count what it lacked."""
        present = batch["present"]
        for modality, there in zip(self.folders, present.T, strict=True):
            self.events[f"samples without {modality} features"] += int((~there).sum())
        self.events[NOTHING] += int((~present.any(1)).sum())
        probabilities = torch.softmax(self.logits(batch)[0].cpu().double(), 1).tolist()
        answered = score_predictions(batch["samples"], probabilities)
        return [
            p if known else replace(p, predicted=None, scores=None)
            for p, known in zip(answered, present.any(1).tolist(), strict=True)
        ]


@dataclass
class FusionCollator:
    """Turn samples into the vectors of their modalities.

    ``features``: modality -> (B, W) float32, the mean of a sequence, zeros where there are none; ``present`` (B, M)
    bool, in the order of the folders; ``label`` (B,) int64 (-1 = unlabelled), ``samples`` and ``problems``.

    Args:
        folders: modality -> its features.
    """

    folders: Mapping[str, FeatureFolder]

    def length(self, sample: Sample) -> int:
        """Return 0: all samples are alike."""
        return 0

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> dict[str, Any]:
        """Return the batch of some samples."""
        problems: list[Problem] = []
        features, present = {}, []
        for modality, folder in self.folders.items():
            blank = torch.zeros(folder.shape[1])
            read = [folder.read(s.dialogue, s.target, 1, problems) for s in samples]
            rows = [None if clip is None else clip.features for clip in read]
            features[modality] = torch.stack([blank if row is None else row[0] for row in rows])
            present.append(torch.tensor([row is not None for row in rows]))
        return {
            "samples": SampleBatch(samples),
            "features": features,
            "present": torch.stack(present, 1),
            "label": torch.tensor([s.label for s in samples]),
            "problems": problems,
        }
