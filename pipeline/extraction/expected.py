"""What an extraction would store, found out before it: layers and their shapes, classes, splits. Nothing is made.

The encoder is built without weights (`describe_encoder`), and videos are listed and not looked into. So what follows an
extraction can be checked against it in seconds, without a hub or a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfz.pipeline.datasets import DATASETS, open_dataset
from vfz.pipeline.datasets.base import VideoDataset
from vfz.pipeline.datasets.splits import DEFAULT_FRACTIONS, SPLITS
from vfz.pipeline.encoder.names import check_encoder_name
from vfz.pipeline.encoder.shapes import describe_encoder
from vfz.pipeline.encoder.weights import check_weights_place
from vfz.pipeline.errors import UsageError
from vfz.pipeline.extraction.options import ExtractOptions


@dataclass(frozen=True, kw_only=True)
class ExpectedCache:
    """A cache that is not there yet, as far as it can be known.

    Attributes:
        path: how messages call it; no folder.
        layers: channels and tokens of a frame: {layer: {part: (tokens, channels)}}.
        recipe: with the encoder's image size, as in a cache.
        class_names: in label order; None where the dataset is not there to be asked.
        splits: how many videos each has, None where only the names are known; None as a whole where those are not.
        targets_path: where `targets.npz` is looked for; None where the dataset is not there, or is still to be made.
    """

    path: Path
    layers: Mapping[str, Mapping[str, tuple[int, int]]]
    recipe: dict[str, Any]
    class_names: tuple[str, ...] | None
    splits: Mapping[str, int | None] | None
    targets_path: Path | None


def expect(options: ExtractOptions, *, dataset: VideoDataset | None) -> ExpectedCache:
    """What an extraction with these options would store.

    Args:
        options: of the extraction.
        dataset: as `find_videos` gives it.

    Raises:
        UsageError, EncoderError: no such encoder, layer, part, image size or split, or no weights file.
    """
    check_encoder_name(options.encoder)
    check_weights_place(options.encoder, weights=options.weights, random_weights=options.random_weights)
    image_size, shapes = describe_encoder(options.encoder, layers=options.layers, image_size=options.image_size)
    layers = {}
    for layer, shape in shapes.items():
        parts = {"patch": (shape.num_patches, shape.dim), "prefix": (shape.num_prefix, shape.dim)}
        wanted = {part: size for part, size in parts.items() if size[0] and part in (options.parts or parts)}
        if not wanted:
            raise UsageError(
                f"--parts {','.join(options.parts or ())}: layer {layer} of {options.encoder} has no such tokens; it "
                f"has {' and '.join(part for part, (num_tokens, _) in parts.items() if num_tokens)}"
            )
        layers[layer] = wanted
    return ExpectedCache(
        path=Path("the cache that [extract] makes"),
        layers=layers,
        recipe={"encoder": {"image_size": image_size}},
        class_names=None if dataset is None else tuple(dataset.class_names),
        splits=None if dataset is None else _splits(options, dataset),
        targets_path=_targets_path(dataset),
    )


def find_videos(options: ExtractOptions) -> VideoDataset:
    """The dataset of an extraction, opened; nothing is made.

    Raises:
        UsageError, DatasetError: as `open_dataset`.
    """
    synthetic = options.dataset == "synthetic"
    return open_dataset(
        options.dataset,
        root=options.root,
        num_videos=options.num_videos,
        num_frames=options.num_frames,
        size=options.size,
        seed=options.seed if synthetic or not options.random_weights else None,
        prepare=False,
    )


def needs_a_root(options: ExtractOptions) -> bool:
    """Whether somebody must say where the videos lie, and these options do not."""
    return options.root is None and options.dataset in DATASETS and DATASETS[options.dataset].needs_root


def _targets_path(dataset: VideoDataset | None) -> Path | None:
    if dataset is None or not (dataset.needs_root or dataset.root.exists()):
        return None
    return dataset.root / "targets.npz"


def _splits(options: ExtractOptions, dataset: VideoDataset) -> dict[str, int | None] | None:
    """The splits that are stored; None where there are folds besides, whose splits have names of their own."""
    if options.split_folds:
        return None
    is_dealt = options.split_fractions is not None or options.group_by
    found: dict[str, int | None]
    if is_dealt or not dataset.has_splits:
        fractions = options.split_fractions or DEFAULT_FRACTIONS
        found = {split: None for split, fraction in zip(SPLITS, fractions, strict=False) if fraction}
    else:
        records = dataset.planned_videos()
        if any(record.folds for record in records):
            return None
        found = dict(Counter(record.split for record in records))
    for split in options.splits or ():
        if split not in found:
            raise UsageError(f"--splits {split!r} is not in {dataset.root}; it has {', '.join(sorted(found))}")
    return {split: count for split, count in found.items() if options.splits is None or split in options.splits}
