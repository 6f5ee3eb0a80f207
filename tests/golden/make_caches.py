"""Makes the golden caches of this format version: small caches that every later vfz must read to the same bits.

    python tests/golden/make_caches.py

writes `tests/golden/caches/v<format version>/<store>-<precision>/` and, beside them, `expected.npz`: the stored arrays
and, where they are quantised, the float32 tokens of every video by `<precision>/<id>/<view>/<array key>`, alike for all
stores. Run it when a new
format version is introduced, and never for one that was released: a released version's caches stay as they are, since
they stand for those of users. The folders are made anew each time, with other random names inside.

Each cache holds 4 videos in 2 views (2 shards), one of them failed, prefix tokens, 160 channels (two groups) and 33 (an
odd number), and a layer added later whose chunks are compressed where the store can. Chunks are of 512 bytes instead of
64 KiB, which the format leaves open: so these few frames fill several, and a Zarr array is not padded to 64 KiB.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from helpers.built_cache import FAILED, build, grow  # noqa: E402

from vfz.pipeline.files import FORMAT_VERSION  # noqa: E402
from vfz.pipeline.format.catalog import write_catalog  # noqa: E402
from vfz.pipeline.format.folder import CacheFolder  # noqa: E402
from vfz.pipeline.maintenance.convert_source import expand_arrays, open_source  # noqa: E402
from vfz.pipeline.recipe import PRECISIONS, QUANTISED, STORE_NAMES  # noqa: E402
from vfz.pipeline.stores import metadata as records  # noqa: E402

VIDEO_IDS = ("v0", "v1", FAILED, "v4")
SHAPES = (("2", "patch", 2, 160), ("2", "prefix", 1, 160), ("5", "patch", 2, 33))


def main() -> None:
    """Makes all of them, and says how large they are."""
    folder = HERE / "caches" / f"v{FORMAT_VERSION}"
    shutil.rmtree(folder, ignore_errors=True)
    records.CHUNK_BYTES = 512
    expected: dict[str, np.ndarray] = {}
    for precision in PRECISIONS:
        for store in STORE_NAMES:
            cache = build(
                folder / f"{store}-{precision}",
                store=store,
                precision=precision,
                video_ids=VIDEO_IDS,
                shard_videos=len(VIDEO_IDS),
                shapes=SHAPES,
            )
            grow(cache, compression="zstd")
            write_catalog(CacheFolder(cache))
            for name, array in read(cache).items():
                known = expected.setdefault(f"{precision}/{name}", array)
                if not np.array_equal(known, array):
                    raise SystemExit(f"{name} differs between stores: {precision}")
    np.savez_compressed(folder / "expected.npz", **expected)  # type: ignore[arg-type] # arrays by any name
    files = [path for path in folder.rglob("*") if path.is_file()]
    print(f"{folder}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.2f} MB")


def read(folder: Path) -> dict[str, np.ndarray]:
    """Stored arrays by `<id>/<view>/<array key>`, tokens of quantised ones by `<id>/<view>/<column key>/tokens`."""
    source, found = open_source(folder), {}
    for index in source.commits:
        for row in index.rows:
            if row.status != "ok":
                continue
            frames = row.frame_start + np.arange(row.num_frames)
            with source.reader(index) as reader:
                found[f"{row.id}/{row.view}/pts_seconds"] = reader.pts_seconds(frames)
                for column in (column for column in source.contents.columns if column.key in index.column_keys):
                    arrays = reader.arrays(column, frames)
                    found |= {f"{row.id}/{row.view}/{key}": array for key, array in arrays.items()}
                    if column.precision in QUANTISED:
                        tokens = expand_arrays(column, arrays, source.calibrations[column.key])
                        found[f"{row.id}/{row.view}/{column.key}/tokens"] = tokens.numpy()
    return found


if __name__ == "__main__":
    main()
