"""`vfz cache drop`: videos are taken out of what readers see, and brought back.

    drop_videos(DropOptions(cache=path, video=("train/walk/0007",), why="the subject withdrew"))

Nothing of the cache is changed: a record is added (`format/drops.py`), and the catalogue is made anew. The ledger then
says of these videos `missing`, with who dropped them, when and why, so that counts, `vfz cache info` and reports show
it. Extraction leaves them out. Their tokens stay in their shards on the disk.

Cost: writing the catalogue, 20 s for a quarter of a million videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfz.pipeline.datasets.text import read_lines
from vfz.pipeline.errors import DatasetError, UsageError
from vfz.pipeline.format.catalog import open_catalog, write_catalog
from vfz.pipeline.format.drops import Drop, current_drops, write_drop
from vfz.pipeline.format.folder import CacheFolder, find_cache
from vfz.pipeline.format.ledger import LedgerRows, VideoLookup
from vfz.pipeline.maintenance.matching import VideoMatcher

if TYPE_CHECKING:
    import pyarrow as pa

    from vfz.pipeline.maintenance.options import DropOptions


def drop_videos(options: DropOptions) -> DropReport:
    """Takes videos out of a cache, or brings them back.

    Raises:
        UnknownNameError: a video is not in the cache; nothing is dropped.
        UsageError: the file of videos cannot be read, or names none.
        DatasetError: a name fits several videos.
        CacheFormatError: the cache is damaged.
        StorageError: the disk is full or refuses to be written.
    """
    path = find_cache(options.cache, how="as CACHE")
    cache = CacheFolder(path)
    table = open_catalog(cache).table
    meant = _find(table, _named(options), where=f"{path}")
    before = {key for key, drop in current_drops(path).items() if drop.kind == "dropped"}
    chosen = [key for key in meant if (key in before) == options.undo]
    drop = None
    if chosen:
        drop = Drop.now("restored" if options.undo else "dropped", _last_plans(cache, chosen), why=options.why or "")
    if drop is not None and not options.dry_run:
        write_drop(path, drop)
        table = write_catalog(cache).table
    rows = LedgerRows(table)
    return DropReport(
        cache=str(path),
        videos=tuple(chosen),
        unchanged=tuple(key for key in meant if key not in set(chosen)),
        reason=drop.reason if drop is not None and not options.undo else "",
        num_ok=len({row.id for row in rows if row.status == "ok"}),
        num_videos=len({row.id for row in rows}),
    )


@dataclass(frozen=True, kw_only=True)
class DropReport:
    """What `drop_videos` did, or would do.

    Attributes:
        cache: the folder.
        videos: ids of those that were dropped, or brought back.
        unchanged: of those that were so before.
        reason: what the ledger says of them; empty where they were brought back.
        num_ok, num_videos: of the cache, now.
    """

    cache: str
    videos: tuple[str, ...]
    unchanged: tuple[str, ...]
    reason: str
    num_ok: int
    num_videos: int


def _named(options: DropOptions) -> list[tuple[str, str]]:
    """What was named, each with where."""
    named = [("--video", text) for text in options.video or ()]
    if options.videos is not None:
        try:
            named += [(str(place), line) for place, line in read_lines(options.videos)]
        except OSError as error:
            raise UsageError(f"cannot read --videos {options.videos}: {error.strerror}; give a text file") from None
        except DatasetError as error:
            raise UsageError(f"--videos {error}") from None
    if not named:
        raise UsageError(f"--videos {options.videos} names no video; write one a line")
    return named


def _find(table: pa.Table, named: Sequence[tuple[str, str]], *, where: str) -> list[str]:
    """The ids that are meant, each once, in the order they are named."""
    rows = list({row.id: row for row in LedgerRows(table)}.values())
    matcher = VideoMatcher(rows)
    found: dict[str, None] = {}
    for place, text in named:
        video_id = matcher.find(text, digest=None, place=place)
        if video_id is None:
            VideoLookup(table, where=where).position(text, 0)  # says which are like it
            raise UsageError(f"video {text!r} is not in {where}")
        found[video_id] = None
    return list(found)


def _last_plans(cache: CacheFolder, ids: Sequence[str]) -> dict[str, int]:
    """The last plan that names each video."""
    wanted, last = set(ids), {}
    for plan in cache.plans():
        for videos in plan.shards.values():
            last.update({video.id: plan.number for video in videos if video.id in wanted})
    return last
