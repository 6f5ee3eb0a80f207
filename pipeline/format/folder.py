"""A cache's folder as one object: its header, contents, plans, commits and calibrations, each file read once.

A file of a cache is written once and never changed, so what was read stays true. But a cache may grow at any time, by
this process or another: more contents, plans and commits. So `CacheFolder` lists the names each time it is asked, which
is cheap, and reads only files it has not read. Commits are the exception: the checksums of a large cache fill
gigabytes, so they are read when they are asked for and not kept.

It may be pickled, as its path. It may stand for a folder that is not there yet: such a cache has no commits or plans.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfz.pipeline.errors import UsageError
from vfz.pipeline.files import make_folder, write_checked_json_once
from vfz.pipeline.format.calibration import read_named_calibration
from vfz.pipeline.format.commits import ShardIndex, check_recipe, commit_shard, committed_paths, read_shard_index
from vfz.pipeline.format.drops import Drop, current_drops
from vfz.pipeline.format.golden import GoldenFrames, read_golden, write_golden_tokens
from vfz.pipeline.format.header import (
    CONTENTS,
    GOLDEN,
    HEADER,
    CacheHeader,
    Contents,
    contents_paths,
    read_contents_file,
    read_header,
)
from vfz.pipeline.format.labels import LabelSet, label_set_names, read_label_set
from vfz.pipeline.format.plan import PLAN, Plan, ShardSize, extend_plans, read_plans
from vfz.pipeline.lookup import FolderKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from vfz.pipeline.datasets.base import VideoRecord
    from vfz.pipeline.format.calibration import CalibratedColumn, Calibration
    from vfz.pipeline.format.commits import CommitKey
    from vfz.pipeline.format.ledger import VideoKey
    from vfz.pipeline.stores.metadata import Column

DEFAULT_FOLDER = Path("caches")
CACHES = FolderKind(kind="cache", marker=HEADER, under=DEFAULT_FOLDER, made_by="vfz extract")


class CacheFolder:
    """The files of one cache, all but its tokens.

    Args:
        path: the cache's folder, which need not be there.

    Attributes:
        path: as given.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._contents: tuple[int, Contents] | None = None
        self._plans: tuple[Plan, ...] = ()
        self._calibrations: dict[tuple[Column, str], Calibration] = {}

    def __reduce__(self) -> tuple[type[CacheFolder], tuple[Path]]:
        return CacheFolder, (self.path,)

    @cached_property
    def header(self) -> CacheHeader:
        """What `vfz.json` says; it is made with the cache.

        Raises:
            CacheFormatError: when the folder is no cache, or the header is of another version, damaged or edited.
        """
        return read_header(self.path)

    def contents(self) -> Contents:
        """What the cache holds now: the last `contents/<n>.json`, or what it was created with.

        Raises:
            CacheFormatError: when a file is missing or damaged.
        """
        return self._newest_contents()[1]

    def _newest_contents(self) -> tuple[int, Contents]:
        """The number of the last `contents/<n>.json`, 0 for `vfz.json`, and what it says."""
        paths = contents_paths(self.path)
        if self._contents is None or self._contents[0] != len(paths):
            found = read_contents_file(paths[-1], self.header.precision) if paths else self.header.contents
            self._contents = len(paths), found
        return self._contents

    def calibrations(self, contents: Contents) -> dict[str, Calibration]:
        """The calibration of every column of `contents` that has one, by column key.

        Raises:
            CacheFormatError: when a file is missing, damaged, or not the one that the contents name.
        """
        found, columns = {}, {column.key: column for column in contents.columns}
        for key, digest in contents.calibrations.items():
            if (columns[key], digest) not in self._calibrations:
                self._calibrations[columns[key], digest] = read_named_calibration(self.path, columns[key], digest)
            found[key] = self._calibrations[columns[key], digest]
        return found

    def golden(self, contents: Contents) -> GoldenFrames:
        """The golden frames, with the tokens of all columns.

        Raises:
            CacheFormatError: when a file is missing, not the one that the contents name, or holds something else.
        """
        return read_golden(self.path, contents)

    def plans(self) -> tuple[Plan, ...]:
        """All plans, oldest first.

        Raises:
            CacheFormatError: when a file is damaged, a number is left out, or two plans use one shard id.
        """
        self._plans = read_plans(self.path / PLAN, known=self._plans)
        return self._plans

    def drops(self) -> dict[str, Drop]:
        """The drop that counts for each video, by id; see `drops.current_drops`.

        Raises:
            CacheFormatError: when a file is missing or damaged.
        """
        return current_drops(self.path)

    def label_sets(self) -> tuple[str, ...]:
        """Names of the label sets, in alphabetical order. Cheap: none is opened."""
        return label_set_names(self.path)

    def label_set(self, name: str) -> LabelSet:
        """The latest label set of that name.

        Raises:
            UnknownNameError: when the cache has none of that name; says which it has.
            CacheFormatError: when it is damaged.
        """
        return read_label_set(self.path, name)

    def commit_paths(self) -> dict[CommitKey, Path]:
        """The index files by (shard, number), in that order. Cheap: no file is opened."""
        return committed_paths(self.path)

    def commits(self) -> tuple[ShardIndex, ...]:
        """Every commit, by shard and number. Reads all of them.

        Raises:
            CacheFormatError: when an index is damaged or belongs to another recipe.
        """
        return tuple(self.read_commit(path) for path in self.commit_paths().values())

    def read_commit(self, path: Path) -> ShardIndex:
        """The commit at one of the `commit_paths`.

        Raises:
            CacheFormatError: as `commits`.
        """
        index = read_shard_index(path)
        check_recipe(path, index, self.header.fingerprint)
        return index

    def extend_plans(
        self,
        records: Iterable[VideoRecord],
        *,
        shard_size_videos: ShardSize,
        views: Sequence[int] = (0,),
        again: Mapping[VideoKey, str] | None = None,
        preview: bool = False,
    ) -> tuple[Plan, ...]:
        """Plans every video that is in no plan yet, and those to be tried `again`; see `plan.extend_plans`.

        Args:
            records: the dataset's videos.
            shard_size_videos: videos per new shard, or what says how many.
            views: which crops.
            again: videos that are planned once more, each with the shard it was seen in.
            preview: write nothing; what it would be were no other process to plan anything.

        Returns:
            All plans, oldest first.
        """
        plans = extend_plans(
            self.path / PLAN,
            records,
            shard_size_videos=shard_size_videos,
            views=views,
            again=again,
            known=self.plans(),
            preview=preview,
        )
        if not preview:
            self._plans = plans
        return plans

    def commit(self, index: ShardIndex) -> bool:
        """Makes a shard part of the cache, unless another writer was first; see `commits.commit_shard`."""
        return commit_shard(self.path, index)

    def add_columns(self, columns: Sequence[CalibratedColumn], golden_arrays: Mapping[str, NDArray[Any]]) -> Contents:
        """Makes columns part of the cache, together with any other process that does the same.

        Args:
            columns: what to add; those that are there already are left alone.
            golden_arrays: their stored arrays of the golden frames, by key; empty where the cache has none.

        Returns:
            The contents after that.

        Raises:
            StorageError: when the disk is full or refuses to be written.
        """
        golden = write_golden_tokens(self.path, golden_arrays) if golden_arrays else {}
        wanted = {new.column.key for new in columns}
        number, current = self._newest_contents()
        while wanted - {column.key for column in current.columns}:
            path = make_folder(self.path / CONTENTS) / f"{number + 1}.json"
            write_checked_json_once(path, current.with_columns(columns, golden=golden).to_dict())
            number, current = self._newest_contents()  # another process's file may have won
        for name in golden.keys() - current.golden.keys():  # another process added the same columns first
            (self.path / GOLDEN / name).unlink()
        return current


def cache_name(name: str, encoder_name: str, fingerprint: str) -> str:
    """What a cache's folder is called: `<name>-<encoder>-<first 12 hexadecimal digits of the fingerprint>`."""
    return f"{name}-{encoder_name.partition('.')[0]}-{fingerprint[:12]}"


def find_cache(path: str | Path | None = None, *, under: Path = DEFAULT_FOLDER, how: str = "with --cache") -> Path:
    """The cache of that path or bare name, or the only one in the folder `under`; `how` says how to name one.

    Raises:
        UsageError: where none is named, when there is none or more than one; for what is neither text nor a path.
        UnknownNameError: when none is called so; with the nearest names.
    """
    if path is not None:
        return CACHES.find(path, under=under)
    found = caches_in(under)
    if not found:
        raise UsageError(f"no cache in {under}/; make one with vfz extract, or name one {how}")
    if len(found) > 1:
        raise UsageError(f"{under}/ holds {len(found)} caches ({', '.join(map(str, found))}); choose one {how}")
    return found[0]


def caches_in(folder: Path) -> list[Path]:
    """The caches in a folder, by name, without hidden ones: those are still being made."""
    return [folder / name for name in CACHES.names(folder)]


def find_caches(paths: Sequence[Path] | None) -> tuple[Path, ...]:
    """`paths`, or the only cache in the default folder.

    Raises:
        UsageError: as `find_cache`.
    """
    return tuple(find_cache(path) for path in paths or (None,))
