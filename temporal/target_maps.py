"""Targets of one clip as the encoder saw it: pure functions from a video's targets to arrays of the clip.

Every function takes the targets of a video, which of their frames the clip's frames are, which of the clip's frames are
real (the others repeat the last one), and what the encoder saw of a frame. What is not valid is finite: zeros, or for
points where they would lie.

Shapes: T frames of a clip, O objects, Q points, S x S pixels of a depth map, F frames of the video's targets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfz.pipeline.crops import SeenCrop
from vfz.pipeline.datasets.targets import VideoTargets

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
