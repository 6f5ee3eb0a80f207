"""Canonical JSON, and files that are whole or not there."""

from __future__ import annotations

import pytest

from vfz.pipeline.files import canonical_json, write_file_atomic, write_file_once

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
