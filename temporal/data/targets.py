"""Targets of clips: `targets.npz` brought to what the encoder saw, at the times of the cached frames.

    targets = FrameTargets(cache, task="boxes", device=device)   # <root of the videos>/targets.npz
    loader = ClipLoader(source, videos, ..., targets=targets)    # fills ClipBatch.targets
    targets = LabelTargets([cache], task="regression", device=device)  # what a label set says of whole videos

Here the file is read, and its videos and times are matched to those of the cache; what a task makes of them is in its
own file (`Task.clip_targets`). A frame of a clip takes the target frame nearest in time, which must lie within half a
target frame interval. Boxes, points and depth maps follow the crop and the mirroring of the view that was encoded. For
that the size of the video's frames is needed: from `frame_sizes` in the targets, else from the first frame of the video
itself, decoded once (10 ms or so). Mapping a clip costs some 0.1 ms, for depth 2 ms at 12 frames of 224 x 224.

Shapes: B clips of a batch, T frames of a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.datasets.targets import Targets, VideoTargets
from vfz.pipeline.decoding import get_decoder
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.encoder.transforms import SeenCrop, cropper_of, seen_crop
from vfz.pipeline.errors import DatasetError, DecodeError, UsageError
from vfz.pipeline.files import name_of_text
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.recipe import Recipe, recipe_from_dict
from vfz.temporal.data.sampling import nearest
from vfz.temporal.data.tokens import ClipRequest
from vfz.temporal.data.videos import ClipVideo, as_caches
from vfz.temporal.tasks import TASKS
from vfz.temporal.tasks.base import Arrays, RawTargets

TARGETS_FILE = "targets.npz"

_TIME_ROUNDING_SECONDS = 1e-3  # containers keep milliseconds; what is nearer than that is the same time


class ClipTargets(Protocol):
    """What a task is told of clips besides their class; `FrameTargets` or `LabelTargets`."""

    @property
    def task(self) -> str:
        """The task's name."""

    def check(self, videos: Sequence[ClipVideo]) -> None:
        """Refuses videos whose targets do not fit, before training begins."""

    def for_clips(self, requests: Sequence[ClipRequest], pts_seconds_BT: NDArray[np.float64]) -> dict[str, Tensor]:
        """The targets of some clips, tensors [B,...] by name, on the device."""


class FrameTargets:
    """The targets of one task for clips of one cache, or of several of one recipe.

    Args:
        cache: one or several.
        task: one that needs targets: `boxes`, `points`, `depth` or `pose`.
        device: where the tensors are to be.
        targets: the targets, or their file, for each cache in turn (a single one stands for a single cache); None
            means `targets.npz` in the folder that the videos lay in at extraction.
        output_size: `depth` only: height and width of the maps.

    Raises:
        UnknownNameError: when there is no such task.
        UsageError: for a task without such targets, an output size that does not belong to it, or targets that have
            nothing for the task.
        DatasetError: when there is no such file, or it is damaged.
    """

    def __init__(
        self,
        cache: FeatureCache | Sequence[FeatureCache],
        *,
        task: str,
        device: torch.device | str = "cpu",
        targets: Targets | Path | str | Sequence[Targets | Path | str] | None = None,
        output_size: int | None = None,
    ) -> None:
        self._task = TASKS[task]
        if not self._task.needs_targets:
            raise UsageError(f"task {task!r} has no targets in {TARGETS_FILE}; those with some: {', '.join(_takers())}")
        if (output_size is not None) != self._task.makes_maps:
            raise UsageError(f"output size {output_size} for task {task}; depth maps need one, other targets have none")
        self.task, self._device, self._output_size = task, torch.device(device), output_size
        self._caches = as_caches(cache)
        self._recipe: Recipe = recipe_from_dict(self._caches[0].recipe)
        if targets is None:
            targets = [default_targets_path(cache) for cache in self._caches]
        each = [targets] if isinstance(targets, Targets | Path | str) else list(targets)
        if len(each) != len(self._caches):
            raise UsageError(f"{len(each)} targets were given for {len(self._caches)} caches; give one for each")
        self._targets = [_loaded(one, task) for one in each]
        self._frame_sizes: dict[tuple[int, str], tuple[int, int]] = {}

    def check(self, videos: Sequence[ClipVideo]) -> None:
        """Refuses videos whose targets are not there, or of another length than they are, before training begins.

        Raises:
            DatasetError: names the video and its times.
        """
        for video in videos:
            row = video.rows[0]
            known = self._of(video.cache, row.id)
            pts_seconds = self._caches[video.cache].pts_seconds(row.id, row.view)
            self._match(known, pts_seconds, row.id)
            frames, last_seconds = self._recipe.frames, known.times_seconds[-1]
            if frames.rule == "fps" and frames.fps and frames.start_seconds == 0 and frames.end_seconds is None:
                # The whole video was cached, so its targets end where it ends.
                slack_seconds = 1 / frames.fps + _interval_seconds(known.times_seconds) + _TIME_ROUNDING_SECONDS
                if pts_seconds[-1] < last_seconds - slack_seconds:
                    raise DatasetError(
                        f"video {row.id!r}: its targets go on to {last_seconds:.3f} s, its last cached frame is at "
                        f"{pts_seconds[-1]:.3f} s; are they of the same video?"
                    )

    def for_clips(self, requests: Sequence[ClipRequest], pts_seconds_BT: NDArray[np.float64]) -> dict[str, Tensor]:
        """The targets of some clips of one length, on the device.

        Args:
            requests: the clips.
            pts_seconds_BT: presentation times of their frames.

        Returns:
            Tensors [B,...] by name; the module says which there are for each task. Clips of caches with
            fewer objects or points than others are filled up with invalid ones.

        Raises:
            DatasetError: a video has no targets, or none at these times; or its frame size cannot be found out.
        """
        clips = [self._clip(request, pts_T) for request, pts_T in zip(requests, pts_seconds_BT, strict=True)]
        return {
            name: torch.from_numpy(_stack([clip[name] for clip in clips])).to(self._device, non_blocking=True)
            for name in clips[0]
        }

    def crop_of(self, video: LedgerRow, cache: int = 0) -> SeenCrop:
        """What the encoder saw of a video's frames in the row's view.

        Raises:
            DatasetError: the size of its frames cannot be found out.
        """
        height, width = self._frame_size(video, cache)
        return seen_crop(self._recipe, video.id, video.view, height=height, width=width)

    def _clip(self, request: ClipRequest, pts_seconds_T: NDArray[np.float64]) -> Arrays:
        video = self._of(request.cache, request.id)
        frames_T, known_T = self._match(video, pts_seconds_T, request.id)
        cropper = cropper_of(self._recipe.views, request.id, request.view)
        return self._task.clip_targets(
            RawTargets(
                video=video,
                frames_T=frames_T,
                mask_T=request.mask & known_T,
                mirrored=cropper is not None and cropper.mirrored,
                crop=partial(self.crop_of, request.video, request.cache),
                output_size=self._output_size or 0,
            )
        )

    def _match(
        self, video: VideoTargets, pts_seconds: NDArray[np.float64], video_id: str
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The target frame nearest to each time, and whether the video still showed something then.

        Raises:
            DatasetError: one is further away than half a target frame interval.
        """
        times_seconds = video.times_seconds
        allowed_seconds = _interval_seconds(times_seconds) / 2 + _TIME_ROUNDING_SECONDS
        frames = nearest(times_seconds, pts_seconds)
        known = np.abs(times_seconds[frames] - pts_seconds) <= allowed_seconds
        # Of a short video the rule `centred` caches the last frame again and again, at times behind its end.
        repeated = (pts_seconds > times_seconds[-1]) & (self._recipe.frames.rule == "centred")
        if not (known | repeated).all():
            raise DatasetError(
                f"video {video_id!r}: no target within {allowed_seconds:.3f} s of its frame at "
                f"{pts_seconds[(known | repeated).argmin()]:.3f} s; its {len(times_seconds)} target frames "
                f"lie at {times_seconds[0]:.3f} to {times_seconds[-1]:.3f} s: are they of the same video?"
            )
        return frames, known

    def _of(self, cache: int, video_id: str) -> VideoTargets:
        return self._targets[cache].for_video(video_id)

    def _frame_size(self, video: LedgerRow, cache: int) -> tuple[int, int]:
        key = (cache, video.id)
        if key not in self._frame_sizes:
            self._frame_sizes[key] = self._of(cache, video.id).frame_size or self._decoded_size(video)
        return self._frame_sizes[key]

    def _decoded_size(self, video: LedgerRow) -> tuple[int, int]:
        frames = self._recipe.frames
        try:
            first = next(get_decoder(frames.decoder).frames(VideoSource.parse(name_of_text(video.source_path)), frames))
        except (DecodeError, DatasetError) as error:
            raise DatasetError(
                f"video {video.id!r}: the size of its frames is not known, which its targets need ({error}); "
                f"put frame_sizes into {TARGETS_FILE}, or the video where it was"
            ) from error
        height, width = first.pixels_HWC.shape[:2]
        return height, width


class LabelTargets:
    """What the caches' label set says of whole videos, for `multilabel` and `regression`.

    Args:
        caches: opened with a set of that kind.
        task: its name.
        device: where the tensors are to be.
    """

    def __init__(self, caches: Sequence[FeatureCache], *, task: str, device: torch.device | str = "cpu") -> None:
        self.task, self._caches, self._device = task, tuple(caches), torch.device(device)

    def check(self, videos: Sequence[ClipVideo]) -> None:
        """See `ClipTargets`; a video may lack any number."""

    def values_of(self, videos: Sequence[ClipVideo]) -> NDArray[np.float32]:
        """The numbers [V, K] of some videos; NaN where one is not known."""
        return np.concatenate([self._caches[video.cache].targets_of([video.id]) for video in videos])

    def for_clips(
        self,
        requests: Sequence[ClipRequest],
        pts_seconds_BT: NDArray[np.float64],  # noqa: ARG002 - they hold for the whole video
    ) -> dict[str, Tensor]:
        """`label_values` [B, K], 0 where one is not known, and `label_known` [B, K]."""
        values = [self._caches[request.cache].targets_of([request.id]) for request in requests]
        values_BK = torch.from_numpy(np.concatenate(values)).to(self._device, non_blocking=True)
        known_BK = ~values_BK.isnan()
        return {"label_values": values_BK.masked_fill(~known_BK, 0.0), "label_known": known_BK}


def default_targets_path(cache: FeatureCache) -> Path:
    """Where the targets of a cache's dataset lie unless told otherwise: with its videos."""
    return Path(name_of_text(cache.provenance["root"])) / TARGETS_FILE


def _loaded(targets: Targets | Path | str, task: str) -> Targets:
    """The targets, which must have something for the task."""
    where = "the targets" if isinstance(targets, Targets) else f"{targets}"
    loaded = targets if isinstance(targets, Targets) else Targets.load(Path(targets))
    if not TASKS[task].num_known(loaded):
        some = ", ".join(name for name in _takers() if TASKS[name].num_known(loaded))
        raise UsageError(f"{where} has no {task} (size 0), which task {task} needs; it has {some}")
    return loaded


def _takers() -> list[str]:
    """Tasks whose targets come from `targets.npz`; classes come with the cache."""
    return [name for name in TASKS if TASKS[name].needs_targets]


def _interval_seconds(times_seconds: NDArray[np.float64]) -> float:
    """From one target frame to the next, as a rule; 0 where there is only one."""
    return float(np.median(np.diff(times_seconds))) if len(times_seconds) > 1 else 0.0


def _stack(arrays: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
    """[B, ...] of arrays whose first dimension may differ; the shorter are filled up with zeros."""
    longest = max(len(array) for array in arrays)
    if all(len(array) == longest for array in arrays):
        return np.stack(arrays)
    stacked = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), arrays[0].dtype)
    for place, array in zip(stacked, arrays, strict=True):
        place[: len(array)] = array
    return stacked
