"""Where tokens lie on disk. A new store is one file, one line in `STORES` and one subclass of the contract test."""

from __future__ import annotations

from dataclasses import dataclass

from vfz.pipeline.errors import UnknownNameError
from vfz.pipeline.stores.base import Checksums, ShardReader, ShardWriter
from vfz.pipeline.stores.records import Column, ShardData
from vfz.pipeline.stores.zarr_reader import ZarrShardReader
from vfz.pipeline.stores.zarr_store import ZarrShardWriter

__all__ = ["STORES", "Checksums", "Column", "ShardData", "ShardReader", "ShardWriter", "Store", "get_store"]


@dataclass(frozen=True, kw_only=True)
class Store:
    """The two halves of a store."""

    writer: type[ShardWriter]
    reader: type[ShardReader]


STORES: dict[str, Store] = {
    "zarr": Store(writer=ZarrShardWriter, reader=ZarrShardReader),
}


def get_store(name: str) -> Store:
    """The store of that name.

    Raises:
        UnknownNameError: when there is none; offers the nearest.
    """
    if name not in STORES:
        raise UnknownNameError("store", name, STORES)
    return STORES[name]
