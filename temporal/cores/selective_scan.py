"""The selective scan of Mamba (arXiv 2312.00752) in plain torch, with bounded memory.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t          y_t = C_t . h_t + D x_t

Clips are short (T = 16..64) and sequences are many (every token of every video is one), so a loop over time with all
sequences at once is the right shape, and memory is the problem: under autograd the loop keeps several
`[S, T, K, E]` tensors, 421 MB each per sample and layer at ViT-L size. Here the forward pass keeps its inputs only and
the backward pass recomputes h, one block of sequences after the other in buffers that are used again.

Cost: the backward pass repeats the forward pass once, and of sequences longer than 64 frames twice. Workspace beyond
inputs, outputs and gradients, for any S: three buffers of at most `_BLOCK_ELEMENTS_*` elements, or of one sequence's
`min(T, 64) * K * E` where that is more, and for longer sequences of as many sequences' h before every 64 frames.
Channels are the innermost axis of every buffer: broadcasts and sums then run over long rows. Time is the outermost:
what is done frame by frame then touches one piece of memory. On CPUs the exponential and the products with vectors
decide: exp2 takes a quarter of exp's time, and `row @ matrix.mT` a tenth of `matrix @ column`.

Shape suffixes: S sequences, T time, E channels, K state size per channel. Within a block `[T, block, ...]` they are
left out of the names; `u` is delta x, and `d` stands for the gradient of the loss by what follows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vfz.temporal.layers import without_autocast

if TYPE_CHECKING:
    from collections.abc import Iterator


# Elements of one [block, T, K, E] buffer. On a CPU the three buffers should stay in the caches; a GPU wants few, large
# kernels (3 x 128 MiB of float32).
_BLOCK_ELEMENTS_CPU = 1 << 20
_BLOCK_ELEMENTS_GPU = 1 << 25
_LOG2_E = math.log2(math.e)
# Longer sequences are scanned in pieces of this many frames, so that a buffer never holds more of one.
_MAX_FRAMES = 64


def selective_scan(
    x_STE: Tensor,
    delta_STE: Tensor,
    A_EK: Tensor,
    B_STK: Tensor,
    C_STK: Tensor,
    D_E: Tensor,
    state_SKE: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scans S independent sequences; differentiable once in every argument.

    Half precision inputs are computed in, and returned as, float32; autocast has no effect inside.

    Args:
        x_STE: the signal.
        delta_STE: step sizes, positive.
        A_EK: decay rates, negative (the caller applies `-exp(A_log)`).
        B_STK: input weights.
        C_STK: output weights.
        D_E: weight of the direct path.
        state_SKE: h before the first frame; None is zero.

    Returns:
        y `[S, T, E]` and h after the last frame `[S, K, E]`.
    """
    dtype = torch.promote_types(x_STE.dtype, torch.float32)
    x_STE, delta_STE, A_EK, B_STK, C_STK, D_E = (a.to(dtype) for a in (x_STE, delta_STE, A_EK, B_STK, C_STK, D_E))
    A_KE = A_EK.T.contiguous()
    h_SKE = x_STE.new_zeros(x_STE.shape[0], *A_KE.shape) if state_SKE is None else state_SKE.to(dtype)
    y_STE, last_SKE = _SelectiveScan.apply(x_STE, delta_STE, A_KE, B_STK, C_STK, D_E, h_SKE)
    return y_STE, last_SKE


class _SelectiveScan(torch.autograd.Function):
    """Saves its seven inputs and nothing else."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See `selective_scan`; all seven arguments are tensors of one dtype."""
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        x_STE, delta_STE, A_KE, B_STK, C_STK, D_E, state_SKE = inputs
        y_STE = x_STE * D_E
        last_SKE = torch.empty_like(state_SKE)
        with without_autocast(x_STE.device):
            for block, buffers in _blocks(x_STE, A_KE, num_buffers=2):
                h_before = state_SKE[block]
                for piece, (decay, h) in _pieces(x_STE, buffers):
                    x, delta, B, C = _cut((x_STE, delta_STE, B_STK, C_STK), block, piece)
                    _fill_states(decay, h, delta * x, delta, A_KE, B, h_before)
                    y_STE[block, piece] += (C.unsqueeze(-2) @ h).squeeze(-2).transpose(0, 1)
                    last_SKE[block] = h[-1]
                    h_before = last_SKE[block]
        return y_STE, last_SKE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_STE: Tensor | None, dlast_SKE: Tensor | None) -> tuple[Tensor, ...]:
        """Gradients of the seven inputs; h is computed again, block by block, from the last piece to the first."""
        x_STE, delta_STE, A_KE, B_STK, C_STK, D_E, state_SKE = ctx.saved_tensors
        dy_STE = torch.zeros_like(x_STE) if dy_STE is None else dy_STE
        dx_STE, ddelta_STE = dy_STE * D_E, torch.empty_like(delta_STE)
        dA_KE, dB_STK, dC_STK = torch.zeros_like(A_KE), torch.empty_like(B_STK), torch.empty_like(C_STK)
        dD_E, dstate_SKE = torch.zeros_like(D_E), torch.empty_like(state_SKE)
        inputs = (x_STE, delta_STE, B_STK, C_STK, dy_STE)
        with without_autocast(x_STE.device):
            for block, buffers in _blocks(x_STE, A_KE, num_buffers=3):
                starts = _states_before_pieces(x_STE, delta_STE, A_KE, B_STK, state_SKE, block, buffers)
                dlast = None if dlast_SKE is None else dlast_SKE[block]
                for piece, (decay, h, dh) in reversed(list(_pieces(x_STE, buffers))):
                    x, delta, B, C, dy = _cut(inputs, block, piece)
                    u, h_before = delta * x, starts.pop()
                    _fill_states(decay, h, u, delta, A_KE, B, h_before)
                    dh_before = _fill_state_gradients(decay, dh, dy, C, dlast)
                    dD_E += (dy * x).sum(dim=(0, 1))
                    dstate_SKE[block] = dh_before[0]
                    dlast = dstate_SKE[block]
                    dC_STK[block, piece] = (dy.unsqueeze(-2) @ h.mT).squeeze(-2).transpose(0, 1)
                    dB_STK[block, piece] = (u.unsqueeze(-2) @ dh.mT).squeeze(-2).transpose(0, 1)
                    du = (B.unsqueeze(-2) @ dh).squeeze(-2)
                    dx_STE[block, piece] += (du * delta).transpose(0, 1)
                    # `dh_before` becomes the gradient of the exponent delta_t A, and from here `h` is scratch.
                    dexponent = dh_before
                    dexponent[0].mul_(h_before)
                    dexponent[1:].mul_(h[:-1])
                    dA_KE += torch.mul(dexponent, delta.unsqueeze(-2), out=h).sum(dim=(0, 1))
                    ddelta_STE[block, piece] = dexponent.mul_(A_KE).sum(dim=-2).addcmul_(du, x).transpose(0, 1)
        return dx_STE, ddelta_STE, dA_KE, dB_STK, dC_STK, dD_E, dstate_SKE


def _blocks(x_STE: Tensor, A_KE: Tensor, *, num_buffers: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices of the sequences, each with uninitialised `[T or 64, block, K, E]` buffers that all blocks share."""
    num_sequences, num_frames = x_STE.shape[0], min(x_STE.shape[1], _MAX_FRAMES)
    limit = _BLOCK_ELEMENTS_CPU if x_STE.device.type == "cpu" else _BLOCK_ELEMENTS_GPU
    frame_elements = num_frames * A_KE.numel()
    block_size = max(1, min(num_sequences, limit // frame_elements))
    buffers = [x_STE.new_empty(block_size * frame_elements) for _ in range(num_buffers)]
    for start in range(0, num_sequences, block_size):
        size = min(block_size, num_sequences - start)
        shape = (num_frames, size, *A_KE.shape)
        yield slice(start, start + size), [buffer[: size * frame_elements].view(shape) for buffer in buffers]


def _pieces(x_STE: Tensor, buffers: list[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices of time of at most `_MAX_FRAMES` frames, each with as much of a block's buffers."""
    num_frames = x_STE.shape[1]
    for start in range(0, num_frames, _MAX_FRAMES):
        end = min(start + _MAX_FRAMES, num_frames)
        yield slice(start, end), [buffer[: end - start] for buffer in buffers]


def _cut(tensors: tuple[Tensor, ...], block: slice, piece: slice) -> Iterator[Tensor]:
    """Some sequences and frames of `[S, T, ...]` tensors, as contiguous `[piece, block, ...]`."""
    return (tensor[block, piece].transpose(0, 1).contiguous() for tensor in tensors)


def _states_before_pieces(
    x_STE: Tensor,
    delta_STE: Tensor,
    A_KE: Tensor,
    B_STK: Tensor,
    state_SKE: Tensor,
    block: slice,
    buffers: list[Tensor],
) -> list[Tensor]:
    """The states h before each piece of a block, `[block, K, E]`; costs nothing where there is only one piece."""
    starts = [state_SKE[block]]
    for piece, (decay, h, _) in list(_pieces(x_STE, buffers))[:-1]:
        x, delta, B = _cut((x_STE, delta_STE, B_STK), block, piece)
        _fill_states(decay, h, delta * x, delta, A_KE, B, starts[-1])
        starts.append(h[-1].clone())
    return starts


def _fill_states(decay: Tensor, h: Tensor, u: Tensor, delta: Tensor, A_KE: Tensor, B: Tensor, h_before: Tensor) -> None:
    """Writes exp(delta A) into `decay` and h_0..h_{T-1} into `h`, for one block."""
    torch.mul(delta.unsqueeze(-2), A_KE * _LOG2_E, out=decay).exp2_()
    torch.mul(u.unsqueeze(-2), B.unsqueeze(-1), out=h)
    for decay_t, h_t in zip(decay.unbind(), h.unbind(), strict=True):
        h_before = h_t.addcmul_(decay_t, h_before)


def _fill_state_gradients(decay: Tensor, dh: Tensor, dy: Tensor, C: Tensor, dlast: Tensor | None) -> Tensor:
    """Gradients of the loss by the states of one block, through y and through later states.

    Writes those by h_0..h_{T-1} into `dh`, and those by the h before each, which are `decay * dh`, over `decay`.
    """
    outer = [(C_t.unsqueeze(-1), dy_t.unsqueeze(-2)) for C_t, dy_t in zip(C.unbind(), dy.unbind(), strict=True)]
    dh_frames, decay_frames = dh.unbind(), decay.unbind()
    torch.mul(*outer[-1], out=dh_frames[-1])
    if dlast is not None:
        dh_frames[-1].add_(dlast)
    for t in range(len(outer) - 1, 0, -1):
        torch.addcmul(decay_frames[t].mul_(dh_frames[t]), *outer[t - 1], out=dh_frames[t - 1])
    decay_frames[0].mul_(dh_frames[0])
    return decay
