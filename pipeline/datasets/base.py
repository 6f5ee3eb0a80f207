"""What a dataset is to vfz: a list of videos with ids, splits and labels. Nothing here opens a video file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from vfz.pipeline.source import VideoSource

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
