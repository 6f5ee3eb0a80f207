"""UCF101: class folders, and three official divisions into training and test videos.

    <root>/classInd.txt                     lines `<index from 1> <class>`
    <root>/trainlist01.txt … 03             lines `<class>/<video>.avi <index>`
    <root>/testlist01.txt … 03              lines `<class>/<video>.avi`
    <root>/**/<class>/<video>.avi           in <root>, UCF-101/ or any other folder

The lists may lie in ucfTrainTestlist/ or splits/ as well. Labels count from 0 in the order of `classInd.txt`. An id is
`<class>/<video>`. A video's split is that of the first list there is, and its folds are `fold1`, `fold2`, `fold3`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vfz.pipeline.datasets.annotations import (
    AnnotatedDataset,
    Listing,
    VideoFiles,
    check_name,
    check_number,
    find_label,
    first_file,
)
from vfz.pipeline.datasets.folds import FoldEntry, records_of_folds
from vfz.pipeline.datasets.text import Place, read_lines, split_last
from vfz.pipeline.errors import DatasetError


class Ucf101(AnnotatedDataset):
    """UCF101 (arXiv 1212.0402)."""

    layout = "a folder with classInd.txt, trainlist01.txt, testlist01.txt … and videos <class>/<video>.avi"

    def read_annotations(self, root: Path) -> Listing:
        """See `AnnotatedDataset.read_annotations`."""
        classes_path = first_file((root, root / "ucfTrainTestlist", root / "splits"), ("classInd.txt",))
        if classes_path is None:
            raise self.nothing_there(root, "no classInd.txt (also tried: ucfTrainTestlist/, splits/)")
        class_names = _read_classes(classes_path)
        files = VideoFiles(root, annotations=[classes_path, *_lists_beside(classes_path).values()], by_class=True)
        entries = list(_read_lists(classes_path, class_names))
        if not entries:
            raise self.nothing_there(classes_path.parent, "no video in trainlist01.txt, testlist01.txt …")
        records = records_of_folds(entries, files)
        if not files.num_found:
            raise self.nothing_there(root, f"none of the {len(records)} videos that its lists name")
        return Listing(name="ucf101", class_names=class_names, records=records, left_out=files.left_out())


def _read_classes(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for place, line in read_lines(path):
        index, *rest = line.split(maxsplit=1)
        name = "".join(rest)
        if check_number(index, place, what="index") != len(names) + 1 or check_name(name, place) in names:
            raise DatasetError(f"{place}: {line!r}, where the index {len(names) + 1} and a new class were expected")
        names.append(name)
    return tuple(names)


def _lists_beside(classes_path: Path) -> dict[tuple[int, str], Path]:
    """The list of each fold and split, there or not."""
    folds = [(number, split) for number in (1, 2, 3) for split in ("train", "test")]
    return {(number, split): classes_path.with_name(f"{split}list0{number}.txt") for number, split in folds}


def _read_lists(classes_path: Path, class_names: tuple[str, ...]) -> Iterator[FoldEntry]:
    labels = {name: label for label, name in enumerate(class_names)}
    for (number, split), path in _lists_beside(classes_path).items():
        for place, line in read_lines(path) if path.is_file() else ():
            # The training lists give an index after the last space, the test lists nothing.
            name, index = split_last(line) if split == "train" else (line, "")
            class_name, file_name = _split_path(name, place)
            label = find_label(class_name, labels, place, where=classes_path)
            if index and check_number(index, place, what="index") != label + 1:
                raise DatasetError(f"{place}: the index {index}, but {class_name!r} is {label + 1} in {classes_path}")
            yield FoldEntry(
                place=place,
                fold=f"fold{number}",
                split=split,
                class_name=class_name,
                file_name=file_name,
                label=label,
            )


def _split_path(name: str, place: Place) -> tuple[str, str]:
    parts = PurePosixPath(name).parts
    if len(parts) != 2:
        raise DatasetError(f"{place}: {name!r} is not <class>/<video>")
    return check_name(parts[0], place), check_name(parts[1], place)
