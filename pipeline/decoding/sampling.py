"""Which frames of a video are taken: the rules of `FrameSpec`, apart from any decoder.

All rules come down to times, and a frame is taken when it is on display at one of them: the last frame whose
presentation time is not later. So variable frame rates and B-frames need no care.

- `fps` asks at `start + k / fps` until the video ends, and takes a frame once however often it is asked for: a video
  slower than `fps` gives each of its frames once.
- `uniform` cuts the window into T equal parts and asks in the middle of each.
- `centred` counts frames, as the paper does: `step = max(1, round(native fps / fps))`, T frames `step` apart with as
  many frames of the window before as behind them. Where the window is too short, its last frame is repeated. `round`
  is Python's, half to even: 30 frames a second at 12 are taken in steps of 2.

`uniform` and `centred` always give T frames: clips of one length are what they are for. Times strictly increase: a
frame taken again does not carry its own time but the one it was asked for, and where `centred` repeats the last frame,
times go on in steps of `step` frames.

Both must know the video's times beforehand. They come from a `Timeline` that the decoder makes by reading the file
without decoding it: it costs a second reading of the file, which the operating system has then in memory, and no header
is believed.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from vfz.pipeline.recipe import FrameSpec

FrameT = TypeVar("FrameT")

WINDOW_TOLERANCE_SECONDS = 1e-9
# Containers round times, and with them the rate that is measured from them: 30 and 29.97 at 12 must round alike.
STEP_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class ShownFrame(Generic[FrameT]):
    """A decoded frame, in whatever form its decoder keeps it until it is taken.

    Attributes:
        frame: the decoder's own.
        number: among all frames shown, from 0.
        begin_seconds: its presentation time from the first frame shown.
        until_seconds: it is on display before this time: the next frame's, less what rounding may have cost.
    """

    frame: FrameT
    number: int
    begin_seconds: float
    until_seconds: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """When a video shows its frames.

    Attributes:
        begin_seconds: the presentation time of each frame, from the first one, strictly increasing; at least one.
        end_seconds: when the last one ends.
    """

    begin_seconds: Sequence[float]
    end_seconds: float

    @property
    def frame_seconds(self) -> float:
        """The mean distance of two frames; of a single one, how long it is shown."""
        count = len(self.begin_seconds) - 1
        return self.begin_seconds[-1] / count if count else self.end_seconds


@dataclass(frozen=True, kw_only=True)
class Request:
    """One frame that a rule asks for.

    Attributes:
        due_seconds: the frame on display at this time is wanted.
        repeat_seconds: the time it carries if it has been given before.
    """

    due_seconds: float
    repeat_seconds: float


def sample(
    shown: Iterable[ShownFrame[FrameT]], spec: FrameSpec, timeline: Callable[[], Timeline]
) -> Iterator[tuple[ShownFrame[FrameT], float]]:
    """The frames that a rule takes, each with the time it is to carry.

    Args:
        shown: all frames in order of presentation; read as far as the rule needs.
        spec: the rule.
        timeline: makes the video's timeline, for the rules that need one.
    """
    if spec.rule == "fps":
        return _at_rate(shown, spec)
    return _at_times(shown, requests(timeline(), spec), spec.start_seconds)


def requests(timeline: Timeline, spec: FrameSpec) -> list[Request]:
    """What `uniform` or `centred` ask for: T requests in order, or none where the window holds no frame."""
    num_frames = spec.num_frames or 0
    start_seconds, end_seconds = spec.start_seconds, timeline.end_seconds
    if spec.end_seconds is not None:
        end_seconds = min(end_seconds, spec.end_seconds)
    if not start_seconds < end_seconds:
        return []
    if spec.rule == "uniform":
        part_seconds = (end_seconds - start_seconds) / num_frames
        times = [start_seconds + (k + 0.5) * part_seconds for k in range(num_frames)]
        return [Request(due_seconds=seconds, repeat_seconds=seconds) for seconds in times]
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
        due_seconds = begin_seconds[first + min(index, count - 1)]
        repeated = bool(found) and found[-1].due_seconds == due_seconds
        repeat_seconds = found[-1].repeat_seconds + step * frame_seconds if repeated else due_seconds
        found.append(Request(due_seconds=due_seconds, repeat_seconds=repeat_seconds))
    return found


def _snap_to_half(ratio: float) -> float:
    """The nearest half where that is meant, so that the rounding that follows does not hang on noise."""
    half = round(ratio * 2) / 2
    return half if abs(ratio - half) <= STEP_TOLERANCE * ratio else ratio


def _at_rate(shown: Iterable[ShownFrame[FrameT]], spec: FrameSpec) -> Iterator[tuple[ShownFrame[FrameT], float]]:
    """Frames on display at `start + k / fps`, each once."""
    fps, start_seconds, end_seconds = spec.fps or 0.0, spec.start_seconds, spec.end_seconds
    num_samples = 0
    for frame in shown:
        # From the number of the sample and not step by step: long videos must not drift.
        due_seconds = start_seconds + num_samples / fps
        if end_seconds is not None and due_seconds >= end_seconds - WINDOW_TOLERANCE_SECONDS:
            return
        if due_seconds < frame.until_seconds:
            yield frame, frame.begin_seconds
            num_samples = max(num_samples + 1, math.ceil((frame.until_seconds - start_seconds) * fps))


def _at_times(
    shown: Iterable[ShownFrame[FrameT]], wanted: Sequence[Request], start_seconds: float
) -> Iterator[tuple[ShownFrame[FrameT], float]]:
    """A frame for each of the requests; the last one for those that no frame answers."""
    asked = 0
    last_seconds = -math.inf
    frame = None
    for frame in shown:
        given = False
        while asked < len(wanted) and wanted[asked].due_seconds < frame.until_seconds:
            last_seconds = _after(last_seconds, wanted[asked].repeat_seconds if given else frame.begin_seconds)
            yield frame, last_seconds
            asked, given = asked + 1, True
        if asked == len(wanted):
            return
    # The video shows less than its packets said.
    if frame is not None and frame.until_seconds > start_seconds:
        for request in wanted[asked:]:
            last_seconds = _after(last_seconds, request.repeat_seconds)
            yield frame, last_seconds


def _after(last_seconds: float, seconds: float) -> float:
    """`seconds`, or the least time behind `last_seconds` where rounding has made it no later."""
    return max(seconds, math.nextafter(last_seconds, math.inf))
