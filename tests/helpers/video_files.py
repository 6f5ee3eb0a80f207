"""Video files whose frames show their own numbers, what ffmpeg shows of them, trees of files, and tables dressed up."""

import functools
import random
import re
import subprocess
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
from av.stream import Disposition

from vfz.pipeline.decoding import get_decoder
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.recipe import FrameSpec

VIDEOS = Path(__file__).parents[1] / "data" / "videos"

BITS = 8


def numbered(number, height=64, width=128):
    """A picture that shows `number` in two rows of four blocks; black is 0."""
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    grid = np.array(bits, np.uint8).reshape(2, 4) * 255
    rows = np.minimum(np.arange(height) * 2 // height, 1)
    columns = np.minimum(np.arange(width) * 4 // width, 3)
    return np.repeat(grid[rows][:, columns][..., None], 3, axis=2)


def read_number(pixels):
    height, width = pixels.shape[:2]
    blocks = [
        pixels[height * (2 * r + 1) // 4, width * (2 * c + 1) // 8].mean() > 127 for r in range(2) for c in range(4)
    ]
    return sum(int(bit) << index for index, bit in enumerate(blocks))


def write_video(
    path, times, *, codec="libx264", time_base=Fraction(1, 1000), rate=25, options=None, prepare=None, **more
):
    """A video whose frame i shows the number i and begins at `times[i]` ticks."""
    height, width = more.pop("size", (64, 128))
    with av.open(str(path), "w", options=more.pop("container_options", {})) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = width, height
        stream.pix_fmt = more.pop("pix_fmt", "yuv420p")
        stream.codec_context.time_base = time_base
        if prepare:
            prepare(stream)
        sound = container.add_stream("aac", rate=48000, layout="mono") if more.pop("sound", False) else None
        for number, ticks in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(number, height, width), format="rgb24")
            frame.pts, frame.time_base = ticks, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            write_sound(container, sound, seconds=3)
    return path


def write_with_cover(path, times, *, time_base=Fraction(1, 25), cover=200):
    """A video (without `times`, sound alone) behind a cover picture that shows the number `cover`."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("png")
        picture.width, picture.height, picture.pix_fmt = 128, 64, "rgb24"
        picture.disposition = Disposition.attached_pic
        stream = container.add_stream("libx264", rate=25) if times is not None else None
        if stream:
            stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
            stream.codec_context.time_base = time_base
        sound = container.add_stream("aac", rate=48000, layout="mono")
        container.mux(picture.encode(av.VideoFrame.from_ndarray(numbered(cover), format="rgb24")))
        container.mux(picture.encode(None))
        for number, ticks in enumerate(times or ()):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = ticks, time_base
            container.mux(stream.encode(frame))
        if stream:
            container.mux(stream.encode(None))
        write_sound(container, sound, seconds=2)
    return path


def write_sound(container, stream, seconds):
    for index in range(seconds * 48000 // 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, index * 1024
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def frame_spec(fps=6.0, **more):
    """A rule for PyAV, which is the only decoder there is."""
    return FrameSpec(fps=fps, decoder="pyav", decoder_version=2, **more)


def decode_frames(path, fps=6.0, **more):
    """The frames of a file, decoded in this process."""
    return get_decoder("pyav").frames(VideoSource(path=Path(path)), frame_spec(fps, **more))


def numbers(path, fps, **more):
    return [read_number(frame.pixels_HWC) for frame in decode_frames(path, fps, **more)]


# --- trees of text, and of files that need not be decoded ---


def write_tree(root: Path, files: dict[str, str]) -> Path:
    """Text files by path under the root, which is returned."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def touch(root: Path, *names: str) -> None:
    """Files that need not be decoded."""
    write_tree(root, dict.fromkeys(names, "x"))


# --- tables of videos, dressed up as people and their programs write them ---

JUNK = ("._{}", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/._{}", "@eaDir/{}/x.jpg")
"""What other systems leave beside a video."""


@dataclass
class Dress:
    """Ways to write the same, chosen at random for each text anew."""

    random: random.Random
    newline: str = "\n"
    delimiter: str = ","

    def letters(self, text):
        """Each in one piece or in two."""
        return unicodedata.normalize(self.random.choice(("NFC", "NFD")), text)

    def blanks(self, most=2):
        return " " * self.random.randint(0, most)

    def cased(self, text):
        return self.random.choice((str.lower, str.upper, str.title))(text)

    def quoted(self, text):
        """Between quotes where it must be, and sometimes where it need not."""
        if self.random.random() < 0.3 or set(text) & {self.delimiter, '"', "\n"}:
            text = '"' + text.replace('"', '""') + '"'
        return text

    def row(self, cells):
        return self.delimiter.join(f"{self.blanks()}{self.quoted(self.letters(cell))}{self.blanks()}" for cell in cells)

    def header(self, names):
        return self.row(self.cased(name) for name in names)

    def file(self, lines):
        """The bytes of a text file."""
        text = self.newline.join([*lines, *[self.blanks() for _ in range(self.random.randint(0, 3))]])
        return (self.random.choice(("", "\ufeff")) + text).encode()

    def write(self, path, lines):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.file(lines))

    def touch(self, root, *parts):
        """An empty file that stands for a video, its folders and its name in any letters, with junk beside it."""
        path = root.joinpath(*map(self.letters, parts))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        for junk in self.random.sample(JUNK, 2):
            beside = path.parent / junk.format("x.mp4")
            beside.parent.mkdir(parents=True, exist_ok=True)
            beside.touch()


# --- videos encoded by ffmpeg, and what ffmpeg shows of them ---

RAW = {"h264": "h264", "hevc": "hevc", "m2v": "mpeg2video", "m4v": "m4v", "mjpeg": "mjpeg"}
"""Formats of elementary streams, by the ends of their names."""


def ffmpeg(*arguments, stdin=None):
    """What ffmpeg writes to its stdout and to its stderr."""
    line = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", *map(str, arguments)]
    ran = subprocess.run(
        line, input=stdin, stdin=None if stdin else subprocess.DEVNULL, capture_output=True, check=False
    )
    assert ran.returncode == 0, ran.stderr.decode(errors="replace")[-500:]
    return ran.stdout, ran.stderr.decode(errors="replace")


@functools.cache
def _pictures(num_frames):
    return b"".join(numbered(number).tobytes() for number in range(num_frames))


def encode(path, codec, rate, num_frames, *options):
    """A video whose frames show their numbers, encoded by ffmpeg."""
    as_format = ["-f", RAW[path.suffix[1:]]] if path.suffix[1:] in RAW else []
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "128x64", "-r", rate, "-i", "-"]
    ffmpeg("-y", *source, "-c:v", codec, *options, *as_format, path, stdin=_pictures(num_frames))
    return path


def cut(source, target, *, key=None, packet=None):
    """The packets of a video from a key picture on, or from any one on."""
    num_keys, begun = -1, False
    with (
        av.open(str(source)) as container,
        av.open(str(target), "w", format=RAW.get(target.suffix[1:])) as written,
    ):
        stream = written.add_stream_from_template(container.streams.video[0])
        for number, found in enumerate(container.demux(video=0)):
            num_keys += found.is_keyframe and found.size > 0
            begun = begun or (number >= packet if key is None else num_keys >= key)
            if begun and found.size:
                found.stream = stream
                written.mux(found)
    return target


@dataclass(frozen=True)
class Shown:
    """A frame that ffmpeg shows."""

    seconds: Fraction
    is_key: bool
    number: int


def shown_by_ffmpeg(path):
    """Every frame that ffmpeg shows, by its own time, and what the container counts time in."""
    filters = ["-vf", "showinfo,scale=128:64", "-pix_fmt", "rgb24"]
    pixels, report = ffmpeg(
        "-i", path, "-map", "0:v:0", *filters, "-fps_mode", "passthrough", "-f", "rawvideo", "-"
    )  # fmt: skip
    base = re.search(r"config in time_base: (\d+)/(\d+)", report)
    times = re.findall(r" n: *\d+ pts: *(-?\d+) .*?iskey:(\d)", report)
    frames = np.frombuffer(pixels, np.uint8).reshape(-1, 64, 128, 3)
    tick = Fraction(int(base[1]), int(base[2]))
    shown = [
        Shown(seconds=int(pts) * tick, is_key=key == "1", number=read_number(frame))
        for (pts, key), frame in zip(times, frames, strict=True)
    ]
    return shown, tick


class Reference:
    """Which frames the rules take of what ffmpeg shows: the definitions, with exact times and no regard to speed."""

    def __init__(self, shown, rate, *, tick, shows_broken=False):
        if shows_broken:  # what comes before the first clean frame is no part of the video
            while not shown[0].is_key:
                shown = shown[1:]
        self.numbers = [frame.number for frame in shown]
        # The times that the video had before its container rounded them: multiples of the frame's duration.
        self.begins = [round((frame.seconds - shown[0].seconds) * rate) / rate for frame in shown]
        if self.begins != sorted(self.begins):  # ffmpeg guesses most times of an MPEG program stream, not always right
            self.begins = [k / rate for k in range(len(shown))]
        self.end = self.begins[-1] + 1 / rate
        self.rate = rate

        # A time so near a boundary that rounding may have put it on either side has no certain frame.
        self.rounded = tick * Fraction(102, 100) if (1 / rate / tick).denominator > 1 else 0

    def on_display(self, seconds):
        """None where it is not certain."""
        if any(0 < abs(begin - seconds) < self.rounded for begin in self.begins[1:]):
            return None
        return max(index for index, begin in enumerate(self.begins) if begin <= seconds)

    def fps(self, fps):
        if self.rate <= fps:
            return self.numbers
        due = [k / Fraction(fps) for k in range(int(self.end * fps) + 1)]
        return self._numbers(dict.fromkeys(self.on_display(seconds) for seconds in due if seconds < self.end))

    def uniform(self, num_frames):
        part = self.end / num_frames
        return self._numbers([self.on_display((k + Fraction(1, 2)) * part) for k in range(num_frames)])

    def _numbers(self, indexes):
        return None if None in indexes else [self.numbers[index] for index in indexes]

    def centred(self, fps, num_frames):
        count = len(self.begins)
        native = (count - 1) / self.begins[-1]
        if abs(native / fps % 1 - Fraction(1, 2)) < Fraction(1, 10):
            return None  # what rounds times may also round this to the other side
        step = max(1, round(native / Fraction(fps)))
        first = max(0, (count - ((num_frames - 1) * step + 1)) // 2)
        return [self.numbers[min(first + k * step, count - 1)] for k in range(num_frames)]
