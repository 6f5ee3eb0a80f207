"""Tokens to answers: layer mixers, causal recurrent cores, readouts, and what trains and measures them.

A model is mixer -> core -> readout. The three builders are exported here, and `ClipDataset` for those who bring a model
of their own; all are imported on first use, so that `import vfz.temporal` (and with it `vfz --help`) does not import
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfz.temporal.cores import build_core
    from vfz.temporal.data.dataset import ClipDataset
    from vfz.temporal.mixers import build_mixer
    from vfz.temporal.readouts import build_readout


__all__ = ["ClipDataset", "build_core", "build_mixer", "build_readout"]

_MODULE_OF = {
    "ClipDataset": "vfz.temporal.data.dataset",
    "build_core": "vfz.temporal.cores",
    "build_mixer": "vfz.temporal.mixers",
    "build_readout": "vfz.temporal.readouts",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
