"""Which frames of a video make a clip, how training clips are varied, and what is drawn for an epoch.

`ClipRule`: T frames, a number of cached frames or a time apart. A time is right where caches were made at another rate
than the one wanted, or from videos of variable rate: the cached frame nearest to each time is taken. A video that is
too short repeats its last frame, as in the paper, and a mask says which frames are real.

`Augmentation`: only what is right on tokens. Time can be shifted and stretched: other frames of a video are other
inputs. Views that were cropped and mirrored at extraction can be chosen among. Patch tokens can be dropped, at the same
positions in every frame and of the whole batch: a recurrent core keeps a state for each position, and the batch stays
one tensor. Tokens are never mirrored: the tokens of a mirrored image are not the mirrored tokens of the image.

`EpochPlan`: which clip comes when, and how it is varied. It follows from the seed and the epoch alone and is made in
one go (30 ms for a quarter of a million videos), so that every process has the same one and can begin anywhere in it.

Shapes: T frames of a clip, F cached frames of a video, n clips of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfz.pipeline.cache.request import is_whole, shown
from vfz.pipeline.errors import UsageError
from vfz.temporal.tasks import TASKS

_ROUNDING = 1e-6  # of a step: times from containers and from k / fps differ in their last digits
_DROPOUT_STREAM = 1  # keeps these draws apart from those of the order


@dataclass(frozen=True, kw_only=True)
class ClipRule:
    """Which frames of a video make a clip.

    Attributes:
        num_frames: T.
        stride: cached frames from one frame of a clip to the next.
        step_seconds: seconds from one to the next, instead of a stride. Where the cache has fewer frames than that, a
            frame is taken more than once.

    Raises:
        UsageError: for numbers that cannot be, or both a stride and a step.
    """

    num_frames: int
    stride: int = 1
    step_seconds: float | None = None

    def __post_init__(self) -> None:
        if not all(is_whole(number) and number >= 1 for number in (self.num_frames, self.stride)):
            raise UsageError(
                f"clips of {shown(self.num_frames)} frames {shown(self.stride)} apart; 1 or more of each is needed"
            )
        if self.step_seconds is None:
            return
        if not 0 < self.step_seconds < math.inf:
            raise UsageError(f"clip frames {shown(self.step_seconds)} s apart; give seconds above 0")
        if self.stride != 1:
            raise UsageError(
                f"clip frames {self.stride} cached frames and {self.step_seconds} s apart; give one of them"
            )

    @classmethod
    def of_run(
        cls,
        recorded: Mapping[str, Any],
        *,
        num_frames: int | None = None,
        stride: int | None = None,
        step_seconds: float | None = None,
    ) -> ClipRule:
        """The rule a run recorded, changed by the values that are given.

        Args:
            recorded: `clips` of a run's `run.json`.
            num_frames: instead of the run's.
            stride: instead of the run's stride or step in seconds.
            step_seconds: instead of the run's stride or step in seconds.
        """
        if stride is None and step_seconds is None:
            stride, step_seconds = recorded["stride"], recorded["step_seconds"]
        return cls(num_frames=num_frames or recorded["num_frames"], stride=stride or 1, step_seconds=step_seconds)

    def frames(self, num_video_frames: int, *, position: float = 0.5) -> NDArray[np.int64]:
        """Frame numbers [T] of a clip by stride; see `choose`."""
        return self.choose(num_video_frames, position=position).numbers

    def choose(
        self,
        num_video_frames: int,
        *,
        position: float = 0.5,
        factor: int = 1,
        pts_seconds: NDArray[np.float64] | None = None,
    ) -> ClipFrames:
        """The frames of one clip.

        Args:
            num_video_frames: F, cached frames of the video.
            position: where the clip lies, 0 at the start, 1 at the end, 0.5 centred.
            factor: multiplies the stride or the step.
            pts_seconds: [F] presentation times, ascending; needed with `step_seconds`.
        """
        if self.step_seconds is not None:
            if pts_seconds is None:
                raise ValueError("a clip rule with a step in seconds needs the times of the video's frames")
            return self._by_time(pts_seconds, position, self.step_seconds * factor)
        stride = self.stride * factor
        room = max(0, num_video_frames - (self.num_frames - 1) * stride - 1)
        numbers = _at(position, room) + np.arange(self.num_frames) * stride
        return ClipFrames(numbers=np.minimum(numbers, num_video_frames - 1), mask=numbers < num_video_frames)

    def fits(self, num_video_frames: int, *, factor: int = 1, pts_seconds: NDArray[np.float64] | None = None) -> bool:
        """Whether a video is long enough for a clip without repeated frames; arguments as in `choose`."""
        return bool(self.choose(num_video_frames, position=0, factor=factor, pts_seconds=pts_seconds).mask.all())

    def _by_time(self, pts_seconds: NDArray[np.float64], position: float, step_seconds: float) -> ClipFrames:
        last_seconds = pts_seconds[-1]
        rounding_seconds = _ROUNDING * step_seconds
        latest_start = last_seconds - (self.num_frames - 1) * step_seconds + rounding_seconds
        num_starts = max(1, int(np.searchsorted(pts_seconds, latest_start, side="right")))
        # A clip begins at a cached frame, so that a step of k frames is a stride of k.
        times = pts_seconds[_at(position, num_starts - 1)] + np.arange(self.num_frames) * step_seconds
        # The last frame is on display for about as long as the others.
        shown_seconds = (last_seconds - pts_seconds[0]) / max(1, len(pts_seconds) - 1)
        return ClipFrames(
            numbers=nearest(pts_seconds, times - rounding_seconds),
            mask=times <= last_seconds + shown_seconds / 2 + rounding_seconds,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipFrames:
    """The frames of a clip.

    Attributes:
        numbers: [T] in the video.
        mask: [T] False where the video has ended and its last frame is repeated.
    """

    numbers: NDArray[np.int64]
    mask: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training clips are varied; evaluation never is.

    Attributes:
        random_position: a clip begins anywhere in its video, instead of lying in its centre.
        stride_factors: what the clip rule's stride (or step in seconds) is multiplied by; drawn for each clip among
            those that its video is long enough for, or the smallest where it is for none.
        random_view: each clip is of any of its video's views, instead of the first.
        token_dropout: share of the patch tokens that are left out; prefix tokens stay.

    Raises:
        UsageError: for factors below 1 or none, or a share outside 0 <= share < 1.
    """

    random_position: bool = True
    stride_factors: tuple[int, ...] = (1,)
    random_view: bool = False
    token_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.stride_factors or not all(is_whole(factor) and factor >= 1 for factor in self.stride_factors):
            raise UsageError(f"stride factors {shown(self.stride_factors)}; one or several whole numbers from 1 on")
        if not 0 <= self.token_dropout < 1:
            raise UsageError(f"token dropout {shown(self.token_dropout)} is no share of the patch tokens; 0 <= it < 1")

    def check_task(self, task: str) -> None:
        """Refuses to drop tokens where a task asks about their places.

        Raises:
            UsageError: says which tasks they are.
        """
        if self.token_dropout and TASKS[task].asks_about_places:
            asking = [name for name in TASKS if TASKS[name].asks_about_places]
            raise UsageError(
                f"token dropout {self.token_dropout} with task {task}: it asks about places whose tokens may be gone; "
                f"set it to 0 for {', '.join(asking)}"
            )

    def kept_tokens(self, num_tokens: int, num_prefix: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Positions of the tokens of a frame that stay, in order: the prefix and a random part of the patches.

        Raises:
            UsageError: when there are no patch tokens.
        """
        num_patches = num_tokens - num_prefix
        if not num_patches:
            raise UsageError("token dropout leaves out patch tokens, and there are only prefix tokens; set it to 0")
        num_kept = max(1, round(num_patches * (1 - self.token_dropout)))
        patches = np.sort(generator.choice(num_patches, num_kept, replace=False)) + num_prefix
        return np.concatenate([np.arange(num_prefix), patches])


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochPlan:
    """What is drawn for the n clips of an epoch, in their order.

    Attributes:
        videos: [n] numbers in the loader's list.
        positions: [n] where in its video each clip lies, 0 .. 1.
        views: [n] which of its video's rows each clip takes, as a number 0 <= x < 1.
        factors: [n] which stride factor, likewise.
        dropout_seed: of token dropout; None means none.
    """

    videos: NDArray[np.int64]
    positions: NDArray[np.float64]
    views: NDArray[np.float64]
    factors: NDArray[np.float64]
    dropout_seed: tuple[int, ...] | None = None

    def dropout_generator(self, batch: int) -> np.random.Generator | None:
        """What tokens are dropped by in a batch, the same for all ranks; None where none are."""
        if self.dropout_seed is None:
            return None
        return np.random.default_rng([*self.dropout_seed, batch, _DROPOUT_STREAM])


def training_plan(num_videos: int, augmentation: Augmentation, *, seed: int, epoch: int) -> EpochPlan:
    """Every video once, shuffled and varied."""
    generator = np.random.default_rng([seed, epoch])
    order, draws = generator.permutation(num_videos), generator.random((3, num_videos))
    return EpochPlan(
        videos=order,
        positions=draws[0, order] if augmentation.random_position else np.full(num_videos, 0.5),
        views=draws[1, order] if augmentation.random_view else np.zeros(num_videos),
        factors=draws[2, order],
        dropout_seed=(seed, epoch) if augmentation.token_dropout else None,
    )


def shuffled_plan(num_videos: int, *, seed: int, epoch: int) -> EpochPlan:
    """Every video once, shuffled, each clip centred and of the first view."""
    zeros = np.zeros(num_videos)
    order = np.random.default_rng([seed, epoch]).permutation(num_videos)
    return EpochPlan(videos=order, positions=zeros + 0.5, views=zeros, factors=zeros)


def evaluation_plan(num_views: Sequence[int], num_segments: int) -> EpochPlan:
    """Every video in turn, in each of its views, in clips from its start to its end; one clip is centred.

    Args:
        num_views: of each video, all that it has or the first only.
        num_segments: clips of each video and view.
    """
    counts = np.array(num_views)
    # amid each view's share of 0 .. 1; the first one alone is at 0, however many there are beside it
    views = np.concatenate([(np.arange(count) + 0.5) / count if count > 1 else np.zeros(1) for count in counts])
    positions = np.linspace(0, 1, num_segments) if num_segments > 1 else np.array([0.5])
    return EpochPlan(
        videos=np.repeat(np.arange(len(counts)), counts * num_segments),
        positions=np.tile(positions, len(views)),
        views=np.repeat(views, num_segments),
        factors=np.zeros(len(views) * num_segments),
    )


def nearest(sorted_values: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int64]:
    """Where in ascending values the nearest to each of some others stands; the earlier of two as near."""
    right = np.clip(np.searchsorted(sorted_values, values), 1, max(1, len(sorted_values) - 1))
    left = right - 1
    right = np.minimum(right, len(sorted_values) - 1)
    closer_right = sorted_values[right] - values < values - sorted_values[left]
    return np.where(closer_right, right, left).astype(np.int64)


def _at(position: float, room: int) -> int:
    """The start, out of 0 .. room, at a position; every one is as likely where the position is drawn evenly."""
    return min(room, int(position * (room + 1)))
