"""Frames taken are those that ffmpeg shows, at its times: containers, codecs, groups of pictures, cuts and rates."""

import contextlib
import random
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import pytest
from helpers.video_files import (
    Reference,
    cut,
    decode_frames,
    encode,
    ffmpeg,
    numbers,
    read_number,
    shown_by_ffmpeg,
)

from vfz.pipeline.decoding import get_decoder
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.errors import DecodeError
from vfz.pipeline.recipe import FrameSpec

RATES = [Fraction(12), Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(60)]
CONTAINERS = {
    "libxvid": ["avi"],
    "mpeg4": ["avi", "mkv", "mp4", "mov", "ts", "nut", "3gp", "m4v"],
    "mpeg2video": ["ts", "mpg", "vob", "mkv", "mp4", "m2v"],
    "libx264": ["mp4", "mkv", "ts", "m2ts", "flv", "mov", "avi", "h264"],
    "libx265": ["mp4", "mkv", "ts", "hevc"],
    "libvpx": ["webm", "mkv", "ivf"],
    "libvpx-vp9": ["webm", "mp4", "mkv"],
    "mjpeg": ["avi", "mov", "mkv", "mjpeg"],
    "msmpeg4v3": ["avi", "asf"],
    "flv": ["flv"],
    "gif": ["gif"],
}
CUT = {"mkv", "mp4", "mov", "ts", "m2ts", "flv", "webm", "h264", "hevc", "m2v"}
"""Containers whose streams are also cut, without encoding, at a key picture or anywhere."""
COPIED = {
    "mpeg4": ["mkv", "mp4", "mov"],
    "mpeg2video": ["mkv", "mp4", "mov", "ts"],
    "libx264": ["mkv", "mp4", "mov", "ts", "flv"],
    "libx265": ["mkv", "mp4", "mov", "ts"],
    "libvpx": ["mkv", "webm"],
    "libvpx-vp9": ["mkv", "webm", "mp4"],
}
"""Containers that a part of a video is copied to, by `ffmpeg -ss … -c copy`."""
EDITED = {"mp4", "mov"}
"""Containers with edit lists: of a copied part, what is before its start is there and not shown."""
SHOWS_BROKEN = {"libxvid", "mpeg4", "mpeg2video", "msmpeg4v3", "flv"}
"""Codecs of which ffmpeg shows what it makes of pictures whose references are missing."""


@dataclass(frozen=True)
class Case:
    """How a video is made."""

    codec: str
    container: str
    rate: Fraction
    num_frames: int
    group: int
    num_b_frames: int
    open_groups: bool
    cut: str | None
    cut_at: int
    copied: str | None
    copied_at: float

    @classmethod
    def draw(cls, seed):
        rng = random.Random(seed)
        codec = rng.choice(list(CONTAINERS))
        container = rng.choice(CONTAINERS[codec])
        case = cls(
            codec=codec,
            container=container,
            # A GIF's time is in hundredths of a second; the elementary streams that hold no rate are 25 a second.
            rate=Fraction(25) if container in {"mjpeg", "gif", "m4v"} else rng.choice(RATES),
            num_frames=rng.randint(40, 70),
            group=rng.choice([6, 10, 12]),
            num_b_frames=rng.choice([0, 2, 3]) if codec != "mjpeg" else 0,
            open_groups=rng.random() < 0.6,
            cut=rng.choice([None, "key", "anywhere"]) if container in CUT else None,
            cut_at=rng.randint(1, 2),
            copied=None,
            copied_at=rng.uniform(0.1, 0.6),
        )
        # Program streams have few times, elementary streams none, and AVI those of decoding.
        if case.cut is None and container in {"mp4", "mkv", "ts", "mov", "webm"}:
            return replace(case, copied=rng.choice([None, *COPIED.get(codec, [])]))
        return case

    def write(self, folder):
        """The video, each frame showing its number."""
        path = folder / f"whole.{self.container}"
        options, g, b = [], str(self.group), str(self.num_b_frames)
        if self.codec in {"libxvid", "mpeg4", "mpeg2video"}:
            options = ["-bf", b, "-g", g, "-qscale:v", "2"]
            if self.codec == "mpeg2video" and not self.open_groups:
                options += ["-flags", "+cgop", "-sc_threshold", "1000000000"]
        elif self.codec in {"libx264", "libx265"}:
            parameters = f"keyint={g}:min-keyint={g}:bframes={b}:b-adapt=0:scenecut=0:open-gop={int(self.open_groups)}"
            kind = "x264" if self.codec == "libx264" else "x265"
            options = ["-preset", "ultrafast" if kind == "x265" else "veryfast", f"-{kind}-params", parameters]
            if kind == "x265":
                options[-1] += ":log-level=none"
        elif self.codec in {"libvpx", "libvpx-vp9"}:
            options = ["-g", g, "-deadline", "good", "-cpu-used", "5", "-lag-in-frames", "12", "-auto-alt-ref", "1"]
        elif self.codec in {"msmpeg4v3", "flv"}:
            options = ["-g", g, "-qscale:v", "2"]
        pixels = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(self.codec, "yuv420p")
        encode(path, self.codec, self.rate, self.num_frames, *options, "-pix_fmt", pixels)
        if self.copied is not None:
            target = folder / f"copied.{self.copied}"
            seconds = float(self.copied_at * self.num_frames / self.rate)
            with contextlib.suppress(AssertionError):  # ffmpeg writes nothing to some MPEG-TS
                ffmpeg("-y", "-ss", seconds, "-i", path, "-c", "copy", target)
                shown_by_ffmpeg(target)
                return target
            return path
        if self.cut is None:
            return path
        packets = self.cut_at if self.cut == "key" else self.cut_at * self.group + self.group // 2
        return cut(path, folder / f"cut.{self.container}", **{"key" if self.cut == "key" else "packet": packets})


def differences(case, folder):
    """What is taken of a video and is not what the reference takes; a line for each."""
    path = case.write(folder)
    shown, tick = shown_by_ffmpeg(path)
    shows_broken = case.codec in SHOWS_BROKEN and case.copied not in EDITED
    if case.copied is not None and case.container in {"mkv", "webm"}:
        tick = max(tick, Fraction(1, 1000))  # as the times were rounded before they were copied
    reference = Reference(shown, case.rate, tick=tick, shows_broken=shows_broken)
    wanted = {
        **{("fps", fps): reference.fps(fps) for fps in (3, 6, 8, 25, 30, 60)},
        **{("uniform", count): reference.uniform(count) for count in (1, 4, 7, 16)},
        **{("centred", count): reference.centred(6, count) for count in (4, 16)},
    }
    wanted = {key: taken for key, taken in wanted.items() if taken is not None}
    found = {}
    for rule, value in wanted:
        more = {"fps": value} if rule == "fps" else {"fps": None if rule == "uniform" else 6, "num_frames": value}
        try:
            found[rule, value] = numbers(path, rule=rule, **more)
        except DecodeError as error:
            found[rule, value] = str(error)
    return [f"{case} {key}: {found[key]}, not {wanted[key]}" for key in wanted if found[key] != wanted[key]]


@pytest.mark.parametrize("seeds", [range(24), pytest.param(range(500), marks=pytest.mark.faults)], ids=str)
def test_every_rule_takes_what_it_would_of_the_frames_that_ffmpeg_shows(seeds, tmp_path):
    found = []
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        found += differences(Case.draw(seed), folder)
    assert found == []


# --- the kinds that were reported, one small input of each ---


def _taken(path, **rule):
    return [numbers(path, **one) for one in (rule, {"fps": None, "rule": "uniform", "num_frames": 9})]


@pytest.mark.parametrize("num_b_frames", [0, 2])
@pytest.mark.parametrize("codec", ["libxvid", "mpeg4", "libx264", "msmpeg4v3", "mjpeg"])
def test_an_avi_is_shown_in_the_order_of_its_decoder(tmp_path, codec, num_b_frames):
    """UCF101 and HMDB51 are AVIs of XviD, packed B-frames among them."""
    b_frames = ["-bf", num_b_frames] if codec in {"libxvid", "mpeg4", "libx264"} else []
    path = encode(tmp_path / "v.avi", codec, 30, 90, *b_frames, "-g", "30", "-pix_fmt", "yuv420p")
    shown, _ = shown_by_ffmpeg(path)
    frames = list(decode_frames(path, 1000))
    assert [read_number(frame.pixels_HWC) for frame in frames] == [frame.number for frame in shown]
    assert [frame.pts_seconds for frame in frames] == pytest.approx(
        [float(frame.seconds - shown[0].seconds) for frame in shown]
    )


@pytest.mark.parametrize(("codec", "end"), [("libx264", "h264"), ("libx265", "hevc"), ("mpeg2video", "m2v")])
@pytest.mark.parametrize("rate", [24, 25, 30, 50])
def test_an_elementary_stream_has_one_clock(tmp_path, codec, end, rate):
    path = encode(tmp_path / f"v.{end}", codec, rate, 90, "-pix_fmt", "yuv420p", "-bf", 2)
    assert _taken(path, fps=rate) == [list(range(90)), [5, 15, 25, 35, 45, 55, 65, 75, 85]]


@pytest.mark.parametrize("end", ["ts", "mkv", "mp4", "h264", "hevc"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_video_cut_at_an_open_group_begins_with_its_first_clean_frame(tmp_path, codec, end):
    if (codec, end) in {("libx264", "hevc"), ("libx265", "h264")}:
        pytest.skip("another codec's stream")
    kind = codec.removeprefix("lib")
    quiet = ":log-level=none" if kind == "x265" else ""
    options = f"keyint=10:min-keyint=10:open-gop=1:bframes=3:b-adapt=0:scenecut=0{quiet}"
    whole = encode(tmp_path / f"whole.{end}", codec, 30, 60, f"-{kind}-params", options, "-pix_fmt", "yuv420p")
    path = cut(whole, tmp_path / f"cut.{end}", key=2)
    shown, _ = shown_by_ffmpeg(path)
    expected = [frame.number for frame in shown]
    assert expected == list(range(20, 60))
    assert _taken(path, fps=30) == [expected, [expected[int((k + 0.5) * 40 / 9)] for k in range(9)]]


@pytest.mark.parametrize("end", ["mkv", "webm", "flv", "mp4", "gif"])
@pytest.mark.parametrize(
    ("rate", "fps"), [("30000/1001", 30), ("24000/1001", 24), ("24000/1001", 30), ("60000/1001", 60)]
)
def test_a_video_slower_than_asked_for_gives_each_frame_once_in_every_container(tmp_path, end, rate, fps):
    codec = {"webm": "libvpx", "gif": "gif"}.get(end, "libx264")
    pixels = "rgb8" if end == "gif" else "yuv420p"
    path = encode(tmp_path / f"v.{end}", codec, rate if end != "gif" else 20, 240, "-pix_fmt", pixels)
    assert numbers(path, fps) == list(range(240))


def test_times_that_a_container_gives_to_the_wrong_neighbours_are_put_in_order(tmp_path):
    """As ffmpeg does when it writes XviD's packed B-frames into a Matroska file."""
    path = encode(tmp_path / "v.mkv", "libxvid", 30, 60, "-bf", 2, "-pix_fmt", "yuv420p")
    with av.open(str(path)) as container:
        own = [frame.pts for frame in container.decode(video=0)]
    assert own != sorted(own)
    expected = [frame.number for frame in shown_by_ffmpeg(path)[0]]
    frames = list(decode_frames(path, 1000))
    assert [read_number(frame.pixels_HWC) for frame in frames] == expected
    times = [frame.pts_seconds for frame in frames]
    assert times == sorted(set(times))
    assert len(numbers(path, None, rule="uniform", num_frames=9)) == 9


def test_a_slow_video_gives_its_last_frame_however_short(tmp_path):
    """A file says of it only that it lasts as long as at the rate of the camera."""
    path = encode(tmp_path / "v.mp4", "libx264", 30, 90, "-vf", "select=not(mod(n\\,10))", "-fps_mode", "vfr")
    assert [numbers(path, fps) for fps in (8, 12.5)] == [list(range(0, 90, 10))] * 2


@pytest.mark.parametrize("options", [["-bf", 2], ["-x264-params", "open-gop=1:bframes=3:b-adapt=0:scenecut=0"]])
def test_a_part_of_a_video_in_an_avi_has_its_times(tmp_path, options):
    """FFmpeg writes 600 places a second, of which most are empty, and does not say how long the last frames last."""
    whole = encode(tmp_path / "v.mp4", "libx264", 30, 90, "-pix_fmt", "yuv420p", "-g", 12, *options)
    ffmpeg("-i", whole, "-c", "copy", "-f", "segment", "-segment_time", 0.9, tmp_path / "part%d.avi")
    for path in sorted(tmp_path.glob("part*.avi")):
        shown, _ = shown_by_ffmpeg(path)
        frames = list(decode_frames(path, 1000))
        assert [read_number(frame.pixels_HWC) for frame in frames] == [frame.number for frame in shown]
        times = [float(frame.seconds - shown[0].seconds) for frame in shown]
        assert [frame.pts_seconds for frame in frames] == pytest.approx(times)


@pytest.mark.parametrize("end", ["mp4", "ts", "mov"])
def test_times_that_were_rounded_before_they_were_copied_are_taken_as_rounded(tmp_path, end):
    whole = encode(tmp_path / "v.mkv", "libx264", "30000/1001", 240, "-pix_fmt", "yuv420p")
    ffmpeg("-i", whole, "-c", "copy", tmp_path / f"v.{end}")
    expected = [int((k + 0.5) * 30) for k in range(8)]
    assert _taken(tmp_path / f"v.{end}", fps=30)[0] == list(range(240))
    assert numbers(tmp_path / f"v.{end}", None, rule="uniform", num_frames=8) == expected


def test_an_exact_time_takes_the_frame_before_one_that_is_a_little_later(tmp_path):
    """At 15 a second, sample 501 is 33 microseconds before frame 1001."""
    path = encode(tmp_path / "v.mp4", "libx264", "30000/1001", 1010, "-pix_fmt", "yuv420p", "-preset", "ultrafast")
    assert [frame.number for frame in decode_frames(path, 15)][499:503] == [997, 999, 1000, 1002]


def test_of_frames_at_one_time_the_last_is_shown(tmp_path):
    times = "settb=1/1000,setpts=floor(N/2)*66"
    options = ["-fps_mode", "passthrough", "-enc_time_base", "1/1000", "-bf", "0", "-pix_fmt", "yuv420p"]
    path = encode(tmp_path / "v.mkv", "libx264", 30, 40, "-vf", times, *options)
    frames = list(decode_frames(path, 1000))
    assert [read_number(frame.pixels_HWC) for frame in frames] == list(range(1, 40, 2))


def test_an_avi_from_a_pipe_has_no_promised_length(tmp_path):
    whole = encode(tmp_path / "v.mp4", "mpeg4", 30, 40)
    path = tmp_path / "v.avi"
    path.write_bytes(ffmpeg("-i", whole, "-c", "copy", "-f", "avi", "-")[0])
    assert numbers(path, 30) == list(range(40))


def test_a_time_that_is_damaged_is_not_put_in_order(tmp_path):
    whole = encode(tmp_path / "v.ivf", "libvpx", 30, 40, "-pix_fmt", "yuv420p")
    data = bytearray(whole.read_bytes())
    at = 32  # behind the file's header; each frame has its size and its time before it
    for _ in range(30):
        at += 12 + int.from_bytes(data[at : at + 4], "little")
    data[at + 5] ^= 0x10
    path = tmp_path / "damaged.ivf"
    path.write_bytes(data)
    for rule in ({"fps": 5}, {"fps": None, "rule": "uniform", "num_frames": 4}):
        with pytest.raises(DecodeError, match="presentation times go back"):
            numbers(path, **rule)


def test_times_that_jump_back_are_refused(tmp_path):
    first = encode(tmp_path / "a.ts", "libx264", 25, 40, "-pix_fmt", "yuv420p", "-output_ts_offset", 100)
    second = encode(tmp_path / "b.ts", "libx264", 25, 40, "-pix_fmt", "yuv420p")
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    for rule in ({"fps": 5}, {"fps": None, "rule": "uniform", "num_frames": 4}):
        with pytest.raises(DecodeError, match=r"both\.ts: (presentation times go back|is damaged)"):
            numbers(path, **rule)


@pytest.mark.parametrize("end", ["avi", "h264"])
def test_a_cache_of_the_first_version_takes_no_video_that_is_read_otherwise_now(tmp_path, end):
    path = encode(tmp_path / f"v.{end}", "libx264", 30, 30, "-pix_fmt", "yuv420p")
    frames = get_decoder("pyav").frames(VideoSource(path=path), FrameSpec(fps=5, decoder="pyav", decoder_version=1))
    with pytest.raises(DecodeError, match=r"begun by an earlier vfz.*extract the dataset into a new cache"):
        list(frames)


# --- each dataset as it is distributed ---

XVID = ["libxvid", "-bf", 2, "-qscale:v", 3]
DISTRIBUTED = {
    "ucf101": ("v_Run_g01_c01.avi", 25, XVID),
    "hmdb51": ("run_1.avi", 30, XVID),
    "ssv2": ("1.webm", 12, ["libvpx-vp9", "-deadline", "good", "-cpu-used", 5, "-g", 128]),
    "k400": ("abcdefghijk_000001_000011.mp4", "30000/1001", ["libx264", "-bf", 2, "-g", 12]),
}
"""How the videos of a dataset are called and encoded; those of Kinetics are cut out of longer ones."""


@pytest.mark.parametrize("kind", DISTRIBUTED)
@pytest.mark.parametrize("later", [0, 3.7])
def test_videos_are_read_as_each_dataset_distributes_them(tmp_path, kind, later):
    """AVIs with packed B-frames; VP9; stream copies, with edit lists; with times that begin above 0."""
    name, rate, options = DISTRIBUTED[kind]
    whole = encode(tmp_path / f"whole-{name}", options[0], rate, 72, *options[1:], "-pix_fmt", "yuv420p")
    path = tmp_path / name
    part = ["-ss", "0.55", "-t", "1.5"] if kind == "k400" else []
    ffmpeg("-y", *part, "-i", whole, "-c", "copy", *(["-output_ts_offset", later] if later else []), path)
    shown, tick = shown_by_ffmpeg(path)
    reference = Reference(shown, Fraction(rate), tick=tick)
    assert len(reference.numbers) > 35
    assert numbers(path, 60) == reference.numbers
    for wanted, rule in (
        (reference.fps(3), {"fps": 3}),
        (reference.uniform(7), {"fps": None, "rule": "uniform", "num_frames": 7}),
        (reference.centred(6, 8), {"fps": 6, "rule": "centred", "num_frames": 8}),
    ):
        assert wanted in (None, numbers(path, **rule))
