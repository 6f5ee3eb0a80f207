"""`vfz cache info`, `vfz cache ls`, `vfz cache verify --against`: what caches are, what they hold, and how two differ.

No tokens are read. Two caches may be used for one another when they have the same recipe, whatever the store and the
folder. So `compare_caches` looks at the recipes, field by field, and after them at the videos that both hold: their
source files must be the same, and so must their frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheError, CacheIncompleteError, UsageError
from vfz.pipeline.format.calibration import Calibration
from vfz.pipeline.format.folder import DEFAULT_FOLDER, caches_in
from vfz.pipeline.format.header import HEADER, Contents
from vfz.pipeline.format.ledger import LedgerRow, from_utf8
from vfz.pipeline.maintenance.disk import disk_bytes
from vfz.pipeline.maintenance.label import LabelSetInfo, describe_label_sets
from vfz.pipeline.recipe import describe_difference
from vfz.pipeline.stores import Column, ShardData
from vfz.pipeline.stores.metadata import ArraySpec

if TYPE_CHECKING:
    import pyarrow as pa

NUM_REASONS = 5
NAMES = ("A", "B")


def describe_cache(path: str | Path) -> CacheInfo:
    """Everything there is to know about a cache without reading its tokens.

    Raises:
        CacheFormatError: when the folder is no cache, or damaged so that it cannot be opened.
    """
    path = Path(path)
    cache = FeatureCache(path, allow_incomplete=True)
    stored = [index.data for index in cache.folder.commits() if index.data is not None]
    calibrations = cache.calibrations
    rows = list(cache.videos)
    on_disk = disk_bytes(path, {data.name for data in stored})
    return CacheInfo(
        path=str(path),
        name=path.resolve().name,
        fingerprint=cache.fingerprint,
        dataset=cache.contents.dataset,
        num_classes=len(cache.class_names),
        recipe=cache.recipe,
        provenance=cache.provenance,
        random_weights=bool(cache.recipe["encoder"].get("random_weights")),
        precision=cache.precision,
        store=cache.store,
        columns=tuple(_column_info(column, stored, calibrations.get(column.key)) for column in cache.contents.columns),
        views=cache.views,
        counts=_count_by_split(cache),
        failures=_most_common(_without_file(row.reason, row.source_path) for row in rows if row.reason),
        num_lacking=_num_lacking(cache.table()),
        lacking=_most_common(_lacking(cache.table())),
        num_frames=sum(row.num_frames for row in rows),
        hours=sum(row.duration_seconds for row in rows if row.view == 0) / 3600,
        num_shards=len({row.shard for row in rows if row.status != "pending"}),
        num_bytes=sum(on_disk.values()),
        disk_bytes=on_disk,
        classes=cache.class_counts,
        label_sets=describe_label_sets(cache),
        python=_example_code(cache),
    )


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """What `describe_cache` tells.

    Attributes:
        path, name, fingerprint: which cache; name is that of its folder.
        dataset, num_classes: what it was made from.
        recipe, provenance: of `vfz.json`; provenance is where the encoder's weights came from, their licence, versions.
        random_weights: its tokens are those of seeded noise.
        precision, store: how tokens are stored.
        columns: every part of every layer.
        views: that some video is planned in.
        counts: videos (once per view) by split, and in each by status.
        failures: reasons and how many videos have each, most frequent first.
        num_lacking: videos (once per view) that are ok and have no tokens of some layer.
        lacking: which layer and why, and how many of them, most frequent first.
        num_frames, hours: of the videos that are ok, in view 0 the latter.
        num_shards: that are committed.
        num_bytes: of all files of the cache, as `du --apparent-size` counts files.
        disk_bytes: the same by kind; see `vfz.pipeline.maintenance.disk`.
        classes: videos that can be read, in the first view, by split and class name; see `FeatureCache.class_counts`.
        label_sets: by name, the latest of each.
        python: lines that open it and read a clip.
    """

    path: str
    name: str
    fingerprint: str
    dataset: str
    num_classes: int
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]
    random_weights: bool
    precision: str
    store: str
    columns: tuple[ColumnInfo, ...]
    views: tuple[int, ...]
    counts: Mapping[str, Mapping[str, int]]
    failures: Mapping[str, int]
    num_lacking: int
    lacking: Mapping[str, int]
    num_frames: int
    hours: float
    num_shards: int
    num_bytes: int
    disk_bytes: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    label_sets: tuple[LabelSetInfo, ...]
    python: str


@dataclass(frozen=True, kw_only=True)
class ColumnInfo:
    """One part of one layer.

    Attributes:
        layer, part, num_tokens, dim: of the column; tokens per frame.
        compression: codec of its chunks.
        payload_bytes, scale_bytes: on disk, in all shards; compressed where it is.
        bytes_per_token: both together, by token.
        precision_error: relative error of the stored tokens in the calibration sample; None where it is not known.
        compression_ratios: stored bytes in parts of uncompressed ones in that sample, by codec.
    """

    layer: str
    part: str
    num_tokens: int
    dim: int
    compression: str
    payload_bytes: int
    scale_bytes: int
    bytes_per_token: float
    precision_error: float | None
    compression_ratios: Mapping[str, float]


def list_caches(folder: str | Path | None = None) -> tuple[CacheSummary, ...]:
    """Every cache in a folder, by name, or the one that the folder is; one that cannot be opened comes with its error.

    Raises:
        UsageError: when there is no such folder.
    """
    folder = DEFAULT_FOLDER if folder is None else Path(folder)
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; name the one that holds your caches")
    if (folder / HEADER).is_file():
        return (replace(_summary(folder), name=folder.resolve().name),)
    return tuple(_summary(path) for path in caches_in(folder))


@dataclass(frozen=True, kw_only=True)
class CacheSummary:
    """One line of `vfz cache ls`.

    Attributes:
        path, name: which cache.
        dataset, encoder, layers, precision, store: what it holds.
        random_weights: its tokens are those of seeded noise.
        counts: videos (once per view) by status.
        num_lacking: those that are ok and have no tokens of some layer.
        num_bytes: of the data on disk.
        error: why it cannot be opened; the rest is empty then. Empty for one that can.
    """

    path: str
    name: str
    dataset: str = ""
    encoder: str = ""
    layers: tuple[str, ...] = ()
    precision: str = ""
    store: str = ""
    random_weights: bool = False
    counts: Mapping[str, int]
    num_lacking: int = 0
    num_bytes: int = 0
    error: str = ""


def compare_caches(a: str | Path, b: str | Path) -> CacheComparison:
    """What differs between two caches; reads no tokens.

    Raises:
        CacheFormatError: when one of them is no cache, or damaged so that it cannot be opened.
    """
    caches = [FeatureCache(path, allow_incomplete=True) for path in (a, b)]
    rows_a, rows_b = ({row.key: row for row in cache.videos if row.status == "ok"} for cache in caches)
    common = rows_a.keys() & rows_b.keys()
    return CacheComparison(
        a=str(a),
        b=str(b),
        same_fingerprint=caches[0].fingerprint == caches[1].fingerprint,
        recipe_differences=tuple(describe_difference(caches[0].recipe, caches[1].recipe, names=NAMES)),
        contents_differences=tuple(_contents_differences(*(cache.contents for cache in caches))),
        same_ledger=caches[0].ledger_digest == caches[1].ledger_digest,
        num_common=len(common),
        only_in_a=len(rows_a) - len(common),
        only_in_b=len(rows_b) - len(common),
        video_differences=tuple(
            line for key in rows_a if key in common for line in _video_differences(rows_a[key], rows_b[key])
        ),
    )


@dataclass(frozen=True, kw_only=True)
class CacheComparison:
    """Two caches beside each other: A and B.

    Attributes:
        a, b: their folders.
        same_fingerprint: whether they have one recipe.
        recipe_differences: a line per field, e.g. `encoder.image_size: A 224, B 256`.
        contents_differences: the same of dataset, classes, store and columns; no obstacle.
        same_ledger: whether both hold the same videos with the same frames in the same shards.
        num_common: videos (once per view) that both have tokens of.
        only_in_a, only_in_b: how many only one has tokens of; no obstacle.
        video_differences: a line per common video whose source file or number of frames differs.
    """

    a: str
    b: str
    same_fingerprint: bool
    recipe_differences: tuple[str, ...]
    contents_differences: tuple[str, ...]
    same_ledger: bool
    num_common: int
    only_in_a: int
    only_in_b: int
    video_differences: tuple[str, ...]

    @property
    def interchangeable(self) -> bool:
        """Whether the tokens of one stand for those of the other."""
        return self.same_fingerprint and not self.video_differences


def _column_info(column: Column, stored: Sequence[ShardData], calibration: Calibration | None) -> ColumnInfo:
    having = [data for data in stored if column.key in data.chunks]
    payload_bytes = sum(_array_bytes(data, column.payload) for data in having)
    scale_bytes = sum(_array_bytes(data, column.scale) for data in having if column.scale is not None)
    num_tokens = column.num_tokens * sum(data.num_frames for data in having)
    return ColumnInfo(
        layer=column.layer,
        part=column.part,
        num_tokens=column.num_tokens,
        dim=column.dim,
        compression=column.compression,
        payload_bytes=payload_bytes,
        scale_bytes=scale_bytes,
        bytes_per_token=(payload_bytes + scale_bytes) / num_tokens if num_tokens else 0.0,
        precision_error=calibration.precision_error if calibration else None,
        compression_ratios=dict(calibration.compression_ratios) if calibration else {},
    )


def _array_bytes(data: ShardData, spec: ArraySpec) -> int:
    """What an array takes on disk: its own file where it has one, else its numbers, which are plain then."""
    files = [record.num_bytes for name, record in data.files.items() if name.startswith(f"{spec.key}/c/")]
    return sum(files) if files else data.num_frames * spec.frame_bytes


def _example_code(cache: FeatureCache) -> str:
    """Opens the cache and reads the last layer of the first video that has it."""
    try:
        FeatureCache(cache.path)
        extra = ""
    except CacheIncompleteError:
        extra = ", allow_incomplete=True"
    lines = [
        "from vfz.pipeline import FeatureCache",
        f"cache = FeatureCache({str(cache.path)!r}{extra})",
    ]
    layer = list(cache.layers)[-1]
    for view in cache.views:
        readable = cache.ok_videos(view=view, layers=(layer,))
        if len(readable):
            where = f"{readable[0].id!r}, layers=({layer!r},)" + (f", view={view}" if view else "")
            lines.append(f"clip = cache.read({where})")
            lines.append(f"tokens = clip.tokens({layer!r}, 'all')  # float32 [T, N, D]; clip.pts_seconds [T]")
            break
    return "\n".join(lines)


def _summary(path: Path) -> CacheSummary:
    """One cache; opens no index of a shard where the catalogue is up to date."""
    empty = CacheSummary(path=str(path), name=path.name, counts={})
    try:
        cache = FeatureCache(path, allow_incomplete=True)
    except (CacheError, UsageError) as error:
        return replace(empty, error=str(error))
    total: Counter[str] = Counter()
    for of_split in _count_by_split(cache).values():
        total.update(of_split)
    return replace(
        empty,
        dataset=cache.contents.dataset,
        encoder=str(cache.recipe["encoder"]["name"]),
        layers=tuple(cache.layers),
        precision=cache.precision,
        store=cache.store,
        random_weights=bool(cache.recipe["encoder"].get("random_weights")),
        counts=dict(total),
        num_lacking=_num_lacking(cache.table()),
        num_bytes=cache.num_bytes,
    )


def _count_by_split(cache: FeatureCache) -> dict[str, dict[str, int]]:
    """Rows by split and status, counted in the table: rows one by one would take seconds where there are many."""
    table = cache.table()
    pairs = zip(table.column("split").to_pylist(), table.column("status").to_pylist(), strict=True)
    counts: dict[str, dict[str, int]] = {}
    for (split, status), count in sorted(Counter(pairs).items()):
        counts.setdefault(from_utf8(split), {})[status] = count
    return counts


def _num_lacking(table: pa.Table) -> int:
    """Counted in the table, as `_count_by_split`."""
    return pc.sum(pc.greater(pc.list_value_length(table["lacking"]), 0)).as_py() or 0


def _lacking(table: pa.Table) -> Iterator[str]:
    """Of every video that is ok, once for each layer and reason that it has no tokens of the layer."""
    names = ["lacking", "lacking_reasons", "source_path"]
    for keys, reasons, path in zip(*(table[name].to_pylist() for name in names), strict=True):
        told = {
            (key.partition("/")[0], _without_file(from_utf8(reason), from_utf8(path)) or "not extracted yet")
            for key, reason in zip(keys, reasons, strict=True)
        }
        yield from (f"{layer}: {reason}" for layer, reason in told)


def _without_file(reason: str, path: str) -> str:
    """A reason as it is counted: that each names another file does not make them different."""
    return reason.replace(path, "FILE") if path else reason


def _most_common(reasons: Iterable[str]) -> dict[str, int]:
    return dict(Counter(reasons).most_common(NUM_REASONS))


def _contents_differences(a: Contents, b: Contents) -> list[str]:
    one, other = ({**contents.to_dict(), "golden": None} for contents in (a, b))
    return describe_difference(one, other, names=NAMES)


def _video_differences(a: LedgerRow, b: LedgerRow) -> list[str]:
    name = f"video {a.id!r}" + (f" (view {a.view})" if a.view else "")
    lines = []
    if a.source_digest != b.source_digest:
        lines.append(f"{name}: made from another file: A {str(a.source_digest)[:12]}…, B {str(b.source_digest)[:12]}…")
    if a.num_frames != b.num_frames:
        lines.append(f"{name}: frames: A {a.num_frames}, B {b.num_frames}")
    return lines
