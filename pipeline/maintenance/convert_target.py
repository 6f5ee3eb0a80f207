"""The cache that a conversion writes: its recipe and folder, and what comes before its first shard.

Made once under a hidden name and renamed into place, as every cache; found again when the same command is run again.
Its plans are the source's, byte for byte. Columns that the source gained meanwhile are added to it.

Where the precision stays, calibrations are the source's files, byte for byte. Where it changes, columns are calibrated
on tokens of the source, and `precision_error` is that of both roundings together, taken as independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfz.pipeline.errors import CacheIncompleteError, CacheMismatchError, UsageError
from vfz.pipeline.format.calibration import CalibratedColumn, Calibration, calibrate, write_calibration
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.golden import FRAMES_FILE, write_golden_tokens
from vfz.pipeline.format.header import GOLDEN, Contents, create_cache, precision_of
from vfz.pipeline.format.plan import PLAN, write_plan
from vfz.pipeline.maintenance.convert_selection import Selection
from vfz.pipeline.maintenance.convert_source import SourceCache, expand_arrays
from vfz.pipeline.maintenance.options import ConvertOptions
from vfz.pipeline.recipe import CALIBRATION_FRAMES, CALIBRATION_SEED, PRECISIONS, QUANTISED, StorageSpec
from vfz.pipeline.stores import STORES, Column
from vfz.pipeline.stores.quantization import PRECISION_VERSION, stored_arrays

if TYPE_CHECKING:
    import torch


def converted_recipe(source: SourceCache, precision: str) -> dict[str, Any]:
    """The source's recipe with another precision, as plain JSON values; the same recipe where the precision stays.

    Raises:
        UsageError: when the precision is higher than the source's, or this would be the second conversion.
    """
    recipe = dict(source.header.recipe)
    before = precision_of(recipe)
    if precision == before:
        return recipe
    if PRECISIONS.index(precision) < PRECISIONS.index(before):
        lower = ", ".join(PRECISIONS[PRECISIONS.index(before) :])
        raise UsageError(
            f"--precision {precision}: {source.path} stores {before}, and what that rounded off cannot be given back; "
            f"choose from {lower}, or extract again"
        )
    if origin := recipe["storage"]["converted_from"]:
        path = (source.header.provenance.get("converted_from") or {}).get("path", "the original")
        raise UsageError(
            f"--precision {precision}: {source.path} was itself converted from {origin}; tokens rounded again would "
            f"pass for those of one conversion: convert the {origin} cache ({path}), or extract again"
        )
    quantised = precision in QUANTISED
    storage = StorageSpec(
        precision=precision,
        precision_version=PRECISION_VERSION[precision],
        calibration_seed=CALIBRATION_SEED if quantised else None,
        calibration_frames=CALIBRATION_FRAMES if quantised else None,
        converted_from=before,
    )
    return {**recipe, "storage": asdict(storage)}


def open_target(
    source: SourceCache, path: Path, recipe: Mapping[str, Any], options: ConvertOptions, selection: Selection
) -> TargetCache:
    """The cache that `options` ask for, made where it is not there, with everything but shards.

    Raises:
        CacheMismatchError: when the folder holds a cache that is no conversion of the source, or of another part of it.
        CacheIncompleteError: when the source has no commit yet.
        StorageError: when the disk is full.
    """
    store = options.store or source.contents.store
    create_cache(
        path,
        recipe=recipe,
        provenance=_provenance(source, selection),
        fill=lambda inside: _fill(inside, source, selection, precision_of(recipe), store, options.compression),
    )
    folder = CacheFolder(path)
    _check_same_conversion(folder, source, recipe, store, selection)
    for plan in selection.plans(source.plans):
        if write_plan(path / PLAN, plan) != plan:
            raise CacheMismatchError(_other_videos(path, source))
    if len(folder.plans()) > len(source.plans):
        raise CacheMismatchError(_other_videos(path, source))
    contents = _add_new_columns(folder, source, selection, options.compression)
    return TargetCache(folder=folder, contents=contents, calibrations=folder.calibrations(contents))


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetCache:
    """A cache made by conversion.

    Attributes:
        folder: its files but tokens.
        contents: what is in it.
        calibrations: by column key.
    """

    folder: CacheFolder
    contents: Contents
    calibrations: Mapping[str, Calibration]

    @property
    def precision(self) -> str:
        """How it stores tokens."""
        return self.folder.header.precision

    @property
    def columns(self) -> dict[str, Column]:
        """What it stores, by column key."""
        return {column.key: column for column in self.contents.columns}

    def stored(self, column: Column, arrays: Mapping[str, Any], source: SourceCache) -> dict[str, Any]:
        """Stored arrays of a source's column, as this cache stores them; the same ones where the precision stays."""
        target = self.columns[column.key]
        if target.precision == column.precision:
            return dict(arrays)
        tokens = expand_arrays(column, arrays, source.calibrations.get(column.key))
        return _stored(target, tokens, self.calibrations[column.key])


def _provenance(source: SourceCache, selection: Selection) -> dict[str, Any]:
    """The source's own, which verifying and online reading go by, and where the tokens come from."""
    return {
        **source.header.provenance,
        "converted_from": {
            "path": str(source.path.absolute()),
            "fingerprint": source.header.fingerprint,
            "precision": source.header.precision,
            "store": source.contents.store,
            "vfz": version("vfz"),
            "before": source.header.provenance.get("converted_from"),
            **({"part": selection.to_dict()} if selection.to_dict() else {}),
        },
    }


def _check_same_conversion(
    folder: CacheFolder, source: SourceCache, recipe: Mapping[str, Any], store: str, selection: Selection
) -> None:
    path, contents = folder.path, folder.contents()
    origin = folder.header.provenance.get("converted_from") or {}
    if folder.header.recipe != recipe or origin.get("fingerprint") != source.header.fingerprint:
        raise CacheMismatchError(
            f"{path} is there and was not converted from {source.path}; give another --name or --out"
        )
    if (there := origin.get("part") or {}) != (asked := selection.to_dict()):
        names = [name for name in ("layers", "parts", "splits", "videos") if there.get(name) != asked.get(name)]
        what = "; ".join(f"{name}: it has {there.get(name, 'all')}, asked {asked.get(name, 'all')}" for name in names)
        raise CacheMismatchError(
            f"{path} is there with another part of {source.path}: {what}; give another --name or --out"
        )
    if contents.store != store:
        raise CacheMismatchError(f"{path} is there as a {contents.store} cache; give another --name or --out")
    if contents.class_names != source.contents.class_names:
        raise CacheMismatchError(f"{path} has other classes than {source.path}; give another --name or --out")


def _other_videos(path: Path, source: SourceCache) -> str:
    return f"{path} holds other videos than {source.path}, of the same recipe; give another --name or --out"


def _fill(
    folder: Path, source: SourceCache, selection: Selection, precision: str, store: str, compression: str
) -> Contents:
    """Puts in what comes before the first shard; columns that no commit is about are left for later."""
    wanted = selection.columns(source.contents.columns)
    found = [_calibrate(folder, column, source, precision, store, compression) for column in wanted]
    columns = [column for column in found if column is not None]
    if not columns:
        raise CacheIncompleteError(
            f"{source.path} has no tokens of any video yet, so there is nothing to convert; extract some first"
        )
    golden, arrays = _golden_frames(folder, source), _golden_arrays(source, columns)
    if arrays:
        golden |= write_golden_tokens(folder, arrays)
    return Contents.of(
        columns,
        dataset=source.contents.dataset,
        class_names=source.contents.class_names,
        store=store,
        golden=golden,
    )


def _add_new_columns(folder: CacheFolder, source: SourceCache, selection: Selection, compression: str) -> Contents:
    """Adds the columns that the source gained, as far as they are wanted."""
    contents = folder.contents()
    known = {column.key for column in contents.columns}
    found = [
        _calibrate(folder.path, column, source, folder.header.precision, contents.store, compression)
        for column in selection.columns(source.contents.columns)
        if column.key not in known
    ]
    columns = [column for column in found if column is not None]
    return folder.add_columns(columns, _golden_arrays(source, columns)) if columns else contents


def _calibrate(
    folder: Path, column: Column, source: SourceCache, precision: str, store: str, compression: str
) -> CalibratedColumn | None:
    """A column as the new cache stores it; None while no commit of the source is about it."""
    before, tokens_MND = source.calibrations.get(column.key), source.sample(column)
    if tokens_MND is None and source.has_outcome(column):
        tokens_MND = _golden_sample(column, source)
    chosen = replace(column, precision=precision, compression="none")
    if tokens_MND is not None:
        compresses = STORES[store].compresses
        chosen, calibration = calibrate(chosen, tokens_MND, requested_compression=compression, compresses=compresses)
    elif before is not None and source.has_outcome(column):
        calibration = replace(before, precision_error=None)  # of no video there are tokens to measure it on
    else:
        return None
    if before is not None and precision == column.precision:
        calibration = before
    elif before is not None:
        both = before.precision_error, calibration.precision_error
        error = None if both[0] is None or both[1] is None else math.hypot(both[0], both[1])
        calibration = replace(calibration, precision_error=error)
    return write_calibration(folder, chosen, calibration)


def _golden_sample(column: Column, source: SourceCache) -> torch.Tensor | None:
    """Golden tokens of a column, float32 [16, N, D]; None where there are none. For one that no video has tokens of."""
    if FRAMES_FILE not in source.contents.golden:
        return None
    golden = source.folder.golden(source.contents).arrays
    if column.key not in golden:
        return None
    return expand_arrays(column, golden, source.calibrations.get(column.key))


def _golden_frames(folder: Path, source: SourceCache) -> dict[str, str]:
    """Copies the pixels; returns the SHA-256 of the file by its name."""
    if FRAMES_FILE not in source.contents.golden:
        return {}
    (folder / GOLDEN / FRAMES_FILE).write_bytes((source.path / GOLDEN / FRAMES_FILE).read_bytes())
    return {FRAMES_FILE: source.contents.golden[FRAMES_FILE]}


def _golden_arrays(source: SourceCache, columns: Sequence[CalibratedColumn]) -> dict[str, Any]:
    """The golden tokens of some columns as the new cache stores them, by array key."""
    if FRAMES_FILE not in source.contents.golden:
        return {}
    golden = source.folder.golden(source.contents).arrays
    by_key = {column.key: column for column in source.contents.columns}
    arrays: dict[str, Any] = {}
    for new in columns:
        old = by_key[new.column.key]
        stored = {spec.key: golden[spec.key] for spec in old.arrays if spec.key in golden}
        if stored and old.precision != new.column.precision:
            tokens = expand_arrays(old, stored, source.calibrations.get(old.key))
            stored = _stored(new.column, tokens, new.calibration)
        arrays |= stored
    return arrays


def _stored(column: Column, tokens: torch.Tensor, calibration: Calibration) -> dict[str, Any]:
    """float32 tokens [n, N, D] as a column stores them, by array key."""
    return {key: tensor.numpy() for key, tensor in stored_arrays(column, tokens, calibration.stats).items()}
