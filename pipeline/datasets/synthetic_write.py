"""The clips of a synthetic dataset, from seeds to mp4 files and `targets.npz`.

The distinct frames of a clip are rendered once, in the order of `GESTURES`; the class only says in which order they are
written. That a frame does not know the class is thereby true by construction. Memory: twice the depth maps of the whole
dataset as float16 (106 MB for 5,760 frames at 96 px).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vfz.pipeline.datasets.synthetic import CLASS_NAMES, FRAMES_PER_SECOND, GESTURES, SyntheticParameters
from vfz.pipeline.datasets.synthetic.render import Rasters, rasterise, write_mp4
from vfz.pipeline.datasets.synthetic.scene import FOCAL, Geometry, draw_scene, place
from vfz.pipeline.datasets.targets import Targets

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vfz.pipeline.datasets.base import OnProgress, VideoRecord

MINIMAL_VISIBLE_SHARE = 0.1  # of an object's pixels in the frame; below it, its box is marked invisible


def write_clips(
    folder: Path,
    records: Sequence[VideoRecord],
    parameters: SyntheticParameters,
    *,
    on_progress: OnProgress | None = None,
) -> None:
    """Render every record's video to its path, and `targets.npz` into `folder`.

    Raises:
        OSError: a file could not be written.
    """
    per_frame: dict[str, list[NDArray[Any]]] = {}
    for index, record in enumerate(records):
        assert record.label is not None  # noqa: S101 - every clip of this dataset has a class
        frames, targets = render_clip(index, record.label, parameters)
        record.source.path.parent.mkdir(parents=True, exist_ok=True)
        write_mp4(record.source.path, frames, frames_per_second=FRAMES_PER_SECOND)
        for name, array in targets.items():
            per_frame.setdefault(name, []).append(array)
        if on_progress is not None:
            on_progress(index + 1, len(records))
    Targets(
        video_ids=np.array([record.id for record in records]),
        frame_offsets=np.arange(len(records) + 1, dtype=np.int64) * parameters.num_frames,
        times_seconds=np.tile(np.arange(parameters.num_frames) / FRAMES_PER_SECOND, len(records)),
        labels=np.array([record.label for record in records], np.int64),
        intrinsics=np.tile(np.array([FOCAL, FOCAL, 0.5, 0.5], np.float32), (len(records), 1)),
        frame_sizes=np.full((len(records), 2), parameters.size, np.int64),
        **{name: np.concatenate(arrays) for name, arrays in per_frame.items()},
    ).save(folder / "targets.npz")


def render_clip(
    index: int, label: int, parameters: SyntheticParameters
) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
    """Frames [T, H, W, 3] of a clip, and its targets by name [T, ...], in the order that the class says.

    Everything but the order comes from (seed, index): clips of one index and several labels hold the same frames.
    """
    num_phases = parameters.num_frames // len(GESTURES)
    scene = draw_scene(np.random.default_rng([parameters.seed, index]))
    geometry = place(scene, num_phases)
    rasters = rasterise(scene, geometry, parameters.size)
    gestures = [GESTURES.index(gesture) for gesture in CLASS_NAMES[label].split("_")]
    order = np.concatenate([gesture * num_phases + np.arange(num_phases) for gesture in gestures])
    targets = _targets(geometry, rasters)
    return rasters.frames[order], {name: array[order] for name, array in targets.items()}


def _targets(geometry: Geometry, rasters: Rasters) -> dict[str, NDArray[Any]]:
    corners = np.clip(geometry.boxes_xyxy, 0, 1)
    low, high = corners[..., :2], corners[..., 2:]
    return {
        "boxes_cxcywh": np.concatenate([(low + high) / 2, high - low], axis=-1).astype(np.float32),
        "boxes_visible": (rasters.visible_shares >= MINIMAL_VISIBLE_SHARE) & (high > low).all(axis=-1),
        "points_xy": geometry.points_xy.astype(np.float32),
        "points_visible": _points_visible(geometry, rasters.owners),
        "depth_metres": rasters.depth_metres,
        "world_from_camera": geometry.world_from_camera.astype(np.float32),
    }


def _points_visible(geometry: Geometry, owners: NDArray[np.int8]) -> NDArray[np.bool_]:
    """[K, P]: in the frame, and the pixel that the point falls into shows the thing that it sits on."""
    num_frames, size = owners.shape[:2]
    pixels = np.floor(geometry.points_xy * size).astype(int)
    inside: NDArray[np.bool_] = ((pixels >= 0) & (pixels < size)).all(axis=-1)
    columns, rows = np.clip(pixels, 0, size - 1).transpose(2, 0, 1)
    seen: NDArray[np.bool_] = owners[np.arange(num_frames)[:, None], rows, columns] == geometry.point_owners
    return inside & seen
