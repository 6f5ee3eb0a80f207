"""From `probe.json` to what is compared: of several seeds the first one's answers, and the mean of the accuracies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vfz.pipeline.errors import RunError, UsageError
from vfz.temporal.comparison.compare import EPOCHS, Curve, ProbeResult
from vfz.temporal.probes.record import read_record
from vfz.temporal.statistics import Interval

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
        top1=Interval(mean=report["top1"], low=report["low"], high=report["high"], confidence=_CONFIDENCE),
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
