"""`vfz run WORKFLOW`: the stages of a workflow in order, those that are done left out.

    extract          done when the same options made a cache that is there, whole and of the same fingerprint
    convert          done when the same options made a cache of the same videos of the extracted one, and it is there
    train-temporal   done when its run folder holds a finished run of the same options on the same videos; an
                     unfinished one is continued
    evaluate         always asked for: an evaluation of the same videos replaces itself
    probe            always asked for: a probe with the same settings on the same videos gives its stored result
    compare          always made anew, and replaced
    predict          left out when the same run or probe was asked the same about the same videos, and the file is there

Before the first of them begins, all are checked against each other (`check`).

What the extraction made is kept in `<out>/<workflow>.workflow.json`, so that a done one needs neither videos nor
encoder, and what a conversion made in a file beside it. New videos under the root are therefore not seen; `--again`
looks for them. Nothing that is there is ever overwritten: a run folder of other options, or one trained on videos that
have changed since, is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.datasets.folder import videos_at
from vfz.pipeline.errors import CacheError, RunError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.files import canonical_json, make_folder, sha256_file, sha256_hex, write_file_atomic
from vfz.pipeline.maintenance.convert import convert
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.temporal.comparison.report import compare_runs
from vfz.temporal.lookup import PROBE_RESULTS, RUNS, find_probe, find_run
from vfz.temporal.prediction.predict import predict
from vfz.temporal.probes.run import probe_all
from vfz.temporal.run_record import read_run
from vfz.temporal.training.evaluate import evaluate
from vfz.temporal.training.experiment import made_otherwise, options_made_otherwise
from vfz.temporal.training.options import TrainOptions
from vfz.temporal.training.train import train_temporal
from vfz.temporal.workflow.check import check_workflow
from vfz.temporal.workflow.file import EVERY_RUN, Stage, Workflow, chosen_stages, run_folder, run_of
from vfz.temporal.workflow.options import RunOptions
from vfz.temporal.workflow.report import (
    FinishedStage,
    PlannedStage,
    State,
    WorkflowReport,
    figures_of,
    headline_of,
    measured,
)

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


def run_workflow(options: RunOptions, *, progress: Progress | None = None) -> WorkflowReport:
    """Run what is not done yet of a workflow, or with `dry_run` only tell.

    Raises:
        UsageError: a mistake in the workflow. RunError: a run folder that is there was made otherwise. Otherwise as
        the commands of its stages, whose finished work is kept.
    """
    progress = progress or SilentProgress()
    workflow = chosen_stages(options)
    extracted = None if options.again else _extracted(workflow)
    for line in check_workflow(workflow, extracted, on_this_machine=not options.dry_run):
        progress.note(line)
    plan = tuple(_planned(workflow, extracted))
    runner = _Runner(workflow, extracted, again=options.again, progress=progress)
    if not options.dry_run:
        for stage in workflow.stages:
            with stage.telling():
                runner.run(stage)
    cache = runner.caches.get(None)
    return WorkflowReport(
        workflow=workflow.name,
        plan=plan,
        stages=tuple(runner.finished),
        cache=str(cache.path) if cache else None,
        results=runner.results,
        published=workflow.published,
        measured=measured(workflow.published, runner.results),
        figures=tuple(figures_of(workflow, runner.results)),
    )


class _Runner:
    """Runs stages, one after the other.

    Attributes:
        caches: those there are, by the conversion's name; None: the extracted one.
        results: the record of each stage but the extraction.
        finished: how each ended.
    """

    def __init__(self, workflow: Workflow, extracted: FeatureCache | None, *, again: bool, progress: Progress) -> None:
        self._workflow, self._again, self._progress = workflow, again, progress
        self.caches: dict[str | None, FeatureCache] = {} if extracted is None else {None: extracted}
        self.results: dict[str, dict[str, Any]] = {}
        self.finished: list[FinishedStage] = []
        self._folders: list[Path] = []  # of trainings and probes

    def run(self, stage: Stage) -> None:
        """A stage, or what it made before."""
        does = {
            "extract": self._extract,
            "convert": self._convert,
            "train-temporal": self._train,
            "evaluate": self._evaluate,
            "probe": self._probe,
            "compare": self._compare,
            "predict": self._predict,
        }
        if stage.command != "extract":
            self._progress.note(stage.title)
        started = time.perf_counter()
        result, record, where = does[stage.command](stage, _InKeys(self._progress, stage))
        if record:
            self.results[stage.title] = record
        self.finished.append(
            FinishedStage(
                stage=stage.title,
                result=result,
                **headline_of(record),
                seconds=time.perf_counter() - started,
                where=where,
            )
        )

    def _extract(self, _stage: Stage, progress: Progress) -> tuple[str, dict[str, Any], str]:
        if None in self.caches:
            return "was there", {}, str(self.caches[None].path)
        report = extract(self._workflow.extract, progress=progress)
        cache = FeatureCache(report.cache)
        _write_record(_record_path(self._workflow), _record(self._workflow, report.cache, cache.fingerprint))
        self.caches[None] = cache
        return "made" if report.num_tried else "was there", {}, report.cache

    def _convert(self, stage: Stage, progress: Progress) -> tuple[str, dict[str, Any], str]:
        source = self.caches[None]
        found = _converted(self._workflow, stage, source)
        if found is not None:
            self.caches[stage.options.name] = found
            return "was there", {}, str(found.path)
        report = convert(dataclasses.replace(stage.options, cache=source.path), progress=progress)
        _write_record(_record_path(self._workflow, stage), _conversion_record(stage, source, report.cache))
        self.caches[stage.options.name] = FeatureCache(report.cache)
        return "made" if report.new_commits else "was there", dataclasses.asdict(report), report.cache

    def _train(self, stage: Stage, progress: Progress) -> tuple[str, dict[str, Any], str]:
        cache = self.caches[stage.cache]
        training = dataclasses.replace(stage.options, cache=(cache.path,))
        state = _state(training, cache)
        if state != "done":
            train_temporal(dataclasses.replace(training, resume=state == "continue"), progress=progress)
        folder = run_folder(training)
        self._folders.append(folder)
        result = {"done": "was there", "continue": "continued", "to do": "made"}[state]
        return result, dict(read_run(folder).values["result"]), str(folder)

    def _evaluate(self, stage: Stage, progress: Progress) -> tuple[str, dict[str, Any], str]:
        cache = self.caches[stage.cache]
        report = evaluate(dataclasses.replace(stage.options, cache=(cache.path,)), progress=progress)
        return "made", report.to_dict(), report.kept or report.run

    def _probe(self, stage: Stage, progress: Progress) -> tuple[str, dict[str, Any], str]:
        asked = dataclasses.replace(
            stage.options, cache=self.caches[stage.cache].path, force=self._again or stage.options.force
        )
        reports = probe_all(asked, progress=progress)
        records = [dataclasses.asdict(report) for report in reports]
        for number, record in enumerate(records[:-1]):
            self.results[f"{stage.title}, {number + 1} of {len(records)}"] = record
        self._folders += [Path(record["result"]) for record in records]
        is_there = all(record.get("reused") for record in records)
        return "was there" if is_there else "made", records[-1], str(records[-1]["result"])

    def _compare(self, stage: Stage, _progress: Progress) -> tuple[str, dict[str, Any], str]:
        options = stage.options
        if options.runs == (EVERY_RUN,):
            options = dataclasses.replace(options, runs=tuple(self._folders))
        report = compare_runs(options)
        comparison = report.comparison
        best = (max if comparison.results[0].higher_is_better else min)(
            comparison.results, key=lambda result: result.figure.mean
        )
        figure = {"headline": best.headline, best.headline: best.figure.mean}
        interval = {"low": best.figure.low, "high": best.figure.high}
        files = {"html": report.html, "csv": report.csv, "json": report.json}
        left_out = {one.name: one.reason for one in report.left_out}
        return "made", {"best": best.name, **figure, **interval, **files, "left_out": left_out}, report.html

    def _predict(self, stage: Stage, progress: Progress) -> tuple[str, dict[str, Any], str]:
        cache = self.caches[stage.cache]
        path, record = _record_path(self._workflow, stage), _prediction_record(stage, cache)
        before = _read_record(path)
        if before is not None and before["prediction"] == record and stage.options.out.is_file() and not self._again:
            return "was there", before["result"], str(stage.options.out)
        is_ours = before is not None and before["prediction"]["out"] == str(stage.options.out)
        options = dataclasses.replace(stage.options, cache=cache.path, force=is_ours or stage.options.force)
        report = predict(options, progress=progress)
        num_answered = report.num_videos - report.num_failed
        result = {"headline": "num_answered", "num_answered": num_answered} | {
            name: getattr(report, name) for name in ("path", "task", "num_videos", "num_failed", "out")
        }
        _write_record(path, {"format_version": FORMAT_VERSION, "prediction": record, "result": result})
        return "made", result, str(report.out)


class _InKeys:
    """A progress that names a stage's options by their keys."""

    def __init__(self, progress: Progress, stage: Stage) -> None:
        self.start, self.advance, self.finish = progress.start, progress.advance, progress.finish
        self.doing = progress.doing
        self._progress, self._stage = progress, stage

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._progress.note(self._stage.in_keys(text))


def _planned(workflow: Workflow, cache: FeatureCache | None) -> Iterator[PlannedStage]:
    """Every stage before anything is run.

    Raises:
        RunError: a run folder holds a run of other options, or on other videos.
    """
    caches: dict[str | None, FeatureCache | None] = {None: cache}
    for stage in workflow.stages:
        state: State = "to do"
        options = stage.options
        if stage.command == "extract":
            state, detail = "done" if cache else "to do", str(cache.path if cache else options.out)
        elif stage.command == "convert":
            found = caches[options.name] = _converted(workflow, stage, cache) if cache else None
            state, detail = "done" if found else "to do", str(found.path if found else options.out)
        elif stage.command == "train-temporal":
            with stage.telling():
                state = _state(options, caches[stage.cache])
            detail = str(run_folder(options))
        elif stage.command == "predict":
            detail = str(options.out)
        elif stage.command == "compare":
            detail = str(options.out / options.name)
        elif stage.command == "probe":
            detail = "a stored result is used where there is one"
        else:
            detail = str(run_of(stage) or options.out)
        yield PlannedStage(stage=stage.title, state=state, detail=detail)


def _state(training: TrainOptions, cache: FeatureCache | None) -> State:
    """Whether a run is done; where its cache is still to be made, only whether it may be.

    Raises:
        RunError: when its folder holds a run of other options, or on other videos.
    """
    folder = run_folder(training)
    if not (folder / "run.json").exists():
        return "to do"
    run = read_run(folder)
    if cache is None:
        task = run.values["options"]["task"] if training.labels else training.task  # a label set may choose it
        differing = options_made_otherwise(run.values, dataclasses.replace(training, task=task))
    else:
        differing = made_otherwise(run.values, training, [FeatureCache(cache.path, labels=training.labels)])
    if differing:
        raise RunError(
            f"{folder} is there and is not the workflow's, for these differ: {', '.join(differing)}; give the run "
            "another name in the workflow, or remove the folder"
        )
    if cache is None:
        return "to do"
    return "done" if run.finished else "continue"


def _extracted(workflow: Workflow) -> FeatureCache | None:
    """The cache that the workflow's extraction made; None where it is not there, not whole, or made otherwise."""
    return _recorded(_record_path(workflow), lambda found: _record(workflow, found["cache"], found["fingerprint"]))


def _converted(workflow: Workflow, stage: Stage, source: FeatureCache) -> FeatureCache | None:
    """The cache that a conversion of these videos made; None where it is not there, or was made otherwise."""
    return _recorded(_record_path(workflow, stage), lambda found: _conversion_record(stage, source, found["cache"]))


def _recorded(path: Path, expected: Any) -> FeatureCache | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record != expected(record):
            return None
        cache = FeatureCache(record["cache"])
    except (OSError, ValueError, KeyError, TypeError, CacheError):
        return None
    return cache if cache.fingerprint == record["fingerprint"] else None


def _record(workflow: Workflow, cache: str, fingerprint: str) -> dict[str, Any]:
    options = {
        name: str(value)
        for name, value in dataclasses.asdict(workflow.extract).items()
        if name not in _ONLY_HOW and (name, value) != ("replace", False)  # records of before do not have it
    }
    digest = sha256_hex(canonical_json(options))
    return {"format_version": FORMAT_VERSION, "options_digest": digest, "cache": cache, "fingerprint": fingerprint}


def _conversion_record(stage: Stage, source: FeatureCache, cache: str) -> dict[str, Any]:
    options = {name: str(value) for name, value in dataclasses.asdict(stage.options).items()}
    digest = sha256_hex(canonical_json([options, source.fingerprint, source.ledger_digest]))
    return {
        "format_version": FORMAT_VERSION,
        "options_digest": digest,
        "cache": cache,
        "fingerprint": FeatureCache(cache).fingerprint,
    }


def _prediction_record(stage: Stage, cache: FeatureCache) -> dict[str, Any]:
    """What decides the answers of a prediction: who is asked, and about what."""
    asked = find_run(stage.options.run) if stage.options.run else find_probe(stage.options.probe)
    files = [] if not stage.options.videos else videos_at(stage.options.videos)
    told = [(str(path), (status := path.stat()).st_size, status.st_mtime_ns) for path in files]
    options = {name: str(value) for name, value in dataclasses.asdict(stage.options).items() if name != "device"}
    records = [sha256_file(path) for path in (asked / RUNS.marker, asked / PROBE_RESULTS.marker) if path.is_file()]
    digest = sha256_hex(canonical_json([options, cache.fingerprint, cache.ledger_digest, records, told]))
    return {"digest": digest, "out": str(stage.options.out)}


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = record["format_version"] == FORMAT_VERSION and {"prediction", "result"} <= record.keys()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if known else None


def _record_path(workflow: Workflow, stage: Stage | None = None) -> Path:
    number = "" if stage is None else f".{stage.command}-{workflow.of(stage.command).index(stage) + 1}"
    return workflow.extract.out / f"{workflow.name}{number}.workflow.json"


def _write_record(path: Path, record: dict[str, Any]) -> None:
    make_folder(path.parent)
    write_file_atomic(path, (json.dumps(record, indent=2) + "\n").encode())
