"""Canonical JSON, and files that are whole or not there."""

from __future__ import annotations

import errno
import os

import pytest

from vfz.pipeline.errors import StorageError
from vfz.pipeline.files import canonical_json, storage_errors, write_file_atomic, write_file_once, writer_lock

pytestmark = pytest.mark.quick


def test_canonical_json_is_one_text_per_value():
    assert canonical_json({"b": (1, 2.5, None), "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.5,null]}'
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


def test_the_first_writer_wins_or_the_last_and_no_temporary_file_stays(tmp_path):
    assert write_file_once(tmp_path / "once", b"first")
    assert not write_file_once(tmp_path / "once", b"second")
    write_file_atomic(tmp_path / "latest", b"first")
    write_file_atomic(tmp_path / "latest", b"second")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"once": b"first", "latest": b"second"}


@pytest.mark.parametrize(
    ("call", "number", "advice"),
    [
        ("os.link", errno.EPERM, "on a file system with hard links"),
        ("os.link", errno.EOPNOTSUPP, "on a file system with hard links"),
        ("os.link", errno.ENOSYS, "on a file system with hard links"),
        ("os.link", errno.EMLINK, "choose another folder"),
        ("os.fsync", errno.ENOSPC, "free some space"),
        ("os.fsync", errno.EIO, "see that this disk is in order"),
        ("os.fsync", errno.EINVAL, "fsync"),
        ("os.fsync", errno.ESTALE, "see that this disk is in order"),
        ("fcntl.flock", errno.ENOLCK, "with locks"),
        ("fcntl.flock", errno.EOPNOTSUPP, "with hard links and locks"),
        ("os.rename", errno.EXDEV, "choose another folder"),
        ("io.open", errno.EMFILE, "ulimit -n"),
        ("io.open", errno.EROFS, "choose a folder that can be written"),
    ],
)
def test_whatever_a_disk_cannot_do_is_one_line_that_names_the_file_and_leaves_nothing(
    tmp_path, monkeypatch, call, number, advice
):
    def fail(*_arguments, **_more):
        raise OSError(number, os.strerror(number))

    def lock():
        with writer_lock(tmp_path / "file"):
            pass

    def write():
        write_file_once(tmp_path / "file", b"data")

    action = lock if call in {"fcntl.flock", "os.rename"} else write
    monkeypatch.setattr(call, fail)
    with pytest.raises(StorageError) as raised:
        action()
    monkeypatch.undo()
    message = str(raised.value)
    assert message.startswith(f"cannot write {tmp_path / 'file'}")
    assert os.strerror(number).lower() in message
    assert advice in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [FileExistsError(errno.EEXIST, "there"), OSError("no number"), ValueError("wrong")])
def test_errors_that_no_disk_is_to_blame_for_pass(tmp_path, error):
    with pytest.raises(type(error)) as raised, storage_errors(tmp_path):
        raise error
    assert raised.value is error
