"""The decoder of boxes and points: queries of where to look attend to the tokens of a frame or clip.

    x += SelfAttention(LN x)      x += CrossAttention(LN x, tokens)      x += MLP(LN x)      y = LN x

It computes what `torch.nn.TransformerDecoderLayer` (norm_first, ReLU, no dropout) does, under the same names, behind a
Linear where the tokens have another width. Written out here because of what it costs:

- Keys and values of a frame are made once for all queries, of all frames at once, and the Linear in front is folded
  into their weights.
- With few queries they are not made at all: q.(W_K x) = (W_K^T q).x turns each head's query into one D-vector, and
  sum_s a_s W_V x_s = W_V sum_s a_s x_s pools before it projects. Exact; one box of 4 heads costs 8 multiplications per
  token and channel instead of 2048. `prepare` chooses by counting them.
- What does not depend on the frame (self-attention, queries' projection) is computed once for all of them.

Shape suffixes: B batch, F groups of tokens that are answered one by one (frames; 1 for a whole clip), N tokens of a
group, D their channels, P width of the decoder, H heads, d = P / H, G groups of queries that see one another, L queries
of a group, A = G * L.

Where to look, as a query: the Fourier code of a box or point, through an MLP.

The code of a coordinate x in [0, 1] is sin and cos of 2^0 pi x .. 2^15 pi x (as in RVM, arXiv 2512.13684), computed in
float32 even under autocast: bfloat16 could not tell neighbouring pixels apart. At the highest frequency a change of
1e-7 in x already shows, so feeding predictions back through the code is chaotic.

Shape suffixes: C coordinates, K frequencies.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfz.temporal.layers import Attention, build_projection


class Memory(NamedTuple):
    """What queries attend to: the tokens `[B, F, N, D]` themselves, or their keys and values `[B, F, N, 2P]`."""

    x_BFNM: Tensor
    is_projected: bool

    def frame(self, t: int) -> Memory:
        """The memory of one of the F groups, F = 1."""
        return Memory(self.x_BFNM[:, t : t + 1], self.is_projected)


class QueryDecoder(nn.Module):
    """A Linear to `readout_dim` where `dim` differs, one decoder layer, a LayerNorm.

    Args:
        dim: D.
        readout_dim: P.
        num_heads: H; must divide `readout_dim`.

    Raises:
        UsageError: when `num_heads` does not divide `readout_dim`.
    """

    def __init__(self, dim: int, *, readout_dim: int, num_heads: int) -> None:
        super().__init__()
        self.projection = build_projection(dim, readout_dim)
        self.layer = _DecoderLayer(readout_dim, num_heads)
        self.output_norm = nn.LayerNorm(readout_dim)

    def prepare(self, tokens_BFND: Tensor, *, num_queries: int) -> Memory:
        """What `forward` attends to, in the form that is cheaper for `num_queries` = A queries."""
        if self._is_folding_cheaper(tokens_BFND, num_queries):
            return Memory(tokens_BFND, is_projected=False)
        attention, dim = self.layer.multihead_attn, self.layer.multihead_attn.dim
        weight, bias = attention.in_proj_weight[dim:], attention.in_proj_bias[dim:]
        if isinstance(self.projection, nn.Linear):
            weight, bias = weight @ self.projection.weight, bias + weight @ self.projection.bias
        return Memory(F.linear(tokens_BFND, weight, bias), is_projected=True)

    def forward(self, queries_BGLP: Tensor, memory: Memory) -> Tensor:
        """Decodes every query at every one of the F groups of tokens: `[B, F, G, L, P]`."""
        layer = self.layer
        x_BAP = layer.self_attend(queries_BGLP).flatten(1, 2)
        q_BHAd = layer.project_queries(x_BAP)
        pooled_BFAP = self._attend(q_BHAd, memory) if memory.is_projected else self._attend_folded(q_BHAd, memory)
        x_BFAP = x_BAP.unsqueeze(1) + layer.multihead_attn.out_proj(pooled_BFAP)
        x_BFAP = x_BFAP + layer.linear2(F.relu(layer.linear1(layer.norm3(x_BFAP))))
        y_BFGLP: Tensor = self.output_norm(x_BFAP).view(*x_BFAP.shape[:2], *queries_BGLP.shape[1:])
        return y_BFGLP

    def _attend(self, q_BHAd: Tensor, memory: Memory) -> Tensor:
        """Attention as written, over keys and values."""
        num_videos, num_groups = memory.x_BFNM.shape[:2]
        kv_RHNd = memory.x_BFNM.flatten(0, 1).unflatten(-1, (2 * self._num_heads, -1)).transpose(1, 2)
        k_RHNd, v_RHNd = kv_RHNd.chunk(2, dim=1)
        q_RHAd = q_BHAd.unsqueeze(1).expand(-1, num_groups, -1, -1, -1).flatten(0, 1).to(k_RHNd.dtype)
        pooled_RAP = F.scaled_dot_product_attention(q_RHAd, k_RHNd, v_RHNd).transpose(1, 2).flatten(2)
        pooled_BFAP: Tensor = pooled_RAP.unflatten(0, (num_videos, num_groups))
        return pooled_BFAP

    def _attend_folded(self, q_BHAd: Tensor, memory: Memory) -> Tensor:
        """The same with the projections folded out of the sum over tokens.

        The biases of keys add the same to every token of a head and leave the softmax as it is.
        """
        attention, x_BFND = self.layer.multihead_attn, memory.x_BFNM
        _, key_HdP, value_HdP = attention.in_proj_weight.unflatten(0, (3, self._num_heads, -1)).unbind()
        key_BHAD = torch.einsum("bhad,hdp->bhap", q_BHAd * q_BHAd.shape[-1] ** -0.5, key_HdP)
        if isinstance(self.projection, nn.Linear):
            key_BHAD = F.linear(key_BHAD, self.projection.weight.T)
        num_queries = key_BHAD.shape[2]
        scores_BFMN = torch.einsum("bmd,bfnd->bfmn", key_BHAD.flatten(1, 2), x_BFND)
        pooled_BFMD = scores_BFMN.softmax(dim=-1).to(x_BFND.dtype) @ x_BFND
        pooled_BFHAP = self.projection(pooled_BFMD).unflatten(2, (self._num_heads, num_queries))
        value_BFAP = torch.einsum("bfhap,hdp->bfahd", pooled_BFHAP, value_HdP).flatten(3)
        return value_BFAP + attention.in_proj_bias[2 * attention.dim :]

    @property
    def _num_heads(self) -> int:
        return self.layer.multihead_attn.num_heads

    def _is_folding_cheaper(self, tokens_BFND: Tensor, num_queries: int) -> bool:
        """Compares multiplications per group of tokens."""
        num_tokens, dim = tokens_BFND.shape[2:]
        width, heads = self.layer.multihead_attn.dim, self._num_heads
        through_projection = heads * dim * width if isinstance(self.projection, nn.Linear) else 0
        folded = num_queries * (2 * num_tokens * heads * dim + 2 * width * width + 2 * through_projection)
        plain = 2 * num_tokens * width * (dim + num_queries)
        return folded <= plain


class _DecoderLayer(nn.Module):
    """Parameters of a `torch.nn.TransformerDecoderLayer`, and its steps before the cross-attention."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, num_heads)
        self.multihead_attn = Attention(width, num_heads)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def self_attend(self, x_BGLP: Tensor) -> Tensor:
        """Lets the queries of a group see one another; a query alone in its group attends to itself with weight 1."""
        normed = self.norm1(x_BGLP)
        if x_BGLP.shape[2] > 1:
            seen_BGLP: Tensor = self.self_attn(normed.flatten(0, 1)).view_as(x_BGLP)
            return x_BGLP + seen_BGLP
        attention, dim = self.self_attn, self.self_attn.dim
        value = F.linear(normed, attention.in_proj_weight[2 * dim :], attention.in_proj_bias[2 * dim :])
        y_BGLP: Tensor = x_BGLP + attention.out_proj(value)
        return y_BGLP

    def project_queries(self, x_BAP: Tensor) -> Tensor:
        """Queries of the cross-attention, by head: `[B, H, A, d]`."""
        attention, dim = self.multihead_attn, self.multihead_attn.dim
        q_BAP = F.linear(self.norm2(x_BAP), attention.in_proj_weight[:dim], attention.in_proj_bias[:dim])
        q_BHAd: Tensor = q_BAP.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        return q_BHAd


NUM_FREQUENCIES = 16


class FourierQueryEncoder(nn.Module):
    """Coordinates in [0, 1] -> Fourier code -> Linear, GELU, Linear -> Linear to the query's width.

    Args:
        num_coordinates: C; the code has 2 * 16 * C numbers.
        mlp_hidden: width of the MLP.
        readout_dim: width of the query.
    """

    freqs: Tensor

    def __init__(self, num_coordinates: int, *, mlp_hidden: int, readout_dim: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2.0 ** torch.arange(NUM_FREQUENCIES))
        self.mlp = nn.Sequential(
            nn.Linear(2 * NUM_FREQUENCIES * num_coordinates, mlp_hidden), nn.GELU(), nn.Linear(mlp_hidden, mlp_hidden)
        )
        self.to_query = nn.Linear(mlp_hidden, readout_dim)

    def forward(self, coordinates: Tensor) -> Tensor:
        """Coordinates `[*, C]` -> queries `[*, readout_dim]`."""
        query: Tensor = self.to_query(self.mlp(self.code(coordinates)))
        return query

    def code(self, coordinates: Tensor) -> Tensor:
        """Per coordinate 16 sines and 16 cosines: `[*, C]` -> `[*, 32 C]`."""
        angles = coordinates.to(self.freqs.dtype).unsqueeze(-1) * (math.pi * self.freqs)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
