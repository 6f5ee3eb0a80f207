"""HMDB51: class folders, and one file for each class and official fold.

    <root>/**/<class>_test_split<1-3>.txt     lines `<video>.avi <0, 1 or 2>`; all in one of the folders below
    <root>/**/<class>/<video>.avi             in <root> or any folder in it

The files lie in <root>, testTrainMulti_7030_splits/, test_train_splits/ or splits/. 1 is train, 2 is test, and 0 is in
neither: a video's folds (`fold1`, `fold2`, `fold3`) leave that one out, and its split is `unused` where fold 1 does. So
`--splits train,test` extracts fold 1 alone. Labels count the classes in alphabetical order. An id is `<class>/<video>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vfz.pipeline.datasets.annotations import AnnotatedDataset, Listing, VideoFiles, check_name
from vfz.pipeline.datasets.base import is_hidden
from vfz.pipeline.datasets.folds import UNUSED, FoldEntry, records_of_folds
from vfz.pipeline.datasets.text import file_text, read_lines, split_last, trimmed
from vfz.pipeline.errors import DatasetError

_FOLDERS = ("testTrainMulti_7030_splits", "test_train_splits", "splits")
_FILE = re.compile(r"(?P<class_name>.+)_test_split(?P<number>[123])\.txt")
_SPLITS = {"0": UNUSED, "1": "train", "2": "test"}


class Hmdb51(AnnotatedDataset):
    """HMDB51 (Kuehne et al., ICCV 2011)."""

    layout = "a folder with <class>_test_split1.txt … and videos <class>/<video>.avi"

    def read_annotations(self, root: Path) -> Listing:
        """See `AnnotatedDataset.read_annotations`."""
        matches = next((found for folder in _FOLDERS if (found := _split_files(root / folder))), _split_files(root))
        if not matches:
            raise self.nothing_there(root, f"no <class>_test_split1.txt (also tried: {', '.join(_FOLDERS)})")
        class_names = tuple(sorted({trimmed(match["class_name"]) for _, match in matches}))
        labels = {name: label for label, name in enumerate(class_names)}
        files = VideoFiles(root, annotations=[path for path, _ in matches], by_class=True)
        entries = [entry for path, match in matches for entry in _read_split(path, match, labels)]
        records = records_of_folds(entries, files)
        if not files.num_found:
            raise self.nothing_there(root, f"none of the {len(records)} videos that its splits name")
        return Listing(name="hmdb51", class_names=class_names, records=records, left_out=files.left_out())


def _split_files(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    """The split files in a folder, fold by fold; a match is of the name as text."""
    paths = [path for path in folder.iterdir() if not is_hidden(path.name)] if folder.is_dir() else []
    matches = [(path, match) for path in paths if (match := _FILE.fullmatch(file_text(path.name)))]
    return sorted(matches, key=lambda found: (found[1]["number"], found[1].string))


def _read_split(path: Path, match: re.Match[str], labels: dict[str, int]) -> Iterator[FoldEntry]:
    for place, line in read_lines(path):
        name, code = split_last(line)
        if code not in _SPLITS:
            raise DatasetError(f"{place}: {line!r} does not end in 0 (unused), 1 (train) or 2 (test)")
        yield FoldEntry(
            place=place,
            fold=f"fold{match['number']}",
            split=_SPLITS[code],
            class_name=trimmed(match["class_name"]),
            file_name=check_name(name, place),
            label=labels[trimmed(match["class_name"])],
        )
