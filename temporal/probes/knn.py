"""The kNN probe: a vote of the most similar training clips (DINO, arXiv 2104.14294). Nothing is trained.

Vectors are L2-normalised; the k most similar ones vote with weight softmax(similarity / 0.07). A label's probability is
its share of the votes, a number the votes' mean, each over the voters of whom it is known, or over all of them where it
is known of none. Cost: one product of every asked vector with every training vector.

Shapes: B clips, F frames of a clip, M training vectors, E features, K classes, labels or targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vfz.temporal.data.features import Features
from vfz.temporal.data.pooling import clip_vectors, every_vector, labels_of_vectors
from vfz.temporal.probes.heads import CLASSES, Curves, HeadGrid

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07


class KnnGrid(HeadGrid):
    """Votes of the nearest, one head per k.

    Args:
        bank_ME: normalised training vectors.
        labels_M: their classes; or their numbers [M,K], NaN where one is not known.
        num_classes: K.
        neighbours: values of k, each at most M.
        temperature: of the votes' weights.
        pool: which frames are seen.
        label_kind: what is answered; see `HeadGrid`.

    Attributes: as the arguments.
    """

    def __init__(
        self,
        bank_ME: Tensor,
        labels_M: Tensor,
        *,
        num_classes: int,
        neighbours: Sequence[int],
        temperature: float,
        pool: str,
        label_kind: str = CLASSES,
    ) -> None:
        self.bank_ME, self.labels_M = bank_ME, labels_M
        self.num_classes, self.neighbours, self.temperature = num_classes, tuple(neighbours), temperature
        self.pool, self.label_kind = pool, label_kind
        self.settings = [{"k": k} for k in neighbours]
        self.num_parameters = 0

    def proba(self, layers_BTND: Sequence[Tensor], num_prefix: Sequence[int]) -> Tensor:
        """See `HeadGrid`."""
        vectors_BFE = F.normalize(clip_vectors(layers_BTND, num_prefix, self.pool), dim=2)
        similarity_BFM = vectors_BFE @ self.bank_ME.T
        nearest_BFk, which_BFk = similarity_BFM.topk(max(self.neighbours), dim=2)
        labels_BFk = self.labels_M[which_BFk]
        votes = []
        for k in self.neighbours:
            weights_BFk = (nearest_BFk[..., :k] / self.temperature).softmax(dim=2)
            if self.label_kind == CLASSES:
                votes_BFK = weights_BFk.new_zeros(*weights_BFk.shape[:2], self.num_classes)
                votes_BFK.scatter_add_(2, labels_BFk[..., :k], weights_BFk)
            else:
                votes_BFK = self._mean_votes(labels_BFk[:, :, :k], weights_BFk)
            votes.append(votes_BFK.mean(dim=1))
        return torch.stack(votes)

    def _mean_votes(self, values_BFkK: Tensor, weights_BFk: Tensor) -> Tensor:
        """The mean of the voters' numbers [B,F,K]."""
        known_BFkK = ~values_BFkK.isnan()
        weights_BFkK = weights_BFk.unsqueeze(3) * known_BFkK
        total_BFK = weights_BFkK.sum(dim=2)
        mean_BFK = (weights_BFkK * values_BFkK.nan_to_num(0.0)).sum(dim=2) / total_BFK.clamp_min(1e-30)
        return mean_BFK.where(total_BFK > 0, self.labels_M.nanmean(dim=0).nan_to_num(0.0))

    def only(self, head: int) -> KnnGrid:
        """See `HeadGrid`."""
        return self._like(self.labels_M, self.neighbours[head : head + 1])

    def rescaled(self, mean_K: Tensor, deviation_K: Tensor) -> KnnGrid:
        """See `HeadGrid`."""
        return self._like(self.labels_M * deviation_K.to(self.labels_M) + mean_K.to(self.labels_M), self.neighbours)

    def _like(self, labels_M: Tensor, neighbours: Sequence[int]) -> KnnGrid:
        return KnnGrid(
            self.bank_ME,
            labels_M,
            num_classes=self.num_classes,
            neighbours=neighbours,
            temperature=self.temperature,
            pool=self.pool,
            label_kind=self.label_kind,
        )


@dataclass(frozen=True, kw_only=True)
class KnnFitter:
    """Every k at once.

    Attributes:
        neighbours: values of k, none above the number of training vectors.
        temperature: of the votes' weights.
        pool: which frames are seen; each frame is a vector of its own.
    """

    num_classes: int
    pool: str
    neighbours: tuple[int, ...] = NEIGHBOURS
    temperature: float = TEMPERATURE
    label_kind: str = CLASSES
    refits: bool = True

    def fit_grid(
        self,
        features: Features,
        labels_V: Tensor,
        videos: Tensor,
        watched: Tensor | None,  # noqa: ARG002
    ) -> tuple[HeadGrid, Curves]:
        """Keeps the vectors of some videos."""
        bank_ME = F.normalize(every_vector(features, videos, self.pool), dim=1).to(features.device)
        labels_M = labels_of_vectors(labels_V[videos], len(bank_ME)).to(features.device)
        grid = KnnGrid(
            bank_ME,
            labels_M,
            num_classes=self.num_classes,
            neighbours=self.neighbours,
            temperature=self.temperature,
            pool=self.pool,
            label_kind=self.label_kind,
        )
        return grid, Curves()
