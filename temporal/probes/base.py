"""What every probe is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vfz.pipeline.progress import Progress


@dataclass(frozen=True, kw_only=True)
class FeatureBatch:
    """Features of some clips.

    Attributes:
        features_BTND: float32, on the device.
        labels_B: class indices, on the device.
        indices_B: which clips of the split, on the CPU.
    """

    features_BTND: Tensor
    labels_B: Tensor
    indices_B: Tensor


@dataclass(frozen=True, kw_only=True)
class FeatureClips:
    """One split's features, streamed.

    Attributes:
        batches: `batches(None)` goes over all clips once in the cache's order, `batches(epoch)` in a shuffled one.
        labels_V: the class of every clip (int64), in the cache's order.
    """

    batches: Callable[[int | None], Iterator[FeatureBatch]]
    labels_V: Tensor


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """A fitting problem.

    Attributes:
        num_prefix: how many of the N tokens are prefix tokens (they come first).
        dim: channels.
        pool: `mean` or `last`: which frames the linear probe sees.
    """

    train: FeatureClips
    evaluate: FeatureClips
    num_classes: int
    num_prefix: int
    dim: int
    num_frames: int
    pool: str
    epochs: int
    batch_size: int
    seed: int
    device: torch.device
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class ProbeFit:
    """The outcome: predictions on the reported split, which chose nothing.

    Attributes:
        predicted_V: class of every evaluated clip.
        labels_V: its true class.
        chosen: the settings chosen on the held-out part of training, and their accuracy there.
        num_parameters: of the fitted probe.
    """

    predicted_V: Tensor
    labels_V: Tensor
    num_parameters: int
    chosen: dict[str, Any] = field(default_factory=dict)


FitProbe = Callable[[ProbeTask], ProbeFit]
