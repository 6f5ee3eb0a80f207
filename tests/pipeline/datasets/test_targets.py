"""`targets.npz`: what goes in comes out, and nothing that contradicts itself goes in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfz.pipeline.datasets.targets import Targets
from vfz.pipeline.errors import DatasetError

pytestmark = pytest.mark.quick


def make_targets(
    lengths: list[int], *, objects: int = 2, points: int = 3, height: int = 4, width: int = 5, seed: int = 0
) -> Targets:
    rng = np.random.default_rng(seed)
    frames = sum(lengths)
    centres = rng.uniform(0.4, 0.6, (frames, objects, 2))
    return Targets(
        video_ids=np.array([f"train/vidéo {index}" for index in range(len(lengths))]),
        frame_offsets=np.cumsum([0, *lengths]),
        times_seconds=np.concatenate([rng.uniform(0.01, 1, length).cumsum() for length in lengths]),
        labels=rng.integers(-1, 6, len(lengths)),
        boxes_cxcywh=np.concatenate([centres, rng.uniform(0.1, 0.5, centres.shape)], axis=-1).astype(np.float32),
        boxes_visible=rng.random((frames, objects)) < 0.5,
        points_xy=rng.uniform(0, 1, (frames, points, 2)).astype(np.float32),
        points_visible=rng.random((frames, points)) < 0.5,
        depth_metres=rng.uniform(0.5, 9, (frames, height, width)).astype(np.float16),
        world_from_camera=np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1)),
        intrinsics=np.tile(np.array([1, 1, 0.5, 0.5], np.float32), (len(lengths), 1)),
    )


def assert_same(one: object, other: object) -> None:
    assert dataclasses.is_dataclass(one)
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), strict=True)


@settings(deadline=None)  # it waits for the disk
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    objects=st.integers(0, 3),
    points=st.integers(0, 3),
    side=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_what_is_saved_is_loaded(tmp_path_factory, lengths, objects, points, side, seed):
    targets = make_targets(lengths, objects=objects, points=points, height=side, width=side, seed=seed)
    path = tmp_path_factory.mktemp("targets") / "targets.npz"
    targets.save(path)
    assert_same(targets, Targets.load(path))


def test_the_same_targets_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        make_targets([2, 3]).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_video_gets_its_own_frames():
    targets = make_targets([2, 3, 1])
    video = targets.for_video("train/vidéo 1")
    assert video.label == targets.labels[1]
    np.testing.assert_array_equal(video.times_seconds, targets.times_seconds[2:5])
    np.testing.assert_array_equal(video.depth_metres, targets.depth_metres[2:5])
    assert video.boxes_cxcywh.shape == (3, 2, 4)
    assert video.intrinsics.shape == (4,)


def test_a_video_that_is_not_there_is_named():
    with pytest.raises(DatasetError, match="no targets for video 'train/9'"):
        make_targets([1]).for_video("train/9")


def shrink(array):
    return array[:-1]


def poison(array):
    array = array.copy()
    array[0] = np.nan
    return array


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("labels", shrink, r"labels has shape \(1,\)"),
        ("boxes_visible", lambda a: a[:, :1], r"boxes_visible has shape .* expected \[F, O\]"),
        ("boxes_cxcywh", lambda a: a[..., :3], r"boxes_cxcywh has shape .* expected \[F, O, 4\]"),
        ("points_xy", lambda a: a[0], r"points_xy has shape"),
        ("depth_metres", lambda a: a.astype(np.float64), "depth_metres is float64"),
        ("points_visible", lambda a: a.astype(np.uint8), "points_visible is uint8"),
        ("frame_offsets", lambda a: a + 1, "frame_offsets must rise from 0"),
        ("frame_offsets", lambda _: np.array([0, 0, 5]), "at least one frame a video"),
        ("times_seconds", np.zeros_like, "must ascend within a video"),
        ("video_ids", lambda a: a[[0, 0]], "holds an id twice"),
        ("labels", lambda a: a - 9, "labels must be"),
        ("times_seconds", poison, "times_seconds holds numbers that are not finite"),
        ("world_from_camera", lambda a: a * 2, "last row of world_from_camera"),
        ("depth_metres", lambda a: a * 0, "depth_metres must be positive"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(field, change, message):
    targets = make_targets([2, 3])
    with pytest.raises(DatasetError, match=message):
        dataclasses.replace(targets, **{field: change(getattr(targets, field))})


def test_only_what_is_visible_must_lie_in_the_frame():
    targets = make_targets([2, 3])
    outside, nothing_seen = targets.points_xy + 5, np.zeros_like(targets.points_visible)
    dataclasses.replace(targets, points_xy=outside, points_visible=nothing_seen)
    with pytest.raises(DatasetError, match="points_xy of a visible point"):
        dataclasses.replace(targets, points_xy=outside, points_visible=~nothing_seen)
    with pytest.raises(DatasetError, match="boxes_cxcywh of a visible object"):
        dataclasses.replace(targets, boxes_cxcywh=targets.boxes_cxcywh * 0, boxes_visible=~targets.boxes_visible)


def test_files_that_are_no_targets_are_refused(tmp_path):
    path = tmp_path / "targets.npz"
    with pytest.raises(DatasetError, match="there is no targets file"):
        Targets.load(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(DatasetError, match="cannot be read"):
        Targets.load(path)
    make_targets([2]).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="cannot be read"):
        Targets.load(path)
    np.savez(path, labels=np.zeros(3))
    with pytest.raises(DatasetError, match=r"missing or unknown: .*video_ids"):
        Targets.load(path)


def test_pickled_arrays_are_never_loaded(tmp_path):
    path = tmp_path / "targets.npz"
    targets = make_targets([2])
    arrays = {field.name: getattr(targets, field.name) for field in dataclasses.fields(targets)}
    np.savez(path, **{**arrays, "labels": np.array([object()], dtype=object)}, allow_pickle=True)
    with pytest.raises(DatasetError, match="cannot be read"):
        Targets.load(path)
