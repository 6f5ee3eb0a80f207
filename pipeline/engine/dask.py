"""Shards on a dask.distributed cluster, one task each: `--dask N` starts one here, `--dask tcp://…` uses one that runs.

Workers may come and go: dask gives a lost worker's shard to another, and a shard is in the cache whole or not at all,
whoever made it. A worker process builds the encoder once, decodes in children of its own and makes one shard at a time.
Cost beside the work: some 20 kB a task, and a few seconds for a cluster to start.

A script that calls this needs `if __name__ == "__main__":`, since worker processes import it anew.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, cast

import dask
import torch
from distributed import Client, Future, KilledWorker, LocalCluster, WorkerPlugin, as_completed, get_worker

from vfz.pipeline.devices import device_for
from vfz.pipeline.engine.extractor import ShardExtractor
from vfz.pipeline.engine.metrics import RunTotals
from vfz.pipeline.errors import EngineError, VfzError
from vfz.pipeline.files import unique_token
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.progress import STOPPING, StopRequest, children_pass_over_ctrl_c, stop_on_signals

if TYPE_CHECKING:
    from distributed import Worker

    from vfz.pipeline.engine.tasks import ExtractionJob, ShardResult, ShardTask
    from vfz.pipeline.progress import Progress


ALLOWED_LOSSES = 3
"""How many workers may be lost over one shard before it is given up."""
MOST_SUBMITTED = 1000
"""Tasks that the scheduler holds at a time."""
CONNECT_SECONDS = 10
POLL_SECONDS = 0.1
DASHBOARD_PORT = 8787


def run_dask(
    job: ExtractionJob, tasks: Sequence[ShardTask], *, cluster: str, progress: Progress
) -> Iterator[ShardResult]:
    """The result of each task as it is committed, in whatever order.

    Args:
        job: how shards are made.
        tasks: the shards.
        cluster: how many workers to start here, or the address of a scheduler.
        progress: is told of the dashboard, and of videos as their shards are done.

    Raises:
        EngineError: the scheduler cannot be reached, or a shard loses one worker after the other.
        VfzError: whatever a worker raised. Shards in progress then are finished where the cluster stays.
        KeyboardInterrupt: it was asked to stop, and shards are left.
    """
    num_workers = min(int(cluster), len(tasks)) if cluster.isdecimal() else None
    maker = _ShardMaker(job, num_threads=torch.get_num_threads() if num_workers else None)
    totals = RunTotals()
    with stop_on_signals() as stop, _connected(cluster, num_workers) as client, _registered(maker, client):
        progress.note(f"dask dashboard: {client.dashboard_link}")
        started = time.perf_counter()
        for result in _results(client, maker.name, tasks, stop, progress):
            totals.add(result)
            for row in result.rows:
                if row.reason:
                    progress.note(f"{row.status}: {row.id!r}: {row.reason}")
            num_done = len(result.task.videos) if result.is_whole else len(result.rows)
            progress.advance(num_done, figures=totals.figures(time.perf_counter() - started))
            yield result


class _ShardMaker(WorkerPlugin):
    """What every worker has of the run: the job, and from the first shard on the encoder."""

    def __init__(self, job: ExtractionJob, *, num_threads: int | None) -> None:
        """`num_threads` is None where the workers were started by someone else, who has settled it."""
        weights = job.encoder.weights and job.encoder.weights.absolute()
        self.name = f"vfz-{unique_token()}"
        cache = CacheFolder(job.cache.path.absolute())
        self._job = replace(job, cache=cache, encoder=replace(job.encoder, weights=weights))
        self._num_threads = num_threads

    def setup(self, worker: Worker) -> None:
        """Called by dask in each worker, also in those that come later."""
        self._address = worker.address
        self._one_at_a_time = threading.Lock()  # a worker may have more than one thread
        self._extractor: ShardExtractor | None = None
        self._stop = StopRequest()
        if self._num_threads is not None:
            # Otherwise dask leaves one thread to a worker, and on a CPU another number of threads gives other bytes.
            torch.set_num_threads(self._num_threads)
            device = device_for(self._job.encoder.device, int(worker.name))
            self._job = replace(self._job, encoder=replace(self._job.encoder, device=device))

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002 - dask's signature
        """Called by dask when the run is over: a worker that stays gives the encoder's memory back."""
        self._extractor = None

    def stop(self) -> None:
        """No more shards are to be begun, and the one in hand is to be closed."""
        self._stop.request()

    def extract(self, task: ShardTask) -> ShardResult | None:
        """Makes one shard, in this worker; None when no more are to be begun."""
        try:
            with self._one_at_a_time:
                if self._stop.is_requested:
                    return None
                self._extractor = self._extractor or ShardExtractor(self._job)
                results: list[ShardResult] = []
                # Where it is asked to stop, what is done is a result all the same.
                with contextlib.suppress(KeyboardInterrupt):
                    for result in self._extractor.extract_all([task], stop=self._stop):
                        results.append(result)  # noqa: PERF402 - what came before the interrupt is kept
                return results[0] if results else None
        except VfzError as error:
            error.args = (f"{error} (shard {task.shard}, on worker {self._address})",)
            raise


def _extract(maker: str, task: ShardTask) -> ShardResult | None:
    """The task that dask runs."""
    return cast("_ShardMaker", get_worker().plugins[maker]).extract(task)


def _stop(maker: str, dask_worker: Worker) -> None:
    """What every worker is asked to run when no more shards are to be begun."""
    cast("_ShardMaker", dask_worker.plugins[maker]).stop()


def _results(
    client: Client, maker: str, tasks: Sequence[ShardTask], stop: StopRequest, progress: Progress
) -> Iterator[ShardResult]:
    """Results as they come, until someone asks to stop; then those of the shards in progress, for some seconds."""
    waiting = iter(tasks)
    num_left = len(tasks)
    is_told = False

    def submit(count: int) -> list[Future[ShardResult | None]]:
        return [
            client.submit(_extract, maker, _absolute(task), key=f"shard-{task.shard}-{task.number}-{maker}", pure=False)
            for task in islice(waiting, count)
        ]

    running = as_completed(submit(0 if stop.is_requested else MOST_SUBMITTED))
    while running.count():
        if stop.is_requested and not is_told:
            is_told, waiting = True, iter(())
            for line in STOPPING:
                progress.note(line)
            client.run(_stop, maker, on_error="ignore")  # where a worker is lost, there is nothing to stop
        if stop.is_due:
            break
        if not running.has_ready():
            time.sleep(POLL_SECONDS)
            continue
        future = next(running)
        try:
            result: ShardResult | None = future.result()
        except KilledWorker as error:
            raise EngineError(
                f"{ALLOWED_LOSSES + 1} workers were lost over one shard ({future.key}); was there enough memory? "
                "what was finished is kept, and the same command goes on from there"
            ) from error
        future.release()
        running.update(submit(1))
        if result is not None:
            num_left -= result.is_whole
            yield result
    if num_left:
        raise KeyboardInterrupt


_LOCAL_SETTINGS = {
    "distributed.scheduler.allowed-failures": ALLOWED_LOSSES,
    # A worker is given the shard it makes and no other, which would be counted as lost with it.
    "distributed.scheduler.worker-saturation": 1.0,
}


@contextmanager
def _connected(cluster: str, num_workers: int | None) -> Iterator[Client]:
    """A client of the cluster; one that was started here is stopped at the end."""
    with contextlib.ExitStack() as opened:
        if num_workers is not None:
            opened.enter_context(dask.config.set(_LOCAL_SETTINGS))
            with children_pass_over_ctrl_c():
                place = opened.enter_context(_local_cluster(num_workers))
        else:
            place = cluster
        try:
            client = opened.enter_context(Client(place, timeout=CONNECT_SECONDS))
        except OSError as error:
            raise EngineError(
                f"no dask scheduler answers at {cluster} within {CONNECT_SECONDS} s; start one with `dask scheduler`, "
                "or let --dask N start a cluster on this machine"
            ) from error
        yield client


def _local_cluster(num_workers: int) -> LocalCluster:
    return LocalCluster(
        n_workers=num_workers,
        threads_per_worker=1,
        memory_limit=0,  # dask would kill workers over a share of the memory that says nothing about ours
        dashboard_address=f"127.0.0.1:{_free_port(DASHBOARD_PORT)}",
        silence_logs=logging.CRITICAL,
    )


@contextmanager
def _registered(maker: _ShardMaker, client: Client) -> Iterator[None]:
    client.register_plugin(maker)
    try:
        yield
    finally:
        client.unregister_worker_plugin(maker.name)


def _absolute(task: ShardTask) -> ShardTask:
    """The task as another process can do it, whatever folder it runs in, and without what is of other shards."""
    keys = [video.key for video in task.videos]
    return replace(
        task,
        sources={name: source.absolute() for name, source in task.sources.items()},
        attempts={key: task.attempts[key] for key in keys if key in task.attempts},
    )


def _free_port(wanted: int) -> int:
    """`wanted`, or 0 (any) where another program listens there already."""
    with socket.socket() as probe:
        return 0 if probe.connect_ex(("127.0.0.1", wanted)) == 0 else wanted
