"""Hostile and damaged tars: nothing in one is interpreted, so nothing in one can do harm."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.shards import COLUMNS, SPECS, TAR_VIDEO, make_video, read_tar, write_tar

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.stores import STORES, Column, ShardData, ShardVideo
from vfz.pipeline.stores.metadata import FileRecord
from vfz.pipeline.stores.tar_reader import check_layout
from vfz.pipeline.stores.tar_writer import array_header, end_of_archive, padding, sample_name, tar_header

pytestmark = pytest.mark.quick


class _Bomb:
    def __reduce__(self):
        return (os.abort, ())


def hostile_tar(path: Path, data: ShardData, name: str, content: bytes) -> tuple[ShardData, int]:
    """A tar of one member, and an index that has every payload of `data` 128 bytes into it."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(content))
    offset = len(info.tobuf(tarfile.GNU_FORMAT)) + 128
    return crafted(data, path, [offset]), offset


def crafted(data: ShardData, path: Path, offsets: list[int]) -> ShardData:
    """The record with other offsets for every array and the size that the file has."""
    return dataclasses.replace(
        data,
        files={".": FileRecord(num_bytes=path.stat().st_size, sha256="0" * 64)},
        chunks={key: dataclasses.replace(record, offsets=tuple(offsets)) for key, record in data.chunks.items()},
    )


def assert_refused(path: Path, data: ShardData):
    for key in data.chunks:
        with pytest.raises(CacheFormatError):
            read_tar(path, data, key, "never")
    with pytest.raises(CacheFormatError):
        check_layout(path, data)


def npy_bytes(header: bytes) -> bytes:
    """An npy file of that header and zeros, long enough for the test's array."""
    return b"\x93NUMPY\x01\x00\x76\x00" + header.ljust(117) + b"\n" + bytes(4096)


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([_Bomb()] * 600, dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a%2Eb.layer_2.patch.npy", pickled()),
        ("a%2Eb.layer_2.patch.npy", pickle.dumps(_Bomb()) + bytes(4096)),
        ("a%2Eb.layer_2.patch.npy", npy_bytes(b"{'descr': '|O', 'fortran_order': False, 'shape': (3, 9, 40), }")),
        (
            "a%2Eb.layer_2.patch.npy",
            npy_bytes(b"{'descr': '<f2', 'fortran_order': False, 'shape': (1099511627776,), }"),
        ),
        ("a%2Eb.layer_2.patch.npy", npy_bytes(b"{'descr': '<f2', 'fortran_order': True, 'shape': (3, 9, 40), }")),
        ("a%2Eb.layer_2.patch.npy", npy_bytes(b"__import__('os').abort()")),
        ("../a%2Eb.layer_2.patch.npy", npy_bytes(b"{'descr': '<f2', 'fortran_order': False, 'shape': (3, 9, 40), }")),
        ("/a%2Eb.layer_2.patch.npy", npy_bytes(b"{'descr': '<f2', 'fortran_order': False, 'shape': (3, 9, 40), }")),
    ],
)
def test_a_member_that_is_not_the_expected_one_is_refused_unread(tmp_path, name, content):
    data, _ = write_tar(tmp_path / "good.tar", COLUMNS[:1], [TAR_VIDEO])
    crafted_data, _ = hostile_tar(tmp_path / "bad.tar", data, name, content)
    assert_refused(tmp_path / "bad.tar", crafted_data)


def test_offsets_that_lead_elsewhere_are_refused(tmp_path):
    """Out of the file, negative, within a payload, unaligned, that of another video or array: none is followed."""
    path = tmp_path / "s.tar"
    data, arrays = write_tar(path, COLUMNS[:2], [TAR_VIDEO, make_video(0)], length=200)
    key = COLUMNS[0].key
    first, second = data.chunks[key].offsets
    other = data.chunks[COLUMNS[1].key].offsets[0]
    for wrong in (-1, -(2**40), 0, 128, first + 1, first + 512, second, other, path.stat().st_size, 2**40, 2**80):
        chunks = {**data.chunks, key: dataclasses.replace(data.chunks[key], offsets=(wrong, second))}
        bad = dataclasses.replace(data, chunks=chunks)
        for frames in (np.arange(3), np.arange(150, 250)):
            with pytest.raises(CacheFormatError, match="not at"):
                STORES["webdataset"].reader(path, bad, checksums="never").read(key, frames)
        with pytest.raises(CacheFormatError):
            check_layout(path, bad)
    np.testing.assert_array_equal(read_tar(path, data, key), arrays[key])


def test_a_header_within_a_payload_is_not_a_member(tmp_path):
    """Tokens whose bytes are those of a header, at a place where no block begins."""
    columns = (Column(layer="1", part="patch", num_tokens=1, dim=4096, precision="int8"),)
    header = array_header(sample_name(TAR_VIDEO.id, 0), columns[0].payload, 1)
    tokens = np.zeros((1, 1, 4096), np.int8)
    tokens.reshape(-1)[7 : 7 + len(header)] = np.frombuffer(header, np.int8)
    with STORES["webdataset"].writer(tmp_path / "s.tar", columns) as writer:
        writer.begin_video(TAR_VIDEO)
        writer.append({"layer_1/patch": tokens, "layer_1/patch_scale": np.ones((1, 1, 32), np.float16)}, np.zeros(1))
        data = writer.finish()
    key = columns[0].key
    inside = data.chunks[key].offsets[0] + 7 + len(header)
    chunks = {**data.chunks, key: dataclasses.replace(data.chunks[key], offsets=(inside,))}
    with pytest.raises(CacheFormatError, match="not at"):
        read_tar(tmp_path / "s.tar", dataclasses.replace(data, chunks=chunks), key, "never")


def test_an_index_that_contradicts_itself_or_the_file_is_refused(tmp_path):
    path = tmp_path / "s.tar"
    data, _ = write_tar(path, COLUMNS[:1], [TAR_VIDEO, make_video(0)])
    key, record = COLUMNS[0].key, data.chunks[COLUMNS[0].key]
    for wrong in (
        dataclasses.replace(record, offsets=()),
        dataclasses.replace(record, offsets=record.offsets * 2),
        dataclasses.replace(record, crc32c=()),
        dataclasses.replace(record, frames_per_chunk=1),
    ):
        with pytest.raises(CacheFormatError, match="cannot have those"):
            read_tar(path, dataclasses.replace(data, chunks={**data.chunks, key: wrong}), key)
    for num_frames in (4, 2**40, 2**70):
        videos = (dataclasses.replace(data.videos[0], num_frames=num_frames), data.videos[1])
        bad = dataclasses.replace(data, videos=videos)
        with pytest.raises(CacheFormatError):
            STORES["webdataset"].reader(path, bad).read(key, np.arange(5))
        with pytest.raises(CacheFormatError):
            check_layout(path, bad)
    with pytest.raises(CacheFormatError, match="not one tar"):
        read_tar(path, dataclasses.replace(data, files={"x": data.files["."]}), key)
    values = data.to_dict()
    for spoil in (
        lambda chunk: chunk.update(offsets=[1.5, 2]),
        lambda chunk: chunk.update(offsets=["0", True]),
        lambda chunk: chunk.update(frames_per_chunk=0),
        lambda chunk: chunk.update(frames_per_chunk="1"),
    ):
        broken = json.loads(json.dumps(values))
        spoil(broken["chunks"][key])
        with pytest.raises((TypeError, ValueError)):
            ShardData.from_dict(broken)


def test_the_layout_check_finds_any_changed_byte_outside_payloads(tmp_path):
    path = tmp_path / "s.tar"
    data, _ = write_tar(path, COLUMNS[3:4], [TAR_VIDEO, ShardVideo(id="x" * 120, view=1, split="s", label=None)])
    good = path.read_bytes()
    payloads = np.zeros(len(good), bool)
    for key, record in data.chunks.items():
        for video, offset in zip(data.videos, record.offsets, strict=True):
            payloads[offset : offset + video.num_frames * SPECS[key].frame_bytes] = True
    places = np.flatnonzero(~payloads)
    for place in np.random.default_rng(0).choice(places, 400, replace=False).tolist():
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(CacheFormatError):
            check_layout(path, data)
    path.write_bytes(good)
    check_layout(path, data)


def test_the_layout_check_finds_members_that_do_not_belong(tmp_path):
    path = tmp_path / "s.tar"
    data, _ = write_tar(path, COLUMNS[:1], [TAR_VIDEO])
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("../evil.pkl")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"hello"))
    grown = dataclasses.replace(data, files={".": FileRecord(num_bytes=path.stat().st_size, sha256="")})
    with pytest.raises(CacheFormatError):
        check_layout(path, grown)


@pytest.mark.parametrize("num_letters", range(370, 420, 7))
def test_the_layout_check_accepts_descriptions_of_any_length(tmp_path, num_letters):
    path = tmp_path / "s.tar"
    data, _ = write_tar(
        path, COLUMNS[:1], [dataclasses.replace(TAR_VIDEO, split="s" * (num_letters + n), view=n) for n in range(8)]
    )
    check_layout(path, data)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"id":', "7", '{"label":NaN}', '{"a":1,"a":2}'])
def test_a_description_that_is_none_is_refused(tmp_path, text):
    data, _ = write_tar(tmp_path / "good.tar", COLUMNS[:1], [TAR_VIDEO])
    content, place = (tmp_path / "good.tar").read_bytes(), 0
    place = content.index(b"a%2Eb.json")
    raw = text.encode()
    bad = content[:place] + tar_header("a%2Eb.json", len(raw)) + raw + padding(len(raw))
    bad += end_of_archive(len(bad))
    (tmp_path / "bad.tar").write_bytes(bad)
    record = FileRecord(num_bytes=len(bad), sha256="")
    with pytest.raises(CacheFormatError, match=r"a%2Eb\.json"):
        check_layout(tmp_path / "bad.tar", dataclasses.replace(data, files={".": record}))
