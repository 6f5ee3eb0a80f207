"""Datasets with annotation files: videos listed from text, CSV or JSON, whether their files are there or not.

Annotations say which videos there are. A video whose file is not there is listed all the same, so that an incomplete
copy is counted as such; only where not one file is there, the root is taken to be wrong. Every mistake in an annotation
file is told in one line, with the file and the line.

Cost: a matter of seconds for 240,000 videos. Readers are iterators, checks are plain comparisons of text, folders are
read once each, and no video file is looked at.
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from vfz.pipeline.datasets.base import (
    HIDDEN,
    NOT_ANNOTATED,
    VIDEO_SUFFIXES,
    LeftOut,
    VideoDataset,
    VideoRecord,
    is_hidden,
    is_text,
)
from vfz.pipeline.datasets.text import Place, clean, file_text, folder_text
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.errors import DatasetError, MissingRootError
from vfz.pipeline.files import is_address, name_of_text


class AnnotatedDataset(VideoDataset):
    """A dataset whose videos are listed in annotation files, which are read when it is opened.

    Attributes:
        layout: what `root` is expected to be, for messages.
    """

    layout: ClassVar[str]

    def __init__(self, root: Path) -> None:
        self.root = root
        listing = self.read_annotations(root)
        self.name = listing.name
        self.class_names, self.left_out = listing.class_names, listing.left_out
        placed: dict[str, tuple[Place, VideoRecord]] = {}
        for place, record in listing.records:
            if record.id in placed:
                raise DatasetError(
                    f"{place}: the video {record.id!r} was named before, in {placed[record.id][0]}; remove one"
                )
            placed[record.id] = place, record
        self._records = [placed[video_id][1] for video_id in sorted(placed)]

    @abstractmethod
    def read_annotations(self, root: Path) -> Listing:
        """What there is under `root`, which exists.

        Raises:
            DatasetError: there are no annotations, they are broken, or none of their videos is there.
            OSError: a file or folder cannot be read.
        """

    @classmethod
    def open(cls, root: Path | None, **options: int) -> Self:
        """See `VideoDataset.open`; takes no numbers."""
        if root is None or options:
            raise TypeError(f"{cls.__name__} takes a root and nothing else, got {root}, {options}")
        if not root.exists():
            raise MissingRootError(f"dataset root {root} does not exist; give --root {cls.layout}")
        try:
            return cls(root)
        except OSError as error:
            raise DatasetError(
                f"cannot read {error.filename or root}: {error.strerror}; check that it is {cls.layout}"
            ) from error

    def videos(self) -> list[VideoRecord]:
        """The videos that the annotations name, sorted by id."""
        return list(self._records)

    @classmethod
    def nothing_there(cls, root: Path, tried: str) -> DatasetError:
        """What to raise for a root without annotations, or without a single one of the videos they name."""
        return DatasetError(f"{root} has {tried}; give --root {cls.layout}")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What the annotations of a dataset say.

    Attributes:
        name: of the dataset.
        class_names: in label order.
        records: its videos in any order, each with the place that names it.
        left_out: what lies there and is none of them.
    """

    name: str
    class_names: tuple[str, ...]
    records: Iterable[tuple[Place, VideoRecord]]
    left_out: LeftOut = field(default_factory=LeftOut)


class VideoFiles:
    """The video files up to three folders below a root, by what identifies them, from one read of each folder.

    Hidden files and folders are skipped and links followed, except one back to a folder it lies in. Names are compared
    as text, clean: a file is found however its letters are composed.

    Args:
        root: the folder.
        annotations: files there that are known, and not to be counted as left out.
        by_class: whether a video is known by `<its folder>/<its stem>`; else by its stem alone.
        replacements: how folders begin whose files take the place of others of the same name; None for no such folders.
    """

    def __init__(
        self,
        root: Path,
        *,
        annotations: Iterable[Path] = (),
        by_class: bool = False,
        replacements: str | None = None,
    ) -> None:
        self.root = root
        self.num_found = 0
        self._by_class, self._replacements = by_class, replacements
        self._annotations = {str(path) for path in annotations}
        self._paths: dict[str, str] = {}
        self._replacing: dict[str, str] = {}
        self._twice: dict[str, str] = {}
        self._num_twice = 0
        self._left_out = LeftOut()
        self._read(root, depth=0)

    def source(self, key: str, *, expected: str) -> VideoSource:
        """The video known by `key`, or where it would be expected under the root if it were there.

        Raises:
            DatasetError: two files could be meant.
        """
        if (found := self._replacing.get(key)) is not None:
            self.num_found += 1
            return VideoSource(path=Path(found))
        if key in self._twice:
            both = f"{self._paths[key]} and {self._twice[key]}"
            raise DatasetError(f"two files could be the video {key!r}: {both}; remove one")
        if (found := self._paths.get(key)) is None:
            return VideoSource(path=self.root / name_of_text(expected))
        self.num_found += 1
        return VideoSource(path=Path(found))

    def left_out(self) -> LeftOut:
        """What lies there and was no `source`; to be asked for once, when all have been found."""
        replaced = len(self._replacing.keys() & self._paths.keys())
        self._left_out.add("replaced by others", replaced)
        num_files = len(self._paths) + len(self._replacing) + self._num_twice
        self._left_out.add(NOT_ANNOTATED, num_files - replaced - self.num_found)
        return self._left_out

    def _read(self, folder: Path, *, depth: int) -> None:
        below = []
        replaces = self._replacements is not None and folder.name.startswith(self._replacements) and depth > 0
        paths = self._replacing if replaces else self._paths
        folder_name = folder_text(folder.name) if self._by_class else ""
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if is_hidden(name):
                    self._left_out.add(HIDDEN)
                    continue
                stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a Path for each would take longer
                if suffix.lower() in VIDEO_SUFFIXES and not entry.is_dir(follow_symlinks=False):
                    stem = clean(file_text(stem))
                    key = f"{folder_name}/{stem}" if self._by_class else stem
                    if key in paths:
                        self._twice[key] = entry.path
                        self._num_twice += 1
                    else:
                        paths[key] = entry.path
                elif _leads_down(entry, folder):
                    below.append(folder / name)
                elif entry.path not in self._annotations:
                    self._left_out.add_no_video(name)
        if depth < _MOST_FOLDERS_DEEP:
            for path in sorted(below):
                self._read(path, depth=depth + 1)
        else:
            self._left_out.add("in folders too deep", len(below))


_MOST_FOLDERS_DEEP = 3


def _leads_down(entry: os.DirEntry[str], folder: Path) -> bool:
    if not entry.is_symlink():
        return entry.is_dir()
    path = Path(entry.path)  # which takes a link to itself for no folder, where DirEntry.is_dir raises
    return path.is_dir() and not folder.resolve().is_relative_to(path.resolve())


def first_file(folders: Iterable[Path], names: Iterable[str]) -> Path | None:
    """The first file that is there: all names are tried in the first folder, then in the next."""
    names = tuple(names)
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


def check_name(name: str, place: Place) -> str:
    """A name that becomes part of a path and must not be a path itself.

    Raises:
        DatasetError: it is empty, or leads elsewhere.
    """
    check_path(name, place)
    if "/" in name:
        raise DatasetError(f"{place}: {name!r} is to be the name of a file, without any slash")
    return name


def check_path(path: str, place: Place) -> str:
    """A path from an annotation file; whether it may be absolute is the caller's to say.

    Raises:
        DatasetError: it is empty, cannot be a path, is an address, or has `..` in it and so may lead out of the root.
    """
    if not path or "\0" in path or not is_text(path):
        raise DatasetError(f"{place}: {path!r} cannot be the name of a file")
    if ".." in path and ".." in path.split("/"):
        raise DatasetError(f"{place}: {path!r} may lead out of the root; write it without '..'")
    if ":/" in path and is_address(path):
        raise DatasetError(f"{place}: {path!r} is an address, and videos are files; give the path of a file")
    return path


def check_id(video_id: str, place: Place) -> str:
    """An id from an annotation file: any text.

    Raises:
        DatasetError: it is empty, or no text.
    """
    if not video_id or not is_text(video_id):
        raise DatasetError(f"{place}: {video_id!a} cannot be an id; ids are text in UTF-8")
    return video_id


def check_number(text: str, place: Place, *, what: str) -> int:
    """A whole number from 0.

    Raises:
        DatasetError: it is something else.
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise DatasetError(f"{place}: the {what} {text!r} is not a whole number from 0")
    return int(text)


def find_label(class_name: str, labels: Mapping[str, int], place: Place, *, where: Path) -> int:
    """The label of a class.

    Raises:
        DatasetError: there is no such class in the file that lists them.
    """
    if class_name not in labels:
        raise DatasetError(f"{place}: the class {class_name!r} is not in {where}")
    return labels[class_name]


MAX_CLASSES = 1_000_000
"""A numbered label from here on is taken for a slip, not for a class."""
_LIKE_A_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?")


def number_classes(labels: Iterable[tuple[Place, str | None]]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names in label order, and the label of each, where annotations come without a list of classes.

    Either all are numbers, which are the labels, up to the largest; or all are names, which are sorted.

    Raises:
        DatasetError: some are numbers and some are not, or a number is below 0, too large, or no whole one.
    """
    first: dict[str, Place] = {}
    for place, label in labels:
        if label is not None:
            first.setdefault(label, place)
    if not any(_LIKE_A_NUMBER.fullmatch(text) for text in first):
        names = tuple(sorted(first))
        return names, {name: label for label, name in enumerate(names)}
    numbers = {text: check_number(text, place, what="label") for text, place in first.items()}
    largest = max(numbers, key=numbers.__getitem__)
    if numbers[largest] >= MAX_CLASSES:
        raise DatasetError(f"{first[largest]}: the label {largest} is too large; labels count from 0")
    return tuple(str(label) for label in range(numbers[largest] + 1)), numbers
