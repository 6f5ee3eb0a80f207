"""What a process needs to make shards of a cache, and what it hands back: records that may be pickled.

One `ExtractionJob` serves a whole run; a `ShardTask` is the work on one shard and a `ShardResult` its outcome. Engines
send them to other processes and machines, so they hold names and numbers only: the weights are loaded, and the recipe
and the contents read from the cache's folder, where the work is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vfz.pipeline.source import VideoSource

if TYPE_CHECKING:
    from vfz.pipeline.encoder.model import FrozenEncoder
    from vfz.pipeline.format.ledger import LedgerRow
    from vfz.pipeline.format.plan import PlannedVideo
    from vfz.pipeline.stores import Column


@dataclass(frozen=True, kw_only=True)
class EncoderRequest:
    """What it takes to build the encoder, as `load_encoder` takes it; the same in any process.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; settled by the process that does the work.
    """

    name: str
    layers: tuple[str, ...] | None = None
    image_size: int | None = None
    weights: Path | None = None
    random_weights: bool = False
    seed: int = 0
    device: str = "auto"
    autocast: str = "float32"
    batch_size: int = 32
    channels_last: bool = False
    compile: bool = False

    def load(self) -> FrozenEncoder:
        """Builds the encoder; see `load_encoder` for what is raised."""
        from vfz.pipeline.devices import choose_device
        from vfz.pipeline.encoder.model import load_encoder

        return load_encoder(
            self.name,
            layers=self.layers,
            image_size=self.image_size,
            weights=self.weights,
            random_weights=self.random_weights,
            seed=self.seed,
            device=choose_device(self.device),
            autocast=self.autocast,
            batch_size=self.batch_size,
            channels_last=self.channels_last,
            compile_model=self.compile,
        )


@dataclass(frozen=True, kw_only=True)
class ExtractionJob:
    """How the shards of one cache are made.

    Attributes:
        cache: its folder, which is there; its recipe and contents are read from it.
        encoder: what its tokens are made with.
        num_workers: decode processes.
        time_limit_seconds: how long a decode process may work on one video.
    """

    cache: Path
    encoder: EncoderRequest
    num_workers: int
    time_limit_seconds: float


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One commit still to be made.

    Attributes:
        shard, plan: which shard, of which plan.
        number: of the commit: 0 for the shard's first, more for one that adds columns.
        columns: what it stores.
        videos: whose frames, in stored order.
        sources: where each video lies now, by id (a plan records where it was).
        attempts: how often each was tried before, where it was.
        first_rows: rows of the shard's first commit, where this one adds to it: frames must come out as there.
    """

    shard: str
    plan: int
    number: int
    columns: tuple[Column, ...]
    videos: tuple[PlannedVideo, ...]
    sources: Mapping[str, VideoSource]
    attempts: Mapping[tuple[str, int], int]
    first_rows: Mapping[tuple[str, int], LedgerRow] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What came of a task.

    Attributes:
        task: which.
        rows: of its videos; empty when another process committed first, whose rows stand.
        committed: whether this process's tokens are now the shard's.
        started_seconds: when it was begun, on that process's performance counter.
        seconds: from then to the commit.
        stage_seconds: how long each stage was at work on it, by name; of decoding, the mean over its processes.
        num_frames: frames encoded, those of videos that failed later included.
        num_bytes: of the data committed.
        batch_size: frames encoded at a time in the end, fewer than asked for where memory did not suffice.
        host, pid: which process made it.
    """

    task: ShardTask
    rows: tuple[LedgerRow, ...]
    committed: bool
    started_seconds: float
    seconds: float
    stage_seconds: Mapping[str, float]
    num_frames: int
    num_bytes: int
    batch_size: int
    host: str
    pid: int
