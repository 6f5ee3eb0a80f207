"""What is compared, read out of its folder: results of `vfz probe`, and runs of `vfz train-temporal` as evaluated.

`load_results` gives a probe's one result, of several seeds the first one's answers and the mean of the accuracies. Of a
run it gives one for every split and label set that it was evaluated on: with the clips it was trained on where there is
such an evaluation, else the newest; evaluations of weights that are no longer the run's count for nothing.

Shapes: K classes, or labels or targets.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfz.pipeline.errors import RunError, UsageError
from vfz.pipeline.files import sha256_file
from vfz.temporal.kept import KeptEvaluation, evaluations_of, read_evaluation
from vfz.temporal.lookup import PROBE_RESULTS, RUNS
from vfz.temporal.probes.record import read_record
from vfz.temporal.run_record import RunInfo, read_run
from vfz.temporal.statistics import Interval, balanced_accuracy, bootstrap_interval

NUM_WORST_PAIRS = 10
EPOCHS = "epoch"
"""The `x_name` of curves that have a point an epoch."""
CLASSIFY = "classify"
_CONFIDENCE = 0.95
_FIGURES_OF_HEADS = ("held_out_top1", "held_out_log_loss", "eval_top1")
_CURVE_NAMES = {"train_loss": "training loss", "held_out_top1": "top-1 on held-out videos"}


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
class Result:
    """One probe, or one evaluation of a run, as it is compared.

    Attributes:
        name: what it is called in tables; unique among those compared.
        path: the folder of its record.
        kind: linear, attentive, knn or readout of a probe; `run`.
        task, headline: which task, and its metric people quote.
        higher_is_better, is_share: of the headline; a share is shown in percent.
        encoder, layers, precision: of the cache.
        core: name of the temporal module's core; None where the probe is of tokens.
        size: of a run, as `--size` calls it.
        clips: how the clips differ from those that the run was trained on; empty where they do not.
        split: the reported split.
        label_set: of the cache, where it was not the labels of the extraction.
        figure: the headline over the videos that are in the cache, with its interval.
        balanced: mean accuracy over classes, with its interval; None where there are none.
        num_planned: videos of the split, whether they are in the cache or not.
        num_parameters: of the fitted probe, or of the whole run.
        num_core_parameters: of the temporal module whose outputs were probed; 0 where there is none.
        epoch_seconds: of a run, in the mean.
        seconds: a probe took.
        cache_bytes: size of the cache on disk.
        best_head_on_validation: of a probe, the best of all settings on the reported split itself, as others publish.
        class_names: in label order.
        labels, predictions: classes by video.
        outcomes: of other tasks the headline of every video; NaN where it cannot be said.
        values: of tasks of several numbers a video, what was answered and what is true, [K] each.
        curves: what was recorded while it was fitted.
    """

    name: str
    path: Path
    kind: str
    task: str = CLASSIFY
    headline: str = "top1"
    higher_is_better: bool = True
    is_share: bool = True
    encoder: str
    layers: tuple[str, ...]
    precision: str
    core: str | None
    size: str = ""
    clips: str = ""
    split: str
    label_set: str | None = None
    figure: Interval
    balanced: Interval | None = None
    num_planned: int
    num_parameters: int
    num_core_parameters: int = 0
    epoch_seconds: float | None = None
    seconds: float | None = None
    cache_bytes: int
    best_head_on_validation: float | None = None
    class_names: tuple[str, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    predictions: Mapping[str, int] = field(default_factory=dict)
    outcomes: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=dict)
    curves: tuple[Curve, ...] = ()

    @property
    def group(self) -> tuple[str, str, str | None]:
        """Task, split and label set: only results that have the same are compared."""
        return self.task, self.split, self.label_set

    @property
    def videos(self) -> Sequence[str]:
        """Those answered for."""
        return list(self.predictions or self.values or self.outcomes)

    @property
    def num_videos(self) -> int:
        """How many those are."""
        return len(self.videos)

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


def load_results(given: Path, *, runs: bool = True) -> list[Result]:
    """What a folder has to compare, under the folder's name.

    Args:
        given: its path, or its bare name where runs lie.
        runs: take runs of `vfz train-temporal`, too.

    Raises:
        UsageError: when there is nothing in it to compare. RunError: when it is damaged or of another version.
    """
    probed, trained = PROBE_RESULTS.look_up(given), RUNS.look_up(given)
    try:
        if PROBE_RESULTS.holds(probed):
            return [_of_probe(probed, read_record(probed))]
        if RUNS.holds(trained):
            if not runs:
                raise UsageError(f"{trained} is a run of vfz train-temporal; vfz compare takes those")
            return list(_of_run(read_run(trained)))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        again = "probe again with --force" if PROBE_RESULTS.holds(probed) else "evaluate it again"
        raise RunError(f"{given} lacks something or has it wrong ({type(error).__name__} {error}); {again}") from None
    what = "no result of vfz probe" if not runs else "neither a run of vfz train-temporal nor a result of vfz probe"
    raise UsageError(f"{given} is {what}")


def _of_probe(folder: Path, record: Mapping[str, Any]) -> Result:
    report, cache, features, videos = record["report"], record["cache"], record["features"], record["videos"]
    first, task = record["runs"][0], report.get("task", CLASSIFY)
    common: dict[str, Any] = {
        "name": folder.resolve().name,
        "path": folder,
        "kind": report["probe"],
        "task": task,
        "encoder": cache["encoder"]["name"],
        "layers": tuple(map(str, report["layers"])),
        "precision": cache["precision"],
        "core": features["core"],
        "split": report["eval_split"],
        "label_set": record["settings"].get("labels"),
        "num_planned": report["num_eval_planned"],
        "num_parameters": report["num_parameters"],
        "num_core_parameters": features["run_parameters"] or 0,
        "seconds": report["seconds"],
        "cache_bytes": cache["num_bytes"],
        "best_head_on_validation": report["best_head_on_validation"],
    }
    if task != CLASSIFY:
        headline, kind = report["headline"], _task(task)
        common |= {"headline": headline, "higher_is_better": kind.higher_is_better}
        common |= {"is_share": headline in kind.shares}
        if "answers" in first:
            pairs = zip(_numbers(first["answers"]), _numbers(videos["labels"]), strict=True)
            return Result(
                **common,
                figure=_interval_of(report["value"], report["low"], report["high"], method=report["interval"]),
                class_names=tuple(record["class_names"]),
                values=dict(zip(videos["ids"], pairs, strict=True)),
            )
        return _of_dense_probe(common, report["value"], videos["ids"], first)
    labels = dict(zip(videos["ids"], videos["labels"], strict=True))
    predictions = dict(zip(videos["ids"], first["predicted"], strict=True))
    return Result(
        **common,
        figure=_interval_of(
            report["top1"],
            report["low"],
            report["high"],
            method=report.get("interval", "bootstrap"),  # as all once were
        ),
        balanced=balanced_accuracy([labels[video] == predictions[video] for video in labels], list(labels.values())),
        class_names=tuple(record["class_names"]),
        labels=labels,
        predictions=predictions,
        curves=(*_epoch_curves(first["curves"]), *_setting_curves(first["heads"])),
    )


def _of_dense_probe(common: Mapping[str, Any], value: float, ids: Sequence[str], first: Mapping[str, Any]) -> Result:
    outcomes = [math.nan if outcome is None else outcome for outcome in first["headline_of_videos"]]
    return Result(**common, figure=_around(value, outcomes), outcomes=dict(zip(ids, outcomes, strict=True)))


def _of_run(run: RunInfo) -> Iterator[Result]:
    if not run.finished:
        raise UsageError(f"{run.path} is not trained to its end; vfz train-temporal --resume goes on with it")
    best: dict[tuple[str, str | None], tuple[Path, KeptEvaluation]] = {}
    weights = sha256_file(run.path / "model.safetensors")
    for path in evaluations_of(run.path):  # newest first
        kept = read_evaluation(path, arrays=False)
        if kept.identity["weights"] != weights:
            continue
        key = kept.identity["split"], kept.identity["labels"]
        if key not in best or (_clips_of(run, best[key][1]) and not _clips_of(run, kept)):
            best[key] = path, kept
    if not best:
        raise UsageError(f"{run.path} keeps no evaluation of its weights; vfz evaluate {run.path} makes one")
    for path, kept in best.values():
        yield _of_evaluation(run, kept if kept.task == CLASSIFY else read_evaluation(path))


def _of_evaluation(run: RunInfo, kept: KeptEvaluation) -> Result:
    figures, result, source = kept.figures, run.values["result"], kept.source
    several = len(kept.identity["caches"]) > 1
    names = [cache["name"] for cache in kept.identity["caches"]]
    videos = [f"{names[cache]}/{id_}" if several else id_ for cache, id_ in kept.videos.keys]
    columns = {name: dict(zip(videos, values, strict=True)) for name, values in kept.videos.values.items()}
    seconds = result["epoch_seconds"]
    common: dict[str, Any] = {
        "name": run.path.resolve().name,
        "path": run.path,
        "kind": "run",
        "task": kept.task,
        "headline": figures["headline"],
        "higher_is_better": figures["higher_is_better"],
        "is_share": figures["is_share"],
        "encoder": source["encoder"],
        "layers": tuple(source["layers"]),
        "precision": source["precision"],
        "core": kept.core,
        "size": str(run.values.get("size", "")),
        "clips": _clips_of(run, kept),
        "split": kept.identity["split"],
        "label_set": kept.identity["labels"],
        "num_planned": figures["num_eval_videos"] + figures["num_eval_missing"],
        "num_parameters": result["num_parameters"],
        "epoch_seconds": sum(seconds) / len(seconds) if seconds else None,
        "cache_bytes": source["num_bytes"],
        "class_names": kept.class_names,
        "curves": tuple(_curves_of_run(run.path, figures["headline"])),
    }
    value = math.nan if figures[figures["headline"]] is None else figures[figures["headline"]]
    if kept.task == CLASSIFY:
        return Result(
            **common,
            figure=_interval(figures, "top1"),
            balanced=_interval(figures, "balanced_accuracy"),
            labels={video: int(label) for video, label in columns["label"].items()},
            predictions={video: int(label) for video, label in columns["predicted"].items()},
        )
    if "answers" in columns:
        answers_VK, truth_VK = kept.videos.values["answers"], kept.videos.values["targets"]
        pairs = dict(zip(videos, zip(answers_VK, truth_VK, strict=True), strict=True))
        return Result(**common, figure=_interval(figures, figures["headline"]), values=pairs)
    outcomes = {video: float(number) for video, number in columns[figures["headline"]].items()}
    return Result(**common, figure=_around(value, list(outcomes.values())), outcomes=outcomes)


def _clips_of(run: RunInfo, kept: KeptEvaluation) -> str:
    """How the clips of an evaluation differ from those the run evaluates by itself; empty where they do not."""
    clips, own, options = kept.identity["clips"], run.values["clips"], run.values["options"]
    differing = {
        f"{clips['num_frames']} frames": clips["num_frames"] != own["num_frames"],
        f"stride {clips['stride']}": clips["stride"] != own["stride"] and clips["step_seconds"] is None,
        f"{clips['step_seconds']} s apart": clips["step_seconds"] != own["step_seconds"],
        f"{kept.identity['segments']} segments": kept.identity["segments"] != options["segments"],
        f"views {' '.join(map(str, kept.identity['views']))}": kept.identity["views"] != options["views"],
    }
    return ", ".join(name for name, differs in differing.items() if differs)


def _interval(figures: Mapping[str, Any], name: str) -> Interval:
    ends = figures[f"{name}_low"], figures[f"{name}_high"]
    return _interval_of(figures[name], *ends, method=str(figures[f"{name}_interval"]))


def _interval_of(
    value: float | None, low: float | None = None, high: float | None = None, *, method: str = "none"
) -> Interval:
    """A figure with an interval, or without one; what JSON has no number for is NaN."""
    value, low, high = (math.nan if number is None else number for number in (value, low, high))
    return Interval(mean=value, low=low, high=high, confidence=_CONFIDENCE, method=method)


def _numbers(rows: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    return np.array([[math.nan if number is None else number for number in row] for row in rows], dtype=np.float64)


def _around(value: float, outcomes: Sequence[float]) -> Interval:
    """The figure of all videos together with the bootstrap interval of the mean over videos."""
    known = [outcome for outcome in outcomes if math.isfinite(outcome)]
    if not known:
        return _interval_of(value)
    around = bootstrap_interval(known)
    return Interval(mean=value, low=around.low, high=around.high, confidence=around.confidence)


def _task(name: str) -> Any:
    from vfz.temporal.tasks import TASKS  # and with it torch

    return TASKS[name]


def _curves_of_run(path: Path, headline: str) -> Iterator[Curve]:
    from vfz.temporal.training.logs import read_metrics

    if not (path / "metrics.jsonl").exists():
        return
    for kind, name, shown in (("epoch", "train_loss", "training loss"), ("eval", headline, headline)):
        lines = read_metrics(path, kind)
        points = tuple((float(line["epoch"]), line[name]) for line in lines if line.get(name) is not None)
        yield Curve(name="run", x_name=EPOCHS, y_name=shown, points=points)


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
