"""Task `boxes`: where objects are in every frame, given where they are in the first. Streaming only."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from vfz.temporal.metrics import BoxesMetrics
from vfz.temporal.objectives import boxes_loss
from vfz.temporal.target_batch import TargetBatch, valid_boxes
from vfz.temporal.tasks.base import Task


class BoxesTask(Task[Tensor]):
    """SmoothL1 and GIoU; mean IoU. Outputs: boxes [B, O, T, 4].

    The box at frame 0 is predicted and trained too, although it is given; the metric counts the frames after it.
    """

    name = "boxes"
    protocols = ("streaming",)
    input_names = ("init_box_cxcywh",)
    headline = "miou"

    def loss(self, outputs: Tensor, batch: TargetBatch) -> Tensor:
        """See `Task`."""
        return boxes_loss(outputs, batch.targets["boxes_cxcywh"], valid_boxes(batch))

    def num_valid(self, batch: TargetBatch) -> Tensor:
        """Boxes that are known."""
        return valid_boxes(batch).sum()

    def new_metrics(self) -> BoxesMetrics:
        """See `Task`."""
        return BoxesMetrics()

    def constant_predictor(self, batches: Iterable[TargetBatch]) -> Callable[[TargetBatch], Tensor]:  # noqa: ARG002
        """The box stays where it was given; nothing is fitted."""

        def predict(batch: TargetBatch) -> Tensor:
            num_frames = batch.frame_mask_BT.shape[1]
            return batch.targets["init_box_cxcywh"][:, :, None].expand(-1, -1, num_frames, -1)

        return predict
