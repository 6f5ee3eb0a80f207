"""`vfz cache verify`: options in, what was found out, exit code 1 where it is not what it should be."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vfz.cli.options import Session, command
from vfz.pipeline.maintenance.options import VerifyOptions
from vfz.pipeline.units import counted, human_bytes

if TYPE_CHECKING:
    from vfz.pipeline.maintenance.compare import CompareReport
    from vfz.pipeline.maintenance.verify.encoder import EncoderReport
    from vfz.pipeline.maintenance.verify.report import VerifyReport

EXAMPLE = """\
vfz cache verify caches/k400-vit_small-0123456789ab
vfz cache verify caches/mine --against caches/theirs
vfz cache verify --encoder --root /data/k400"""


@command(VerifyOptions, name="cache.verify", example=EXAMPLE, argument="cache")
def verify_command(options: VerifyOptions, session: Session) -> None:
    """Compare every byte of a cache with what was written, and list everything that differs.

    Exit code 0 where it is intact, 1 where it is not: damaged, of another recipe than --against, or made by another
    encoder than --encoder finds. Notes, such as what a stopped run left, are no damage.
    """
    from vfz.cli.console import print_json, progress
    from vfz.pipeline.errors import CacheError
    from vfz.pipeline.find import find_cache
    from vfz.pipeline.maintenance.compare import compare_caches
    from vfz.pipeline.maintenance.verify import verify_cache

    path = find_cache(options.cache, how="as CACHE")
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


def _show_comparison(report: CompareReport) -> None:
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
