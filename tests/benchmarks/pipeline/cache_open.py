"""How long a cache of a great many videos takes to open, and how much memory: measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from helpers.tiny_cache import make_large_cache

NUM_VIDEOS = 240_000

OPEN = """
import sys, time
started = time.perf_counter()
from vfz.pipeline.cache.feature_cache import FeatureCache
imported = time.perf_counter()
cache = FeatureCache(sys.argv[1])
opened = time.perf_counter()
import json, re
# Not getrusage: after a fork and exec it still counts the parent's memory.
peak_mb = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
rows = cache.ok_videos("val")
cache._reader
filtered = time.perf_counter()
cache.ledger_digest
digested = time.perf_counter()
assert "torch" not in sys.modules and "dask" not in sys.modules
print(json.dumps({
    "import_seconds": imported - started, "open_seconds": opened - imported, "peak_mb": peak_mb,
    "videos": len(cache.videos), "ok_val": len(rows), "lookup_seconds": filtered - opened,
    "digest_seconds": digested - filtered,
}))
"""


class Opening(NamedTuple):
    """Seconds from the start of Python to an open cache, and the largest resident size of the process in MB."""

    seconds: float
    peak_mb: float
    details: dict[str, float]


def measure_opening(num_videos: int = NUM_VIDEOS) -> Opening:
    """Makes a cache of that many videos and opens it in a fresh process that imports `FeatureCache` first."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        make_large_cache(cache, num_videos)
        done = subprocess.run(
            [sys.executable, "-c", OPEN, str(cache)], capture_output=True, text=True, check=True, timeout=600
        )
    details = json.loads(done.stdout)
    return Opening(details["import_seconds"] + details["open_seconds"], details["peak_mb"], details)


if __name__ == "__main__":
    print(measure_opening())
