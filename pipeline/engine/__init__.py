"""From tasks to committed shards: in this process, or on a dask cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vfz.pipeline.encoder.model import FrozenEncoder
    from vfz.pipeline.engine.tasks import ExtractionJob, ShardResult, ShardTask
    from vfz.pipeline.progress import Progress


def run_tasks(
    job: ExtractionJob,
    tasks: Sequence[ShardTask],
    *,
    dask: str | None,
    progress: Progress,
    encoder: FrozenEncoder | None = None,
) -> Iterator[ShardResult]:
    """The result of each task as it is committed, in this process or by the workers that `dask` names.

    Args:
        job: how shards are made.
        tasks: the shards.
        dask: see `vfz.pipeline.engine.dask.run_dask`; None for this process.
        progress: is told of what happens.
        encoder: the job's where this process has built it already.
    """
    if dask is None:
        from vfz.pipeline.engine.local import run_local

        return run_local(job, tasks, progress=progress, encoder=encoder)
    from vfz.pipeline.engine.dask import run_dask

    return run_dask(job, tasks, cluster=dask, progress=progress)
