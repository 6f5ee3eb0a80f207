"""A temporal model: layer mixer -> (Linear) -> recurrent core -> readout, built from one config.

The Linear in front is there only where the core's width differs from the encoder's; the paper has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vfz.temporal.cores import build_core
from vfz.temporal.mixers import build_mixer
from vfz.temporal.readouts import build_readout


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What it takes to build the model again.

    Attributes:
        encoder_dim: channels of the cached tokens.
        encoder_layers: cached layers given to the mixer.
        core_dim: width of the core.
        num_frames: clip length, which the `clip` protocol's time embedding has.
    """

    encoder_dim: int
    encoder_layers: tuple[str, ...]
    parts: str
    mixer: str
    core: str
    core_dim: int
    num_layers: int
    num_heads: int | None
    task: str
    protocol: str
    readout_dim: int
    readout_heads: int
    num_classes: int
    num_frames: int

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON values."""
        return dataclasses.asdict(self) | {"encoder_layers": list(self.encoder_layers)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`."""
        return cls(**(values | {"encoder_layers": tuple(values["encoder_layers"])}))


class TemporalModel(nn.Module):
    """Mixer, core and readout of one config."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.mixer = build_mixer(config.mixer, dim=config.encoder_dim, num_layers=len(config.encoder_layers))
        same = config.core_dim == config.encoder_dim
        self.projection: nn.Module = nn.Identity() if same else nn.Linear(config.encoder_dim, config.core_dim)
        self.core = build_core(
            config.core, dim=config.core_dim, num_layers=config.num_layers, num_heads=config.num_heads
        )
        self.readout = build_readout(
            config.task,
            dim=config.core_dim,
            protocol=config.protocol,
            num_classes=config.num_classes,
            readout_dim=config.readout_dim,
            num_heads=config.readout_heads,
            num_frames=config.num_frames,
        )

    def features(self, layers_BTND: Sequence[Tensor]) -> Tensor:
        """What the core makes of the tokens [B,T,N,D] of each layer: [B,T,N,core_dim]."""
        y_BTND, _ = self.core(self.projection(self.mixer(list(layers_BTND))))
        features_BTND: Tensor = y_BTND
        return features_BTND

    def forward(self, layers_BTND: Sequence[Tensor]) -> Tensor:
        """The readout's answer; classify: [B,T,classes] in streaming, [B,classes] in clip protocol."""
        answer: Tensor = self.readout(self.features(layers_BTND))
        return answer

    def class_logits(self, layers_BTND: Sequence[Tensor]) -> Tensor:
        """Logits [B,classes] of each clip: in streaming protocol those of its last frame."""
        features_BTND = self.features(layers_BTND)
        if self.config.protocol == "clip":
            logits_BK: Tensor = self.readout(features_BTND)
            return logits_BK
        last_BK: Tensor = self.readout(features_BTND[:, -1:])[:, -1]  # a streaming readout sees one frame at a time
        return last_BK

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed, beside the one-dimensional ones."""
        return {name for name, parameter in self.named_parameters() if getattr(parameter, "_no_weight_decay", False)}
