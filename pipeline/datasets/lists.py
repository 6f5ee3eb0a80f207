"""Anyone's videos in lists of paths: `list`, as V-JEPA has it, and `csv`, with named columns.

    list    lines `<path> <label>`: the label is the number behind the last space; a path with spaces may be quoted
    csv     a header, then rows: `path`, and where wanted `label` (a number or a class name), `split`, `id`

`--root` is such a file, or a folder with train.csv, val.csv or test.csv (`list`: also .txt). A file's stem is the split
of its videos unless a `split` column says otherwise; the path as it is written is their id unless an `id` column does.
Paths are relative to the file's folder, and in these two formats they may be absolute. A label that is a number counts
from 0, and classes are then called by their numbers; class names are sorted. A CSV's label may be empty: none.

Cost: reading the files, and looking for videos until one is there.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vfz.pipeline.datasets.annotations import (
    AnnotatedDataset,
    Listing,
    Place,
    check_id,
    check_number,
    check_path,
    number_classes,
    read_csv,
    read_lines,
)
from vfz.pipeline.datasets.base import VideoRecord, safe_name
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.errors import DatasetError

_SPLITS = ("train", "val", "test")
_QUOTED = re.compile(r'"(?P<inside>(?:[^"]|"")*)"')


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedVideo:
    """What one line says; `label` as it is written, None where there is none."""

    place: Place
    id: str
    path: str
    split: str
    label: str | None


class _PathLists(AnnotatedDataset):
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.root = root if root.is_dir() else root.parent

    def read_annotations(self, root: Path) -> Listing:
        """See `AnnotatedDataset.read_annotations`."""
        if root.is_dir():
            names = [f"{split}{suffix}" for split in _SPLITS for suffix in self.suffixes]
            paths = [path for name in names if (path := root / name).is_file()]
            if not paths:
                raise self.nothing_there(root, f"no {', '.join(names)}")
        else:
            paths = [root]
        videos = [video for path in paths for video in self.read_list(path)]
        class_names, labels = number_classes((video.place, video.label) for video in videos)
        folder = root if root.is_dir() else root.parent
        records = [
            (
                video.place,
                VideoRecord(
                    id=video.id,
                    source=VideoSource(path=folder / video.path),
                    split=video.split,
                    label=None if video.label is None else labels[video.label],
                ),
            )
            for video in videos
        ]
        if not any(record.source.exists() for _, record in records):
            tried = f"; the first is looked for at {records[0][1].source}" if records else ""
            raise self.nothing_there(root, f"none of the {len(records)} videos that are listed{tried}")
        return Listing(
            name=safe_name(folder) if root.is_dir() else f"{safe_name(folder)}-{safe_name(root.with_suffix(''))}",
            class_names=class_names,
            records=records,
        )

    @abstractmethod
    def read_list(self, path: Path) -> Iterator[ListedVideo]:
        """The videos of one file."""


class ListDataset(_PathLists):
    """Lines `<path> <label>`."""

    layout = "a file of lines `<path> <label>`, or a folder with train.csv, val.csv or test.csv (or .txt) of that kind"
    suffixes = (".csv", ".txt")

    def read_list(self, path: Path) -> Iterator[ListedVideo]:
        """See `_PathLists.read_list`."""
        for place, line in read_lines(path):
            video, _, label = line.rpartition(" ")
            check_number(label, place, what="label")
            video = video.rstrip()
            if quoted := _QUOTED.fullmatch(video):
                video = quoted["inside"].replace('""', '"')
            check_path(video, place)
            yield ListedVideo(place=place, id=video, path=video, split=path.stem, label=str(int(label)))


class CsvDataset(_PathLists):
    """Named columns."""

    layout = "a CSV file with the column path and, where wanted, label, split, id; or a folder with train.csv …"
    suffixes = (".csv",)

    def read_list(self, path: Path) -> Iterator[ListedVideo]:
        """See `_PathLists.read_list`."""
        for place, row in read_csv(path, required=("path",)):
            video = check_path(row["path"], place)
            split = row.get("split", path.stem)
            if not split:
                raise DatasetError(f"{place}: no split; name one, or leave the column out")
            yield ListedVideo(
                place=place,
                id=check_id(row.get("id", video), place),
                path=video,
                split=split,
                label=row.get("label") or None,
            )
