"""The attention readout: learned queries pool the tokens of a frame or clip, a linear layer answers.

    k, v = W_K LN(x), W_V LN(x)      tok = q + W_O softmax(q.k / sqrt(d)) v      tok += MLP(LN tok)      answer = W tok

Shared by every task whose queries are learned (classes; depth, where there is one query per patch). Published with RVM
(arXiv 2512.13684) and used by arXiv 2605.19137.

Cost: with few queries no token is ever projected. q.(W_K x) = (W_K^T q).x turns each head's query into one D-vector,
and sum_s a_s W_V x_s = W_V sum_s a_s x_s pools before it projects. That is exact and, for one query of 12 heads of
64, some 60 times less arithmetic per token. With many queries the plain form is cheaper and is used.

Shape suffixes: R rows (frames or clips), T time, N tokens of a frame, S = T * N, D channels of the tokens, P width
of the readout, Q queries, H heads, d = P / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfz.temporal.layers import check_heads, resize_time
from vfz.temporal.readouts.base import Readout

_INIT_STD = 0.02


class AttentionReadout(Readout):
    """Learned queries -> attention -> MLP -> linear. A task subclasses it and shapes what `read` returns.

    Args:
        protocol: see `Readout`.
        dim: D.
        num_outputs: numbers per query.
        readout_dim: P.
        num_heads: H; must divide `readout_dim`.
        num_queries: Q.
        num_frames: frames of the learned time embedding; None for no time embedding.

    Raises:
        UnknownNameError: when there is no such protocol.
        UsageError: when `num_heads` does not divide `readout_dim`.
    """

    temporal_posenc: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        num_outputs: int,
        *,
        protocol: str,
        readout_dim: int,
        num_heads: int,
        num_queries: int = 1,
        num_frames: int | None = None,
    ) -> None:
        super().__init__(dim, protocol=protocol)
        check_heads(readout_dim, num_heads)
        self.num_heads = num_heads
        self.input_norm = nn.LayerNorm(dim)
        posenc = None if num_frames is None else nn.Parameter(torch.empty(1, num_frames, 1, dim).normal_(std=_INIT_STD))
        self.register_parameter("temporal_posenc", posenc)
        self.key_proj = nn.Linear(dim, readout_dim)
        self.value_proj = nn.Linear(dim, readout_dim)
        self.query = nn.Parameter(torch.empty(num_queries, num_heads, readout_dim // num_heads).normal_(std=_INIT_STD))
        self.out_proj = nn.Linear(readout_dim, readout_dim)
        self.mlp_norm = nn.LayerNorm(readout_dim)
        self.mlp_fc1 = nn.Linear(readout_dim, 4 * readout_dim)
        self.mlp_fc2 = nn.Linear(4 * readout_dim, readout_dim)
        self.classifier = nn.Linear(readout_dim, num_outputs)

    def read(self, x_RTND: Tensor) -> Tensor:
        """Answers every query from all T * N tokens of its row.

        Args:
            x_RTND: tokens; T = 1 to answer from single frames.

        Returns:
            `[R, Q, num_outputs]`.
        """
        x_RTND = self.input_norm(x_RTND)
        if self.temporal_posenc is not None:
            x_RTND = x_RTND + resize_time(self.temporal_posenc.squeeze(2), x_RTND.shape[1]).unsqueeze(2)
        x_RSD = x_RTND.flatten(1, 2)
        num_queries = self.query.shape[0]
        pooled_RQP = self._attend_folded(x_RSD) if num_queries <= self.query.shape[2] else self._attend(x_RSD)
        tok_RQP = self.query.flatten(1) + self.out_proj(pooled_RQP)
        tok_RQP = tok_RQP + self.mlp_fc2(F.gelu(self.mlp_fc1(self.mlp_norm(tok_RQP))))
        answer: Tensor = self.classifier(tok_RQP)
        return answer

    def _attend(self, x_RSD: Tensor) -> Tensor:
        """Attention as written: cost S * (2 D P + 2 Q P)."""
        k_RHSd, v_RHSd = (
            projection(x_RSD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.key_proj, self.value_proj)
        )
        q_RHQd = self.query.transpose(0, 1).to(k_RHSd.dtype).expand(x_RSD.shape[0], -1, -1, -1)
        return F.scaled_dot_product_attention(q_RHQd, k_RHSd, v_RHSd).transpose(1, 2).flatten(2)

    def _attend_folded(self, x_RSD: Tensor) -> Tensor:
        """The same with the projections folded out of the sum over tokens: cost S * 2 Q H D."""
        num_queries, num_heads, head_dim = self.query.shape
        query_QHd = self.query * head_dim**-0.5
        weight_HdD = self.key_proj.weight.unflatten(0, (num_heads, head_dim))
        key_QHD = torch.einsum("qhp,hpd->qhd", query_QHd, weight_HdD)
        # The bias adds the same to every token of a head and leaves the softmax as it is; it is here so that its
        # (zero) gradient exists as in the plain form.
        bias_QH = (query_QHd * self.key_proj.bias.unflatten(0, (num_heads, head_dim))).sum(dim=-1)
        scores_RSA = F.linear(x_RSD, key_QHD.flatten(0, 1), bias_QH.flatten())
        pooled_RAD = scores_RSA.softmax(dim=1).mT.to(x_RSD.dtype) @ x_RSD
        pooled_RQHD = pooled_RAD.unflatten(1, (num_queries, num_heads))
        value_HdD = self.value_proj.weight.unflatten(0, (num_heads, head_dim))
        return torch.einsum("rqhd,hpd->rqhp", pooled_RQHD, value_HdD).flatten(2) + self.value_proj.bias
