"""Kinetics-400, -600 and -700: CSV annotations, and clips named after YouTube id, start and end.

    <root>/train.csv, val.csv or validate.csv, test.csv    or under <root>/annotations/; also kinetics-400_train.csv …
    <root>/**/<youtube id>_<start:06d>_<end:06d>.mp4       flat, in class, split or split and class folders
    <root>/replacement/**                                  clips that stand for broken ones of the same name

The columns are `label,youtube_id,time_start,time_end,split`; others are ignored. Labels count the class names of all
splits in alphabetical order, which is the official one; the test split may have none. Class folders may be called
anything, as the label stands in the CSV; so may a clip's suffix. An id is `<youtube id>_<start>_<end>`. Copies are
seldom complete, since videos vanish from YouTube: 240,000 clips are listed in a few seconds, there or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from vfz.pipeline.datasets.annotations import (
    AnnotatedDataset,
    Listing,
    VideoFiles,
    check_name,
    check_number,
    first_file,
)
from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.datasets.text import Place, read_csv
from vfz.pipeline.errors import DatasetError

_SPLITS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
_Row = tuple[Place, str, dict[str, str]]


class _Kinetics(AnnotatedDataset):
    layout = "a folder with train.csv, val.csv or test.csv and clips <youtube id>_<start>_<end>.mp4"
    num_classes: ClassVar[int]

    def read_annotations(self, root: Path) -> Listing:
        """See `AnnotatedDataset.read_annotations`."""
        paths = self._find_annotations(root)
        rows = [row for name, path in paths.items() for row in _read_split(path, _SPLITS[name])]
        class_names = tuple(sorted({row["label"] for _, _, row in rows if row.get("label")}))
        labels = {name: label for label, name in enumerate(class_names)}
        files = VideoFiles(root, annotations=paths.values(), replacements="replacement")
        records = [(place, _record(place, split, row, labels, files)) for place, split, row in rows]
        if not files.num_found:
            raise self.nothing_there(root, f"none of the {len(records)} clips that its annotations name")
        return Listing(name=f"k{self.num_classes}", class_names=class_names, records=records, left_out=files.left_out())

    def _find_annotations(self, root: Path) -> dict[str, Path]:
        folders = (root, root / "annotations")
        files = {
            name: path
            for name in _SPLITS
            if (path := first_file(folders, (f"{name}.csv", f"kinetics-{self.num_classes}_{name}.csv")))
        }
        if not files:
            tried = " or ".join(f"{name}.csv" for name in _SPLITS)
            raise self.nothing_there(root, f"no {tried} (also tried: annotations/, kinetics-{self.num_classes}_….csv)")
        return files


class Kinetics400(_Kinetics):
    """Kinetics-400 (arXiv 1705.06950)."""

    num_classes = 400


class Kinetics600(_Kinetics):
    """Kinetics-600 (arXiv 1808.01340)."""

    num_classes = 600


class Kinetics700(_Kinetics):
    """Kinetics-700 and Kinetics-700-2020 (arXiv 1907.06987, 2010.10864)."""

    num_classes = 700


def _read_split(path: Path, split: str) -> Iterator[_Row]:
    required, optional = ["youtube_id", "time_start", "time_end"], ["split"]
    (optional if split == "test" else required).append("label")
    for place, row in read_csv(path, required=required, optional=optional):
        if split != "test" and not row["label"]:
            raise DatasetError(f"{place}: no label; only the test split may have none")
        named = row.get("split") or split
        if named not in _SPLITS:
            raise DatasetError(f"{place}: the split {named!r} is none of {', '.join(_SPLITS)}")
        yield place, _SPLITS[named], row


def _record(place: Place, split: str, row: dict[str, str], labels: dict[str, int], files: VideoFiles) -> VideoRecord:
    youtube_id = check_name(row["youtube_id"], place)
    start = check_number(row["time_start"], place, what="time_start")
    end = check_number(row["time_end"], place, what="time_end")
    stem = f"{youtube_id}_{start:06d}_{end:06d}"
    return VideoRecord(
        id=f"{youtube_id}_{start}_{end}",
        source=files.source(stem, expected=f"{stem}.mp4"),
        split=split,
        label=labels[row["label"]] if row.get("label") else None,
    )
