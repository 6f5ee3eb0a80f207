"""Tokens from the encoder itself, batch by batch: the slow way that a cache replaces, behind the same call.

It follows a cache for which videos, frames and recipe to use, and takes nothing else from it, so that training with and
without the cache can be compared: the same clips in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.encoder.layers import LayerTokens
from vfz.pipeline.extraction.live_encoder import LiveEncoder
from vfz.pipeline.format.ledger import LedgerRow
from vfz.temporal.data.tokens import ClipRequest, ClipTokens, num_prefix_of


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
        self._cache, self._layers, self._parts = cache, tuple(layers), parts

    @property
    def num_prefix(self) -> int:
        """See `vfz.temporal.data.tokens.TokenSource`."""
        return num_prefix_of(self._cache, self._layers[0], self._parts)

    def pts_seconds(self, video: LedgerRow, cache: int) -> NDArray[np.float64]:  # noqa: ARG002 - there is one cache
        """See `vfz.temporal.data.tokens.TokenSource`."""
        return self._cache.pts_seconds(video.id, video.view)

    def read_clips(self, requests: Sequence[ClipRequest], device: torch.device) -> ClipTokens:
        """See `vfz.temporal.data.tokens.TokenSource`."""
        clips = [self._live.pixels(request.video, request.frames) for request in requests]
        tokens = self._live.encode(torch.cat(clips))
        selected = [self._select(tokens[layer]) for layer in self._layers]
        times = [self._cache.pts_seconds(request.id, request.view)[request.frames] for request in requests]
        return ClipTokens(
            layers_BTND=[tokens_FND.to(device).float().unflatten(0, (len(requests), -1)) for tokens_FND in selected],
            pts_seconds_BT=np.stack(times),
        )

    def _select(self, tokens: LayerTokens) -> Tensor:
        prefix, patch = tokens.prefix_BPD, tokens.patch_BND
        if self._parts == "patch" or prefix is None:
            return patch
        return prefix if self._parts == "prefix" else torch.cat([prefix, patch], dim=1)
