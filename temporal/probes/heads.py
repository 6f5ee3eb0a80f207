"""Many heads at once: what a grid of settings is fitted to, trained by and asked.

Heads answer classes, several labels, or numbers: K of them, of one of the `label_kind`s of the cache's label sets. The
truth is a class a video, [V], or K numbers, [V,K], NaN where one is not known, which counts in nothing.

A sweep over H settings is H heads that see the same batches. Where heads are alike their parameters are stacked, [H,
...], so that one batched product serves all of them; `HeadOptimizer` gives each its own learning rate and weight
decay. A head that diverges spoils no other: sums over heads are taken of losses only.

`train_heads` trains them by gradient descent, in batches of videos, with one clip of each video an epoch. The order of
videos and the choice among a video's clips depend on the seed and the epoch alone.

Shapes: H heads, B videos, V videos of a split, K classes, labels or targets; tokens as in `vfz.temporal.data.features`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vfz.pipeline.progress import Progress
from vfz.temporal.data.features import Features
from vfz.temporal.tasks import TASK_OF_LABELS, TASKS
from vfz.temporal.tasks.values import ValuesTask

CLASSES, MULTILABEL, REGRESSION = TASK_OF_LABELS
_LEAST_PROBABILITY = 1e-12


class HeadGrid(ABC):
    """H fitted heads.

    Attributes:
        settings: of each, by name.
        num_parameters: of one of them.
        label_kind: what they answer: `classes`, `multilabel` or `regression`.
    """

    label_kind: str = CLASSES

    settings: Sequence[Mapping[str, Any]]
    num_parameters: int

    @abstractmethod
    def proba(self, layers_BTND: Sequence[Tensor], num_prefix: Sequence[int]) -> Tensor:
        """Answers [H,B,K] about a clip of each video, on the device of the tokens: probabilities, or numbers."""

    @abstractmethod
    def only(self, head: int) -> HeadGrid:
        """One of the heads, as a grid of one."""

    def rescaled(self, mean_K: Tensor, deviation_K: Tensor) -> HeadGrid:
        """Heads that answer numbers, with each answer times a deviation plus a mean."""
        raise NotImplementedError(f"{type(self).__name__} answers {self.label_kind} only")


class TrainableHeads(Protocol):
    """H heads in training."""

    def train_step(self, layers_BTND: Sequence[Tensor], num_prefix: Sequence[int], labels_B: Tensor) -> Tensor:
        """One update of every head, by the classes [B] or numbers [B,K]; its mean loss [H] before the update."""

    def grid(self) -> HeadGrid:
        """The heads as they are now, in evaluation."""


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
    """The training curves of all heads, [epochs][H].

    Attributes:
        train_loss: mean loss over the epoch's batches, as they were met.
        held_out: the headline figure over the watched videos after the epoch; empty where none were watched.
        headline: its name.
    """

    train_loss: list[list[float]] = field(default_factory=list)
    held_out: list[list[float]] = field(default_factory=list)
    headline: str = "top1"

    def of_head(self, head: int) -> dict[str, list[float]]:
        """One head's curves, by name."""
        return {
            "train_loss": [losses[head] for losses in self.train_loss],
            f"held_out_{self.headline}": [figures[head] for figures in self.held_out],
        }


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
        labels_V: the class of every video of `features`, or its numbers [V,K].
        videos: positions of those to train on.
        schedule: how long.
        watched: positions of held-out videos that are asked about after every epoch.

    Raises:
        RunError: for features that are not finite.
    """
    kind = heads.grid().label_kind
    curves = Curves(headline=headline_of(kind))
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
            grid, size = heads.grid(), schedule.batch_size
            if kind == CLASSES:
                curves.held_out.append(answer(grid, features, watched, labels_V, batch_size=size).top1)
            else:
                answers_HVK = value_answers(grid, features, watched, batch_size=size)
                curves.held_out.append(value_headlines(kind, answers_HVK, labels_V[watched]))
    schedule.progress.finish()
    return curves


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """The answers of each head about labelled videos.

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


def headline_of(label_kind: str) -> str:
    """The figure that probes of a kind are chosen by."""
    return TASKS[TASK_OF_LABELS[label_kind]].headline


def head_answers(label_kind: str, logits: Tensor) -> Tensor:
    """What heads say, [..., K]: class probabilities, the probability of each label, or numbers as they are."""
    if label_kind == CLASSES:
        return logits.softmax(dim=-1)
    return logits.sigmoid() if label_kind == MULTILABEL else logits


def value_losses(label_kind: str, logits: Tensor, values_BK: Tensor) -> Tensor:
    """Of logits [..., B, K] the mean loss [...] over the numbers that are known; 0, with a graph, where none is."""
    known_BK = ~values_BK.isnan()
    task: type[ValuesTask] = TASKS[TASK_OF_LABELS[label_kind]]  # type: ignore[assignment]
    losses = task.losses(logits, values_BK.nan_to_num(0.0).expand_as(logits))
    return losses.where(known_BK, 0.0).sum(dim=(-2, -1)) / known_BK.sum().clamp_min(1)


def value_answers(grid: HeadGrid, features: Features, videos_V: Tensor, *, batch_size: int) -> Tensor:
    """What every head answers about some videos, [H,V,K] on the CPU; arguments as of `answer`."""
    asked = [answers.cpu() for _, answers in probabilities(grid, features, videos_V, batch_size=batch_size)]
    return torch.cat(asked, dim=1)


def answer_losses(label_kind: str, answers_HVK: Tensor, values_VK: Tensor) -> list[float]:
    """The mean loss of what each head answers; infinite where it diverged."""
    answers_HVK = answers_HVK.double()
    if label_kind == MULTILABEL:
        answers_HVK = answers_HVK.logit(eps=_LEAST_PROBABILITY)
    losses: list[float] = value_losses(label_kind, answers_HVK, values_VK.double()).nan_to_num(math.inf).tolist()
    return losses


def value_headlines(label_kind: str, answers_HVK: Tensor, values_VK: Tensor) -> list[float]:
    """The headline figure of every head; NaN where it cannot be said, and of heads that diverged."""
    task: type[ValuesTask] = TASKS[TASK_OF_LABELS[label_kind]]  # type: ignore[assignment]
    values = values_VK.double().numpy()
    return [
        task.figures_of(answers_VK.double().numpy(), values)[task.headline] if answers_VK.isfinite().all() else math.nan
        for answers_VK in answers_HVK
    ]


@torch.no_grad()
def probabilities(
    grid: HeadGrid, features: Features, videos_V: Tensor, *, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of positions and answers [H,B,K] of `HeadGrid.proba`: the mean over each video's clips."""
    for videos_B in videos_V.split(batch_size):
        clips = [
            grid.proba(features.read_finite(videos_B, torch.full_like(videos_B, clip)), features.num_prefix)
            for clip in range(features.num_clips)
        ]
        yield videos_B, torch.stack(clips).mean(dim=0)


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
