"""Where autocast must not reach: what half precision cannot hold stays in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Turns autocast off for operations on a device; nothing to do where it has none (`meta`)."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
