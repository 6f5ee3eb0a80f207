"""A conversion and what it left: stored arrays, tokens, errors, digests and ledgers of a cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vfz.pipeline.files import sha256_file
from vfz.pipeline.maintenance.convert import convert
from vfz.pipeline.maintenance.convert_source import expand_arrays, open_source
from vfz.pipeline.maintenance.options import ConvertOptions
from vfz.pipeline.stores.quantization import relative_error

MAX_ERROR = {"fp32": 0.0, "fp16": 1e-3, "int8": 0.012, "int4": 0.15}
"""Relative error of the tokens of a column, by the precision that they are rounded to."""


def run(cache: Path, out: Path, **options):
    """The report of a conversion, and the folder it made."""
    report = convert(ConvertOptions(cache=cache, out=out, **options))
    return report, Path(report.cache)


def stored(folder: Path) -> dict[tuple[str, int, str], np.ndarray]:
    """Every stored array of every video, by id, view and array key, read with every checksum compared."""
    source, found = open_source(folder), {}
    for index in source.commits:
        for row in index.rows:
            if row.status == "ok":
                frames = row.frame_start + np.arange(row.num_frames)
                with source.reader(index) as reader:
                    found[row.id, row.view, "pts_seconds"] = reader.pts_seconds(frames)
                    for column in index.data.columns:
                        for key, array in reader.arrays(column, frames).items():
                            found[row.id, row.view, key] = array
    return found


def same_arrays(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and np.array_equal(one[key], other[key]) for key in one
    )


def tokens(folder: Path) -> dict[tuple[str, int, str], np.ndarray]:
    """float32 tokens of every column of every video, by id, view and column key."""
    source, arrays, found = open_source(folder), stored(folder), {}
    for video_id, view in {key[:2] for key in arrays}:
        of_video = {key[2]: array for key, array in arrays.items() if key[:2] == (video_id, view)}
        for column in source.contents.columns:
            if column.key in of_video:
                expanded = expand_arrays(column, of_video, source.calibrations.get(column.key))
                found[video_id, view, column.key] = expanded.numpy()
    return found


def errors(old: Path, new: Path) -> dict[str, float]:
    """Relative error of the tokens of each column, over all videos."""
    before, after = tokens(old), tokens(new)
    assert before.keys() == after.keys()
    found = {}
    for column in open_source(new).calibrations:
        keys = [key for key in before if key[2] == column]
        one, other = (torch.from_numpy(np.concatenate([arrays[key] for key in keys])) for arrays in (before, after))
        found[column] = relative_error(one, other)
    return found


def data_digests(folder: Path) -> dict[tuple[str, int], dict[str, str]]:
    """SHA-256 of every data file by shard and commit, whose folders have random names."""
    return {
        (index.shard, index.number): {
            name: sha256_file(folder / "shards" / index.data.name / name)
            if name != "."
            else sha256_file(folder / "shards" / index.data.name)
            for name in index.data.files
        }
        for index in open_source(folder).commits
        if index.data
    }


def ledger(folder: Path) -> dict[str, list]:
    """The rows of every commit."""
    return {
        f"{index.shard}.{index.number}": [row.to_dict() for row in index.rows] for index in open_source(folder).commits
    }
