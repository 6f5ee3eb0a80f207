"""Core `attention`: causal self-attention along time with a key/value cache, every token position on its own.

The comparison that is not recurrent: a pre-norm transformer in which a token attends to itself in the last `window`
frames, with no mixing within the frame, as in `m`. What recurrent cores compress into a state of fixed size, this one
keeps: its state grows with each frame until `window - 1` frames are held and has that size from then on, so a step
costs the same at frame 100 and at frame 1,000,000.

Order is seen through rotary embeddings (arXiv 2104.09864). The cache holds keys before rotation and each pass counts
positions from the oldest frame it holds: only differences matter to attention, and so positions never grow with the
stream.

A masked key has weight 0, but 0 x NaN is NaN. So tokens that are not finite are set to zero before the projection, and
the outputs that see one are made NaN after it: those from its own frame on, never an earlier one. On a CPU that is 1%
of a training step, 2% of a pass and 4% of one frame's `step`.

Shape suffixes: B batch, T time, N tokens of a frame, D channels, S = B * N sequences, H heads, d = D / H, C cached
frames, L = C + T.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfz.pipeline.errors import UsageError
from vfz.temporal.cores.base import TemporalCore
from vfz.temporal.layers import Mlp, check_heads

# Wavelengths from 6 to 630 frames: text's 10,000 would leave most channels with no use for clips of 16..64 frames.
_ROTARY_BASE = 100.0


class KeyValueCache(NamedTuple):
    """What a layer keeps of the last frames, at most `window - 1`, oldest first; the keys are not rotated yet.

    Attributes:
        keys_SHCd: `[S, H, C, d]`.
        values_SHCd: `[S, H, C, d]`.
        broken_SC: `[S, C]`, 1 where the token was not finite, else 0.
    """

    keys_SHCd: Tensor
    values_SHCd: Tensor
    broken_SC: Tensor


class AttentionCore(TemporalCore[tuple[KeyValueCache, ...]]):
    """A stack of attention along time and MLP, then a LayerNorm on the output.

    State: one `KeyValueCache` per layer. It grows up to `window - 1` frames. The output sees
    `num_layers * (window - 1)` frames back.

    Args:
        dim: D.
        num_layers: pairs of attention and MLP.
        num_heads: attention heads; must divide `dim` and leave each at least 2 channels.
        window: frames that one layer sees, the present one included.
        dropout: on the residual branches and inside the MLPs.

    Raises:
        UsageError: when `num_heads` does not fit `dim`, or `window` is below 1.
    """

    sizes = ("num_layers", "num_heads")

    def __init__(
        self, dim: int, *, num_layers: int = 4, num_heads: int = 16, window: int = 64, dropout: float = 0.1
    ) -> None:
        super().__init__(dim)
        if window < 1:
            raise UsageError(f"window is {window}; attention needs at least 1 frame, the present one")
        self.window = window
        self.blocks = nn.ModuleList(
            _TemporalBlock(dim, num_heads=num_heads, window=window, dropout=dropout) for _ in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(dim)

    def run(self, x_BTND: Tensor, state: tuple[KeyValueCache, ...] | None) -> tuple[Tensor, tuple[KeyValueCache, ...]]:
        """See `TemporalCore.run`."""
        y_BTND, new_state = self._run_layers(self.blocks, x_BTND, state)
        return self.output_norm(y_BTND), new_state

    @staticmethod
    def default_num_heads(dim: int) -> int:
        """As in the other cores, but with an even number of channels per head where there is such a choice."""
        return next((heads for heads in (16, 12, 8, 6, 4, 2, 1) if dim % (2 * heads) == 0), 1)


class _TemporalBlock(nn.Module):
    """x + attention along time, then x + MLP, both on a LayerNorm of x."""

    def __init__(self, dim: int, *, num_heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(dim)
        self.attn = CausalAttention(dim, num_heads, window)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTND: Tensor, cache: KeyValueCache | None = None) -> tuple[Tensor, KeyValueCache]:
        """Returns the block's output `[B, T, N, D]` and the cache after the last frame."""
        num_videos, _, num_tokens, _ = x_BTND.shape
        u_STD = self.attn_norm(x_BTND).transpose(1, 2).flatten(0, 1)
        y_STD, cache = self.attn(u_STD, cache)
        x_BTND = x_BTND + self.dropout(y_STD.unflatten(0, (num_videos, num_tokens)).transpose(1, 2))
        return x_BTND + self.mlp(self.mlp_norm(x_BTND)), cache


class CausalAttention(nn.Module):
    """Multi-head attention from every frame to the last `window` frames up to it, with rotary positions.

    Raises:
        UsageError: when `num_heads` does not divide `dim`, or leaves fewer than the 2 channels that rotary needs.
    """

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if dim // num_heads < 2:
            raise UsageError(
                f"{num_heads} heads leave {dim // num_heads} of {dim} channels each; attention over time needs 2 or "
                "more per head to see the order of frames"
            )
        self.num_heads = num_heads
        self.window = window
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, u_STD: Tensor, cache: KeyValueCache | None = None) -> tuple[Tensor, KeyValueCache]:
        """Runs over T frames, at most `window` at once: cost and memory are linear in T.

        Returns:
            Output `[S, T, D]` and the cache after the last frame.
        """
        first_STD, *rest = u_STD.split(self.window, dim=1)
        y_STD, cache = self._attend(first_STD, cache)
        pieces = [y_STD]
        for piece_STD in rest:
            y_STD, cache = self._attend(piece_STD, cache)
            pieces.append(y_STD)
        return torch.cat(pieces, dim=1), cache

    def _attend(self, u_STD: Tensor, cache: KeyValueCache | None) -> tuple[Tensor, KeyValueCache]:
        # where one channel is not finite none is, after a LayerNorm; a sum is finite where all of its terms are
        broken_ST = ~u_STD.detach().sum(dim=-1).isfinite()
        u_STD = u_STD.masked_fill(broken_ST.unsqueeze(-1), 0.0)
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.in_proj(u_STD).chunk(3, dim=-1)
        )
        broken_SL = broken_ST.to(k.dtype)
        if cache is None:  # copies, since views in the cache would keep all of the projection alive
            k, v = k.contiguous(), v.contiguous()
        else:
            k = torch.cat([cache.keys_SHCd.to(k.dtype), k], dim=2)
            v = torch.cat([cache.values_SHCd.to(v.dtype), v], dim=2)
            broken_SL = torch.cat([cache.broken_SC.to(k.dtype), broken_SL], dim=1)
        num_queries, num_keys = q.shape[2], k.shape[2]
        mask_TL = None if num_queries in (1, num_keys) else self._mask(num_queries, num_keys, q.device)
        y_SHTd = F.scaled_dot_product_attention(
            rotate(q, num_keys - num_queries), rotate(k, 0), v, attn_mask=mask_TL, is_causal=1 < num_queries == num_keys
        )
        y_STD: Tensor = self.out_proj(y_SHTd.transpose(1, 2).flatten(2))
        y_STD = y_STD.masked_fill(self._sees_broken(broken_SL, num_queries).unsqueeze(-1), torch.nan)
        oldest = max(0, num_keys - self.window + 1)
        return y_STD, KeyValueCache(k[:, :, oldest:], v[:, :, oldest:], broken_SL[:, oldest:])

    def _sees_broken(self, broken_SL: Tensor, num_queries: int) -> Tensor:
        """`[S, T]`, True where a key that the query's frame sees is of a token that was not finite."""
        num_until_SL = broken_SL.int().cumsum(dim=1)
        num_before_SL = F.pad(num_until_SL, (self.window, 0))[:, : num_until_SL.shape[1]]
        return (num_until_SL > num_before_SL)[:, -num_queries:]

    def _mask(self, num_queries: int, num_keys: int, device: torch.device) -> Tensor:
        """True where the query's frame sees the key's: not later, and less than `window` frames earlier."""
        query_T1 = torch.arange(num_keys - num_queries, num_keys, device=device).unsqueeze(1)
        age_TL = query_T1 - torch.arange(num_keys, device=device)
        return (age_TL >= 0) & (age_TL < self.window)


def rotate(x_SHTd: Tensor, first_position: int) -> Tensor:
    """Rotary embedding: channels i and d/2 + i turn by an angle that is position times frequency i.

    Args:
        x_SHTd: queries or keys of consecutive frames; where d is odd the last channel stays as it is.
        first_position: of the first of the T frames.
    """
    num_pairs = x_SHTd.shape[-1] // 2
    dtype = torch.promote_types(x_SHTd.dtype, torch.float32)
    exponents = torch.arange(num_pairs, device=x_SHTd.device, dtype=dtype) / num_pairs
    positions = torch.arange(first_position, first_position + x_SHTd.shape[2], device=x_SHTd.device)
    angles = positions.unsqueeze(1) * _ROTARY_BASE**-exponents
    cos, sin = angles.cos().to(x_SHTd.dtype), angles.sin().to(x_SHTd.dtype)
    first, second, rest = x_SHTd.split([num_pairs, num_pairs, x_SHTd.shape[-1] % 2], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
