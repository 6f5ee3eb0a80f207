"""What decoding claims: about the speed of the ffmpeg program on as many threads, frames in this process at the end."""

import shutil
import statistics
import subprocess
import threading
import time
from fractions import Fraction
from itertools import repeat

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from benchmarks.pipeline.clips import write_clip
from helpers.video_files import write_video

from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.decoding.pool import GPU_BUFFER_FRAMES, DecodePool
from vfz.pipeline.decoding.pyav import PyAVDecoder
from vfz.pipeline.encoder.batching import prepare_frame
from vfz.pipeline.encoder.transforms import Preprocess
from vfz.pipeline.recipe import FrameSpec

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
        FrameSpec(fps=FPS, decoder="pyav", decoder_version=PyAVDecoder.version), num_workers=1, time_limit_seconds=600
    ) as pool:
        videos = pool.videos([VideoSource(path=clip)] * (2 * ROUNDS + 1))
        _count(next(videos))  # the process is up
        for _ in range(ROUNDS):
            started = time.perf_counter()
            count = sum(prepare_frame(frame, PREPROCESS).pixels_CHW.shape[0] == 3 for frame in next(videos))
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


@pytest.mark.usefixtures("one_thread")
def test_frames_beside_a_thread_that_launches_kernels(record, tmp_path):
    """Frames of 256 x 256 that take next to no decoding, beside a thread of tiny operations, as for a GPU.

    Those on 16 numbers take the interpreter lock as kernels do that are launched. Both rates would stay as they are
    alone if frames needed neither the lock nor, with few cores, the core.
    """
    clip = write_video(
        tmp_path / "clip.avi",
        range(300),
        codec="rawvideo",
        pix_fmt="bgr24",
        size=(256, 256),
        time_base=Fraction(1, 30),
        rate=30,
    )
    frames_alone, frames_beside, operations_alone, operations_beside, cpu_microseconds = [], [], [], [], []
    frames = _endless_frames(clip)
    for _ in range(ROUNDS):
        stop = threading.Event()
        before = time.process_time()
        count, seconds = _repeat_for(2.0, lambda: next(frames))
        cpu_microseconds.append((time.process_time() - before) / count * 1e6)
        frames_alone.append(count / seconds)
        operations_alone.append(_tiny_operations_per_second(stop, seconds=2.0))
        thread = threading.Thread(
            target=lambda stop=stop: operations_beside.append(_tiny_operations_per_second(stop, seconds=60.0))
        )
        thread.start()
        count, seconds = _repeat_for(2.0, lambda: next(frames))
        frames_beside.append(count / seconds)
        stop.set()
        thread.join()
    frames.close()
    pixels_HWC = np.zeros((256, 256, 3), np.uint8)
    before = time.process_time()
    num_copies, _ = _repeat_for(0.5, pixels_HWC.copy)
    copy_microseconds = (time.process_time() - before) / num_copies * 1e6
    for name, unit, values, baseline, others in (
        ("frames beside tiny operations", "frames/s", frames_beside, "alone", frames_alone),
        ("tiny operations beside frames", "operations/s", operations_beside, "alone", operations_alone),
        ("what a frame costs its reader", "us", cpu_microseconds, "copying it once", [copy_microseconds]),
    ):
        record(
            name,
            value=statistics.median(values), unit=unit, baseline=baseline, baseline_value=statistics.median(others),
        )  # fmt: skip


def _endless_frames(clip):
    """Of the same video again and again, from one process that is up."""
    spec = FrameSpec(fps=30.0, decoder="pyav", decoder_version=PyAVDecoder.version)
    with DecodePool(spec, num_workers=1, time_limit_seconds=600, buffer_frames=GPU_BUFFER_FRAMES) as pool:
        for stream in pool.videos(repeat(VideoSource(path=clip))):
            yield from stream


def _repeat_for(seconds, do):
    """How often something was done, and in how many seconds."""
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        do()
        count += 1
    return count, passed


def _tiny_operations_per_second(stop, *, seconds):
    numbers, count = torch.zeros(16), 0
    started = time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds and not stop.is_set():
        for _ in range(600):
            numbers.add_(1)
        count += 600
    return count / passed


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
