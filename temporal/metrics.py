"""What is reported about predictions: running sums in float64 that add up over batches and ranks.

A `Metrics` is fed batch by batch; `state()` is one vector of sums and counts, and the sum of the states of any parts of
the data is the state of the whole. `compute()` turns it into named numbers, always with the counts they are means of;
a mean over nothing is NaN. Points are measured in `vfz.temporal.tapvid`.

Cost: a few elementwise passes over the predictions, and one copy of a short vector from the device per batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from vfz.temporal.geometry import box_iou, rotation_angle, rotation_from_6d
from vfz.temporal.objectives import MAX_METRES, MIN_METRES
from vfz.temporal.target_batch import TargetBatch, valid_boxes, valid_depth, valid_labels, valid_poses

OutputsT = TypeVar("OutputsT")
"""What a readout answers: a tensor, or tensors by name."""


class Metrics(ABC, Generic[OutputsT]):
    """Running sums of one evaluation.

    Attributes:
        sum_names: what `state()` holds, in order.
    """

    sum_names: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        self._state = torch.zeros(len(self.sum_names), dtype=torch.float64)

    @torch.no_grad()
    def update(self, outputs: OutputsT, batch: TargetBatch) -> None:
        """Adds the predictions of one batch."""
        sums = self._sums(outputs, batch)
        self._state += torch.stack([sums[name].double() for name in self.sum_names]).cpu()

    def state(self) -> Tensor:
        """A copy of the sums: float64, on the CPU."""
        return self._state.clone()

    def load_state(self, state: Tensor) -> None:
        """Replaces the sums, for instance by the sum of every rank's `state()`.

        Raises:
            ValueError: when it is not a state of these metrics.
        """
        if state.shape != self._state.shape:
            raise ValueError(f"state has shape {list(state.shape)}; these metrics keep {', '.join(self.sum_names)}")
        self._state = state.detach().to("cpu", torch.float64, copy=True)

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The metrics of everything added so far, and the counts they are means of (`num_...`)."""

    @abstractmethod
    def _sums(self, outputs: OutputsT, batch: TargetBatch) -> Mapping[str, Tensor]:
        """What one batch adds to each of `sum_names`: scalar tensors."""

    def _total(self, name: str) -> float:
        return float(self._state[self.sum_names.index(name)])

    def _mean(self, name: str, count_name: str) -> float:
        count = self._total(count_name)
        return self._total(name) / count if count else math.nan


def clip_logits(logits: Tensor) -> Tensor:
    """The logits [B, K] that decide a clip's class: of [B, T, K] those of the last frame, when all has been seen."""
    return logits[:, -1] if logits.dim() == 3 else logits


class ClassifyMetrics(Metrics[Tensor]):
    """Share of labelled clips whose class is the first (`top1`) or among the first five answers (`top5`)."""

    sum_names = ("top1", "top5", "num_clips")

    def _sums(self, outputs: Tensor, batch: TargetBatch) -> Mapping[str, Tensor]:
        """`outputs`: logits [B, T, K] of frames, the last of which counts, or [B, K] of clips."""
        labelled = valid_labels(batch)
        labels, logits = batch.labels_B[labelled], clip_logits(outputs)[labelled]
        best = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
        right = best == labels.unsqueeze(-1)
        return {"top1": right[:, 0].sum(), "top5": right.sum(), "num_clips": labelled.sum()}

    def compute(self) -> dict[str, float]:
        """`top1`, `top5`, `num_clips`."""
        shares = {name: self._mean(name, "num_clips") for name in ("top1", "top5")}
        return shares | {"num_clips": self._total("num_clips")}


class BoxesMetrics(Metrics[Tensor]):
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


class DepthMetrics(Metrics[Tensor]):
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


class PoseMetrics(Metrics[Tensor]):
    """Relative pose error from frame to frame (Sturm et al., IROS 2012): E = inverse(true pose) predicted pose.

    `rpe_tr_mm` and `rpe_rot_deg` are root mean squares over all frames of length of E's translation and angle of its
    rotation; the plain means are reported beside them.
    """

    sum_names = ("square_metres", "metres", "square_radians", "radians", "num_frames")

    def _sums(self, outputs: Tensor, batch: TargetBatch) -> Mapping[str, Tensor]:
        """`outputs`: translation and 6D rotation [B, T, 9]."""
        valid = valid_poses(batch)
        predicted = outputs[valid].double()
        # E's translation is inverse(R) (t_predicted - t), which is as long as the difference itself
        error = predicted[:, :3] - batch.targets["translation_metres"][valid].double()
        metres = torch.linalg.vector_norm(error, dim=-1)
        rotation = batch.targets["rotation"][valid].double()
        radians = rotation_angle(rotation_from_6d(predicted[:, 3:]), rotation)
        return {
            "square_metres": metres.square().sum(),
            "metres": metres.sum(),
            "square_radians": radians.square().sum(),
            "radians": radians.sum(),
            "num_frames": valid.sum(),
        }

    def compute(self) -> dict[str, float]:
        """`rpe_tr_mm`, `rpe_rot_deg` (RMSE), `rpe_tr_mean_mm`, `rpe_rot_mean_deg`, `num_frames`."""
        return {
            "rpe_tr_mm": 1000 * math.sqrt(self._mean("square_metres", "num_frames")),
            "rpe_rot_deg": math.degrees(math.sqrt(self._mean("square_radians", "num_frames"))),
            "rpe_tr_mean_mm": 1000 * self._mean("metres", "num_frames"),
            "rpe_rot_mean_deg": math.degrees(self._mean("radians", "num_frames")),
            "num_frames": self._total("num_frames"),
        }
