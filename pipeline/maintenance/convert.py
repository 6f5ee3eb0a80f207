"""`vfz cache convert`: another precision, store or compression for a cache, without the encoder or any video.

The new cache has the plans, shards, commits, ledger and provenance of the old one; its recipe differs in how tokens are
stored, and not at all where the precision stays: then every stored number is copied bit for bit. Precision only goes
down, and only once: tokens rounded a second time are not those that a recipe with one `converted_from` promises.

What is lost against extracting at the lower precision: nothing from fp32 to fp16, whose tokens come out the same. Else
tokens were rounded before, which adds fp16's error of at most 2^-11, or int8's of about 1%, to the new one's, and
calibration sees 48 frames of the cached videos instead of 48 of the dataset's.

The same call again goes on where the last one was stopped, and takes over what the source gained since. Each shard
costs one read of the old data, with every checksum compared, and one write of the new.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.cache_header import fingerprint_of
from vfz.pipeline.errors import UsageError
from vfz.pipeline.find import cache_name, find_cache
from vfz.pipeline.format.catalog import write_catalog
from vfz.pipeline.format.commits import ShardIndex, committed_paths, read_shard_index
from vfz.pipeline.maintenance.convert_shard import ShardConverter
from vfz.pipeline.maintenance.convert_source import SourceCache, open_source
from vfz.pipeline.maintenance.convert_target import TargetCache, converted_recipe, open_target
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.pipeline.stores import get_store

if TYPE_CHECKING:
    from vfz.pipeline.format.ledger import LedgerRow
    from vfz.pipeline.maintenance.convert_options import ConvertOptions


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What a conversion ended with.

    Attributes:
        source, cache: folders of the old and the new cache.
        fingerprint, store, precision: of the new cache.
        compression: of the new cache's columns, by column key.
        num_ok, num_failed, num_missing, num_pending: videos in the whole new cache, in every view.
        num_frames: frames in the whole new cache.
        source_bytes, cache_bytes: size of the committed data.
        new_commits, new_videos, bytes_read, seconds: done by this call; videos of a first commit are counted.
        unstorable: reason by video id (and view, after the first), of those that failed in this call because the new
            precision cannot hold them.
    """

    source: str
    cache: str
    fingerprint: str
    store: str
    precision: str
    compression: dict[str, str]
    num_ok: int
    num_failed: int
    num_missing: int
    num_pending: int
    num_frames: int
    source_bytes: int
    cache_bytes: int
    new_commits: int
    new_videos: int
    bytes_read: int
    seconds: float
    unstorable: dict[str, str] = field(default_factory=dict)


def convert(options: ConvertOptions, *, progress: Progress | None = None) -> ConvertReport:
    """Make a cache from another one.

    Only what is committed is converted, so a cache that is not complete may be; call again for the rest.

    Raises:
        UsageError: a precision above the source's, a second lossy conversion, a compression that the store does not
            have, or a target that is the source or lies inside it.
        CacheFormatError: the source is no cache, or damaged; what was committed before is kept.
        CacheIncompleteError: the source has no commit yet.
        CacheMismatchError: the new cache's folder holds something else.
        StorageError: the disk is full; what was committed before is kept.
    """
    progress = progress or SilentProgress()
    source = open_source(find_cache(options.cache))
    recipe = converted_recipe(source, options.precision or source.header.precision)
    name = options.name or source.contents.dataset
    new_name = cache_name(name, str(recipe["encoder"]["name"]), fingerprint_of(recipe))
    if "\0" in new_name or new_name != Path(new_name).name:
        raise UsageError(
            f"a cache of {name!r} cannot be called {new_name!r}, which is no folder's name; choose a --name"
        )
    folder = options.out / new_name
    _check_usage(folder, source, options)
    target = open_target(source, folder, recipe, options)
    started = time.perf_counter()
    converter = ShardConverter(source=source, target=target, progress=progress)
    commits = _remaining(source, target)
    if commits:
        progress.start("converting", total=sum(len(index.rows) for index in commits), unit="videos")
        for index in commits:
            converter.convert(index, _first_rows(folder, index))
        progress.finish()
    write_catalog(folder)
    return _report(source, target, converter, time.perf_counter() - started)


def _check_usage(folder: Path, source: SourceCache, options: ConvertOptions) -> None:
    """Refuses what cannot work, before anything is made."""
    inside = source.path.resolve()
    if inside == folder.resolve():
        raise UsageError(
            f"{folder} is the cache that is converted: its precision stays, so the new cache would have the same name; "
            "choose another --out, --name or --precision"
        )
    if inside in folder.resolve().parents:
        raise UsageError(f"{folder} lies in the cache that is converted; choose another --out or --name")
    store = options.store or source.contents.store
    if options.compression not in {"auto", "none"} and not get_store(store).compresses:
        raise UsageError(
            f"--compression {options.compression}: the {store} store keeps plain arrays; leave it out, or choose "
            "--store zarr"
        )


def _remaining(source: SourceCache, target: TargetCache) -> list[ShardIndex]:
    """The source's commits that the new cache does not have; without columns that no commit was about yet."""
    done = committed_paths(target.path)
    return [
        index
        for index in source.commits
        if (index.shard, index.number) not in done and target.columns.keys() >= set(index.column_keys)
    ]


def _first_rows(folder: Path, index: ShardIndex) -> dict[tuple[str, int], LedgerRow]:
    """What the new cache's first commit of a shard says of its videos, for a commit that adds columns to it."""
    if index.number == 0:
        return {}
    first = committed_paths(folder)[index.shard, 0]
    return {row.key: row for row in read_shard_index(first).rows}


def _report(source: SourceCache, target: TargetCache, converter: ShardConverter, seconds: float) -> ConvertReport:
    cache = FeatureCache(target.path, allow_incomplete=True)
    count = Counter(row.status for row in cache.videos)
    return ConvertReport(
        source=str(source.path),
        cache=str(target.path),
        fingerprint=target.header.fingerprint,
        store=target.contents.store,
        precision=target.header.precision,
        compression={column.key: column.compression for column in target.contents.columns},
        num_ok=count["ok"],
        num_failed=count["failed"],
        num_missing=count["missing"],
        num_pending=count["pending"],
        num_frames=sum(row.num_frames for row in cache.videos),
        source_bytes=sum(index.data.num_bytes for index in source.commits if index.data is not None),
        cache_bytes=cache.num_bytes,
        new_commits=converter.num_commits,
        new_videos=converter.num_videos,
        bytes_read=converter.num_bytes_read,
        seconds=seconds,
        unstorable=dict(converter.unstorable),
    )
