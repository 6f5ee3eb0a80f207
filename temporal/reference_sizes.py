"""Sizes of the parts of a released checkpoint, read off its tensors. Depth maps are square.

What a part needs to be built; whether the tensors then fit is for `reference_names.fill` to say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vfz.pipeline.errors import UsageError
from vfz.temporal.readouts.depth import PATCH_PIXELS
from vfz.temporal.reference.mapping import CORE, MIXERS, READOUTS, Naming

# Heads of the decoder in the released readouts. They are in no tensor.
PAPER_HEADS = {"boxes": 4, "points": 8}


class Sizes:
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


def core_sizes(state_dict: Mapping[str, Tensor], name: str, num_heads: int | None) -> dict[str, Any]:
    """Arguments of `build_core` for the core called `name`."""
    read = Sizes(state_dict, CORE)
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
    read = Sizes(state_dict, MIXERS[name])
    if name == "mean":
        return {"dim": read.size("blocks.0.bn.weight", 0), "num_layers": read.count("blocks")}
    return {"dim": read.size("layer_embed", 1), "num_layers": read.size("layer_embed", 0)}


def readout_sizes(state_dict: Mapping[str, Tensor], task: str, protocol: str, num_heads: int | None) -> dict[str, int]:
    """Arguments of `build_readout` for a task and a protocol that it has.

    Raises:
        UsageError: when `num_heads` is another number than the tensors have.
    """
    read = Sizes(state_dict, READOUTS[task, protocol])
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


def _attention_sizes(read: Sizes, task: str, protocol: str, num_heads: int | None) -> dict[str, int]:
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
