"""What answers of several labels, or of numbers, say besides their metrics: an interval, a baseline, every label alone.

As `vfz.temporal.kept.ClassFigures` says it of classes. Cost: a thousand resamples of the videos, less than a second for
2,000 videos of 20 labels; of large sets fewer, but 200 at least, some seconds for 20,000 videos of 80 labels.

Shapes: V videos, K labels or targets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vfz.temporal.kept import NUM_WORST, finite
from vfz.temporal.statistics import Interval, bootstrap_of
from vfz.temporal.tasks.values import Floats, ValuesTask

_NUM_RESAMPLES = 200, 1000
_MOST_NUMBERS = 400_000_000
"""Of all resamples together, where there are more than the least."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelFigures:
    """Of one evaluation.

    Attributes:
        names: of the labels or targets.
        task: how they are measured; knows the training videos' mean.
        answers_VK: what was answered.
        values_VK: the truth, NaN where it is not known.
    """

    names: tuple[str, ...]
    task: ValuesTask
    answers_VK: Floats
    values_VK: Floats

    @cached_property
    def interval(self) -> Interval | None:
        """Of the headline metric, over the videos; None where it cannot be said."""
        value = self.task.figures_of(self.answers_VK, self.values_VK)[self.task.headline]
        return bootstrap_of(
            lambda weights_RV: self.task.headlines(self.answers_VK, self.values_VK, weights_RV),
            len(self.values_VK),
            value=value,
            num_resamples=int(np.clip(_MOST_NUMBERS // max(1, self.values_VK.size), *_NUM_RESAMPLES)),
        )

    @property
    def baseline(self) -> float:
        """The headline metric of always answering the training videos' mean."""
        return self.task.figures_of(self._always_mean, self.values_VK)[self.task.headline]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, but for the single labels."""
        headline, interval = self.task.headline, self.interval
        return {
            f"{headline}_low": None if interval is None else interval.low,
            f"{headline}_high": None if interval is None else interval.high,
            f"{headline}_interval": None if interval is None else interval.method,
            "baseline": finite(self.baseline),
        }

    def each(self) -> list[dict[str, Any]]:
        """Every label: name, num_videos of which it is known, mean of those, figures, and the first one's baseline."""
        figures = {name: figures_K.tolist() for name, figures_K in self.of_labels.items()}
        first, *_ = self.baseline_of_labels.values()
        known_VK = np.isfinite(self.values_VK)
        means_K = np.where(known_VK, self.values_VK, 0).sum(axis=0) / np.maximum(known_VK.sum(axis=0), 1)
        rows = zip(self.names, known_VK.sum(axis=0).tolist(), means_K.tolist(), first.tolist(), strict=True)
        return [
            {"name": name, "num_videos": count, "mean": mean}
            | {figure: finite(of_labels[place]) for figure, of_labels in figures.items()}
            | {"baseline": finite(baseline)}
            for place, (name, count, mean, baseline) in enumerate(rows)
        ]

    def first(self, figure: str, count: int = NUM_WORST) -> str:
        """One figure of the first labels, for people."""
        pairs = list(zip(self.names, self.of_labels[figure].tolist(), strict=True))
        return ", ".join(f"{name} {value:.4g}" for name, value in pairs[:count]) + (", …" if len(pairs) > count else "")

    def worst(self, count: int = NUM_WORST) -> list[tuple[str, float]]:
        """The labels that are found least, of more than one: name and figure."""
        of_labels = self.of_labels[self.task.means[self.task.headline]]
        pairs = zip(self.names, of_labels.tolist(), strict=True)
        known = [(name, figure) for name, figure in pairs if math.isfinite(figure)]
        return sorted(known, key=lambda row: row[1])[:count] if len(known) > 1 else []

    @cached_property
    def of_labels(self) -> dict[str, Floats]:
        """Every figure of each label, [K] by name; see `ValuesTask.of_labels`."""
        return self.task.of_labels(self.answers_VK, self.values_VK)

    @cached_property
    def baseline_of_labels(self) -> dict[str, Floats]:
        """The same of always answering the training videos' mean."""
        return self.task.of_labels(self._always_mean, self.values_VK)

    @property
    def _always_mean(self) -> Floats:
        return np.broadcast_to(self.task.mean_K.cpu().double().numpy(), self.values_VK.shape)
