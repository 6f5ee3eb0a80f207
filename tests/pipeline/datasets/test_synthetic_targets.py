"""The targets of synthetic clips against their pixels, and against the pinhole model written out anew."""

from __future__ import annotations

import numpy as np
import pytest

from vfz.pipeline.datasets.synthetic import SyntheticParameters
from vfz.pipeline.datasets.synthetic.render import Rasters, rasterise, render_clip
from vfz.pipeline.datasets.synthetic.scene import Geometry, Scene, draw_scene, place

pytestmark = pytest.mark.quick

SIZE = 96
PARAMETERS = SyntheticParameters(num_frames=12, size=SIZE, seed=5)
INDICES = range(6)
HERO = 0

Clip = tuple[Scene, Geometry, Rasters, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Scene, geometry, rasters and targets of some clips, frames in the order left, up, grow."""
    result = []
    for index in INDICES:
        scene = draw_scene(np.random.default_rng([PARAMETERS.seed, index]))
        geometry = place(scene, 4)
        label = 3  # left_up_grow, in which the written order is that of the gestures
        frames, targets = render_clip(index, label, PARAMETERS)
        rasters = rasterise(scene, geometry, SIZE)
        np.testing.assert_array_equal(frames, rasters.frames)
        result.append((scene, geometry, rasters, targets))
    return result


def pinhole(camera_metres: np.ndarray) -> np.ndarray:
    """Camera points [..., 3] -> normalised image points [..., 2], as `vfz.pipeline.datasets.targets` documents it."""
    return camera_metres[..., :2] / camera_metres[..., 2:] + 0.5


def pixel(xy: np.ndarray) -> tuple[int, int]:
    column, row = np.floor(xy * SIZE).astype(int)
    return row, column


def test_boxes_bound_the_pixels_of_each_object_to_within_a_pixel(clips):
    alone = 0
    for _, geometry, rasters, targets in clips:
        for k, s in np.ndindex(geometry.sprite_turns.shape):
            rows, columns = np.nonzero(rasters.owners[k] == s + 1)
            if not len(rows):
                continue
            cx, cy, w, h = targets["boxes_cxcywh"][k, s] * SIZE
            seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            box = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
            assert (seen[:2] >= box[:2] - 1).all()
            assert (seen[2:] <= box[2:] + 1).all()
            if rasters.visible_shares[k, s] == 1:
                np.testing.assert_allclose(seen, box, atol=1.5)
                alone += 1
    assert alone > 50


def test_boxes_are_visible_where_a_tenth_of_the_object_is_seen(clips):
    for _, _, rasters, targets in clips:
        np.testing.assert_array_equal(targets["boxes_visible"], rasters.visible_shares >= 0.1)
        assert targets["boxes_visible"][:, HERO].all()


def test_the_hero_goes_left_then_up_then_grows_and_comes_back_each_time(clips):
    for _, _, _, targets in clips:
        cx, cy, w, _ = targets["boxes_cxcywh"][:, HERO].T
        rest = [3, 7, 11]
        assert cx[0:3].max() < cx[rest].min()
        assert cy[4:7].max() < cy[rest].min()
        assert w[8:11].min() > 1.15 * w[rest].max()


def test_visible_points_keep_the_colour_of_their_spot_and_other_spots_do_not(clips):
    changes, others = [], []
    for _, _, rasters, targets in clips:
        xy, visible = targets["points_xy"], targets["points_visible"]
        for p in range(xy.shape[1]):
            colours = [rasters.frames[(k, *pixel(xy[k, p]))].astype(float) for k in np.flatnonzero(visible[:, p])]
            changes += [np.abs(colour - np.median(colours, axis=0)).mean() for colour in colours]
            stuck = [rasters.frames[(k, *pixel(xy[0, p]))].astype(float) for k in range(12) if visible[0, p]]
            others += [np.abs(colour - np.median(stuck, axis=0)).mean() for colour in stuck]
    assert np.mean(changes) < 8
    assert np.mean(others) > 3 * np.mean(changes)


def test_points_are_visible_just_where_their_own_depth_is_the_depth_of_the_picture(clips):
    hidden = outside = 0
    for scene, geometry, rasters, targets in clips:
        plane_metres = np.concatenate(
            [np.full((12, 1), scene.background_metres), geometry.sprite_metres[..., 2]], axis=1
        )
        for k, p in np.ndindex(*targets["points_visible"].shape):
            xy, pose = targets["points_xy"][k, p], targets["world_from_camera"][k]
            if not ((xy >= 0) & (xy < 1)).all():
                assert not targets["points_visible"][k, p]
                outside += 1
                continue
            ray = pose[:3, :3] @ np.array([*(xy - 0.5), 1])
            own_metres = (plane_metres[k, geometry.point_owners[p]] - pose[2, 3]) / ray[2]
            seen_metres = float(rasters.depth_metres[(k, *pixel(xy))])
            if targets["points_visible"][k, p]:
                assert abs(seen_metres - own_metres) < 0.05
            else:
                assert seen_metres < own_metres, "what hides a point is nearer than it"
                assert rasters.owners[(k, *pixel(xy))] != geometry.point_owners[p]
                hidden += 1
    assert hidden > 10
    assert outside > 0


def test_points_sit_on_the_hero_the_distractors_and_the_background(clips):
    for _, geometry, _, _ in clips:
        assert set(geometry.point_owners) == {0, 1, 2, 3}


def test_camera_pose_and_depth_carry_background_points_to_where_they_are_seen_next(clips):
    compared = 0
    for _, geometry, rasters, targets in clips:
        poses = targets["world_from_camera"].astype(float)
        for p in np.flatnonzero(geometry.point_owners == 0):
            for k in np.flatnonzero(targets["points_visible"][:, p]):
                x, y = targets["points_xy"][k, p]
                depth = float(rasters.depth_metres[(k, *pixel(targets["points_xy"][k, p]))])
                world = poses[k] @ [(x - 0.5) * depth, (y - 0.5) * depth, depth, 1]
                seen_from_all = pinhole((np.linalg.inv(poses) @ world)[:, :3])
                assert np.abs(seen_from_all - targets["points_xy"][:, p]).max() * SIZE <= 0.5
                compared += 1
    assert compared > 100


def test_the_picture_shows_what_pose_and_depth_predict(clips):
    """Background pixels of frame 0, carried to another frame by depth and poses, have the same colour there."""
    rows, columns = np.mgrid[4:92:4, 4:92:4].reshape(2, -1)
    xy = np.stack([(columns + 0.5) / SIZE, (rows + 0.5) / SIZE], axis=-1)
    kept, moved, stayed = 0, [], []
    for _, _, rasters, targets in clips:
        poses = targets["world_from_camera"].astype(float)
        depth = rasters.depth_metres[0, rows, columns].astype(float)
        camera = np.concatenate([(xy - 0.5) * depth[:, None], depth[:, None]], axis=-1)
        world = camera @ poses[0, :3, :3].T + poses[0, :3, 3]
        for k in range(1, 12):
            carried = pinhole((world - poses[k, :3, 3]) @ poses[k, :3, :3])
            inside = ((carried > 0) & (carried < 1)).all(axis=1)
            to_columns, to_rows = np.floor(carried[inside] * SIZE).astype(int).T
            background = (rasters.owners[0, rows[inside], columns[inside]] == 0) & (
                rasters.owners[k, to_rows, to_columns] == 0
            )
            before = rasters.frames[0, rows[inside], columns[inside]][background].astype(float)
            moved.append(np.abs(rasters.frames[k, to_rows, to_columns][background] - before).mean())
            stayed.append(np.abs(rasters.frames[k, rows[inside], columns[inside]][background] - before).mean())
            kept += int(background.sum())
    assert kept > 10_000
    assert np.mean(moved) < 0.5 * np.mean(stayed)


def test_sprites_are_nearer_than_the_background_and_growing_is_coming_nearer(clips):
    for _, _, rasters, _ in clips:
        depth = rasters.depth_metres.astype(float)
        for k in range(12):
            assert depth[k][rasters.owners[k] > 0].max() < depth[k][rasters.owners[k] == 0].min() - 0.3
        hero_metres = [np.median(depth[k][rasters.owners[k] == HERO + 1]) for k in range(12)]
        assert max(hero_metres[8:11]) < min(hero_metres[:8]) - 0.3


def test_poses_are_rigid_and_the_camera_moves_from_frame_to_frame(clips):
    for _, _, _, targets in clips:
        poses = targets["world_from_camera"].astype(float)
        rotations = poses[:, :3, :3]
        np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (12, 1, 1)), atol=1e-6)
        np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-6)
        assert np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).min() > 1e-3


def test_targets_do_not_depend_on_the_class_but_for_their_order():
    _, one = render_clip(0, 0, PARAMETERS)
    _, other = render_clip(0, 5, PARAMETERS)
    for name in one:
        assert sorted(row.tobytes() for row in one[name]) == sorted(row.tobytes() for row in other[name])
        assert not np.array_equal(one[name], other[name]) or name == "boxes_visible"


def test_the_same_scene_at_another_size_has_the_same_geometry():
    _, small = render_clip(0, 0, PARAMETERS)
    _, large = render_clip(0, 0, SyntheticParameters(num_frames=12, size=128, seed=5))
    for name in ("boxes_cxcywh", "points_xy", "world_from_camera"):
        np.testing.assert_array_equal(small[name], large[name])
