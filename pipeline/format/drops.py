"""Videos that were taken out of a cache: `drops/<n>.json`, written once, numbered, never changed.

Plans, commits and tokens stay as they are. A drop says of a video up to which plan nobody is to read what is there:
its rows of that plan and of earlier ones count as `missing`, with the reason, who said so and when. A later plan that
names the video is not hidden, so a video whose file was replaced comes back when it has been made again.

    dropped     someone took it out; `restored` brings it back, as it was
    replaced    its file is another one now; extraction makes it again, at the latest when it is next run

Several processes may write at the same time: each gets a number of its own, and as a drop says up to which plan, one
that was decided on an older state of the cache hides nothing newer. The records are part of what a cache is: without
one a video would come back, so a number that is left out is damage.
"""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import content_errors, make_folder, read_checked_json, write_checked_json_once

if TYPE_CHECKING:
    from pathlib import Path

    from vfz.pipeline.format.ledger import LedgerRow

DROPS = "drops"
DropKind = Literal["dropped", "replaced", "restored"]
_KINDS: tuple[DropKind, ...] = get_args(DropKind)
_KEYS = frozenset({"kind", "videos", "who", "when", "why"})
_NAME = re.compile(r"([1-9][0-9]*)\.json")


@dataclass(frozen=True, kw_only=True)
class Drop:
    """One `drops/<n>.json`.

    Attributes:
        kind: see above.
        videos: number of the last plan that is hidden, by id; of `restored` it is not looked at.
        who: `user@host`.
        when: the time, ISO 8601 in UTC.
        why: one line; may be empty.
    """

    kind: DropKind
    videos: Mapping[str, int]
    who: str
    when: str
    why: str

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"the kind {self.kind!r} is none of {', '.join(_KINDS)}")
        if any(type(key) is not str or type(plan) is not int or plan < 0 for key, plan in self.videos.items()):
            raise TypeError("videos are numbers of plans by id")
        if any(type(text) is not str for text in (self.who, self.when, self.why)):
            raise TypeError("who, when and why are texts")

    @property
    def reason(self) -> str:
        """What a row says of it, one line."""
        why = f": {self.why}" if self.why else ""
        return f"{self.kind} by {self.who} on {self.when[:10]}{why}"

    def hides(self, row: LedgerRow, plan: int) -> bool:
        """Whether a row of that plan is hidden."""
        return plan <= self.videos.get(row.id, -1)

    def hidden(self, row: LedgerRow) -> LedgerRow:
        """The row as readers see it; its digest and path stay, so that another file is known as such."""
        return replace(row, status="missing", reason=self.reason, num_frames=0, frame_start=0, duration_seconds=0.0)

    @classmethod
    def now(cls, kind: DropKind, videos: Mapping[str, int], *, why: str) -> Drop:
        """A record of this moment, this user and this machine."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError, ImportError):  # a user id without a name, as containers have
            user = "unknown"
        when = datetime.now(UTC).isoformat(timespec="seconds")
        why = " ".join(why.split())
        return cls(kind=kind, videos=videos, who=f"{user}@{platform.node() or 'unknown'}", when=when, why=why)


def drop_paths(cache_folder: Path) -> list[Path]:
    """The files `drops/<n>.json`, oldest first. Cheap: none is opened.

    Raises:
        CacheFormatError: when a number is left out.
    """
    folder = cache_folder / DROPS
    if not folder.is_dir():
        return []
    found = {int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    if sorted(found) != list(range(1, len(found) + 1)):
        raise CacheFormatError(f"{folder} holds the numbers {sorted(found)}; one is missing: restore it")
    return [found[number] for number in sorted(found)]


def read_drop(path: Path) -> Drop:
    """One `drops/<n>.json`.

    Raises:
        CacheFormatError: when it is missing or damaged.
    """
    values: dict[str, Any] = read_checked_json(path, _KEYS)
    with content_errors(path):
        return Drop(**values)


def current_drops(cache_folder: Path) -> dict[str, Drop]:
    """The drop that counts for each video, by id; videos that are in no drop, or restored, are left out.

    `restored` takes back what was `dropped`, not that a file was replaced.

    Raises:
        CacheFormatError: when a file is missing or damaged.
    """
    dropped: dict[str, Drop] = {}
    replaced: dict[str, Drop] = {}
    for path in drop_paths(cache_folder):
        drop = read_drop(path)
        for video_id in drop.videos:
            if drop.kind == "replaced":
                replaced[video_id] = drop
                dropped.pop(video_id, None)
            elif drop.kind == "dropped":
                dropped[video_id] = drop
            else:
                dropped.pop(video_id, None)
    # One that was decided on an older state of the cache brings nothing back.
    for video_id in dropped.keys() & replaced.keys():
        plan = max(drop[video_id].videos[video_id] for drop in (dropped, replaced))
        dropped[video_id] = replace(dropped[video_id], videos={video_id: plan})
    return replaced | dropped


def write_drop(cache_folder: Path, drop: Drop) -> Path:
    """Adds a record; from then on readers see it.

    Raises:
        StorageError: when the disk is full or refuses to be written.
    """
    folder = make_folder(cache_folder / DROPS)
    content = {name: getattr(drop, name) for name in _KEYS} | {"videos": dict(drop.videos)}
    while True:
        path = folder / f"{1 + len(drop_paths(cache_folder))}.json"
        if write_checked_json_once(path, content):
            return path
        # Another process took that number.


def copy_drops(source: Path, target: Path) -> None:
    """Takes over the records of another cache with the same plans; those that are there stay.

    Raises:
        CacheFormatError: when a file cannot be read or is damaged.
        StorageError: when the disk is full or refuses to be written.
    """
    there = [read_drop(path) for path in drop_paths(target)]
    for drop in map(read_drop, drop_paths(source)):
        if drop not in there:
            write_drop(target, drop)
