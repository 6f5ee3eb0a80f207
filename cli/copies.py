"""`vfz cache convert` and `vfz cache export`: what is made of a cache without its encoder or videos.

Each command parses its options, calls one function and shows what it returns: a table, or one JSON object.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vfz.cli.options import Session, command
from vfz.pipeline.maintenance.options import ConvertOptions
from vfz.pipeline.progress import human_bytes
from vfz.temporal.data.options import ExportOptions

if TYPE_CHECKING:
    from vfz.pipeline.maintenance.convert import ConvertReport
    from vfz.temporal.data.export import ExportReport


@command(
    ConvertOptions,
    name="cache.convert",
    argument="cache",
    example="vfz cache convert caches/k400-vit_small-0123456789ab --out caches --precision int8\n"
    "vfz cache convert caches/mine --out /scratch/tars --store webdataset\n"
    "vfz cache convert caches/mine --out small --layers -1 --parts patch --splits train,val",
)
def convert_command(options: ConvertOptions, session: Session) -> None:
    """Make a cache of another precision or store, or of a part, from one that is there, without encoder or videos.

    Precision goes down only, and once; where it stays, every stored number is copied bit for bit. --layers, --parts,
    --splits and --videos take a part; the name and fingerprint stay those of the whole, so that a folder holds one
    part: give another --out or --name for each. The same command run again continues where it stopped, and takes over
    what the old cache gained since.
    """
    from vfz.cli.console import IMPORTING, print_json, progress, table
    from vfz.pipeline.config import check_out_folder
    from vfz.pipeline.format.folder import find_cache

    find_cache(options.cache, how="as CACHE")  # a slip of the pen is told before torch is imported
    check_out_folder(options.out)
    with progress() as shown:
        shown.doing(IMPORTING)
        from vfz.pipeline.maintenance.convert import convert

        report = convert(options, progress=shown)
    if session.json:
        print_json(dataclasses.asdict(report))
        return
    if report.unstorable:
        table("tokens that cannot be converted", ["video", "reason"], sorted(report.unstorable.items()))
    _show_conversion(report)


def _show_conversion(report: ConvertReport) -> None:
    from vfz.cli.console import show

    pending = f", {report.num_pending} not extracted yet: convert again after them" if report.num_pending else ""
    compressed = {key: codec for key, codec in report.compression.items() if codec != "none"}
    rows: dict[str, object] = {
        "converted": report.source,
        "cache": report.cache,
        "fingerprint": report.fingerprint[:12],
        "part": "; ".join(f"{name} {what}" for name, what in report.part.items()) or "all of it",
        "stored as": f"{report.precision}, {report.store}",
        "compressed": ", ".join(f"{key} {codec}" for key, codec in compressed.items()) or "no column",
        "videos": f"{report.num_ok} ok, {report.num_failed} failed, {report.num_missing} missing{pending}",
        "frames": report.num_frames,
        "size": f"{human_bytes(report.cache_bytes)}, was {human_bytes(report.source_bytes)}",
    }
    if report.new_commits:
        speed = human_bytes(int(report.bytes_read / report.seconds)) if report.seconds else "0 B"
        rows["this run"] = f"{human_bytes(report.bytes_read)} read in {report.seconds:.1f} s, {speed}/s"
    else:
        rows["this run"] = "nothing to do: everything was converted before"
    show("convert", rows)


@command(
    ExportOptions,
    name="cache.export",
    argument="cache",
    example="vfz cache export --out features.parquet\n"
    "vfz cache export caches/mine --pool frame --splits test --out frames.npz",
)
def export_command(options: ExportOptions, session: Session) -> None:
    """Write pooled features with ids, labels, splits and times to a file that pandas, DuckDB, R and NumPy read.

    A row is a video (--pool mean or cls) or a frame (frame or last). The file is there when all of it is written.
    """
    from vfz.cli.console import print_json, progress, show
    from vfz.temporal.checks import check_export

    check_export(options)  # a slip of the pen is told before torch is imported
    from vfz.temporal.data.export import export_features

    with progress() as shown:
        report = export_features(options, progress=shown)
    if session.json:
        print_json(dataclasses.asdict(report))
        return
    show("export", _export_rows(report))


def _export_rows(report: ExportReport) -> dict[str, object]:
    read = {"parquet": f"pandas.read_parquet({report.path!r})", "npz": f"numpy.load({report.path!r})"}
    return {
        "file": report.path,
        "size": human_bytes(report.num_bytes),
        "rows": f"{report.num_rows} of {report.num_videos} videos, {report.width} numbers each",
        "of": f"{report.pool}, layer {', '.join(report.layers)}",
        "open it": read[report.format],
    }
