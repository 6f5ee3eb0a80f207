"""Decoding with FFmpeg, through PyAV.

Frames come in presentation order whatever order they were coded in; their times are those of
`vfz.pipeline.decoding.timeline`, which says what counts as the video, and which of them are taken is up to
`vfz.pipeline.decoding.sampling`.

"Decoded in full" is meant literally: damage that a player would paper over is a `DecodeError`, and so is a file that
ends before its own index or header says. Frames already given are then to be thrown away by the caller. Only pictures
before the first that can be decoded as it was coded, of a file that was cut in the middle of a group of pictures, are
no damage: they are not part of the video.

Colours follow the frame's own matrix (BT.601, BT.709, BT.2020 and others that swscale knows) and range (studio or
full); without either, BT.601 studio range, as ffmpeg does. A matrix that follows from the primaries is that of the
primaries; one that cannot be converted is refused by name. Rotation and mirroring in the display matrix are applied.
The pixel aspect ratio is not, as in the field's other loaders.

Cost: one sequential pass, in one decoder thread (the same bytes on every run, and workers scale by processes), holding
two decoded frames; only the frames taken are converted to RGB. What lies behind the last of them is not decoded. Rules
that must know a video's times beforehand read the file once more, and decode it once more where packets do not tell.
Frames of more than `MAX_PIXELS` are refused before memory is taken for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Colorspace, VideoReformatter

from vfz.pipeline.decoding.base import MAX_SECONDS, VideoFrame
from vfz.pipeline.decoding.containers import format_names, opened_video, packets_of
from vfz.pipeline.decoding.sampling import ShownFrame, TimelineError, sample
from vfz.pipeline.decoding.timeline import Beginning, Clock, timeline_of_frames, timeline_of_packets
from vfz.pipeline.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from av.container import InputContainer
    from av.video.stream import VideoStream

    from vfz.pipeline.decoding.base import VideoSource
    from vfz.pipeline.decoding.sampling import Rounding, Timeline
    from vfz.pipeline.recipe import FrameSpec


# Containers with a duration in their header, and by how much a whole file may fall short of it: the larger of the two.
# (An MP4's index is exact and checked frame by frame.)
HEADER_DURATION_FORMATS = {"matroska", "flv"}
MISSING_SECONDS = 0.5
MISSING_FRACTION = 0.01
UNKNOWN_FRAMES = 1 << 30
"""What FFmpeg writes into an AVI that goes down a pipe."""
# Matrices by the numbers of ISO/IEC 23091-2: those that are converted, that follows from primaries, and that cannot be.
_CONVERTED = {0, 1, 2, 4, 5, 6, 7, 9}
_BY_PRIMARIES = 12
_OF_PRIMARIES = {
    1: Colorspace.ITU709, 5: Colorspace.ITU601, 6: Colorspace.ITU601, 7: Colorspace.SMPTE240M, 9: Colorspace.BT2020,
}  # fmt: skip
_REFUSED = {
    8: "YCgCo", 10: "BT.2020 with constant luminance", 11: "Y'D'zD'x", 12: "that follows from unknown primaries",
    13: "of constant luminance by primaries", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro",
}  # fmt: skip


class PyAVDecoder:
    """FFmpeg's decoders, through PyAV; see `Decoder`.

    Version 2 reads times off the decoder where containers have none, begins a video with its first clean frame, and
    takes each frame of a video that is no faster than it is asked for. Of a video for which that makes no difference it
    still gives what version 1 gave, so that caches of version 1 can grow; it refuses the others there.
    """

    name: ClassVar[str] = "pyav"
    version: ClassVar[int] = 2
    goes_on_with: ClassVar[tuple[int, ...]] = (1,)

    def frames(self, source: VideoSource, spec: FrameSpec) -> Iterator[VideoFrame]:
        """The frames that a rule takes of the first video stream that is not a cover picture; see `Decoder`."""
        state = _Progress()
        try:
            try:
                yield from _frames(source, spec, state, None)
            except TimelineError:
                if spec.decoder_version == 1:
                    raise DecodeError(_of_version_1(source)) from None
                yield from _frames(source, spec, state, _settled(source, spec))
        except TimelineError as error:
            raise DecodeError(f"{source.name}: gives other frames when it is read again") from error
        except FileNotFoundError as error:
            raise DecodeError(f"{source.name}: the file is not there") from error
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            where = f"damaged after {state.seconds:.2f} s" if state.seconds else "cannot be read as a video"
            raise DecodeError(f"{source.name}: {where} ({reason})") from error
        if not state.given:
            raise DecodeError(
                f"{source.name}: no frame is on display from {spec.start_seconds} s on; "
                f"it ends at {state.seconds:.2f} s"
            )


@dataclasses.dataclass
class _Progress:
    """How far the decoder has come, and the numbers and times of the frames that it has given."""

    seconds: float = 0.0
    given: list[tuple[int, float]] = dataclasses.field(default_factory=list)


def _frames(source: VideoSource, spec: FrameSpec, state: _Progress, settled: Timeline | None) -> Iterator[VideoFrame]:
    """The frames that a rule takes, but for those that were given before.

    Args:
        source: the video.
        spec: the rule.
        state: kept up to date.
        settled: when frames are shown, where that was found by decoding all of them; else their own times are taken,
            and the timeline that packets tell of.

    Raises:
        TimelineError: frames and packets disagree, or times go back: the timeline is to be settled.
        DecodeError: as `Decoder.frames`.
    """

    def watched(shown: Iterator[ShownFrame[av.VideoFrame]]) -> Iterator[ShownFrame[av.VideoFrame]]:
        for frame in shown:
            state.seconds = frame.until_seconds
            yield frame

    def timeline(first: ShownFrame[av.VideoFrame]) -> Timeline:
        found = settled or timeline_of_packets(source, first.frame, version=spec.decoder_version)
        state.seconds = max(state.seconds, found.end_seconds)
        return found

    reformatter = VideoReformatter()  # sets itself up once for all frames
    num_taken = 0
    with contextlib.closing(_shown_frames(source, spec, settled)) as shown:
        for taken, pts_seconds in sample(watched(shown), spec, timeline, keep_pace=spec.decoder_version > 1):
            if pts_seconds > MAX_SECONDS:
                raise DecodeError(
                    f"{source.name}: times jump to {pts_seconds:.0f} s; {MAX_SECONDS} s is the last that counts"
                )
            num_taken += 1
            if num_taken <= len(state.given):
                if state.given[num_taken - 1] != (taken.number, pts_seconds):
                    raise DecodeError(
                        f"{source.name}: shows other frames than its packets say, at {pts_seconds:.2f} s; "
                        "write its packets anew, with ffmpeg -c copy"
                    )
                continue
            pixels_HWC = _upright_rgb(source, taken.frame, reformatter)
            yield VideoFrame(pixels_HWC=pixels_HWC, pts_seconds=pts_seconds, number=taken.number)
            state.given.append((taken.number, pts_seconds))


def _shown_frames(
    source: VideoSource, spec: FrameSpec, settled: Timeline | None
) -> Generator[ShownFrame[av.VideoFrame], None, None]:
    """All frames of the video in order of presentation, each with the time it is on display."""
    held: dict[str, Any] | None = None
    for number, (frame, begin, until, rounding) in enumerate(_timed_frames(source, spec, settled)):
        if settled:
            if number >= len(settled.begin_seconds):
                raise TimelineError
            begin = settled.begin_seconds[number]
            until = settled.end_seconds
        if held:
            if begin < held["begin_seconds"]:
                raise TimelineError
            yield ShownFrame(**held, until_seconds=begin)
        held = {"frame": frame, "number": number, "begin_seconds": begin, "rounding": rounding}
    if held is None:
        raise DecodeError(f"{source.name}: holds no frame that can be decoded")
    yield ShownFrame(**held, until_seconds=until, is_last=True)


def _settled(source: VideoSource, spec: FrameSpec) -> Timeline:
    """When the video shows its frames, found by decoding all of them.

    Raises:
        DecodeError: times go back further than frames are put into another order.
    """
    with contextlib.closing(_timed_frames(source, spec, numbers_only=True)) as frames:
        times = [(begin, until, rounding) for _, begin, until, rounding in frames]
    if not times:
        raise DecodeError(f"{source.name}: holds no frame that can be decoded")
    try:
        return timeline_of_frames([(begin, until) for begin, until, _ in times], times[-1][2])
    except ValueError as error:
        raise DecodeError(f"{source.name}: {error}") from error


def _timed_frames(
    source: VideoSource, spec: FrameSpec, settled: Timeline | None = None, *, numbers_only: bool = False
) -> Generator[tuple[av.VideoFrame, float, float, Rounding], None, None]:
    """Each frame, when it begins and ends by its own word, and how that is rounded."""
    with opened_video(source, numbers_only=numbers_only) as (container, stream):
        clock = Clock(container, stream, version=spec.decoder_version)
        if spec.decoder_version == 1 and not clock.has_presentation_times:
            raise DecodeError(_of_version_1(source))
        if clock.is_guessed and spec.decoder_version > 1 and not numbers_only and settled is None:
            raise TimelineError
        for frame in _decoded(source, spec, container, stream, clock):
            try:
                begin, until = clock.read(frame)
            except ValueError as error:
                raise DecodeError(f"{source.name}: {error}") from error
            yield frame, begin, until, clock.rounding


def _of_version_1(source: VideoSource) -> str:
    return (
        f"{source.name}: the cache was begun by an earlier vfz, which took other frames of such a video; "
        "extract the dataset into a new cache"
    )


def _decoded(
    source: VideoSource, spec: FrameSpec, container: InputContainer, stream: VideoStream, clock: Clock
) -> Iterator[av.VideoFrame]:
    """Every frame of a stream to the end of the file, which must be the end that the file itself promises."""
    num_packets = 0
    reached_seconds = 0.0  # by any stream: sound may go on when the picture has ended
    beginning = Beginning(stream)
    for packet in packets_of(container):
        if packet.pts is not None and packet.time_base is not None:
            # Divided as integers, since counting with a Fraction is slow.
            ticks, unit = packet.pts + (packet.duration or 0), packet.time_base
            reached_seconds = max(reached_seconds, ticks * unit.numerator / unit.denominator)
        if packet.stream.index != stream.index:
            continue
        if packet.is_corrupt:
            raise DecodeError(f"{source.name}: is damaged or cut short at {reached_seconds:.2f} s")
        num_packets += packet.size > 0
        clock.look_at(packet)
        frames = beginning.decode(packet)
        if beginning.has_left_out and spec.decoder_version == 1:
            raise DecodeError(_of_version_1(source))
        for frame in frames:
            if frame.is_corrupt:
                raise DecodeError(f"{source.name}: a frame at {reached_seconds:.2f} s is damaged")
            yield frame
    if "mov" in format_names(container) and num_packets < len(stream.index_entries):
        raise DecodeError(f"{source.name}: is cut short: {num_packets} of {len(stream.index_entries)} frames are there")
    promised_seconds = _promised_seconds(container, stream)
    if reached_seconds < promised_seconds - max(MISSING_SECONDS, MISSING_FRACTION * promised_seconds):
        raise DecodeError(f"{source.name}: is cut short: {reached_seconds:.2f} of {promised_seconds:.2f} s are there")


def _promised_seconds(container: InputContainer, stream: VideoStream) -> float:
    """How long the header says the video is; 0 where it says nothing and ffmpeg would guess from the bit rate."""
    formats = format_names(container)
    if "avi" in formats and stream.average_rate:
        if stream.frames == UNKNOWN_FRAMES:
            return 0.0
        return float(stream.frames / stream.average_rate)  # ffmpeg shortens the duration of an AVI that is cut
    if HEADER_DURATION_FORMATS & formats:
        return (container.duration or 0) / av.time_base
    return 0.0


def _upright_rgb(source: VideoSource, frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """uint8 RGB [H, W, 3] without gaps, turned and mirrored as the display matrix says (to quarter turns)."""
    matrix = _matrix(source, frame)
    pixels_HWC = reformatter.reformat(frame, format="rgb24", src_colorspace=matrix, threads=1).to_ndarray()
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


def _matrix(source: VideoSource, frame: av.VideoFrame) -> Colorspace | None:
    """The matrix that colours are converted with, where it is not the frame's own.

    Raises:
        DecodeError: it cannot be converted.
    """
    matrix, primaries = int(frame.colorspace), int(frame.color_primaries)
    if frame.format.is_rgb:
        return Colorspace.ITU709  # not used, but it must be one that is known
    if matrix in _CONVERTED:
        return None
    if matrix == _BY_PRIMARIES and primaries in _OF_PRIMARIES:
        return _OF_PRIMARIES[primaries]
    if matrix in _REFUSED:
        raise DecodeError(
            f"{source.name}: its colours are coded by the matrix {_REFUSED[matrix]} ({matrix}), which cannot be "
            "converted to RGB; encode it with BT.709's, or mend its header if that is wrong"
        )
    return Colorspace.ITU601  # a reserved number says no more than none does
