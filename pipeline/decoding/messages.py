"""What a decode process and its parent say to each other, and how far the process may work ahead.

Down the process's standard input go JSON lines; up a socket come JSON messages, each after its length. First the parent
sends a `Setup`, and the process answers `ready`. For each `decode` it sends `begin` (with the digest of the source),
any number of `frames`, each a group of one shape followed by the pixels of all as they lie in memory, and `end`. A
`skip` with the number of a `decode` makes that one end early. `taken` says how many frames have left the parent's
buffer: all of a group at once, when its last one has.

Both ends import this file and neither imports the other. It needs the standard library only.
"""

from __future__ import annotations

import dataclasses
import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfz.pipeline.decoding.base import VideoSource

LENGTH = struct.Struct(">I")
"""In front of each JSON message that a child sends."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a child is told first.

    Attributes:
        spec: a `FrameSpec` as a dictionary.
        max_frames, max_bytes: bounds of its `Room`.
    """

    spec: dict[str, Any]
    max_frames: int
    max_bytes: int


class Room:
    """How many frames a child may have sent that nobody has taken yet. Child and parent keep the same count.

    The last frame may go over the bytes, so that a frame larger than all of them gets through. Not thread-safe.
    """

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._frame_bytes: deque[int] = deque()
        self._num_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether no other frame may be sent now."""
        return len(self._frame_bytes) >= self._max_frames or self._num_bytes >= self._max_bytes

    def sent(self, num_bytes: int) -> None:
        """One more frame is on its way, or gathered for it."""
        self._frame_bytes.append(num_bytes)
        self._num_bytes += num_bytes

    def taken(self, num_frames: int) -> None:
        """The oldest ones are gone."""
        for _ in range(num_frames):
            self._num_bytes -= self._frame_bytes.popleft()


def source_to_json(source: VideoSource) -> dict[str, Any]:
    """A source as JSON values; its path absolute, since a child keeps the folder that it was started in."""
    return dataclasses.asdict(source) | {"path": str(source.path.absolute())}


def source_from_json(values: dict[str, Any]) -> VideoSource:
    """The inverse of `source_to_json`."""
    return VideoSource(**(values | {"path": Path(values["path"])}))
