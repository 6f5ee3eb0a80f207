"""Seeded shards for the tests of stores: columns of every precision, videos with hard names, damage, small tars."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.stores import STORES, Column, ShardData, ShardReader, ShardVideo, ShardWriter
from vfz.pipeline.stores.metadata import PTS_ARRAY, PTS_KEY, ArraySpec

Arrays = dict[str, np.ndarray]

COLUMNS = (
    Column(layer="2", part="patch", num_tokens=9, dim=40, precision="fp16"),
    Column(layer="2", part="prefix", num_tokens=2, dim=40, precision="fp16"),
    Column(layer="final", part="patch", num_tokens=128, dim=150, precision="fp32"),  # above 64 KiB a frame
    Column(layer="5", part="patch", num_tokens=9, dim=300, precision="int8"),  # three groups, the last one smaller
    Column(layer="7", part="patch", num_tokens=9, dim=41, precision="int4"),  # an odd number of channels
)
SPECS = {spec.key: spec for column in COLUMNS for spec in column.arrays} | {PTS_KEY: PTS_ARRAY}
SMALL, LARGE, SCALES = "layer_2/patch", "layer_final/patch", "layer_5/patch_scale"
NUM_FRAMES = 205
HARD_IDS = ("v_001", "a.b/c", "100%", "Zürich 24 *", ".", "x" * 60)
"""Names that a file or a tar member cannot simply have."""


def make_array(spec: ArraySpec, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Seeded numbers [num_frames, ...] that `spec` can store."""
    shape = (num_frames, *spec.frame_shape)
    if spec.dtype.kind == "f":
        return rng.standard_normal(shape).astype(spec.dtype)
    limits = np.iinfo(spec.dtype)
    return rng.integers(limits.min, limits.max, shape, spec.dtype, endpoint=True)


def make_arrays(columns: tuple[Column, ...], num_frames: int, seed: int = 0) -> Arrays:
    """Seeded numbers per array key, and times."""
    rng = np.random.default_rng(seed)
    arrays = {spec.key: make_array(spec, num_frames, rng) for column in columns for spec in column.arrays}
    return {**arrays, PTS_KEY: np.cumsum(rng.uniform(0.1, 0.2, num_frames))}


def make_video(number: int) -> ShardVideo:
    """The video of that number: a name of its own, several views of the same id in a row."""
    video_id = HARD_IDS[number // 3 % len(HARD_IDS)] + (f"-{number}" if number >= 3 * len(HARD_IDS) else "")
    return ShardVideo(id=video_id, view=number % 3, split="train", label=None if number % 4 == 3 else number)


def lengths_of_videos(num_frames: int) -> list[int]:
    """Cuts a shard of so many frames into short and long videos."""
    lengths: list[int] = []
    while sum(lengths) < num_frames:
        lengths.append(min((5, 64, 1, 100)[len(lengths) % 4], num_frames - sum(lengths)))
    return lengths


def window(arrays: Arrays, start: int, end: int) -> tuple[Arrays, np.ndarray]:
    """Frames start to end, as `ShardWriter.append` takes them."""
    return {key: array[start:end] for key, array in arrays.items() if key != PTS_KEY}, arrays[PTS_KEY][start:end]


def append_frames(writer: ShardWriter, arrays: Arrays, start: int, end: int, step: int = 7) -> None:
    """Adds frames start to end to the video begun last, `step` at a time."""
    for first in range(start, end, step):
        writer.append(*window(arrays, first, min(first + step, end)))


def flip_bytes(path: Path, data: ShardData, needle: bytes, num_bytes: int = 1) -> None:
    """Changes the first bytes of `needle` wherever in the data it lies."""
    for name in data.files:
        content = bytearray((path / name).read_bytes())
        place = content.find(needle)
        if place >= 0:
            content[place : place + num_bytes] = bytes(byte ^ 0x10 for byte in content[place : place + num_bytes])
            (path / name).write_bytes(content)
            return
    raise AssertionError("the bytes are in none of the files")


def _read_in_child(reader: ShardReader, key: str, frames: np.ndarray, connection) -> None:
    try:
        connection.send_bytes(reader.read(key, frames).tobytes())
    except CacheFormatError as error:
        connection.send_bytes(f"refused: {error}".encode())


def read_in_process(method: str, reader: ShardReader, key: str, frames: np.ndarray) -> bytes:
    """What another process reads with the same reader: the bytes, or `refused: ` and why."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=_read_in_child, args=(reader, key, frames, theirs))
    process.start()
    assert ours.poll(60)
    found = ours.recv_bytes()
    process.join(60)
    assert process.exitcode == 0
    return found


# --- tar shards ---

TAR_VIDEO = ShardVideo(id="a.b", view=0, split="train", label=7)


def write_tar(path: Path, columns: tuple[Column, ...], videos: list[ShardVideo], length: int = 3):
    """A shard of these videos, so many frames each."""
    arrays = make_arrays(columns, length * len(videos))
    with STORES["webdataset"].writer(path, columns) as writer:
        for number, video in enumerate(videos):
            writer.begin_video(video)
            append_frames(writer, arrays, number * length, (number + 1) * length)
        return writer.finish(), arrays


def read_tar(path: Path, data: ShardData, key: str, checksums: str = "always"):
    return STORES["webdataset"].reader(path, data, checksums=checksums).read(key, np.arange(data.num_frames))
