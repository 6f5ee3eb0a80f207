"""Each rule takes the frames it says, and times strictly increase whatever the video."""

from fractions import Fraction
from itertools import pairwise

import av
import pytest
from helpers.video_files import VIDEOS, decode_frames, frame_spec, numbers, read_number, write_video
from hypothesis import assume, given
from hypothesis import strategies as st

from vfz.pipeline.decoding.sampling import Rounding, ShownFrame, Timeline, TimelineError, sample
from vfz.pipeline.errors import DecodeError, UsageError


def video(folder, count, rate=30, name="a.mp4", **more):
    return write_video(folder / name, range(count), time_base=Fraction(1, rate), rate=rate, **more)


def centred(count, native_fps, fps, num_frames=16):
    """The paper's rule, as it is written."""
    step = max(1, round(native_fps / fps))
    first = max(0, (count - ((num_frames - 1) * step + 1)) // 2)
    return [min(first + k * step, count - 1) for k in range(num_frames)]


def times(path, fps=6.0, **more):
    return [frame.pts_seconds for frame in decode_frames(path, fps, **more)]


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 30, 75, 76, 77, 200])
@pytest.mark.parametrize("fps", [6, 12, 30, 60])
def test_centred_takes_the_papers_frames(tmp_path, count, fps):
    path = video(tmp_path, count, options={"bf": "2", "g": "30"})
    rule = {"rule": "centred", "num_frames": 16}
    assert numbers(path, fps, **rule) == centred(count, 30, fps)
    found = times(path, fps, **rule)
    assert all(earlier < later for earlier, later in pairwise(found))
    step = max(1, round(30 / fps))
    for (index, here), (following, there) in pairwise(zip(centred(count, 30, fps), found, strict=True)):
        if following > index:
            assert there == pytest.approx(following / 30)
        else:
            assert there - here == pytest.approx(step / 30), "repeated frames go on at the step"


@pytest.mark.parametrize(("rate", "step"), [("24000/1001", 2), ("25", 2), ("30000/1001", 2), ("30", 2), ("60", 5)])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_rates_that_a_container_rounds_give_the_same_step(tmp_path, rate, step, name):
    rate = Fraction(rate)
    codec = "libvpx" if name == "a.webm" else "libx264"
    path = write_video(tmp_path / name, range(90), time_base=1 / rate, rate=rate, codec=codec)
    found = numbers(path, 12, rule="centred", num_frames=4)
    assert [later - earlier for earlier, later in pairwise(found)] == [step] * 3


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8, 10])
def test_uniform_takes_the_middle_of_equal_parts(tmp_path, num_frames):
    path = video(tmp_path, 50, rate=25)
    due = [(k + 0.5) * 2.0 / num_frames for k in range(num_frames)]
    found = numbers(path, None, rule="uniform", num_frames=num_frames)
    assert found == [int(seconds * 25 + 1e-6) for seconds in due]
    assert times(path, None, rule="uniform", num_frames=num_frames) == pytest.approx([n / 25 for n in found])


def test_uniform_repeats_the_frames_of_a_short_video_at_the_times_asked_for(tmp_path):
    path = video(tmp_path, 2, rate=10)
    rule = {"rule": "uniform", "num_frames": 8}
    assert numbers(path, None, **rule) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert times(path, None, **rule) == pytest.approx([0, 0.0375, 0.0625, 0.0875, 0.1, 0.1375, 0.1625, 0.1875])


@pytest.mark.parametrize("rule", ["uniform", "centred"])
def test_variable_rates_are_taken_by_time_or_by_number(tmp_path, rule):
    begins = [0, 40, 80, 120, 1000, 2000, 3000, 4000]  # ms; the last is shown for 40 ms more
    path = write_video(tmp_path / "vfr.mkv", begins, options={"bf": "2"})
    if rule == "uniform":
        assert numbers(path, None, rule=rule, num_frames=5) == [3, 4, 5, 5, 6]
    else:  # 7 steps in 4 s: 1.75 a second
        assert numbers(path, 1.75, rule=rule, num_frames=4) == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("rule", "window", "expected"),
    [
        ("centred", {"start_seconds": 1.0, "end_seconds": 2.0}, [37, 42, 47, 52]),
        ("centred", {"start_seconds": 1.01}, [82, 87, 92, 97]),
        ("centred", {"start_seconds": 1.0, "end_seconds": 1.3}, [30, 35, 38, 38]),
        ("uniform", {"start_seconds": 1.0, "end_seconds": 2.0}, [33, 41, 48, 56]),
        ("uniform", {"start_seconds": 4.0, "end_seconds": 99.0}, [123, 131, 138, 146]),
    ],
)
def test_windows_hold_for_every_rule(tmp_path, rule, window, expected):
    path = video(tmp_path, 150)
    fps = None if rule == "uniform" else 6
    found = list(decode_frames(path, fps, rule=rule, num_frames=4, **window))
    assert [read_number(frame.pixels_HWC) for frame in found] == expected
    assert all(a.pts_seconds < b.pts_seconds for a, b in pairwise(found))


@pytest.mark.parametrize("rule", ["uniform", "centred"])
def test_a_window_behind_the_end_holds_no_frame(tmp_path, rule):
    fps = None if rule == "uniform" else 6
    with pytest.raises(DecodeError, match=r"no frame is on display from 7.0 s on"):
        numbers(video(tmp_path, 30), fps, rule=rule, num_frames=4, start_seconds=7.0)


@pytest.mark.parametrize(
    ("name", "codec", "more"),
    [
        ("no_duration.mkv", "libx264", {"container_options": {"live": "1"}}),
        ("no_duration.webm", "libvpx", {"container_options": {"live": "1"}}),
        ("fragments.mp4", "libx264", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("b_frames.avi", "mpeg4", {"options": {"bf": "2"}}),
        ("b_frames.ts", "libx264", {"options": {"bf": "2"}}),
        ("sound.mp4", "libx264", {"sound": True}),
        ("a.flv", "libx264", {}),
        ("a.mkv", "libvpx-vp9", {"options": {"lag-in-frames": "16", "auto-alt-ref": "1"}}),
    ],
)
def test_frames_are_counted_and_no_header_is_believed(tmp_path, name, codec, more):
    path = video(tmp_path, 90, rate=25, name=name, codec=codec, **more)
    assert numbers(path, 5, rule="centred", num_frames=8) == centred(90, 25, 5, 8)
    assert numbers(path, None, rule="uniform", num_frames=9) == list(range(5, 90, 10))


def test_frames_of_vp8_that_are_never_shown_are_not_counted():
    path = VIDEOS / "hidden_frames.webm"
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) > 100
    assert numbers(path, 25) == list(range(100))
    assert numbers(path, 5, rule="centred", num_frames=8) == centred(100, 25, 5, 8)


def test_gif(tmp_path):
    path = write_video(tmp_path / "a.gif", range(10), codec="gif", time_base=Fraction(1, 10), rate=10, pix_fmt="rgb8")
    assert numbers(path, 5, rule="centred", num_frames=4) == centred(10, 10, 5, 4)
    assert numbers(path, None, rule="uniform", num_frames=5) == [1, 3, 5, 7, 9]


def test_nothing_is_decoded_behind_the_last_frame_that_is_taken(tmp_path):
    path = video(tmp_path, 200, options={"g": "10"}, container_options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    for at in range(len(data) * 9 // 10, len(data) * 9 // 10 + 200):
        data[at] ^= 0x5A
    (tmp_path / "late.mp4").write_bytes(data)
    with pytest.raises(DecodeError):
        numbers(tmp_path / "late.mp4", 30)
    assert numbers(tmp_path / "late.mp4", 30, rule="centred", num_frames=8) == list(range(96, 104))


@pytest.mark.parametrize(
    "values",
    [
        {"rule": "random"},
        {"rule": "uniform", "num_frames": 8},
        {"rule": "uniform", "fps": None},
        {"rule": "uniform", "fps": None, "num_frames": 0},
        {"rule": "centred"},
        {"rule": "centred", "fps": None, "num_frames": 16},
        {"rule": "fps", "num_frames": 16},
        {"rule": "fps", "fps": None},
    ],
)
def test_rules_that_contradict_themselves_are_refused(values):
    with pytest.raises(UsageError):
        frame_spec(**values)


@st.composite
def shown_videos(draw):
    """Frames at any distances, none too, as a decoder shows them, and their timeline."""
    distances = draw(st.lists(st.integers(0, 500), min_size=1, max_size=40))
    begins = [0.0]
    for distance in distances:
        begins.append(begins[-1] + distance / 1000)
    end_seconds = begins.pop()
    rounding = Rounding(tick_seconds=draw(st.sampled_from([0.0, 0.0002, 0.001])))
    shown = [
        ShownFrame(frame=number, number=number, begin_seconds=begin, until_seconds=until, rounding=rounding)
        for number, (begin, until) in enumerate(zip(begins, [*begins[1:], end_seconds], strict=True))
    ]
    return shown, Timeline(begin_seconds=begins, end_seconds=end_seconds, rounding=rounding)


@given(
    shown_videos(),
    st.sampled_from(["fps", "uniform", "centred"]),
    st.integers(1, 70),
    st.floats(0.1, 200),
    st.sampled_from([(0.0, None), (0.0, 0.7), (0.3, None), (0.3, 0.9)]),
)
def test_any_video_gives_rising_times_and_whole_clips(video, rule, num_frames, fps, window):
    shown, timeline = video
    spec = frame_spec(
        None if rule == "uniform" else fps,
        rule=rule,
        num_frames=None if rule == "fps" else num_frames,
        start_seconds=window[0],
        end_seconds=window[1],
    )
    taken = list(sample(shown, spec, lambda _: timeline))
    seconds = [time for _, time in taken]
    frames = [frame.number for frame, _ in taken]
    assert all(earlier < later for earlier, later in pairwise(seconds))
    assert frames == sorted(frames)
    if rule == "fps":
        assert len(set(frames)) == len(frames)
    else:
        assume(window[0] < shown[-1].begin_seconds)
        assert len(frames) in {0, num_frames}
        assert frames or timeline.end_seconds <= window[0]
    if window[1] is not None:
        assert all(frame.begin_seconds < window[1] for frame, _ in taken)


@pytest.mark.parametrize("rule", ["uniform", "centred"])
@pytest.mark.parametrize("change", ["one is missing", "one more", "another time"])
def test_frames_that_are_not_where_the_timeline_says_are_never_taken(rule, change):
    begins = [k / 10 for k in range(20)]
    told = {
        "one is missing": begins[:7] + begins[8:],
        "one more": [*begins[:7], 0.65, *begins[7:]],
        "another time": [*begins[:7], 0.71, *begins[8:]],
    }[change]
    shown = [
        ShownFrame(frame=k, number=k, begin_seconds=begin, until_seconds=begin + 0.1) for k, begin in enumerate(begins)
    ]
    spec = frame_spec(None if rule == "uniform" else 5, rule=rule, num_frames=8)
    taken = []
    with pytest.raises(TimelineError):
        taken.extend(
            frame.number for frame, _ in sample(shown, spec, lambda _: Timeline(begin_seconds=told, end_seconds=2.0))
        )
    assert all(number < 8 for number in taken)


@given(
    st.sampled_from([Fraction(1), 12, 15, Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 48, 50, 60, 120]),
    st.sampled_from(
        [Fraction(1, 1000), Fraction(1, 100), Fraction(1, 600), Fraction(1, 90000), Fraction(1, 12800), None]
    ),
    st.integers(0, 1000),
    st.data(),
)
def test_a_video_no_faster_than_asked_for_gives_each_frame_once_however_its_times_are_rounded(rate, tick, first, data):
    tick = tick or 1 / Fraction(rate)
    assume(2 * tick <= 1 / Fraction(rate) or tick == 1 / Fraction(rate))
    begins = [round((first + k) / Fraction(rate) / tick) * tick for k in range(400)]
    seconds = [float(begin - begins[0]) for begin in begins]
    is_whole = (1 / Fraction(rate) / tick).denominator == 1
    rounding = Rounding(tick_seconds=float(tick), exact_seconds=float(1 / Fraction(rate)) if is_whole else None)
    shown = [
        ShownFrame(frame=k, number=k, begin_seconds=begin, until_seconds=until, rounding=rounding)
        for k, (begin, until) in enumerate(pairwise(seconds))
    ]
    fps = float(rate) * data.draw(st.sampled_from([1, 1.001, 1.25, 2, 7.3]) | st.floats(1, 4))
    taken = [frame.number for frame, _ in sample(shown, frame_spec(fps), lambda _: pytest.fail("needs none"))]
    assert taken == list(range(399))
