"""What a store costs beside plain files: reading windows, bytes moved from the disk, writing.

Every function gives rows with a baseline measured in the same moment; nothing is asserted here.
"""

import os
import shutil
import tracemalloc
from itertools import count
from typing import NamedTuple

import numpy as np
from helpers.measure import bytes_from_disk, can_evict, evict, seconds_of

from vfz.pipeline.stores import STORES, Column, ShardVideo

TOKENS, WINDOW, NUM_WINDOWS = 201, 16, 50
FRAMES = {384: 1024, 1024: 384}
"""Frames of a shard by channels: 158 MB each in float16."""
VIDEO_FRAMES = 128
CHECKSUMS = ("never", "first", "always")


class Row(NamedTuple):
    """One figure and what it is measured against."""

    name: str
    value: float
    unit: str
    baseline: str
    baseline_value: float


def make_columns(dim, precision, *, num_layers=1, compression="none"):
    """Patch tokens of so many layers."""
    return tuple(
        Column(layer=str(layer), part="patch", num_tokens=TOKENS, dim=dim, precision=precision, compression=compression)
        for layer in range(num_layers)
    )


def make_arrays(columns, num_frames, seed=0):
    """Seeded noise for every array."""
    random = np.random.default_rng(seed)
    specs = [spec for column in columns for spec in column.arrays]
    return {
        spec.key: random.standard_normal((num_frames, *spec.frame_shape), np.float32).astype(spec.dtype)
        if spec.dtype.kind == "f"
        else random.integers(0, 100, (num_frames, *spec.frame_shape), spec.dtype)
        for spec in specs
    }


def write_shard(store, path, columns, arrays, *, step=32):
    """A finished shard of videos of 128 frames, given `step` frames at a time."""
    num_frames = len(next(iter(arrays.values())))
    with STORES[store].writer(path, columns) as writer:
        for start in range(0, num_frames, step):
            if start % VIDEO_FRAMES == 0:
                writer.begin_video(ShardVideo(id=f"v{start}", view=0, split="train", label=None))
            writer.append({key: array[start : start + step] for key, array in arrays.items()}, np.arange(step) / 6)
        return writer.finish()


def window_rows(store, folder, *, dim=384, precision="fp16", checksums=CHECKSUMS, rounds=41):
    """Random windows of 16 frames into a given buffer, against copying the float16 tokens out of an np.memmap."""
    columns, num_frames = make_columns(dim, precision), FRAMES[dim]
    path = folder / f"{store}-{dim}-{precision}{STORES[store].suffix}"
    data = write_shard(store, path, columns, make_arrays(columns, num_frames))
    plain_path = folder / f"plain-{dim}"
    make_arrays(make_columns(dim, "fp16"), num_frames)["layer_0/patch"].tofile(plain_path)
    plain = np.memmap(plain_path, np.float16, mode="r", shape=(num_frames, TOKENS, dim))
    videos = np.random.default_rng(1).integers(0, num_frames // VIDEO_FRAMES, NUM_WINDOWS)
    starts = videos * VIDEO_FRAMES + np.random.default_rng(2).integers(0, VIDEO_FRAMES - WINDOW, NUM_WINDOWS)
    windows = [np.arange(start, start + WINDOW) for start in starts]
    # Both copy into the same memory: where a buffer happens to lie can make 10% of the time.
    memory = np.zeros(1 << 25, np.uint8)
    plain_buffer = memory[: WINDOW * TOKENS * dim * 2].view(np.float16).reshape(WINDOW, TOKENS, dim)
    buffers, start = {}, 0
    for spec in columns[0].arrays:
        end = start + WINDOW * spec.frame_bytes
        buffers[spec.key] = memory[start:end].view(spec.dtype).reshape(WINDOW, *spec.frame_shape)
        start = end

    def through_memmap():
        for start in starts:
            np.copyto(plain_buffer, plain[start : start + WINDOW])

    def through_store(reader):
        for frames in windows:
            for key, buffer in buffers.items():
                reader.read(key, frames, buffer)

    readers = [STORES[store].reader(path, data, checksums=policy) for policy in checksums]
    *ours, theirs = seconds_of(
        *[lambda reader=reader: through_store(reader) for reader in readers], through_memmap, rounds=rounds
    )
    return [
        Row(
            f"window_reads[{store},{TOKENS}x{dim},{precision},{policy}]",
            NUM_WINDOWS / seconds,
            "windows/s",
            "np.memmap copy of float16",
            NUM_WINDOWS / theirs,
        )
        for policy, seconds in zip(checksums, ours, strict=True)
    ]


def moved_rows(store, folder, *, dim=384, precision="fp16", num_frames=128):
    """Bytes that leave the disk for a part of a shard of four layers, none of it in memory, against the part's own."""
    if not can_evict(folder):
        return []
    columns = make_columns(dim, precision, num_layers=4)
    path = folder / f"moved-{store}{STORES[store].suffix}"
    data = write_shard(store, path, columns, make_arrays(columns, num_frames))
    parts = {
        "four layers": (columns, np.arange(num_frames)),
        "one layer of four": (columns[2:3], np.arange(num_frames)),
        "every second frame": (columns[:1], np.arange(0, num_frames, 2)),
        "windows of 16": (columns[1:2], np.arange(40, 56)),
    }
    rows = []
    for name, (chosen, frames) in parts.items():
        reader = STORES[store].reader(path, data, checksums="never")
        evict(path)
        before = bytes_from_disk()
        wanted = sum(reader.read(spec.key, frames).nbytes for column in chosen for spec in column.arrays)
        moved = bytes_from_disk() - before
        rows.append(Row(f"bytes_moved[{store},{name}]", moved / 1e6, "MB", "its own bytes", wanted / 1e6))
    return rows


def remove(path):
    """A shard or a file is gone."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def writing_rows(store, folder, *, dim=384, precision="fp16", compression="none", rounds=9):
    """Writing a shard with fsync, against ndarray.tofile and fsync of the same bytes; and the writer's memory."""
    columns, num_frames = make_columns(dim, precision, compression=compression), FRAMES[dim]
    arrays = make_arrays(columns, num_frames)
    label = f"{store},{TOKENS}x{dim},{precision},{compression}"
    num_bytes, numbers, suffix = sum(array.nbytes for array in arrays.values()), count(), STORES[store].suffix

    # Both remove what they wrote: dirty pages of earlier rounds would be written back at the expense of later ones.
    def through_store():
        path = folder / f"written-{label}-{next(numbers)}{suffix}"
        write_shard(store, path, columns, arrays)
        remove(path)

    def plain():
        path = folder / f"copy-{next(numbers)}"
        with path.open("xb") as file:
            for array in arrays.values():
                array.tofile(file)
            file.flush()
            os.fsync(file.fileno())
        remove(path)

    ours, theirs = (num_bytes / 1e6 / seconds for seconds in seconds_of(through_store, plain, rounds=rounds))
    tracemalloc.start()
    through_store()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return [
        Row(f"shard_writing[{label}]", ours, "MB/s", "ndarray.tofile + fsync", theirs),
        Row(f"writer_memory[{label}]", peak / 1e6, "MB", "the shard", num_bytes / 1e6),
    ]
