"""`vfz cache repair`: what verification finds, mended as far as that is possible without the encoder.

- A commit that is damaged in its index or its data is dropped: the index first, then the data, so that the shard is
  pending and the same `vfz extract` makes it again. Where it is a shard's first commit, later ones go too, the last one
  first: extraction makes the first commit anew with all columns, since the encoder runs once whatever its layers.
- What a stopped run left is removed: data that no index names, locks that no process holds, old temporary files.
- The catalogue is written anew.

What says what the cache is (`vfz.json`, contents, plans) cannot be made again, and without it nothing else can be
judged: then nothing is touched. Calibrations and golden frames have to be restored too.

Every step leaves a cache that is no worse than before, so a repair that is killed is run again. Data is removed only
when its writer is gone and, looked at after that, no index names it; so a writer at work is never disturbed. Nothing
outside the cache is removed; of a symbolic link the link is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import LOCK_SUFFIX, fsync_dir, lock_is_held, storage_errors, writer_is_gone
from vfz.pipeline.format.catalog import TABLE, write_catalog
from vfz.pipeline.format.commits import SHARDS, CommitKey, committed_paths, is_data_name
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.header import HEADER
from vfz.pipeline.maintenance.verify import verify_cache
from vfz.pipeline.maintenance.verify.leftovers import data_names, is_orphan, is_unfinished
from vfz.pipeline.maintenance.verify.report import Problem, VerifyReport
from vfz.pipeline.progress import Progress, counted
from vfz.pipeline.stores.base import remove_data


def repair_cache(path: str | Path, *, dry_run: bool = False, progress: Progress | None = None) -> RepairReport:
    """Verifies a cache in full and mends what can be mended.

    Args:
        path: the cache's folder.
        dry_run: say what would be done, and touch nothing.
        progress: told of every commit that is verified.

    Raises:
        CacheFormatError: when the folder is no cache at all, or one of its own folders is a symbolic link.
        StorageError: when the disk refuses to be written.
    """
    path = Path(path)
    found = verify_cache(path, progress=progress)
    dropped: set[CommitKey] = set()
    steps: list[RepairStep] = []
    if found.can_be_judged:
        dropped = _to_drop(path, found)
        steps = list(_steps(path, found, dropped))
    if not dry_run:
        for step in steps:
            _do(path, step)
    return RepairReport(
        cache=str(path),
        dry_run=dry_run,
        steps=tuple(steps),
        not_repaired=found.beyond_repair,
        notes=tuple(problem for problem in found.notes if problem.remedy in {"restore", "none"}),
        num_to_extract=len({shard for shard, _ in dropped}),
        seconds=found.seconds,
    )


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What `repair_cache` did, or would do.

    Attributes:
        cache: the folder.
        dry_run: nothing was touched.
        steps: in order.
        not_repaired: damage that is left, each with what to do about it.
        notes: what is no damage and was left alone.
        num_to_extract: shards that the same `vfz extract` has to make again, in part or whole.
        seconds: of looking and repairing.
    """

    cache: str
    dry_run: bool
    steps: tuple[RepairStep, ...]
    not_repaired: tuple[Problem, ...]
    notes: tuple[Problem, ...]
    num_to_extract: int
    seconds: float

    @property
    def result(self) -> str:
        """What came of it, and what to do next."""
        parts = []
        if self.not_repaired:
            touched = "" if self.steps else "; nothing was touched"
            parts.append(f"{counted(len(self.not_repaired), 'problem')} left that cannot be repaired{touched}")
        if self.steps:
            parts.append(f"{counted(len(self.steps), 'step')} {'would be ' if self.dry_run else ''}taken")
        if self.num_to_extract:
            parts.append(f"run the same vfz extract again: {counted(self.num_to_extract, 'shard')} to be made again")
        return "; ".join(parts) or "nothing to repair"


@dataclass(frozen=True, kw_only=True)
class RepairStep:
    """Something to be done.

    Attributes:
        action: `drop` a commit's index, `remove` a file or folder, or `rebuild` the catalogue.
        file: which, relative to the cache.
        reason: why.
    """

    action: str
    file: str
    reason: str


def _to_drop(path: Path, found: VerifyReport) -> set[CommitKey]:
    """The commits that are damaged, and those that add to a first one that is."""
    damaged = {problem.commit for problem in found.problems if problem.remedy == "extract" and problem.commit}
    return damaged | {commit for commit in committed_paths(path) if (commit[0], 0) in damaged}


def _steps(path: Path, found: VerifyReport, dropped: Collection[CommitKey]) -> Iterator[RepairStep]:
    """What there is to do, in an order in which any beginning of it leaves a good cache."""
    why = {problem.commit: problem for problem in reversed(found.problems) if problem.remedy == "extract"}
    indexes = {commit: f"{SHARDS}/{index.name}" for commit, index in committed_paths(path).items()}
    for commit in sorted(dropped, reverse=True):  # later ones first: they cannot stand without the first
        if commit in indexes:
            problem = why.get(commit)
            reason = f"{problem.file}: {problem.text}" if problem else "its first commit has to be made again"
            yield RepairStep(action="drop", file=indexes[commit], reason=reason)
    stray = {problem.file: problem.text for problem in found.problems if problem.remedy == "remove"}
    named = data_names(path, dropped=dropped)
    for data in sorted((path / SHARDS).iterdir()):
        name = f"{SHARDS}/{data.name}"
        if is_data_name(data.name) and data.name not in named and writer_is_gone(data):
            yield RepairStep(action="remove", file=name, reason=stray.pop(name, "data of a commit that is dropped"))
            for inside in [file for file in stray if file.startswith(f"{name}/")]:
                del stray[inside]
    for name, text in stray.items():
        yield RepairStep(action="remove", file=name, reason=text)
    rebuild = next((problem.text for problem in found.problems if problem.remedy == "rebuild"), "")
    if rebuild or dropped:
        yield RepairStep(action="rebuild", file=TABLE, reason=rebuild or "commits were dropped")


def _do(path: Path, step: RepairStep) -> None:
    """Takes one step, unless there is no more reason for it."""
    target = path / step.file
    if step.action == "rebuild":
        write_catalog(CacheFolder(path))
        return
    _check_inside(path, target)
    with storage_errors(target):
        if step.action == "drop":
            target.unlink(missing_ok=True)
        elif is_data_name(target.name):
            if is_orphan(target):
                remove_data(target)
        elif target.name.endswith(LOCK_SUFFIX):
            with suppress(FileNotFoundError):
                if not lock_is_held(target):
                    target.unlink()
        else:
            remove_data(target)
        fsync_dir(target.parent)


def _check_inside(path: Path, target: Path) -> None:
    """Refuses to touch what is not the cache's own: nobody could bring it back.

    Raises:
        CacheFormatError: names it.
    """
    folder, parent = path.resolve(), target.parent.resolve()
    inside = target.name not in {"", "..", HEADER} and (parent == folder or folder in parent.parents)
    if not inside and not (parent == folder.parent and is_unfinished(target.name, folder.name)):
        raise CacheFormatError(f"{target} is outside the cache {path}, or {HEADER} itself; repair does not remove it")
