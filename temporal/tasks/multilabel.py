"""Task `multilabel`: which of several labels a video has; it may have any number of them.

Trained by binary cross-entropy, each label on its own; measured by the mean average precision (mAP) over the labels
that some evaluated video has. What always says the training set's share of each label reaches the share of the
evaluated videos that have it. Where a label is not known of a video, that pair counts in nothing.

    outputs   logits [B, T, K] (streaming) or [B, K] (clip)

Shape suffixes: see `vfz.temporal.tasks.values`; P videos that have a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vfz.temporal.tasks.classify import clip_logits
from vfz.temporal.tasks.values import Floats, ValuesTask, means_of_known

_LEAST_SHARE = 1e-4  # of a label that no video of the training set has, or all but none: rare, not impossible

_MOST_COUNTED = 2**24


class MultilabelTask(ValuesTask):
    """Binary cross-entropy; mAP. Outputs: logits [B, T, K] (streaming) or [B, K] (clip)."""

    name = "multilabel"
    headline = "map"
    shares = ("map",)
    means: ClassVar[Mapping[str, str]] = {"map": "average_precision"}

    @staticmethod
    def losses(outputs: Tensor, truth: Tensor) -> Tensor:
        """See `ValuesTask`."""
        return F.binary_cross_entropy_with_logits(outputs, truth.to(outputs.dtype), reduction="none")

    def outputs_of(self, answers_K: Tensor) -> Tensor:
        """See `ValuesTask`."""
        return answers_K.clamp(_LEAST_SHARE, 1 - _LEAST_SHARE).logit()

    def answers(self, outputs: Tensor) -> Tensor:
        """Of each label the probability [B, K]."""
        return clip_logits(outputs).cpu().double().sigmoid()

    @staticmethod
    def of_labels(answers_VK: Floats, values_VK: Floats) -> dict[str, Floats]:
        """`average_precision`, of labels that a video has."""
        once_1V = np.ones((1, len(values_VK)))
        return {"average_precision": average_precisions(answers_VK, values_VK, once_1V)[0]}

    @staticmethod
    def headlines(answers_VK: Floats, values_VK: Floats, weights_RV: NDArray[Any]) -> Floats:
        """See `ValuesTask`."""
        return means_of_known(average_precisions(answers_VK, values_VK, weights_RV))


def average_precisions(scores_VK: Floats, values_VK: Floats, weights_RV: NDArray[Any]) -> Floats:
    """Average precision of each label, [R, K]: the sum over distinct scores of the gain in recall times the precision.

    As scikit-learn's `average_precision_score` has it, without interpolation; equal scores are one step. NaN where no
    video of a row has the label.

    Args:
        scores_VK: the greater, the likelier.
        values_VK: 1 where a video has the label, 0 where it has not, NaN where that is not known.
        weights_RV: how often each video counts; a row for each set of videos.
    """
    # float32 counts exactly up to 2^24, in half the time; a row for each video, so that sorting moves whole rows
    exact = np.float32 if weights_RV.sum(axis=1).max(initial=0) < _MOST_COUNTED else np.float64
    weights_VR = np.ascontiguousarray(weights_RV.T, dtype=exact)
    scores_VK = np.nan_to_num(scores_VK, nan=-np.inf)  # what cannot be told is told last
    found_RK = np.full((len(weights_RV), values_VK.shape[1]), np.nan)
    for label in range(values_VK.shape[1]):
        known = np.flatnonzero(np.isfinite(values_VK[:, label]))
        order = known[np.argsort(-scores_VK[known, label], kind="stable")]
        scores_V, weights = scores_VK[order, label], weights_VR[order]
        places_P = np.flatnonzero(values_VK[order, label] > 0.5)
        if not len(places_P):
            continue
        # each video that has the label is asked about with all those of its score
        last_of_score_V = len(order) - 1 - np.searchsorted(scores_V[::-1], scores_V, side="left")
        ends_P = last_of_score_V[places_P]
        asked_PR = weights.cumsum(axis=0)[ends_P].astype(np.float64)
        own_PR = weights[places_P].astype(np.float64)
        right_PR = own_PR.cumsum(axis=0)
        total_R = right_PR[-1]
        right_PR = right_PR[np.searchsorted(places_P, ends_P, side="right") - 1]
        area_R = (own_PR * right_PR / np.maximum(asked_PR, 1e-300)).sum(axis=0)
        found_RK[:, label] = np.where(total_R > 0, area_R / np.maximum(total_R, 1e-300), np.nan)
    return found_RK
