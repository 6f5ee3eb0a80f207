"""Fits every setting of a probe and chooses one on held-out training videos: what all probes share.

A `Fitter` fits its whole grid of settings to some videos. A tenth of each class is held out, or in cross-validation
every part in turn; the reported split never chooses. The setting that is right on most held-out videos is chosen, among
equals the one with the least cross-entropy there, since a small held-out part has many ties.

Probes that are trained keep the heads among which the held-out part has chosen. Those that are solved (logistic
regression, kNN) are fitted again on all training videos, and so is every probe chosen by cross-validation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from vfz.pipeline.errors import UsageError
from vfz.pipeline.progress import Progress
from vfz.temporal.data.features import Features
from vfz.temporal.probes.heads import (
    REGRESSION,
    Answers,
    Curves,
    HeadGrid,
    answer,
    answer_losses,
    headline_of,
    value_answers,
    value_headlines,
)
from vfz.temporal.probes.options import parse_shots
from vfz.temporal.tasks.regression import moments

HELD_OUT_FRACTION = 0.1


class Fitter(Protocol):
    """A kind of probe with its grid of settings."""

    @property
    def refits(self) -> bool:
        """Whether the grid is fitted again on all training videos once the held-out part has chosen."""

    def fit_grid(
        self, features: Features, labels_V: Tensor, videos: Tensor, watched: Tensor | None
    ) -> tuple[HeadGrid, Curves]:
        """Heads fitted on some videos, and their training curves.

        Args:
            features: where videos are read from.
            labels_V: the class of every video of `features`, or its numbers [V,K].
            videos: positions of those to fit on.
            watched: held-out ones, to be asked about on the way.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """A fitted grid and which of its heads is the probe.

    Attributes:
        grid: all heads.
        best: the chosen one.
        heads: of each head its settings, `held_out_top1` and `held_out_log_loss`; of numbers `held_out_r2` and
            `held_out_loss`, of several labels `held_out_map` and `held_out_loss`.
        curves: of the training that chose.
        num_held_out: videos that chose.
        num_fitted: videos the heads were fitted on.
    """

    grid: HeadGrid
    best: int
    heads: list[dict[str, Any]]
    curves: Curves
    num_held_out: int
    num_fitted: int

    @property
    def chosen(self) -> dict[str, Any]:
        """The chosen settings, how right they were on the held-out videos, and how many those were."""
        return self.heads[self.best] | {"num_held_out": self.num_held_out}


def fit_and_choose(
    make_fitter: Callable[[int], Fitter],
    features: Features,
    labels_V: Tensor,
    *,
    num_classes: int,
    held_out: float,
    folds: int | None,
    seed: int,
    batch_size: int,
    progress: Progress,
) -> Choice:
    """Fit the grid with a part held out, or each of several parts in turn, and choose the best setting there.

    Args:
        make_fitter: given the least number of videos it will be fitted on.
        features: the training videos.
        labels_V: their classes, 0 to `num_classes` - 1.
        num_classes: K.
        held_out: share of each class that is held out; not used with `folds`.
        folds: number of parts of a cross-validation.
        seed: decides the parts.
        batch_size: videos asked about at once.
        progress: told of classes that choose nothing.

    Raises:
        UsageError: for labels that cannot be fitted. RunError: for features that are not finite.
    """
    check_classes(labels_V, num_classes)
    parts = held_out_parts(labels_V, seed=seed, fraction=held_out, num_folds=folds)
    if unheld := len(set(labels_V.tolist()) - set(labels_V[torch.stack(parts).any(dim=0)].tolist())):
        progress.note(f"{unheld} classes have a single training video: none of them is held out to choose the settings")

    def ask(grid: HeadGrid, held: Tensor) -> Answers:
        return answer(grid, features, held, labels_V, batch_size=batch_size)

    def score(grid: HeadGrid, asked: list[Answers]) -> tuple[list[dict[str, Any]], int]:
        heads = _scores(grid, asked)
        return heads, best_setting(*([head[name] for head in heads] for name in ("held_out_top1", "held_out_log_loss")))

    return _fit_parts(make_fitter, features, labels_V, parts, folds=folds, ask=ask, score=score)


def fit_and_choose_values(
    make_fitter: Callable[[int], Fitter],
    features: Features,
    values_VK: Tensor,
    *,
    label_kind: str,
    held_out: float,
    folds: int | None,
    seed: int,
    batch_size: int,
) -> Choice:
    """The same of several labels or of numbers; the held-out videos are drawn from all, and their mAP or R2 chooses.

    Numbers are brought to mean 0 and deviation 1 for the fit; the heads answer in the numbers' own units.

    Args:
        make_fitter: given the least number of videos it will be fitted on.
        features: the training videos.
        values_VK: their numbers, NaN where one is not known.
        label_kind: `multilabel` or `regression`.
        held_out: share of the videos that is held out; not used with `folds`.
        folds: number of parts of a cross-validation.
        seed: decides the parts.
        batch_size: videos asked about at once.

    Raises:
        UsageError: for fewer than two videos, or more folds than videos. RunError: for features that are not finite.
    """
    parts = random_parts(len(values_VK), seed=seed, fraction=held_out, num_folds=folds)
    mean_K, deviation_K = torch.zeros(values_VK.shape[1]), torch.ones(values_VK.shape[1])
    if label_kind == REGRESSION:
        mean_K, deviation_K = (torch.tensor(moment) for moment in moments(values_VK.numpy()))
    headline = headline_of(label_kind)

    def ask(grid: HeadGrid, held: Tensor) -> tuple[Tensor, Tensor]:
        return value_answers(grid, features, held, batch_size=batch_size), held

    def score(grid: HeadGrid, asked: list[tuple[Tensor, Tensor]]) -> tuple[list[dict[str, Any]], int]:
        answers_HVK, held = torch.cat([one for one, _ in asked], dim=1), torch.cat([held for _, held in asked])
        standard_VK = (values_VK[held] - mean_K) / deviation_K
        figures_H = value_headlines(label_kind, answers_HVK, standard_VK)
        losses_H = answer_losses(label_kind, answers_HVK, standard_VK)
        heads = [
            dict(settings) | {f"held_out_{headline}": figure, "held_out_loss": loss}
            for settings, figure, loss in zip(grid.settings, figures_H, losses_H, strict=True)
        ]
        worst = -math.inf
        return heads, best_setting([worst if math.isnan(figure) else figure for figure in figures_H], losses_H)

    choice = _fit_parts(
        make_fitter, features, (values_VK - mean_K) / deviation_K, parts, folds=folds, ask=ask, score=score
    )
    return choice if label_kind != REGRESSION else replace(choice, grid=choice.grid.rescaled(mean_K, deviation_K))


AskedT = TypeVar("AskedT")


def _fit_parts(
    make_fitter: Callable[[int], Fitter],
    features: Features,
    labels_V: Tensor,
    parts: Sequence[Tensor],
    *,
    folds: int | None,
    ask: Callable[[HeadGrid, Tensor], AskedT],
    score: Callable[[HeadGrid, list[AskedT]], tuple[list[dict[str, Any]], int]],
) -> Choice:
    """Fits with each part held out, asks the heads about it, scores them, and fits on all videos where that is due."""
    fitter = make_fitter(min(int((~held_V).sum()) for held_V in parts))
    asked, fitted = [], []
    for held_V in parts:
        held, kept = held_V.nonzero().flatten(), (~held_V).nonzero().flatten()
        grid, curves = fitter.fit_grid(features, labels_V, kept, held if folds is None else None)
        asked.append(ask(grid, held))
        fitted.append((grid, curves, len(kept)))
    grid, curves, num_fitted = fitted[0]
    if folds is not None or fitter.refits:
        everything = torch.arange(len(features))
        grid, again = fitter.fit_grid(features, labels_V, everything, None)
        curves, num_fitted = (again if folds is not None else curves), len(features)
    heads, best = score(grid, asked)
    return Choice(
        grid=grid,
        best=best,
        heads=heads,
        curves=curves,
        num_held_out=sum(int(held_V.sum()) for held_V in parts),
        num_fitted=num_fitted,
    )


def best_setting(top1_H: Sequence[float], log_loss_H: Sequence[float]) -> int:
    """The setting with the most right answers, and among those the least cross-entropy; the first of equals."""
    return min(range(len(top1_H)), key=lambda head: (-top1_H[head], log_loss_H[head]))


def held_out_parts(labels_V: Tensor, *, seed: int, fraction: float, num_folds: int | None) -> list[Tensor]:
    """One mask from `hold_out`, or `num_folds` from `fold_masks`."""
    if num_folds is None:
        return [hold_out(labels_V, seed=seed, fraction=fraction)]
    return fold_masks(labels_V, seed=seed, num_folds=num_folds)


def hold_out(labels_V: Tensor, *, seed: int, fraction: float = HELD_OUT_FRACTION) -> Tensor:
    """Which training videos are held out: a mask [V] with a tenth of each class, at least one where it has two.

    Raises:
        UsageError: when fewer than two classes are left to fit, or nothing can be held out.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"a held-out part of {fraction} is no share; give a number between 0 and 1")
    held_V = torch.zeros(len(labels_V), dtype=torch.bool)
    for shuffled in _shuffled_classes(labels_V, seed):
        if len(shuffled) > 1:
            count = min(len(shuffled) - 1, max(1, round(fraction * len(shuffled))))
            held_V[shuffled[:count]] = True
    if not held_V.any():
        raise UsageError(
            "every class of the training split has one video only; a probe needs two to choose its settings: "
            "give it more videos"
        )
    return held_V


def fold_masks(labels_V: Tensor, *, seed: int, num_folds: int) -> list[Tensor]:
    """Masks [V] of what is held out in each fold; every video in one of them, classes spread evenly.

    Raises:
        UsageError: when there are fewer than two folds or classes, or no class has a video for each of two folds.
    """
    classes = _shuffled_classes(labels_V, seed)
    most = max(len(shuffled) for shuffled in classes)
    if not 2 <= num_folds <= most:
        raise UsageError(
            f"{num_folds} folds of a training split whose largest class has {most} videos; give 2 to {most} folds"
        )
    fold_V = torch.empty(len(labels_V), dtype=torch.int64)
    start = 0
    for shuffled in classes:
        fold_V[shuffled] = (torch.arange(len(shuffled)) + start) % num_folds
        start += len(shuffled)  # so that classes smaller than the number of folds do not all lie in the first
    return [fold_V == fold for fold in range(num_folds)]


def random_parts(num_videos: int, *, seed: int, fraction: float, num_folds: int | None) -> list[Tensor]:
    """As `held_out_parts`, of videos without a class: a share of all of them, or even folds.

    Raises:
        UsageError: for fewer than two videos, or no such number of folds.
    """
    if num_videos < 2:
        raise UsageError(
            f"the training split has {num_videos} labelled video; a probe needs two to choose its settings"
        )
    if num_folds is not None and not 2 <= num_folds <= num_videos:
        raise UsageError(f"{num_folds} folds of {num_videos} training videos; give 2 to {num_videos} folds")
    place_V = torch.randperm(num_videos, generator=torch.Generator().manual_seed(seed))
    if num_folds is None:
        return [place_V < min(num_videos - 1, max(1, round(fraction * num_videos)))]
    return [place_V % num_folds == fold for fold in range(num_folds)]


def few_of_all(num_videos: int, shots: str, *, seed: int) -> Tensor:
    """As `few_videos`, of videos without a class: positions of a share of all of them.

    Raises:
        UsageError: when `shots` is no share.
    """
    share, _ = parse_shots(shots)
    if share is None:
        raise UsageError(
            f"--shots {shots} is a number of videos a class, and these labels are no classes; give a share of the "
            "training videos, such as 5%"
        )
    shuffled = torch.randperm(num_videos, generator=torch.Generator().manual_seed(seed))
    return shuffled[: max(2, round(share * num_videos))].sort().values


def few_videos(labels_V: Tensor, shots: str, *, seed: int) -> Tensor:
    """Positions of a few training videos, a share or a number of each class, in ascending order.

    Args:
        labels_V: classes of all.
        shots: `5%` of each class (at least one), or `5` of each class (all of a class that has fewer).
        seed: decides which.

    Raises:
        UsageError: when `shots` is neither.
    """
    share, count = parse_shots(shots)
    chosen = [
        shuffled[: count if share is None else max(1, round(share * len(shuffled)))]
        for shuffled in _shuffled_classes(labels_V, seed)
    ]
    return torch.cat(chosen).sort().values


def check_classes(labels_V: Tensor, num_classes: int) -> None:
    """Refuse labels that no probe can be fitted on.

    Raises:
        UsageError: when a label is not among the classes, or fewer than two classes occur.
    """
    wrong_V = (labels_V < 0) | (labels_V >= num_classes)
    if wrong_V.any():
        raise UsageError(
            f"label {int(labels_V[wrong_V][0])} is out of range: there are {num_classes} classes, "
            f"0 to {num_classes - 1}"
        )
    present = labels_V.unique()
    if len(present) < 2:
        raise UsageError(f"the training split has {len(present)} class; a probe needs at least two")


def _scores(grid: HeadGrid, asked: Sequence[Answers]) -> list[dict[str, Any]]:
    right_HV = torch.cat([answers.label_rank_HV == 0 for answers in asked], dim=1)
    loss_HV = torch.cat([answers.log_loss_HV for answers in asked], dim=1)
    return [
        dict(settings)
        | {
            "held_out_top1": float(right_HV[head].double().mean()),
            "held_out_log_loss": float(loss_HV[head].double().mean()),
        }
        for head, settings in enumerate(grid.settings)
    ]


def _shuffled_classes(labels_V: Tensor, seed: int) -> list[Tensor]:
    """Positions of the videos of each class, in an order that the seed decides."""
    classes = labels_V.unique()
    if len(classes) < 2:
        raise UsageError(f"the training split has {len(classes)} class; a probe needs at least two")
    generator = torch.Generator().manual_seed(seed)
    members = [(labels_V == label).nonzero().flatten() for label in classes]
    return [videos[torch.randperm(len(videos), generator=generator)] for videos in members]
