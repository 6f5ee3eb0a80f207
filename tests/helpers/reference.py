"""What vfz is held to: the paper's own outputs, the selective scan written out, caches read without vfz."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

# --- the files of tests/golden/reference: see the README.md there ---

REFERENCE = Path(__file__).parents[1] / "golden" / "reference"
# Task and protocol of every file of a readout.
READOUTS = [
    ("classify", "streaming"),
    ("classify", "clip"),
    ("boxes", "streaming"),
    ("points", "streaming"),
    ("points", "clip"),
    ("depth", "streaming"),
    ("depth", "clip"),
    ("pose", "streaming"),
]


class Reference:
    """One reference file: `sizes`, and its tensors by group (`input`, `output`, `weights`, `grad`)."""

    def __init__(self, name):
        with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
            self.sizes = json.loads(file.metadata()["config"])
            self._tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict

    def group(self, name, *, prefix=""):
        """Tensors of a group by name, without the group's name and `prefix`; those without the prefix are left out."""
        start = f"{name}.{prefix}"
        return {key.removeprefix(start): value for key, value in self._tensors.items() if key.startswith(start)}


def each_box_from_the_one_before(readout, tokens, first_box, boxes):
    """Boxes `[B, T, 4]` of the frames of `tokens`, each from the one before it in `boxes` (or `first_box`).

    A clip at once cannot be held against the reference: the code of a box is chaotic, and the last bits, in which
    processors differ, grow to 1e-3 in the second frame and to 0.5 within five.
    """
    before = torch.cat([first_box[:, None], boxes[:, :-1]], dim=1)
    frames = zip(tokens.split(1, dim=1), before.unbind(1), strict=True)
    return torch.cat([readout(frame, init_box_cxcywh=box) for frame, box in frames], dim=1)


# --- the selective scan, one frame after the other under autograd, in two layouts ---


def plain_scan(x, delta, A, B, C, D, state=None):
    """The recurrence as written, in the layout that suits torch best.

    Nothing but the state lives beyond a frame, channels innermost: several times as fast as `published_scan`, and so
    the harder baseline.
    """
    h = x.new_zeros(x.shape[0], *A.T.shape) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t, None, :] * A.T)
        h = decay * h + (delta[:, t] * x[:, t])[:, None, :] * B[:, t, :, None]
        outputs.append((h * C[:, t, :, None]).sum(1) + D * x[:, t])
    return torch.stack(outputs, 1), h


def published_scan(x, delta, A, B, C, D):
    """The recurrence as public implementations of Mamba write it where they have no kernel, from the zero state.

    Decays and inputs of all frames first, the state innermost, an einsum per frame.
    """
    decay = torch.exp(torch.einsum("ste,ek->setk", delta, A))
    drive = torch.einsum("ste,stk,ste->setk", delta, B, x)
    h = x.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for t in range(x.shape[1]):
        h = decay[:, :, t] * h + drive[:, :, t]
        outputs.append(torch.einsum("sek,sk->se", h, C[:, t]))
    return torch.stack(outputs, 1) + D * x, h.mT


# --- a cache read without vfz: its JSON files, zarr or webdataset, and the arithmetic that the documentation gives ---

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
