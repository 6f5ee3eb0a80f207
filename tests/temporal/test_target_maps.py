"""Targets of a clip, worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfz.pipeline.datasets.targets import VideoTargets
from vfz.pipeline.encoder.transforms import SeenCrop
from vfz.temporal.data.targets import clip_boxes, clip_depth, clip_points, clip_pose

WHOLE = SeenCrop(x0=0, y0=0, x1=1, y1=1)
MIRRORED = SeenCrop(x0=0, y0=0, x1=1, y1=1, mirrored=True)
RIGHT_HALF = SeenCrop(x0=0.5, y0=0, x1=1, y1=1)


def video(**changes):
    """Three frames, of one object, one point and 2 x 4 depths, in which nothing moves."""
    known = {
        "label": 0,
        "times_seconds": np.arange(3) / 6,
        "boxes_cxcywh": np.tile(np.float32([0.5, 0.25, 0.25, 0.5]), (3, 1, 1)),
        "boxes_visible": np.ones((3, 1), bool),
        "points_xy": np.tile(np.float32([0.75, 0.25]), (3, 1, 1)),
        "points_visible": np.ones((3, 1), bool),
        "depth_metres": np.tile(np.float16([[1, 2, 3, 4], [5, 6, 7, 8]]), (3, 1, 1)),
        "world_from_camera": np.tile(np.eye(4, dtype=np.float32), (3, 1, 1)),
        "intrinsics": np.float32([1, 1, 0.5, 0.5]),
        "frame_size": (48, 96),
    }
    return VideoTargets(**{**known, **changes})


def mapped(function, crop=WHOLE, *more, frames=(0, 1, 2), mask=(True, True, True), **changes):
    return function(video(**changes), np.array(frames), np.array(mask), crop, *more)


def test_a_box_is_clipped_to_the_crop_and_normalised_to_it():
    boxes = mapped(clip_boxes, RIGHT_HALF)
    np.testing.assert_allclose(boxes["boxes_cxcywh"], np.tile([0.125, 0.25, 0.25, 0.5], (1, 3, 1)))
    assert boxes["boxes_valid"].all()
    assert boxes["objects_valid"].all()
    np.testing.assert_array_equal(boxes["init_box_cxcywh"], boxes["boxes_cxcywh"][:, 0])


def test_a_mirrored_box_keeps_its_size_and_changes_sides():
    boxes = mapped(clip_boxes, MIRRORED, boxes_cxcywh=np.tile(np.float32([0.2, 0.25, 0.1, 0.5]), (3, 1, 1)))
    np.testing.assert_allclose(boxes["boxes_cxcywh"][0, 0], [0.8, 0.25, 0.1, 0.5], rtol=1e-6)


def test_a_box_is_invalid_where_it_is_hidden_gone_from_the_crop_or_its_frame_is_repeated():
    boxes_cxcywh = np.float32([[[0.9, 0.5, 0.1, 0.2]], [[0.4, 0.5, 0.2, 0.2]], [[0.9, 0.5, 0.1, 0.2]]])
    gone = mapped(clip_boxes, RIGHT_HALF, boxes_cxcywh=boxes_cxcywh)
    assert gone["boxes_valid"].tolist() == [[True, False, True]]
    assert (gone["boxes_cxcywh"][0, 1] == 0).all()
    hidden = mapped(clip_boxes, boxes_visible=np.array([[True], [True], [False]]))
    assert hidden["boxes_valid"].tolist() == [[True, True, False]]
    repeated = mapped(clip_boxes, frames=(1, 2, 2), mask=(True, True, False))
    assert repeated["boxes_valid"].tolist() == [[True, True, False]]


def test_an_object_without_a_box_in_the_first_frame_is_asked_for_in_no_frame():
    boxes = mapped(clip_boxes, boxes_visible=np.array([[False], [True], [True]]))
    assert not boxes["objects_valid"].any()
    assert not boxes["boxes_valid"].any()
    assert (boxes["init_box_cxcywh"] == 0).all()


def test_a_point_is_queried_where_it_is_first_visible_in_the_crop():
    points_xy = np.float32([[[0.4, 0.5]], [[0.6, 0.5]], [[0.75, 0.5]]])
    points = mapped(clip_points, RIGHT_HALF, points_xy=points_xy)
    np.testing.assert_allclose(points["points_xy"][0], [[-0.2, 0.5], [0.2, 0.5], [0.5, 0.5]], atol=1e-6)
    assert points["points_visible"].tolist() == [[False, True, True]]
    assert (points["query_frame"].tolist(), points["queries_valid"].tolist()) == ([1], [True])
    np.testing.assert_array_equal(points["query_xy"][0], points["points_xy"][0, 1])
    assert points["points_valid"].all()


def test_a_point_that_is_never_visible_is_no_query():
    points = mapped(clip_points, points_visible=np.zeros((3, 1), bool))
    assert not points["queries_valid"].any()
    assert not points["points_valid"].any()
    assert (points["query_frame"].tolist(), points["query_xy"].tolist()) == ([0], [[0, 0]])


def test_a_point_is_not_visible_in_a_repeated_frame():
    points = mapped(clip_points, MIRRORED, mask=(True, True, False))
    assert points["points_visible"].tolist() == points["points_valid"].tolist() == [[True, True, False]]
    np.testing.assert_allclose(points["points_xy"][0, 0], [0.25, 0.25])


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        (WHOLE, [[1, 3], [5, 7]]),
        (RIGHT_HALF, [[3, 4], [7, 8]]),
        (SeenCrop(x0=0.5, y0=0, x1=1, y1=1, mirrored=True), [[4, 3], [8, 7]]),
    ],
)
def test_depth_is_what_was_measured_at_the_centres_of_the_pixels(crop, expected):
    # the centre of an output pixel of the whole frame lies between two measured ones: the right one counts
    depth = mapped(clip_depth, crop, 2, mask=(True, True, False))
    expected = [[2, 4], [6, 8]] if crop is WHOLE else expected
    np.testing.assert_array_equal(depth["depth_metres"][0], expected)
    assert depth["depth_valid"].all(axis=(1, 2)).tolist() == [True, True, False]
    assert not depth["depth_valid"][2].any()


@given(st.integers(1, 9), st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0.6, 1), st.floats(0.6, 1), st.booleans())
def test_depths_are_never_mixed(size, x0, y0, x1, y1, mirrored):
    depth = mapped(clip_depth, SeenCrop(x0=x0, y0=y0, x1=x1, y1=y1, mirrored=mirrored), size)
    assert set(np.unique(depth["depth_metres"])) <= set(range(1, 9))


def trajectory(num_frames, seed):
    """Poses [T,4,4] that turn and move at random."""
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (num_frames, 1, 1))
    for pose in poses:
        turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        pose[:3, :3] = turn * np.sign(np.linalg.det(turn))
        pose[:3, 3] = rng.standard_normal(3)
    return poses.astype(np.float32)


def relative(poses, frames, *, mirrored=False):
    known = video(world_from_camera=poses)
    return clip_pose(known, np.array(frames), np.ones(len(frames), bool), mirrored=mirrored)


@given(seed=st.integers(0, 99), frames=st.lists(st.integers(0, 7), min_size=2, max_size=8).map(sorted))
def test_relative_poses_compose_to_the_trajectory(seed, frames):
    poses = trajectory(8, seed)
    found = relative(poses, frames)
    world = poses[frames[0]].astype(np.float64)
    for t in range(1, len(frames)):
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = found["rotation"][t], found["translation_metres"][t]
        world = world @ step
        np.testing.assert_allclose(world, poses[frames[t]], atol=1e-4)
    assert found["pose_valid"].tolist() == [False] + [True] * (len(frames) - 1)
    np.testing.assert_array_equal(found["rotation"][0], np.eye(3))


def test_a_camera_that_moves_forward_and_right_has_a_positive_translation():
    poses = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    poses[1, :3, 3] = [0.1, 0, 0.5]
    np.testing.assert_allclose(relative(poses, [0, 1])["translation_metres"][1], [0.1, 0, 0.5], rtol=1e-6)


def seen(points, pose):
    """Image coordinates of world points [n,3], principal point at 0."""
    camera = (points - pose[:3, 3]) @ pose[:3, :3]
    return camera[:, :2] / camera[:, 2:]


def test_the_pose_of_a_mirrored_view_explains_the_mirrored_pictures():
    # Points of the mirrored world, followed by the mirrored motion, are seen where the mirrored pictures show them.
    rng = np.random.default_rng(0)
    points = rng.uniform([-1, -1, 4], [1, 1, 6], (20, 3))
    angle = 0.1
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, :3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    poses[1, :3, 3] = [0.2, -0.1, 0.3]
    found = relative(poses.astype(np.float32), [0, 1], mirrored=True)
    mirrored_pose = np.eye(4)
    mirrored_pose[:3, :3], mirrored_pose[:3, 3] = found["rotation"][1], found["translation_metres"][1]
    expected = seen(points, poses[1]) * [-1, 1]
    np.testing.assert_allclose(seen(points * [-1, 1, 1], mirrored_pose), expected, atol=1e-6)
    assert found["translation_metres"][1] == pytest.approx([-0.2, -0.1, 0.3])
