"""What an extraction has before it: its work, whether that fits on the disk, how long it takes, when it has paid off.

Work is counted over the very tasks that the extraction will do. A video that the cache holds in another layer or view
has as many frames as there; for the others the headers of a few are read, in a child process, in some 0.2 s. One of
those that cannot be decoded has no frames, and as many of the others are taken to fail as of these few. Bytes are those
of the tokens before compression, so that what is promised to fit does.

Three stages run at the same time: decoding, in processes of their own; encoding, to which resizing on the CPU counts;
and writing. The slowest decides, and so does the number of CPU cores, which decoding and an encoder on the CPU share.

An *epoch* is one clip of every video, as `vfz train-temporal` takes it by default. With the encoder in the loop an
epoch decodes and encodes those frames, and no others, which is kinder to it than reality; with the cache it reads their
tokens of all layers from the disk. What training itself costs is the same in both, and left out. So

    payback epochs = extraction time / (time of an encoder epoch - time of a cached epoch)
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from vfz.pipeline.decoding.headers import VideoHeader, read_headers
from vfz.pipeline.errors import StorageError
from vfz.pipeline.progress import human_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from vfz.pipeline.datasets.base import VideoRecord
    from vfz.pipeline.decoding.base import VideoSource
    from vfz.pipeline.encoder.model import FrozenEncoder
    from vfz.pipeline.engine.tasks import ShardTask
    from vfz.pipeline.extraction.destination import Destination
    from vfz.pipeline.extraction.measure import Machine
    from vfz.pipeline.format.ledger import LedgerRow
    from vfz.pipeline.format.plan import PlannedVideo
    from vfz.pipeline.recipe import FrameSpec
    from vfz.pipeline.stores import Column

ItemT = TypeVar("ItemT")
NUM_HEADERS = 32
SAMPLE_SEED = 0
ODD_TIMES = 100
"""A video that says it has more than so many times the frames of most others is named: its header may be wrong."""
SHARD_BYTES = 128 * 1024
"""What a shard has besides tokens: its index, times in a chunk of their own, the store's own headers."""
SHARD_SECONDS, SHARD_GOAL_BYTES, MOST_SHARD_VIDEOS = 30.0, 256 * 10**6, 512
"""How much a shard holds at most: so long for the encoder, so many bytes of tokens, so many videos."""
CPU_BATCH = 2
"""Frames that a CPU is measured with where that is to be quick."""
ENCODE_SECONDS = 4.0
MOST_BATCHES = 20
CLIP_FRAMES = 16
"""Frames of a clip, as the default of `vfz train-temporal`."""


def estimate_work(
    tasks: Sequence[ShardTask],
    frames: FrameSpec,
    *,
    folder: Path,
    rows: Iterable[LedgerRow],
    present: Collection[str],
    decoded: Mapping[str, bool] | None = None,
) -> WorkEstimate:
    """How much work these tasks are.

    Args:
        tasks: what is to be done.
        frames: which frames of a video are taken.
        folder: the cache; need not be there.
        rows: of the cache so far.
        present: ids of the videos whose files are there.
        decoded: by id of a video that was tried, whether it could be decoded, whatever its header says.
    """
    known = {row.id: row.num_frames for row in rows if row.status == "ok"}
    to_decode = [(video.id, task) for task in tasks for video in task.videos if video.id in present]
    new = {name: task.sources[name] for name, task in to_decode if name not in known}
    sample = _sample_headers(new, frames, decoded or {})
    mean = sample.frames_per_video
    columns: dict[str, Column] = {}
    num_frames: dict[str, float] = {}
    for name, task in to_decode:
        for column in task.columns:
            columns[column.key] = column
            num_frames[column.key] = num_frames.get(column.key, 0.0) + known.get(name, mean)
    estimates = tuple(
        ColumnEstimate(
            layer=column.layer,
            part=column.part,
            num_frames=round(num_frames[key]),
            frame_bytes=sum(array.frame_bytes for array in column.arrays),
        )
        for key, column in columns.items()
    )
    total = sum(known.get(name, mean) for name, _ in to_decode)
    num_known = sum(name in known for name, _ in to_decode)
    return WorkEstimate(
        num_videos=len(to_decode),
        num_missing=sum(len(task.videos) for task in tasks) - len(to_decode),
        num_frames=round(total),
        frames_per_video=mean,
        frames_error=sample.error * mean * (len(to_decode) - num_known) / total if total else 0.0,
        frames_from=sample.source if new else "the cache" if num_known else "nothing to do",
        num_sampled=sample.num_videos,
        num_failing=sample.num_failing,
        columns=estimates,
        needed_bytes=sum(column.num_bytes for column in estimates) + SHARD_BYTES * len(tasks),
        free_bytes=free_bytes(folder),
    )


@dataclass(frozen=True, kw_only=True)
class WorkEstimate:
    """How much work is to be done.

    Attributes:
        num_videos: videos to decode whose files are there, once per view and per attempt at a set of layers.
        num_missing: those whose files are not.
        num_frames: frames to encode.
        frames_per_video: the mean of the videos whose number is not known from the cache, with none for a failing one.
        frames_error: by how much `num_frames` may be off, one standard error as a share of it.
        frames_from: what they are estimated from, for people.
        num_sampled: videos that were looked at for this.
        num_failing: those of them that cannot be decoded.
        columns: where the bytes go.
        needed_bytes: all of them, and what a shard has besides.
        free_bytes: free for this user where the cache lies, or will lie.
    """

    num_videos: int
    num_missing: int
    num_frames: int
    frames_per_video: float
    frames_error: float
    frames_from: str
    columns: tuple[ColumnEstimate, ...]
    needed_bytes: int
    free_bytes: int
    num_sampled: int = 0
    num_failing: int = 0

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.needed_bytes <= self.free_bytes


@dataclass(frozen=True, kw_only=True)
class ColumnEstimate:
    """One part of one layer, over all videos that are to get it.

    Attributes:
        layer, part: which.
        num_frames: of those videos.
        frame_bytes: of one frame's tokens, scales included, before compression.
    """

    layer: str
    part: str
    num_frames: int
    frame_bytes: int

    @property
    def num_bytes(self) -> int:
        """Of all its frames."""
        return self.num_frames * self.frame_bytes


def shard_size(
    frames: FrameSpec, records: Iterable[VideoRecord], destination: Destination
) -> Callable[[Sequence[PlannedVideo]], int]:
    """How many of the videos that are to be planned make a shard: some 30 s of encoding or 256 MB, a power of two.

    A shard is what a kill can lose. Its size decides no number, only how files are cut; it depends on the machine.

    Args:
        frames: which frames of a video are taken.
        records: the videos.
        destination: what is stored of them, and the encoder.
    """
    sources = {record.id: record.source for record in records}

    def of(videos: Sequence[PlannedVideo]) -> int:
        sample = _sample_headers({video.id: sources[video.id] for video in videos}, frames, {})
        encoder, size = destination.encoder, destination.encoder.preprocess.image_size
        frames_per_second = measure_encoder(
            encoder,
            torch.zeros(1, 3, size, size, dtype=torch.uint8),
            time_limit_seconds=0.0,
            batch_size=encoder.batch_size if encoder.device.type == "cuda" else min(encoder.batch_size, CPU_BATCH),
        )
        frame_bytes = sum(array.frame_bytes for column in destination.contents.columns for array in column.arrays)
        num_frames = min(SHARD_SECONDS * frames_per_second, SHARD_GOAL_BYTES / frame_bytes)
        num_videos = min(num_frames / max(1.0, sample.frames_per_video), MOST_SHARD_VIDEOS)
        return 1 << max(0, int(math.log2(num_videos)) if num_videos >= 1 else 0)

    return of


def check_space(work: WorkEstimate, folder: Path, *, force: bool) -> None:
    """Refuse to begin what will not fit.

    Raises:
        StorageError: when it does not, unless `force`.
    """
    if work.fits or force:
        return
    raise StorageError(
        f"{folder} needs about {human_bytes(work.needed_bytes)} for {work.num_frames} frames and "
        f"{human_bytes(work.free_bytes)} are free there (frames from {work.frames_from}); free some space, choose "
        "another --out, store less (--layers, --parts, --precision, --fps), or begin anyway with --force"
    )


def forecast(work: WorkEstimate, machine: Machine) -> Forecast:
    """How long the work will take on such machines; there must be some work."""
    num_clip_frames = min(CLIP_FRAMES, work.num_frames / work.num_videos) * work.num_videos
    num_clip_bytes = work.needed_bytes * num_clip_frames / work.num_frames
    stages = _stage_seconds(machine, work.num_frames) | {
        "write": work.needed_bytes / machine.num_shares / machine.write_bytes_per_second
    }
    seconds = max(*stages.values(), _core_seconds(machine, work.num_frames))
    encoder_epoch = max(
        *_stage_seconds(machine, num_clip_frames).values(),
        _core_seconds(machine, num_clip_frames),
    )
    cached_epoch = num_clip_bytes / machine.num_shares / machine.read_bytes_per_second
    return Forecast(
        stage_seconds=stages,
        bottleneck=max(stages, key=lambda name: stages[name]),
        seconds=seconds,
        encoder_epoch_seconds=encoder_epoch,
        cached_epoch_seconds=cached_epoch,
        payback_epochs=seconds / (encoder_epoch - cached_epoch) if encoder_epoch > cached_epoch else None,
    )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """How long an extraction takes, and when it has paid off.

    Attributes:
        stage_seconds: how long each stage would take if it were the only one.
        bottleneck: the longest of them.
        seconds: how long the extraction will take.
        encoder_epoch_seconds: to decode and encode one clip of every video.
        cached_epoch_seconds: to read its tokens instead.
        payback_epochs: after how many epochs the extraction has taken no longer than the encoder in the loop would
            have; None where reading is slower than encoding, so that it never does.
    """

    stage_seconds: Mapping[str, float]
    bottleneck: str
    seconds: float
    encoder_epoch_seconds: float
    cached_epoch_seconds: float
    payback_epochs: float | None


def draw(items: Sequence[ItemT], count: int) -> list[ItemT]:
    """Up to `count` of the items, drawn by a seed: always the same ones, and for a smaller count the first of them."""
    drawn = np.random.default_rng(SAMPLE_SEED).permutation(len(items))[:count]
    return [items[number] for number in drawn]


def expected_frames(header: VideoHeader, frames: FrameSpec) -> int | None:
    """How many frames are taken of a video with this header, None where it does not tell; it may be off by a frame."""
    if frames.num_frames is not None:
        return frames.num_frames
    if header.duration_seconds is None:
        return None
    end_seconds = min(header.duration_seconds, frames.end_seconds or math.inf)
    shown_seconds = max(0.0, end_seconds - frames.start_seconds)
    rate = min(
        frames.fps or math.inf, header.frames_per_second or math.inf
    )  # a frame is given once however long it is on display
    return math.ceil(shown_seconds * rate - 1e-6)


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """What a few videos say of all: mean frames of a video, its standard error as a share of it, how that is known."""

    frames_per_video: float = 0.0
    error: float = 0.0
    source: str = ""
    num_videos: int = 0
    num_failing: int = 0


def _sample_headers(sources: Mapping[str, VideoSource], frames: FrameSpec, decoded: Mapping[str, bool]) -> _Sample:
    drawn = draw(list(sources), NUM_HEADERS)
    headers = read_headers([sources[name] for name in drawn]) if drawn else []
    # Damage behind a good header is found by decoding, of which there was little: the rest has as much of it.
    tried = [decoded[name] for name, header in zip(drawn, headers, strict=True) if header and name in decoded]
    damaged = tried.count(False) / len(tried) if tried else 0.0
    counts: list[float] = []
    said: list[tuple[int, str]] = []
    num_failing = num_silent = num_untried = 0
    for name, header in zip(drawn, headers, strict=True):
        if header is None or not decoded.get(name, True):
            num_failing += 1
            counts.append(0)
        elif (count := expected_frames(header, frames)) is None:
            num_silent += 1
        else:
            said.append((count, name))
            num_untried += name not in decoded
            counts.append(count if name in decoded else count * (1 - damaged))
    known_from = f"the headers of {len(counts) - num_failing} videos"
    if frames.num_frames is not None:
        known_from = f"--frames {frames.rule}"
    if num_silent:
        known_from += f"; {num_silent} more say nothing"
    if num_failing:
        known_from += f"; {num_failing} of the {len(drawn)} looked at cannot be decoded"
    if damaged and num_untried:
        known_from += f", nor {damaged:.0%} of the others, as of those that were tried"
    if said and max(said)[0] > ODD_TIMES * max(1, statistics.median_low(said)[0]):
        known_from += f"; {max(said)[1]!r} alone says {max(said)[0]}: look whether that is true"
    mean = statistics.fmean(counts) if counts else 0.0
    # Of all videos there is nothing left to be wrong about.
    left = 1 - len(counts) / len(sources) if sources else 0.0
    variance = statistics.variance(counts) / len(counts) * left if len(counts) > 1 else 0.0
    if num_untried and 0 < damaged < 1:
        variance += (mean / (1 - damaged)) ** 2 * damaged * (1 - damaged) / len(tried)
    return _Sample(
        frames_per_video=mean,
        error=math.sqrt(variance) / mean if mean else 0.0,
        source=known_from,
        num_videos=len(drawn),
        num_failing=num_failing,
    )


def _stage_seconds(machine: Machine, num_frames: float) -> dict[str, float]:
    share = num_frames / machine.num_shares
    num_decoders = min(machine.num_decoders, machine.num_cores)
    num_encoders = machine.num_encoders
    if machine.encoder_cores:
        num_encoders = min(num_encoders, max(1, machine.num_cores // machine.encoder_cores))
    return {
        "decode": share / (machine.decode_frames_per_second * num_decoders),
        "encode": share / (machine.encode_frames_per_second * num_encoders),
    }


def _core_seconds(machine: Machine, num_frames: float) -> float:
    """How long all cores are busy with what has to be done on them."""
    per_frame = 1 / machine.decode_frames_per_second + machine.encoder_cores / machine.encode_frames_per_second
    return num_frames / machine.num_shares * per_frame / machine.num_cores


def measure_encoder(
    encoder: FrozenEncoder,
    sample_BCHW: Tensor,
    *,
    time_limit_seconds: float = ENCODE_SECONDS,
    batch_size: int | None = None,
) -> float:
    """Frames per second of the encoder alone, on full batches (or such of another size) made of `sample_BCHW`."""
    batch_size = batch_size or encoder.batch_size
    repeats = -(-batch_size // len(sample_BCHW))
    batch_BCHW = sample_BCHW.repeat(repeats, 1, 1, 1)[:batch_size]
    _encode(encoder, batch_BCHW)  # the first one chooses kernels
    started = time.perf_counter()
    num_batches = 0
    while num_batches < MOST_BATCHES and (not num_batches or time.perf_counter() - started < time_limit_seconds):
        _encode(encoder, batch_BCHW)
        num_batches += 1
    return num_batches * batch_size / (time.perf_counter() - started)


def _encode(encoder: FrozenEncoder, batch_BCHW: Tensor) -> None:
    encoder.encode(batch_BCHW)
    if encoder.device.type == "cuda":
        torch.cuda.synchronize(encoder.device)


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write in a folder, or where it would be made."""
    system = os.statvfs(existing_parent(folder))
    return system.f_bavail * system.f_frsize


def existing_parent(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())
