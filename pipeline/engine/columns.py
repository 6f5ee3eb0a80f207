"""From what an encoder gives to what a cache stores: its layers and parts as columns, its tokens as stored arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from vfz.pipeline.encoder.layers import LayerShape, LayerTokens
from vfz.pipeline.errors import UsageError
from vfz.pipeline.stores import quantization
from vfz.pipeline.stores.metadata import Column

if TYPE_CHECKING:
    from vfz.pipeline.format.calibration import Calibration
    from vfz.pipeline.stores.metadata import Part


def columns_of(
    shapes: Mapping[str, LayerShape], precision: str, *, parts: Sequence[str] | None = None
) -> tuple[Column, ...]:
    """A column for every part of every layer.

    Args:
        shapes: of the layers.
        precision: how they are stored.
        parts: which parts; None for all that a layer has.

    Raises:
        UsageError: when none of the layers has one of the parts.
    """
    columns = []
    for layer, shape in shapes.items():
        for part, count in (("patch", shape.num_patches), ("prefix", shape.num_prefix)):
            if count and (parts is None or part in parts):
                columns.append(
                    Column(layer=layer, part=cast("Part", part), num_tokens=count, dim=shape.dim, precision=precision)
                )
    for part in parts or ():
        if not any(column.part == part for column in columns):
            raise UsageError(f"layers {', '.join(shapes)} have no {part} tokens; leave {part} out of --parts")
    return tuple(columns)


def layers_of(columns: Sequence[Column]) -> tuple[str, ...]:
    """The layers that columns are of, each once."""
    return tuple(dict.fromkeys(column.layer for column in columns))


def tokens_of(tokens: Mapping[str, LayerTokens], column: Column) -> torch.Tensor:
    """The tokens [B,N,D] that a column stores."""
    found = tokens[column.layer]
    if column.part == "patch":
        return found.patch_BND
    if found.prefix_BPD is None:
        raise UsageError(f"layer {column.layer} has no prefix tokens")
    return found.prefix_BPD


def stored_arrays(
    tokens: Mapping[str, LayerTokens], columns: Sequence[Column], calibrations: Mapping[str, Calibration]
) -> dict[str, np.ndarray]:
    """What is stored of a batch: arrays [B, ...] by array key; rounding runs where the tokens are."""
    return {key: tensor.cpu().numpy() for key, tensor in stored_tensors(tokens, columns, calibrations).items()}


def stored_tensors(
    tokens: Mapping[str, LayerTokens], columns: Sequence[Column], calibrations: Mapping[str, Calibration]
) -> dict[str, torch.Tensor]:
    """The same, still where the tokens are."""
    arrays: dict[str, torch.Tensor] = {}
    for column in columns:
        calibration = calibrations.get(column.key)
        stats = None if calibration is None else calibration.stats
        arrays |= quantization.stored_arrays(column, tokens_of(tokens, column), stats)
    return arrays


def largest_of(tokens: Mapping[str, LayerTokens], columns: Sequence[Column]) -> dict[str, torch.Tensor]:
    """The largest magnitude in each frame [B], by column; still where the tokens are."""
    return {column.key: quantization.largest_of(tokens_of(tokens, column)) for column in columns}


def first_unstorable(
    largest: Mapping[str, np.ndarray], columns: Sequence[Column], frames: slice, *, autocast: str
) -> str | None:
    """Why the first of some frames that cannot be stored cannot; None where all can.

    Args:
        largest: as of `largest_of`, on the CPU.
        columns: what stores them.
        frames: which.
        autocast: what the encoder computed in.
    """
    for column in columns:
        values_B = largest[column.key][frames]
        if len(values_B) and not values_B.max() < quantization.FP16_END:  # NaN is not, either
            reasons = (quantization.why_unstorable(column, float(value), autocast=autocast) for value in values_B)
            if reason := next(filter(None, reasons), None):
                return reason
    return None
