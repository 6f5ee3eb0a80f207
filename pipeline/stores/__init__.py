"""How the tokens of one shard lie on disk, written once and read at random.

A new store is a `ShardWriter` and a `ShardReader`, one line in `STORES` and its name in `vfz.pipeline.recipe`, and one
subclass of the contract test, `tests/contracts/store_contract.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfz.pipeline.registry import Registry
from vfz.pipeline.stores.base import Checksums, ShardReader, ShardWriter
from vfz.pipeline.stores.metadata import Column, ShardData, ShardVideo, StoredVideo
from vfz.pipeline.stores.tar_reader import WebDatasetShardReader
from vfz.pipeline.stores.tar_writer import WebDatasetShardWriter
from vfz.pipeline.stores.zarr_reader import ZarrShardReader
from vfz.pipeline.stores.zarr_writer import ZarrShardWriter

__all__ = [
    "STORES",
    "Checksums",
    "Column",
    "ShardData",
    "ShardReader",
    "ShardVideo",
    "ShardWriter",
    "Store",
    "StoredVideo",
]


@dataclass(frozen=True, kw_only=True)
class Store:
    """The two halves of a store, and what its data is called.

    Attributes:
        suffix: of the data's name under `shards/`; empty for a folder.
        compresses: whether chunks may be compressed.
    """

    writer: type[ShardWriter]
    reader: type[ShardReader]
    suffix: str
    compresses: bool


STORES: Registry[Store] = Registry("store")
STORES.register("zarr", Store(writer=ZarrShardWriter, reader=ZarrShardReader, suffix="", compresses=True))
STORES.register(
    "webdataset", Store(writer=WebDatasetShardWriter, reader=WebDatasetShardReader, suffix=".tar", compresses=False)
)
