"""Weights released with the paper (arXiv 2605.19137): its Lightning checkpoints, whole or part by part.

    model = load_checkpoint("gmmix_ssv2.ckpt", "gmmix", "classify", "streaming", num_heads=16)
    logits_BTK = model([layer_5, layer_11, layer_17, layer_23])      # each [B, T, N, D]

Sizes are read off the tensors. Every tensor is used, or refused by name; no weight is left at random. Modules come in
evaluation mode, on the CPU, in float32. Nothing in a file is executed (`weights_only=True`), and the global random
stream is left as it was.

Only the queries of `classify` and `depth` tell the number of heads. Elsewhere the caller says it, or it is the paper's.
A wrong number gives wrong outputs, and no check can notice it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vfz.pipeline.errors import CheckpointError, UnknownNameError
from vfz.temporal.cores import TemporalCore, build_core
from vfz.temporal.mixers import LayerMixer, build_mixer
from vfz.temporal.readouts import READOUTS, Readout, build_readout
from vfz.temporal.reference.mapping import (
    CORE_NAMES,
    LOSS,
    MIXER_NAMES,
    MODEL,
    PAPER_HEADS,
    READOUT_NAMES,
    core_sizes,
    fill,
    mixer_sizes,
    readout_sizes,
    released_tensors,
    shorten,
)

# The cores of the paper, each with the names that tell it from those below it.
RELEASED_CORES = {"gmmix": "gates.", "mmix": "spatial_blocks.", "m": "mamba_blocks.", "rvm_rnn": "transformer."}
_PAPER_READOUT_DIM = 1024
_ENCODER = f"{MODEL}encoder."


class ReferenceModel(nn.Module):
    """Mixer -> core -> readout of a released checkpoint."""

    def __init__(self, mixer: LayerMixer, core: TemporalCore[Any], readout: Readout) -> None:
        super().__init__()
        self.mixer = mixer
        self.core = core
        self.readout = readout

    def forward(self, layers_BTND: Sequence[Tensor], **inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """What the readout answers.

        Args:
            layers_BTND: the encoder's layers, shallowest first, as many as `mixer.num_layers`.
            **inputs: what the readout needs besides, see its `input_names`.
        """
        y_BTND, _ = self.core(self.mixer(layers_BTND))
        answer: Tensor | dict[str, Tensor] = self.readout(y_BTND, **inputs)
        return answer


def load_checkpoint(
    path: str | Path,
    core: str,
    task: str,
    protocol: str = "streaming",
    num_heads: int | None = None,
    *,
    readout_heads: int | None = None,
    num_prefix: int = 0,
) -> ReferenceModel:
    """The model of a released Lightning checkpoint, all but the encoder, which is not in it.

    Args:
        path: the file.
        core: see `load_core`.
        task: see `load_readout`.
        protocol: see `load_readout`.
        num_heads: of the core, see `load_core`.
        readout_heads: of the readout, see `load_readout`. None for the paper's where the readout has the paper's width
            of 1024, else `num_heads`.
        num_prefix: see `load_mixer`.

    Returns:
        The model. A checkpoint without a mixer gives one that takes a single layer, the last.

    Raises:
        UnknownNameError: when the paper has no such core, task or protocol.
        UsageError: when the task does not have that protocol, or numbers of heads do not fit.
        CheckpointError: when the file cannot be read, holds code, is no Lightning checkpoint or one of another model,
            or holds anything that belongs to none of the parts.
    """
    path = Path(path)
    state_dict = _read(path)
    try:
        parts = _split(released_tensors(state_dict))
        loaded_core = load_core(parts[CORE_NAMES.prefix], core, num_heads)
        loaded_readout = load_readout(
            parts[MODEL], task, protocol, readout_heads or _readout_heads(parts[MODEL], task, protocol, num_heads)
        )
        mixer = (
            load_mixer(parts[_ENCODER], num_prefix=num_prefix)
            if parts[_ENCODER]
            else build_mixer("last", dim=loaded_core.dim, num_layers=1)
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not mixer.dim == loaded_core.dim == loaded_readout.dim:
        raise CheckpointError(
            f"{path}: the mixer has {mixer.dim} channels, the core {loaded_core.dim} and the readout "
            f"{loaded_readout.dim}; the parts are not of one model"
        )
    return ReferenceModel(mixer, loaded_core, loaded_readout).eval()


def load_core(state_dict: Mapping[str, Tensor], name: str, num_heads: int | None = None) -> TemporalCore[Any]:
    """The core of a released checkpoint.

    Args:
        state_dict: its tensors, `model.sequential_core.*`, and no others; with or without `model.` in front of all.
        name: `m`, `mmix`, `gmmix` or `rvm_rnn`.
        num_heads: of its attention; None for what `build_core` has for this width, the paper's. `m` has none.

    Raises:
        UnknownNameError: when the paper has no such core.
        UsageError: when `num_heads` does not divide the width.
        CheckpointError: when these are not the weights of that core.
    """
    if name not in RELEASED_CORES:
        raise UnknownNameError("released core", name, RELEASED_CORES)
    state_dict = released_tensors(state_dict)
    with torch.random.fork_rng(devices=[]):
        core = build_core(name, **core_sizes(state_dict, name, num_heads))
    found = _core_of(state_dict)
    hint = "" if found in {name, None} else f" (they look like {found})"
    return fill(core, state_dict, CORE_NAMES, what=f"a {name} core{hint}")


def load_mixer(state_dict: Mapping[str, Tensor], *, num_prefix: int = 0) -> LayerMixer:
    """The layer mixer of a released checkpoint: `mean` or `xattn`, as its names say.

    Args:
        state_dict: its tensors, `model.encoder.interm_mlps.*` or `model.encoder.interm_aggregator.*`, and no others;
            with or without `model.` in front of all.
        num_prefix: see `build_mixer`; 5 where DINOv3's CLS and registers come with the patch tokens.

    Raises:
        CheckpointError: when these are no mixer's weights. The batch statistics of `mean` are among them.
    """
    state_dict = released_tensors(state_dict)
    for name, naming in MIXER_NAMES.items():
        if any(key.startswith(naming.prefix) for key in state_dict):
            with torch.random.fork_rng(devices=[]):
                mixer = build_mixer(name, **mixer_sizes(state_dict, name), num_prefix=num_prefix)
            return fill(mixer, state_dict, naming, what=f"a {name} mixer")
    starts = " or ".join(naming.prefix for naming in MIXER_NAMES.values())
    found = shorten(sorted(state_dict)) or "nothing"
    raise CheckpointError(f"these are not the weights of a mixer, whose names start with {starts}: found {found}")


def load_readout(
    state_dict: Mapping[str, Tensor], name: str, protocol: str = "streaming", num_heads: int | None = None
) -> Readout:
    """The readout of a released checkpoint.

    Args:
        state_dict: its tensors, and no others; with or without `model.` in front of all.
        name: the task: `classify`, `boxes`, `points`, `depth` or `pose`.
        protocol: `streaming`, or `clip` where the task has it.
        num_heads: of the decoder of `boxes` and `points`; None for the paper's 4 and 8. `classify` and `depth` have it
            in their tensors, and another number is refused; `pose` has no heads.

    Raises:
        UnknownNameError: when there is no such task or protocol.
        UsageError: when the task does not have that protocol, or `num_heads` does not fit.
        CheckpointError: when these are not the weights of that readout.
    """
    READOUTS[name].check_protocol(protocol)
    state_dict = released_tensors(state_dict)
    with torch.random.fork_rng(devices=[]):
        readout = build_readout(name, protocol=protocol, **readout_sizes(state_dict, name, protocol, num_heads))
    return fill(readout, state_dict, READOUT_NAMES[name, protocol], what=f"a {name} readout in {protocol} protocol")


def _core_of(state_dict: Mapping[str, Tensor]) -> str | None:
    """Which core the names are of, as far as they tell."""
    for name, mark in RELEASED_CORES.items():
        if any(key.startswith(CORE_NAMES.prefix + mark) for key in state_dict):
            return name
    return None


def _readout_heads(state_dict: Mapping[str, Tensor], task: str, protocol: str, num_heads: int | None) -> int | None:
    """Heads of the readout where only those of the core were given."""
    READOUTS[task].check_protocol(protocol)
    if task not in PAPER_HEADS:
        return None
    width = readout_sizes(state_dict, task, protocol, num_heads)["readout_dim"]
    return None if width == _PAPER_READOUT_DIM else num_heads


def _read(path: Path) -> Mapping[str, Tensor]:
    """The `state_dict` of a Lightning checkpoint."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, or is no checkpoint, and vfz runs no code from files; "
            'save {"state_dict": ...} alone'
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": .")
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint ({reason}); give a whole file of torch.save"
        ) from error
    state_dict = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state_dict, dict) or not state_dict:
        found = shorten([str(key) for key in content]) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: is no Lightning checkpoint, it has no state_dict (found: {found or 'nothing'})")
    return state_dict


def _split(state_dict: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors by part: core, mixer (in the encoder's wrapper), readout (the rest). Those of losses are dropped."""
    parts: dict[str, dict[str, Tensor]] = {CORE_NAMES.prefix: {}, _ENCODER: {}, MODEL: {}}
    unknown = []
    for key, value in state_dict.items():
        part = next((prefix for prefix in parts if key.startswith(prefix)), None)
        if part is not None:
            parts[part][key] = value
        elif not key.startswith(LOSS):
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"there are weights whose names do not start with {MODEL}, as all that are released do: {shorten(unknown)}"
        )
    return parts
