"""Many classifiers at once: what a grid of settings is fitted to, asked, and trained with.

A sweep over H settings is H heads that see the same batches. Where heads are alike their parameters are stacked, [H,
...], so that one batched product serves all of them; `HeadOptimizer` gives each its own learning rate and weight
decay. A head that diverges spoils no other: sums over heads are taken of losses only.

Shapes: H heads, B videos, V videos of a split, K classes; tokens as in `vfz.temporal.data.features`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vfz.temporal.data.features import Features

TOP_CLASSES = 5


class HeadGrid(ABC):
    """H fitted classifiers.

    Attributes:
        settings: of each, by name.
        num_parameters: of one of them.
    """

    settings: Sequence[Mapping[str, Any]]
    num_parameters: int

    @abstractmethod
    def proba(self, layers_BTND: Sequence[Tensor], num_prefix: Sequence[int]) -> Tensor:
        """Class probabilities [H,B,K] of a clip of each video, on the device of the tokens."""

    @abstractmethod
    def only(self, head: int) -> HeadGrid:
        """One of the heads, as a grid of one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What each head says of labelled videos.

    Attributes:
        predicted_HV: class of the greatest probability.
        confidence_HV: that probability.
        label_rank_HV: how many classes are thought likelier than the true one; 0 where it is right.
        log_loss_HV: minus the log of the true class's probability.
    """

    predicted_HV: Tensor
    confidence_HV: Tensor
    label_rank_HV: Tensor
    log_loss_HV: Tensor

    @property
    def top1(self) -> list[float]:
        """Share of videos whose class is right."""
        return self.top(1)

    def top(self, num_guesses: int) -> list[float]:
        """Share of videos whose class is among the `num_guesses` likeliest."""
        shares: list[float] = (self.label_rank_HV < num_guesses).double().mean(dim=1).tolist()
        return shares


@torch.no_grad()
def probabilities(
    grid: HeadGrid, features: Features, videos_V: Tensor, *, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of positions and class probabilities [H,B,K]: the mean over each video's clips."""
    for videos_B in videos_V.split(batch_size):
        clips = [
            grid.proba(features.read_finite(videos_B, torch.full_like(videos_B, clip)), features.num_prefix)
            for clip in range(features.num_clips)
        ]
        yield videos_B, torch.stack(clips).mean(dim=0)


def answer(grid: HeadGrid, features: Features, videos_V: Tensor, labels_V: Tensor, *, batch_size: int) -> Answers:
    """Asks every head about labelled videos.

    Args:
        grid: the heads.
        features: where the videos are read from.
        videos_V: which, as positions.
        labels_V: the class of every video of `features`.
        batch_size: videos at once.
    """
    parts = []
    for videos_B, proba_HBK in probabilities(grid, features, videos_V, batch_size=batch_size):
        labels_HB1 = labels_V[videos_B].to(proba_HBK.device).expand(len(proba_HBK), -1).unsqueeze(2)
        # A head that diverged says NaN: it gives no class a probability, and is wrong everywhere.
        proba_HBK = proba_HBK.nan_to_num(0.0)
        confidence_HB, predicted_HB = proba_HBK.max(dim=2)
        of_label_HB1 = proba_HBK.gather(2, labels_HB1)
        before_HBK = torch.arange(proba_HBK.shape[2], device=proba_HBK.device) < labels_HB1
        rank_HB = ((proba_HBK > of_label_HB1) | ((proba_HBK == of_label_HB1) & before_HBK)).sum(dim=2)
        diverged_HB = confidence_HB == 0
        predicted_HB, rank_HB = predicted_HB.masked_fill(diverged_HB, -1), rank_HB.masked_fill(diverged_HB, 1)
        tiny = torch.finfo(proba_HBK.dtype).tiny
        parts.append((predicted_HB, confidence_HB, rank_HB, -of_label_HB1.squeeze(2).clamp(tiny, 1.0).log()))
    predicted, confidence, rank, loss = (torch.cat(some, dim=1).cpu() for some in zip(*parts, strict=True))
    return Answers(predicted_HV=predicted, confidence_HV=confidence, label_rank_HV=rank, log_loss_HV=loss)


class HeadOptimizer:
    """torch's own optimizer over heads that each have a learning rate and a weight decay, cosine to zero.

    Parameters with at most one dimension (biases, norms) are not decayed.

    Args:
        heads: the parameters of each head.
        settings: of each head, `lr` and where wanted `weight_decay`.
        kind: `adamw` or `sgd` (momentum 0.9).
        num_steps: of the whole training.
    """

    def __init__(
        self,
        heads: Sequence[Iterable[Tensor]],
        settings: Sequence[Mapping[str, float]],
        *,
        kind: str,
        num_steps: int,
    ) -> None:
        groups: list[dict[str, Any]] = []
        for parameters, setting in zip(heads, settings, strict=True):
            parameters = list(parameters)
            for some, decay in (
                ([one for one in parameters if one.ndim > 1], setting.get("weight_decay", 0.0)),
                ([one for one in parameters if one.ndim <= 1], 0.0),
            ):
                if some:
                    groups.append({"params": some, "lr": setting["lr"], "weight_decay": decay})
        self._optimizer: torch.optim.Optimizer
        if kind == "adamw":
            self._optimizer = torch.optim.AdamW(groups, fused=True)
        else:
            self._optimizer = torch.optim.SGD(groups, momentum=0.9, fused=True)
        self._peaks: list[float] = [group["lr"] for group in groups]
        self._num_steps, self._step = num_steps, 0

    def step(self) -> None:
        """One update from the gradients that are there."""
        factor = 0.5 * (1 + math.cos(math.pi * self._step / self._num_steps))
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        self._optimizer.step()
        self._step += 1

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        self._optimizer.zero_grad(set_to_none=True)


class StackedOptimizer(HeadOptimizer):
    """The same for stacked parameters [H, ...]: each head's are slices that share their memory, so nothing is copied.

    Args:
        stacked: the parameters, in which heads come first.
        settings: see `HeadOptimizer`.
        kind: see `HeadOptimizer`.
        num_steps: see `HeadOptimizer`.
    """

    def __init__(
        self, stacked: Iterable[nn.Parameter], settings: Sequence[Mapping[str, float]], *, kind: str, num_steps: int
    ) -> None:
        self._stacked = list(stacked)
        self._slices = [[one.detach()[head] for one in self._stacked] for head in range(len(settings))]
        super().__init__(self._slices, settings, kind=kind, num_steps=num_steps)

    def step(self) -> None:
        """See `HeadOptimizer`."""
        for head, slices in enumerate(self._slices):
            for one, whole in zip(slices, self._stacked, strict=True):
                one.grad = None if whole.grad is None else whole.grad[head]
        super().step()

    def zero_grad(self) -> None:
        """See `HeadOptimizer`."""
        for whole in self._stacked:
            whole.grad = None
