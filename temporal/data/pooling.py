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

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.cache.request import Layers, as_names
from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.pipeline.recipe import counted_layers
from vfz.temporal.data.features import ArrayFeatures, Features
from vfz.temporal.data.tokens import CachedTokens, ClipRequest, num_prefix_of
from vfz.temporal.data.videos import check_layers, clip_videos

POOLS = ("all", "mean", "last", "frame")
VECTOR_POOLS = ("mean", "last", "frame")


def check_pool(pool: str, allowed: Sequence[str]) -> None:
    """Refuse a way of pooling that a probe does not have.

    Raises:
        UnknownNameError: naming those it has.
    """
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


def to_numpy(
    cache: FeatureCache | str | Path,
    split: str,
    *,
    pool: str = "mean",
    layers: Layers | None = None,
    view: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str]]:
    """Pooled features of a split as arrays, for scikit-learn, pandas and the like; one video is read at a time.

    Args:
        cache: its folder, or a cache that is open.
        split: which.
        pool: what a row of X is: `mean`, the average vector of all frames of a video; `last`, that of its last frame;
            `frame`, that of each frame, one video after the other.
        layers: which of the cache's; default: the last one.
        view: which crop.

    Returns:
        X [M, E] float32, y [M] (-1 where a video has no label) and the video's id of each row.

    Raises:
        UnknownNameError: no such pool, split or layer. UsageError: the split has no such videos. CacheError: as
        `FeatureCache`.
    """
    check_pool(pool, VECTOR_POOLS)
    opened = cache if isinstance(cache, FeatureCache) else FeatureCache(cache)
    chosen = counted_layers(as_names(("-1",) if layers is None else layers, "layers"), tuple(opened.layers))
    check_layers(opened, chosen, "all")
    rows = [one.rows[0] for one in clip_videos(opened, split, layers=chosen, views=(view,), labelled=False)]
    tokens = CachedTokens(opened, layers=chosen, parts="all")
    num_prefix = [num_prefix_of(opened, layer, "all") for layer in chosen]
    vectors, labels, ids = [], [], []
    for row in rows:
        frames = np.arange(row.num_frames) if pool != "last" else np.array([row.num_frames - 1])
        request = ClipRequest(video=row, frames=frames, mask=np.ones(len(frames), dtype=bool))
        clip = tokens.read_clips([request], torch.device("cpu"))
        of_video = clip_vectors(clip.layers_BTND, num_prefix, pool)[0].numpy()
        vectors.append(of_video)
        labels += [-1 if row.label is None else row.label] * len(of_video)
        ids += [row.id] * len(of_video)
    return np.concatenate(vectors), np.array(labels, dtype=np.int64), ids
