"""Canonical JSON, digests of source files, and files that are whole or not there."""

from __future__ import annotations

import hashlib

import pytest

from vfz.pipeline.files import canonical_json, source_digest, write_file_atomic, write_file_once


def test_canonical_json_is_one_text_per_value():
    assert canonical_json({"b": (1, 2.5, None), "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.5,null]}'
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


@pytest.mark.parametrize("num_bytes", [0, 1, 65_536, 65_537, 131_072, 1_000_000])
def test_a_source_digest_covers_size_and_both_ends(tmp_path, num_bytes):
    content = bytes(range(251)) * (num_bytes // 251 + 1)
    content = content[:num_bytes]
    (tmp_path / "video").write_bytes(content)
    expected = hashlib.sha256(num_bytes.to_bytes(8, "little") + content[:65_536] + content[-65_536:])
    assert source_digest(tmp_path / "video") == expected.hexdigest()
    for place in {0, num_bytes - 1} if num_bytes else ():
        changed = bytearray(content)
        changed[place] ^= 1
        (tmp_path / "other").write_bytes(changed)
        assert source_digest(tmp_path / "other") != source_digest(tmp_path / "video")
    (tmp_path / "longer").write_bytes(content + b"\0")
    assert source_digest(tmp_path / "longer") != source_digest(tmp_path / "video")


def test_the_first_writer_wins_or_the_last_and_no_temporary_file_stays(tmp_path):
    assert write_file_once(tmp_path / "once", b"first")
    assert not write_file_once(tmp_path / "once", b"second")
    write_file_atomic(tmp_path / "latest", b"first")
    write_file_atomic(tmp_path / "latest", b"second")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"once": b"first", "latest": b"second"}
