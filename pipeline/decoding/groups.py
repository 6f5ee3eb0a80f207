"""Frames of a video on their way into the pipe: several go together, so that they cost the parent little.

Whatever the parent does for a message takes the interpreter lock from the thread that feeds its GPU: a group of frames
costs it as much of that as one frame does. A group is sent when it is full, and when the last one went `GROUP_SECONDS`
ago or more: who decodes slowly sends every frame at once, who decodes fast holds one back for about that long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from vfz.pipeline.decoding.base import VideoFrame
from vfz.pipeline.decoding.wire import Setup

GROUP_FRAMES, GROUP_BYTES, GROUP_SECONDS = 16, 2 * 1024**2, 0.05
PARTS_OF_ROOM = 4
"""A group takes no more than one of them, so that the next ones are decoded while it is taken frame by frame."""


class FrameGroups:
    """Gathers the frames of one video.

    Args:
        setup: its room bounds the groups.
        send: is given the frames of a group, which have one shape.
        clock: gives the time in seconds.
    """

    def __init__(
        self, setup: Setup, send: Callable[[Sequence[VideoFrame]], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_frames = min(GROUP_FRAMES, max(1, setup.max_frames // PARTS_OF_ROOM))
        self._max_bytes = min(GROUP_BYTES, setup.max_bytes // PARTS_OF_ROOM)
        self._send, self._clock = send, clock
        self._frames: list[VideoFrame] = []
        self._sent_at = clock()

    def add(self, frame: VideoFrame) -> None:
        """One more frame; sends what is ready to go. A frame above the bytes goes alone."""
        pixels_HWC = frame.pixels_HWC
        if self._frames and (
            self._frames[0].pixels_HWC.shape != pixels_HWC.shape
            or (len(self._frames) + 1) * pixels_HWC.nbytes > self._max_bytes
        ):
            self.flush()
        self._frames.append(frame)
        if (
            len(self._frames) >= self._max_frames
            or (len(self._frames) + 1) * pixels_HWC.nbytes > self._max_bytes
            or self._clock() - self._sent_at >= GROUP_SECONDS
        ):
            self.flush()

    def flush(self) -> None:
        """Sends what there is: before a wait for room, which must not be for these frames, and at the end."""
        if self._frames:
            self._send(self._frames)
            self._frames, self._sent_at = [], self._clock()
