"""Tokens that were read: of one clip, or of a batch of clips whose buffers are used again.

They are kept as they are stored. `tokens` and `expand` make float32 of them: on the device they are needed on, so that
int8 and int4 payloads travel as a half and a quarter of fp16's bytes.

Shapes: B clips of a batch, T frames of a clip, N tokens, D channels, G groups of channels that share a scale.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vfz.pipeline.cache.request import is_whole, shown
from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.pipeline.recipe import PARTS, QUANTISED, counted_layers

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from vfz.pipeline.format.calibration import Calibration
    from vfz.pipeline.format.ledger import VideoKey
    from vfz.pipeline.stores.metadata import ArraySpec, Column


ORDER_IN_ALL = PARTS[::-1]
"""Part `all` has the prefix tokens first, as the sequence of a ViT."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenArrays:
    """Stored numbers of some columns.

    Attributes:
        columns: by (layer, part).
        calibrations: of quantised columns, by column key.
        arrays: stored arrays by key, `layer_5/patch` and where quantised `layer_5/patch_scale`: [..., N, D], for int4
            [..., N, ceil(D/2)] bytes of two channels, and scales [..., N, G].
    """

    columns: Mapping[tuple[str, str], Column]
    calibrations: Mapping[str, Calibration]
    arrays: Mapping[str, NDArray[Any]]

    def payload(self, layer: int | str, part: str = "patch") -> NDArray[Any]:
        """The stored numbers of a layer, in the stored dtype.

        Raises:
            UnknownNameError: when that layer or part was not read.
        """
        return self.arrays[self._column(layer, part).key]

    def expand(self, layer: int | str, part: str = "patch", device: torch.device | str | None = None) -> torch.Tensor:
        """Tokens of a layer as a new float32 tensor [..., N, D]; part `all` is the prefix and then the patch tokens.

        Args:
            layer: its name; -1 is the last of those that were read, -2 the one before it.
            part: `patch`, `prefix` or `all`.
            device: where they are expanded and stay; None means the CPU.

        Raises:
            UnknownNameError: when that layer or part was not read.
        """
        tensors = [self._expand(column, device) for column in self._columns_of(layer, part)]
        if len(tensors) == 1:
            return tensors[0]
        import torch

        return torch.cat(tensors, dim=-2)

    def as_float32(self, layer: int | str, part: str = "patch") -> NDArray[np.float32]:
        """As `expand`, as a NumPy array; fp32 without a copy.

        Floating point needs no torch, but is converted by it where it is loaded: 20 times as fast, the same numbers.
        """
        columns = self._columns_of(layer, part)
        if len(columns) == 1 and columns[0].precision == "fp32":
            return self.arrays[columns[0].key]
        if "torch" in sys.modules or any(column.precision in QUANTISED for column in columns):
            return np.asarray(self.expand(layer, part).numpy())
        stored = [self.arrays[column.key] for column in columns]
        return np.concatenate(stored, axis=-2, dtype=np.float32) if len(stored) > 1 else stored[0].astype(np.float32)

    def _expand(self, column: Column, device: torch.device | str | None) -> torch.Tensor:
        import torch

        stored = {spec.key: torch.from_numpy(self.arrays[spec.key]) for spec in column.arrays}
        tokens = expand_column(column, stored, self.calibrations, device)
        # fp32 on the CPU is the buffer itself, which the next batch fills.
        return tokens.clone() if tokens.data_ptr() == stored[column.key].data_ptr() else tokens

    def _columns_of(self, layer: int | str, part: str) -> list[Column]:
        name = self._layer(layer)
        parts = [each for each in ORDER_IN_ALL if (name, each) in self.columns] if part == "all" else []
        return [self._column(layer, each) for each in parts or [part]]

    def _layer(self, layer: int | str) -> str:
        return counted_layers((str(layer),), list(dict.fromkeys(name for name, _ in self.columns)))[0]

    def _column(self, layer: int | str, part: str) -> Column:
        column = self.columns.get((self._layer(layer), str(part)))
        if column is None:
            known = [f"{name} {kind}" for name, kind in self.columns]
            raise UnknownNameError("layer and part of this clip", f"{layer} {part}", known)
        return column


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenClip(TokenArrays):
    """Tokens of some frames of one video; arrays are [T, ...].

    Attributes:
        video_id, view: whose.
        frame_numbers: [T] in the video, in the order asked for.
        pts_seconds: [T] presentation times.
    """

    video_id: str
    view: int
    frame_numbers: NDArray[np.int64]
    pts_seconds: NDArray[np.float64]

    def tokens(self, layer: int | str = -1, part: str = "patch") -> NDArray[np.float32]:
        """Tokens of a layer, by its name or counted from the last one read, as float32 [T, N, D].

        Part `all` is the prefix tokens and then the patch tokens.

        Raises:
            UnknownNameError: when the clip was read without that layer or part.
        """
        return self.as_float32(layer, part)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch(TokenArrays):
    """Tokens of clips of equal length, or buffers for some; arrays are [B, T, ...].

    What `FeatureCache.read_batch` was given as `out` and what it returned share their memory: the next batch read into
    the same buffers replaces this one. Tensors from `tokens` are copies and stay.

    Attributes:
        video_ids, views: [B] whose; empty in buffers that were not read into.
        frame_numbers: [B, T] in each video.
        pts_seconds: [B, T] presentation times.
    """

    video_ids: tuple[str, ...] = ()
    views: tuple[int, ...] = ()
    frame_numbers: NDArray[np.int64]
    pts_seconds: NDArray[np.float64]

    def tokens(
        self, layer: int | str = -1, part: str = "patch", device: torch.device | str | None = None
    ) -> torch.Tensor:
        """Tokens of a layer as a new float32 tensor [B, T, N, D] on a device; see `TokenArrays.expand`."""
        return self.expand(layer, part, device)

    def first(
        self, videos: Sequence[VideoKey], *, num_frames: int, columns: Mapping[tuple[str, str], Column]
    ) -> TokenBatch:
        """A view of the first clips of these buffers, said to be of these videos (id and view).

        Raises:
            UsageError: when the buffers are for fewer clips, another number of frames, or other columns.
        """
        num_clips = len(videos)
        capacity, length = self.frame_numbers.shape
        if num_clips > capacity or num_frames != length or columns != self.columns:
            ours, theirs = (", ".join(column.key for column in some.values()) for some in (self.columns, columns))
            raise UsageError(
                f"out holds up to {capacity} clips of {length} frames of {ours}; {num_clips} of {num_frames} frames of "
                f"{theirs} are read: make it by new_batch() with the same numbers, layers and parts"
            )
        return replace(
            self,
            arrays={key: array[:num_clips] for key, array in self.arrays.items()},
            video_ids=tuple(video_id for video_id, _ in videos),
            views=tuple(view for _, view in videos),
            frame_numbers=self.frame_numbers[:num_clips],
            pts_seconds=self.pts_seconds[:num_clips],
        )


def expand_column(
    column: Column,
    stored: Mapping[str, torch.Tensor],
    calibrations: Mapping[str, Calibration],
    device: torch.device | str | None,
) -> torch.Tensor:
    """Stored arrays of a column to float32 tokens [..., N, D].

    Args:
        column: what was stored.
        stored: its arrays, by key; fp32 tokens that are on the device already are returned as they are.
        calibrations: by column key; that of a quantised column is needed.
        device: where to; None means where they are.
    """
    from vfz.pipeline.stores.quantization import expand

    moved = [stored[spec.key].to(device, non_blocking=True) for spec in column.arrays]
    return expand(
        moved[0],
        moved[1] if len(moved) > 1 else None,
        precision=column.precision,
        stats=calibrations[column.key].stats if column.precision in QUANTISED else None,
        dim=column.dim,
    )


def empty_arrays(
    shape: tuple[int, ...], columns: Mapping[tuple[str, str], Column], *, pin_memory: bool = False
) -> dict[str, NDArray[Any]]:
    """Room for the stored arrays of some columns, by key: [*shape, ...] each."""
    specs = [spec for column in columns.values() for spec in column.arrays]
    return {spec.key: _empty((*shape, *spec.frame_shape), spec, pin_memory=pin_memory) for spec in specs}


def empty_batch(
    batch_size: int,
    num_frames: int,
    columns: Mapping[tuple[str, str], Column],
    calibrations: Mapping[str, Calibration],
    *,
    pin_memory: bool = False,
) -> TokenBatch:
    """Buffers for a batch; see `FeatureCache.new_batch`."""
    if not (is_whole(batch_size) and is_whole(num_frames) and min(batch_size, num_frames) >= 1):
        raise UsageError(
            f"a batch of {shown(batch_size)} clips of {shown(num_frames)} frames; at least 1 of each is needed"
        )
    shape = (batch_size, num_frames)
    return TokenBatch(
        columns=columns,
        calibrations=calibrations,
        arrays=empty_arrays(shape, columns, pin_memory=pin_memory),
        frame_numbers=np.zeros(shape, np.int64),
        pts_seconds=np.zeros(shape, np.float64),
    )


def _empty(shape: tuple[int, ...], spec: ArraySpec, *, pin_memory: bool) -> NDArray[Any]:
    if not pin_memory:
        return np.empty(shape, spec.dtype)
    import torch

    if not torch.cuda.is_available():
        return np.empty(shape, spec.dtype)
    dtype = torch.from_numpy(np.empty(0, spec.dtype)).dtype
    return np.asarray(torch.empty(shape, dtype=dtype, pin_memory=True).numpy())
