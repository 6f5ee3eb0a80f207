"""Ctrl-C and kill: the videos that are done are kept, and the same command goes on from there."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from helpers.extraction import all_tokens, command_line, num_ok, shard_files
from helpers.processes import decoders_of, wait_until

from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.format.commits import committed_paths, read_shard_index
from vfz.pipeline.format.plan import read_plans
from vfz.pipeline.maintenance.verify import verify_cache

TWO_VIDEOS = 2 * 6 * 12 * 12 * 112 * 2
"""Bytes of the tokens of two of the videos of `slow_options`."""


@pytest.fixture(scope="module")
def slow_options(synthetic_options, synthetic_root):
    """24 videos with frames large enough that a signal comes in time on a busy machine, too: seconds for all."""
    return partial(synthetic_options, image_size=192, num_videos=24, root=synthetic_root / "24")


@pytest.fixture(scope="module")
def slow_tokens(slow_options, tmp_path_factory):
    """Of a run that nobody has interrupted."""
    return all_tokens(extract(slow_options(out=tmp_path_factory.mktemp("whole"))).cache)


def _interrupt(options, numbers):
    """An extraction that gets these signals once its first shard is there: exit code, stderr, shards at the time."""
    process = subprocess.Popen(
        command_line(options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )

    def commits():
        return len(list(options.out.glob("*/shards/*.index.json")))

    wait_until(lambda: commits() or process.poll() is not None, seconds=120)
    before = commits()
    for number in numbers:
        os.killpg(process.pid, number)  # as a terminal does: to the decode processes, too
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors, before


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([signal.SIGINT], 130), ([signal.SIGTERM], 130), ([signal.SIGHUP] * 2, 129)],  # a terminal may say it twice
)
def test_one_signal_keeps_the_videos_that_are_done(synthetic_options, synthetic_cache, tmp_path, numbers, expected):
    options = synthetic_options(shard_videos=4, out=tmp_path / "caches")
    code, errors, before = _interrupt(options, numbers)
    assert code == expected
    assert "stopping: the videos that are done are being stored" in errors
    assert "vfz: error: interrupted; what was finished is kept, and the same command goes on from there" in errors
    assert "Traceback" not in errors
    (path,) = options.out.iterdir()
    done = num_ok(path)
    assert 4 * before <= done < 48
    assert not [problem for problem in verify_cache(path).problems if problem.file.startswith(("shards/", "."))]
    report = extract(options)
    assert report.new_videos == 48 - done
    assert all_tokens(report.cache) == all_tokens(synthetic_cache.path)


def test_a_shard_is_closed_with_the_videos_that_are_done(slow_options, slow_tokens, tmp_path):
    """All videos are in one shard; the others go into shards of the next plan, and the first one stays as it is."""
    options = slow_options(shard_videos=24, out=tmp_path / "caches")
    process = subprocess.Popen(
        command_line(options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: _num_written(options) > TWO_VIDEOS or process.poll() is not None, seconds=120)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    (path,) = options.out.iterdir()
    done = num_ok(path)
    assert 0 < done < 24
    report = verify_cache(path)
    assert not [problem for problem in report.problems if problem.file.startswith(("shards/", "."))]
    assert report.num_pending == 24 - done
    first = shard_files(path)
    report = extract(options)
    assert (report.new_videos, report.num_ok, report.num_pending) == (24 - done, 24, 0)
    assert all_tokens(report.cache) == slow_tokens
    assert len(shard_files(path)) == 2
    assert shard_files(path)["00000", 0] == first["00000", 0]
    assert verify_cache(path).problems == ()


def test_two_runs_that_go_on_at_once_plan_no_video_twice(slow_options, slow_tokens, tmp_path):
    """What one of them has read of the cache is older than what the other has planned and made since."""
    options = slow_options(shard_videos=8, out=tmp_path / "caches")
    process = subprocess.Popen(command_line(options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: _num_written(options) > TWO_VIDEOS or process.poll() is not None, seconds=120)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    (path,) = options.out.iterdir()
    assert 0 < num_ok(path) < 24
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command_line(options), stdout=subprocess.DEVNULL, env=one_thread) for _ in range(2)]
    assert [one.wait(timeout=200) for one in both] == [0, 0]
    planned = [video.key for plan in read_plans(path / "plan") for videos in plan.shards.values() for video in videos]
    of_closed = sum(row.status == "pending" for index in _commits(path) for row in index.rows)
    assert len(planned) == 24 + of_closed, "only what a closed shard has left is planned once more"
    assert extract(options).num_tried == 0
    assert all_tokens(path) == slow_tokens


def _commits(path):
    return [read_shard_index(index) for index in committed_paths(path).values()]


def test_a_video_that_gives_no_frame_does_not_keep_a_shard_from_being_closed(slow_options, synthetic_root, tmp_path):
    """Just when people press Ctrl-C: all decoders are held up, and the limit is ten minutes."""
    more = {"num_videos": 48, "root": synthetic_root / "48"}  # more frames than decoders send ahead, by far
    options = slow_options(shard_videos=48, out=tmp_path / "caches", decode_workers=1, **more)
    process = subprocess.Popen(
        command_line(options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_until(lambda: _num_written(options) > TWO_VIDEOS or process.poll() is not None, seconds=120)
        for pid in decoders_of(process.pid):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5)  # what they had sent before is encoded
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert time.monotonic() - started < 25, "and not when its time is over"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, errors
    (path,) = options.out.iterdir()
    assert 0 < num_ok(path) < 48


def _num_written(options):
    """Bytes of tokens that lie in shards, whether these are committed or not."""
    return sum(file.stat().st_size for file in options.out.glob("*/shards/*-*/**/*") if file.is_file())


def test_ctrl_c_again_and_again_while_dask_starts_and_ends_leaves_one_clear_line(synthetic_options, tmp_path):
    """It reaches the workers too, as they import what they need, and the first process as it closes the cluster."""
    options = synthetic_options(shard_videos=4, out=tmp_path / "caches", dask="2")
    shown = tmp_path / "stderr"
    with shown.open("w") as file:
        process = subprocess.Popen(
            command_line(options), stdout=subprocess.DEVNULL, stderr=file, text=True, start_new_session=True
        )
    wait_until(lambda: "extracting" in shown.read_text() or process.poll() is not None, seconds=120)
    while process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
    lines = shown.read_text().splitlines()
    assert process.returncode == 130, lines
    assert lines[-1] == "vfz: error: interrupted; what was finished is kept, and the same command goes on from there"
    assert not [line for line in lines if "Traceback" in line or "leaked" in line or "bug" in line], "\n".join(lines)


def test_two_signals_stop_at_once_and_nothing_committed_is_lost(synthetic_options, synthetic_cache, tmp_path):
    options = synthetic_options(shard_videos=4, out=tmp_path / "caches")
    code, errors, before = _interrupt(options, [signal.SIGINT, signal.SIGINT])
    assert code == 130
    assert "Traceback" not in errors
    report = extract(options)
    assert report.num_ok == 48
    assert report.new_videos <= 48 - 4 * before
    assert all_tokens(report.cache) == all_tokens(synthetic_cache.path)


def test_a_terminal_that_is_closed_stops_a_run_as_ctrl_c_does(synthetic_options, synthetic_cache, tmp_path):
    """Nothing can be shown any more: what is written to such a terminal is an error."""
    options = synthetic_options(shard_videos=4, out=tmp_path / "caches")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, command_line(options))  # noqa: S606 - this interpreter
    while not list(options.out.glob("*/shards/*.index.json")):
        if select.select([terminal], [], [], 0.02)[0]:
            os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    (path,) = options.out.iterdir()
    done = num_ok(path)
    assert 4 <= done < 48
    assert not [problem for problem in verify_cache(path).problems if problem.file.startswith(("shards/", "."))]
    report = extract(options)
    assert report.new_videos == 48 - done
    assert all_tokens(report.cache) == all_tokens(synthetic_cache.path)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGHUP, 129), (signal.SIGTERM, 130), (signal.SIGINT, 130)])
@pytest.mark.parametrize("seconds", [0.02, 0.2, 0.6])  # imports of Python's modules, then of those written in C
def test_a_signal_before_the_work_begins_leaves_one_line_and_nothing_else(
    synthetic_options, tmp_path, number, expected, seconds
):
    options = synthetic_options(out=tmp_path / "caches")
    process = subprocess.Popen(
        command_line(options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: _handles(process.pid, signal.SIGHUP))  # the last that the command line handles
    time.sleep(seconds)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == expected, errors
    lines = errors.strip().splitlines()  # click ends the line that a terminal shows ^C in
    assert [line for line in lines if line and not line.startswith("rendering: ")] == [  # made before torch is read
        "vfz: error: interrupted; what was finished is kept, and the same command goes on from there"
    ]
    assert not list(tmp_path.glob("caches/*"))


def _handles(pid, number):
    """Whether a process has a handler for a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return bool(int(dict(line.split(":\t") for line in lines)["SigCgt"], 16) >> (number - 1) & 1)


def test_nohup_is_obeyed(synthetic_options, tmp_path):
    options = synthetic_options(shard_videos=16, out=tmp_path / "caches")
    process = subprocess.Popen(
        ["nohup", *command_line(options)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_until(lambda: list(options.out.glob("*/shards/*.index.json")) or process.poll() is not None, seconds=120)
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(120) == 0
