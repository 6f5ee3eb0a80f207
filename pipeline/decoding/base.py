"""What a decoder is: a video and a frame rule in, RGB frames with their times out."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from vfz.pipeline.errors import DecodeError

if TYPE_CHECKING:
    import numpy as np

    from vfz.pipeline.recipe import FrameSpec
    from vfz.pipeline.source import VideoSource


@dataclass(frozen=True, kw_only=True)
class VideoFrame:
    """One frame.

    Attributes:
        pixels_HWC: uint8 RGB, without gaps in memory (C-contiguous), so that it may be sent as it is;
            not written to again, since several frames are sent together.
        pts_seconds: its presentation time, in seconds from the first frame shown; strictly increasing in a video.
        number: of the frame among all that the video shows, from 0: how many had to be decoded before it.
    """

    pixels_HWC: np.ndarray
    pts_seconds: float
    number: int


class Decoder(Protocol):
    """Turns videos into frames.

    Attributes:
        name: as recipes and `DECODERS` call it.
        version: raised whenever the same video and rule give other pixels or other times.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    def frames(self, source: VideoSource, spec: FrameSpec) -> Iterator[VideoFrame]:
        """The frames that a rule chooses, in order of time, in one pass that holds a few of them.

        Raises:
            DecodeError: while iterating: the video is not there, is damaged or cut short, or has no frame to give;
                frames given before that are not to be kept.
        """


def refuse_odd_files(source: VideoSource) -> None:
    """Refuses what would block, or give nothing, when it is read.

    Raises:
        DecodeError: a folder, a pipe or a device, or no bytes.
        OSError: the file is not there.
    """
    details = source.path.stat()
    if not stat.S_ISREG(details.st_mode):
        raise DecodeError(f"{source.name}: is no regular file")
    if not (details.st_size if source.num_bytes is None else source.num_bytes):
        raise DecodeError(f"{source.name}: the file is empty")
