"""What a run is made of, its steps, and what its record says of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.files import canonical_json, sha256_hex
from vfz.temporal.data.loader import ClipBatch, ClipLoader
from vfz.temporal.model import TemporalModel
from vfz.temporal.tasks import Task
from vfz.temporal.training.distributed import Ranks
from vfz.temporal.training.eval_clips import EvalClips
from vfz.temporal.training.options import TrainOptions

_MAY_DIFFER = frozenset(
    {"out", "name", "resume", "cache", "targets", "root", "weights", "device", "checkpointing", "tensorboard"}
    | {"checkpoint_seconds", "checkpoint_steps"}
)
"""Options that change no number, so that a run may be resumed with others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Experiment:
    """What is trained on what.

    Attributes:
        options: as given.
        ranks: this process among those of the run.
        caches: where the tokens come from.
        path: the run folder.
        model: with fresh weights, on the device.
        task: its loss and metrics.
        train_clips: clips to train on, in batches of one part of a step.
        num_short: training videos shorter than a clip, whose last frame is repeated and masked.
        eval_clips: clips to evaluate on.
    """

    options: TrainOptions
    ranks: Ranks
    caches: tuple[FeatureCache, ...]
    path: Path
    model: TemporalModel
    task: Task[Any]
    train_clips: ClipLoader
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

    def steps(self, epoch: int, *, first: int = 0) -> Iterator[list[ClipBatch]]:
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
            "options": _plain_options(self.options),
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
        }

    def differences(self, record: dict[str, Any]) -> list[str]:
        """Why the run that `record` is of cannot be resumed as this one; empty where it can."""
        ours = self.record()
        machine = [
            f"{name} (run {record[key]}, now {ours[key]})"
            for key, name in (("device_type", "the device"), ("num_processes", "the number of processes"))
            if record[key] != ours[key]
        ]
        return made_otherwise(record, self.options, self.caches) + machine


def made_otherwise(record: dict[str, Any], options: TrainOptions, caches: Sequence[FeatureCache]) -> list[str]:
    """Which options and which tokens of the run that `record` is of are not these; empty where all are the same."""
    found = [
        f"{key} (run {record['options'].get(key)}, now {value})"
        for key, value in _plain_options(options).items()
        if record["options"].get(key) != value
    ]
    ours = cache_record(caches)
    if record["cache"]["fingerprint"] != ours["fingerprint"]:
        found.append("the cache's recipe")
    elif record["cache"]["ledger_digest"] != ours["ledger_digest"]:
        found.append("the cache's videos")
    return found


def cache_record(caches: Sequence[FeatureCache]) -> dict[str, Any]:
    """Which caches a run was trained on, and what its weights owe to whom."""
    digests = [cache.ledger_digest for cache in caches]
    return {
        "paths": [str(cache.path) for cache in caches],
        "fingerprint": caches[0].fingerprint,
        "ledger_digest": digests[0] if len(digests) == 1 else sha256_hex(canonical_json(digests)),
        "recipe": caches[0].recipe,
        "weights_license": caches[0].provenance.get("weights_license"),
    }


def _plain_options(options: TrainOptions) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {key: plain(value) for key, value in dataclasses.asdict(options).items() if key not in _MAY_DIFFER}
