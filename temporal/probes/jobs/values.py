"""Probes of several labels a video, and of numbers: `vfz probe --labels NAME` with a label set of that kind.

The same linear, attentive and kNN probes as of classes: a label has a logistic regression, a sigmoid or a share of
votes of its own, a number a ridge regression, a squared error or a mean of votes. The setting with the best mAP or R2
on held-out training videos is chosen, and the reported split is asked once. Its figure comes with the bootstrap's
interval over videos, with that of every label, and with what is reached by always giving the training videos' mean.

Shapes: V videos, K labels or targets, H heads.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vfz.pipeline.progress import Progress
from vfz.temporal.data.features import Features
from vfz.temporal.data.pooling import check_pool
from vfz.temporal.kept import finite
from vfz.temporal.label_figures import LabelFigures
from vfz.temporal.probes.fitters import PROBES, ProbeSpec
from vfz.temporal.probes.heads import HeadGrid, value_answers, value_headlines
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.record import StoredResult
from vfz.temporal.probes.saved import save_head
from vfz.temporal.probes.selection import few_of_all, fit_and_choose_values
from vfz.temporal.probes.sources import Sources
from vfz.temporal.tasks import TASKS, build_task
from vfz.temporal.tasks.values import ValuesTask, constant_answers

KEPT_DIGITS = 9
"""Of answers in `probe.json`: those of float32."""


@dataclass(frozen=True, kw_only=True)
class ValuesReport:
    """What a probe found. Figures are of the reported split, which chose nothing unless said.

    Attributes:
        result: the folder with `probe.json`.
        probe: linear, attentive or knn.
        task: `multilabel` or `regression`.
        labels: name of the label set.
        features: what was probed: `tokens` or the temporal run.
        layers: of the encoder.
        pool: which frames were seen.
        headline, value: the metric people quote, and its mean over seeds.
        low, high: its 95% interval over videos, of the first seed; None where it cannot be said.
        interval: how that was made.
        deviation: of `value` over seeds; None for one seed.
        num_seeds: fits, each with its own seed.
        baseline: the headline metric of always giving the training videos' mean of each label.
        metrics: all of them, of the first seed.
        names: of the labels or targets.
        of_labels: figures of each of them, of the first seed, by figure; None where one cannot be said.
        baseline_of_labels: the same of the baseline.
        num_eval_clips, num_eval_missing, num_eval_planned: present, missing and all videos of the reported split.
        best_head_on_validation: the best headline figure of all settings on the reported split itself.
        shots: of the training split, as asked; None for all of it.
        num_train: training videos, held-out ones among them.
        chosen: settings chosen on the held-out part, of the first seed.
        num_parameters: of the probe.
        seconds: that it took.
        reused: whether this is a stored result.
    """

    result: str
    probe: str
    task: str
    labels: str
    features: str
    layers: tuple[str, ...]
    pool: str
    headline: str
    value: float
    low: float | None
    high: float | None
    interval: str
    deviation: float | None
    num_seeds: int
    baseline: float
    metrics: dict[str, float]
    names: tuple[str, ...]
    of_labels: dict[str, list[float | None]]
    baseline_of_labels: dict[str, list[float | None]]
    num_eval_clips: int
    num_eval_missing: int
    num_eval_planned: int
    eval_split: str
    best_head_on_validation: float
    shots: str | None
    num_train: int
    chosen: dict[str, Any]
    num_parameters: int
    seconds: float
    reused: bool = False


def probe_values(options: ProbeOptions, sources: Sources, *, progress: Progress) -> ValuesReport:
    """Fit a probe of the cache's label set, choose its settings on held-out videos, and report it.

    Raises:
        UsageError: options that do not fit the cache or the labels. RunError: features that are not finite, or another
        result of that name.
    """
    job = _ValuesJob(options, sources, progress)
    record = job.stored.record()
    if record is not None:
        progress.note(f"{job.stored.folder} has this result already; --force probes again")
        values = record["report"] | {"result": str(job.stored.folder), "reused": True}
        return ValuesReport(**(values | {"layers": tuple(values["layers"]), "names": tuple(values["names"])}))
    return job.run()


class _ValuesJob:
    """One configuration, any number of seeds."""

    def __init__(self, options: ProbeOptions, sources: Sources, progress: Progress) -> None:
        assert sources.cache.label_set is not None  # noqa: S101 - the task says so
        self._options, self._sources, self._progress = options, sources, progress
        self._labels, self._probe = sources.cache.label_set, PROBES[options.probe]
        self._task: type[ValuesTask] = TASKS[options.task]  # type: ignore[assignment]
        default = "last" if options.temporal and self._probe.sees_vectors else self._probe.pools[0]
        self._pool = options.pool or default
        check_pool(self._pool, self._probe.pools)
        self._heads: list[HeadGrid] = []
        self.stored = StoredResult.of(options, sources, pool=self._pool, kind=options.probe)

    def run(self) -> ValuesReport:
        """Fits with every seed, and writes the result."""
        started, options, sources = time.perf_counter(), self._options, self._sources
        sources.tell_unlabelled(self._progress)
        train = sources.held(options.train_split, self._probe, self._pool)
        evaluated = sources.held(sources.eval_split, self._probe, self._pool)
        truth_VK = self._labels.targets_of(evaluated.ids)
        runs = [self._fit(train, evaluated, truth_VK, options.seed + turn) for turn in range(options.seeds)]
        report = self._report(runs, truth_VK, seconds=time.perf_counter() - started)
        self.stored.write(
            {
                "vfz": version("vfz"),
                "cache": sources.describe_cache(),
                "features": sources.describe() | {"pool": self._pool},
                "class_names": list(self._labels.names),
                "report": dataclasses.asdict(report),
                "videos": {"ids": list(evaluated.ids), "labels": truth_VK.tolist()},
                "missing": [dataclasses.asdict(video) for video in sources.missing(sources.eval_split)],
                "runs": runs,
                "head": save_head(self.stored.folder, self._heads[0]),
            }
        )
        return report

    def _fit(self, train: Features, evaluated: Features, truth_VK: NDArray[np.float32], seed: int) -> dict[str, Any]:
        started, options, kind = time.perf_counter(), self._options, self._labels.kind
        if options.shots:
            train = train.subset(few_of_all(len(train), options.shots[0], seed=seed))
        values_VK = self._labels.targets_of(train.ids)
        spec = ProbeSpec.of(options, pool=self._pool, seed=seed, progress=self._progress, label_kind=kind)
        choice = fit_and_choose_values(
            lambda num_videos: self._probe.make(spec, train, len(self._labels.names), num_videos),
            train,
            torch.from_numpy(values_VK),
            label_kind=kind,
            held_out=options.held_out,
            folds=options.folds,
            seed=seed,
            batch_size=options.batch_size,
        )
        self._heads.append(choice.grid.only(choice.best))
        every = torch.arange(len(evaluated))
        answers_HVK = value_answers(choice.grid, evaluated, every, batch_size=options.batch_size)
        figures_H = value_headlines(kind, answers_HVK, torch.from_numpy(truth_VK))
        kept_VK = [[float(f"{x:.{KEPT_DIGITS}g}") for x in row] for row in answers_HVK[choice.best].tolist()]
        metrics = self._task.figures_of(np.array(kept_VK), truth_VK.astype(np.float64))
        headline = self._task.headline
        heads = [head | {f"eval_{headline}": figure} for head, figure in zip(choice.heads, figures_H, strict=True)]
        return {
            "seed": seed,
            "num_train": len(train),
            "num_fitted": choice.num_fitted,
            "num_held_out": choice.num_held_out,
            "num_parameters": choice.grid.num_parameters,
            "seconds": time.perf_counter() - started,
            "chosen": choice.chosen,
            "heads": heads,
            "best_head": int(np.argmax(np.nan_to_num(figures_H, nan=-np.inf))),
            "curves": choice.curves.of_head(choice.best),
            "metrics": metrics,
            "constant": constant_answers(values_VK).tolist(),
            "answers": kept_VK,
        }

    def _report(self, runs: Sequence[Mapping[str, Any]], truth: NDArray[np.float32], *, seconds: float) -> ValuesReport:
        options, sources, headline, first = self._options, self._sources, self._task.headline, runs[0]
        truth_VK = truth.astype(np.float64)
        answers_VK = np.array(first["answers"])
        task = build_task(options.task, num_classes=len(self._labels.names), target_means=first["constant"])
        assert isinstance(task, ValuesTask)  # noqa: S101 - for type checkers
        figures = LabelFigures(names=self._labels.names, task=task, answers_VK=answers_VK, values_VK=truth_VK)
        values = [run["metrics"][headline] for run in runs]
        bests = [run["heads"][run["best_head"]][f"eval_{headline}"] for run in runs]
        interval = figures.interval
        num_videos, num_planned = len(truth_VK), sources.num_planned(sources.eval_split)
        return ValuesReport(
            result=str(self.stored.folder),
            probe=options.probe,
            task=options.task,
            labels=self._labels.name,
            features=str(options.temporal) if options.temporal else "tokens",
            layers=sources.layers,
            pool=self._pool,
            headline=headline,
            value=statistics.fmean(values),
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            interval=interval.method if interval else "none",
            deviation=statistics.stdev(values) if len(values) > 1 else None,
            num_seeds=len(runs),
            baseline=figures.baseline,
            metrics=first["metrics"],
            names=self._labels.names,
            of_labels={name: finite(of_K.tolist()) for name, of_K in figures.of_labels.items()},
            baseline_of_labels={name: finite(of_K.tolist()) for name, of_K in figures.baseline_of_labels.items()},
            num_eval_clips=num_videos,
            num_eval_missing=num_planned - num_videos,
            num_eval_planned=num_planned,
            eval_split=sources.eval_split,
            best_head_on_validation=statistics.fmean(bests),
            shots=options.shots[0] if options.shots else None,
            num_train=first["num_train"],
            chosen=first["chosen"],
            num_parameters=first["num_parameters"],
            seconds=seconds,
        )
