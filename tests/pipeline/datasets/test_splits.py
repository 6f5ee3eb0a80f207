"""Videos without splits are dealt by what is in them: alike everywhere, when more come, and by class."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfz.cli.main import main
from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.datasets import VideoRecord, open_dataset
from vfz.pipeline.datasets.splits import KnownVideo, SplitRule, deal, describe
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.errors import DatasetError, UsageError

CLASSES = ("a", "b", "c")


def records_in(folder, counts):
    """So many files of each class, each with other bytes."""
    found = []
    for label, count in enumerate(counts):
        for number in range(count):
            path = folder / CLASSES[label] / f"film{number // 4}-clip{number % 4}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{label} {number}".encode())
            source = VideoSource(path=path)
            found.append(
                VideoRecord(id=f"{CLASSES[label]}/{path.stem}{number}", source=source, split="all", label=label)
            )
    return found


def splits_of(records, rule, class_names=CLASSES):
    return {record.id: record.split for record in deal(records, rule, class_names=class_names)}


def test_shares_are_as_asked_for_and_every_class_has_some_of_each(tmp_path):
    records = records_in(tmp_path, (200, 200, 200))
    dealt = deal(records, SplitRule(), class_names=CLASSES)
    count = Counter(record.split for record in dealt)
    assert count["train"] == pytest.approx(480, abs=40)
    assert count["val"] == pytest.approx(60, abs=25)
    assert Counter((record.label, record.split) for record in dealt).keys() == {
        (label, split) for label in range(3) for split in ("train", "val", "test")
    }
    assert [(one.id, one.label) for one in dealt] == [(one.id, one.label) for one in records]


@given(
    counts=st.tuples(*[st.integers(3, 9)] * 3),
    fractions=st.sampled_from([(0.8, 0.1, 0.1), (0.98, 0.01, 0.01), (0.5, 0.5), (0.9, 0.0, 0.1), (1.0,)]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_class_with_enough_videos_has_one_in_each_split(tmp_path, counts, fractions, seed):
    dealt = deal(records_in(tmp_path, counts), SplitRule(fractions=fractions, seed=seed), class_names=CLASSES)
    wanted = {name for name, share in zip(("train", "val", "test"), fractions, strict=False) if share}
    for label in range(3):
        assert {record.split for record in dealt if record.label == label} == wanted


def test_a_folder_that_grows_moves_or_is_renamed_keeps_its_splits(tmp_path):
    few = records_in(tmp_path, (60, 60, 60))
    before = splits_of(few, SplitRule())
    after = splits_of(records_in(tmp_path, (90, 60, 100)), SplitRule())
    assert {video: after[video] for video in before} == before
    moved = shutil.copytree(tmp_path, tmp_path.parent / "moved")
    elsewhere = [
        VideoRecord(id=f"new/{number}", source=VideoSource(path=moved / one.source.path.relative_to(tmp_path)),
                    split="all", label=one.label)
        for number, one in enumerate(few)
    ]  # fmt: skip
    assert [*splits_of(elsewhere, SplitRule()).values()] == [*before.values()]
    assert splits_of(few, SplitRule(seed=1)) != before


def test_copies_of_a_file_and_clips_of_a_film_stay_together(tmp_path):
    records = records_in(tmp_path, (80, 80, 0))
    films = {}
    rule = SplitRule(fractions=(0.5, 0.25, 0.25), group_by=r"(film\d+)-")
    for video, split in splits_of(records, rule).items():
        films.setdefault(video.split("/")[1].split("-")[0], set()).add(split)
    assert len(films) == 20
    assert all(len(splits) == 1 for splits in films.values()), "over classes, too"
    for record in records:
        record.source.path.write_bytes(b"the same")
    assert len(set(splits_of(records, SplitRule(fractions=(0.5, 0.5))).values())) == 1
    with pytest.raises(DatasetError, match=r"--group-by '\^x' finds nothing in the name of 'a/film0-clip00'"):
        deal(records, SplitRule(group_by="^x"), class_names=CLASSES)


@pytest.mark.parametrize("group_by", [None, r"^(film\d+)"])
def test_copies_and_groups_of_what_a_cache_holds_follow_it(tmp_path, group_by):
    """Also where `_fill` had moved a file to a split of its small class, and the class has grown since."""
    rule = SplitRule(group_by=group_by)
    few = records_in(tmp_path / "few", (16, 0, 0))[::4] if group_by else records_in(tmp_path / "few", (4, 0, 0))
    dealt = deal(few, rule, class_names=("a",))
    assert {one.split for one in dealt} == {"train", "val", "test"}
    known = [KnownVideo(one.id, one.source.digest(), one.split, {}) for one in dealt]
    more = records_in(tmp_path / "few", (120, 0, 0))
    for number, one in enumerate(few):  # a copy of each under another name
        path = Path(
            shutil.copy(one.source.path, tmp_path / f"few/a/{one.source.path.stem.split('-')[0]}-copy{number}.mp4")
        )
        more.append(VideoRecord(id=f"a/{path.stem}", source=VideoSource(path=path), split="all", label=0))
    grown = deal(more, rule, class_names=("a",), known=known)
    after = {one.id: one.split for one in grown}
    assert {one.id: after[one.id] for one in dealt} == {one.id: one.split for one in dealt}
    of_unit = {}
    for one in grown:
        unit = one.id.split("/")[1].split("-")[0] if group_by else one.source.digest()
        of_unit.setdefault(unit, set()).add(one.split)
    assert all(len(splits) == 1 for splits in of_unit.values())
    assert len(of_unit) == (30 if group_by else 120)


def test_files_that_a_cache_knows_are_not_read_again(tmp_path, monkeypatch):
    records = records_in(tmp_path, (20, 20, 20))
    dealt = deal(records, SplitRule(), class_names=CLASSES)
    known = [KnownVideo(one.id, one.source.digest(), one.split, {}) for one in dealt]
    read = []
    digest = VideoSource.digest
    monkeypatch.setattr(VideoSource, "digest", lambda source: read.append(source) or digest(source))
    again = deal(records_in(tmp_path, (21, 20, 20)), SplitRule(), class_names=CLASSES, known=known)
    assert [source.path.parent.name for source in read] == ["a"], "the one that is new"
    assert {one.id: one.split for one in again}.items() >= {one.id: one.split for one in dealt}.items()


def test_splits_and_folds_without_a_video_are_told(tmp_path):
    records = records_in(tmp_path, (12, 0, 0))
    rule = SplitRule(group_by=r"^film\d", num_folds=9)
    lines = describe(deal(records, rule, class_names=("a",)), rule, class_names=("a",))
    assert ", dealt by 3 groups, --split-fractions" in lines[0]
    assert any(
        line.startswith("fold") and line.endswith("no video to test on; give fewer --split-folds") for line in lines
    )
    (tmp_path / "b").mkdir()
    same = [dataclasses.replace(one, source=records[0].source) for one in records]
    lines = describe(deal(same, SplitRule(), class_names=("a",)), SplitRule(), class_names=("a",))
    assert sum("has no video: there are too few files, copies of one file" in line for line in lines) == 2


@pytest.mark.parametrize("group_by", ["x*", r"(\d+x)?|", "^x"])
def test_a_group_that_is_no_text_is_refused(tmp_path, group_by):
    with pytest.raises(DatasetError, match="finds nothing in the name of"):
        deal(records_in(tmp_path, (2, 0, 0)), SplitRule(group_by=group_by), class_names=("a",))


def test_each_video_is_the_test_of_one_fold(tmp_path):
    dealt = deal(records_in(tmp_path, (40, 0, 0)), SplitRule(num_folds=4), class_names=("a",))
    assert all(list(one.folds) == ["fold1", "fold2", "fold3", "fold4"] for one in dealt)
    assert all([*one.folds.values()].count("test") == 1 for one in dealt)
    assert len({next(fold for fold, split in one.folds.items() if split == "test") for one in dealt}) == 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fractions": (0.8, 0.1)}, "--split-fractions 0.8,0.1: give the shares of train, val, test, which are 1"),
        ({"fractions": (0.25,) * 4}, "0.8,0.1,0.1"),
        ({"fractions": (0.0, 1.0)}, "0.8,0.1,0.1"),
        ({"num_folds": 1}, "at least 2"),
        ({"group_by": "("}, "no regular expression"),
        ({"group_by": ""}, "leave it out"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(values, words):
    with pytest.raises(UsageError, match=words):
        SplitRule(**values)


def test_classes_too_small_for_all_splits_are_named(tmp_path):
    records = deal(records_in(tmp_path, (30, 2, 30)), SplitRule(), class_names=CLASSES)
    lines = describe(records, SplitRule(), class_names=CLASSES)
    assert lines[0].startswith("no splits are given: ")
    assert any("no video of b is in " in line for line in lines[1:])


def test_a_folder_of_classes_becomes_a_cache_with_splits_that_it_keeps(tmp_path, capsys):
    """The whole way, with videos that are all different."""
    rendered = open_dataset("synthetic", root=tmp_path / "rendered", num_videos=24, num_frames=6, size=32)
    root = tmp_path / "clips"
    for number, record in enumerate(rendered.videos()):
        target = root / rendered.class_names[record.label] / f"{number}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(record.source.path, target)
    held_back = min(root.rglob("*.mp4"))
    elsewhere = held_back.rename(tmp_path / "held.mp4")
    line = (
        "extract", "--dataset", "folder", "--root", str(root), "--encoder", "vit_tiny_patch16_224",
        "--random-weights", "--image-size", "32", "--layers", "2", "--out", str(tmp_path / "caches"), "--json",
    )  # fmt: skip
    assert main(line) == 0
    told = capsys.readouterr()
    assert "clips: no splits are given: " in told.err
    assert "dealt by what is in the files, --split-fractions 0.8,0.1,0.1" in told.err
    path = json.loads(told.out)["cache"]
    before = {row.id: row.split for row in FeatureCache(path).ok_videos()}
    assert set(before.values()) == {"train", "val", "test"}
    elsewhere.rename(held_back)
    assert main(line) == 0
    after = {row.id: row.split for row in FeatureCache(path).ok_videos()}
    assert len(after) == 24
    assert {video: after[video] for video in before} == before
    capsys.readouterr()
    assert main((*line, "--split-fractions", "0.5,0.5")) == 2
    assert "dealt by --split-fractions 0.8,0.1,0.1, now by --split-fractions 0.5,0.5" in capsys.readouterr().err


def test_what_has_splits_is_not_dealt(folder_dataset, capsys):
    line = ("extract", "--dataset", "folder", "--root", str(folder_dataset), "--split-fractions", "0.5,0.5")
    encoder = ("--encoder", "vit_tiny_patch16_224", "--random-weights", "--dry-run")
    assert main((*line, *encoder)) == 2
    assert "has splits already, test, train; leave --split-fractions 0.5,0.5 out" in capsys.readouterr().err


def test_folders_called_as_splits_are_no_classes(tmp_path):
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.mp4").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"train/one\.mp4 is not where .* train is called as a split and not as"):
        open_dataset("folder", root=tmp_path)


def test_videos_at_two_depths_are_refused(tmp_path):
    for path in ("a/one.mp4", "b/c/two.mp4"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(b"")
    with pytest.raises(DatasetError, match=r"b/c/two\.mp4 is not where a video is expected"):
        open_dataset("folder", root=tmp_path)
