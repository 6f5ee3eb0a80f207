"""What decides every byte of a synthetic dataset: its classes, its parameters, and which class each video has.

Needs the standard library only, so that datasets can be named without numpy.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from vfz.pipeline.errors import UsageError

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
