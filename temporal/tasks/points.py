"""Task `points`: where given points are in every frame, and whether they are seen there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from vfz.temporal.objectives import points_loss
from vfz.temporal.tapvid import PointsMetrics
from vfz.temporal.target_batch import TargetBatch, valid_points
from vfz.temporal.tasks.base import Task


class PointsTask(Task[Mapping[str, Tensor]]):
    """Huber and BCE; average Jaccard. Outputs: `xy` [B, Q, T, 2], `visibility_logit`, `uncertainty_logit` [B, Q, T].

    Trained and measured on the frames after a point's query frame, as TAP-Vid measures "query first".
    """

    name = "points"
    input_names = ("query_xy", "query_frame")
    headline = "average_jaccard"

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
