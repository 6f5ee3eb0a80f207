"""Something-Something V2: JSON annotations, templates as classes, `<id>.webm`.

    <root>/train.json, validation.json, test.json, labels.json    or something-something-v2-train.json …,
                                                                  or under <root>/labels/ or <root>/annotations/
    <root>/**/<id>.webm                                           flat, in videos/ or 20bn-something-something-v2/

A video's class is its template without brackets, and `labels.json` maps that to the official label. The test split has
no templates and so no labels. Videos are sampled at 6 frames a second unless told otherwise, half of their rate.
Mirroring is refused: many classes differ in left and right only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vfz.pipeline.datasets.annotations import (
    AnnotatedDataset,
    Listing,
    VideoFiles,
    check_name,
    check_number,
    find_label,
    first_file,
)
from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.datasets.text import Place, clean, read_json
from vfz.pipeline.errors import DatasetError

_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_PREFIX = "something-something-v2-"


class SomethingSomethingV2(AnnotatedDataset):
    """Something-Something V2 (arXiv 1706.04261, 1804.09235)."""

    layout = "a folder with labels.json, train.json, validation.json or test.json and videos <id>.webm"
    can_flip = False
    default_fps = 6.0

    def read_annotations(self, root: Path) -> Listing:
        """See `AnnotatedDataset.read_annotations`."""
        labels_path = _find(root, "labels")
        paths = {name: path for name in _SPLITS if (path := _find(root, name))}
        if labels_path is None or not paths:
            missing = "labels.json" if labels_path is None else "train.json, validation.json or test.json"
            raise self.nothing_there(root, f"no {missing} (also tried: labels/, annotations/, {_PREFIX}….json)")
        labels = _read_labels(labels_path)
        files = VideoFiles(root, annotations=[labels_path, *paths.values()])
        records = [
            (place, _record(place, entry, split=_SPLITS[name], labels=labels, labels_path=labels_path, files=files))
            for name, path in paths.items()
            for place, entry in _read_entries(path)
        ]
        if not files.num_found:
            raise self.nothing_there(root, f"none of the {len(records)} videos that its annotations name")
        return Listing(
            name="ssv2",
            class_names=tuple(sorted(labels, key=labels.__getitem__)),
            records=records,
            left_out=files.left_out(),
        )


def _find(root: Path, name: str) -> Path | None:
    return first_file((root, root / "labels", root / "annotations"), (f"{_PREFIX}{name}.json", f"{name}.json"))


def _read_labels(path: Path) -> dict[str, int]:
    labels = {
        clean(name): check_number(clean(str(label)), Place(path, number, "entry"), what=f"label of {name!r}")
        for number, (name, label) in enumerate(read_json(path, dict).items(), start=1)
    }
    if sorted(labels.values()) != list(range(len(labels))):
        raise DatasetError(f"{path}: its {len(labels)} labels are not the numbers 0 to {len(labels) - 1}, each once")
    return labels


def _read_entries(path: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    for number, entry in enumerate(read_json(path, list), start=1):
        place = Place(path, number, "entry")
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str | int):
            raise DatasetError(f"{place}: not a dictionary with an id: {entry!r:.80}")
        yield place, entry


def _record(
    place: Place, entry: dict[str, Any], *, split: str, labels: dict[str, int], labels_path: Path, files: VideoFiles
) -> VideoRecord:
    video_id = check_name(clean(str(entry["id"])), place)
    label = None
    if split != "test":
        if not isinstance(entry.get("template"), str):
            raise DatasetError(f"{place}: no template, which is its class; only the test split may have none")
        template = clean(entry["template"].replace("[", "").replace("]", ""))
        label = find_label(template, labels, place, where=labels_path)
    return VideoRecord(
        id=video_id, source=files.source(video_id, expected=f"{video_id}.webm"), split=split, label=label
    )
