"""Targets lie where the encoder saw things: checked on the pixels it was given, for crops, views and frame rates."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.target_videos import FAR_METRES, NEAR_METRES, NUM_FRAMES, draw, write_folder

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.datasets.synthetic import SyntheticParameters
from vfz.pipeline.datasets.synthetic.render import render_clip
from vfz.pipeline.datasets.targets import Targets
from vfz.pipeline.encoder.transforms import cropper_of
from vfz.pipeline.errors import DatasetError, UsageError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.live_encoder import LiveEncoder
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.recipe import recipe_from_dict
from vfz.temporal.data.loader import ClipLoader
from vfz.temporal.data.sampling import Augmentation, ClipRule
from vfz.temporal.data.targets import FrameTargets, default_targets_path
from vfz.temporal.data.tokens import CachedTokens, ClipRequest
from vfz.temporal.data.videos import clip_videos

CPU = torch.device("cpu")
IMAGE_SIZE = 64
SIZES = [(72, 128), (128, 80), (96, 96)]  # heights and widths


def cached(root, out, **changes):
    options = {
        "dataset": "folder",
        "root": root,
        "encoder": "vit_tiny_patch16_224",
        "random_weights": True,
        "layers": ("11",),
        "image_size": IMAGE_SIZE,
        "out": out,
        "views": 5,
        "flip": True,
    }
    return FeatureCache(extract(ExtractOptions(**options | changes)).cache)


@pytest.fixture(scope="module")
def folder_cache(tmp_path_factory):
    """Three videos of a moving box, wide, high and square, in five views, half of the random ones mirrored."""
    root = write_folder(tmp_path_factory.mktemp("boxes") / "videos", SIZES)
    return cached(root, tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="module")
def sprite_cache(tmp_path_factory):
    """Synthetic clips at 96 px, seen at 64 px in three views."""
    return cached(
        tmp_path_factory.mktemp("sprites") / "root",
        tmp_path_factory.mktemp("caches"),
        dataset="synthetic",
        num_videos=4,
        num_frames=6,
        views=3,
    )


def request(row, frames=None):
    frames = np.arange(row.num_frames) if frames is None else np.array(frames)
    return ClipRequest(video=row, frames=frames, mask=np.ones(len(frames), bool))


def targets_of(cache, row, task, frames=None, **more):
    """The targets of one clip, by name, without the dimension of the batch."""
    clip = request(row, frames)
    pts_seconds = cache.pts_seconds(row.id, row.view)[clip.frames][None]
    found = FrameTargets(cache, task=task, **more).for_clips([clip], pts_seconds)
    return {name: tensor[0].numpy() for name, tensor in found.items()}


def all_targets(cache, row):
    found = {}
    for task in ("boxes", "points", "depth"):
        found |= targets_of(cache, row, task, output_size=IMAGE_SIZE if task == "depth" else None)
    return found


def seen_pixels(cache, live, row):
    """What the encoder was given [T,3,S,S], decoded anew."""
    assert live.encoder.preprocess.image_size == IMAGE_SIZE
    return live.pixels(row, np.arange(row.num_frames)).numpy()


def edges_of(mask_SS):
    """Left, top, right, bottom of what is set, in pixels."""
    rows, columns = np.flatnonzero(mask_SS.any(axis=1)), np.flatnonzero(mask_SS.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def corners(box_cxcywh):
    return np.concatenate([box_cxcywh[:2] - box_cxcywh[2:] / 2, box_cxcywh[:2] + box_cxcywh[2:] / 2]) * IMAGE_SIZE


@pytest.mark.parametrize("view", range(5))
def test_boxes_points_and_depth_lie_on_the_pixels_of_videos_of_any_proportions(folder_cache, view):
    live = LiveEncoder(folder_cache, layers=("11",), device=CPU)
    num_boxes = num_dots = 0
    for row in folder_cache.ok_videos("train", view=view):
        pixels_TCSS, found = seen_pixels(folder_cache, live, row), all_targets(folder_cache, row)
        draw(f"folder-{row.id.replace('/', '-')}-view{view}", pixels_TCSS, found)
        for t in range(NUM_FRAMES):
            bright = pixels_TCSS[t, 0] > 127
            if not found["boxes_valid"][0, t]:
                assert not bright.any() or not found["objects_valid"][0]
                continue
            num_boxes += 1
            np.testing.assert_allclose(corners(found["boxes_cxcywh"][0, t]), edges_of(bright), atol=1.5)
            near = found["depth_metres"][t] < (NEAR_METRES + FAR_METRES) / 2
            assert (near != bright).mean() < 0.04  # its outline
            red = pixels_TCSS[t, 0].astype(int) - pixels_TCSS[t, 1]
            if found["points_visible"][0, t] and (found["points_xy"][0, t] * IMAGE_SIZE % (IMAGE_SIZE - 3) > 3).all():
                num_dots += 1
                column, row_number = (found["points_xy"][0, t] * IMAGE_SIZE).astype(int)
                assert red[row_number, column] > 127
    assert num_boxes >= NUM_FRAMES
    assert num_dots >= NUM_FRAMES


def test_some_of_these_views_are_mirrored_and_some_are_not(folder_cache):
    targets = FrameTargets(folder_cache, task="boxes")
    crops = [targets.crop_of(row) for view in range(1, 5) for row in folder_cache.ok_videos("train", view=view)]
    assert {crop.mirrored for crop in crops} == {True, False}
    assert len({(crop.x0, crop.y0) for crop in crops}) > 4


@pytest.mark.parametrize("view", range(3))
def test_boxes_of_synthetic_clips_bound_their_sprites_and_depth_knows_them(sprite_cache, view):
    live = LiveEncoder(sprite_cache, layers=("11",), device=CPU)
    parameters = SyntheticParameters(num_videos=4, num_frames=6, size=96)
    num_checked = 0
    for row in sprite_cache.ok_videos(view=view):
        pixels_TCSS, found = seen_pixels(sprite_cache, live, row), all_targets(sprite_cache, row)
        draw(f"synthetic-{row.id.replace('/', '-')}-view{view}", pixels_TCSS, found)
        whole = render_clip(int(row.id.split("/")[1]), row.label, parameters)[1]
        for t in np.flatnonzero(found["boxes_valid"][0]):
            silhouette = _hero(whole, t)
            if silhouette is None:
                continue
            seen, box = _as_pixels(sprite_cache, live, row, silhouette), corners(found["boxes_cxcywh"][0, t])
            if (box < 1).any() or (box > IMAGE_SIZE - 1).any():
                # The box of the whole sprite was cut, and not every part of it reaches as far as the whole.
                assert ((edges_of(seen) - box) * [1, 1, -1, -1] > -1.5).all()
                continue
            num_checked += 1
            np.testing.assert_allclose(box, edges_of(seen), atol=1.5)
            hero_metres = np.median(found["depth_metres"][t][seen])
            assert ((np.abs(found["depth_metres"][t] - hero_metres) < 0.02) != seen).mean() < 0.03
    assert num_checked >= 6


def _hero(whole, t):
    """Which pixels of a frame show the first sprite, by depth; None where something nearer hides a part of it."""
    points = np.flatnonzero(whole["points_visible"][t, 6:12]) + 6  # behind those of the background
    if not len(points):
        return None
    columns, rows = (whole["points_xy"][t, points] * 96).astype(int).T
    metres = np.median(whole["depth_metres"][t, rows, columns])
    left, top, right, bottom = (corners(whole["boxes_cxcywh"][t, 0]) * 96 / IMAGE_SIZE).round().astype(int)
    if whole["depth_metres"][t, max(0, top) : bottom, max(0, left) : right].min() < metres - 0.05:
        return None
    return np.abs(whole["depth_metres"][t] - metres) < 0.05


def _as_pixels(cache, live, row, mask_HW):
    """A mask resized and cropped as the picture is."""
    picture = np.repeat(mask_HW[..., None].astype(np.uint8) * 255, 3, axis=2)
    preprocess, cropper = live.encoder.preprocess, cropper_of(recipe_from_dict(cache.recipe).views, row.id, row.view)
    if cropper is None:
        return preprocess.resize_crop(picture)[0].numpy() > 127
    return preprocess.resize_view(picture, cropper.crop(*mask_HW.shape))[0].numpy() > 127


def test_frame_sizes_are_read_off_the_videos_where_the_targets_do_not_tell_them(folder_cache):
    told = Targets.load(default_targets_path(folder_cache))
    silent = dataclasses.replace(told, frame_sizes=None)
    for view in (0, 2):
        for row in folder_cache.ok_videos("train", view=view):
            expected = FrameTargets(folder_cache, task="boxes", targets=told).crop_of(row)
            assert FrameTargets(folder_cache, task="boxes", targets=silent).crop_of(row) == expected


def test_a_frame_size_that_nobody_knows_is_asked_for(tmp_path):
    root = write_folder(tmp_path / "videos", [(48, 64)], frame_sizes=False)
    cache = cached(root, tmp_path / "caches", views=1)
    (root / "train" / "box" / "0.mp4").unlink()
    (row,) = cache.ok_videos()
    with pytest.raises(DatasetError, match=r"'train/box/0': the size of its frames is not known.*put frame_sizes into"):
        targets_of(cache, row, "boxes")
    assert targets_of(cache, row, "pose")["pose_valid"].any(), "poses need no size"


def test_frames_take_the_target_nearest_in_time(tmp_path):
    root = write_folder(tmp_path / "videos", [(64, 64)])
    cache = cached(root, tmp_path / "caches", views=1, fps=3.0)
    (row,) = cache.ok_videos()
    assert row.num_frames == NUM_FRAMES // 2
    known = Targets.load(root / "targets.npz")
    found = targets_of(cache, row, "boxes", [0, 2, 5])
    np.testing.assert_allclose(found["boxes_cxcywh"][0], known.boxes_cxcywh[[0, 4, 10], 0], atol=1e-6)
    pose = targets_of(cache, row, "pose", [0, 2, 5])
    np.testing.assert_allclose(pose["translation_metres"][:, 0], [0, 0.4, 0.6], atol=1e-6)


def test_the_frames_that_the_rule_centred_repeats_are_not_valid(tmp_path):
    root = write_folder(tmp_path / "videos", [(64, 64)])
    cache = cached(root, tmp_path / "caches", views=1, frames="centred", clip_frames=16)
    (row,) = cache.ok_videos()
    FrameTargets(cache, task="boxes").check(clip_videos(cache, "train"))
    assert targets_of(cache, row, "boxes")["boxes_valid"].tolist() == [[True] * 12 + [False] * 4]
    pose = targets_of(cache, row, "pose")
    assert pose["pose_valid"].tolist() == [False] + [True] * 11 + [False] * 4


def loader(cache, **more):
    videos = clip_videos(cache, "train", views=more.pop("views", (0,)))
    options = {"rule": ClipRule(num_frames=8), "batch_size": 2, "device": CPU}
    return ClipLoader(CachedTokens(cache, layers=("11",), parts="all"), videos, **options | more)


@pytest.mark.parametrize("task", ["boxes", "points", "depth", "pose"])
def test_a_loader_gives_every_clip_its_own_targets(folder_cache, task):
    size = 16 if task == "depth" else None
    targets = FrameTargets(folder_cache, task=task, output_size=size)
    augmentation = Augmentation(random_view=True)
    rows = {(row.id, view): row for view in range(5) for row in folder_cache.ok_videos("train", view=view)}
    num_clips = 0
    for batch in loader(folder_cache, views=range(5), targets=targets, augmentation=augmentation).training_epoch(0):
        for place, video_id in enumerate(batch.video_ids):
            frames = (batch.pts_seconds_BT[place] * 6).round().long().tolist()
            found = {name: tensor[place].numpy() for name, tensor in batch.targets.items()}
            candidates = [
                targets_of(folder_cache, rows[video_id, view], task, frames, output_size=size) for view in range(5)
            ]
            same = [all(np.array_equal(found[name], other[name]) for name in found) for other in candidates]
            # which view it was, the tokens tell
            read = [folder_cache.read(video_id, frames, 11, view=view).tokens(11, "all") for view in range(5)]
            tokens = batch.layers_BTND[0][place].numpy()
            view = next(view for view in range(5) if np.array_equal(read[view], tokens))
            assert same[view]
            num_clips += 1
    assert num_clips == len(SIZES)


def changed(cache, **changes):
    return dataclasses.replace(Targets.load(default_targets_path(cache)), **changes)


def test_targets_of_another_length_are_refused_before_the_first_batch(folder_cache):
    known = changed(folder_cache)
    slower = changed(folder_cache, times_seconds=known.times_seconds * 3)
    with pytest.raises(
        DatasetError, match=r"'train/box/\d': its targets go on to 5.500 s, its last cached frame is at 1.8"
    ):
        loader(folder_cache, targets=FrameTargets(folder_cache, task="boxes", targets=slower))
    faster = changed(folder_cache, times_seconds=known.times_seconds / 3)
    with pytest.raises(
        DatasetError, match=r"no target within 0.029 s of its frame at 0.667 s; its 12 .* 0.000 to 0.611 s"
    ):
        loader(folder_cache, targets=FrameTargets(folder_cache, task="boxes", targets=faster))


def test_a_video_without_targets_is_named(folder_cache):
    renamed = changed(folder_cache, video_ids=np.array(["train/box/0", "train/box/7", "train/box/2"]))
    with pytest.raises(DatasetError, match="no targets for video 'train/box/1'"):
        loader(folder_cache, targets=FrameTargets(folder_cache, task="pose", targets=renamed))


def test_what_the_targets_do_not_have_is_refused(folder_cache, tmp_path):
    num_frames = NUM_FRAMES * len(SIZES)
    nothing = {
        "boxes": {
            "boxes_cxcywh": np.zeros((num_frames, 0, 4), np.float32),
            "boxes_visible": np.zeros((num_frames, 0), bool),
        },
        "points": {
            "points_xy": np.zeros((num_frames, 0, 2), np.float32),
            "points_visible": np.zeros((num_frames, 0), bool),
        },
        "depth": {"depth_metres": np.zeros((num_frames, 0, 0), np.float16)},
    }
    for task, arrays in nothing.items():
        with pytest.raises(UsageError, match=f"has no {task} .size 0., which task {task} needs; it has .*pose"):
            FrameTargets(
                folder_cache,
                task=task,
                targets=changed(folder_cache, **arrays),
                output_size=8 if task == "depth" else None,
            )
    with pytest.raises(UsageError, match=r"'classify' has no targets in targets.npz; those with some: boxes"):
        FrameTargets(folder_cache, task="classify")
    with pytest.raises(UsageError, match="output size None for task depth"):
        FrameTargets(folder_cache, task="depth")
    with pytest.raises(DatasetError, match="there is no targets file"):
        FrameTargets(folder_cache, task="boxes", targets=tmp_path / "targets.npz")
    with pytest.raises(UsageError, match="2 targets were given for 1 caches"):
        FrameTargets(folder_cache, task="boxes", targets=[tmp_path, tmp_path])


def test_numbers_that_are_not_finite_are_refused_where_the_file_is_read(folder_cache, tmp_path):
    arrays = dict(np.load(default_targets_path(folder_cache)))
    arrays["points_xy"][3] = np.nan
    np.savez(tmp_path / "targets.npz", **arrays)
    with pytest.raises(DatasetError, match="points_xy holds numbers that are not finite"):
        FrameTargets(folder_cache, task="points", targets=tmp_path / "targets.npz")


def test_tokens_are_not_dropped_where_places_are_asked_about(folder_cache):
    targets = FrameTargets(folder_cache, task="points")
    with pytest.raises(
        UsageError, match=r"token dropout 0.5 with task points: .* set it to 0 for boxes, points, depth"
    ):
        loader(folder_cache, targets=targets, augmentation=Augmentation(token_dropout=0.5))
