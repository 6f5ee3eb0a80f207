"""Fit every setting, choose one on videos held out of training: what all probes share.

A fitter fits its whole grid of settings to some videos. Probes that are trained keep the heads that the held-out part
chose among; those that are solved (logistic regression, kNN) are fitted again on all training videos, as is every
probe chosen by cross-validation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vfz.pipeline.progress import Progress
from vfz.temporal.data.features import Features
from vfz.temporal.probes.heads import Answers, HeadGrid, answer
from vfz.temporal.probes.selection import best_setting, check_classes, held_out_parts
from vfz.temporal.probes.training import Curves


class Fitter(Protocol):
    """A kind of probe with its grid of settings."""

    @property
    def refits(self) -> bool:
        """Whether the grid is fitted again on all training videos once the held-out part has chosen."""

    def fit_grid(
        self, features: Features, labels_V: Tensor, videos: Tensor, watched: Tensor | None
    ) -> tuple[HeadGrid, Curves]:
        """Heads fitted on some videos, and how they came along.

        Args:
            features: where videos are read from.
            labels_V: the class of every video of `features`.
            videos: positions of those to fit on.
            watched: held-out ones, to be asked about on the way.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """A fitted grid and which of its heads is the probe.

    Attributes:
        grid: all heads.
        best: the chosen one.
        heads: of each head its settings, `held_out_top1` and `held_out_log_loss`.
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
    fitter = make_fitter(min(int((~held_V).sum()) for held_V in parts))
    asked, fitted = [], []
    for held_V in parts:
        held, kept = held_V.nonzero().flatten(), (~held_V).nonzero().flatten()
        grid, curves = fitter.fit_grid(features, labels_V, kept, held if folds is None else None)
        asked.append(answer(grid, features, held, labels_V, batch_size=batch_size))
        fitted.append((grid, curves, len(kept)))
    grid, curves, num_fitted = fitted[0]
    if folds is not None or fitter.refits:
        everything = torch.arange(len(features))
        grid, again = fitter.fit_grid(features, labels_V, everything, None)
        curves, num_fitted = (again if folds is not None else curves), len(features)
    heads = _scores(grid, asked)
    return Choice(
        grid=grid,
        best=best_setting([head["held_out_top1"] for head in heads], [head["held_out_log_loss"] for head in heads]),
        heads=heads,
        curves=curves,
        num_held_out=sum(int(held_V.sum()) for held_V in parts),
        num_fitted=num_fitted,
    )


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
