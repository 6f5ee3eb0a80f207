"""Task `boxes`: where objects are in every frame, given where they are in the first. Streaming only.

Trained by SmoothL1 and GIoU, measured by mean intersection over union (arXiv 2605.19137). The box at frame 0 is
predicted and trained too, although it is given; the metric counts the frames after it. Boxes are centre x, centre y,
width, height in units of the crop that the encoder saw.

    outputs   boxes [B, O, T, 4]
    targets   boxes_cxcywh [B, O, T, 4]     clipped to the crop
              boxes_valid [B, O, T]         the object is visible in a real frame, in the crop, and was so in frame 0
              objects_valid [B, O]          it has a box in frame 0; without one it is asked for in no frame
              init_box_cxcywh [B, O, 4]     that box: what the readout is given

Shape suffixes: B clips, O objects, T frames, F frames of a video's targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from vfz.pipeline.datasets.targets import Targets, VideoTargets
from vfz.pipeline.encoder.transforms import SeenCrop
from vfz.temporal.tasks.base import Arrays, RawTargets, SumMetrics, TargetBatch, Task, exact, mean_or_zero
from vfz.temporal.tasks.geometry import box_corners, box_iou

GIOU_WEIGHT = 0.5
_CORNER_LIMIT = 10.0  # in frames; keeps the areas of boxes far away finite, SmoothL1 still pulls them back
_LEAST_SIDE = 1e-4  # of the crop: less of a box is none, but the rounding of its numbers


class BoxesTask(Task[Tensor]):
    """SmoothL1 and GIoU; mean IoU. Outputs: boxes [B, O, T, 4]."""

    name = "boxes"
    protocols = ("streaming",)
    input_names = ("init_box_cxcywh",)
    headline = "miou"
    shares = ("miou",)
    asks_about_places = True

    @classmethod
    def num_known(cls, targets: Targets) -> int:
        """Objects."""
        return int(targets.boxes_cxcywh.shape[1])

    @classmethod
    def clip_targets(cls, raw: RawTargets) -> Arrays:
        """See `clip_boxes`."""
        return clip_boxes(raw.video, raw.frames_T, raw.mask_T, raw.crop())

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


def valid_boxes(batch: TargetBatch) -> Tensor:
    """Boxes [B, O, T] that are known."""
    targets = batch.targets
    return targets["boxes_valid"] & targets["objects_valid"][:, :, None] & batch.frame_mask_BT[:, None]


def boxes_loss(predicted_cxcywh: Tensor, target_cxcywh: Tensor, valid: Tensor) -> Tensor:
    """SmoothL1 (mean over the four numbers) + 0.5 (1 - GIoU), per valid box.

    Args:
        predicted_cxcywh: [..., 4] unbounded; 1 is the side of the frame.
        target_cxcywh: [..., 4].
        valid: [...] bool.
    """
    predicted, target = exact(predicted_cxcywh)[valid], exact(target_cxcywh)[valid]
    distance = F.smooth_l1_loss(predicted, target, reduction="none").mean(dim=-1)
    corners = box_corners(predicted).clamp(-_CORNER_LIMIT, _CORNER_LIMIT)
    return mean_or_zero(distance + GIOU_WEIGHT * generalized_box_iou_loss(corners, box_corners(target)))


class BoxesMetrics(SumMetrics[Tensor]):
    """Mean intersection over union of all valid boxes after the clip's first frame, where the box is given."""

    sum_names = ("iou", "num_boxes", "num_clips")

    def _sums(self, outputs: Tensor, batch: TargetBatch) -> Mapping[str, Tensor]:
        """`outputs`: boxes [B, O, T, 4]."""
        valid = valid_boxes(batch)[:, :, 1:]
        true_cxcywh = batch.targets["boxes_cxcywh"][:, :, 1:].double()
        iou = box_iou(outputs[:, :, 1:].double()[valid], true_cxcywh[valid])
        return {"iou": iou.sum(), "num_boxes": valid.sum(), "num_clips": valid.flatten(1).any(dim=1).sum()}

    def compute(self) -> dict[str, float]:
        """`miou`, `num_boxes`, and `num_clips` that have a valid box."""
        counts = {name: self._total(name) for name in ("num_boxes", "num_clips")}
        return {"miou": self._mean("iou", "num_boxes"), **counts}


def clip_boxes(targets: VideoTargets, frames_T: NDArray[np.int64], mask_T: NDArray[np.bool_], crop: SeenCrop) -> Arrays:
    """Boxes clipped to the crop and normalised to it.

    Args:
        targets: of the video, F frames.
        frames_T: which of those the clip's frames are.
        mask_T: which of the clip's frames are real.
        crop: what the encoder saw of a frame.

    Returns:
        `boxes_cxcywh` [O,T,4]; `boxes_valid` [O,T]: real frame, visible, something of it in the crop, and so it was in
        the clip's first frame; `init_box_cxcywh` [O,4]: the box in that frame; `objects_valid` [O]: whether it has one.
        A box that is not valid is zeros.
    """
    boxes_TO4 = targets.boxes_cxcywh[frames_T].astype(np.float64)
    half = boxes_TO4[..., 2:] / 2
    corners = np.stack([crop.from_frame(boxes_TO4[..., :2] - half), crop.from_frame(boxes_TO4[..., :2] + half)])
    low, high = corners.min(axis=0).clip(0, 1), corners.max(axis=0).clip(0, 1)  # mirroring swaps left and right
    seen_TO = targets.boxes_visible[frames_T] & mask_T[:, None] & (high - low > _LEAST_SIDE).all(axis=-1)
    valid_OT = (seen_TO & seen_TO[:1]).T
    clipped_OT4 = np.concatenate([(low + high) / 2, high - low], axis=-1).swapaxes(0, 1)
    boxes_OT4 = np.where(valid_OT[..., None], clipped_OT4, 0).astype(np.float32)
    return {
        "boxes_cxcywh": boxes_OT4,
        "boxes_valid": valid_OT,
        "init_box_cxcywh": boxes_OT4[:, 0],
        "objects_valid": valid_OT[:, 0],
    }
