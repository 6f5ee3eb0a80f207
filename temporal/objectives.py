"""Losses of the five tasks, as functions of predictions, targets and what of them is valid.

Every loss is a mean over what is valid only (boxes, points, frames, clips): weighted by the numbers of those, the
losses of parts of a batch add up to that of the whole. What is not valid is taken out before anything is computed, so
that neither its prediction nor its target can reach the loss or a gradient, not even as NaN. With nothing valid a loss
is 0 and still has a graph, so that a step (and DDP) goes on. Computed in float32, or float64 where that was given.

The paper (arXiv 2605.19137) names the kinds of losses; the constants below are those of the works they come from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from vfz.temporal.geometry import box_corners, chordal_distance, rotation_from_6d

GIOU_WEIGHT = 0.5
MIN_METRES, MAX_METRES = 0.001, 10.0
"""Range of depth in loss and metric."""

POINT_FRAME_PIXELS = 256
"""Distances of points are in pixels of a frame of this width and height, whatever the frame's size."""

# Of TAPIR (arXiv 2306.08637) as released.
_HUBER_PIXELS = 4.0
_POSITION_WEIGHT = 0.05
UNCERTAIN_PIXELS = 6.0
"""A position that is off by more than this is one the model should have called uncertain."""

_CORNER_LIMIT = 10.0  # in frames; keeps the areas of boxes far away finite, SmoothL1 still pulls them back
_SCALE_INVARIANCE = 0.5  # Eigen et al., arXiv 1406.2283


def classification_loss(logits_BK: Tensor, labels_B: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over the clips that have a class (label >= 0)."""
    labelled = labels_B >= 0
    losses = F.cross_entropy(
        _exact(logits_BK)[labelled], labels_B[labelled], label_smoothing=label_smoothing, reduction="none"
    )
    return _mean(losses)


def boxes_loss(predicted_cxcywh: Tensor, target_cxcywh: Tensor, valid: Tensor) -> Tensor:
    """SmoothL1 (mean over the four numbers) + 0.5 (1 - GIoU), per valid box.

    Args:
        predicted_cxcywh: [..., 4] unbounded; 1 is the side of the frame.
        target_cxcywh: [..., 4].
        valid: [...] bool.
    """
    predicted, target = _exact(predicted_cxcywh)[valid], _exact(target_cxcywh)[valid]
    distance = F.smooth_l1_loss(predicted, target, reduction="none").mean(dim=-1)
    corners = box_corners(predicted).clamp(-_CORNER_LIMIT, _CORNER_LIMIT)
    return _mean(distance + GIOU_WEIGHT * generalized_box_iou_loss(corners, box_corners(target)))


def points_loss(
    predicted_xy: Tensor,
    visibility_logit: Tensor,
    uncertainty_logit: Tensor,
    *,
    target_xy: Tensor,
    visible: Tensor,
    valid: Tensor,
) -> Tensor:
    """Huber on the positions of visible points + BCE of visibility + BCE of uncertainty (TAPIR, arXiv 2306.08637).

    Uncertainty asks whether the predicted position is off by more than `UNCERTAIN_PIXELS`; like the position it is
    asked of visible points only. Weights 0.05 (the Huber term is in pixels), 1 and 1; a mean over all valid points,
    to which hidden ones add nothing but their visibility.

    Args:
        predicted_xy: [..., 2], 1 is the side of the frame.
        visibility_logit: [...].
        uncertainty_logit: [...].
        target_xy: [..., 2].
        visible: [...] bool.
        valid: [...] bool; what is neither tracked nor asked for is not valid.
    """
    predicted, target, seen = _exact(predicted_xy)[valid], _exact(target_xy)[valid], visible[valid]
    # a hidden point is put where it was predicted, so that nothing pulls at it
    target = torch.where(seen.unsqueeze(-1), target, predicted.detach())
    pixels = torch.linalg.vector_norm((predicted - target) * POINT_FRAME_PIXELS, dim=-1)
    position = F.huber_loss(pixels, torch.zeros_like(pixels), delta=_HUBER_PIXELS, reduction="none")
    too_far = (pixels.detach() > UNCERTAIN_PIXELS).to(pixels.dtype)
    uncertainty = _binary_cross_entropy(_exact(uncertainty_logit)[valid], too_far) * seen
    visibility = _binary_cross_entropy(_exact(visibility_logit)[valid], seen.to(pixels.dtype))
    return _mean(_POSITION_WEIGHT * position + visibility + uncertainty)


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
    one = torch.ones((), dtype=_exact(predicted_metres).dtype, device=predicted_metres.device)
    predicted = torch.where(valid, _exact(predicted_metres), one)  # where not valid: both 1, so equal
    target = torch.where(valid, _exact(target_metres).clamp(MIN_METRES, MAX_METRES), one)
    num_pixels = valid.sum(dim=(-2, -1))

    def over_pixels(values: Tensor) -> Tensor:
        return values.sum(dim=(-2, -1)) / num_pixels.clamp(min=1)

    log_error = predicted.clamp(MIN_METRES, MAX_METRES).log() - target.log()
    scale_invariant = over_pixels(log_error.square()) - _SCALE_INVARIANCE * over_pixels(log_error).square()
    of_frames = over_pixels((predicted - target).abs()) + scale_invariant
    return of_frames.sum() / (num_pixels > 0).sum().clamp(min=1)


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
        chosen = _exact(predicted)[valid]
        distance = torch.linalg.vector_norm(chosen[:, :3] - _exact(translation_metres)[valid], dim=-1)
        turned = chordal_distance(rotation_from_6d(chosen[:, 3:]), _exact(rotation)[valid])
        errors = torch.stack([_mean(distance), _mean(turned)])
        balanced = ((-self.log_scales).exp() * errors + self.log_scales).sum()
        return balanced * valid.any()  # with nothing valid the scales stay as they are


def _exact(values: Tensor) -> Tensor:
    """Float32 at least, whatever autocast made."""
    return values if values.dtype == torch.float64 else values.float()


def _binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def _mean(values: Tensor) -> Tensor:
    """The mean, or 0 with a graph when there are none."""
    return values.sum() / max(values.numel(), 1)
