"""Learned time embeddings: one vector per time step, stretched where a clip has another length than in training."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize_time(embedding_1TD: Tensor, num_steps: int) -> Tensor:
    """Linear interpolation of a time embedding `[1, T, D]` to `num_steps`: `[1, num_steps, D]`."""
    if embedding_1TD.shape[1] == num_steps:
        return embedding_1TD
    return F.interpolate(embedding_1TD.mT, size=num_steps, mode="linear", align_corners=False).mT
