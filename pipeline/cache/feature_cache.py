"""Opening a cache and reading windows of it: any frames, layers and parts of any video.

Opening reads the header, the contents and the consolidated ledger, and neither shards nor tokens: a second for a
quarter of a million videos. Reading opens the shards it needs, in the process that needs them, and copies the frames
asked for and nothing else. A cache may be pickled, used by threads and by DataLoader workers of any start method.

    cache = FeatureCache("caches/k400-vit_small-0123456789ab")
    clip = cache.read("v_001", frames=slice(0, 32, 2), layers=(5, 11))
    clip.tokens(layer=11)  # float32 [T, N, D]

    buffers = cache.new_batch(8, 16, layers=(11,))  # once
    batch = cache.read_batch([("v_001", range(16)), ...], layers=(11,), out=buffers)
    batch.tokens(layer=11, device="cuda")  # float32 [B, T, N, D], expanded on the device

Shapes: B clips of a batch, T frames of a clip, F frames of all videos, N tokens, D channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vfz.pipeline.cache.reader import ClipReader, OpenShards, ShardSource
from vfz.pipeline.cache.request import (
    ClipLike,
    Columns,
    Frames,
    Layers,
    Parts,
    check_checksums,
    check_group,
    select_columns,
)
from vfz.pipeline.cache.tokens import TokenBatch, TokenClip, empty_batch
from vfz.pipeline.errors import CacheIncompleteError, UsageError
from vfz.pipeline.format.catalog import open_catalog
from vfz.pipeline.format.folder import CACHES, CacheFolder
from vfz.pipeline.format.labels import NO_SPLIT
from vfz.pipeline.format.ledger import (
    LedgerRows,
    VideoLookup,
    distinct,
    from_utf8,
    has_all,
    in_split,
    table_digest,
    what_is_pending,
)
from vfz.pipeline.recipe import QUANTISED

if TYPE_CHECKING:
    import dask.array
    import pyarrow as pa
    from numpy.typing import NDArray

    from vfz.pipeline.format.calibration import Calibration
    from vfz.pipeline.stores import Checksums


_CLASSES_SHOWN = 3
"""By repr."""


class FeatureCache:
    """A cache opened for reading.

    Args:
        path: the cache's folder, or its bare name under `caches/`.
        labels: name of a label set of the cache, as `vfz cache label` adds them: labels and class names are then those
            of the set, and so are splits where it has some. None means those that the cache was extracted with.
        allow_incomplete: open it although some videos or columns are not extracted yet; those cannot be read.
        checksums: compare chunks with their crc32c `never`, the `first` time each is read, or `always`.

    Attributes:
        path: of its folder.
        folder: its files but tokens.
        fingerprint: of the recipe.
        recipe, provenance: of `vfz.json`, plain JSON values.
        contents: what is stored.
        precision: fp32, fp16, int8 or int4.
        store: name of the kind of store.
        layers: {name: {"patch": (N, D), "prefix": (P, D)}}; parts that are not stored are left out.
        label_set: the set of `labels`; None where none is named.
        class_names: in label order; of a multi-label set the names of its labels, of numbers to predict none.
        videos: every row of the ledger, in the order of the plans; each is made when it is looked at.
        num_bytes: size of the committed data on disk.

    Raises:
        CacheFormatError: when the folder is no cache, or it is damaged or of another format version.
        CacheIncompleteError: when videos or columns are pending and `allow_incomplete` is false.
        UnknownNameError: when the cache has no such label set; says which it has.
        UsageError: for another `checksums`, or a `path` that is neither text nor a path.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        labels: str | None = None,
        allow_incomplete: bool = False,
        checksums: Checksums = "first",
    ) -> None:
        self.path = CACHES.look_up(path)
        check_checksums(checksums)
        self.folder = CacheFolder(self.path)
        header, catalog = self.folder.header, open_catalog(self.folder)
        self.fingerprint, self.precision = header.fingerprint, header.precision
        self.recipe, self.provenance = dict(header.recipe), dict(header.provenance)
        self.contents = catalog.contents
        self.store = self.contents.store
        self.layers = self.contents.layers
        self.num_bytes = catalog.num_bytes
        self.label_set = None if labels is None else self.folder.label_set(labels)
        self.class_names = self.contents.class_names if self.label_set is None else self.label_set.class_names
        self._table = catalog.table if self.label_set is None else self.label_set.apply(catalog.table)
        self._columns: Columns = {(column.layer, column.part): column for column in self.contents.columns}
        if self.precision in QUANTISED:
            _ = self.calibrations  # tokens cannot be read without them: better told now
        self._check_complete(allow_incomplete=allow_incomplete)
        self.videos = LedgerRows(self._table)
        self._shards = OpenShards(
            ShardSource(
                path=self.path,
                fingerprint=self.fingerprint,
                contents=self.contents,
                index_digests={name: file.digest for name, file in catalog.index_files.items()},
                checksums=checksums,
            )
        )

    def __len__(self) -> int:
        """How many videos can be read, in the first view."""
        return len(self.ok_videos())

    def __bool__(self) -> bool:
        """True, also of a cache without a video: it is there."""
        return True

    def __repr__(self) -> str:
        """In a line: where it is, what it holds of how many videos and classes, how it is stored."""
        videos = {split: len(self.ok_videos(split)) for split in self.splits}
        total = sum(map(Counter, self.class_counts.values()), Counter[str]())
        largest = [f"{name!r}: {count}" for name, count in total.most_common(_CLASSES_SHOWN)]
        largest += ["…"] if len(total) > len(largest) else []
        classes = f"{len(self.class_names)} classes" + (f" ({', '.join(largest)})" if largest else "")
        named = "" if self.label_set is None else f", labels {self.label_set.name!r} ({self.label_set.kind})"
        return (
            f"<FeatureCache {str(self.path)!r}: videos {videos}, {classes}{named}, layers "
            f"{list(self.layers)}, {self.precision}, {self.store}>"
        )

    @cached_property
    def calibrations(self) -> dict[str, Calibration]:
        """What the sample told of every column, by column key."""
        return self.folder.calibrations(self.contents)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have videos, in alphabetical order."""
        return tuple(split for split in distinct(self._table, "split") if split != NO_SPLIT)

    @cached_property
    def class_counts(self) -> dict[str, dict[str, int]]:
        """How many videos can be read, in the first view, by split and class name; the most frequent class first.

        Classes and splits without a video are left out, and so are videos without a label. With a multi-label set a
        video counts for each of its labels, with one of numbers for none.
        """
        several: Mapping[str, Any] = {}
        if self.label_set is not None and self.label_set.kind == "multilabel":
            several = self.label_set.labels
        ok = self._table.filter(self._in_split(None, view=0, fold=None) & has_all(self._table, ()))
        names, counts = dict(enumerate(self.class_names)), dict[str, Counter[str]]()
        for split, label, video_id in zip(*(ok[name].to_pylist() for name in ("split", "label", "id")), strict=True):
            labels = several.get(from_utf8(video_id), ()) if several else () if label is None else (label,)
            counts.setdefault(from_utf8(split), Counter()).update(names.get(number, str(number)) for number in labels)
        return {split: dict(found.most_common()) for split, found in sorted(counts.items()) if found and split}

    @property
    def label_sets(self) -> tuple[str, ...]:
        """Names of the label sets that the cache has now, in alphabetical order; `labels` takes one of them."""
        return self.folder.label_sets()

    def targets_of(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """What a multi-label or regression set says of videos, float32 [V, K]: 0 or 1, or numbers; NaN is not known.

        Args:
            ids: of V videos, in any order; one that the set does not name is a row of NaN.

        Raises:
            UsageError: when the cache was not opened with such a set.
        """
        if self.label_set is None:
            some = ", ".join(self.label_sets) or "none; `vfz cache label` adds one"
            raise UsageError(f"{self.path} was opened without a label set; name one with labels= (it has {some})")
        return self.label_set.targets_of(ids)

    @cached_property
    def views(self) -> tuple[int, ...]:
        """Numbers of the views that have videos."""
        return tuple(distinct(self._table, "view"))

    @cached_property
    def ledger_digest(self) -> str:
        """SHA-256 over what can be read: id, view, status, frames, shard and lacking columns of every video, sorted."""
        return table_digest(self._table)

    def table(self) -> pa.Table:
        """The ledger as an Arrow table, in the order of the plans.

        Columns: the attributes of `LedgerRow`, `fold_<name>` for each official fold of the dataset, and `lacking`, the
        keys of columns that an ok video has no tokens of, with `lacking_reasons` (empty: not extracted yet).
        """
        return self._table

    def num_planned(self, split: str | None = None, *, view: int = 0, fold: str | None = None) -> int:
        """How many videos a split (or the whole cache) has, whether they can be read or not.

        Raises:
            UnknownNameError: as `ok_videos`.
        """
        return int(np.count_nonzero(self._in_split(split, view=view, fold=fold)))

    def ok_videos(
        self,
        split: str | None = None,
        *,
        view: int = 0,
        layers: Layers | None = None,
        parts: Parts | None = None,
        fold: str | None = None,
    ) -> LedgerRows:
        """The rows that can be read, of one split or all, in the order of the plans.

        Args:
            split: its name; None means all.
            view: which crop.
            layers: as in `read`; a video that lacks one of these columns is left out.
            parts: as in `read`.
            fold: name of an official fold; `split` is then the split a video has in it, and those not in it are out.

        Raises:
            UnknownNameError: when no video of the cache belongs to the split or fold, or a layer or part is not cached.
            UsageError: when layers or parts are empty, or an argument is of another kind.
        """
        keys = [column.key for column in self._select(layers, parts).values()]
        mask = self._in_split(split, view=view, fold=fold) & has_all(self._table, keys)
        return LedgerRows(self._table.filter(mask))

    def read(
        self,
        video_id: str,
        frames: Frames | None = None,
        layers: Layers | None = None,
        parts: Parts | None = None,
        view: int = 0,
        *,
        seconds: tuple[float, float] | None = None,
    ) -> TokenClip:
        """Some frames of one video.

        Args:
            video_id: which video.
            frames: numbers in any order (0 is the first frame), a slice with Python's meaning, or None for all.
            layers: which layer or layers; None means all that are cached.
            parts: `patch`, `prefix` or several of them; None means all that are cached for each layer.
            view: which crop.
            seconds: (start, end) instead of `frames`: those with start <= time < end; both finite.

        Raises:
            UnknownNameError: for a video, layer or part that is not in the cache.
            UsageError: for a frame the video does not have, seconds without one, or an argument that cannot be meant.
            CacheError: for a video without tokens, or without those of a column; says why it has none.
            CacheFormatError: when the data is damaged; names the shard, the video and the layer.
        """
        return self._reader.read_clip(video_id, view, self._select(layers, parts), frames=frames, seconds=seconds)

    def pts_seconds(self, video_id: str, view: int = 0) -> NDArray[np.float64]:
        """Presentation times [F] of all cached frames of one video, in seconds; no tokens are read.

        Raises:
            UnknownNameError, CacheError, CacheFormatError: as `read`.
        """
        return self._reader.read_times(video_id, view, self._columns)

    def new_batch(
        self,
        batch_size: int,
        num_frames: int,
        layers: Layers | None = None,
        parts: Parts | None = None,
        *,
        pin_memory: bool = False,
    ) -> TokenBatch:
        """Buffers that `read_batch` fills.

        Args:
            batch_size: B.
            num_frames: T.
            layers: as for `read`.
            parts: as for `read`.
            pin_memory: page-locked where there is a GPU, for copies to it that go on in the background. Wait for those
                copies before the next batch is read into the same buffers.

        Raises:
            UnknownNameError: for a layer or part that is not in the cache.
            UsageError: for sizes below 1, or no layer or part.
        """
        columns = self._select(layers, parts)
        return empty_batch(batch_size, num_frames, columns, self._calibrations_needed, pin_memory=pin_memory)

    def read_batch(
        self,
        clips: Sequence[tuple[str, Frames] | ClipLike],
        layers: Layers | None = None,
        parts: Parts | None = None,
        *,
        out: TokenBatch | None = None,
    ) -> TokenBatch:
        """Clips of one length, each copied once: from the mapped file to its place in the batch.

        Args:
            clips: tuples (video id, frames), or anything with `id`, `view` and `frames`.
            layers: as for `read`.
            parts: as for `read`.
            out: buffers from `new_batch`, of the same layers, parts and length, for as many clips or more; made when
                None.

        Returns:
            The batch: a view of the first clips of `out`.

        Raises:
            UsageError: for clips of several lengths, things that are none, or buffers that do not fit; otherwise as
                `read`.
        """
        return self._reader.read_batch(clips, self._select(layers, parts), out)

    def to_dask(
        self, layer: int | str, part: str = "patch", *, split: str | None = None, view: int = 0
    ) -> dask.array.Array:
        """Tokens of all videos that have them as one dask array, float32 [F, N, D], in the order of `ok_videos`.

        One chunk per shard, read when it is computed, in the process that computes it.

        Args:
            layer: which.
            part: `patch` or `prefix`.
            split: which videos, as for `ok_videos`.
            view: which crop.

        Raises:
            UsageError: when no video can be read.
            UnknownNameError: as `ok_videos`.
        """
        from vfz.pipeline.cache.dask_array import tokens_as_dask

        (column,) = self._select((layer,), (part,)).values()
        rows = self.ok_videos(split, view=view, layers=(layer,), parts=(part,))
        return tokens_as_dask(rows, column, self._calibrations_needed.get(column.key), self._shards.source)

    def close(self) -> None:
        """Lets go of open files; a later `read` opens them again."""
        self._shards.close()

    def __getstate__(self) -> dict[str, Any]:
        # The look-up is as large as the ledger and quickly made again.
        return {name: value for name, value in vars(self).items() if name != "_reader"}

    @cached_property
    def _reader(self) -> ClipReader:
        return ClipReader(VideoLookup(self._table, where=f"{self.path}"), self._shards, self._calibrations_needed)

    @cached_property
    def _calibrations_needed(self) -> Mapping[str, Calibration]:
        return self.calibrations if self.precision in QUANTISED else {}

    def _in_split(self, split: str | None, *, view: int, fold: str | None) -> NDArray[np.bool_]:
        check_group(split, view=view, fold=fold)
        return in_split(self._table, split, view=view, fold=fold, where=f"{self.path}")

    def _check_complete(self, *, allow_incomplete: bool) -> None:
        if not allow_incomplete and (what := what_is_pending(self._table)):
            raise CacheIncompleteError(
                f"{self.path} is not complete: {what}; run the same `vfz extract` again to continue, or open it with "
                "allow_incomplete=True"
            )

    def _select(self, layers: Layers | None, parts: Parts | None) -> Columns:
        return select_columns(self._columns, layers, parts, where=f"{self.path}")
