"""`vfz cache ls` and `vfz cache info`: options in, tables out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from vfz.cli.options import Session, command
from vfz.cli.text import printable
from vfz.pipeline.maintenance.options import InfoOptions, LsOptions
from vfz.pipeline.units import human_bytes

if TYPE_CHECKING:
    from vfz.pipeline.maintenance.info import CacheInfo

STATUSES = ("ok", "failed", "missing", "pending")


@command(
    LsOptions,
    name="cache.ls",
    example="vfz cache ls\nvfz cache ls /scratch/caches\nvfz cache ls caches/mine",
    argument="folder",
)
def ls_command(options: LsOptions, session: Session) -> None:
    """One line for every cache in a folder, or for a cache itself; one that cannot be opened comes with its error."""
    from vfz.cli.console import print_json, table
    from vfz.pipeline.maintenance.info import list_caches

    caches = list_caches(options.folder)
    if session.json:
        print_json({"caches": [dataclasses.asdict(cache) for cache in caches]})
        return
    rows = [
        (cache.name, f"cannot be opened: {cache.error}", *[""] * 6)
        if cache.error
        else (
            cache.name,
            cache.dataset,
            cache.encoder + (" (RANDOM WEIGHTS)" if cache.random_weights else ""),
            ",".join(cache.layers),
            cache.precision,
            cache.store,
            _counts(cache.counts, num_lacking=cache.num_lacking),
            human_bytes(cache.num_bytes),
        )
        for cache in caches
    ]
    columns = ["cache", "dataset", "encoder", "layers", "precision", "store", "videos", "size"]
    if not rows:
        click.echo(printable(f"no cache in {options.folder}/; make one with vfz extract"))
        return
    table(f"{len(rows)} cache{'' if len(rows) == 1 else 's'} in {options.folder}", columns, rows)


@command(InfoOptions, name="cache.info", example="vfz cache info\nvfz cache info caches/mine --json", argument="cache")
def info_command(options: InfoOptions, session: Session) -> None:
    """What a cache is, what it holds, what that costs, and how to open it in Python. Reads no tokens."""
    from vfz.cli.console import print_json, show, table
    from vfz.pipeline.find import find_cache
    from vfz.pipeline.maintenance.info import describe_cache

    info = describe_cache(find_cache(options.cache, how="as CACHE"))
    if session.json:
        print_json(dataclasses.asdict(info))
        return
    show(info.name, _identity(info))
    table("layers", _COLUMNS, _column_rows(info))
    table("videos", ["split", "once per view"], [(split, _counts(found)) for split, found in info.counts.items()])
    if info.lacking:
        title = f"without a layer: {info.num_lacking} of the videos that are ok"
        table(title, ["layer and reason", "videos"], list(info.lacking.items()))
    if info.failures:
        table("without tokens", ["reason", "videos"], list(info.failures.items()))
    show("provenance", _provenance(info))
    click.echo("\n".join(["", "open it in Python", *map(printable, info.python.split("\n"))]))


def _identity(info: CacheInfo) -> dict[str, object]:
    encoder, frames = info.recipe["encoder"], info.recipe["frames"]
    random = "RANDOM WEIGHTS: seeded noise, for testing only" if info.random_weights else ""
    return {
        "path": info.path,
        "fingerprint": info.fingerprint,
        "dataset": f"{info.dataset}, {info.num_classes} classes",
        "encoder": f"{encoder['name']}, {encoder.get('image_size')} px, {encoder.get('autocast')}",
        "weights": random
        or f"{info.provenance.get('weights_source')}, sha256 {encoder.get('weights_sha256', '')[:12]}",
        "licence of the weights": info.provenance.get("weights_license") or "not known",
        "frames": f"{_rule(frames)} from {frames.get('start_seconds', 0)} s to "
        f"{'the end' if frames.get('end_seconds') is None else str(frames['end_seconds']) + ' s'}",
        "views": ", ".join(map(str, info.views)),
        "stored as": f"{info.precision}, {info.store}",
        "size": f"{human_bytes(info.num_bytes)} in {info.num_shards} shards",
        "video": f"{info.num_frames} frames of {info.hours:.2f} hours",
    }


def _rule(frames: Mapping[str, Any]) -> str:
    """A frame rule in words."""
    rule, count, rate = frames.get("rule", "fps"), frames.get("num_frames"), f"{frames.get('fps')} per second"
    return {"uniform": f"{count}, evenly spaced,", "centred": f"{count} at {rate}, centred,"}.get(rule, rate)


_COLUMNS = ["layer", "part", "per frame", "codec", "payload", "scales", "size", "error", "ratio by codec"]


def _column_rows(info: CacheInfo) -> list[tuple[object, ...]]:
    return [
        (
            f"layer {column.layer}",
            column.part,
            f"{column.num_tokens} x {column.dim}",
            column.compression,
            human_bytes(column.payload_bytes),
            human_bytes(column.scale_bytes),
            f"{column.bytes_per_token:.0f} B/token",
            "?" if column.precision_error is None else f"{column.precision_error:.2g}",
            ", ".join(f"{codec} {ratio:.2f}" for codec, ratio in column.compression_ratios.items()) or "-",
        )
        for column in info.columns
    ]


def _counts(counts: Mapping[str, int], *, num_lacking: int = 0) -> str:
    lacking = {"ok": f" ({num_lacking} of them without a layer)"} if num_lacking else {}
    return ", ".join(f"{counts.get(status, 0)} {status}{lacking.get(status, '')}" for status in STATUSES)


def _provenance(info: CacheInfo) -> dict[str, object]:
    """A line per entry; entries of their own on one line."""
    return {
        name: ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        for name, value in info.provenance.items()
    }
