"""Results compared on the videos they share: intervals, paired tests, classes that changed.

A difference between two results means something only where both answered for the same videos. Results are compared in
groups of one task, split and label set. Each one's own figure is over its own videos, and says how many those are;
tests against the group's baseline are over the videos that both have, and say how many those are. What does not belong
to the others is left out, with the reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vfz.pipeline.errors import RunError, UsageError
from vfz.temporal.comparison.results import CLASSIFY, Result, load_results
from vfz.temporal.statistics import (
    McNemar,
    Measure,
    PairedBootstrap,
    mcnemar,
    paired_bootstrap,
    paired_bootstrap_of,
)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What was named and is not compared.

    Attributes:
        name: as it was given.
        reason: one line.
    """

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Results of one task, split and label set, and each of them against the baseline.

    Attributes:
        results: in the order they were named.
        baseline: the name of one of them.
        against: by name; the baseline has no entry.
        note: what tells it from another comparison of that task, split and label set; empty where there is none.
    """

    results: tuple[Result, ...]
    baseline: str
    against: Mapping[str, Against]
    note: str = ""

    @property
    def title(self) -> str:
        """What is compared: `classify on test`."""
        task, split, label_set = self.results[0].group
        return f"{task} on {split}" + (f", labels {label_set}" if label_set else "") + self.note


@dataclass(frozen=True, kw_only=True)
class Against:
    """A result against the baseline, over the videos that both have.

    Attributes:
        num_videos: how many those are.
        difference: of the figures, this one's minus the baseline's.
        test: McNemar's, of classes; `num_only_first` is this one's.
        classes: those that changed most, first.
    """

    num_videos: int
    difference: PairedBootstrap
    test: McNemar | None = None
    classes: tuple[ClassChange, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """One class in two results: accuracies over the videos that both have."""

    name: str
    baseline: float
    other: float
    num_videos: int

    @property
    def change(self) -> float:
        """Positive where the other is better than the baseline."""
        return self.other - self.baseline


def load_all(paths: Sequence[Path], *, runs: bool) -> tuple[list[Result], list[LeftOut]]:
    """What is in some folders, under names that tell them apart, and what has nothing to compare.

    Args:
        paths: folders, or bare names where runs lie.
        runs: take runs of `vfz train-temporal`, too.
    """
    found: list[Result] = []
    left_out: list[LeftOut] = []
    seen: set[Path] = set()
    for path in paths:
        try:
            results = load_results(path, runs=runs)
        except (UsageError, RunError) as error:
            left_out.append(LeftOut(name=str(path), reason=str(error)))
            continue
        if results[0].path.resolve() in seen:
            left_out.append(LeftOut(name=str(path), reason=f"{path} is given twice"))
            continue
        seen.add(results[0].path.resolve())
        found += results
    folders = {(result.name, result.path) for result in found}
    often = Counter(name for name, _ in folders)
    return [
        dataclasses.replace(result, name=str(result.path)) if often[result.name] > 1 else result for result in found
    ], left_out


def compare_groups(
    results: Sequence[Result], *, baseline: str | None = None
) -> tuple[tuple[Comparison, ...], tuple[LeftOut, ...]]:
    """Results side by side, a comparison for every task, split and label set.

    Args:
        results: with different names within a group.
        baseline: name or folder of that of every group that has it; the first of the others.

    Returns:
        The comparisons, in the order of their first results, and results that fit no other. Where some of a group fit
        each other and not its baseline (they are of another dataset), those are a comparison of their own.

    Raises:
        UsageError: when no result is called as the baseline.
    """
    names = {result.name for result in results}
    if baseline is not None and not any(_is(result, baseline) for result in results):
        raise UsageError(f"--baseline {baseline} is none of what is compared; choose from {', '.join(sorted(names))}")
    groups: dict[tuple[str, str, str | None], list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    comparisons: list[Comparison] = []
    left_out: list[LeftOut] = []
    for group in groups.values():
        found, odd = _parts(group, baseline)
        comparisons += found
        left_out += odd
    return tuple(comparisons), tuple(left_out)


def _parts(group: Sequence[Result], baseline: str | None) -> tuple[list[Comparison], list[LeftOut]]:
    """Results of one task, split and label set, by what fits together; those that fit no other are left out."""
    left, reasons = list(group), dict.fromkeys((result.name for result in group), "it fits none of the others")
    parts: list[Comparison] = []
    while left:
        chosen = next((one for one in left if baseline is not None and _is(one, baseline)), left[0])
        fitting, against, others = [], {}, []
        for result in left:
            try:
                if result is not chosen:
                    against[result.name] = _against(result, chosen)
                fitting.append(result)
            except UsageError as error:
                others.append(result)
                reasons[result.name] = str(error)
        note = f", others with {chosen.name}" if parts else ""
        parts.append(Comparison(results=tuple(fitting), baseline=chosen.name, against=against, note=note))
        left = others
    several = [part for part in parts if part.against or (baseline and _is(part.results[0], baseline))] or parts[:1]
    alone = [part.results[0].name for part in parts if part not in several]
    first = dataclasses.replace(several[0], note="")
    return [first, *several[1:]], [LeftOut(name=name, reason=reasons[name]) for name in alone]


def compare(results: Sequence[Result], *, baseline: str | None = None) -> Comparison:
    """Each result against the baseline, the first where none is named; all must fit it.

    Raises:
        UsageError: when there are fewer than two, two of one name, no such baseline, or results of another task or
        split than the baseline, with no video in common with it, or another class for one of them.
    """
    names = [result.name for result in results]
    if len(results) < 2:
        raise UsageError(f"{len(results)} result to compare; name two or more")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two of the results are called {twice}; compare folders of different names")
    comparisons, left_out = compare_groups(results, baseline=baseline)
    if left_out:
        raise UsageError(left_out[0].reason)
    if len(comparisons) > 1:
        first, second = (comparison.title for comparison in comparisons[:2])
        raise UsageError(f"some are of {first} and some of {second}; compare those of one task and split")
    return comparisons[0]


def _is(result: Result, name: str) -> bool:
    return name in {result.name, str(result.path), result.path.name}


def _against(result: Result, baseline: Result) -> Against:
    ours = set(result.videos)
    shared = [video for video in baseline.videos if video in ours]
    if not shared or result.class_names != baseline.class_names:
        what = "no video in common" if not shared else "other classes"
        raise UsageError(f"{result.path} has {what} with {baseline.path}; compare results of one dataset's split")
    if result.task == CLASSIFY:
        return _against_by_class(result, baseline, shared)
    if result.values:
        return _against_by_values(result, baseline, shared)
    known = [v for v in shared if math.isfinite(result.outcomes[v]) and math.isfinite(baseline.outcomes[v])]
    if not known:
        raise UsageError(f"{result.path} and {baseline.path} have {result.headline} of no video in common")
    return Against(
        num_videos=len(known),
        difference=paired_bootstrap([result.outcomes[v] for v in known], [baseline.outcomes[v] for v in known]),
    )


def _against_by_class(result: Result, baseline: Result, shared: Sequence[str]) -> Against:
    for video in shared:
        if result.labels[video] != baseline.labels[video]:
            raise UsageError(
                f"video {video!r} is of class {result.class_names[result.labels[video]]} in {result.path} and of "
                f"{baseline.class_names[baseline.labels[video]]} in {baseline.path}; compare results of one dataset"
            )
    ours, theirs = [result.right[video] for video in shared], [baseline.right[video] for video in shared]
    return Against(
        num_videos=len(shared),
        difference=paired_bootstrap(ours, theirs),
        test=mcnemar(ours, theirs),
        classes=_class_changes(result, baseline, shared),
    )


def _against_by_values(result: Result, baseline: Result, shared: Sequence[str]) -> Against:
    """Of a figure that is no mean over videos: what the task makes of resamples of them."""
    from vfz.temporal.tasks import TASKS
    from vfz.temporal.tasks.values import ValuesTask

    task = TASKS[result.task]
    assert issubclass(task, ValuesTask)  # noqa: S101 - for type checkers
    truth_VK, other_VK = (np.stack([one.values[v][1] for v in shared]).astype(np.float64) for one in (result, baseline))
    if not np.array_equal(truth_VK, other_VK, equal_nan=True):
        raise UsageError(f"{result.path} and {baseline.path} have other targets; compare results of one label set")

    def measure(one: Result) -> Measure:
        answers_VK = np.stack([one.values[v][0] for v in shared]).astype(np.float64)
        return lambda weights_RV: task.headlines(answers_VK, truth_VK, weights_RV)

    return Against(
        num_videos=len(shared), difference=paired_bootstrap_of(measure(result), measure(baseline), len(shared))
    )


def _class_changes(result: Result, baseline: Result, shared: Sequence[str]) -> tuple[ClassChange, ...]:
    by_class: dict[int, list[str]] = {}
    for video in shared:
        by_class.setdefault(baseline.labels[video], []).append(video)
    changes = [
        ClassChange(
            name=baseline.class_names[label],
            baseline=sum(baseline.right[video] for video in videos) / len(videos),
            other=sum(result.right[video] for video in videos) / len(videos),
            num_videos=len(videos),
        )
        for label, videos in sorted(by_class.items())
    ]
    return tuple(sorted(changes, key=lambda change: -abs(change.change)))
