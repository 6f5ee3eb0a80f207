"""Which videos an extraction is about, which share of them is done here, and whether what it is asked for can be.

All that is told without torch. Cost: listing the videos; `synthetic` renders them where they are not there. No file of
a cache is written.

The processes of `--rank R --world-size W` know nothing of each other. Shards are dealt by their numbers, so that all
processes agree without a word; what they share is the cache's folder. A process that starts over does the rest of its
own share. One that never comes back leaves its shards pending in the cache: any run with other ranks, or none, does
them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfz.pipeline.config import check_out_folder
from vfz.pipeline.datasets import find_dataset, open_dataset
from vfz.pipeline.datasets.base import VideoDataset, VideoRecord
from vfz.pipeline.datasets.splits import SPLITS, SplitRule
from vfz.pipeline.devices import check_device
from vfz.pipeline.errors import UsageError
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.progress import Progress

if TYPE_CHECKING:
    from vfz.pipeline.engine.tasks import ShardTask


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The videos of an extraction.

    Attributes:
        dataset: where they are from.
        everything: all of them.
        records: those of the splits that are wanted; all of them where they are still to be dealt to splits.
        split_rule: how to deal them; None where they have splits.
        share: which part of the work is done here.
    """

    dataset: VideoDataset
    everything: list[VideoRecord]
    records: list[VideoRecord]
    split_rule: SplitRule | None
    share: Share


def list_videos(options: ExtractOptions, progress: Progress) -> Listing:
    """Lists the videos, once everything else that can be wrong without the encoder is known to be right.

    Raises:
        UsageError: a wrong option. DatasetError: no videos.
    """
    share = _check_request(options)
    dataset = _open_dataset(options, progress)
    if options.flip and not dataset.can_flip:
        raise UsageError(f"--flip would change classes of {options.dataset}, which tell left from right; leave it out")
    progress.doing(f"listing the videos of {dataset.root}")
    everything = dataset.videos()
    rule = _split_rule(dataset, options, everything)
    return Listing(
        dataset=dataset,
        everything=everything,
        records=everything if rule else choose_splits(everything, dataset, options.splits),
        split_rule=rule,
        share=share,
    )


def choose_splits(
    records: list[VideoRecord], dataset: VideoDataset, wanted: tuple[str, ...] | None
) -> list[VideoRecord]:
    """Those of the splits that are wanted, else all.

    Raises:
        UsageError: a split that no video has.
    """
    present = sorted({record.split for record in records})
    for split in wanted or ():
        if split not in present:
            raise UsageError(f"--splits {split!r} is not in {dataset.root}; it has {', '.join(present)}")
    return [record for record in records if wanted is None or record.split in wanted]


def _check_request(options: ExtractOptions) -> Share:
    """What is wrong whatever the videos are is told before they are listed or rendered."""
    find_dataset(options.dataset, root=options.root)
    check_device(options.device)
    check_out_folder(options.out)
    if options.weights is not None and not options.weights.exists():
        raise UsageError(f"--weights {options.weights} is not there; give the path of a .safetensors or .pth file")
    if options.cache is not None:
        from vfz.pipeline.format.folder import CACHES  # and with it what reads caches

        CACHES.find(options.cache, under=options.out)
    _asked_rule(options)
    return choose_share(options.rank, options.world_size)


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


def _split_rule(dataset: VideoDataset, options: ExtractOptions, records: Collection[VideoRecord]) -> SplitRule | None:
    """How videos are dealt to splits; None where they have some.

    Raises:
        UsageError: they have splits, and options say how to deal them.
    """
    names = sorted({record.split for record in records})
    asked = _asked_rule(options)
    if dataset.has_splits and asked is None:
        return None
    rule = asked or SplitRule()
    # The stem of a list is a split only if it is called so, where someone asks for others.
    if dataset.has_splits and not (len(names) == 1 and names[0] not in SPLITS):
        raise UsageError(f"{dataset.root} has splits already, {', '.join(names)}; leave {rule} out")
    return rule


def _asked_rule(options: ExtractOptions) -> SplitRule | None:
    """How the options say that videos are dealt; None where they say nothing."""
    given = {
        "fractions": options.split_fractions,
        "group_by": options.group_by,
        "num_folds": options.split_folds,
        "seed": options.split_seed,
    }
    asked = {key: value for key, value in given.items() if value is not None}
    return SplitRule(**asked) if asked else None  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of the work is done here: share number `rank`, counted from 0, of `world_size`."""

    rank: int = 0
    world_size: int = 1

    def of(self, tasks: Iterable[ShardTask]) -> list[ShardTask]:
        """The tasks that are done here; those of one shard stay together, whichever columns they add."""
        return [task for task in tasks if int(task.shard) % self.world_size == self.rank]


_SLURM_NAMES = ("ID", "MIN", "MAX", "COUNT")


def choose_share(rank: str | None, world_size: int | None, *, environment: Mapping[str, str] = os.environ) -> Share:
    """The share that `--rank` and `--world-size` ask for; all of the work without them.

    Variables of torchrun and SLURM are looked at for `--rank auto` only: a shell that was opened in a SLURM job has
    some of them, too, and a command typed there means all of the work.

    Raises:
        UsageError: `auto` where neither torchrun nor a SLURM array says which share this is.
    """
    if rank is None:
        return Share()
    if rank != "auto":
        return Share(rank=int(rank), world_size=world_size or 1)
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Share(rank=int(environment["RANK"]), world_size=int(environment["WORLD_SIZE"]))
    if "SLURM_ARRAY_TASK_ID" in environment:
        return _slurm_share({name: int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in _SLURM_NAMES})
    raise UsageError(
        "--rank auto: neither torchrun (RANK, WORLD_SIZE) nor a SLURM array (SLURM_ARRAY_TASK_ID) says which share "
        "this is; give --rank and --world-size"
    )


def _slurm_share(array: Mapping[str, int]) -> Share:
    if array["MAX"] - array["MIN"] + 1 != array["COUNT"]:
        raise UsageError(
            f"--rank auto: this SLURM array has {array['COUNT']} tasks numbered {array['MIN']} to {array['MAX']}, with "
            "gaps; give --rank $SLURM_ARRAY_TASK_ID and the --world-size that the numbers are shares of"
        )
    return Share(rank=array["ID"] - array["MIN"], world_size=array["COUNT"])
