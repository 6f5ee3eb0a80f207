"""A cache of any number of videos as far as opening it is concerned: header, catalog, and empty files for the rest.

Plans and indexes are there by name only, so whoever opens one of them fails.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from helpers.tiny_cache import new_cache

from vfz.pipeline.format.catalog import Catalog, IndexFile, save_catalog
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.format.ledger_table import ledger_table


def make_large_cache(folder: Path, num_videos: int, *, shard_videos: int = 64) -> None:
    """Every 50th video failed, and every 100th lacks layer 11; a tenth is in `val`."""
    new_cache(folder, num_videos=1)
    rows, lacking = [], {}
    for number in range(num_videos):
        digest = hashlib.sha256(number.to_bytes(4, "little")).hexdigest()
        ok = number % 50 != 7
        row = LedgerRow(
            id=f"{'val' if number % 10 == 9 else 'train'}/class {number % 400}/{digest[:11]}_{number:06d}",
            view=0,
            split="val" if number % 10 == 9 else "train",
            label=number % 400,
            status="ok" if ok else "failed",
            reason="" if ok else "no picture in it",
            attempts=1,
            num_frames=60 if ok else 0,
            frame_start=60 * (number % shard_videos) if ok else 0,
            shard=f"{number // shard_videos:05d}",
            source_digest=digest,
            source_path=f"/data/kinetics/train/class {number % 400}/{digest[:11]}_{number:06d}.mp4",
            duration_seconds=9.8333 if ok else 0.0,
        )
        rows.append(row)
        if number % 100 == 3:
            lacking[row.key] = {"layer_11/patch": "failed: gone", "layer_11/prefix": "failed: gone"}
    files, shards = {}, sorted({row.shard for row in rows})
    for shard in shards:
        path = folder / "shards" / f"{shard}.0.index.json"
        path.touch()
        files[path.name] = IndexFile("0" * 64, 0, path.stat().st_mtime_ns)
    (folder / "plan/0.json").write_bytes(b"")
    cache = CacheFolder(folder)
    catalog = Catalog(
        contents=cache.header.contents,
        table=ledger_table(rows, lacking),
        index_files=files,
        shard_bytes=dict.fromkeys(shards, 10**9),
        num_plans=1,
        num_contents=0,
    )
    save_catalog(cache, catalog)
