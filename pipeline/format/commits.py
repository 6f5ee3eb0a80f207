"""The commit of a shard: its index appears at once, in full, after the data it names is safe on the disk.

A writer puts its data under a name nobody else uses (`new_data_path`), flushes it, and then links the index into place.
A link fails when the name is taken, so of several writers of one shard exactly one commits; the others delete their own
data. Data that no index names does not exist for readers, so a writer that dies at any moment leaves a cache that reads
as before.

Cost: a handful of flushes per shard.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, NamedTuple

from vfz.pipeline.errors import CacheFormatError, StorageError
from vfz.pipeline.files import (
    content_errors,
    fsync_dir,
    read_checked_json,
    storage_errors,
    unique_token,
    write_checked_json_once,
)
from vfz.pipeline.format.ledger import Lacking, LedgerRow, VideoKey
from vfz.pipeline.stores import STORES
from vfz.pipeline.stores.base import remove_data
from vfz.pipeline.stores.metadata import ShardData

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from vfz.pipeline.format.plan import PlannedVideo

CommitKey = tuple[str, int]
"""What a commit is found by: its shard, and its number in that shard."""
SHARDS = "shards"
_INDEX_NAME = re.compile(r"([0-9]{5,})\.(0|[1-9][0-9]*)\.index\.json")
_INDEX_KEYS = frozenset({"shard", "number", "plan", "fingerprint", "calibration_digest", "data", "rows", "column_keys"})
_MAX_COUNT = 2**31 - 1
_SUFFIXES = "|".join(re.escape(store.suffix) for store in STORES.values())
_DATA_NAME = re.compile(rf"([0-9]{{5,}})-[0-9a-f]{{16}}({_SUFFIXES})")


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """What one commit says.

    Attributes:
        shard: its id, e.g. `00012`.
        number: 0 for the first commit of a shard; later ones add columns, for the videos that were ok in the first.
        plan: number of the plan that named its videos.
        fingerprint: of the recipe its tokens were made by.
        calibration_digest: of the calibrations its tokens were quantised with (`Contents.calibration_digest`);
            None for floating point.
        data: what was stored; None when no video of the shard is ok.
        rows: every video of the shard in stored order; pending where it was asked to stop before: a later plan has it.
        column_keys: what the commit is about; stored for the videos that are ok.
    """

    shard: str
    number: int
    plan: int
    fingerprint: str
    calibration_digest: str | None
    data: ShardData | None
    rows: tuple[LedgerRow, ...]
    column_keys: tuple[str, ...]

    def __post_init__(self) -> None:
        self._check_types()
        settled = [row for row in self.rows if row.status != "pending"]
        if not settled or any(row.shard != self.shard for row in self.rows):
            raise ValueError(f"shard {self.shard}: its rows must be of this shard, and some of them settled")
        if self.number and len(settled) < len(self.rows):
            raise ValueError(f"shard {self.shard}: only the rows of its first commit may be pending")
        next_frame = 0
        for row in (rows := [row for row in self.rows if row.status == "ok"]):
            if row.frame_start != next_frame:
                raise ValueError(
                    f"shard {self.shard}: video {row.id!r} starts at frame {row.frame_start}, expected {next_frame}"
                )
            next_frame += row.num_frames
        stored = [(video.id, video.view, video.num_frames) for video in self.data.videos] if self.data else []
        if [(row.id, row.view, row.num_frames) for row in rows] != stored:
            raise ValueError(f"shard {self.shard}: its rows and its data name different videos or frames")
        if len({row.key for row in self.rows}) != len(self.rows):
            raise ValueError(f"shard {self.shard}: its rows name a video twice")
        if self.data and {column.key for column in self.data.columns} != set(self.column_keys):
            raise ValueError(f"shard {self.shard}: its data holds other columns than {self.column_keys}")
        if self.data and not is_data_name(self.data.name, self.shard):
            raise ValueError(
                f"shard {self.shard}: its data has the name {self.data.name!r}; <shard>-<token> is expected"
            )

    def _check_types(self) -> None:
        if type(self.number) is not int or type(self.plan) is not int:
            raise TypeError(f"shard {self.shard!r}: number {self.number!r} and plan {self.plan!r} are whole numbers")
        texts = (self.shard, self.fingerprint, *self.column_keys)
        if any(type(text) is not str for text in texts) or type(self.calibration_digest) not in (str, NoneType):
            raise TypeError(f"shard {self.shard!r}: its id, digests and column keys are texts: {self}")
        for row in self.rows:
            check_row(row)

    @property
    def name(self) -> str:
        """File name of the index."""
        return f"{self.shard}.{self.number}.index.json"


class CommitRows(NamedTuple):
    """What the ledger needs of an index. Not its data: checksums of every chunk of a large cache fill gigabytes."""

    number: int
    plan: int
    rows: tuple[LedgerRow, ...]
    column_keys: tuple[str, ...]


def commit_shard(cache_folder: Path, index: ShardIndex) -> bool:
    """Makes a shard part of the cache, unless another writer was first.

    Args:
        cache_folder: the cache.
        index: what to commit; its data lies in `shards/<data.name>`, as `ShardWriter.finish` left it.

    Returns:
        True when this call (or an earlier one with the same data) committed the shard; False when another writer did:
        its rows count, and this data is deleted.

    Raises:
        StorageError: when the disk is full or refuses to be written; nothing is committed then, the data is deleted.
        CacheFormatError: when the index of the writer that was first is damaged.
    """
    data = index.data
    shards = cache_folder / SHARDS
    path = shards / index.name
    try:
        committed = _write_index(path, index)
    except StorageError:
        if data is not None and not path.exists():
            remove_data(shards / data.name)  # no index will name it, and its space is needed
        raise
    if committed:
        return True
    if data is None:
        return False
    winner = read_shard_index(path).data
    if winner is not None and winner.name == data.name:
        return True  # by an earlier call: the data is in use
    remove_data(shards / data.name)
    return False


def _write_index(path: Path, index: ShardIndex) -> bool:
    """Names the data, which `ShardWriter.finish` has flushed; True when this call made the index."""
    with storage_errors(path):
        fsync_dir(path.parent)
    content = {
        "shard": index.shard,
        "number": index.number,
        "plan": index.plan,
        "fingerprint": index.fingerprint,
        "calibration_digest": index.calibration_digest,
        "data": None if index.data is None else index.data.to_dict(),
        "rows": [row.to_dict() for row in index.rows],
        "column_keys": list(index.column_keys),
    }
    return write_checked_json_once(path, content)


def new_data_path(cache_folder: Path, shard: str, suffix: str) -> Path:
    """Where a writer of that shard may put its data: a path under `shards/` that no other writer uses. Not created.

    Args:
        cache_folder: the cache.
        shard: which one.
        suffix: what the store's data is called, `vfz.pipeline.stores.Store.suffix`.
    """
    return cache_folder / SHARDS / f"{shard}-{unique_token()}{suffix}"


def is_data_name(name: str, shard: str | None = None) -> bool:
    """Whether `new_data_path` makes such a name, for any shard or for that one."""
    match = _DATA_NAME.fullmatch(name)
    return match is not None and shard in {None, match[1]}


def committed_paths(cache_folder: Path) -> dict[CommitKey, Path]:
    """The index files of a cache by (shard, number), in that order. Cheap: no file is opened."""
    shards = cache_folder / SHARDS
    if not shards.is_dir():
        return {}
    found = {
        (match[1], int(match[2])): path for path in shards.iterdir() if (match := _INDEX_NAME.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def read_shard_index(path: Path) -> ShardIndex:
    """Reads and checks `shards/<id>.<n>.index.json`.

    Raises:
        CacheFormatError: when the file is damaged, contradicts itself, or was given another name.
    """
    content = read_checked_json(path, _INDEX_KEYS)
    with content_errors(path):
        data = None if content["data"] is None else ShardData.from_dict(content["data"])
        rows = tuple(LedgerRow.from_dict(row) for row in content["rows"])
        index = ShardIndex(**{**content, "data": data, "rows": rows, "column_keys": tuple(content["column_keys"])})
    if path.name != index.name:
        raise CacheFormatError(f"{path} holds the index {index.name}: it was renamed; give it its name back")
    return index


def check_recipe(path: Path, index: ShardIndex, fingerprint: str) -> None:
    """Refuses a commit that was made by another recipe than the cache's.

    Raises:
        CacheFormatError: says both.
    """
    if index.fingerprint != fingerprint:
        raise CacheFormatError(
            f"{path} was made by the recipe {index.fingerprint[:12]}, the cache by {fingerprint[:12]}: it was copied "
            "from another cache; remove it"
        )


def check_commits(
    folder: Path, shard: str, commits: Sequence[ShardIndex | CommitRows], plan: int, videos: Iterable[PlannedVideo]
) -> None:
    """Refuses commits of a shard that do not go together.

    The first one has the videos of the plan, later ones those that were ok in it, with as many frames.

    Raises:
        CacheFormatError: says what does not.
    """
    if not commits:
        return
    first = commits[0]
    ok = {row.key: row.num_frames for row in first.rows if row.status == "ok"}
    fits = first.number == 0 and {row.key for row in first.rows} == {video.key for video in videos}
    if not fits or any(index.plan != plan for index in commits):
        raise CacheFormatError(
            f"{folder}: the index of shard {shard} and plan {plan} name different videos; restore both from one copy"
        )
    for index in commits[1:]:
        for row in index.rows:
            if row.key not in ok or (row.status == "ok" and row.num_frames != ok[row.key]):
                raise CacheFormatError(
                    f"{folder}: video {row.id!r} has {row.num_frames} frames in commit {index.number} of shard "
                    f"{shard}, and {ok.get(row.key, 0)} in its first; restore both from one copy"
                )


def check_row(row: LedgerRow) -> None:
    """Refuses a row that the ledger's table cannot hold.

    Raises:
        ValueError, TypeError: says what.
    """
    counts = (row.view, row.attempts, row.num_frames, row.frame_start, abs(row.label or 0), row.duration_seconds)
    if max(counts) > _MAX_COUNT:
        raise ValueError(f"video {row.id!r} has a number above {_MAX_COUNT}: {counts}")
    if any(type(split) is not str for split in row.folds.values()):
        raise TypeError(f"video {row.id!r}: the splits of its folds are texts: {dict(row.folds)}")
    for text in (row.source_digest or "", row.shard, *row.folds):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"video {row.id!r}: {text!r} is no Unicode text") from error


def lacking_in(commits: Sequence[ShardIndex | CommitRows], column_keys: Sequence[str]) -> Mapping[VideoKey, Lacking]:
    """What the ok videos of a shard lack, and why; `column_keys` are those of the cache."""
    if not commits:
        return {}
    ok = [row.key for row in commits[0].rows if row.status == "ok"]
    lacking: dict[VideoKey, dict[str, str]] = {}
    for column_key in column_keys:
        if column_key in commits[0].column_keys:
            continue
        outcomes: dict[VideoKey, LedgerRow] = {}
        for index in commits[1:]:
            if column_key in index.column_keys:
                known = {key for key, row in outcomes.items() if row.status == "ok"}
                outcomes.update({row.key: row for row in index.rows if row.key not in known})
        for key in ok:
            row = outcomes.get(key)
            if row is None or row.status != "ok":
                lacking.setdefault(key, {})[column_key] = f"{row.status}: {row.reason}" if row else ""
    return lacking
