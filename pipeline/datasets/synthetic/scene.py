"""What happens in a synthetic clip, as geometry: nuisance in; camera, sprites, boxes and points of every frame out.

A hero sprite makes three gestures (left, up, grow) from its rest pose and back, among distractor sprites that move on
their own, before a background plane, seen by a camera that moves too. Every one of these motions is a function of
(gesture, phase) and of nothing else: were any of them a function of time, one frame would tell when it was taken, and
with it the class.

Conventions (those of `vfz.pipeline.datasets.targets`): metres; x right, y down, z forward; the world is the camera at
rest. Sprites are flat, parallel to the plane z = 0. The focal length is `FOCAL` frame widths, the principal point the
frame's centre.

Shapes: K = 3 x phases distinct frames of a clip, in the order of `GESTURES`; S sprites (the hero first); P points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfz.pipeline.datasets.synthetic import GESTURES

Floats = NDArray[np.float64]
AnyFloats = NDArray[Any]

FOCAL = 1.0
NUM_HARMONICS = 2
HERO_POINTS, DISTRACTOR_POINTS, BACKGROUND_POINTS = 6, 2, 6
OUTLINE_CORNERS = 96
# x, y, z in metres; rotations about x, y, z in radians: small beside the hero's own motion, which is the signal
CAMERA_AMPLITUDES = np.array([0.10, 0.10, 0.10, 0.015, 0.015, 0.03])


@dataclass(frozen=True, kw_only=True, eq=False)
class Sprite:
    """A flat shape with a lobed outline: radius(angle) = radius_metres (1 + depth cos(lobes angle)) / (1 + depth).

    Attributes:
        rest_metres: [3] its centre at rest, in the world.
        radius_metres: the largest distance of its outline from its centre.
        num_lobes: 2 gives an oval, 3 a rounded triangle, 5 a star.
        lobe_depth: 0 gives a disc.
        rest_turn: its rotation in its own plane at rest, in radians.
        motion_metres: [gestures, harmonics, 3] how far each harmonic of each gesture moves it.
        motion_turn: [gestures, harmonics] and turns it, in radians.
        points_metres: [points, 2] tracked points in its own plane, from its centre.
        texture_seed: what its texture is drawn from.
    """

    rest_metres: Floats
    radius_metres: float
    num_lobes: int
    lobe_depth: float
    rest_turn: float
    motion_metres: Floats
    motion_turn: Floats
    points_metres: Floats
    texture_seed: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """All nuisance parameters of a clip; the class is not among them.

    Attributes:
        sprites: the hero, then the distractors.
        background_metres: depth of the background plane.
        background_points_metres: [points, 3] tracked points on it.
        background_seed: what its texture is drawn from.
        camera_motion: [gestures, harmonics, 6] translation (metres) and rotation about x, y, z (radians) of the camera.
    """

    sprites: tuple[Sprite, ...]
    background_metres: float
    background_points_metres: Floats
    background_seed: int
    camera_motion: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """Where everything is in each distinct frame of a clip.

    Attributes:
        world_from_camera: [K, 4, 4].
        sprite_metres: [K, S, 3] centres in the world.
        sprite_turns: [K, S] rotations in their own planes, in radians.
        boxes_xyxy: [K, S, 4] of the whole outlines, normalised, not clipped to the frame.
        points_xy: [K, P, 2] normalised, also where they are hidden or outside the frame.
        point_owners: [P] 0 for the background, 1 + index of the sprite otherwise.
    """

    world_from_camera: Floats
    sprite_metres: Floats
    sprite_turns: Floats
    boxes_xyxy: Floats
    points_xy: Floats
    point_owners: NDArray[np.int64]


def draw_scene(rng: np.random.Generator) -> Scene:
    """The nuisance parameters of one clip."""
    background_metres = rng.uniform(5.0, 7.0)
    points_xy = rng.uniform(0.06, 0.94, (BACKGROUND_POINTS, 2))
    sprites = (
        _draw_hero(rng),
        _draw_distractor(rng, depth_metres=rng.uniform(1.6, 2.0)),  # passes in front of the hero
        _draw_distractor(rng, depth_metres=rng.uniform(3.2, 4.4)),  # passes behind it
    )
    return Scene(
        sprites=sprites,
        background_metres=background_metres,
        background_points_metres=unproject(points_xy, np.full(BACKGROUND_POINTS, background_metres)),
        background_seed=int(rng.integers(2**32)),
        camera_motion=rng.uniform(-1.0, 1.0, (len(GESTURES), NUM_HARMONICS, 6)) * CAMERA_AMPLITUDES,
    )


def _draw_hero(rng: np.random.Generator) -> Sprite:
    depth_metres = rng.uniform(2.2, 2.8)
    frame_metres = depth_metres / FOCAL  # how much of the hero's plane the frame shows
    motion_metres = np.zeros((len(GESTURES), NUM_HARMONICS, 3))
    motion_metres[GESTURES.index("left"), 0, 0] = -rng.uniform(0.34, 0.42) * frame_metres
    motion_metres[GESTURES.index("up"), 0, 1] = -rng.uniform(0.34, 0.42) * frame_metres
    motion_metres[GESTURES.index("grow"), 0, 2] = -(1 - 1 / rng.uniform(1.7, 2.1)) * depth_metres
    return _draw_sprite(
        rng,
        rest_metres=unproject(rng.uniform(0.58, 0.68, 2), np.asarray(depth_metres)),
        radius_metres=rng.uniform(0.14, 0.17) * frame_metres,
        motion_metres=motion_metres,
        motion_turn=np.zeros((len(GESTURES), NUM_HARMONICS)),
        num_points=HERO_POINTS,
    )


def _draw_distractor(rng: np.random.Generator, *, depth_metres: float) -> Sprite:
    frame_metres = depth_metres / FOCAL
    return _draw_sprite(
        rng,
        rest_metres=unproject(rng.uniform(0.12, 0.88, 2), np.asarray(depth_metres)),
        radius_metres=rng.uniform(0.06, 0.08) * frame_metres,
        motion_metres=rng.uniform(-1.0, 1.0, (len(GESTURES), NUM_HARMONICS, 3)) * frame_metres * [0.07, 0.07, 0.03],
        motion_turn=rng.uniform(-0.6, 0.6, (len(GESTURES), NUM_HARMONICS)),
        num_points=DISTRACTOR_POINTS,
    )


def _draw_sprite(
    rng: np.random.Generator,
    *,
    rest_metres: Floats,
    radius_metres: float,
    motion_metres: Floats,
    motion_turn: Floats,
    num_points: int,
) -> Sprite:
    num_lobes, lobe_depth = int(rng.integers(2, 6)), rng.uniform(0.1, 0.22)
    # well inside the outline, so that a point is on its sprite whatever the rounding to pixels
    angles = rng.uniform(0, 2 * np.pi, num_points)
    radii = outline_radius(angles, num_lobes, lobe_depth) * radius_metres * np.sqrt(rng.uniform(0.02, 0.5, num_points))
    return Sprite(
        rest_metres=rest_metres,
        radius_metres=radius_metres,
        num_lobes=num_lobes,
        lobe_depth=lobe_depth,
        rest_turn=rng.uniform(0, 2 * np.pi),
        motion_metres=motion_metres,
        motion_turn=motion_turn,
        points_metres=_around(angles, radii),
        texture_seed=int(rng.integers(2**32)),
    )


def outline_radius(angles: AnyFloats, num_lobes: int, lobe_depth: float) -> AnyFloats:
    """Distance of a sprite's outline from its centre at these angles, as a share of its largest (so at most 1)."""
    shares: AnyFloats = (1 + lobe_depth * np.cos(num_lobes * angles)) / (1 + lobe_depth)
    return shares


def place(scene: Scene, num_phases: int) -> Geometry:
    """Camera, sprites, boxes and points in each of the K = gestures x `num_phases` distinct frames of a clip."""
    # Every gesture ends in the rest pose, exactly: a clip's last frame is the same picture whatever gesture it ends.
    # Were it not, whoever sees the last frame alone would know the last gesture, and with it one class in two.
    phases = np.arange(1, num_phases + 1) / num_phases
    harmonics = np.sin(np.pi * np.outer(phases, np.arange(1, NUM_HARMONICS + 1)))
    harmonics[-1] = 0.0

    def moved(motion: Floats) -> Floats:
        """[gestures, harmonics, ...] -> [K, ...]."""
        by_gesture: Floats = np.einsum("ph,gh...->gp...", harmonics, motion)
        return by_gesture.reshape(-1, *motion.shape[2:])

    world_from_camera = _poses(moved(scene.camera_motion))
    centres = np.stack([sprite.rest_metres + moved(sprite.motion_metres) for sprite in scene.sprites], axis=1)
    turns = np.stack([sprite.rest_turn + moved(sprite.motion_turn) for sprite in scene.sprites], axis=1)

    num_frames = len(world_from_camera)
    points = [np.broadcast_to(scene.background_points_metres, (num_frames, BACKGROUND_POINTS, 3))]
    boxes, owners = [], [0] * BACKGROUND_POINTS
    angles = np.linspace(0, 2 * np.pi, OUTLINE_CORNERS, endpoint=False)
    for index, sprite in enumerate(scene.sprites):
        radii = sprite.radius_metres * outline_radius(angles, sprite.num_lobes, sprite.lobe_depth)
        outline = project(_in_world(_around(angles, radii), centres[:, index], turns[:, index]), world_from_camera)
        boxes.append(np.concatenate([outline.min(axis=1), outline.max(axis=1)], axis=-1))
        points.append(_in_world(sprite.points_metres, centres[:, index], turns[:, index]))
        owners += [index + 1] * len(sprite.points_metres)
    return Geometry(
        world_from_camera=world_from_camera,
        sprite_metres=centres,
        sprite_turns=turns,
        boxes_xyxy=np.stack(boxes, axis=1),
        points_xy=project(np.concatenate(points, axis=1), world_from_camera),
        point_owners=np.array(owners),
    )


def project(world_metres: Floats, world_from_camera: Floats) -> Floats:
    """World points [K, n, 3] as each frame's camera [K, 4, 4] sees them: [K, n, 2] normalised to the frame."""
    rotation, position = world_from_camera[:, :3, :3], world_from_camera[:, :3, 3]
    camera_metres = (world_metres - position[:, None]) @ rotation
    return FOCAL * camera_metres[..., :2] / camera_metres[..., 2:] + 0.5


def unproject(xy: Floats, depth_metres: Floats) -> Floats:
    """The world points [..., 3] that the camera at rest sees at `xy` [..., 2] and `depth_metres` [...]."""
    return np.concatenate([(xy - 0.5) / FOCAL, np.ones_like(xy[..., :1])], axis=-1) * depth_metres[..., None]


def _around(angles: Floats, radii: Floats) -> Floats:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1)


def _in_world(plane_metres: Floats, centres: Floats, turns: Floats) -> Floats:
    """Points [n, 2] in a sprite's plane -> [K, n, 3] in the world, for its centres [K, 3] and turns [K]."""
    cos, sin = np.cos(turns)[:, None], np.sin(turns)[:, None]
    x, y = plane_metres[:, 0], plane_metres[:, 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y, np.zeros((len(turns), len(x)))], axis=-1) + centres[:, None]


def _poses(motion: Floats) -> Floats:
    """[K, 6] translation (metres) and rotation about x, y, z (radians) -> [K, 4, 4] world_from_camera."""
    poses = np.tile(np.eye(4), (len(motion), 1, 1))
    for axis in range(3):
        first, second = [(1, 2), (2, 0), (0, 1)][axis]
        turn = np.tile(np.eye(3), (len(motion), 1, 1))
        cos, sin = np.cos(motion[:, 3 + axis]), np.sin(motion[:, 3 + axis])
        turn[:, first, first] = turn[:, second, second] = cos
        turn[:, first, second], turn[:, second, first] = -sin, sin
        poses[:, :3, :3] = turn @ poses[:, :3, :3]
    poses[:, :3, 3] = motion[:, :3]
    return poses
