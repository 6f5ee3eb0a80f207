"""A video file to the frames the encoder is given: decoded, sampled in time, resized and cropped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vfz.pipeline.decoding import VideoFrame, get_decoder
from vfz.pipeline.encoder.transforms import Preprocess
from vfz.pipeline.recipe import FrameSpec
from vfz.pipeline.source import VideoSource
from vfz.pipeline.views import ViewCropper


@dataclass(frozen=True, kw_only=True)
class PreparedFrame:
    """One frame as the encoder takes it: uint8 pixels [3,S,S] and its time from the first frame."""

    pixels_CHW: Tensor
    pts_seconds: float


def prepared_frames(
    source: VideoSource, frames: FrameSpec, preprocess: Preprocess, cropper: ViewCropper | None = None
) -> Iterator[PreparedFrame]:
    """The sampled frames of a video, one after the other; a few are in memory at any time.

    Args:
        source: the video.
        frames: which frames.
        preprocess: the encoder's.
        cropper: cuts the view; None for the centre crop.

    Raises:
        DecodeError: when the video cannot be decoded in full; frames given before that are not to be kept.
    """
    for frame in get_decoder(frames.decoder).frames(source, frames):
        yield prepare(frame, preprocess, cropper)


def prepare(frame: VideoFrame, preprocess: Preprocess, cropper: ViewCropper | None = None) -> PreparedFrame:
    """A decoded frame, resized and cropped on the CPU."""
    return PreparedFrame(pixels_CHW=square_of(frame.pixels_HWC, preprocess, cropper), pts_seconds=frame.pts_seconds)


def square_of(pixels_HWC: NDArray[np.uint8], preprocess: Preprocess, cropper: ViewCropper | None) -> Tensor:
    """The pixels of a frame as the encoder takes them: uint8 [3,S,S] on the CPU; `cropper` is None for the centre."""
    if cropper is None:
        return preprocess.resize_crop(pixels_HWC)
    height, width = pixels_HWC.shape[:2]
    return preprocess.resize_view(pixels_HWC, cropper.crop(height, width))
