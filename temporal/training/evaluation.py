"""A model over a split: on which clips, every metric of its task, and what the metrics are a share of.

`eval_clips_of` chooses the clips and counts the videos that are missing; `evaluate_clips` runs the model on them.
Videos are shared out over the processes, and the sums behind the metrics are added up, so that any number of processes
gives the same figures. Where a video has several clips (segments, views), its class is decided by the mean of their
softmaxes. Other tasks answer frames, and each clip's frames count on their own. What was answered for each video can be
kept (`vfz.temporal.kept`): what the task keeps, else the values of its metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import UsageError
from vfz.pipeline.progress import Progress
from vfz.temporal.data.loader import ClipBatch, ClipLoader
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.targets import ClipTargets
from vfz.temporal.data.tokens import TokenSource
from vfz.temporal.data.videos import (
    EVAL_SPLITS,
    ClipVideo,
    clip_videos,
    common_labels,
    first_eval_split,
    num_present_classes,
    num_unlabelled,
)
from vfz.temporal.kept import ClassFigures, KeptVideos
from vfz.temporal.label_figures import LabelFigures
from vfz.temporal.model import ModelConfig
from vfz.temporal.statistics import FEW_VIDEOS
from vfz.temporal.tasks import TASKS, Task
from vfz.temporal.tasks.classify import ClassifyTask
from vfz.temporal.tasks.values import ValuesTask
from vfz.temporal.training.distributed import Ranks
from vfz.temporal.training.step import ClipLoss, one_answer, one_clip

COUNT_PREFIX = "num_"
MOST_CLASSES_WITHOUT_TOP5 = 10
"""Where there are no more, five answers say little."""
_STATES = "states of the metrics"


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
        videos: what was answered for each; None unless it was asked for.
        classes: what those answers say of the classes, or of several labels or numbers; None for other tasks.
    """

    headline: str
    metrics: dict[str, float]
    split: str
    num_videos: int
    num_clips: int
    num_missing: int
    num_unlabelled: int = 0
    shares: tuple[str, ...] = ()
    videos: KeptVideos | None = None
    classes: ClassFigures | LabelFigures | None = None

    @property
    def value(self) -> float:
        """The headline metric."""
        return self.metrics[self.headline]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: metrics by name, what the answers say beside them, and denominators."""
        values = self.measured()
        return values if self.classes is None else values | self.classes.to_dict()

    def of_classes(self) -> dict[str, Any]:
        """The figures of each class, where there are some, and whether so few videos say little."""
        few = {"few_videos": True} if self.num_videos < FEW_VIDEOS else {}
        return few if self.classes is None else few | {"classes": self.classes.each()}

    def measured(self) -> dict[str, Any]:
        """The metrics by name, and the denominators; unlabelled videos where there are some."""
        counts = {"num_eval_videos": self.num_videos, "num_eval_clips": self.num_clips}
        left_out = {"num_eval_missing": self.num_missing}
        if self.num_unlabelled:
            left_out["num_eval_unlabelled"] = self.num_unlabelled
        return {"split": self.split, **self.metrics, **counts, **left_out}

    def lines(self) -> dict[str, str]:
        """For people: every metric, then what it was measured on."""
        counts = {name: value for name, value in self.metrics.items() if name.startswith(COUNT_PREFIX)}
        shown = {name: self._shown(name, value) for name, value in self.metrics.items() if name not in counts}
        if isinstance(self.classes, LabelFigures):
            shown |= self._label_lines(self.classes, shown[self.headline])
        elif self.classes is not None:
            shown |= self._class_lines(self.classes, shown[self.headline])
            if len(self.classes.names) <= MOST_CLASSES_WITHOUT_TOP5:
                shown.pop("top5", None)
        few = f"; so few say little: {FEW_VIDEOS} are the least to go by" if self.num_videos < FEW_VIDEOS else ""
        missing = f"; {self.num_missing} more are not in the cache" if self.num_missing else ""
        missing += f"; {self.num_unlabelled} more have no label" if self.num_unlabelled else ""
        measured = ", ".join(f"{value:,.0f} {name.removeprefix(COUNT_PREFIX)}" for name, value in counts.items())
        return {
            self.headline: shown.pop(self.headline),
            **shown,
            "measured on": f"{measured} of {self.num_videos} videos of {self.split}{missing}{few}",
        }

    def _class_lines(self, classes: ClassFigures, value: str) -> dict[str, str]:
        top1, balanced = classes.top1, classes.balanced
        lines = {
            self.headline: f"{value} [{percent(top1.low)}, {percent(top1.high)}] ({top1.method}, 95%)",
            "balanced accuracy": f"{percent(balanced.mean)} [{percent(balanced.low)}, {percent(balanced.high)}] "
            f"({balanced.method}, 95%), the mean over classes",
            "chance": f"{percent(classes.chance)}; always the most frequent class: {percent(classes.majority)}",
        }
        if worst := classes.worst():
            lines["worst classes"] = ", ".join(
                f"{row['name']} {row['num_right']} of {row['num_videos']}" for row in worst
            )
        return lines

    def _label_lines(self, labels: LabelFigures, value: str) -> dict[str, str]:
        lines, interval = {}, labels.interval
        if interval is not None:
            low, high = (self._shown(self.headline, end) for end in (interval.low, interval.high))
            lines[self.headline] = f"{value} [{low}, {high}] ({interval.method}, 95%)"
        lines["always the mean"] = f"{self._shown(self.headline, labels.baseline)} (of each label in training)"
        if len(labels.names) > 1:  # a mean of errors in different units says nothing
            lines |= {name: labels.first(figure) for name, figure in labels.task.means.items() if name != self.headline}
        if worst := labels.worst():
            found = [f"{name} {self._shown(self.headline, figure)}" for name, figure in worst]
            lines["least of the labels"] = ", ".join(found)
        return lines

    def _shown(self, name: str, value: float) -> str:
        return percent(value) if name.startswith(self.shares) else f"{value:.4g}"


def percent(share: float) -> str:
    """A share as people read it."""
    return f"{100 * share:.1f}%"


@torch.no_grad()
def evaluate_clips(
    loss: ClipLoss, clips: EvalClips, *, ranks: Ranks, progress: Progress, keep: bool = False
) -> Evaluation:
    """Every metric of the model over the clips of all processes.

    Args:
        loss: the model and its task; put into evaluation mode.
        clips: which.
        ranks: this process among those that have a share of them.
        progress: told of every batch.
        keep: say what was answered for each video, too.
    """
    loss.eval()
    sums = _Sums(loss.task, clips.num_videos, keep=keep)
    num_clips = torch.zeros(1, dtype=torch.float64)
    progress.start(f"evaluating on {clips.split}", total=clips.num_videos, unit="videos")
    for batch in clips.batches():
        if batch.weight == 0:  # a clip that is another process's
            continue
        sums.add(loss.answer(batch), batch)
        num_clips += len(batch.video_ids)
        progress.advance(len(set(batch.indices_B.tolist())) * ranks.world_size)
    progress.finish()
    metrics, values = sums.compute(ranks)
    classes: ClassFigures | LabelFigures | None = None
    if keep and isinstance(loss.task, ValuesTask):
        classes = LabelFigures(
            names=clips.class_names, task=loss.task, answers_VK=values["answers"], values_VK=values["targets"]
        )
    if keep and isinstance(loss.task, ClassifyTask):
        labels, predicted = values["label"].astype(np.int64), values["probabilities"].argmax(axis=1)
        chosen = values["probabilities"].max(axis=1)
        values |= {"label": labels, "predicted": predicted, "confidence": chosen}
        classes = ClassFigures(
            names=clips.class_names, labels_V=labels, predicted_V=predicted, num_present=clips.num_present_classes
        )
    return Evaluation(
        headline=loss.task.headline,
        metrics=metrics,
        split=clips.split,
        num_videos=clips.num_videos,
        num_clips=int(ranks.sum(num_clips)),
        num_missing=clips.num_missing,
        num_unlabelled=clips.num_unlabelled,
        shares=loss.task.shares,
        videos=KeptVideos(
            ids=tuple(video.id for video in clips.videos),
            caches=tuple(video.cache for video in clips.videos),
            values=values,
        )
        if keep
        else None,
        classes=classes,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalClips:
    """The clips of a split, in the order of its videos.

    Attributes:
        loader: of its videos.
        videos: which they are.
        rule: which frames of them make a clip.
        split: its name.
        class_names: of the caches, in label order; or names of their labels or targets.
        num_present_classes: classes that some video of the caches has, in whatever split.
        num_missing: videos of the split that are not evaluated, since they are not in the cache.
        num_unlabelled: those that are not, since they have no label and it is needed.
        views: cached views; a video has clips of each that it has.
        segments: clips of each video and view, spread over it.
    """

    loader: ClipLoader
    videos: tuple[ClipVideo, ...]
    rule: ClipRule
    split: str
    class_names: tuple[str, ...]
    num_present_classes: int
    num_missing: int
    num_unlabelled: int
    views: tuple[int, ...] = (0,)
    segments: int = 1

    @property
    def num_videos(self) -> int:
        """Videos evaluated."""
        return len(self.videos)

    def batches(self) -> Iterator[ClipBatch]:
        """This process's share of the clips."""
        return self.loader.in_order(num_segments=self.segments, all_views=len(self.views) > 1)


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
    split_option: str = "--eval-split",
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
        split_option: what `split` is called where it is given.

    Raises:
        UsageError: when no video of the split has what is asked for. DatasetError: targets that do not fit the videos.
    """
    chosen = split or first_eval_split(caches, layers=config.encoder_layers, parts=config.parts)
    if chosen is None:
        splits = sorted({split for cache in caches for split in cache.splits})
        raise UsageError(
            f"{' and '.join(str(cache.path) for cache in caches)} has no {', '.join(EVAL_SPLITS[:-1])} or "
            f"{EVAL_SPLITS[-1]} video with the tokens wanted; its splits are {', '.join(splits) or 'none'}: name one "
            f"with {split_option}"
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
        videos=tuple(videos),
        rule=rule,
        split=chosen,
        class_names=common_labels(caches)[1] if labelled else (),
        num_present_classes=num_present_classes(caches) if config.task == ClassifyTask.name else 0,
        num_missing=planned - len(videos) - unlabelled,
        num_unlabelled=unlabelled,
        views=tuple(views),
        segments=segments,
    )


class _Sums:
    """Sums behind the metrics, and of what is kept of each of V videos: 64 MB for 20,000 of 400 classes."""

    def __init__(self, task: Task[Any], num_videos: int, *, keep: bool) -> None:
        self._task, self._num_videos, self._keep = task, num_videos, keep
        self._metrics = task.new_metrics()
        self._sums: dict[str, Tensor] = {}
        self._num_clips_V = torch.zeros(num_videos, dtype=torch.float64)

    def add(self, outputs: Tensor | dict[str, Tensor], batch: ClipBatch) -> None:
        """The answers to some clips."""
        self._metrics.update(outputs, batch)
        kept = self._task.kept(outputs, batch)
        if not kept and self._keep:
            places = range(len(batch.video_ids))
            kept = {_STATES: torch.stack([self._state_of(outputs, batch, place) for place in places])}
        for name, values in kept.items():
            values = values.cpu().double()
            if name not in self._sums:
                self._sums[name] = values.new_zeros(self._num_videos, *values.shape[1:])
            self._sums[name].index_add_(0, batch.indices_B, values)
        self._num_clips_V.index_add_(0, batch.indices_B, torch.ones(len(batch.labels_B), dtype=torch.float64))

    def _state_of(self, outputs: Tensor | dict[str, Tensor], batch: ClipBatch, place: int) -> Tensor:
        alone = self._task.new_metrics()
        alone.update(one_answer(outputs, place), one_clip(batch, place))
        return alone.state()

    def compute(self, ranks: Ranks) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
        """The metrics over all processes, and [V, ...] of every video: what the task keeps, else its metrics."""
        self._metrics.load_state(self._metrics.combined(ranks.gather(self._metrics.state())))
        kept = self._means(ranks)
        figures = self._task.figures(kept) or self._metrics.compute()
        if _STATES in kept:
            return figures, self._metrics_of_videos(kept[_STATES])
        return figures, {name: values.numpy() for name, values in kept.items()}

    def _means(self, ranks: Ranks) -> dict[str, Tensor]:
        """By name [V, ...]: the means over clips; of states of metrics the sums."""
        shapes: dict[str, Any] = {}
        for theirs in ranks.gather({name: tuple(sums.shape) for name, sums in self._sums.items()}):
            shapes |= theirs  # a process without a clip knows none
        num_clips_V = ranks.sum(self._num_clips_V).clamp(min=1)
        means = {}
        for name, shape in shapes.items():
            sums = ranks.sum(self._sums.get(name, torch.zeros(shape, dtype=torch.float64)))
            means[name] = sums if name == _STATES else sums / num_clips_V.view(-1, *[1] * (sums.dim() - 1))
        return means

    def _metrics_of_videos(self, states_VS: Tensor) -> dict[str, NDArray[Any]]:
        metrics, rows = self._task.new_metrics(), []
        for state_S in states_VS:
            metrics.load_state(state_S)
            rows.append(metrics.compute())
        return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}
