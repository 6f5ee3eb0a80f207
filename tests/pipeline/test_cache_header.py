"""Creating a cache: whole or not at all, by one process."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from contracts.tiny_cache import CONTENTS, FINGERPRINT, RECIPE

import vfz.pipeline.cache_header
from vfz.pipeline.cache_header import create_cache, read_header
from vfz.pipeline.errors import CacheFormatError, StorageError


def _create(folder: Path, **changes) -> bool:
    return create_cache(folder, **{"recipe": RECIPE, "contents": CONTENTS, "provenance": {}, "golden": None, **changes})


def test_the_header_reads_back(tmp_path):
    assert _create(tmp_path / "cache", provenance={"host": "a"}, golden=lambda inside: (inside / "a").write_text("b"))
    header = read_header(tmp_path / "cache")
    assert (header.recipe, header.contents, header.provenance) == (RECIPE, CONTENTS, {"host": "a"})
    assert header.fingerprint == FINGERPRINT
    assert [column.key for column in header.columns] == [
        f"layer_{layer}/{part}" for layer in (2, 11) for part in ("patch", "prefix")
    ]
    assert (tmp_path / "cache/golden/a").read_text() == "b"


def test_a_cache_that_is_there_is_kept(tmp_path):
    assert _create(tmp_path / "cache")
    before = (tmp_path / "cache/vfz.json").read_bytes()
    assert not _create(tmp_path / "cache", recipe={"other": 1}, golden=lambda _: pytest.fail("not needed"))
    assert (tmp_path / "cache/vfz.json").read_bytes() == before


def test_a_cache_that_appears_meanwhile_is_kept(tmp_path):
    def slow_golden(inside: Path) -> None:
        (inside / "mine").touch()
        _create(tmp_path / "cache", recipe={"first": 1})

    assert not _create(tmp_path / "cache", golden=slow_golden)
    assert read_header(tmp_path / "cache").recipe == {"first": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/thesis.tex").touch()
    with pytest.raises(CacheFormatError, match="exists and is not a cache"):
        _create(tmp_path / "cache")
    assert [path.name for path in tmp_path.rglob("*")] == ["cache", "thesis.tex"]


def test_an_error_while_creating_leaves_nothing(tmp_path):
    def golden(inside: Path) -> None:
        (inside / "half").touch()
        raise RuntimeError("no such video")

    with pytest.raises(RuntimeError, match="no such video"):
        _create(tmp_path / "cache", golden=golden)
    assert list(tmp_path.iterdir()) == []


def _create_in_child(folder: Path, number: int, barrier, results) -> None:
    barrier.wait(30)
    results.put((number, _create(folder, recipe={"number": number}, golden=lambda p: (p / str(number)).touch())))


def test_of_several_processes_creating_a_cache_one_wins(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=_create_in_child, args=(tmp_path / "cache", number, barrier, results))
        for number in range(3)
    ]
    for process in processes:
        process.start()
    outcomes = dict(results.get(timeout=30) for _ in processes)
    for process in processes:
        process.join(30)
    (winner,) = (number for number, won in outcomes.items() if won)
    assert read_header(tmp_path / "cache").recipe == {"number": winner}
    assert [path.name for path in (tmp_path / "cache/golden").iterdir()] == [str(winner)]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize("missing", ["dataset", "class_names", "layers", "dtype", "splits", "views"])
def test_contents_must_say_everything(tmp_path, missing):
    contents = {name: value for name, value in CONTENTS.items() if name != missing}
    with pytest.raises(TypeError, match=f"contents.{missing} is None"):
        _create(tmp_path / "cache", contents=contents)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "advice"), [("ENOSPC", "free some space"), ("EDQUOT", "quota"), ("EROFS", "can be written")]
)
def test_errors_of_the_disk_say_what_to_do(tmp_path, monkeypatch, number, advice):
    import errno

    def refuse(folder: Path) -> None:
        code = getattr(errno, number)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(vfz.pipeline.cache_header, "fsync_tree", refuse)
    with pytest.raises(StorageError, match=rf"cannot write .*cache: .*; .*{advice}"):
        _create(tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []
