"""Where the tokens of clips come from: one cache, or several of one recipe.

Reading is one copy out of mapped files into a buffer that is used again, and int8 and int4 tokens are expanded on the
device. `vfz.temporal.data.online.LiveTokens` decodes and encodes instead, behind the same call, so that training code
cannot tell.

Shapes: B clips of a batch, T frames of a clip, N tokens, D channels.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.cache.request import Layers, as_names
from vfz.pipeline.cache.tokens import TokenBatch
from vfz.pipeline.format.ledger import LedgerRow
from vfz.temporal.data.videos import TokenShapes, as_caches, parts_of


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipRequest:
    """One clip to read.

    Attributes:
        video: its row, in the view that is wanted.
        frames: [T] numbers of its frames.
        mask: [T] which of them are real; see `vfz.temporal.data.sampling.ClipFrames`.
        cache: which of the source's caches it is in.
    """

    video: LedgerRow
    frames: NDArray[np.int64]
    mask: NDArray[np.bool_]
    cache: int = 0

    @property
    def id(self) -> str:
        """The video."""
        return self.video.id

    @property
    def view(self) -> int:
        """Which crop of it."""
        return self.video.view


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipTokens:
    """Tokens that were read.

    Attributes:
        layers_BTND: float32 on the device, one new tensor per layer.
        pts_seconds_BT: presentation times (float64).
    """

    layers_BTND: list[Tensor]
    pts_seconds_BT: NDArray[np.float64]


class TokenSource(Protocol):
    """Where clips' tokens come from."""

    @property
    def num_prefix(self) -> int:
        """How many tokens of each frame are prefix tokens; they come first."""

    def read_clips(self, requests: Sequence[ClipRequest], device: torch.device) -> ClipTokens:
        """Tokens of some clips of one length on a device; may be called by several threads."""

    def pts_seconds(self, video: LedgerRow, cache: int) -> NDArray[np.float64]:
        """Presentation times [F] of a video."""


class CachedTokens:
    """Tokens read from a cache, or from several of one recipe.

    Args:
        cache: one or several.
        layers: which layers.
        parts: `all`, `patch` or `prefix`.

    Raises:
        CacheMismatchError: when the caches are of several recipes.
    """

    def __init__(self, cache: FeatureCache | Sequence[FeatureCache], *, layers: Layers, parts: str) -> None:
        self._caches, self._layers, self._part = as_caches(cache), as_names(layers, "layers"), parts
        self._parts = parts_of(parts)
        self._buffers: dict[tuple[int, int, str], TokenBatch] = {}
        self._lock = threading.Lock()

    @property
    def num_prefix(self) -> int:
        """See `TokenSource`."""
        return num_prefix_of(self._caches[0], self._layers[0], self._part)

    def pts_seconds(self, video: LedgerRow, cache: int) -> NDArray[np.float64]:
        """See `TokenSource`."""
        return self._caches[cache].pts_seconds(video.id, video.view)

    def read_clips(self, requests: Sequence[ClipRequest], device: torch.device) -> ClipTokens:
        """See `TokenSource`."""
        places: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(request.cache, []).append(place)
        with self._lock:  # the buffers are shared
            read = [
                self._read(cache, [requests[place] for place in of_cache], device) for cache, of_cache in places.items()
            ]
        if len(read) == 1:
            return read[0]
        order = np.argsort(np.concatenate(list(places.values())))
        layers = zip(*(tokens.layers_BTND for tokens in read), strict=True)
        return ClipTokens(
            layers_BTND=[torch.cat(layer)[torch.from_numpy(order).to(device)] for layer in layers],
            pts_seconds_BT=np.concatenate([tokens.pts_seconds_BT for tokens in read])[order],
        )

    def _read(self, cache: int, requests: Sequence[ClipRequest], device: torch.device) -> ClipTokens:
        out = self._buffer(cache, len(requests), len(requests[0].frames), device)
        batch = self._caches[cache].read_batch(requests, self._layers, self._parts, out=out)
        tokens = [batch.tokens(layer, self._part, device) for layer in self._layers]
        if device.type == "cuda":
            # The copies out of the page-locked buffer go on behind our back; it is filled again by the next call.
            torch.cuda.current_stream(device).synchronize()
        return ClipTokens(layers_BTND=tokens, pts_seconds_BT=batch.pts_seconds.copy())

    def _buffer(self, cache: int, num_clips: int, num_frames: int, device: torch.device) -> TokenBatch:
        """Room for as many clips or more."""
        key = (cache, num_frames, device.type)
        if key not in self._buffers or len(self._buffers[key].frame_numbers) < num_clips:
            self._buffers[key] = self._caches[cache].new_batch(
                num_clips, num_frames, self._layers, self._parts, pin_memory=device.type == "cuda"
            )
        return self._buffers[key]


def num_prefix_of(cache: TokenShapes, layer: str, parts: str) -> int:
    """How many of a frame's tokens are prefix tokens."""
    return 0 if parts == "patch" else cache.layers[layer].get("prefix", (0, 0))[0]
