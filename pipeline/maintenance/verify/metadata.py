"""The checked JSON files of a cache, all of them: each read and compared with its digest, and then with each other.

Opening a cache stops at the first file that is damaged; this goes on, and gives what can still be read together with
everything that is wrong. It reads no tokens. Cost: one read of a few kilobytes to megabytes per file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import sha256_file
from vfz.pipeline.format.calibration import CALIBRATION, file_name_of, read_calibration
from vfz.pipeline.format.commits import SHARDS, CommitKey, ShardIndex, committed_paths, read_shard_index
from vfz.pipeline.format.drops import DROPS, read_drop
from vfz.pipeline.format.header import CONTENTS, GOLDEN, HEADER, CacheHeader, Contents, read_contents_file, read_header
from vfz.pipeline.format.labels import LABELS, label_set_paths, read_label_file
from vfz.pipeline.format.plan import PLAN, Plan, read_plan
from vfz.pipeline.maintenance.verify.report import Problem, Remedy

FOLDERS = (CONTENTS, CALIBRATION, DROPS, GOLDEN, LABELS, PLAN, SHARDS)
LINK = "it is a symbolic link, which is not followed; what it points to is no part of the cache"
_NUMBERED = re.compile(r"(0|[1-9][0-9]*)\.json")
_ADVICE = re.compile("; restore (it|both|.*/)( from .*| or .*)?$")
_RESTORE = "restore it from a copy of the cache"
Found = TypeVar("Found")


def read_state(path: Path) -> tuple[CacheState, list[Problem]]:
    """Everything but tokens, and what is wrong with it.

    Raises:
        CacheFormatError: when the folder is no cache at all, or one of its own folders is a symbolic link.
    """
    for folder in FOLDERS:
        if (path / folder).is_symlink():
            raise CacheFormatError(
                f"{path / folder} is a symbolic link: nobody could say what of that belongs to the cache; put the "
                "folder itself in its place"
            )
    if not path.is_dir() or not ((path / HEADER).exists() or (path / SHARDS).is_dir()):
        read_header(path)  # says what is wrong
    state, problems = _StateReader(path).state()
    problems += _check_references(state)
    for plan in sorted({index.plan for index in state.indexes.values()}):
        if f"{PLAN}/{plan}.json" not in state.named:
            problems.append(Problem(file=f"{PLAN}/{plan}.json", text=f"it is gone, and commits name it; {_RESTORE}"))
    for commit, index in state.indexes.items():
        problems += [
            Problem(file=f"{SHARDS}/{index.name}", text=text, remedy=remedy, shard=commit[0], number=commit[1])
            for text, remedy in _check_index(state, index)
        ]
    return state, problems


@dataclass(frozen=True, kw_only=True)
class CacheState:
    """What can be read of a cache, damaged or not.

    Attributes:
        path: its folder.
        header, contents: None where they cannot be read.
        plans: those that can be read.
        indexes: commits that can be read, by shard and number.
        unreadable: commits that cannot.
        named: every file that belongs to the cache, relative to it, but for data and the catalogue.
    """

    path: Path
    header: CacheHeader | None
    contents: Contents | None
    plans: tuple[Plan, ...]
    indexes: Mapping[CommitKey, ShardIndex]
    unreadable: Collection[CommitKey]
    named: Collection[str]

    @property
    def num_pending(self) -> int:
        """Videos, once per view, whose latest shard has no first commit, or was closed before them."""
        shard_of = {
            video.key: shard for plan in self.plans for shard, videos in plan.shards.items() for video in videos
        }
        settled = {
            (row.key, shard)
            for (shard, number), index in self.indexes.items()
            for row in index.rows
            if not number and row.status != "pending"
        }
        return sum(planned not in settled for planned in shard_of.items())


class _StateReader:
    """Reads one file after the other and keeps what is wrong with them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._problems: list[Problem] = []
        self._named: list[str] = []

    def state(self) -> tuple[CacheState, list[Problem]]:
        """All that can be read."""
        # In this order: what a commit names was there before it, also in a cache that is being extended.
        commits = committed_paths(self._path)
        header = self._try(HEADER, lambda _: read_header(self._path))
        indexes = {
            commit: index
            for commit, path in commits.items()
            if (index := self._try(f"{SHARDS}/{path.name}", read_shard_index, commit)) is not None
        }
        contents = self._contents(header)
        plans = self._plans()
        if contents is not None:
            self._named += [f"{CALIBRATION}/{file_name_of(key)}" for key in contents.calibrations]
            self._named += [f"{GOLDEN}/{name}" for name in contents.golden]
        for name in self._numbered(DROPS, 1):
            self._try(name, read_drop)
        self._labels()
        state = CacheState(
            path=self._path,
            header=header,
            contents=contents,
            plans=plans,
            indexes=indexes,
            unreadable=commits.keys() - indexes.keys(),
            named=frozenset(self._named),
        )
        return state, self._problems

    def _try(self, name: str, read: Callable[[Path], Found], commit: CommitKey | None = None) -> Found | None:
        self._named.append(name)
        path = self._path / name
        try:
            _refuse_link(path)
            return read(path)
        except CacheFormatError as error:
            text = short(error, path)
            if commit is None:
                self._problems.append(Problem(file=name, text=f"{text}; {_RESTORE}"))
            else:
                shard, number = commit
                self._problems.append(Problem(file=name, text=text, remedy="extract", shard=shard, number=number))
            return None

    def _numbered(self, folder: str, first: int) -> Iterator[str]:
        """The files `<folder>/<n>.json`, oldest first; one that is left out is a problem."""
        found = self._path / folder
        numbers = sorted(
            int(match[1])
            for path in (found.iterdir() if found.is_dir() else ())
            if (match := _NUMBERED.fullmatch(path.name)) and int(match[1]) >= first
        )
        for number in range(first, numbers[-1] + 1 if numbers else first):
            name = f"{folder}/{number}.json"
            if number in numbers:
                yield name
            else:
                self._named.append(name)
                self._problems.append(Problem(file=name, text=f"it is gone: later ones are there; {_RESTORE}"))

    def _contents(self, header: CacheHeader | None) -> Contents | None:
        """What the cache holds now; None where that cannot be known."""
        read = [None if header is None else header.contents]
        for name in self._numbered(CONTENTS, 1):
            read.append(self._try(name, lambda path: read_contents_file(path, header.precision if header else "fp32")))
            before, after = read[-2:]
            if before and after and not set(before.columns) <= set(after.columns):
                self._problems.append(Problem(file=name, text=f"it leaves out columns of the one before; {_RESTORE}"))
        return read[-1] if header is not None else None

    def _plans(self) -> tuple[Plan, ...]:
        plans = [plan for name in self._numbered(PLAN, 0) if (plan := self._try(name, read_plan)) is not None]
        seen: set[str] = set()
        for plan in plans:
            if twice := seen & plan.shards.keys():
                text = f"it names shards that an earlier plan names: {', '.join(sorted(twice)[:3])}; {_RESTORE}"
                self._problems.append(Problem(file=f"{PLAN}/{plan.number}.json", text=text))
            seen |= plan.shards.keys()
        return tuple(plans)

    def _labels(self) -> None:
        """The files of label sets. The latest of a name is read by who asks for it; one that was replaced by nobody."""
        folder = self._path / LABELS
        sets = sorted(path for path in (folder.iterdir() if folder.is_dir() else ()) if not path.is_symlink())
        for paths in map(label_set_paths, sets):
            for path in paths:
                name, known = path.relative_to(self._path).as_posix(), len(self._problems)
                self._try(name, read_label_file)
                if len(self._problems) > known:
                    text = self._problems.pop().text.removesuffix(f"; {_RESTORE}")
                    again = f"restore it from a copy, or `vfz cache label --name {path.parent.name}` makes it again"
                    problem = Problem(file=name, text=f"{text}; {again}")
                    if path != paths[-1]:
                        text = f"{text}; a later one is there, so nobody reads it"
                        problem = Problem(file=name, text=text, severity="note", remedy="remove")
                    self._problems.append(problem)


def short(error: Exception, path: Path) -> str:
    """An error about a file, without its path and advice."""
    text = str(error).replace(f"{path}: ", "").replace(str(path), "it")
    return _ADVICE.sub("", text)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise CacheFormatError(LINK)


def _check_references(state: CacheState) -> Iterator[Problem]:
    """Calibrations and golden frames that the contents name."""
    if state.contents is None:
        return
    for key, digest in state.contents.calibrations.items():
        name = f"{CALIBRATION}/{file_name_of(key)}"
        if text := _check_calibration(state.path / name, key, digest):
            yield Problem(file=name, text=f"{text}; {_RESTORE}", array=key)
    for file, digest in state.contents.golden.items():
        if text := _check_digest(state.path / GOLDEN / file, digest):
            advice = "without it `vfz cache verify --encoder` cannot work, tokens are read as before"
            yield Problem(file=f"{GOLDEN}/{file}", text=f"{text}; {_RESTORE} ({advice})")


def _check_calibration(path: Path, key: str, digest: str) -> str:
    if path.is_symlink():
        return LINK
    try:
        if read_calibration(path).column != key:
            return "it is of another column"
    except CacheFormatError as error:
        return short(error, path)
    return _check_digest(path, digest)


def _check_digest(path: Path, digest: str) -> str:
    if path.is_symlink():
        return LINK
    try:
        return "" if sha256_file(path) == digest else "it was changed after it was written: its sha256 does not match"
    except FileNotFoundError:
        return "it is gone"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def _check_index(state: CacheState, index: ShardIndex) -> Iterator[tuple[str, Remedy]]:
    """What a commit contradicts in the rest of the cache, and what mends it."""
    if state.header is not None and index.fingerprint != state.header.fingerprint:
        ours, theirs = state.header.fingerprint[:12], index.fingerprint[:12]
        yield f"its recipe is {theirs}, the cache's {ours}: it was copied from another cache", "extract"
        return
    yield from _check_plan(state, index)
    if index.number:
        for text in _check_first(state, index):
            yield text, "extract"
    if state.contents is not None:
        yield from _check_columns(state, index, state.contents)


def _check_plan(state: CacheState, index: ShardIndex) -> Iterator[tuple[str, Remedy]]:
    plan = next((plan for plan in state.plans if index.shard in plan.shards), None)
    if plan is None:
        if any(plan.number == index.plan for plan in state.plans):
            yield f"plan {index.plan}, which it names, does not name its shard", "extract"
    elif plan.number != index.plan:
        yield f"it names plan {index.plan}, its shard is in plan {plan.number}", "extract"
    elif index.number == 0 and [row.key for row in index.rows] != [video.key for video in plan.shards[index.shard]]:
        yield f"its videos are not those that plan {plan.number} names, in that order", "extract"


def _check_first(state: CacheState, index: ShardIndex) -> Iterator[str]:
    """A later commit against the shard's first: it adds columns to the same frames."""
    if (index.shard, 0) in state.unreadable:
        return  # is to be made again, and this one with it
    first = state.indexes.get((index.shard, 0))
    if first is None:
        yield "it adds columns to a first commit that is gone"
        return
    ok = {row.key: row for row in first.rows if row.status == "ok"}
    if any(row.key not in ok for row in index.rows):
        yield "it names videos that are not ok in the first commit of the shard"
        return
    for row in index.rows:
        of_first = ok[row.key]
        if row.status == "ok" and (row.num_frames, row.source_digest) != (of_first.num_frames, of_first.source_digest):
            yield f"its frames of video {row.id!r} are not those of the first commit of the shard"


def _check_columns(state: CacheState, index: ShardIndex, contents: Contents) -> Iterator[tuple[str, Remedy]]:
    known = {column.key: column for column in contents.columns}
    if unknown := set(index.column_keys) - known.keys():
        yield f"it stores {sorted(unknown)}, which no contents name; restore {CONTENTS}/ from a copy", "restore"
        return
    mine = {(row.key, key) for row in index.rows if row.status == "ok" for key in index.column_keys}
    for (shard, number), other in state.indexes.items():
        if shard == index.shard and number < index.number:
            theirs = {(row.key, key) for row in other.rows if row.status == "ok" for key in other.column_keys}
            if twice := mine & theirs:
                (video, _), key = min(twice)
                yield f"commit {number} of the shard has {key} of video {video!r} already", "extract"
    columns = [known[key] for key in index.column_keys]
    if index.calibration_digest != contents.calibration_digest(columns):
        yield "its tokens were quantised with another calibration than the cache has", "extract"
    if index.data is None:
        return
    if index.data.store != contents.store:
        yield f"its data is a {index.data.store} store, the cache is a {contents.store} store", "extract"
    if set(index.data.columns) != set(columns):
        yield "its columns have other shapes, precision or compression than the contents say", "extract"
