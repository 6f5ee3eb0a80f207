"""When a video shows its frames.

What a decoder shows, and when, is the truth: `Clock` reads a time off each decoded frame. Planning a clip needs all
times beforehand. `timeline_of_packets` predicts them from the file's packets, without decoding it, for containers and
codecs where each packet is a frame and carries its time; the times are compared with the decoder's as frames pass, so
that the two cannot disagree unnoticed. Of any other file, `timeline_of_frames` is made by decoding it once more.

What counts as the video:

- It begins with the first frame that can be decoded as it was coded. A file that was cut in the middle of a group of
  pictures begins with pictures that refer to others that are not there; those are no part of it.
- Times are those of the container; where all are whole milliseconds they count as rounded to these, as after a copy
  from Matroska. Where they go back, the file is damaged, unless it holds times of decoding in their place.
- AVI has no times, only the order in which pictures were coded: there a frame is shown when the decoder gives it.
  Elementary streams have none either: their frames follow each other at the rate that the stream, or else FFmpeg (25
  frames a second), says.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av

from vfz.pipeline.decoding.containers import format_names, opened_video, packets_of
from vfz.pipeline.decoding.sampling import NOT_ROUNDED, Rounding, Timeline, TimelineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    from vfz.pipeline.decoding.base import VideoSource

NO_TIMESTAMPS = 0x80
"""FFmpeg's flag of formats that have no times: elementary streams."""
DEFAULT_FRAME_SECONDS = 1 / 25
"""Where a file gives neither a duration nor a rate."""
TIMED_FORMATS = {"mov", "matroska", "webm", "mpegts", "flv", "ivf", "gif", "apng", "nut"}
"""Containers that give each packet its time of presentation."""
ONE_FRAME_EACH = {"h264", "hevc", "vp8", "vp9", "av1", "mjpeg", "gif", "apng", "png", "prores", "ffv1", "rawvideo"}
"""Codecs of which a packet is one frame that is shown, but for those that `_is_shown` knows and broken beginnings."""
EXACT_TICKS = 1e-3
"""A distance of frames that is so near a whole number of ticks is one."""
COPIED_TICKS = 1000
COPIED_TICK_SECONDS = 1 / COPIED_TICKS
"""What times were rounded to before they were copied from Matroska or FLV, if all of them are multiples of it."""
FAR_FRAMES = 2.5
"""Frames that are so far apart for what the file says of their duration show that it says nothing."""
RATE_OF_STREAM = {"h264", "hevc", "vvc"}
"""Codecs whose streams say at which rate frames follow each other."""
MOST_REORDERED = 16
"""By how many places a decoder may put a frame into another order; so H.264 and HEVC say."""
CHECK_REFERENCES = {"h264", "hevc", "vvc", "vp8", "vp9", "av1"}
"""Codecs of which FFmpeg shows no picture before it has those that it was predicted from."""
H264_SLICE, H264_IDR = 1, 5
"""Types of units of H.264 that hold a picture: an ordinary one, and one that starts anew."""
LENGTH_BYTES = 4
"""Before each unit of H.264 that does not begin with a start code: how long it is."""
ONE_FRAME_AT_ONCE = ONE_FRAME_EACH - {"h264", "hevc", "vp8"} | {"mpeg4", "msmpeg4v2", "msmpeg4v3", "h263", "huffyuv"}
"""The same for AVI, if nothing is put into another order and no packet only says that nothing has changed."""
LARGEST_EMPTY = 16
"""Bytes of such a packet of MPEG-4, at most."""
VP8_SHOWN = 0x10
"""Set in the first byte of a VP8 packet whose frame is shown; others only serve to predict from."""


class Clock:
    """The times of a video's frames, in the order in which the decoder gives them."""

    def __init__(self, container: InputContainer, stream: VideoStream, *, version: int) -> None:
        self._version = version
        self._has_times = not container.format.flags & NO_TIMESTAMPS
        self.has_presentation_times = self._has_times and "avi" not in format_names(container)
        """Whether the container says when frames are shown, and not only in which order they were coded."""
        self.is_guessed = "mpeg" in format_names(container)
        """Whether FFmpeg works out most times itself, not always right: an MPEG program stream has few."""
        # The average is FFmpeg's default where there are no times, and nonsense after some cuts; its guess counts the
        # fields of some streams whose own rate is right.
        own_rate = stream.codec_context.framerate if stream.codec_context.name in RATE_OF_STREAM else None
        rate = (None if self._has_times else own_rate) or stream.guessed_rate or stream.average_rate
        if version == 1:
            rate = stream.average_rate or stream.guessed_rate
        self.frame_seconds = float(1 / rate) if rate else DEFAULT_FRAME_SECONDS
        """How long a frame is shown where nothing better is known."""
        time_base = stream.time_base or Fraction(1, 1_000_000)
        # Apart, since counting with a Fraction is slow.
        self._numerator, self._denominator = time_base.numerator, time_base.denominator
        self._own_rounding = self._rounding(float(stream.time_base or 0), version)
        self._copied_rounding = self._rounding(COPIED_TICK_SECONDS, version)
        self._may_be_copied = (
            version > 1 and self.has_presentation_times and 0 < float(stream.time_base or 0) < COPIED_TICK_SECONDS
        )
        self._num_frames = 0
        self._first: int | None = None
        self._last_ticks: int | None = None
        self._last_pts: int | None = None
        self._last_dts: int | None = None
        self._last_packet_pts: int | None = None
        self._num_packets_back = self._num_frames_back = 0
        self._num_faulty_pts = self._num_faulty_dts = 0
        self._last_seconds = self._next_seconds = 0.0

    @property
    def rounding(self) -> Rounding:
        """What the container, or the one that it was copied from, made of the times, as far as they were seen."""
        return self._copied_rounding if self._may_be_copied else self._own_rounding

    def see(self, ticks: int) -> None:
        """Takes note of when a frame is shown by the word of the container."""
        if self._may_be_copied:
            self._may_be_copied = not ticks * self._numerator * COPIED_TICKS % self._denominator

    def _rounding(self, tick_seconds: float, version: int) -> Rounding:
        if version == 1:
            return Rounding(tick_seconds=tick_seconds, version=1, frame_seconds=self.frame_seconds)
        if not self.has_presentation_times or not tick_seconds:
            return NOT_ROUNDED
        ticks = self.frame_seconds / tick_seconds
        exact = abs(ticks - round(ticks)) < EXACT_TICKS
        return Rounding(tick_seconds=tick_seconds, exact_seconds=self.frame_seconds if exact else None)

    def look_at(self, packet: Packet[Any]) -> None:
        """Takes note of a packet before it is decoded, in order."""
        if packet.pts is not None:
            self._num_packets_back += self._last_packet_pts is not None and packet.pts < self._last_packet_pts
            self._last_packet_pts = packet.pts

    def read(self, frame: av.VideoFrame) -> tuple[float, float]:
        """When a frame begins and ends, in seconds from the first one; the end is only as good as the file's word.

        Raises:
            TimelineError: the frame has no time, and version 1 is to be kept to.
            ValueError: times go back, and not because the container holds times of decoding in their place.
        """
        ticks = self._ticks(frame) if self._has_times else None
        duration = self.seconds(frame.duration) if frame.duration and self._has_times else self.frame_seconds
        if ticks is None and self._version == 1:
            raise TimelineError
        if ticks is None:  # it follows the one before it
            begin = self._next_seconds if self._has_times else self._num_frames * self.frame_seconds
        else:
            if self._first is None:
                self._first = ticks - round(self._next_seconds * self._denominator / self._numerator)
            self.see(ticks)
            begin = self.seconds(ticks - self._first)
        # A duration of one tick is no more than a guess where frames are further apart; so ffmpeg has it.
        distance = begin - self._last_seconds
        is_guess = frame.duration == 1 and self._num_frames and distance > FAR_FRAMES * duration
        self._num_frames += 1
        self._last_seconds, self._next_seconds = begin, begin + (distance if is_guess else duration)
        return begin, begin + duration

    def own_time(self, data: Packet[Any] | av.VideoFrame) -> int | None:
        """What the container says of when a packet or a frame is shown, in ticks."""
        return data.pts if self.has_presentation_times else data.dts

    def seconds(self, ticks: int) -> float:
        """So many ticks of the container."""
        return ticks * self._numerator / self._denominator

    def _refuse_to_go_back(self, pts: int) -> None:
        """Raises a ValueError where times go back by damage.

        Where frames go back more often than packets do, it is no damage: the container gave times of decoding, which
        increase, as times of presentation.
        """
        if self._last_pts is None or pts >= self._last_pts or self.is_guessed:
            return
        self._num_frames_back += 1
        if self._num_frames_back <= self._num_packets_back:
            first = pts if self._first is None else self._first
            before, after = self.seconds(self._last_pts - first), self.seconds(pts - first)
            raise ValueError(f"presentation times go back from {before} s to {after} s")

    def _ticks(self, frame: av.VideoFrame) -> int | None:
        """The time of presentation, unless those have gone back more often than the times of decoding did."""
        pts, dts = frame.pts if self.has_presentation_times else None, frame.dts
        if self._version == 1:
            return pts
        if dts is not None:
            self._num_faulty_dts += self._last_dts is not None and dts <= self._last_dts
            self._last_dts = dts
        if pts is not None:
            self._num_faulty_pts += self._last_pts is not None and pts <= self._last_pts
            self._refuse_to_go_back(pts)
            self._last_pts = pts
        is_faulty = self._num_faulty_pts > self._num_faulty_dts
        if is_faulty and dts is None and self._last_ticks is not None and pts is not None and pts < self._last_ticks:
            return None  # of the last frames, which have no time of decoding
        self._last_ticks = dts if pts is None or (is_faulty and dts is not None) else pts
        return self._last_ticks


class Beginning:
    """Decodes a stream, and leaves out what it cannot show as it was coded because it was cut before.

    A stream begins in the middle of a group of pictures if its first packet is no key picture, or if one that is shown
    before the first key picture comes behind it. Of the group that was cut, what cannot be decoded is no damage, and
    what is shown before the first clean frame is hidden. Packets are believed only in what they do not claim: one that
    says it is a key picture is to be decoded.

    Attributes:
        is_broken: the stream began in the middle of a group of pictures, as far as it was read.
        has_left_out: something was no part of the video.
    """

    def __init__(self, stream: VideoStream) -> None:
        self.is_broken = self.has_left_out = False
        self._stream = stream
        self._checks_references = stream.codec_context.name in CHECK_REFERENCES
        self._num_keys = 0
        self._key_pts: int | None = None
        self._nothing_shown = True
        self._refers_back = self._is_key_cut = False

    def decode(self, packet: Packet[Any]) -> list[av.VideoFrame]:
        """The frames that come out when a packet is put in, without those that are no part of the video.

        Raises:
            av.FFmpegError: it is damaged.
        """
        if packet.size and self._num_keys <= 1:
            self._look_at(packet)
        try:
            frames = self._stream.decode(packet)
        except av.InvalidDataError:
            if self._may_be_undecodable(packet):
                self.has_left_out = True
                return []
            raise
        return [frame for frame in frames if not self._hides(frame)] if self._nothing_shown else frames

    def _may_be_undecodable(self, packet: Packet[Any]) -> bool:
        """Whether it may refer to what was cut away: it is before the first key picture, in the file or when shown."""
        if not self.is_broken or packet.is_keyframe or self._num_keys > 1:
            return False
        if not self._num_keys or packet.pts is None or self._key_pts is None or packet.pts < self._key_pts:
            return True
        return self._refers_back and self._nothing_shown

    def _look_at(self, packet: Packet[Any]) -> None:
        self._num_keys += packet.is_keyframe
        if packet.is_keyframe:
            self._key_pts = packet.pts if self._num_keys == 1 else None
            if self._num_keys == 1 and self._stream.codec_context.name == "h264":
                self._refers_back = _refers_back(packet)
                self.is_broken |= self._refers_back
            self._is_key_cut |= packet.is_discard
        elif not self._num_keys:
            self.is_broken = True
        elif packet.pts is not None and self._key_pts is not None:
            self.is_broken |= packet.pts < self._key_pts

    def _hides(self, frame: av.VideoFrame) -> bool:
        if self._nothing_shown:
            # Behind a key picture that an edit list cuts away, all is clean: what refers to before it is cut away too.
            is_clean = not frame.is_corrupt and (self._checks_references or frame.key_frame or self._is_key_cut)
            self._nothing_shown = self.is_broken and not is_clean
            self.has_left_out |= self._nothing_shown
        return self._nothing_shown


def timeline_of_packets(source: VideoSource, first: av.VideoFrame, *, version: int) -> Timeline:
    """When the video shows its frames, by its packets, of which none is decoded.

    Args:
        source: the video.
        first: the first frame shown, decoded: what would be shown before it is missing in the file.
        version: of the decoder that is to be kept to.

    Returns:
        What to compare with the frames that the decoder gives.

    Raises:
        TimelineError: packets of this format or codec do not tell.
    """
    with opened_video(source) as (container, stream):
        clock = Clock(container, stream, version=version)
        packets = sorted(
            # Those without a time are second fields of frames that have one.
            (time, packet.duration or 0, packet.size)
            for packet in packets_of(container, stream)
            if (time := clock.own_time(packet)) is not None
            and packet.size
            and not packet.is_discard
            and _is_shown(packet, stream)
        )
        begin = clock.own_time(first)
        if version == 1 and packets:  # as it was: all of them, whatever is shown
            begins = sorted({time for time, _, _ in packets})
        elif begin is None or not _is_told_by_packets(container, stream, packets, begin):
            raise TimelineError
        else:
            begins = [time for time, _, _ in packets if time >= begin]
        for time in begins:
            clock.see(time)
        last_seconds = clock.seconds(packets[-1][1]) or clock.frame_seconds
    begin_seconds = [clock.seconds(time - begins[0]) for time in begins]
    end_seconds = begin_seconds[-1] + last_seconds
    return Timeline(begin_seconds=begin_seconds, end_seconds=end_seconds, rounding=clock.rounding)


def _is_told_by_packets(
    container: InputContainer, stream: VideoStream, packets: Sequence[tuple[int, int, int]], begin: int
) -> bool:
    """Whether each packet is a frame, at the packet's time; of packets, their times, durations and sizes are given."""
    names, codec = format_names(container), stream.codec_context.name
    if not packets or packets[-1][0] < begin:
        return False
    if "avi" in names:  # where the decoder gives the first frame at once, none is put into another order
        is_at_once = begin == packets[0][0]
        return is_at_once and codec in ONE_FRAME_AT_ONCE and min(size for _, _, size in packets) > LARGEST_EMPTY
    return bool(TIMED_FORMATS & names) and codec in ONE_FRAME_EACH


def timeline_of_frames(times: Sequence[tuple[float, float]], rounding: Rounding) -> Timeline:
    """When the video shows its frames, by what all of them say, in the order in which the decoder gives them.

    Times that a container gives to the wrong ones of a few neighbours are put into the order of the frames; where some
    are given twice, frames follow each other at one rate.

    Args:
        times: for each frame, when it begins and ends, in seconds.
        rounding: of these times.

    Raises:
        ValueError: they go back further than frames are ever put into another order.
    """
    order = sorted(range(len(times)), key=lambda number: times[number][0])
    for number, place in enumerate(order):
        if abs(number - place) > MOST_REORDERED:
            before = max(times[:place])[0] if place else 0.0
            raise ValueError(f"presentation times go back from {before} s to {times[place][0]} s")
    begin_seconds = [times[place][0] - times[order[0]][0] for place in order]
    if order != sorted(order) and len(set(begin_seconds)) < len(
        begin_seconds
    ):  # they were guessed: only the ends are sure
        begin_seconds = [k * begin_seconds[-1] / (len(order) - 1) for k in range(len(order))]
    last_seconds = times[-1][1] - times[-1][0]
    return Timeline(begin_seconds=begin_seconds, end_seconds=begin_seconds[-1] + last_seconds, rounding=rounding)


def _refers_back(packet: Packet[Any]) -> bool:
    """Whether what follows a key picture of H.264 may refer to what was before it, since it is no IDR picture.

    Units begin with a start code in elementary streams and MPEG-TS, and follow their lengths in MP4 and Matroska.
    """
    data = bytes(packet)
    types: set[int] = set()
    if data[:4] in {b"\0\0\0\1", b"\0\0\1" + data[3:4]}:
        types = {data[found.end()] & 0x1F for found in re.finditer(rb"\x00\x00\x01(?=[^\x00])", data)}
    else:
        at = 0
        while at + LENGTH_BYTES < len(data):
            types.add(data[at + LENGTH_BYTES] & 0x1F)
            at += LENGTH_BYTES + int.from_bytes(data[at : at + LENGTH_BYTES], "big")
    return H264_SLICE in types and H264_IDR not in types


def _is_shown(packet: Packet[VideoStream], stream: VideoStream) -> bool:
    return stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & VP8_SHOWN)
