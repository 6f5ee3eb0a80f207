"""What an extraction works on: records that engines send to processes, and records that stages hand on to each other.

One `ExtractionJob` serves a whole run; a `ShardTask` is the work on one shard, and a `ShardResult` its outcome. Engines
send them to other processes and machines, so they hold names and numbers only: the weights are loaded, and the recipe
and the contents read from the cache's folder, where the work is done.

Within a process the stages hand on a `ShardInProgress`, then batches of its frames or of its tokens, then its end.
These records are shared by the threads; each field is written by one stage only, named with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.files import text_of_name
from vfz.pipeline.format.ledger import LedgerRow, VideoKey

if TYPE_CHECKING:
    from torch import Tensor

    from vfz.pipeline.encoder.model import EncoderRequest
    from vfz.pipeline.engine.threads import HostCopy
    from vfz.pipeline.format.folder import CacheFolder
    from vfz.pipeline.format.plan import PlannedVideo
    from vfz.pipeline.stores import Column

DECODE, PREPARE, ENCODE, WRITE = STAGES = ("decode", "prepare", "encode", "write")
"""The stages, in the order frames pass them."""
COPY = "copy"
"""What the writer waits for tokens of a GPU; counted as encoding in the end."""


@dataclass(frozen=True, kw_only=True)
class ExtractionJob:
    """How the shards of one cache are made.

    Attributes:
        cache: its folder, which is there.
        encoder: what its tokens are made with.
        num_workers: decode processes.
        time_limit_seconds: how long a decode process may work on one video.
    """

    cache: CacheFolder
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
    attempts: Mapping[VideoKey, int]
    first_rows: Mapping[VideoKey, LedgerRow] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What came of a task.

    Attributes:
        task: which.
        rows: of its videos; empty when another process committed first, whose rows stand.
        committed: whether this process's tokens are now the shard's.
        is_whole: False where it was asked to stop before the last video: the others are pending, and if none was done,
            nothing was committed.
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
    is_whole: bool
    started_seconds: float
    seconds: float
    stage_seconds: Mapping[str, float]
    num_frames: int
    num_bytes: int
    batch_size: int
    host: str
    pid: int


@dataclass(eq=False)
class ShardInProgress:
    """A shard on its way.

    Attributes:
        task: what is to be made.
        videos: its videos, in stored order.
        started: when the feeder began with it, on the performance counter.
        stage_seconds: how long each stage has worked on it, each its own.
        num_frames: by the encoder's thread: frames encoded.
        batch_size: by the same: frames at a time at the end, less than asked for where memory did not suffice.
    """

    task: ShardTask
    videos: tuple[VideoInProgress, ...]
    started: float = field(default_factory=time.perf_counter)
    stage_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*STAGES, COPY), 0.0))
    num_frames: int = 0
    batch_size: int = 0


@dataclass(eq=False)
class VideoInProgress:
    """A video on its way through its shard.

    Attributes:
        digest, missing, decode_reason: by the feeder; the reason why it cannot be decoded, empty where it can.
        is_left: by the feeder, too: it was asked to stop before this video's end.
        frame_start, num_frames, last_pts_seconds, token_reason: by the writer; the reason why its tokens are refused.
    """

    planned: PlannedVideo
    digest: str | None = None
    missing: bool = False
    decode_reason: str = ""
    is_left: bool = False
    frame_start: int = 0
    num_frames: int = 0
    last_pts_seconds: float = 0.0
    token_reason: str = ""

    @property
    def reason(self) -> str:
        """Why it cannot be in the cache; empty where it can, so far."""
        return self.token_reason or self.decode_reason

    @property
    def is_dropped(self) -> bool:
        """Whether nothing of it is to stay in the store."""
        return self.is_left or bool(self.reason)

    def row(self, task: ShardTask) -> LedgerRow:
        """What the ledger says of it, when the shard is complete."""
        if self.is_left:
            return self.planned.pending_row(task.shard, attempts=task.attempts.get(self.planned.key, 0))
        planned, ok = self.planned, not self.reason
        return LedgerRow(
            id=planned.id,
            view=planned.view,
            split=planned.split,
            label=planned.label,
            status="ok" if ok else "missing" if self.missing else "failed",
            reason=text_of_name(self.reason),
            attempts=task.attempts.get(planned.key, 0) + (not self.missing),
            num_frames=self.num_frames if ok else 0,
            frame_start=self.frame_start if ok else 0,
            shard=task.shard,
            source_digest=self.digest,
            source_path=text_of_name(str(task.sources[planned.id].absolute())),
            duration_seconds=self.last_pts_seconds if ok else 0.0,
            folds=planned.folds,
        )


@dataclass(frozen=True, kw_only=True)
class FrameBatch:
    """Frames for the encoder, each with the video it is of.

    Attributes:
        shard: theirs.
        pixels_BCHW: uint8, on the encoder's device.
        videos, pts_seconds: [B].
        num_videos: that have come to their end since the message before.
    """

    shard: ShardInProgress
    pixels_BCHW: Tensor
    videos: Sequence[VideoInProgress]
    pts_seconds: Sequence[float]
    num_videos: int


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """The same frames as they are stored.

    Attributes:
        shard: theirs.
        arrays: on their way to the CPU.
        largest: as of `vfz.pipeline.engine.columns.largest_of`, on their way too.
        videos, pts_seconds: [B].
        num_videos: that have come to their end since the message before.
        encode_seconds: how long the encoder took.
        batch_size: frames that it took at a time.
    """

    shard: ShardInProgress
    arrays: HostCopy
    largest: HostCopy
    videos: Sequence[VideoInProgress]
    pts_seconds: Sequence[float]
    num_videos: int
    encode_seconds: float
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class ShardEnd:
    """No more frames of that shard will come.

    Attributes:
        num_videos: that have come to their end since the message before.
    """

    shard: ShardInProgress
    num_videos: int


@dataclass(frozen=True, kw_only=True)
class AllEnd:
    """No more shards will come."""


FromFeeder = ShardInProgress | FrameBatch | ShardEnd | AllEnd
ToWriter = ShardInProgress | EncodedBatch | ShardEnd | AllEnd
