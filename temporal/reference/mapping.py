"""How released checkpoints name the weights of mixers, cores and readouts, and a loader that accounts for every name.

The checkpoints of arXiv 2605.19137 come from one wrapper class per task and protocol, so the same part lies under other
names in each. Here one table says where; nothing is guessed, and a name that is in no table is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from vfz.pipeline.errors import CheckpointError

ModuleT = TypeVar("ModuleT", bound=nn.Module)

MODEL, LOSS = "model.", "loss_fn."
"""In front of the weights of the model, and of the loss."""

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


CORE = Naming(prefix=f"{MODEL}sequential_core.")

MIXERS = {
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


READOUTS = {
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


def describe_differences(expected: Iterable[str], given: Iterable[str]) -> str:
    """Which names are missing and which are left over, in one line; empty where there are none."""
    missing, unknown = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    clauses = [f"missing {shorten(missing)}" if missing else "", f"unknown {shorten(unknown)}" if unknown else ""]
    return "; ".join(clause for clause in clauses if clause)


def shorten(names: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


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
