"""Decoding with FFmpeg, through PyAV.

Frames come in presentation order whatever order they were coded in, with the times of the file; which of them are
taken is up to `vfz.pipeline.decoding.sampling`.

"Decoded in full" is meant literally: damage that a player would paper over is a `DecodeError`, and so is a file that
ends before its own index or header says. Frames already given are then to be thrown away by the caller.

Colours follow the frame's own matrix (BT.601, BT.709, BT.2020) and range (studio or full) as swscale reads them;
without either, BT.601 studio range, as ffmpeg does. Rotation and mirroring in the display matrix are applied.

Cost: one sequential pass, in one decoder thread (the same bytes on every run, and workers scale by processes), holding
two decoded frames; only the frames taken are converted to RGB. What lies behind the last of them is not decoded. Rules
that must know a video's times beforehand read the file once more, without decoding it. Frames of more than `MAX_PIXELS`
are refused before memory is taken for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import av
import numpy as np
from av.codec.context import ThreadType
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from vfz.pipeline.decoding.base import VideoFrame, refuse_odd_files
from vfz.pipeline.decoding.sampling import ShownFrame, Timeline, sample
from vfz.pipeline.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    from vfz.pipeline.decoding.base import VideoSource
    from vfz.pipeline.recipe import FrameSpec


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
MAX_PIXELS = 8192 * 8192
"""Of one frame: twice what 8K has. A damaged header can ask for gigabytes."""
VP8_SHOWN = 0x10
"""Set in the first byte of a VP8 packet whose frame is shown; others only serve to predict from."""


class PyAVDecoder:
    """FFmpeg's decoders, through PyAV; see `Decoder`."""

    name: ClassVar[str] = "pyav"
    version: ClassVar[int] = 1

    def frames(self, source: VideoSource, spec: FrameSpec) -> Iterator[VideoFrame]:
        """The frames that a rule takes of the first video stream that is not a cover picture; see `Decoder`."""
        seconds = 0.0  # how far the decoder has come, for messages
        nothing_given = True

        def watched(shown: Iterator[ShownFrame[av.VideoFrame]]) -> Iterator[ShownFrame[av.VideoFrame]]:
            nonlocal seconds
            for frame in shown:
                seconds = frame.until_seconds
                yield frame

        reformatter = VideoReformatter()  # sets itself up once for all frames
        try:
            with contextlib.closing(_shown_frames(source)) as shown:
                for taken, pts_seconds in sample(watched(shown), spec, lambda: _timeline(source)):
                    yield VideoFrame(
                        pixels_HWC=_upright_rgb(taken.frame, reformatter),
                        pts_seconds=pts_seconds,
                        number=taken.number,
                    )
                    nothing_given = False
        except FileNotFoundError as error:
            raise DecodeError(f"{source.name}: the file is not there") from error
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            where = f"damaged after {seconds:.2f} s" if seconds else "cannot be read as a video"
            raise DecodeError(f"{source.name}: {where} ({reason})") from error
        if nothing_given:
            raise DecodeError(
                f"{source.name}: no frame is on display from {spec.start_seconds} s on; it ends at {seconds:.2f} s"
            )


def _shown_frames(source: VideoSource) -> Generator[ShownFrame[av.VideoFrame], None, None]:
    """All frames of the video in order of presentation, each with the time it is on display."""
    with _opened(source) as (container, stream):
        frame_seconds, tolerance_seconds = _rounding(stream)
        first_pts: int | None = None
        held: ShownFrame[av.VideoFrame] | None = None
        for number, frame in enumerate(_decoded(source, container, stream)):
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
                        f"{source.name}: presentation times go back from {held.begin_seconds} s to {begin} s"
                    )
                yield dataclasses.replace(held, until_seconds=begin - tolerance_seconds)
            until = begin + duration - min(tolerance_seconds, duration / 2)
            held = ShownFrame(frame=frame, number=number, begin_seconds=begin, until_seconds=until)
        if held is None:
            raise DecodeError(f"{source.name}: holds no frame that can be decoded")
        yield held


def _timeline(source: VideoSource) -> Timeline:
    """When the video shows its frames, from its packets, none of which is decoded."""
    with _opened(source) as (container, stream):
        frame_seconds, _ = _rounding(stream)
        time_base = stream.time_base or Fraction(1, AV_TIME_BASE)
        packets = [
            (packet.pts, packet.duration or 0)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard and _is_shown(packet, stream)
        ]
    # Those without a time are second fields of frames that have one, unless the whole file has no times.
    timed = sorted((pts, duration) for pts, duration in packets if pts is not None)
    begin_seconds = sorted({float((pts - timed[0][0]) * time_base) for pts, _ in timed})
    if not begin_seconds:
        begin_seconds = [number * frame_seconds for number in range(max(1, len(packets)))]
    duration_seconds = float(timed[-1][1] * time_base) if timed else 0.0
    return Timeline(begin_seconds=begin_seconds, end_seconds=begin_seconds[-1] + (duration_seconds or frame_seconds))


def _is_shown(packet: Packet[VideoStream], stream: VideoStream) -> bool:
    return stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & VP8_SHOWN)


def _rounding(stream: VideoStream) -> tuple[float, float]:
    """How long a frame is shown where nothing better is known, and by how much times may be off, both in seconds."""
    rate = stream.average_rate or stream.guessed_rate
    frame_seconds = float(1 / rate) if rate else DEFAULT_FRAME_SECONDS
    return frame_seconds, min(TOLERANCE_TICKS * float(stream.time_base or 0), TOLERANCE_FRAMES * frame_seconds)


@contextlib.contextmanager
def _opened(source: VideoSource) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its video stream."""
    refuse_odd_files(source)
    # `file:` and the whitelist: a name with a colon is no protocol, and a playlist opens nothing else.
    url = f"file:{source.path}"
    if source.member is not None:
        end = source.offset + (source.num_bytes or 0)
        url = f"subfile,,start,{source.offset},end,{end},,:{url}"
    options = {"protocol_whitelist": "file" if source.member is None else "file,subfile"}
    with av.open(url, options=options, metadata_errors="replace") as container:
        yield container, _video_stream(source, container)


def _video_stream(source: VideoSource, container: InputContainer) -> VideoStream:
    """The first video stream that is no cover picture, set to decode in one thread and to hide no damage."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise DecodeError(f"{source.name}: holds no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        raise DecodeError(f"{source.name}: its video codec is unknown, and cannot be decoded")
    stream.codec_context.thread_type = ThreadType.NONE
    stream.codec_context.thread_count = 1
    # Without this, decoders invent what is missing and report success.
    stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
    return stream


def _decoded(source: VideoSource, container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Every frame of a stream to the end of the file, which must be the end that the file itself promises."""
    num_packets = 0
    reached_seconds = 0.0  # by any stream: sound may go on when the picture has ended
    for packet in container.demux():
        if packet.pts is not None and packet.time_base is not None:
            reached_seconds = max(reached_seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index != stream.index:
            continue
        if packet.is_corrupt:
            raise DecodeError(f"{source.name}: is damaged or cut short at {reached_seconds:.2f} s")
        num_packets += packet.size > 0
        for frame in stream.decode(packet):
            if frame.is_corrupt:
                raise DecodeError(f"{source.name}: a frame at {reached_seconds:.2f} s is damaged")
            yield frame
    if "mov" in container.format.name.split(",") and num_packets < len(stream.index_entries):
        raise DecodeError(f"{source.name}: is cut short: {num_packets} of {len(stream.index_entries)} frames are there")
    promised_seconds = _promised_seconds(container, stream)
    if reached_seconds < promised_seconds - max(MISSING_SECONDS, MISSING_FRACTION * promised_seconds):
        raise DecodeError(f"{source.name}: is cut short: {reached_seconds:.2f} of {promised_seconds:.2f} s are there")


def _promised_seconds(container: InputContainer, stream: VideoStream) -> float:
    """How long the header says the video is; 0 where it says nothing and ffmpeg would guess from the bit rate."""
    formats = container.format.name.split(",")
    if "avi" in formats and stream.average_rate:
        return float(stream.frames / stream.average_rate)  # ffmpeg shortens the duration of an AVI that is cut
    if HEADER_DURATION_FORMATS & set(formats):
        return (container.duration or 0) / AV_TIME_BASE
    return 0.0


def _upright_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """uint8 RGB [H, W, 3] without gaps, turned and mirrored as the display matrix says (to quarter turns)."""
    pixels_HWC = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    side_data: Any = frame.side_data  # typed otherwise than it behaves
    if SideDataType.DISPLAYMATRIX not in side_data:
        return np.ascontiguousarray(pixels_HWC)  # PyAV hands out FFmpeg's rows, which are padded for most widths
    # x' = a x + c y and y' = b x + d y, of columns x and rows y, in 16.16 fixed point.
    a, b, _, c, d = np.frombuffer(bytes(side_data[SideDataType.DISPLAYMATRIX]), dtype=np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
        flip_x, flip_y = c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(pixels_HWC[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
