"""Clips to be answered for: of the videos of a cache, or of new ones that are decoded and encoded as the cache was.

Both give the same batches: the clips of a video follow each other, in every view from its start to its end. A video
that has no tokens comes with the reason instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.pipeline.files import text_of_name
from vfz.pipeline.format.ledger import LedgerRow
from vfz.temporal.data.loader import ClipBatch, ClipLoader
from vfz.temporal.data.sampling import ClipFrames, ClipRule
from vfz.temporal.data.targets import FrameTargets
from vfz.temporal.data.tokens import CachedTokens
from vfz.temporal.data.videos import ClipVideo, check_layers, clip_videos, parts_of
from vfz.temporal.prediction.options import PredictOptions
from vfz.temporal.prediction.predictors import Predictor, check_new_videos


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """A video that nothing can be said of, and why."""

    video: str
    error: str


class CachedClips:
    """The clips of a cache's videos, in batches that cross videos.

    Args:
        cache: of the predictor's recipe.
        predictor: says which tokens and clips.
        split: only of its videos; None: of all.

    Attributes:
        num_videos: how many there are, answered for or not.
        whole_videos: whether a batch is all clips of one video.

    Raises:
        CacheMismatchError: a cache of another recipe. UsageError: it has not the layers, or no such split.
    """

    whole_videos = False

    def __init__(
        self, cache: FeatureCache, predictor: Predictor, options: PredictOptions, device: torch.device
    ) -> None:
        predictor.check(cache)
        check_layers(cache, predictor.layers, predictor.parts)
        if missing := [view for view in predictor.views if view not in cache.views]:
            views = ", ".join(map(str, cache.views))
            raise UsageError(f"view {missing[0]} is not in {cache.path}; it has the views {views}")
        if options.split is not None and options.split not in cache.splits:
            raise UnknownNameError("split", options.split, cache.splits)
        self._cache, self._predictor, self._options, self._device = cache, predictor, options, device
        splits = cache.splits if options.split is None else (options.split,)
        self._planned = [row for row in cache.videos if row.split in splits and row.view == predictor.views[0]]
        self._videos = [video for split in splits for video in self._readable(split)]
        self.num_videos = len(self._planned)

    def __iter__(self) -> Iterator[ClipBatch | Unanswered]:
        """What can be read, in the order of the cache, then what cannot."""
        predictor = self._predictor
        if self._videos:
            loader = ClipLoader(
                CachedTokens(self._cache, layers=predictor.layers, parts=predictor.parts),
                self._videos,
                rule=predictor.rule,
                batch_size=self._options.batch_size,
                device=self._device,
                targets=self._targets(),
            )
            yield from loader.in_order(num_segments=predictor.segments, all_views=len(predictor.views) > 1)
        answered = {video.id for video in self._videos}
        for row in self._planned:
            if row.id not in answered:
                yield Unanswered(video=row.id, error=self._why(row))

    def _targets(self) -> FrameTargets | None:
        """The truth that the predictor starts from."""
        options, task = self._options, self._predictor.task
        if self._predictor.starts_from:
            return FrameTargets(self._cache, task=task, device=self._device, targets=options.targets)
        if options.targets is not None:
            raise UsageError(
                f"--targets is for boxes and points, {self._predictor.path} is of task {task}; leave it out"
            )
        return None

    def _readable(self, split: str) -> list[ClipVideo]:
        predictor = self._predictor
        parts = parts_of(predictor.parts)
        if not self._cache.ok_videos(split, view=predictor.views[0], layers=predictor.layers, parts=parts):
            return []
        found = clip_videos(self._cache, split, layers=predictor.layers, parts=predictor.parts, views=predictor.views)
        return [one for one in found if len(one.rows) == len(predictor.views) or not predictor.needs_all_views]

    def _why(self, row: LedgerRow) -> str:
        if row.status != "ok":
            return f"{row.status} in the cache{': ' + row.reason if row.reason else ''}"
        views = ", ".join(map(str, self._predictor.views))
        return f"the cache lacks tokens of it: layers {', '.join(self._predictor.layers)}, views {views}"


class NewClips:
    """The clips of videos that are decoded and encoded for it.

    Args:
        files: the videos; each one's id is its path.
        predictor: says by which recipe, and which tokens and clips.

    Attributes:
        num_videos: how many there are.
        whole_videos: see `CachedClips`.

    Raises:
        as `vfz.pipeline.extraction.new_videos.NewVideos`.
    """

    whole_videos = True

    def __init__(
        self, files: Sequence[Path], predictor: Predictor, options: PredictOptions, device: torch.device
    ) -> None:
        from vfz.pipeline.extraction.new_videos import NewVideos  # and with it timm, which a cache has no need of

        check_new_videos(predictor.task, asked=predictor.path)
        cache = predictor.own_cache(options.cache)
        request = predictor.request or (None if cache is None else cache.provenance.get("encoder_request"))
        self._predictor = predictor
        self._encoder = NewVideos(
            predictor.recipe,
            request=request,
            parts=predictor.parts_of_layers(cache),
            views=predictor.views,
            device=device,
            made=str(predictor.path),
            weights=options.weights,
            calibrations=None if cache is None else cache.calibrations,
            num_workers=options.decode_workers,
            time_limit_seconds=options.video_timeout,
        )
        self._videos = [(text_of_name(str(path)), VideoSource(path=path)) for path in files]
        self.num_videos = len(files)

    def __iter__(self) -> Iterator[ClipBatch | Unanswered]:
        """Video by video, in their order."""
        predictor = self._predictor
        for place, video in enumerate(self._encoder.encode(self._videos, self._wanted)):
            if video.error:
                yield Unanswered(video=video.id, error=video.error)
                continue
            clips = clips_of(video.pts_seconds, predictor.rule, predictor.segments) * len(predictor.views)
            at_KST = torch.from_numpy(np.stack([np.searchsorted(video.numbers, clip.numbers) for clip in clips])).view(
                len(predictor.views), predictor.segments, -1
            )
            layers_BTND = [_clips(video.layers_KnND[layer], at_KST) for layer in predictor.layers]
            device = layers_BTND[0].device
            yield ClipBatch(
                layers_BTND=layers_BTND,
                labels_B=torch.full((len(clips),), -1, device=device),
                indices_B=torch.full((len(clips),), place),
                video_ids=(video.id,) * len(clips),
                frame_mask_BT=torch.from_numpy(np.stack([clip.mask for clip in clips])).to(device),
                pts_seconds_BT=torch.from_numpy(np.stack([video.pts_seconds[clip.numbers] for clip in clips])),
            )

    def _wanted(self, pts_seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        clips = clips_of(pts_seconds, self._predictor.rule, self._predictor.segments)
        return np.unique(np.concatenate([clip.numbers for clip in clips]))


def clips_of(pts_seconds: NDArray[np.float64], rule: ClipRule, num_segments: int) -> list[ClipFrames]:
    """The clips of one view of a video, from its start to its end; one alone is centred."""
    positions = np.linspace(0, 1, num_segments) if num_segments > 1 else np.array([0.5])
    return [rule.choose(len(pts_seconds), position=float(at), pts_seconds=pts_seconds) for at in positions]


def _clips(tokens_KnND: Tensor, at_KST: Tensor) -> Tensor:
    """[K*S,T,N,D] of the frames of each view at some places."""
    picked = [tokens_nND[at_ST.to(tokens_nND.device)] for tokens_nND, at_ST in zip(tokens_KnND, at_KST, strict=True)]
    return torch.cat(picked)
