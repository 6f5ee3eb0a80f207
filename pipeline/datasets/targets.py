"""`targets.npz`: what is known about every frame of a dataset, in one schema that serves all five tasks.

The arrays, videos one after another along frames (V videos, F frames of all of them, O objects, P points):

    video_ids           [V] str             the ids that the dataset and the cache use
    frame_offsets       [V+1] int64         video v has the frames frame_offsets[v] : frame_offsets[v+1]
    times_seconds       [F] float64         presentation times, ascending within a video
    labels              [V] int64           classify: index into the dataset's class names, -1 where there is none
    boxes_cxcywh        [F, O, 4] float32   boxes: centre x, centre y, width, height
    boxes_visible       [F, O] bool         whether enough of the object is seen to ask for its box
    points_xy           [F, P, 2] float32   points: x, y; kept where the point is hidden or outside the frame
    points_visible      [F, P] bool         inside the frame and not hidden
    depth_metres        [F, h, w] float16   depth, along the camera's z axis (not along the ray)
    world_from_camera   [F, 4, 4] float32   pose: camera coordinates -> world coordinates, metres
    intrinsics          [V, 4] float32      fx, fy, cx, cy, normalised as coordinates are (fx in frame widths)
    frame_sizes         [V, 2] int64        height and width of the frames in pixels; may be left out

Object o and point p are the same thing in all frames of a video. A task that a dataset knows nothing of has size 0
(O, P, or h and w). Where `frame_sizes` is left out, the videos themselves are asked when sizes are needed.

Conventions. Image coordinates are normalised to the full frame: (0, 0) is the outer corner of the top left pixel and
(1, 1) that of the bottom right one, so pixel (row i, column j) of an h x w picture has its centre at x = (j + 0.5) / w,
y = (i + 0.5) / h; this also holds for the depth map, whatever its size. Boxes bound the whole object, hidden parts too,
and are clipped to the frame (of size 0 where it is outside). Camera and world coordinates are right-handed: x right,
y down, z forward. A camera point (X, Y, Z) is seen at x = fx X / Z + cx, y = fy Y / Z + cy.

Saving and loading cost one pass of zlib over the depth maps (0.4 s for 5,760 frames of 96 x 96 at loading).
"""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from vfz.pipeline.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


# name -> (shape with one letter per dimension and digits for fixed sizes, kind of number)
_SCHEMA: dict[str, tuple[tuple[str | int, ...], type[np.generic]]] = {
    "video_ids": (("V",), np.str_),
    "frame_offsets": (("V+1",), np.int64),
    "times_seconds": (("F",), np.float64),
    "labels": (("V",), np.int64),
    "boxes_cxcywh": (("F", "O", 4), np.float32),
    "boxes_visible": (("F", "O"), np.bool_),
    "points_xy": (("F", "P", 2), np.float32),
    "points_visible": (("F", "P"), np.bool_),
    "depth_metres": (("F", "h", "w"), np.float16),
    "world_from_camera": (("F", 4, 4), np.float32),
    "intrinsics": (("V", 4), np.float32),
    "frame_sizes": (("V", 2), np.int64),
}
_OPTIONAL = {"frame_sizes"}


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoTargets:
    """The targets of one video with T frames; see the module for what the arrays hold."""

    label: int
    times_seconds: NDArray[np.float64]
    boxes_cxcywh: NDArray[np.float32]
    boxes_visible: NDArray[np.bool_]
    points_xy: NDArray[np.float32]
    points_visible: NDArray[np.bool_]
    depth_metres: NDArray[np.float16]
    world_from_camera: NDArray[np.float32]
    intrinsics: NDArray[np.float32]
    frame_size: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """The targets of a dataset; see the module for what the arrays hold.

    Raises:
        DatasetError: the arrays do not fit the schema or each other.
    """

    video_ids: NDArray[np.str_]
    frame_offsets: NDArray[np.int64]
    times_seconds: NDArray[np.float64]
    labels: NDArray[np.int64]
    boxes_cxcywh: NDArray[np.float32]
    boxes_visible: NDArray[np.bool_]
    points_xy: NDArray[np.float32]
    points_visible: NDArray[np.bool_]
    depth_metres: NDArray[np.float16]
    world_from_camera: NDArray[np.float32]
    intrinsics: NDArray[np.float32]
    frame_sizes: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_videos()
        self._check_values()

    def _check_shapes(self) -> None:
        num_videos, num_frames = len(self.video_ids), len(self.times_seconds)
        sizes: dict[str | int, int] = {"V": num_videos, "V+1": num_videos + 1, "F": num_frames}
        for name, array in self._arrays().items():
            shape, kind = _SCHEMA[name]
            if not np.issubdtype(array.dtype, kind):
                raise DatasetError(f"targets: {name} is {array.dtype}, expected {kind.__name__}")
            if array.ndim != len(shape):
                raise DatasetError(f"targets: {name} has shape {array.shape}, expected {_shown(shape)}")
            for letter, size in zip(shape, array.shape, strict=True):
                expected = letter if isinstance(letter, int) else sizes.setdefault(letter, size)
                if size != expected:
                    raise DatasetError(
                        f"targets: {name} has shape {array.shape}, expected {_shown(shape)} with {sizes}"
                    )

    def _check_videos(self) -> None:
        offsets = self.frame_offsets
        if offsets[0] != 0 or offsets[-1] != len(self.times_seconds) or np.any(np.diff(offsets) < 1):
            raise DatasetError(
                f"targets: frame_offsets must rise from 0 to {len(self.times_seconds)} (the number of frames) "
                "by at least one frame a video"
            )
        if len(self._index_of) != len(self.video_ids):
            raise DatasetError("targets: video_ids holds an id twice")
        same_video = np.ones(max(len(self.times_seconds) - 1, 0), bool)
        same_video[offsets[1:-1] - 1] = False
        if np.any(np.diff(self.times_seconds)[same_video] <= 0):
            raise DatasetError("targets: times_seconds must ascend within a video")

    def _check_values(self) -> None:
        for name, array in self._arrays().items():
            if issubclass(_SCHEMA[name][1], np.floating) and not np.isfinite(array).all():
                raise DatasetError(f"targets: {name} holds numbers that are not finite")
        boxes = self.boxes_cxcywh[self.boxes_visible]
        if boxes.size and (boxes.min() < 0 or boxes.max() > 1 or boxes[:, 2:].min() <= 0):
            raise DatasetError("targets: boxes_cxcywh of a visible object must lie in 0 .. 1 and have a size")
        points = self.points_xy[self.points_visible]
        if points.size and (points.min() < 0 or points.max() > 1):
            raise DatasetError("targets: points_xy of a visible point must lie in 0 .. 1")
        if self.depth_metres.size and self.depth_metres.min() <= 0:
            raise DatasetError("targets: depth_metres must be positive")
        if np.any(self.world_from_camera[:, 3] != [0, 0, 0, 1]):
            raise DatasetError("targets: the last row of world_from_camera must be 0 0 0 1")
        if self.labels.size and self.labels.min() < -1:
            raise DatasetError("targets: labels must be class indices, or -1 where a video has none")
        if self.frame_sizes is not None and self.frame_sizes.size and self.frame_sizes.min() < 1:
            raise DatasetError("targets: frame_sizes must be heights and widths of at least one pixel")

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """What there is, by name."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: array for name, array in arrays.items() if array is not None or name not in _OPTIONAL}

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {video_id: index for index, video_id in enumerate(self.video_ids.tolist())}

    def for_video(self, video_id: str) -> VideoTargets:
        """The targets of one video, as views of these arrays.

        Raises:
            DatasetError: there is no such video.
        """
        if video_id not in self._index_of:
            raise DatasetError(
                f"no targets for video {video_id!r}; there are {len(self.video_ids)} videos in the targets"
            )
        index = self._index_of[video_id]
        frames = slice(int(self.frame_offsets[index]), int(self.frame_offsets[index + 1]))
        height, width = (0, 0) if self.frame_sizes is None else self.frame_sizes[index].tolist()
        return VideoTargets(
            label=int(self.labels[index]),
            times_seconds=self.times_seconds[frames],
            boxes_cxcywh=self.boxes_cxcywh[frames],
            boxes_visible=self.boxes_visible[frames],
            points_xy=self.points_xy[frames],
            points_visible=self.points_visible[frames],
            depth_metres=self.depth_metres[frames],
            world_from_camera=self.world_from_camera[frames],
            intrinsics=self.intrinsics[index],
            frame_size=None if self.frame_sizes is None else (height, width),
        )

    def save(self, path: Path) -> None:
        """Write the arrays to `path`; the same arrays give the same bytes."""
        arrays: dict[str, Any] = self._arrays()
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Targets:
        """Read and check what `save` wrote; nothing is unpickled.

        Raises:
            DatasetError: there is no such file, it is damaged, or its arrays do not fit the schema.
        """
        try:
            with path.open("rb") as opened:
                file = np.load(opened, allow_pickle=False)
                if not isinstance(file, np.lib.npyio.NpzFile) or set(file.files) | _OPTIONAL != set(_SCHEMA):
                    found = set(getattr(file, "files", ()))
                    different = ", ".join(sorted((found | _OPTIONAL) ^ set(_SCHEMA)))
                    raise DatasetError(
                        f"{path} holds other arrays than a targets file; missing or unknown: {different}"
                    )
                arrays = {name: file[name] for name in file.files}
        except FileNotFoundError as error:
            raise DatasetError(f"there is no targets file {path}") from error
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DatasetError(f"{path} cannot be read as a targets file: {error}") from error
        return cls(**arrays)


def _shown(shape: tuple[str | int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
