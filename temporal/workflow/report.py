"""What `vfz run` tells: stages before and after they are run, and figures of a paper beside those measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vfz.temporal.workflow.file import Published, Workflow, run_folder, run_of

State = Literal["done", "continue", "to do"]


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """One stage before anything is run.

    Attributes:
        stage: the command and what it makes.
        state: `done`, `continue` or `to do`.
        detail: where the result lies, or will lie.
    """

    stage: str
    state: State
    detail: str


@dataclass(frozen=True, kw_only=True)
class FinishedStage:
    """One stage after it was run, or left out.

    Attributes:
        stage: the command and what it makes.
        result: `made`, `continued` or `was there`.
        metric: the one that people quote, and its value; None where the stage has none.
        low, high: its interval of 95%; None where it has none.
        seconds: that this call took for it.
        where: the result lies.
    """

    stage: str
    result: str
    metric: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    seconds: float
    where: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What was published of one training, and what was measured.

    Attributes:
        training: its name.
        published: what a paper reports of it.
        measured: the same metric of the run, or of the last probe of it that has it; None where none has.
    """

    training: str
    published: Published
    measured: float | None


@dataclass(frozen=True, kw_only=True)
class WorkflowReport:
    """What a workflow came to.

    Attributes:
        workflow: its name.
        plan: what was done and to do at the start.
        stages: how each ended; empty after a dry run.
        cache: the extracted cache; None after a dry run that found none.
        results: the records of all stages but the extraction, by stage; empty after a dry run.
        published: what a paper reports of it.
        measured: the metric it reports, of the last run that has it; None where none has.
        figures: what a paper reports of single trainings, and what was measured.
    """

    workflow: str
    plan: tuple[PlannedStage, ...]
    stages: tuple[FinishedStage, ...]
    cache: str | None
    results: dict[str, dict[str, Any]]
    published: Published | None
    measured: float | None
    figures: tuple[Figure, ...]


def headline_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The metric that people quote of a stage's record, its value and interval, as far as it has them."""
    metrics = {**record, **record.get("metrics", {})}
    name = metrics.get("headline") or ("top1" if "top1" in metrics else None)
    if name is None or not isinstance(metrics.get(name), int | float):
        return {}
    low, high = metrics.get(f"{name}_low", metrics.get("low")), metrics.get(f"{name}_high", metrics.get("high"))
    return {"metric": name, "value": metrics[name], "low": low, "high": high}


def figures_of(workflow: Workflow, results: Mapping[str, dict[str, Any]]) -> Iterator[Figure]:
    """What was published of single trainings, beside what was measured."""
    for training in workflow.of("train-temporal"):
        folder = run_folder(training.options)
        if folder not in workflow.figures:
            continue
        published = workflow.figures[folder]
        titles = [training.title, *(stage.title for stage in workflow.of("probe") if run_of(stage) == folder)]
        of_it = {title: results[title] for title in titles if title in results}
        yield Figure(training=str(training.options.name), published=published, measured=measured(published, of_it))


def measured(published: Published | None, results: Mapping[str, dict[str, Any]]) -> float | None:
    """The published metric as measured: trainings carry their metrics by name."""
    if published is None:
        return None
    found = [
        value
        for result in results.values()
        if isinstance(value := {**result, **result.get("metrics", {})}.get(published.metric), float)
    ]
    return found[-1] if found else None
