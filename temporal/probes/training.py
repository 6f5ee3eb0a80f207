"""The loop that trains heads by gradient descent: batches of videos, one clip of each an epoch, all heads at once.

The order of videos and the choice among a video's clips depend on the seed and the epoch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from vfz.pipeline.progress import Progress
from vfz.temporal.data.features import Features
from vfz.temporal.probes.heads import HeadGrid, answer


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and in which order heads are trained.

    Attributes:
        epochs: passes over the videos.
        batch_size: videos a step.
        seed: of initial weights and order.
        progress: told of every video.
    """

    epochs: int
    batch_size: int
    seed: int
    progress: Progress

    def num_steps(self, num_videos: int) -> int:
        """Of the whole training."""
        return self.epochs * -(-num_videos // self.batch_size)


@dataclass(frozen=True, kw_only=True)
class Curves:
    """How heads came along, [epochs][H].

    Attributes:
        train_loss: mean cross-entropy over the epoch's batches, as they were met.
        held_out_top1: share of the watched videos that are right after the epoch; empty where none were watched.
    """

    train_loss: list[list[float]] = field(default_factory=list)
    held_out_top1: list[list[float]] = field(default_factory=list)

    def of_head(self, head: int) -> dict[str, list[float]]:
        """One head's curves, by name."""
        return {
            "train_loss": [losses[head] for losses in self.train_loss],
            "held_out_top1": [shares[head] for shares in self.held_out_top1],
        }


class TrainableHeads(Protocol):
    """H heads in training."""

    def train_step(self, layers_BTND: Sequence[Tensor], num_prefix: Sequence[int], labels_B: Tensor) -> Tensor:
        """One update of every head; its mean loss [H] before the update."""

    def grid(self) -> HeadGrid:
        """The heads as they are now, in evaluation."""


def train_heads(
    heads: TrainableHeads,
    features: Features,
    labels_V: Tensor,
    videos: Tensor,
    *,
    schedule: Schedule,
    watched: Tensor | None = None,
) -> Curves:
    """Trains every head on some videos.

    Args:
        heads: what is trained.
        features: where videos are read from.
        labels_V: the class of every video of `features`.
        videos: positions of those to train on.
        schedule: how long.
        watched: positions of held-out videos that are asked about after every epoch.

    Raises:
        RunError: for features that are not finite.
    """
    curves = Curves()
    schedule.progress.start("fitting", total=schedule.epochs * len(videos), unit="videos")
    for epoch in range(schedule.epochs):
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + epoch)
        order = videos[torch.randperm(len(videos), generator=generator)]
        clips = torch.randint(features.num_clips, (len(videos),), generator=generator)
        total_H = torch.zeros(())
        for videos_B, clips_B in zip(order.split(schedule.batch_size), clips.split(schedule.batch_size), strict=True):
            layers_BTND = features.read_finite(videos_B, clips_B)
            losses_H = heads.train_step(layers_BTND, features.num_prefix, labels_V[videos_B].to(features.device))
            total_H = total_H + losses_H.cpu() * len(videos_B)
            schedule.progress.advance(len(videos_B))
        curves.train_loss.append((total_H / len(videos)).tolist())
        if watched is not None:
            asked = answer(heads.grid(), features, watched, labels_V, batch_size=schedule.batch_size)
            curves.held_out_top1.append(asked.top1)
    schedule.progress.finish()
    return curves
