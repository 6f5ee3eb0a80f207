"""`vfz extract --dry-run`: what there is to do, what it takes and whether it fits; no cache is written or changed.

The same code as in a real run lists the videos, makes the recipe, looks at the cache where there is one and deals the
videos to shards; only the plan stays in memory. Then the stages are measured, one after the other, so that each has the
machine to itself: a few videos are decoded, some of their frames encoded, and a file without a name is written and
read. A video that cannot be decoded then counts as failing in the estimate of the work, as one whose header cannot be
read does.

Cost: what a real run needs before its first shard, without calibration, and some 10 s. Nothing is left behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vfz.pipeline.decoding.pool import default_num_workers
from vfz.pipeline.devices import num_cores
from vfz.pipeline.extraction.destination import find_destination
from vfz.pipeline.extraction.estimate import (
    Forecast,
    WorkEstimate,
    draw,
    estimate_work,
    existing_parent,
    forecast,
    measure_encoder,
    shard_size,
)
from vfz.pipeline.extraction.measure import DecodingRates, Machine, measure_decoding, measure_disk
from vfz.pipeline.extraction.resume import complete_shards, remaining_tasks
from vfz.pipeline.extraction.setup import Prepared, prepare
from vfz.pipeline.format.catalog import open_catalog
from vfz.pipeline.format.ledger import LedgerRow, LedgerRows
from vfz.pipeline.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from vfz.pipeline.decoding.base import VideoSource
    from vfz.pipeline.encoder.model import FrozenEncoder
    from vfz.pipeline.engine.tasks import ShardTask
    from vfz.pipeline.extraction.listing import Listing
    from vfz.pipeline.extraction.options import ExtractOptions

NUM_DECODED = 8


def dry_run(options: ExtractOptions, *, progress: Progress | None = None, listing: Listing | None = None) -> DryRun:
    """Tells what an extraction would do and take; the arguments are those of `extract`.

    Raises:
        VfzError: as `vfz.pipeline.extraction.extract.extract` does, where it would not start.
    """
    progress = progress or SilentProgress()
    prepared = prepare(options, progress, listing)
    destination = find_destination(options, prepared)
    cache, folder = destination.cache, destination.cache.path
    catalog = open_catalog(cache) if folder.exists() else None
    rows = {row.key: row for row in LedgerRows(catalog.table)} if catalog else {}
    prepared = prepared.with_ids_of(row.id for row in rows.values())
    prepared = prepared.with_classes_of(destination.contents.class_names)
    tasks = remaining_tasks(
        cache,
        destination.contents,
        prepared.records,
        rows,
        complete=complete_shards(catalog, destination.contents) if catalog else (),
        views=options.views or 1 + max((row.view for row in rows.values()), default=0),
        shard_videos=options.shard_videos or shard_size(prepared.recipe.frames, prepared.records, destination),
        retry_failed=options.retry_failed,
        replace_changed=options.replace,
        preview=True,
    )

    def estimate(decoded: Mapping[str, bool] | None = None) -> WorkEstimate:
        return estimate_work(
            tasks, prepared.recipe.frames, folder=folder, rows=rows.values(), present=prepared.present, decoded=decoded
        )

    work = estimate()
    to_do = {video.key for task in tasks for video in task.videos}
    done = Counter[str](row.status for row in rows.values() if row.key not in to_do)
    decoding = outlook = None
    if work.num_frames:
        progress.note(f"measuring: {NUM_DECODED} videos at the most, a few seconds each for decoder, encoder and disk")
        sources = _videos_to_decode(tasks, prepared.present, rows.values())
        decoding, machine, decoded = _measure(options, prepared, destination.encoder, sources, work.free_bytes, folder)
        if not all(decoded.values()):
            work = estimate(decoded)
        if machine is not None and work.num_frames:
            outlook = Outlook(
                assumes=_describe_workers(options, prepared),
                device=str(destination.encoder.device),
                machine=machine,
                forecast=forecast(work, machine),
            )
    return DryRun(
        cache=str(folder),
        exists=folder.exists(),
        fingerprint=prepared.recipe.fingerprint,
        dataset=str(prepared.dataset.root),
        num_done=done.pop("ok", 0),
        num_left=dict(done),
        num_unlabelled=prepared.gaps.num_unlabelled,
        left_out=prepared.gaps.left_out,
        empty_classes=prepared.gaps.empty_classes,
        num_shards=len({task.shard for task in tasks}),
        work=work,
        decoding=decoding,
        outlook=outlook,
    )


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What `vfz extract` would do with these options.

    Attributes:
        cache: the folder it would write to.
        exists: whether it is there.
        fingerprint: of the recipe.
        dataset: where the videos lie.
        num_done: videos that the cache has in full, once per view.
        num_left: those it has tried and would not try again, by what became of them.
        num_unlabelled: videos of the splits that are wanted without a label.
        left_out: files that lie there and are no videos of the dataset, by reason.
        empty_classes: names of the classes that no video has.
        num_shards: shards to make or to add to.
        work: what is to be done.
        decoding: what one decode process was measured to do; None where there is nothing to do.
        outlook: how long it would take; None where no video could be decoded, too.
    """

    cache: str
    exists: bool
    fingerprint: str
    dataset: str
    num_done: int
    num_left: dict[str, int]
    num_unlabelled: int
    left_out: Mapping[str, int]
    empty_classes: tuple[str, ...]
    num_shards: int
    work: WorkEstimate
    decoding: DecodingRates | None
    outlook: Outlook | None


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """How long it takes, and from what figures that is known.

    Attributes:
        assumes: who does the work, for people.
        device: what encodes.
        machine: what was measured of this machine.
        forecast: what follows from it.
    """

    assumes: str
    device: str
    machine: Machine
    forecast: Forecast


def _videos_to_decode(
    tasks: Sequence[ShardTask], present: Collection[str], rows: Iterable[LedgerRow]
) -> dict[str, VideoSource]:
    """A few videos to decode, by id: of those with an estimated number of frames, where there are any."""
    known = {row.id for row in rows if row.status == "ok"}
    sources = {video.id: task.sources[video.id] for task in tasks for video in task.videos if video.id in present}
    new = [name for name in sources if name not in known]
    return {name: sources[name] for name in draw(new or list(sources), NUM_DECODED)}


def _describe_workers(options: ExtractOptions, prepared: Prepared) -> str:
    if options.dask is not None:
        return f"{options.dask} workers here" if options.dask.isdecimal() else "one worker on a machine like this"
    return "this process" if prepared.share.world_size == 1 else f"{prepared.share.world_size} machines like this"


def _measure(
    options: ExtractOptions,
    prepared: Prepared,
    encoder: FrozenEncoder,
    sources: Mapping[str, VideoSource],
    free_bytes: int,
    folder: Path,
) -> tuple[DecodingRates, Machine | None, dict[str, bool]]:
    """The rates; what they make of the machine, None where no video could be decoded; by id whether a video could."""
    decoding, sample_BCHW, by_place = measure_decoding(
        list(sources.values()), prepared.recipe.frames, encoder.preprocess, num_samples=encoder.batch_size
    )
    names = list(sources)
    decoded = {names[place]: is_whole for place, is_whole in by_place.items()}
    if not decoding.frames_per_second:
        return decoding, None, decoded
    encode_seconds = 1 / measure_encoder(encoder, sample_BCHW)
    on_cpu = encoder.device.type == "cpu"
    if on_cpu:
        encode_seconds += 1 / decoding.resized_per_second
    disk = measure_disk(existing_parent(folder), free_bytes=free_bytes)
    num_processes = options.num_processes
    machine = Machine(
        num_cores=num_cores(),
        num_encoders=num_processes if on_cpu else min(num_processes, torch.cuda.device_count()),
        encoder_cores=torch.get_num_threads() if on_cpu else 0,
        num_decoders=num_processes * (options.decode_workers or default_num_workers(encoder.device, num_processes)),
        num_shares=prepared.share.world_size,
        decode_frames_per_second=decoding.frames_per_second,
        encode_frames_per_second=1 / encode_seconds,
        write_bytes_per_second=disk.write_bytes_per_second,
        read_bytes_per_second=disk.read_bytes_per_second,
    )
    return decoding, machine, decoded
