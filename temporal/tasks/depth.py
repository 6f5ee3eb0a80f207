"""Task `depth`: how far away every pixel is, in metres along the camera's axis.

Trained by L1 and the scale-invariant error of the logarithm (Eigen et al., arXiv 1406.2283), measured by AbsRel and the
share of pixels within a factor of 1.25 (arXiv 2605.19137). Depth counts from 0.001 to 10 m. The truth at an output
pixel is the value measured at its centre, never a mean over an edge.

    outputs   metres [B, T, H, W], H = W = the readout's `output_size`
    targets   depth_metres [B, T, H, W]
              depth_valid [B, T, H, W]    a pixel of a real frame

Shape suffixes: B clips, T frames, H W pixels, S side of a map, F frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfz.pipeline.datasets.targets import Targets, VideoTargets
from vfz.pipeline.encoder.transforms import SeenCrop
from vfz.temporal.tasks.base import Arrays, RawTargets, SumMetrics, TargetBatch, Task, exact

MIN_METRES, MAX_METRES = 0.001, 10.0
"""Range of depth in loss and metric."""

_SCALE_INVARIANCE = 0.5  # Eigen et al., arXiv 1406.2283
_SQUARE_PIXELS = 8  # maps are read out in squares of this side


class DepthTask(Task[Tensor]):
    """L1 and scale-invariant log; AbsRel. Outputs: metres [B, T, H, W]."""

    name = "depth"
    headline = "abs_rel"
    higher_is_better = False
    shares = ("delta1",)
    asks_about_places = True
    makes_maps = True

    @classmethod
    def default_sizes(cls, image_size: int) -> dict[str, int]:
        """Maps as large as the encoder's picture, cut to whole squares of 8 pixels."""
        return {"output_size": max(_SQUARE_PIXELS, image_size // _SQUARE_PIXELS * _SQUARE_PIXELS)}

    @classmethod
    def num_known(cls, targets: Targets) -> int:
        """Rows or columns of the measured maps, whichever are fewer."""
        return int(min(targets.depth_metres.shape[1:]))

    @classmethod
    def clip_targets(cls, raw: RawTargets) -> Arrays:
        """See `clip_depth`."""
        return clip_depth(raw.video, raw.frames_T, raw.mask_T, raw.crop(), raw.output_size)

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


def valid_depth(batch: TargetBatch) -> Tensor:
    """Pixels [B, T, H, W] whose depth is known."""
    return batch.targets["depth_valid"] & batch.frame_mask_BT[:, :, None, None]


def depth_loss(predicted_metres: Tensor, target_metres: Tensor, valid: Tensor) -> Tensor:
    """L1 in metres + scale-invariant squared error of the logarithm (Eigen et al., arXiv 1406.2283, lambda 0.5).

    Depth is clamped to 0.001 .. 10 m. A clamp passes no gradient beyond its ends, and a network's first answers lie
    below the lower one, so L1 sees the prediction as it is and only the logarithm sees it clamped. Both are means over
    the valid pixels of a frame, averaged over the frames that have one.

    Args:
        predicted_metres: [..., H, W], unbounded.
        target_metres: [..., H, W].
        valid: [..., H, W] bool.
    """
    one = torch.ones((), dtype=exact(predicted_metres).dtype, device=predicted_metres.device)
    predicted = torch.where(valid, exact(predicted_metres), one)  # where not valid: both 1, so equal
    target = torch.where(valid, exact(target_metres).clamp(MIN_METRES, MAX_METRES), one)
    num_pixels = valid.sum(dim=(-2, -1))

    def over_pixels(values: Tensor) -> Tensor:
        return values.sum(dim=(-2, -1)) / num_pixels.clamp(min=1)

    log_error = predicted.clamp(MIN_METRES, MAX_METRES).log() - target.log()
    scale_invariant = over_pixels(log_error.square()) - _SCALE_INVARIANCE * over_pixels(log_error).square()
    of_frames = over_pixels((predicted - target).abs()) + scale_invariant
    return of_frames.sum() / (num_pixels > 0).sum().clamp(min=1)


class DepthMetrics(SumMetrics[Tensor]):
    """AbsRel and delta < 1.25 per frame, averaged over frames (Eigen et al., arXiv 1406.2283).

    Pixels whose true depth lies beyond 0.001 .. 10 m are not counted; predictions are clamped to that range.
    """

    sum_names = ("abs_rel", "delta1", "num_frames", "num_pixels")

    def _sums(self, outputs: Tensor, batch: TargetBatch) -> Mapping[str, Tensor]:
        """`outputs`: depth in metres [B, T, H, W]."""
        target = batch.targets["depth_metres"].double()
        valid = valid_depth(batch) & (target >= MIN_METRES) & (target <= MAX_METRES)
        target = torch.where(valid, target, 1.0)
        predicted = torch.where(valid, outputs.double().clamp(MIN_METRES, MAX_METRES), 1.0)
        num_pixels_BT = valid.sum(dim=(-2, -1))
        abs_rel_BT = ((predicted - target).abs() / target).sum(dim=(-2, -1))
        close = valid & (torch.maximum(predicted / target, target / predicted) < 1.25)
        count_BT = num_pixels_BT.clamp(min=1)
        return {
            "abs_rel": (abs_rel_BT / count_BT).sum(),
            "delta1": (close.sum(dim=(-2, -1)).double() / count_BT).sum(),
            "num_frames": (num_pixels_BT > 0).sum(),
            "num_pixels": num_pixels_BT.sum(),
        }

    def compute(self) -> dict[str, float]:
        """`abs_rel`, `delta1` (share of pixels within a factor of 1.25), `num_frames`, `num_pixels`."""
        means = {name: self._mean(name, "num_frames") for name in ("abs_rel", "delta1")}
        return means | {name: self._total(name) for name in ("num_frames", "num_pixels")}


def clip_depth(
    targets: VideoTargets, frames_T: NDArray[np.int64], mask_T: NDArray[np.bool_], crop: SeenCrop, output_size: int
) -> Arrays:
    """Depth at the centres of the output's pixels: the measured value there, never a mean over an edge.

    Args:
        targets: of the video, F frames.
        frames_T: which of those the clip's frames are.
        mask_T: which of the clip's frames are real.
        crop: what the encoder saw of a frame.
        output_size: S.

    Returns:
        `depth_metres` [T,S,S], `depth_valid` [T,S,S].
    """
    height, width = targets.depth_metres.shape[1:]
    centres = (np.arange(output_size) + 0.5) / output_size
    seen_S2 = crop.to_frame(np.stack([centres, centres], axis=-1))
    columns = (seen_S2[:, 0] * width).astype(np.int64).clip(0, width - 1)
    rows = (seen_S2[:, 1] * height).astype(np.int64).clip(0, height - 1)
    # one dimension after the other, as float32: three times as fast as all at once
    depth_TSS = targets.depth_metres[frames_T].take(rows, axis=1).astype(np.float32).take(columns, axis=2)
    return {
        "depth_metres": depth_TSS,
        "depth_valid": np.broadcast_to(mask_T[:, None, None], depth_TSS.shape).copy(),
    }
