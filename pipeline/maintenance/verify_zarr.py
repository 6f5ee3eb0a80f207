"""Whether zarr-python, without vfz, finds in a shard what the shard's index says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zarr

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.stores import ShardData


def check_zarr(path: Path, data: ShardData) -> None:
    """Compares the metadata of the group and of every array with the index; reads no chunk.

    Raises:
        CacheFormatError: when an array is missing, another one is there, or one is described otherwise.
    """
    try:
        group = zarr.open_group(path, mode="r")
        found: dict[str, Any] = {
            name: (member.shape, member.dtype)
            for name, member in group.members(max_depth=None)
            if isinstance(member, zarr.Array)
        }
        videos: Any = group.attrs["videos"]
        described = [(video["id"], video["view"], video["frame_start"], video["num_frames"]) for video in videos]
    except Exception as error:  # zarr raises whatever a damaged file makes it stumble over
        raise CacheFormatError(f"{path}: zarr cannot open it: {type(error).__name__}: {error}") from error
    expected = {spec.key: ((data.num_frames, *spec.frame_shape), spec.dtype) for spec in data.arrays}
    if found != expected:
        key = min(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise CacheFormatError(
            f"{path}: its metadata describes {key} as {found.get(key)}, the shard's index as {expected.get(key)}"
        )
    start, stored = 0, []
    for video in data.videos:
        stored.append((video.id, video.view, start, video.num_frames))
        start += video.num_frames
    if described != stored:
        raise CacheFormatError(f"{path}: its attribute `videos` names other videos or frames than the shard's index")
