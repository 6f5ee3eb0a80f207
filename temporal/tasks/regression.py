"""Task `regression`: numbers of a video, such as a speed or an age.

Trained by the squared error of targets that are brought to mean 0 and deviation 1 by the training split's statistics,
which are part of the task: its answers are in the targets' own units. Measured by R2, the mean over the targets as
scikit-learn's `r2_score` has it, and by the mean squared and absolute error in the targets' units. What always says the
evaluated videos' mean has an R2 of 0; what says the training videos' mean has a little less.

    outputs   standardised targets [B, T, K] (streaming) or [B, K] (clip)

Shape suffixes: see `vfz.temporal.tasks.values`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfz.temporal.tasks.classify import clip_logits
from vfz.temporal.tasks.values import Floats, ValuesTask, constant_answers, means_of_known

_ROUNDING = 1e-12  # of a sum of squares: less than that is none


class RegressionTask(ValuesTask):
    """Squared error; R2. Outputs: standardised targets [B, T, K] (streaming) or [B, K] (clip).

    Args:
        protocol: see `Task`.
        num_classes: K.
        target_means: see `ValuesTask`.
        target_deviations: of the K targets in the training split, where they are not 1; see `moments`.

    Attributes:
        deviation_K: those, kept with the task's state.
    """

    name = "regression"
    headline = "r2"
    means: ClassVar[Mapping[str, str]] = {"r2": "r2", "mse": "mse", "mae": "mae"}
    deviation_K: Tensor

    def __init__(
        self,
        *,
        protocol: str = "streaming",
        num_classes: int,
        target_means: Sequence[float] | None = None,
        target_deviations: Sequence[float] | None = None,
    ) -> None:
        super().__init__(protocol=protocol, num_classes=num_classes, target_means=target_means)
        self.register_buffer("deviation_K", torch.tensor(target_deviations or [1.0] * num_classes, dtype=torch.float32))

    def prepare(self, values_VK: NDArray[Any]) -> None:
        """See `ValuesTask`; the mean and deviation of each target."""
        for own_K, new_K in zip((self.mean_K, self.deviation_K), moments(values_VK), strict=True):
            own_K.copy_(torch.tensor(new_K))

    def settings(self) -> dict[str, list[float]]:
        """See `ValuesTask`."""
        return super().settings() | {"target_deviations": self.deviation_K.tolist()}

    @staticmethod
    def losses(outputs: Tensor, truth: Tensor) -> Tensor:
        """See `ValuesTask`."""
        return (outputs - truth).square()

    def as_outputs(self, values_BK: Tensor) -> Tensor:
        """Standardised."""
        return (values_BK - self.mean_K) / self.deviation_K

    def outputs_of(self, answers_K: Tensor) -> Tensor:
        """See `ValuesTask`."""
        return self.as_outputs(answers_K)

    def answers(self, outputs: Tensor) -> Tensor:
        """The targets [B, K] in their own units."""
        outputs_BK = clip_logits(outputs).cpu().double()
        return outputs_BK * self.deviation_K.cpu().double() + self.mean_K.cpu().double()

    @staticmethod
    def of_labels(answers_VK: Floats, values_VK: Floats) -> dict[str, Floats]:
        """`r2`, where a target is known of two videos or more; `mse` and `mae`, where it is known of one."""
        known_VK = np.isfinite(values_VK)
        error_VK = np.where(known_VK, answers_VK - values_VK, 0.0)
        count_K = known_VK.sum(axis=0)
        some_K = np.where(count_K > 0, count_K, np.nan)
        centred_VK = np.where(known_VK, values_VK - constant_answers(values_VK), 0.0)
        total_K, left_K = (centred_VK**2).sum(axis=0), (error_VK**2).sum(axis=0)
        r2_K = np.where(count_K > 1, _r2(left_K, total_K), np.nan)
        return {"r2": r2_K, "mse": left_K / some_K, "mae": np.abs(error_VK).sum(axis=0) / some_K}

    @staticmethod
    def headlines(answers_VK: Floats, values_VK: Floats, weights_RV: NDArray[Any]) -> Floats:
        """See `ValuesTask`."""
        known_VK = np.isfinite(values_VK)
        weights_RV = np.asarray(weights_RV, dtype=np.float64)
        centred_VK = np.where(known_VK, values_VK - constant_answers(values_VK), 0.0)
        left_RK = weights_RV @ np.where(known_VK, answers_VK - values_VK, 0.0) ** 2
        count_RK, sum_RK, square_RK = (weights_RV @ x_VK for x_VK in (known_VK, centred_VK, centred_VK**2))
        total_RK = square_RK - sum_RK**2 / np.maximum(count_RK, 1)
        total_RK = np.where(total_RK > _ROUNDING * square_RK, total_RK, 0.0)
        return means_of_known(np.where(count_RK > 1, _r2(left_RK, total_RK), np.nan))


def moments(values_VK: NDArray[Any]) -> tuple[list[float], list[float]]:
    """Mean and deviation of each target over the videos where it is known; 1 for the deviation of a constant.

    Args:
        values_VK: NaN where a target is not known.
    """
    mean_K = constant_answers(values_VK)
    known_VK = np.isfinite(values_VK)
    centred_VK = np.where(known_VK, values_VK - mean_K, 0.0)
    deviation_K = np.sqrt((centred_VK**2).sum(axis=0) / np.maximum(known_VK.sum(axis=0), 1))
    constant_K = deviation_K <= _ROUNDING * np.maximum(np.abs(mean_K), 1e-300)
    return mean_K.tolist(), np.where(constant_K, 1.0, deviation_K).tolist()


def _r2(left: Floats, total: Floats) -> Floats:
    """What part of the squares is explained; of targets that do not differ 1 where they are met, else 0."""
    explained = 1 - left / np.where(total > 0, total, 1.0)
    r2: Floats = np.where(total > 0, explained, np.where(left > 0, 0.0, 1.0))
    return r2
