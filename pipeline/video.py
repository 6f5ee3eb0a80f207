"""A video file's frames at a fixed rate, by their presentation times.

Sample k is the frame on display at `start + k / fps`: the last one whose presentation time is not later. Decoders give
frames in presentation order whatever order they were coded in, so B-frames need no care; variable frame rates need
none either, since only times are looked at and no frame numbers.

"Decoded in full" is meant literally: damage that a player would paper over is a `DecodeError`, and so is a file that
ends before its own index or header says. Frames already given are then to be thrown away by the caller.

Colours follow the frame's own matrix (BT.601, BT.709, BT.2020) and range (studio or full) as swscale reads them;
without either, BT.601 studio range, as ffmpeg does. Rotation and mirroring in the display matrix are applied.

Cost: one sequential pass, in one decoder thread (the same bytes on every run, and workers scale by processes), holding
two decoded frames; only the frames given are converted to RGB. What lies behind `end_seconds` is not read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import stat
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.codec.context import ThreadType
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition

from vfz.pipeline.errors import DecodeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from av.container import InputContainer
    from av.video.stream import VideoStream

DECODER = "pyav"
DECODER_VERSION = 1

AV_TIME_BASE = 1_000_000  # ticks per second of a container's own duration
DEFAULT_FRAME_SECONDS = 1 / 25  # where a file gives neither a duration nor a rate
# How much of a frame's time rounding may cost. Matroska rounds to milliseconds, GIF to hundredths of a second.
TOLERANCE_FRAMES = 0.1
TOLERANCE_TICKS = 0.51
# Containers with a duration in their header, and by how much a whole file may fall short of it: the larger of the two.
# (An MP4's index is exact and checked frame by frame.)
HEADER_DURATION_FORMATS = {"matroska", "flv"}
MISSING_SECONDS = 0.5
MISSING_FRACTION = 0.01


@dataclass(frozen=True, kw_only=True)
class VideoFrame:
    """One frame.

    Attributes:
        pixels_HWC: uint8 RGB.
        pts_seconds: the frame's own presentation time, in seconds from the first frame shown.
    """

    pixels_HWC: np.ndarray
    pts_seconds: float


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A decoded frame and the samples it is for: those at or after `begin_seconds` and before `until_seconds`."""

    frame: av.VideoFrame
    begin_seconds: float
    until_seconds: float


def decode_frames(
    path: Path, *, fps: float, start_seconds: float = 0.0, end_seconds: float | None = None
) -> Iterator[VideoFrame]:
    """Frames on display at `start_seconds + k / fps`, before `end_seconds` and the end of the video.

    A frame is given once however many samples it is on display for, so a video slower than `fps` gives each of its
    frames once, and presentation times strictly increase. The last frame stays until its duration ends.

    Args:
        path: a video file; its first video stream that is not a cover picture.
        fps: samples per second.
        start_seconds: where to begin, from the first frame shown.
        end_seconds: where to end, exclusive; None for the end of the video.

    Yields:
        frames in order of time.

    Raises:
        DecodeError: while iterating: the file is not there, is no video, is damaged or cut short, or has no frame in
            the window.
        UsageError: at once: the rate or the window makes no sense.
    """
    if not 0 < fps < float("inf"):
        raise UsageError(f"fps {fps} is not a rate; give frames per second above 0")
    if not start_seconds >= 0 or (end_seconds is not None and not end_seconds > start_seconds):
        raise UsageError(f"the window from {start_seconds} s to {end_seconds} s is empty; give 0 <= start < end")
    return _sample(path, fps=fps, start_seconds=start_seconds, end_seconds=end_seconds)


def _sample(path: Path, *, fps: float, start_seconds: float, end_seconds: float | None) -> Iterator[VideoFrame]:
    """See `decode_frames`: the sampling, and every way a file can fail as a `DecodeError`."""
    num_samples = num_given = 0
    seconds = 0.0
    try:
        with contextlib.closing(_shown_frames(path)) as frames:
            for shown in frames:
                # From the number of the sample and not step by step: long videos must not drift.
                due_seconds = start_seconds + num_samples / fps
                if end_seconds is not None and due_seconds >= end_seconds - 1e-9:
                    break
                seconds = shown.until_seconds
                if due_seconds < seconds:
                    yield VideoFrame(pixels_HWC=_upright_rgb(shown.frame), pts_seconds=shown.begin_seconds)
                    num_given += 1
                    num_samples = max(num_samples + 1, math.ceil((seconds - start_seconds) * fps))
    except FileNotFoundError as error:
        raise DecodeError(f"{path.name}: the file is not there") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        where = f"damaged after {seconds:.2f} s" if seconds else "cannot be read as a video"
        raise DecodeError(f"{path.name}: {where} ({reason})") from error
    if not num_given:
        raise DecodeError(f"{path.name}: no frame is on display from {start_seconds} s on; it ends at {seconds:.2f} s")


def _shown_frames(path: Path) -> Generator[_Shown, None, None]:
    """All frames of the video in order of presentation, each with the time it is on display."""
    details = path.stat()
    if not stat.S_ISREG(details.st_mode):
        raise DecodeError(f"{path.name}: is no regular file")
    if not details.st_size:
        raise DecodeError(f"{path.name}: the file is empty")
    # `file:` and the whitelist: a name with a colon is no protocol, and a playlist opens nothing else.
    with av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
        stream = _video_stream(path, container)
        rate = stream.average_rate or stream.guessed_rate
        frame_seconds = float(1 / rate) if rate else DEFAULT_FRAME_SECONDS
        tolerance_seconds = min(TOLERANCE_TICKS * float(stream.time_base or 0), TOLERANCE_FRAMES * frame_seconds)
        first_pts: int | None = None
        held: _Shown | None = None
        for frame in _decoded(path, container, stream):
            time_base = frame.time_base or stream.time_base or Fraction(1, AV_TIME_BASE)
            first_pts = frame.pts if first_pts is None else first_pts
            if frame.pts is not None and first_pts is not None:
                begin = float((frame.pts - first_pts) * time_base)
            else:
                begin = held.until_seconds if held else 0.0
            duration = float(frame.duration * time_base) if frame.duration else frame_seconds
            if held:
                if begin < held.begin_seconds:
                    raise DecodeError(
                        f"{path.name}: presentation times go back from {held.begin_seconds} s to {begin} s"
                    )
                yield dataclasses.replace(held, until_seconds=begin - tolerance_seconds)
            until = begin + duration - min(tolerance_seconds, duration / 2)
            held = _Shown(frame=frame, begin_seconds=begin, until_seconds=until)
        if held is None:
            raise DecodeError(f"{path.name}: holds no frame that can be decoded")
        yield held


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    """The first video stream that is no cover picture, set to decode in one thread and to hide no damage."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise DecodeError(f"{path.name}: holds no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        raise DecodeError(f"{path.name}: its video codec is unknown, and cannot be decoded")
    stream.codec_context.thread_type = ThreadType.NONE
    stream.codec_context.thread_count = 1
    # Without this, decoders invent what is missing and report success.
    stream.codec_context.options = {"err_detect": "explode"}
    return stream


def _decoded(path: Path, container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Every frame of a stream to the end of the file, which must be the end that the file itself promises."""
    num_packets = 0
    reached_seconds = 0.0  # by any stream: sound may go on when the picture has ended
    for packet in container.demux():
        if packet.pts is not None and packet.time_base is not None:
            reached_seconds = max(reached_seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index != stream.index:
            continue
        if packet.is_corrupt:
            raise DecodeError(f"{path.name}: is damaged or cut short at {reached_seconds:.2f} s")
        num_packets += packet.size > 0
        for frame in stream.decode(packet):
            if frame.is_corrupt:
                raise DecodeError(f"{path.name}: a frame at {reached_seconds:.2f} s is damaged")
            yield frame
    if "mov" in container.format.name.split(",") and num_packets < len(stream.index_entries):
        raise DecodeError(f"{path.name}: is cut short: {num_packets} of {len(stream.index_entries)} frames are there")
    promised_seconds = _promised_seconds(container, stream)
    if reached_seconds < promised_seconds - max(MISSING_SECONDS, MISSING_FRACTION * promised_seconds):
        raise DecodeError(f"{path.name}: is cut short: {reached_seconds:.2f} of {promised_seconds:.2f} s are there")


def _promised_seconds(container: InputContainer, stream: VideoStream) -> float:
    """How long the header says the video is; 0 where it says nothing and ffmpeg would guess from the bit rate."""
    formats = container.format.name.split(",")
    if "avi" in formats and stream.average_rate:
        return float(stream.frames / stream.average_rate)  # ffmpeg shortens the duration of an AVI that is cut
    if HEADER_DURATION_FORMATS & set(formats):
        return (container.duration or 0) / AV_TIME_BASE
    return 0.0


def _upright_rgb(frame: av.VideoFrame) -> np.ndarray:
    """uint8 RGB [H, W, 3], turned and mirrored as the display matrix says (to quarter turns)."""
    pixels_HWC = frame.to_ndarray(format="rgb24", threads=1)
    side_data: Any = frame.side_data  # typed otherwise than it behaves
    if SideDataType.DISPLAYMATRIX not in side_data:
        return pixels_HWC
    # x' = a x + c y and y' = b x + d y, of columns x and rows y, in 16.16 fixed point.
    a, b, _, c, d = np.frombuffer(bytes(side_data[SideDataType.DISPLAYMATRIX]), dtype=np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
        flip_x, flip_y = c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(pixels_HWC[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
