"""`vfz probe`: features of a cache, or of a temporal module over it, into probes, into reports.

One configuration is one result folder with its `probe.json`. What was probed before with the same settings, cache,
labels and run is not probed again. `--sweep` (a probe per layer) and several `--shots` are several configurations.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.devices import choose_device
from vfz.pipeline.errors import RunError, UsageError
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.temporal.data.features import Features
from vfz.temporal.data.pooling import check_pool
from vfz.temporal.data.videos import label_kind, task_of_labels
from vfz.temporal.lookup import find_run
from vfz.temporal.probes.fitters import PROBES, ProbeSpec
from vfz.temporal.probes.heads import CLASSES, HeadGrid, answer
from vfz.temporal.probes.jobs.dense import DenseReport, probe_dense
from vfz.temporal.probes.jobs.values import ValuesReport, probe_values
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.record import ProbeReport, StoredResult, report_of
from vfz.temporal.probes.saved import save_head
from vfz.temporal.probes.selection import check_classes, few_videos, fit_and_choose
from vfz.temporal.probes.sources import Sources
from vfz.temporal.run_record import cache_for
from vfz.temporal.statistics import share_interval
from vfz.temporal.tasks import TASK_OF_LABELS


def probe(options: ProbeOptions, *, progress: Progress | None = None) -> ProbeReport:
    """Fit a probe and report its accuracy on a split that chose nothing.

    Raises:
        UsageError: options that do not fit the cache, or that ask for several probes. CacheMismatchError: the temporal
        run was trained on tokens of another recipe. RunError: features that are not finite, or another result of that
        name.
    """
    if options.sweep or len(options.shots or ()) > 1 or options.task != "classify":
        raise UsageError(
            f"--sweep, several --shots and --task {options.task} are for probe_all, which returns a report of each"
        )
    if options.labels is not None:
        cache = FeatureCache(cache_for(options.cache, options.temporal), labels=options.labels)
        if (kind := label_kind(cache)) != CLASSES:
            raise UsageError(f"label set {options.labels!r} is of kind {kind}; probe_all has reports of it, too")
    report = probe_all(options, progress=progress)[0]
    assert isinstance(report, ProbeReport)  # noqa: S101 - of classes
    return report


def probe_all(
    options: ProbeOptions, *, progress: Progress | None = None
) -> tuple[ProbeReport, ...] | tuple[ValuesReport, ...] | tuple[DenseReport, ...]:
    """As `probe`, for every task, layer of a sweep and number of shots; each split of a layer is read once."""
    progress = progress or SilentProgress()
    device = choose_device(options.device)
    if options.temporal is not None:
        options = dataclasses.replace(options, temporal=find_run(options.temporal))
    cache = FeatureCache(cache_for(options.cache, options.temporal), labels=options.labels)
    options = dataclasses.replace(options, task=task_of_labels(options.task, cache))
    if (labels := cache.label_set) and options.task == TASK_OF_LABELS[labels.kind]:
        progress.note(f"label set {labels.name!r} is of kind {labels.kind}: task {options.task}")
    opened: dict[tuple[str, ...] | None, Sources] = {}
    reports: list[Any] = []
    for one in configurations(options, tuple(cache.layers)):
        if one.layers not in opened:
            opened.clear()  # one layer's features at a time
            opened[one.layers] = Sources(one, cache, device=device, progress=progress)
        if one.task == TASK_OF_LABELS[CLASSES]:
            reports.append(_Job(one, opened[one.layers], progress).report())
        elif one.task in TASK_OF_LABELS.values():
            reports.append(probe_values(one, opened[one.layers], progress=progress))
        else:
            reports.append(probe_dense(one, opened[one.layers], progress=progress))
    return tuple(reports)


def configurations(options: ProbeOptions, cached_layers: Sequence[str]) -> list[ProbeOptions]:
    """One set of options for each probe that is asked for."""
    layers: list[tuple[str, ...] | None] = [options.layers]
    if options.sweep:
        layers = [(layer,) for layer in options.layers or cached_layers]
    shots: Sequence[str | None] = options.shots or (None,)
    several = len(layers) * len(shots) > 1
    found = []
    for some in layers:
        for few in shots:
            suffix = (f"-layer{some[0]}" if options.sweep and some else "") + (f"-{few}-shots" if few else "")
            name = f"{options.name}{suffix.replace('%', 'pc')}" if options.name and several else options.name
            found.append(
                dataclasses.replace(options, layers=some, sweep=False, shots=(few,) if few else None, name=name)
            )
    return found


class _Job:
    """One configuration."""

    def __init__(self, options: ProbeOptions, sources: Sources, progress: Progress) -> None:
        self._options, self._sources, self._progress = options, sources, progress
        self._cache = sources.cache
        self._kind = PROBES[options.probe]
        default = "last" if options.temporal and self._kind.sees_vectors else self._kind.pools[0]
        self._pool = options.pool or default
        check_pool(self._pool, self._kind.pools)
        self._heads: list[HeadGrid] = []  # the chosen one of every fit
        self._stored = StoredResult.of(options, sources, pool=self._pool, kind=options.probe)

    def report(self) -> ProbeReport:
        """The stored report, or that of a new fit."""
        folder, record = self._stored.folder, self._stored.record()
        if record is not None:
            self._progress.note(f"{folder} has this result already; --force probes again")
            return report_of(record, folder=folder, reused=True)
        started = time.perf_counter()
        self._sources.tell_unlabelled(self._progress)
        train = self._sources.held(self._options.train_split, self._kind, self._pool)
        evaluated = self._sources.held(self._sources.eval_split, self._kind, self._pool)
        runs = [self._fit(train, evaluated, self._options.seed + turn) for turn in range(self._options.seeds)]
        report = self._summary(runs, evaluated, seconds=time.perf_counter() - started)
        head = save_head(folder, self._heads[0])
        self._stored.write(self._content(report, runs, evaluated) | {"head": head})
        return report

    def _fit(self, train: Features, evaluated: Features, seed: int) -> dict[str, Any]:
        started = time.perf_counter()
        options, num_classes = self._options, len(self._cache.class_names)
        if options.shots and train.labels_V is not None:
            check_classes(train.labels_V, num_classes)
            train = train.subset(few_videos(train.labels_V, options.shots[0], seed=seed))
        labels_V, eval_labels_V = _labels(train), _labels(evaluated)
        spec = ProbeSpec.of(options, pool=self._pool, seed=seed, progress=self._progress)
        choice = fit_and_choose(
            lambda num_videos: self._kind.make(spec, train, num_classes, num_videos),
            train,
            labels_V,
            num_classes=num_classes,
            held_out=options.held_out,
            folds=options.folds,
            seed=seed,
            batch_size=options.batch_size,
            progress=self._progress,
        )
        self._heads.append(choice.grid.only(choice.best))
        everything = torch.arange(len(evaluated))
        answers = answer(choice.grid, evaluated, everything, eval_labels_V, batch_size=options.batch_size)
        top1_H = answers.top1
        return {
            "seed": seed,
            "num_train": len(train),
            "num_fitted": choice.num_fitted,
            "num_held_out": choice.num_held_out,
            "num_parameters": choice.grid.num_parameters,
            "seconds": time.perf_counter() - started,
            "chosen": choice.chosen,
            "heads": [head | {"eval_top1": top1} for head, top1 in zip(choice.heads, top1_H, strict=True)],
            "best_head": max(range(len(top1_H)), key=lambda head: top1_H[head]),
            "curves": choice.curves.of_head(choice.best),
            "top1": top1_H[choice.best],
            "top5": answers.top(5)[choice.best],
            "predicted": answers.predicted_HV[choice.best].tolist(),
            "confidence": [round(value, 6) for value in answers.confidence_HV[choice.best].tolist()],
            "label_rank": answers.label_rank_HV[choice.best].tolist(),
        }

    def _summary(self, runs: Sequence[dict[str, Any]], evaluated: Features, *, seconds: float) -> ProbeReport:
        options, sources = self._options, self._sources
        right_V = np.mean([np.array(run["label_rank"]) == 0 for run in runs], axis=0)
        interval = share_interval(right_V)
        labels_V = _labels(evaluated).numpy()
        tops = [run["top1"] for run in runs]
        num_clips, num_planned = len(evaluated), sources.num_planned(sources.eval_split)
        return ProbeReport(
            result=str(self._stored.folder),
            probe=options.probe,
            features=str(options.temporal) if options.temporal else "tokens",
            layers=sources.layers,
            pool=self._pool,
            task="classify",
            top1=interval.mean,
            top5=statistics.fmean(run["top5"] for run in runs),
            low=interval.low,
            high=interval.high,
            standard_error=(interval.mean * (1 - interval.mean) / num_clips) ** 0.5,
            deviation=statistics.stdev(tops) if len(tops) > 1 else None,
            num_seeds=len(runs),
            num_eval_clips=num_clips,
            num_eval_missing=num_planned - num_clips,
            num_eval_planned=num_planned,
            top1_of_planned=interval.mean * num_clips / num_planned,
            eval_split=sources.eval_split,
            best_head_on_validation=statistics.fmean(run["heads"][run["best_head"]]["eval_top1"] for run in runs),
            chance=1 / sources.num_present_classes(),
            majority=float(np.bincount(labels_V).max() / len(labels_V)),
            interval=interval.method,
            shots=options.shots[0] if options.shots else None,
            num_train=runs[0]["num_train"],
            chosen=runs[0]["chosen"],
            num_parameters=runs[0]["num_parameters"],
            seconds=seconds,
        )

    def _content(self, report: ProbeReport, runs: Sequence[dict[str, Any]], evaluated: Features) -> dict[str, Any]:
        return {
            "vfz": version("vfz"),
            "cache": self._sources.describe_cache(),
            "features": self._sources.describe() | {"pool": self._pool},
            "class_names": list(self._cache.class_names),
            "report": dataclasses.asdict(report),
            "videos": {"ids": list(evaluated.ids), "labels": _labels(evaluated).tolist()},
            "missing": [dataclasses.asdict(video) for video in self._sources.missing(self._sources.eval_split)],
            "runs": list(runs),
        }


def _labels(features: Features) -> torch.Tensor:
    if features.labels_V is None:
        raise RunError("features without labels cannot be probed; use videos of a labelled split")
    return features.labels_V
