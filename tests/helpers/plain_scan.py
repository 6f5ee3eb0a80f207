"""The selective scan as its definition says it, one frame after the other under autograd, in two layouts.

`published_scan` is how public implementations of Mamba write it where they have no kernel: decays and inputs of all
frames first, the state innermost, an einsum per frame. `plain_scan` says the same in the layout that suits torch
best: nothing but the state lives beyond a frame, channels innermost. It is several times as fast, and the harder
baseline.
"""

import torch


def plain_scan(x, delta, A, B, C, D, state=None):
    """The recurrence as written, under autograd."""
    h = x.new_zeros(x.shape[0], *A.T.shape) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t, None, :] * A.T)
        h = decay * h + (delta[:, t] * x[:, t])[:, None, :] * B[:, t, :, None]
        outputs.append((h * C[:, t, :, None]).sum(1) + D * x[:, t])
    return torch.stack(outputs, 1), h


def published_scan(x, delta, A, B, C, D):
    """The recurrence as it is usually written, under autograd, from the zero state."""
    decay = torch.exp(torch.einsum("ste,ek->setk", delta, A))
    drive = torch.einsum("ste,stk,ste->setk", delta, B, x)
    h = x.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for t in range(x.shape[1]):
        h = decay[:, :, t] * h + drive[:, :, t]
        outputs.append(torch.einsum("sek,sk->se", h, C[:, t]))
    return torch.stack(outputs, 1) + D * x, h.mT
