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
        """Every frame is the depth map that has the least AbsRel on the training set.

        Cost: all the maps it is fitted to are in memory at once, and are sorted.
        """
        pairs = [(batch.targets["depth_metres"].flatten(0, 1), valid_depth(batch).flatten(0, 1)) for batch in batches]
        depth_FHW, valid_FHW = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        map_HW = _least_abs_rel(depth_FHW, valid_FHW & (depth_FHW >= MIN_METRES) & (depth_FHW <= MAX_METRES))

        def predict(batch: TargetBatch) -> Tensor:
            return map_HW.to(batch.frame_mask_BT.device).expand(*batch.frame_mask_BT.shape, -1, -1)

        return predict


def _least_abs_rel(depth_FHW: Tensor, valid_FHW: Tensor) -> Tensor:
    """For each pixel the constant c that makes the sum of |c - d| / d least: the median of d weighted by 1 / d."""
    depth_FHW, order_FHW = torch.where(valid_FHW, depth_FHW, 1.0).double().sort(dim=0)
    weight_FHW = valid_FHW.gather(0, order_FHW) / depth_FHW
    reached_FHW = weight_FHW.cumsum(dim=0)
    median_1HW = (reached_FHW < reached_FHW[-1:] / 2).sum(dim=0, keepdim=True)
    map_HW = depth_FHW.gather(0, median_1HW).squeeze(0)
    known_HW = valid_FHW.any(dim=0)
    return torch.where(known_HW, map_HW, map_HW[known_HW].median()).float()  # never known: as the others are
