"""The folder dataset: anyone's videos under root/<split>/<class>/<video>."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from contracts.dataset_contract import DatasetContract, ReadingContract

from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.datasets.base import VIDEO_SUFFIXES
from vfz.pipeline.errors import DatasetError, UsageError

pytestmark = pytest.mark.quick


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


class TestFolderContract(DatasetContract):
    @pytest.fixture
    def open_again(self, tmp_path):
        root = tmp_path / "my videos"
        touch(*(root / s / c / f"{i}.mp4" for s in ("train", "test") for c in ("b", "a") for i in range(3)))
        return lambda: open_dataset("folder", root=root)


def ids(root: Path) -> list[str]:
    return [record.id for record in open_dataset("folder", root=root).videos()]


def test_an_id_is_the_path_without_suffix_and_labels_count_the_classes_of_all_splits(tmp_path):
    touch(tmp_path / "train" / "jump" / "1.mp4", tmp_path / "test" / "climb" / "2.webm")
    dataset = open_dataset("folder", root=tmp_path)
    assert dataset.class_names == ("climb", "jump")
    assert [(r.id, r.split, r.label) for r in dataset.videos()] == [
        ("test/climb/2", "test", 0),
        ("train/jump/1", "train", 1),
    ]


def test_every_video_suffix_counts_in_any_case_and_nothing_else_does(tmp_path):
    folder = tmp_path / "train" / "a"
    touch(*(folder / f"{suffix[1:]}{suffix}" for suffix in VIDEO_SUFFIXES))
    touch(folder / "upper.MP4", folder / "notes.txt", folder / "no_suffix", tmp_path / "README.md")
    assert ids(tmp_path) == sorted(f"train/a/{name}" for name in [*(s[1:] for s in VIDEO_SUFFIXES), "upper"])


def test_hidden_files_and_folders_are_skipped(tmp_path):
    touch(
        tmp_path / "train" / "a" / "1.mp4",
        tmp_path / "train" / "a" / "._1.mp4",
        tmp_path / "train" / ".trash" / "2.mp4",
        tmp_path / ".cache" / "a" / "3.mp4",
        tmp_path / "train" / "a" / ".thumbs" / "4.mp4",
    )
    assert ids(tmp_path) == ["train/a/1"]


@pytest.mark.parametrize("name", ["two words", "größe-日本", 'it\'s "quoted"', "-n", "a.b.c", "100%", "new\nline"])
def test_unusual_names_work(tmp_path, name):
    touch(tmp_path / "train" / name / f"{name}.mp4")
    dataset = open_dataset("folder", root=tmp_path)
    assert [record.id for record in dataset.videos()] == [f"train/{name}/{name}"]
    assert dataset.class_names == (name,)


def test_a_name_that_is_not_utf8_is_an_error(tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff.mp4")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system refuses such names")
    with pytest.raises(DatasetError, match="not valid UTF-8"):
        open_dataset("folder", root=tmp_path)


def test_two_files_with_one_id_are_an_error_that_names_both(tmp_path):
    touch(tmp_path / "train" / "a" / "1.mp4", tmp_path / "train" / "a" / "1.avi")
    with pytest.raises(DatasetError, match=r"'train/a/1': 1\.avi and 1\.mp4"):
        open_dataset("folder", root=tmp_path)


@pytest.mark.parametrize("where", ["1.mp4", "train/1.mp4", "train/a/deeper/1.mp4", "train/a/b/c/d/1.mp4"])
def test_a_video_at_another_depth_is_an_error_that_says_the_layout(tmp_path, where):
    touch(tmp_path / where, tmp_path / "train" / "a" / "good.mp4")
    with pytest.raises(DatasetError, match=rf"{where} is not where .* <root>/<split>/<class>/<video>"):
        open_dataset("folder", root=tmp_path)


def test_a_missing_root_a_file_and_an_empty_folder_say_what_to_do(tmp_path):
    touch(tmp_path / "file", tmp_path / "empty" / "train" / "a" / "notes.txt")
    with pytest.raises(DatasetError, match=r"nowhere does not exist; give --root"):
        open_dataset("folder", root=tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"file is a file; give --root"):
        open_dataset("folder", root=tmp_path / "file")
    with pytest.raises(DatasetError, match=r"no videos under .*empty; expected <root>/<split>/<class>/<video>"):
        open_dataset("folder", root=tmp_path / "empty")


def test_links_to_files_and_folders_are_followed_and_a_broken_one_is_listed(tmp_path):
    touch(tmp_path / "store" / "a" / "1.mp4", tmp_path / "elsewhere.mp4")
    root = tmp_path / "root"
    (root / "train" / "b").mkdir(parents=True)
    (root / "test").symlink_to(tmp_path / "store")
    (root / "train" / "b" / "2.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    (root / "train" / "b" / "3.mp4").symlink_to(tmp_path / "gone.mp4")
    assert ids(root) == ["test/a/1", "train/b/2", "train/b/3"]


def test_loops_of_links_end(tmp_path):
    touch(tmp_path / "train" / "a" / "1.mp4", tmp_path / "train" / "a" / "extra" / "notes.txt")
    for loop in ("loop", "train/loop", "train/a/loop", "train/a/extra/loop"):
        (tmp_path / loop).symlink_to(tmp_path)
    (tmp_path / "train" / "self").symlink_to("self")
    assert ids(tmp_path) == ["train/a/1"]


@pytest.mark.parametrize(
    ("folder", "name"),
    [("my videos (2024)", "my-videos-2024"), ("..hidden", "hidden"), ("日本", "folder"), ("plain_1.0", "plain_1.0")],
)
def test_the_dataset_is_named_after_its_root(tmp_path, folder, name):
    touch(tmp_path / folder / "train" / "a" / "1.mp4")
    assert open_dataset("folder", root=tmp_path / folder).name == name


def test_without_a_root_the_environment_says_where_else_it_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path / "train" / "a" / "1.mp4")
    monkeypatch.setenv("VFZ_DATA_FOLDER", str(tmp_path))
    assert open_dataset("folder").root == tmp_path
    monkeypatch.delenv("VFZ_DATA_FOLDER")
    with pytest.raises(UsageError, match=r"pass --root or set \$VFZ_DATA_FOLDER"):
        open_dataset("folder")


def test_numbers_of_the_synthetic_dataset_are_refused(tmp_path):
    touch(tmp_path / "train" / "a" / "1.mp4")
    with pytest.raises(UsageError, match="--num-videos belongs to dataset synthetic"):
        open_dataset("folder", root=tmp_path, num_videos=3)


class TestFolderReading(ReadingContract):
    kind = "folder"

    def write(self, root, rows, dress):
        for name, class_name, split in rows:
            dress.touch(root, split, class_name, f"{name}{dress.cased('.mp4')}")
        return {f"{split}/{class_name}/{name}": (split, class_name) for name, class_name, split in rows}
