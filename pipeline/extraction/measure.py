"""What a machine manages: decoder and disk measured for a few seconds, each alone, and the figures together.

Nothing is left behind: the file that the disk is measured with has no name.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vfz.pipeline.decoding.pool import DecodePool
from vfz.pipeline.errors import DecodeError
from vfz.pipeline.files import storage_errors

if TYPE_CHECKING:
    from torch import Tensor

    from vfz.pipeline.decoding.base import VideoSource
    from vfz.pipeline.encoder.transforms import Preprocess
    from vfz.pipeline.recipe import FrameSpec

DECODE_SECONDS = 4.0
DISK_SECONDS = 2.0
DISK_BYTES = 256 * 2**20
_PIECE_BYTES = 4 * 2**20


def measure_decoding(
    sources: Sequence[VideoSource],
    frames: FrameSpec,
    preprocess: Preprocess,
    *,
    num_samples: int,
    time_limit_seconds: float = DECODE_SECONDS,
) -> tuple[DecodingRates, Tensor, dict[int, bool]]:
    """Decodes the videos in one process until the time is over.

    Returns:
        the rates; the first frames as the encoder takes them: uint8, at most `num_samples` of them, at least one; by
        place in `sources` whether a video could be decoded, of those that were decoded to their end.
    """
    num_videos = num_frames = 0
    decoded: dict[int, bool] = {}
    samples: list[Tensor] = []
    resize_seconds = 0.0
    with DecodePool(frames, num_workers=1, time_limit_seconds=2 * time_limit_seconds) as pool:
        until = time.monotonic() + time_limit_seconds
        for stream in pool.videos(sources):
            num_videos += 1
            try:
                for frame in stream:
                    num_frames += 1
                    if len(samples) < num_samples:
                        started = time.perf_counter()
                        samples.append(preprocess.resize_crop(frame.pixels_HWC))
                        resize_seconds += time.perf_counter() - started
                    if time.monotonic() > until:
                        break
                else:
                    decoded[num_videos - 1] = True
            except DecodeError:
                if time.monotonic() < until:  # later it may be for the time alone, which is short here
                    decoded[num_videos - 1] = False
            if time.monotonic() > until:
                break
        figures = pool.figures
    if not samples:
        samples.append(torch.zeros(3, preprocess.image_size, preprocess.image_size, dtype=torch.uint8))
    rates = DecodingRates(
        num_videos=num_videos,
        num_failed=list(decoded.values()).count(False),
        frames_per_second=num_frames / figures.busy_seconds if num_frames else 0.0,
        source_frames_per_second=figures.num_decoded / figures.busy_seconds if num_frames else 0.0,
        resized_per_second=len(samples) / resize_seconds if num_frames else 0.0,
    )
    return rates, torch.stack(samples), decoded


@dataclass(frozen=True, kw_only=True)
class DecodingRates:
    """What one decode process manages.

    Attributes:
        num_videos: decoded for this; of the last one perhaps only a part.
        num_failed: those of them that could not be decoded.
        frames_per_second: frames taken, by one process, as the recipe's rule wants them; 0 where there was none.
        source_frames_per_second: all frames that were decoded to get at those.
        resized_per_second: frames resized and cropped, by one thread; 0 where there was none.
    """

    num_videos: int
    num_failed: int
    frames_per_second: float
    source_frames_per_second: float
    resized_per_second: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What does the work, and how fast it was measured to be.

    Attributes:
        num_cores: CPU cores this process may use.
        num_encoders: encoders that run at the same time, on a GPU each or sharing the CPU.
        encoder_cores: CPU cores that each of them computes on; 0 on a GPU.
        num_decoders: decode processes, of all encoders together.
        num_shares: machines like this one that the work is dealt to.
        decode_frames_per_second: of one decode process.
        encode_frames_per_second: of one encoder, resizing included where the CPU does it.
        write_bytes_per_second, read_bytes_per_second: of the disk.
    """

    num_cores: int
    num_encoders: int
    encoder_cores: int
    num_decoders: int
    num_shares: int
    decode_frames_per_second: float
    encode_frames_per_second: float
    write_bytes_per_second: float
    read_bytes_per_second: float


def measure_disk(folder: Path, *, free_bytes: int, time_limit_seconds: float = DISK_SECONDS) -> DiskRates:
    """Writes and reads a file without a name in `folder`, of at most a quarter of what is free there.

    Raises:
        StorageError: when the folder cannot be written.
    """
    piece = os.urandom(_PIECE_BYTES)
    num_pieces = max(1, min(DISK_BYTES, free_bytes // 4) // _PIECE_BYTES)
    with storage_errors(folder), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        started = time.perf_counter()
        num_written = 0
        while num_written < num_pieces and (not num_written or time.perf_counter() - started < time_limit_seconds):
            file.write(piece)
            num_written += 1
        os.fsync(file.fileno())
        written_seconds = time.perf_counter() - started
        if hasattr(os, "posix_fadvise"):  # not on macOS, where the figure is then the memory's
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        started = time.perf_counter()
        num_read = 0
        while file.read(_PIECE_BYTES):
            num_read += 1
        read_seconds = time.perf_counter() - started
    return DiskRates(
        write_bytes_per_second=num_written * _PIECE_BYTES / written_seconds,
        read_bytes_per_second=num_read * _PIECE_BYTES / read_seconds,
    )


@dataclass(frozen=True, kw_only=True)
class DiskRates:
    """What the disk under a folder manages: one file, written and synced, then read from the disk again."""

    write_bytes_per_second: float
    read_bytes_per_second: float
