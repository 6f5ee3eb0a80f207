"""`vfz extract --dry-run`: `vfz.pipeline.extraction.dry_run.DryRun` as tables."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vfz.pipeline.units import human_bytes, human_seconds

if TYPE_CHECKING:
    from vfz.pipeline.extraction.dry_run import DryRun, Outlook
    from vfz.pipeline.measure import DecodingRates


def show_dry_run(found: DryRun, *, as_json: bool) -> None:
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
