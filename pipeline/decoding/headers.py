"""How long a few videos are, as their headers say: enough to tell how many frames a dataset has, at milliseconds each.

Headers are read in a child process: a file may be damaged in any way, and one that crashes or hangs ffmpeg must not
take a whole run along. `python -m vfz.pipeline.decoding.headers` is that child: sources as JSON on its stdin, a line
for each on its stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfz.pipeline.decoding.messages import source_from_json, source_to_json
from vfz.pipeline.errors import DecodeError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from vfz.pipeline.decoding.base import VideoSource


TIME_LIMIT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class VideoHeader:
    """What a video says of itself.

    Attributes:
        duration_seconds: how long it is; None where it does not say, or was not asked in time.
        frames_per_second: its own rate; None likewise.
    """

    duration_seconds: float | None
    frames_per_second: float | None


NOT_KNOWN = VideoHeader(duration_seconds=None, frames_per_second=None)


def read_headers(
    sources: Sequence[VideoSource], *, time_limit_seconds: float = TIME_LIMIT_SECONDS
) -> list[VideoHeader | None]:
    """The header of each video; None where it cannot be read, so that the video cannot be decoded either."""
    until = time.monotonic() + time_limit_seconds
    found: list[VideoHeader | None] = []
    while len(found) < len(sources) and time.monotonic() < until:
        headers, crashed = _ask_child(sources[len(found) :], max(0.0, until - time.monotonic()))
        # A child that ends early did so at the next video: that one is broken, and another child goes on behind it.
        found += [*headers, None] if crashed else headers
    return [*found, *[NOT_KNOWN] * len(sources)][: len(sources)]


def _ask_child(sources: Sequence[VideoSource], time_limit_seconds: float) -> tuple[list[VideoHeader | None], bool]:
    """What one child found out, and whether it crashed before the end."""
    request = json.dumps([source_to_json(source) for source in sources])
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "vfz.pipeline.decoding.headers"],
            input=request.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # ffmpeg's remarks on damaged files
            timeout=time_limit_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as stopped:
        output, crashed = stopped.stdout or b"", False
    else:
        output, crashed = ran.stdout, ran.returncode != 0
    # A line that a kill has cut off has no end.
    values = [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith(b"\n")]
    return [None if value is None else VideoHeader(**value) for value in values], crashed


def _answer() -> None:
    """The child."""
    for values in json.load(sys.stdin):
        sys.stdout.write(f"{json.dumps(_read_header(source_from_json(values)))}\n")
        sys.stdout.flush()


def _read_header(source: VideoSource) -> dict[str, float | None] | None:
    import av

    from vfz.pipeline.decoding.containers import opened_container, video_stream

    try:
        with opened_container(source) as container:
            return _header_of(container, video_stream(container))
    except (DecodeError, av.FFmpegError, OSError, ValueError):
        return None


def _header_of(container: InputContainer, stream: VideoStream | None) -> dict[str, float | None] | None:
    import av

    if stream is None:
        return None
    seconds: float | None
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration:
        seconds = container.duration / av.time_base
    else:
        seconds = None
    rate = stream.average_rate or stream.guessed_rate
    return {"duration_seconds": seconds, "frames_per_second": float(rate) if rate else None}


if __name__ == "__main__":
    _answer()
