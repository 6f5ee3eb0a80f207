"""`vfz extract`: options in, one call, tables out.

The call is `vfz.pipeline.extraction.extract.extract`, with `--dry-run` `vfz.pipeline.extraction.dry_run.dry_run`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, cast

from vfz.cli.options import Session, command
from vfz.pipeline.errors import TooManyFailuresError
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.progress import human_bytes, human_seconds

if TYPE_CHECKING:
    from vfz.pipeline.extraction.dry_run import DryRun, Outlook
    from vfz.pipeline.extraction.extract import ExtractReport
    from vfz.pipeline.extraction.measure import DecodingRates


@command(
    ExtractOptions,
    name="extract",
    example="vfz extract --dataset synthetic --encoder demo --layers 3\n"
    "vfz extract --dataset folder --root my-videos --encoder vit_large_patch16_dinov3.lvd1689m --autocast bfloat16",
)
def extract_command(options: ExtractOptions, session: Session) -> None:
    """Run a frozen encoder over the videos of a dataset and cache the tokens of every frame.

    The same command run again continues where it stopped, and does nothing when all is done.
    """
    from vfz.cli.console import IMPORTING, progress
    from vfz.pipeline.extraction.listing import list_videos

    try:
        with progress() as shown:
            listing = list_videos(options, shown)  # a slip of the pen is told before torch is imported
            shown.doing(IMPORTING)
            if options.dry_run:
                from vfz.pipeline.extraction.dry_run import dry_run

                plan = dry_run(options, progress=shown, listing=listing)
            else:
                from vfz.pipeline.extraction.extract import extract

                report = extract(options, progress=shown, listing=listing)
    except TooManyFailuresError as error:
        if error.report is not None:
            _show(cast("ExtractReport", error.report), session)
        raise
    if options.dry_run:
        _show_dry_run(plan, as_json=session.json)
    else:
        _show(report, session)


def _show(report: ExtractReport, session: Session) -> None:
    from vfz.cli.console import print_json, show, table

    if session.json:
        print_json(dataclasses.asdict(report))
        return
    if report.failure_kinds:
        table("videos that are not in the cache", ["reason", "videos", "such as"], _failures(report))
    show("extract", _summary(report))
    if report.stages:
        table("stages of this run", ["stage", "busy", "at work"], _stages(report))


def _failures(report: ExtractReport) -> list[tuple[object, ...]]:
    return [(f"{kind.status}: {kind.reason}", kind.num_videos, kind.example_id) for kind in report.failure_kinds]


def _summary(report: ExtractReport) -> dict[str, object]:
    lacking = f", {report.num_lacking} of them without a layer" if report.num_lacking else ""
    rows: dict[str, object] = {
        "cache": report.cache,
        "fingerprint": report.fingerprint[:12],
        "videos": f"{report.num_ok} ok{lacking}, {report.num_failed} failed, {report.num_missing} missing",
        "frames": report.num_frames,
        "size": human_bytes(report.cache_bytes),
    }
    if report.num_tried:
        rows["this run"] = (
            f"{report.new_frames} frames in {human_seconds(report.seconds)}: {report.frames_per_second:.0f} frames/s, "
            f"{human_bytes(report.bytes_per_second)}/s"
        )
    else:
        again = f"; {report.num_failed} failed before, --retry-failed tries them again" if report.num_failed else ""
        rows["this run"] = f"nothing to do: every video was extracted before{again}"
    if report.num_pending:
        rows["pending"] = f"{report.num_pending} videos, left to other processes or to another run"
    return rows


def _stages(report: ExtractReport) -> list[tuple[object, ...]]:
    return [
        (
            f"{name} (the bottleneck)" if name == report.bottleneck else name,
            f"{100 * stage.busy:.0f}%",
            human_seconds(stage.seconds),
        )
        for name, stage in report.stages.items()
    ]


def _show_dry_run(found: DryRun, *, as_json: bool) -> None:
    """Prints what an extraction would do."""
    from vfz.cli.console import print_json, show, table

    if as_json:
        print_json(dataclasses.asdict(found) | {"fits": found.work.fits})
        return
    show("dry run: no cache was written", _work(found))
    if found.work.columns:
        table("tokens", ["layer", "part", "of a frame", "in all"], _columns(found))
    if found.decoding and found.outlook:
        show(f"with {found.outlook.assumes}", _outlook(found.decoding, found.outlook))
    elif found.decoding:
        show("no forecast", {"decode": f"not one of {found.decoding.num_videos} videos could be decoded"})


def _work(found: DryRun) -> dict[str, object]:
    work = found.work
    left = "".join(f", {count} {status} before and not tried again" for status, count in found.num_left.items())
    rows: dict[str, object] = {
        "dataset": found.dataset,
        "cache": f"{found.cache} ({'is there' if found.exists else 'new'})",
        "videos": f"{work.num_videos} to do, {work.num_missing} missing, {found.num_done} done{left}",
    }
    if work.num_videos:
        error = f" +-{100 * work.frames_error:.0f}%" if work.frames_error else ""
        room = "" if work.fits else "; TOO LITTLE: a run starts only with --force"
        rows |= {
            "shards": found.num_shards,
            "frames": f"{work.num_frames}{error}, from {work.frames_from}",
            "space": f"{human_bytes(work.needed_bytes)} needed, {human_bytes(work.free_bytes)} free{room}",
        }
    return rows


def _columns(found: DryRun) -> list[tuple[object, ...]]:
    return [
        (f"layer {column.layer}", column.part, human_bytes(column.frame_bytes), human_bytes(column.num_bytes))
        for column in found.work.columns
    ]


def _outlook(decoding: DecodingRates, outlook: Outlook) -> dict[str, object]:
    machine, forecast = outlook.machine, outlook.forecast
    if forecast.payback_epochs is None:
        payback = "never: reading tokens from this disk takes longer than encoding"
    else:
        payback = f"after {forecast.payback_epochs:.1f} epochs"
    return {
        "decode": f"{machine.decode_frames_per_second:.0f} frames/s a worker "
        f"({decoding.source_frames_per_second:.0f} with those in between), {machine.num_decoders} of them",
        "encode": f"{machine.encode_frames_per_second:.1f} frames/s on {outlook.device}",
        "write": f"{human_bytes(machine.write_bytes_per_second)}/s",
        "bottleneck": forecast.bottleneck,
        "time": human_seconds(forecast.seconds),
        "epoch, encoder in the loop": f"{human_seconds(forecast.encoder_epoch_seconds)}, one clip of each video",
        "epoch from the cache": f"{human_seconds(forecast.cached_epoch_seconds)}, reading the same tokens at "
        f"{human_bytes(machine.read_bytes_per_second)}/s",
        "pays for itself": payback,
    }
