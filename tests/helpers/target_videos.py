"""Videos of any proportions whose targets are known exactly, for tests of what the encoder saw of them.

A bright box with a red dot moves over a black ground, 0.5 m away before a wall at 2 m. `VFZ_DRAW_TARGETS=<folder>`
keeps pictures of the frames the encoder saw with the targets drawn on them: they are there to be looked at.
"""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from vfz.pipeline.datasets.targets import Targets

NUM_FRAMES, RATE = 12, 6
NEAR_METRES, FAR_METRES = 0.5, 2.0
DOT_PIXELS = 3  # its half side
ZOOM = 4


def moving_box(height, width):
    """Left, top, right, bottom [T, 4] of the box in pixels."""
    t = np.arange(NUM_FRAMES)
    left, top = (0.15 * width + 0.04 * width * t).astype(int), (0.2 * height + 0.02 * height * t).astype(int)
    return np.stack([left, top, left + int(0.3 * width), top + int(0.4 * height)], axis=-1)


def write_folder(root, sizes, *, frame_sizes=True, **changes):
    """A folder dataset `root/train/box/<number>.mp4` of frames of these sizes (height, width), with its targets."""
    boxes = [moving_box(height, width) for height, width in sizes]
    for number, (box, (height, width)) in enumerate(zip(boxes, sizes, strict=True)):
        _write_video(root / "train" / "box" / f"{number}.mp4", box, height, width)
    scale = np.concatenate([np.tile([width, height] * 2, (NUM_FRAMES, 1)) for height, width in sizes])
    corners = np.concatenate(boxes) / scale
    centres, extents = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    num_videos, num_frames = len(sizes), len(sizes) * NUM_FRAMES
    poses = np.tile(np.eye(4, dtype=np.float32), (num_frames, 1, 1))
    poses[:, 0, 3] = np.tile(np.arange(NUM_FRAMES) * 0.1, num_videos)
    arrays = {
        "video_ids": np.array([f"train/box/{number}" for number in range(num_videos)]),
        "frame_offsets": np.arange(num_videos + 1) * NUM_FRAMES,
        "times_seconds": np.tile(np.arange(NUM_FRAMES) / RATE, num_videos),
        "labels": np.zeros(num_videos, np.int64),
        "boxes_cxcywh": np.concatenate([centres, extents], axis=-1).astype(np.float32)[:, None],
        "boxes_visible": np.ones((num_frames, 1), bool),
        "points_xy": centres.astype(np.float32)[:, None],
        "points_visible": np.ones((num_frames, 1), bool),
        "depth_metres": np.stack([_depth(corner) for corner in corners]),
        "world_from_camera": poses,
        "intrinsics": np.tile(np.float32([1, 1, 0.5, 0.5]), (num_videos, 1)),
        "frame_sizes": np.array(sizes) if frame_sizes else None,
    }
    Targets(**{**arrays, **changes}).save(root / "targets.npz")
    return root


def _depth(corners, size=240):
    centres = (np.arange(size) + 0.5) / size
    inside_x = (centres > corners[0]) & (centres < corners[2])
    inside_y = (centres > corners[1]) & (centres < corners[3])
    return np.where(inside_y[:, None] & inside_x, NEAR_METRES, FAR_METRES).astype(np.float16)


def _write_video(path, box, height, width):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        for number, (left, top, right, bottom) in enumerate(box):
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[top:bottom, left:right] = 255
            x, y = (left + right) // 2, (top + bottom) // 2
            pixels[y - DOT_PIXELS : y + DOT_PIXELS, x - DOT_PIXELS : x + DOT_PIXELS] = [255, 0, 0]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def draw(name, pixels_TCSS, targets):
    """Saves the frames of a clip with its boxes (yellow), points and edges of depth (blue), if pictures are wanted.

    Points are green where they are visible, red where not, ringed white at the query frame. `targets` are those of one
    clip by name; there may be some of each task.
    """
    if not os.environ.get("VFZ_DRAW_TARGETS"):
        return
    size = pixels_TCSS.shape[-1] * ZOOM
    sheet = Image.new("RGB", (size * len(pixels_TCSS), size))
    for t, pixels_CSS in enumerate(pixels_TCSS):
        picture = Image.fromarray(np.ascontiguousarray(pixels_CSS.transpose(1, 2, 0))).resize((size, size), 0)
        pen = ImageDraw.Draw(picture)
        for xy in _edges(targets["depth_metres"][t]) if "depth_metres" in targets else ():
            pen.point([tuple(xy * size)], fill=(60, 120, 255))
        for (cx, cy, w, h), valid in _boxes(targets, t):
            if valid:
                corners = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * size
                pen.rectangle(tuple(corners), outline=(255, 230, 0))
        for xy, visible, queried in _points(targets, t):
            x, y = xy * size
            colour = (0, 255, 0) if visible else (255, 0, 0)
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour, outline=(255, 255, 255) if queried else colour)
        sheet.paste(picture, (t * size, 0))
    folder = Path(os.environ["VFZ_DRAW_TARGETS"])
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / f"{name}.png")


def _boxes(targets, t):
    if "boxes_cxcywh" in targets:
        yield from zip(targets["boxes_cxcywh"][:, t], targets["boxes_valid"][:, t], strict=True)


def _points(targets, t):
    if "points_xy" in targets:
        queried = (targets["query_frame"] == t) & targets["queries_valid"]
        yield from zip(targets["points_xy"][:, t], targets["points_visible"][:, t], queried, strict=True)


def _edges(depth_SS):
    """Normalised places [n, 2] where depth jumps by more than a tenth, finely enough to make a line."""
    across = np.abs(np.diff(depth_SS, axis=1)) > 0.1 * depth_SS[:, :-1]
    down = np.abs(np.diff(depth_SS, axis=0)) > 0.1 * depth_SS[:-1]
    along = np.linspace(0, 1, 2 * ZOOM)
    places = [[(j + 1), (i + f)] for i, j in np.argwhere(across) for f in along]
    places += [[(j + f), (i + 1)] for i, j in np.argwhere(down) for f in along]
    return np.array(places).reshape(-1, 2) / len(depth_SS)
