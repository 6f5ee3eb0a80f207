"""A temporal model: layer mixer -> (Linear) -> core -> readout, built from one config.

The Linear in front is there only where the core's width differs from the encoder's; the paper has none.

Shape suffixes: B clips, T frames, N tokens of a frame, D channels of the encoder, E channels of the core.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vfz.temporal.cores import build_core
from vfz.temporal.mixers import build_mixer
from vfz.temporal.readouts import build_readout


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that is needed to build the model again.

    Attributes:
        encoder_dim: D, channels of the cached tokens.
        encoder_layers: cached layers given to the mixer, shallowest first.
        parts: which tokens those are: `all`, `patch` or `prefix`.
        num_prefix: how many of a frame's N tokens are prefix tokens; they come first.
        core_dim: E, width of the core.
        core_options: what the core takes besides (`dropout`, `drop_path`, `window`), where not its own defaults.
        task: name of the readout.
        readout: sizes of the readout, as `build_readout` takes them.
    """

    encoder_dim: int
    encoder_layers: tuple[str, ...]
    parts: str
    num_prefix: int
    mixer: str
    core: str
    core_dim: int
    num_layers: int
    num_heads: int | None
    core_options: Mapping[str, Any] = field(default_factory=dict)
    task: str
    protocol: str
    readout: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON values."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return values | {
            "encoder_layers": list(self.encoder_layers),
            "core_options": dict(self.core_options),
            "readout": dict(self.readout),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`."""
        return cls(**(values | {"encoder_layers": tuple(values["encoder_layers"])}))


class TemporalModel(nn.Module):
    """Mixer, core and readout of one config.

    Args:
        config: what to build.
        checkpointing: see `build_core`; no part of the config, since it changes no number.

    Raises:
        UnknownNameError: for a mixer, core or task that is not there. UsageError: for sizes that do not fit.
    """

    def __init__(self, config: ModelConfig, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.mixer = build_mixer(
            config.mixer, dim=config.encoder_dim, num_layers=len(config.encoder_layers), num_prefix=config.num_prefix
        )
        same = config.core_dim == config.encoder_dim
        self.projection: nn.Module = nn.Identity() if same else nn.Linear(config.encoder_dim, config.core_dim)
        self.core = build_core(
            config.core,
            dim=config.core_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            checkpointing=checkpointing,
            **config.core_options,
        )
        self.readout = build_readout(config.task, dim=config.core_dim, protocol=config.protocol, **config.readout)

    def features(self, layers_BTND: Sequence[Tensor]) -> Tensor:
        """What the core makes of the tokens [B,T,N,D] of each layer: [B,T,N,E]."""
        y_BTNE, _ = self.core(self.projection(self.mixer(list(layers_BTND))))
        features_BTNE: Tensor = y_BTNE
        return features_BTNE

    def forward(
        self, layers_BTND: Sequence[Tensor], *, last_frame_only: bool = False, **inputs: Tensor
    ) -> Tensor | dict[str, Tensor]:
        """The readout's answer to clips.

        Args:
            layers_BTND: tokens of each of the config's layers.
            last_frame_only: streaming: ask the readout about the last frame only (T = 1 in the answer).
            **inputs: what the readout needs beside the tokens, by name (boxes: `init_box_cxcywh`; points: `query_xy`,
                `query_frame`).
        """
        features_BTNE = self.features(layers_BTND)
        answer: Tensor | dict[str, Tensor] = self.readout(
            features_BTNE[:, -1:] if last_frame_only else features_BTNE, **inputs
        )
        return answer

    def step(self, layers_BND: Sequence[Tensor], state: Any = None) -> tuple[Tensor, Any]:
        """One frame of a stream: what the core makes of its tokens, and the state for the next frame.

        Args:
            layers_BND: tokens [B,N,D] of each layer.
            state: what the call for the frame before returned; None at the first frame.

        Returns:
            The core's output [B,N,E] and the state. A streaming readout answers it as a clip of one frame:
            `model.readout(output.unsqueeze(1), **inputs)`.
        """
        output_BNE, state = self.core.step(self.projection(self.mixer(list(layers_BND))), state)
        return output_BNE, state

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed, beside the one-dimensional ones."""
        return {name for name, parameter in self.named_parameters() if getattr(parameter, "_no_weight_decay", False)}
