"""The parent's end of a decode process: starting it, asking for videos, taking frames, and giving it up.

A `DecodeProcess` is one child, kept by one thread of a `DecodePool`; it puts the frames of each video into a
`VideoStream`, from which whoever asked for the video takes them. A child that dies, or works on one video for too long,
ends with a `ProcessDiedError` that says why; another one can then be started.

Cost: a thread that waits, and one copy of each frame out of the socket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from typing import Any, cast

import numpy as np

from vfz.pipeline.decoding.base import VideoFrame, VideoSource
from vfz.pipeline.decoding.messages import LENGTH, Room, Setup, source_to_json
from vfz.pipeline.errors import DecodeError, RunError, VfzError

SOCKET_BYTES = 1024**2
"""Asked of the system for frames that are not read yet; it may give less."""
START_SECONDS = 120.0
"""How long a process may take to come up, on a machine that reads Python from a slow network disk."""
TICK_SECONDS = 0.25
DYING_SECONDS = 2.0
"""How long a process that has closed its output may take to end; then it is killed."""
PRINTED_BYTES = 4096
"""How much of the end of what a process prints is kept, for the reason of its death."""


class DecodeProcess:
    """One child, used by one thread. `kill`, and what streams call back, may come from other threads.

    Attributes:
        busy_seconds: how long it has worked, waiting for room or for a video not counted.
        num_decoded: frames it has decoded.
    """

    def __init__(self, setup: Setup) -> None:
        self.busy_seconds = 0.0
        self.num_decoded = 0
        self._room = Room(setup.max_frames, setup.max_bytes)
        self._lock = threading.Lock()  # guards the room and the clock
        self._writing = threading.Lock()
        self._video_seconds = 0.0
        self._working_since: float | None = None
        self._has_video = False
        self._number = 0
        self._printed = b""
        self._process, self._output = _spawn()
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        self._poll.register(self._stdout, select.POLLIN)
        self._tell(dataclasses.asdict(setup))

    def wait_until_ready(self) -> None:
        """Returns when the child has come up.

        Raises:
            ProcessDiedError: it has not.
        """
        self._start_clock()
        self._receive(START_SECONDS)
        self._stop_clock()

    def decode(self, stream: VideoStream, limit_seconds: float) -> None:
        """Has one video decoded into its stream, to the end of both.

        Raises:
            ProcessDiedError: the child died, or was killed because it worked on this video longer than the limit. The
                stream is still open.
        """
        self._number += 1
        number = self._number
        if not stream.begin(lambda: self._tell({"event": "skip", "number": number})):
            stream.end()
            return
        self._start_clock()
        self._tell({"event": "decode", "number": number, "source": source_to_json(stream.source)})
        while True:
            message = self._receive(limit_seconds)
            if message["event"] == "begin":
                stream.digest = message["digest"]
            elif message["event"] == "frames":
                pixels_NHWC = np.empty(message["shape"], np.uint8)
                self._read_into(pixels_NHWC.data.cast("B"), limit_seconds)
                frames = [
                    VideoFrame(pixels_HWC=pixels_HWC, pts_seconds=pts_seconds, number=frame_number)
                    for pixels_HWC, pts_seconds, frame_number in zip(
                        pixels_NHWC, message["pts_seconds"], message["numbers"], strict=True
                    )
                ]
                self._sent(frames)
                stream.put(frames, functools.partial(self._taken, len(frames)))
            else:
                break
        self._stop_clock()
        self.num_decoded += message.get("num_decoded", 0)
        stream.missing = message.get("missing", False)
        stream.end(DecodeError(message["reason"]) if message["reason"] else None)

    @property
    def is_alive(self) -> bool:
        """Whether the child could do something."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Stops the child at once; whoever waits for it gets a `ProcessDiedError`."""
        self._process.kill()

    def close(self) -> None:
        """Stops the child and forgets it; done already where a `ProcessDiedError` was raised."""
        self._reap()

    def _receive(self, limit_seconds: float) -> dict[str, Any]:
        """The next message."""
        self._wait_for_output(limit_seconds)
        length = bytearray(LENGTH.size)
        self._read_into(memoryview(length), limit_seconds)
        text = bytearray(LENGTH.unpack(length)[0])
        self._read_into(memoryview(text), limit_seconds)
        message: dict[str, Any] = json.loads(text)
        return message

    def _read_into(self, view: memoryview, limit_seconds: float) -> None:
        """Fills `view` from the child's output."""
        while True:
            try:
                num_bytes = self._output.recv_into(view, 0, socket.MSG_WAITALL)  # all of it, or what comes in a tick
            except BlockingIOError:
                pass
            else:
                if not num_bytes:
                    raise ProcessDiedError(self._reap(patience_seconds=DYING_SECONDS))
                view = view[num_bytes:]
            if not view:
                return
            self._wait_for_output(limit_seconds)

    def _wait_for_output(self, limit_seconds: float) -> None:
        """Returns when the child has sent something or has ended; keeps the time, and gives it up past the limit."""
        while True:
            ready = [descriptor for descriptor, _ in self._poll.poll(TICK_SECONDS * 1000)]
            if self._stdout.fileno() in ready:
                self._read_printed()
            with self._lock:
                self._advance_clock()
                late = self._video_seconds > limit_seconds
            if late:
                self._reap()
                raise ProcessDiedError(f"decoder timed out after {limit_seconds:g} s")
            if self._output.fileno() in ready:
                return

    def _read_printed(self) -> None:
        """Keeps the end of what the child has printed."""
        text = self._stdout.read(65536)
        self._printed = (self._printed + text)[-PRINTED_BYTES:]
        if not text:
            self._poll.unregister(self._stdout)

    def _reap(self, *, patience_seconds: float = 0.0) -> str:
        """Ends the child, after some time in which it may end by itself, and closes its pipes; returns why it died."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_seconds)
        self.kill()
        code = self._process.wait()
        lines = (self._printed + self._stdout.read()).decode(errors="replace").strip().splitlines()
        with self._writing:
            self._stdin.close()
        self._stdout.close()
        self._output.close()
        died = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        return f"decoder died: {died}{': ' + lines[-1].strip() if lines else ''}"

    def _tell(self, message: dict[str, Any]) -> None:
        """Says something to the child. Where it is gone, nobody hears it: whoever reads from it will find out."""
        line = memoryview(json.dumps(message).encode() + b"\n")
        with self._writing, contextlib.suppress(BrokenPipeError):
            while line and not self._stdin.closed:
                line = line[self._stdin.write(line) :]

    @property
    def _stdin(self) -> FileIO:
        return cast("FileIO", self._process.stdin)

    @property
    def _stdout(self) -> FileIO:
        """What the child and its libraries print; frames take another way."""
        return cast("FileIO", self._process.stdout)

    def _taken(self, num_frames: int) -> None:
        """All frames of a group have left the buffer."""
        with self._lock:
            self._room.taken(num_frames)
            if self._has_video and self._working_since is None and not self._room.is_full:
                self._working_since = time.monotonic()
        self._tell({"event": "taken", "num_frames": num_frames})

    def _sent(self, frames: Sequence[VideoFrame]) -> None:
        """A group of frames has come."""
        with self._lock:
            self._advance_clock()
            for frame in frames:
                self._room.sent(frame.pixels_HWC.nbytes)
            if self._room.is_full:
                self._working_since = None

    def _start_clock(self) -> None:
        with self._lock:
            self._has_video, self._video_seconds = True, 0.0
            self._working_since = None if self._room.is_full else time.monotonic()

    def _stop_clock(self) -> None:
        with self._lock:
            self._advance_clock()
            self._has_video, self._working_since = False, None

    def _advance_clock(self) -> None:
        """Counts the time since the last call, if the child could work."""
        if self._working_since is None:
            return
        now = time.monotonic()
        # More than a tick has passed only when this process was itself stopped, and the child perhaps with it.
        seconds = min(now - self._working_since, 2 * TICK_SECONDS)
        self._working_since = now
        self._video_seconds += seconds
        self.busy_seconds += seconds


class ProcessDiedError(Exception):
    """A decode process is gone; says why."""


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

    @property
    def is_cut(self) -> bool:
        """Whether it was closed before its end, so that not all of its frames came."""
        return self._closed

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
        """For the pool: the rest can no longer be asked for; a program that does so gets a `RunError`."""
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


def _spawn() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A child, and the socket that its messages come from, on which a read ends with a tick at the latest.

    A socket and not a pipe, since the system fills a buffer from it in one call, for which Python's lock is not needed.
    """
    output, child_output = socket.socketpair()
    try:
        with contextlib.suppress(OSError):  # a user may own only so much; a small one works too
            child_output.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        seconds, microseconds = divmod(round(TICK_SECONDS * 1e6), 10**6)
        output.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, microseconds))
        process = subprocess.Popen(  # noqa: S603 - this interpreter and a module of ours
            [sys.executable, "-P", "-m", "vfz.pipeline.decoding.worker", str(child_output.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            pass_fds=[child_output.fileno()],
            process_group=0,  # Ctrl-C is not sent to it, even before it has asked for that
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    except OSError:
        output.close()
        raise
    finally:
        child_output.close()
    return process, output
