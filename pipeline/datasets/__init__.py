"""The kinds of dataset vfz knows, and how one is opened by name.

A new kind is one file beside this one, one line in `DATASETS`, and one subclass of the contract test in
`tests/contracts/dataset_contract.py`. Importing this package costs the standard library only, for `vfz --help`'s sake.
"""

from __future__ import annotations

import os
from pathlib import Path

from vfz.pipeline.datasets.base import OnProgress, VideoDataset, VideoRecord
from vfz.pipeline.datasets.folder import FolderDataset
from vfz.pipeline.datasets.hmdb51 import Hmdb51
from vfz.pipeline.datasets.kinetics import Kinetics400, Kinetics600, Kinetics700
from vfz.pipeline.datasets.lists import CsvDataset, ListDataset
from vfz.pipeline.datasets.ssv2 import SomethingSomethingV2
from vfz.pipeline.datasets.synthetic import SyntheticDataset
from vfz.pipeline.datasets.tars import TarsDataset
from vfz.pipeline.datasets.ucf101 import Ucf101
from vfz.pipeline.errors import UsageError
from vfz.pipeline.files import is_address
from vfz.pipeline.registry import Registry

__all__ = ["DATASETS", "VideoDataset", "VideoRecord", "open_dataset"]

DATASETS: Registry[type[VideoDataset]] = Registry("dataset")
DATASETS.register("k400", Kinetics400)
DATASETS.register("k600", Kinetics600)
DATASETS.register("k700", Kinetics700)
DATASETS.register("ssv2", SomethingSomethingV2)
DATASETS.register("ucf101", Ucf101)
DATASETS.register("hmdb51", Hmdb51)
DATASETS.register("folder", FolderDataset)
DATASETS.register("list", ListDataset)
DATASETS.register("csv", CsvDataset)
DATASETS.register("tars", TarsDataset)
DATASETS.register("synthetic", SyntheticDataset)


def find_dataset(name: str, *, root: str | Path | None = None) -> tuple[type[VideoDataset], Path | None]:
    """The kind of dataset that is called `name`, and where its videos lie; as `open_dataset`, but nothing is listed.

    Raises:
        UnknownNameError, UsageError: as `open_dataset`. DatasetError: the root is not there.
    """
    if os.sep in name or (name not in DATASETS and Path(name).is_dir()):
        raise UsageError(f"--dataset {name!r} is a path and not a kind of dataset; give --dataset folder --root {name}")
    kind = DATASETS[name]
    root = None if root is None else Path(root)
    variable = f"VFZ_DATA_{name.upper()}"
    if root is None and os.environ.get(variable):
        root = Path(os.environ[variable])
    if root is None and kind.needs_root:
        raise UsageError(f"dataset {name!r} needs to know where its videos lie; pass --root or set ${variable}")
    if root is not None and is_address(root):
        raise UsageError(f"the root {str(root)!r} of dataset {name!r} is an address; give a folder of this machine")
    if root is not None and kind.needs_root and not root.exists():
        kind.open(root)  # which says what is expected there
    return kind, root


def open_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    num_videos: int | None = None,
    num_frames: int | None = None,
    size: int | None = None,
    seed: int | None = None,
    on_progress: OnProgress | None = None,
    prepare: bool = True,
) -> VideoDataset:
    """The dataset called `name`, ready to be listed; `synthetic` is rendered first where it is not there.

    Args:
        name: a key of `DATASETS`.
        root: where the videos lie; default: the environment variable `VFZ_DATA_<NAME>`, then for `synthetic` the folder
            `data/<its name>`.
        num_videos: `synthetic` only: how many videos (480).
        num_frames: `synthetic` only: frames per video (12).
        size: `synthetic` only: side of the frames in pixels (96).
        seed: `synthetic` only: which videos (0).
        on_progress: called as `on_progress(done, total)` while files are made.
        prepare: without, nothing is made, and only `planned_videos` may be called.

    Raises:
        UnknownNameError: no such dataset.
        UsageError: a number that this dataset does not take or that is out of range, a root that is needed, or one that
            is an address such as s3://….
        DatasetError: the root is not there, or is not such a dataset.
        StorageError: the files could not be written.
    """
    kind, root = find_dataset(name, root=root)
    numbers = {"num_videos": num_videos, "num_frames": num_frames, "size": size, "seed": seed}
    options = {key: number for key, number in numbers.items() if number is not None}
    for key in options:
        if key not in kind.option_names:
            takers = ", ".join(other for other, cls in DATASETS.items() if key in cls.option_names)
            raise UsageError(f"--{key.replace('_', '-')} belongs to dataset {takers}, not to {name!r}; leave it out")
    dataset = kind.open(root, **options)
    if prepare:
        dataset.prepare(on_progress=on_progress)
    return dataset
