"""Which videos belong to which shard: `plan/<n>.json`, written once and never changed.

The first extraction plans every video of the dataset. Videos that appear later go to the next plan, in shards of their
own, so that nothing already written moves. Several processes may plan at the same time: the first to name the file
wins, the others read the winner's and plan only what it left out. Shard ids are unique over all plans.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import read_checked_json, storage_errors, text_of_name, write_checked_json_once
from vfz.pipeline.format.ledger import LedgerRow, VideoKey

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from vfz.pipeline.datasets.base import VideoRecord


PLAN = "plan"
_PLAN_NAME = re.compile(r"(0|[1-9][0-9]*)\.json")
_PLAN_KEYS = frozenset({"number", "shards"})
_VIDEO_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "view": (int,),
    "split": (str,),
    "label": (int, type(None)),
    "path": (str,),
    "folds": (dict,),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedVideo:
    """One (video, view) still to be extracted, or already extracted.

    Attributes:
        id, view: what it is known by.
        split, label, folds: as the dataset said when it was planned.
        path: its file, as it was given then; provenance.
    """

    id: str
    view: int
    split: str
    label: int | None
    path: str
    folds: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> VideoKey:
        """What it is found by: (video, view)."""
        return self.id, self.view

    def pending_row(self, shard: str, *, attempts: int) -> LedgerRow:
        """Its ledger row as long as that shard is not committed; `attempts` is what earlier shards counted."""
        return LedgerRow(
            id=self.id,
            view=self.view,
            split=self.split,
            label=self.label,
            status="pending",
            reason="",
            attempts=attempts,
            num_frames=0,
            frame_start=0,
            shard=shard,
            source_digest=None,
            source_path=self.path,
            duration_seconds=0.0,
            folds=self.folds,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One plan file.

    Attributes:
        number: 0 for the first; a later one adds to the earlier ones.
        shards: videos of each shard in the order they are stored, by shard id (five digits or more).
    """

    number: int
    shards: Mapping[str, tuple[PlannedVideo, ...]]

    def __post_init__(self) -> None:
        keys = [video.key for videos in self.shards.values() for video in videos]
        if len(keys) != len(set(keys)):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"plan {self.number} names video {twice[0]!r} (view {twice[1]}) twice")
        if not all(re.fullmatch(r"[0-9]{5,}", shard) for shard in self.shards) or not all(self.shards.values()):
            raise ValueError(f"plan {self.number}: shard ids have five digits, and no shard is empty")


ShardSize = int | Callable[[Sequence[PlannedVideo]], int]
"""How many videos make a shard: so many, or as many as is said of the videos that are to be planned."""


def make_plan(
    records: Iterable[VideoRecord],
    *,
    shard_size_videos: ShardSize,
    existing: Sequence[Plan] = (),
    views: Sequence[int] = (0,),
    again: Collection[VideoKey] = (),
) -> Plan | None:
    """Deals the videos that no plan names yet, and those to be tried again, to new shards, in the order of `records`.

    A shard holds one view only, so that reading one view opens no shard of another.

    Args:
        records: the dataset's videos, ids unique.
        shard_size_videos: videos per shard, or what says how many when it is given the videos; the last of a view may
            hold fewer.
        existing: all plans so far, as `read_plans` gives them.
        views: which crops of every video are planned; all videos in the first view come before the second.
        again: keys of videos that are planned once more although an earlier plan names them.

    Returns:
        The next plan, or None when every video is planned already.

    Raises:
        ValueError: when an id comes twice or `shard_size_videos` is not positive.
    """
    planned = {video.key for plan in existing for videos in plan.shards.values() for video in videos}
    new = [
        PlannedVideo(
            id=record.id,
            view=view,
            split=record.split,
            label=record.label,
            path=text_of_name(str(record.source)),
            folds=dict(record.folds),
        )
        for view in views
        for record in records
        if (record.id, view) not in planned or (record.id, view) in again
    ]
    if not new:
        return None
    size = shard_size_videos(new) if callable(shard_size_videos) else shard_size_videos
    if size < 1:
        raise ValueError(f"shard_size_videos is {size}; at least 1 is needed")
    first = 1 + max((int(shard) for plan in existing for shard in plan.shards), default=-1)
    dealt = [
        of_view[start : start + size]
        for view in views
        if (of_view := [video for video in new if video.view == view])
        for start in range(0, len(of_view), size)
    ]
    shards = {f"{first + n:05d}": tuple(videos) for n, videos in enumerate(dealt)}
    return Plan(number=1 + max((plan.number for plan in existing), default=-1), shards=shards)


def write_plan(folder: Path, plan: Plan) -> Plan:
    """Writes `<folder>/<number>.json` unless another process was first.

    Args:
        folder: the cache's `plan` folder; made when it is not there.
        plan: what to write.

    Returns:
        The plan that is on disk now: this one, or the winner's.

    Raises:
        StorageError: when the disk is full or refuses to be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{plan.number}.json"
    shards = {
        shard: [{name: getattr(video, name) for name in _VIDEO_TYPES} for video in videos]
        for shard, videos in plan.shards.items()
    }
    if write_checked_json_once(path, {"number": plan.number, "shards": shards}):
        return plan
    return read_plan(path)


def extend_plans(
    folder: Path,
    records: Iterable[VideoRecord],
    *,
    shard_size_videos: ShardSize,
    views: Sequence[int] = (0,),
    again: Mapping[VideoKey, str] | None = None,
    known: Sequence[Plan] = (),
    preview: bool = False,
) -> tuple[Plan, ...]:
    """Plans every video that is in no plan yet, together with any other process that does the same.

    Args:
        folder: the cache's `plan` folder.
        records: the dataset's videos.
        shard_size_videos: videos per new shard, or what says how many when it is given the videos to plan.
        views: which crops.
        again: videos to be tried again, each with the shard it was seen in: planned once more, in one new plan, unless
            a plan has named another shard for it since.
        known: plans that were read before, as for `read_plans`.
        preview: write nothing; the plans as they would be, were no other process to plan anything.

    Returns:
        All plans, oldest first; together they name every video of `records`.

    Raises:
        StorageError: when the disk is full or refuses to be written.
        CacheFormatError: when a plan file is damaged.
    """
    records = list(records)
    while True:
        existing = read_plans(folder, known=known)
        again_now: set[VideoKey] = set()
        if again:
            latest = {
                video.key: shard for plan in existing for shard, videos in plan.shards.items() for video in videos
            }
            again_now = {key for key, shard in again.items() if latest.get(key) == shard}
        plan = make_plan(records, shard_size_videos=shard_size_videos, existing=existing, views=views, again=again_now)
        if plan is None:
            return existing
        written = plan if preview else write_plan(folder, plan)
        if written is plan:
            return (*existing, plan)
        # Another process was first: the next round sees its plan.


def read_plans(folder: Path, *, known: Sequence[Plan] = ()) -> tuple[Plan, ...]:
    """All plans of a cache, oldest first; none when there is no such folder.

    Args:
        folder: the cache's `plan` folder.
        known: the first of its plans, where they were read before; they never change and are not read again.

    Raises:
        CacheFormatError: when a file is damaged, a number is left out, or two plans use one shard id.
    """
    if not folder.is_dir():
        return ()
    numbers = sorted(int(match[1]) for path in folder.iterdir() if (match := _PLAN_NAME.fullmatch(path.name)))
    if numbers != list(range(len(numbers))):
        raise CacheFormatError(f"{folder} holds the plans {numbers}; one is missing: restore it")
    known = known[: len(numbers)]  # of a cache that was removed and made again there may be fewer
    plans = (*known, *(read_plan(folder / f"{number}.json") for number in numbers[len(known) :]))
    shards = [shard for plan in plans for shard in plan.shards]
    if len(shards) != len(set(shards)):
        raise CacheFormatError(f"{folder}: two plans use the same shard id; the cache is damaged")
    return plans


def read_plan(path: Path) -> Plan:
    """One `plan/<n>.json`.

    Raises:
        CacheFormatError: when it is missing, damaged or was renamed.
    """
    content = read_checked_json(path, _PLAN_KEYS)
    try:
        shards = {shard: tuple(_read_video(values) for values in videos) for shard, videos in content["shards"].items()}
        plan = Plan(number=content["number"], shards=shards)
    except (TypeError, ValueError, AttributeError) as error:
        raise CacheFormatError(f"{path} is damaged: {error}") from error
    if path.name != f"{plan.number}.json":
        raise CacheFormatError(f"{path} holds plan {plan.number}: it was renamed; give it its name back")
    return plan


def _read_video(values: Mapping[str, Any]) -> PlannedVideo:
    if values.keys() != _VIDEO_TYPES.keys():
        raise ValueError(f"a planned video has the fields {sorted(values)}, expected {sorted(_VIDEO_TYPES)}")
    for name, types in _VIDEO_TYPES.items():
        if type(values[name]) not in types:
            raise ValueError(f"planned video {values['id']!r}: {name} is {values[name]!r}")
    return PlannedVideo(**values)
