"""Which part of a cache a conversion takes: some layers, parts, splits and videos.

These are contents of a cache and not its identity, so a part has the fingerprint of the whole. Its plans and commits
are those of the whole with the other videos and columns left out, under the same numbers. Only where the first commit
of a shard has none of the columns (the layer came later) does the part begin with the commits that brought them, put
together: a first commit says for every video whether it is there.

What was asked for stands in the provenance of the new cache, layers by name. The same request again goes on, also after
the source has grown. Another request for the same folder is refused: two parts in one would be neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfz.pipeline.datasets.text import read_lines
from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.pipeline.files import canonical_json, sha256_hex
from vfz.pipeline.format.plan import Plan
from vfz.pipeline.recipe import counted_layers

if TYPE_CHECKING:
    from collections.abc import Collection

    from vfz.pipeline.format.commits import ShardIndex
    from vfz.pipeline.format.ledger import LedgerRow, VideoKey
    from vfz.pipeline.maintenance.convert_source import SourceCache
    from vfz.pipeline.maintenance.options import ConvertOptions
    from vfz.pipeline.stores import Column


def select(source: SourceCache, options: ConvertOptions) -> Selection:
    """What the options name of a cache.

    Raises:
        UsageError: a layer, part, split or video that it does not have, each with those it has; or nothing is left.
        DatasetError: a file of ids that is no text.
    """
    columns, videos = source.contents.columns, [video for plan in source.plans for video in _videos_of(plan)]
    layers = options.layers and counted_layers(options.layers, list(source.contents.layers))
    splits = {video.split for video in videos}
    _check_names("layer", layers, {column.layer for column in columns}, source.path)
    _check_names("split", options.splits, splits, source.path)
    ids = None if options.videos is None else frozenset(_ids(options.videos, {video.id for video in videos}, source))
    found = Selection(layers=layers, parts=options.parts, splits=options.splits, videos=ids)
    for part in options.parts or ():
        of_layers = [column for column in columns if layers is None or column.layer in layers]
        if part not in (there := {column.part for column in of_layers}):
            raise UsageError(
                f"--parts {part}: {source.path} has only {', '.join(sorted(there))} tokens of layers "
                f"{', '.join(dict.fromkeys(column.layer for column in of_layers))}; leave it out"
            )
    if not any(found.has_video(video.id, video.split) for video in videos):
        raise UsageError(f"none of the --videos is in the --splits {', '.join(options.splits or ())}; name others")
    return found


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A part of a cache; None stands for all.

    Attributes:
        layers, parts, splits: by name.
        videos: ids, in every view.
    """

    layers: tuple[str, ...] | None = None
    parts: tuple[str, ...] | None = None
    splits: tuple[str, ...] | None = None
    videos: frozenset[str] | None = None

    def has_video(self, video_id: str, split: str) -> bool:
        """Whether a video belongs to the part."""
        return (self.splits is None or split in self.splits) and (self.videos is None or video_id in self.videos)

    def columns(self, columns: Sequence[Column]) -> tuple[Column, ...]:
        """Those that belong to the part."""
        return tuple(
            column
            for column in columns
            if (self.layers is None or column.layer in self.layers)
            and (self.parts is None or column.part in self.parts)
        )

    def plans(self, plans: Sequence[Plan]) -> tuple[Plan, ...]:
        """The same plans and shards under the same numbers, without the other videos and without empty shards."""
        return tuple(
            replace(
                plan,
                shards={
                    shard: kept
                    for shard, videos in plan.shards.items()
                    if (kept := tuple(video for video in videos if self.has_video(video.id, video.split)))
                },
            )
            for plan in plans
        )

    def commits(self, source: SourceCache, known: set[str]) -> Iterator[SelectedCommit]:
        """What there is to commit, by shard and number; nothing of columns that are not `known` to the new cache."""
        wanted = {column.key for column in self.columns(source.contents.columns)}
        of_shard: dict[str, list[ShardIndex]] = {}
        for index in source.commits:
            of_shard.setdefault(index.shard, []).append(index)
        for commits in of_shard.values():
            for commit in self._of_shard(commits, wanted):
                if known >= set(commit.column_keys):
                    yield commit

    def to_dict(self) -> dict[str, str]:
        """As the provenance of the new cache has it: what was asked for, by option; empty for all of a cache."""
        chosen = {"layers": self.layers, "parts": self.parts, "splits": self.splits}
        values = {name: ",".join(sorted(names)) for name, names in chosen.items() if names is not None}
        if self.videos is not None:
            values["videos"] = f"{len(self.videos)} with sha256 {sha256_hex(canonical_json(sorted(self.videos)))[:16]}"
        return values

    def _of_shard(self, commits: Sequence[ShardIndex], wanted: set[str]) -> Iterator[SelectedCommit]:
        first = commits[0]
        rows = self._rows(first)
        if all(row.status == "pending" for row in rows):
            return  # none of its videos, or a later plan has them
        if wanted & set(first.column_keys):
            for index in commits:
                keys = tuple(key for key in index.column_keys if key in wanted)
                if keys and (of_index := self._rows(index)):
                    yield SelectedCommit.of(index, keys, of_index)
        elif any(row.status == "ok" for row in rows):
            yield from self._beginning_later(
                rows, [index for index in commits if wanted & set(index.column_keys)], wanted
            )
        else:
            yield SelectedCommit.of(first, tuple(sorted(wanted)), rows)

    def _beginning_later(
        self, rows: Sequence[LedgerRow], later: Sequence[ShardIndex], wanted: set[str]
    ) -> Iterator[SelectedCommit]:
        """The commits of a shard whose first one has none of the columns."""
        if not later:
            return
        keys = tuple(key for key in later[0].column_keys if key in wanted)
        outcomes: dict[VideoKey, tuple[LedgerRow, ShardIndex]] = {}
        for index in later:
            for row in index.rows if set(keys) <= set(index.column_keys) else ():
                if row.key not in outcomes or outcomes[row.key][0].status != "ok":
                    outcomes[row.key] = row, index
        if any(row.status == "ok" and row.key not in outcomes for row in rows):
            return  # some of its videos are still to come, and a first commit is about all of them
        begun = [outcomes[row.key][0] if row.status == "ok" else row for row in rows]
        origins = {key: index for key, (row, index) in outcomes.items() if row.status == "ok"}
        retried = frozenset(key for key, index in origins.items() if index is not later[0])
        yield SelectedCommit(
            index=later[0], number=0, column_keys=keys, rows=tuple(begun), origins=origins, retried=retried
        )
        ok = {row.key for row in begun if row.status == "ok"}
        for index in later[1:]:
            more = tuple(key for key in index.column_keys if key in wanted and key not in keys)
            of_index = tuple(row for row in self._rows(index) if row.key in ok)
            if more and of_index:
                yield SelectedCommit.of(index, more, of_index)

    def _rows(self, index: ShardIndex) -> tuple[LedgerRow, ...]:
        return tuple(row for row in index.rows if self.has_video(row.id, row.split))


@dataclass(frozen=True, kw_only=True)
class SelectedCommit:
    """One commit of the new cache, made of one or several of the source's.

    Attributes:
        index: the source's commit, of which shard and plan are taken.
        number: of the new commit in its shard.
        column_keys: what it is about.
        rows: of its videos, as in the source.
        origins: which of the source's commits has the tokens of a video that is ok.
        retried: of a commit made of several, videos that a later one than `index` has tokens of.
    """

    index: ShardIndex
    number: int
    column_keys: tuple[str, ...]
    rows: tuple[LedgerRow, ...]
    origins: Mapping[VideoKey, ShardIndex]
    retried: frozenset[VideoKey] = frozenset()

    @classmethod
    def of(cls, index: ShardIndex, column_keys: tuple[str, ...], rows: tuple[LedgerRow, ...]) -> SelectedCommit:
        """Some columns and videos of one commit."""
        origins = {row.key: index for row in rows if row.status == "ok"}
        return cls(index=index, number=index.number, column_keys=column_keys, rows=rows, origins=origins)

    @property
    def shard(self) -> str:
        """Its shard, the same in both caches."""
        return self.index.shard


def _videos_of(plan: Plan) -> Iterator[Any]:
    for videos in plan.shards.values():
        yield from videos


def _check_names(kind: str, names: Sequence[str] | None, known: Collection[str], path: Path) -> None:
    if names is not None and not names:
        raise UsageError(f"--{kind}s names none; give some of {', '.join(sorted(known))}, or leave it out")
    for name in names or ():
        if name not in known:
            raise UsageError(f"--{kind}s {name!r} is not in {path}; it has the {kind}s {', '.join(sorted(known))}")


def _ids(items: Sequence[str], known: Collection[str], source: SourceCache) -> Iterator[str]:
    """The ids that are named, or that stand in a file that is named, one a line.

    Raises:
        UsageError: one that no plan of the cache has.
    """
    for item in items:
        lines = [(item, "")]
        if item not in known and "\0" not in item and Path(item).is_file():
            lines = [(line, f" ({place})") for place, line in read_lines(Path(item), as_written=True)]
            if not lines:
                raise UsageError(f"--videos {item} is a file without an id; write one on each line")
        for video_id, where in lines:
            if video_id not in known:
                hint = f"(--videos takes ids of {source.path}, or a file with one on each line)"
                raise UnknownNameError(f"video{where}", video_id, known, hint=hint)
            yield video_id
