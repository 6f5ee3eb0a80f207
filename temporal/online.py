"""Tokens from the encoder itself, batch by batch: the slow way that a cache replaces, behind the same call.

It follows a cache for which videos, frames and recipe to use, and takes nothing else from it, so that training with and
without the cache can be compared: the same clips in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vfz.pipeline.cache import FeatureCache
from vfz.pipeline.encoder import LayerTokens
from vfz.pipeline.live import LiveEncoder
from vfz.temporal.clips import ClipRequest


class LiveTokens:
    """A `TokenSource` that decodes and encodes every clip anew."""

    def __init__(
        self,
        cache: FeatureCache,
        *,
        layers: Sequence[str],
        parts: str,
        device: torch.device,
        root: Path | None = None,
        weights: Path | None = None,
    ) -> None:
        self._live = LiveEncoder(cache, layers=layers, device=device, root=root, weights=weights)
        self._layers, self._parts = tuple(layers), parts

    def read_clips(self, requests: Sequence[ClipRequest], device: torch.device) -> list[Tensor]:
        """See `vfz.temporal.clips.TokenSource`."""
        clips = [self._live.pixels(request.video, request.frames) for request in requests]
        tokens = self._live.encode(torch.cat(clips))
        selected = [self._select(tokens[layer]) for layer in self._layers]
        return [tokens_FND.to(device).float().unflatten(0, (len(requests), -1)) for tokens_FND in selected]

    def _select(self, tokens: LayerTokens) -> Tensor:
        prefix, patch = tokens.prefix_BPD, tokens.patch_BND
        if self._parts == "patch" or prefix is None:
            return patch
        return prefix if self._parts == "prefix" else torch.cat([prefix, patch], dim=1)
