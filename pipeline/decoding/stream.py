"""The frames of one video on their way out of a `DecodePool`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from vfz.pipeline.decoding.base import VideoFrame
from vfz.pipeline.errors import RunError, VfzError
from vfz.pipeline.source import VideoSource


class VideoStream:
    """One video of a `DecodePool`: its frames, to be taken once and in order.

    Attributes:
        source: where it lies.
        digest: of its source, taken before it was decoded; there once the first frame is, or the end, unless the
            source could not be read.
        missing: there is no such file.
    """

    def __init__(self, source: VideoSource) -> None:
        self.source = source
        self.digest: str | None = None
        self.missing = False
        self._frames: deque[tuple[VideoFrame, Callable[[], None] | None]] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: VfzError | None = None  # raised at the end
        self._on_close: Callable[[], None] | None = None

    def __iter__(self) -> Iterator[VideoFrame]:
        """The frames, as they come.

        Raises:
            DecodeError: at the end: the video is missing, damaged, changed meanwhile, took too long or brought its
                decoder down; frames given before that are not to be kept.
            RunError: the pool was closed, or cannot start processes.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frames or self._ended or self._closed)
                if not self._frames:
                    break
                frame, on_taken = self._frames.popleft()
            if on_taken is not None:
                on_taken()
            yield frame
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Skip the rest: no more frames come, and no error."""
        self._close(None)

    def abandon(self) -> None:
        """For the pool: nobody can want the rest; whoever asks for it all the same has a mistake in his program."""
        self._close(RunError(f"{self.source.name}: its frames are gone; take them before the next video is asked for"))

    def _close(self, error: RunError | None) -> None:
        with self._changed:
            if self._closed or (self._ended and not self._frames):
                return
            self._closed, self._error = True, error
            dropped = list(self._frames)
            self._frames.clear()
            on_close = None if self._ended else self._on_close
            self._changed.notify_all()
        for _, on_taken in dropped:
            if on_taken is not None:
                on_taken()
        if on_close is not None:
            on_close()

    def begin(self, on_close: Callable[[], None]) -> bool:
        """For the pool: a process takes the video up, unless nobody wants it any more.

        Args:
            on_close: told when the rest is skipped.
        """
        with self._changed:
            self._on_close = on_close
            return not self._closed

    def put(self, frames: Sequence[VideoFrame], on_taken: Callable[[], None]) -> None:
        """For the pool: one more frame or more; `on_taken` is called when the last of them has left the buffer."""
        with self._changed:
            if not self._closed:
                self._frames.extend((frame, None) for frame in frames[:-1])
                self._frames.append((frames[-1], on_taken))
                self._changed.notify_all()
                return
        on_taken()

    def end(self, error: VfzError | None = None) -> None:
        """For the pool: no more frames will come."""
        with self._changed:
            if not self._closed:
                self._error = error
            self._ended = True
            self._changed.notify_all()
