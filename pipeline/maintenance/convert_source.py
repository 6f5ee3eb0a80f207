"""The cache that a conversion reads: what it holds, its stored numbers block by block, and a sample of its tokens.

Every chunk is compared with its crc32c each time it is read, since a conversion is often the last time that the old
cache is read at all. Memory holds one block of frames, however long a video is, and 48 frames of one column while that
is calibrated.

Shapes: n frames of a block, M sample frames, N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import content_errors
from vfz.pipeline.format.calibration import Calibration
from vfz.pipeline.format.commits import SHARDS, ShardIndex
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.header import HEADER, CacheHeader, Contents
from vfz.pipeline.format.plan import Plan
from vfz.pipeline.recipe import CALIBRATION_FRAMES, CALIBRATION_FRAMES_PER_VIDEO, CALIBRATION_SEED
from vfz.pipeline.stores import STORES, ShardReader
from vfz.pipeline.stores.metadata import PTS_KEY, Column
from vfz.pipeline.stores.quantization import PRECISION_VERSION, expand

if TYPE_CHECKING:
    from numpy.typing import NDArray


def open_source(path: Path) -> SourceCache:
    """Reads everything about a cache but its tokens.

    Raises:
        CacheFormatError: when the folder is no cache, it is damaged, or another version of vfz rounded its tokens.
    """
    folder = CacheFolder(path)
    header = folder.header
    with content_errors(path / HEADER):
        _check_header(header)
    version, known = header.recipe["storage"]["precision_version"], PRECISION_VERSION[header.precision]
    if version != known:
        raise CacheFormatError(
            f"{path} stores {header.precision} of version {version}, this vfz reads version {known}: convert it with "
            "the vfz that made it"
        )
    # In this order: what a commit names was there before it, also in a cache that is being extended.
    commits = folder.commits()
    contents, plans = folder.contents(), folder.plans()
    for index in commits:
        columns = [column for column in contents.columns if column.key in index.column_keys]
        if index.calibration_digest != contents.calibration_digest(columns):
            raise CacheFormatError(
                f"{path}: shard {index.shard} was quantised with another calibration than the cache has; "
                "restore calibration/ and shards/ from one copy"
            )
    return SourceCache(
        folder=folder,
        contents=contents,
        plans=plans,
        calibrations=folder.calibrations(contents),
        commits=commits,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceCache:
    """A cache that is converted.

    Attributes:
        folder: its files but tokens.
        contents, plans: what is in it.
        calibrations: by column key.
        commits: all there are now, by shard and number; one may come in while this cache is open, for another call.
    """

    folder: CacheFolder
    contents: Contents
    plans: tuple[Plan, ...]
    calibrations: Mapping[str, Calibration]
    commits: tuple[ShardIndex, ...]

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder.path

    @property
    def header(self) -> CacheHeader:
        """What it is."""
        return self.folder.header

    def has_outcome(self, column: Column) -> bool:
        """Whether some commit is about a column, be it that all of its videos failed or are missing."""
        return any(column.key in index.column_keys for index in self.commits)

    @contextmanager
    def reader(self, index: ShardIndex) -> Iterator[SourceReader]:
        """The data of a commit, which has some.

        Raises:
            CacheFormatError: in the block, when the data is damaged; says which shard.
        """
        if index.data is None:
            raise ValueError(f"shard {index.shard}: commit {index.number} stores nothing")
        data = index.data
        store_reader = STORES[data.store].reader(self.path / SHARDS / data.name, data, checksums="always")
        try:
            yield SourceReader(store_reader, self.calibrations)
        except CacheFormatError as error:
            raise CacheFormatError(f"shard {index.shard} of {self.path}: {error}") from error
        finally:
            store_reader.close()

    def sample(self, column: Column) -> torch.Tensor | None:
        """Up to 48 frames of a column, float32 [M, N, D], from videos drawn by seed 0; None when no video has any.

        Three frames per video, evenly spread over it; more where there are few videos. Only view 0, as long as there
        is one.

        Raises:
            CacheFormatError: when the data is damaged.
        """
        found = {
            (video.id, video.view): (index, start, video.num_frames)
            for index in self.commits
            if index.data is not None and column.key in index.column_keys
            for video, start in zip(index.data.videos, _starts(index), strict=True)
        }
        if not found:
            return None
        first_view = min(view for _, view in found)
        ids = sorted(video_id for video_id, view in found if view == first_view)
        per_video = max(CALIBRATION_FRAMES_PER_VIDEO, -(-CALIBRATION_FRAMES // len(ids)))
        tokens: list[torch.Tensor] = []
        for number in np.random.default_rng(CALIBRATION_SEED).permutation(len(ids)):
            index, start, num_frames = found[ids[number], first_view]
            frames = np.unique(np.linspace(0, num_frames - 1, per_video).round().astype(np.int64))
            with self.reader(index) as reader:
                tokens.append(reader.tokens(column, reader.arrays(column, start + frames)))
            if sum(map(len, tokens)) >= CALIBRATION_FRAMES:
                break
        return torch.cat(tokens)[:CALIBRATION_FRAMES]


class SourceReader:
    """Reads one commit of a source cache."""

    def __init__(self, reader: ShardReader, calibrations: Mapping[str, Calibration]) -> None:
        self._reader, self._calibrations = reader, calibrations

    def pts_seconds(self, frames: NDArray[np.int64]) -> NDArray[np.float64]:
        """[n] presentation times."""
        return self._reader.read(PTS_KEY, frames)

    def arrays(self, column: Column, frames: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The stored arrays [n, ...] of a column by array key."""
        return {spec.key: self._reader.read(spec.key, frames) for spec in column.arrays}

    def tokens(self, column: Column, arrays: Mapping[str, NDArray[Any]]) -> torch.Tensor:
        """What stored arrays of a column stand for, float32 [n, N, D]."""
        return expand_arrays(column, arrays, self._calibrations.get(column.key))


def expand_arrays(column: Column, arrays: Mapping[str, NDArray[Any]], calibration: Calibration | None) -> torch.Tensor:
    """Stored arrays of a column, by array key, to float32 [n, N, D]."""
    return expand(
        torch.from_numpy(arrays[column.payload.key]),
        None if column.scale is None else torch.from_numpy(arrays[column.scale.key]),
        precision=column.precision,
        stats=calibration.stats if calibration else None,
        dim=column.dim,
    )


def _check_header(header: CacheHeader) -> None:
    """Looks for what a conversion needs of the recipe and the provenance, which are anything that is JSON.

    Raises:
        TypeError, KeyError: when it is not there.
    """
    storage, name = header.recipe["storage"], header.recipe["encoder"]["name"]
    if not {"precision_version", "converted_from"} <= storage.keys() or type(name) is not str:
        raise TypeError(f"its recipe says of storage {storage} and calls the encoder {name!r}")
    if not isinstance(header.provenance.get("converted_from") or {}, dict):
        raise TypeError("its provenance does not say what it was converted from")


def _starts(index: ShardIndex) -> list[int]:
    """Where in the shard each stored video begins."""
    return [row.frame_start for row in index.rows if row.status == "ok"]
