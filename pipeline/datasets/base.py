"""What a dataset is to vfz: a list of videos with ids, splits and labels. Nothing here opens a video file.

Copies of datasets are seldom complete: those of Kinetics lack some per cent, and a run should say so first.
`present_ids` tells which files are there. Cost: one listing of each folder that holds videos, not a question to the
file system for each video; links are followed one by one.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from vfz.pipeline.decoding.base import VideoSource

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".gif", ".ts", ".wmv", ".flv"}
)  # fmt: skip
OnProgress = Callable[[int, int], None]
"""Called as `on_progress(done, total)` while a dataset makes or looks through its files."""


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """One video of a dataset.

    Attributes:
        id: unique in the dataset; any text. It never becomes a path unchecked.
        source: its file, or member of a tar; it need not exist.
        split: `train`, `val`, `test` or whatever the dataset calls it.
        label: index into the dataset's `class_names`, or None where the video has no label.
        folds: the split it has in each of the dataset's official folds, by name: {"fold1": "train", "fold2": "test"};
            empty where there is one division only.
    """

    id: str
    source: VideoSource
    split: str
    label: int | None
    folds: Mapping[str, str] = field(default_factory=dict)


class VideoDataset(ABC):
    """A named list of videos. One file and one registry line per kind (see CONTRIBUTING.md).

    Attributes:
        needs_root: whether the user must say where the videos lie.
        option_names: the numbers of `open_dataset` that this kind takes.
        name: the default name of caches made from it, safe as a folder name.
        root: the folder the videos lie under.
        class_names: class names in label order; empty where there are no labels.
        targets_path: `targets.npz` with boxes, points, depth and pose (`vfz.pipeline.datasets.targets`), where there is
            one.
        default_fps: the sampling rate (frames per second) that `vfz extract` uses unless told otherwise.
        can_flip: whether a mirrored video keeps its class.
    """

    needs_root: ClassVar[bool] = True
    option_names: ClassVar[tuple[str, ...]] = ()
    can_flip: ClassVar[bool] = True

    name: str
    root: Path
    class_names: tuple[str, ...]
    targets_path: Path | None = None
    default_fps: float = 6.0

    @classmethod
    @abstractmethod
    def open(cls, root: Path | None, **options: int) -> Self:
        """The dataset under `root` (None only where `needs_root` is false), with numbers named in `option_names`.

        Raises:
            UsageError: a number is out of its range.
            DatasetError: the root is not what this kind expects.
        """

    def prepare(self, *, on_progress: OnProgress | None = None) -> None:  # noqa: B027 - most kinds have nothing to make
        """Make what is not there yet, so that `videos` can be called; does nothing where it is."""

    @abstractmethod
    def videos(self) -> list[VideoRecord]:
        """All videos in a fixed order (sorted by id within a split).

        Raises:
            DatasetError: when the root is not there, holds no videos, or two videos have the same id.
        """


def present_ids(records: Iterable[VideoRecord]) -> frozenset[str]:
    """Ids of the videos whose file is there, or the tar they are in; see `VideoSource.exists`."""
    wanted: dict[str, set[str]] = {}
    places = []
    for record in records:
        folder, name = os.path.split(record.source.path)
        wanted.setdefault(folder, set()).add(name)
        places.append((record.id, folder, name))
    there = {folder: _present_names(folder, names) for folder, names in wanted.items()}
    return frozenset(video_id for video_id, folder, name in places if name in there[folder])


FEW_FILES = 16
"""Up to so many files of a folder are asked for by name: the folder may hold a million others."""


def _present_names(folder: str, names: set[str]) -> set[str]:
    if len(names) <= FEW_FILES:
        return _ask_for(folder, names)
    try:
        with os.scandir(folder or ".") as entries:
            found = {entry.name: entry.is_symlink() for entry in entries if entry.name in names}
    except PermissionError:  # its files may be there for those who know their names
        return _ask_for(folder, names)
    except OSError:
        return set()
    return _ask_for(folder, {name for name, is_link in found.items() if is_link}) | {
        name for name, is_link in found.items() if not is_link
    }


def _ask_for(folder: str, names: set[str]) -> set[str]:
    return {name for name in names if os.path.exists(os.path.join(folder, name))}  # noqa: PTH110, PTH118


def describe_missing(dataset: str, *, num_listed: int, num_missing: int) -> str:
    """One line that says how incomplete a dataset is."""
    return (
        f"{dataset}: {num_listed} videos listed, {num_missing} of them missing ({100 * num_missing / num_listed:.1f}%)"
    )


def safe_name(root: Path) -> str:
    """The base name of `root` with only [A-Za-z0-9_.-], never empty and never starting with a dot."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", root.resolve().name).lstrip(".").strip("-") or "folder"


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8, which file names on Linux need not be."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
