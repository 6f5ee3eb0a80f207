"""Many processes at one cache: whoever makes the shards, and whoever is killed meanwhile, it comes out the same."""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from helpers.extraction import command_line, shard_files
from helpers.processes import children_of, state_of, wait_until
from helpers.video_files import VIDEOS

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import EngineError, UnknownNameError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.maintenance.repair import repair_cache
from vfz.pipeline.maintenance.verify import verify_cache


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Eight real videos and one that is none."""
    root = tmp_path_factory.mktemp("clips")
    for number in range(8):
        path = root / "train" / "a" / f"video{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(VIDEOS / ("bikes.mp4" if number % 3 else "bigbuckbunny.mp4"), path)
    (root / "train/a/text.mp4").write_text("not a video")
    return root


@pytest.fixture
def options(root, tmp_path):
    return ExtractOptions(
        dataset="folder", root=root, encoder="vit_tiny_patch16_224", random_weights=True, layers=("5", "11"),
        end_seconds=3.0, image_size=64, batch_size=16, shard_videos=2, out=tmp_path / "caches", device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def local(root, tmp_path_factory):
    """The shards as one process makes them."""
    out = tmp_path_factory.mktemp("local")
    return shard_files(
        extract(
            ExtractOptions(
                dataset="folder",
                root=root,
                encoder="vit_tiny_patch16_224",
                random_weights=True,
                layers=("5", "11"),
                end_seconds=3.0,
                image_size=64,
                batch_size=16,
                shard_videos=2,
                out=out,
                device="cpu",
            )
        ).cache
    )


@contextlib.contextmanager
def started(options, *more):
    """The same extraction as a command of its own, which is gone afterwards."""
    process = subprocess.Popen(
        [*command_line(options), "--json", *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def report_of(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(output)


def workers_of(process):
    """The ids of the dask workers that a command has started."""
    return [pid for pid in children_of(process.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def indexes(options):
    """The commits there are."""
    return list(options.out.glob("*/shards/*.index.json"))


def shard_in_hand(pid):
    """The shard that a process is writing."""
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if found := re.search(r"/shards/(\d{5,})-", str(link.readlink())):
                    return found[1]
    return None


# --- dask ---


def test_two_dask_workers_write_the_same_bytes_as_one_process(options, local):
    with started(options, "--dask", "2") as process:
        output, errors = process.communicate(timeout=300)
    report = json.loads(output)
    assert shard_files(report["cache"]) == local
    assert (report["num_ok"], report["num_failed"], report["new_videos"]) == (8, 1, 8)
    assert re.search(r"^dask dashboard: http://127\.0\.0\.1:\d+/status$", errors, flags=re.MULTILINE)
    assert "failed: 'train/a/text'" in errors
    assert re.search(r"extracting: 9 videos in .* frames/s \d.*busy decode .*bottleneck", errors)
    assert "Traceback" not in errors


def test_the_shard_of_a_worker_that_is_killed_is_made_by_another(options, local):
    with started(options, "--dask", "2") as process:
        holding = []

        def one_is_at_work():
            holding[:] = [(pid, shard) for pid in workers_of(process) if (shard := shard_in_hand(pid))]
            return holding or process.poll() is not None

        wait_until(one_is_at_work, seconds=300)
        pid, shard = holding[0]
        os.kill(pid, signal.SIGKILL)
        report = report_of(process)
    assert shard_files(report["cache"]) == local
    assert (shard, 0) in local, "it was in the middle of this one"
    cache = FeatureCache(report["cache"])
    assert sorted(row.id for row in cache.ok_videos()) == [f"train/a/video{number}" for number in range(8)]
    repair_cache(cache.path)  # what the dead worker had begun is in nobody's way, and can be removed
    assert verify_cache(cache.path).problems == ()


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_ends_the_workers_too_and_the_same_command_goes_on(options, count):
    """Once, they finish what they have in hand; twice, they do not."""
    options = dataclasses.replace(options, shard_videos=1)
    with started(options, "--dask", "2") as process:
        wait_until(lambda: indexes(options) or process.poll() is not None, seconds=300)
        workers, before = workers_of(process), len(indexes(options))
        assert workers
        for _ in range(count):
            os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [line for line in errors.splitlines() if line.startswith("vfz: error: ")] == [
        "vfz: error: interrupted; what was finished is kept, and the same command goes on from there"
    ]
    assert "Traceback" not in errors
    assert all(state_of(pid) in {"", "Z"} for pid in workers)
    after = len(indexes(options))
    if count == 1:
        assert "stopping: the videos that are done are being stored" in errors
        assert before <= after < 9, "no more were begun"
        (path,) = options.out.iterdir()
        assert not [problem for problem in verify_cache(path).problems if problem.file.startswith("shards/")]
    report = extract(options)
    assert (report.num_ok, report.num_failed) == (8, 1)
    assert report.num_tried == 9 - after


def test_what_goes_wrong_in_a_worker_is_one_line_that_names_it(options, tmp_path):
    """On a file system of 1 MB, where this process may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        with started(dataclasses.replace(options, out=small, precision="fp32"), "--force", "--dask", "1") as process:
            _, errors = process.communicate(timeout=300)
        assert process.returncode == 1
        (line,) = [line for line in errors.splitlines() if line.startswith("vfz: error: ")]
        assert re.search(r"no space left on device.*\(shard \d{5}, on worker tcp://", line)
        assert "Traceback" not in errors
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.faults
def test_a_shard_that_takes_every_worker_down_is_given_up(options):
    with started(options, "--dask", "1") as process:
        killed = {}

        def kill_the_worker_at_work():
            for pid in workers_of(process):
                if pid not in killed and (shard := shard_in_hand(pid)):
                    os.kill(pid, signal.SIGKILL)
                    killed[pid] = shard
            return process.poll() is not None

        wait_until(kill_the_worker_at_work, seconds=600)
        _, errors = process.communicate()
    assert process.returncode == 1
    (shard, num_killed), *_ = Counter(killed.values()).most_common()  # a new worker may begin with another shard
    assert num_killed == 4
    assert f"4 workers were lost over one shard (shard-{shard}-" in errors


def test_a_scheduler_that_is_not_there_is_one_clear_line(options, monkeypatch):
    monkeypatch.setattr("vfz.pipeline.engine.dask.CONNECT_SECONDS", 1)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(EngineError, match=rf"no dask scheduler answers at {address}"):
        extract(dataclasses.replace(options, dask=address))


def test_errors_come_through_a_pickle_with_their_line_and_exit_code():
    error = UnknownNameError("encoder", "vit_smal", ["vit_small"])
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - of our own, as dask does it
    assert (str(copy), copy.exit_code) == (str(error), error.exit_code)


# --- ranks ---


def test_two_ranks_started_at_the_same_moment_write_the_same_bytes_as_one_process(options, local):
    with (
        started(options, "--rank", "0", "--world-size", "2") as zero,
        started(options, "--rank", "1", "--world-size", "2") as one,
    ):
        reports = report_of(zero), report_of(one)
    assert reports[0]["cache"] == reports[1]["cache"]
    assert shard_files(reports[0]["cache"]) == local
    assert sum(report["new_videos"] for report in reports) == 8, "none was done twice"
    assert {report["num_tried"] for report in reports} == {4, 5}
    assert min(report["num_pending"] for report in reports) == 0, "the last one found nothing left to do"
    assert verify_cache(reports[0]["cache"]).problems == ()


def test_a_rank_that_is_done_says_what_is_left_to_others(options, local):
    report = extract(dataclasses.replace(options, rank="1", world_size="3"))
    made = shard_files(report.cache)
    assert set(made) == {("00001", 0), ("00004", 0)}
    assert made.items() <= local.items()
    assert report.num_pending == 9 - report.num_tried
    again = extract(dataclasses.replace(options, rank="1", world_size="3"))
    assert again.num_tried == 0
    rest = extract(options)
    assert (rest.num_pending, shard_files(rest.cache)) == (0, local)
