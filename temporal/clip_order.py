"""What is drawn for an epoch, before its first batch: which clip comes when, and how it is varied.

A plan follows from the seed and the epoch alone and is made in one go (30 ms for a quarter of a million videos), so
that every process has the same one and any part of it can be begun with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfz.temporal.augmentation import Augmentation

_DROPOUT_STREAM = 1  # keeps these draws apart from those of the order


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochPlan:
    """What is drawn for the n clips of an epoch, in their order.

    Attributes:
        videos: [n] numbers in the loader's list.
        positions: [n] where in its video each clip lies, 0 .. 1.
        views: [n] which of its video's rows each clip takes, as a number 0 <= x < 1.
        factors: [n] which stride factor, likewise.
        dropout_seed: of token dropout; None means none.
    """

    videos: NDArray[np.int64]
    positions: NDArray[np.float64]
    views: NDArray[np.float64]
    factors: NDArray[np.float64]
    dropout_seed: tuple[int, ...] | None = None

    def dropout_generator(self, batch: int) -> np.random.Generator | None:
        """What tokens are dropped by in a batch, the same for all ranks; None where none are."""
        if self.dropout_seed is None:
            return None
        return np.random.default_rng([*self.dropout_seed, batch, _DROPOUT_STREAM])


def training_plan(num_videos: int, augmentation: Augmentation, *, seed: int, epoch: int) -> EpochPlan:
    """Every video once, shuffled and varied."""
    generator = np.random.default_rng([seed, epoch])
    order, draws = generator.permutation(num_videos), generator.random((3, num_videos))
    return EpochPlan(
        videos=order,
        positions=draws[0, order] if augmentation.random_position else np.full(num_videos, 0.5),
        views=draws[1, order] if augmentation.random_view else np.zeros(num_videos),
        factors=draws[2, order],
        dropout_seed=(seed, epoch) if augmentation.token_dropout else None,
    )


def shuffled_plan(num_videos: int, *, seed: int, epoch: int) -> EpochPlan:
    """Every video once, shuffled, each clip centred and of the first view."""
    zeros = np.zeros(num_videos)
    order = np.random.default_rng([seed, epoch]).permutation(num_videos)
    return EpochPlan(videos=order, positions=zeros + 0.5, views=zeros, factors=zeros)


def evaluation_plan(num_views: Sequence[int], num_segments: int) -> EpochPlan:
    """Every video in turn, in each of its views, in clips from its start to its end; one clip is centred.

    Args:
        num_views: of each video, all that it has or the first only.
        num_segments: clips of each video and view.
    """
    counts = np.array(num_views)
    # amid each view's share of 0 .. 1; the first one alone is at 0, however many there are beside it
    views = np.concatenate([(np.arange(count) + 0.5) / count if count > 1 else np.zeros(1) for count in counts])
    positions = np.linspace(0, 1, num_segments) if num_segments > 1 else np.array([0.5])
    return EpochPlan(
        videos=np.repeat(np.arange(len(counts)), counts * num_segments),
        positions=np.tile(positions, len(views)),
        views=np.repeat(views, num_segments),
        factors=np.zeros(len(views) * num_segments),
    )
