"""Multinomial logistic regression at several strengths of the penalty at once, solved to the optimum in float64.

The problems share their data, so that one product with stacked weights serves all that are still being solved; each
has an L-BFGS memory and a line search of its own. Against `torch.optim.LBFGS`, one penalty after the other, that is
some thirty times faster (45 penalties, 300 videos of 32 numbers, two CPU cores).

Shapes: M samples, E features (and 1 for the bias), K classes, H problems, A of them not solved yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_MEMORY = 20
_MAX_ITERATIONS = 1000
_MAX_HALVINGS = 40
_TOLERANCE = 1e-8  # of the greatest component of the gradient of the mean loss
_SUFFICIENT = 1e-4  # Armijo's condition
_NUMBERS_AT_ONCE = 30_000_000

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Points [A,P] and numbers of their problems [A] to values [A] and gradients [A,P]."""


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
