"""The files of a synthetic dataset, from seeds: targets, and mp4 files whose frames know nothing of each other.

Every plane (background, sprites) is cast ray by ray: pixel -> point on the plane -> nearest texel of a texture with at
least two texels a pixel. That is exact for any camera pose, so targets and pixels cannot disagree. The distinct frames
of a clip are rendered once, in the order of `GESTURES`; the class only says in which order they are written. So by
construction no frame knows the class.

Shapes: K distinct frames and T frames of a clip, S sprites, P points, H = W = size.

Cost: about 1.5 ms a frame of 96 px on one core, two thirds for drawing (textures included), one third for encoding.
Memory: twice the depth maps of the whole dataset as float16 (106 MB for 5,760 frames at 96 px).
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from numpy.typing import NDArray

from vfz.pipeline.datasets.synthetic import CLASS_NAMES, FRAMES_PER_SECOND, GESTURES, SyntheticParameters
from vfz.pipeline.datasets.synthetic.scene import FOCAL, Geometry, Scene, Sprite, draw_scene, outline_radius, place
from vfz.pipeline.datasets.targets import Targets

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vfz.pipeline.datasets.base import OnProgress, VideoRecord

Bytes = NDArray[np.uint8]
Singles = NDArray[np.float32]
BACKGROUND = 0
SPRITE_MARGIN = 1.1  # a sprite's texture reaches this many radii, so that its border is transparent
BACKGROUND_TILE_FRAMES = 1.25  # the background's texture repeats after this many frame widths
MINIMAL_VISIBLE_SHARE = 0.1  # of an object's pixels in the frame; below it, its box is marked invisible
QUANTISER = 18
# All-intra with one fixed quantiser: a predicted frame or a rate-controlled one would depend on the frames before it.
X264_OPTIONS = {
    "preset": "veryfast",
    "qp": str(QUANTISER),
    "x264-params": "keyint=1:min-keyint=1:scenecut=0:bframes=0:aq-mode=0:mbtree=0:rc-lookahead=0:threads=1",
}


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Rasters:
    """The distinct frames of a clip as pixels.

    Attributes:
        frames: [K, H, W, 3] uint8 RGB.
        depth_metres: [K, H, W] float16, along the camera's z axis.
        owners: [K, H, W] int8: `BACKGROUND`, or 1 + index of the sprite that is seen there.
        visible_shares: [K, S] the share of a sprite's pixels in the frame that no nearer sprite hides.
    """

    frames: Bytes
    depth_metres: NDArray[np.float16]
    owners: NDArray[np.int8]
    visible_shares: Singles


def rasterise(scene: Scene, geometry: Geometry, size: int) -> Rasters:
    """Draw all distinct frames of a clip, far planes first."""
    num_frames, num_sprites = geometry.sprite_turns.shape
    rasters = Rasters(
        frames=np.empty((num_frames, size, size, 3), np.uint8),
        depth_metres=np.empty((num_frames, size, size), np.float16),
        owners=np.full((num_frames, size, size), BACKGROUND, np.int8),
        visible_shares=np.zeros((num_frames, num_sprites), np.float32),
    )
    background = _background_texture(scene.background_seed, _texels_for(BACKGROUND_TILE_FRAMES * size))
    sides = np.ptp(geometry.boxes_xyxy.reshape(num_frames, num_sprites, 2, 2), axis=2).max(axis=(0, 2)) * size
    sprites = [_sprite_texture(sprite, _texels_for(side)) for sprite, side in zip(scene.sprites, sides, strict=True)]
    for k in range(num_frames):
        canvas = _Canvas(rasters, k, geometry.world_from_camera[k])
        canvas.paint_background(background, scene.background_metres)
        drawn_pixels = np.zeros(num_sprites)
        for s in np.argsort(-geometry.sprite_metres[k, :, 2]):
            drawn_pixels[s] = canvas.paint_sprite(
                sprites[s],
                owner=s + 1,
                box_xyxy=geometry.boxes_xyxy[k, s],
                centre_metres=geometry.sprite_metres[k, s],
                turn=geometry.sprite_turns[k, s],
                reach_metres=scene.sprites[s].radius_metres * SPRITE_MARGIN,
            )
        seen_pixels = np.bincount(rasters.owners[k].ravel(), minlength=num_sprites + 1)[1:]
        rasters.visible_shares[k] = seen_pixels / np.maximum(drawn_pixels, 1)
    return rasters


def _texels_for(pixels: float) -> int:
    """A power of two with two to four texels a pixel: smooth under nearest-texel sampling, and few sizes to cache."""
    return 1 << int(2 * pixels - 1).bit_length()


class _Canvas:
    """One frame being painted: its slice of the rasters and the ray through every pixel."""

    def __init__(self, rasters: Rasters, k: int, world_from_camera: NDArray[np.float64]) -> None:
        self.frame, self.depth, self.owners = rasters.frames[k], rasters.depth_metres[k], rasters.owners[k]
        self.size = len(self.frame)
        rotation = world_from_camera[:3, :3].astype(np.float32)[..., None, None]
        self.position = world_from_camera[:3, 3].astype(np.float32)
        along = _ray_slopes(self.size)
        # written out, since a matrix product would wake BLAS's threads for every frame
        self.rays = rotation[:, 0] * along + rotation[:, 1] * along[:, None] + rotation[:, 2]

    def _cast(self, region: tuple[slice, slice], plane_metres: float) -> tuple[Singles, Singles, Singles]:
        """Depth, and world x and y, where the rays of a region meet the plane z = `plane_metres`."""
        rays = self.rays[:, *region]
        depth = (np.float32(plane_metres) - self.position[2]) / rays[2]
        return depth, self.position[0] + depth * rays[0], self.position[1] + depth * rays[1]

    def paint_background(self, texture: Bytes, plane_metres: float) -> None:
        depth, x, y = self._cast((slice(None), slice(None)), plane_metres)
        texels = len(texture)
        per_metre = np.float32(texels * FOCAL / (BACKGROUND_TILE_FRAMES * plane_metres))
        # periods are powers of two; whole ones are added to keep numbers positive, where cutting to int rounds down
        columns = (x * per_metre + 8 * texels).astype(np.int32) & (texels - 1)
        rows = (y * per_metre + 8 * texels).astype(np.int32) & (texels - 1)
        self.frame[...] = _look_up(texture, rows, columns)[..., :3]
        self.depth[...] = depth

    def paint_sprite(
        self,
        texture: Bytes,
        *,
        owner: int,
        box_xyxy: NDArray[np.float64],
        centre_metres: NDArray[np.float64],
        turn: float,
        reach_metres: float,
    ) -> int:
        """Paint a sprite over what is there; how many of its pixels fell into the frame."""
        left, top, right, bottom = np.clip(box_xyxy * self.size + [-2, -2, 2, 2], 0, self.size).astype(int)
        if left >= right or top >= bottom:
            return 0
        region = slice(top, bottom), slice(left, right)
        depth, x, y = self._cast(region, centre_metres[2])
        x, y = x - np.float32(centre_metres[0]), y - np.float32(centre_metres[1])
        cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        half = len(texture) / 2
        scale = np.float32(half / reach_metres)
        columns = np.clip((cos * x + sin * y) * scale + half, 0, len(texture) - 1).astype(np.int32)
        rows = np.clip((cos * y - sin * x) * scale + half, 0, len(texture) - 1).astype(np.int32)
        colours = _look_up(texture, rows, columns)
        alpha = colours[..., 3:].astype(np.uint16)
        self.frame[region] = (colours[..., :3] * alpha + self.frame[region] * (255 - alpha) + 127) // 255
        solid = alpha[..., 0] >= 128
        np.copyto(self.depth[region], depth, where=solid, casting="same_kind")
        np.copyto(self.owners[region], np.int8(owner), where=solid)
        return int(np.count_nonzero(solid))


def _ray_slopes(size: int) -> Singles:
    """[size] x/z (and y/z) of the rays through the pixel centres, in the camera's frame."""
    return (((np.arange(size) + 0.5) / size - 0.5) / FOCAL).astype(np.float32)


def _look_up(texture: Bytes, rows: NDArray[np.int32], columns: NDArray[np.int32]) -> Bytes:
    # four bytes are taken as one number: a third of the time of indexing colours
    packed = texture.view(np.uint32).ravel()
    return packed.take(rows * len(texture) + columns)[..., None].view(np.uint8)


def _background_texture(seed: int, texels: int) -> Bytes:
    """[texels, texels, 4] periodic noise in muted colours, opaque."""
    rng = np.random.default_rng(seed)
    colours = (
        rng.uniform(80, 160, (3, 1, 1)).astype(np.float32)
        + 45 * _noise(rng, texels, cells=6)
        + 30 * _noise(rng, texels, cells=20)
    )
    rgba = np.full((texels, texels, 4), 255, np.uint8)
    rgba[..., :3] = colours.clip(0, 255).transpose(1, 2, 0)
    return rgba


def _sprite_texture(sprite: Sprite, texels: int) -> Bytes:
    """[texels, texels, 4] stripes or checks of two strong colours, transparent outside the outline."""
    rng = np.random.default_rng(sprite.texture_seed)
    x, y, radius, angle = _plane(texels)
    direction = rng.uniform(0, np.pi)
    waves = []
    for turn in (direction, direction + np.pi / 2):
        frequency, offset = rng.uniform(5, 9), rng.uniform(0, 2 * np.pi)
        along_x, along_y = np.float32(frequency * np.cos(turn)), np.float32(frequency * np.sin(turn))
        waves.append(np.sin(along_x * x + along_y * y + np.float32(offset)))
    pattern = waves[0] * waves[1] if rng.random() < 0.5 else waves[0]
    first = rng.permuted([rng.uniform(215, 255), rng.uniform(30, 225), rng.uniform(0, 40)])
    second = 255 - first if rng.random() < 0.5 else np.full(3, rng.choice([15.0, 240.0]))
    palette = np.zeros((256, 4), np.uint8)
    palette[:, :3] = first + (second - first) * np.linspace(0, 1, 256)[:, None]
    rgba = palette[(127.5 + 500 * pattern).clip(0, 255).astype(np.uint8)]
    edge = outline_radius(angle, sprite.num_lobes, sprite.lobe_depth) - radius
    rgba[..., 3] = (127.5 + 40 * texels * edge).clip(0, 255)
    return rgba


@functools.lru_cache(maxsize=4)
def _plane(texels: int) -> tuple[Singles, Singles, Singles, Singles]:
    """x, y, radius and angle of every texel of a sprite's texture, in radii of the sprite."""
    centres = ((np.arange(texels) + 0.5) / texels * 2 - 1) * SPRITE_MARGIN
    x, y = np.meshgrid(centres.astype(np.float32), centres.astype(np.float32))
    return x, y, np.hypot(x, y), np.arctan2(y, x)


def _noise(rng: np.random.Generator, texels: int, *, cells: int) -> Singles:
    """[3, texels, texels] smooth periodic noise in [-1, 1], with `cells` random values a side."""
    values = rng.uniform(-1, 1, (3, cells, cells)).astype(np.float32)
    position = np.arange(texels) * cells / texels
    before = position.astype(int)
    after = (before + 1) % cells
    share = position - before
    step: Singles = (share * share * (3 - 2 * share)).astype(np.float32)
    rows: Singles = values[:, before] * (1 - step[:, None]) + values[:, after] * step[:, None]
    return rows[:, :, before] * (1 - step) + rows[:, :, after] * step


def write_mp4(path: Path, frames: Bytes, *, frames_per_second: int) -> None:
    """Write RGB frames [T, H, W, 3] as H.264, every frame an IDR picture; the same frames give the same bytes."""
    file = io.BytesIO()  # so that a full disk is an ordinary OSError, not one of FFmpeg's
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(frames_per_second), options=X264_OPTIONS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(file.getvalue())
