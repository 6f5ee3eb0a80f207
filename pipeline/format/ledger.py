"""What happened to every video: one row per (video, view), written with the shard that holds its frames; and all rows.

A row never changes. A video that is tried again gets a new row in a later plan, and the latest plan wins.

The rows of a whole cache are an Arrow table: a quarter of a million open, filter and count in milliseconds. As Python
objects as many take seconds and hundreds of megabytes. So the rows stay in a table; `LedgerRows` makes a `LedgerRow` of
each one that is looked at, and `VideoLookup` finds a video among them.

A text that Arrow cannot hold (file names on Linux may be no UTF-8) is kept as its JSON after a NUL.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vfz.pipeline.errors import CacheFormatError, UnknownNameError, UsageError
from vfz.pipeline.files import canonical_json, sha256_hex

if TYPE_CHECKING:
    from numpy.typing import NDArray

Status = Literal["ok", "failed", "missing", "pending"]
STATUSES: tuple[Status, ...] = get_args(Status)
VideoKey = tuple[str, int]
"""What a row is found by: the id of a video, and a view of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerRow:
    """One video in one view.

    Attributes:
        id: the video, unique in its dataset.
        view: which crop; 0 is the centre.
        split: of the dataset, e.g. `train`.
        label: index into the cache's class names; None where there is none.
        status: ok | failed (could not be decoded or encoded in full) | missing (no such file) | pending (no shard yet).
        reason: why it is not ok, one line; empty for ok and pending.
        attempts: how often it was tried.
        num_frames: frames stored; 0 unless ok.
        frame_start: where they begin in the shard; 0 unless ok.
        shard: the shard it is planned for, e.g. `00012`.
        source_digest: `VideoSource.digest` of its bytes; None where the file could not be read.
        source_path: its file, or `<tar>::<member>`, absolute. Provenance only: reading a cache never opens it.
        duration_seconds: from the first stored frame to the last, or as the extraction defines it; 0 unless ok.
        folds: its split in each official fold of the dataset, by name; empty where there is one division only.
    """

    id: str
    view: int
    split: str
    label: int | None
    status: Status
    reason: str
    attempts: int
    num_frames: int
    frame_start: int
    shard: str
    source_digest: str | None
    source_path: str
    duration_seconds: float
    folds: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"video {self.id!r}: status {self.status!r} is none of {', '.join(STATUSES)}")
        if min(self.view, self.attempts, self.num_frames, self.frame_start) < 0 or not self.duration_seconds >= 0:
            raise ValueError(f"video {self.id!r}: view, attempts, frames and seconds are never negative: {self}")
        if (self.status == "ok") != (self.num_frames > 0):
            raise ValueError(f"video {self.id!r}: status {self.status} with {self.num_frames} frames; only ok has some")
        if (self.status in {"failed", "missing"}) != bool(self.reason):
            raise ValueError(f"video {self.id!r}: status {self.status} with reason {self.reason!r}")

    @property
    def key(self) -> VideoKey:
        """What a row is found by: (video, view)."""
        return self.id, self.view

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values under the names of the attributes."""
        return {name: getattr(self, name) for name in _FIELD_TYPES} | {"folds": dict(self.folds)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LedgerRow:
        """The inverse of `to_dict`.

        Raises:
            CacheFormatError: for a name too many or too few, a value of another type, or a row that contradicts itself.
        """
        if values.keys() != _FIELD_TYPES.keys():
            raise CacheFormatError(f"a ledger row has the fields {sorted(values)}, expected {sorted(_FIELD_TYPES)}")
        for name, types in _FIELD_TYPES.items():
            if type(values[name]) not in types:
                raise CacheFormatError(f"ledger row of video {values['id']!r}: {name} is {values[name]!r}")
        try:
            return cls(**values)
        except ValueError as error:
            raise CacheFormatError(f"damaged ledger row: {error}") from error


# `type(...) in`, not isinstance: True is no number here.
_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "view": (int,),
    "split": (str,),
    "label": (int, type(None)),
    "status": (str,),
    "reason": (str,),
    "attempts": (int,),
    "num_frames": (int,),
    "frame_start": (int,),
    "shard": (str,),
    "source_digest": (str, type(None)),
    "source_path": (str,),
    "duration_seconds": (float, int),
    "folds": (dict,),
}


FOLD_PREFIX = "fold_"
_FIELDS: dict[str, Any] = {
    "id": pa.string(),
    "view": pa.int32(),
    "split": pa.string(),
    "label": pa.int64(),
    "status": pa.string(),
    "reason": pa.string(),
    "attempts": pa.int32(),
    "num_frames": pa.int64(),
    "frame_start": pa.int64(),
    "shard": pa.string(),
    "source_digest": pa.string(),
    "source_path": pa.string(),
    "duration_seconds": pa.float64(),
}
_TEXTS = ("id", "split", "reason", "source_path")
_LACKING = pa.list_(pa.string())
_ROWS_AT_ONCE = 4096
_MANY_NAMES = 2000
Lacking = Mapping[str, str]
"""Why a video that is ok has no tokens of a column, by column key; empty text where its commit is still pending."""


def ledger_table(rows: Sequence[LedgerRow], lacking: Mapping[VideoKey, Lacking]) -> pa.Table:
    """Rows as a table: a column per attribute, `fold_<name>` per official fold, `lacking` and `lacking_reasons`.

    Args:
        rows: in the order of the plans.
        lacking: by key of the row; rows that lack nothing left out.
    """
    columns: dict[str, Any] = {}
    for name, kind in _FIELDS.items():
        values = [getattr(row, name) for row in rows]
        columns[name] = pa.array(list(map(to_utf8, values)) if name in _TEXTS else values, kind)
    for fold in sorted({name for row in rows for name in row.folds}):
        values = [to_utf8(row.folds[fold]) if fold in row.folds else None for row in rows]
        columns[FOLD_PREFIX + fold] = pa.array(values, pa.string())
    of_row = [lacking.get(row.key, {}) for row in rows]
    columns["lacking"] = pa.array([list(one) for one in of_row], _LACKING)
    columns["lacking_reasons"] = pa.array([list(map(to_utf8, one.values())) for one in of_row], _LACKING)
    return pa.table(columns)


class LedgerRows(Sequence[LedgerRow]):
    """The rows of a table as records, each made when it is looked at. Equal to any sequence of equal rows."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._folds = [name for name in table.column_names if name.startswith(FOLD_PREFIX)]

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> LedgerRow: ...
    @overload
    def __getitem__(self, index: slice) -> LedgerRows: ...
    def __getitem__(self, index: int | slice) -> LedgerRow | LedgerRows:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return LedgerRows(self._table.slice(start, max(0, stop - start)))
            return LedgerRows(self._table.take(pa.array(range(start, stop, step), pa.int64())))
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._row(self._table.slice(position, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[LedgerRow]:
        for batch in self._table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            yield from map(self._row, batch.to_pylist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment] # as a list

    def __repr__(self) -> str:
        return f"<{len(self)} ledger rows>"

    def _row(self, values: Mapping[str, Any]) -> LedgerRow:
        known = {name: values[name] for name in _FIELDS} | {name: from_utf8(values[name]) for name in _TEXTS}
        folds = {
            name.removeprefix(FOLD_PREFIX): from_utf8(values[name]) for name in self._folds if values[name] is not None
        }
        return LedgerRow(**known, folds=folds)


class VideoLookup:
    """Finds a video's row, and what a read needs of it. Made of a table once; costs 0.2 s for 240,000 rows.

    Attributes:
        num_frames: of each row.
        is_ok: whether each row is.
    """

    def __init__(self, table: pa.Table, *, where: str) -> None:
        self._table, self._where = table, where
        self._positions: dict[int, dict[str, int]] = {}
        ids = map(from_utf8, table["id"].to_pylist())
        for position, (video_id, view) in enumerate(zip(ids, table["view"].to_pylist(), strict=True)):
            self._positions.setdefault(view, {})[video_id] = position
        self.num_frames: list[int] = table["num_frames"].to_pylist()
        self.is_ok: list[bool] = pc.equal(table["status"], "ok").to_pylist()
        shards = table["shard"].combine_chunks().dictionary_encode()
        self._shard_numbers: list[int] = shards.indices.to_pylist()
        self._shards: list[str] = shards.dictionary.to_pylist()

    def shard(self, position: int) -> str:
        """Id of the shard of a row."""
        return self._shards[self._shard_numbers[position]]

    def position(self, video_id: str, view: int) -> int:
        """Where the row is.

        Raises:
            UnknownNameError: there is no such video.
            UsageError: it is there in other views only.
        """
        position = self._positions.get(view, {}).get(video_id)
        if position is not None:
            return position
        views = sorted(known for known, positions in self._positions.items() if video_id in positions)
        if views:
            raise UsageError(f"video {video_id!r} is cached in the views {views}, not in view {view}")
        raise UnknownNameError("video", video_id, self._names_like(video_id), hint=f"(in {self._where})")

    def row(self, position: int) -> LedgerRow:
        """The row at a position."""
        return LedgerRows(self._table)[position]

    def lacking(self, position: int) -> dict[str, str]:
        """Why the video has no tokens of a column, by column key; see `Lacking`."""
        values = self._table.select(["lacking", "lacking_reasons"]).slice(position, 1).to_pylist()[0]
        return dict(zip(values["lacking"], map(from_utf8, values["lacking_reasons"]), strict=True))

    @cached_property
    def _sorted_ids(self) -> list[str]:
        return sorted({video_id for positions in self._positions.values() for video_id in positions})

    def _names_like(self, video_id: str) -> list[str]:
        """Names to compare with: all, or of a great many those beside it in the alphabet, since comparing is slow."""
        middle = bisect_left(self._sorted_ids, video_id)
        if len(self._sorted_ids) <= _MANY_NAMES:
            return self._sorted_ids
        return self._sorted_ids[max(0, middle - _MANY_NAMES // 2) : middle + _MANY_NAMES // 2]


def in_split(table: pa.Table, split: str | None, *, view: int, fold: str | None, where: str) -> NDArray[np.bool_]:
    """Which rows belong to a split and view, [rows].

    Args:
        table: the ledger.
        split: its name; None means all.
        view: which crop.
        fold: the official fold in which `split` is meant; rows that are not in it are out.
        where: the cache, for messages.

    Raises:
        UnknownNameError: when no row belongs to the split or the fold.
    """
    column, kind = "split", f"split of {where}"
    if fold is not None:
        column, kind = FOLD_PREFIX + fold, f"split of fold {fold} of {where}"
        folds = [name.removeprefix(FOLD_PREFIX) for name in table.column_names if name.startswith(FOLD_PREFIX)]
        if fold not in folds:
            raise UnknownNameError(f"fold of {where}", fold, folds)
    mask = pc.equal(table["view"], view)
    if split is None:
        return _as_mask(pc.and_(mask, pc.is_valid(table[column])))
    if split not in (known := distinct(table, column)):
        raise UnknownNameError(kind, split, known)
    return _as_mask(pc.and_(mask, pc.equal(table[column], to_utf8(split))))


def has_all(table: pa.Table, column_keys: Sequence[str]) -> NDArray[np.bool_]:
    """Which rows are ok and lack none of the columns, [rows]."""
    mask = _as_mask(pc.equal(table["status"], "ok"))
    lacking = table["lacking"].combine_chunks()
    wanted = pc.is_in(pc.list_flatten(lacking), pa.array(column_keys, pa.string()))
    mask[pc.list_parent_indices(lacking).filter(wanted).to_numpy()] = False
    return mask


def distinct(table: pa.Table, column: str) -> list[Any]:
    """The values of a column, each once, in order; None is left out."""
    values = [value for value in pc.unique(table[column]).to_pylist() if value is not None]
    return sorted(map(from_utf8, values) if pa.types.is_string(table[column].type) else values)


def what_is_pending(table: pa.Table) -> str:
    """What is still to be extracted, in words; empty when nothing is."""
    if not table.num_rows:
        return "no video is planned yet"
    if num_pending := int(_as_mask(pc.equal(table["status"], "pending")).sum()):
        return f"{num_pending} of {table.num_rows} videos are pending"
    reasons = pc.list_flatten(table["lacking_reasons"])
    keys = pc.list_flatten(table["lacking"]).filter(pc.equal(reasons, ""))
    counts = pc.value_counts(keys).to_pylist()
    return ", ".join(f"{count['values']} of {count['counts']} videos is pending" for count in counts)


def lacking_rows(table: pa.Table) -> list[LedgerRow]:
    """Videos that are ok and have no tokens of some column: a row for each, failed or missing, that says why."""
    lacking = table["lacking_reasons"].combine_chunks()
    told = pc.not_equal(pc.list_flatten(lacking), "")
    rows = []
    for position in sorted(set(pc.list_parent_indices(lacking).filter(told).to_pylist())):
        row, found = LedgerRows(table)[position], table.slice(position, 1).to_pylist()[0]
        reasons = {
            key: from_utf8(reason)
            for key, reason in zip(found["lacking"], found["lacking_reasons"], strict=True)
            if reason
        }
        failed = any(reason.startswith("failed") for reason in reasons.values())
        text = "; ".join(f"{key}: {reason}" for key, reason in reasons.items())
        rows.append(
            replace(
                row,
                status="failed" if failed else "missing",
                reason=text,
                num_frames=0,
                frame_start=0,
                duration_seconds=0.0,
            )
        )
    return rows


def table_digest(table: pa.Table) -> str:
    """SHA-256 over what can be read: id, view, status, frames, shard and lacking columns of every row, sorted."""
    names = ["id", "view", "status", "num_frames", "shard", "lacking"]
    rows = table.select(names).sort_by([("id", "ascending"), ("view", "ascending")])
    return sha256_hex(b"\n".join(canonical_json(rows[name].to_pylist()) for name in names))


def to_utf8(text: str) -> str:
    """A text as the table keeps it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "\0" + json.dumps(text)
    return "\0" + json.dumps(text) if text.startswith("\0") else text


def from_utf8(text: str) -> str:
    """The inverse of `to_utf8`."""
    return str(json.loads(text[1:])) if text.startswith("\0") else text


def _as_mask(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    """A column of truth values as a new array; None counts as false."""
    return np.array(pc.fill_null(values, fill_value=False).to_numpy(), dtype=np.bool_)
