"""Anyone's videos, sorted into folders: `root/<split>/<class>/<video>`.

The layout is strict, since a guess about which level is the split would give silently wrong labels: a video at any
other depth is an error that says what is expected. Listing costs one directory read per class and opens no file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vfz.pipeline.datasets.base import VIDEO_SUFFIXES, VideoDataset, VideoRecord, is_text, safe_name
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator


LAYOUT = "<root>/<split>/<class>/<video>"


class FolderDataset(VideoDataset):
    """`root/<split>/<class>/<video>`; a video's id is its path under the root without the suffix.

    Split and class folders may be symbolic links, and so may videos; a broken link is listed, as a file that is not
    there (yet). Hidden files and folders and files without a video suffix are skipped.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = safe_name(root)
        try:
            paths = _list_videos(root)
        except OSError as error:
            raise DatasetError(
                f"cannot read {error.filename or root}: {error.strerror}; check its permissions"
            ) from error
        self.class_names = tuple(sorted({path.parent.name for path in paths}))
        labels = {name: label for label, name in enumerate(self.class_names)}
        records: dict[str, VideoRecord] = {}
        for path in paths:
            video_id = path.relative_to(root).with_suffix("").as_posix()
            if video_id in records:
                both = f"{records[video_id].source.name} and {path.name}"
                raise DatasetError(
                    f"two videos have the id {video_id!r}: {both} in {path.parent}; rename or remove one"
                )
            if not is_text(video_id):
                raise DatasetError(f"the name {video_id!a} under {root} is not valid UTF-8; rename it")
            split, class_name = path.relative_to(root).parts[:2]
            records[video_id] = VideoRecord(
                id=video_id, source=VideoSource(path=path), split=split, label=labels[class_name]
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


def _list_videos(root: Path) -> list[Path]:
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise DatasetError(f"dataset root {root} {problem}; give --root a folder laid out as {LAYOUT}")
    _refuse_videos_in(root, root)
    videos = []
    for split in _folders(root):
        _refuse_videos_in(split, root)
        for class_folder in _folders(split):
            videos += _videos_in(class_folder)
            for deeper in _folders(class_folder):
                # links are not followed from here on, so that a loop of links ends
                for parent, names, _ in os.walk(deeper):
                    names[:] = [name for name in names if not name.startswith(".")]
                    _refuse_videos_in(Path(parent), root)
    if not videos:
        suffixes = " ".join(sorted(VIDEO_SUFFIXES))
        raise DatasetError(f"no videos under {root}; expected {LAYOUT} with one of the suffixes {suffixes}")
    return videos


def _folders(folder: Path) -> Iterator[Path]:
    """Sub-folders by name, without hidden ones and without links back to a folder that holds them."""
    for path in _visible(folder):
        if path.is_dir() and not (path.is_symlink() and folder.resolve().is_relative_to(path.resolve())):
            yield path


def _videos_in(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _refuse_videos_in(folder: Path, root: Path) -> None:
    if videos := _videos_in(folder):
        shown = videos[0].relative_to(root)
        raise DatasetError(f"{shown} is not where a video is expected under {root}; the layout is {LAYOUT}")
