"""Anyone's videos, sorted into folders: `root/<split>/<class>/<video>`, or `root/<class>/<video>` without splits.

The layout is strict, since a guess about which level is the split would give silently wrong labels: all videos lie at
one depth, a class is not called as a split is, and anything else is an error that says what is expected. Listing costs
one directory read per class and opens no file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

from vfz.pipeline.datasets.base import (
    HIDDEN,
    VIDEO_SUFFIXES,
    LeftOut,
    VideoDataset,
    VideoRecord,
    is_hidden,
    is_text,
    safe_name,
)
from vfz.pipeline.datasets.text import file_text, folder_text
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.errors import DatasetError, MissingRootError, UsageError
from vfz.pipeline.files import text_of_name

LAYOUT = "<root>/<split>/<class>/<video>, or <root>/<class>/<video> without splits"
NO_SPLIT = "all"
"""The split of videos that have none."""
_NAMES_OF_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "eval", "dev"}


class FolderDataset(VideoDataset):
    """`root/[<split>/]<class>/<video>`; a video's id is its path under the root without the suffix, as composed text.

    Split and class folders may be symbolic links, and so may videos; a broken link is listed, as a file that is not
    there (yet). Hidden files and folders and files without a video suffix are skipped and counted. Folders whose names
    are the same text are one class, however their letters are composed; of two videos that only that tells apart,
    each has its name as it is written for its id.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = safe_name(root)
        self.left_out = LeftOut()
        try:
            found = list(_list_videos(root, self.left_out))
        except OSError as error:
            raise DatasetError(
                f"cannot read {error.filename or root}: {error.strerror}; check its permissions"
            ) from error
        if not found:
            others = f"; {self.left_out}" if self.left_out.reasons else ""
            raise DatasetError(
                f"no videos under {root}; expected {LAYOUT} with a suffix such as .mp4, .webm or .avi{others}"
            )
        self.has_splits = found[0].id.count("/") > 1
        self.class_names = tuple(sorted({video.class_name for video in found}))
        labels = {name: label for label, name in enumerate(self.class_names)}
        records: dict[str, VideoRecord] = {}
        for video in _as_written_where_needed(found, root):
            if video.id in records:
                before, path = records[video.id].source.path, Path(video.path)
                both = f"{before.name} and {path.name} in {path.parent}"
                raise DatasetError(f"two videos have the id {video.id!r}: {both}; rename or remove one")
            if not is_text(video.id):
                raise DatasetError(f"the name {video.id!a} under {root} is not valid UTF-8; rename it")
            records[video.id] = VideoRecord(
                id=video.id,
                source=VideoSource(path=Path(video.path)),
                split=video.split,
                label=labels[video.class_name],
            )
        self._records = [records[video_id] for video_id in sorted(records)]

    @classmethod
    def open(cls, root: Path | None, **options: int) -> Self:
        """See `VideoDataset.open`; takes no numbers."""
        if root is None or options:
            raise TypeError(f"a folder dataset takes a root and nothing else, got {root}, {options}")
        return cls(root)

    def videos(self) -> list[VideoRecord]:
        """The videos found when the dataset was opened, sorted by id."""
        return list(self._records)


class _Found(NamedTuple):
    path: str
    id: str
    split: str
    class_name: str


def _as_written_where_needed(found: list[_Found], root: Path) -> Iterator[_Found]:
    """The same; videos whose composed ids would be one have them as their files' names are written."""
    times = Counter(video.id for video in found if not video.id.isascii())
    for video in found:
        if times[video.id] > 1:
            written, _ = os.path.splitext(Path(video.path).relative_to(root))  # noqa: PTH122 - as `_read` does it
            yield video._replace(id=text_of_name(written))
        else:
            yield video


def _list_videos(root: Path, left_out: LeftOut) -> Iterator[_Found]:
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise MissingRootError(f"dataset root {root} {problem}; give --root a folder laid out as {LAYOUT}")
    tops = [(top, *_read(top, left_out)) for top in _refuse_videos_in(root, root, left_out)]
    if any(videos for _, videos, _ in tops):
        for top, videos, deeper in tops:
            _refuse_class_called_as_split(root, videos)
            yield from _of_class(top, videos, NO_SPLIT, "")
            _refuse_videos_below(deeper, root, left_out)
        return
    for split, _, class_folders in tops:
        for class_folder in class_folders:
            videos, deeper = _read(class_folder, left_out)
            yield from _of_class(class_folder, videos, folder_text(split.name), f"{file_text(split.name)}/")
            _refuse_videos_below(deeper, root, left_out)


def _of_class(folder: Path, videos: list[tuple[str, str]], split: str, prefix: str) -> Iterator[_Found]:
    for path, stem in videos:
        yield _Found(path, f"{prefix}{file_text(folder.name)}/{file_text(stem)}", split, folder_text(folder.name))


def _refuse_class_called_as_split(root: Path, videos: list[tuple[str, str]]) -> None:
    for path, _ in videos[:1]:
        shown = Path(path).relative_to(root)
        if shown.parent.name.lower() in _NAMES_OF_SPLITS:
            raise DatasetError(
                f"{shown} is not where a video is expected under {root}: {shown.parent} is called as a split and not "
                f"as a class; the layout is {LAYOUT}; videos without classes are given with --dataset csv"
            )


def _refuse_videos_below(folders: list[Path], root: Path, left_out: LeftOut) -> None:
    for folder in folders:
        # links are not followed from here on, so that a loop of links ends
        for parent, below, _ in os.walk(folder):
            below[:] = [name for name in below if not is_hidden(name)]
            _refuse_videos_in(Path(parent), root, left_out)


def _refuse_videos_in(folder: Path, root: Path, left_out: LeftOut) -> list[Path]:
    """The folders in one where no video is expected, by name.

    Raises:
        DatasetError: there is a video.
    """
    videos, folders = _read(folder, left_out)
    if videos:
        shown = Path(videos[0][0]).relative_to(root)
        raise DatasetError(f"{shown} is not where a video is expected under {root}; the layout is {LAYOUT}")
    return folders


def videos_at(paths: Iterable[Path]) -> list[Path]:
    """The files that are named, whatever their suffix, and all videos in the folders that are.

    Raises:
        UsageError: when one is not there, or there is no video in any. DatasetError: a folder cannot be read.
    """
    found, named = list[Path](), list(paths)
    for path in named:
        if path.is_dir():
            found += videos_under(path)
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise UsageError(f"no file or folder {path}; name videos, or folders with videos in them")
    if not found:
        raise UsageError(f"no video in {', '.join(map(str, named))}; name files, or folders with videos in them")
    return found


def videos_under(folder: Path) -> list[Path]:
    """All files in a folder and those below it that have the suffix of a video, by name; hidden ones are left out.

    Links to folders are followed, each folder once, so that a loop of links ends.

    Raises:
        DatasetError: the folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DatasetError(f"cannot read {error.filename}: {error.strerror}; check its permissions") from error

    found, seen = [], set[str]()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else sorted(name for name in folders if not is_hidden(name))
        if real not in seen:
            seen.add(real)
            shown = [name for name in names if not is_hidden(name)]
            found += [Path(parent, name) for name in shown if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    return sorted(found)


def _read(folder: Path, left_out: LeftOut) -> tuple[list[tuple[str, str]], list[Path]]:
    """The videos of a folder, each with its stem, and the folders in it, both by name; the rest is counted.

    Folders are without hidden ones and without links back to a folder that holds them.
    """
    videos, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if is_hidden(name):
                left_out.add(HIDDEN)
                continue
            stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a Path for each would take longer
            # Path.is_dir takes a link to itself for no folder, where DirEntry.is_dir raises.
            is_link = entry.is_symlink()
            if Path(entry.path).is_dir() if is_link else entry.is_dir():
                path = Path(entry.path)
                if not (is_link and folder.resolve().is_relative_to(path.resolve())):
                    folders.append(path)
            elif suffix.lower() in VIDEO_SUFFIXES:
                videos.append((entry.path, stem))
            else:
                left_out.add_no_video(name)
    return sorted(videos), sorted(folders)
