"""`vfz cache label` as a function: sources, how videos are found, what is refused, kills, and what carries sets on."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.built_cache import Originals, flip
from helpers.processes import killed_before
from helpers.tiny_cache import fill_cache, new_cache

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import DatasetError, UsageError, VfzError
from vfz.pipeline.format.labels import LabelSet, read_label_set, write_label_set
from vfz.pipeline.maintenance.convert import convert
from vfz.pipeline.maintenance.info import describe_cache
from vfz.pipeline.maintenance.label import label_cache
from vfz.pipeline.maintenance.matching import VideoMatcher
from vfz.pipeline.maintenance.options import ConvertOptions, LabelOptions
from vfz.pipeline.maintenance.repair import repair_cache
from vfz.pipeline.maintenance.verify import verify_cache

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "tiny"
    new_cache(folder)
    fill_cache(folder)
    return folder


@pytest.fixture
def cache(original, tmp_path):
    """Videos v0 to v5 of /videos/v0.mp4 to v5.mp4; v2 and v5 in val; v0, v2, v4 are left, the others right."""
    return shutil.copytree(original, tmp_path / "cache")


def _label(cache, text, name="labels.csv", **options):
    path = cache.parent / name
    path.write_text(text)
    return label_cache(LabelOptions(cache=cache, from_=path, **options))


def _labels(cache, name):
    return {row.id: row.label for row in FeatureCache(cache, labels=name).videos}


JSON = [{"filename": f"v{n}.mp4", "label": label, "split": split} for n, label, split in
        ((0, "b", "x"), (1, "a", "y"), (3, "b", "y"))]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "id,label,split\nv0,b,x\nv1,a,y\nv3,b,y\n"),
        ("labels.csv", "Label;other;Video;Split\nb;1;v0.mp4;x\na;2;v1.MP4;y\nb;;v3.mp4;y\n"),
        ("labels.tsv", "path\tlabel\tsplit\n/videos/v0.mp4\tb\tx\nelsewhere/v1.webm\ta\ty\nv3\tb\ty\n"),
        ("labels.json", json.dumps(JSON)),
        ("labels.json", json.dumps({"v0": {"label": "b", "split": "x"}, "v1": {"label": "a", "split": "y"}, "v3":
                                    {"Label": "b", "SPLIT": " y "}})),
    ],
)  # fmt: skip
def test_a_file_names_videos_classes_and_splits(cache, name, text):
    report = _label(cache, text, name)
    assert (report.name, report.number, report.kind, report.names) == ("labels", 1, "classes", ("a", "b"))
    assert (report.num_lines, report.num_labelled, report.num_videos) == (3, 3, 6)
    assert (report.unlabelled, report.num_without_split) == (("v2", "v4", "v5"), 3)
    assert report.splits == {"x": 1, "y": 2}
    assert report.source.startswith(f"{name}, sha256 ")
    assert _labels(cache, "labels") == {"v0": 1, "v1": 0, "v3": 1, "v2": None, "v4": None, "v5": None}
    opened = FeatureCache(cache, labels="labels")
    assert {row.id for row in opened.ok_videos("y")} == {"v1", "v3"}
    assert FeatureCache(cache).class_names == ("left", "right"), "those of the extraction stay"


def test_numbers_are_labels_and_an_empty_cell_is_none(cache):
    report = _label(cache, "id,label\nv0,2\nv1,0\nv2,\n", name="n.csv")
    assert report.names == ("0", "1", "2")
    assert _labels(cache, "n")["v0"] == 2
    assert _labels(cache, "n")["v2"] is None
    assert report.lines == ("1 of 3 classes have no video: 1",)
    assert {row.split for row in FeatureCache(cache, labels="n").videos} == {"train", "val"}, "the cache's own splits"


@pytest.mark.parametrize("text", ["id,labels\nv0,a;b\nv1,b\nv2,\n", "id,labels\nv0,a|b\nv1,b\nv2,\n"])
def test_several_labels_a_video(cache, text):
    report = _label(cache, text)
    assert (report.kind, report.names) == ("multilabel", ("a", "b"))
    targets = FeatureCache(cache, labels="labels").targets_of(["v0", "v1", "v2", "v3"])
    assert targets[:3].tolist() == [[1, 1], [0, 1], [0, 0]]
    assert all(map(math.isnan, targets[3])), "the file says nothing of v3"


def test_several_labels_from_json_from_a_label_column_and_on_lines_of_their_own(cache):
    expected = {"v0": frozenset({0, 1}), "v1": frozenset({1})}
    _label(cache, json.dumps({"v0": ["9", "10"], "v1": [10]}), "lists.json")
    _label(cache, "id,label\nv0,9/10\nv1,10\n", "column.csv", kind="multilabel", separator="/")
    _label(cache, "id,label\nv0,9\nv1,10\nv0,10\n", "lines.csv", kind="multilabel")
    for name in ("lists", "column", "lines"):
        found = read_label_set(cache, name)
        assert (found.labels, found.names) == (expected, ("9", "10")), name


def test_columns_with_numbers(cache):
    _label(cache, "id,Speed,Height,note\nv0,1.5,,x\nv1,-2e3,nan,y\n", columns=("speed", "height"))
    found = read_label_set(cache, "labels")
    assert (found.kind, found.names) == ("regression", ("speed", "height"))
    assert found.labels["v0"][0] == 1.5
    assert found.labels["v1"][0] == -2000
    assert math.isnan(found.labels["v0"][1])
    _label(cache, json.dumps({"v0": [1, 2.5], "v1": [None, 3]}), "j.json", columns=("speed", "height"))
    assert FeatureCache(cache, labels="j").targets_of(["v0"]).tolist() == [[1, 2.5]]


def test_what_a_file_does_not_say_is_as_before(cache):
    _label(cache, "id,split\nv0,val\nv1,train\n", "mine.csv")
    first = FeatureCache(cache, labels="mine")
    assert (first.class_names, first.splits) == (("left", "right"), ("train", "val"))
    assert [row.label for row in first.videos] == [0, 1, 0, 1, 0, 1]
    report = _label(cache, "id,label\nv0,up\nv1,down\n", "mine.csv")
    second = FeatureCache(cache, labels="mine")
    assert (report.number, second.class_names) == (2, ("down", "up"))
    assert [row.id for row in second.ok_videos("val")] == ["v0"], "its splits are those of the set it replaces"
    assert not _label(cache, "id,label\nv0,up\nv1,down\n", "mine.csv").is_new


def test_videos_are_dealt_to_other_splits_and_folds(cache):
    report = label_cache(LabelOptions(cache=cache, split_fractions=(0.5, 0.5), group_by="v(.)", split_folds=2))
    opened = FeatureCache(cache, labels="splits")
    assert report.name == "splits"
    assert set(report.splits) <= {"train", "val"}
    assert sum(report.splits.values()) == 6
    tested = [row.id for fold in ("fold1", "fold2") for row in opened.ok_videos("test", fold=fold)]
    assert sorted(tested) == ["v0", "v1", "v2", "v3", "v4", "v5"]
    assert label_cache(LabelOptions(cache=cache, split_fractions=(1,), name="all")).splits == {"train": 6}


def test_lines_without_a_video_are_counted_and_all_of_them_refused(cache):
    report = _label(cache, "id,label\nv0,a\nx1,a\nx2,b\nx3,b\nx4,b\n")
    assert (report.num_unmatched, report.unmatched, report.num_labelled) == (4, ("x1", "x2", "x3"), 1)
    with pytest.raises(DatasetError, match=r"none of the 2 videos of b\.csv.*'y1' \(.*line 2\).*'v0', 'v1', 'v2'"):
        _label(cache, "id,label\ny1,a\ny2,b\n", "b.csv")
    assert not (cache / "labels" / "b").exists()


def test_the_end_of_a_path_tells_and_what_fits_two_is_refused(cache):
    row = FeatureCache(cache).videos[0]
    ids = ["train/walk/0001", "train/run/0001", "val/run/0002", "a.b", "caf\u0065\u0301"]
    rows = [replace(row, id=key, source_path=f"/data/{key}.mp4", source_digest=key) for key in ids]
    matcher = VideoMatcher(rows)

    def find(video, digest=None):
        return matcher.find(video, digest=digest, place="here")

    assert find("run/0001.mp4") == "train/run/0001"
    assert find("/elsewhere/walk/0001.avi") == "train/walk/0001"
    assert find("0002") == "val/run/0002"
    assert find("jump/0002.mp4") == "val/run/0002", "one file of that name only"
    assert find("a.b") == find("a.b.mp4") == "a.b"
    assert find("caf\u00e9") == "caf\u0065\u0301"
    assert find("nothing") is find("") is None
    assert find("train/walk/0001", digest="train/run/0001") == "train/run/0001", "what is in the file tells first"
    for video in ("0001", "jump/0001.mp4"):
        with pytest.raises(DatasetError, match=r"here: .*may be 'train/run/0001', 'train/walk/0001'; name the video"):
            find(video)


REFUSED = {
    "two lines of a video": ("id,label\nv0,a\nv0.mp4,b\n", {}, r"both the video 'v0'"),
    "no column says which video": ("name,label\nv0,a\n", {}, r"no column id, path, video, filename"),
    "nothing is said": ("id,other\nv0,a\n", {}, r"no column label, labels or split"),
    "a column is nearly called so": ("id,class\nv0,a\n", {}, r"is 'class' meant"),
    "a number is none": ("id,x\nv0,fast\n", {"columns": ("x",)}, r"line 2: x is 'fast'"),
    "a number is infinite": ("id,x\nv0,inf\n", {"columns": ("x",)}, r"line 2: x is 'inf'"),
    "a column is not there": ("id,x\nv0,1\n", {"columns": ("y",)}, r"no column 'y'"),
    "both marks": ("id,labels\nv0,a;b\nv1,a|b\n", {}, r"--separator"),
    "several are no class": ("id,labels\nv0,a;b\n", {"kind": "classes"}, r"--kind classes"),
    "numbers are no classes": ("id,x\nv0,1\n", {"kind": "classes", "columns": ("x",)}, r"--kind classes"),
    "splits are there": ("id,split\nv0,a\n", {"split_fractions": (1.0,)}, r"has splits already"),
    "no video is named": ("id,label\n,a\n", {}, r"line 2: no video is named"),
    "nothing is in it": ("id,label\n", {}, r"names no video"),
    "some are numbers": ("id,label\nv0,a\nv1,1\n", {}, r"label"),
    "a label is a list": ('[{"id": "v0", "label": ["a"]}]', {"name": "x.json"}, r"neither a text nor"),
    "a row is none": ("[1]", {"name": "x.json"}, r"entry 1: 1 is no row"),
    "not JSON": ("[", {"name": "x.json"}, r"line 1: not JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_line(cache, case):
    text, options, match = REFUSED[case]
    with pytest.raises(VfzError, match=match) as error:
        _label(cache, text, **options)
    assert "\n" not in str(error.value)
    assert FeatureCache(cache).label_sets == ()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "--from FILE"),
        ({"kind": "classes"}, "--from FILE"),
        ({"split_seed": 1, "columns": ("x",)}, "--columns"),
        ({"from_": "x", "kind": "regression"}, "--columns"),
        ({"from_": "x", "columns": ("x", "x")}, "twice"),
        ({"from_": "x", "separator": " "}, "--separator"),
        ({"from_": "x", "name": "../x"}, "cannot name a folder"),
        ({"from_": "x", "kind": "ranking"}, "choose from classes"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, match):
    with pytest.raises(UsageError, match=match):
        LabelOptions(**options)


def test_a_source_that_is_not_there_is_told(cache):
    with pytest.raises(UsageError, match="does not exist"):
        label_cache(LabelOptions(cache=cache, from_=Path("nowhere.csv")))


# --- kills, damage, conversion ---


def test_a_kill_before_any_operation_leaves_the_sets_as_they_were(cache, tmp_path):
    _label(cache, "id,label\nv0,a\n")
    path = tmp_path / "labels.csv"
    path.write_text("id,label\nv0,a\nv1,b\n")
    numbers = set()
    for operation in range(1, 40):
        copy = shutil.copytree(cache, tmp_path / "killed")
        killed = killed_before(operation, lambda copy=copy: label_cache(LabelOptions(cache=copy, from_=path)))
        numbers.add(read_label_set(copy, "labels").number)
        assert verify_cache(copy).intact
        label_cache(LabelOptions(cache=copy, from_=path))
        assert read_label_set(copy, "labels").number == 2
        shutil.rmtree(copy)
        if not killed:
            break
    assert not killed, "all operations were tried"
    assert numbers == {1, 2}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return Originals(tmp_path_factory.mktemp("originals"))


SIDES = LabelSet(name="sides", kind="classes", names=("a", "b"), labels={"v0": 1}, splits={"v0": "train"})


def test_verify_finds_a_flipped_byte_label_replaces_it_and_repair_clears_up(originals, tmp_path):
    path = originals.copy(tmp_path / "cache")
    write_label_set(path, SIDES)
    assert verify_cache(path).problems == ()
    flip(path / "labels/sides/1.json", 40)
    (found,) = verify_cache(path).damage
    assert found.file == "labels/sides/1.json"
    assert "vfz cache label --name sides" in found.text
    assert repair_cache(path).not_repaired == (found,)
    assert describe_cache(path).label_sets[0].error
    (tmp_path / "sides.csv").write_text("id,label\nv0,b\nv1,a\n")
    report = label_cache(LabelOptions(cache=path, from_=tmp_path / "sides.csv"))
    assert report.number == 2
    assert "damaged" in report.lines[0]
    assert verify_cache(path).intact
    assert [step.file for step in repair_cache(path).steps] == ["labels/sides/1.json"]
    assert verify_cache(path).problems == ()
    assert read_label_set(path, "sides").labels == {"v0": 1, "v1": 0}


def test_what_a_killed_writer_left_is_told_and_strangers_are_left_alone(originals, tmp_path):
    path = originals.copy(tmp_path / "cache")
    write_label_set(path, SIDES)
    for name in ("labels/sides/.2.json.abc.tmp", "labels/sides/notes.txt", "labels/readme"):
        (path / name).write_text("x")
    (path / "labels" / "link").symlink_to("sides")
    report = verify_cache(path)
    assert report.intact
    assert {problem.file for problem in report.problems} == {
        "labels/sides/.2.json.abc.tmp", "labels/sides/notes.txt", "labels/readme", "labels/link"
    }  # fmt: skip


def test_a_converted_cache_has_the_label_sets_and_takes_over_later_ones(originals, tmp_path):
    path = originals.copy(tmp_path / "cache")
    write_label_set(path, SIDES)
    options = ConvertOptions(cache=path, out=tmp_path / "out", precision="int4")
    target = Path(convert(options).cache)
    write_label_set(path, replace(SIDES, labels={"v0": 0}))
    write_label_set(path, replace(SIDES, name="more"))
    convert(options)
    for name in ("sides/1.json", "sides/2.json", "more/1.json"):
        assert (target / "labels" / name).read_bytes() == (path / "labels" / name).read_bytes()
    write_label_set(target, replace(SIDES, labels={"v1": 0}))
    convert(options)
    assert read_label_set(target, "sides").labels == {"v1": 0}, "what was added there stays"


def test_info_tells_the_sets(cache):
    _label(cache, "id,label,split\nv0,b,x\nv1,a,y\nnone,b,y\n")
    (found,) = describe_cache(cache).label_sets
    assert (found.name, found.kind, found.number, found.num_names, found.num_labelled) == ("labels", "classes", 1, 2, 2)
    assert found.splits == {"x": 1, "y": 1}
    assert found.digest == read_label_set(cache, "labels").digest
