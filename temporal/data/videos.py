"""Which videos of one cache, or of several of one recipe, clips are taken of; and whether those caches go together.

Videos come cache by cache, in the order of each. What is asked for and not there (a split, a layer, a view) is refused
with the names of what is there. Ledgers are read, no tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.cache.request import Layers, as_names
from vfz.pipeline.errors import CacheMismatchError, UsageError
from vfz.pipeline.format.labels import NO_SPLIT, LabelSet
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.recipe import describe_difference
from vfz.temporal.tasks import TASK_OF_LABELS


class TokenShapes(Protocol):
    """What a cache holds of every frame, or what one that is still to be made will hold.

    Attributes:
        path: how messages call it.
        layers: {layer: {part: (tokens of a frame, channels)}}.
        recipe: as in the cache.
    """

    @property
    def path(self) -> Path: ...  # noqa: D102
    @property
    def layers(self) -> Mapping[str, Mapping[str, tuple[int, int]]]: ...  # noqa: D102
    @property
    def recipe(self) -> dict[str, Any]: ...  # noqa: D102


EVAL_SPLITS = ("val", "validation", "test")
"""In the order in which one is chosen where none is named."""


@dataclass(frozen=True, kw_only=True)
class ClipVideo:
    """A video that clips are taken of.

    Attributes:
        rows: its row in every view that may be used; at least one, the first is used where nothing else is said.
        cache: which of the caches it is in, by number.
    """

    rows: tuple[LedgerRow, ...]
    cache: int = 0

    @property
    def id(self) -> str:
        """Unique in its cache."""
        return self.rows[0].id

    @property
    def label(self) -> int | None:
        """Its class, where it has one."""
        return self.rows[0].label


def clip_videos(
    caches: FeatureCache | Sequence[FeatureCache],
    split: str,
    *,
    layers: Layers | None = None,
    parts: str = "all",
    views: Sequence[int] = (0,),
    labelled: bool = False,
) -> list[ClipVideo]:
    """The videos of a split that have tokens of these layers and parts, cache by cache, in the order of each.

    Args:
        caches: one, or several; those that do not have the split give nothing to it.
        split: its name.
        layers: as in `FeatureCache.read`.
        parts: `all`, `patch` or `prefix`.
        views: which views may be used. A video needs the first of them; of the others those that it has are taken.
        labelled: leave out those without a label; see `is_labelled`.

    Raises:
        UsageError: when there are none, or no view is named; says which splits have some.
        UnknownNameError: when no cache has that split.
    """
    group = as_caches(caches)
    if not views:
        raise UsageError("no view was named; 0 is the centre crop")
    if not any(split in cache.splits for cache in group):
        group[0].ok_videos(split)  # says what is like it
    videos = []
    for number, cache in enumerate(group):
        if split not in cache.splits:
            continue
        others = [_rows_by_id(cache, split, view, layers, parts) for view in views[1:]]
        known = is_labelled(cache)
        for row in _rows_by_id(cache, split, views[0], layers, parts).values():
            if labelled and not known(row.id, row.label):
                continue
            rows = (row, *(by_id[row.id] for by_id in others if row.id in by_id))
            videos.append(ClipVideo(rows=rows, cache=number))
    if not videos:
        raise UsageError(
            f"split {split!r} of {' and '.join(str(cache.path) for cache in group)} has no "
            f"{'labelled ' if labelled else ''}video with {_wanted(layers, parts)}{_in_views(views)}; splits with "
            f"some: {', '.join(_splits_with_some(group, views[0], layers, parts, labelled=labelled)) or 'none'}"
        )
    return videos


def labelled_videos(
    cache: FeatureCache, split: str, *, layers: Layers | None = None, parts: str = "all"
) -> list[LedgerRow]:
    """The videos of a split that have a label and tokens of these layers and parts, in the order of the cache.

    Raises:
        UsageError: when there are none.
    """
    return [video.rows[0] for video in clip_videos(cache, split, layers=layers, parts=parts, labelled=True)]


def num_missing(cache: FeatureCache, split: str, *, layers: Layers, parts: str) -> int:
    """How many planned videos of a split have no tokens of these layers and parts, so that they are not evaluated."""
    return cache.num_planned(split) - len(cache.ok_videos(split, layers=layers, parts=parts_of(parts)))


def num_unlabelled(
    caches: Sequence[FeatureCache], split: str, *, layers: Layers | None = None, parts: str = "all", view: int = 0
) -> int:
    """How many videos of a split have these tokens and no label."""
    count = 0
    for cache in caches:
        if split in cache.splits:
            known = is_labelled(cache)
            rows = cache.ok_videos(split, view=view, layers=layers, parts=parts_of(parts))
            count += sum(not known(row.id, row.label) for row in rows)
    return count


def num_without_split(cache: FeatureCache) -> int:
    """How many videos are in none of the splits, since the cache's label set has splits and does not name them."""
    if cache.label_set is None or cache.label_set.splits is None:
        return 0
    splits, views = (cache.table()[name].to_pylist() for name in ("split", "view"))
    return sum(split == NO_SPLIT and view == 0 for split, view in zip(splits, views, strict=True))


def label_set_record(labels: LabelSet) -> dict[str, Any]:
    """Which label set a result was made with, for its record."""
    return {"name": labels.name, "number": labels.number, "kind": labels.kind, "digest": labels.digest}


def is_labelled(cache: FeatureCache) -> Callable[[str, int | None], bool]:
    """Tells of an id and a class whether the video has a label: a class, or something that the label set says."""
    labels = cache.label_set
    if labels is None or labels.kind == "classes":
        return lambda _, label: label is not None
    known = {
        id_
        for id_, label in labels.labels.items()
        if not (isinstance(label, tuple) and all(math.isnan(number) for number in label))
    }
    return lambda id_, _: id_ in known


def num_present_classes(caches: Sequence[FeatureCache]) -> int:
    """Classes that some video of the caches has, in whatever split; numbered labels may leave some out."""
    labels = {label for cache in caches for label in cache.table().column("label").unique().to_pylist()}
    return len(labels - {None})


def choose_eval_split(
    cache: FeatureCache, asked: str | None, *, layers: Layers | None = None, parts: str = "all"
) -> str:
    """`asked`, else the first of `val`, `validation` and `test` that has videos with these layers and parts.

    Raises:
        UsageError: when none of them has; lists the splits of the cache.
    """
    split = asked if asked is not None else first_eval_split([cache], layers=layers, parts=parts)
    if split is None:
        raise UsageError(
            f"{cache.path} has no {', '.join(EVAL_SPLITS[:-1])} or {EVAL_SPLITS[-1]} video with "
            f"{_wanted(layers, parts)}; its splits are {', '.join(cache.splits) or 'none'}: name one with --eval-split"
        )
    return split


def first_eval_split(caches: Sequence[FeatureCache], *, layers: Layers | None, parts: str) -> str | None:
    """The first of `EVAL_SPLITS` that has a video with these layers and parts in some cache; None where none has."""
    for split in EVAL_SPLITS:
        for cache in caches:
            if split in cache.splits and cache.ok_videos(split, layers=layers, parts=parts_of(parts)):
                return split
    return None


def check_layers(cache: TokenShapes, layers: Sequence[str], parts: str) -> None:
    """Refuses layers or parts that the cache does not have.

    Raises:
        UsageError: names those it has.
    """
    if not layers:
        raise UsageError(f"no layer is named; choose from the layers {', '.join(cache.layers)} of {cache.path}")
    for layer in layers:
        _check_layer(cache, layer, parts)


def check_parts(cache: TokenShapes, layers: Layers, parts: str) -> tuple[int, int]:
    """Tokens per frame and channels of the layers, which must all have the same.

    Raises:
        UsageError: when no layer is named, one is not cached or has no such tokens, or they differ in shape.
    """
    layers = as_names(layers, "layers")
    if not layers:
        raise UsageError(f"layers is empty; name some of the layers {', '.join(cache.layers)} of {cache.path}")
    shapes = set()
    for layer in layers:
        _check_layer(cache, layer, parts)
        counts = {part: tuple(shape) for part, shape in cache.layers[layer].items()}
        used = counts if parts == "all" else {parts: counts[parts]}
        shapes.add((sum(num for num, _ in used.values()), next(iter(used.values()))[1]))
    if len(shapes) > 1:
        raise UsageError(f"layers {', '.join(layers)} differ in shape {sorted(shapes)}; use one of them, or equal ones")
    return shapes.pop()


def check_view(cache: FeatureCache, view: int) -> None:
    """Refuses a view that the cache does not have.

    Raises:
        UsageError: names those it has.
    """
    if view not in cache.views:
        raise UsageError(f"view {view} is not in {cache.path}; it has the views {', '.join(map(str, cache.views))}")


def common_class_names(caches: Sequence[FeatureCache]) -> tuple[str, ...]:
    """The class names of all caches, in label order.

    Raises:
        UsageError: when they differ, so that a label of one means something else in another.
    """
    for cache in caches[1:]:
        if cache.class_names != caches[0].class_names:
            raise UsageError(
                f"{cache.path} has {len(cache.class_names)} classes, {caches[0].path} has "
                f"{len(caches[0].class_names)}, or they are called otherwise; labels of caches that are used together "
                "must mean the same"
            )
    return tuple(caches[0].class_names)


def label_kind(cache: FeatureCache) -> str:
    """What a video's label is: `classes`, or the kind of the label set that the cache was opened with."""
    return "classes" if cache.label_set is None else cache.label_set.kind


def common_labels(caches: Sequence[FeatureCache]) -> tuple[str, tuple[str, ...]]:
    """The kind of the labels of all caches, and the names of the classes, labels or targets, in order.

    Raises:
        UsageError: when they differ.
    """
    kinds = {label_kind(cache) for cache in caches}
    names = {cache.class_names if cache.label_set is None else cache.label_set.names for cache in caches}
    if kinds == {"classes"}:
        return "classes", common_class_names(caches)
    if len(kinds) > 1 or len(names) > 1:
        raise UsageError(
            f"the label sets of {' and '.join(str(cache.path) for cache in caches)} are of kind "
            f"{' and '.join(sorted(kinds))}, or have other names; labels of caches that are used together must mean "
            "the same"
        )
    return kinds.pop(), names.pop()


def task_of_labels(asked: str, cache: FeatureCache) -> str:
    """The task that is meant: `asked`, or where that is `classify`, the default, the one for the kind of the label set.

    Raises:
        UsageError: when the task takes label sets of another kind.
    """
    kind = label_kind(cache)
    if asked == TASK_OF_LABELS["classes"]:
        return TASK_OF_LABELS[kind]
    if asked not in TASK_OF_LABELS.values() or asked == TASK_OF_LABELS[kind]:
        return asked
    if cache.label_set is None:
        some = ", ".join(cache.label_sets) or "none; `vfz cache label` adds one"
        raise UsageError(
            f"--task {asked} takes a label set of that kind; name it by --labels ({cache.path} has {some})"
        )
    raise UsageError(
        f"--task {asked} contradicts the label set {cache.label_set.name!r}, which is of kind {kind}; leave --task "
        "out, or name another set by --labels"
    )


def as_caches(caches: FeatureCache | Sequence[FeatureCache]) -> tuple[FeatureCache, ...]:
    """One or several caches as several.

    Raises:
        CacheMismatchError, UsageError: as `check_same_recipe`.
    """
    group = (caches,) if isinstance(caches, FeatureCache) else tuple(caches)
    check_same_recipe(group)
    return group


def check_same_recipe(caches: Sequence[FeatureCache]) -> None:
    """Refuses caches whose tokens cannot be mixed.

    Raises:
        CacheMismatchError: with the field-by-field difference of the first that differs.
        UsageError: when there is none, or one is given twice.
    """
    if not caches:
        raise UsageError("no cache was given; give one or several")
    first = caches[0]
    for number, cache in enumerate(caches):
        if any(cache.path.resolve() == other.path.resolve() for other in caches[:number]):
            raise UsageError(f"{cache.path} is given twice; its videos would count twice")
        if cache.fingerprint != first.fingerprint:
            difference = describe_difference(first.recipe, cache.recipe, names=("first", "other"))
            raise CacheMismatchError(
                f"{cache.path} was made by another recipe than {first.path}: {'; '.join(difference)}; "
                "only caches of one recipe are used together"
            )


def parts_of(parts: str) -> tuple[str, ...] | None:
    """`all`, `patch` or `prefix`, as `FeatureCache.read` takes it."""
    return None if parts == "all" else (parts,)


def _check_layer(cache: TokenShapes, layer: str, parts: str) -> None:
    if layer not in cache.layers:
        raise UsageError(f"layer {layer!r} is not in {cache.path}; it has {', '.join(cache.layers)}")
    if parts != "all" and parts not in cache.layers[layer]:
        raise UsageError(f"layer {layer!r} has no {parts} tokens; it has {', '.join(cache.layers[layer])}")


def _rows_by_id(
    cache: FeatureCache, split: str | None, view: int, layers: Layers | None, parts: str
) -> dict[str, LedgerRow]:
    check_view(cache, view)
    return {row.id: row for row in cache.ok_videos(split, view=view, layers=layers, parts=parts_of(parts))}


def _splits_with_some(
    caches: Sequence[FeatureCache], view: int, layers: Layers | None, parts: str, *, labelled: bool
) -> list[str]:
    found: set[str] = set()
    for cache in caches:
        known = is_labelled(cache)
        found |= {
            row.split
            for row in _rows_by_id(cache, None, view, layers, parts).values()
            if not labelled or known(row.id, row.label)
        }
    return sorted(found - {NO_SPLIT})


def _wanted(layers: Layers | None, parts: str) -> str:
    of_layers = "all layers" if layers is None else f"layers {', '.join(as_names(layers, 'layers'))}"
    return f"tokens of {of_layers}" if parts == "all" else f"{parts} tokens of {of_layers}"


def _in_views(views: Sequence[int]) -> str:
    return "" if tuple(views) == (0,) else f" in view {views[0]}"
