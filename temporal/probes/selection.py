"""The held-out tenth of training that chooses a probe's settings; the reported split never does."""

from __future__ import annotations

import torch
from torch import Tensor

from vfz.pipeline.errors import UsageError

HELD_OUT_FRACTION = 0.1


def hold_out(labels_V: Tensor, *, seed: int) -> Tensor:
    """Which training clips are held out: a boolean mask [V] with a tenth of each class, at least one where it has two.

    Raises:
        UsageError: when fewer than two classes are left to fit, or nothing can be held out.
    """
    classes = labels_V.unique()
    if len(classes) < 2:
        raise UsageError(f"the training split has {len(classes)} class; a probe needs at least two")
    generator = torch.Generator().manual_seed(seed)
    held_V = torch.zeros(len(labels_V), dtype=torch.bool)
    for label in classes:
        members = (labels_V == label).nonzero().flatten()
        if len(members) < 2:
            continue
        count = max(1, round(HELD_OUT_FRACTION * len(members)))
        held_V[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not held_V.any():
        raise UsageError(
            "every class of the training split has one clip only; a probe needs two to choose its settings"
        )
    return held_V
