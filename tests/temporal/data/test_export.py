"""Pooled features in a file: what to_numpy gives, with ids, labels, splits, views and times; whole or not there."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny_cache import expected_tokens, fill_cache, new_cache

from vfz.cli.main import main
from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import UnknownNameError
from vfz.pipeline.format.labels import LabelSet, write_label_set
from vfz.temporal import ExportOptions, export_features, to_numpy
from vfz.temporal.data import export, pooling

POOLS = ("mean", "cls", "frame", "last")


@pytest.fixture
def tiny(tmp_path):
    """Nine videos in two views, one of which failed; patch and prefix tokens of two layers."""
    new_cache(tmp_path / "tiny", num_videos=9, views=(0, 1))
    fill_cache(tmp_path / "tiny", bad=("v3",))
    return tmp_path / "tiny"


def written(cache, out, **options):
    """The rows of an export: columns by name, one entry a row, whatever the format."""
    report = export_features(ExportOptions(cache=cache, out=out, **options))
    assert report.path == str(out)
    assert report.num_bytes == out.stat().st_size
    if report.format == "parquet":
        table = pq.read_table(out)
        assert table.num_rows == report.num_rows
        assert table.schema.field("features").type == pa.list_(pa.float32(), report.width)
        found = {name: np.array(table[name].to_pylist()) for name in table.column_names if name != "features"}
        return {**found, "features": np.array(table["features"].to_pylist(), np.float32)}
    with np.load(out, allow_pickle=False) as archive:
        found = dict(archive)
    assert found["features"].shape == (report.num_rows, report.width)
    rows = found.pop("video", np.arange(report.num_videos))
    return {name.removesuffix("s") if name in {"ids", "splits", "views", "labels"} else name: values[rows]
            if len(values.shape) and len(values) == report.num_videos else values
            for name, values in found.items()}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_a_file_has_what_to_numpy_gives_with_ids_labels_splits_and_times(tiny, tmp_path, pool, ending):
    cache = FeatureCache(tiny)
    for number, chosen in enumerate(({}, {"layers": ("2", "11")}, {"layers": ("-2",), "views": (1, 0)})):
        found = written(tiny, tmp_path / f"{number}.{ending}", pool=pool, **chosen)
        layers = chosen.get("layers", ("11",))
        for view in chosen.get("views", (0,)):
            for split in ("train", "val"):
                X, y, ids = to_numpy(cache, split, pool=pool, layers=layers, view=view)
                here = (found["view"] == view) & (found["split"] == split)
                np.testing.assert_array_equal(found["features"][here], X)
                assert found["id"][here].tolist() == ids
                assert found["label"][here].tolist() == y.tolist()
        assert "v3" not in found["id"]
        for row, video in enumerate(found["id"].tolist()):
            times = cache.pts_seconds(video, int(found["view"][row]))
            if pool in {"frame", "last"}:
                assert found["pts_seconds"][row] == times[found["frame"][row]]
            else:
                assert found["num_frames"][row] == len(times)
                assert (found["first_seconds"][row], found["last_seconds"][row]) == (times[0], times[-1])


def test_cls_is_the_mean_of_the_cls_tokens_and_mean_has_the_patches_beside_it(tiny):
    cache = FeatureCache(tiny)
    columns = {(column.layer, column.part): column for column in cache.contents.columns}
    for layers in (("11",), ("2", "11")):
        X, _, ids = to_numpy(cache, "train", pool="cls", layers=layers)
        Y, _, _ = to_numpy(cache, "train", pool="mean", layers=layers)
        for row, video in enumerate(ids):
            cls = [expected_tokens(video, columns[layer, "prefix"])[:, 0].mean(axis=0) for layer in layers]
            patches = expected_tokens(video, columns[layers[-1], "patch"]).mean(axis=(0, 1))
            np.testing.assert_allclose(X[row], np.concatenate(cls), atol=1e-6)
            np.testing.assert_allclose(Y[row], np.concatenate([*cls, patches]), atol=1e-6)


def test_columns_are_plain_and_the_file_says_what_made_it(tiny, tmp_path):
    export_features(ExportOptions(cache=tiny, out=tmp_path / "x.parquet"))
    schema = pq.read_schema(tmp_path / "x.parquet")
    kinds = {field.name: str(field.type) for field in schema}
    assert kinds == {
        "id": "string",
        "split": "string",
        "view": "int32",
        "label": "int64",
        "class_name": "string",
        "num_frames": "int64",
        "first_seconds": "double",
        "last_seconds": "double",
        "features": "fixed_size_list<element: float>[16]",
    }
    about = json.loads(schema.metadata[b"vfz"])
    assert (about["fingerprint"], about["layers"], about["pool"]) == (FeatureCache(tiny).fingerprint, ["11"], "mean")
    assert pq.read_table(tmp_path / "x.parquet")["class_name"].to_pylist()[:2] == ["left", "right"]
    export_features(ExportOptions(cache=tiny, out=tmp_path / "x.npz"))
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        assert json.loads(str(archive["vfz"])) == about
        assert archive["class_names"].tolist() == ["left", "right"]


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_frames_and_rows_are_written_some_at_a_time_to_the_same_numbers(tiny, tmp_path, monkeypatch, ending):
    whole = {pool: written(tiny, tmp_path / f"{pool}.{ending}", pool=pool) for pool in POOLS}
    monkeypatch.setattr(pooling, "_BLOCK_BYTES", 1)  # frame by frame
    monkeypatch.setattr(export, "_GROUP_BYTES", 1)
    for pool in POOLS:
        parts = written(tiny, tmp_path / f"parts-{pool}.{ending}", pool=pool)
        np.testing.assert_allclose(parts.pop("features"), whole[pool].pop("features"), rtol=1e-6, atol=1e-7)
        assert {name: values.tolist() for name, values in parts.items()} == {
            name: values.tolist() for name, values in whole[pool].items()
        }
    if ending == "parquet":
        assert pq.ParquetFile(tmp_path / "parts-mean.parquet").num_row_groups == 8, "one for each video"


def test_targets_of_a_label_set_are_in_the_file(tiny, tmp_path):
    labels = {"v0": frozenset({0, 1}), "v1": frozenset(), "v2": frozenset({1})}
    splits = {"v0": "fit", "v1": "fit", "v2": "ask"}
    write_label_set(tiny, LabelSet(name="tags", kind="multilabel", names=("a", "b"), labels=labels, splits=splits))
    assert FeatureCache(tiny, labels="tags").class_counts == {"ask": {"b": 1}, "fit": {"a": 1, "b": 1}}
    for ending in ("parquet", "npz"):
        found = written(tiny, tmp_path / f"x.{ending}", labels="tags", splits=("fit",))
        assert found["id"].tolist() == ["v0", "v1"]
        assert np.array(found["targets"].tolist()).tolist() == [[1, 1], [0, 0]]
    with pytest.raises(UnknownNameError, match="'fti'; did you mean fit"):
        export_features(ExportOptions(cache=tiny, out=tmp_path / "y.npz", labels="tags", splits=("fti",)))


# --- whole or not there ---

KILLED = """
import os, signal, sys
from pathlib import Path
from vfz.temporal import ExportOptions, export_features
from vfz.temporal.data.pooling import PooledVideos

of, seen = PooledVideos.of, []

def counted(self, video):
    seen.append(video)
    if len(seen) == 5:
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
    return of(self, video)

PooledVideos.of = counted
export_features(ExportOptions(cache=Path(sys.argv[1]), out=Path(sys.argv[2])))
"""


@pytest.mark.parametrize(("ending", "signal"), [("parquet", "SIGKILL"), ("npz", "SIGKILL"), ("npz", "SIGINT")])
def test_killed_half_way_it_leaves_no_file_of_that_name_and_is_whole_the_next_time(tiny, tmp_path, ending, signal):
    out = tmp_path / "out" / f"x.{ending}"
    done = subprocess.run([sys.executable, "-c", KILLED, tiny, out, signal], timeout=120, capture_output=True)
    assert done.returncode != 0
    left = list(out.parent.iterdir())
    assert out not in left
    assert signal == "SIGKILL" or left == [], "Ctrl-C cleans up"
    assert len(written(tiny, out)["id"]) == 8


def test_a_file_that_is_there_is_replaced_only_when_asked(tiny, tmp_path, capsys):
    out = tmp_path / "x.npz"
    line = ["cache", "export", str(tiny), "--out", str(out)]
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert "8 of 8 videos, 16 numbers each" in shown
    assert f"numpy.load('{out}')" in shown
    before = out.read_bytes()
    assert main([*line, "--pool", "cls"]) == 2
    assert "is there already; choose another file, or give --force" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*line, "--pool", "cls", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["width"] == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "x.csv"], "neither in .parquet nor in .npz; give --format"),
        (["--out", "x.npz", "--pool", "max"], "--pool 'max' is not allowed; choose from mean, cls, frame, last"),
        (["--out", "x.npz", "--pool", "cls", "--parts", "patch"], "leave --parts patch out"),
        (["--out", "x.npz", "--layers", "3"], "layer '3' is not in"),
        (["--out", "x.npz", "--views", "7"], "view 7 is not in .*; it has the views 0, 1"),
        (["--out", "x.npz", "--splits", "trian"], "'trian'; did you mean train"),
    ],
)
def test_what_cannot_be_written_is_one_line(tiny, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    assert main(["cache", "export", str(tiny), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(words, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_an_encoder_without_cls_is_named(synthetic_cache, tmp_path, capsys):
    assert main(["cache", "export", str(synthetic_cache.path), "--pool", "cls", "--out", str(tmp_path / "x.npz")]) == 2
    assert "layer 3 of" in (error := capsys.readouterr().err)
    assert "has no CLS token; take pool mean or frame" in error
    assert list(tmp_path.iterdir()) == []
