"""The stages of a workflow against each other, before the first begins: nothing is extracted, trained or written.

What a stage is given by an earlier one is known without it: the tokens of a cache that is not there yet
(`vfz.pipeline.extraction.expected`), its classes and splits, the names of runs. Each training's model is built without
storage. What is left to go wrong then lies in the videos.

Cost: listing the videos, a second for the encoder's shapes, and some hundredths for a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.datasets.folder import videos_at
from vfz.pipeline.devices import choose_device
from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.pipeline.extraction.expected import ExpectedCache, expect, find_videos, needs_a_root
from vfz.pipeline.recipe import PRECISIONS, counted_layers
from vfz.temporal.data.pooling import check_pool
from vfz.temporal.data.sampling import Augmentation, ClipRule
from vfz.temporal.data.targets import default_targets_path
from vfz.temporal.data.videos import EVAL_SPLITS, check_layers
from vfz.temporal.lookup import PROBE_RESULTS, RUNS
from vfz.temporal.prediction.options import PredictOptions
from vfz.temporal.prediction.predictors import check_new_videos, check_predicted
from vfz.temporal.probes.fitters import PROBES
from vfz.temporal.probes.options import CompareRunsOptions, ProbeOptions
from vfz.temporal.tasks import TASK_OF_LABELS, TASKS
from vfz.temporal.training.experiment import plan_model
from vfz.temporal.training.optim import check_optimizer
from vfz.temporal.training.options import EvaluateOptions, TrainOptions
from vfz.temporal.workflow.file import EVERY_RUN, Stage, Workflow, probe_folder, run_folder, run_of

Cache = FeatureCache | ExpectedCache


def check_workflow(workflow: Workflow, extracted: FeatureCache | None, *, on_this_machine: bool) -> list[str]:
    """Refuse a workflow of which a stage could not begin.

    Args:
        workflow: as it was read.
        extracted: the cache that its extraction made; None where that is still to do.
        on_this_machine: whether it is to be run here and now: then the videos must be named, and devices there.

    Returns:
        What could not be looked at, in lines.

    Raises:
        VfzError: names file, table and key.
    """
    notes: list[str] = []
    caches: dict[str | None, Cache] = {None: extracted or _expected(workflow, notes, on_this_machine=on_this_machine)}
    for stage in workflow.of("convert"):
        with stage.telling():
            caches[stage.options.name] = _converted(stage, workflow, caches[None])
    for stage in workflow.stages:
        with stage.telling():
            if on_this_machine and hasattr(stage.options, "device"):
                choose_device(stage.options.device)
            if isinstance(stage.options, TrainOptions):
                _check_training(stage.options, caches[stage.cache], workflow)
            elif isinstance(stage.options, ProbeOptions):
                _check_probe(stage, caches[stage.cache], workflow)
            elif isinstance(stage.options, EvaluateOptions):
                _check_evaluation(stage, caches[stage.cache], workflow)
            elif isinstance(stage.options, PredictOptions):
                _check_prediction(stage, caches[stage.cache], workflow)
            elif isinstance(stage.options, CompareRunsOptions):
                _check_comparison(stage, workflow)
    return notes


def _expected(workflow: Workflow, notes: list[str], *, on_this_machine: bool) -> ExpectedCache:
    """What the extraction will store."""
    stage, options = workflow.stages[0], workflow.extract
    with stage.telling():
        try:
            dataset = find_videos(options)
        except UsageError as error:
            if on_this_machine or not needs_a_root(options):
                raise
            notes.append(stage.told(f"{error}; splits and classes were not looked at"))
            dataset = None
        return expect(options, dataset=dataset)


def _converted(stage: Stage, workflow: Workflow, source: Cache) -> ExpectedCache:
    """What a conversion of the extracted cache will store."""
    options, extract = stage.options, workflow.extract
    precision = options.precision or extract.precision
    if PRECISIONS.index(precision) < PRECISIONS.index(extract.precision):
        lower = ", ".join(PRECISIONS[PRECISIONS.index(extract.precision) :])
        raise UsageError(
            f"--precision {precision}: [extract] stores {extract.precision}, and what that rounds off cannot be given "
            f"back; choose from {lower}"
        )
    if precision == extract.precision and options.name in {None, extract.name} and options.out == extract.out:
        raise UsageError(
            "it would be the cache that [extract] makes; give it a --name, an --out or another --precision"
        )
    names = counted_layers(options.layers, list(source.layers)) if options.layers else tuple(source.layers)
    check_layers(source, names, "all")
    layers = {}
    for layer in source.layers:
        held = {part: shape for part, shape in source.layers[layer].items() if part in (options.parts or (part,))}
        if layer in names and held:
            layers[layer] = held
    if not layers:
        raise UsageError(f"--parts {','.join(options.parts or ())}: no layer of {source.path} has such tokens")
    splits = _splits(source)
    for split in options.splits or ():
        if splits is not None and split not in splits:
            raise UnknownNameError("split", split, splits)
    if splits is not None and options.splits:
        splits = {split: count for split, count in splits.items() if split in options.splits}
    return ExpectedCache(
        path=Path(f"the cache that {stage.place} makes"),
        layers=layers,
        recipe=dict(source.recipe),
        class_names=source.class_names,
        splits=splits,
        targets_path=_targets_path(source),
    )


def _check_training(options: TrainOptions, cache: Cache, workflow: Workflow) -> None:
    """Refuse a training that its cache, or its own options, would not let begin."""
    if options.resume:
        raise UsageError("--resume is not needed: vfz run goes on with what is there; leave it out")
    views = cache.views if isinstance(cache, FeatureCache) else tuple(range(workflow.extract.views or 1))
    if missing := [view for view in options.views if view not in views]:
        raise UsageError(
            f"--views {missing[0]}: {cache.path} has {', '.join(map(str, views))}; choose from these, or give "
            "[extract] more views"
        )
    task, num_outputs = _task_and_outputs(options.task, options.labels, cache)
    check_optimizer(options.optimizer)
    ClipRule(num_frames=options.clip_frames, stride=options.clip_stride, step_seconds=options.clip_seconds)
    augmentation = Augmentation(
        stride_factors=options.stride_factors, random_view=len(options.views) > 1, token_dropout=options.token_dropout
    )
    if options.token_dropout:
        augmentation.check_task(task)
    num_clips = (_splits(cache) or {}).get(options.train_split) or 0
    plan_model(dataclasses.replace(options, task=task), cache, num_outputs=num_outputs, num_clips=num_clips)
    _check_split("train-split", options.train_split, cache)
    _check_eval_split("eval-split", options.eval_split, cache)
    if options.online and options.weights is not None and not options.weights.is_file():
        raise UsageError(f"--weights {options.weights}: there is no such file")
    _check_targets(task, options.targets, cache)


def _check_probe(stage: Stage, cache: Cache, workflow: Workflow) -> None:
    options = stage.options
    task, _ = _task_and_outputs(options.task, options.labels, cache)
    _check_run(stage, workflow)
    if options.temporal is not None and (options.layers is not None or options.parts is not None):
        raise UsageError("--layers and --parts contradict --temporal: the run fixes its tokens; leave them out")
    if options.temporal is None:
        check_layers(cache, counted_layers(options.layers or ("-1",), list(cache.layers)), options.parts or "all")
    if options.pool is not None and task == TASK_OF_LABELS["classes"]:
        check_pool(options.pool, PROBES[options.probe].pools)
    _check_split("train-split", options.train_split, cache)
    _check_eval_split("eval-split", options.eval_split, cache)
    _check_targets(task, (options.targets,) if options.targets else None, cache)


def _check_evaluation(stage: Stage, cache: Cache, workflow: Workflow) -> None:
    options = stage.options
    trained = _check_run(stage, workflow)
    if trained is not None and trained.cache != stage.cache:
        wanted = f"cache = {trained.cache!r}" if trained.cache else "leave `cache` out"
        raise UsageError(f"{trained.place} is trained on another cache than this one evaluates it on; {wanted}")
    _check_eval_split("split", options.split, cache)
    if trained is not None:
        _check_targets(trained.options.task, options.targets, cache)


def _check_prediction(stage: Stage, cache: Cache, workflow: Workflow) -> None:
    options = stage.options
    trained = _check_run(stage, workflow)
    if trained is not None:
        check_predicted(trained.options.task, asked=trained.title)
        if options.videos:
            check_new_videos(trained.options.task, asked=trained.title)
    to_be_rendered = isinstance(cache, ExpectedCache) and workflow.extract.dataset == "synthetic"
    if options.videos and not to_be_rendered:
        videos_at(options.videos)
    elif not options.videos and options.split is not None:
        _check_split("split", options.split, cache)
    probes = {folder: one for one in workflow.of("probe") if (folder := probe_folder(one.options))}
    asked = trained or (probes.get(options.probe) if options.probe else None)
    if asked is not None and asked.cache != stage.cache:
        wanted = f"cache = {asked.cache!r}" if asked.cache else "leave `cache` out"
        raise UsageError(f"{asked.place} is made on another cache than this one predicts; {wanted}")
    if options.probe is not None and asked is None and not PROBE_RESULTS.holds(PROBE_RESULTS.look_up(options.probe)):
        names = [str(one.options.name) for one in workflow.of("probe") if one.options.name]
        kind = f"probe of {stage.place} in {workflow.path}"
        raise UnknownNameError(kind, str(options.probe), [*names, *PROBE_RESULTS.names(PROBE_RESULTS.under)])


def _check_comparison(stage: Stage, workflow: Workflow) -> None:
    options = stage.options
    ours = {run_folder(one.options) for one in workflow.of("train-temporal")}
    ours |= {folder for one in workflow.of("probe") if (folder := probe_folder(one.options))}
    if options.runs == (EVERY_RUN,):
        if not workflow.of("train-temporal") and not workflow.of("probe"):
            raise UsageError("there is nothing to compare: the workflow has no training and no probe")
        unnamed = [one for one in workflow.of("probe") if one.options.name is None]
        if options.baseline is not None and not unnamed and options.baseline not in (names := {f.name for f in ours}):
            raise UnknownNameError(f"baseline of {stage.place} in {workflow.path}", options.baseline, names)
        return
    for given in options.runs:
        if given not in ours and not any(kind.holds(kind.look_up(given)) for kind in (RUNS, PROBE_RESULTS)):
            known = [folder.name for folder in ours]
            raise UnknownNameError(f"run of {stage.place} in {workflow.path}", str(given), known)


def _check_run(stage: Stage, workflow: Workflow) -> Stage | None:
    """The training that a stage asks about; None where it is none of the workflow's, or no run is asked about.

    Raises:
        UnknownNameError: there is no such run, and there will be none.
    """
    folder = run_of(stage)
    if folder is None:
        return None
    trainings = {run_folder(one.options): one for one in workflow.of("train-temporal")}
    if folder in trainings:
        return trainings[folder]
    if (folder / RUNS.marker).is_file() or (
        folder.name == str(folder) and (RUNS.under / folder / RUNS.marker).is_file()
    ):
        return None
    names = [str(one.options.name) for one in trainings.values()]
    raise UnknownNameError(f"run of {stage.place} in {workflow.path}", str(folder), [*names, *RUNS.names(RUNS.under)])


def _task_and_outputs(task: str, labels: str | None, cache: Cache) -> tuple[str, int | None]:
    """The task that the labels stand for, and how many classes, labels or targets it has; None: it takes others.

    Raises:
        UsageError: there are none, or no such label set.
    """
    if TASKS[task].needs_targets:
        return task, None
    if labels is not None and isinstance(cache, FeatureCache):
        label_set = FeatureCache(cache.path, labels=labels).label_set
        if label_set is not None:
            return TASK_OF_LABELS[label_set.kind], len(label_set.names)
    if labels is not None:
        raise UsageError(
            f"--labels {labels}: a label set is added by vfz cache label, once the cache is there; run vfz extract "
            "--config with this file, and vfz cache label, first"
        )
    if cache.class_names is not None and not cache.class_names:
        raise UsageError(f"{cache.path} has no class labels; --task {task} needs them")
    return task, len(cache.class_names or "ab")


def _splits(cache: Cache) -> Mapping[str, int | None] | None:
    """Videos by split, as far as that is known."""
    if isinstance(cache, FeatureCache):
        return {split: cache.num_planned(split) for split in cache.splits}
    return cache.splits


def _check_split(option: str, split: str, cache: Cache) -> None:
    splits = _splits(cache)
    if splits is not None and split not in splits:
        raise UsageError(f"--{option} {split!r} is not in {cache.path}; it has {', '.join(sorted(splits)) or 'none'}")


def _check_eval_split(option: str, split: str | None, cache: Cache) -> None:
    splits = _splits(cache)
    if split is not None:
        _check_split(option, split, cache)
    elif splits is not None and not set(EVAL_SPLITS) & set(splits):
        raise UsageError(
            f"{cache.path} has no {', '.join(EVAL_SPLITS[:-1])} or {EVAL_SPLITS[-1]}; its splits are "
            f"{', '.join(sorted(splits)) or 'none'}: name one by --{option}"
        )


def _targets_path(cache: Cache) -> Path | None:
    return cache.targets_path if isinstance(cache, ExpectedCache) else default_targets_path(cache)


def _check_targets(task: str, given: tuple[Path, ...] | None, cache: Cache) -> None:
    """Refuse a task whose truth is not there."""
    if not TASKS[task].needs_targets:
        if given:
            raise UsageError(f"--targets is not for task {task}, which takes labels; leave it out")
        return
    for path in given or ():
        if not path.is_file():
            raise UsageError(f"--targets {path}: there is no such file")
    beside = _targets_path(cache)
    if not given and beside is not None and not beside.is_file():
        raise UsageError(
            f"--task {task} needs a targets.npz, and {beside} is not there; put it there, or name it by --targets"
        )
