"""`vfz run WORKFLOW`: the stages of a workflow in order, those that are done left out.

    extract          done when the same options made a cache that is there, whole and of the same fingerprint
    train-temporal   done when its run folder holds a finished run of the same options on the same videos; an
                     unfinished one is continued
    probe            always asked for: a probe with the same settings on the same videos gives its stored result

What the extraction made is kept in `<out>/<workflow>.workflow.json`, so that a done one needs neither videos nor
encoder. New videos under the root are therefore not seen; `--again` looks for them. Nothing that is there is ever
overwritten: a run folder of other options, or one trained on videos that have changed since, is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheError, RunError, UnknownNameError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.files import canonical_json, make_folder, sha256_hex, write_file_atomic
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.temporal.mixers import MIXERS
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.run import probe
from vfz.temporal.run_record import read_run
from vfz.temporal.training.experiment import made_otherwise
from vfz.temporal.training.options import TrainOptions
from vfz.temporal.training.train import train_temporal
from vfz.temporal.workflow import Published, RunOptions, Workflow, read_workflow, run_folder

State = Literal["done", "continue", "to do"]
FORMAT_VERSION = 1
_ONLY_HOW = (
    "device",
    "decode_workers",
    "dask",
    "rank",
    "world_size",
    "force",
    "dry_run",
    "video_timeout",
    "max_failures",
)
"""Options of an extraction that say how it is done and not what comes out."""


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
        cache: the extracted cache; None after a dry run that found none.
        results: every run's and probe's record, by stage; empty after a dry run.
        published: what a paper reports of it.
        measured: the metric it reports, of the last run that has it; None where none has.
        figures: what a paper reports of single trainings, and what was measured.
    """

    workflow: str
    plan: tuple[PlannedStage, ...]
    cache: str | None
    results: dict[str, dict[str, Any]]
    published: Published | None
    measured: float | None
    figures: tuple[Figure, ...]


def run_workflow(options: RunOptions, *, progress: Progress | None = None) -> WorkflowReport:
    """Run what is not done yet of a workflow, or with `dry_run` only tell.

    Raises:
        UsageError: a mistake in the workflow. RunError: a run folder that is there was made otherwise. Otherwise as
        `extract`, `train_temporal` and `probe`, whose finished work is kept.
    """
    progress = progress or SilentProgress()
    workflow = read_workflow(options.workflow)
    _check_mixers(workflow)
    if options.only:
        workflow = workflow.only(options.only)
    cache = None if options.again else _extracted(workflow)
    plan = tuple(_plan(workflow, cache))
    results: dict[str, dict[str, Any]] = {}
    if not options.dry_run:
        cache = cache or _extract(workflow, progress)
        for training in _on(cache, workflow.trainings):
            progress.note(_training_stage(training))
            results[_training_stage(training)] = _train(training, cache, progress)
        for asked in _on(cache, workflow.probes):
            progress.note(_probe_stage(asked))
            report = probe(dataclasses.replace(asked, force=options.again or asked.force), progress=progress)
            results[_probe_stage(asked)] = dataclasses.asdict(report)
    return WorkflowReport(
        workflow=workflow.name,
        plan=plan,
        cache=str(cache.path) if cache else None,
        results=results,
        published=workflow.published,
        measured=_measured(workflow.published, results),
        figures=tuple(_figures(workflow, results)),
    )


def _check_mixers(workflow: Workflow) -> None:
    """Refuse a mixer that there is none of before the first of several trainings, not after it.

    Raises:
        UnknownNameError: with the nearest names.
    """
    for training in workflow.trainings:
        if training.mixer not in MIXERS:
            raise UnknownNameError(f"mixer of {training.name} in {workflow.path}", training.mixer, MIXERS.names())


def _plan(workflow: Workflow, cache: FeatureCache | None) -> Iterator[PlannedStage]:
    done: State = "done" if cache else "to do"
    yield PlannedStage(
        stage=f"extract {workflow.extract.dataset}",
        state=done,
        detail=str(cache.path if cache else workflow.extract.out),
    )
    for training in workflow.trainings:
        state = _state(training, cache) if cache else "to do"
        yield PlannedStage(stage=_training_stage(training), state=state, detail=str(run_folder(training)))
    for asked in workflow.probes:
        yield PlannedStage(
            stage=_probe_stage(asked), state="to do", detail="a stored result is used where there is one"
        )


def _state(training: TrainOptions, cache: FeatureCache) -> State:
    """Whether a run is done.

    Raises:
        RunError: when its folder holds a run of other options, or on other videos.
    """
    folder = run_folder(training)
    if not (folder / "run.json").exists():
        return "to do"
    run = read_run(folder)
    differing = made_otherwise(run.values, training, [cache])
    if differing:
        raise RunError(
            f"{folder} is there and is not the workflow's, for these differ: {', '.join(differing)}; give the run "
            "another name in the workflow, or remove the folder"
        )
    return "done" if run.finished else "continue"


def _train(training: TrainOptions, cache: FeatureCache, progress: Progress) -> dict[str, Any]:
    state = _state(training, cache)
    if state != "done":
        train_temporal(dataclasses.replace(training, resume=state == "continue"), progress=progress)
    result: dict[str, Any] = read_run(run_folder(training)).values["result"]
    return result


def _extracted(workflow: Workflow) -> FeatureCache | None:
    """The cache that the workflow's extraction made; None where it is not there, not whole, or made otherwise."""
    try:
        record = json.loads(_record_path(workflow).read_text(encoding="utf-8"))
        if record != _record(workflow, record["cache"], record["fingerprint"]):
            return None
        cache = FeatureCache(record["cache"])
    except (OSError, ValueError, KeyError, TypeError, CacheError):
        return None
    return cache if cache.fingerprint == record["fingerprint"] else None


def _extract(workflow: Workflow, progress: Progress) -> FeatureCache:
    report = extract(workflow.extract, progress=progress)
    cache = FeatureCache(report.cache)
    make_folder(_record_path(workflow).parent)
    record = _record(workflow, report.cache, cache.fingerprint)
    write_file_atomic(_record_path(workflow), (json.dumps(record, indent=2) + "\n").encode())
    return cache


def _record(workflow: Workflow, cache: str, fingerprint: str) -> dict[str, Any]:
    options = {
        name: str(value) for name, value in dataclasses.asdict(workflow.extract).items() if name not in _ONLY_HOW
    }
    digest = sha256_hex(canonical_json(options))
    return {"format_version": FORMAT_VERSION, "options_digest": digest, "cache": cache, "fingerprint": fingerprint}


def _record_path(workflow: Workflow) -> Path:
    return workflow.extract.out / f"{workflow.name}.workflow.json"


def _on(cache: FeatureCache, stages: tuple[Any, ...]) -> Iterator[Any]:
    return (_with_cache(stage, cache) for stage in stages)


def _with_cache(stage: Any, cache: FeatureCache) -> Any:
    return dataclasses.replace(stage, cache=(cache.path,) if isinstance(stage, TrainOptions) else cache.path)


def _training_stage(training: TrainOptions) -> str:
    return f"train-temporal {training.name}"


def _probe_stage(asked: ProbeOptions) -> str:
    of = asked.temporal.name if asked.temporal else "tokens"
    return f"probe {asked.name or f'{asked.probe} of {of}'}"


def _figures(workflow: Workflow, results: dict[str, dict[str, Any]]) -> Iterator[Figure]:
    for training in workflow.trainings:
        folder = run_folder(training)
        if folder not in workflow.figures:
            continue
        published = workflow.figures[folder]
        stages = [_training_stage(training)]
        stages += [_probe_stage(asked) for asked in workflow.probes if asked.temporal == folder]
        of_it = {stage: results[stage] for stage in stages if stage in results}
        yield Figure(training=str(training.name), published=published, measured=_measured(published, of_it))


def _measured(published: Published | None, results: dict[str, dict[str, Any]]) -> float | None:
    """The published metric as measured: trainings carry their metrics by name."""
    if published is None:
        return None
    found = [
        value
        for result in results.values()
        if isinstance(value := {**result, **result.get("metrics", {})}.get(published.metric), float)
    ]
    return found[-1] if found else None
