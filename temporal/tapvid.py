"""Point tracking as TAP-Vid measures it (arXiv 2211.03726), in its "query first" form.

Distances are in pixels of a 256 x 256 frame, thresholds 1, 2, 4, 8 and 16 of them. Of every point only the frames after
its query frame are counted. All points of a clip are pooled into one number, and clips are averaged:

    pts_within_d         visible points closer than d to the truth / visible points
    jaccard_d            visible, called visible and closer than d / (visible + called visible though hidden or too far)
    occlusion_accuracy   frames whose visibility is called right / frames

A clip without a visible point to count has no `pts_within`, and is averaged over for what it has.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vfz.temporal.metrics import Metrics
from vfz.temporal.objectives import POINT_FRAME_PIXELS
from vfz.temporal.target_batch import TargetBatch, valid_points

THRESHOLD_PIXELS = (1, 2, 4, 8, 16)


class PointsMetrics(Metrics[Mapping[str, Tensor]]):
    """Average Jaccard, position accuracy and occlusion accuracy; a point is called visible where its logit is > 0."""

    sum_names = (
        *(f"jaccard_{threshold}" for threshold in THRESHOLD_PIXELS),
        *(f"pts_within_{threshold}" for threshold in THRESHOLD_PIXELS),
        "occlusion_accuracy",
        "num_jaccard_clips",
        "num_position_clips",
        "num_clips",
        "num_points",
    )

    def _sums(self, outputs: Mapping[str, Tensor], batch: TargetBatch) -> Mapping[str, Tensor]:
        """`outputs`: `xy` [B, Q, T, 2] and `visibility_logit` [B, Q, T]."""
        counted = valid_points(batch)
        visible = batch.targets["points_visible"]
        error = (outputs["xy"].double() - batch.targets["points_xy"].double()) * POINT_FRAME_PIXELS
        square_pixels = error.square().sum(dim=-1)
        called_visible = outputs["visibility_logit"] > 0
        num_visible_B = _count(visible & counted)
        num_frames_B = _count(counted)
        sums = {
            "occlusion_accuracy": _sum_of_ratios(_count((called_visible == visible) & counted), num_frames_B),
            "num_position_clips": (num_visible_B > 0).sum(),
            "num_clips": (num_frames_B > 0).sum(),
            "num_points": counted.any(dim=-1).sum(),
        }
        for threshold in THRESHOLD_PIXELS:
            close = square_pixels < threshold**2
            right_B = _count(close & visible & called_visible & counted)
            wrong_B = _count(called_visible & ~(close & visible) & counted)
            sums[f"pts_within_{threshold}"] = _sum_of_ratios(_count(close & visible & counted), num_visible_B)
            sums[f"jaccard_{threshold}"] = _sum_of_ratios(right_B, num_visible_B + wrong_B)
            # The same for every threshold: with no visible point, all that is called visible is wrong.
            sums["num_jaccard_clips"] = (num_visible_B + wrong_B > 0).sum()
        return sums

    def compute(self) -> dict[str, float]:
        """`average_jaccard`, `average_pts_within`, `occlusion_accuracy`, their parts, `num_clips`, `num_points`."""
        jaccard = {f"jaccard_{d}": self._mean(f"jaccard_{d}", "num_jaccard_clips") for d in THRESHOLD_PIXELS}
        within = {f"pts_within_{d}": self._mean(f"pts_within_{d}", "num_position_clips") for d in THRESHOLD_PIXELS}
        return {
            "average_jaccard": sum(jaccard.values()) / len(jaccard),
            "average_pts_within": sum(within.values()) / len(within),
            "occlusion_accuracy": self._mean("occlusion_accuracy", "num_clips"),
            **jaccard,
            **within,
            "num_clips": self._total("num_clips"),
            "num_points": self._total("num_points"),
        }


def _count(chosen_BQT: Tensor) -> Tensor:
    return chosen_BQT.sum(dim=(1, 2))


def _sum_of_ratios(numerator_B: Tensor, denominator_B: Tensor) -> Tensor:
    """The sum over clips, those without a denominator adding nothing."""
    return (numerator_B.double() / denominator_B.clamp(min=1)).sum()
