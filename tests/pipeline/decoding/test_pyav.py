"""Exactly the frames on display at the sample times come out."""

import random
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from av.stream import Disposition
from helpers.video_files import (
    VIDEOS,
    decode_frames,
    frame_spec,
    numbered,
    numbers,
    read_number,
    write_video,
    write_with_cover,
)

from vfz.pipeline.errors import DecodeError, UsageError


def on_display(seconds, fps, total, start=0.0, end=None):
    """The textbook rule, slowly: for each sample the last frame that is not later, each given once."""
    chosen, k = [], 0
    while (due := start + k / fps) < total - 1e-6 and (end is None or due < end - 1e-9):
        index = max(i for i, begin in enumerate(seconds) if begin <= due + 1e-3)
        if index not in chosen:
            chosen.append(index)
        k += 1
    return chosen


@pytest.fixture(scope="module")
def b_frames(tmp_path_factory):
    """50 frames at 25 per second with B-frames, which are coded in another order than they are shown."""
    path = tmp_path_factory.mktemp("video") / "b.mp4"
    write_video(path, range(50), time_base=Fraction(1, 25), options={"bf": "3", "b-adapt": "0", "g": "20"}, sound=True)
    with av.open(str(path)) as container:
        decode_times = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert decode_times != sorted(decode_times)
    return path


@pytest.mark.quick
@pytest.mark.parametrize("fps", [1, 2.5, 6, 7.3, 12, 24, 25, 29.97, 60])
def test_the_frame_on_display_at_each_sample_time_is_given(b_frames, fps):
    assert numbers(b_frames, fps) == on_display([i / 25 for i in range(50)], fps, 2.0)


def test_each_frame_comes_with_its_own_time(b_frames):
    frames = list(decode_frames(b_frames, fps=6))
    times = [frame.pts_seconds for frame in frames]
    assert times == pytest.approx([read_number(frame.pixels_HWC) / 25 for frame in frames], abs=1e-6)
    assert all(earlier < later for earlier, later in pairwise(times))
    assert frames[0].pixels_HWC.dtype == np.uint8
    assert frames[0].pixels_HWC.shape == (64, 128, 3)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.5, None), (0.52, 1.37), (1.99, None), (0.0, 0.01)])
def test_a_window_takes_samples_from_its_start_to_before_its_end(b_frames, start, end):
    found = numbers(b_frames, 6, start_seconds=start, end_seconds=end)
    assert found == on_display([i / 25 for i in range(50)], 6, 2.0, start, end)


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_variable_frame_rates_are_sampled_by_time(tmp_path, name):
    rng = random.Random(3)
    times = [0]
    for _ in range(40):
        times.append(times[-1] + rng.choice([7, 33, 40, 120, 400]))
    path = write_video(tmp_path / name, times, options={"bf": "2"})
    with av.open(str(path)) as container:
        total = container.duration / 1e6
    for fps in (1, 6, 30):
        assert (
            numbers(path, fps)[:-1] == on_display([t / 1000 for t in times], fps, total)[: len(numbers(path, fps)) - 1]
        )
        assert set(numbers(path, 1000)) == set(range(41))


def test_a_video_slower_than_the_rate_gives_each_frame_once(tmp_path):
    path = write_video(tmp_path / "slow.mp4", range(5), time_base=Fraction(1, 2), rate=2)
    assert numbers(path, 30) == [0, 1, 2, 3, 4]


def test_times_rounded_by_the_container_still_choose_the_right_frames(tmp_path):
    times = [round(i * 1000 / 30) for i in range(60)]
    path = write_video(tmp_path / "ms.mkv", times, rate=30)
    assert numbers(path, 30) == list(range(60))
    assert numbers(path, 10) == list(range(0, 60, 3))


def test_times_count_from_the_first_frame_shown(tmp_path):
    path = write_video(tmp_path / "late.mkv", [5000 + 40 * i for i in range(20)])
    frames = list(decode_frames(path, fps=5))
    assert [read_number(frame.pixels_HWC) for frame in frames] == [0, 5, 10, 15]
    assert frames[0].pts_seconds == 0.0


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"pix_fmt": "yuv444p", "size": (63, 127)}),
        ("a.mp4", "libx264", {"pix_fmt": "yuv420p10le"}),
        ("a.webm", "libvpx-vp9", {}),
        ("alpha.webm", "libvpx-vp9", {"pix_fmt": "yuva420p"}),
        ("alpha.mov", "qtrle", {"pix_fmt": "argb"}),
        ("no duration.mkv", "libx264", {"container_options": {"live": "1"}, "options": {"bf": "2"}}),
        ("no duration.webm", "libvpx-vp9", {"container_options": {"live": "1"}}),
        ("a.mkv", "ffv1", {}),
        ("a.avi", "mpeg4", {"options": {"bf": "0"}}),
        ("a.avi", "mjpeg", {"pix_fmt": "yuvj420p"}),
        ("a.mov", "mpeg4", {"options": {"bf": "2"}}),
        ("a.ts", "libx264", {"options": {"bf": "2"}}),
        ("a.flv", "libx264", {}),
        ("a.mp4", "libx264", {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "5"}}),
    ],
)
def test_containers_and_codecs(tmp_path, name, codec, options):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot encode {codec}")
    path = write_video(tmp_path / name, range(30), codec=codec, time_base=Fraction(1, 25), **options)
    assert numbers(path, 25) == list(range(30))
    assert numbers(path, 5) == [0, 5, 10, 15, 20, 25]


def test_gif(tmp_path):
    path = tmp_path / "a.gif"
    write_video(path, range(10), codec="gif", time_base=Fraction(1, 10), rate=10, pix_fmt="rgb8")
    assert numbers(path, 10) == list(range(10))
    assert numbers(path, 5) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("name", ["one.mp4", "one.mkv", "one.avi", "one.ts"])
def test_a_single_frame_is_a_video(tmp_path, name):
    path = write_video(tmp_path / name, [0], codec="mpeg4", time_base=Fraction(1, 25))
    assert numbers(path, 6) == [0]


@pytest.mark.quick
@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 1), (180, 2), (-90, 3)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_display_matrix_is_applied(tmp_path, degrees, turns, mirrored):
    path = tmp_path / "turned.mp4"
    write_video(path, range(182), prepare=lambda s: s.set_display_rotation(degrees, hflip=mirrored))
    *_, last = decode_frames(path, fps=1000)
    expected = np.rot90(numbered(181), turns)[:, :: -1 if mirrored else 1]
    assert last.pixels_HWC.shape == expected.shape
    assert np.abs(last.pixels_HWC.astype(int) - expected).mean() < 12


@pytest.mark.parametrize(
    ("matrix", "full", "expected"),
    [
        (1, False, (214, 101, 41)),  # BT.709
        (1, True, (202, 103, 50)),
        (6, False, (204, 94, 44)),  # BT.601
        (6, True, (193, 96, 53)),
        (None, False, (204, 94, 44)),
    ],
)
def test_colours_follow_the_sources_matrix_and_range(tmp_path, matrix, full, expected):
    path = tmp_path / "colour.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame(64, 48, "yuv420p")
        for target in (stream.codec_context, frame) if matrix else ():
            target.colorspace, target.color_range = matrix, 2 if full else 1
        for plane, value in zip(frame.planes, (120, 90, 180), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (found,) = decode_frames(path, fps=1)
    assert np.abs(found.pixels_HWC.astype(int) - expected).max() <= 2


def _coloured(path, matrix, primaries):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(3):
            frame = av.VideoFrame(64, 48, "yuv420p")
            for target in (stream.codec_context, frame):
                target.colorspace, target.color_primaries = matrix, primaries
            for plane, value in zip(frame.planes, (120, 90, 180), strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("matrix", range(20))
@pytest.mark.parametrize("primaries", [1, 6, 9, 22])
def test_every_matrix_is_converted_or_refused_by_name(tmp_path, matrix, primaries):
    path = _coloured(tmp_path / "colour.mkv", matrix, primaries)
    of_primaries = {1: (214, 101, 41), 6: (204, 94, 44), 9: (209, 95, 39)}
    expected = {
        0: of_primaries[6], 1: of_primaries[1], 2: of_primaries[6], 4: (203, 92, 43), 5: of_primaries[6],
        6: of_primaries[6], 7: (214, 101, 42), 9: of_primaries[9], 12: of_primaries.get(primaries),
        **dict.fromkeys((3, 18, 19), of_primaries[6]),
    }.get(matrix)  # fmt: skip
    if expected:
        first, *_ = decode_frames(path, fps=10)
        assert np.abs(first.pixels_HWC.astype(int) - expected).max() <= 2
    else:
        with pytest.raises(DecodeError, match=rf"colour\.mkv: its colours are coded by the matrix .* \({matrix}\)"):
            list(decode_frames(path, fps=10))


@pytest.mark.parametrize(("name", "count"), [("bikes.mp4", 60), ("bigbuckbunny.mp4", 32)])
def test_real_videos(name, count, capfd):
    frames = list(decode_frames(VIDEOS / name, fps=6))
    assert len(frames) == count
    assert all(frame.pts_seconds <= k / 6 + 1e-3 < frame.pts_seconds + 1 / 25 + 2e-3 for k, frame in enumerate(frames))
    again = list(decode_frames(VIDEOS / name, fps=6))
    assert all(np.array_equal(a.pixels_HWC, b.pixels_HWC) for a, b in zip(frames, again, strict=True))
    assert capfd.readouterr() == ("", "")


def test_an_edit_list_is_no_damage(tmp_path):
    """A cut made without encoding keeps frames before the cut, and hides them by an edit list."""
    whole = write_video(tmp_path / "whole.mp4", range(50), time_base=Fraction(1, 25), options={"g": "25", "bf": "2"})
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        base = source.streams.video[0].time_base
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                packet.pts -= int(Fraction(10, 25) / base)
                packet.dts -= int(Fraction(10, 25) / base)
                target.mux(packet)
    assert numbers(cut, 25)[-1] == 49


def test_a_window_behind_the_end_holds_no_frame(b_frames):
    with pytest.raises(DecodeError, match=r"no frame is on display from 7.0 s on; it ends at 2.00 s"):
        numbers(b_frames, 6, start_seconds=7.0)


@pytest.mark.parametrize(
    "window",
    [
        {"fps": 0},
        {"fps": float("nan")},
        {"fps": float("inf")},
        {"fps": 6, "start_seconds": -1.0},
        {"fps": 6, "start_seconds": 2.0, "end_seconds": 2.0},
    ],
)
def test_rates_and_windows_that_make_no_sense_are_refused_at_once(window):
    with pytest.raises(UsageError):
        frame_spec(**window)


@pytest.mark.parametrize("end", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("rule", ["fps", "uniform", "centred"])
def test_of_several_video_streams_the_first_is_taken_whatever_is_marked_as_default(tmp_path, end, rule):
    path = tmp_path / f"v.{end}"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        streams[0].disposition, streams[1].disposition = Disposition(0), Disposition.default
        for stream, size in zip(streams, [(64, 128), (128, 256)], strict=True):
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 25)
        for number in range(25):
            for stream, shown in zip(streams, [number, 200], strict=True):
                frame = av.VideoFrame.from_ndarray(numbered(shown, stream.height, stream.width), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    more = {"fps": {"fps": 5.0}, "uniform": {"fps": None, "num_frames": 5}, "centred": {"fps": 5.0, "num_frames": 5}}
    frames = list(decode_frames(path, rule=rule, **more[rule]))
    assert [read_number(frame.pixels_HWC) for frame in frames] == {
        "fps": [0, 5, 10, 15, 20], "uniform": [2, 7, 12, 17, 22], "centred": [2, 7, 12, 17, 22],
    }[rule]  # fmt: skip
    assert {frame.pixels_HWC.shape for frame in frames} == {(64, 128, 3)}


def test_a_cover_picture_is_no_frame(tmp_path):
    assert numbers(write_with_cover(tmp_path / "v.mp4", range(50)), 5) == list(range(0, 50, 5))
    with pytest.raises(DecodeError, match=r"c\.mp4: holds no video stream"):
        numbers(write_with_cover(tmp_path / "c.mp4", None), 5)


@pytest.mark.parametrize("codec", ["mjpeg", "libvpx-vp9"])
@pytest.mark.parametrize("rule", ["fps", "uniform"])
def test_pictures_that_change_their_size_in_mid_stream_come_as_they_are(tmp_path, codec, rule):
    """What two encoders made, one after the other, as of a call whose line got worse."""
    sizes, pix_fmt = [(64, 128), (128, 64)], {"mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream(codec, rate=10)
        later = av.CodecContext.create(codec, "w")
        for part, (context, (height, width)) in enumerate(zip([stream.codec_context, later], sizes, strict=True)):
            context.height, context.width, context.pix_fmt = height, width, pix_fmt
            context.time_base, context.framerate = Fraction(1, 10), Fraction(10)
            for number in [*range(10), None]:
                frame = None
                if number is not None:
                    frame = av.VideoFrame.from_ndarray(numbered(number, height, width), format="rgb24")
                    frame = frame.reformat(format=pix_fmt)
                    frame.pts, frame.time_base = 10 * part + number, Fraction(1, 10)
                for packet in context.encode(frame):
                    packet.stream, packet.time_base = stream, Fraction(1, 10)
                    container.mux(packet)
    asked = {"fps": 5.0} if rule == "fps" else {"fps": None, "num_frames": 10}
    frames = list(decode_frames(tmp_path / "v.mkv", rule=rule, **asked))
    assert [frame.pixels_HWC.shape[:2] for frame in frames] == [sizes[0]] * 5 + [sizes[1]] * 5
    assert [read_number(frame.pixels_HWC) for frame in frames] == [k + (rule == "uniform") for k in (0, 2, 4, 6, 8)] * 2


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 1), (1, 3000), (3000, 1), (3, 5)], ids=str)
def test_pictures_that_are_one_line_are_pictures(tmp_path, size):
    write_video(tmp_path / "v.mov", range(0, 400, 100), codec="png", size=size, pix_fmt="rgb24")
    frames = list(decode_frames(tmp_path / "v.mov", 10.0))
    assert [frame.pixels_HWC.shape for frame in frames] == [(*size, 3)] * 4


@pytest.mark.parametrize("years", [1, 67, 69, 200])
def test_times_may_jump_by_years_but_not_further_than_a_cache_can_say(tmp_path, years):
    seconds = years * 365 * 86400
    times = [0, 100, 200, 1000 * seconds, 1000 * seconds + 100]
    write_video(tmp_path / "v.mkv", times, codec="mjpeg", pix_fmt="yuvj420p")
    if years < 68:
        frames = list(decode_frames(tmp_path / "v.mkv", 10.0))
        assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]
        assert frames[3].pts_seconds == pytest.approx(seconds)
    else:
        with pytest.raises(DecodeError, match=rf"v\.mkv: times jump to {seconds} s; 2147483647 s is the last"):
            list(decode_frames(tmp_path / "v.mkv", 10.0))


def test_frames_that_a_container_gives_the_same_time_come_with_rising_ones(tmp_path):
    write_video(tmp_path / "v.mkv", [number // 4 for number in range(40)], codec="ffv1")
    times = [frame.pts_seconds for frame in decode_frames(tmp_path / "v.mkv", 10000.0)]
    assert all(earlier < later for earlier, later in pairwise(times))
