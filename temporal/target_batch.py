"""What losses and metrics need of a batch of clips, and what of it counts.

The targets lie in the crop the encoder saw, 1 being its side. B clips, T frames, O objects, Q points asked for, H W
pixels:

    boxes    boxes_cxcywh [B,O,T,4]  boxes_valid [B,O,T]  objects_valid [B,O]  init_box_cxcywh [B,O,4]
    points   points_xy [B,Q,T,2]  points_visible [B,Q,T]  points_valid [B,Q,T]
             query_xy [B,Q,2]  query_frame [B,Q]  queries_valid [B,Q]
    depth    depth_metres [B,T,H,W]  depth_valid [B,T,H,W]
    pose     translation_metres [B,T,3]  rotation [B,T,3,3]  pose_valid [B,T]   (frame t seen from frame t - 1)

A frame that only repeats a short video's last one never counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class TargetBatch(Protocol):
    """The truth about a batch; `ClipBatch` is one.

    Attributes:
        labels_B: class indices (int64), -1 where a clip has none.
        frame_mask_BT: False where a short video's last frame is repeated.
        targets: tensors by name, those of one task.
    """

    @property
    def labels_B(self) -> Tensor: ...  # noqa: N802, D102

    @property
    def frame_mask_BT(self) -> Tensor: ...  # noqa: N802, D102

    @property
    def targets(self) -> Mapping[str, Tensor]: ...  # noqa: D102


def valid_labels(batch: TargetBatch) -> Tensor:
    """Clips [B] that have a class."""
    return batch.labels_B >= 0


def valid_boxes(batch: TargetBatch) -> Tensor:
    """Boxes [B, O, T] that are known."""
    targets = batch.targets
    return targets["boxes_valid"] & targets["objects_valid"][:, :, None] & batch.frame_mask_BT[:, None]


def valid_points(batch: TargetBatch) -> Tensor:
    """Points [B, Q, T] that are known, at frames later than the one at which they were given."""
    targets = batch.targets
    known = targets["points_valid"] & targets["queries_valid"][:, :, None] & batch.frame_mask_BT[:, None]
    frame_T = torch.arange(known.shape[-1], device=known.device)
    return known & (frame_T > targets["query_frame"][:, :, None])


def valid_depth(batch: TargetBatch) -> Tensor:
    """Pixels [B, T, H, W] whose depth is known."""
    return batch.targets["depth_valid"] & batch.frame_mask_BT[:, :, None, None]


def valid_poses(batch: TargetBatch) -> Tensor:
    """Frames [B, T] whose pose relative to the frame before is known."""
    return batch.targets["pose_valid"] & batch.frame_mask_BT
