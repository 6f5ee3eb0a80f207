"""What the commands of vfz.temporal are asked for, held against caches and runs before torch is imported.

The command line calls these first, so that a slip of the pen is told at once. The work itself checks again what it
uses, by the same functions. Cost: opening the caches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.config import check_out_file, check_out_folder
from vfz.pipeline.datasets.folder import videos_at
from vfz.pipeline.devices import check_device
from vfz.pipeline.errors import UsageError
from vfz.pipeline.format.folder import find_cache
from vfz.pipeline.recipe import counted_layers
from vfz.temporal.cores import WITH_HEADS
from vfz.temporal.data.options import ExportOptions
from vfz.temporal.data.videos import as_caches, check_layers, check_parts, check_view
from vfz.temporal.lookup import find_probe, find_run
from vfz.temporal.prediction.options import PredictOptions
from vfz.temporal.probes.options import DemoOptions, ProbeOptions
from vfz.temporal.run_record import cache_for, caches_for, caches_of_run, check_same_tokens, read_run
from vfz.temporal.training.options import EvaluateOptions, TrainOptions, layers_of

DEMO_MARKER = ".vfz-demo"
"""Stands in a folder that a demo has made."""


def check_training(options: TrainOptions) -> None:
    """Refuse what `vfz train-temporal` cannot do.

    Raises:
        UsageError: an option that does not fit the caches or the machine, or no run to resume.
    """
    check_device(options.device)
    check_out_folder(options.out)
    caches = as_caches(
        [FeatureCache(path, labels=options.labels) for path in caches_for(options.cache, options.resumed_run)]
    )
    layers = layers_of(options, tuple(caches[0].layers))
    for cache in caches:
        _, encoder_dim = check_parts(cache, layers, options.parts)
    _check_splits(caches, (options.train_split, options.eval_split))
    _check_views(caches, options.views)
    _check_files(options.targets or ())
    width = options.core_dim or (encoder_dim if options.size in {None, "paper"} else None)
    if options.num_heads is not None and options.core in WITH_HEADS and width and width % options.num_heads:
        fitting = [heads for heads in range(1, width + 1) if width % heads == 0 and heads <= 32]
        raise UsageError(
            f"--num-heads {options.num_heads} does not divide the {width} channels of the core; give one of "
            f"{', '.join(map(str, fitting))}, or another --core-dim"
        )
    if options.name is not None and options.resume:
        read_run(options.out / options.name)


def check_evaluation(options: EvaluateOptions) -> None:
    """Refuse what `vfz evaluate` cannot do.

    Raises:
        UsageError: no such run, or an option that does not fit the caches or the machine. CacheMismatchError: a cache
        of another recipe.
    """
    check_device(options.device)
    run = read_run(find_run(options.run))
    caches = [FeatureCache(path) for path in caches_of_run(run, options.cache)]
    for cache in caches:
        check_same_tokens(run, fingerprint=cache.fingerprint, recipe=cache.recipe, cache=cache.path)
    _check_splits(caches, (options.split,))
    _check_views(caches, options.views)
    _check_files(options.targets or ())


def check_prediction(options: PredictOptions) -> None:
    """Refuse what `vfz predict` cannot do.

    Raises:
        UsageError: no such run, probe, video, cache or split, or a file that is there. CacheMismatchError: videos of a
        cache of another recipe.
    """
    check_device(options.device)
    if options.videos:
        videos_at(options.videos)
    run = None if options.run is None else read_run(find_run(options.run))
    if options.probe is not None:
        find_probe(options.probe)
    if options.out is not None:
        check_out_file(options.out, force=options.force)
    if not options.videos:
        cache = FeatureCache(find_cache(options.cache))
        if run is not None:
            check_same_tokens(run, fingerprint=cache.fingerprint, recipe=cache.recipe, cache=cache.path)
        _check_splits([cache], (options.split,))
        _check_views([cache], options.views or ())
    _check_files([options.targets] if options.targets else ())


def check_probe(options: ProbeOptions) -> None:
    """Refuse what `vfz probe` cannot do.

    Raises:
        UsageError: no such run, or an option that does not fit the cache or the machine. CacheMismatchError: a cache of
        another recipe than the run's.
    """
    check_device(options.device)
    check_out_folder(options.out)
    cache = FeatureCache(cache_for(options.cache, options.temporal), labels=options.labels)
    if options.temporal is None:
        layers = counted_layers(options.layers or ("-1",), tuple(cache.layers))
        check_layers(cache, layers, options.parts or "all")
    else:
        run = read_run(find_run(options.temporal))
        check_same_tokens(run, fingerprint=cache.fingerprint, recipe=cache.recipe, cache=cache.path)
    _check_splits([cache], (options.train_split, options.eval_split))
    _check_views([cache], range(options.views))
    _check_files([options.targets] if options.targets else ())


def check_export(options: ExportOptions) -> None:
    """Refuse what `vfz cache export` cannot do.

    Raises:
        UsageError: a layer, part, split or view that the cache does not have, or a file that is there.
    """
    cache = FeatureCache(find_cache(options.cache, how="as CACHE"), labels=options.labels)
    if options.layers is not None:
        check_layers(cache, counted_layers(options.layers, tuple(cache.layers)), options.parts or "all")
    _check_splits([cache], options.splits or ())
    _check_views([cache], options.views)
    check_out_file(options.out, force=options.force)


def check_demo(options: DemoOptions) -> None:
    """Refuse what `vfz demo` cannot do.

    Raises:
        UsageError: no such device here, or a folder that holds something else than an earlier demo.
    """
    check_device(options.device)
    check_out_folder(options.out)
    out = options.out
    if out.is_dir() and any(out.iterdir()) and not (out / DEMO_MARKER).is_file():
        raise UsageError(f"--out {out} is not empty and holds no earlier demo; give a new folder")


def _check_splits(caches: Sequence[FeatureCache], splits: Iterable[str | None]) -> None:
    for split in splits:
        if split is not None and not any(split in cache.splits for cache in caches):
            caches[0].ok_videos(split)  # says what is like it


def _check_views(caches: Sequence[FeatureCache], views: Iterable[int]) -> None:
    for cache in caches:
        for view in views:
            check_view(cache, view)


def _check_files(paths: Iterable[Path]) -> None:
    for path in paths:
        if not path.is_file():
            raise UsageError(f"--targets {path} is not there; give the targets.npz of the cache's videos")
