"""Probes compared on the videos they share: intervals, paired tests, confusions, classes that changed.

`load_result` reads a `probe.json`, of several seeds the first one's answers and the mean of the accuracies; `compare`
puts results side by side. A difference between two probes means something only where both answered for the same videos.
Each probe's own accuracy is over its own videos, and says how many those are; tests against the baseline are over the
videos that both have, and say how many those are.

Shapes: K classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfz.pipeline.errors import RunError, UsageError
from vfz.temporal.probes.record import read_record
from vfz.temporal.statistics import Interval, McNemar, PairedBootstrap, mcnemar, paired_bootstrap

NUM_WORST_PAIRS = 10
EPOCHS = "epoch"
"""The `x_name` of curves that have a point an epoch."""
_CONFIDENCE = 0.95
_FIGURES_OF_HEADS = ("held_out_top1", "held_out_log_loss", "eval_top1")
_CURVE_NAMES = {"train_loss": "training loss", "held_out_top1": "top-1 on held-out videos"}


def load_result(folder: Path) -> ProbeResult:
    """The result that `vfz probe` has written into a folder, under the folder's name.

    Raises:
        UsageError: when the folder holds none, or one of another task than classes. RunError: when it is damaged or of
        another version.
    """
    record = read_record(folder)
    if (task := record["report"].get("task", "classify")) != "classify":
        raise UsageError(f"{folder} is a probe of task {task}; only probes of classes are compared")
    try:
        return _result(folder, record)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RunError(
            f"{folder}/probe.json lacks something or has it wrong ({type(error).__name__} {error}); "
            "probe again with --force"
        ) from None


def compare(results: Sequence[ProbeResult], *, baseline: str | None = None) -> Comparison:
    """Each probe against the baseline, the first where none is named.

    Raises:
        UsageError: when there are fewer than two, two of one name, no such baseline, or results that have no video in
        common with the baseline, or another class for one of them.
    """
    names = [result.name for result in results]
    if len(results) < 2:
        raise UsageError(f"{len(results)} probe to compare; name two or more folders that vfz probe has written")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two of the probes are called {twice}; compare folders of different names")
    if baseline is not None and baseline not in names:
        raise UsageError(f"--baseline {baseline} is none of the compared probes; choose from {', '.join(names)}")
    chosen = results[names.index(baseline) if baseline else 0]
    against = {result.name: _against(result, chosen) for result in results if result is not chosen}
    return Comparison(results=tuple(results), baseline=chosen.name, against=against)


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """One probe as it is compared.

    Attributes:
        name: what it is called in tables; unique among those compared.
        path: the folder of its record.
        probe: linear, attentive or knn.
        encoder, layers, precision: of the cache.
        core: name of the temporal module's core; None where the probe is of tokens.
        split: the reported split.
        top1: accuracy over the videos that are in the cache, with its interval.
        num_planned: videos of the split, whether they are in the cache or not.
        num_parameters: of the fitted probe.
        num_core_parameters: of the temporal module whose outputs were probed; 0 where there is none.
        seconds: it took.
        cache_bytes: size of the cache on disk.
        best_head_on_validation: the best accuracy of all settings on the reported split itself, as others publish it.
        class_names: in label order.
        labels, predictions: by video id.
        curves: what was recorded while it was fitted.
    """

    name: str
    path: Path
    probe: str
    encoder: str
    layers: tuple[str, ...]
    precision: str
    core: str | None
    split: str
    top1: Interval
    num_planned: int
    num_parameters: int
    num_core_parameters: int
    seconds: float
    cache_bytes: int
    best_head_on_validation: float
    class_names: tuple[str, ...]
    labels: Mapping[str, int]
    predictions: Mapping[str, int]
    curves: tuple[Curve, ...] = ()

    @property
    def num_videos(self) -> int:
        """Videos answered for."""
        return len(self.predictions)

    @cached_property
    def right(self) -> dict[str, bool]:
        """Whether each video got its own class."""
        return {video: self.labels[video] == predicted for video, predicted in self.predictions.items()}

    @cached_property
    def confusion_matrix(self) -> NDArray[np.int64]:
        """Videos by true class (rows) and predicted class (columns)."""
        counts_KK = np.zeros((len(self.class_names),) * 2, dtype=np.int64)
        for video, predicted in self.predictions.items():
            counts_KK[self.labels[video], predicted] += 1
        return counts_KK

    def worst_pairs(self, count: int = NUM_WORST_PAIRS) -> list[tuple[str, str, int, int]]:
        """Most frequent confusions: (true class, taken for, how often, videos of the true class)."""
        wrong_KK = self.confusion_matrix * (1 - np.eye(len(self.class_names), dtype=np.int64))
        order = np.argsort(-wrong_KK, axis=None, kind="stable")[:count]
        pairs = [divmod(int(flat), len(self.class_names)) for flat in order if wrong_KK.flat[flat]]
        of_class_K = self.confusion_matrix.sum(axis=1)
        return [
            (self.class_names[true], self.class_names[taken], int(wrong_KK[true, taken]), int(of_class_K[true]))
            for true, taken in pairs
        ]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Figures that were measured in order, such as the loss of every epoch.

    Attributes:
        name: of the line.
        x_name, y_name: what the axes are.
        points: (x, y) pairs.
    """

    name: str
    x_name: str
    y_name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All probes, and each of them against the baseline.

    Attributes:
        results: in the order they were named.
        baseline: the name of one of them.
        against: by name; the baseline has no entry.
    """

    results: tuple[ProbeResult, ...]
    baseline: str
    against: Mapping[str, Against]


@dataclass(frozen=True, kw_only=True)
class Against:
    """A probe against the baseline, over the videos that both have.

    Attributes:
        num_videos: how many those are.
        difference: of the accuracies, the probe's minus the baseline's.
        test: McNemar's; `num_only_first` is the probe's.
        classes: those that changed most, first.
    """

    num_videos: int
    difference: PairedBootstrap
    test: McNemar
    classes: tuple[ClassChange, ...]


@dataclass(frozen=True, kw_only=True)
class ClassChange:
    """One class in two probes: accuracies over the videos that both have."""

    name: str
    baseline: float
    other: float
    num_videos: int

    @property
    def change(self) -> float:
        """Positive where the other is better than the baseline."""
        return self.other - self.baseline


def _result(folder: Path, record: Mapping[str, Any]) -> ProbeResult:
    report, cache, features, videos = record["report"], record["cache"], record["features"], record["videos"]
    first = record["runs"][0]
    return ProbeResult(
        name=folder.resolve().name,
        path=folder,
        probe=report["probe"],
        encoder=cache["encoder"]["name"],
        layers=tuple(map(str, report["layers"])),
        precision=cache["precision"],
        core=features["core"],
        split=report["eval_split"],
        top1=Interval(
            mean=report["top1"],
            low=report["low"],
            high=report["high"],
            confidence=_CONFIDENCE,
            method=report.get("interval", "bootstrap"),  # as all were made at first
        ),
        num_planned=report["num_eval_planned"],
        num_parameters=report["num_parameters"],
        num_core_parameters=features["run_parameters"] or 0,
        seconds=report["seconds"],
        cache_bytes=cache["num_bytes"],
        best_head_on_validation=report["best_head_on_validation"],
        class_names=tuple(record["class_names"]),
        labels=dict(zip(videos["ids"], videos["labels"], strict=True)),
        predictions=dict(zip(videos["ids"], first["predicted"], strict=True)),
        curves=(*_epoch_curves(first["curves"]), *_setting_curves(first["heads"])),
    )


def _epoch_curves(curves: Mapping[str, list[float | None]]) -> list[Curve]:
    """What was recorded epoch by epoch for the chosen head."""
    return [
        Curve(
            name="chosen settings",
            x_name=EPOCHS,
            y_name=_CURVE_NAMES.get(name, name),
            points=tuple((epoch + 1, value) for epoch, value in enumerate(values) if value is not None),
        )
        for name, values in curves.items()
    ]


def _setting_curves(heads: list[Mapping[str, Any]]) -> list[Curve]:
    """Held-out accuracy by the first setting that was tried at several values, a line for each value of the others."""
    settings = [name for name in heads[0] if name not in _FIGURES_OF_HEADS]
    tried = [name for name in settings if len({head[name] for head in heads}) > 1]
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for head in heads:
        if tried and head["held_out_top1"] is not None:
            others = ", ".join(f"{name} {head[name]:g}" for name in tried[1:])
            lines[others or "all heads"].append((float(head[tried[0]]), head["held_out_top1"]))
    return [
        Curve(name=name, x_name=tried[0], y_name=_CURVE_NAMES["held_out_top1"], points=tuple(sorted(points)))
        for name, points in lines.items()
    ]


def _against(result: ProbeResult, baseline: ProbeResult) -> Against:
    shared = [video for video in baseline.predictions if video in result.predictions]
    if not shared or result.class_names != baseline.class_names:
        what = "no video in common" if not shared else "other classes"
        raise UsageError(f"{result.path} has {what} with {baseline.path}; compare probes of one dataset's split")
    for video in shared:
        if result.labels[video] != baseline.labels[video]:
            raise UsageError(
                f"video {video!r} is of class {result.class_names[result.labels[video]]} in {result.path} and of "
                f"{baseline.class_names[baseline.labels[video]]} in {baseline.path}; compare probes of one dataset"
            )
    ours, theirs = [result.right[video] for video in shared], [baseline.right[video] for video in shared]
    return Against(
        num_videos=len(shared),
        difference=paired_bootstrap(ours, theirs),
        test=mcnemar(ours, theirs),
        classes=_class_changes(result, baseline, shared),
    )


def _class_changes(result: ProbeResult, baseline: ProbeResult, shared: Sequence[str]) -> tuple[ClassChange, ...]:
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
