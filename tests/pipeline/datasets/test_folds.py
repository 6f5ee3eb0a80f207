"""UCF101 and HMDB51 as they are distributed: class folders and three official folds."""

from __future__ import annotations

import pytest
from contracts.dataset_contract import AnnotatedDatasetContract, ReadingContract
from helpers.video_files import touch, write_tree

from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.errors import DatasetError

pytestmark = pytest.mark.quick

# UCF101

MAKEUP = "ApplyEyeMakeup/v_ApplyEyeMakeup_g{:02}_c01"
HANDSTAND = "HandstandPushups/v_HandStandPushups_g{:02}_c01"
UCF_LISTS = {
    # not in alphabetical order, so that the order of the file shows
    "classInd.txt": "1 HandstandPushups\r\n2 ApplyEyeMakeup\r\n",
    "trainlist01.txt": f"{MAKEUP.format(8)}.avi 2\r\n{HANDSTAND.format(8)}.avi 1\r\n",
    "testlist01.txt": f"{MAKEUP.format(1)}.avi\r\n",
    "trainlist02.txt": f"{MAKEUP.format(1)}.avi 2\n{HANDSTAND.format(8)}.avi 1\n",
    "testlist02.txt": f"{MAKEUP.format(8)}.avi\n\n",
    "testlist03.txt": f"{HANDSTAND.format(9)}.avi\n",
}
UCF_VIDEOS = [MAKEUP.format(1), MAKEUP.format(8), HANDSTAND.format(8), HANDSTAND.format(9)]


def ucf(root, *, lists="", videos="", **changes):
    files = UCF_LISTS | {f"{name}.txt": text for name, text in changes.items()}
    touch(root, *(f"{videos}{video}.avi" for video in UCF_VIDEOS))
    return write_tree(root, {lists + name: text for name, text in files.items()})


class TestUcf101Contract(AnnotatedDatasetContract):
    @pytest.fixture
    def open_again(self, tmp_path):
        ucf(tmp_path)
        return lambda: open_dataset("ucf101", root=tmp_path)


@pytest.mark.parametrize("lists", ["", "ucfTrainTestlist/", "splits/"])
@pytest.mark.parametrize("videos", ["", "UCF-101/", "videos/"])
def test_ucf101_has_the_official_label_order_and_folds_in_every_common_layout(tmp_path, lists, videos):
    dataset = open_dataset("ucf101", root=ucf(tmp_path, lists=lists, videos=videos))
    assert (dataset.name, dataset.class_names) == ("ucf101", ("HandstandPushups", "ApplyEyeMakeup"))
    assert {r.id: (r.split, r.label, r.folds) for r in dataset.videos()} == {
        MAKEUP.format(1): ("test", 1, {"fold1": "test", "fold2": "train"}),
        MAKEUP.format(8): ("train", 1, {"fold1": "train", "fold2": "test"}),
        HANDSTAND.format(8): ("train", 0, {"fold1": "train", "fold2": "train"}),
        HANDSTAND.format(9): ("unused", 0, {"fold3": "test"}),
    }
    assert all(r.source.path == tmp_path / videos / f"{r.id}.avi" for r in dataset.videos())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classInd": "1 A\n3 B\n"}, r"classInd\.txt, line 2: '3 B', where the index 2 and a new class were expected"),
        ({"classInd": "1 A\n2 A\n"}, r"classInd\.txt, line 2: '2 A'"),
        ({"classInd": "A\n"}, r"classInd\.txt, line 1: the index 'A' is not a whole number"),
        ({"trainlist01": "A/b.avi 1\n"}, r"trainlist01\.txt, line 1: the class 'A' is not in .*classInd\.txt"),
        ({"trainlist01": f"{MAKEUP.format(8)}.avi 1\n"}, r"line 1: the index 1, but 'ApplyEyeMakeup' is 2"),
        ({"trainlist01": f"{MAKEUP.format(8)}.avi two\n"}, r"line 1: the index 'two' is not a whole number"),
        ({"testlist01": "b.avi\n"}, r"testlist01\.txt, line 1: 'b\.avi' is not <class>/<video>"),
        ({"testlist01": "../b.avi\n"}, r"testlist01\.txt, line 1: '\.\.' may lead out of the root"),
        (
            {"testlist01": f"{MAKEUP.format(8)}.avi\n"},
            r"testlist01\.txt, line 1: fold1 names 'Apply.*' before, in .*trainlist01\.txt, line 1; remove one",
        ),
    ],
)
def test_broken_lists_of_ucf101_are_told_by_file_and_line(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset("ucf101", root=ucf(tmp_path, **changes))


def test_ucf101_without_its_lists_says_what_was_tried(tmp_path):
    touch(tmp_path, *(f"{video}.avi" for video in UCF_VIDEOS))
    with pytest.raises(DatasetError, match=r"has no classInd\.txt \(also tried: ucfTrainTestlist/, splits/\)"):
        open_dataset("ucf101", root=tmp_path)
    write_tree(tmp_path, {"classInd.txt": UCF_LISTS["classInd.txt"]})
    with pytest.raises(DatasetError, match=r"has no video in trainlist01\.txt"):
        open_dataset("ucf101", root=tmp_path)


# HMDB51

HMDB_SPLITS = {
    "brush_hair_test_split1.txt": "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \nA#b(1)_brush_hair.avi 2 \nc.avi 0 \n",
    "brush_hair_test_split2.txt": "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 2 \nA#b(1)_brush_hair.avi 0 \nc.avi 1 \n",
    "walk_test_split1.txt": "c.avi 1 \n",
}
HMDB_VIDEOS = [
    "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0",
    "brush_hair/A#b(1)_brush_hair",
    "brush_hair/c",
    "walk/c",
]


def hmdb(root, *, splits="", videos="", **changes):
    touch(root, *(f"{videos}{video}.avi" for video in HMDB_VIDEOS))
    files = HMDB_SPLITS | {f"{name}.txt": text for name, text in changes.items()}
    return write_tree(root, {splits + name: text for name, text in files.items()})


class TestHmdb51Contract(AnnotatedDatasetContract):
    @pytest.fixture
    def open_again(self, tmp_path):
        hmdb(tmp_path)
        return lambda: open_dataset("hmdb51", root=tmp_path)


@pytest.mark.parametrize("splits", ["", "testTrainMulti_7030_splits/", "test_train_splits/", "splits/"])
@pytest.mark.parametrize("videos", ["", "videos/"])
def test_hmdb51_has_its_folds_and_tells_unused_videos_in_every_common_layout(tmp_path, splits, videos):
    dataset = open_dataset("hmdb51", root=hmdb(tmp_path, splits=splits, videos=videos))
    assert (dataset.name, dataset.class_names) == ("hmdb51", ("brush_hair", "walk"))
    assert {r.id: (r.split, r.label, r.folds) for r in dataset.videos()} == {
        HMDB_VIDEOS[0]: ("train", 0, {"fold1": "train", "fold2": "test"}),
        HMDB_VIDEOS[1]: ("test", 0, {"fold1": "test"}),
        HMDB_VIDEOS[2]: ("unused", 0, {"fold2": "train"}),
        HMDB_VIDEOS[3]: ("train", 1, {"fold1": "train"}),
    }
    assert all(r.source.path == tmp_path / videos / f"{r.id}.avi" for r in dataset.videos())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.avi 3\n", r"walk_test_split1\.txt, line 1: 'a\.avi 3' does not end in 0 \(unused\), 1 \(train\) or 2"),
        ("a.avi\n", r"line 1: 'a\.avi' does not end in 0"),
        ("a.avi 1\n../b.avi 1\n", r"line 2: '\.\./b\.avi' may lead out of the root"),
        ("a.avi 1\na.avi 2\n", r"line 2: fold1 names 'walk/a' before, in .*walk_test_split1\.txt, line 1"),
    ],
)
def test_broken_splits_of_hmdb51_are_told_by_file_and_line(tmp_path, text, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset("hmdb51", root=hmdb(tmp_path, walk_test_split1=text))


def test_hmdb51_without_its_splits_says_what_was_tried(tmp_path):
    touch(tmp_path, "walk/c.avi")
    with pytest.raises(DatasetError, match=r"has no <class>_test_split1\.txt \(also tried: testTrainMulti_7030"):
        open_dataset("hmdb51", root=tmp_path)


class TestUcf101Reading(ReadingContract):
    kind, splits = "ucf101", ("train", "test")

    def write(self, root, rows, dress):
        numbers = {name: number for number, name in enumerate(sorted({row[1] for row in rows}), start=1)}
        dress.write(root / "classInd.txt", [f"{number}  {dress.letters(name)}" for name, number in numbers.items()])
        for split in self.splits:
            lines = [
                f"{dress.letters(f'{class_name}/{name}.avi')}{f' {numbers[class_name]}' if split == 'train' else ''}"
                for name, class_name, of_split in rows
                if of_split == split
            ]
            dress.write(root / f"{split}list01.txt", [f"{line}{dress.blanks()}" for line in lines])
        for name, class_name, _ in rows:
            dress.touch(root, "videos", class_name, f"{name}.avi")
        return {f"{class_name}/{name}": (split, class_name) for name, class_name, split in rows}


class TestHmdb51Reading(ReadingContract):
    kind, splits = "hmdb51", ("train", "test")

    def write(self, root, rows, dress):
        for class_of_file in {row[1] for row in rows}:
            lines = [
                f"{dress.letters(name)}.avi{' ' * dress.random.randint(1, 3)}{1 + (split == 'test')}{dress.blanks()}"
                for name, class_name, split in rows
                if class_name == class_of_file
            ]
            dress.write(root / f"{dress.letters(class_of_file)}_test_split1.txt", lines)
        for name, class_name, _ in rows:
            dress.touch(root, class_name, f"{name}.avi")
        return {f"{class_name}/{name}": (split, class_name) for name, class_name, split in rows}
