"""The cache an extraction writes to: its recipe, and its folder, made when it is not there and checked when it is."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vfz.pipeline.cache_header import create_cache, read_header
from vfz.pipeline.datasets.base import VideoDataset, VideoRecord
from vfz.pipeline.encoder import FrozenEncoder
from vfz.pipeline.encoder_layers import LAYERS_VERSION
from vfz.pipeline.errors import CacheMismatchError, UsageError
from vfz.pipeline.golden import write_golden
from vfz.pipeline.options import ExtractOptions
from vfz.pipeline.precision import STORED_DTYPES
from vfz.pipeline.preprocess import PREPROCESS_VERSION
from vfz.pipeline.shard import columns_of
from vfz.pipeline.spec import EncoderSpec, FrameSpec, Recipe, StorageSpec, ViewSpec, describe_difference
from vfz.pipeline.video import DECODER, DECODER_VERSION


def make_recipe(encoder: FrozenEncoder, options: ExtractOptions, dataset: VideoDataset) -> Recipe:
    """The recipe of what `options` ask for with this encoder."""
    preprocess = encoder.preprocess
    return Recipe(
        encoder=EncoderSpec(
            name=encoder.name,
            weights_sha256=encoder.weights_sha256,
            random_weights=encoder.random_weights,
            image_size=preprocess.image_size,
            crop_fraction=preprocess.crop_fraction,
            interpolation=preprocess.interpolation,
            mean=preprocess.mean,
            std=preprocess.std,
            preprocess_version=PREPROCESS_VERSION,
            layers_version=LAYERS_VERSION,
            final_norm=True,
            autocast=options.autocast,
        ),
        frames=FrameSpec(
            fps=options.fps or dataset.default_fps,
            start_seconds=options.start_seconds,
            end_seconds=options.end_seconds,
            decoder=DECODER,
            decoder_version=DECODER_VERSION,
        ),
        views=ViewSpec(),
        storage=StorageSpec(precision=options.precision),
    )


def open_or_create(
    options: ExtractOptions, dataset: VideoDataset, encoder: FrozenEncoder, recipe: Recipe, records: list[VideoRecord]
) -> Path:
    """The folder of the cache that `options` ask for, made where it is not there.

    Raises:
        CacheMismatchError: when it holds tokens of another recipe, or labels of other classes.
        UsageError: when it holds other layers, or `--cache` names none.
    """
    name = f"{options.name or dataset.name}-{encoder.name.split('.')[0]}-{recipe.fingerprint[:12]}"
    folder = options.cache or options.out / name
    layers = _layer_shapes(encoder, options.precision)
    if options.cache is not None and not folder.is_dir():
        raise UsageError(f"--cache {folder} is not a cache; leave it out to make a new one under {options.out}/")
    if not folder.exists():
        contents = {
            "dataset": dataset.name,
            "class_names": list(dataset.class_names),
            "layers": layers,
            "dtype": STORED_DTYPES[options.precision],
            "splits": sorted({record.split for record in records}),
            "views": [0],
        }
        create_cache(
            folder,
            recipe=recipe.to_dict(),
            contents=contents,
            provenance=_provenance(options, dataset, encoder),
            golden=lambda inside: write_golden(inside, records, encoder, recipe),
        )
    header = read_header(folder)
    if header.recipe != recipe.to_dict():
        lines = "; ".join(describe_difference(header.recipe, recipe.to_dict()))
        raise CacheMismatchError(f"{folder} holds tokens of another recipe: {lines}; use another --name or --out")
    if header.contents["layers"] != layers:
        raise UsageError(
            f"{folder} holds the layers {', '.join(header.contents['layers'])}, {', '.join(layers)} were asked for; "
            "layers cannot be added to a cache yet: ask for the same, or give another --name"
        )
    if header.contents["class_names"] != list(dataset.class_names):
        raise CacheMismatchError(
            f"{folder} was made with the classes {', '.join(header.contents['class_names'][:8])}, the dataset now has "
            f"{', '.join(dataset.class_names[:8])}: labels would not agree; give another --name"
        )
    return folder


def _layer_shapes(encoder: FrozenEncoder, precision: str) -> dict[str, dict[str, list[int]]]:
    layers: dict[str, dict[str, list[int]]] = {layer: {} for layer in encoder.layers}
    for column in columns_of(encoder, precision):
        layers[column.layer][column.part] = [column.num_tokens, column.dim]
    return layers


def _provenance(options: ExtractOptions, dataset: VideoDataset, encoder: FrozenEncoder) -> dict[str, Any]:
    """What does not decide a number but is good to know, and what it takes to build the encoder again."""
    return {
        "root": str(dataset.root.absolute()),
        "encoder_request": {
            "name": options.encoder,
            "weights": str(options.weights.resolve()) if options.weights else None,
            "random_weights": options.random_weights,
            "seed": options.seed or 0,
            "batch_size": options.batch_size,
        },
        "weights_source": encoder.weights_source,
        "weights_license": encoder.license,
        "versions": {name: version(name) for name in ("vfz", "torch", "timm", "av", "zarr")},
        "python": platform.python_version(),
        "host": platform.node(),
        "device": str(encoder.device),
    }
