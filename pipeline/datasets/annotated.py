"""What datasets with annotation files share: a list made when they are opened, and files that may not be there.

Annotations say which videos there are. One whose file is not there is listed all the same, so that an incomplete copy
is counted as such; only where not one is there the root is taken to be wrong. Folders are read once each and no file
is looked at, which makes 240,000 videos a matter of seconds.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from vfz.pipeline.datasets.base import VideoDataset, VideoRecord
from vfz.pipeline.datasets.folder import VIDEO_SUFFIXES
from vfz.pipeline.errors import DatasetError
from vfz.pipeline.source import VideoSource

if TYPE_CHECKING:
    from vfz.pipeline.datasets.annotations import Place

_MOST_FOLDERS_DEEP = 3


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What the annotations of a dataset come to.

    Attributes:
        name: of the dataset.
        class_names: in label order.
        records: its videos in any order, each with the place that names it.
    """

    name: str
    class_names: tuple[str, ...]
    records: Iterable[tuple[Place, VideoRecord]]


class AnnotatedDataset(VideoDataset):
    """A dataset that is listed when it is opened, from annotations.

    Attributes:
        layout: what `root` is expected to be, for messages.
    """

    layout: ClassVar[str]

    def __init__(self, root: Path) -> None:
        self.root = root
        listing = self.read_annotations(root)
        self.name = listing.name
        self.class_names = listing.class_names
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
            raise DatasetError(f"dataset root {root} does not exist; give --root {cls.layout}")
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


class VideoFiles:
    """The video files up to three folders below a root, by what identifies them, from one read of each folder.

    Hidden files and folders are skipped and links followed, except one back to a folder it lies in.

    Args:
        root: the folder.
        by_class: whether a video is known by `<its folder>/<its stem>`; else by its stem alone.
        replacements: how folders begin whose files take the place of others of the same name; None for no such folders.
    """

    def __init__(self, root: Path, *, by_class: bool = False, replacements: str | None = None) -> None:
        self.root = root
        self.num_found = 0
        self._by_class, self._replacements = by_class, replacements
        self._paths: dict[str, str] = {}
        self._replacing: dict[str, str] = {}
        self._twice: dict[str, str] = {}
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
            return VideoSource(path=self.root / expected)
        self.num_found += 1
        return VideoSource(path=Path(found))

    def _read(self, folder: Path, *, depth: int) -> None:
        below = []
        replaces = self._replacements is not None and folder.name.startswith(self._replacements) and depth > 0
        paths = self._replacing if replaces else self._paths
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 - a Path for each would take longer
                if entry.name.startswith("."):
                    continue
                if suffix.lower() in VIDEO_SUFFIXES and not entry.is_dir(follow_symlinks=False):
                    key = f"{folder.name}/{stem}" if self._by_class else stem
                    (self._twice if key in paths else paths)[key] = entry.path
                elif _leads_down(entry, folder):
                    below.append(folder / entry.name)
        if depth < _MOST_FOLDERS_DEEP:
            for path in sorted(below):
                self._read(path, depth=depth + 1)


def _leads_down(entry: os.DirEntry[str], folder: Path) -> bool:
    if not entry.is_symlink():
        return entry.is_dir()
    path = Path(entry.path)  # which takes a link to itself for no folder, where DirEntry.is_dir raises
    return path.is_dir() and not folder.resolve().is_relative_to(path.resolve())
