"""From a cache (or the live encoder) to batches of clips.

A clip is T frames of one video. Which clips make up a batch depends on the seed and the epoch alone, so that a resumed
run, or one with other hardware, sees the same batches. Reading a clip copies its frames out of mapped files and costs
little; `LiveTokens` decodes and encodes instead, behind the same two calls, so that training code cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vfz.pipeline.cache import FeatureCache, TokenClip
from vfz.pipeline.errors import RunError, UsageError
from vfz.pipeline.ledger import LedgerRow


@dataclass(frozen=True, kw_only=True)
class ClipRule:
    """Which frames of a video make a clip: `num_frames` of them, `stride` cached frames apart."""

    num_frames: int
    stride: int = 1

    def frames(self, num_video_frames: int, *, position: float = 0.5) -> np.ndarray:
        """Frame numbers [T] of a clip; a video that is too short repeats its last frame, as the paper does.

        Args:
            num_video_frames: cached frames of the video.
            position: where the clip lies, 0 at the start, 1 at the end, 0.5 centred.
        """
        span = (self.num_frames - 1) * self.stride + 1
        room = max(0, num_video_frames - span)
        start = min(room, int(position * (room + 1)))
        return np.minimum(start + np.arange(self.num_frames) * self.stride, num_video_frames - 1)


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """One clip to read: a video's row and frame numbers [T]."""

    video: LedgerRow
    frames: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ClipBatch:
    """A batch on the device.

    Attributes:
        layers_BTND: float32 tokens, one tensor per encoder layer.
        labels_B: class indices (int64).
        indices_B: positions of the clips' videos in the loader's list (int64, on the CPU).
        video_ids: for messages.
    """

    layers_BTND: list[Tensor]
    labels_B: Tensor
    indices_B: Tensor
    video_ids: tuple[str, ...]


class TokenSource(Protocol):
    """Where clips' tokens come from."""

    def read_clips(self, requests: Sequence[ClipRequest]) -> list[Tensor]:
        """Tokens [B,T,N,D] of the requested clips, one tensor per layer, in the stored dtype, on the CPU or device."""


class CachedTokens:
    """Tokens read from a cache."""

    def __init__(self, cache: FeatureCache, *, layers: Sequence[str], parts: str) -> None:
        self._cache, self._layers, self._parts = cache, tuple(layers), parts

    def read_clips(self, requests: Sequence[ClipRequest]) -> list[Tensor]:
        """See `TokenSource`."""
        wanted = None if self._parts == "all" else (self._parts,)
        clips_B = [
            self._cache.read(
                request.video.id, frames=request.frames, layers=self._layers, parts=wanted, view=request.video.view
            )
            for request in requests
        ]
        return [torch.from_numpy(np.stack([self._join(clip, layer) for clip in clips_B])) for layer in self._layers]

    def _join(self, clip: TokenClip, layer: str) -> np.ndarray:
        """Stored tokens [T,N,D], prefix tokens in front of patch tokens."""
        parts = [clip.payloads[layer, part] for part in ("prefix", "patch") if (layer, part) in clip.payloads]
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def labelled_videos(cache: FeatureCache, split: str) -> list[LedgerRow]:
    """The videos of a split that are in the cache and have a label, in the order of the cache.

    Raises:
        UsageError: when there are none.
    """
    videos = [row for row in cache.ok_videos(split) if row.label is not None]
    if not videos:
        splits = sorted({row.split for row in cache.ok_videos() if row.label is not None})
        raise UsageError(
            f"split {split!r} has no labelled video in {cache.path}; splits with some: {', '.join(splits) or 'none'}"
        )
    return videos


def choose_eval_split(cache: FeatureCache, asked: str | None) -> str:
    """`asked`, else `val` where the cache has one, else `test`."""
    if asked is not None:
        return asked
    present = {row.split for row in cache.ok_videos()}
    for split in ("val", "validation", "test"):
        if split in present:
            return split
    raise UsageError(
        f"{cache.path} has no val or test split (it has {', '.join(sorted(present))}); name one with --eval-split"
    )


def check_parts(cache: FeatureCache, layers: Sequence[str], parts: str) -> tuple[int, int]:
    """Tokens per frame and channels of the layers, once they are known to fit each other.

    Raises:
        UsageError: when a layer is not cached, has no prefix tokens, or layers differ in shape.
    """
    shapes = set()
    for layer in layers:
        if layer not in cache.layers:
            raise UsageError(f"layer {layer!r} is not in {cache.path}; it has {', '.join(cache.layers)}")
        counts = {part: tuple(shape) for part, shape in cache.layers[layer].items()}
        if parts != "all" and parts not in counts:
            raise UsageError(f"layer {layer!r} has no {parts} tokens; it has {', '.join(counts)}")
        used = counts if parts == "all" else {parts: counts[parts]}
        shapes.add((sum(num for num, _ in used.values()), next(iter(used.values()))[1]))
    if len(shapes) > 1:
        raise UsageError(f"layers {', '.join(layers)} differ in shape {sorted(shapes)}; use one of them, or equal ones")
    return shapes.pop()


class ClipLoader:
    """Batches of clips of some videos, in an order that depends on seed and epoch only."""

    def __init__(
        self,
        source: TokenSource,
        videos: Sequence[LedgerRow],
        *,
        rule: ClipRule,
        batch_size: int,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self._source, self._videos, self._rule = source, list(videos), rule
        self._batch_size, self._device, self._seed = batch_size, device, seed

    @property
    def num_clips(self) -> int:
        """Clips in an epoch."""
        return len(self._videos)

    @property
    def num_batches(self) -> int:
        """Batches in an epoch; the last may be smaller."""
        return -(-len(self._videos) // self._batch_size)

    def training_epoch(self, epoch: int) -> Iterator[ClipBatch]:
        """Every video once, shuffled, each clip at a random position."""
        generator = np.random.default_rng([self._seed, epoch])
        order = generator.permutation(len(self._videos))
        return self._batches(order, positions=generator.random(len(self._videos)))

    def shuffled(self, epoch: int) -> Iterator[ClipBatch]:
        """Every video once, shuffled, each clip centred."""
        return self._batches(np.random.default_rng([self._seed, epoch]).permutation(len(self._videos)))

    def in_order(self) -> Iterator[ClipBatch]:
        """Every video once, in the cache's order, each clip centred."""
        return self._batches(np.arange(len(self._videos)))

    def _batches(self, order: np.ndarray, positions: np.ndarray | None = None) -> Iterator[ClipBatch]:
        for start in range(0, len(order), self._batch_size):
            indices = order[start : start + self._batch_size]
            yield self._load(indices, np.full(len(indices), 0.5) if positions is None else positions[indices])

    def _load(self, indices: np.ndarray, positions: np.ndarray) -> ClipBatch:
        videos = [self._videos[i] for i in indices]
        requests = [
            ClipRequest(video=row, frames=self._rule.frames(row.num_frames, position=float(position)))
            for row, position in zip(videos, positions, strict=True)
        ]
        layers = [tokens.to(self._device, non_blocking=True).float() for tokens in self._source.read_clips(requests)]
        labels = [row.label for row in videos]
        if None in labels:
            raise RunError("a video without a label was asked for; use labelled_videos() to choose them")
        return ClipBatch(
            layers_BTND=layers,
            labels_B=torch.tensor(labels, dtype=torch.int64, device=self._device),
            indices_B=torch.from_numpy(np.asarray(indices, dtype=np.int64)),
            video_ids=tuple(row.id for row in videos),
        )
