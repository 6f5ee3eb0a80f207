"""Creating a cache: whole or not at all, by one process."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from helpers.tiny_cache import COLUMNS, FINGERPRINT, RECIPE, add_layer, calibration_of, contents_of, new_cache

import vfz.pipeline.format.header
from vfz.pipeline.errors import CacheFormatError, StorageError
from vfz.pipeline.files import checked_json_bytes
from vfz.pipeline.format.calibration import write_calibration
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.header import Contents, contents_paths, create_cache, read_header

pytestmark = pytest.mark.quick


def _create(folder: Path, *, also=lambda _: None, **changes) -> bool:
    def fill(inside: Path) -> Contents:
        also(inside)
        return contents_of(inside)

    return create_cache(folder, **{"recipe": RECIPE, "provenance": {}, "fill": fill, **changes})


def _other(number: int) -> dict:
    return {**RECIPE, "number": number}


def test_the_header_reads_back(tmp_path):
    assert _create(
        tmp_path / "cache", provenance={"host": "a"}, also=lambda inside: (inside / "golden/a").write_text("b")
    )
    header = read_header(tmp_path / "cache")
    assert (header.recipe, header.provenance, header.precision) == (RECIPE, {"host": "a"}, "fp16")
    assert header.contents == contents_of(tmp_path / "cache")
    assert header.fingerprint == FINGERPRINT
    assert [column.key for column in header.contents.columns] == [
        f"layer_{layer}/{part}" for layer in (2, 11) for part in ("patch", "prefix")
    ]
    assert (tmp_path / "cache/golden/a").read_text() == "b"


def test_a_cache_that_is_there_is_kept(tmp_path):
    assert _create(tmp_path / "cache")
    before = (tmp_path / "cache/vfz.json").read_bytes()
    assert not _create(tmp_path / "cache", recipe=_other(1), also=lambda _: pytest.fail("not needed"))
    assert (tmp_path / "cache/vfz.json").read_bytes() == before


def test_a_cache_that_appears_meanwhile_is_kept(tmp_path):
    def slowly(inside: Path) -> None:
        (inside / "golden/mine").touch()
        _create(tmp_path / "cache", recipe=_other(1))

    assert not _create(tmp_path / "cache", also=slowly)
    assert read_header(tmp_path / "cache").recipe == _other(1)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/thesis.tex").touch()
    with pytest.raises(CacheFormatError, match="exists and is not a cache"):
        _create(tmp_path / "cache")
    assert [path.name for path in tmp_path.rglob("*")] == ["cache", "thesis.tex"]


def test_an_error_while_creating_leaves_nothing(tmp_path):
    def break_off(inside: Path) -> None:
        (inside / "golden/half").touch()
        raise RuntimeError("no such video")

    with pytest.raises(RuntimeError, match="no such video"):
        _create(tmp_path / "cache", also=break_off)
    assert list(tmp_path.iterdir()) == []


def _create_in_child(folder: Path, number: int, barrier, results) -> None:
    barrier.wait(30)
    created = _create(folder, recipe=_other(number), also=lambda inside: (inside / f"golden/{number}").touch())
    results.put((number, created))


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
    assert read_header(tmp_path / "cache").recipe == _other(winner)
    assert [path.name for path in (tmp_path / "cache/golden").iterdir()] == [str(winner)]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("store", None, "fields"),
        ("layers", {}, "layers is empty"),
        ("layers.2.patch.num_tokens", 0, "has 0 tokens"),
        ("layers.2.patch.extra", 1, "expected"),
        ("layers.2.cls", {"num_tokens": 1, "dim": 8, "compression": "none", "calibration_sha256": None}, "part is"),
        ("golden", {"../../etc/passwd": "0"}, "outside golden"),
    ],
)
def test_contents_that_make_no_sense_are_refused_with_the_file_and_the_reason(tmp_path, path, value, message):
    new_cache(tmp_path / "cache")
    header = read_header(tmp_path / "cache")
    contents = header.contents.to_dict()
    *parents, last = path.split(".")
    target = contents
    for name in parents:
        target = target[name]
    target[last] = value
    if value is None:
        del target[last]
    record = {"recipe": RECIPE, "fingerprint": FINGERPRINT, "provenance": {}, "contents": contents}
    (tmp_path / "cache/vfz.json").write_bytes(checked_json_bytes(record))
    with pytest.raises(CacheFormatError, match=rf"vfz\.json is damaged: .*{message}"):
        read_header(tmp_path / "cache")


def test_contents_grow_by_files_that_are_written_once(tmp_path):
    folder = tmp_path / "cache"
    new_cache(folder)
    before = (folder / "vfz.json").read_bytes()
    assert add_layer(folder, "23").layers.keys() == {"2", "11", "23"}
    assert add_layer(folder, "5").layers.keys() == {"2", "5", "11", "23"}
    cache = CacheFolder(folder)
    contents = cache.contents()
    assert list(contents.layers) == ["2", "5", "11", "23"]
    there = [write_calibration(folder, column, calibration_of(column)) for column in COLUMNS]
    assert cache.add_columns(there, {}) == contents, "they are there"
    assert [path.name for path in contents_paths(folder)] == ["1.json", "2.json"]
    assert (folder / "vfz.json").read_bytes() == before
    (folder / "contents/1.json").unlink()
    with pytest.raises(CacheFormatError, match="one is missing"):
        cache.contents()


@pytest.mark.parametrize(
    ("number", "advice"), [("ENOSPC", "free some space"), ("EDQUOT", "quota"), ("EROFS", "can be written")]
)
def test_errors_of_the_disk_say_what_to_do(tmp_path, monkeypatch, number, advice):
    import errno

    def refuse(folder: Path) -> None:
        code = getattr(errno, number)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(vfz.pipeline.format.header, "fsync_tree", refuse)
    with pytest.raises(StorageError, match=rf"cannot write .*cache: .*; .*{advice}"):
        _create(tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []
