"""A file that is no video, damaged or cut short never passes for a whole one."""

import os
import random
import re
from fractions import Fraction

import av
import pytest
from helpers.video_files import VIDEOS, decode_frames, numbers, write_sound, write_video

from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.decoding.headers import read_headers
from vfz.pipeline.errors import DecodeError


def message(path, fps=6, **window):
    with pytest.raises(DecodeError) as caught:
        list(decode_frames(path, fps=fps, **window))
    text = str(caught.value)
    assert text.startswith(f"{path.name}: ")
    assert "\n" not in text
    return text


def test_files_that_are_no_videos_are_refused(tmp_path, capfd):
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 100)
    (tmp_path / "subtitles.mp4").write_text("1\n00:00:00,000 --> 00:00:02,000\nHello\n\n" * 5)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        write_sound(container, container.add_stream("aac", rate=48000, layout="mono"), seconds=1)
    assert "cannot be read as a video" in message(tmp_path / "text.mp4")
    assert "is no video file" in message(tmp_path / "subtitles.mp4")
    assert "no video stream" in message(tmp_path / "sound.mp4")
    assert "empty" in message(tmp_path / "empty.mp4")
    assert "no regular file" in message(tmp_path / "folder.mp4")
    assert "no regular file" in message(tmp_path / "pipe.mp4")
    assert "cannot be read" in message(tmp_path / "loop.mp4")
    assert "not there" in message(tmp_path / "nothing.mp4")
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    path = write_video(tmp_path / "secret.mp4", range(3))
    path.chmod(0)
    assert "Permission denied" in message(path)


OTHERS = {
    "concat": "ffconcat version 1.0\nfile {path}\n",
    "concat of a relative path": "ffconcat version 1.0\nfile other.ts\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{path}\n#EXT-X-ENDLIST\n",
    "dash": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><Period><AdaptationSet><Representation "
    "id='0'><BaseURL>{path}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/9\n",
    "rtsp": "rtsptext rtsp://127.0.0.1/x",
    "metadata": ";FFMETADATA1\ntitle=x\n",
    "subtitles": "1\n00:00:00,000 --> 00:00:02,000\nHello\n\n",
}
"""Texts that FFmpeg would read, and that would lead to another file."""


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["a.mp4", "a.ffconcat", "a.m3u8", "a.mpd", "a.sdp", "%d.avi"])
def test_what_names_another_file_is_no_video(tmp_path, kind, name):
    write_video(tmp_path / "other.ts", range(3))
    (tmp_path / name).write_text(OTHERS[kind].format(path=tmp_path / "other.ts"))
    assert re.search("is no video file|cannot be read as a video", message(tmp_path / name))
    assert read_headers([VideoSource(path=tmp_path / name)]) == [None]


def test_a_picture_is_no_video(tmp_path):
    encode_picture = write_video(tmp_path / "a.png", [0], codec="png", pix_fmt="rgb24")
    assert "is no video file" in message(encode_picture.rename(tmp_path / "a.mp4"))


@pytest.mark.parametrize("name", ["a:b.mp4", "-i.mp4", "ü ñ '\"%03d.mp4", "http:x.mp4"])
def test_odd_names_are_names(tmp_path, name):
    assert numbers(write_video(tmp_path / "plain.mp4", range(3)).rename(tmp_path / name), 1) == [0]


def holds_all_packets(path):
    try:
        with av.open(str(path)) as container:
            return sum(packet.size > 0 and not packet.is_corrupt for packet in container.demux(video=0)) == 200
    except av.FFmpegError:
        return False


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.8, 0.9])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cut.mp4", {"container_options": {"movflags": "faststart"}}),
        ("cut.mkv", {"options": {"g": "12"}}),
        ("cut.avi", {"codec": "mpeg4"}),
        ("cut.flv", {}),
        ("cut.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "200"}}),
    ],
)
def test_a_file_cut_short_is_refused(tmp_path, name, options, kept):
    path = write_video(tmp_path / name, range(200), time_base=Fraction(1, 25), **options)
    assert len(numbers(path, 25)) == 200
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    if holds_all_packets(path):
        assert numbers(path, 25) == list(range(200)), "only the seek index behind the last frame is lost"
    else:
        message(path)


def test_damage_that_a_player_would_hide_is_refused(tmp_path):
    data = bytearray((VIDEOS / "bikes.mp4").read_bytes())
    for at in range(100_000, 101_000):
        data[at] ^= 0x5A
    (tmp_path / "bikes.mp4").write_bytes(data)
    assert "damaged" in message(tmp_path / "bikes.mp4")


def test_a_window_ends_the_work(tmp_path):
    """What lies behind the window is not read: a two-hour film costs what its window costs."""
    path = write_video(
        tmp_path / "cut.mp4", range(200), time_base=Fraction(1, 25), container_options={"movflags": "faststart"}
    )
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    assert numbers(path, 5, end_seconds=1.0) == [0, 5, 10, 15, 20]


@pytest.mark.timeout(120)
def test_no_mutation_of_a_real_video_does_more_than_fail(tmp_path, capfd):
    rng = random.Random(0)
    # Smaller than the real files, and with the index in front, so that cuts and flips reach the frames.
    source = write_video(
        tmp_path / "whole.mp4", range(100), options={"bf": "2"}, container_options={"movflags": "faststart"}
    )
    outcomes = set()
    for original in (source.read_bytes(), (VIDEOS / "bikes.mp4").read_bytes()):
        for trial in range(24):
            data = bytearray(original)
            if trial % 4 == 0:
                del data[rng.randrange(len(data)) :]
            elif trial % 4 == 1:
                at = rng.randrange(len(data))
                del data[at : at + rng.randrange(1, 3000)]
            else:
                for _ in range(rng.choice([1, 4, 60])):
                    data[rng.randrange(len(data) if trial % 4 == 2 else 4000)] ^= 1 << rng.randrange(8)
            path = tmp_path / "mutant.mp4"
            path.write_bytes(data)
            try:
                outcomes.add(len(list(decode_frames(path, fps=6))) > 0)
            except DecodeError:
                outcomes.add("failed")
    assert outcomes <= {True, "failed"}
    assert capfd.readouterr() == ("", "")
