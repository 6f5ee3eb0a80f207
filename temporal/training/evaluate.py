"""Evaluating a trained run on a split of a cache: the public call behind `vfz evaluate`.

The run folder alone gives the model; the cache may be another one than it was trained on, as long as its recipe is the
same. On its own cache and split a run gives the figures it ended with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import StorageError, UsageError
from vfz.pipeline.files import canonical_json, sha256_file, sha256_hex
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.targets import default_targets_path
from vfz.temporal.data.tokens import CachedTokens
from vfz.temporal.data.videos import common_labels
from vfz.temporal.kept import KeptEvaluation, write_evaluation
from vfz.temporal.model import ModelConfig, TemporalModel
from vfz.temporal.run_record import RunInfo, caches_of_run, check_same_tokens
from vfz.temporal.tasks import TASKS, Task, build_task
from vfz.temporal.training.distributed import Ranks, join_ranks
from vfz.temporal.training.evaluation import EvalClips, Evaluation, eval_clips_of, evaluate_clips
from vfz.temporal.training.experiment import labels_digest, targets_of
from vfz.temporal.training.options import EvaluateOptions
from vfz.temporal.training.runs import WEIGHTS_FILE, load_model
from vfz.temporal.training.step import ClipLoss, autocast_dtype


@dataclass(frozen=True, kw_only=True)
class EvaluateReport:
    """A run's figures on a split.

    Attributes:
        run: the run folder.
        task, core: their names.
        evaluation: the figures, and what they are a share of.
        kept: the file in the run folder that has them, and what was answered for each video; None where the folder
            cannot be written.
        rank: of this process among those that evaluated.
    """

    run: str
    task: str
    core: str
    evaluation: Evaluation
    kept: str | None = None
    rank: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every metric by its own name."""
        named = {"run": self.run, "task": self.task, "core": self.core, "headline": self.evaluation.headline}
        return named | self.evaluation.to_dict() | self.evaluation.of_classes() | {"kept": self.kept}


def evaluate(options: EvaluateOptions, *, progress: Progress | None = None) -> EvaluateReport:
    """Evaluate a finished run on a split of one or several caches of its recipe.

    Raises:
        UsageError: no run there, or no such split. RunError: the run is not finished, or does not load.
        CacheMismatchError: the cache's tokens are not those the run was trained on. DatasetError: targets that do not
        fit the videos.
    """
    with join_ranks(options.device) as ranks:
        shown = progress if progress and ranks.is_first else SilentProgress()
        model, run = load_model(options.run, ranks.device)
        labels = options.labels or run.values.get("labels", {}).get("name")
        caches = tuple(FeatureCache(path, labels=labels) for path in caches_of_run(run, options.cache))
        trained_on = run.values.get("labels", {})
        if labels == trained_on.get("name") and trained_on.get("digest") != labels_digest(caches):
            shown.note(f"label set {labels!r} is another one now than the run {run.path} was trained on")
        for cache in caches:
            check_same_tokens(run, fingerprint=cache.fingerprint, recipe=cache.recipe, cache=cache.path)
        task = _task_of(model, run, caches).to(ranks.device)
        clips = _clips_of(run, model.config, caches, options, ranks)
        autocast = autocast_dtype(options.dtype, ranks.device)
        evaluation = evaluate_clips(
            ClipLoss(model, task, autocast=autocast), clips, ranks=ranks, progress=shown, keep=True
        )

        def keep() -> str | None:
            kept = kept_evaluation(
                run.path, model.config, evaluation, clips, caches, autocast=autocast, targets=options.targets
            )
            try:
                return str(write_evaluation(run.path, kept))
            except StorageError as error:
                shown.note(f"the answers are not kept: {error}")
                return None

        return EvaluateReport(
            run=str(run.path),
            task=model.config.task,
            core=model.config.core,
            evaluation=evaluation,
            kept=ranks.first_does(keep),
            rank=ranks.rank,
        )


def kept_evaluation(
    run: Path,
    config: ModelConfig,
    evaluation: Evaluation,
    clips: EvalClips,
    caches: Sequence[FeatureCache],
    *,
    autocast: torch.dtype | None,
    targets: Sequence[Path] | None = None,
) -> KeptEvaluation:
    """An evaluation as it is kept in the run.

    Args:
        run: the folder, with the weights that were evaluated.
        config: of the model.
        evaluation: with its videos.
        clips: that were evaluated.
        caches: they came from.
        autocast: number format of the model; None for float32.
        targets: of the task, where they are not those beside the videos.
    """
    videos = evaluation.videos
    assert videos is not None  # noqa: S101 - it was evaluated with `keep`
    truth: list[Any] = [[video.cache, video.id, video.label] for video in clips.videos]
    if TASKS[config.task].needs_targets:
        paths = targets or [default_targets_path(cache) for cache in caches]
        truth += [sha256_file(path) for path in paths if path.is_file()]
    sets = [cache.label_set for cache in caches if cache.label_set is not None]
    identity = {
        "weights": sha256_file(run / WEIGHTS_FILE),
        "caches": [
            {"name": cache.path.resolve().name, "fingerprint": cache.fingerprint, "ledger_digest": cache.ledger_digest}
            for cache in caches
        ],
        "split": evaluation.split,
        "labels": sets[0].name if sets else None,
        "truth": sha256_hex(canonical_json([truth, [labels.digest for labels in sets]])),
        "clips": dataclasses.asdict(clips.rule),
        "segments": clips.segments,
        "views": list(clips.views),
        "dtype": "float32" if autocast is None else str(autocast).removeprefix("torch."),
    }
    return KeptEvaluation(
        run=run.resolve().name,
        task=config.task,
        core=config.core,
        identity=identity,
        figures={
            "headline": evaluation.headline,
            "higher_is_better": TASKS[config.task].higher_is_better,
            "is_share": evaluation.headline.startswith(evaluation.shares),
            **evaluation.to_dict(),
        },
        source={
            "encoder": caches[0].recipe["encoder"]["name"],
            "layers": list(config.encoder_layers),
            "parts": config.parts,
            "precision": caches[0].precision,
            "num_bytes": sum(cache.num_bytes for cache in caches),
        },
        videos=videos,
        class_names=() if TASKS[config.task].needs_targets else common_labels(caches)[1],
        classes=[] if evaluation.classes is None else evaluation.classes.each(),
    )


def _clips_of(
    run: RunInfo, config: ModelConfig, caches: Sequence[FeatureCache], options: EvaluateOptions, ranks: Ranks
) -> EvalClips:
    return eval_clips_of(
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
        targets=targets_of(caches, config, paths=options.targets, device=ranks.device),
        ranks=ranks,
        split_option="--split",
    )


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
