"""Which clips a model is evaluated on, and which of the split's videos are not among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import UsageError
from vfz.temporal.data.loader import ClipBatch, ClipLoader
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.targets import FrameTargets
from vfz.temporal.data.tokens import TokenSource
from vfz.temporal.data.videos import EVAL_SPLITS, clip_videos, parts_of
from vfz.temporal.model import ModelConfig
from vfz.temporal.tasks import TASKS
from vfz.temporal.training.distributed import Ranks


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalClips:
    """The clips of a split, in the order of its videos.

    Attributes:
        loader: of its videos.
        split: its name.
        num_missing: videos of the split that are not evaluated: not in the cache, or without a label that is needed.
        segments: clips of each video and view, spread over it.
        all_views: whether each cached view of a video is a clip, or the first only.
    """

    loader: ClipLoader
    split: str
    num_missing: int
    segments: int = 1
    all_views: bool = False

    @property
    def num_videos(self) -> int:
        """Videos evaluated."""
        return self.loader.num_clips

    @property
    def has_several(self) -> bool:
        """Whether a video may have more than one clip."""
        return self.segments > 1 or self.all_views

    def batches(self) -> Iterator[ClipBatch]:
        """This process's share of the clips."""
        return self.loader.in_order(num_segments=self.segments, all_views=self.all_views)


def eval_clips_of(
    source: TokenSource,
    caches: Sequence[FeatureCache],
    config: ModelConfig,
    *,
    rule: ClipRule,
    split: str | None,
    views: Sequence[int],
    segments: int,
    batch_size: int,
    targets: FrameTargets | None,
    ranks: Ranks,
) -> EvalClips:
    """The clips of a split for a model.

    Args:
        source: of tokens as the model takes them.
        caches: where the videos are.
        config: of the model.
        rule: which frames make a clip.
        split: its name; None: the first of val, validation and test that has videos.
        views: cached views; a video needs the first, and has a clip of each that it has.
        segments: clips of each view.
        batch_size: clips of all processes together.
        targets: of the task, where it needs some.
        ranks: this process.

    Raises:
        UsageError: when no video of the split has what is asked for. DatasetError: targets that do not fit the videos.
    """
    chosen = split or _first_split(caches, config)
    labelled = not TASKS.get(config.task).needs_targets
    videos = clip_videos(
        caches, chosen, layers=config.encoder_layers, parts=config.parts, views=views, labelled=labelled
    )
    planned = sum(cache.num_planned(chosen, view=views[0]) for cache in caches if chosen in cache.splits)
    return EvalClips(
        loader=ClipLoader(
            source,
            videos,
            rule=rule,
            batch_size=batch_size,
            device=ranks.device,
            targets=targets,
            rank=ranks.rank,
            world_size=ranks.world_size,
        ),
        split=chosen,
        num_missing=planned - len(videos),
        segments=segments,
        all_views=len(views) > 1,
    )


def _first_split(caches: Sequence[FeatureCache], config: ModelConfig) -> str:
    for split in EVAL_SPLITS:
        for cache in caches:
            if split in cache.splits and cache.ok_videos(
                split, layers=config.encoder_layers, parts=parts_of(config.parts)
            ):
                return split
    splits = sorted({split for cache in caches for split in cache.splits})
    raise UsageError(
        f"{' and '.join(str(cache.path) for cache in caches)} has no {', '.join(EVAL_SPLITS[:-1])} or "
        f"{EVAL_SPLITS[-1]} video with the tokens wanted; its splits are {', '.join(splits) or 'none'}: name one"
    )
