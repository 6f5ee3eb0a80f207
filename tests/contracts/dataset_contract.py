"""What every kind of dataset promises: subclass `DatasetContract` as `Test<Kind>`, with an `open_again` fixture.

Kinds whose annotations say which videos there are subclass `AnnotatedDatasetContract`. Those that read what people
write, be it names of folders only, have a subclass of `ReadingContract` as well.
"""

from __future__ import annotations

import re
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.video_files import Dress
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfz.pipeline.datasets import DATASETS, VideoDataset, VideoRecord, open_dataset
from vfz.pipeline.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable


class DatasetContract:
    @pytest.fixture
    def open_again(self) -> Callable[[], VideoDataset]:
        """Opens the same dataset anew at every call."""
        raise NotImplementedError

    @pytest.fixture
    def dataset(self, open_again: Callable[[], VideoDataset]) -> VideoDataset:
        return open_again()

    @pytest.fixture
    def records(self, dataset: VideoDataset) -> list[VideoRecord]:
        return dataset.videos()

    def test_its_kind_is_registered(self, dataset):
        assert type(dataset) in DATASETS.values()

    def test_there_are_videos_and_their_places_lie_under_the_root(self, dataset, records):
        assert any(record.source.path.is_file() for record in records)
        for record in records:
            assert record.source.path.is_relative_to(dataset.root)
            assert ".." not in record.source.path.parts

    def test_ids_are_unique_and_can_be_written_as_text(self, records):
        assert len({record.id for record in records}) == len(records)
        for record in records:
            assert record.id.encode().decode() == record.id

    def test_videos_are_sorted_by_id_within_a_split(self, records):
        for split in {record.split for record in records}:
            ids = [record.id for record in records if record.split == split]
            assert ids == sorted(ids)

    def test_labels_index_the_class_names(self, dataset, records):
        assert len(set(dataset.class_names)) == len(dataset.class_names)
        for record in records:
            assert record.label is None or 0 <= record.label < len(dataset.class_names)

    def test_every_split_has_a_name_and_videos(self, records):
        counts = Counter(record.split for record in records)
        assert all(split and count for split, count in counts.items())

    def test_listing_twice_gives_the_same_records_in_a_list_of_its_own(self, dataset, records):
        again = dataset.videos()
        assert again == records
        again.clear()
        assert dataset.videos() == records

    def test_records_survive_opening_the_dataset_again(self, open_again, dataset, records):
        other = open_again()
        assert other.videos() == records
        assert (other.name, other.class_names, other.targets_path) == (
            dataset.name,
            dataset.class_names,
            dataset.targets_path,
        )

    def test_the_name_is_safe_as_a_folder_name(self, dataset):
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", dataset.name)

    def test_the_sampling_rate_is_positive(self, dataset):
        assert dataset.default_fps > 0


class AnnotatedDatasetContract(DatasetContract):
    def test_a_video_that_is_not_there_is_listed_as_before_but_for_its_place(self, open_again, records):
        present = [record for record in records if record.source.exists()]
        present[0].source.path.unlink()
        again = open_again().videos()
        assert [(r.id, r.split, r.label, r.folds) for r in again] == [
            (r.id, r.split, r.label, r.folds) for r in records
        ]
        assert [r.id for r in again if r.source.exists()] == [r.id for r in present[1:]]

    def test_where_no_video_is_there_at_all_the_error_names_the_root_and_what_belongs_there(
        self, open_again, dataset, records
    ):
        for record in records:
            record.source.path.unlink(missing_ok=True)
        with pytest.raises(DatasetError, match=rf"{re.escape(str(dataset.root))}.* has none of the .*; give --root "):
            open_again()

    def test_a_root_that_is_not_there_is_told(self, dataset, tmp_path):
        with pytest.raises(DatasetError, match="nowhere does not exist; give --root "):
            type(dataset).open(tmp_path / "nowhere")


NAMES = st.text("abzAZ09 ,;'\"éüñÅ한ệ_-()", min_size=1, max_size=8).map(str.strip).filter(bool)
"""As people call videos and classes; composed (NFC), and without blanks at the ends."""
TABLES = st.lists(
    st.tuples(NAMES, st.integers(0, 3), st.booleans()), min_size=1, max_size=6, unique_by=lambda row: row[0].casefold()
)
DRESSES = st.builds(
    Dress,
    random=st.randoms(use_true_random=False),
    newline=st.sampled_from(["\n", "\r\n"]),
    delimiter=st.sampled_from([",", ";", "\t"]),
)


class ReadingContract:
    """A table of videos comes back, however it is dressed up.

    Attributes:
        kind: its name.
        splits: two that it has.
    """

    kind: str
    splits = ("train", "val")

    def write(self, root: Path, rows: list[tuple[str, str, str]], dress: Dress) -> dict[str, tuple[str, str]]:
        """Writes videos of (name, class, split); gives split and class by the id that each is to have."""
        raise NotImplementedError

    @settings(
        max_examples=30, deadline=None, suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow]
    )
    @given(TABLES, NAMES, DRESSES)
    def test_a_table_comes_back_however_it_is_dressed_up(self, table, class_name, dress):
        # of `k` and not a number, since classes are either all numbers or none
        rows = [(name, f"k{number} {class_name}", self.splits[is_second]) for name, number, is_second in table]
        with tempfile.TemporaryDirectory() as folder:
            expected = self.write(Path(folder), rows, dress)
            dataset = open_dataset(self.kind, root=folder)
            records = dataset.videos()
            assert {r.id: (r.split, dataset.class_names[r.label]) for r in records} == expected
            assert all(record.source.exists() for record in records)
            assert all(unicodedata.is_normalized("NFC", record.id) for record in records)
            assert set(dataset.left_out.reasons) <= {"hidden"}
