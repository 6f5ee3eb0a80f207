"""The kNN probe: a vote of the most similar training clips (DINO, arXiv 2104.14294). Nothing is trained.

Vectors are L2-normalised; the k most similar ones vote with weight softmax(similarity / 0.07). Cost: one product of
every asked vector with every training vector.

Shapes: B clips, F frames of a clip, M training vectors, E features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vfz.temporal.data.features import Features
from vfz.temporal.data.pooling import clip_vectors, every_vector, labels_of_vectors
from vfz.temporal.probes.heads import Curves, HeadGrid

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07


class KnnGrid(HeadGrid):
    """Votes of the nearest, one head per k.

    Args:
        bank_ME: normalised training vectors.
        labels_M: their classes.
        num_classes: K.
        neighbours: values of k, each at most M.
        temperature: of the votes' weights.
        pool: which frames are seen.

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
    ) -> None:
        self.bank_ME, self.labels_M = bank_ME, labels_M
        self.num_classes, self.neighbours, self.temperature = num_classes, tuple(neighbours), temperature
        self.pool = pool
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
            votes_BFK = weights_BFk.new_zeros(*weights_BFk.shape[:2], self.num_classes)
            votes.append(votes_BFK.scatter_add_(2, labels_BFk[..., :k], weights_BFk).mean(dim=1))
        return torch.stack(votes)

    def only(self, head: int) -> KnnGrid:
        """See `HeadGrid`."""
        return KnnGrid(
            self.bank_ME,
            self.labels_M,
            num_classes=self.num_classes,
            neighbours=self.neighbours[head : head + 1],
            temperature=self.temperature,
            pool=self.pool,
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
        )
        return grid, Curves()
