"""Which frames of a video are taken: the rules of `FrameSpec`, apart from any decoder.

All rules come down to times, and a frame is taken when it is on display at one of them: the last frame whose
presentation time is not later. So variable frame rates and B-frames need no care.

- `fps` asks at `start + k / fps` until the video ends, and takes a frame once however often it is asked for: a video
  no faster than `fps` gives each of its frames once.
- `uniform` cuts the window into T equal parts and asks in the middle of each.
- `centred` counts frames, as the paper does: `step = max(1, round(native fps / fps))`, T frames `step` apart with as
  many frames of the window before as behind them. Where the window is too short, its last frame is repeated. `round`
  is Python's, half to even: 30 frames a second at 12 are taken in steps of 2.

`uniform` and `centred` always give T frames: clips of one length are what they are for. Times strictly increase: a
frame taken again does not carry its own time but the one it was asked for, and where `centred` repeats the last frame,
times go on in steps of `step` frames. Both must know the video's times beforehand: its `Timeline`. It is compared with
the frames that come, and where they disagree nothing is taken on trust: see `TimelineError`.

Containers round times: Matroska and FLV to milliseconds, GIF to hundredths of a second. So a time that is asked for and
lies within a tick before a frame is taken to mean that frame; and where frames come no faster than they are asked for,
one that rounding has moved out of its turn is taken all the same: see `Rounding`. Of frames at one time only the last
is on display. The last of a video that is no faster than it is asked for counts as shown as long as the others.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from vfz.pipeline.recipe import FrameSpec

FrameT = TypeVar("FrameT")

WINDOW_TOLERANCE_SECONDS = 1e-9
# The distance of two frames, both rounded to ticks, is off by at most this; by version of the decoder.
ROUNDED_TICKS = {1: 0.51, 2: 1.02}
# ... and by no more than this part of a frame: how early, and how late, a frame may be taken.
EARLY_FRAMES, LATE_FRAMES = 0.1, 0.35
# Where a container does not round, for what floating point costs.
EXACT_FRAMES = 1e-6
# A video is no faster than it is asked for if its rate, less this part, is not.
RATE_TOLERANCE = 1e-4
# Containers round times, and with them the rate that is measured from them: 30 and 29.97 at 12 must round alike.
STEP_TOLERANCE = 0.01


class TimelineError(Exception):
    """The frames of a video are not where its timeline said; which frames a rule takes must be worked out anew."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """What a container makes of times.

    Attributes:
        tick_seconds: to how much it rounds them; 0 where it does not.
        exact_seconds: how far apart frames are by its own word if that is a whole number of ticks, so that multiples of
            it are not rounded; else None.
        version: of the decoder; the first one allowed for less, and the caches it made go on so.
        frame_seconds: how long a frame is shown by the word of the file; of version 1, which allowed the same for all.
    """

    tick_seconds: float = 0.0
    exact_seconds: float | None = None
    version: int = 2
    frame_seconds: float = 0.0

    def seconds(self, distance_seconds: float) -> float:
        """By how much the distance of two frames may be off, given what it is."""
        if self.exact_seconds is not None:
            frames = distance_seconds / self.exact_seconds
            if abs(frames - round(frames)) * self.exact_seconds < self.tick_seconds / 2:
                return 0.0
        return ROUNDED_TICKS[self.version] * self.tick_seconds

    def early_seconds(self, distance_seconds: float) -> float:
        """How long before a frame a request already means it, given its distance from the one before it."""
        if self.version == 1:
            return min(ROUNDED_TICKS[1] * self.tick_seconds, EARLY_FRAMES * self.frame_seconds)
        return min(self.seconds(distance_seconds), EARLY_FRAMES * distance_seconds) or EXACT_FRAMES * distance_seconds


NOT_ROUNDED = Rounding()


@dataclass(frozen=True, kw_only=True)
class ShownFrame(Generic[FrameT]):
    """A decoded frame, in whatever form its decoder keeps it until it is taken.

    Attributes:
        frame: the decoder's own.
        number: among all frames shown, from 0.
        begin_seconds: its presentation time from the first frame shown.
        until_seconds: when the next one begins; of the last one, when it ends.
        rounding: of these times.
        is_last: none comes behind it, and when it ends is only what the file says.
    """

    frame: FrameT
    number: int
    begin_seconds: float
    until_seconds: float
    rounding: Rounding = NOT_ROUNDED
    is_last: bool = False

    @property
    def early_seconds(self) -> float:
        """How long before its end a request already means the next frame."""
        if self.is_last and self.rounding.version == 1:
            shown_seconds = self.until_seconds - self.begin_seconds
            return min(self.rounding.early_seconds(shown_seconds), shown_seconds / 2)
        return self.rounding.early_seconds(self.until_seconds - self.begin_seconds)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """When a video shows its frames.

    Attributes:
        begin_seconds: the presentation time of each frame, from the first one, increasing; at least one.
        end_seconds: when the last one ends.
        rounding: of these times.
    """

    begin_seconds: Sequence[float]
    end_seconds: float
    rounding: Rounding = NOT_ROUNDED

    def unrounded(self) -> Timeline:
        """The same with the times that its container rounded, where those are known: if frames come at one rate."""
        count, distance = len(self.begin_seconds), self.frame_seconds
        allowed = ROUNDED_TICKS[self.rounding.version] * self.rounding.tick_seconds
        even = [k * distance for k in range(count)]
        if self.rounding.version == 1 or any(
            abs(rounded - exact) > allowed for rounded, exact in zip(self.begin_seconds, even, strict=True)
        ):
            return self
        is_end_even = abs(self.end_seconds - count * distance) <= allowed
        return Timeline(begin_seconds=even, end_seconds=count * distance if is_end_even else self.end_seconds)

    def on_display(self, seconds: float) -> int:
        """The number of the frame that is on display."""
        index = max(0, bisect_right(self.begin_seconds, seconds) - 1)
        if index + 1 == len(self.begin_seconds):
            return index
        until = self.begin_seconds[index + 1]
        return index + (seconds >= until - self.rounding.early_seconds(until - self.begin_seconds[index]))

    @property
    def frame_seconds(self) -> float:
        """The mean distance of two frames; of a single one, how long it is shown."""
        count = len(self.begin_seconds) - 1
        return self.begin_seconds[-1] / count if count else self.end_seconds


@dataclass(frozen=True, kw_only=True)
class Request:
    """One frame that a rule asks for.

    Attributes:
        number: of the frame that is wanted.
        repeat_seconds: the time it carries if it has been given before.
    """

    number: int
    repeat_seconds: float


def sample(
    shown: Iterable[ShownFrame[FrameT]],
    spec: FrameSpec,
    timeline: Callable[[ShownFrame[FrameT]], Timeline],
    *,
    keep_pace: bool = True,
) -> Iterator[tuple[ShownFrame[FrameT], float]]:
    """The frames that a rule takes, each with the time it is to carry.

    Args:
        shown: all frames in order of presentation; read as far as the rule needs.
        spec: the rule.
        timeline: makes the video's timeline, for the rules that need one, given the first frame shown.
        keep_pace: `fps` takes each frame of a video that is no faster, whatever rounding did to its time. Caches of
            decoders of version 1 were made without.

    Raises:
        TimelineError: while iterating: the frames are not where the timeline said.
    """
    if spec.rule == "fps":
        return _at_rate(shown, spec, keep_pace=keep_pace)
    return _by_number(shown, spec, timeline)


def requests(timeline: Timeline, spec: FrameSpec) -> list[Request]:
    """What `uniform` or `centred` ask for: T requests in order, or none where the window holds no frame."""
    num_frames = spec.num_frames or 0
    if spec.rule == "uniform":
        timeline = timeline.unrounded()
    start_seconds, end_seconds = spec.start_seconds, timeline.end_seconds
    if spec.end_seconds is not None:
        end_seconds = min(end_seconds, spec.end_seconds)
    if not start_seconds < end_seconds:
        return []
    if spec.rule == "uniform":
        part_seconds = (end_seconds - start_seconds) / num_frames
        times = [start_seconds + (k + 0.5) * part_seconds for k in range(num_frames)]
        return [Request(number=timeline.on_display(seconds), repeat_seconds=seconds) for seconds in times]
    return _centred(timeline, spec.fps or 0.0, num_frames, start_seconds, end_seconds)


def _centred(
    timeline: Timeline, fps: float, num_frames: int, start_seconds: float, end_seconds: float
) -> list[Request]:
    """Requests for `num_frames` frames in the middle of those on display in the window."""
    begin_seconds, frame_seconds = timeline.begin_seconds, timeline.frame_seconds
    first = bisect_right(begin_seconds, start_seconds + WINDOW_TOLERANCE_SECONDS) - 1
    count = max(1, bisect_left(begin_seconds, end_seconds - WINDOW_TOLERANCE_SECONDS) - first)
    step = max(1, round(_snap_to_half(1 / (fps * frame_seconds))))
    offset = max(0, (count - 1 - (num_frames - 1) * step) // 2)
    found: list[Request] = []
    for index in range(offset, offset + num_frames * step, step):
        number = first + min(index, count - 1)
        repeated = bool(found) and found[-1].number == number
        repeat_seconds = found[-1].repeat_seconds + step * frame_seconds if repeated else begin_seconds[number]
        found.append(Request(number=number, repeat_seconds=repeat_seconds))
    return found


def _snap_to_half(ratio: float) -> float:
    """The nearest half where that is meant, so that the rounding that follows does not hang on noise."""
    half = round(ratio * 2) / 2
    return half if abs(ratio - half) <= STEP_TOLERANCE * ratio else ratio


def _at_rate(
    shown: Iterable[ShownFrame[FrameT]], spec: FrameSpec, *, keep_pace: bool
) -> Iterator[tuple[ShownFrame[FrameT], float]]:
    """Frames on display at `start + k / fps`, each once."""
    fps, start_seconds, end_seconds = spec.fps or 0.0, spec.start_seconds, spec.end_seconds
    pace = _Pace()
    num_samples = 0
    last_seconds = -math.inf
    for frame in shown:
        # From the number of the sample and not step by step: long videos must not drift.
        due_seconds = start_seconds + num_samples / fps
        if end_seconds is not None and due_seconds >= end_seconds - WINDOW_TOLERANCE_SECONDS:
            return
        if keep_pace:
            if frame.is_last:
                frame = pace.lengthened(frame, 1 / fps)
            if frame.until_seconds <= frame.begin_seconds:
                continue  # the next one is shown at its time
        until_seconds = frame.until_seconds - frame.early_seconds
        late_seconds = pace.late_seconds(frame, 1 / fps)
        # The first sample sets the pace; only a later one can have been moved out of its turn.
        in_turn = num_samples and keep_pace and due_seconds < frame.until_seconds + late_seconds
        if due_seconds < until_seconds or in_turn:
            last_seconds = _after(last_seconds, frame.begin_seconds)
            yield frame, last_seconds
            num_samples = max(num_samples + 1, math.ceil((until_seconds - start_seconds) * fps))


class _Pace:
    """How far apart frames are, apart from rounding: the mean of distances that are the same but for it."""

    def __init__(self) -> None:
        self._sum_seconds, self._count, self._num_other = 0.0, 0, 0

    def lengthened(self, frame: ShownFrame[FrameT], asked_seconds: float) -> ShownFrame[FrameT]:
        """The last frame: where frames come no faster than they are asked for it is shown as long as the others."""
        distance = self._sum_seconds / self._count if self._count else frame.until_seconds - frame.begin_seconds
        until_seconds = frame.begin_seconds + distance
        if distance < asked_seconds * (1 - RATE_TOLERANCE) or until_seconds <= frame.until_seconds:
            return frame
        return replace(frame, until_seconds=until_seconds)

    def late_seconds(self, frame: ShownFrame[FrameT], asked_seconds: float) -> float:
        """How long after its end a frame may still be taken, since rounding may have moved it before its turn.

        Less than 0 where frames come faster than they are asked for: then one is on display, or is not.
        """
        distance = frame.until_seconds - frame.begin_seconds
        rounded = frame.rounding.seconds(distance)
        if self._count and abs(distance - self._sum_seconds / self._count) <= rounded:
            self._sum_seconds, self._count = self._sum_seconds + distance, self._count + 1
            # Of a row of distances only the first time and the last are rounded.
            distance = (self._sum_seconds + rounded) / self._count
        elif not self._count or self._num_other > self._count:
            self._sum_seconds, self._count, self._num_other = distance, 1, 0
            distance += rounded
        else:
            self._num_other += 1
        if distance < asked_seconds * (1 - RATE_TOLERANCE):
            return -math.inf
        return max(min(rounded, LATE_FRAMES * distance), EXACT_FRAMES * distance)


def _by_number(
    shown: Iterable[ShownFrame[FrameT]], spec: FrameSpec, make_timeline: Callable[[ShownFrame[FrameT]], Timeline]
) -> Iterator[tuple[ShownFrame[FrameT], float]]:
    """The frames that `uniform` or `centred` ask for, counted."""
    timeline: Timeline | None = None
    wanted: list[Request] = []
    asked = 0
    last_seconds = -math.inf
    for frame in shown:
        if timeline is None:
            timeline = make_timeline(frame)
            wanted = requests(timeline, spec)
        if frame.number >= len(timeline.begin_seconds) or frame.begin_seconds != timeline.begin_seconds[frame.number]:
            raise TimelineError
        given = False
        while asked < len(wanted) and wanted[asked].number == frame.number:
            last_seconds = _after(last_seconds, wanted[asked].repeat_seconds if given else frame.begin_seconds)
            yield frame, last_seconds
            asked, given = asked + 1, True
        if asked == len(wanted):
            return
    raise TimelineError


def _after(last_seconds: float, seconds: float) -> float:
    """`seconds`, or the least time behind `last_seconds` where rounding has made it no later."""
    return max(seconds, math.nextafter(last_seconds, math.inf))
