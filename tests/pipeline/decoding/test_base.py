"""Where the bytes of a video lie: a file, or a member of a tar read in place."""

from __future__ import annotations

import hashlib

import pytest

from vfz.pipeline.decoding.base import VideoSource

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("num_bytes", [0, 1, 65_536, 65_537, 131_072, 1_000_000])
def test_a_source_digest_covers_size_and_both_ends(tmp_path, num_bytes):
    content = bytes(range(251)) * (num_bytes // 251 + 1)
    content = content[:num_bytes]
    (tmp_path / "video").write_bytes(content)
    expected = hashlib.sha256(num_bytes.to_bytes(8, "little") + content[:65_536] + content[-65_536:])
    assert VideoSource(path=tmp_path / "video").digest() == expected.hexdigest()
    for place in {0, num_bytes - 1} if num_bytes else ():
        changed = bytearray(content)
        changed[place] ^= 1
        (tmp_path / "other").write_bytes(changed)
        assert VideoSource(path=tmp_path / "other").digest() != VideoSource(path=tmp_path / "video").digest()
    (tmp_path / "longer").write_bytes(content + b"\0")
    assert VideoSource(path=tmp_path / "longer").digest() != VideoSource(path=tmp_path / "video").digest()
