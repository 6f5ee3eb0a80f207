"""Small tar shards for the tests of the WebDataset store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers.shards import append_frames, make_arrays

from vfz.pipeline.stores import STORES, Column, ShardData, ShardVideo

VIDEO = ShardVideo(id="a.b", view=0, split="train", label=7)


def write_videos(path: Path, columns: tuple[Column, ...], videos: list[ShardVideo], length: int = 3):
    """A shard of these videos, so many frames each."""
    arrays = make_arrays(columns, length * len(videos))
    with STORES["webdataset"].writer(path, columns) as writer:
        for number, video in enumerate(videos):
            writer.begin_video(video)
            append_frames(writer, arrays, number * length, (number + 1) * length)
        return writer.finish(), arrays


def read_key(path: Path, data: ShardData, key: str, checksums: str = "always"):
    return STORES["webdataset"].reader(path, data, checksums=checksums).read(key, np.arange(data.num_frames))
