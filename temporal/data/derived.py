"""A derived cache: what a temporal module makes of a cache's clips, computed once and kept in a folder.

A sweep of probes over a run would stream every clip through its core again and again. Instead the outputs are written
once, under an identity made of everything that decides them: the source's fingerprint and ledger, the run's weights,
the rule of clips, the split, and what is kept (all tokens, or the CLS token and the mean of the patches of each frame,
which is all that linear and kNN probes look at and a hundred times smaller).

    <out>/derived/<run>-<split>-<first 12 digits of the identity>/
        tokens.npy      [V,C,T,N,D]; fp32 where the source is, else fp16
        derived.json    identity, ids of the videos, crc32c of every clip; sealed with its own digest

The folder is made aside and renamed into place, so it is whole or not there. Clips are mapped and compared with their
checksum when they are first read. `RunOutputs` are the same without a folder, for videos that are asked about once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import (
    canonical_json,
    checked_json_bytes,
    fsync_tree,
    make_folder,
    read_checked_json,
    sha256_hex,
    storage_errors,
    unique_token,
    write_file_atomic,
)
from vfz.pipeline.progress import Progress
from vfz.temporal.data.features import Features
from vfz.temporal.data.pooling import frame_tokens
from vfz.temporal.model import TemporalModel

VERSION = 1
"""Raised when the numbers of a derived cache would come out otherwise."""
_KEYS = frozenset({"identity", "ids", "checksums", "num_prefix"})


def derived_features(
    folder: Path,
    name: str,
    identity: Mapping[str, Any],
    source: Features,
    transform: Callable[[list[Tensor]], Tensor],
    *,
    num_prefix: int,
    dtype: str,
    progress: Progress,
    batch_size: int,
) -> DerivedFeatures:
    """Opens the derived cache of an identity; makes it first where it is not there.

    Args:
        folder: that derived caches lie in.
        name: the first part of the folder's name.
        identity: everything that decides the numbers, as JSON values.
        source: the clips.
        transform: layers [B,T,N,D] to what is kept [B,T,N',D'].
        num_prefix: prefix tokens among the N'.
        dtype: `float16` or `float32`.
        progress: told of every clip.
        batch_size: clips at once.

    Raises:
        CacheFormatError: when one that is there is damaged. RunError: for outputs that are not finite.
        StorageError: when it cannot be written.
    """
    identity = {"version": VERSION, "dtype": dtype, **identity}
    path = folder / f"{name}-{sha256_hex(canonical_json(identity))[:12]}"
    made = not path.exists()
    if made:
        make_folder(folder)
        temporary = folder / f".{path.name}.{unique_token()}.tmp"
        with storage_errors(temporary):
            try:
                temporary.mkdir()
                progress.start(f"running {name}", total=len(source) * source.num_clips, unit="clips")
                checksums = _write(temporary / "tokens.npy", source, transform, dtype, progress, batch_size)
                progress.finish()
                content = {
                    "identity": identity, "ids": list(source.ids), "checksums": checksums, "num_prefix": num_prefix,
                }  # fmt: skip
                write_file_atomic(temporary / "derived.json", checked_json_bytes(content))
                fsync_tree(temporary)
                _rename(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return DerivedFeatures(path, identity, source, made=made)


class DerivedFeatures(Features):
    """Clips of a derived cache.

    Attributes:
        path: its folder.
        made: whether this call made it.
        num_bytes: size of its tokens.

    Raises:
        CacheFormatError: when it is damaged or of another identity.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], source: Features, *, made: bool) -> None:
        content = read_checked_json(path / "derived.json", _KEYS)
        self.path, self.made = path, made
        self.ids, self.labels_V, self.device = source.ids, source.labels_V, source.device
        self.num_clips, self.num_prefix = source.num_clips, (int(content["num_prefix"]),)
        try:
            self._tokens = np.load(path / "tokens.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise CacheFormatError(f"{path}/tokens.npy is damaged: {error}; delete {path} to make it again") from None
        expected = (len(self.ids), self.num_clips)
        if content["identity"] != identity or content["ids"] != list(self.ids) or self._tokens.shape[:2] != expected:
            raise CacheFormatError(f"{path} is not what its name says; delete it to make it again")
        self._checksums_VC = np.array(content["checksums"], dtype=np.uint32).reshape(expected)
        self._checked_VC = np.zeros(expected, dtype=np.bool_)
        self.num_bytes = self._tokens.nbytes

    def read(self, videos_B: Tensor, clips_B: Tensor) -> list[Tensor]:
        """See `Features`.

        Raises:
            CacheFormatError: when a clip does not have its checksum.
        """
        clips = self._tokens[videos_B.numpy(), clips_B.numpy()]
        for clip, video, number in zip(clips, videos_B.tolist(), clips_B.tolist(), strict=True):
            if self._checked_VC[video, number]:
                continue
            if google_crc32c.value(clip.tobytes()) != self._checksums_VC[video, number]:
                raise CacheFormatError(
                    f"{self.path}/tokens.npy is damaged at video {self.ids[video]!r}: its checksum does not match; "
                    f"delete {self.path} to make it again"
                )
            self._checked_VC[video, number] = True
        return [torch.from_numpy(clips).to(self.device).float()]


@torch.no_grad()
def _write(
    path: Path,
    source: Features,
    transform: Callable[[list[Tensor]], Tensor],
    dtype: str,
    progress: Progress,
    batch_size: int,
) -> list[int]:
    """Appends clip after clip, the clips of a video one after the other; returns their checksums."""
    pairs = torch.cartesian_prod(torch.arange(len(source)), torch.arange(source.num_clips)).view(-1, 2)
    checksums: list[int] = []
    with path.open("xb") as file:
        for batch in pairs.split(batch_size):
            kept_BTND = transform(source.read_finite(batch[:, 0], batch[:, 1])).cpu().numpy().astype(dtype)
            if not checksums:
                shape = (len(source), source.num_clips, *kept_BTND.shape[1:])
                _write_header(file, shape, dtype)
            for clip in kept_BTND:
                data = clip.tobytes()
                checksums.append(google_crc32c.value(data))
                file.write(data)
            progress.advance(len(batch))
    return checksums


def _write_header(file: Any, shape: Sequence[int], dtype: str) -> None:
    header: dict[str, Any] = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _rename(temporary: Path, path: Path) -> None:
    """Gives the folder its name, unless another process was first."""
    try:
        os.rename(temporary, path)  # noqa: PTH104 - Path.rename replaces an empty folder
    except OSError:
        if not (path / "derived.json").is_file():
            raise


class RunOutputs(Features):
    """What a temporal module makes of other features' clips, computed when it is read.

    Args:
        tokens: what goes in.
        model: the module.
        frames_only: only the CLS token and the mean of the patches of each frame are kept, all that vectors are of.
        dtype: what the outputs are rounded to.
    """

    def __init__(self, tokens: Features, model: TemporalModel, *, frames_only: bool, dtype: str) -> None:
        self._tokens, self._model, self._frames_only, self._dtype = tokens, model, frames_only, dtype
        self.ids, self.labels_V, self.device = tokens.ids, tokens.labels_V, tokens.device
        self.num_clips = tokens.num_clips
        num_prefix = tokens.num_prefix[-1]
        self.num_prefix = (min(num_prefix, 1) if frames_only else num_prefix,)

    @torch.no_grad()
    def read(self, videos_B: Tensor, clips_B: Tensor) -> list[Tensor]:
        """See `Features`."""
        layers_BTND = self._tokens.read_finite(videos_B, clips_B)
        kept, _ = run_outputs(
            self._model, layers_BTND, self._tokens.num_prefix, frames_only=self._frames_only, dtype=self._dtype
        )
        return kept


def run_outputs(
    model: TemporalModel, layers_BTND: list[Tensor], num_prefix: tuple[int, ...], *, frames_only: bool, dtype: str
) -> tuple[list[Tensor], tuple[int, ...]]:
    """What a module makes of clips, as probes of it are fitted on it, and how many of those are prefix tokens.

    Arguments as of `RunOutputs`.
    """
    features_BTNE = model.features(layers_BTND)
    if frames_only:
        features_BTNE = frame_tokens([features_BTNE], [num_prefix[-1]])
    kept_BTNE = features_BTNE.to(getattr(torch, dtype)).float()
    return [kept_BTNE], (min(num_prefix[-1], 1) if frames_only else num_prefix[-1],)
