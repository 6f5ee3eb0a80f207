"""Task `pose`: how the camera moved since the frame before. Streaming only; frame 0 has none before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vfz.temporal.metrics import PoseMetrics
from vfz.temporal.objectives import PoseLoss
from vfz.temporal.target_batch import TargetBatch, valid_poses
from vfz.temporal.tasks.base import Task


class PoseTask(Task[Tensor]):
    """Translation and rotation under learned weights; relative pose error. Outputs: [B, T, 9].

    The nine are the translation in metres and the first two columns of the rotation, before Gram-Schmidt.
    """

    name = "pose"
    protocols = ("streaming",)
    headline = "rpe_tr_mm"
    higher_is_better = False

    def __init__(self, *, protocol: str = "streaming") -> None:
        super().__init__(protocol=protocol)
        self.balance = PoseLoss()

    def loss(self, outputs: Tensor, batch: TargetBatch) -> Tensor:
        """See `Task`."""
        targets = batch.targets
        loss: Tensor = self.balance(outputs, targets["translation_metres"], targets["rotation"], valid_poses(batch))
        return loss

    def num_valid(self, batch: TargetBatch) -> Tensor:
        """Frames whose pose is known."""
        return valid_poses(batch).sum()

    def new_metrics(self) -> PoseMetrics:
        """See `Task`."""
        return PoseMetrics()

    def constant_predictor(self, batches: Iterable[TargetBatch]) -> Callable[[TargetBatch], Tensor]:
        """Every step is the training set's mean step (columns are averaged and made orthonormal again)."""
        steps = [_as_nine(batch)[valid_poses(batch)] for batch in batches]
        mean_9 = torch.cat(steps).mean(dim=0)

        def predict(batch: TargetBatch) -> Tensor:
            return mean_9.to(batch.frame_mask_BT.device).expand(*batch.frame_mask_BT.shape, -1)

        return predict


def _as_nine(batch: TargetBatch) -> Tensor:
    """The true steps as a readout would give them [B, T, 9]."""
    columns = batch.targets["rotation"][..., :2].mT.flatten(-2)
    return torch.cat([batch.targets["translation_metres"], columns], dim=-1)
