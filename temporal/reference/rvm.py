"""The recurrent core of the original RVM checkpoints (arXiv 2512.13684), JAX arrays in an .npz, as core `rvm_rnn`.

The weights are RVM's, the computation is that of arXiv 2605.19137, which is this library's `rvm_rnn`. RVM's own code
has the tanh form of GELU, 1e-4 as eps of `state_layer_norm`, and no norm on the output. So outputs agree with RVM's
closely, but not to the last digits, and the output norm is a fresh one.

Shapes there: dense kernels [in, out]; kernels of query, key and value [in, heads, d], of attention's output
[heads, d, out].
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vfz.pipeline.encoder.checkpoint import first_line
from vfz.pipeline.errors import CheckpointError
from vfz.temporal.cores import TemporalCore, build_core
from vfz.temporal.reference.mapping import describe_differences, shorten

_PREFIX = "rnn_core/"
_BLOCK = re.compile(r"rnn_core/transformer/xa_blocks_(\d+)/")
# Start of a name here and there, inside a block.
_IN_BLOCK = {
    "ca_norm.": "ca_attention_norm/",
    "ca_attn.": "ca_attention/",
    "mlp_norm.": "mlp_norm/",
    "mlp.fc1.": "mlp/dense_in/",
    "mlp.fc2.": "mlp/dense_out/",
    "sa_norm.": "attention_norm/",
    "sa_attn.": "attention/",
}
# What RVM does not have, and what stands for it.
_ABSENT = {"state_layer_norm.bias": 0.0, "output_norm.weight": 1.0, "output_norm.bias": 0.0}


def load_rvm_npz(path: str | Path) -> TemporalCore[Any]:
    """The core of an original RVM checkpoint, in evaluation mode; sizes and heads are read off the arrays.

    Every array below `rnn_core/` is used or refused by name; those of RVM's encoder and decoder are not looked at.

    Args:
        path: the .npz file; nothing in it is executed (`allow_pickle=False`).

    Raises:
        CheckpointError: when the file cannot be read, or its core is not RVM's.
    """
    path = Path(path)
    arrays = _read(path)
    blocks = {found[1] for key in arrays if (found := _BLOCK.match(key))}
    query = arrays.get(f"{_PREFIX}transformer/xa_blocks_0/ca_attention/query/kernel")
    dim, num_heads = (1, 1) if query is None or query.ndim != 3 or query.size == 0 else query.shape[:2]
    if dim % num_heads:
        raise CheckpointError(f"{path}: {num_heads} heads of attention do not divide {dim} channels")
    with torch.random.fork_rng(devices=[]):
        core = build_core("rvm_rnn", dim=dim, num_layers=max(1, len(blocks)), num_heads=num_heads)
    ours = core.state_dict()
    sources = {name: _sources(name) for name in ours if name not in _ABSENT}
    if differences := describe_differences([key for keys in sources.values() for key in keys], arrays):
        raise CheckpointError(f"{path}: this is not RVM's core: {differences}")
    weights = {name: torch.full_like(ours[name], value) for name, value in _ABSENT.items()}
    wrong = []
    for name, keys in sources.items():
        shape = _shape_there(keys[0], ours[name].shape, num_pieces=len(keys), num_heads=num_heads)
        wrong += [
            f"{key} {list(arrays[key].shape)} instead of {list(shape)}" for key in keys if arrays[key].shape != shape
        ]
        weights[name] = ours[name] if wrong else torch.cat([_convert(arrays[key], key) for key in keys])
    if wrong:
        raise CheckpointError(f"{path}: arrays of RVM's core have shapes that do not fit one another: {shorten(wrong)}")
    core.load_state_dict(weights)
    return core.eval()


def _sources(name: str) -> list[str]:
    """The arrays that make up a weight of ours, in this order."""
    name = re.sub(r"^transformer\.layers\.(\d+)\.", r"transformer/xa_blocks_\1/", name)
    name = name.replace("transformer.output_norm.", "transformer/output_norm/")
    block, slash, rest = name.rpartition("/")
    for ours, theirs in _IN_BLOCK.items():
        if rest.startswith(ours):
            rest = theirs + rest.removeprefix(ours)
            break
    rest = rest.replace(".", "/").replace("out_proj/", "out/")
    kind = "scale" if "norm" in name else "kernel"
    rest = re.sub(r"(^|/)weight$", rf"\1{kind}", rest)
    if fused := re.fullmatch(r"(.*/)in_proj_(weight|bias)", rest):
        what = {"weight": "kernel", "bias": "bias"}[fused[2]]
        return [f"{_PREFIX}{block}{slash}{fused[1]}{part}/{what}" for part in ("query", "key", "value")]
    return [f"{_PREFIX}{block}{slash}{rest}"]


def _shape_there(key: str, shape: torch.Size, *, num_pieces: int, num_heads: int) -> tuple[int, ...]:
    """The shape that an array of RVM has where ours, of `num_pieces` such arrays, has `shape`."""
    out_dim, *in_dim = shape[0] // num_pieces, *shape[1:]
    by_head = (num_heads, out_dim // num_heads)
    if num_pieces > 1:
        return *in_dim, *by_head
    if key.endswith("/out/kernel"):
        return *by_head, out_dim
    return *in_dim, out_dim


def _convert(array: np.ndarray, key: str) -> Tensor:
    """An array in the layout that torch has: [out, in] for kernels, flat for the rest."""
    matrix: np.ndarray = array.reshape(-1)
    if key.endswith("/out/kernel"):
        matrix = array.reshape(-1, array.shape[-1]).T
    elif key.endswith("/kernel"):
        matrix = array.reshape(array.shape[0], -1).T
    return torch.from_numpy(np.array(matrix, dtype=np.float32))


def _read(path: Path) -> Mapping[str, np.ndarray]:
    """The arrays below `rnn_core/`."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file if key.startswith(_PREFIX)}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file") from error
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: cannot be read as .npz of plain arrays ({first_line(error)})") from error
    if not arrays:
        raise CheckpointError(f"{path}: holds no arrays below {_PREFIX}; give an RVM checkpoint")
    if strange := [key for key, array in arrays.items() if array.dtype.kind != "f"]:
        raise CheckpointError(f"{path}: these arrays are no floating-point numbers: {shorten(strange)}")
    return arrays
