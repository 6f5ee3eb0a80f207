"""A model over a split: on which clips, every metric of its task, and what the metrics are a share of.

`eval_clips_of` chooses the clips and counts the videos that are missing; `evaluate_clips` runs the model on them.
Videos are shared out over the processes, and the sums behind the metrics are added up, so that any number of processes
gives the same figures. Where a video has several clips (segments, views), its class is decided by the mean of their
softmaxes. Other tasks answer frames, and each clip's frames count on their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import UsageError
from vfz.pipeline.progress import Progress
from vfz.temporal.data.loader import ClipBatch, ClipLoader
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.targets import ClipTargets
from vfz.temporal.data.tokens import TokenSource
from vfz.temporal.data.videos import EVAL_SPLITS, clip_videos, first_eval_split, num_unlabelled
from vfz.temporal.model import ModelConfig
from vfz.temporal.statistics import FEW_VIDEOS, wilson
from vfz.temporal.tasks import TASKS, Task
from vfz.temporal.tasks.classify import ClassifyMetrics, ClassifyTask, clip_logits
from vfz.temporal.training.distributed import Ranks
from vfz.temporal.training.step import ClipLoss

COUNT_PREFIX = "num_"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one split.

    Attributes:
        headline: the metric people quote.
        metrics: all of them by name; those called `num_...` are what the others are means over.
        split: which videos.
        num_videos: videos evaluated.
        num_clips: clips of them.
        num_missing: videos of the split that are not in the cache, which count in nothing.
        num_unlabelled: those that are and have no label, where the task needs one; they count in nothing, either.
        shares: how the names of metrics begin that are shares of 1.
    """

    headline: str
    metrics: dict[str, float]
    split: str
    num_videos: int
    num_clips: int
    num_missing: int
    num_unlabelled: int = 0
    shares: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The headline metric."""
        return self.metrics[self.headline]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the metrics by name, and the denominators; unlabelled videos where there are some."""
        counts = {"num_eval_videos": self.num_videos, "num_eval_clips": self.num_clips}
        left_out = {"num_eval_missing": self.num_missing}
        if self.num_unlabelled:
            left_out["num_eval_unlabelled"] = self.num_unlabelled
        return {"split": self.split, **self.metrics, **counts, **left_out}

    def lines(self) -> dict[str, str]:
        """For people: every metric, then what it was measured on."""
        counts = {name: value for name, value in self.metrics.items() if name.startswith(COUNT_PREFIX)}
        shown = {name: self._shown(name, value) for name, value in self.metrics.items() if name not in counts}
        if self.headline == "top1" and self.num_videos:  # the one that is a share of the videos
            interval = wilson(self.value, self.num_videos)
            shown[self.headline] += f" [{100 * interval.low:.1f}%, {100 * interval.high:.1f}%] (Wilson, 95%)"
        few = f"; so few say little: {FEW_VIDEOS} are the least to go by" if self.num_videos < FEW_VIDEOS else ""
        missing = f"; {self.num_missing} more are not in the cache" if self.num_missing else ""
        missing += f"; {self.num_unlabelled} more have no label" if self.num_unlabelled else ""
        measured = ", ".join(f"{value:,.0f} {name.removeprefix(COUNT_PREFIX)}" for name, value in counts.items())
        return {
            self.headline: shown.pop(self.headline),
            **shown,
            "measured on": f"{measured} of {self.num_videos} videos of {self.split}{missing}{few}",
        }

    def _shown(self, name: str, value: float) -> str:
        return f"{100 * value:.1f}%" if name.startswith(self.shares) else f"{value:.4g}"


@torch.no_grad()
def evaluate_clips(loss: ClipLoss, clips: EvalClips, *, ranks: Ranks, progress: Progress) -> Evaluation:
    """Every metric of the model over the clips of all processes.

    Args:
        loss: the model and its task; put into evaluation mode.
        clips: which.
        ranks: this process among those that have a share of them.
        progress: told of every batch.
    """
    loss.eval()
    sums: _ClipSums | _VideoSums = _ClipSums(loss.task)
    if clips.has_several and isinstance(loss.task, ClassifyTask):
        sums = _VideoSums(clips.num_videos, loss.task.num_classes)
    num_clips = torch.zeros(1, dtype=torch.float64)
    progress.start(f"evaluating on {clips.split}", total=clips.num_videos, unit="videos")
    for batch in clips.batches():
        if batch.weight == 0:  # a clip that is another process's
            continue
        sums.add(loss.answer(batch), batch)
        num_clips += len(batch.video_ids)
        progress.advance(len(set(batch.indices_B.tolist())) * ranks.world_size)
    progress.finish()
    return Evaluation(
        headline=loss.task.headline,
        metrics=sums.compute(ranks),
        split=clips.split,
        num_videos=clips.num_videos,
        num_clips=int(ranks.sum(num_clips)),
        num_missing=clips.num_missing,
        num_unlabelled=clips.num_unlabelled,
        shares=loss.task.shares,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalClips:
    """The clips of a split, in the order of its videos.

    Attributes:
        loader: of its videos.
        split: its name.
        num_missing: videos of the split that are not evaluated, since they are not in the cache.
        num_unlabelled: those that are not, since they have no label and it is needed.
        segments: clips of each video and view, spread over it.
        all_views: whether each cached view of a video is a clip, or the first only.
    """

    loader: ClipLoader
    split: str
    num_missing: int
    num_unlabelled: int
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
    targets: ClipTargets | None,
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
    chosen = split or first_eval_split(caches, layers=config.encoder_layers, parts=config.parts)
    if chosen is None:
        splits = sorted({split for cache in caches for split in cache.splits})
        raise UsageError(
            f"{' and '.join(str(cache.path) for cache in caches)} has no {', '.join(EVAL_SPLITS[:-1])} or "
            f"{EVAL_SPLITS[-1]} video with the tokens wanted; its splits are {', '.join(splits) or 'none'}: name one"
        )
    labelled = not TASKS[config.task].needs_targets
    videos = clip_videos(
        caches, chosen, layers=config.encoder_layers, parts=config.parts, views=views, labelled=labelled
    )
    tokens: Any = {"layers": config.encoder_layers, "parts": config.parts, "view": views[0]}
    unlabelled = num_unlabelled(caches, chosen, **tokens) if labelled else 0
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
        num_missing=planned - len(videos) - unlabelled,
        num_unlabelled=unlabelled,
        segments=segments,
        all_views=len(views) > 1,
    )


class _ClipSums:
    """The sums of a task's metrics, clip by clip."""

    def __init__(self, task: Task[Any]) -> None:
        self._metrics = task.new_metrics()

    def add(self, outputs: Tensor | dict[str, Tensor], batch: ClipBatch) -> None:
        """The answers to some clips."""
        self._metrics.update(outputs, batch)

    def compute(self, ranks: Ranks) -> dict[str, float]:
        """The metrics over all processes."""
        self._metrics.load_state(self._metrics.combined(ranks.gather(self._metrics.state())))
        return self._metrics.compute()


class _VideoSums:
    """Sums of the softmaxes of each video's clips, V videos of K classes: 64 MB for 20,000 of 400."""

    def __init__(self, num_videos: int, num_classes: int) -> None:
        self._sums_VK = torch.zeros(num_videos, num_classes, dtype=torch.float64)
        self._labels_V = torch.zeros(num_videos, dtype=torch.int64)

    def add(self, outputs: Tensor | dict[str, Tensor], batch: ClipBatch) -> None:
        """The logits of some clips."""
        assert isinstance(outputs, Tensor)  # noqa: S101 - the readout of classes gives logits
        self._sums_VK.index_add_(0, batch.indices_B, clip_logits(outputs).softmax(dim=-1).double().cpu())
        self._labels_V[batch.indices_B] = batch.labels_B.cpu() + 1  # 0: this process has no clip of it

    def compute(self, ranks: Ranks) -> dict[str, float]:
        """The metrics, one answer a video; all clips of a video have its label."""
        labels_RV = torch.stack(ranks.gather(self._labels_V))
        videos = _Videos(labels_B=labels_RV.max(dim=0).values - 1)
        metrics = ClassifyMetrics()
        metrics.update(ranks.sum(self._sums_VK), videos)
        return metrics.compute()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Videos:
    """What `ClassifyMetrics` needs to know of whole videos."""

    labels_B: Tensor

    @property
    def frame_mask_BT(self) -> Tensor:  # noqa: N802 - as `TargetBatch`
        return torch.ones(len(self.labels_B), 1, dtype=torch.bool)

    @property
    def targets(self) -> dict[str, Tensor]:
        return {}
