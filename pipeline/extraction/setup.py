"""What an extraction starts from: videos listed, the encoder loaded, the recipe made. No file of a cache is written.

Cost: listing the videos (see `vfz.pipeline.extraction.listing`), and loading the encoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vfz.pipeline.datasets.base import Gaps, VideoDataset, VideoRecord, describe_missing, present_ids
from vfz.pipeline.datasets.splits import KnownVideo, SplitRule, deal, describe
from vfz.pipeline.datasets.text import clean, composed
from vfz.pipeline.decoding import DEFAULT_DECODER, get_decoder
from vfz.pipeline.devices import device_for
from vfz.pipeline.encoder.layers import LAYERS_VERSION
from vfz.pipeline.encoder.model import EncoderRequest, FrozenEncoder
from vfz.pipeline.encoder.transforms import PREPROCESS_VERSION
from vfz.pipeline.extraction.listing import Listing, choose_splits, list_videos
from vfz.pipeline.format.catalog import open_catalog
from vfz.pipeline.format.folder import CACHES, CacheFolder, cache_name
from vfz.pipeline.format.ledger import LedgerRows
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
)
from vfz.pipeline.stores.quantization import PRECISION_VERSION

if TYPE_CHECKING:
    from vfz.pipeline.extraction.listing import Share
    from vfz.pipeline.extraction.options import ExtractOptions
    from vfz.pipeline.progress import Progress


def prepare(options: ExtractOptions, progress: Progress, listing: Listing | None = None) -> Prepared:
    """Loads the encoder, once the videos are listed.

    Args:
        options: what is asked for.
        progress: is told what takes time.
        listing: the videos, where they were listed already.

    Raises:
        UsageError: a wrong option, or `--cache` names no cache. DatasetError: no videos. EncoderError: no weights.
    """
    listing = listing or list_videos(options, progress)
    dataset, share, rule = listing.dataset, listing.share, listing.split_rule
    everything, records = listing.everything, listing.records
    progress.doing(f"loading {options.encoder}{' with random weights' if options.random_weights else ''}")
    request = EncoderRequest(
        name=options.encoder,
        layers=options.layers,
        image_size=options.image_size,
        weights=options.weights,
        weights_key=options.weights_key,
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
    if encoder.weights_note is not None:
        progress.note(encoder.weights_note)
    recipe, cache = _as_begun(make_recipe(encoder, options, dataset), options, dataset)
    if options.layers is None and not cache.path.exists():
        progress.note(
            f"stores layer {', '.join(encoder.layers)}, the one that train-temporal and probe use; for more give "
            f"--layers {encoder.more_layers}"
        )
    if rule is not None:
        everything = _dealt(dataset, everything, rule, cache, progress)
        records = choose_splits(everything, dataset, options.splits)
    gaps = Gaps.of(dataset, records, everything)
    for line in gaps.lines:
        progress.note(line)
    present = present_ids(records)
    if len(present) < len(records):
        missing = len(records) - len(present)
        progress.note(describe_missing(dataset.name, num_listed=len(records), num_missing=missing))
    if recipe.frames.decoder_version < get_decoder(recipe.frames.decoder).version:
        progress.note(
            f"{cache.path} was begun by an earlier vfz; videos of which other frames are taken now are refused in it"
        )
    return Prepared(
        dataset=dataset,
        everything=everything,
        records=records,
        present=present,
        gaps=gaps,
        request=request,
        encoder=encoder,
        recipe=recipe,
        cache=cache,
        share=share,
        split_rule=rule,
    )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What an extraction starts from, made from its options.

    Attributes:
        dataset: where the videos are from.
        everything: all of them.
        records: those of the splits that are wanted.
        present: ids of those whose files are there.
        gaps: what the dataset lacks or leaves out.
        request: how any process builds the encoder.
        encoder: the same, built.
        recipe: what decides the numbers.
        cache: the cache that is meant, which need not be there.
        share: which part of the work is done here.
        split_rule: how videos without splits were dealt; None where they have them.
    """

    dataset: VideoDataset
    everything: list[VideoRecord]
    records: list[VideoRecord]
    present: frozenset[str]
    gaps: Gaps
    request: EncoderRequest
    encoder: FrozenEncoder
    recipe: Recipe
    cache: CacheFolder
    share: Share
    split_rule: SplitRule | None

    def with_ids_of(self, known: Iterable[str]) -> Prepared:
        """The same, with videos called as a cache calls them: at first, ids were not composed.

        Args:
            known: the ids of the cache.
        """
        known = set(known)
        old = {text: name for name in known if not name.isascii() and (text := composed(name)) not in known}
        if not old:
            return self

        def renamed(records: list[VideoRecord]) -> list[VideoRecord]:
            return [replace(record, id=old.get(record.id, record.id)) for record in records]

        return replace(
            self,
            everything=renamed(self.everything),
            records=renamed(self.records),
            present=frozenset(old.get(video_id, video_id) for video_id in self.present),
        )

    def with_classes_of(self, class_names: tuple[str, ...]) -> Prepared:
        """The same, with labels that count in the classes of a cache; videos of other classes have none there.

        Args:
            class_names: of the cache.
        """
        own = self.dataset.class_names
        if own in {class_names, tuple(map(clean, class_names))}:
            return self
        known = {name: label for label, name in enumerate(class_names)}
        labels = {None: None} | {label: known.get(name) for label, name in enumerate(own)}

        def labelled(records: list[VideoRecord]) -> list[VideoRecord]:
            return [replace(record, label=labels[record.label]) for record in records]

        return replace(self, everything=labelled(self.everything), records=labelled(self.records))


def _dealt(
    dataset: VideoDataset, records: list[VideoRecord], rule: SplitRule, cache: CacheFolder, progress: Progress
) -> list[VideoRecord]:
    """The videos with splits: those that the cache has of them, their copies and groups, else those that are drawn."""
    rows = LedgerRows(open_catalog(cache).table) if cache.path.exists() else ()
    known = [KnownVideo(row.id, row.source_digest, row.split, row.folds) for row in rows]
    records = deal(records, rule, class_names=dataset.class_names, known=known)
    for line in describe(records, rule, class_names=dataset.class_names):
        progress.note(f"{dataset.name}: {line}")
    return records


def _as_begun(recipe: Recipe, options: ExtractOptions, dataset: VideoDataset) -> tuple[Recipe, CacheFolder]:
    """The cache that is meant, and its recipe: an earlier version's of the decoder, if that began it and can go on."""
    versions = get_decoder(recipe.frames.decoder).goes_on_with
    earlier = [replace(recipe, frames=replace(recipe.frames, decoder_version=version)) for version in versions]
    if options.cache is None:
        name = options.name or dataset.name
        recipes = [recipe, *earlier]
        caches = [CacheFolder(options.out / cache_name(name, one.encoder.name, one.fingerprint)) for one in recipes]
        found = [pair for pair in zip(recipes, caches, strict=True) if pair[1].path.exists()]
        return found[0] if found else (recipe, caches[0])
    cache = CacheFolder(CACHES.find(options.cache, under=options.out))
    return next((one for one in earlier if one.to_dict() == cache.header.recipe), recipe), cache


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
