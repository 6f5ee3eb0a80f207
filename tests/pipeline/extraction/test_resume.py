"""A run that goes on looks again at files that may have changed, and only at those."""

import dataclasses
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.video_files import VIDEOS

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.errors import CacheMismatchError, UsageError
from vfz.pipeline.extraction import estimate
from vfz.pipeline.extraction.estimate import shard_size
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.format.commits import committed_paths
from vfz.pipeline.format.plan import extend_plans
from vfz.pipeline.maintenance.verify import verify_cache
from vfz.pipeline.progress import SilentProgress
from vfz.pipeline.recipe import FrameSpec

CLIP = VIDEOS / "bikes.mp4"
OTHER = VIDEOS / "bigbuckbunny.mp4"
_opened: list[str] = []


def _listen(event, arguments):
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        _opened.append(os.fspath(arguments[0]))


sys.addaudithook(_listen)  # for good: Python has no way to take one back


@pytest.fixture
def options(tmp_path):
    """Three videos in one folder and one in another, as a dataset that is not changed while it is extracted."""
    for name in ("a", "b", "c"):
        _copy(CLIP, tmp_path / "clips/train/traffic" / f"{name}.mp4")
    _copy(CLIP, tmp_path / "clips/train/more/d.mp4")
    return ExtractOptions(
        dataset="folder", root=tmp_path / "clips", encoder="vit_tiny_patch16_224", random_weights=True, image_size=64,
        layers=("2",), parts=("patch",), fps=1, batch_size=8, shard_videos=2, out=tmp_path / "caches",
    )  # fmt: skip


def _copy(source, target):
    """A copy that looks old by its time of writing, as one made by rsync does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    os.utime(target, (10**9, 10**9))


def _make_commits_newer(cache, *, seconds=7200):
    """So that the files are hours older than the commits; no program can set the time of change of a file itself."""
    for path in committed_paths(Path(cache)).values():
        later = path.stat().st_mtime + seconds
        os.utime(path, (later, later))


def _opened_by(function):
    _opened.clear()
    result = function()
    return result, [Path(name).name for name in _opened]


def test_files_older_than_the_commits_are_not_read_again_but_one_of_each_folder(options):
    cache = extract(options).cache
    _, opened = _opened_by(lambda: extract(options))
    assert {name for name in opened if name.endswith(".mp4")} == {"a.mp4", "b.mp4", "c.mp4", "d.mp4"}, "an hour is near"
    _make_commits_newer(cache)
    _, opened = _opened_by(lambda: extract(options))
    assert {name for name in opened if name.endswith(".mp4")} == {"a.mp4", "d.mp4"}


def test_indexes_of_complete_shards_are_not_read_again(options):
    extract(options)
    report, opened = _opened_by(lambda: extract(options))
    assert report.num_tried == 0
    assert not [name for name in opened if name.endswith("index.json") and name != "index.json"]


def test_what_describes_a_cache_is_read_once_a_run(options):
    extract(options)
    shutil.copy(CLIP, options.root / "train/more/e.mp4")
    _, opened = _opened_by(lambda: extract(options))
    assert opened.count("vfz.json") == 1
    assert opened.count("0.json") == 1, "the plan of the first run; that of this one is written"


def _overwrite(folder):
    _copy(OTHER, folder / "b.mp4")


def _rename(folder):
    _copy(OTHER, folder / "new.mp4")
    (folder / "new.mp4").replace(folder / "b.mp4")


def _link(folder):
    (folder / "b.mp4").unlink()
    (folder / "b.mp4").symlink_to(OTHER)


@pytest.mark.parametrize("change", [_overwrite, _rename, _link])
def test_a_file_that_changed_after_its_commit_is_refused(options, change):
    cache = extract(options).cache
    change(options.root / "train/traffic")
    with pytest.raises(CacheMismatchError, match=r"traffic/b'.*b\.mp4 is not the file.*was made from"):
        extract(options)
    assert {row.status for row in FeatureCache(cache).videos} == {"ok"}, "what is there can be read"


def test_a_folder_swapped_as_a_whole_is_refused_though_its_files_are_old(options):
    for name in ("a", "b", "c"):
        _copy(OTHER, options.root.parent / "other" / f"{name}.mp4")
    _make_commits_newer(extract(options).cache)
    (options.root / "train/traffic").rename(options.root.parent / "before")
    (options.root.parent / "other").rename(options.root / "train/traffic")
    with pytest.raises(CacheMismatchError, match=r"traffic/a'.*is not the file"):
        extract(options)


def test_a_dataset_that_lies_elsewhere_now_is_read_again(options):
    elsewhere = options.root.parent / "elsewhere" / options.root.name
    shutil.copytree(options.root, elsewhere)
    moved = dataclasses.replace(options, root=elsewhere)
    _make_commits_newer(extract(options).cache)
    report, opened = _opened_by(lambda: extract(moved))
    assert (report.num_ok, report.num_tried) == (4, 0)
    assert {"a.mp4", "b.mp4", "c.mp4", "d.mp4"} <= set(opened)
    _copy(OTHER, elsewhere / "train/traffic/c.mp4")
    with pytest.raises(CacheMismatchError, match=r"traffic/c'"):
        extract(moved)


def test_a_failed_video_is_tried_again_when_its_file_changed_and_not_before(options):
    broken = options.root / "train/traffic/b.mp4"
    broken.write_bytes(CLIP.read_bytes()[:3000])
    assert extract(options).num_failed == 1
    assert extract(options).num_tried == 0
    _copy(OTHER, options.root / "new")
    (options.root / "new").replace(broken)
    report = extract(options)
    assert (report.num_tried, report.num_ok, report.num_failed) == (1, 4, 0)


def test_a_file_replaced_between_plan_and_extraction_is_stored_as_what_it_is_then(options, tmp_path):
    whole = extract(dataclasses.replace(options, out=tmp_path / "others")).cache
    for path in (Path(whole) / "shards").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    records = open_dataset("folder", root=options.root).videos()
    extend_plans(Path(whole) / "plan", records, shard_size_videos=2)
    replaced = options.root / "train/traffic/b.mp4"
    _copy(OTHER, replaced)
    cache = FeatureCache(extract(dataclasses.replace(options, out=tmp_path / "others")).cache)
    row = next(row for row in cache.videos if row.id == "train/traffic/b")
    assert row.source_digest == VideoSource(path=replaced).digest()
    assert row.num_frames != next(row for row in cache.videos if row.id == "train/traffic/a").num_frames


class _ReplacesAFile(SilentProgress):
    """Replaces a file when all is planned and nothing is decoded."""

    def __init__(self, path):
        self._path = path

    def start(self, task, *, total, unit):
        if task == "extracting":
            _copy(OTHER, self._path)


def test_a_layer_is_never_made_of_a_file_replaced_after_the_look_at_it(options):
    cache = extract(options).cache
    grown = dataclasses.replace(options, layers=("2", "11"))
    report = extract(grown, progress=_ReplacesAFile(options.root / "train/traffic/b.mp4"))
    assert report.cache == cache
    assert (report.num_ok, report.num_lacking) == (4, 1)
    assert "is not the file that its other layers were made from" in report.failures["train/traffic/b"]
    assert "train/traffic/b" not in {row.id for row in FeatureCache(cache).ok_videos(layers=(11,))}
    with pytest.raises(CacheMismatchError, match=r"traffic/b'"):
        extract(grown)


def test_a_file_that_changes_after_the_clock_was_set_back_is_refused(options):
    cache = extract(options).cache
    _make_commits_newer(cache, seconds=10 * 365 * 86400)
    _copy(OTHER, options.root / "train/traffic/b.mp4")
    with pytest.raises(CacheMismatchError, match="b"):
        extract(options)


def test_times_in_the_future_of_all_files_change_nothing(options):
    cache = Path(extract(options).cache)
    for path in [*cache.rglob("*"), *options.root.rglob("*.mp4")]:
        os.utime(path, (5e9, 5e9))
    report = extract(options)
    assert (report.num_ok, report.num_tried) == (4, 0)
    assert verify_cache(cache).intact


def test_shards_that_are_planned_keep_their_size_and_another_one_is_refused_before_work_begins(options):
    whole = extract(options)
    committed_paths(Path(whole.cache))["00001", 0].unlink()  # the last of two shards of two videos each
    with pytest.raises(UsageError, match=r"--shard-videos 3: .* in shards of 2, .* leave the option out to go on"):
        extract(dataclasses.replace(options, shard_videos=3))
    with pytest.raises(UsageError, match="--shard-videos 1: "):
        extract(dataclasses.replace(options, shard_videos=1))
    assert extract(dataclasses.replace(options, shard_videos=None)).new_videos == 2
    assert extract(dataclasses.replace(options, shard_videos=3)).new_videos == 0, "nothing is left that it would change"


@pytest.mark.parametrize(
    ("frames_per_second", "frame_bytes", "expected"),
    [
        (1.0, 1, 2),  # 30 s are 30 frames, 2.7 of these videos
        (1e6, 256 * 10**6 // 200, 16),  # 200 frames fill 256 MB
        (0.01, 1, 1),  # not even one
        (1e6, 1, 512),
    ],
)
def test_a_shard_is_30_seconds_of_encoding_or_256_megabytes(
    options, monkeypatch, frames_per_second, frame_bytes, expected
):
    """In powers of two, so that it is mostly the same on machines that are nearly the same."""
    monkeypatch.setattr(estimate, "measure_encoder", lambda *_, **__: frames_per_second)
    dataset = open_dataset("folder", root=options.root)
    records = dataset.videos()
    array = SimpleNamespace(frame_bytes=frame_bytes)
    destination = SimpleNamespace(
        encoder=SimpleNamespace(
            preprocess=SimpleNamespace(image_size=64), device=SimpleNamespace(type="cpu"), batch_size=8
        ),
        contents=SimpleNamespace(columns=[SimpleNamespace(arrays=[array])]),
    )
    frames = FrameSpec(
        rule="fps", num_frames=None, fps=1.0, start_seconds=0.0, end_seconds=None, decoder="pyav", decoder_version=2
    )
    assert shard_size(frames, records, destination)(records) == expected
