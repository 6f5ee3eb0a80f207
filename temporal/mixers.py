"""Layer mixers: the K cached layers of an encoder become the one token map a core reads (arXiv 2605.19137).

The layers must have equal N and D (they come from a ViT). `last` takes the last layer and has no parameters, so a
cache that holds one layer needs nothing else. `mean` and `xattn` mix patch tokens only; prefix tokens (CLS, registers)
are those of the last layer. A new mixer is one class here and one line in the registry below.

Cost per token, in D^2 multiplications: `last` 0, `mean` 4 K, `xattn` 2 K + 10.

Shape suffixes: K layers, R rows (B * T * N tokens), D channels, H heads, d = D / H.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfz.pipeline.errors import UsageError
from vfz.pipeline.registry import Registry
from vfz.temporal.layers import Attention

_INIT_STD = 0.02
_PAPER_HEADS = 8


class LayerMixer(nn.Module, ABC):
    """K layers `[*, N, D]` -> one `[*, N, D]`.

    Args:
        dim: D, channels of every layer and of the result.
        num_layers: K.
        num_prefix: how many of the N tokens, from the first, are prefix tokens, which are not mixed.

    Raises:
        UsageError: when `dim` or `num_layers` is below 1, or `num_prefix` below 0.
    """

    def __init__(self, dim: int, *, num_layers: int, num_prefix: int = 0) -> None:
        super().__init__()
        for what, size, least in (("dim", dim, 1), ("num_layers", num_layers, 1), ("num_prefix", num_prefix, 0)):
            if size < least:
                raise UsageError(f"{what} is {size}; a mixer needs at least {least}")
        self.dim = dim
        self.num_layers = num_layers
        self.num_prefix = num_prefix

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Mixes the layers, shallowest first.

        Args:
            layers: K tensors `[*, N, D]`, N the same in all.

        Raises:
            UsageError: when there are not K of them, they differ in shape, or have not D channels.
        """
        if len(layers) != self.num_layers:
            raise UsageError(f"the mixer got {len(layers)} layers and was built for {self.num_layers}")
        for layer in layers:
            if layer.shape != layers[0].shape or layer.shape[-1] != self.dim or layer.shape[-2] < self.num_prefix:
                raise UsageError(
                    f"the mixer got layers of shapes {', '.join(str(list(layer.shape)) for layer in layers)}; it takes "
                    f"{self.num_layers} of one shape [..., tokens, {self.dim}] with {self.num_prefix} prefix tokens"
                )
        if self.num_prefix == 0:
            return self.mix(layers)
        mixed = self.mix([layer[..., self.num_prefix :, :] for layer in layers])
        return torch.cat([layers[-1][..., : self.num_prefix, :].to(mixed.dtype), mixed], dim=-2)

    @abstractmethod
    def mix(self, layers: Sequence[Tensor]) -> Tensor:
        """`forward` for checked layers without their prefix tokens."""


class LastLayerMixer(LayerMixer):
    """The last layer as it is, prefix tokens and all."""

    def __init__(self, dim: int, *, num_layers: int, num_prefix: int = 0) -> None:
        super().__init__(dim, num_layers=num_layers, num_prefix=num_prefix)
        self.num_prefix = 0

    def mix(self, layers: Sequence[Tensor]) -> Tensor:
        """The last of `layers`, not copied."""
        return layers[-1]


class MeanMixer(LayerMixer):
    """The mean over layers of F + MLP(BN(F)), each layer F with weights of its own.

    BN is a BatchNorm1d whose statistics are over all tokens of the batch: training needs more than one, and what comes
    out of a clip in training depends on the others of its batch.
    """

    def __init__(self, dim: int, *, num_layers: int, num_prefix: int = 0) -> None:
        super().__init__(dim, num_layers=num_layers, num_prefix=num_prefix)
        self.blocks = nn.ModuleList(_BatchNormMlp(dim) for _ in range(num_layers))

    def mix(self, layers: Sequence[Tensor]) -> Tensor:
        """See the class."""
        total = self.blocks[0](layers[0])
        for block, layer in zip(list(self.blocks)[1:], layers[1:], strict=True):
            total = total + block(layer)
        mean: Tensor = total / self.num_layers
        return mean


class _BatchNormMlp(nn.Module):
    """x + MLP(BN(x)), the MLP twice as wide as its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """`[*, D]` -> `[*, D]`."""
        x_RD = x.flatten(0, -2)
        y_RD = x_RD + self.mlp(self.bn(x_RD))
        y: Tensor = y_RD.view_as(x)
        return y


class CrossAttentionMixer(LayerMixer):
    """Every position of the last layer attends to the same position of all layers, then an MLP; both with residuals.

    A learned embedding tells the layers apart. 8 heads as in the paper, where 8 divides D; else 6, 4, 3, 2 or 1.
    """

    def __init__(self, dim: int, *, num_layers: int, num_prefix: int = 0) -> None:
        super().__init__(dim, num_layers=num_layers, num_prefix=num_prefix)
        self.layer_embed = nn.Parameter(torch.empty(num_layers, dim).normal_(std=_INIT_STD))
        self.norm_q = nn.LayerNorm(dim)
        self.norm_kv = nn.LayerNorm(dim)
        self.attn = Attention(dim, next(heads for heads in (_PAPER_HEADS, 6, 4, 3, 2, 1) if dim % heads == 0))
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def mix(self, layers: Sequence[Tensor]) -> Tensor:
        """See the class."""
        x = layers[-1] + self._attend(layers)
        y: Tensor = x + self.mlp(self.norm_mlp(x))
        return y

    def _attend(self, layers: Sequence[Tensor]) -> Tensor:
        """Attention over K keys, written out: fused kernels are made for long sequences, not for many of length K."""
        attention, dim = self.attn, self.dim
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        q = F.linear(self.norm_q(layers[-1]), weight[:dim], bias[:dim])
        embedded = torch.stack([layer + embed for layer, embed in zip(layers, self.layer_embed, strict=True)])
        k, v = F.linear(self.norm_kv(embedded), weight[dim:], bias[dim:]).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (attention.num_heads, -1)) for part in (q, k, v))
        scores = (q * k).sum(dim=-1) * q.shape[-1] ** -0.5
        pooled = (scores.softmax(dim=0).unsqueeze(-1).to(v.dtype) * v).sum(dim=0)
        y: Tensor = attention.out_proj(pooled.flatten(-2))
        return y


MIXERS: Registry[type[LayerMixer]] = Registry("mixer")
MIXERS.register("last", LastLayerMixer)
MIXERS.register("mean", MeanMixer)
MIXERS.register("xattn", CrossAttentionMixer)


def build_mixer(name: str, *, dim: int, num_layers: int, num_prefix: int = 0) -> LayerMixer:
    """The mixer called `name` for `num_layers` layers of `dim` channels.

    Args:
        name: one of `MIXERS.names()`.
        dim: D.
        num_layers: K.
        num_prefix: how many of the tokens, from the first, are CLS and registers: the result has those of the last
            layer. 0 where only patch tokens come.

    Raises:
        UnknownNameError: when no mixer has that name.
        UsageError: when `dim` or `num_layers` is below 1, or `num_prefix` below 0.
    """
    return MIXERS[name](dim, num_layers=num_layers, num_prefix=num_prefix)
