"""Real videos, damaged in 200 ways: whatever a file holds, the run goes on, and each is ok or failed for a reason."""

import random
import shutil

import pytest
from helpers.video_files import VIDEOS, frame_spec

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.decoding.pool import DecodePool
from vfz.pipeline.errors import DecodeError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.maintenance.verify import verify_cache

REAL = sorted(VIDEOS.glob("*.mp4"))


def _flip(data, choice):
    for _ in range(choice.choice([1, 8, 64])):
        data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
    return data


def _cut(data, choice):
    return data[: choice.randrange(1, len(data))]


def _splice(data, choice):
    other = choice.choice(REAL).read_bytes()
    length = choice.randrange(1, min(len(data), len(other)) // 2)
    start, place = choice.randrange(len(other) - length), choice.randrange(len(data) - length)
    data[place : place + length] = other[start : start + length]
    return data


def _blank(data, choice):
    """Zeros, often over the header."""
    start = choice.choice([0, 4, 32, choice.randrange(len(data))])
    length = choice.choice([4, 512, 65536])
    data[start : start + length] = bytes(len(data[start : start + length]))
    return data


def _another(data, choice):
    """A file that is no video, under its name."""
    return bytearray(
        choice.choice(
            [b"", b"GIF89a", b"RIFF\x00\x00\x00\x00AVI ", b"#EXTM3U\nfile:///etc/passwd\n", b"\x89PNG\r\n\x1a\n"]
        )
        + choice.randbytes(choice.choice([0, 64, 4096]))
    )


MUTATIONS = (_flip, _cut, _splice, _blank, _another)


def _mutate(path, seed):
    choice = random.Random(seed)
    data = bytearray(choice.choice(REAL).read_bytes())
    path.write_bytes(MUTATIONS[seed % len(MUTATIONS)](data, choice))
    return path


@pytest.mark.parametrize("seeds", [range(15), pytest.param(range(200), marks=pytest.mark.faults)])
def test_each_mutation_is_decoded_or_fails_for_a_reason(tmp_path, seeds):
    sources = [VideoSource(path=_mutate(tmp_path / f"{seed}.mp4", seed)) for seed in seeds]
    num_whole, reasons = 0, {}
    with DecodePool(frame_spec(2), num_workers=2, time_limit_seconds=60) as pool:
        for stream in pool.videos(sources):
            try:
                frames = [frame.pts_seconds for frame in stream]
            except DecodeError as error:
                reasons[stream.source.name] = str(error)
            else:
                num_whole += 1
                assert frames == sorted(set(frames))
                assert frames
    for name, reason in reasons.items():
        assert reason.startswith(f"{name}: ")
        assert "\n" not in reason
        assert "timed out" not in reason
    assert num_whole + len(reasons) == len(sources)
    assert len(reasons) > len(sources) // 3, "most of these cannot be whole"


def test_an_extraction_names_the_damaged_and_keeps_the_rest(tmp_path):
    folder = tmp_path / "clips/train/street"
    folder.mkdir(parents=True)
    for seed in range(100, 110):
        _mutate(folder / f"mutation{seed}.mp4", seed)
    for number in range(2):
        shutil.copy(REAL[number], folder / f"whole{number}.mp4")
    report = extract(
        ExtractOptions(
            dataset="folder", root=tmp_path / "clips", encoder="vit_tiny_patch16_224", random_weights=True,
            layers=("2",), image_size=32, fps=2, shard_videos=4, out=tmp_path / "caches",
        )
    )  # fmt: skip
    rows = {row.id: row for row in FeatureCache(report.cache).videos}
    assert len(rows) == 12
    assert rows["train/street/whole0"].status == rows["train/street/whole1"].status == "ok"
    for row in rows.values():
        assert (row.status == "ok") == (row.reason == "") == (row.num_frames > 0)
        assert row.status in {"ok", "failed"}
    assert sum(row.status == "failed" for row in rows.values()) >= 4
    assert verify_cache(report.cache).intact
