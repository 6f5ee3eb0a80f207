"""Task `pose`: how the camera moved since the frame before. Streaming only; frame 0 has none before it.

Trained by the error of the translation (metres) and that of the rotation (radians) under learned weights (Kendall &
Cipolla, arXiv 1704.00390), measured by the relative pose error (Sturm et al., IROS 2012; arXiv 2605.19137). A pose is
that of a frame's camera in the coordinates of the camera before it: x right, y down, z forward, metres.

    outputs   [B, T, 9]: translation, then the first two columns of the rotation, before Gram-Schmidt
    targets   translation_metres [B, T, 3]
              rotation [B, T, 3, 3]
              pose_valid [B, T]     not at frame 0, nor where a frame is not real

Shape suffixes: B clips, T frames, F frames of a video's targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vfz.pipeline.datasets.targets import VideoTargets
from vfz.temporal.tasks.base import Arrays, RawTargets, SumMetrics, TargetBatch, Task, exact, mean_or_zero
from vfz.temporal.tasks.geometry import chordal_distance, rotation_angle, rotation_from_6d

_MIRROR_X = np.diag([-1.0, 1.0, 1.0, 1.0])


class PoseTask(Task[Tensor]):
    """Translation and rotation under learned weights; relative pose error. Outputs: [B, T, 9]."""

    name = "pose"
    protocols = ("streaming",)
    headline = "rpe_tr_mm"
    higher_is_better = False

    def __init__(self, *, protocol: str = "streaming") -> None:
        super().__init__(protocol=protocol)
        self.balance = PoseLoss()

    @classmethod
    def clip_targets(cls, raw: RawTargets) -> Arrays:
        """See `clip_pose`. Needs no crop, and so not the size of the video's frames."""
        return clip_pose(raw.video, raw.frames_T, raw.mask_T, mirrored=raw.mirrored)

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


def valid_poses(batch: TargetBatch) -> Tensor:
    """Frames [B, T] whose pose relative to the frame before is known."""
    return batch.targets["pose_valid"] & batch.frame_mask_BT


class PoseLoss(nn.Module):
    """Translation (metres) and rotation (radians) with learned weights (Kendall & Cipolla, arXiv 1704.00390).

        loss = exp(-s) translation + s + exp(-r) rotation + r

    `s` and `r` are learned; at the optimum they are the logarithms of the two errors, so the loss falls without end as
    the errors do, and may be negative. Translation: Euclidean distance. Rotation: chordal distance (2 sin(angle / 2)).
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scales = nn.Parameter(torch.tensor([0.0, -3.0]))  # the first values of the paper

    def forward(self, predicted: Tensor, translation_metres: Tensor, rotation: Tensor, valid: Tensor) -> Tensor:
        """The balanced loss over valid poses.

        Args:
            predicted: [..., 9] translation and 6D rotation (see `rotation_from_6d`).
            translation_metres: [..., 3].
            rotation: [..., 3, 3].
            valid: [...] bool.
        """
        chosen = exact(predicted)[valid]
        distance = torch.linalg.vector_norm(chosen[:, :3] - exact(translation_metres)[valid], dim=-1)
        turned = chordal_distance(rotation_from_6d(chosen[:, 3:]), exact(rotation)[valid])
        errors = torch.stack([mean_or_zero(distance), mean_or_zero(turned)])
        balanced = ((-self.log_scales).exp() * errors + self.log_scales).sum()
        return balanced * valid.any()  # with nothing valid the scales stay as they are


class PoseMetrics(SumMetrics[Tensor]):
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


def clip_pose(
    targets: VideoTargets, frames_T: NDArray[np.int64], mask_T: NDArray[np.bool_], *, mirrored: bool
) -> Arrays:
    """Pose of each frame's camera in the coordinates of the camera of the frame before it in the clip.

    With `world_from_camera` W_t it is inv(W_{t-1}) W_t = [rotation | translation]: a point p of camera t is at
    rotation p + translation for camera t-1, the translation is where camera t stands as camera t-1 sees it, and
    W_t = W_{t-1} [rotation | translation] composes the trajectory. Axes: x right, y down, z forward. A mirrored view
    is what a camera sees of the world mirrored in x, and moves accordingly: translation x and the rotations about y
    and z change their sign. A crop changes no pose.

    Args:
        targets: of the video, F frames.
        frames_T: which of those the clip's frames are.
        mask_T: which of the clip's frames are real.
        mirrored: whether the encoder saw the frames mirrored.

    Returns:
        `translation_metres` [T,3], `rotation` [T,3,3]; the identity at frame 0, which has none before it. `pose_valid`
        [T]: False there and where a frame is not real.
    """
    world_T44 = targets.world_from_camera[frames_T].astype(np.float64)
    relative_T44 = np.tile(np.eye(4), (len(frames_T), 1, 1))
    relative_T44[1:] = np.linalg.inv(world_T44[:-1]) @ world_T44[1:]
    if mirrored:
        relative_T44 = _MIRROR_X @ relative_T44 @ _MIRROR_X
    valid_T = mask_T.copy()
    valid_T[0] = False
    return {
        "translation_metres": relative_T44[:, :3, 3].astype(np.float32),
        "rotation": relative_T44[:, :3, :3].astype(np.float32),
        "pose_valid": valid_T,
    }
