"""The built-in dataset: H.264 clips rendered from a seed, whose class lies in the order of frames and in nothing else.

Every clip shows the same three gestures of one sprite, `left`, `up` and `grow` (it comes nearer), each from the rest
pose and back, and its class is their order: six classes. A frame is a function of (nuisance, gesture, phase), the
nuisance is drawn without looking at the class, and videos are intra-coded with a fixed quantiser. So the multiset of
frames of a clip is the same, bit for bit, whatever its class, and no frame drawn from it and no order-blind statistic
can beat chance. Gestures end exactly in the rest pose, so neither can the last frame, which is all that a readout of a
core without memory sees. The first holds for every n-th frame where n divides the length of a gesture (num_frames / 3);
the second for every frame, as at the default rate. Other rates leak.

    <root>/<split>/<class name>/<index>.mp4    the id of such a video is <split>/<index>
    <root>/targets.npz                         labels, boxes, points, depth and poses (vfz.pipeline.datasets.targets)
    <root>/manifest.json                       parameters and renderer version

The folder is made beside its place and renamed into it, so it is whole or not there; a run that was killed leaves a
hidden `.<name>-….tmp` folder that can be deleted. 480 clips of 12 frames at 96 px: about 9 s on one core, 24 MB.

This file imports neither numpy nor PyAV: it is loaded whenever the datasets are named.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from vfz.pipeline.datasets.base import OnProgress, VideoDataset, VideoRecord
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.errors import DatasetError, StorageError, UsageError

RENDERER_VERSION = 1  # raise it whenever the same parameters would give other pixels or targets


GESTURES = ("left", "up", "grow")
CLASS_NAMES = tuple(sorted("_".join(order) for order in itertools.permutations(GESTURES)))
FRAMES_PER_SECOND = 6
TRAIN_SHARE = 0.75


@dataclass(frozen=True, kw_only=True)
class SyntheticParameters:
    """What decides every byte of the dataset (with the renderer's version).

    Raises:
        UsageError: a number is out of its range.
    """

    num_videos: int = 480
    num_frames: int = 12
    size: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_videos < 4:
            raise UsageError(f"--num-videos {self.num_videos} is too few for two splits; give at least 4")
        if self.num_frames < 6 or self.num_frames % len(GESTURES):
            raise UsageError(f"--num-frames {self.num_frames} must be a multiple of 3, at least 6, for three gestures")
        if self.size < 32 or self.size % 2:
            raise UsageError(f"--size {self.size} must be an even number of pixels, at least 32")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} must be 0 or more")

    @property
    def name(self) -> str:
        """Tells datasets with different parameters apart; safe as a folder name."""
        return f"synthetic-{self.num_videos}x{self.num_frames}-{self.size}px-seed{self.seed}"

    def splits_and_labels(self) -> list[tuple[str, int]]:
        """The split and the class of each video by index: as many of each class as of another (±1) in every split."""
        shuffle = random.Random(f"vfz synthetic labels {self.seed}").shuffle  # noqa: S311 - a dataset, not a secret
        num_train = round(TRAIN_SHARE * self.num_videos)
        result = []
        for split, count in (("train", num_train), ("test", self.num_videos - num_train)):
            labels = [index % len(CLASS_NAMES) for index in range(count)]
            shuffle(labels)
            result += [(split, label) for label in labels]
        return result


class SyntheticDataset(VideoDataset):
    """The rendered clips of some `SyntheticParameters` under `root`; `prepare` renders what is not there."""

    needs_root: ClassVar[bool] = False
    option_names: ClassVar[tuple[str, ...]] = tuple(field.name for field in dataclasses.fields(SyntheticParameters))

    def __init__(self, root: Path, parameters: SyntheticParameters) -> None:
        self.root = root
        self.parameters = parameters
        self.name = parameters.name
        self.class_names = CLASS_NAMES
        self.targets_path = root / "targets.npz"
        self.default_fps = float(FRAMES_PER_SECOND)

    @classmethod
    def open(cls, root: Path | None, **options: int) -> Self:
        """See `VideoDataset.open`; without a root it is `data/<name>` under the working directory."""
        parameters = SyntheticParameters(**options)
        return cls(Path("data") / parameters.name if root is None else root, parameters)

    def prepare(self, *, on_progress: OnProgress | None = None) -> None:
        """Render the dataset unless it is there; `on_progress(done, total)` counts videos.

        Raises:
            DatasetError: the root holds something else, or a dataset of other parameters.
            StorageError: it could not be written.
        """
        if self._is_there():
            return
        place = self.root.resolve()
        temporary = place.with_name(f".{place.name}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            temporary.mkdir(parents=True)
            self._render(temporary, on_progress)
            self._move_into_place(temporary, place)
        except OSError as error:
            raise StorageError(
                f"cannot write the synthetic dataset to {self.root}: {error.strerror or error}"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def videos(self) -> list[VideoRecord]:
        """Train, then test videos, sorted by id; files are not looked for, so a deleted one stays in the list."""
        if not self._is_there():
            raise DatasetError(f"there is no synthetic dataset in {self.root} yet; prepare() renders it")
        return self._records(self.root)

    def planned_videos(self) -> list[VideoRecord]:
        """See `VideoDataset.planned_videos`."""
        return self._records(self.root)

    def _records(self, root: Path) -> list[VideoRecord]:
        return [
            VideoRecord(
                id=f"{split}/{index:06d}",
                source=VideoSource(path=root / split / CLASS_NAMES[label] / f"{index:06d}.mp4"),
                split=split,
                label=label,
            )
            for index, (split, label) in enumerate(self.parameters.splits_and_labels())
        ]

    @property
    def _manifest(self) -> dict[str, Any]:
        return {
            "dataset": "synthetic",
            "renderer_version": RENDERER_VERSION,
            "parameters": dataclasses.asdict(self.parameters),
        }

    def _is_there(self) -> bool:
        try:
            if self.root.is_dir() and not any(self.root.iterdir()):
                return False
            found = json.loads((self.root / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            if not os.path.lexists(self.root):
                return False
            raise DatasetError(
                f"{self.root} is there but is no finished synthetic dataset (its manifest.json cannot be read); "
                "delete it or give another --root"
            ) from error
        if found != self._manifest:
            raise DatasetError(
                f"{self.root} holds another synthetic dataset: {_difference(found, self._manifest)}; "
                "delete it or give another --root"
            )
        return True

    def _render(self, folder: Path, on_progress: OnProgress | None) -> None:
        from vfz.pipeline.datasets.synthetic.render import write_clips

        write_clips(folder, self._records(folder), self.parameters, on_progress=on_progress)
        (folder / "manifest.json").write_text(json.dumps(self._manifest, indent=2) + "\n", encoding="utf-8")

    def _move_into_place(self, temporary: Path, place: Path) -> None:
        try:
            temporary.rename(place)
        except OSError:
            # another process may have been first; what it made is the same
            if not self._is_there():
                raise


def _difference(found: Any, expected: dict[str, Any]) -> str:
    def flat(manifest: Any) -> dict[str, Any]:
        if not isinstance(manifest, dict) or not isinstance(manifest.get("parameters"), dict):
            return {}
        return {**manifest, **manifest["parameters"], "parameters": None}

    there, wanted = flat(found), flat(expected)
    different = [key for key in wanted if there.get(key) != wanted[key]]
    if not different:
        return "its manifest.json has unknown entries"
    return ", ".join(f"{key} there {there.get(key, 'unknown')}, requested {wanted[key]}" for key in different)
