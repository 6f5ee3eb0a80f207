"""Targets of clips, task by task: `targets.npz` mapped to what the encoder saw, and to the times of cached frames.

    targets = FrameTargets(cache, task="boxes", device=device)   # <root of the videos>/targets.npz
    loader = ClipLoader(source, videos, ..., targets=targets)    # fills ClipBatch.targets

A frame of a clip takes the target frame nearest in time, which must lie within half a target frame interval. Boxes,
points and depth maps follow the crop and the mirroring of the view that was encoded; for that the size of the video's
frames is needed, from `frame_sizes` in the targets, else from the first frame of the video itself, decoded once (10 ms
or so). Mapping a clip costs some 0.1 ms, for depth 2 ms at 12 frames of 224 x 224.

Shapes: B clips of a batch, T frames of a clip.

Targets of one clip as the encoder saw it: pure functions from a video's targets to arrays of the clip.

Every function takes the targets of a video, which of their frames the clip's frames are, which of the clip's frames are
real (the others repeat the last one), and what the encoder saw of a frame. What is not valid is finite: zeros, or for
points where they would lie.

Shapes: T frames of a clip, O objects, Q points, S x S pixels of a depth map, F frames of the video's targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.recipe import Recipe, recipe_from_dict
from vfz.temporal.data.sampling import nearest
from vfz.temporal.data.tokens import ClipRequest
from vfz.temporal.data.videos import ClipVideo, as_caches

TARGET_TASKS = ("boxes", "points", "depth", "pose")
"""Tasks whose targets come from `targets.npz`; classes come with the cache."""
TARGETS_FILE = "targets.npz"

_TIME_ROUNDING_SECONDS = 1e-3  # containers keep milliseconds; what is nearer than that is the same time


class FrameTargets:
    """The targets of one task for clips of one cache, or of several of one recipe.

    Args:
        cache: one or several.
        task: `boxes`, `points`, `depth` or `pose`.
        device: where the tensors are to be.
        targets: the targets, or their file, for each cache in turn (a single one stands for a single cache); None
            means `targets.npz` in the folder that the videos lay in at extraction.
        output_size: `depth` only: height and width of the maps.

    Raises:
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
        if task not in TARGET_TASKS:
            raise UsageError(
                f"task {task!r} has no targets in {TARGETS_FILE}; those with some: {', '.join(TARGET_TASKS)}"
            )
        if (output_size is not None) != (task == "depth"):
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
        mask_T = request.mask & known_T
        if self.task == "pose":
            cropper = cropper_of(self._recipe.views, request.id, request.view)
            return clip_pose(video, frames_T, mask_T, mirrored=cropper is not None and cropper.mirrored)
        crop = self.crop_of(request.video, request.cache)
        if self.task == "boxes":
            return clip_boxes(video, frames_T, mask_T, crop)
        if self.task == "points":
            return clip_points(video, frames_T, mask_T, crop)
        return clip_depth(video, frames_T, mask_T, crop, self._output_size or 0)

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
            first = next(get_decoder(frames.decoder).frames(VideoSource.parse(video.source_path), frames))
        except (DecodeError, DatasetError) as error:
            raise DatasetError(
                f"video {video.id!r}: the size of its frames is not known, which its targets need ({error}); "
                f"put frame_sizes into {TARGETS_FILE}, or the video where it was"
            ) from error
        height, width = first.pixels_HWC.shape[:2]
        return height, width


def default_targets_path(cache: FeatureCache) -> Path:
    """Where the targets of a cache's dataset lie unless told otherwise: with its videos."""
    return Path(cache.provenance["root"]) / TARGETS_FILE


def _loaded(targets: Targets | Path | str, task: str) -> Targets:
    """The targets, which must have something for the task."""
    where = "the targets" if isinstance(targets, Targets) else f"{targets}"
    loaded = targets if isinstance(targets, Targets) else Targets.load(Path(targets))
    there = {
        "boxes": loaded.boxes_cxcywh.shape[1],
        "points": loaded.points_xy.shape[1],
        "depth": min(loaded.depth_metres.shape[1:]),
        "pose": 1,
    }
    if not there[task]:
        some = ", ".join(name for name, size in there.items() if size)
        raise UsageError(f"{where} has no {task} (size 0), which task {task} needs; it has {some}")
    return loaded


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


Arrays = dict[str, NDArray[Any]]

_LEAST_SIDE = 1e-4  # of the crop: less of a box is none, but the rounding of its numbers
_MIRROR_X = np.diag([-1.0, 1.0, 1.0, 1.0])


def clip_boxes(targets: VideoTargets, frames_T: NDArray[np.int64], mask_T: NDArray[np.bool_], crop: SeenCrop) -> Arrays:
    """Boxes clipped to the crop and normalised to it.

    Returns:
        `boxes_cxcywh` [O,T,4]; `boxes_valid` [O,T]: real frame, visible, something of it in the crop, and so it was in
        the clip's first frame; `init_box_cxcywh` [O,4]: the box in that frame; `objects_valid` [O]: whether it has one.
    """
    boxes_TO4 = targets.boxes_cxcywh[frames_T].astype(np.float64)
    half = boxes_TO4[..., 2:] / 2
    corners = np.stack([crop.from_frame(boxes_TO4[..., :2] - half), crop.from_frame(boxes_TO4[..., :2] + half)])
    low, high = corners.min(axis=0).clip(0, 1), corners.max(axis=0).clip(0, 1)  # mirroring swaps left and right
    seen_TO = targets.boxes_visible[frames_T] & mask_T[:, None] & (high - low > _LEAST_SIDE).all(axis=-1)
    valid_OT = (seen_TO & seen_TO[:1]).T
    clipped_OT4 = np.concatenate([(low + high) / 2, high - low], axis=-1).swapaxes(0, 1)
    boxes_OT4 = np.where(valid_OT[..., None], clipped_OT4, 0).astype(np.float32)
    return {
        "boxes_cxcywh": boxes_OT4,
        "boxes_valid": valid_OT,
        "init_box_cxcywh": boxes_OT4[:, 0],
        "objects_valid": valid_OT[:, 0],
    }


def clip_points(
    targets: VideoTargets, frames_T: NDArray[np.int64], mask_T: NDArray[np.bool_], crop: SeenCrop
) -> Arrays:
    """Points normalised to the crop; hidden ones too, and those outside of it, whose coordinates leave 0 .. 1.

    Returns:
        `points_xy` [Q,T,2]; `points_visible` [Q,T]: real frame, visible, in the crop; `points_valid` [Q,T]: real frame
        of a point with a query; `query_xy` [Q,2] and `query_frame` [Q]: where it is first visible in the clip, 0 where
        it never is; `queries_valid` [Q]: whether it ever is.
    """
    xy_QT2 = crop.from_frame(targets.points_xy[frames_T]).swapaxes(0, 1)
    inside_QT = ((xy_QT2 >= 0) & (xy_QT2 <= 1)).all(axis=-1)
    visible_QT = targets.points_visible[frames_T].T & mask_T & inside_QT
    queries_valid = np.asarray(visible_QT.any(axis=1))
    query_frame = visible_QT.argmax(axis=1)
    query_xy = xy_QT2[np.arange(len(xy_QT2)), query_frame]
    return {
        "points_xy": xy_QT2.astype(np.float32),
        "points_visible": visible_QT,
        "points_valid": queries_valid[:, None] & mask_T,
        "query_xy": np.where(queries_valid[:, None], query_xy, 0).astype(np.float32),
        "query_frame": query_frame.astype(np.int64),
        "queries_valid": queries_valid,
    }


def clip_depth(
    targets: VideoTargets, frames_T: NDArray[np.int64], mask_T: NDArray[np.bool_], crop: SeenCrop, output_size: int
) -> Arrays:
    """Depth at the centres of the output's pixels: the measured value there, never a mean over an edge.

    Returns:
        `depth_metres` [T,S,S] with S = `output_size`, `depth_valid` [T,S,S].
    """
    height, width = targets.depth_metres.shape[1:]
    centres = (np.arange(output_size) + 0.5) / output_size
    seen_S2 = crop.to_frame(np.stack([centres, centres], axis=-1))
    columns = (seen_S2[:, 0] * width).astype(np.int64).clip(0, width - 1)
    rows = (seen_S2[:, 1] * height).astype(np.int64).clip(0, height - 1)
    # one dimension after the other, as float32: three times as fast as all at once
    depth_TSS = targets.depth_metres[frames_T].take(rows, axis=1).astype(np.float32).take(columns, axis=2)
    return {
        "depth_metres": depth_TSS,
        "depth_valid": np.broadcast_to(mask_T[:, None, None], depth_TSS.shape).copy(),
    }


def clip_pose(
    targets: VideoTargets, frames_T: NDArray[np.int64], mask_T: NDArray[np.bool_], *, mirrored: bool
) -> Arrays:
    """Pose of each frame's camera in the coordinates of the camera of the frame before it in the clip.

    With `world_from_camera` W_t it is inv(W_{t-1}) W_t = [rotation | translation]: a point p of camera t is at
    rotation p + translation for camera t-1, the translation is where camera t stands as camera t-1 sees it, and
    W_t = W_{t-1} [rotation | translation] composes the trajectory. Axes: x right, y down, z forward. A mirrored view
    is what a camera sees of the world mirrored in x, and moves accordingly: translation x and the rotations about y
    and z change their sign. A crop changes no pose.

    Returns:
        `translation_metres` [T,3], `rotation` [T,3,3]; the identity at frame 0, which has none before it. `pose_valid`
        [T]: False there and where a frame is not real.
    """
    world_T44 = targets.world_from_camera[frames_T].astype(np.float64)
    relative_T44 = np.tile(np.eye(4), (len(frames_T), 1, 1))
    relative_T44[1:] = np.linalg.inv(world_T44[:-1]) @ world_T44[1:]
    if mirrored:
        relative_T44 = _MIRROR_X @ relative_T44 @ _MIRROR_X
    valid_T = mask_T.copy()
    valid_T[0] = False
    return {
        "translation_metres": relative_T44[:, :3, 3].astype(np.float32),
        "rotation": relative_T44[:, :3, :3].astype(np.float32),
        "pose_valid": valid_T,
    }
