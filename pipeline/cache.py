"""Opening a cache and reading windows of it: any frames, layers and parts of any video.

Opening reads the header, the plans and the index of every shard, and no data. Reading opens the shards it needs, in the
process that needs them, and copies the frames asked for and nothing else; the number of shards that are open at a time
is bounded by what the system allows. A cache may be pickled and used in DataLoader workers of any start method.

    cache = FeatureCache("caches/k400-vit_small-0123456789ab")
    clip = cache.read("v_001", frames=slice(0, 32, 2), layers=(5, 11))
    clip.tokens(layer=11)  # float32 [T, N, D]

Shapes: T frames of a clip, N tokens, D channels.
"""

from __future__ import annotations

import resource
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vfz.pipeline.cache_header import read_header
from vfz.pipeline.commit import SHARDS, ShardIndex, committed_shards
from vfz.pipeline.errors import CacheError, CacheFormatError, CacheIncompleteError, UnknownNameError, UsageError
from vfz.pipeline.files import canonical_json, sha256_hex
from vfz.pipeline.plan import read_plans
from vfz.pipeline.stores import Checksums, ShardReader, get_store
from vfz.pipeline.stores.records import PTS_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from vfz.pipeline.ledger import LedgerRow

PARTS = ("prefix", "patch")


@dataclass(frozen=True, kw_only=True)
class TokenClip:
    """Tokens of some frames of one video.

    Attributes:
        video_id, view: whose.
        frame_numbers: [T] in the video, in the order asked for.
        pts_seconds: [T] presentation times.
        payloads: stored numbers [T, N, D] by (layer, part).
    """

    video_id: str
    view: int
    frame_numbers: NDArray[np.int64]
    pts_seconds: NDArray[np.float64]
    payloads: Mapping[tuple[str, str], NDArray[Any]]

    def tokens(self, layer: int | str, part: str = "patch") -> NDArray[np.float32]:
        """Tokens of a layer as float32 [T, N, D]; part `all` is the prefix tokens and then the patch tokens.

        Raises:
            UnknownNameError: when the clip was read without that layer or part.
        """
        parts = [name for name in PARTS if (str(layer), name) in self.payloads] if part == "all" else [part]
        if len(parts) == 1:
            return self.payload(layer, parts[0]).astype(np.float32, copy=False)
        if not parts:
            return self.payload(layer, part).astype(np.float32)  # raises: nothing of the layer is there
        return np.concatenate([self.payload(layer, name) for name in parts], axis=1, dtype=np.float32)

    def payload(self, layer: int | str, part: str = "patch") -> NDArray[Any]:
        """Tokens of a layer in the stored dtype, [T, N, D].

        Raises:
            UnknownNameError: when the clip was read without that layer or part.
        """
        if (str(layer), part) not in self.payloads:
            known = [f"{name} {kind}" for name, kind in self.payloads]
            raise UnknownNameError("layer and part of this clip", f"{layer} {part}", known)
        return self.payloads[str(layer), part]


class FeatureCache:
    """A cache opened for reading.

    Args:
        path: the cache's folder.
        allow_incomplete: open it although some videos are not extracted yet; they cannot be read.
        checksums: compare chunks with their crc32c `never`, the `first` time each is read, or `always`.

    Attributes:
        path: as given.
        fingerprint: of the recipe.
        recipe, contents, provenance: of `vfz.json`, plain JSON values.
        layers: {name: {"patch": (N, D), "prefix": (P, D)}}; parts that are not stored are left out.
        class_names: in label order.
        videos: every row of the ledger, in the order of the plans.

    Raises:
        CacheFormatError: when the folder is no cache, or it is damaged or of another format version.
        CacheIncompleteError: when videos are pending and `allow_incomplete` is false.
    """

    def __init__(self, path: str | Path, *, allow_incomplete: bool = False, checksums: Checksums = "first") -> None:
        self.path = Path(path)
        header = read_header(self.path)
        self.fingerprint = header.fingerprint
        self.recipe, self.contents = dict(header.recipe), dict(header.contents)
        self.provenance = dict(header.provenance)
        self.layers: dict[str, dict[str, tuple[int, int]]] = {}
        for column in header.columns:
            self.layers.setdefault(column.layer, {})[column.part] = (column.num_tokens, column.dim)
        self.class_names: tuple[str, ...] = tuple(header.contents["class_names"])
        indexes = {index.shard: index for index in committed_shards(self.path, self.fingerprint) if index.number == 0}
        self.videos = _merge_ledger(self.path, indexes)
        self._check_complete(allow_incomplete=allow_incomplete)
        self._rows = {row.key: row for row in self.videos}
        self._shards = {shard: index.data for shard, index in indexes.items() if index.data is not None}
        self._checksums: Checksums = checksums
        self._prepare_readers()

    @property
    def num_bytes(self) -> int:
        """Size of the committed data on disk."""
        return sum(data.num_bytes for data in self._shards.values())

    @property
    def ledger_digest(self) -> str:
        """SHA-256 over what can be read: (id, view, status, frames, shard) of every video, sorted."""
        rows = sorted([row.id, row.view, row.status, row.num_frames, row.shard] for row in self.videos)
        return sha256_hex(canonical_json(rows))

    def ok_videos(self, split: str | None = None, *, view: int = 0) -> list[LedgerRow]:
        """The rows that can be read, of one split or all.

        Raises:
            UnknownNameError: when no video of the cache belongs to the split.
        """
        if split is not None and split not in (splits := {row.split for row in self.videos}):
            raise UnknownNameError(f"split of {self.path}", split, splits)
        return [row for row in self.videos if row.status == "ok" and row.view == view and split in {None, row.split}]

    def read(
        self,
        video_id: str,
        frames: slice | Sequence[int] | NDArray[np.integer[Any]] | None = None,
        layers: Sequence[int | str] | None = None,
        parts: Sequence[str] | None = None,
        view: int = 0,
    ) -> TokenClip:
        """Some frames of one video.

        Args:
            video_id: which video.
            frames: numbers in any order (0 is the first frame), a slice with Python's meaning, or None for all.
            layers: which layers; None means all that are cached.
            parts: `patch`, `prefix`; None means all that are cached for each layer.
            view: which crop.

        Raises:
            UnknownNameError: for a video, layer or part that is not in the cache.
            UsageError: for a frame the video does not have.
            CacheError: for a video without tokens; says why it has none.
            CacheFormatError: when the data is damaged; names the shard, the video and the layer.
        """
        row = self._readable_row(video_id, view)
        numbers = _frame_numbers(frames, row)
        columns = self._select(layers, parts)
        reader = self._reader(row.shard)
        in_shard = numbers + row.frame_start
        key = PTS_KEY
        try:
            pts_seconds = reader.read(PTS_KEY, in_shard)
            payloads = {}
            for layer, part in columns:
                key = f"layer_{layer}/{part}"
                payloads[layer, part] = reader.read(key, in_shard)
        except CacheFormatError as error:
            raise CacheFormatError(f"video {video_id!r}, {key}, shard {row.shard}: {error}") from error
        return TokenClip(
            video_id=video_id, view=view, frame_numbers=numbers, pts_seconds=pts_seconds, payloads=payloads
        )

    def close(self) -> None:
        """Lets go of open files; a later `read` opens them again."""
        with self._lock:
            for reader in self._open.values():
                reader.close()
            self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in {"_lock", "_open", "_readers"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare_readers()

    def _prepare_readers(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[str, ShardReader] = {}
        self._open: OrderedDict[str, ShardReader] = OrderedDict()
        # At most half of the files this process may have open; a shard has one per column and one for the times.
        soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        files_per_shard = 1 + sum(map(len, self.layers.values()))
        self._max_open_shards = max(1, min(soft_limit, 1 << 16) // 2 // files_per_shard)

    def _reader(self, shard: str) -> ShardReader:
        """The shard's reader; closes the files of the one not used for longest when too many are open."""
        with self._lock:
            if shard not in self._readers:
                data = self._shards[shard]
                reader = get_store(data.store).reader
                self._readers[shard] = reader(self.path / SHARDS / data.name, data, checksums=self._checksums)
            self._open[shard] = self._readers[shard]
            self._open.move_to_end(shard)
            if len(self._open) > self._max_open_shards:
                self._open.popitem(last=False)[1].close()
            return self._readers[shard]

    def _check_complete(self, *, allow_incomplete: bool) -> None:
        pending = sum(row.status == "pending" for row in self.videos)
        if allow_incomplete or (self.videos and not pending):
            return
        what = f"{pending} of {len(self.videos)} videos are pending" if self.videos else "no video is planned yet"
        raise CacheIncompleteError(
            f"{self.path} is not complete: {what}; run the same `vfz extract` again to continue, or open it with "
            "allow_incomplete=True"
        )

    def _readable_row(self, video_id: str, view: int) -> LedgerRow:
        row = self._rows.get((video_id, view))
        if row is None:
            views = sorted(known for name, known in self._rows if name == video_id)
            if views:
                raise UsageError(f"video {video_id!r} is cached in the views {views}, not in view {view}")
            raise UnknownNameError("video", video_id, {name for name, _ in self._rows}, hint=f"(in {self.path})")
        if row.status != "ok":
            reason = row.reason or "not extracted yet; run the same `vfz extract` again"
            raise CacheError(f"video {video_id!r} has no tokens: {row.status}: {reason}")
        return row

    def _select(self, layers: Sequence[int | str] | None, parts: Sequence[str] | None) -> list[tuple[str, str]]:
        """The (layer, part) columns asked for; a part may be absent from some layers, not from all."""
        chosen = list(self.layers) if layers is None else [str(layer) for layer in layers]
        for layer in chosen:
            if layer not in self.layers:
                hint = f"({self.path} has {', '.join(self.layers)})"
                raise UnknownNameError("layer", layer, self.layers, hint=hint)
        for part in parts or ():
            if not any(part in self.layers[layer] for layer in chosen):
                cached = {part for layer in chosen for part in self.layers[layer]}
                raise UnknownNameError(f"part of layers {', '.join(chosen)} in {self.path}", part, cached)
        return [(layer, part) for layer in chosen for part in self.layers[layer] if parts is None or part in parts]


def _merge_ledger(cache_folder: Path, indexes: Mapping[str, ShardIndex]) -> list[LedgerRow]:
    """The row of every planned video: as committed, else pending. The latest plan wins."""
    rows: dict[tuple[str, int], LedgerRow] = {}
    known_shards = set()
    for plan in read_plans(cache_folder / "plan"):
        for shard, videos in plan.shards.items():
            known_shards.add(shard)
            index = indexes.get(shard)
            if index is None:
                before = {video.key: rows[video.key].attempts for video in videos if video.key in rows}
                settled = [video.pending_row(shard, attempts=before.get(video.key, 0)) for video in videos]
            elif index.plan == plan.number and {row.key for row in index.rows} == {video.key for video in videos}:
                settled = list(index.rows)
            else:
                raise CacheFormatError(
                    f"{cache_folder}: the index of shard {shard} and plan {plan.number} name different videos; "
                    "restore both from one copy"
                )
            rows.update({row.key: row for row in settled})
    if unplanned := indexes.keys() - known_shards:
        raise CacheFormatError(f"{cache_folder}: no plan names the shards {sorted(unplanned)}; restore plan/")
    return list(rows.values())


def _frame_numbers(
    frames: slice | Sequence[int] | NDArray[np.integer[Any]] | None, row: LedgerRow
) -> NDArray[np.int64]:
    """[T] frame numbers of the video, all in range."""
    if frames is None:
        return np.arange(row.num_frames)
    if isinstance(frames, slice):
        return np.arange(*frames.indices(row.num_frames))
    numbers = np.asarray(frames)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise UsageError(f"frames is {frames!r}; a slice, whole numbers or None is needed")
    numbers = numbers.astype(np.int64)
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < row.num_frames:
        raise UsageError(
            f"video {row.id!r} has the frames 0 to {row.num_frames - 1}; {numbers.min()} to {numbers.max()} requested"
        )
    return numbers
