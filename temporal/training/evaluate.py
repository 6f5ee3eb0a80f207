"""Evaluating a trained run on a split of a cache: the public call behind `vfz evaluate`.

The run folder alone gives the model; the cache may be another one than it was trained on, as long as its recipe is the
same. On its own cache and split a run gives the figures it ended with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.devices import choose_device
from vfz.pipeline.errors import UsageError
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.tokens import CachedTokens
from vfz.temporal.data.videos import common_labels
from vfz.temporal.model import TemporalModel
from vfz.temporal.run_record import RunInfo, caches_of_run, check_same_tokens
from vfz.temporal.tasks import TASKS, Task, build_task
from vfz.temporal.training.distributed import Ranks
from vfz.temporal.training.evaluation import Evaluation, eval_clips_of, evaluate_clips
from vfz.temporal.training.experiment import targets_of
from vfz.temporal.training.options import EvaluateOptions
from vfz.temporal.training.runs import load_model
from vfz.temporal.training.step import ClipLoss, autocast_dtype


@dataclass(frozen=True, kw_only=True)
class EvaluateReport:
    """A run's figures on a split.

    Attributes:
        run: the run folder.
        task, core: their names.
        evaluation: the figures, and what they are a share of.
    """

    run: str
    task: str
    core: str
    evaluation: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every metric by its own name."""
        named = {"run": self.run, "task": self.task, "core": self.core, "headline": self.evaluation.headline}
        return named | self.evaluation.to_dict()


def evaluate(options: EvaluateOptions, *, progress: Progress | None = None) -> EvaluateReport:
    """Evaluate a finished run on a split of one or several caches of its recipe.

    Raises:
        UsageError: no run there, or no such split. RunError: the run is not finished, or does not load.
        CacheMismatchError: the cache's tokens are not those the run was trained on. DatasetError: targets that do not
        fit the videos.
    """
    device = choose_device(options.device)
    model, run = load_model(options.run, device)
    labels = options.labels or run.values.get("labels", {}).get("name")
    caches = tuple(FeatureCache(path, labels=labels) for path in caches_of_run(run, options.cache))
    for cache in caches:
        check_same_tokens(run, fingerprint=cache.fingerprint, recipe=cache.recipe, cache=cache.path)
    task = _task_of(model, run, caches).to(device)
    config, ranks = model.config, Ranks(device=device)
    clips = eval_clips_of(
        CachedTokens(caches, layers=config.encoder_layers, parts=config.parts),
        caches,
        config,
        rule=ClipRule.of_run(
            run.values["clips"],
            num_frames=options.clip_frames,
            stride=options.clip_stride,
            step_seconds=options.clip_seconds,
        ),
        split=options.split,
        views=options.views,
        segments=options.segments,
        batch_size=options.batch_size,
        targets=targets_of(caches, config, paths=options.targets, device=device),
        ranks=ranks,
    )
    evaluation = evaluate_clips(
        ClipLoss(model, task, autocast=autocast_dtype(options.dtype, device)),
        clips,
        ranks=ranks,
        progress=progress or SilentProgress(),
    )
    return EvaluateReport(run=str(options.run), task=model.config.task, core=model.config.core, evaluation=evaluation)


def _task_of(model: TemporalModel, run: RunInfo, caches: Sequence[FeatureCache]) -> Task[Any]:
    config = model.config
    if TASKS[config.task].needs_targets:
        return build_task(config.task, protocol=config.protocol)
    kind, names = common_labels(caches)
    trained_on: dict[str, Any] = run.values.get("labels", {})
    own_kind, own_names = trained_on.get("kind", "classes"), trained_on.get("names", run.values["class_names"])
    if kind != own_kind or list(names) != own_names:
        raise UsageError(
            f"{caches[0].path} has {len(names)} {kind}, {run.path} was trained on {len(own_names)} {own_kind}, "
            "or they are called otherwise; evaluate it on a cache with its own classes, or name a label set by --labels"
        )
    settings = {name: value for name, value in trained_on.items() if name.startswith("target_")}
    return build_task(config.task, protocol=config.protocol, num_classes=len(names), **settings)
