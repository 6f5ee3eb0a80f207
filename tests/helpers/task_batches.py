"""What tests of tasks share: batches whose truth is made by hand, and a video with targets that are easy to reckon."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from vfz.pipeline.datasets.targets import VideoTargets
from vfz.pipeline.encoder.transforms import SeenCrop

NUM_CLIPS, NUM_FRAMES, NUM_THINGS = 6, 6, 3

WHOLE = SeenCrop(x0=0, y0=0, x1=1, y1=1)
MIRRORED = SeenCrop(x0=0, y0=0, x1=1, y1=1, mirrored=True)
RIGHT_HALF = SeenCrop(x0=0.5, y0=0, x1=1, y1=1)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A `TargetBatch` made by hand. Labels are all there, and no frame is padding, unless they are given."""

    labels_B: torch.Tensor  # noqa: N815
    frame_mask_BT: torch.Tensor  # noqa: N815
    targets: Mapping[str, torch.Tensor] = field(default_factory=dict)


def truth(*, num_clips=NUM_CLIPS, num_frames=NUM_FRAMES, labels=None, frame_mask=None, **targets):
    return Truth(
        labels_B=torch.zeros(num_clips, dtype=torch.int64) if labels is None else torch.as_tensor(labels),
        frame_mask_BT=torch.ones(num_clips, num_frames, dtype=torch.bool) if frame_mask is None else frame_mask,
        targets=targets,
    )


def some(*shape, seed=0):
    """True for about two thirds of a shape."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.67


def uniform(*shape, low=0.0, high=1.0, seed=0):
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def padded(num_clips=NUM_CLIPS, num_frames=NUM_FRAMES):
    """The last frame of every other clip is padding."""
    mask = torch.ones(num_clips, num_frames, dtype=torch.bool)
    mask[::2, -1] = False
    return mask


def part(batch, rows):
    """Some clips of a batch."""
    return Truth(
        labels_B=batch.labels_B[rows],
        frame_mask_BT=batch.frame_mask_BT[rows],
        targets={name: value[rows] for name, value in batch.targets.items()},
    )


def all_valid(shapes, but=None, at=(), **targets):
    """One clip of four frames with masks of these shapes, all valid but one entry of one mask (or of `frame_mask`)."""
    masks = {name: torch.ones(1, *shape, dtype=torch.bool) for name, shape in {**shapes, "frame_mask": (4,)}.items()}
    if but is not None:
        masks[but][at] = False
    return truth(num_clips=1, num_frames=4, **masks, **targets)


def video(**changes):
    """Three frames, of one object, one point and 2 x 4 depths, in which nothing moves."""
    known = {
        "label": 0,
        "times_seconds": np.arange(3) / 6,
        "boxes_cxcywh": np.tile(np.float32([0.5, 0.25, 0.25, 0.5]), (3, 1, 1)),
        "boxes_visible": np.ones((3, 1), bool),
        "points_xy": np.tile(np.float32([0.75, 0.25]), (3, 1, 1)),
        "points_visible": np.ones((3, 1), bool),
        "depth_metres": np.tile(np.float16([[1, 2, 3, 4], [5, 6, 7, 8]]), (3, 1, 1)),
        "world_from_camera": np.tile(np.eye(4, dtype=np.float32), (3, 1, 1)),
        "intrinsics": np.float32([1, 1, 0.5, 0.5]),
        "frame_size": (48, 96),
    }
    return VideoTargets(**{**known, **changes})


def mapped(function, crop=WHOLE, *more, frames=(0, 1, 2), mask=(True, True, True), **changes):
    """The targets that a task's function makes of clips of `video(**changes)`."""
    return function(video(**changes), np.array(frames), np.array(mask), crop, *more)
