"""The cache that an extraction writes to: made where it is not there, checked and given new columns where it is.

`open_or_create` makes it; `find_destination` says what that would come to, and makes nothing.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vfz.pipeline.datasets.splits import SplitRule
from vfz.pipeline.datasets.text import clean
from vfz.pipeline.encoder.model import FrozenEncoder
from vfz.pipeline.engine.columns import columns_of, layers_of
from vfz.pipeline.errors import CacheMismatchError, UsageError
from vfz.pipeline.extraction.calibrate import DEFAULT_STORE, extend_cache, fill_cache
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.extraction.setup import Prepared
from vfz.pipeline.files import text_of_name
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.header import Contents, create_cache, sorted_columns
from vfz.pipeline.recipe import QUANTISED, describe_difference
from vfz.pipeline.stores import Column


def open_or_create(options: ExtractOptions, prepared: Prepared) -> Destination:
    """The cache that `options` ask for, made where it is not there, with the columns they ask for.

    A cache that is there keeps what it has; layers and parts that are named and not in it are added. Where none are
    named, the cache's own are meant.

    Raises:
        CacheMismatchError: when it holds tokens of another recipe, or labels of other classes.
        UsageError: when it has another store.
        TooManyFailuresError: when no video can be decoded; no cache was made.
    """
    cache, encoder = prepared.cache, prepared.encoder
    wanted = columns_of(encoder.shapes, options.precision, parts=options.parts)
    if not cache.path.exists():
        create_cache(
            cache.path,
            recipe=prepared.recipe.to_dict(),
            provenance=_provenance(options, prepared),
            fill=lambda folder: fill_cache(folder, wanted, options, prepared),
        )
    contents = cache.contents()
    _check(cache, contents, options, prepared)
    new = _new_columns(contents, wanted, encoder, options)
    if new:
        contents = extend_cache(cache, contents, new, options, prepared)
    return Destination(cache=cache, contents=contents, encoder=encoder.with_layers(layers_of(contents.columns)))


def find_destination(options: ExtractOptions, prepared: Prepared) -> Destination:
    """Where `options` would write, and what the cache would then hold; nothing is made.

    Raises:
        CacheMismatchError, UsageError: as `open_or_create`.
    """
    cache, encoder = prepared.cache, prepared.encoder
    wanted = columns_of(encoder.shapes, options.precision, parts=options.parts)
    if cache.path.exists():
        contents = cache.contents()
        _check(cache, contents, options, prepared)
        new = _new_columns(contents, wanted, encoder, options)
        contents = replace(contents, columns=sorted_columns([*contents.columns, *new]))
    else:
        contents = Contents(
            dataset=prepared.dataset.name,
            class_names=prepared.dataset.class_names,
            store=options.store or DEFAULT_STORE,
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


def _check(cache: CacheFolder, contents: Contents, options: ExtractOptions, prepared: Prepared) -> None:
    """Refuses a cache that this extraction cannot go on with."""
    recipe, class_names = prepared.recipe.to_dict(), prepared.dataset.class_names
    if cache.header.recipe != recipe:
        lines = "; ".join(describe_difference(cache.header.recipe, recipe))
        raise CacheMismatchError(f"{cache.path} holds tokens of another recipe: {lines}; use another --name or --out")
    if options.store is not None and options.store != contents.store:
        raise UsageError(
            f"{cache.path} is a {contents.store} store, --store {options.store} was asked for; leave it out, or make "
            "another cache with `vfz cache convert`"
        )
    # Names were not cleaned at first: where they are the same but for that, so are the labels.
    same = class_names in {contents.class_names, tuple(map(clean, contents.class_names))}
    if not same and not _has_labels_of(cache, class_names):
        raise CacheMismatchError(
            f"{cache.path} was made with the classes {', '.join(contents.class_names[:8])}, the dataset now has "
            f"{', '.join(class_names[:8])}: labels would not agree; {label_command(cache.path, options, prepared)} "
            "adds them beside the others and encodes nothing again, and then new videos are taken up; another --name "
            "makes another cache"
        )
    before, now = cache.header.provenance.get("splits"), prepared.split_rule and prepared.split_rule.to_dict()
    if before and now and before != now:
        rule = SplitRule(**{**before, "fractions": tuple(before["fractions"])})
        raise UsageError(f"{cache.path} has its videos dealt by {rule}, now by {prepared.split_rule}; give the first")
    if cache.header.precision in QUANTISED:
        cache.calibrations(contents)  # tokens can neither be stored nor read without them: better told now


def _has_labels_of(cache: CacheFolder, class_names: tuple[str, ...]) -> bool:
    """Whether someone has given the cache a label set of these classes."""
    sets = map(cache.label_set, cache.label_sets())
    return any(labels.kind == "classes" and labels.names == class_names for labels in sets)


def label_command(cache: Path, options: ExtractOptions, prepared: Prepared) -> str:
    """The command that gives a cache the labels and splits of the dataset at hand, as one types it."""
    root = options.root or prepared.dataset.root
    kind = [] if options.dataset == "folder" else ["--dataset", options.dataset]
    return f"`{shlex.join(['vfz', 'cache', 'label', str(cache), '--from', str(root), *kind])}`"


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


def _provenance(options: ExtractOptions, prepared: Prepared) -> dict[str, Any]:
    """What does not decide a number but is good to know, and what it takes to build the encoder again."""
    encoder = prepared.encoder
    return {
        "root": text_of_name(str(prepared.dataset.root.absolute())),
        "encoder_request": {
            "name": options.encoder,
            "weights": text_of_name(str(options.weights.resolve())) if options.weights else None,
            "weights_key": options.weights_key,
            "random_weights": options.random_weights,
            "seed": options.seed or 0,
            "batch_size": options.batch_size,
        },
        "splits": prepared.split_rule and prepared.split_rule.to_dict(),
        "weights_source": encoder.weights_source,
        "weights_taken": encoder.weights_note,
        "weights_license": encoder.license,
        "versions": {name: version(name) for name in ("vfz", "torch", "timm", "av", "zarr")},
        "python": platform.python_version(),
        "host": platform.node(),
        "device": str(encoder.device),
    }
