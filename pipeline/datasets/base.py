"""What a dataset is to vfz: a list of videos with ids, splits and labels. Nothing here opens a video file.

Copies of datasets are seldom complete: those of Kinetics lack some per cent, and a run should say so first.
`present_ids` tells which files are there. Cost: one listing of each folder that holds videos, not a question to the
file system for each video; links are followed one by one.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from vfz.pipeline.progress import counted

if TYPE_CHECKING:
    from vfz.pipeline.decoding.base import VideoSource

_FILMS = """
.mp4 .mkv .webm .avi .mov .m4v .mpg .mpeg .gif .ts .wmv .flv .3g2 .3gp .3gpp .asf .divx .f4v .m1v .m2p .m2t
.m2ts .m2v .mk3d .mp2v .mp4v .mpe .mpeg4 .mpv .mpv2 .mts .ogm .ogv .ogx .qt .tod .trp .vob .xvid .264 .265
.266 .amv .apv .av1 .avc .avs2 .avs3 .bik .bk2 .cavs .dav .dif .dirac .dv .dvr-ms .evc .evo .fli .flc .gxf
.h261 .h263 .h264 .h265 .h266 .h26l .hevc .imx .ism .ismv .ivf .ivr .kux .mj2 .mjpeg .mjpg .moflex .mvi .mxf
.mxg .nsv .nut .nuv .obu .rm .rmvb .roq .smk .swf .thp .usm .vc1 .viv .vivo .vro .vvc .wtv .xmv .y4m .yop
"""
VIDEO_SUFFIXES = frozenset(_FILMS.split())
"""What ffmpeg's demuxers take, in small letters: of films, not of sound, pictures or subtitles alone."""
_OTHER_SYSTEMS = frozenset(
    (
        "__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information",
        "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "lost+found",
    )
)  # fmt: skip
"""What macOS, Windows and network disks leave in folders and archives, without a dot in front."""
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


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What lies beside the videos of a dataset and is no part of it, counted.

    Attributes:
        reasons: how many files (or folders with all that is in them) for each reason.
        suffixes: of those that are no video.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    suffixes: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, count: int = 1) -> None:
        """Counts for a reason."""
        if count:
            self.reasons[reason] += count

    def add_no_video(self, name: str) -> None:
        """Counts a file that is no video by its suffix."""
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path for each would take longer
        self.reasons[NO_VIDEO] += 1
        self.suffixes[suffix if 1 < len(suffix) <= _LONG_SUFFIX else "others" if suffix else "no suffix"] += 1

    def counts(self) -> dict[str, int]:
        """How many for each reason, the most first."""
        return _ordered(self.reasons)

    def __str__(self) -> str:
        """`12 files left out: 8 no video (.txt, .jpg), 4 hidden`."""
        reasons = []
        for reason, count in self.counts().items():
            shown = list(_ordered(self.suffixes))[:_SHOWN_SUFFIXES] if reason == NO_VIDEO else []
            more = ["…"] if shown and len(self.suffixes) > len(shown) else []
            named = f" ({', '.join([*shown, *more])})" if shown else ""
            reasons.append(f"{count} {reason}{named}")
        return f"{counted(self.reasons.total(), 'file')} left out: {', '.join(reasons)}"


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


NO_VIDEO, HIDDEN, NOT_ANNOTATED = "no video", "hidden", "not in the annotations"
"""Reasons for leaving a file out."""
_LONG_SUFFIX, _SHOWN_SUFFIXES = 10, 8


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
        has_splits: whether it says which split a video is of; all are `all` where it does not.
        can_flip: whether a mirrored video keeps its class.
        left_out: what lies there and is no video of it.
    """

    needs_root: ClassVar[bool] = True
    option_names: ClassVar[tuple[str, ...]] = ()
    can_flip: ClassVar[bool] = True

    name: str
    root: Path
    class_names: tuple[str, ...]
    targets_path: Path | None = None
    default_fps: float = 6.0
    has_splits: bool = True
    left_out: LeftOut = LeftOut()

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

    def planned_videos(self) -> list[VideoRecord]:
        """As `videos`, also before `prepare`: what it makes need not be there."""
        return self.videos()

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


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """What a dataset lacks or leaves out, so that it is said first; most lack nothing.

    Attributes:
        left_out: files by reason, which are none of its videos.
        num_unlabelled: videos without a label.
        empty_classes: names of the classes that no video has.
        lines: the same for people.
    """

    left_out: Mapping[str, int]
    num_unlabelled: int
    empty_classes: tuple[str, ...]
    lines: tuple[str, ...]

    @classmethod
    def of(cls, dataset: VideoDataset, records: Collection[VideoRecord], everything: Iterable[VideoRecord]) -> Self:
        """Those of a dataset.

        Args:
            dataset: as it was opened.
            records: the videos that are wanted.
            everything: all of its videos.
        """
        labels = {record.label for record in everything}
        empty = tuple(name for label, name in enumerate(dataset.class_names) if label not in labels)
        num_unlabelled = sum(record.label is None for record in records)
        lines = [f"{dataset.name}: {dataset.left_out}"] if dataset.left_out.reasons else []
        if num_unlabelled:
            lines.append(f"{dataset.name}: {counted(num_unlabelled, 'video')} without a label, of {len(records)}")
        if empty:
            shown = ", ".join(empty[:_SHOWN_CLASSES]) + (", …" if len(empty) > _SHOWN_CLASSES else "")
            num_classes = len(dataset.class_names)
            lines.append(
                f"{dataset.name}: {len(empty)} of {num_classes} classes have no video: {shown}; chance is of the other "
                f"{num_classes - len(empty)}"
            )
        return cls(
            left_out=dataset.left_out.counts(),
            num_unlabelled=num_unlabelled,
            empty_classes=empty,
            lines=tuple(lines),
        )


_SHOWN_CLASSES = 8


def describe_missing(dataset: str, *, num_listed: int, num_missing: int) -> str:
    """One line that says how incomplete a dataset is."""
    return (
        f"{dataset}: {num_listed} videos listed, {num_missing} of them missing ({100 * num_missing / num_listed:.1f}%)"
    )


def safe_name(root: Path) -> str:
    """The base name of `root` with only [A-Za-z0-9_.-], never empty and never starting with a dot."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", root.resolve().name).lstrip(".").strip("-") or "folder"


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is not meant to be seen: hidden, or left by another system."""
    return name.startswith(".") or name.casefold() in _OTHER_SYSTEMS


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8, which file names on Linux need not be."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
