"""Task `depth`: how far away every pixel is, in metres along the camera's axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vfz.temporal.metrics import DepthMetrics
from vfz.temporal.objectives import MAX_METRES, MIN_METRES, depth_loss
from vfz.temporal.target_batch import TargetBatch, valid_depth
from vfz.temporal.tasks.base import Task


class DepthTask(Task[Tensor]):
    """L1 and scale-invariant log; AbsRel. Outputs: metres [B, T, H, W]."""

    name = "depth"
    headline = "abs_rel"
    higher_is_better = False

    def loss(self, outputs: Tensor, batch: TargetBatch) -> Tensor:
        """See `Task`."""
        return depth_loss(outputs, batch.targets["depth_metres"], valid_depth(batch))

    def num_valid(self, batch: TargetBatch) -> Tensor:
        """Frames that have a pixel of known depth."""
        return valid_depth(batch).flatten(2).any(dim=-1).sum()

    def new_metrics(self) -> DepthMetrics:
        """See `Task`."""
        return DepthMetrics()

    def constant_predictor(self, batches: Iterable[TargetBatch]) -> Callable[[TargetBatch], Tensor]:
        """Every frame is the training set's median depth map.

        Cost: all the maps it is fitted to are in memory at once.
        """
        maps = [
            batch.targets["depth_metres"].where(valid_depth(batch), torch.nan).flatten(0, 1).float()
            for batch in batches
        ]
        median_HW = torch.cat(maps).clamp(MIN_METRES, MAX_METRES).nanmedian(dim=0).values
        median_HW = median_HW.nan_to_num(nan=float(median_HW.nanmedian()))  # a pixel that is never known

        def predict(batch: TargetBatch) -> Tensor:
            return median_HW.to(batch.frame_mask_BT.device).expand(*batch.frame_mask_BT.shape, -1, -1)

        return predict
