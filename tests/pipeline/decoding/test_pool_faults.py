"""A decoder that hangs, crashes or is killed costs one video."""

import contextlib
import fcntl
import os
import signal
import sys
import time
from fractions import Fraction

import pytest
from helpers.processes import decoders_of, state_of, wait_until, wait_until_steady
from helpers.video_files import frame_spec, read_number, write_video

from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.decoding.pool import DecodePool
from vfz.pipeline.errors import DecodeError, RunError


def open_pool(spec=None, *, num_workers=1, time_limit_seconds=60.0, **more):
    return DecodePool(spec or frame_spec(25), num_workers=num_workers, time_limit_seconds=time_limit_seconds, **more)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """100 frames, which show their numbers."""
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", range(100), time_base=Fraction(1, 25))


def reason_of(frames):
    """Why the rest of a stream, or the next of some, fails."""
    with pytest.raises(DecodeError) as caught:
        list(frames)
    return str(caught.value)


def is_whole(stream):
    return [read_number(frame.pixels_HWC) for frame in stream] == list(range(100))


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_child_that_dies_costs_the_video_in_hand_and_is_replaced(clip, name):
    with open_pool(buffer_frames=4) as pool:
        videos = pool.videos([VideoSource(path=clip)] * 4)
        assert is_whole(next(videos))
        frames = iter(next(videos))
        next(frames)
        (child,) = decoders_of()
        number = signal.Signals[name]
        os.kill(child, number)
        assert reason_of(frames) == f"clip.mp4: decoder died: signal {int(number)} ({name})"
        assert is_whole(next(videos))
        assert is_whole(next(videos))
        assert pool.figures.num_restarts == 1
        assert decoders_of() != [child]


def test_a_child_killed_in_the_middle_of_a_group_costs_its_video(clip, tmp_path):
    path = write_video(
        tmp_path / "wide.mkv", range(100), codec="mjpeg", time_base=Fraction(1, 25), size=(480, 640), pix_fmt="yuvj444p"
    )
    sources = [VideoSource(path=path), VideoSource(path=clip)] * 5
    with open_pool() as pool:
        for number, stream in enumerate(pool.videos(sources)):
            if number % 2:
                assert is_whole(stream)
                continue
            frames, found = iter(stream), []
            for frame in frames:
                found.append(read_number(frame.pixels_HWC))
                if len(found) == 1 + 2 * number:
                    for child in decoders_of():
                        os.kill(child, signal.SIGKILL)
                    break
            with pytest.raises(DecodeError, match=r"wide.mkv: decoder died: signal 9 \(SIGKILL\)"):
                found.extend(read_number(frame.pixels_HWC) for frame in frames)
            assert found == list(range(len(found)))
        assert pool.figures.num_restarts == 5


def test_a_child_that_hangs_in_the_middle_of_a_large_frame_is_given_up(clip, tmp_path):
    path = write_video(
        tmp_path / "large.mkv",
        range(80),
        codec="mjpeg",
        time_base=Fraction(1, 25),
        size=(1024, 1024),
        pix_fmt="yuvj420p",
    )
    with open_pool(time_limit_seconds=2.0, buffer_frames=1000, buffer_bytes=1024**3) as pool:
        videos = pool.videos([VideoSource(path=path), VideoSource(path=clip)])
        frames = iter(next(videos))
        next(frames)
        (child,) = decoders_of()
        os.kill(child, signal.SIGSTOP)
        assert reason_of(frames) == "large.mkv: decoder timed out after 2 s"
        assert is_whole(next(videos))


def test_a_child_killed_while_it_waits_for_work_costs_no_video(clip):
    with open_pool() as pool:
        for _ in range(3):
            assert all(map(is_whole, pool.videos([VideoSource(path=clip)] * 2)))
            (child,) = decoders_of()
            os.kill(child, signal.SIGKILL)
            wait_until(lambda child=child: state_of(child) in {"", "Z"})


def test_a_decoder_that_hangs_is_killed_and_the_run_goes_on(clip):
    with open_pool(time_limit_seconds=1.0, buffer_frames=4) as pool:
        videos = pool.videos([VideoSource(path=clip)] * 3)
        frames = iter(next(videos))
        next(frames)
        (child,) = decoders_of()
        os.kill(child, signal.SIGSTOP)  # as hung as a process can be: it does not even hear of its end
        assert reason_of(frames) == "clip.mp4: decoder timed out after 1 s"
        assert state_of(child) == ""
        assert is_whole(next(videos))
        assert is_whole(next(videos))
        assert pool.figures.num_restarts == 1


def test_a_file_that_cannot_be_opened_for_ever_is_given_up(clip, tmp_path):
    """Opening a file on which another process has a lease waits for that process, by default for 45 seconds."""
    held = tmp_path / "held.mp4"
    held.write_bytes(clip.read_bytes())
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # the kernel's request to give the lease back
    descriptor = os.open(held, os.O_RDWR)
    try:
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"no leases on this file system: {error}")
        with open_pool(time_limit_seconds=1.0) as pool:
            held_stream, free_stream = VideoSource(path=held), VideoSource(path=clip)
            videos = pool.videos([held_stream, free_stream])
            assert reason_of(next(videos)) == "held.mp4: decoder timed out after 1 s"
            assert is_whole(next(videos))
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)


def test_time_spent_waiting_for_room_is_not_counted(clip):
    with open_pool(time_limit_seconds=1.5, buffer_frames=2) as pool:
        videos = pool.videos([VideoSource(path=clip)])
        found = []
        for number, frame in enumerate(next(videos)):
            found.append(read_number(frame.pixels_HWC))
            if number in {10, 50}:
                time.sleep(2.0)
            elif number % 4 == 0:
                time.sleep(0.02)
        assert found == list(range(100))


def test_a_slow_but_steady_decoder_is_stopped_at_the_limit(tmp_path):
    path = write_video(tmp_path / "slow.mkv", range(200), codec="mjpeg", size=(480, 640), pix_fmt="yuvj444p")
    with open_pool(time_limit_seconds=0.05) as pool:
        (reason,) = map(reason_of, pool.videos([VideoSource(path=path)]))
    assert reason == "slow.mkv: decoder timed out after 0.05 s"


def test_a_file_that_changes_while_it_is_read_fails(clip, tmp_path):
    path = tmp_path / "growing.mp4"
    path.write_bytes(clip.read_bytes())
    with open_pool(buffer_frames=2) as pool:
        videos = pool.videos([VideoSource(path=path), VideoSource(path=clip)])
        frames = iter(next(videos))
        next(frames)
        with path.open("ab") as file:
            file.write(b"more")
        assert reason_of(frames) == "growing.mp4: changed while it was read"
        assert is_whole(next(videos))


def test_a_file_that_goes_away_while_it_is_read_fails(clip, tmp_path):
    path = tmp_path / "going.mp4"
    path.write_bytes(clip.read_bytes())
    with open_pool(buffer_frames=2) as pool:
        videos = pool.videos([VideoSource(path=path)])
        frames = iter(next(videos))
        next(frames)
        path.unlink()
        assert reason_of(frames) == "going.mp4: changed while it was read"


def test_a_file_that_claims_enormous_frames_is_refused_before_they_are_made(tmp_path):
    data = bytearray(write_video(tmp_path / "a.gif", range(3), codec="gif", pix_fmt="rgb8").read_bytes())
    data[6:10] = (30_000).to_bytes(2, "little") * 2  # width and height of the screen
    (tmp_path / "claims.gif").write_bytes(data)
    with open_pool() as pool:
        (reason,) = map(reason_of, pool.videos([VideoSource(path=tmp_path / "claims.gif")]))
    assert reason.startswith("claims.gif: ")
    assert "died" not in reason


def test_children_that_cannot_start_end_the_run_and_not_the_videos(clip, monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho the disk with Python is gone >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with open_pool(num_workers=2) as pool:
        streams = pool.videos([VideoSource(path=clip)] * 3)
        with pytest.raises(RunError, match=r"no decode process can be started: .*exit code 3: the disk with Python is"):
            list(next(streams))
        with pytest.raises(RunError):
            list(next(streams))


def test_many_deaths_leave_neither_processes_nor_descriptors(clip):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before = descriptors()
    with open_pool(num_workers=2, buffer_frames=2) as pool:
        for number, stream in enumerate(pool.videos([VideoSource(path=clip)] * 24)):
            with contextlib.suppress(DecodeError):
                for taken, _ in enumerate(stream):
                    if number % 2 and taken == 1:
                        for child in decoders_of():
                            os.kill(child, signal.SIGKILL)
        assert len(decoders_of()) <= 2
        assert pool.figures.num_restarts >= 8
    assert wait_until_steady(descriptors, steady=0.1) == before
    assert decoders_of() == []
