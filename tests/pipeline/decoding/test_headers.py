"""How long videos are, by their headers, whatever the files are like."""

import os
import tarfile
from fractions import Fraction

import pytest
from helpers.video_files import VIDEOS, write_video, write_with_cover

from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.decoding.headers import NOT_KNOWN, VideoHeader, read_headers

pytestmark = pytest.mark.quick

BIKES = VideoHeader(duration_seconds=10.0, frames_per_second=25.0)


def source_of(path):
    return VideoSource(path=path)


def test_a_header_tells_duration_and_rate():
    bikes, bunny = read_headers([source_of(VIDEOS / "bikes.mp4"), source_of(VIDEOS / "bigbuckbunny.mp4")])
    assert bikes == BIKES
    assert bunny.duration_seconds == pytest.approx(5.3, abs=0.1)


@pytest.mark.parametrize("suffix", ["mkv", "avi", "mov"])
def test_other_containers_tell_it_too(tmp_path, suffix):
    path = write_video(tmp_path / f"v.{suffix}", range(50), codec="mpeg4", time_base=Fraction(1, 25))
    (header,) = read_headers([source_of(path)])
    assert header.duration_seconds == pytest.approx(2.0, abs=0.1)
    assert header.frames_per_second == pytest.approx(25, rel=0.05)


def test_a_member_of_a_tar_is_read_in_place(tmp_path):
    with tarfile.open(tmp_path / "videos.tar", "w") as tar:
        tar.add(VIDEOS / "bigbuckbunny.mp4", "first.mp4")
        tar.add(VIDEOS / "bikes.mp4", "second.mp4")
    assert read_headers([VideoSource.parse(f"{tmp_path / 'videos.tar'}::second.mp4")]) == [BIKES]


def test_files_that_are_no_videos_have_none_and_do_not_harm_their_neighbours(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    names = ("text.mp4", "empty.mp4", "folder.mp4", "pipe.mp4", "not-there.mp4")
    found = read_headers([*(source_of(tmp_path / name) for name in names), source_of(VIDEOS / "bikes.mp4")])
    assert found == [None] * len(names) + [BIKES]


def test_of_what_is_not_reached_in_time_nothing_is_known():
    assert read_headers([source_of(VIDEOS / "bikes.mp4")] * 3, time_limit_seconds=0.0) == [NOT_KNOWN] * 3


def test_a_cover_picture_is_not_what_is_told_of(tmp_path):
    path = write_with_cover(tmp_path / "v.mp4", range(50), time_base=Fraction(1, 25))
    (header,) = read_headers([source_of(path)])
    assert header.duration_seconds == pytest.approx(2.0, abs=0.1)
    assert header.frames_per_second == pytest.approx(25, rel=0.05)
    assert read_headers([source_of(write_with_cover(tmp_path / "c.mp4", None))]) == [None], "a song has no other"
