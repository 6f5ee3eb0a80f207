"""From options to an `Experiment`: caches, clips, a task and a model that fit each other. Nothing is written.

The experiment gives the steps of an epoch. It also gives what `run.json` says of the run, and tells from such a record
whether another run may be continued as this one.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import UsageError
from vfz.pipeline.files import canonical_json, sha256_hex
from vfz.temporal.data.loader import ClipBatch, ClipLoader
from vfz.temporal.data.sampling import Augmentation, ClipRule
from vfz.temporal.data.targets import ClipTargets, FrameTargets, LabelTargets
from vfz.temporal.data.tokens import CachedTokens, TokenSource, num_prefix_of
from vfz.temporal.data.videos import (
    TokenShapes,
    as_caches,
    check_parts,
    clip_videos,
    common_labels,
    num_unlabelled,
    task_of_labels,
)
from vfz.temporal.model import ModelConfig, TemporalModel
from vfz.temporal.run_record import caches_for, read_run
from vfz.temporal.tasks import TASK_OF_LABELS, TASKS, Task, build_task
from vfz.temporal.tasks.values import ValuesTask
from vfz.temporal.training.distributed import Ranks
from vfz.temporal.training.evaluation import EvalClips, eval_clips_of
from vfz.temporal.training.options import TrainOptions, layers_of, option_values
from vfz.temporal.training.sizes import SIZES, Sized, check_sizes, readout_heads, sized, sized_as

_MAY_DIFFER = frozenset(
    {"out", "name", "resume", "cache", "targets", "root", "weights", "device", "checkpointing", "tensorboard"}
    | {"checkpoint_seconds", "checkpoint_steps", "keep_checkpoint", "dry_run", "size"}
)
"""Options that change no number, so that a run may be resumed with others. What `size` stands for is compared."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Experiment:
    """What is trained on what.

    Attributes:
        options: as given, the task as the labels say and every size of the model decided.
        sized: who decided the sizes.
        ranks: this process among those of the run.
        caches: where the tokens come from.
        path: the run folder.
        leg_ends: epochs after which the learning rate begins anew, and the last one: a run that is continued with more
            epochs has several.
        model: with fresh weights, on the device.
        task: its loss and metrics.
        train_clips: clips to train on, in batches of one part of a step.
        num_unlabelled: training videos that are left out, since they have no label and the task needs one.
        num_short: training videos shorter than a clip, whose last frame is repeated and masked.
        eval_clips: clips to evaluate on.
    """

    options: TrainOptions
    sized: Sized
    ranks: Ranks
    caches: tuple[FeatureCache, ...]
    path: Path
    leg_ends: tuple[int, ...]
    model: TemporalModel
    task: Task[Any]
    train_clips: ClipLoader
    num_unlabelled: int
    num_short: int
    eval_clips: EvalClips

    @property
    def num_parts(self) -> int:
        """Parts that a step is computed in, over all processes."""
        return self.options.accumulate * self.ranks.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; the last may have fewer clips."""
        return -(-self.train_clips.num_batches // self.options.accumulate)

    def steps(self, epoch: int, *, first: int = 0) -> Generator[list[ClipBatch]]:
        """The steps of an epoch from number `first` on, each as its micro-batches."""
        parts: list[ClipBatch] = []
        every = self.options.accumulate
        for batch in self.train_clips.training_epoch(epoch, start_batch=first * every):
            parts.append(batch)
            if len(parts) == every:
                yield parts
                parts = []
        if parts:
            yield parts

    def record(self) -> dict[str, Any]:
        """What `run.json` says of the run before it is done."""
        return {
            "options": option_values(self.options, without=_MAY_DIFFER),
            "size": self.sized.size,
            "model": self.model.config.to_dict(),
            "device_type": self.ranks.device.type,
            "num_processes": self.ranks.world_size,
            "clips": {
                "num_frames": self.options.clip_frames,
                "stride": self.options.clip_stride,
                "step_seconds": self.options.clip_seconds,
            },
            "class_names": list(self.caches[0].class_names),
            "cache": cache_record(self.caches),
            **({"labels": labels_record(self.caches, self.task)} if self.caches[0].label_set else {}),
            **({"continued": self.continued()} if len(self.leg_ends) > 1 else {}),
        }

    def continued(self) -> list[dict[str, int]]:
        """After which epochs the run was continued, and to which."""
        return [{"from": begin, "to": end} for begin, end in zip(self.leg_ends, self.leg_ends[1:], strict=False)]

    def differences(self, record: dict[str, Any]) -> list[str]:
        """Why the run that `record` is of cannot be resumed as this one, its epochs aside; empty where it can."""
        ours = self.record()
        machine = [
            f"{name} (run {record[key]}, now {ours[key]})"
            for key, name in (("device_type", "the device"), ("num_processes", "the number of processes"))
            if record[key] != ours[key]
        ]
        same_epochs = replace(self.options, epochs=record["options"]["epochs"])
        return made_otherwise(record, same_epochs, self.caches) + machine


def build_experiment(options: TrainOptions, ranks: Ranks) -> Experiment:
    """Everything a run needs; writes nothing.

    Raises:
        UsageError: options that do not fit the cache or each other. DatasetError: targets that do not fit the videos.
        CacheError: a cache cannot be used, or several are not of one recipe.
    """
    paths = caches_for(options.cache, options.resumed_run)
    caches = as_caches([FeatureCache(path, labels=options.labels) for path in paths])
    options = replace(options, task=task_of_labels(options.task, caches[0]))
    layers = layers_of(options, tuple(caches[0].layers))
    for cache in caches:
        _, encoder_dim = check_parts(cache, layers, options.parts)
    task = task_of(options, caches)
    videos = clip_videos(
        caches, options.train_split, layers=layers, parts=options.parts, views=options.views,
        labelled=not task.needs_targets,
    )  # fmt: skip
    path = options.out / (options.name or _name(options, caches))
    ends: tuple[int, ...] = (options.epochs,)
    if options.resume:
        record = ranks.first_does(lambda: read_run(path).values)
        found, ends = sized_as(options, record), leg_ends(record)
        if options.epochs > ends[-1]:
            ends += (options.epochs,)
    else:
        found = sized(options, encoder_dim=encoder_dim, num_clips=len(videos))
    options = found.options
    num_outputs = None if TASKS[options.task].needs_targets else len(common_labels(caches)[1])
    config = _model_config(options, caches[0], layers, encoder_dim, num_outputs)
    torch.manual_seed(options.seed)
    model = TemporalModel(config, checkpointing=options.checkpointing).to(ranks.device)
    source = _source(options, caches, layers, ranks.device)
    targets = targets_of(caches, model.config, paths=options.targets, device=ranks.device)
    rule = ClipRule(num_frames=options.clip_frames, stride=options.clip_stride, step_seconds=options.clip_seconds)
    if isinstance(task, ValuesTask) and isinstance(targets, LabelTargets):
        task.prepare(targets.values_of(videos))
    return Experiment(
        options=options,
        sized=found,
        ranks=ranks,
        caches=caches,
        path=path,
        leg_ends=ends,
        model=model,
        task=task.to(ranks.device),
        train_clips=ClipLoader(
            source,
            videos,
            rule=rule,
            batch_size=options.batch_size // options.accumulate,
            device=ranks.device,
            seed=options.seed,
            augmentation=Augmentation(
                stride_factors=options.stride_factors,
                random_view=len(options.views) > 1,
                token_dropout=options.token_dropout,
            ),
            targets=targets,
            rank=ranks.rank,
            world_size=ranks.world_size,
        ),
        num_unlabelled=0
        if task.needs_targets
        else num_unlabelled(caches, options.train_split, layers=layers, parts=options.parts, view=options.views[0]),
        num_short=sum(not rule.fits(video.rows[0].num_frames) for video in videos) if not options.clip_seconds else 0,
        eval_clips=eval_clips_of(
            source,
            caches,
            model.config,
            rule=rule,
            split=options.eval_split,
            views=options.views,
            segments=options.segments,
            batch_size=options.batch_size,
            targets=targets,
            ranks=ranks,
        ),
    )


def plan_model(options: TrainOptions, cache: TokenShapes, *, num_outputs: int | None, num_clips: int) -> ModelConfig:
    """The model that a run would have; nothing is read, and the cache need not be there yet.

    Args:
        options: of the run.
        cache: what its tokens will be.
        num_outputs: classes, labels or targets, of a task that takes those.
        num_clips: videos to train on.

    Raises:
        UsageError: options that do not fit the tokens or each other.
    """
    layers = layers_of(options, tuple(cache.layers))
    _, encoder_dim = check_parts(cache, layers, options.parts)
    options = sized(options, encoder_dim=encoder_dim, num_clips=num_clips).options
    config = _model_config(options, cache, layers, encoder_dim, num_outputs)
    with torch.device("meta"):
        return TemporalModel(config).config


def task_of(options: TrainOptions, caches: Sequence[FeatureCache]) -> Task[Any]:
    """The task, with what it takes from the caches.

    Raises:
        UsageError: when it needs classes and the caches have none, or options belong to another task.
    """
    if TASKS[options.task].needs_targets:
        if options.label_smoothing:
            raise UsageError(f"--label-smoothing belongs to --task classify, this is {options.task}; leave it out")
        return build_task(options.task, protocol=options.protocol)
    if options.targets:
        *takers, last = (name for name in TASKS if TASKS[name].needs_targets)
        raise UsageError(
            f"--targets is for {', '.join(takers)} and {last}; {options.task} takes the labels of the cache"
        )
    _, names = common_labels(caches)
    if options.task != TASK_OF_LABELS["classes"]:
        if options.label_smoothing:
            raise UsageError(f"--label-smoothing belongs to --task classify, this is {options.task}; leave it out")
        return build_task(options.task, protocol=options.protocol, num_classes=len(names))
    if not names:
        raise UsageError(f"{caches[0].path} has no class labels; --task {options.task} needs them")
    return build_task(
        options.task, protocol=options.protocol, num_classes=len(names), label_smoothing=options.label_smoothing
    )


def targets_of(
    caches: Sequence[FeatureCache],
    config: ModelConfig,
    *,
    paths: Sequence[Path] | None,
    device: torch.device,
) -> ClipTargets | None:
    """What is known about every frame, or about whole videos, where the task of `config` needs it.

    Raises:
        UsageError: targets that are given and not needed, or have nothing for the task. DatasetError: no such file, or
        a damaged one.
    """
    if not TASKS[config.task].needs_targets:
        if paths:
            raise UsageError(
                f"--targets is not for task {config.task}, which takes the labels of the cache; leave it out"
            )
        if config.task == TASK_OF_LABELS["classes"]:
            return None
        return LabelTargets(caches, task=config.task, device=device)
    return FrameTargets(
        caches, task=config.task, device=device, targets=paths, output_size=config.readout.get("output_size")
    )


def leg_ends(record: dict[str, Any]) -> tuple[int, ...]:
    """After which epochs the run that `record` is of begins anew, was or is to be continued; its last epoch last."""
    earlier = [leg["from"] for leg in record.get("continued", ())]
    return (*earlier, record["options"]["epochs"], *record.get("continuing", ()))


def made_otherwise(record: dict[str, Any], options: TrainOptions, caches: Sequence[FeatureCache]) -> list[str]:
    """Which options and which tokens of the run that `record` is of are not these; empty where all are the same."""
    found = options_made_otherwise(record, replace(options, task=task_of_labels(options.task, caches[0])))
    ours = cache_record(caches)
    if record.get("labels", {}).get("digest") != labels_digest(caches):
        found.append("the labels")
    if record["cache"]["fingerprint"] != ours["fingerprint"]:
        found.append("the cache's recipe")
    elif record["cache"]["ledger_digest"] != ours["ledger_digest"]:
        found.append("the cache's videos")
    return found


def options_made_otherwise(record: dict[str, Any], options: TrainOptions) -> list[str]:
    """Which options of the run that `record` is of are not these; the task as the labels say."""
    then, now = record["options"], option_values(sized_as(options, record).options, without=_MAY_DIFFER)
    return [f"{key} (run {then.get(key)}, now {now.get(key)})" for key in now | then if then.get(key) != now.get(key)]


def cache_record(caches: Sequence[FeatureCache]) -> dict[str, Any]:
    """Which caches a run was trained on, and what its weights owe to whom."""
    digests = [cache.ledger_digest for cache in caches]
    return {
        "paths": [str(cache.path) for cache in caches],
        "fingerprint": caches[0].fingerprint,
        "ledger_digest": digests[0] if len(digests) == 1 else sha256_hex(canonical_json(digests)),
        "recipe": caches[0].recipe,
        "encoder_request": caches[0].provenance.get("encoder_request"),
        "weights_license": caches[0].provenance.get("weights_license"),
    }


def labels_digest(caches: Sequence[FeatureCache]) -> str | None:
    """What decides the labels of the caches' label sets; None where they were opened without any."""
    digests = [cache.label_set.digest for cache in caches if cache.label_set]
    if len(digests) < 2:
        return digests[0] if digests else None
    return sha256_hex(canonical_json(digests))


def labels_record(caches: Sequence[FeatureCache], task: Task[Any]) -> dict[str, Any]:
    """Which label set a run was trained on, and what the task took from it."""
    kind, names = common_labels(caches)
    return {
        "name": caches[0].label_set.name if caches[0].label_set else None,
        "kind": kind,
        "names": list(names),
        "digest": labels_digest(caches),
        **(task.settings() if isinstance(task, ValuesTask) else {}),
    }


def _source(
    options: TrainOptions, caches: Sequence[FeatureCache], layers: Sequence[str], device: torch.device
) -> TokenSource:
    if not options.online:
        return CachedTokens(caches, layers=layers, parts=options.parts)
    if len(caches) > 1:
        raise UsageError(f"--online encodes the videos of one cache, {len(caches)} were given; give one of them")
    from vfz.temporal.data.online import LiveTokens  # and with it timm, which `vfz evaluate` has no need of

    return LiveTokens(
        caches[0], layers=layers, parts=options.parts, device=device, root=options.root, weights=options.weights
    )


def _model_config(
    options: TrainOptions, cache: TokenShapes, layers: tuple[str, ...], encoder_dim: int, num_outputs: int | None
) -> ModelConfig:
    check_sizes(options, encoder_dim=encoder_dim)
    asked = {
        "readout_dim": options.readout_dim,
        "num_heads": readout_heads(options),
        "mlp_hidden": options.readout_hidden,
        "output_size": options.depth_size,
        "num_frames": options.clip_frames if options.protocol == "clip" else None,
        "num_classes": num_outputs,
    }
    readout = {name: size for name, size in asked.items() if size is not None}
    for name, size in TASKS[options.task].default_sizes(int(cache.recipe["encoder"]["image_size"])).items():
        readout.setdefault(name, size)
    core = {"dropout": options.dropout, "drop_path": options.drop_path, "window": options.window}
    return ModelConfig(
        encoder_dim=encoder_dim,
        encoder_layers=layers,
        parts=options.parts,
        num_prefix=num_prefix_of(cache, layers[-1], options.parts),
        mixer=options.mixer,
        core=options.core,
        core_dim=options.core_dim or encoder_dim,
        num_layers=options.num_layers or SIZES["paper"].num_layers,
        num_heads=options.num_heads,
        core_options={name: value for name, value in core.items() if value is not None},
        task=options.task,
        protocol=options.protocol,
        readout=readout,
    )


def _name(options: TrainOptions, caches: Sequence[FeatureCache]) -> str:
    cache = caches[0].path.resolve().name + (f"-and-{len(caches) - 1}-more" if len(caches) > 1 else "")
    return f"{cache}-{options.task}-{options.core}-seed{options.seed}"
