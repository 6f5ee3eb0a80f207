"""What a probe sees of a clip: all tokens, or fewer.

The vector of a frame follows DINOv2 (arXiv 2304.07193): the CLS tokens of the layers asked for beside the mean of the
last layer's patches; where no layer has a CLS token, the means of all of them. Of a clip's frames a probe sees

    all     every one of them, as one token map with time (attentive only)
    mean    their average, which no order of frames can change
    last    the last one: what a causal module knows in the end
    frame   each on its own; the clip's answer is the mean of its frames' answers

Shapes: V videos, C clips of a video, B clips of a batch, T frames, N tokens, D channels, E width of a frame's vector,
F frames that are seen (1 or T), M = V * C * F.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.cache.request import Layers, as_names, shown
from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.recipe import counted_layers
from vfz.temporal.data.features import ArrayFeatures, Features
from vfz.temporal.data.options import LAST_LAYER, TOKEN_PARTS
from vfz.temporal.data.tokens import num_prefix_of
from vfz.temporal.data.videos import check_layers, clip_videos, parts_of

_BLOCK_BYTES = 32 * 1024 * 1024
"""Of float32 tokens that are pooled at a time; at least one frame."""
POOLS = ("all", "mean", "last", "frame")
VECTOR_POOLS = ("mean", "last", "frame")


def check_pool(pool: str, allowed: Sequence[str]) -> None:
    """Refuse a way of pooling that a probe does not have.

    Raises:
        UnknownNameError: naming those it has. UsageError: it is no text.
    """
    if not isinstance(pool, str):
        raise UsageError(f"pool is {shown(pool)}; allowed: {', '.join(allowed)}")
    if pool not in allowed:
        raise UnknownNameError("pool of this probe", pool, allowed)


def frame_tokens(layers_BTND: Sequence[Tensor], num_prefix: Sequence[int]) -> Tensor:
    """The CLS token (where there is one) and the mean of the patches of each frame of one layer: [B,T,1 or 2,D]."""
    parts = []
    if num_prefix[-1]:
        parts.append(layers_BTND[-1][:, :, :1])
    if layers_BTND[-1].shape[2] > num_prefix[-1]:
        parts.append(layers_BTND[-1][:, :, num_prefix[-1] :].mean(dim=2, keepdim=True))
    return torch.cat(parts, dim=2)


def frame_vectors(layers_BTND: Sequence[Tensor], num_prefix: Sequence[int]) -> Tensor:
    """One vector [B,T,E] of each frame; see the module's docstring.

    Args:
        layers_BTND: tokens of each layer, prefix tokens first; layers may differ in N and D.
        num_prefix: how many of each layer's tokens are prefix tokens; the first is CLS.
    """
    cls_BTD = [tokens[:, :, 0] for tokens, prefix in zip(layers_BTND, num_prefix, strict=True) if prefix]
    mean_BTD = [
        tokens[:, :, prefix:].mean(dim=2)
        for tokens, prefix in zip(layers_BTND, num_prefix, strict=True)
        if tokens.shape[2] > prefix
    ]
    has_patches = layers_BTND[-1].shape[2] > num_prefix[-1]
    return torch.cat(cls_BTD + (mean_BTD[-1:] if has_patches else []) if cls_BTD else mean_BTD, dim=2)


def clip_vectors(layers_BTND: Sequence[Tensor], num_prefix: Sequence[int], pool: str) -> Tensor:
    """The vectors [B,F,E] that a linear or kNN probe sees of each clip."""
    if pool == "last":
        return frame_vectors([tokens[:, -1:] for tokens in layers_BTND], num_prefix)
    vectors_BTE = frame_vectors(layers_BTND, num_prefix)
    return vectors_BTE.mean(dim=1, keepdim=True) if pool == "mean" else vectors_BTE


def clip_tokens(layers_BTND: Sequence[Tensor], pool: str) -> Tensor:
    """The token map that an attentive probe sees of each clip: [B,F,N,D], or [B,T,N,D] for `all`.

    Several layers stand side by side among the N.

    Raises:
        UsageError: when layers differ in channels.
    """
    dims = [tokens.shape[-1] for tokens in layers_BTND]
    if len(set(dims)) > 1:
        raise UsageError(f"layers of {', '.join(map(str, dims))} channels cannot be attended to together; give one")
    tokens_BTND = torch.cat(list(layers_BTND), dim=2) if len(layers_BTND) > 1 else layers_BTND[0]
    if pool == "mean":
        return tokens_BTND.mean(dim=1, keepdim=True)
    return tokens_BTND[:, -1:] if pool == "last" else tokens_BTND


def every_vector(features: Features, videos: Tensor, pool: str) -> Tensor:
    """The vectors [M,E] of all clips of some videos, float32 on the CPU; M = V * C * F, in this order."""
    if isinstance(features, ArrayFeatures) and features.tokens_VCTND.shape[3] == 1:
        held_VCFE = features.tokens_VCTND[videos].squeeze(3).float()
        if pool == "mean":
            held_VCFE = held_VCFE.mean(dim=2, keepdim=True)
        return (held_VCFE[:, :, -1:] if pool == "last" else held_VCFE).flatten(0, 2)
    parts = [
        clip_vectors(features.read_finite(videos_B, clips_B), features.num_prefix, pool).cpu()
        for videos_B, clips_B in features.every_clip(videos, 64)
    ]
    num_clips = features.num_clips
    by_clip = [torch.cat(parts[clip::num_clips]) for clip in range(num_clips)]
    return torch.stack(by_clip, dim=1).flatten(0, 2)


def labels_of_vectors(labels_V: Tensor, num_vectors: int) -> Tensor:
    """The class [M], or the numbers [M,K], of each of `num_vectors` vectors: as many of each video, video by video."""
    return labels_V.repeat_interleave(num_vectors // len(labels_V), dim=0)


class PooledVideos:
    """Pooled features of videos of a cache, read some frames at a time, so that a long video takes no more memory.

    Args:
        cache: opened.
        layers: which of its layers; default: the last one.
        parts: `all`, `patch` or `prefix` tokens.
        pool: what is seen of a video: `mean`, the average vector of its frames; `cls`, that of their CLS tokens alone;
            `last`, the vector of its last frame; `frame`, that of each.

    Attributes:
        layers, parts: as they are read.
        width: E.

    Raises:
        UnknownNameError: no such pool. UsageError: no such layer, part or CLS token.
    """

    def __init__(self, cache: FeatureCache, *, layers: Layers | None, parts: str, pool: str) -> None:
        check_pool(pool, (*VECTOR_POOLS, "cls"))
        if parts not in TOKEN_PARTS:
            raise UsageError(f"parts is {shown(parts)}; allowed: {', '.join(TOKEN_PARTS)}")
        chosen = counted_layers(as_names(LAST_LAYER if layers is None else layers, "layers"), tuple(cache.layers))
        check_layers(cache, chosen, "all")
        if pool == "cls" and (lacking := [layer for layer in chosen if "prefix" not in cache.layers[layer]]):
            raise UsageError(
                f"pool cls: layer {lacking[0]} of {cache.path} has no CLS token; take pool mean or frame"
                + (", or a layer that has one" if any("prefix" in found for found in cache.layers.values()) else "")
            )
        self.layers, self.parts = chosen, "prefix" if pool == "cls" else parts
        check_layers(cache, chosen, self.parts)
        self._cache, self._pool = cache, pool
        self._num_prefix = [num_prefix_of(cache, layer, self.parts) for layer in chosen]
        shapes = [cache.layers[layer] for layer in chosen]
        named = [[part for part in shape if self.parts in ("all", part)] for shape in shapes]
        dims = [next(iter(shape.values()))[1] for shape in shapes]
        cls = [dim for dim, prefix in zip(dims, self._num_prefix, strict=True) if prefix]
        self.width = sum(cls) + (dims[-1] if "patch" in named[-1] else 0) if cls else sum(dims)
        frame_bytes = sum(4 * num * dim for shape in shapes for num, dim in shape.values())
        self._num_at_once = max(1, _BLOCK_BYTES // frame_bytes)

    def of(self, video: LedgerRow) -> Iterator[PooledRows]:
        """The rows of one video: one, or with `frame` one for each frame, some at a time."""
        total_E, times = np.zeros(self.width), []
        first = video.num_frames - 1 if self._pool == "last" else 0
        for start in range(first, video.num_frames, self._num_at_once):
            frames = np.arange(start, min(start + self._num_at_once, video.num_frames))
            clip = self._cache.read(video.id, frames, self.layers, parts_of(self.parts), video.view)
            layers_BTND = [clip.expand(layer, self.parts).unsqueeze(0) for layer in self.layers]
            vectors_TE = frame_vectors(layers_BTND, self._num_prefix)[0].numpy()
            if self._pool in ("frame", "last"):
                yield PooledRows(video=video, frames=frames, pts_seconds=clip.pts_seconds, vectors_ME=vectors_TE)
            total_E += vectors_TE.sum(axis=0, dtype=np.float64)
            times.append(clip.pts_seconds)
        if self._pool in ("mean", "cls"):
            vector_ME = (total_E / video.num_frames).astype(np.float32)[None]
            all_frames = np.arange(video.num_frames)
            yield PooledRows(video=video, frames=all_frames, pts_seconds=np.concatenate(times), vectors_ME=vector_ME)


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledRows:
    """Some rows of a video.

    Attributes:
        video: its row in the ledger.
        frames, pts_seconds: the frames that were looked at and their times; [M] where each is a row of its own.
        vectors_ME: float32.
    """

    video: LedgerRow
    frames: NDArray[np.int64]
    pts_seconds: NDArray[np.float64]
    vectors_ME: NDArray[np.float32]


def to_numpy(
    cache: FeatureCache | str | Path,
    split: str,
    *,
    pool: str = "mean",
    layers: Layers | None = None,
    parts: str = "all",
    view: int = 0,
    labels: str | None = None,
) -> tuple[NDArray[np.float32], NDArray[Any], list[str]]:
    """Pooled features of a split as arrays, for scikit-learn, pandas and the like; `export_features` writes a file.

    Args:
        cache: its folder or name, or a cache that is open.
        split: which.
        pool: what a row of X is: `mean`, the average vector of all frames of a video; `cls`, that of their CLS tokens
            alone; `last`, the vector of its last frame; `frame`, that of each frame, one video after the other.
        layers: which of the cache's, side by side; default: the last one.
        parts: `all`, `patch` or `prefix` tokens.
        view: which crop.
        labels: name of a label set of the cache; of a cache that is open it is said where it is opened.

    Returns:
        X [M, E] float32, y and the video's id of each row. y is a class [M], -1 where a video has none; of label sets
        of several labels or numbers it is float32 [M, K], NaN where one is not known.

    Raises:
        UnknownNameError: no such pool, split or layer. UsageError: the split has no such videos, or no CLS token is
        there. CacheError: as `FeatureCache`.
    """
    if labels is not None and isinstance(cache, FeatureCache):
        raise UsageError(f"the cache is open; name the labels {labels!r} there: FeatureCache(path, labels={labels!r})")
    opened = cache if isinstance(cache, FeatureCache) else FeatureCache(cache, labels=labels)
    pooled = PooledVideos(opened, layers=layers, parts=parts, pool=pool)
    videos = clip_videos(opened, split, layers=pooled.layers, parts=pooled.parts, views=(view,), labelled=False)
    vectors, classes, ids = [], [], []
    for video in videos:
        for found in pooled.of(video.rows[0]):
            vectors.append(found.vectors_ME)
            classes += [-1 if video.label is None else video.label] * len(found.vectors_ME)
            ids += [video.id] * len(found.vectors_ME)
    has_classes = opened.label_set is None or opened.label_set.kind == "classes"
    y = np.array(classes, dtype=np.int64) if has_classes else opened.targets_of(ids)
    return np.concatenate(vectors), y, ids
