"""How released checkpoints name the weights of mixers, cores and readouts, what sizes these weights have, and `fill`.

The checkpoints of arXiv 2605.19137 come from one wrapper class per task and protocol, so the same part lies under other
names in each. Tables here say where; nothing is guessed, and a name that is in no table is refused.

`core_sizes`, `mixer_sizes` and `readout_sizes` read off the tensors what a part needs to be built. Whether all tensors
then fit is checked by `fill`, which gives the part its weights and accounts for every name. Depth maps are square.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vfz.pipeline.errors import CheckpointError, UsageError
from vfz.temporal.readouts.depth import PATCH_PIXELS

ModuleT = TypeVar("ModuleT", bound=nn.Module)

MODEL, LOSS = "model.", "loss_fn."
"""In front of the weights of the model, and of the loss."""

# Heads of the decoder in the released readouts. They are in no tensor.
PAPER_HEADS = {"boxes": 4, "points": 8}
_NAMES_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Naming:
    """Where a part of ours lies in a released checkpoint.

    Attributes:
        prefix: of all its tensors there.
        renames: pairs of the start of a name here and there; the first that fits is used, other names are the same.
    """

    prefix: str
    renames: tuple[tuple[str, str], ...] = ()

    def released(self, name: str) -> str:
        """The name there of what is called `name` here."""
        for ours, theirs in self.renames:
            if name.startswith(ours):
                return self.prefix + theirs + name.removeprefix(ours)
        return self.prefix + name


CORE_NAMES = Naming(prefix=f"{MODEL}sequential_core.")

MIXER_NAMES = {
    "mean": Naming(prefix="model.encoder.interm_mlps.", renames=(("blocks.", ""),)),
    "xattn": Naming(prefix="model.encoder.interm_aggregator."),
}

_DECODER = (
    ("decoder.projection.", "proj_to_readout."),
    ("decoder.layer.", "readout.layers.0."),
    ("decoder.output_norm.", "readout.output_norm."),
)


def _query_encoder(prefix: str, mlp: str) -> tuple[tuple[str, str], ...]:
    return (
        ("query_encoder.freqs", f"{prefix}fourier_enc.freqs"),
        ("query_encoder.mlp.", f"{prefix}{mlp}."),
        ("query_encoder.to_query.", f"{prefix}to_query."),
    )


READOUT_NAMES = {
    ("classify", "streaming"): Naming(prefix="model.readout."),
    ("classify", "clip"): Naming(prefix="model.readout.readout."),
    ("depth", "streaming"): Naming(prefix="model.readout.readout."),
    ("depth", "clip"): Naming(prefix="model.readout.readout."),
    ("boxes", "streaming"): Naming(
        prefix="model.",
        renames=(*_DECODER, *_query_encoder("bbox_query_encoder.", "bbox_encoder"), ("head.", "bbox_head.")),
    ),
    ("points", "streaming"): Naming(
        prefix="model.", renames=(*_DECODER, *_query_encoder("", "point_mlp"), ("head.", "prediction_head."))
    ),
    ("points", "clip"): Naming(
        prefix="model.readout.",
        renames=(
            *_DECODER,
            *_query_encoder("point_query_encoder.", "point_mlp"),
            ("time_embedding", "point_query_encoder.temporal_embed"),
            ("head.", "prediction_head."),
        ),
    ),
    ("pose", "streaming"): Naming(
        prefix="model.",
        renames=(
            ("projection.", "proj_to_readout."),
            ("norm.", "pose_head.0."),
            ("head.0.", "pose_head.1."),
            ("head.2.", "pose_head.3."),
        ),
    ),
}


def released_tensors(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict under the names of a released checkpoint: `model.` is put in front where no name has it.

    Raises:
        CheckpointError: when there is anything but tensors in it, naming what is none.
    """
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(f"weights are a {type(state_dict).__name__}; pass a state dict: tensors by name")
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{name!r} in the weights is a {type(value).__name__}; all must be tensors by name")
    if any(name.startswith(MODEL) for name in state_dict):
        return state_dict
    return {name if name.startswith(LOSS) else MODEL + name: value for name, value in state_dict.items()}


def fill(module: ModuleT, state_dict: Mapping[str, Tensor], naming: Naming, *, what: str) -> ModuleT:
    """Gives `module` all the tensors of `state_dict`, and puts it in evaluation mode.

    Args:
        module: of the sizes of these tensors.
        state_dict: tensors by released names, those of this part and no others.
        naming: where the part lies.
        what: the part, as messages call it.

    Raises:
        CheckpointError: when a tensor is missing, left over or of another shape; the message names some of them.
    """
    ours = module.state_dict()
    released = {naming.released(name): name for name in ours}
    differences = describe_differences(released, state_dict)
    if differences:
        raise CheckpointError(f"these are not the weights of {what}: {differences}")
    shapes = [
        f"{key} {list(state_dict[key].shape)} instead of {list(ours[name].shape)}"
        for key, name in released.items()
        if state_dict[key].shape != ours[name].shape
    ]
    if shapes:
        raise CheckpointError(f"weights of {what} have shapes that do not fit one another: {shorten(shapes)}")
    module.load_state_dict({name: state_dict[key] for key, name in released.items()})
    return module.eval()


def core_sizes(state_dict: Mapping[str, Tensor], name: str, num_heads: int | None) -> dict[str, Any]:
    """Arguments of `build_core` for the core called `name`."""
    read = _Sizes(state_dict, CORE_NAMES)
    blocks = "transformer.layers" if name == "rvm_rnn" else "mamba_blocks"
    sizes: dict[str, Any] = {
        "dim": read.size("output_norm.weight", 0, default=num_heads or 1),
        "num_layers": read.count(blocks),
        "num_heads": num_heads,
    }
    if name == "gmmix" and read.has("gates.0.0.weight"):
        sizes["gate_hidden_dim"] = read.size("gates.0.0.weight", 0)
    return sizes


def mixer_sizes(state_dict: Mapping[str, Tensor], name: str) -> dict[str, int]:
    """Arguments of `build_mixer` for the mixer called `name`."""
    read = _Sizes(state_dict, MIXER_NAMES[name])
    if name == "mean":
        return {"dim": read.size("blocks.0.bn.weight", 0), "num_layers": read.count("blocks")}
    return {"dim": read.size("layer_embed", 1), "num_layers": read.size("layer_embed", 0)}


def readout_sizes(state_dict: Mapping[str, Tensor], task: str, protocol: str, num_heads: int | None) -> dict[str, int]:
    """Arguments of `build_readout` for a task and a protocol that it has.

    Raises:
        UsageError: when `num_heads` is another number than the tensors have.
    """
    read = _Sizes(state_dict, READOUT_NAMES[task, protocol])
    if task in {"classify", "depth"}:
        return _attention_sizes(read, task, protocol, num_heads)
    heads = PAPER_HEADS.get(task, 1) if num_heads is None else num_heads
    width = read.size("norm.weight" if task == "pose" else "decoder.output_norm.weight", 0, default=heads)
    projection = "projection.weight" if task == "pose" else "decoder.projection.weight"
    sizes = {"dim": read.size(projection, 1, default=width), "readout_dim": width}
    if task == "pose":
        return sizes | {"mlp_hidden": read.size("head.0.weight", 0)}
    sizes |= {"num_heads": heads, "mlp_hidden": read.size("query_encoder.to_query.weight", 1)}
    if protocol == "clip":
        sizes["num_frames"] = 2 * read.size("time_embedding", 1)
    return sizes


def _attention_sizes(read: _Sizes, task: str, protocol: str, num_heads: int | None) -> dict[str, int]:
    heads = read.size("query", 1, default=num_heads or 1)
    if num_heads not in {None, heads}:
        raise UsageError(f"num_heads is {num_heads}, but the queries of these weights have {heads} heads; leave it out")
    sizes = {
        "dim": read.size("input_norm.weight", 0),
        "readout_dim": read.size("key_proj.weight", 0, default=heads),
        "num_heads": heads,
    }
    num_frames = read.size("temporal_posenc", 1)
    if task == "classify":
        sizes["num_classes"] = read.size("classifier.weight", 0)
        return sizes | ({"num_frames": num_frames} if protocol == "clip" else {})
    num_maps = max(1, num_frames // 2) if protocol == "clip" else 1
    sizes["output_size"] = PATCH_PIXELS * max(1, math.isqrt(read.size("query", 0) // num_maps))
    return sizes | ({"num_frames": 2 * num_maps} if protocol == "clip" else {})


class _Sizes:
    """Reads sizes off the tensors of a part, by our names.

    What is not there gives the default: `fill` then compares all names and says which are missing.
    """

    def __init__(self, state_dict: Mapping[str, Tensor], naming: Naming) -> None:
        self._state_dict = state_dict
        self._naming = naming

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return self._naming.released(name) in self._state_dict

    def size(self, name: str, axis: int, *, default: int = 1) -> int:
        """The length of a tensor along an axis."""
        tensor = self._state_dict.get(self._naming.released(name))
        return default if tensor is None or axis >= tensor.dim() or tensor.shape[axis] < 1 else tensor.shape[axis]

    def count(self, name: str) -> int:
        """How many numbered parts `name.0`, `name.1`, ... there are, at least 1."""
        pattern = re.compile(re.escape(self._naming.released(f"{name}.")) + r"(\d+)\.")
        numbers = {found[1] for key in self._state_dict if (found := pattern.match(key))}
        return max(1, len(numbers))


def describe_differences(expected: Iterable[str], given: Iterable[str]) -> str:
    """Which names are missing and which are left over, in one line; empty where there are none."""
    missing, unknown = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    clauses = [f"missing {shorten(missing)}" if missing else "", f"unknown {shorten(unknown)}" if unknown else ""]
    return "; ".join(clause for clause in clauses if clause)


def shorten(names: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
