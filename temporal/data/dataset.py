"""Cached tokens for a model of one's own: a plain torch `Dataset` of clips.

What `vfz train-temporal` uses inside reads whole batches; this one gives single clips, which is what a DataLoader with
workers, a sampler or another library expects. Items are the same whoever reads them: the position of a clip in its
video follows from the seed, the epoch and the index alone. An item costs one copy out of mapped files, and for float32
one conversion.

Shapes: T frames of a clip, N tokens, D channels, B items of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.cache.request import Columns, Layers, as_names, is_whole, shown
from vfz.pipeline.cache.tokens import ORDER_IN_ALL, TokenClip, expand_column
from vfz.pipeline.errors import UsageError
from vfz.pipeline.recipe import QUANTISED
from vfz.temporal.data.options import TOKEN_PARTS
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.videos import parts_of

POSITIONS = ("random", "centre")


class ClipDataset(Dataset[dict[str, Any]]):
    """Clips of the videos of a split, one per video.

        dataset = ClipDataset("caches/k400-vit_small-0123456789ab", num_frames=16, layers=(5, 11))
        loader = DataLoader(dataset, batch_size=32, shuffle=True, num_workers=4, persistent_workers=True)
        for epoch in range(10):
            dataset.set_epoch(epoch)  # other positions; also in workers that are running already
            for batch in loader:
                tokens_BTND = batch["tokens"]["11"].cuda()  # float32; batch["tokens"] itself for a single layer
                loss = criterion(model(tokens_BTND), batch["label"].cuda())

        # With stored=True int8 and int4 travel as they are, to be expanded on the GPU:
        tokens_BTND = dataset.expand(batch["stored"], "cuda")["11"]

    An item has `tokens` [T, N, D] (by layer where there are several) or `stored`, `label` (-1 where there is none),
    `id` and `pts_seconds` [T]. A video shorter than a clip repeats its last frame.

    Args:
        cache: its folder, or a cache that is open.
        split: which videos; None means all.
        num_frames: T.
        stride: cached frames from one frame of a clip to the next.
        layers: which layer or layers; None means all that are cached.
        parts: `patch`, `prefix`, or `all`: the prefix and then the patch tokens.
        view: which crop of each video.
        position: where in its video a clip lies: `random`, or in the `centre`.
        seed: of the positions.
        stored: give the stored arrays instead of float32 tokens; see `expand`.

    Raises:
        UsageError: for an option that cannot be, or when no video has these tokens.
        CacheError: as `FeatureCache`.
    """

    def __init__(
        self,
        cache: FeatureCache | str | Path,
        split: str | None = "train",
        *,
        num_frames: int = 16,
        stride: int = 1,
        layers: Layers | None = (11,),
        parts: str = "patch",
        view: int = 0,
        position: str = "random",
        seed: int = 0,
        stored: bool = False,
    ) -> None:
        if position not in POSITIONS or parts not in TOKEN_PARTS:
            raise UsageError(
                f"position is {shown(position)} and parts {shown(parts)}; allowed: {', '.join(POSITIONS)}; "
                f"{', '.join(TOKEN_PARTS)}"
            )
        if not all(is_whole(number) and number >= 1 for number in (num_frames, stride)):
            raise UsageError(f"clips of {shown(num_frames)} frames {shown(stride)} apart; 1 or more of each is needed")
        self.cache = cache if isinstance(cache, FeatureCache) else FeatureCache(cache)
        if view not in self.cache.views:
            views = ", ".join(map(str, self.cache.views))
            raise UsageError(f"view {shown(view)} is not in {self.cache.path}; it has the views {views}")
        self.layers, self.parts = tuple(self.cache.layers) if layers is None else as_names(layers, "layers"), parts
        self.videos = self.cache.ok_videos(split, view=view, layers=self.layers, parts=parts_of(parts))
        if not self.videos:
            wanted = f"{parts} tokens of layers {', '.join(self.layers)} in view {view}"
            splits = ", ".join(self.cache.splits)
            raise UsageError(f"no video of split {split!r} of {self.cache.path} has {wanted}; its splits are {splits}")
        self._rule = ClipRule(num_frames=num_frames, stride=stride)
        self._random, self._seed, self._stored = position == "random", seed, stored
        # In shared memory: workers that are running already see the next epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random positions, here and in all workers; call it before the loader begins the epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The clip of the video at that place; see the class."""
        row = self.videos[index]
        index %= len(self)
        position = 0.5
        if self._random:
            position = float(np.random.default_rng([self._seed, int(self._epoch), index]).random())
        frames = self._rule.frames(row.num_frames, position=position)
        clip = self.cache.read(row.id, frames, self.layers, parts_of(self.parts), row.view)
        return {
            **self._tokens(clip),
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
