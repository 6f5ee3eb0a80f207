"""`vfz cache repair`: options in, the steps taken out; exit code 1 where damage is left."""

from __future__ import annotations

import dataclasses

from vfz.cli.options import Session, command
from vfz.pipeline.maintenance.options import RepairOptions

EXAMPLE = """\
vfz cache repair --dry-run
vfz cache repair caches/k400-vit_small-0123456789ab"""


@command(RepairOptions, name="cache.repair", example=EXAMPLE, argument="cache")
def repair_command(options: RepairOptions, session: Session) -> None:
    """Verify a cache, drop what is damaged and remove what stopped runs left; then extract again.

    A damaged shard is removed whole, so that the same `vfz extract` makes it again. What a run at work is writing is
    left alone. What cannot be made again (vfz.json, plans, contents, calibrations, golden frames) is named; the exit
    code is 1 then.
    """
    from vfz.cli.console import print_json, progress, show
    from vfz.pipeline.errors import CacheFormatError
    from vfz.pipeline.find import find_cache
    from vfz.pipeline.maintenance.repair import repair_cache
    from vfz.pipeline.units import counted

    with progress() as shown:
        report = repair_cache(find_cache(options.cache, how="as CACHE"), dry_run=options.dry_run, progress=shown)
    if session.json:
        print_json(dataclasses.asdict(report))
    else:
        rows: dict[str, object] = {"cache": report.cache}
        for number, step in enumerate(report.steps, 1):
            rows[f"{number}. {'would ' if options.dry_run else ''}{step.action}"] = f"{step.file}: {step.reason}"
        rows |= {f"left alone {number}": problem for number, problem in enumerate(report.notes, 1)}
        rows |= {f"not repaired {number}": problem for number, problem in enumerate(report.not_repaired, 1)}
        rows["result"] = report.result
        show("repair", rows)
    if report.not_repaired:
        raise CacheFormatError(
            f"{report.cache}: {counted(len(report.not_repaired), 'problem')} cannot be repaired; see above"
        )
