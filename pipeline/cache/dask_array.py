"""The tokens of a cache as a dask array, for sums over all of them: means, principal components, searches.

One chunk per shard, since a shard is what one process reads best. A task carries the ids of its videos; the worker that
runs it opens the shard itself. Peak memory of a task is its chunk in float32 and one video as stored.

Shapes: F frames, N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from vfz.pipeline.cache.reader import OpenShards, ShardSource
from vfz.pipeline.cache.tokens import TokenArrays
from vfz.pipeline.errors import CacheFormatError, UsageError

if TYPE_CHECKING:
    import dask.array
    from numpy.typing import NDArray

    from vfz.pipeline.format.calibration import Calibration
    from vfz.pipeline.format.ledger import LedgerRow
    from vfz.pipeline.stores.metadata import Column


def tokens_as_dask(
    rows: Sequence[LedgerRow], column: Column, calibration: Calibration | None, source: ShardSource
) -> dask.array.Array:
    """A column of some videos as float32 [F, N, D]; see `FeatureCache.to_dask`.

    Raises:
        UsageError: when there is no video.
    """
    import dask.array
    from dask.delayed import delayed

    if not rows:
        raise UsageError(f"no video of {source.path} has {column.key}; there is nothing to make an array of")
    runs: list[list[LedgerRow]] = []
    for row in rows:
        if runs and runs[-1][0].shard == row.shard:
            runs[-1].append(row)
        else:
            runs.append([row])
    array_source = _ArraySource(
        source=replace(source, path=source.path.resolve()), column=column, calibration=calibration
    )
    shared = delayed(array_source)
    read = delayed(_read_chunk)
    chunks = []
    for run in runs:
        videos = tuple((row.id, row.view, row.num_frames) for row in run)
        shape = (sum(row.num_frames for row in run), column.num_tokens, column.dim)
        chunks.append(dask.array.from_delayed(read(shared, run[0].shard, videos), shape=shape, dtype=np.float32))
    tokens: dask.array.Array = dask.array.concatenate(chunks, axis=0)
    return tokens


@dataclass(frozen=True, kw_only=True)
class _ArraySource:
    """What the tasks of an array share: where the shards are, and which column is read."""

    source: ShardSource
    column: Column
    calibration: Calibration | None


def _read_chunk(array_source: _ArraySource, shard: str, videos: Sequence[tuple[str, int, int]]) -> NDArray[np.float32]:
    """Tokens of videos (id, view, frames) of one shard, one after the other, float32 [F, N, D]."""
    column = array_source.column
    shards = OpenShards(array_source.source)
    places = []
    for video_id, view, _ in videos:
        (place,) = shards.find(shard, (column.key,), (video_id, view))
        if place is None:
            raise CacheFormatError(
                f"shard {shard} of {array_source.source.path} has no {column.key} of video {video_id!r}"
            )
        places.append(place)
    tokens = np.empty((sum(num for *_, num in videos), column.num_tokens, column.dim), np.float32)
    calibrations = {column.key: array_source.calibration} if array_source.calibration else {}
    start = 0
    for (video_id, _, num_frames), (reader, frame_start) in zip(videos, places, strict=True):
        in_shard = np.arange(frame_start, frame_start + num_frames)
        try:
            arrays = {spec.key: reader.read(spec.key, in_shard) for spec in column.arrays}
        except CacheFormatError as error:
            raise CacheFormatError(f"video {video_id!r}, {column.key}, shard {shard}: {error}") from error
        stored = TokenArrays(columns={(column.layer, column.part): column}, calibrations=calibrations, arrays=arrays)
        tokens[start : start + num_frames] = stored.as_float32(column.layer, column.part)
        start += num_frames
    shards.close()
    return tokens
