"""What decoding claims: about the speed of the ffmpeg program on as many threads, frames in this process at the end."""

import shutil
import statistics
import subprocess
import time

import imageio_ffmpeg
import pytest
import torch
from benchmarks.clips import write_clip

from vfz.pipeline.decoding.pool import DecodePool
from vfz.pipeline.frames import prepare
from vfz.pipeline.preprocess import Preprocess
from vfz.pipeline.source import VideoSource
from vfz.pipeline.spec import FrameSpec

pytestmark = pytest.mark.bench

FPS, SIDE, SECONDS, ROUNDS = 6, 224, 60, 5
PREPROCESS = Preprocess(image_size=SIDE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def one_thread():
    """One to decode on either side, one to resize on ours."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_decoding_and_resizing_against_ffmpeg(record, tmp_path):
    """256 x 256 H.264 of 30 frames/s, 6 of them taken, resized to 224 x 224; one decoder thread on either side."""
    program = shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()
    clip = write_clip(tmp_path / "clip.mp4", side=256, seconds=SECONDS)
    ours, plain, theirs = [], [], []
    with DecodePool(
        FrameSpec(fps=FPS, decoder="pyav", decoder_version=1), num_workers=1, time_limit_seconds=600
    ) as pool:
        videos = pool.videos([VideoSource(path=clip)] * (2 * ROUNDS + 1))
        _count(next(videos))  # the process is up
        for _ in range(ROUNDS):
            started = time.perf_counter()
            count = sum(prepare(frame, PREPROCESS).pixels_CHW.shape[0] == 3 for frame in next(videos))
            ours.append(count / (time.perf_counter() - started))
            started = time.perf_counter()
            plain.append(_count(next(videos)) / (time.perf_counter() - started))
            started = time.perf_counter()
            theirs.append(_run_ffmpeg(program, clip) / (time.perf_counter() - started))
    for name, rates in (("decode and resize", ours), ("decode", plain)):
        record(
            name,
            value=statistics.median(rates), unit="frames/s",
            baseline="ffmpeg -vf fps,scale", baseline_value=statistics.median(theirs),
            goal="at least 0.8",
        )  # fmt: skip


def _count(frames):
    return sum(1 for _ in frames)


def _run_ffmpeg(program, clip):
    """Frames that come through its pipe."""
    command = [
        program, "-v", "error", "-threads", "1", "-i", str(clip), "-vf", f"fps={FPS},scale={SIDE}:{SIDE}:flags=bicubic",
        "-filter_threads", "1", "-pix_fmt", "rgb24", "-f", "rawvideo", "-",
    ]  # fmt: skip
    num_bytes = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while data := process.stdout.read(SIDE * SIDE * 3):
            num_bytes += len(data)
    assert process.returncode == 0
    return num_bytes // (SIDE * SIDE * 3)
