"""A Kinetics-400 tree with holes and broken files, by every engine: the same cache, down to the bytes."""

import contextlib
import dataclasses
import json
import shutil
import subprocess

import pytest
from helpers.extraction import command_line, shard_files
from helpers.video_files import VIDEOS

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.maintenance.verify import verify_cache

CLIPS = {  # youtube id: (split, class, what lies there)
    "aaaaaaaaaaa": ("train", "riding a bike", "bikes.mp4"),
    "-bbbbbbbbbb": ("train", "watching tv", "bigbuckbunny.mp4"),
    "ccccccccccc": ("train", "riding a bike", None),
    "ddddddddddd": ("train", "watching tv", b"not a video"),
    "eeeeeeeeeee": ("val", "riding a bike", "bikes.mp4"),
    "fffffffffff": ("val", "watching tv", None),
    "ggggggggggg": ("val", "watching tv", "bigbuckbunny.mp4"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """As it is distributed: annotations, and clips in folders of classes; some are gone, one is broken, one is cut."""
    root = tmp_path_factory.mktemp("k400")
    for split in ("train", "val"):
        rows = [f"{label},{clip},10,20,{split}" for clip, (of, label, _) in CLIPS.items() if of == split]
        (root / f"{split}.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")
    for clip, (split, label, content) in CLIPS.items():
        path = root / split / label.replace(" ", "_") / f"{clip}_000010_000020.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content:
            shutil.copy(VIDEOS / content, path)
    cut = root / "val/watching_tv/ggggggggggg_000010_000020.mp4"
    cut.write_bytes(cut.read_bytes()[:-200_000])
    return root


def _options(root, out):
    return ExtractOptions(
        dataset="k400", root=root, encoder="vit_tiny_patch16_224", random_weights=True, layers=("2",), image_size=32,
        fps=2, batch_size=16, shard_videos=2, out=out, device="cpu",
    )  # fmt: skip


def _run(options, *shares):
    """`vfz extract`, once or as several processes at the same time; the last report."""
    processes = [
        subprocess.Popen([*command_line(options), "--json", *share], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for share in shares or [()]
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors.decode()
    return json.loads(outputs[-1][0]), outputs[-1][1].decode()


def _rows(path):
    """The ledger, without what a shard is called after."""
    return [dataclasses.asdict(row) for row in FeatureCache(path).videos]


def test_every_engine_makes_the_same_cache_of_a_tree_with_holes(root, tmp_path):
    report, notes = _run(_options(root, tmp_path / "local"))
    assert "7 videos listed, 2 of them missing" in notes
    assert (report["num_ok"], report["num_failed"], report["num_missing"]) == (3, 2, 2)
    local = report["cache"]
    assert FeatureCache(local).class_names == ("riding a bike", "watching tv")
    assert {row["id"]: row["status"] for row in _rows(local)}["-bbbbbbbbbb_10_20"] == "ok"
    assert {kind["num_videos"] for kind in report["failure_kinds"] if kind["status"] == "missing"} == {2}
    others = [
        _run(_options(root, tmp_path / "dask"), ("--dask", "2"))[0]["cache"],
        _run(
            _options(root, tmp_path / "ranks"),
            ("--rank", "0", "--world-size", "2"),
            ("--rank", "1", "--world-size", "2"),
        )[0]["cache"],
    ]
    for other in others:
        assert shard_files(other) == shard_files(local)
        assert _rows(other) == _rows(local)
        assert verify_cache(other).intact


def test_what_was_missing_is_added_when_it_is_there(root, tmp_path):
    options = _options(shutil.copytree(root, tmp_path / "k400"), tmp_path / "caches")
    _run(options)
    shutil.copy(VIDEOS / "bikes.mp4", tmp_path / "k400/train/riding_a_bike/ccccccccccc_000010_000020.mp4")
    report, _ = _run(options)
    assert (report["num_ok"], report["num_missing"], report["new_videos"]) == (4, 1, 1)
