"""`vfz cache`: list, describe, verify, convert and repair caches that are there; `labels.py` has the rest.

Each command parses its options, calls one function of `vfz.pipeline.maintenance` and shows what it returns: tables, or
one JSON object. The functions that make a command's tables stand below it. The exit code is 1 where `verify` finds a
cache that is not what it should be, and where `repair` leaves damage.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from vfz.cli.options import Commands, LazyGroup, Session, command, printable
from vfz.pipeline.maintenance.options import InfoOptions, LsOptions, RepairOptions, VerifyOptions
from vfz.pipeline.progress import counted, human_bytes

if TYPE_CHECKING:
    from vfz.pipeline.maintenance.info import CacheComparison, CacheInfo, CacheSummary
    from vfz.pipeline.maintenance.repair import RepairReport
    from vfz.pipeline.maintenance.verify.encoder import EncoderReport
    from vfz.pipeline.maintenance.verify.report import VerifyReport

COMMANDS: Commands = {
    "ls": ("vfz.cli.cache", "ls_command", "One line for every cache in a folder."),
    "info": ("vfz.cli.cache", "info_command", "What a cache is, what it holds, and how to open it."),
    "label": ("vfz.cli.labels", "label_command", "Other labels or splits for its videos, without encoding them again."),
    "drop": ("vfz.cli.labels", "drop_command", "Take videos out of what readers see; extract leaves them out."),
    "verify": ("vfz.cli.cache", "verify_command", "Compare every byte of a cache with what was written."),
    "convert": ("vfz.cli.copies", "convert_command", "Another precision or store, or a part; no encoder, no videos."),
    "export": ("vfz.cli.copies", "export_command", "Pooled features as Parquet or NPZ, for pandas, DuckDB, R, NumPy."),
    "repair": ("vfz.cli.cache", "repair_command", "Remove what is damaged or left over; extract makes it again."),
}
_CLASSES_SHOWN = 10
_STATUSES = ("ok", "failed", "missing", "pending")
_COLUMNS = ["layer", "part", "per frame", "codec", "payload", "scales", "size", "error", "ratio by codec"]

cache_group = LazyGroup(
    "cache",
    commands=COMMANDS,
    help="List, describe, verify, convert and repair caches.",
    epilog="\b\nExample:\n  vfz cache ls\n  vfz cache info\n  vfz cache verify caches/k400-vit_small-0123456789ab",
)


@command(
    LsOptions,
    name="cache.ls",
    argument="folder",
    example="vfz cache ls\nvfz cache ls /scratch/caches\nvfz cache ls caches/mine",
)
def ls_command(options: LsOptions, session: Session) -> None:
    """One line for every cache in a folder, or for a cache itself; one that cannot be opened comes with its error."""
    from vfz.cli.console import print_json, table
    from vfz.pipeline.maintenance.info import list_caches

    caches = list_caches(options.folder)
    if session.json:
        print_json({"caches": [dataclasses.asdict(cache) for cache in caches]})
        return
    if not caches:
        click.echo(printable(f"no cache in {options.folder}/; make one with vfz extract"))
        return
    columns = ["cache", "dataset", "encoder", "layers", "precision", "store", "videos", "size"]
    rows = [_cache_row(cache) for cache in caches]
    table(f"{len(rows)} cache{'' if len(rows) == 1 else 's'} in {options.folder}", columns, rows)


def _cache_row(cache: CacheSummary) -> tuple[object, ...]:
    if cache.error:
        return cache.name, f"cannot be opened: {cache.error}", *[""] * 6
    return (
        cache.name,
        cache.dataset,
        cache.encoder + (" (RANDOM WEIGHTS)" if cache.random_weights else ""),
        ",".join(cache.layers),
        cache.precision,
        cache.store,
        _counts(cache.counts, num_lacking=cache.num_lacking),
        human_bytes(cache.num_bytes),
    )


@command(InfoOptions, name="cache.info", argument="cache", example="vfz cache info\nvfz cache info caches/mine --json")
def info_command(options: InfoOptions, session: Session) -> None:
    """What a cache is, what it holds, what that costs, and how to open it in Python. Reads no tokens."""
    from vfz.cli.console import print_json, show, table
    from vfz.pipeline.format.folder import find_cache
    from vfz.pipeline.maintenance.info import describe_cache

    info = describe_cache(find_cache(options.cache, how="as CACHE"))
    if session.json:
        print_json(dataclasses.asdict(info))
        return
    show(info.name, _identity(info))
    table("layers", _COLUMNS, _column_rows(info))
    table("videos", ["split", "once per view"], [(split, _counts(found)) for split, found in info.counts.items()])
    if info.classes:
        table(*_classes(info))
    if info.label_sets:
        table("label sets (--labels NAME)", ["name", "kind", "labelled", "splits", "digest"], _label_rows(info))
    if info.lacking:
        title = f"without a layer: {info.num_lacking} of the videos that are ok"
        table(title, ["layer and reason", "videos"], list(info.lacking.items()))
    if info.failures:
        table("without tokens", ["reason", "videos"], list(info.failures.items()))
    show("provenance", _provenance(info))
    click.echo("\n".join(["", "open it in Python", *map(printable, info.python.split("\n"))]))


_OTHER_FILES = {"golden frames": "golden frames (pixels that verify --encoder encodes again)"}
"""Of what does not speak for itself, what it is."""


def _identity(info: CacheInfo) -> dict[str, object]:
    encoder, frames = info.recipe["encoder"], info.recipe["frames"]
    others = [(kind, of_kind) for kind, of_kind in info.disk_bytes.items() if kind != "data"]
    random = "RANDOM WEIGHTS: seeded noise, for testing only" if info.random_weights else ""
    return {
        "path": info.path,
        "fingerprint": f"{info.fingerprint}, of the recipe: all that decides a number",
        "dataset": f"{info.dataset}, {info.num_classes} classes",
        "encoder": f"{encoder['name']}, {encoder.get('image_size')} px, {encoder.get('autocast')}",
        "weights": random
        or f"{info.provenance.get('weights_source')}, sha256 {encoder.get('weights_sha256', '')[:12]}",
        "licence of the weights": info.provenance.get("weights_license") or "not known",
        "frames": f"{_rule(frames)} from {frames.get('start_seconds', 0)} s to "
        f"{'the end' if frames.get('end_seconds') is None else str(frames['end_seconds']) + ' s'}",
        "views": ", ".join(map(str, info.views)),
        "stored as": f"{info.precision}, {info.store}",
        "size": f"{human_bytes(info.num_bytes)}; data of {info.num_shards} shards "
        f"{human_bytes(info.disk_bytes.get('data', 0))}",
        "other files": ", ".join(f"{_OTHER_FILES.get(kind, kind)} {human_bytes(of_kind)}" for kind, of_kind in others)
        or "none",
        "video": f"{info.num_frames} frames of {info.hours:.2f} hours",
    }


def _rule(frames: Mapping[str, Any]) -> str:
    """A frame rule in words."""
    rule, count, rate = frames.get("rule", "fps"), frames.get("num_frames"), f"{frames.get('fps')} per second"
    return {"uniform": f"{count}, evenly spaced,", "centred": f"{count} at {rate}, centred,"}.get(rule, rate)


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


def _classes(info: CacheInfo) -> tuple[str, list[str], list[tuple[object, ...]]]:
    """Title, columns and rows of the table of classes: the most frequent ones, by split."""
    total = sum(map(Counter, info.classes.values()), Counter[str]())
    rows = [
        (name, *(found.get(name, 0) for found in info.classes.values()))
        for name, _ in total.most_common(_CLASSES_SHOWN)
    ]
    title = f"classes: the {len(rows)} of {info.num_classes} with most videos" if len(total) > len(rows) else "classes"
    return title, ["class", *info.classes], rows


def _label_rows(info: CacheInfo) -> list[tuple[object, ...]]:
    return [
        (found.name, f"cannot be read: {found.error}", "", "", "")
        if found.error
        else (
            found.name,
            f"{found.kind}, {found.num_names}",
            found.num_labelled,
            ", ".join(f"{count} {split}" for split, count in found.splits.items()) or "of the cache",
            found.digest[:12],
        )
        for found in info.label_sets
    ]


def _counts(counts: Mapping[str, int], *, num_lacking: int = 0) -> str:
    lacking = {"ok": f" ({num_lacking} of them without a layer)"} if num_lacking else {}
    return ", ".join(f"{counts.get(status, 0)} {status}{lacking.get(status, '')}" for status in _STATUSES)


def _provenance(info: CacheInfo) -> dict[str, object]:
    """A line for every entry; an entry with entries of its own is one line, too."""
    return {
        name: ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        for name, value in info.provenance.items()
    }


@command(
    VerifyOptions,
    name="cache.verify",
    argument="cache",
    example="vfz cache verify caches/k400-vit_small-0123456789ab\n"
    "vfz cache verify caches/mine --against caches/theirs\n"
    "vfz cache verify --encoder --root /data/k400",
)
def verify_command(options: VerifyOptions, session: Session) -> None:
    """Compare every byte of a cache with what was written, and list everything that differs.

    Exit code 0 where it is intact, 1 where it is not: damaged, of another recipe than --against, or made by another
    encoder than --encoder finds. Notes, such as what a stopped run left, are no damage.
    """
    from vfz.cli.console import print_json, progress
    from vfz.pipeline.devices import check_device
    from vfz.pipeline.errors import CacheError
    from vfz.pipeline.format.folder import find_cache
    from vfz.pipeline.maintenance.info import compare_caches
    from vfz.pipeline.maintenance.verify import verify_cache

    path = find_cache(options.cache, how="as CACHE")
    if options.encoder:
        check_device(options.device)
    against = None if options.against is None else find_cache(options.against)
    failures = []
    with progress() as shown:
        report = verify_cache(path, progress=shown)
    found: dict[str, Any] = {**dataclasses.asdict(report), "intact": report.intact}
    if not session.json:
        _show_report(report)
    if not report.intact:
        failures.append(f"{path} is damaged: {counted(len(report.damage), 'problem')}; {report.advice}")
    if against is not None and not failures:
        compared = compare_caches(path, against)
        found["against"] = {**dataclasses.asdict(compared), "interchangeable": compared.interchangeable}
        if not session.json:
            _show_comparison(compared)
        if not compared.interchangeable:
            failures.append(f"{path} and {against} are not interchangeable")
    if options.encoder and report.intact:
        from vfz.pipeline.maintenance.verify.encoder import verify_encoder

        encoder = verify_encoder(path, weights=options.weights, root=options.root, device=options.device)
        found["encoder"] = {**dataclasses.asdict(encoder), "passed": encoder.passed}
        if not session.json:
            _show_encoder(encoder)
        if not encoder.passed:
            failures.append(f"the encoder gives other tokens or pixels now than when {path} was made")
    if session.json:
        print_json(found)
    if failures:
        raise CacheError("; ".join(failures))


def _show_report(report: VerifyReport) -> None:
    from vfz.cli.console import show

    rows: dict[str, object] = {
        "cache": report.cache,
        "fingerprint": (report.fingerprint or "unreadable")[:12],
        "read": f"{report.num_files} files, {human_bytes(report.num_bytes)}, {report.num_chunks} chunks "
        f"in {report.seconds:.1f} s",
        "videos": f"{report.num_videos} with {report.num_frames} frames, {report.num_pending} pending",
    }
    rows |= {f"{number}.": problem for number, problem in enumerate(report.problems, 1)}
    rows["result"] = "intact" if report.intact else f"damaged: {counted(len(report.damage), 'problem')}"
    show("verify", rows)


def _show_comparison(report: CacheComparison) -> None:
    from vfz.cli.console import show

    lines = [*report.recipe_differences, *report.contents_differences, *report.video_differences]
    rows: dict[str, object] = {
        "A": report.a,
        "B": report.b,
        "recipe": "the same" if report.same_fingerprint else "another",
        "videos": f"{report.num_common} in both, {report.only_in_a} only in A, {report.only_in_b} only in B",
        "ledger": "the same" if report.same_ledger else "another",
    }
    rows |= {f"{number}.": line for number, line in enumerate(lines, 1)}
    show("against", rows)


def _show_encoder(report: EncoderReport) -> None:
    from vfz.cli.console import show, table

    table(
        f"encoder: {report.encoder} on {report.device}, {report.num_frames} golden frames",
        ["column", "cosine", "relative error", "result"],
        [
            (
                column.column,
                f"{column.mean_cosine:.5f} (mark {column.cosine_mark:.5f}, least {column.min_cosine:.5f})",
                f"{column.relative_error:.1e} (mark {column.error_mark:.1e})",
                "passed" if column.passed else "FAILED",
            )
            for column in report.columns
        ],
    )
    rows: dict[str, object] = {"decoded again": f"{report.num_decoded} of {report.num_frames} golden frames"}
    if report.max_pixel_difference is not None:
        rows["largest pixel difference"] = f"{report.max_pixel_difference} of 255"
    rows |= {f"not decoded: {video}": reason for video, reason in report.not_decoded.items()}
    show("", rows)


@command(
    RepairOptions,
    name="cache.repair",
    argument="cache",
    example="vfz cache repair --dry-run\nvfz cache repair caches/k400-vit_small-0123456789ab",
)
def repair_command(options: RepairOptions, session: Session) -> None:
    """Verify a cache, drop what is damaged and remove what stopped runs left; then extract again.

    A damaged shard is removed whole, so that the same `vfz extract` makes it again. What a run at work is writing is
    left alone. What cannot be made again (vfz.json, plans, contents, calibrations, golden frames) is named; the exit
    code is 1 then.
    """
    from vfz.cli.console import print_json, progress, show
    from vfz.pipeline.errors import CacheFormatError
    from vfz.pipeline.format.folder import find_cache
    from vfz.pipeline.maintenance.repair import repair_cache

    with progress() as shown:
        report = repair_cache(find_cache(options.cache, how="as CACHE"), dry_run=options.dry_run, progress=shown)
    if session.json:
        print_json(dataclasses.asdict(report))
    else:
        show("repair", _repair_rows(report, dry_run=options.dry_run))
    if report.not_repaired:
        raise CacheFormatError(
            f"{report.cache}: {counted(len(report.not_repaired), 'problem')} cannot be repaired; see above"
        )


def _repair_rows(report: RepairReport, *, dry_run: bool) -> dict[str, object]:
    rows: dict[str, object] = {"cache": report.cache}
    for number, step in enumerate(report.steps, 1):
        rows[f"{number}. {'would ' if dry_run else ''}{step.action}"] = f"{step.file}: {step.reason}"
    rows |= {f"left alone {number}": problem for number, problem in enumerate(report.notes, 1)}
    rows |= {f"not repaired {number}": problem for number, problem in enumerate(report.not_repaired, 1)}
    rows["result"] = report.result
    return rows
