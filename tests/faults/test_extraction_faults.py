"""Real faults: a run that is killed at any moment, a decoder that dies or sleeps, and a disk that is full.

A seeded sample runs in `make test`; the whole campaign in `make faults`.
"""

import contextlib
import dataclasses
import errno
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import time
from typing import NamedTuple

import pytest
from helpers.extraction import all_tokens, command_line, shard_files
from helpers.processes import bytes_written_by, decoders_of, wait_until
from helpers.video_files import VIDEOS, write_video, write_with_cover

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import StorageError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.maintenance.verify import verify_cache

FRAME_BYTES = 640 * 272 * 3


class _Whole(NamedTuple):
    """What an extraction comes to that nobody stops, and how long it takes."""

    seconds: float
    shards: dict
    ids: list


@pytest.fixture(scope="module")
def whole(synthetic_options, synthetic_cache, tmp_path_factory):
    """In a process of its own, where the videos have been rendered before."""
    options = synthetic_options(shard_videos=4, out=tmp_path_factory.mktemp("whole"))
    started = time.monotonic()
    subprocess.run(command_line(options), capture_output=True, check=True)
    seconds = time.monotonic() - started
    (path,) = options.out.iterdir()
    return _Whole(seconds, shard_files(path), [row.id for row in FeatureCache(path).videos])


def _killed(options, *, after_seconds):
    """Starts an extraction and kills all of it (-9) then; the number of shards it has committed."""
    process = subprocess.Popen(
        command_line(options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after_seconds)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return len(list(options.out.glob("*/shards/*.index.json")))


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 30), marks=pytest.mark.faults)], ids=str)
def test_a_run_killed_at_any_moment_goes_on_and_ends_like_one_that_was_not(synthetic_options, whole, tmp_path, seeds):
    for seed in seeds:
        options = synthetic_options(shard_videos=4, out=tmp_path / str(seed))
        num_committed = _killed(options, after_seconds=random.Random(seed).uniform(0, whole.seconds))
        report = extract(options)
        assert report.new_videos == 48 - 4 * num_committed, "what is finished is not done again"
        assert shard_files(report.cache) == whole.shards
        assert [row.id for row in FeatureCache(report.cache).videos] == whole.ids, "none is lost or doubled"


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGKILL, r"decoder died: signal 9 \(SIGKILL\)"), (signal.SIGSTOP, "decoder timed out")],
)
def test_a_decoder_that_dies_or_sleeps_for_ever_in_a_run_costs_one_video(tmp_path, number, reason):
    folder = tmp_path / "clips/train/a"
    folder.mkdir(parents=True)
    for name in range(6):
        shutil.copy(VIDEOS / "bikes.mp4", folder / f"{name}.mp4")
    options = ExtractOptions(
        dataset="folder", root=tmp_path / "clips", encoder="test_vit", random_weights=True, layers=("2",),
        image_size=32, fps=25, end_seconds=4, batch_size=8, decode_workers=1, video_timeout=5, device="cpu",
        out=tmp_path / "caches",
    )  # fmt: skip
    process = subprocess.Popen(command_line(options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: list(options.out.glob("*/shards/*-*")) and _decoders_at_work(process), seconds=120)
        os.kill(_decoders_at_work(process)[0], number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    (path,) = options.out.iterdir()
    rows = FeatureCache(path).videos
    (failed,) = [row for row in rows if row.status != "ok"]
    assert re.search(reason, failed.reason)
    assert len(rows) == 6
    report = extract(dataclasses.replace(options, retry_failed=True))
    assert (report.num_ok, report.num_failed, report.num_tried) == (6, 0, 1)
    assert len(set(map(str, all_tokens(path).values()))) == 1, "they are copies of one video"


def _decoders_at_work(process):
    """Decode processes of a run that have sent a few frames and not all."""
    found = []
    for pid in decoders_of(process.pid):
        with contextlib.suppress(OSError):
            if bytes_written_by(pid) > 10 * FRAME_BYTES:
                found.append(pid)
    return found


def test_a_full_disk_is_one_clear_line_and_costs_no_finished_shard(synthetic_options, tmp_path):
    """A file system of 1 MB, where this process may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        options = synthetic_options(out=small / "caches", shard_videos=4, precision="fp32")
        ran = subprocess.run(command_line(options), capture_output=True, text=True)
        assert ran.returncode == 1
        errors = [line for line in ran.stderr.splitlines() if line.startswith("vfz: error: ")]
        assert len(errors) == 1
        assert "no space" in errors[0].lower() or "full" in errors[0].lower()
        assert "Traceback" not in ran.stderr
        (path,) = (small / "caches").glob("*")
        assert len(all_tokens(path)) % 4 == 0
        data = {folder.name for folder in (path / "shards").iterdir() if folder.is_dir()}
        committed = {index.name.split(".")[0] for index in (path / "shards").glob("*.index.json")}
        assert {name.split("-")[0] for name in data} == committed, "nothing is left of the shard that did not fit"
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_hard_links_is_told_before_anything_is_encoded_and_nothing_is_left(
    synthetic_options, tmp_path, monkeypatch, number
):
    def refuse(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match="on a file system with hard links"):
        extract(synthetic_options(out=tmp_path / "caches"))
    assert list((tmp_path / "caches").iterdir()) == []


@pytest.mark.parametrize("limit", [64, 12])
def test_with_few_descriptors_a_run_ends_well_or_in_one_line_that_says_so(synthetic_options, tmp_path, limit):
    layers = tuple(map(str, range(12)))
    options = synthetic_options(
        encoder="vit_tiny_patch16_224", random_weights=True, image_size=64, layers=layers, precision="int8",
        shard_videos=4, splits=("test",), decode_workers=4, out=tmp_path / "caches",
    )  # fmt: skip
    line = f"ulimit -n {limit}; exec {shlex.join(command_line(options))}"
    ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    errors = [line for line in ran.stderr.splitlines() if "error" in line]
    assert "Traceback" not in ran.stderr
    if ran.returncode:
        assert ran.returncode == 1
        assert len(errors) == 1
        assert "too many open files" in errors[0].lower()
        assert "bug" not in errors[0]
    assert extract(options).num_failed == 0, "and it goes on from there"


def test_a_cache_on_a_disk_that_cannot_be_written_is_read_and_a_run_into_it_is_one_line(synthetic_options, tmp_path):
    """Root may write whatever a mode says: the disk is mounted once more, for reading only."""
    options = synthetic_options(splits=("test",), out=tmp_path / "caches")
    extract(options)
    (path,) = options.out.iterdir()
    for name in ("index.parquet", "index.json"):
        (path / name).unlink()
    folder = str(options.out)
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
        pytest.skip("no right to mount here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        assert len(all_tokens(path)) == 12
        assert verify_cache(path).intact
        for more in ({}, {"name": "other"}, {"layers": ("1",)}):  # the first makes the catalogue that is not there
            with pytest.raises(StorageError, match="read-only file system; choose a folder that can be written"):
                extract(dataclasses.replace(options, **more))
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_video_of_another_world_costs_no_other(tmp_path):
    """Times of centuries, pictures of one line and a cover alone, beside a video like others."""
    folder = tmp_path / "clips/train/a"
    folder.mkdir(parents=True)
    write_video(folder / "far.mkv", [0, 100, 10**13], codec="mjpeg", pix_fmt="yuvj420p")
    write_video(folder / "line.mov", range(0, 400, 100), codec="png", size=(1, 20000), pix_fmt="rgb24")
    write_with_cover(folder / "song.mp4", None)
    write_video(folder / "whole.mp4", range(0, 1000, 100))
    report = extract(
        ExtractOptions(
            dataset="folder", root=tmp_path / "clips", encoder="test_vit", random_weights=True, layers=("2",),
            image_size=224, fps=10, device="cpu", out=tmp_path / "caches", force=True,
        )
    )  # fmt: skip
    assert {name: re.sub(r"\d+", "N", reason) for name, reason in report.failures.items()} == {
        "train/a/far": "far.mkv: times jump to N s; N s is the last that counts",
        "train/a/song": "song.mpN: holds no video stream",
    }
    assert verify_cache(report.cache).intact
    assert {row.id: row.num_frames for row in FeatureCache(report.cache).ok_videos()} == {
        "train/a/line": 4, "train/a/whole": 10,
    }  # fmt: skip
