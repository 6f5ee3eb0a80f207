"""What an extraction starts from: videos listed, the encoder loaded, the recipe made, and the cache that it writes to.

`prepare` writes no file of a cache. `open_or_create` makes the cache where it is not there and checks it where it is;
`find_destination` says what that would come to, and makes nothing.

Cost: listing the videos (`synthetic` renders them where they are not there), and loading the encoder.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.datasets.base import VideoDataset, VideoRecord, describe_missing, present_ids
from vfz.pipeline.decoding import DEFAULT_DECODER, get_decoder
from vfz.pipeline.devices import device_for
from vfz.pipeline.encoder.layers import LAYERS_VERSION
from vfz.pipeline.encoder.model import EncoderRequest, FrozenEncoder
from vfz.pipeline.encoder.transforms import PREPROCESS_VERSION
from vfz.pipeline.encoder.weights import check_encoder_name
from vfz.pipeline.engine.columns import columns_of, layers_of
from vfz.pipeline.engine.local import Share, choose_share
from vfz.pipeline.errors import CacheMismatchError, UsageError
from vfz.pipeline.extraction.calibrate import extend_cache, fill_cache
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.format.folder import CacheFolder, cache_name
from vfz.pipeline.format.header import Contents, create_cache, sorted_columns
from vfz.pipeline.recipe import (
    CALIBRATION_FRAMES,
    CALIBRATION_SEED,
    CENTRED_FRAMES,
    QUANTISED,
    EncoderSpec,
    FrameSpec,
    Recipe,
    StorageSpec,
    ViewSpec,
    describe_difference,
)
from vfz.pipeline.stores import Column
from vfz.pipeline.stores.quantization import PRECISION_VERSION

if TYPE_CHECKING:
    from vfz.pipeline.progress import Progress


def prepare(options: ExtractOptions, progress: Progress) -> Prepared:
    """Lists the videos and loads the encoder.

    Raises:
        UsageError: a wrong option. DatasetError: no videos. EncoderError: no weights.
    """
    check_encoder_name(options.encoder)  # a slip of the pen is told before videos are listed or rendered
    share = choose_share(options.rank, options.world_size)
    dataset = _open_dataset(options, progress)
    if options.flip and not dataset.can_flip:
        raise UsageError(f"--flip would change classes of {options.dataset}, which tell left from right; leave it out")
    everything = dataset.videos()
    records = _choose_splits(everything, dataset, options.splits)
    present = present_ids(records)
    if len(present) < len(records):
        missing = len(records) - len(present)
        progress.note(describe_missing(dataset.name, num_listed=len(records), num_missing=missing))
    request = EncoderRequest(
        name=options.encoder,
        layers=options.layers,
        image_size=options.image_size,
        weights=options.weights,
        random_weights=options.random_weights,
        seed=options.seed or 0,
        # Ranks on one machine take its GPUs in turn; one that sees a single GPU takes that.
        device=options.device if options.rank is None else device_for(options.device, share.rank),
        autocast=options.autocast,
        batch_size=options.batch_size,
        channels_last=options.channels_last,
        compile=options.compile,
    )
    encoder = request.load()
    return Prepared(
        dataset=dataset,
        everything=everything,
        records=records,
        present=present,
        request=request,
        encoder=encoder,
        recipe=make_recipe(encoder, options, dataset),
        share=share,
    )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What an extraction starts from, made from its options.

    Attributes:
        dataset: where the videos are from.
        everything: all of them.
        records: those of the splits that are wanted.
        present: ids of those whose files are there.
        request: how any process builds the encoder.
        encoder: the same, built.
        recipe: what decides the numbers.
        share: which part of the work is done here.
    """

    dataset: VideoDataset
    everything: list[VideoRecord]
    records: list[VideoRecord]
    present: frozenset[str]
    request: EncoderRequest
    encoder: FrozenEncoder
    recipe: Recipe
    share: Share


def _open_dataset(options: ExtractOptions, progress: Progress) -> VideoDataset:
    started = False

    def on_progress(_done: int, total: int) -> None:
        nonlocal started
        if not started:
            progress.start("rendering", total=total, unit="videos")
            started = True
        progress.advance()

    # --seed is the dataset's where it has one, and the random weights' in any case
    synthetic = options.dataset == "synthetic"
    dataset = open_dataset(
        options.dataset,
        root=options.root,
        num_videos=options.num_videos,
        num_frames=options.num_frames,
        size=options.size,
        seed=options.seed if synthetic or not options.random_weights else None,
        on_progress=on_progress,
    )
    if started:
        progress.finish()
    return dataset


def _choose_splits(
    records: list[VideoRecord], dataset: VideoDataset, wanted: tuple[str, ...] | None
) -> list[VideoRecord]:
    present = sorted({record.split for record in records})
    for split in wanted or ():
        if split not in present:
            raise UsageError(f"--splits {split!r} is not in {dataset.root}; it has {', '.join(present)}")
    return [record for record in records if wanted is None or record.split in wanted]


def make_recipe(encoder: FrozenEncoder, options: ExtractOptions, dataset: VideoDataset) -> Recipe:
    """The recipe of what `options` ask for with this encoder."""
    preprocess, decoder = encoder.preprocess, get_decoder(DEFAULT_DECODER)
    quantised = options.precision in QUANTISED
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
            rule=options.frames,
            num_frames=options.clip_frames or (CENTRED_FRAMES if options.frames == "centred" else None),
            fps=None if options.frames == "uniform" else options.fps or dataset.default_fps,
            start_seconds=options.start_seconds,
            end_seconds=options.end_seconds,
            decoder=decoder.name,
            decoder_version=decoder.version,
        ),
        views=ViewSpec(horizontal_flip=options.flip),
        storage=StorageSpec(
            precision=options.precision,
            precision_version=PRECISION_VERSION[options.precision],
            calibration_seed=CALIBRATION_SEED if quantised else None,
            calibration_frames=CALIBRATION_FRAMES if quantised else None,
        ),
    )


def open_or_create(
    options: ExtractOptions, dataset: VideoDataset, encoder: FrozenEncoder, recipe: Recipe, records: list[VideoRecord]
) -> Destination:
    """The cache that `options` ask for, made where it is not there, with the columns they ask for.

    A cache that is there keeps what it has; layers and parts that are named and not in it are added. Where none are
    named, the cache's own are meant.

    Raises:
        CacheMismatchError: when it holds tokens of another recipe, or labels of other classes.
        UsageError: when it has another store, or `--cache` names none.
        TooManyFailuresError: when no video can be decoded; no cache was made.
    """
    cache = _cache(options, dataset, encoder, recipe)
    wanted = columns_of(encoder.shapes, options.precision, parts=options.parts)
    if not cache.path.exists():
        create_cache(
            cache.path,
            recipe=recipe.to_dict(),
            provenance=_provenance(options, dataset, encoder),
            fill=lambda inside: fill_cache(
                inside,
                dataset=dataset.name,
                class_names=dataset.class_names,
                store=options.store or "zarr",
                columns=wanted,
                compression=options.compression or "auto",
                encoder=encoder,
                records=records,
                recipe=recipe,
                time_limit_seconds=options.video_timeout,
            ),
        )
    contents = cache.contents()
    _check(cache, contents, options, dataset, recipe)
    new = _new_columns(contents, wanted, encoder, options)
    if new:
        contents = extend_cache(
            cache,
            contents,
            new,
            compression=options.compression or "auto",
            encoder=encoder,
            records=records,
            recipe=recipe,
            time_limit_seconds=options.video_timeout,
        )
    return Destination(cache=cache, contents=contents, encoder=encoder.with_layers(layers_of(contents.columns)))


def find_destination(
    options: ExtractOptions, dataset: VideoDataset, encoder: FrozenEncoder, recipe: Recipe
) -> Destination:
    """Where `options` would write, and what the cache would then hold; nothing is made.

    Raises:
        CacheMismatchError, UsageError: as `open_or_create`.
    """
    cache = _cache(options, dataset, encoder, recipe)
    wanted = columns_of(encoder.shapes, options.precision, parts=options.parts)
    if cache.path.exists():
        contents = cache.contents()
        _check(cache, contents, options, dataset, recipe)
        new = _new_columns(contents, wanted, encoder, options)
        contents = replace(contents, columns=sorted_columns([*contents.columns, *new]))
    else:
        contents = Contents(
            dataset=dataset.name,
            class_names=dataset.class_names,
            store=options.store or "zarr",
            columns=sorted_columns(list(wanted)),
            calibrations={},
            golden={},
        )
    return Destination(cache=cache, contents=contents, encoder=encoder.with_layers(layers_of(contents.columns)))


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where an extraction writes.

    Attributes:
        cache: the cache, which need not be there yet.
        contents: what it holds, with the columns that this extraction adds.
        encoder: gives the layers of all its columns.
    """

    cache: CacheFolder
    contents: Contents
    encoder: FrozenEncoder


def _cache(options: ExtractOptions, dataset: VideoDataset, encoder: FrozenEncoder, recipe: Recipe) -> CacheFolder:
    """The cache that is meant, which need not be there."""
    if options.cache is None:
        return CacheFolder(options.out / cache_name(options.name or dataset.name, encoder.name, recipe.fingerprint))
    if not options.cache.is_dir():
        raise UsageError(f"--cache {options.cache} is not a cache; leave it out to make a new one under {options.out}/")
    return CacheFolder(options.cache)


def _check(
    cache: CacheFolder, contents: Contents, options: ExtractOptions, dataset: VideoDataset, recipe: Recipe
) -> None:
    """Refuses a cache that this extraction cannot go on with."""
    if cache.header.recipe != recipe.to_dict():
        lines = "; ".join(describe_difference(cache.header.recipe, recipe.to_dict()))
        raise CacheMismatchError(f"{cache.path} holds tokens of another recipe: {lines}; use another --name or --out")
    if options.store is not None and options.store != contents.store:
        raise UsageError(
            f"{cache.path} is a {contents.store} store, --store {options.store} was asked for; leave it out, or make "
            "another cache with `vfz cache convert`"
        )
    if contents.class_names != dataset.class_names:
        raise CacheMismatchError(
            f"{cache.path} was made with the classes {', '.join(contents.class_names[:8])}, the dataset now has "
            f"{', '.join(dataset.class_names[:8])}: labels would not agree; give another --name"
        )
    if cache.header.precision in QUANTISED:
        cache.calibrations(contents)  # tokens can neither be stored nor read without them: better told now


def _new_columns(
    contents: Contents, wanted: Sequence[Column], encoder: FrozenEncoder, options: ExtractOptions
) -> list[Column]:
    """Columns that were asked for by name and are not in the cache."""
    if options.layers is None and options.parts is None:
        return []
    if options.layers is None:  # parts alone: of the layers that the cache has
        own = encoder.with_layers(layers_of(contents.columns))
        wanted = columns_of(own.shapes, options.precision, parts=options.parts)
    if options.parts is None:  # layers alone: a layer that is there is not given parts it was made without
        known = set(contents.layers)
        return [column for column in wanted if column.layer not in known]
    keys = {column.key for column in contents.columns}
    return [column for column in wanted if column.key not in keys]


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
