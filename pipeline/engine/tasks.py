"""What the stages of an extraction hand on: a shard and its videos on their way, batches of frames, batches of tokens.

Records of shards and videos are shared by the threads; each field is written by one stage only, named with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vfz.pipeline.format.ledger import LedgerRow

if TYPE_CHECKING:
    from torch import Tensor

    from vfz.pipeline.format.plan import PlannedVideo
    from vfz.pipeline.host_copy import HostCopy
    from vfz.pipeline.job import ShardTask

DECODE, PREPARE, ENCODE, WRITE = STAGES = ("decode", "prepare", "encode", "write")
"""The stages, in the order frames pass them."""
COPY = "copy"
"""What the writer waits for tokens of a GPU; counted as encoding in the end."""


@dataclass(eq=False)
class VideoInHand:
    """A video on its way through its shard.

    Attributes:
        digest, missing, decode_reason: by the feeder; the reason why it cannot be decoded, empty where it can.
        frame_start, num_frames, last_pts_seconds, token_reason: by the writer; the reason why its tokens are refused.
    """

    planned: PlannedVideo
    digest: str | None = None
    missing: bool = False
    decode_reason: str = ""
    frame_start: int = 0
    num_frames: int = 0
    last_pts_seconds: float = 0.0
    token_reason: str = ""

    @property
    def reason(self) -> str:
        """Why it is not in the cache; empty where it is, so far."""
        return self.token_reason or self.decode_reason

    def row(self, task: ShardTask) -> LedgerRow:
        """What the ledger says of it, when the shard is complete."""
        planned, ok = self.planned, not self.reason
        return LedgerRow(
            id=planned.id,
            view=planned.view,
            split=planned.split,
            label=planned.label,
            status="ok" if ok else "missing" if self.missing else "failed",
            reason=self.reason,
            attempts=task.attempts.get(planned.key, 0) + (not self.missing),
            num_frames=self.num_frames if ok else 0,
            frame_start=self.frame_start if ok else 0,
            shard=task.shard,
            source_digest=self.digest,
            source_path=str(task.sources[planned.id].absolute()),
            duration_seconds=self.last_pts_seconds if ok else 0.0,
            folds=planned.folds,
        )


@dataclass(eq=False)
class ShardInHand:
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
    videos: tuple[VideoInHand, ...]
    started: float = field(default_factory=time.perf_counter)
    stage_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*STAGES, COPY), 0.0))
    num_frames: int = 0
    batch_size: int = 0


@dataclass(frozen=True, kw_only=True)
class FrameBatch:
    """Frames for the encoder, each with the video it is of.

    Attributes:
        shard: theirs.
        pixels_BCHW: uint8, on the encoder's device.
        videos, pts_seconds: [B].
        num_videos: that have come to their end since the message before.
    """

    shard: ShardInHand
    pixels_BCHW: Tensor
    videos: Sequence[VideoInHand]
    pts_seconds: Sequence[float]
    num_videos: int


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """The same frames as they are stored.

    Attributes:
        shard: theirs.
        arrays: on their way to the CPU.
        videos, pts_seconds: [B].
        num_videos: that have come to their end since the message before.
        encode_seconds: how long the encoder took.
        batch_size: frames that it took at a time.
    """

    shard: ShardInHand
    arrays: HostCopy
    videos: Sequence[VideoInHand]
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

    shard: ShardInHand
    num_videos: int


@dataclass(frozen=True, kw_only=True)
class AllEnd:
    """No more shards will come."""


FromFeeder = ShardInHand | FrameBatch | ShardEnd | AllEnd
ToWriter = ShardInHand | TokenBatch | ShardEnd | AllEnd
