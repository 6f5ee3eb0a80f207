"""Shards one after the other in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vfz.pipeline.ledger import LedgerRow
from vfz.pipeline.shard import ShardExtractor, ShardTask


def run_local(extractor: ShardExtractor, tasks: Iterable[ShardTask]) -> Iterator[list[LedgerRow]]:
    """The ledger rows of each shard, as it is committed."""
    for task in tasks:
        yield extractor.extract(task)
