"""`vfz extract --replace`: a video whose file is another one is made again, and nobody reads the old tokens."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.extraction import Notes
from helpers.video_files import VIDEOS, write_video

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheMismatchError
from vfz.pipeline.extraction.dry_run import dry_run
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.extraction.resume import complete_shards, remaining_tasks
from vfz.pipeline.extraction.setup import prepare
from vfz.pipeline.format.catalog import open_catalog
from vfz.pipeline.format.drops import drop_paths
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.maintenance.drop import drop_videos
from vfz.pipeline.maintenance.label import label_cache
from vfz.pipeline.maintenance.options import DropOptions, LabelOptions
from vfz.pipeline.maintenance.verify import verify_cache
from vfz.pipeline.progress import SilentProgress

B = "train/traffic/b"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The options of a finished extraction of three short clips, in its own folder."""
    folder = tmp_path_factory.mktemp("made")
    for number, name in enumerate("abc"):
        path = folder / "clips/train/traffic" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, range(0, 1000 + 200 * number, 80))
    extract(_options(folder))
    return folder


def _options(folder):
    return ExtractOptions(
        dataset="folder", root=folder / "clips", encoder="vit_tiny_patch16_224", random_weights=True, image_size=32,
        layers=("2",), parts=("patch",), fps=2, batch_size=8, shard_videos=2, out=folder / "caches",
    )  # fmt: skip


@pytest.fixture
def options(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return _options(tmp_path)


def _change(options):
    shutil.copy(VIDEOS / "bikes.mp4", options.root / f"{B}.mp4")
    os.utime(options.root / f"{B}.mp4")


def _replace(options):
    return dataclasses.replace(options, replace=True)


def _cache(options):
    (path,) = options.out.iterdir()
    return path


def test_another_file_is_refused_with_the_option_and_encoded_again_with_it(options):
    path = _cache(options)
    old = FeatureCache(path).read(B).tokens(layer="2")
    others = FeatureCache(path).read("train/traffic/a").tokens(layer="2")
    commits = {file: file.read_bytes() for file in (path / "shards").glob("*.index.json")}
    _change(options)
    with pytest.raises(CacheMismatchError, match=r"traffic/b'.*is not the file.*--replace encodes it again"):
        extract(options)
    assert dry_run(_replace(options)).num_shards == 1
    assert not (path / "drops").exists(), "a dry run writes nothing"
    report = extract(_replace(options))
    assert (report.num_tried, report.num_ok) == (1, 3)
    cache = FeatureCache(path)
    new = cache.read(B).tokens(layer="2")
    assert new.shape[0] != old.shape[0]
    np.testing.assert_array_equal(cache.read("train/traffic/a").tokens(layer="2"), others)
    assert {file: file.read_bytes() for file in commits} == commits, "older commits stay"
    assert verify_cache(path).problems == ()
    for again in (options, _replace(options)):
        assert extract(again).num_tried == 0, "it is done"
    assert len(drop_paths(path)) == 1


def test_a_new_file_that_cannot_be_read_does_not_leave_the_old_tokens(options):
    path = _cache(options)
    (options.root / f"{B}.mp4").write_bytes(b"no video at all" * 100)
    report = extract(_replace(options))
    assert (report.num_ok, report.num_failed) == (2, 1)
    assert B in report.failures
    _change(options)
    assert extract(options).num_ok == 3, "a failed one whose file changed is tried again, as ever"
    assert verify_cache(path).problems == ()


def _tasks(options):
    """What is to be done, planned and not made: as a run that is killed before its first shard leaves it."""
    prepared = prepare(options, SilentProgress())
    cache = CacheFolder(_cache(options))
    catalog = open_catalog(cache)
    rows = {row.key: row for row in FeatureCache(cache.path, allow_incomplete=True).videos}
    complete = complete_shards(catalog, catalog.contents)

    def plan():
        return remaining_tasks(
            cache, catalog.contents, prepared.records, rows, complete=complete, views=1, shard_videos=2,
            retry_failed=False, replace_changed=options.replace,
        )  # fmt: skip

    return plan


def test_a_run_that_was_killed_after_planning_is_finished_by_a_plain_one(options):
    _change(options)
    (task,) = _tasks(_replace(options))()
    assert [video.id for video in task.videos] == [B]
    between = FeatureCache(_cache(options), allow_incomplete=True)
    assert [row.id for row in between.ok_videos()] == ["train/traffic/a", "train/traffic/c"]
    assert extract(options).num_ok == 3


def test_a_run_that_was_killed_before_planning_is_finished_by_a_plain_one(options):
    _change(options)
    _tasks(_replace(options))()
    path = _cache(options)
    (path / "plan/1.json").unlink()
    (row,) = [row for row in FeatureCache(path).videos if row.id == B]
    assert (row.status, row.reason.partition(" by ")[0]) == ("missing", "replaced")
    assert "the same vfz extract makes it again" in row.reason
    assert extract(options).num_ok == 3


def test_a_second_process_that_saw_the_old_state_hides_nothing_new(options):
    _change(options)
    late = _tasks(_replace(options))
    extract(_replace(options))
    late()
    assert len(FeatureCache(_cache(options)).ok_videos()) == 3


def test_a_layer_that_is_added_is_made_of_the_new_file_only(options):
    _change(options)
    extract(_replace(options))
    report = extract(dataclasses.replace(options, layers=("2", "5")))
    assert (report.num_ok, report.num_lacking) == (3, 0)
    cache = FeatureCache(_cache(options))
    assert len(cache.ok_videos(layers=("2", "5"))) == 3
    assert verify_cache(cache.path).problems == ()


def test_a_dropped_video_stays_out_until_its_file_is_replaced(options):
    path = _cache(options)
    drop_videos(DropOptions(cache=path, video=(B,), why="blurred"))
    for again in (
        options,
        _replace(options),
        dataclasses.replace(options, retry_failed=True),
        dataclasses.replace(options, layers=("2", "5")),
        dataclasses.replace(options, views=2),
    ):
        report = extract(again)
        assert report.num_missing == 1
        assert "blurred" in report.failures[B]
    assert {row.id for row in FeatureCache(path).ok_videos(view=1)} == {"train/traffic/a", "train/traffic/c"}
    _change(options)
    extract(options)
    assert B not in {row.id for row in FeatureCache(path).ok_videos()}
    extract(_replace(options))
    assert B in {row.id for row in FeatureCache(path).ok_videos(layers=("2", "5"))}
    assert verify_cache(path).problems == ()


def test_other_labels_or_splits_are_told_with_the_command(options):
    path = _cache(options)
    (options.root / "train/traffic").rename(options.root / "train/bikes")
    with pytest.raises(
        CacheMismatchError, match=rf"labels would not agree; `vfz cache label {path} --from {options.root}`"
    ):
        extract(options)
    (options.root / "train/bikes").rename(options.root / "train/traffic")
    (options.root / "train").rename(options.root / "val")
    with pytest.raises(CacheMismatchError, match=rf"none of them is in .*`vfz cache label {path} --from"):
        extract(options)


def test_a_list_that_gives_other_labels_to_the_same_videos_is_told_and_the_cache_keeps_its_own(options, tmp_path):
    rows = ["train/traffic/a", B, "train/traffic/c"]

    def listed(labels):
        lines = [f"{row}.mp4,{label},train" for row, label in zip(rows, labels, strict=True)]
        (tmp_path / "clips/list.csv").write_text("\n".join(["path,label,split", *lines]))
        return dataclasses.replace(options, dataset="csv", root=tmp_path / "clips/list.csv", out=tmp_path / "csv")

    path = Path(extract(listed("xyx")).cache)
    notes = Notes()
    extract(listed("yyx"), progress=notes)
    (line,) = [line for line in notes.lines if "another label" in line]
    command = f"`vfz cache label {path} --from {tmp_path / 'clips/list.csv'} --dataset csv`"
    assert line.startswith("1 video of the cache have another label or split")
    assert command in line
    assert FeatureCache(path).videos[0].label == 0
    label_cache(LabelOptions(cache=path, from_=tmp_path / "clips/list.csv", dataset="csv"))
    assert [row.label for row in FeatureCache(path, labels="list").videos] == [1, 1, 0]
