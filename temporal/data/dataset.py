"""Cached tokens for a model of one's own: a plain torch `Dataset` of clips.

What `vfz train-temporal` uses inside reads whole batches; this one gives single clips, which is what a DataLoader with
workers, a sampler or another library expects. Its defaults and its clips are the trainer's: with `dataset.order` as
sampler its batches have the tokens, labels, masks and times that a training with the same seed sees in that epoch.
Items are the same whoever reads them: the position of a clip in its video follows from the seed, the epoch and the
index alone. An item costs one copy out of mapped files, and for float32 one conversion.

Shapes: T frames of a clip, N tokens, D channels, B items of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.cache.request import Columns, Layers, as_names, is_whole, shown
from vfz.pipeline.cache.tokens import ORDER_IN_ALL, TokenClip, expand_column
from vfz.pipeline.errors import UsageError
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.recipe import QUANTISED, counted_layers
from vfz.temporal.data.options import CLIP_FRAMES, CLIP_STRIDE, LAST_LAYER, TOKEN_PARTS, TRAIN_SPLIT
from vfz.temporal.data.sampling import Augmentation, ClipRule, EpochPlan, training_plan
from vfz.temporal.data.videos import is_labelled, parts_of

POSITIONS = ("random", "centre")


class ClipDataset(Dataset[dict[str, Any]]):
    """Clips of the videos of a split, one per video.

        dataset = ClipDataset("caches/k400-vit_small-0123456789ab")
        loader = DataLoader(dataset, batch_size=32, sampler=dataset.order, num_workers=4, persistent_workers=True)
        for epoch in range(10):
            dataset.set_epoch(epoch)  # other positions and order; also in workers that are running already
            for batch in loader:
                tokens_BTND = batch["tokens"].cuda()  # float32; by layer where there are several: ["tokens"]["11"]
                mask_BT = batch["frame_mask"].cuda()  # False where a short video has ended
                loss = criterion(model(tokens_BTND), batch["label"].cuda())

        # With stored=True int8 and int4 travel as they are, to be expanded on the GPU:
        tokens_BTND = dataset.expand(batch["stored"], "cuda")

    An item has `tokens` [T, N, D] (by layer where there are several) or `stored`, `frame_mask` [T] (bool; False where a
    video shorter than a clip has ended and its last frame is repeated), `label` (-1 where there is none), `id` and
    `pts_seconds` [T]; of a cache opened with a label set of several labels or of numbers also `targets` [K].

    Args:
        cache: its folder or name, or a cache that is open.
        split: which videos; None means all.
        num_frames: T.
        stride: cached frames from one frame of a clip to the next.
        step_seconds: seconds from one to the next, instead of a stride.
        layers: which layer or layers; None means the last one.
        parts: `patch`, `prefix`, or `all`: the prefix and then the patch tokens.
        view: which crop of each video.
        position: where in its video a clip lies: `random`, or in the `centre`.
        seed: of the positions and the order.
        labelled: leave out videos without a label, as training on labels does.
        stored: give the stored arrays instead of float32 tokens; see `expand`.

    Raises:
        UsageError: for an option that cannot be, or when no video has these tokens.
        CacheError: as `FeatureCache`.
    """

    def __init__(
        self,
        cache: FeatureCache | str | Path,
        split: str | None = TRAIN_SPLIT,
        *,
        num_frames: int = CLIP_FRAMES,
        stride: int = CLIP_STRIDE,
        step_seconds: float | None = None,
        layers: Layers | None = None,
        parts: str = TOKEN_PARTS[0],
        view: int = 0,
        position: str = "random",
        seed: int = 0,
        labelled: bool = False,
        stored: bool = False,
    ) -> None:
        if position not in POSITIONS or parts not in TOKEN_PARTS:
            raise UsageError(
                f"position is {shown(position)} and parts {shown(parts)}; allowed: {', '.join(POSITIONS)}; "
                f"{', '.join(TOKEN_PARTS)}"
            )
        if not is_whole(seed) or seed < 0:
            raise UsageError(f"seed {shown(seed)} is no seed; give a whole number from 0 on")
        self._rule = ClipRule(num_frames=num_frames, stride=stride, step_seconds=step_seconds)
        self.cache = cache if isinstance(cache, FeatureCache) else FeatureCache(cache)
        if view not in self.cache.views:
            views = ", ".join(map(str, self.cache.views))
            raise UsageError(f"view {shown(view)} is not in {self.cache.path}; it has the views {views}")
        asked = as_names(LAST_LAYER if layers is None else layers, "layers")
        self.layers, self.parts = counted_layers(asked, tuple(self.cache.layers)), parts
        self.videos: Sequence[LedgerRow] = self.cache.ok_videos(
            split, view=view, layers=self.layers, parts=parts_of(parts)
        )
        if labelled:
            known = is_labelled(self.cache)
            self.videos = [row for row in self.videos if known(row.id, row.label)]
        if not self.videos:
            of_part = "tokens" if parts == "all" else f"{parts} tokens"
            wanted = f"{of_part} of layers {', '.join(self.layers)} in view {view}"
            wanted += " and a label" if labelled else ""
            splits = ", ".join(self.cache.splits)
            raise UsageError(f"no video of split {split!r} of {self.cache.path} has {wanted}; its splits are {splits}")
        self._random, self._seed, self._stored = position == "random", seed, stored
        self._has_targets = self.cache.label_set is not None and self.cache.label_set.kind != "classes"
        # In shared memory: workers that are running already see the next epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._drawn: tuple[int, EpochPlan, NDArray[np.float64]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random positions and the order, here and in all workers; call it before the loader begins."""
        self._epoch.fill_(epoch)

    @property
    def order(self) -> ClipOrder:
        """The order in which training with this seed goes through the videos, another in each epoch: a sampler."""
        return ClipOrder(self)

    def _plan(self) -> tuple[EpochPlan, NDArray[np.float64]]:
        """What training draws for the epoch, and the position of each video's clip."""
        epoch = int(self._epoch)
        if self._drawn is None or self._drawn[0] != epoch:
            plan = training_plan(len(self), Augmentation(), seed=self._seed, epoch=epoch)
            positions_V = np.empty(len(self))
            positions_V[plan.videos] = plan.positions
            self._drawn = epoch, plan, positions_V
        return self._drawn[1:]

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The clip of the video at that place; see the class."""
        row = self.videos[index]
        index %= len(self)
        frames = self._rule.choose(
            row.num_frames,
            position=float(self._plan()[1][index]) if self._random else 0.5,
            pts_seconds=None if self._rule.step_seconds is None else self.cache.pts_seconds(row.id, row.view),
        )
        clip = self.cache.read(row.id, frames.numbers, self.layers, parts_of(self.parts), row.view)
        targets = {"targets": torch.from_numpy(self.cache.targets_of([row.id])[0])} if self._has_targets else {}
        return {
            **self._tokens(clip),
            **targets,
            "frame_mask": torch.from_numpy(frames.mask),
            "label": -1 if row.label is None else row.label,
            "id": row.id,
            "pts_seconds": torch.from_numpy(clip.pts_seconds),
        }

    def expand(
        self, stored: Mapping[str, Tensor], device: torch.device | str | None = None
    ) -> Tensor | dict[str, Tensor]:
        """What an item or batch with `stored=True` stands for.

        Args:
            stored: its `stored`, [..., T, N, D] by array key.
            device: where it is expanded; None means where it is.

        Returns:
            Float32 tokens [..., T, N, D]; by layer where there are several.
        """
        columns: Columns = {
            (column.layer, str(column.part)): column for column in self.cache.contents.columns if column.key in stored
        }
        calibrations = self.cache.calibrations if self.cache.precision in QUANTISED else {}
        tokens = {}
        for layer in self.layers:
            of_layer = [columns[layer, part] for part in ORDER_IN_ALL if (layer, part) in columns]
            expanded = [expand_column(column, stored, calibrations, device) for column in of_layer]
            tokens[layer] = torch.cat(expanded, dim=-2) if len(expanded) > 1 else expanded[0]
        return tokens[self.layers[0]] if len(tokens) == 1 else tokens

    def _tokens(self, clip: TokenClip) -> dict[str, Any]:
        if self._stored:
            return {"stored": {key: torch.from_numpy(array) for key, array in clip.arrays.items()}}
        tokens = {layer: clip.expand(layer, self.parts) for layer in self.layers}
        return {"tokens": tokens[self.layers[0]] if len(tokens) == 1 else tokens}


class ClipOrder(Sampler[int]):
    """The indices of a `ClipDataset` in the order of its epoch, for the `sampler` of a DataLoader."""

    def __init__(self, dataset: ClipDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(self._dataset._plan()[0].videos.tolist())  # noqa: SLF001 - of this file
