"""A dry run tells what a real one then does, and leaves no trace."""

import dataclasses
import json
import shutil
import subprocess

import pytest
from helpers.extraction import command_line

from vfz.pipeline.errors import CacheMismatchError, StorageError
from vfz.pipeline.extraction.dry_run import dry_run
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions


@pytest.fixture
def folder(folder_dataset, tmp_path):
    """The two sample videos, each twice, small and quick: 31 frames in each split."""
    return ExtractOptions(
        dataset="folder", root=folder_dataset, encoder="demo", layers=("3",), image_size=96, fps=2, batch_size=8,
        shard_videos=2, out=tmp_path / "caches",
    )  # fmt: skip


def files_of(path):
    return {file: file.stat().st_mtime_ns for file in sorted(path.rglob("*"))}


def test_what_a_dry_run_tells_is_what_a_run_does(folder):
    told = dry_run(folder)
    assert not folder.out.exists(), "nothing was written"
    done = extract(folder)
    assert (told.cache, told.fingerprint, told.exists) == (done.cache, done.fingerprint, False)
    assert told.work.num_videos == done.new_videos == 4
    assert told.work.num_frames == done.num_frames
    assert told.num_shards == 2
    assert done.cache_bytes <= told.work.needed_bytes < 2 * done.cache_bytes
    assert told.work.needed_bytes - sum(column.num_bytes for column in told.work.columns) < done.cache_bytes / 2


def test_the_forecast_is_made_from_what_was_measured(folder):
    outlook = dry_run(folder).outlook
    assert outlook.device == "cpu"
    for rate in ("decode_frames_per_second", "encode_frames_per_second", "write_bytes_per_second"):
        assert getattr(outlook.machine, rate) > 0
    assert outlook.forecast.bottleneck in {"decode", "encode", "write"}
    assert outlook.forecast.seconds >= max(outlook.forecast.stage_seconds.values())


def test_of_a_cache_that_is_there_it_tells_what_is_left(folder, folder_dataset):
    broken = folder_dataset / "train/traffic/broken.mp4"
    broken.write_text("not a video")
    cache = extract(folder).cache
    before = files_of(folder.out)
    told = dry_run(folder)
    assert (told.exists, told.work.num_videos, told.num_done, told.num_left) == (True, 0, 4, {"failed": 1})
    assert told.outlook is None, "nothing to do takes no time"

    shutil.copy(folder_dataset / "train/traffic/bikes.mp4", folder_dataset / "train/traffic/new.mp4")
    told = dry_run(folder)
    assert (told.cache, told.work.num_videos, told.work.num_frames) == (cache, 1, 20)
    retried = dry_run(dataclasses.replace(folder, retry_failed=True))
    assert (retried.work.num_videos, retried.num_left) == (2, {})
    assert files_of(folder.out) == before


def test_a_layer_that_is_added_is_all_that_is_counted(folder):
    extract(folder)
    told = dry_run(dataclasses.replace(folder, layers=("2", "3")))
    assert {column.layer for column in told.work.columns} == {"2"}
    assert (told.work.num_videos, told.work.num_frames, told.work.frames_from) == (4, 62, "the cache")


def test_a_cache_that_a_run_would_refuse_is_refused(folder):
    cache = extract(folder).cache
    with pytest.raises(CacheMismatchError, match=r"encoder\.image_size: cache 96, requested 64"):
        dry_run(dataclasses.replace(folder, cache=cache, image_size=64))


def test_videos_that_cannot_be_decoded_give_no_forecast(tmp_path, folder):
    (tmp_path / "none/train/a").mkdir(parents=True)
    (tmp_path / "none/train/a/text.mp4").write_text("not a video")
    told = dry_run(dataclasses.replace(folder, root=tmp_path / "none"))
    assert (told.work.num_videos, told.work.num_frames, told.outlook) == (1, 0, None)
    assert told.work.frames_from == "the headers of 0 videos; 1 of the 1 looked at cannot be decoded"


def test_a_video_that_is_damaged_inside_counts_as_failing_though_its_header_is_whole(folder, folder_dataset):
    """Of four videos one is text, and of one the second half is zeros: its frames are told, and not to be had."""
    (folder_dataset / "train/traffic/bikes.mp4").write_text("not a video")
    damaged = folder_dataset / "test/traffic/bikes.mp4"
    content = bytearray(damaged.read_bytes())
    content[250_000:500_000] = bytes(250_000)  # its index lies behind
    damaged.write_bytes(content)
    told = dry_run(folder)
    assert (told.work.num_sampled, told.work.num_failing) == (4, 2)
    done = extract(folder)
    assert (done.num_failed, done.num_frames) == (2, told.work.num_frames)


def vfz(options, *more):
    return subprocess.run([*command_line(options), *more], capture_output=True, text=True)


def test_the_command_prints_it_and_exits_with_0(folder):
    ran = vfz(folder, "--dry-run", "--rank", "1", "--world-size", "4")
    assert ran.returncode == 0, ran.stderr
    for line in ("dry run: no cache was written", "4 to do, 0 missing, 0 done", "62, from the headers of 4 videos",
                 "layer 3", "with 4 machines like this", "bottleneck", "pays for itself"):  # fmt: skip
        assert line in ran.stdout


def test_a_run_that_does_not_fit_is_refused_before_the_first_shard_unless_forced(folder, tmp_path):
    """On a file system of 1 MB, where this process may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        options = dataclasses.replace(folder, out=small / "caches", precision="fp32")
        told = vfz(options, "--dry-run", "--json")
        assert told.returncode == 0, "a dry run tells that it does not fit, and that is no failure"
        assert json.loads(told.stdout)["fits"] is False
        with pytest.raises(StorageError, match=r"needs about .* for 62 frames and .* are free there.*--force"):
            extract(options)
        with pytest.raises(StorageError, match="no space left on device"):  # it begins, and ends as foretold
            extract(dataclasses.replace(options, force=True))
    finally:
        subprocess.run(["umount", str(small)], check=True)
