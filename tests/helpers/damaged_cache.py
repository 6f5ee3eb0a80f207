"""Caches to be damaged: small, with everything a cache can have, and undamaged copies of them for each test."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from helpers.built_cache import build, grow

from vfz.pipeline.format.catalog import write_catalog
from vfz.pipeline.format.commits import committed_paths, read_shard_index
from vfz.pipeline.format.folder import CacheFolder

KINDS = (("zarr", "fp16"), ("zarr", "int4"), ("webdataset", "fp32"), ("webdataset", "int8"))
"""Store and precision."""


class Originals:
    """Builds each kind of cache once and copies it as often as it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def copy(self, target: Path, store: str = "zarr", precision: str = "fp16") -> Path:
        """A cache of two plans' worth of commits: four shards, each with a second commit of one more layer."""
        original = self._folder / f"{store}-{precision}"
        if not original.exists():
            build(original, store=store, precision=precision)
            grow(original)
            write_catalog(CacheFolder(original))
        return Path(shutil.copytree(original, target))


def files_of(path: Path) -> dict[str, bytes]:
    """Every file by its name in the cache."""
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def flip(file: Path, place: int, bit: int = 3) -> None:
    """Changes one bit of a file."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def data_path(path: Path, shard: str, number: int = 0) -> Path:
    """The data of a commit."""
    return path / "shards" / read_shard_index(committed_paths(path)[shard, number]).data.name


@contextmanager
def writer_process(data: Path, content: bytes = b"half"):
    """A living process that holds the lease of `data`, of which it has written something."""
    code = (
        "import sys; from pathlib import Path; from vfz.pipeline.files import writer_lock\n"
        "data = Path(sys.argv[1])\n"
        "with writer_lock(data):\n"
        f"    data.write_bytes({content!r}); print('writing', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.communicate()
