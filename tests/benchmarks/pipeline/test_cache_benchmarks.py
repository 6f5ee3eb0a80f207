"""What the cache claims: speed of windows and writing, bytes moved, size and error of precisions, opening, accuracy."""

import os

import pytest
import torch
from benchmarks.pipeline.cache_open import measure_opening
from benchmarks.pipeline.cache_reads import batch_rows, expansion_rows
from benchmarks.pipeline.precision_accuracy import accuracy_changes
from benchmarks.pipeline.precision_error import precision_rows
from benchmarks.pipeline.store_reads import moved_rows, window_rows, writing_rows

pytestmark = pytest.mark.bench


@pytest.fixture(autouse=True)
def _one_copying_thread():
    """The copies that vfz is measured against are made by one thread; torch must not use more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


stores = pytest.mark.parametrize("store", ["zarr", "webdataset"])


@stores
@pytest.mark.parametrize("dim", [384, 1024])
@pytest.mark.parametrize(("precision", "goal"), [("fp16", "at least 0.9"), ("int8", "at least 1.4")])
def test_windows_against_copying_out_of_a_mapped_file(record, tmp_path, store, dim, precision, goal):
    for row in window_rows(store, tmp_path, dim=dim, precision=precision):
        record(**row._asdict(), goal=goal if ",never]" in row.name else "")


@stores
@pytest.mark.parametrize("dim", [384, 1024])
@pytest.mark.parametrize(("precision", "goal"), [("fp16", "at least 0.9"), ("int8", "at least 1.4")])
def test_batches_of_a_cache_against_copying_out_of_a_mapped_file(record, tmp_path, store, dim, precision, goal):
    for row in batch_rows(store, tmp_path, dim=dim, precision=precision):
        record(**row._asdict(), goal=goal)


@pytest.mark.parametrize("dim", [384, 1024])
def test_expansion_to_float32(record, dim):
    for row in expansion_rows(dim=dim):
        record(**row._asdict())


@stores
def test_bytes_that_leave_the_disk_for_a_part(record, tmp_path, store):
    for row in moved_rows(store, tmp_path):
        record(**row._asdict(), goal="at most 1.1")


@stores
def test_writing_against_a_plain_write_with_fsync(record, tmp_path, store):
    for row in writing_rows(store, tmp_path):
        record(**row._asdict(), goal="at least 0.5" if "writing" in row.name else "")


def test_error_and_size_of_the_precisions(record):
    for row in precision_rows():
        name = f"{row.precision}, {row.name}"
        record(f"error[{name}]", value=row.error, unit="", baseline="the limit", baseline_value=row.limit, goal="<= 1")
        goal = {"int8": "at most 0.51", "int4": "at most 0.27"}[row.precision]
        record(f"bytes[{name}]", value=row.bytes_ratio, unit="", baseline="fp16", baseline_value=1, goal=goal)


def test_opening_240000_videos(record):
    opening = measure_opening()
    for name, value, unit, limit in (
        ("opening[seconds]", opening.seconds, "s", 2),
        ("opening[memory]", opening.peak_mb, "MB", 500),
    ):
        record(name, value=value, unit=unit, baseline="the limit", baseline_value=limit, goal="at most 1")


def test_what_precision_costs_in_accuracy(record, tmp_path):
    torch.set_num_threads(os.cpu_count() or 1)
    limits = {"int8": 0.5, "int4": 2.0}
    for change in accuracy_changes(tmp_path):
        record(
            f"accuracy lost[{change.precision}, {change.name}, +- {change.standard_error_points:.2f} s.e.]",
            value=-change.change_points,
            unit=f"points of {change.fp16_percent:.1f}%",
            baseline="the limit",
            baseline_value=limits[change.precision],
            goal="at most 1",
        )
