"""The linear probe: softmax(W v + b) of one vector v a clip (or a frame; see `vfz.temporal.data.pooling`).

Two solvers. `sgd` is DINOv2's protocol (arXiv 2304.07193): momentum 0.9, no weight decay, cosine to zero, thirteen
learning rates (times batch / 256) as heads of one pass over the data.

`exact` is logistic regression at 45 strengths of the L2 penalty, on standardised features, each solved to its optimum
in float64; it needs all vectors in memory. The problems share their data, so one product with stacked weights serves
all that are not solved yet; each has an L-BFGS memory and a line search of its own. Against `torch.optim.LBFGS`, one
penalty after the other, that is some thirty times faster (45 penalties, 300 videos of 32 numbers, two CPU cores).

Shapes: B clips, F frames of a clip, M vectors, E features (and 1 for the bias), K classes, H heads or problems, A of
the problems not solved yet, P = K * (E + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfz.temporal.data.features import Features
from vfz.temporal.data.pooling import clip_vectors, every_vector, labels_of_vectors
from vfz.temporal.probes.heads import Curves, HeadGrid, HeadOptimizer, Schedule, train_heads

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
INVERSE_PENALTIES = tuple(10 ** (-6 + 11 * step / 44) for step in range(45))
_REFERENCE_BATCH = 256
_INIT_STD = 0.01

# Of the solver of `exact`.
_MEMORY = 20
_MAX_ITERATIONS = 1000
_MAX_HALVINGS = 40
_TOLERANCE = 1e-8  # of the greatest component of the gradient of the mean loss
_SUFFICIENT = 1e-4  # Armijo's condition
_NUMBERS_AT_ONCE = 30_000_000  # logits of all problems together

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Points [A,P] and numbers of their problems [A] to values [A] and gradients [A,P]."""


class LinearGrid(HeadGrid):
    """Linear classifiers of a clip's vectors.

    Args:
        weight_HKE: of each head, for vectors as they are read.
        bias_HK: of each head.
        settings: of each head.
        pool: which frames are seen; of several, probabilities are averaged.
    """

    def __init__(
        self, weight_HKE: Tensor, bias_HK: Tensor, *, settings: Sequence[Mapping[str, Any]], pool: str
    ) -> None:
        self.weight_HKE, self.bias_HK, self.settings, self.pool = weight_HKE, bias_HK, settings, pool
        self.num_parameters = weight_HKE[0].numel() + bias_HK[0].numel()

    def proba(self, layers_BTND: Sequence[Tensor], num_prefix: Sequence[int]) -> Tensor:
        """See `HeadGrid`."""
        vectors_BFE = clip_vectors(layers_BTND, num_prefix, self.pool).to(self.weight_HKE.dtype)
        logits_BFHK = _all_heads(vectors_BFE, self.weight_HKE, self.bias_HK)
        return logits_BFHK.softmax(dim=-1).mean(dim=1).transpose(0, 1)

    def only(self, head: int) -> LinearGrid:
        """See `HeadGrid`."""
        part = slice(head, head + 1)
        return LinearGrid(self.weight_HKE[part], self.bias_HK[part], settings=self.settings[part], pool=self.pool)


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
    """Logistic regression at every strength of the penalty.

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
        progress.note(f"solving {len(self.inverse_penalties)} logistic regressions of {len(x_ME)} vectors")
        weight_HKE, bias_HK = self._start = fit_logistic(
            x_ME,
            labels_M,
            num_classes=self.num_classes,
            inverse_penalties=self.inverse_penalties,
            start=self._start,
        )
        weight_HKE = weight_HKE * scale_E
        bias_HK = bias_HK - (weight_HKE * mean_E).sum(dim=2)
        settings = [{"inverse_penalty": value} for value in self.inverse_penalties]
        return LinearGrid(weight_HKE, bias_HK, settings=settings, pool=self.pool), Curves()


def fit_logistic(
    x_ME: Tensor,
    labels_M: Tensor,
    *,
    num_classes: int,
    inverse_penalties: Sequence[float],
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights [H,K,E] and biases [H,K] that minimise the sum of cross-entropies + |W|^2 / (2 C), for every C.

    Args:
        x_ME: features.
        labels_M: class numbers.
        num_classes: K.
        inverse_penalties: values of C, as scikit-learn calls it; biases are free.
        start: weights and biases to begin from; default: zeros.
    """
    x_ME = x_ME.double()
    span_ER: Tensor | None = None
    if len(x_ME) < x_ME.shape[1]:
        # The penalty cares for lengths only, so the weights lie in the span of the samples: R = M numbers tell all.
        span_ER = torch.linalg.qr(x_ME.T).Q
        x_ME = x_ME @ span_ER
        start = None if start is None else (start[0] @ span_ER, start[1])
    x_ME = torch.cat([x_ME, x_ME.new_ones(len(x_ME), 1)], dim=1)
    penalty_H = 1 / (x_ME.new_tensor(inverse_penalties) * len(x_ME))
    shape = (num_classes, x_ME.shape[1])
    if start is None:
        theta_HP = x_ME.new_zeros(len(penalty_H), shape[0] * shape[1])
    else:
        theta_HP = torch.cat([start[0], start[1].unsqueeze(2)], dim=2).flatten(1)
    at_once = max(1, _NUMBERS_AT_ONCE // (len(x_ME) * num_classes))
    solved = [
        minimise(_objective(x_ME, labels_M, some, shape), theta)
        for some, theta in zip(penalty_H.split(at_once), theta_HP.split(at_once), strict=True)
    ]
    theta_HKE = torch.cat(solved).unflatten(1, shape)
    weight_HKE, bias_HK = theta_HKE[..., :-1], theta_HKE[..., -1]
    return weight_HKE if span_ER is None else weight_HKE @ span_ER.T, bias_HK


def minimise(objective: Objective, start_HP: Tensor) -> Tensor:
    """L-BFGS (Nocedal and Wright, algorithm 7.5) with halving steps, on several smooth convex problems at once.

    Args:
        objective: values and gradients.
        start_HP: where each problem begins.

    Returns:
        Where each ended: where its gradient vanished, no step makes it less, or after a thousand iterations.
    """
    solution_HP = start_HP.clone()
    problems_A = torch.arange(len(start_HP), device=start_HP.device)
    point_AP = start_HP.clone()
    value_A, gradient_AP = objective(point_AP, problems_A)
    pairs: list[tuple[Tensor, Tensor]] = []
    for _ in range(_MAX_ITERATIONS):
        direction_AP = -_inverse_hessian_times(gradient_AP, pairs)
        moved = _line_search(objective, problems_A, point_AP, value_A, gradient_AP, direction_AP)
        next_AP, value_A, next_gradient_AP, stuck_A = moved
        pairs = [*pairs[-_MEMORY + 1 :], (next_AP - point_AP, next_gradient_AP - gradient_AP)]
        point_AP, gradient_AP = next_AP, next_gradient_AP
        done_A = stuck_A | (gradient_AP.abs().amax(dim=1) < _TOLERANCE)
        if done_A.any():
            solution_HP[problems_A[done_A]] = point_AP[done_A]
            left_A = ~done_A
            if not left_A.any():
                return solution_HP
            problems_A, point_AP, value_A = problems_A[left_A], point_AP[left_A], value_A[left_A]
            gradient_AP = gradient_AP[left_A]
            pairs = [(step[left_A], change[left_A]) for step, change in pairs]
    solution_HP[problems_A] = point_AP
    return solution_HP


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
        labels = labels_B.repeat_interleave(logits_BFHK.shape[1:3].numel())
        losses_BFH = F.cross_entropy(logits_BFHK.flatten(0, 2), labels, reduction="none").view(logits_BFHK.shape[:3])
        losses_H = losses_BFH.mean(dim=(0, 1))
        self._optimizer.zero_grad()
        (losses_H * self._lr_H).sum().backward()
        self._optimizer.step()
        return losses_H.detach()

    def grid(self) -> HeadGrid:
        weight_HKE = self._weight_HKE.detach() * self._scale_E
        bias_HK = self._bias_HK.detach() - weight_HKE @ self._mean_E
        settings = [{"lr": lr} for lr in self._fitter.lrs]
        return LinearGrid(weight_HKE, bias_HK, settings=settings, pool=self._fitter.pool)


def _all_heads(vectors_BFE: Tensor, weight_HKE: Tensor, bias_HK: Tensor) -> Tensor:
    """Logits [B,F,H,K] by one product."""
    logits = F.linear(vectors_BFE, weight_HKE.flatten(0, 1), bias_HK.flatten())
    logits_BFHK: Tensor = logits.unflatten(-1, bias_HK.shape)
    return logits_BFHK


def _moments(x_ME: Tensor) -> tuple[Tensor, Tensor]:
    """Means, and one over the deviations; 1 where a feature is constant."""
    std_E = x_ME.std(dim=0, correction=0)
    return x_ME.mean(dim=0), torch.where(std_E > 0, 1 / std_E, 1.0)


def _objective(x_ME: Tensor, labels_M: Tensor, penalty_H: Tensor, shape: tuple[int, int]) -> Objective:
    labels_MA1 = labels_M[:, None, None]

    def evaluate(theta_AP: Tensor, problems_A: Tensor) -> tuple[Tensor, Tensor]:
        num_problems = len(theta_AP)
        theta_AKE = theta_AP.unflatten(1, shape)
        log_MAK = (x_ME @ theta_AKE.flatten(0, 1).T).unflatten(1, (num_problems, -1)).log_softmax(dim=2)
        index_MA1 = labels_MA1.expand(-1, num_problems, -1)
        loss_A = -log_MAK.gather(2, index_MA1).mean(dim=(0, 2))
        error_MAK = log_MAK.exp_().scatter_add_(2, index_MA1, -torch.ones_like(index_MA1, dtype=log_MAK.dtype))
        gradient_AKE = (error_MAK.flatten(1).T @ x_ME / len(x_ME)).unflatten(0, (num_problems, -1))
        penalty_A11 = penalty_H[problems_A, None, None]
        weight_AKE = theta_AKE[..., :-1]
        loss_A = loss_A + 0.5 * (penalty_A11 * weight_AKE.square()).sum(dim=(1, 2))
        gradient_AKE[..., :-1] += penalty_A11 * weight_AKE
        return loss_A, gradient_AKE.flatten(1)

    return evaluate


def _inverse_hessian_times(gradient_AP: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion; before the first step, the gradient at a length of at most 1."""
    if not pairs:
        first_AP: Tensor = gradient_AP / gradient_AP.norm(dim=1, keepdim=True).clamp_min(1.0)
        return first_AP
    result_AP, kept = gradient_AP.clone(), []
    for step_AP, change_AP in reversed(pairs):
        curvature_A1 = (step_AP * change_AP).sum(dim=1, keepdim=True)
        rho_A1 = torch.where(curvature_A1 > 0, 1 / curvature_A1, 0.0)  # a step too small to tell says nothing
        alpha_A1 = rho_A1 * (step_AP * result_AP).sum(dim=1, keepdim=True)
        result_AP -= alpha_A1 * change_AP
        kept.append((rho_A1, alpha_A1))
    step_AP, change_AP = pairs[-1]
    curvature_A1 = (step_AP * change_AP).sum(dim=1, keepdim=True)
    size_A1 = change_AP.square().sum(dim=1, keepdim=True)
    result_AP *= torch.where(curvature_A1 > 0, curvature_A1 / size_A1, 1.0)
    for (step_AP, change_AP), (rho_A1, alpha_A1) in zip(pairs, reversed(kept), strict=True):
        beta_A1 = rho_A1 * (change_AP * result_AP).sum(dim=1, keepdim=True)
        result_AP += (alpha_A1 - beta_A1) * step_AP
    return result_AP


def _line_search(
    objective: Objective,
    problems_A: Tensor,
    point_AP: Tensor,
    value_A: Tensor,
    gradient_AP: Tensor,
    direction_AP: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halves each problem's step until it makes enough of a difference: point, value, gradient, and who found none."""
    slope_A = (gradient_AP * direction_AP).sum(dim=1)
    step_A = torch.ones_like(value_A)
    best_AP, best_value_A, best_gradient_AP = point_AP.clone(), value_A.clone(), gradient_AP.clone()
    trying_A = (slope_A < 0).nonzero().flatten()
    stuck_A = slope_A >= 0
    for _ in range(_MAX_HALVINGS):
        if not len(trying_A):
            break
        tried_AP = point_AP[trying_A] + step_A[trying_A, None] * direction_AP[trying_A]
        tried_value_A, tried_gradient_AP = objective(tried_AP, problems_A[trying_A])
        enough_A = tried_value_A <= value_A[trying_A] + _SUFFICIENT * step_A[trying_A] * slope_A[trying_A]
        fine_A = trying_A[enough_A]
        best_AP[fine_A], best_value_A[fine_A] = tried_AP[enough_A], tried_value_A[enough_A]
        best_gradient_AP[fine_A] = tried_gradient_AP[enough_A]
        trying_A = trying_A[~enough_A]
        step_A[trying_A] /= 2
    stuck_A[trying_A] = True
    return best_AP, best_value_A, best_gradient_AP, stuck_A
