"""A decode process: `python -m vfz.pipeline.decoding.worker DESCRIPTOR`, started and fed by a `DecodePool`.

It decodes one video after the other, as its standard input asks, and sends the frames up the socket with that
descriptor, as `vfz.pipeline.decoding.messages` says. What libraries print goes another way. A library that crashes,
hangs or eats memory does so here, where it costs one video.

Frames are sent in groups: for each message the parent takes the interpreter lock from the thread that feeds its GPU, no
matter how many frames the message has. A group is sent when it is full, or when the last one went `GROUP_SECONDS` ago
or more: a slow decoder sends every frame at once, a fast one holds a frame back for about that long.

Memory is bounded in three ways: by the room that the parent grants, by the decoder's own limit on the size of a frame,
and by a limit of the operating system on the process (`MAX_MEMORY_BYTES`, where it has one). Where the machine still
runs out of memory, the system is told to end this process first.

Cost: it imports numpy and a decoder, not torch, and is up in a tenth of a second or two.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from vfz.pipeline.decoding import VideoFrame, get_decoder
from vfz.pipeline.decoding.base import Decoder, VideoSource, refuse_odd_files
from vfz.pipeline.decoding.messages import LENGTH, Room, Setup, source_from_json
from vfz.pipeline.errors import DecodeError
from vfz.pipeline.recipe import FrameSpec

MAX_MEMORY_BYTES = 4 * 1024**3
"""What decoding 8K video in 10 bits takes, twice."""
PR_SET_PDEATHSIG = 1
OOM_SCORE = "500"
GROUP_FRAMES, GROUP_BYTES, GROUP_SECONDS = 16, 2 * 1024**2, 0.05
PARTS_OF_ROOM = 4
"""A group takes no more than one of them, so that the next ones are decoded while it is taken frame by frame."""


def main() -> None:
    """Decodes what it is asked to until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on
    _die_with_parent()
    output, lines = os.fdopen(int(sys.argv[1]), "wb"), sys.stdin.buffer
    setup = Setup(**json.loads(lines.readline()))
    spec = FrameSpec(**setup.spec)
    decoder = get_decoder(spec.decoder)
    _limit_memory()
    inbox = _Inbox(lines, setup)
    try:
        _send(output, {"event": "ready"})
        while True:
            request = inbox.requests.get()
            _send(output, {"event": "end"} | _decode(request, decoder, spec, inbox, output))
    except BrokenPipeError:
        os._exit(0)  # nobody listens any more


def _decode(
    request: dict[str, Any], decoder: Decoder, spec: FrameSpec, inbox: _Inbox, output: BinaryIO
) -> dict[str, Any]:
    """Sends the digest and the frames of one video; returns how it ended."""
    source = source_from_json(request["source"])
    try:
        if not source.exists():
            return {"reason": f"no file {source}", "missing": True}
        refuse_odd_files(source)
        before = source.path.stat()
        _send(output, {"event": "begin", "digest": source.digest()})
    except DecodeError as error:
        return {"reason": str(error)}
    except OSError as error:
        return {"reason": f"{source.name}: cannot be read ({error.strerror})"}
    num_decoded, reason = 0, None
    groups = FrameGroups(inbox.setup, functools.partial(_send_frames, output))
    try:
        for frame in decoder.frames(source, spec):
            num_decoded = frame.number + 1
            if not inbox.may_send(request["number"], frame.pixels_HWC.nbytes, groups):
                break
            groups.add(frame)
    except DecodeError as error:
        reason = str(error)
    except MemoryError:
        reason = f"{source.name}: takes more than {MAX_MEMORY_BYTES / 1024**3:.0f} GiB to decode"
    groups.flush()
    if _has_changed(source, before):  # whatever else is wrong may come from that
        reason = f"{source.name}: changed while it was read"
    return {"reason": reason, "num_decoded": num_decoded}


def _has_changed(source: VideoSource, before: os.stat_result) -> bool:
    """Whether other bytes lie there than those the digest was taken from."""
    try:
        after = source.path.stat()
    except OSError:
        return True
    return (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns)


class _Inbox:
    """What the parent says, read in a thread of its own, so that it is heard while a video is decoded."""

    def __init__(self, lines: BinaryIO, setup: Setup) -> None:
        self.requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.setup = setup
        self._lines, self._room = lines, Room(setup.max_frames, setup.max_bytes)
        self._changed = threading.Condition()
        self._skipped = -1
        threading.Thread(target=self._listen, daemon=True).start()

    def may_send(self, number: int, num_bytes: int, groups: FrameGroups) -> bool:
        """Waits for room for a frame of request `number`; False when no more of its frames are wanted."""
        with self._changed:
            is_full = self._room.is_full
        if is_full:
            groups.flush()  # nobody could take those, and room would never be made
        with self._changed:
            self._changed.wait_for(lambda: self._skipped == number or not self._room.is_full)
            if self._skipped == number:
                return False
            self._room.sent(num_bytes)
            return True

    def _listen(self) -> None:
        for line in self._lines:
            message = json.loads(line)
            with self._changed:
                if message["event"] == "decode":
                    self.requests.put(message)
                elif message["event"] == "skip":
                    self._skipped = message["number"]
                else:
                    self._room.taken(message["num_frames"])
                self._changed.notify()
        os._exit(0)  # the parent is gone, and nobody waits for what is being decoded


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
        """Sends the frames gathered so far: before a wait for room, which they may take up, and at the end."""
        if self._frames:
            self._send(self._frames)
            self._frames, self._sent_at = [], self._clock()


def _send_frames(output: BinaryIO, frames: Sequence[VideoFrame]) -> None:
    header = {
        "event": "frames",
        "shape": (len(frames), *frames[0].pixels_HWC.shape),
        "pts_seconds": [frame.pts_seconds for frame in frames],
        "numbers": [frame.number for frame in frames],
    }
    _send(output, header, [frame.pixels_HWC.data for frame in frames])


def _send(output: BinaryIO, message: dict[str, Any], pixels: Sequence[memoryview] = ()) -> None:
    text = json.dumps(message).encode()
    output.write(LENGTH.pack(len(text)) + text)
    output.writelines(pixels)
    output.flush()


def _die_with_parent() -> None:
    """Asks Linux to kill this process when the parent's thread ends; elsewhere the end of standard input must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit_memory() -> None:
    """Bounds this process and lets the system's out-of-memory killer take it before its parent, where there is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, MAX_MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)


if __name__ == "__main__":
    main()
