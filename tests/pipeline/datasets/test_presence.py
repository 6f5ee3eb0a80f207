"""Which files of a dataset are there is found out from listings of its folders, and said before anything else."""

import pytest

from vfz.pipeline.datasets.base import FEW_FILES, VideoRecord, present_ids
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.progress import SilentProgress


def _record(path, **place):
    return VideoRecord(id=str(path), source=VideoSource(path=path, **place), split="train", label=None)


@pytest.mark.parametrize("num_others", [0, 2 * FEW_FILES])
def test_what_is_there_is_what_exists(tmp_path, num_others):
    """Few files are asked for by name, many are found in the listing of their folder: the answer is the same."""
    names = ["file.mp4", "-dash.mp4", "naïve 100%.mp4", "folder.mp4", "link.mp4", "broken.mp4", "loop.mp4", "gone.mp4"]
    paths = [tmp_path / name for name in names]
    for path in paths[:3]:
        path.write_bytes(b"1")
    paths[3].mkdir()
    paths[4].symlink_to(paths[0])
    paths[5].symlink_to(paths[7])
    paths[6].symlink_to(paths[6])
    paths += [tmp_path / "no folder" / "a.mp4", paths[0] / "below a file.mp4", tmp_path / ("long" * 100)]
    others = [tmp_path / f"{number}.mp4" for number in range(num_others)]
    for path in others:
        path.touch()
    records = [_record(path) for path in [*paths, *others]]
    there = present_ids(records)
    assert there == {record.id for record in records if record.source.exists()}
    assert there == {str(path) for path in [*paths[:5], *others]}


def test_videos_of_a_tar_are_there_when_it_is(tmp_path):
    (tmp_path / "a.tar").touch()
    here = _record(tmp_path / "a.tar", member="x.mp4", offset=512, num_bytes=10)
    gone = _record(tmp_path / "b.tar", member="x.mp4", offset=512, num_bytes=10)
    assert present_ids([here, gone]) == {here.id}


class _Notes(SilentProgress):
    def __init__(self):
        self.told = []

    def start(self, task, *, total, unit):
        self.told.append(task)

    def note(self, text):
        self.told.append(text)


def test_missing_files_are_told_before_the_extraction_and_are_no_failures(folder_dataset, tmp_path):
    options = ExtractOptions(
        dataset="folder", root=folder_dataset, encoder="vit_tiny_patch16_224", random_weights=True, image_size=64,
        layers=("2",), parts=("patch",), fps=1, batch_size=8, out=tmp_path / "caches", max_failures=0,
    )  # fmt: skip
    (folder_dataset / "train/traffic/gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    notes = _Notes()
    report = extract(options, progress=notes)
    assert (report.num_ok, report.num_missing, report.num_failed) == (4, 1, 0)
    assert notes.told.index("clips: 5 videos listed, 1 of them missing (20.0%)") < notes.told.index("extracting")
    (folder_dataset / "train/traffic/gone.mp4").unlink()
    notes = _Notes()
    extract(options, progress=notes)
    assert not any("listed" in text for text in notes.told)
