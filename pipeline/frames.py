"""A video file to the frames the encoder is given: decoded, sampled in time, resized and cropped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vfz.pipeline.preprocess import Preprocess
from vfz.pipeline.spec import FrameSpec
from vfz.pipeline.video import decode_frames


@dataclass(frozen=True, kw_only=True)
class PreparedFrame:
    """One frame as the encoder takes it: uint8 pixels [3,S,S] and its time from the first frame."""

    pixels_CHW: Tensor
    pts_seconds: float


def prepared_frames(path: Path, frames: FrameSpec, preprocess: Preprocess) -> Iterator[PreparedFrame]:
    """The sampled frames of a video, one after the other; a few are in memory at any time.

    Raises:
        DecodeError: when the video cannot be decoded in full; frames given before that are not to be kept.
    """
    for frame in decode_frames(
        path, fps=frames.fps, start_seconds=frames.start_seconds, end_seconds=frames.end_seconds
    ):
        yield PreparedFrame(pixels_CHW=preprocess.resize_crop(frame.pixels_HWC), pts_seconds=frame.pts_seconds)
