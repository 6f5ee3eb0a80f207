"""The linear probe: W v + b of one vector v a clip (or a frame; see `vfz.temporal.data.pooling`).

Its softmax are class probabilities; of several labels each has a sigmoid of its own; of numbers it is the answer.

Two solvers. `sgd` is DINOv2's protocol (arXiv 2304.07193): momentum 0.9, no weight decay, cosine to zero, thirteen
learning rates (times batch / 256) as heads of one pass over the data; where it fits numbers, features are standardised,
since a squared error diverges sooner than a cross-entropy.

`exact` is logistic regression at 45 strengths of the L2 penalty (of numbers ridge regression), on standardised
features, each solved to its optimum (`vfz.temporal.solvers`); it needs all vectors in memory.

Shapes: B clips, F frames of a clip, M vectors, E features, K classes, labels or targets, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfz.temporal.data.features import Features
from vfz.temporal.data.pooling import clip_vectors, every_vector, labels_of_vectors
from vfz.temporal.probes.heads import (
    CLASSES,
    REGRESSION,
    Curves,
    HeadGrid,
    HeadOptimizer,
    Schedule,
    head_answers,
    train_heads,
    value_losses,
)
from vfz.temporal.solvers import fit_logistic, fit_one_vs_rest, fit_ridge

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
INVERSE_PENALTIES = tuple(10 ** (-6 + 11 * step / 44) for step in range(45))
_REFERENCE_BATCH = 256
_INIT_STD = 0.01


class LinearGrid(HeadGrid):
    """Linear classifiers of a clip's vectors.

    Args:
        weight_HKE: of each head, for vectors as they are read.
        bias_HK: of each head.
        settings: of each head.
        pool: which frames are seen; of several, answers are averaged.
        label_kind: what is answered; see `HeadGrid`.
    """

    def __init__(
        self,
        weight_HKE: Tensor,
        bias_HK: Tensor,
        *,
        settings: Sequence[Mapping[str, Any]],
        pool: str,
        label_kind: str = CLASSES,
    ) -> None:
        self.weight_HKE, self.bias_HK, self.settings, self.pool = weight_HKE, bias_HK, settings, pool
        self.label_kind = label_kind
        self.num_parameters = weight_HKE[0].numel() + bias_HK[0].numel()

    def proba(self, layers_BTND: Sequence[Tensor], num_prefix: Sequence[int]) -> Tensor:
        """See `HeadGrid`."""
        vectors_BFE = clip_vectors(layers_BTND, num_prefix, self.pool).to(self.weight_HKE.dtype)
        logits_BFHK = _all_heads(vectors_BFE, self.weight_HKE, self.bias_HK)
        return head_answers(self.label_kind, logits_BFHK).mean(dim=1).transpose(0, 1)

    def only(self, head: int) -> LinearGrid:
        """See `HeadGrid`."""
        part = slice(head, head + 1)
        return self._like(self.weight_HKE[part], self.bias_HK[part], self.settings[part])

    def rescaled(self, mean_K: Tensor, deviation_K: Tensor) -> LinearGrid:
        """See `HeadGrid`."""
        mean_K, deviation_K = mean_K.to(self.bias_HK), deviation_K.to(self.bias_HK)
        return self._like(self.weight_HKE * deviation_K[:, None], self.bias_HK * deviation_K + mean_K, self.settings)

    def _like(self, weight_HKE: Tensor, bias_HK: Tensor, settings: Sequence[Mapping[str, Any]]) -> LinearGrid:
        return LinearGrid(weight_HKE, bias_HK, settings=settings, pool=self.pool, label_kind=self.label_kind)


@dataclass(frozen=True, kw_only=True)
class SgdFitter:
    """Thirteen learning rates at once.

    Attributes:
        lrs: for batches of 256; scaled to the schedule's.
        pool: which frames are seen.
        standardize: bring features to mean 0 and deviation 1 over the videos fitted on.
    """

    num_classes: int
    schedule: Schedule
    pool: str
    lrs: tuple[float, ...] = LEARNING_RATES
    standardize: bool = False
    label_kind: str = CLASSES
    refits: bool = False

    def fit_grid(
        self, features: Features, labels_V: Tensor, videos: Tensor, watched: Tensor | None
    ) -> tuple[HeadGrid, Curves]:
        """Heads trained on some videos; `watched` ones are asked about after every epoch."""
        heads = _SgdHeads(self, features, videos)
        curves = train_heads(heads, features, labels_V, videos, schedule=self.schedule, watched=watched)
        return heads.grid(), curves


@dataclass(kw_only=True)
class ExactFitter:
    """Logistic regression, or of numbers ridge regression, at every strength of the penalty.

    Attributes:
        inverse_penalties: values of C, ascending.
        pool: which frames are seen; each frame is a sample.
        standardize: see `SgdFitter`.
    """

    num_classes: int
    schedule: Schedule
    pool: str
    inverse_penalties: tuple[float, ...] = INVERSE_PENALTIES
    standardize: bool = True
    label_kind: str = CLASSES
    refits: bool = True

    def __post_init__(self) -> None:
        self._start: tuple[Tensor, Tensor] | None = None

    def fit_grid(
        self,
        features: Features,
        labels_V: Tensor,
        videos: Tensor,
        watched: Tensor | None,  # noqa: ARG002
    ) -> tuple[HeadGrid, Curves]:
        """One head per C. A second call, on other videos, begins where the first one ended."""
        x_ME = every_vector(features, videos, self.pool).double().to(features.device)
        labels_M = labels_of_vectors(labels_V[videos], len(x_ME)).to(features.device)
        mean_E, scale_E = _moments(x_ME) if self.standardize else (x_ME.new_zeros(()), x_ME.new_ones(()))
        x_ME = (x_ME - mean_E) * scale_E
        progress = self.schedule.progress
        what = "ridge" if self.label_kind == REGRESSION else "logistic"
        progress.note(f"solving {len(self.inverse_penalties)} {what} regressions of {len(x_ME)} vectors")
        weight_HKE, bias_HK = self._start = self._solve(x_ME, labels_M)
        weight_HKE = weight_HKE * scale_E
        bias_HK = bias_HK - (weight_HKE * mean_E).sum(dim=2)
        settings = [{"inverse_penalty": value} for value in self.inverse_penalties]
        grid = LinearGrid(weight_HKE, bias_HK, settings=settings, pool=self.pool, label_kind=self.label_kind)
        return grid, Curves()

    def _solve(self, x_ME: Tensor, labels_M: Tensor) -> tuple[Tensor, Tensor]:
        penalties = self.inverse_penalties
        if self.label_kind == CLASSES:
            return fit_logistic(
                x_ME, labels_M, num_classes=self.num_classes, inverse_penalties=penalties, start=self._start
            )
        if self.label_kind == REGRESSION:
            return fit_ridge(x_ME, labels_M, inverse_penalties=penalties)
        return fit_one_vs_rest(x_ME, labels_M, inverse_penalties=penalties, start=self._start)


class _SgdHeads:
    def __init__(self, fitter: SgdFitter, features: Features, videos: Tensor) -> None:
        self._fitter = fitter
        first_clip = features.read(videos[:1], torch.zeros_like(videos[:1]))
        dim = clip_vectors(first_clip, features.num_prefix, "mean").shape[2]
        self._mean_E, self._scale_E = torch.zeros(dim), torch.ones(dim)
        if fitter.standardize:
            self._mean_E, self._scale_E = _moments(every_vector(features, videos, fitter.pool))
        self._mean_E, self._scale_E = self._mean_E.to(features.device), self._scale_E.to(features.device)
        generator = torch.Generator().manual_seed(fitter.schedule.seed)
        first_KE = torch.randn(fitter.num_classes, dim, generator=generator) * _INIT_STD
        num_heads = len(fitter.lrs)
        self._weight_HKE = nn.Parameter(first_KE.to(features.device).expand(num_heads, -1, -1).clone())
        self._bias_HK = nn.Parameter(torch.zeros(num_heads, fitter.num_classes, device=features.device))
        factor = fitter.schedule.batch_size / _REFERENCE_BATCH
        # Momentum is linear in the gradients, so a head's rate may scale its loss instead: one update serves them all.
        self._lr_H = torch.tensor([lr * factor for lr in fitter.lrs], device=features.device)
        self._optimizer = HeadOptimizer(
            [[self._weight_HKE, self._bias_HK]],
            [{"lr": 1.0}],
            kind="sgd",
            num_steps=fitter.schedule.num_steps(len(videos)),
        )

    def train_step(self, layers_BTND: Sequence[Tensor], num_prefix: Sequence[int], labels_B: Tensor) -> Tensor:
        vectors_BFE = clip_vectors(layers_BTND, num_prefix, self._fitter.pool)
        logits_BFHK = _all_heads((vectors_BFE - self._mean_E) * self._scale_E, self._weight_HKE, self._bias_HK)
        if self._fitter.label_kind == CLASSES:
            labels = labels_B.repeat_interleave(logits_BFHK.shape[1:3].numel())
            losses = F.cross_entropy(logits_BFHK.flatten(0, 2), labels, reduction="none")
            losses_H = losses.view(logits_BFHK.shape[:3]).mean(dim=(0, 1))
        else:
            losses_H = value_losses(self._fitter.label_kind, logits_BFHK.permute(1, 2, 0, 3), labels_B).mean(dim=0)
        self._optimizer.zero_grad()
        (losses_H * self._lr_H).sum().backward()
        self._optimizer.step()
        return losses_H.detach()

    def grid(self) -> HeadGrid:
        weight_HKE = self._weight_HKE.detach() * self._scale_E
        bias_HK = self._bias_HK.detach() - weight_HKE @ self._mean_E
        settings = [{"lr": lr} for lr in self._fitter.lrs]
        fitter = self._fitter
        return LinearGrid(weight_HKE, bias_HK, settings=settings, pool=fitter.pool, label_kind=fitter.label_kind)


def _all_heads(vectors_BFE: Tensor, weight_HKE: Tensor, bias_HK: Tensor) -> Tensor:
    """Logits [B,F,H,K] by one product."""
    logits = F.linear(vectors_BFE, weight_HKE.flatten(0, 1), bias_HK.flatten())
    logits_BFHK: Tensor = logits.unflatten(-1, bias_HK.shape)
    return logits_BFHK


def _moments(x_ME: Tensor) -> tuple[Tensor, Tensor]:
    """Means, and one over the deviations; 1 where a feature is constant."""
    std_E = x_ME.std(dim=0, correction=0)
    return x_ME.mean(dim=0), torch.where(std_E > 0, 1 / std_E, 1.0)
