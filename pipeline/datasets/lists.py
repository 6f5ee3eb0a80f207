"""Anyone's videos in lists of paths: `list`, as V-JEPA has it, and `csv`, with named columns.

    list    lines `<path> <label>`: the label is the number behind the last space; a path with spaces may be quoted
    csv     a header, then rows: `path`, and where wanted `label` (a number or a class name), `split`, `id`

`--root` is such a file, or a folder with train.csv, val.csv or test.csv (`list`: also .txt), or with numbered pieces of
one, such as train-00000-of-00010.csv. A file's stem is the split of its videos unless a `split` column says otherwise;
the path as it is written is their id, composed, unless an `id` column does. Paths are relative to the file's folder,
and in these two formats they may be absolute. A label that is a number counts from 0, and classes are then called by
their numbers; class names are sorted. A CSV's label may be empty: none.

A file is found however the letters of its name are composed, unless two are of that name.

Cost: reading the files, looking for videos until one is there, and for those whose path is not in ASCII.
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vfz.pipeline.datasets.annotations import (
    AnnotatedDataset,
    Listing,
    check_id,
    check_number,
    check_path,
    number_classes,
)
from vfz.pipeline.datasets.base import LeftOut, VideoRecord, is_hidden, safe_name
from vfz.pipeline.datasets.text import (
    Place,
    composed,
    file_text,
    folder_text,
    read_csv,
    read_lines,
    split_last,
    trimmed,
    without_shard,
)
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.errors import DatasetError
from vfz.pipeline.files import name_of_text

_SPLITS = ("train", "val", "test")
_HOME = re.compile(r"~[^/]*/")
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
        left_out = LeftOut()
        paths = self._lists_in(root, left_out) if root.is_dir() else [(root, _split_of(root))]
        videos = [video for path, split in paths for video in self.read_list(path, split)]
        class_names, labels = number_classes((video.place, video.label) for video in videos)
        folder = root if root.is_dir() else root.parent
        files = _ListedFiles(folder)
        records = [
            (
                video.place,
                VideoRecord(
                    id=video.id,
                    source=VideoSource(path=files.path(video.path, video.place)),
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
            left_out=left_out,
        )

    def _lists_in(self, root: Path, left_out: LeftOut) -> list[tuple[Path, str]]:
        """The lists of a folder with their splits: whole ones, and the pieces of one that is not there whole."""
        lists = [path for path in sorted(root.iterdir()) if path.suffix in self.suffixes and path.is_file()]
        whole = [(root / f"{split}{suffix}", split) for split in _SPLITS for suffix in self.suffixes]
        chosen = [(path, split) for path, split in whole if path in lists]
        there = {split for _, split in chosen}
        chosen += [(path, split) for path in lists if (split := _split_of(path)) in _SPLITS and split not in there]
        if not chosen:
            raise self.nothing_there(root, f"no {', '.join(path.name for path, _ in whole)}")
        used = {path for path, _ in chosen}
        others = [path for path in lists if path not in used and not is_hidden(path.name)]
        left_out.add("of another name than a split", len(others))
        return chosen

    @abstractmethod
    def read_list(self, path: Path, split: str) -> Iterator[ListedVideo]:
        """The videos of one file, of that split where it does not say otherwise."""


class ListDataset(_PathLists):
    """Lines `<path> <label>`."""

    layout = "a file of lines `<path> <label>`, or a folder with train.csv, val.csv or test.csv (or .txt) of that kind"
    suffixes = (".csv", ".txt")

    def read_list(self, path: Path, split: str) -> Iterator[ListedVideo]:
        """See `_PathLists.read_list`."""
        for place, line in read_lines(path, as_written=True):
            video, label = split_last(line)
            check_number(label, place, what="label")
            if quoted := _QUOTED.fullmatch(video):
                video = trimmed(quoted["inside"].replace('""', '"'))
            check_path(video, place)
            yield ListedVideo(place=place, id=composed(video), path=video, split=split, label=str(int(label)))


class CsvDataset(_PathLists):
    """Named columns."""

    layout = "a CSV file with the column path and, where wanted, label, split, id; or a folder with train.csv …"
    suffixes = (".csv",)

    def read_list(self, path: Path, split: str) -> Iterator[ListedVideo]:
        """See `_PathLists.read_list`."""
        for place, row in read_csv(path, required=("path",), optional=("label", "split", "id"), as_written=("path",)):
            video = check_path(row["path"], place)
            named = row.get("split", split)
            if not named:
                raise DatasetError(f"{place}: no split; name one, or leave the column out")
            yield ListedVideo(
                place=place,
                id=check_id(row.get("id", composed(video)), place),
                path=video,
                split=named,
                label=row.get("label") or None,
            )


def _split_of(path: Path) -> str:
    """The stem of a list; of a piece of a known split, that one."""
    stem = folder_text(path.stem)
    return split if (split := without_shard(stem)) in _SPLITS else stem


class _ListedFiles:
    """Where the files that a list names are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[Path, dict[str, list[str]]] = {}

    def path(self, written: str, place: Place) -> Path:
        """The file itself; where its name is composed otherwise on the disk, by the name it has there.

        Raises:
            DatasetError: it is not there, and is written as another system or a shell would.
        """
        path = self._folder / name_of_text(written)
        if written.isascii() and written[0] != "~" and "\\" not in written:
            return path
        if os.path.lexists(path):
            return path
        if _HOME.match(written):
            raise DatasetError(f"{place}: {written!r} begins with ~, which only a shell replaces; write the whole path")
        if "\\" in written:
            raise DatasetError(f"{place}: {written!r} is not there and has backslashes; write paths with '/'")
        found = Path(path.anchor)
        for part in path.parts[len(found.parts) :]:
            if not os.path.lexists(found / part):
                names = self._names_in(found).get(file_text(part), [])
                part = names[0] if len(names) == 1 else part
            found /= part
        return found if os.path.lexists(found) else path

    def _names_in(self, folder: Path) -> dict[str, list[str]]:
        """The names that are not in ASCII, by their text."""
        if folder not in self._names:
            names = self._names[folder] = {}
            if folder.is_dir():
                for path in folder.iterdir():
                    if not path.name.isascii():
                        names.setdefault(file_text(path.name), []).append(path.name)
        return self._names[folder]
