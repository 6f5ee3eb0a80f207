"""Boxes and rotations as numbers: what losses and metrics need, safe for whatever a network may predict.

A predicted box may have a negative size or lie far away, and six predicted numbers may be anything. Every function
here answers with finite numbers for finite ones, keeps leading dimensions (`...`) and costs a few elementwise passes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_MIN_NORM = 1e-6


def box_corners(boxes_cxcywh: Tensor) -> Tensor:
    """Boxes [..., 4] as left, top, right, bottom; a negative width or height counts as 0."""
    centre, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:].clamp(min=0)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def box_iou(boxes_cxcywh: Tensor, others_cxcywh: Tensor) -> Tensor:
    """Intersection over union [...] of boxes [..., 4], one with one; 0 where both are empty."""
    a, b = box_corners(boxes_cxcywh), box_corners(others_cxcywh)
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = overlap.prod(dim=-1)
    union = _area(a) + _area(b) - intersection
    return torch.where(union > 0, intersection / union, 0.0)


def _area(corners: Tensor) -> Tensor:
    return (corners[..., 2:] - corners[..., :2]).prod(dim=-1)


def rotation_from_6d(columns: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] from six numbers [..., 6] (Zhou et al., arXiv 1812.07035).

    The numbers are the first two columns, one after the other; Gram-Schmidt makes them orthonormal and the third is
    their cross product. Two columns that are parallel or zero give no rotation, but still finite numbers.
    """
    first = F.normalize(columns[..., :3], dim=-1, eps=_MIN_NORM)
    along = (first * columns[..., 3:]).sum(dim=-1, keepdim=True)
    second = F.normalize(columns[..., 3:] - along * first, dim=-1, eps=_MIN_NORM)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


def chordal_distance(rotation: Tensor, other: Tensor) -> Tensor:
    """How far rotations [..., 3, 3] are apart: ||A - B|| / sqrt(2) = 2 sin(angle / 2), radians for small angles.

    Unlike the angle itself it has a bounded gradient everywhere (0 at equality).
    """
    distance: Tensor = torch.linalg.vector_norm(rotation - other, dim=(-2, -1)) / math.sqrt(2)
    return distance


def rotation_angle(rotation: Tensor, other: Tensor) -> Tensor:
    """The angle in radians, 0 .. pi, that turns one rotation [..., 3, 3] into the other; exact for tiny angles too."""
    return 2 * torch.asin((chordal_distance(rotation, other) / 2).clamp(max=1))
