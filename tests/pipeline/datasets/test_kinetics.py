"""Kinetics: official CSVs, and copies laid out as people have them."""

from __future__ import annotations

from collections import Counter

import pytest
from contracts.dataset_contract import AnnotatedDatasetContract, ReadingContract
from helpers.video_files import touch, write_tree

from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.errors import DatasetError

pytestmark = pytest.mark.quick

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"
TRAIN = HEADER + (
    "testifying,---QUuC4vJs,84,94,train,0\n"
    "eating spaghetti,--3ouPhoy2A,20,30,train,0\n"
    '"doing nails, slowly",--4-0ihtnBU,58,68,train,1\n'
)
VALIDATE = HEADER + "eating spaghetti,-0IErS_cisg,1017,1027,validate,0\n"
TEST = "youtube_id,time_start,time_end,split\n--EaS9P7ZdQ,14,24,test\n"
OFFICIAL = {"train.csv": TRAIN, "validate.csv": VALIDATE, "test.csv": TEST}
STEMS = {
    "---QUuC4vJs_84_94": "---QUuC4vJs_000084_000094",
    "--3ouPhoy2A_20_30": "--3ouPhoy2A_000020_000030",
    "--4-0ihtnBU_58_68": "--4-0ihtnBU_000058_000068",
    "-0IErS_cisg_1017_1027": "-0IErS_cisg_001017_001027",
    "--EaS9P7ZdQ_14_24": "--EaS9P7ZdQ_000014_000024",
}


class TestKineticsContract(AnnotatedDatasetContract):
    @pytest.fixture(params=["k400", "k600", "k700"])
    def open_again(self, request, tmp_path):
        touch(write_tree(tmp_path, OFFICIAL), *(f"{stem}.mp4" for stem in STEMS.values()))
        return lambda: open_dataset(request.param, root=tmp_path)


@pytest.mark.parametrize(
    "layout",
    [
        ("{stem}.mp4",) * 5,
        (
            "testifying/{stem}.mp4",
            "eating spaghetti/{stem}.mp4",
            "doing nails, slowly/{stem}.mp4",
            "eating spaghetti/{stem}.mp4",
            "test/{stem}.mp4",
        ),
        ("train/{stem}.mp4", "train/{stem}.mp4", "train/{stem}.mp4", "val/{stem}.mp4", "test/{stem}.mp4"),
        (
            "train/testifying/{stem}.mp4",
            "train/eating_spaghetti/{stem}.mp4",
            "train/doing_nails/{stem}.mkv",
            "val/eating_spaghetti/{stem}.webm",
            "test/{stem}.mp4",
        ),
        ("videos/train/a b/{stem}.mp4",) * 5,
    ],
    ids=["flat", "class", "split", "split-class", "videos"],
)
@pytest.mark.parametrize("annotations", ["", "annotations/"])
def test_clips_are_found_by_name_in_every_common_layout(tmp_path, layout, annotations):
    write_tree(tmp_path, {annotations + name: text for name, text in OFFICIAL.items()})
    places = {key: place.format(stem=stem) for (key, stem), place in zip(STEMS.items(), layout, strict=True)}
    touch(tmp_path, *places.values())
    records = open_dataset("k400", root=tmp_path).videos()
    assert {r.id: str(r.source.path.relative_to(tmp_path)) for r in records} == places


def test_labels_count_the_sorted_class_names_of_all_splits_and_the_test_split_may_have_none(tmp_path):
    touch(write_tree(tmp_path, OFFICIAL), f"{STEMS['--EaS9P7ZdQ_14_24']}.mp4")
    dataset = open_dataset("k400", root=tmp_path)
    assert (dataset.name, dataset.class_names) == ("k400", ("doing nails, slowly", "eating spaghetti", "testifying"))
    assert {r.id: (r.split, r.label) for r in dataset.videos()} == {
        "---QUuC4vJs_84_94": ("train", 2),
        "--3ouPhoy2A_20_30": ("train", 1),
        "--4-0ihtnBU_58_68": ("train", 0),
        "-0IErS_cisg_1017_1027": ("val", 1),
        "--EaS9P7ZdQ_14_24": ("test", None),
    }


def test_annotations_named_by_the_downloader_and_a_labelled_test_split_work(tmp_path):
    labelled = HEADER + "testifying,--EaS9P7ZdQ,14,24,test,0\n"
    touch(
        write_tree(tmp_path, {"kinetics-600_train.csv": TRAIN, "kinetics-600_test.csv": labelled}),
        f"{STEMS['--EaS9P7ZdQ_14_24']}.mp4",
    )
    records = open_dataset("k600", root=tmp_path).videos()
    assert Counter(r.split for r in records) == {"train": 3, "test": 1}
    assert next(r.label for r in records if r.split == "test") == 2


def test_two_files_of_one_clip_are_an_error_unless_no_annotation_names_them(tmp_path):
    first = STEMS["---QUuC4vJs_84_94"]
    touch(write_tree(tmp_path, OFFICIAL), f"a/{first}.mp4", "a/other.mp4", "b/other.mp4")
    assert len(open_dataset("k400", root=tmp_path).videos()) == 5
    touch(tmp_path, f"b/{first}.mp4")
    with pytest.raises(DatasetError, match=rf"could be the video '{first}': .*/a/{first}.mp4 and .*/b/{first}.mp4"):
        open_dataset("k400", root=tmp_path)


def test_replacements_for_broken_clips_stand_for_them(tmp_path):
    """The common copy of Kinetics-400 brings 1,392 clips a second time, whole."""
    write_tree(tmp_path, {f"annotations/{name}": text for name, text in OFFICIAL.items()})
    broken, only = STEMS["--3ouPhoy2A_20_30"], STEMS["--4-0ihtnBU_58_68"]
    folder = "replacement/replacement_for_corrupted_k400"
    touch(
        tmp_path,
        f"train/{broken}.mp4",
        f"{folder}/{broken}.mp4",
        f"{folder}/{only}.mp4",
        f"val/{STEMS['-0IErS_cisg_1017_1027']}.mp4",
    )
    found = {r.id: r.source.path.parent.name for r in open_dataset("k400", root=tmp_path).videos() if r.source.exists()}
    assert found == {
        "--3ouPhoy2A_20_30": "replacement_for_corrupted_k400",
        "--4-0ihtnBU_58_68": "replacement_for_corrupted_k400",
        "-0IErS_cisg_1017_1027": "val",
    }


def test_links_back_to_a_folder_above_end_and_partial_downloads_do_not_count(tmp_path):
    touch(write_tree(tmp_path, OFFICIAL), *(f"train/{stem}.mp4" for stem in STEMS.values()))
    touch(tmp_path, f"train/{STEMS['---QUuC4vJs_84_94']}.mp4.part")
    (tmp_path / "train" / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    assert all(r.source.exists() for r in open_dataset("k400", root=tmp_path).videos())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "label,youtube_id,time_start,split\n",
            r"train\.csv, line 1: no column 'time_end' among 'label', 'youtube_id'",
        ),
        ("", r"train\.csv, line 1: no column 'youtube_id' among none"),
        ("youtube_id,time_start,time_end\n", r"line 1: no column 'label'"),
        (TRAIN + "a,b,ten,20,train,0\n", r"train\.csv, line 5: the time_start 'ten' is not a whole number from 0"),
        (TRAIN + "a,b,-1,20,train,0\n", r"line 5: the time_start '-1'"),
        (TRAIN + "a,b,1,2,holdout,0\n", r"line 5: the split 'holdout' is none of train, val"),
        (TRAIN + ",b,1,2,train,0\n", r"line 5: no label; only the test split"),
        (TRAIN + "a,b,1,2\n", r"line 5: 4 fields, the header has 6"),
        (TRAIN + "a,../../etc/b,1,2,train,0\n", r"line 5: '\.\./\.\./etc/b' may lead out of the root"),
        (TRAIN + "a,/etc/b,1,2,train,0\n", r"line 5: '/etc/b' is to be the name of a file"),
        (TRAIN + 'a,"b,1,2,train,0\n', r"line \d: not comma-separated text"),
        (TRAIN * 2, r"line 5: the split 'split' is none of"),
        (
            TRAIN + TRAIN.split("\n")[1] + "\n",
            r"line 5: the video '---QUuC4vJs_84_94' was named before, in .*train\.csv, line 2; remove one",
        ),
    ],
)
def test_broken_annotations_are_told_by_file_and_line(tmp_path, text, message):
    touch(write_tree(tmp_path, {"train.csv": text}), *(f"{stem}.mp4" for stem in STEMS.values()))
    with pytest.raises(DatasetError, match=message) as raised:
        open_dataset("k400", root=tmp_path)
    assert "\n" not in str(raised.value)


def test_annotations_in_another_encoding_are_told(tmp_path):
    (tmp_path / "train.csv").write_bytes(TRAIN.encode() + "größe,b,1,2,train,0\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"train\.csv, line 5: not UTF-8 text"):
        open_dataset("k400", root=tmp_path)


def test_a_root_without_annotations_or_that_is_a_file_says_what_was_tried(tmp_path):
    touch(tmp_path, "a.mp4")
    with pytest.raises(DatasetError, match=r"has no train\.csv or val\.csv .*annotations/, kinetics-400_"):
        open_dataset("k400", root=tmp_path)
    with pytest.raises(DatasetError, match=r"a\.mp4 has no train\.csv"):
        open_dataset("k400", root=tmp_path / "a.mp4")


def test_the_environment_says_where_it_is(tmp_path, monkeypatch):
    touch(write_tree(tmp_path, OFFICIAL), f"{STEMS['--EaS9P7ZdQ_14_24']}.mp4")
    monkeypatch.setenv("VFZ_DATA_K700", str(tmp_path))
    assert open_dataset("k700").root == tmp_path


class TestKineticsReading(ReadingContract):
    kind = "k400"

    def write(self, root, rows, dress):
        columns = ["label", "youtube_id", "time_start", "time_end", "split", "is_cc"]
        cells = [[class_name, name, "7", "17", split, "0"] for name, class_name, split in rows]
        dress.write(root / "train.csv", [dress.header(columns), *map(dress.row, cells)])
        for name, _, _ in rows:
            dress.touch(root, "clips", f"{name}_000007_000017.mp4")
        return {f"{name}_7_17": (split, class_name) for name, class_name, split in rows}


def test_files_that_no_annotation_names_are_counted(tmp_path):
    places = [f"train/{stem}.mp4" for stem in STEMS.values()]
    touch(write_tree(tmp_path, OFFICIAL), *places, "train/other.mp4", "train/._x.mp4", "train/x.part", "notes.txt")
    touch(tmp_path, f"replacement/{STEMS['---QUuC4vJs_84_94']}.mp4", "a/b/c/d/e.mp4")
    assert open_dataset("k400", root=tmp_path).left_out.reasons == {
        "hidden": 1, "no video": 2, "not in the annotations": 1, "replaced by others": 1, "in folders too deep": 1,
    }  # fmt: skip
