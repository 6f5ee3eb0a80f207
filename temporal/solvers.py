"""Linear models solved to their optimum, at many strengths of their L2 penalty at once; in float64, in memory.

`fit_logistic` (one class a sample), `fit_one_vs_rest` (any number of labels a sample) and `fit_ridge` (numbers) take
features and give weights and free biases for every penalty. Ridge regression is a singular value decomposition. The two
others are solved by L-BFGS: the problems share their data, so one product with stacked weights serves all that are not
solved yet; each has a memory and a line search of its own. Against `torch.optim.LBFGS`, one penalty after the other,
that is some thirty times faster (45 penalties, 300 samples of 32 numbers, two CPU cores).

Shapes: M samples, E features (and 1 for the bias), K classes, labels or targets, H penalties, A problems that are not
solved yet, P numbers that a problem is about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Of the solver of `exact`.
_MEMORY = 20
_MAX_ITERATIONS = 1000
_MAX_HALVINGS = 40
_TOLERANCE = 1e-8  # of the greatest component of the gradient of the mean loss
_SUFFICIENT = 1e-4  # Armijo's condition
_NUMBERS_AT_ONCE = 30_000_000  # logits of all problems together

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
    x_ME, span_ER, theta_HKE = _beginning(x_ME, num_classes, len(inverse_penalties), start)
    penalty_H = 1 / (x_ME.new_tensor(inverse_penalties) * len(x_ME))
    shape, theta_HP = (num_classes, x_ME.shape[1]), theta_HKE.flatten(1)
    at_once = max(1, _NUMBERS_AT_ONCE // (len(x_ME) * num_classes))
    solved = [
        minimise(_objective(x_ME, labels_M, some, shape), theta)
        for some, theta in zip(penalty_H.split(at_once), theta_HP.split(at_once), strict=True)
    ]
    return _ending(torch.cat(solved).unflatten(1, shape), span_ER)


def fit_one_vs_rest(
    x_ME: Tensor,
    values_MK: Tensor,
    *,
    inverse_penalties: Sequence[float],
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The same of a logistic regression for each label alone, on the samples of which it is known.

    Args:
        x_ME: features.
        values_MK: 1 where a sample has the label, 0 where it has not, NaN where that is not known.
        inverse_penalties: as of `fit_logistic`.
        start: as of `fit_logistic`.
    """
    num_labels = values_MK.shape[1]
    x_ME, span_ER, theta_HKE = _beginning(x_ME, num_labels, len(inverse_penalties), start)
    penalty_H = 1 / (x_ME.new_tensor(inverse_penalties) * len(x_ME))
    values_KM = values_MK.double().T
    penalty_A, label_A = penalty_H.repeat_interleave(num_labels), torch.arange(num_labels).repeat(len(penalty_H))
    at_once = max(1, _NUMBERS_AT_ONCE // len(x_ME))
    chunks = zip(theta_HKE.flatten(0, 1).split(at_once), penalty_A.split(at_once), label_A.split(at_once), strict=True)
    solved = [minimise(_binary_objective(x_ME, values_KM[labels], some), theta) for theta, some, labels in chunks]
    return _ending(torch.cat(solved).unflatten(0, theta_HKE.shape[:2]), span_ER)


def fit_ridge(x_ME: Tensor, values_MK: Tensor, *, inverse_penalties: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Weights [H,K,E] and biases [H,K] that minimise the sum of squared errors + |W|^2 / C, for every C.

    Args:
        x_ME: features.
        values_MK: targets, NaN where one is not known; each is fitted on the samples of which it is known.
        inverse_penalties: values of C, one over scikit-learn's `alpha`; biases are free.
    """
    x_ME, values_MK = x_ME.double(), values_MK.double()
    penalty_H = 1 / x_ME.new_tensor(inverse_penalties)
    weight_HKE = x_ME.new_zeros(len(penalty_H), values_MK.shape[1], x_ME.shape[1])
    bias_HK = x_ME.new_zeros(weight_HKE.shape[:2])
    patterns_UK, of_K = torch.unique(values_MK.isnan(), dim=1, return_inverse=True)
    for pattern, unknown_M in enumerate(patterns_UK.T):
        if unknown_M.all():
            continue
        alike_K = of_K == pattern  # targets that are known of the same samples share a decomposition
        known_ME, known_MK = x_ME[~unknown_M], values_MK[~unknown_M][:, alike_K]
        mean_E, mean_K = known_ME.mean(dim=0), known_MK.mean(dim=0)
        left_MR, size_R, right_RE = torch.linalg.svd(known_ME - mean_E, full_matrices=False)
        shrunk_HR = size_R / (size_R.square() + penalty_H[:, None])
        along_RK = left_MR.T @ (known_MK - mean_K)
        found_HKE = (shrunk_HR[:, None] * along_RK.T) @ right_RE
        weight_HKE[:, alike_K] = found_HKE
        bias_HK[:, alike_K] = mean_K - found_HKE @ mean_E
    return weight_HKE, bias_HK


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


def _beginning(
    x_ME: Tensor, num_classes: int, num_penalties: int, start: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Features with a 1 for the bias, the span [E,R] they are told in where that is smaller, and where to begin."""
    x_ME = x_ME.double()
    span_ER: Tensor | None = None
    if len(x_ME) < x_ME.shape[1]:
        # The penalty cares for lengths only, so the weights lie in the span of the samples: R = M numbers tell all.
        span_ER = torch.linalg.qr(x_ME.T).Q
        x_ME = x_ME @ span_ER
        start = None if start is None else (start[0] @ span_ER, start[1])
    x_ME = torch.cat([x_ME, x_ME.new_ones(len(x_ME), 1)], dim=1)
    if start is None:
        return x_ME, span_ER, x_ME.new_zeros(num_penalties, num_classes, x_ME.shape[1])
    return x_ME, span_ER, torch.cat([start[0], start[1].unsqueeze(2)], dim=2)


def _ending(theta_HKE: Tensor, span_ER: Tensor | None) -> tuple[Tensor, Tensor]:
    weight_HKE, bias_HK = theta_HKE[..., :-1], theta_HKE[..., -1]
    return weight_HKE if span_ER is None else weight_HKE @ span_ER.T, bias_HK


def _binary_objective(x_ME: Tensor, values_HM: Tensor, penalty_H: Tensor) -> Objective:
    """Logistic regressions of a label each; what is not known (NaN) counts nothing."""
    known_HM = ~values_HM.isnan()
    values_HM = values_HM.nan_to_num(0.0)

    def evaluate(theta_AP: Tensor, problems_A: Tensor) -> tuple[Tensor, Tensor]:
        logits_AM, values_AM, known_AM = theta_AP @ x_ME.T, values_HM[problems_A], known_HM[problems_A]
        loss_A = ((F.softplus(logits_AM) - values_AM * logits_AM) * known_AM).sum(dim=1) / len(x_ME)
        gradient_AP = ((logits_AM.sigmoid() - values_AM) * known_AM) @ x_ME / len(x_ME)
        penalty_A1, weight_AE = penalty_H[problems_A, None], theta_AP[:, :-1]
        loss_A = loss_A + 0.5 * (penalty_A1 * weight_AE.square()).sum(dim=1)
        gradient_AP[:, :-1] += penalty_A1 * weight_AE
        return loss_A, gradient_AP

    return evaluate


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
