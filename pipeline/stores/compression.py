"""Compressed chunks: how they are encoded, and whether that is worth it for a column.

Tokens out of a LayerNorm are close to noise: zstd saves 7 to 8% of them, and a window then takes 30 times as long to
read (0.7 GB/s of decoding against 20 GB/s of copying). Tokens with many zeros or few different values, as after a ReLU,
shrink to a quarter. So a codec is chosen per column by measuring it on stored numbers, and none where it saves less
than 10%. numcodecs, which zarr-python uses itself, encodes: the same chunk gives the same bytes, and zarr reads them;
through zarr-python's own codecs a chunk takes 1.3 to 3.4 times as long to encode and 1.5 times to decode.

Two codecs, both zstd at its level 3 (level 6 saves 1 to 2% more and writes at a third of the speed): `zstd` as it is,
`blosc-zstd` after sorting the bytes of the numbers by significance ("shuffle"), which pays for float32; sorting the
bits instead gave larger chunks for float16 and int8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numcodecs.blosc  # type: ignore[import-untyped]
import numpy as np
from numcodecs.zstd import Zstd  # type: ignore[import-untyped]

from vfz.pipeline.errors import UsageError
from vfz.pipeline.stores.metadata import ArraySpec, Compression

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from zarr.abc.codec import BytesBytesCodec


MIN_SAVING = 0.10
"""The least part of its bytes that a column must save to be compressed."""
RequestedCompression = Literal["auto", "none", "zstd", "blosc-zstd"]

_ZSTD_LEVEL = 3
_BLOSC = {"cname": "zstd", "clevel": 2, "blocksize": 0}  # its level 2 is zstd's level 3
# Blosc's threads would finish blocks in any order, and with it the bytes; zarr-python switches them off, too.
numcodecs.blosc.use_threads = False


@dataclass(frozen=True, kw_only=True)
class CompressionChoice:
    """What was chosen for a column and why.

    Attributes:
        name: the codec to store the column with.
        ratios: stored bytes / bytes before, of every codec; 1.0 for `none`.
    """

    name: Compression
    ratios: Mapping[str, float]


def choose_compression(samples: Mapping[str, NDArray[Any]], *, requested: RequestedCompression) -> CompressionChoice:
    """Measures every codec on a column's arrays and takes the smallest, where it saves enough.

    Args:
        samples: [n, ...] by array key, as stored: the payload, and the scales where there are some; n at least 1.
        requested: `auto`, or a codec that is taken whatever it saves.

    Raises:
        UsageError: when no codec has that name.
    """
    names = get_args(Compression)
    if requested not in ("auto", *names):
        raise UsageError(f"compression {requested!r} is not one of auto, {', '.join(names)}")
    chunks = [(chunk, array.dtype.itemsize) for key, array in samples.items() for chunk in _whole_chunks(key, array)]
    num_bytes = sum(chunk.nbytes for chunk, _ in chunks)
    ratios = {name: sum(len(encode(name, chunk, itemsize)) for chunk, itemsize in chunks) / num_bytes for name in names}
    best = min(names, key=lambda name: ratios[name])
    worth_it = best if ratios[best] <= 1 - MIN_SAVING else "none"
    return CompressionChoice(name=worth_it if requested == "auto" else requested, ratios=ratios)  # type: ignore[arg-type]


def encode(name: Compression, chunk: NDArray[np.uint8], itemsize: int) -> bytes | NDArray[np.uint8]:
    """The stored bytes of one chunk.

    Args:
        name: the codec; `none` gives the chunk itself.
        chunk: its bytes, contiguous.
        itemsize: bytes of each number, between which blosc sorts.
    """
    if name == "none":
        return chunk
    if name == "zstd":
        return bytes(Zstd(level=_ZSTD_LEVEL).encode(chunk))
    codec = numcodecs.blosc.Blosc(**_BLOSC, shuffle=numcodecs.blosc.SHUFFLE)
    return bytes(codec.encode(chunk.view(f"u{itemsize}")))


def decode(name: Compression, stored: NDArray[np.uint8], num_bytes: int) -> NDArray[np.uint8]:
    """The inverse of `encode`, for bytes whose checksum was compared: decoders are not made for damaged ones.

    Raises:
        ValueError, RuntimeError: when these are no bytes of that codec, or not `num_bytes` come out.
    """
    if name == "none":
        chunk = stored
    else:
        codec = Zstd() if name == "zstd" else numcodecs.blosc.Blosc()
        chunk = np.frombuffer(codec.decode(stored), np.uint8)
    if len(chunk) != num_bytes:
        raise ValueError(f"{len(chunk)} bytes came out, {num_bytes} are in a chunk")
    return chunk


def encoded_bytes_limit(num_bytes: int) -> int:
    """More than the stored bytes of any chunk of `num_bytes` can be, whatever the codec."""
    return num_bytes + num_bytes // 128 + 1024


def zarr_compressors(name: Compression, itemsize: int) -> list[BytesBytesCodec]:
    """The same codec as zarr-python describes it, for an array's metadata."""
    from zarr.codecs import BloscCodec, ZstdCodec

    if name == "none":
        return []
    if name == "zstd":
        return [ZstdCodec(level=_ZSTD_LEVEL)]
    return [BloscCodec(**_BLOSC, shuffle="shuffle", typesize=itemsize)]  # type: ignore[arg-type]


def _whole_chunks(key: str, array: NDArray[Any]) -> list[NDArray[np.uint8]]:
    """The chunks that a store makes of `array`; a last one that is not full only where there is no other."""
    if len(array) == 0:
        raise ValueError(f"{key}: a sample of no frame says nothing about its size")
    spec = ArraySpec(key=key, frame_shape=array.shape[1:], dtype=array.dtype)
    size = min(spec.frames_per_chunk, len(array))
    starts = range(0, len(array) - size + 1, size)
    return [np.ascontiguousarray(array[start : start + size]).reshape(-1).view(np.uint8) for start in starts]
