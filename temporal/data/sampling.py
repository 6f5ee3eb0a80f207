"""Which frames of a video make a clip: T of them, a number of cached frames or a time apart.

Times count where caches were made at other rates than the one wanted, or from videos of variable rate: the cached frame
nearest to each time is taken. A video that is too short repeats its last frame, as the paper does, and the mask says
which frames are real.

Shapes: T frames of a clip, F cached frames of a video.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfz.pipeline.cache.request import is_whole, shown
from vfz.pipeline.errors import UsageError

_ROUNDING = 1e-6  # of a step: times from containers and from k / fps differ in their last digits


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipFrames:
    """The frames of a clip.

    Attributes:
        numbers: [T] in the video.
        mask: [T] False where the video has ended and its last frame is repeated.
    """

    numbers: NDArray[np.int64]
    mask: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ClipRule:
    """Which frames of a video make a clip.

    Attributes:
        num_frames: T.
        stride: cached frames from one frame of a clip to the next.
        step_seconds: seconds from one to the next, instead of a stride. Where the cache has fewer frames than that, a
            frame is taken more than once.

    Raises:
        UsageError: for numbers that cannot be, or both a stride and a step.
    """

    num_frames: int
    stride: int = 1
    step_seconds: float | None = None

    def __post_init__(self) -> None:
        if not all(is_whole(number) and number >= 1 for number in (self.num_frames, self.stride)):
            raise UsageError(
                f"clips of {shown(self.num_frames)} frames {shown(self.stride)} apart; 1 or more of each is needed"
            )
        if self.step_seconds is None:
            return
        if not 0 < self.step_seconds < math.inf:
            raise UsageError(f"clip frames {shown(self.step_seconds)} s apart; give seconds above 0")
        if self.stride != 1:
            raise UsageError(
                f"clip frames {self.stride} cached frames and {self.step_seconds} s apart; give one of them"
            )

    def frames(self, num_video_frames: int, *, position: float = 0.5) -> NDArray[np.int64]:
        """Frame numbers [T] of a clip by stride; see `choose`."""
        return self.choose(num_video_frames, position=position).numbers

    def choose(
        self,
        num_video_frames: int,
        *,
        position: float = 0.5,
        factor: int = 1,
        pts_seconds: NDArray[np.float64] | None = None,
    ) -> ClipFrames:
        """The frames of one clip.

        Args:
            num_video_frames: F, cached frames of the video.
            position: where the clip lies, 0 at the start, 1 at the end, 0.5 centred.
            factor: multiplies the stride or the step.
            pts_seconds: [F] presentation times, ascending; needed with `step_seconds`.
        """
        if self.step_seconds is not None:
            if pts_seconds is None:
                raise ValueError("a clip rule with a step in seconds needs the times of the video's frames")
            return self._by_time(pts_seconds, position, self.step_seconds * factor)
        stride = self.stride * factor
        room = max(0, num_video_frames - (self.num_frames - 1) * stride - 1)
        numbers = _at(position, room) + np.arange(self.num_frames) * stride
        return ClipFrames(numbers=np.minimum(numbers, num_video_frames - 1), mask=numbers < num_video_frames)

    def fits(self, num_video_frames: int, *, factor: int = 1, pts_seconds: NDArray[np.float64] | None = None) -> bool:
        """Whether a video is long enough for a clip without repeated frames; arguments as in `choose`."""
        return bool(self.choose(num_video_frames, position=0, factor=factor, pts_seconds=pts_seconds).mask.all())

    def _by_time(self, pts_seconds: NDArray[np.float64], position: float, step_seconds: float) -> ClipFrames:
        last_seconds = pts_seconds[-1]
        rounding_seconds = _ROUNDING * step_seconds
        latest_start = last_seconds - (self.num_frames - 1) * step_seconds + rounding_seconds
        num_starts = max(1, int(np.searchsorted(pts_seconds, latest_start, side="right")))
        # A clip begins at a cached frame, so that a step of k frames is a stride of k.
        times = pts_seconds[_at(position, num_starts - 1)] + np.arange(self.num_frames) * step_seconds
        # The last frame is on display for about as long as the others.
        shown_seconds = (last_seconds - pts_seconds[0]) / max(1, len(pts_seconds) - 1)
        return ClipFrames(
            numbers=nearest(pts_seconds, times - rounding_seconds),
            mask=times <= last_seconds + shown_seconds / 2 + rounding_seconds,
        )


def nearest(sorted_values: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int64]:
    """Where in ascending values the nearest to each of some others stands; the earlier of two as near."""
    right = np.clip(np.searchsorted(sorted_values, values), 1, max(1, len(sorted_values) - 1))
    left = right - 1
    right = np.minimum(right, len(sorted_values) - 1)
    closer_right = sorted_values[right] - values < values - sorted_values[left]
    return np.where(closer_right, right, left).astype(np.int64)


def _at(position: float, room: int) -> int:
    """The start, out of 0 .. room, at a position; every one is as likely where the position is drawn evenly."""
    return min(room, int(position * (room + 1)))
