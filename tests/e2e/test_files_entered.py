"""How many files of the source one extraction and one epoch of training walk through: what a newcomer has to read.

`pytest -s tests/e2e/test_files_entered.py` prints both numbers with the files.
"""

import dataclasses
import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vfz.pipeline import ExtractOptions, extract
from vfz.pipeline.progress import SilentProgress
from vfz.temporal import TrainOptions, train_temporal

SOURCE = Path(__file__).parents[2]
MOST_FILES_OF_AN_EXTRACTION = 50
MOST_FILES_OF_AN_EPOCH = 40


@contextmanager
def _entered() -> Iterator[set[str]]:
    """The source files whose functions are called in the block, by this thread or one started in it."""
    codes = set()

    def note(frame, event, _argument):
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # bodies of modules and classes are not
            codes.add(frame.f_code.co_filename)

    files: set[str] = set()
    before = sys.getprofile()
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(before)
        threading.setprofile(before)
        paths = {Path(code).resolve() for code in codes}
        files |= {path.relative_to(SOURCE).as_posix() for path in paths if path.is_relative_to(SOURCE)}


class _EpochProgress(SilentProgress):
    """Notes the files entered between the beginning of the first epoch and its end, before it is evaluated."""

    def __init__(self):
        self.files: set[str] | None = None
        self._tracing = None

    def start(self, name, *, total, unit):
        if name.startswith("epoch 1/"):
            self._tracing = _entered()
            self.files = self._tracing.__enter__()

    def finish(self):
        if self._tracing is not None:
            self._tracing.__exit__(None, None, None)
            self._tracing = None


def _told(what, files):
    print(f"\n{what}: {len(files)} files\n  " + "\n  ".join(sorted(files)))


def test_an_extraction_and_an_epoch_of_training_go_through_few_files(tmp_path):
    options = ExtractOptions(
        dataset="synthetic",
        root=tmp_path / "videos",
        num_videos=12,
        num_frames=12,
        size=48,
        encoder="vit_tiny_patch16_224",
        random_weights=True,
        image_size=32,
        layers=("11",),
        out=tmp_path / "first",
        device="cpu",
    )
    extract(options)  # renders the videos and imports what is imported once
    with _entered() as files:
        report = extract(dataclasses.replace(options, out=tmp_path / "second"))
    assert report.num_ok == 12
    of_pipeline = {name for name in files if name.startswith("pipeline/")}
    _told("an extraction of one shard enters, in the parent", of_pipeline)
    assert len(of_pipeline) <= MOST_FILES_OF_AN_EXTRACTION

    training = TrainOptions(
        cache=(Path(report.cache),), core="gmmix", epochs=1, batch_size=4, out=tmp_path / "runs", device="cpu"
    )
    progress = _EpochProgress()
    train_temporal(training, progress=progress)
    of_product = {name for name in progress.files if name.startswith(("pipeline/", "temporal/"))}
    _told("an epoch of training enters", of_product)
    assert "temporal/cores/selective_scan.py" in of_product, "the trace sees what a step does"
    assert "pipeline/stores/mapped.py" in of_product, "the trace sees the thread that reads"
    assert len(of_product) <= MOST_FILES_OF_AN_EPOCH
