"""Shards one after the other in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfz.pipeline.engine.extractor import ShardExtractor
from vfz.pipeline.interrupts import stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vfz.pipeline.encoder.model import FrozenEncoder
    from vfz.pipeline.job import ExtractionJob, ShardResult, ShardTask
    from vfz.pipeline.progress import Progress


def run_local(
    job: ExtractionJob, tasks: Iterable[ShardTask], *, progress: Progress, encoder: FrozenEncoder | None = None
) -> Iterator[ShardResult]:
    """The result of each task, as it is committed; `encoder` is the job's where it is built already."""
    extractor = ShardExtractor(job, progress=progress, encoder=encoder)
    with stop_on_signals() as stop:
        yield from extractor.extract_all(tasks, stop=stop)
