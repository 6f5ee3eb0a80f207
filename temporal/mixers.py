"""Layer mixers: the K cached layers of an encoder become the one token map a core reads.

The layers must have equal N and D (they come from a ViT). `last` takes the last layer and has no parameters, so a
cache that holds one layer needs nothing else. A new mixer is one class here and one line in the registry below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from vfz.pipeline.errors import UsageError
from vfz.temporal.registry import Registry


class LayerMixer(nn.Module, ABC):
    """K layers `[*, N, D]` -> one `[*, N, D]`.

    Attributes:
        dim: D, channels of every layer and of the result.
        num_layers: K.
    """

    def __init__(self, dim: int, *, num_layers: int) -> None:
        super().__init__()
        if num_layers < 1:
            raise UsageError(f"num_layers is {num_layers}; a mixer needs at least 1 layer")
        self.dim = dim
        self.num_layers = num_layers

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Mixes the layers, shallowest first.

        Args:
            layers: K tensors `[*, N, D]`.

        Raises:
            UsageError: when there are not K of them.
        """
        if len(layers) != self.num_layers:
            raise UsageError(f"the mixer got {len(layers)} layers and was built for {self.num_layers}")
        return self.mix(layers)

    @abstractmethod
    def mix(self, layers: Sequence[Tensor]) -> Tensor:
        """`forward` for a list whose length has been checked."""


class LastLayerMixer(LayerMixer):
    """The last layer as it is."""

    def mix(self, layers: Sequence[Tensor]) -> Tensor:
        """The last of `layers`, not copied."""
        return layers[-1]


MIXERS: Registry[type[LayerMixer]] = Registry("mixer")
MIXERS.register("last", LastLayerMixer)


def build_mixer(name: str, *, dim: int, num_layers: int) -> LayerMixer:
    """The mixer called `name` for `num_layers` layers of `dim` channels.

    Raises:
        UnknownNameError: when no mixer has that name.
        UsageError: when `num_layers` is below 1.
    """
    return MIXERS.get(name)(dim, num_layers=num_layers)
