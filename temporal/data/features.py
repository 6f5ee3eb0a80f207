"""What a probe is fitted on and asked about: the token maps of videos, wherever they lie.

A video has C clips (temporal segments times spatial views); a probe's answer for it is the mean of its clips' answers.
`Features` reads any clips of any videos at random, which is cheap for mapped files and tensors, so the order of videos
is the probe's own affair. Three kinds: arrays in memory (here), a cache (`CacheFeatures`), and a folder of what a
temporal module made of a cache (`vfz.temporal.data.derived`).

Shapes: V videos, B videos of a batch, C clips of a video, T frames, N tokens (prefix tokens first), D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import RunError, UsageError
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.tokens import CachedTokens, ClipRequest, num_prefix_of
from vfz.temporal.data.videos import clip_videos

HELD_BYTES = 2**31
"""Token maps up to this size are kept in memory instead of being read again in every epoch."""


class Features(ABC):
    """Token maps of videos.

    Attributes:
        ids: of the V videos, for messages and records.
        labels_V: their classes (int64, on the CPU); None where they are not known.
        num_clips: C.
        num_prefix: of each layer, how many of its N tokens are prefix tokens.
        device: where what is read lies.
    """

    ids: Sequence[str]
    labels_V: Tensor | None
    num_clips: int
    num_prefix: tuple[int, ...]
    device: torch.device

    @abstractmethod
    def read(self, videos_B: Tensor, clips_B: Tensor) -> list[Tensor]:
        """Float32 tokens [B,T,N,D] of a clip of each video, on the device, one tensor per layer.

        Args:
            videos_B: positions among the V videos (int64, on the CPU).
            clips_B: which of its C clips, each.
        """

    def __len__(self) -> int:
        return len(self.ids)

    def read_finite(self, videos_B: Tensor, clips_B: Tensor) -> list[Tensor]:
        """As `read`.

        Raises:
            RunError: when a token is NaN or infinite; names the video.
        """
        layers_BTND = self.read(videos_B, clips_B)
        for tokens_BTND in layers_BTND:
            # A sum is finite only if all of its terms are, and costs less than to look at each of them.
            finite_B = tokens_BTND.flatten(1).sum(dim=1, dtype=torch.float32).isfinite()
            if not finite_B.all() and not (each_B := tokens_BTND.isfinite().flatten(1).all(dim=1)).all():
                video = self.ids[int(videos_B[(~each_B).cpu()][0])]
                raise RunError(
                    f"features of video {video!r} are not finite ({int((~each_B).sum())} such in a batch of "
                    f"{len(videos_B)}); leave it out, or extract it again"
                )
        return layers_BTND

    def every_clip(self, videos_V: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (positions of videos, clips) that go over every clip of some videos, a clip number at a time."""
        for videos_B in videos_V.split(batch_size):
            for clip in range(self.num_clips):
                yield videos_B, torch.full_like(videos_B, clip)

    def frame_shapes(self) -> list[torch.Size]:
        """[T, N, D] of each layer; reads one clip."""
        zero = torch.zeros(1, dtype=torch.int64)
        return [tokens_BTND.shape[1:] for tokens_BTND in self.read(zero, zero)]

    def subset(self, videos_V: Tensor) -> Features:
        """Some of the videos, in the order given."""
        return SomeFeatures(self, videos_V)

    def with_labels(self, labels_V: Tensor) -> Features:
        """The same videos with other class numbers."""
        chosen = SomeFeatures(self, torch.arange(len(self)))
        chosen.labels_V = labels_V
        return chosen


class SomeFeatures(Features):
    """Some videos of other features."""

    def __init__(self, features: Features, videos_V: Tensor) -> None:
        self._features, self._videos_V = features, videos_V
        self.ids = [features.ids[int(video)] for video in videos_V]
        self.labels_V = None if features.labels_V is None else features.labels_V[videos_V]
        self.num_clips, self.num_prefix, self.device = features.num_clips, features.num_prefix, features.device

    def read(self, videos_B: Tensor, clips_B: Tensor) -> list[Tensor]:
        """See `Features`."""
        return self._features.read(self._videos_V[videos_B], clips_B)


class ArrayFeatures(Features):
    """Token maps in memory, of one layer.

    Args:
        tokens_VCTND: of any floating dtype; clips are converted and moved as they are read.
        labels_V: see `Features`.
        ids: default: the positions.
        num_prefix: prefix tokens among the N.
        device: where to.
    """

    def __init__(
        self,
        tokens_VCTND: Tensor,
        labels_V: Tensor | None,
        *,
        ids: Sequence[str] | None = None,
        num_prefix: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.tokens_VCTND, self.labels_V = tokens_VCTND, labels_V
        self.ids = [str(video) for video in range(len(tokens_VCTND))] if ids is None else ids
        self.num_clips, self.num_prefix = tokens_VCTND.shape[1], (num_prefix,)
        self.device = device or tokens_VCTND.device

    def read(self, videos_B: Tensor, clips_B: Tensor) -> list[Tensor]:
        """See `Features`."""
        where = self.tokens_VCTND.device
        return [self.tokens_VCTND[videos_B.to(where), clips_B.to(where)].to(self.device, torch.float32)]


class CacheFeatures(Features):
    """Clips of cached videos.

    Args:
        cache: where they lie.
        rows_VK: for each video its row in each of K views.
        layers: which layers.
        parts: `all`, `patch` or `prefix`.
        rule: which frames make a clip.
        num_segments: clips of each view, evenly spaced from start to end, one alone centred; C = K * num_segments.
        device: where to.
    """

    def __init__(
        self,
        cache: FeatureCache,
        rows_VK: Sequence[Sequence[LedgerRow]],
        *,
        layers: Sequence[str],
        parts: str,
        rule: ClipRule,
        num_segments: int,
        device: torch.device,
    ) -> None:
        self.ids = [rows_K[0].id for rows_K in rows_VK]
        labels = [rows_K[0].label for rows_K in rows_VK]
        self.labels_V = torch.tensor([-1 if label is None else label for label in labels], dtype=torch.int64)
        self.num_clips = num_segments * len(rows_VK[0])
        self.num_prefix = tuple(num_prefix_of(cache, layer, parts) for layer in layers)
        self.device = device
        self._rows_VK, self._rule, self._num_segments = rows_VK, rule, num_segments
        self._tokens = CachedTokens(cache, layers=layers, parts=parts)

    def read(self, videos_B: Tensor, clips_B: Tensor) -> list[Tensor]:
        """See `Features`."""
        pairs = zip(videos_B.tolist(), clips_B.tolist(), strict=True)
        requests = [self._request(video, clip) for video, clip in pairs]
        return self._tokens.read_clips(requests, self.device).layers_BTND

    def _request(self, video: int, clip: int) -> ClipRequest:
        view, segment = divmod(clip, self._num_segments)
        row = self._rows_VK[video][view]
        frames = self._rule.choose(
            row.num_frames,
            position=segment / (self._num_segments - 1) if self._num_segments > 1 else 0.5,
            pts_seconds=None if self._rule.step_seconds is None else self._tokens.pts_seconds(row, 0),
        )
        return ClipRequest(video=row, frames=frames.numbers, mask=frames.mask)


def rows_in_views(
    cache: FeatureCache, split: str, *, views: int, layers: Sequence[str], parts: str, labelled: bool = True
) -> list[tuple[LedgerRow, ...]]:
    """Rows of the (labelled) videos of a split that have these tokens in each of the first `views` views.

    Raises:
        UsageError: when there is none, or no such view; says which splits and views there are.
    """
    videos = clip_videos(cache, split, layers=layers, parts=parts, views=range(views), labelled=labelled)
    rows = [video.rows for video in videos if len(video.rows) == views]
    if not rows:
        raise UsageError(
            f"split {split!r} of {cache.path} has no labelled video in all of {views} views; give fewer --views, or "
            f"extract more with vfz extract --views {views}"
        )
    return rows


def hold(
    features: Features,
    reduce: Callable[[list[Tensor]], Tensor],
    *,
    num_prefix: int,
    what: str,
    progress: Progress | None = None,
    batch_size: int = 32,
) -> ArrayFeatures:
    """Reads every clip once and keeps what `reduce` makes of its layers.

    Args:
        features: what to read.
        reduce: layers [B,T,N,D] to one map [B,T',N',D'].
        num_prefix: prefix tokens among the N'.
        what: shown as the task.
        progress: told of every video.
        batch_size: clips read at once.

    Raises:
        RunError: for features that are not finite.
    """
    progress = progress or SilentProgress()
    progress.start(what, total=len(features) * features.num_clips, unit="clips")
    held: Tensor | None = None
    for videos_B, clips_B in features.every_clip(torch.arange(len(features)), batch_size):
        reduced_BTND = reduce(features.read_finite(videos_B, clips_B)).cpu()
        if held is None:
            held = torch.empty(len(features), features.num_clips, *reduced_BTND.shape[1:])
        held[videos_B, clips_B] = reduced_BTND
        progress.advance(len(videos_B))
    progress.finish()
    if held is None:
        raise UsageError("there are no videos to read; name a split that has some")
    return ArrayFeatures(held, features.labels_V, ids=features.ids, num_prefix=num_prefix, device=features.device)


def as_labels(labels: Sequence[object] | Tensor | np.ndarray, num_videos: int) -> np.ndarray:
    """Labels as an array [V] of numbers or texts.

    Raises:
        UsageError: when they are not one for each video.
    """
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim != 1 or len(values) != num_videos:
        raise UsageError(f"labels have shape {values.shape} for {num_videos} videos; give one for each")
    if values.dtype.kind == "f":
        if not np.array_equal(values, np.floor(values)):
            raise UsageError("labels are fractions or NaN; give whole numbers or texts")
        values = values.astype(np.int64)
    return values
