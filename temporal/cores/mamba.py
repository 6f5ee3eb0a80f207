"""The Mamba-1 layer (arXiv 2312.00752) and the pre-norm block around it, with carried state.

    [x, z] = W_in u        x = SiLU(causal depthwise conv(x))        [d, B, C] = W_x x
    Delta = softplus(W_dt d + b)        y = selective scan        out = W_out (y * SiLU z)

Parameter names are those of released checkpoints. A, Delta, D and the carried h are float32 even under autocast:
h sums over the whole past, and exp(Delta A) close to 1 is what half precision cannot hold. Plain torch: any device will
do, and no kernel package is needed.

Shape suffixes: S sequences, T time, D channels, E = expand * D inner channels, K state size, W conv width, R rank
of dt.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfz.temporal.cores.selective_scan import selective_scan
from vfz.temporal.layers import without_autocast

_DT_MIN, _DT_MAX, _DT_FLOOR = 1e-3, 0.1, 1e-4


class MambaState(NamedTuple):
    """What a layer carries from frame to frame.

    Attributes:
        conv_SWE: the last W - 1 inputs of the convolution, `[S, W-1, E]`.
        ssm_SKE: h, float32 `[S, K, E]`.
    """

    conv_SWE: Tensor
    ssm_SKE: Tensor


class Mamba(nn.Module):
    """One Mamba-1 layer.

    Args:
        dim: D.
        d_state: K.
        expand: E / D.
        d_conv: W.
    """

    def __init__(self, dim: int, *, d_state: int = 16, expand: int = 2, d_conv: int = 4) -> None:
        super().__init__()
        self.d_state = d_state
        self.inner_dim = expand * dim
        self.dt_rank = math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * self.inner_dim, bias=False)
        self.conv1d = nn.Conv1d(self.inner_dim, self.inner_dim, d_conv, groups=self.inner_dim)
        self.x_proj = nn.Linear(self.inner_dim, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.inner_dim)
        self.out_proj = nn.Linear(self.inner_dim, dim, bias=False)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(self.inner_dim, 1))
        self.D = nn.Parameter(torch.ones(self.inner_dim))
        self._mark_undecayed()
        self._init_dt()

    def _mark_undecayed(self) -> None:
        """Says to the optimizer, in the way of Mamba's own code, that A_log and D take no weight decay."""
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]  # noqa: SLF001 - read by the optimizer

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Marks the parameters of a copy too: `copy.deepcopy` drops what a parameter was marked with."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._mark_undecayed()

    def _init_dt(self) -> None:
        """Makes Delta start log-uniform in [1e-3, 0.1]."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt_E = torch.empty(self.inner_dim).uniform_(math.log(_DT_MIN), math.log(_DT_MAX)).exp().clamp(min=_DT_FLOOR)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt_E + torch.log(-torch.expm1(-dt_E)))  # the inverse of softplus

    def forward(self, u_STD: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Runs over T frames of S independent sequences.

        Returns:
            Output `[S, T, D]` and the state after the last frame.
        """
        x_STE, z_STE = self.in_proj(u_STD).chunk(2, dim=-1)
        x_STE, conv_SWE = self._convolve(x_STE, None if state is None else state.conv_SWE)
        x_STE = F.silu(x_STE)
        dt_STR, B_STK, C_STK = self.x_proj(x_STE).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dtype = torch.promote_types(self.A_log.dtype, torch.float32)
        with without_autocast(u_STD.device):
            dt_STE = F.linear(dt_STR.to(dtype), self.dt_proj.weight.to(dtype), self.dt_proj.bias.to(dtype))
            y_STE, ssm_SKE = selective_scan(
                x_STE.to(dtype),
                F.softplus(dt_STE),
                -self.A_log.to(dtype).exp(),
                B_STK,
                C_STK,
                self.D,
                None if state is None else state.ssm_SKE,
            )
        y_STD: Tensor = self.out_proj(y_STE.to(z_STE.dtype) * F.silu(z_STE))
        return y_STD, MambaState(conv_SWE, ssm_SKE)

    def _convolve(self, x_STE: Tensor, conv_SWE: Tensor | None) -> tuple[Tensor, Tensor]:
        """Causal depthwise convolution; also returns the inputs that the next frames will need."""
        num_carried = self.conv1d.kernel_size[0] - 1
        if conv_SWE is None:
            conv_SWE = x_STE.new_zeros(x_STE.shape[0], num_carried, self.inner_dim)
        padded_STE = torch.cat([conv_SWE.to(x_STE.dtype), x_STE], dim=1)
        # As an image of height 1: torch's CPU kernels are four times slower for the same depthwise convolution in 1-D.
        weight_E11W = self.conv1d.weight.unsqueeze(2)
        y_SE1T = F.conv2d(padded_STE.mT.unsqueeze(2), weight_E11W, self.conv1d.bias, groups=self.inner_dim)
        # A copy, since a view would keep the inputs of all frames alive for as long as the state is.
        return y_SE1T.squeeze(2).mT, padded_STE[:, padded_STE.shape[1] - num_carried :].clone()


class MambaBlock(nn.Module):
    """x + Dropout(Mamba(LN x)), every token position of a frame being its own sequence over time."""

    def __init__(self, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mamba = Mamba(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTND: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Returns the block's output `[B, T, N, D]` and the state, whose S is B * N."""
        num_videos, _, num_tokens, _ = x_BTND.shape
        u_STD = self.norm(x_BTND).transpose(1, 2).flatten(0, 1)
        y_STD, state = self.mamba(u_STD, state)
        y_BTND = y_STD.unflatten(0, (num_videos, num_tokens)).transpose(1, 2)
        return x_BTND + self.dropout(y_BTND), state
