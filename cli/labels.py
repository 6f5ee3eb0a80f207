"""`vfz cache label` and `drop`: what the videos of a cache are called, and which of them are read.

Each command parses its options, calls one function of `vfz.pipeline.maintenance` and shows what it returns.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vfz.cli.options import Session, command
from vfz.pipeline.maintenance.options import DropOptions, LabelOptions
from vfz.pipeline.progress import counted

if TYPE_CHECKING:
    from vfz.pipeline.maintenance.label import LabelReport


@command(
    LabelOptions,
    name="cache.label",
    argument="cache",
    example="vfz cache label --from verbs.csv\n"
    "vfz cache label caches/mine --from /data/sorted-anew --name gestures\n"
    "vfz cache label --from scores.csv --columns speed,height\n"
    "vfz cache label --split-fractions 0.5,0.5 --name half",
)
def label_command(options: LabelOptions, session: Session) -> None:
    """Add labels or splits to a cache under a name, or replace them; no video is encoded again.

    `--labels NAME` of train-temporal, probe and evaluate takes them. Labels that the cache was extracted with stay, and
    so do sets that were replaced, as earlier numbers.
    """
    from vfz.cli.console import print_json, show
    from vfz.pipeline.maintenance.label import label_cache

    report = label_cache(options)
    if session.json:
        print_json(dataclasses.asdict(report))
        return
    show("label", _label_rows(report))


def _label_rows(report: LabelReport) -> dict[str, object]:
    told = "" if report.is_new else ": it says the same already, and nothing was written"
    of_cache = f"{report.num_labelled} of {report.num_videos} videos of the cache have a label"
    parts = [f"{report.num_lines - report.num_unmatched} of {report.num_lines} lines are of a video"]
    parts += [f"{report.num_unmatched} of none ({_some(report.unmatched, report.num_unmatched)})"]
    without = report.num_videos - report.num_labelled
    rows: dict[str, object] = {
        "cache": report.cache,
        "label set": f"{report.name}, number {report.number}{told}",
        "kind": f"{report.kind}: {_some(report.names[:8], len(report.names))}",
        "from": report.source,
        "matched": ", ".join([*parts[: 1 + bool(report.num_unmatched)], of_cache]) if report.num_lines else of_cache,
    }
    if without:
        rows["without a label"] = f"{without} of the cache ({_some(report.unlabelled, without)})"
    if report.splits:
        splits = ", ".join(f"{count} {split}" for split, count in report.splits.items())
        rest = f", {counted(report.num_without_split, 'video')} in none" if report.num_without_split else ""
        rows["splits"] = splits + rest
    else:
        rows["splits"] = "those of the cache"
    rows |= {f"{number}.": line for number, line in enumerate(report.lines, 1)}
    rows["digest"] = report.digest[:12]
    rows["use it"] = f"--labels {report.name} of train-temporal, probe and evaluate; FeatureCache(…, labels=…)"
    return rows


@command(
    DropOptions,
    name="cache.drop",
    argument="cache",
    example="vfz cache drop --video train/walk/0007,train/run/0012 --why 'faces'\n"
    "vfz cache drop caches/mine --videos broken.txt\n"
    "vfz cache drop caches/mine --video train/walk/0007 --undo",
)
def drop_command(options: DropOptions, session: Session) -> None:
    """Take videos out of what readers see: they count as missing, with who dropped them, when and why.

    Their tokens stay on the disk. `vfz extract` leaves them out, with --retry-failed, too; it makes one again where
    --replace finds another file. --undo brings them back.
    """
    from vfz.cli.console import print_json, show
    from vfz.pipeline.maintenance.drop import drop_videos

    report = drop_videos(options)
    if session.json:
        print_json(dataclasses.asdict(report))
        return
    would = "would be " if options.dry_run else ""
    rows: dict[str, object] = {"cache": report.cache}
    done = f"{would}{'brought back' if options.undo else 'dropped'}"
    rows[done] = f"{counted(len(report.videos), 'video')} ({_some(report.videos[:8], len(report.videos))})"
    if report.unchanged:
        as_before = "not dropped" if options.undo else "dropped before"
        rows[as_before] = f"{len(report.unchanged)} ({_some(report.unchanged[:8], len(report.unchanged))})"
    rows |= {"reason": report.reason} if report.reason else {}
    rows["videos left"] = f"{report.num_ok} ok of {report.num_videos}"
    show("drop", rows)


def _some(names: tuple[str, ...], count: int) -> str:
    return ", ".join(names) + (", …" if count > len(names) else "")
