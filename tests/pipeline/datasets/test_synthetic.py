"""The synthetic dataset on disk, and its one promise: the class lies in the order of frames and nowhere else."""

from __future__ import annotations

import errno
import json
from collections import Counter
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from contracts.dataset_contract import DatasetContract

from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.datasets.synthetic import CLASS_NAMES, FRAMES_PER_SECOND, SyntheticDataset, SyntheticParameters
from vfz.pipeline.datasets.synthetic.render import render_clip, write_mp4
from vfz.pipeline.datasets.targets import Targets
from vfz.pipeline.errors import DatasetError, StorageError, UsageError

pytestmark = pytest.mark.quick

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {"num_videos": 13, "num_frames": 6, "size": 34, "seed": 3}


@pytest.fixture(scope="module")
def small_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "synthetic"
    open_dataset("synthetic", root=root, **SMALL)
    return root


class TestSyntheticContract(DatasetContract):
    @pytest.fixture
    def open_again(self, small_root):
        return lambda: open_dataset("synthetic", root=small_root, **SMALL)


def decode(path: Path) -> np.ndarray:
    """[T, H, W, 3] uint8."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# The order of frames


@pytest.fixture(scope="module", params=[0, 1, 2])
def orders(request, tmp_path_factory) -> list[np.ndarray]:
    """Clips [12, H, W, 3] of one nuisance and all six classes, through H.264 and back."""
    parameters = SyntheticParameters(num_frames=12, size=48, seed=7)
    clips = []
    for label in range(len(CLASS_NAMES)):
        path = tmp_path_factory.mktemp("orders") / "clip.mp4"
        write_mp4(path, render_clip(request.param, label, parameters)[0], frames_per_second=FRAMES_PER_SECOND)
        clips.append(decode(path))
    return clips


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_decoded_multiset_of_frames_is_the_same_bit_for_bit_in_all_six_orders(orders, stride):
    multisets = [sorted(frame.tobytes() for frame in clip[::stride]) for clip in orders]
    assert all(multiset == multisets[0] for multiset in multisets)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_sequence_of_frames_differs_between_any_two_orders(orders, stride):
    assert len({clip[::stride].tobytes() for clip in orders}) == len(CLASS_NAMES)


def test_every_gesture_ends_in_the_same_rest_pose_and_its_other_frames_all_differ(orders):
    first = orders[0]
    assert len({frame.tobytes() for frame in first}) == 1 + 3 * 3
    assert first[3].tobytes() == first[7].tobytes() == first[11].tobytes()


def test_the_last_frame_is_the_same_picture_in_all_six_orders(orders):
    """A core without memory sees nothing else."""
    assert len({clip[-1].tobytes() for clip in orders}) == 1


def test_order_blind_statistics_are_the_same_in_all_six_orders(orders):
    def statistics(clip):
        pixels = clip.astype(np.int64)
        return pixels.sum(axis=0), np.sort(pixels.sum(axis=(1, 2, 3))), np.sort((pixels**2).sum(axis=(1, 2)), axis=0)

    expected = statistics(orders[0])
    for clip in orders[1:]:
        for value, wanted in zip(statistics(clip), expected, strict=True):
            np.testing.assert_array_equal(value, wanted)


def test_shuffling_frames_makes_the_six_classes_indistinguishable(orders):
    shuffled = [clip[np.argsort([frame.tobytes() for frame in clip])] for clip in orders]
    assert all(np.array_equal(clip, shuffled[0]) for clip in shuffled)


def test_each_frame_is_decoded_the_same_on_its_own_as_in_its_clip(orders, tmp_path):
    frames, _ = render_clip(0, 0, SyntheticParameters(num_frames=12, size=48, seed=7))
    write_mp4(tmp_path / "whole.mp4", frames, frames_per_second=6)
    whole = decode(tmp_path / "whole.mp4")
    for index in (0, 5, 11):
        write_mp4(tmp_path / "one.mp4", frames[index : index + 1], frames_per_second=6)
        np.testing.assert_array_equal(decode(tmp_path / "one.mp4")[0], whole[index])


def test_a_clip_tells_nothing_of_its_neighbours_by_its_file():
    # the index decides the nuisance, a permutation that knows only the seed decides the class
    labels = [label for _, label in SyntheticParameters().splits_and_labels()]
    assert labels != sorted(labels)
    assert abs(np.corrcoef(np.arange(360), labels[:360])[0, 1]) < 0.1
    others = [label for _, label in SyntheticParameters(seed=1).splits_and_labels()]
    assert labels != others


# The files


def test_videos_are_intra_coded_h264_at_six_frames_a_second(small_root):
    for path in sorted(small_root.rglob("*.mp4")):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size]
            assert stream.codec_context.name == "h264"
            assert all(packet.is_keyframe for packet in packets)
            assert [float(packet.pts * packet.time_base) for packet in packets] == [k / 6 for k in range(6)]
        with av.open(str(path)) as container:
            frames = list(container.decode(video=0))
            assert all(frame.key_frame and frame.pict_type == av.video.frame.PictureType.I for frame in frames)
            assert {(frame.width, frame.height, frame.format.name) for frame in frames} == {(34, 34, "yuv420p")}


def test_the_decoded_picture_is_the_rendered_one(tmp_path):
    frames, _ = render_clip(0, 0, SyntheticParameters(num_frames=6, size=96))
    write_mp4(tmp_path / "clip.mp4", frames, frames_per_second=6)
    errors = np.abs(decode(tmp_path / "clip.mp4").astype(int) - frames)
    assert errors.mean() < 8  # chroma is stored at half size; strong colours meet at every edge here


def test_the_same_seed_gives_the_same_bytes_and_another_seed_gives_others(small_root, tmp_path):
    open_dataset("synthetic", root=tmp_path / "again", **SMALL)
    assert files_below(tmp_path / "again") == files_below(small_root)
    open_dataset("synthetic", root=tmp_path / "other", **{**SMALL, "seed": 4})
    mine, other = files_below(small_root), files_below(tmp_path / "other")
    assert not {mine[name] for name in mine if name.endswith(".mp4")} & set(other.values())


def test_files_lie_as_a_folder_dataset_expects_them(small_root):
    folder = open_dataset("folder", root=small_root)
    synthetic = open_dataset("synthetic", root=small_root, **SMALL)
    assert folder.class_names == synthetic.class_names
    assert {(r.source, r.split, r.label) for r in folder.videos()} == {
        (r.source, r.split, r.label) for r in synthetic.videos()
    }


def test_the_targets_name_the_same_videos_labels_and_times(small_root):
    dataset = open_dataset("synthetic", root=small_root, **SMALL)
    targets = Targets.load(dataset.targets_path)
    assert [(i, label) for i, label in zip(targets.video_ids, targets.labels, strict=True)] == [
        (record.id, record.label) for record in dataset.videos()
    ]
    np.testing.assert_array_equal(targets.for_video("train/000004").times_seconds, np.arange(6) / 6)


@pytest.mark.parametrize("num_videos", [4, 13, 100, 480])
def test_three_quarters_train_and_classes_balance_in_each_split(num_videos):
    videos = SyntheticParameters(num_videos=num_videos).splits_and_labels()
    counts = Counter(split for split, _ in videos)
    assert counts["train"] + counts["test"] == num_videos
    assert abs(counts["train"] - 0.75 * num_videos) <= 0.5
    for split in counts:
        per_class = [videos.count((split, label)) for label in range(6)]
        assert max(per_class) - min(per_class) <= 1


# Making and finding it


def test_a_second_opening_renders_nothing(small_root, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("rendered again")

    monkeypatch.setattr("vfz.pipeline.datasets.synthetic.render.write_clips", refuse)
    calls = []
    open_dataset("synthetic", root=small_root, **SMALL, on_progress=lambda *call: calls.append(call))
    assert calls == []


def test_progress_counts_every_video(tmp_path):
    calls = []
    options = {"num_videos": 4, "num_frames": 6, "size": 32}
    open_dataset("synthetic", root=tmp_path / "new", **options, on_progress=lambda *call: calls.append(call))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_it_is_made_in_an_empty_folder_and_in_folders_that_are_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "a" / "b" / "new"):
        open_dataset("synthetic", root=root, num_videos=4, num_frames=6, size=32)
        assert {path.name for path in root.iterdir()} == {"train", "test", "targets.npz", "manifest.json"}
        assert [path for path in root.parent.iterdir() if path.name.startswith(".")] == []


def test_without_a_root_the_environment_or_the_data_folder_says_where(tmp_path, monkeypatch):
    options = {"num_videos": 4, "num_frames": 6, "size": 32}
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VFZ_DATA_SYNTHETIC", raising=False)
    dataset = open_dataset("synthetic", **options)
    assert dataset.name == "synthetic-4x6-32px-seed0"
    assert (tmp_path / "data" / dataset.name / "manifest.json").is_file()
    monkeypatch.setenv("VFZ_DATA_SYNTHETIC", str(tmp_path / "elsewhere"))
    assert open_dataset("synthetic", **options).root == tmp_path / "elsewhere"


def test_a_dataset_of_other_parameters_is_refused_with_the_difference(small_root):
    with pytest.raises(DatasetError, match="num_frames there 6, requested 12, seed there 3, requested 0; delete it or"):
        open_dataset("synthetic", root=small_root, num_videos=13, size=34)


def test_a_dataset_of_another_renderer_is_refused(small_root, monkeypatch):
    monkeypatch.setattr("vfz.pipeline.datasets.synthetic.RENDERER_VERSION", 99)
    with pytest.raises(DatasetError, match="renderer_version there 1, requested 99"):
        open_dataset("synthetic", root=small_root, **SMALL)


@pytest.mark.parametrize("content", [None, "not json", json.dumps([1])])
def test_a_half_made_folder_is_refused_and_left_alone(tmp_path, content):
    root = tmp_path / "half"
    (root / "train").mkdir(parents=True)
    if content is not None:
        (root / "manifest.json").write_text(content)
    before = files_below(root)
    with pytest.raises(DatasetError, match=r"delete it or give another --root"):
        open_dataset("synthetic", root=root)
    assert files_below(root) == before


def test_a_rendering_that_fails_leaves_nothing(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_dataset("synthetic", root=tmp_path / "new", on_progress=stop, size=32)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_storage_error_that_leaves_nothing(tmp_path, monkeypatch):
    def fill(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fill)
    with pytest.raises(StorageError, match=r"cannot write the synthetic dataset to .*: No space left"):
        open_dataset("synthetic", root=tmp_path / "new", size=32)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write the synthetic dataset to"):
        open_dataset("synthetic", root=tmp_path / "file" / "below", size=32)


def test_of_two_processes_the_slower_takes_what_the_faster_made(tmp_path):
    root, options = tmp_path / "shared", {"num_videos": 4, "num_frames": 6, "size": 32}

    def be_overtaken(done, total):
        if done == 1:
            open_dataset("synthetic", root=root, **options)

    dataset = open_dataset("synthetic", root=root, **options, on_progress=be_overtaken)
    assert len(dataset.videos()) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


def test_videos_of_a_dataset_that_was_not_made_are_an_error(tmp_path):
    with pytest.raises(DatasetError, match="there is no synthetic dataset"):
        SyntheticDataset(tmp_path / "nowhere", SyntheticParameters()).videos()


@pytest.mark.parametrize(
    "bad", [{"num_videos": 3}, {"num_frames": 3}, {"num_frames": 10}, {"size": 30}, {"size": 97}, {"seed": -1}]
)
def test_numbers_out_of_range_are_usage_errors_that_name_the_flag(tmp_path, bad):
    flag = "--" + next(iter(bad)).replace("_", "-")
    with pytest.raises(UsageError, match=flag):
        open_dataset("synthetic", root=tmp_path / "new", **bad)
    assert list(tmp_path.iterdir()) == []
