"""Temporal cores: causal modules that give every token map a memory of the frames before it.

All keep the contract of `vfz.temporal.cores.base`. A new core is one file with a `TemporalCore`, one line in the
registry below and one subclass of `CoreContract` in the tests.

The options of `vfz` check names, so importing this package imports no core, and no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vfz.pipeline.errors import UsageError
from vfz.pipeline.registry import Registry

if TYPE_CHECKING:
    from vfz.temporal.cores.base import TemporalCore

__all__ = ["CORES", "TemporalCore", "build_core"]

CORES: Registry[type[TemporalCore[Any]]] = Registry("core")
CORES.register_place("identity", "vfz.temporal.cores.base:IdentityCore")
CORES.register_place("m", "vfz.temporal.cores.mmix:MCore")
CORES.register_place("mmix", "vfz.temporal.cores.mmix:MMixCore")
CORES.register_place("gmmix", "vfz.temporal.cores.mmix:GMMixCore")
CORES.register_place("rvm_rnn", "vfz.temporal.cores.rvm_rnn:RvmRnnCore")
CORES.register_place("gru", "vfz.temporal.cores.gru:GruCore")
CORES.register_place("mingru", "vfz.temporal.cores.gru:MinGruCore")
CORES.register_place("attention", "vfz.temporal.cores.attention:AttentionCore")

WITH_HEADS = frozenset({"mmix", "gmmix", "rvm_rnn", "attention"})
"""Those with attention heads, known before a core is imported."""


def build_core(
    name: str,
    *,
    dim: int,
    num_layers: int = 4,
    num_heads: int | None = None,
    checkpointing: bool = False,
    **kwargs: Any,
) -> TemporalCore[Any]:
    """The core called `name`, with fresh weights.

    Args:
        name: one of `CORES.names()`.
        dim: D, channels of the tokens.
        num_layers: depth; `identity` has none and takes no notice.
        num_heads: attention heads; cores without attention take no notice. None stands for 16 where that divides
            `dim`, else the largest of 12, 8, 6, 4, 2, 1 that does; for `rvm_rnn` of width 384, 768 or 1024 it stands
            for the published 8, 12 or 16.
        checkpointing: computes activations again in the backward pass instead of keeping them: the same numbers, less
            memory, one more forward pass. `identity` has nothing to recompute.
        **kwargs: what the core's constructor takes besides (`gate_hidden_dim`, `dropout`, `drop_path`, `window`).

    Raises:
        UnknownNameError: when no core has that name.
        UsageError: when `dim` or `num_layers` is below 1, `num_heads` does not divide `dim`, or the core takes no
            such further argument.
    """
    core_class = CORES[name]
    for what, size in (("dim", dim), ("num_layers", num_layers)):
        if size < 1:
            raise UsageError(f"{what} is {size}; a core needs at least 1")
    heads = core_class.default_num_heads(dim) if num_heads is None else num_heads
    sizes = {"num_layers": num_layers, "num_heads": heads}
    _check_arguments(name, core_class, kwargs)
    core = core_class(dim, **{size: sizes[size] for size in core_class.sizes}, **kwargs)
    core.checkpointing = checkpointing
    return core


def _check_arguments(name: str, core_class: type[TemporalCore[Any]], kwargs: Mapping[str, Any]) -> None:
    """Refuses arguments that the core's constructor does not have."""
    known = sorted(inspect.signature(core_class).parameters.keys() - {"dim", "num_layers", "num_heads"})
    if unknown := sorted(kwargs.keys() - set(known)):
        taken = f"takes {', '.join(known)}" if known else "has no options"
        raise UsageError(f"core {name} has no option {', '.join(unknown)}; it {taken}")


def __getattr__(name: str) -> object:
    """The contract's class, imported on first use."""
    if name != "TemporalCore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vfz.temporal.cores.base import TemporalCore

    return TemporalCore
