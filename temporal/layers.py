"""The small layers that mixers, cores, readouts and probes share.

`Attention` has the parameter names of `torch.nn.MultiheadAttention`, so that released weights load. It calls
`scaled_dot_product_attention`, so that the N x N matrix is never stored. Dropout acts on the outputs of the residual
branches and inside the MLP, and not on the attention weights, where it would rule out the fused kernels.

Shape suffixes: B batch, T time, N tokens of a frame, D channels, R rows (frames, any number of them).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfz.pipeline.errors import UsageError


class Attention(nn.Module):
    """Multi-head self- or cross-attention with fused projections.

    Raises:
        UsageError: when `num_heads` does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.dim = dim
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query_RND: Tensor, context_RMD: Tensor | None = None) -> Tensor:
        """Attends from `query_RND` to `context_RMD` of the same rows, or to itself; returns `[R, N, D]`."""
        weight, bias, dim = self.in_proj_weight, self.in_proj_bias, self.dim
        if context_RMD is None:
            q, k, v = F.linear(query_RND, weight, bias).chunk(3, dim=-1)
        else:
            q = F.linear(query_RND, weight[:dim], bias[:dim])
            k, v = F.linear(context_RMD, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        y_RHNd = F.scaled_dot_product_attention(self._split_heads(q), self._split_heads(k), self._split_heads(v))
        y_RND: Tensor = self.out_proj(y_RHNd.transpose(1, 2).flatten(2))
        return y_RND

    def _split_heads(self, x_RND: Tensor) -> Tensor:
        x_RNHd: Tensor = x_RND.unflatten(-1, (self.num_heads, -1))
        return x_RNHd.transpose(1, 2)


class Mlp(nn.Module):
    """Linear(D, 4D), GELU, Linear(4D, D), each followed by dropout."""

    def __init__(self, dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_RND: Tensor) -> Tensor:
        """Applies the two layers to every token."""
        y_RND: Tensor = self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x_RND)))))
        return y_RND


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, a row's whole branch is zeroed with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_RND: Tensor) -> Tensor:
        """Zeroes rows and scales the others by 1 / (1 - rate), which keeps the mean."""
        if not self.training or self.rate == 0.0:
            return x_RND
        keep_R11 = x_RND.new_empty(x_RND.shape[0], 1, 1).bernoulli_(1.0 - self.rate)
        return x_RND * (keep_R11 / (1.0 - self.rate))


class SpatialBlock(nn.Module):
    """Pre-norm self-attention and MLP within each frame; frames do not see one another.

    Args:
        dim: D.
        num_heads: attention heads; must divide `dim`.
        dropout: see the module's docstring.
        drop_path: probability that a frame skips a branch in training.
    """

    def __init__(self, dim: int, *, num_heads: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.sa_norm = nn.LayerNorm(dim)
        self.sa_attn = Attention(dim, num_heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BTND: Tensor) -> Tensor:
        """Returns the block's output `[B, T, N, D]`."""
        x_RND = x_BTND.flatten(0, 1)
        x_RND = x_RND + self.drop_path(self.dropout(self.sa_attn(self.sa_norm(x_RND))))
        x_RND = x_RND + self.drop_path(self.mlp(self.mlp_norm(x_RND)))
        y_BTND: Tensor = x_RND.view_as(x_BTND)
        return y_BTND


class NumericHead(nn.Sequential):
    """Linear, GELU, Linear, in float32 even under autocast: the 8 bits of bfloat16 are too few for a coordinate."""

    def __init__(self, readout_dim: int, hidden_dim: int, num_outputs: int) -> None:
        super().__init__(nn.Linear(readout_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`[*, readout_dim]` -> `[*, num_outputs]`."""
        with without_autocast(x.device):
            x = x.to(next(self.parameters()).dtype)
            for layer in self:
                x = layer(x)
        return x


def build_projection(dim: int, readout_dim: int) -> nn.Module:
    """A Linear from `dim` to `readout_dim`; the identity where they are equal, as in the paper."""
    return nn.Identity() if dim == readout_dim else nn.Linear(dim, readout_dim)


def resize_time(embedding_1TD: Tensor, num_steps: int) -> Tensor:
    """A learned time embedding `[1, T, D]`, linearly interpolated to the length of a clip: `[1, num_steps, D]`."""
    if embedding_1TD.shape[1] == num_steps:
        return embedding_1TD
    return F.interpolate(embedding_1TD.mT, size=num_steps, mode="linear", align_corners=False).mT


def check_heads(dim: int, num_heads: int) -> None:
    """Refuses a number of heads that does not divide the channels.

    Raises:
        UsageError: names both numbers, and the numbers of heads that are possible.
    """
    if num_heads < 1 or dim % num_heads:
        allowed = ", ".join(str(heads) for heads in range(1, min(dim, 32) + 1) if dim % heads == 0)
        raise UsageError(f"{num_heads} attention heads do not divide {dim} channels; use one of {allowed}")


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A block in which autocast is off on a device: for what half precision cannot hold. `meta` has no autocast."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
