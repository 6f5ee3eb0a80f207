"""Files of a cache's folder that nobody names, and what they are.

A run that was killed leaves data without an index, a lock that nobody holds and temporary files: they do no harm but
take space, and `vfz cache repair` removes them. A run that is at work has the same files; the lock tells the two apart,
and where there is none (temporary files live for milliseconds) an hour does. Whatever else lies there is not vfz's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from vfz.pipeline.engine.metrics import LOG, read_log
from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import LOCK_SUFFIX, lock_is_held, writer_is_gone
from vfz.pipeline.format.calibration import CALIBRATION
from vfz.pipeline.format.catalog import CATALOG_FILES
from vfz.pipeline.format.commits import SHARDS, CommitKey, committed_paths, is_data_name, read_shard_index
from vfz.pipeline.format.header import GOLDEN
from vfz.pipeline.format.labels import LABELS
from vfz.pipeline.maintenance.verify.metadata import FOLDERS, LINK, CacheState
from vfz.pipeline.maintenance.verify.report import Problem, Remedy

MIN_AGE_SECONDS = 3600.0
"""A file without a lock that is younger may belong to a process at work."""


def find_leftovers(state: CacheState) -> Iterator[Problem]:
    """Everything in a cache's folder that no file of the cache names.

    Data inside a commit's own folder is not looked at.

    Args:
        state: as `read_state` gave it.
    """
    named = {*state.named, *CATALOG_FILES}
    data = data_names(state.path)
    unknown = () if state.contents is not None else (CALIBRATION, GOLDEN)  # the contents would name what is in them
    for path in _entries(state.path):
        name = path.relative_to(state.path).as_posix()
        if name in named or name in FOLDERS or path.parent.name in unknown or _is_label_set(path, state.path):
            continue
        if name == LOG:
            yield from _log_problems(state.path)
            continue
        if path.parent.name == SHARDS and path.name in data:
            continue
        try:
            problem = _problem(path, name)
        except FileNotFoundError:
            continue  # its writer has just finished
        if problem is not None:
            yield problem
    folder = state.path.resolve()
    for path in sorted(folder.parent.glob(".*.tmp")):
        if is_unfinished(path.name, folder.name):
            yield _temporary(path, f"../{path.name}")


def is_unfinished(name: str, cache_name: str) -> bool:
    """Whether a folder beside a cache has the name of one in which a process was making this cache."""
    return re.fullmatch(rf"\.{re.escape(cache_name)}\.[0-9a-f]+\.tmp", name) is not None


def _log_problems(cache_folder: Path) -> Iterator[Problem]:
    """What is wrong with the log of extraction, which no reader of tokens needs."""
    _, damaged = read_log(cache_folder)
    if damaged:
        lines = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
        text = f"the log of extraction is damaged (line {lines}); no tokens are affected"
        yield Problem(file=LOG, text=text, remedy="remove")


def data_names(cache_folder: Path, *, dropped: Collection[CommitKey] = (), shard: str | None = None) -> set[str]:
    """Names of the data under `shards/` that commits name; damaged indexes are passed over.

    Args:
        cache_folder: the cache.
        dropped: commits that are left out.
        shard: the only one that is looked at; None for all.
    """
    names = set()
    for commit, path in committed_paths(cache_folder).items():
        if commit not in dropped and shard in {None, commit[0]}:
            try:
                data = None if path.is_symlink() else read_shard_index(path).data
            except CacheFormatError:
                continue
            if data is not None:
                names.add(data.name)
    return names


def is_orphan(data: Path) -> bool:
    """Whether nobody writes data under `shards/` any more and no commit names it.

    In this order: a writer that has ended since the names were last looked at has committed before it ended.
    """
    return writer_is_gone(data) and data.name not in data_names(data.parent.parent, shard=data.name.partition("-")[0])


def _entries(cache_folder: Path) -> Iterator[Path]:
    """What lies in the cache: the folders it is made of entry by entry, anything else as a whole."""
    for path in sorted(cache_folder.iterdir()):
        yield path
        if path.name in FOLDERS and path.is_dir():
            for entry in sorted(path.iterdir()):
                yield entry
                if _is_label_set(entry, cache_folder):
                    yield from sorted(entry.iterdir())


def _is_label_set(path: Path, cache_folder: Path) -> bool:
    return path.parent == cache_folder / LABELS and path.is_dir() and not path.is_symlink()


def _problem(path: Path, name: str) -> Problem | None:
    """What an entry that nobody names is.

    Raises:
        FileNotFoundError: when it is gone meanwhile.
    """
    is_temporary, is_lock = path.name.startswith(".") and path.name.endswith(".tmp"), path.name.endswith(LOCK_SUFFIX)
    if path.is_symlink():
        is_own = is_temporary or (path.parent.name == SHARDS and (is_lock or is_data_name(path.name)))
        return _note(name, LINK, "remove" if is_own else "none")
    if is_temporary:
        return _temporary(path, name)
    if path.parent.name == SHARDS:
        if is_lock:
            if lock_is_held(path):
                return None  # told of with its data
            return _note(name, "a lock that no process holds", "remove")
        if is_data_name(path.name):
            return _data(path, name, path.name.partition("-")[0])
    if path.parent.name == CALIBRATION and path.suffix == ".json":
        return _aged(path, name, "the calibration of a column that no contents name: left by a run that was stopped")
    if path.parent.name == GOLDEN and path.suffix == ".npz":
        return _aged(path, name, "golden tokens that no contents name: left by a run that was stopped")
    return _note(name, "nothing of vfz's has this name; move it away if you do not know it", "none")


def _data(path: Path, name: str, shard: str) -> Problem | None:
    if not writer_is_gone(path):
        return _note(name, "data that is being written now by a living process", "none", shard)
    if not is_orphan(path) or not path.exists():
        return None  # committed or given up meanwhile
    return _note(name, "data that no readable index names, and whose writer is gone", "remove", shard)


def _temporary(path: Path, name: str) -> Problem:
    return _aged(path, name, "a temporary file")


def _aged(path: Path, name: str, what: str) -> Problem:
    age_seconds = time.time() - path.lstat().st_mtime
    if age_seconds < -MIN_AGE_SECONDS:
        text = f"{what}; its time is in the future, so nobody knows its age: touch it, and look again in an hour"
        return _note(name, text, "none")
    if age_seconds < MIN_AGE_SECONDS:
        return _note(name, f"{what}; younger than an hour, so its writer may be at work", "none")
    return _note(name, f"{what}; {age_seconds / 3600:.0f} hours old", "remove")


def _note(name: str, text: str, remedy: Remedy, shard: str | None = None) -> Problem:
    return Problem(file=name, text=text, severity="note", remedy=remedy, shard=shard)
