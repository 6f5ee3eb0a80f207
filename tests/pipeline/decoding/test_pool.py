"""Frames that come through the pool are those of the decoder, in order, in bounded memory."""

import os
import signal
import subprocess
import sys
import tarfile
import threading
from fractions import Fraction

import numpy as np
import pytest
from helpers.processes import bytes_written_by, decoders_of, state_of, wait_until, wait_until_steady
from helpers.video_files import VIDEOS, decode_frames, frame_spec, read_number, write_video
from hypothesis import given, settings
from hypothesis import strategies as st

from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.decoding.pool import DecodePool
from vfz.pipeline.errors import DecodeError, RunError, UsageError

FRAME_BYTES = 64 * 128 * 3


def open_pool(spec=None, *, num_workers=1, time_limit_seconds=60.0, **more):
    return DecodePool(spec or frame_spec(25), num_workers=num_workers, time_limit_seconds=time_limit_seconds, **more)


def source(path):
    return VideoSource(path=path)


def numbers_of(stream):
    return [read_number(frame.pixels_HWC) for frame in stream]


def reason_of(stream):
    with pytest.raises(DecodeError) as caught:
        list(stream)
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Five clips of 10, 20, ... 50 frames."""
    folder = tmp_path_factory.mktemp("clips")
    return [
        write_video(folder / f"{count}.mp4", range(count), time_base=Fraction(1, 25)) for count in range(10, 60, 10)
    ]


@pytest.fixture(scope="module")
def mixed_clips(tmp_path_factory):
    """Videos of several sizes and lengths."""
    folder = tmp_path_factory.mktemp("mixed")
    return [
        write_video(
            folder / f"{count}.mkv", range(count), codec="ffv1", pix_fmt="bgr0", size=size, time_base=Fraction(1, 25)
        )
        for count, size in ((1, (64, 128)), (75, (63, 127)), (33, (240, 320)), (5, (720, 1280)))
    ]


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    """250 frames, which show their numbers."""
    return write_video(tmp_path_factory.mktemp("clips") / "long.mp4", range(250), time_base=Fraction(1, 25))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_videos_come_in_the_order_given_with_the_decoders_own_frames(num_workers):
    paths = [VIDEOS / "bikes.mp4", VIDEOS / "bigbuckbunny.mp4"] * 2
    with open_pool(frame_spec(2), num_workers=num_workers) as pool:
        for path, stream in zip(paths, pool.videos(map(source, paths)), strict=True):
            assert stream.source == source(path)
            for ours, theirs in zip(stream, decode_frames(path, 2), strict=True):
                assert np.array_equal(ours.pixels_HWC, theirs.pixels_HWC)
                assert (ours.pts_seconds, ours.number) == (theirs.pts_seconds, theirs.number)
            assert stream.digest == source(path).digest()
            assert not stream.missing


@pytest.mark.parametrize("size", [(240, 320), (256, 340), (240, 427), (63, 127), (3, 5)], ids=str)
def test_frames_of_any_size_come_through(tmp_path, size):
    """Most widths are no multiple of what FFmpeg pads its rows to."""
    path = write_video(tmp_path / "a.mkv", range(5), codec="ffv1", pix_fmt="bgr0", size=size)
    with open_pool() as pool:
        frames = [frame for stream in pool.videos([source(path)]) for frame in stream]
        for ours, theirs in zip(frames, decode_frames(path, 25), strict=True):
            assert ours.pixels_HWC.shape == (*size, 3)
            assert np.array_equal(ours.pixels_HWC, theirs.pixels_HWC)


def test_many_short_videos_lose_and_double_nothing(clips):
    paths = clips * 8
    with open_pool(num_workers=2, buffer_frames=4) as pool:
        found = [numbers_of(stream) for stream in pool.videos(map(source, paths))]
        assert found == [list(range(int(path.stem))) for path in paths]
        assert pool.figures.num_decoded == sum(map(len, found))
        assert pool.figures.busy_seconds > 0
        assert pool.figures.num_restarts == 0


def test_a_frame_rule_reaches_the_decoder(clips):
    with open_pool(frame_spec(None, rule="uniform", num_frames=5)) as pool:
        assert [numbers_of(stream) for stream in pool.videos([source(clips[0])])] == [[1, 3, 5, 7, 9]]


def test_a_member_of_a_tar_is_decoded_in_place(clips, tmp_path):
    with tarfile.open(tmp_path / "clips.tar", "w") as archive:
        for path in clips:
            archive.add(path, path.name)
    sources = [VideoSource.parse(f"{tmp_path / 'clips.tar'}::{path.name}") for path in clips]
    with open_pool() as pool:
        for path, stream in zip(clips, pool.videos(sources), strict=True):
            assert numbers_of(stream) == list(range(int(path.stem)))
            assert stream.digest == source(path).digest()


def test_bad_videos_fail_each_with_its_reason_and_the_others_do_not(clips, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "cut.mp4").write_bytes(clips[4].read_bytes()[:3000])
    names = ["nothing.mp4", "empty.mp4", "text.mp4", "pipe.mp4", "loop.mp4", "cut.mp4", "."]
    sources = [part for name in names for part in (source(tmp_path / name), source(clips[0]))]
    reasons, missing = {}, set()
    with open_pool(num_workers=2) as pool:
        for stream in pool.videos(sources):
            if stream.source.path == clips[0]:
                assert numbers_of(stream) == list(range(10))
            else:
                reasons[stream.source.path.name] = reason_of(stream)
                missing |= {stream.source.path.name} if stream.missing else set()
        assert pool.figures.num_restarts == 0
    assert missing == {"nothing.mp4", "loop.mp4"}
    assert "no file" in reasons["nothing.mp4"]
    assert "empty" in reasons["empty.mp4"]
    assert "cannot be read as a video" in reasons["text.mp4"]
    assert "no regular file" in reasons["pipe.mp4"]
    assert "cut.mp4" in reasons["cut.mp4"]


@pytest.mark.parametrize("name", ["-i.mp4", "ü ñ '\"%03d\n.mp4", "\udcff.mp4", "::x,,:.mp4"])
def test_odd_names_reach_the_child(clips, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(clips[0].read_bytes())
    with open_pool() as pool:
        assert [len(list(stream)) for stream in pool.videos([source(path)])] == [10]


def test_a_relative_path_is_meant_from_where_the_reader_is(clips, tmp_path, monkeypatch):
    with open_pool() as pool:
        monkeypatch.chdir(clips[0].parent)
        paths = [source(clips[0].relative_to(clips[0].parent))]
        assert [len(list(stream)) for stream in pool.videos(paths)] == [10]


def test_sources_are_read_only_a_few_videos_ahead(clips):
    num_read = 0

    def endless():
        nonlocal num_read
        while True:
            num_read += 1
            yield source(clips[0])

    with open_pool(num_workers=2) as pool:
        for number, stream in enumerate(pool.videos(endless())):
            assert num_read <= number + 8
            assert len(list(stream)) == 10
            if number == 20:
                break


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_child_waits_when_its_frames_are_not_taken(long_clip, num_workers):
    with open_pool(num_workers=num_workers, buffer_frames=5) as pool:
        videos = pool.videos([source(long_clip)] * 50)
        stream = next(videos)
        frames = iter(stream)
        assert read_number(next(frames).pixels_HWC) == 0
        for child in decoders_of():
            written = wait_until_steady(lambda child=child: bytes_written_by(child))
            assert written <= 6 * (FRAME_BYTES + 1000)
        assert [read_number(frame.pixels_HWC) for frame in frames] == list(range(1, 250))


def test_a_child_that_sends_groups_fills_its_room_and_no_more(long_clip):
    with open_pool(buffer_frames=64) as pool:
        videos = pool.videos([source(long_clip)])
        frames = iter(next(videos))
        for count, num_more in ((0, 1), (1, 70), (71, 40)):
            assert [read_number(next(frames).pixels_HWC) for _ in range(num_more)] == [*range(count, count + num_more)]
            (child,) = decoders_of()
            written = wait_until_steady(lambda child=child: bytes_written_by(child))
            assert written // FRAME_BYTES <= count + num_more + 64
            assert written // FRAME_BYTES >= count + num_more + 64 - 16  # of which some are taken, not all of its group
        assert [read_number(frame.pixels_HWC) for frame in frames] == list(range(111, 250))


def test_frames_that_come_fast_lie_together(long_clip):
    with open_pool() as pool:
        frames = [frame for stream in pool.videos([source(long_clip)]) for frame in stream]
    assert len({id(frame.pixels_HWC.base) for frame in frames}) < 125
    assert all(frame.pixels_HWC.flags.c_contiguous for frame in frames)


@settings(max_examples=12, deadline=None)
@given(
    order=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    buffer_frames=st.integers(1, 80),
    buffer_bytes=st.sampled_from([1, 100_000, 3_000_000, 256 * 1024**2]),
    num_workers=st.integers(1, 2),
)
def test_whatever_the_sizes_and_the_room_the_decoders_frames_come_out(
    mixed_clips, order, buffer_frames, buffer_bytes, num_workers
):
    with open_pool(num_workers=num_workers, buffer_frames=buffer_frames, buffer_bytes=buffer_bytes) as pool:
        paths = [mixed_clips[number] for number in order]
        for path, stream in zip(paths, pool.videos(map(source, paths)), strict=True):
            for ours, theirs in zip(stream, decode_frames(path, 25), strict=True):
                assert np.array_equal(ours.pixels_HWC, theirs.pixels_HWC)
                assert (ours.pts_seconds, ours.number) == (theirs.pts_seconds, theirs.number)


def test_many_videos_of_one_frame_do_not_pile_up(tmp_path):
    path = write_video(tmp_path / "one.mp4", [0])
    with open_pool(buffer_frames=6) as pool:
        videos = pool.videos([source(path)] * 100)
        next(videos)
        wait_until(decoders_of)
        (child,) = decoders_of()
        assert wait_until_steady(lambda: bytes_written_by(child)) <= 6 * (FRAME_BYTES + 1000)


def test_large_frames_are_bounded_by_their_bytes(tmp_path):
    path = write_video(
        tmp_path / "large.avi",
        range(12),
        codec="mjpeg",
        time_base=Fraction(1, 25),
        pix_fmt="yuvj420p",
        size=(1024, 1024),
    )
    with open_pool(buffer_frames=100, buffer_bytes=8 * 1024**2) as pool:
        videos = pool.videos([source(path)])
        stream = next(videos)
        wait_until(decoders_of)
        (child,) = decoders_of()
        wait_until(lambda: bytes_written_by(child) > 6 * 1024**2)
        assert wait_until_steady(lambda: bytes_written_by(child)) < 11 * 1024**2
        assert numbers_of(stream) == list(range(12))


def test_a_frame_larger_than_all_room_still_gets_through(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(12), time_base=Fraction(1, 25))
    with open_pool(buffer_bytes=1024) as pool:
        assert [numbers_of(stream) for stream in pool.videos([source(path)])] == [list(range(12))]


def test_the_rest_of_a_video_can_be_skipped(long_clip, clips):
    with open_pool(buffer_frames=4) as pool:
        videos = pool.videos([source(path) for path in (long_clip, clips[0], long_clip, clips[1])])
        first = next(videos)
        next(iter(first))
        first.close()
        assert list(first) == []
        assert numbers_of(next(videos)) == list(range(10))
        next(iter(next(videos)))  # and is not closed: asking for the next does it
        assert numbers_of(next(videos)) == list(range(20))
        assert pool.figures.num_decoded < 100
        assert pool.figures.num_restarts == 0


def test_frames_that_are_gone_do_not_look_like_the_end(long_clip, clips):
    with open_pool() as pool:
        videos = pool.videos([source(long_clip), source(clips[0])])
        first = iter(next(videos))
        next(first)
        second = next(videos)
        with pytest.raises(RunError, match=r"long.mp4: its frames are gone"):
            list(first)
        del videos
        with pytest.raises(RunError, match=r"10.mp4: its frames are gone"):
            list(second)


def test_streams_can_be_closed_at_any_moment(long_clip):
    with open_pool(num_workers=2, buffer_frames=3) as pool:
        for number, stream in enumerate(pool.videos([source(long_clip)] * 40)):
            if number % 4 == 3:
                assert numbers_of(stream) == list(range(250))
            else:
                for _ in zip(range(number), stream, strict=False):
                    pass
                stream.close()
                stream.close()


def test_a_stopped_iteration_leaves_the_pool_usable(long_clip, clips):
    with open_pool(num_workers=2) as pool:
        for stream in pool.videos([source(long_clip)] * 10):
            next(iter(stream))
            break
        assert [numbers_of(stream) for stream in pool.videos([source(clips[0])])] == [list(range(10))]


def test_leaving_the_pool_ends_its_children_and_whoever_waits(long_clip):
    with open_pool(num_workers=2, buffer_frames=2) as pool:
        videos = pool.videos([source(long_clip)] * 3)
        stream = next(videos)
        frames = iter(stream)
        next(frames)
        wait_until(lambda: len(decoders_of()) == 2)
    assert decoders_of() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "vfz-decode"]
    with pytest.raises(RunError, match="stopped"):
        list(frames)


def test_ctrl_c_is_left_to_the_parent(long_clip):
    with open_pool(buffer_frames=2) as pool:
        videos = pool.videos([source(long_clip)])
        stream = next(videos)
        frames = iter(stream)
        next(frames)
        (child,) = decoders_of()
        os.kill(child, signal.SIGINT)
        assert len(list(frames)) == 249
        assert os.getpgid(child) != os.getpgid(0)


def test_children_die_with_a_parent_that_is_killed(long_clip):
    script = f"""
import sys
sys.path.insert(0, {str(VIDEOS.parents[1])!r})
from helpers.video_files import *
from vfz.pipeline.decoding.pool import DecodePool
with DecodePool(frame_spec(25), num_workers=2, time_limit_seconds=60, buffer_frames=2) as pool:
    for stream in pool.videos([VideoSource(path={str(long_clip)!r} and Path({str(long_clip)!r}))] * 4):
        next(iter(stream))
        print("decoding", flush=True)
        sys.stdin.read()
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    with parent:
        assert parent.stdout.readline() == b"decoding\n"
        children = decoders_of(parent.pid)
        assert len(children) == 2
        parent.kill()
    wait_until(lambda: all(state_of(child) in {"", "Z"} for child in children))


def test_children_start_without_torch():
    script = "import sys, vfz.pipeline.decoding.worker, vfz.pipeline.decoding.pyav; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_libraries_print_in_a_child_stays_out_of_the_frames(clips, tmp_path, monkeypatch, capfd):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'vfz.pipeline.decoding.worker' in sys.orig_argv:\n    os.write(1, b'hello' * 100_000)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with open_pool() as pool:
        assert [numbers_of(stream) for stream in pool.videos([source(clips[0])])] == [list(range(10))]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("values", [{"num_workers": 0}, {"time_limit_seconds": 0.0}, {"buffer_frames": 0}])
def test_a_pool_that_cannot_work_is_refused(values):
    with pytest.raises(UsageError):
        open_pool(**values)
