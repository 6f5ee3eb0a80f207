"""How long an extraction will take, what will hold it up, and when the cache has paid for itself.

Three stages run at the same time: decoding, in processes of their own; encoding, which resizing on the CPU counts to;
and writing. The slowest decides, and so does the number of CPU cores, which decoding and an encoder on the CPU share.

An *epoch* is one clip of every video, as `vfz train-temporal` takes it by default. With the encoder in the loop an
epoch decodes and encodes those frames, and no others, which is kinder to it than reality; with the cache it reads their
tokens of all layers from the disk. What training itself costs is the same in both, and left out. So

    payback epochs = extraction time / (time of an encoder epoch - time of a cached epoch)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfz.pipeline.extraction.estimate import WorkEstimate

CLIP_FRAMES = 16
"""Frames of a clip, as the default of `vfz train-temporal`."""


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


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the figures come to.

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


def forecast(work: WorkEstimate, machine: Machine) -> Forecast:
    """How long the work, which must be some, will take on such machines."""
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
