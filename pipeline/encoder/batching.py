"""From decoded frames to batches for the encoder: resized, cropped, on the encoder's device.

The CPU takes each frame as it comes. A GPU takes them by the run: frames of one size that follow each other are laid
side by side in page-locked memory, and are sent and resized together, on a stream of their own, while the encoder works
on the batch before. One at a time, the dozen small kernels of a resize would keep a large GPU from a tenth of its work.
`prepared_frames` does without batches: the frames of one video, one after the other, on the CPU.

Cost: on the CPU some 0.3 ms a frame of 256 x 256 pixels. On a GPU one copy of it here; `RUN_BYTES` of page-locked
memory, and as much again for each change of the frames' size within a batch; some five times as much on the GPU.

Shapes: B frames, C = 3 channels, H x W pixels of the source, S the side of the square.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfz.pipeline.decoding import VideoFrame, get_decoder
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.encoder.transforms import Preprocess, ViewCrop, ViewCropper
from vfz.pipeline.errors import EncoderError
from vfz.pipeline.recipe import FrameSpec

RUN_BYTES = 32 * 1024**2
"""Of pixels that are sent to a GPU at a time, unless a single frame has more."""


def frame_gatherer(preprocess: Preprocess, device: torch.device) -> FrameGatherer:
    """What gathers frames for an encoder on that device.

    Args:
        preprocess: the encoder's.
        device: the encoder's.
    """
    return GpuGatherer(preprocess, device) if device.type == "cuda" else CpuGatherer(preprocess, device)


class FrameGatherer(Protocol):
    """Takes frames one by one, gives them as a batch; used by one thread."""

    def add(self, pixels_HWC: np.ndarray, cropper: ViewCropper | None) -> None:
        """One more frame, uint8 RGB of any size.

        Args:
            pixels_HWC: its pixels; not used after the call.
            cropper: cuts the view; None for the centre crop.
        """

    def take(self) -> Tensor:
        """The frames added since the last call, at least one: uint8 [B, 3, S, S] on the device."""


class CpuGatherer:
    """Resizes every frame when it comes; see `FrameGatherer`."""

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        self._preprocess, self._device = preprocess, device
        self._squares: list[Tensor] = []

    def add(self, pixels_HWC: np.ndarray, cropper: ViewCropper | None) -> None:
        """See `FrameGatherer`."""
        self._squares.append(square_of(pixels_HWC, self._preprocess, cropper))

    def take(self) -> Tensor:
        """See `FrameGatherer`."""
        squares, self._squares = self._squares, []
        return torch.stack(squares).to(self._device)


class GpuGatherer:
    """Sends and resizes frames by the run; see `FrameGatherer`."""

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        self._preprocess, self._device = preprocess, device
        self._stream = _stream_of(device)
        self._squares: list[Tensor] = []
        self._buffer_BHWC = torch.empty(0)  # page-locked
        self._run = slice(0, 0)  # of the buffer: frames that are not sent yet
        self._crop: ViewCrop | None = None

    def add(self, pixels_HWC: np.ndarray, cropper: ViewCropper | None) -> None:
        """See `FrameGatherer`."""
        crop = None if cropper is None else cropper.crop(*pixels_HWC.shape[:2])
        has_room = self._run.stop < len(self._buffer_BHWC) and self._buffer_BHWC.shape[1:] == pixels_HWC.shape
        if not has_room or crop != self._crop:
            self._send()
            self._crop = crop
        if not has_room:  # the one before may still be read from, for which its allocator waits
            num_frames = max(1, RUN_BYTES // pixels_HWC.nbytes)
            self._buffer_BHWC = torch.empty(num_frames, *pixels_HWC.shape, dtype=torch.uint8, pin_memory=True)
            self._run = slice(0, 0)
        self._buffer_BHWC.numpy()[self._run.stop] = pixels_HWC  # torch would wake a thread on every core for each copy
        self._run = slice(self._run.start, self._run.stop + 1)

    def take(self) -> Tensor:
        """See `FrameGatherer`."""
        self._send()
        squares, self._squares = self._squares, []
        with torch.cuda.stream(self._stream):
            batch_BCSS = squares[0] if len(squares) == 1 else torch.cat(squares)
        self._stream.synchronize()
        self._run = slice(0, 0)  # all of the buffer has been read
        batch_BCSS.record_stream(torch.cuda.current_stream(self._device))  # where the encoder reads it
        return batch_BCSS

    def _send(self) -> None:
        """The run goes to the GPU and becomes squares there."""
        if self._run.start == self._run.stop:
            return
        with torch.cuda.stream(self._stream):
            self._squares += self._resized(self._buffer_BHWC[self._run])
        self._run = slice(self._run.stop, self._run.stop)

    def _resized(self, pinned_BHWC: Tensor) -> list[Tensor]:
        """Squares [n, 3, S, S] on the GPU, in as many parts as its memory makes of them."""
        try:
            frames_BHWC = pinned_BHWC.to(self._device, non_blocking=True)
            if self._crop is None:
                return [self._preprocess.resize_crop_frames(frames_BHWC)]
            return [self._preprocess.resize_view_frames(frames_BHWC, self._crop)]
        except torch.OutOfMemoryError as error:
            if len(pinned_BHWC) == 1:
                raise EncoderError(
                    f"{self._device} has too little memory to resize a frame of {pinned_BHWC.shape[1]} x "
                    f"{pinned_BHWC.shape[2]} pixels beside the encoder; free some, or take a smaller --batch-size"
                ) from error
        torch.cuda.empty_cache()
        half = len(pinned_BHWC) // 2
        return [*self._resized(pinned_BHWC[:half]), *self._resized(pinned_BHWC[half:])]


@functools.cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """One for all: memory is kept apart by stream. Ahead of the encoder's kernels, for whose input this is."""
    return torch.cuda.Stream(device, priority=-1)


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
        yield prepare_frame(frame, preprocess, cropper)


def prepare_frame(frame: VideoFrame, preprocess: Preprocess, cropper: ViewCropper | None = None) -> PreparedFrame:
    """A decoded frame, resized and cropped on the CPU."""
    return PreparedFrame(pixels_CHW=square_of(frame.pixels_HWC, preprocess, cropper), pts_seconds=frame.pts_seconds)


@dataclass(frozen=True, kw_only=True)
class PreparedFrame:
    """One frame as the encoder takes it: uint8 pixels [3,S,S] and its time from the first frame."""

    pixels_CHW: Tensor
    pts_seconds: float


def square_of(pixels_HWC: NDArray[np.uint8], preprocess: Preprocess, cropper: ViewCropper | None) -> Tensor:
    """The pixels of a frame as the encoder takes them: uint8 [3,S,S] on the CPU; `cropper` is None for the centre."""
    if cropper is None:
        return preprocess.resize_crop(pixels_HWC)
    height, width = pixels_HWC.shape[:2]
    return preprocess.resize_view(pixels_HWC, cropper.crop(height, width))
