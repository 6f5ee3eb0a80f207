"""A cache read without vfz: its JSON files, zarr or webdataset, and the arithmetic that the documentation gives."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np

Arrays = dict[tuple[str, int], dict[str, np.ndarray]]


def plain_arrays(folder: Path) -> Arrays:
    """Stored arrays [F, ...] of every (video, view) by array key, `pts_seconds` among them."""
    found: Arrays = {}
    for index in sorted(folder.glob("shards/*.index.json")):
        if data := json.loads(index.read_bytes())["data"]:
            read = _zarr_group if data["store"] == "zarr" else _tar
            for key, arrays in read(folder / "shards" / data["name"]).items():
                found.setdefault(key, {}).update(arrays)
    return found


def plain_tokens(folder: Path, arrays: dict[str, np.ndarray], layer: str, part: str) -> np.ndarray:
    """float32 [F, N, D]: `value = q * scale[..., channel // 128] * std + offset` where tokens are quantised."""
    payload, scale = arrays[f"layer_{layer}/{part}"], arrays.get(f"layer_{layer}/{part}_scale")
    if scale is None:
        return payload.astype(np.float32)
    calibration = json.loads((folder / "calibration" / f"layer_{layer}.{part}.json").read_bytes())
    offset, std = np.array(calibration["offset"], np.float32), np.array(calibration["std"], np.float32)
    if payload.dtype == np.uint8:  # int4: the even channel in the low nibble, two's complement
        nibbles = np.stack([payload & 15, payload >> 4], axis=-1).reshape(*payload.shape[:-1], -1)
        payload = (nibbles.astype(np.int8) ^ 8) - 8
    payload = payload[..., : len(std)].astype(np.float32)
    return payload * scale.astype(np.float32)[..., np.arange(len(std)) // 128] * std + offset


def _zarr_group(path: Path) -> Arrays:
    import zarr

    group = zarr.open_group(path, mode="r")
    arrays = {key: array[...] for key, array in group.members(max_depth=None) if isinstance(array, zarr.Array)}
    return {
        (video["id"], video["view"]): {
            key: array[video["frame_start"] :][: video["num_frames"]] for key, array in arrays.items()
        }
        for video in group.attrs["videos"]
    }


def _tar(path: Path) -> Arrays:
    with warnings.catch_warnings():  # webdataset leaves its files to the garbage collector
        warnings.simplefilter("ignore")
        import webdataset

        samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    return {
        (sample["json"]["id"], sample["json"]["view"]): {
            key.removesuffix(".npy").replace(".", "/"): array for key, array in sample.items() if key.endswith(".npy")
        }
        for sample in samples
    }
