"""Task `points`: where given points are in every frame, and whether they are seen there.

A point is given at its query frame, the first of the clip in which it is visible. It is trained and measured on the
frames after that one, as TAP-Vid measures "query first". The loss is TAPIR's (arXiv 2306.08637, as released): Huber on
the position, BCE of visibility and of uncertainty. The metrics are TAP-Vid's (arXiv 2211.03726); average Jaccard is the
one people quote. Coordinates are x, y in units of the crop that the encoder saw. Distances are in pixels of a frame of
256 x 256, whatever the frame's size.

    outputs   xy [B, Q, T, 2]; visibility_logit, uncertainty_logit [B, Q, T]
    targets   points_xy [B, Q, T, 2]       hidden points too, and those outside of the crop
              points_visible [B, Q, T]     visible, in the crop, in a real frame
              points_valid [B, Q, T]       a real frame of a point that has a query
              queries_valid [B, Q]         whether it has one
              query_xy [B, Q, 2], query_frame [B, Q]   what the readout is given; 0 where there is none

Shape suffixes: B clips, Q points, T frames, F frames of a video's targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vfz.pipeline.datasets.targets import Targets, VideoTargets
from vfz.pipeline.encoder.transforms import SeenCrop
from vfz.temporal.tasks.base import Arrays, RawTargets, SumMetrics, TargetBatch, Task, exact, mean_or_zero

POINT_FRAME_PIXELS = 256
"""Distances of points are in pixels of a frame of this width and height, whatever the frame's size."""

THRESHOLD_PIXELS = (1, 2, 4, 8, 16)
"""What counts as close, in the metrics."""

# Of TAPIR (arXiv 2306.08637) as released.
_HUBER_PIXELS = 4.0
_POSITION_WEIGHT = 0.05
UNCERTAIN_PIXELS = 6.0
"""A position that is off by more than this is one the model should have called uncertain."""


class PointsTask(Task[Mapping[str, Tensor]]):
    """Huber and BCE; average Jaccard. Outputs: `xy` [B, Q, T, 2], `visibility_logit`, `uncertainty_logit` [B, Q, T]."""

    name = "points"
    input_names = ("query_xy", "query_frame")
    headline = "average_jaccard"
    shares = ("average_", "occlusion_", "jaccard_", "pts_within_")
    asks_about_places = True

    @classmethod
    def num_known(cls, targets: Targets) -> int:
        """Points."""
        return int(targets.points_xy.shape[1])

    @classmethod
    def clip_targets(cls, raw: RawTargets) -> Arrays:
        """See `clip_points`."""
        return clip_points(raw.video, raw.frames_T, raw.mask_T, raw.crop())

    def loss(self, outputs: Mapping[str, Tensor], batch: TargetBatch) -> Tensor:
        """See `Task`."""
        return points_loss(
            outputs["xy"],
            outputs["visibility_logit"],
            outputs["uncertainty_logit"],
            target_xy=batch.targets["points_xy"],
            visible=batch.targets["points_visible"],
            valid=valid_points(batch),
        )

    def num_valid(self, batch: TargetBatch) -> Tensor:
        """Points known at a frame after their query frame, times those frames."""
        return valid_points(batch).sum()

    def new_metrics(self) -> PointsMetrics:
        """See `Task`."""
        return PointsMetrics()

    def constant_predictor(self, batches: Iterable[TargetBatch]) -> Callable[[TargetBatch], Mapping[str, Tensor]]:
        """A point stays where it was given, and is seen as often as points of the training set are."""
        num_visible = num_known = 1  # one of each more, so that the logit is finite
        for batch in batches:
            valid = valid_points(batch)
            num_visible += int((batch.targets["points_visible"] & valid).sum())
            num_known += int(valid.sum())
        logit = math.log(num_visible / (num_known + 1 - num_visible))

        def predict(batch: TargetBatch) -> Mapping[str, Tensor]:
            query_xy = batch.targets["query_xy"]
            shape = (*query_xy.shape[:2], batch.frame_mask_BT.shape[1])
            return {
                "xy": query_xy[:, :, None].expand(*shape, 2),
                "visibility_logit": query_xy.new_full(shape, logit),
                "uncertainty_logit": torch.zeros(shape, device=query_xy.device),
            }

        return predict


def valid_points(batch: TargetBatch) -> Tensor:
    """Points [B, Q, T] that are known, at frames later than the one at which they were given."""
    targets = batch.targets
    known = targets["points_valid"] & targets["queries_valid"][:, :, None] & batch.frame_mask_BT[:, None]
    frame_T = torch.arange(known.shape[-1], device=known.device)
    return known & (frame_T > targets["query_frame"][:, :, None])


def points_loss(
    predicted_xy: Tensor,
    visibility_logit: Tensor,
    uncertainty_logit: Tensor,
    *,
    target_xy: Tensor,
    visible: Tensor,
    valid: Tensor,
) -> Tensor:
    """Huber on the positions of visible points + BCE of visibility + BCE of uncertainty (TAPIR, arXiv 2306.08637).

    Uncertainty asks whether the predicted position is off by more than `UNCERTAIN_PIXELS`; like the position it is
    asked of visible points only. Weights 0.05 (the Huber term is in pixels), 1 and 1; a mean over all valid points,
    to which hidden ones add nothing but their visibility.

    Args:
        predicted_xy: [..., 2], 1 is the side of the frame.
        visibility_logit: [...].
        uncertainty_logit: [...].
        target_xy: [..., 2].
        visible: [...] bool.
        valid: [...] bool; what is neither tracked nor asked for is not valid.
    """
    predicted, target, seen = exact(predicted_xy)[valid], exact(target_xy)[valid], visible[valid]
    # a hidden point is put where it was predicted, so that nothing pulls at it
    target = torch.where(seen.unsqueeze(-1), target, predicted.detach())
    pixels = torch.linalg.vector_norm((predicted - target) * POINT_FRAME_PIXELS, dim=-1)
    position = F.huber_loss(pixels, torch.zeros_like(pixels), delta=_HUBER_PIXELS, reduction="none")
    too_far = (pixels.detach() > UNCERTAIN_PIXELS).to(pixels.dtype)
    uncertainty = _binary_cross_entropy(exact(uncertainty_logit)[valid], too_far) * seen
    visibility = _binary_cross_entropy(exact(visibility_logit)[valid], seen.to(pixels.dtype))
    return mean_or_zero(_POSITION_WEIGHT * position + visibility + uncertainty)


def _binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


class PointsMetrics(SumMetrics[Mapping[str, Tensor]]):
    """Point tracking as TAP-Vid measures it, "query first"; a point is called visible where its logit is > 0.

    Of every point only the frames after its query frame are counted. All points of a clip are pooled into one number,
    and clips are averaged; d are the thresholds 1, 2, 4, 8 and 16 px, and the averages are over those:

        pts_within_d         visible points closer than d to the truth / visible points
        jaccard_d            visible, called visible and closer than d
                             / (visible + called visible though hidden or too far)
        occlusion_accuracy   frames whose visibility is called right / frames

    A clip without a visible point to count has no `pts_within`, and is averaged over for what it has.
    """

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


def clip_points(
    targets: VideoTargets, frames_T: NDArray[np.int64], mask_T: NDArray[np.bool_], crop: SeenCrop
) -> Arrays:
    """Points normalised to the crop; hidden ones too, and those outside of it, whose coordinates leave 0 .. 1.

    Args:
        targets: of the video, F frames.
        frames_T: which of those the clip's frames are.
        mask_T: which of the clip's frames are real.
        crop: what the encoder saw of a frame.

    Returns:
        `points_xy` [Q,T,2]; `points_visible` [Q,T]: real frame, visible, in the crop; `points_valid` [Q,T]: real frame
        of a point with a query; `query_xy` [Q,2] and `query_frame` [Q]: where it is first visible in the clip, 0 where
        it never is; `queries_valid` [Q]: whether it ever is.
    """
    xy_QT2 = crop.from_frame(targets.points_xy[frames_T]).swapaxes(0, 1)
    inside_QT = ((xy_QT2 >= 0) & (xy_QT2 <= 1)).all(axis=-1)
    visible_QT = targets.points_visible[frames_T].T & mask_T & inside_QT
    queries_valid = np.asarray(visible_QT.any(axis=1))
    query_frame = visible_QT.argmax(axis=1)
    query_xy = xy_QT2[np.arange(len(xy_QT2)), query_frame]
    return {
        "points_xy": xy_QT2.astype(np.float32),
        "points_visible": visible_QT,
        "points_valid": queries_valid[:, None] & mask_T,
        "query_xy": np.where(queries_valid[:, None], query_xy, 0).astype(np.float32),
        "query_frame": query_frame.astype(np.int64),
        "queries_valid": queries_valid,
    }
