"""Datasets with several official divisions into train and test: one record a video, from its line in each fold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from vfz.pipeline.datasets.annotations import VideoFiles
from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.datasets.text import Place
from vfz.pipeline.errors import DatasetError

UNUSED = "unused"
"""What a fold says of a video it leaves out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldEntry:
    """What one line of one fold says of a video.

    Attributes:
        place: the line.
        fold, split: e.g. `fold1`, `train`.
        class_name, file_name: the two parts of its path.
        label: of the class.
    """

    place: Place
    fold: str
    split: str
    class_name: str
    file_name: str
    label: int


def records_of_folds(entries: Iterable[FoldEntry], files: VideoFiles) -> list[tuple[Place, VideoRecord]]:
    """The videos that the folds name, as `<class>/<stem>`.

    The split is that of the first fold there is, `unused` for a video that it leaves out; `folds` has the others too,
    without those that leave the video out.

    Args:
        entries: all lines of all folds.
        files: knows videos by `<class>/<stem>`.

    Raises:
        DatasetError: a fold names a video twice.
    """
    lines: dict[str, dict[str, FoldEntry]] = {}
    for entry in entries:
        video_id = f"{entry.class_name}/{PurePosixPath(entry.file_name).stem}"
        of_video = lines.setdefault(video_id, {})
        if entry.fold in of_video:
            before = of_video[entry.fold].place
            raise DatasetError(f"{entry.place}: {entry.fold} names {video_id!r} before, in {before}; remove one")
        of_video[entry.fold] = entry
    first_fold = min((fold for of_video in lines.values() for fold in of_video), default="")
    records = []
    for video_id, of_video in lines.items():
        any_entry = next(iter(of_video.values()))
        record = VideoRecord(
            id=video_id,
            source=files.source(video_id, expected=f"{any_entry.class_name}/{any_entry.file_name}"),
            split=of_video[first_fold].split if first_fold in of_video else UNUSED,
            label=any_entry.label,
            folds={fold: entry.split for fold, entry in of_video.items() if entry.split != UNUSED},
        )
        records.append((any_entry.place, record))
    return records
