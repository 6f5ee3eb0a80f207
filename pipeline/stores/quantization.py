"""Tokens as the encoder gives them to tokens as they are stored and back, and what that costs in accuracy.

fp32 keeps every bit. fp16 rounds to 11 significant bits: a relative error of at most 2^-11 for values the format holds
(6e-5 to 65504). Larger ones become infinite here; `why_unstorable` tells of them, and the video fails by name.

int8 and int4 store whole numbers q, one fp16 scale per token and group of 128 channels, and per column the offset and
std of every channel from a calibration sample. Any reader gets the token back as

    value = q * scale[..., channel // 128] * std[channel] + offset[channel]

Three choices make the error small:
- the offset of a channel is the value that more than half of the sample shares, where there is one, else the mean: the
  zeros an activation leaves, nine in ten of a CNN's last layer, come back exactly;
- the std of a channel is taken over the values that differ from its offset, so that rare values fit the group's range,
  and a channel the sample says little about is given a std near that of the others (see `channel_stats`);
- the scale of int4 has a sign: it puts the level -8, which has no positive twin, on the side of the larger extreme. Of
  three clip points the one with the least squared error is taken, each with its scale refitted after rounding.

Measured as `relative_error`, calibrated on other frames: on Gaussian tokens with outlier channels int8 0.0065 and
int4 0.097; with Student-t tails 0.0088 and 0.130; on EfficientNet-Lite0's last layer 0.0053 and 0.079. Size against
fp16: 0.508 and 0.258.

Cost: on one CPU core, in GB/s of float32 tokens, where copying them does 13: int8 4.7 to store and 11 to expand, int4
1.3 and 6. (The first write to fresh memory comes on top: 2 GB/s on the same core.) Temporaries are a few MB on the CPU,
whatever the batch. Every token is coded on its own: what else is in the batch changes no bit.

Shapes: N tokens, D channels, G groups of 128 channels (the last may be shorter), M tokens of the sample, R of a block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfz.pipeline.errors import CacheFormatError, EncoderError, UsageError
from vfz.pipeline.recipe import GROUP_CHANNELS, PRECISIONS, QUANTISED
from vfz.pipeline.stores.metadata import Column

PRECISION_VERSION = {"fp32": 1, "fp16": 1, "int8": 1, "int4": 1}
FLOAT_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
MAX_INT8 = 127
MIN_INT4, MAX_INT4 = -8, 7
# fp16's smallest and largest values above 0: a scale is never rounded to zero or to infinity.
MIN_SCALE, MAX_SCALE = 2.0**-24, 65504.0
FP16_END = 65520.0
"""From here on a number becomes infinite in fp16."""
# Clip points of int4, in parts of a group's larger extreme. A search over 76 of them gains another 0.5%.
CLIP_POINTS = (0.85, 0.92, 0.99)
# A channel's own std weighs as the number of sample values that show it, the median channel's as many as these: the
# lesser of a number and a part of the sample. The part keeps the std of dense channels in small samples (CLS tokens).
PRIOR_VALUES, PRIOR_PART = 64, 1 / 8
# In parts of the median channel's std. Below the first a channel is noise around a constant; below the second it is
# stored more coarsely than the rest, since its group would be lost where it comes alive.
CONSTANT_STD, MIN_STD = 1e-3, 1 / 32
# Channel values per block: the buffers of a block stay in a CPU core's cache, and bound memory on other devices.
BLOCK_VALUES_CPU, BLOCK_VALUES = 2**19, 2**26


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelStats:
    """What the calibration sample says of the channels of one column (layer and part).

    Attributes:
        offset: float32 [D], what a stored 0 stands for.
        std: float32 [D], above 0; the unit in which stored values are counted.

    Raises:
        CacheFormatError: arrays of another dtype or shape, or values that are not finite, or std of 0 or less.
    """

    offset: NDArray[np.float32]
    std: NDArray[np.float32]

    def __post_init__(self) -> None:
        for name, values in (("offset", self.offset), ("std", self.std)):
            if values.dtype != np.float32 or values.shape != self.offset.shape or values.ndim != 1:
                raise CacheFormatError(
                    f"calibration {name} is {values.dtype} {list(values.shape)}; offset and std are float32 [D] alike"
                )
            if not np.isfinite(values).all():
                raise CacheFormatError(f"calibration {name} holds values that are not finite; calibrate anew")
        if not (self.std > 0).all():
            raise CacheFormatError(f"calibration std is {self.std.min()} in some channel; it must be above 0")


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredTokens:
    """Tokens as they are stored.

    Attributes:
        payload: fp32, fp16: floats [..., N, D]; int8: int8 [..., N, D]; int4: uint8 [..., N, ceil(D / 2)], the even
            channel in the low nibble, two's complement.
        scale: float16 [..., N, G] of int8 and int4, None otherwise. A token that was not finite, or too large for
            float32 once divided by its channel's std, has a scale that is not finite.
    """

    payload: Tensor
    scale: Tensor | None


def is_quantised(precision: str) -> bool:
    """Whether tokens of this precision need `ChannelStats` and have a scale."""
    return precision in QUANTISED


def channel_stats(tokens_MND: Tensor) -> ChannelStats:
    """Offset and std of every channel of a sample.

    The offset is the value that more than half of the sample shares, else the mean. The std is the root mean square
    distance from it of the values that differ from it (k of them), drawn towards the median channel's in the ratio
    k : min(64, M / 8) on a log scale. A channel below 1/1000 of the median counts as constant (k = 0), and none is set
    below 1/32 of it. So a channel that is constant in the sample, or nearly, does not spoil its group where it is
    alive.

    Tokens with a value that is not finite are left out.

    Args:
        tokens_MND: floats, any leading dimensions, channels last.

    Raises:
        EncoderError: no token of the sample is finite.
    """
    tokens_MD = tokens_MND.detach().reshape(-1, tokens_MND.shape[-1]).cpu()
    tokens_MD = tokens_MD[torch.isfinite(tokens_MD).all(dim=-1)]
    if not len(tokens_MD):
        raise EncoderError(
            "the calibration sample holds no finite token; the encoder gives none, or the sample is empty"
        )
    groups = [_offset_and_std(part_MC) for part_MC in tokens_MD.split(GROUP_CHANNELS, dim=-1)]
    offset_D, std_D, num_D = (torch.cat(part) for part in zip(*groups, strict=True))
    median = std_D[num_D > 0].median() if (num_D > 0).any() else torch.ones_like(std_D[0])
    num_D = torch.where(std_D < CONSTANT_STD * median, 0, num_D)
    log_D = torch.where(num_D > 0, std_D, median).log()
    prior = min(PRIOR_VALUES, PRIOR_PART * len(tokens_MD))
    std_D = torch.exp((num_D * log_D + prior * median.log()) / (num_D + prior))
    std_D = std_D.clamp_min(MIN_STD * median).clamp(torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max)
    return ChannelStats(offset=offset_D.float().numpy(), std=std_D.float().numpy())


def _offset_and_std(tokens_MC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of some channels: offset, RMS distance of the values that differ from it, and their number, all float64."""
    tokens_MC = tokens_MC.double()
    # If more than half of the values are one, the median is that one.
    middle_C = tokens_MC.median(dim=0).values
    shared_C = 2 * (tokens_MC == middle_C).sum(dim=0) > len(tokens_MC)
    # Rounded first: distances are from the offset that is stored.
    offset_C = torch.where(shared_C, middle_C, tokens_MC.mean(dim=0)).float().double()
    distance_MC = tokens_MC.sub_(offset_C)
    num_C = (distance_MC != 0).sum(dim=0).double()
    std_C = (distance_MC.square().sum(dim=0) / num_C.clamp_min(1)).sqrt()
    return offset_C, std_C, num_C


@torch.no_grad()
def to_stored(tokens: Tensor, precision: str, stats: ChannelStats | None = None) -> StoredTokens:
    """Tokens as they are stored, on the tokens' own device.

    Args:
        tokens: floats [..., N, D]; any of the leading dimensions may be 0.
        precision: one of `vfz.pipeline.recipe.PRECISIONS`.
        stats: of the column the tokens belong to; needed by int8 and int4.

    Raises:
        UsageError: an unknown precision, or statistics that are missing or of another number of channels.
    """
    if not is_quantised(precision):
        return StoredTokens(payload=tokens.to(_float_dtype(precision)), scale=None)
    *leading, dim = tokens.shape
    offset_D, std_D = _stats_on(tokens.device, stats, precision, dim)
    inverse_D = 1 / std_D
    num_groups = _ceil_div(dim, GROUP_CHANNELS)
    tokens_RD = tokens.reshape(-1, dim)
    int4 = precision == "int4"
    payload_dtype, width = (torch.uint8, _ceil_div(dim, 2)) if int4 else (torch.int8, dim)
    payload = torch.empty(len(tokens_RD), width, dtype=payload_dtype, device=tokens.device)
    scale = torch.empty(len(tokens_RD), num_groups, dtype=torch.float16, device=tokens.device)
    for rows, buffers in _blocks(len(tokens_RD), num_groups, tokens.device, num_buffers=2 if int4 else 1):
        z_RGC, q_RGC = buffers[0], buffers[-1]  # int8 needs z only once, and rounds it in its place
        z_RD, filling = z_RGC.flatten(1).split((dim, num_groups * GROUP_CHANNELS - dim), dim=1)
        filling.zero_()
        torch.sub(tokens_RD[rows], offset_D, out=z_RD).mul_(inverse_D)
        if int4:
            scale[rows] = _quantise_int4(z_RGC, out=q_RGC)
            payload[rows] = _pack_int4(q_RGC.flatten(1))[:, :width]
        else:
            scale[rows] = _quantise_int8(z_RGC, out=q_RGC)
            payload[rows] = q_RGC.flatten(1)[:, :dim]
    return StoredTokens(payload=payload.view(*leading, width), scale=scale.view(*leading, num_groups))


def stored_arrays(column: Column, tokens: Tensor, stats: ChannelStats | None) -> dict[str, Tensor]:
    """Tokens [..., N, D] as a column stores them, by array key, where the tokens are.

    Args:
        column: what is stored.
        tokens: of that column.
        stats: its calibration's; needed for int8 and int4.
    """
    stored = to_stored(tokens, column.precision, stats)
    arrays = {column.payload.key: stored.payload}
    if column.scale is not None and stored.scale is not None:
        arrays[column.scale.key] = stored.scale
    return arrays


@torch.no_grad()
def largest_of(tokens_BND: Tensor) -> Tensor:
    """The largest magnitude of each frame's tokens [B]; infinite or NaN where a value is. N and D are above 0."""
    return torch.maximum(tokens_BND.amax(dim=(1, 2)), -tokens_BND.amin(dim=(1, 2)))


def why_unstorable(column: Column, largest: float, *, autocast: str) -> str | None:
    """Why a frame's tokens cannot be stored, with the layer, the value, and what to do; None where they can.

    Args:
        column: what stores them.
        largest: the frame's, of `largest_of`.
        autocast: what the encoder computed in.
    """
    if math.isfinite(largest):
        if column.precision != "fp16" or largest < FP16_END:
            return None
        return (
            f"{column.key}: the largest value is {largest:.6g} and fp16 holds up to 65504; "
            "store it with --precision fp32 or int8"
        )
    what = f"{column.key}: the largest value is {'infinite' if math.isinf(largest) else 'NaN'}"
    if autocast == "float32":
        return f"{what} although the encoder computes in float32; leave this layer out, or look at the weights"
    others = "bfloat16 or float32" if autocast == "float16" else "float32"
    return f"{what} where the encoder computes in {autocast}; give --autocast {others}"


@torch.no_grad()
def expand(payload: Tensor, scale: Tensor | None, *, precision: str, stats: ChannelStats | None, dim: int) -> Tensor:
    """The inverse of `to_stored`: float32 [..., N, D] on the payload's device.

    Args:
        payload: as in `StoredTokens`.
        scale: as in `StoredTokens`.
        precision: what they were stored with.
        stats: those they were stored with.
        dim: D, which an int4 payload alone does not tell from an odd one.

    Raises:
        UsageError: an unknown precision, or statistics that are missing or of another number of channels.
        CacheFormatError: payload and scale do not have the shapes of this precision and number of channels.
    """
    if not is_quantised(precision):
        _float_dtype(precision)
        return payload.to(torch.float32)
    offset_D, std_D = _stats_on(payload.device, stats, precision, dim)
    int4 = precision == "int4"
    *leading, width = payload.shape
    num_groups = _ceil_div(dim, GROUP_CHANNELS)
    if scale is None or scale.shape != (*leading, num_groups) or width != (_ceil_div(dim, 2) if int4 else dim):
        raise CacheFormatError(
            f"{precision} payload {list(payload.shape)} and scale {None if scale is None else list(scale.shape)} "
            f"are not those of {dim} channels; the scale has {num_groups} groups per token"
        )
    payload_RW, scale_RG = payload.reshape(-1, width), scale.reshape(-1, num_groups)
    tokens_RD = torch.empty(len(payload_RW), dim, device=payload.device)
    for rows, (z_RGC,) in _blocks(len(payload_RW), num_groups, payload.device):
        scale_RG1 = scale_RG[rows].float().unsqueeze(-1)
        z_RD = z_RGC.flatten(1)[:, :dim]
        if int4:
            z_RD.copy_(_unpack_int4_times_16(payload_RW[rows])[:, :dim])
            scale_RG1 /= 16
        else:
            z_RD.copy_(payload_RW[rows])
        z_RGC *= scale_RG1
        torch.addcmul(offset_D, z_RD, std_D, out=tokens_RD[rows])
    return tokens_RD.view(*leading, dim)


def relative_error(tokens: Tensor, restored: Tensor, stats: ChannelStats | None = None) -> float:
    """How far restored tokens are off, in parts of their spread, with every channel divided by its std.

    This is what a norm layer or a linear probe sees: a channel counts the same whatever its unit. Over all values, the
    RMS of (restored - tokens) / std divided by the RMS of (tokens - channel mean) / std.

    Args:
        tokens: floats [..., D]; those with a value that is not finite are left out.
        restored: of the same shape, on any device.
        stats: whose std to divide by; None takes the standard deviation of `tokens` themselves, and leaves out the
            channels where it is 0.

    Returns:
        the error; 0 where there is nothing to restore, infinity or NaN where a finite token came back as such.
    """
    tokens_MD = tokens.reshape(-1, tokens.shape[-1]).double().cpu()
    error_MD = restored.reshape(tokens_MD.shape).double().cpu() - tokens_MD
    finite_M = torch.isfinite(tokens_MD).all(dim=-1)
    tokens_MD, error_MD = tokens_MD[finite_M], error_MD[finite_M]
    if not len(tokens_MD):
        return 0.0
    low_D, high_D = tokens_MD.aminmax(dim=0)
    spread_D = torch.where(low_D == high_D, 0, tokens_MD.std(dim=0, correction=0))
    std_D = spread_D if stats is None else torch.tensor(stats.std, dtype=torch.float64)
    kept_D = std_D > 0
    spread = (spread_D / std_D)[kept_D].square().sum()
    error = (error_MD.square().mean(dim=0) / std_D.square())[kept_D].sum()
    return float((error / spread).sqrt()) if spread > 0 else 0.0


def _quantise_int8(z_RGC: Tensor, *, out: Tensor) -> Tensor:
    """The float16 scale [R, G]; `out` is filled with whole numbers as floats [R, G, C]."""
    extreme_RG = torch.maximum(z_RGC.amax(dim=-1), -z_RGC.amin(dim=-1))
    scale_RG = _as_scale(extreme_RG / MAX_INT8, extreme_RG)
    _round_to(z_RGC, scale_RG.float(), -MAX_INT8, MAX_INT8, out=out)
    return scale_RG


def _quantise_int4(z_RGC: Tensor, *, out: Tensor) -> Tensor:
    """As `_quantise_int8`; the scale is negative where the larger extreme is positive."""
    high_RG, low_RG = z_RGC.amax(dim=-1), z_RGC.amin(dim=-1)
    extreme_RG = torch.maximum(high_RG, -low_RG)
    step_RG = torch.where(high_RG > -low_RG, -1.0, 1.0) * extreme_RG.clamp_min(MIN_SCALE) / -MIN_INT4
    best_RG, best_gain_RG = step_RG, torch.zeros_like(step_RG)
    for clip_point in CLIP_POINTS:
        _round_to(z_RGC, clip_point * step_RG, MIN_INT4, MAX_INT4, out=out)
        energy_RG = torch.linalg.vector_norm(out, dim=-1).square()
        product_RG = out.mul_(z_RGC).sum(dim=-1)
        # For these q the best scale is <q,z> / <q,q>, and the squared error is then <z,z> - <q,z>^2 / <q,q>.
        fitted_RG = product_RG / energy_RG
        gain_RG = product_RG * fitted_RG
        better_RG = gain_RG > best_gain_RG
        best_RG = torch.where(better_RG, fitted_RG, best_RG)
        best_gain_RG = torch.where(better_RG, gain_RG, best_gain_RG)
    scale_RG = _as_scale(best_RG, extreme_RG)
    _round_to(z_RGC, scale_RG.float(), MIN_INT4, MAX_INT4, out=out)
    return scale_RG


def _round_to(z_RGC: Tensor, scale_RG: Tensor, low: int, high: int, *, out: Tensor) -> None:
    """`out` becomes the whole numbers from `low` to `high` nearest to `z / scale`."""
    torch.mul(z_RGC, scale_RG.reciprocal().unsqueeze(-1), out=out).round_().clamp_(low, high)


def _as_scale(scale_RG: Tensor, extreme_RG: Tensor) -> Tensor:
    """A scale that float16 holds, of the same sign; but the extreme itself where that is not finite."""
    held_RG = scale_RG.abs().clamp_(MIN_SCALE, MAX_SCALE).copysign_(scale_RG)
    return torch.where(torch.isfinite(extreme_RG), held_RG, extreme_RG).half()


def _pack_int4(q_RC: Tensor) -> Tensor:
    """Whole numbers as floats [R, C], C even, to uint8 [R, C / 2]; on little-endian machines, as all torch runs on."""
    pairs = q_RC.to(torch.int8).view(torch.int16)  # even channel in the low byte
    return ((pairs & 0x0F) | ((pairs >> 4) & 0xF0)).to(torch.uint8)


def _unpack_int4_times_16(payload_RW: Tensor) -> Tensor:
    """16 times the whole numbers, int8 [R, 2 W]: a nibble at the top of a byte needs no extending of its sign."""
    pairs = payload_RW.to(torch.int16)
    return (((pairs << 4) & 0xF0) | ((pairs & 0xF0) << 8)).view(torch.int8)


def _blocks(
    num_rows: int, num_groups: int, device: torch.device, *, num_buffers: int = 1
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of tokens block by block, each with float32 buffers [_, R, G, C] to work in, the same memory for all."""
    block_values = BLOCK_VALUES_CPU if device.type == "cpu" else BLOCK_VALUES
    size = max(1, min(num_rows, block_values // (num_groups * GROUP_CHANNELS)))
    buffers = torch.empty(num_buffers, size, num_groups, GROUP_CHANNELS, device=device)
    for start in range(0, num_rows, size):
        yield slice(start, start + size), buffers[:, : num_rows - start]


def _stats_on(device: torch.device, stats: ChannelStats | None, precision: str, dim: int) -> tuple[Tensor, Tensor]:
    """Offset and std [D] on the device."""
    if stats is None:
        raise UsageError(f"{precision} needs the channel statistics of a calibration sample; none were given")
    if len(stats.std) != dim:
        raise UsageError(f"the channel statistics are of {len(stats.std)} channels, the tokens have {dim}")
    return _copied_to(device, stats)


@functools.lru_cache(maxsize=64)
def _copied_to(device: torch.device, stats: ChannelStats) -> tuple[Tensor, Tensor]:
    """Offset and std there; kept for the next batches, since a GPU is waited for when something is copied to it."""
    return torch.tensor(stats.offset, device=device), torch.tensor(stats.std, device=device)


def _float_dtype(precision: str) -> torch.dtype:
    if precision not in FLOAT_DTYPES:
        raise UsageError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    return FLOAT_DTYPES[precision]


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)
