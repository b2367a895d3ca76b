"""Three ways to make one vector of those of several modalities; each is ``(vectors, present) -> (fused, loss)``.

``vectors`` (B, M, D) float32 are those of M modalities, ``present`` (B, M) bool says which of them a sample has,
``fused`` is (B, W) with W = ``width``, and ``loss`` () is added to that of the labels: 0 where a fusion has none of its
own. What a sample lacks has no influence on ``fused``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

MOMENTS = 5  # MISA: central moments that are compared


class AttentionFusion(nn.Module):
    """The mean of the vectors by weights that all of them together decide (MERBench's baseline, Lian et al. 2024).

    Args:
        modalities, size: M and D.
    """

    def __init__(self, modalities: int, size: int) -> None:
        super().__init__()
        self.width = size
        self.weigh = nn.Sequential(nn.Linear(modalities * size, size), nn.ReLU(), nn.Linear(size, modalities))

    def weights(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Return (B, M) weights of sum 1, 0 of what is not there; of a sample without anything all are 0."""
        scores = self.weigh((vectors * present[..., None]).flatten(1))
        return torch.softmax(scores.masked_fill(~present, torch.finfo(scores.dtype).min), 1) * present

    def forward(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fused vectors, and no loss."""
        return (self.weights(vectors, present)[..., None] * vectors).sum(1), vectors.new_zeros(())


class LowRankFusion(nn.Module):
    """The product of all vectors, each with a 1 appended, with a tensor of low rank (LMF, Liu et al. 2018, Eq. 7 to 9).

    That tensor, (D + 1, ..., D + 1, W) with one axis for each modality, is the sum over r of ``weight[r]`` times the
    outer product of the ``factors[:, r]``; it is never made. Of what a sample lacks only the 1 takes part.

    Args:
        modalities, size: M and D.
        rank: number of terms.
    """

    def __init__(self, modalities: int, size: int, rank: int) -> None:
        super().__init__()
        self.width = size
        self.factors = nn.Parameter(torch.empty(modalities, rank, size + 1, size))  # (M, R, D + 1, W)
        self.weight = nn.Parameter(torch.empty(rank))
        self.bias = nn.Parameter(torch.zeros(size))
        nn.init.normal_(self.factors, std=size**-0.5)
        nn.init.constant_(self.weight, 1 / rank)
        with torch.no_grad():
            self.factors[:, :, -1] = 1.0  # so that at the start a modality multiplies by about 1

    def forward(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fused vectors, and no loss."""
        known = vectors * present[..., None]
        with_one = torch.cat([known, known.new_ones(*known.shape[:2], 1)], 2)  # (B, M, D + 1)
        terms = torch.einsum("bmd,mrdw->bmrw", with_one, self.factors).prod(1)  # (B, R, W)
        return torch.einsum("r,brw->bw", self.weight, terms) + self.bias, vectors.new_zeros(())


class MisaFusion(nn.Module):
    """What the modalities share and what each keeps to itself, six vectors of three, in one layer of attention.

    MISA (Hazarika et al. 2020), Eq. 2 to 14. Its loss pulls the shared parts together (`central_moment_discrepancy`),
    keeps shared and private parts apart (`orthogonality`), and lets a decoder rebuild each vector from the two.

    Args:
        modalities, size: M and D.
        heads: of the attention.
        dropout: of the attention.
        similarity, difference, reconstruction: weights of the three losses.
    """

    def __init__(
        self,
        modalities: int,
        size: int,
        heads: int,
        dropout: float,
        similarity: float,
        difference: float,
        reconstruction: float,
    ) -> None:
        super().__init__()
        self.width = 2 * modalities * size
        self.loss_weights = similarity, difference, reconstruction
        self.shared = nn.Sequential(nn.Linear(size, size), nn.Sigmoid())
        self.private = nn.ModuleList(nn.Sequential(nn.Linear(size, size), nn.Sigmoid()) for _ in range(modalities))
        self.decoders = nn.ModuleList(nn.Linear(size, size) for _ in range(modalities))
        self.attention = nn.TransformerEncoderLayer(size, heads, 2 * size, dropout, batch_first=True)

    def parts(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return what vectors share, and what each keeps to itself: (B, M, D) both."""
        private = [encode(vectors[:, m]) for m, encode in enumerate(self.private)]
        return self.shared(vectors), torch.stack(private, 1)

    def forward(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fused vectors, and the weighted loss."""
        shared, private = self.parts(vectors)
        known = present.repeat(1, 2)  # (B, 2 M): shared parts first
        hidden = torch.cat([shared, private], 1)
        # attention over nothing has no value, so a sample without anything attends to all, and is left out below
        ignored = ~known & present.any(1, keepdim=True)
        attended = self.attention(hidden, src_key_padding_mask=ignored) * known[..., None]
        return attended.flatten(1), self.loss(vectors, shared, private, present)

    def loss(self, vectors: Tensor, shared: Tensor, private: Tensor, present: Tensor) -> Tensor:
        """Return the weighted sum of the three losses, each over the samples that have what it compares."""
        pairs = list(itertools.combinations(range(vectors.shape[1]), 2))
        similarity, difference, reconstruction = self.loss_weights
        alike, apart = [], []
        for a, b in pairs:
            both = present[:, a] & present[:, b]
            alike.append(central_moment_discrepancy(shared[both, a], shared[both, b]))
            apart.append(orthogonality(private[both, a], private[both, b]))
        rebuilt = []
        for m, decode in enumerate(self.decoders):
            there = present[:, m]
            apart.append(orthogonality(shared[there, m], private[there, m]))
            error = decode(shared[there, m] + private[there, m]) - vectors[there, m]
            rebuilt.append(error.square().sum() / max(1, error.numel()))
        return similarity * _mean(alike) + difference * _sum(apart) + reconstruction * _mean(rebuilt)


def central_moment_discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """Compare the distributions of two batches (N, D): distance of their means, and of their moments up to the 5th.

    MISA Eq. 10, for values in [0, 1]; 0 for the same batch, and for an empty one.
    """
    if not len(a):
        return a.sum() + b.sum()
    mean_a, mean_b = a.mean(0), b.mean(0)
    distance = torch.linalg.vector_norm(mean_a - mean_b)
    for k in range(2, MOMENTS + 1):
        moments = ((x - mean).pow(k).mean(0) for x, mean in ((a, mean_a), (b, mean_b)))
        distance = distance + torch.linalg.vector_norm(next(moments) - next(moments))
    return distance


def orthogonality(a: Tensor, b: Tensor) -> Tensor:
    """Return how much two batches (N, D) overlap: the mean square of A^T B, rows centred over the batch, of length 1.

    MISA Eq. 12; 0 where every dimension of one is orthogonal, over the batch, to every one of the other.
    """
    if not len(a):
        return a.sum() + b.sum()
    a, b = (normalize(x - x.mean(0), dim=1, eps=1e-6) for x in (a, b))
    return (a.T @ b).square().mean()


def _sum(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()
