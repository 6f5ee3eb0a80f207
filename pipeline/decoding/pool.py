"""Videos decoded ahead, in processes that may hang, crash and be killed.

A decoder is C code that reads what strangers wrote. In a process of its own it costs one video when it fails, and it
can be stopped; threads could do neither, and would share this process's interpreter lock. The processes are started
with `subprocess` and not forked, since dask's workers and CUDA may not fork.

    sources --> videos() --> thread per process <--pipe, socket--> vfz.pipeline.decoding.worker
                                    |
                             VideoStream, in the order given --> whoever iterates

Memory is bounded, whatever the length, size and number of videos. A process may send `buffer_frames` frames, or its
part of `buffer_bytes`, ahead of what has been taken; then it waits. Frames come in groups, each in one array whose
slices are handed out; a slice keeps its group alive, so a group counts until its last frame is taken, and whoever keeps
a frame keeps up to 2 MiB. Videos are begun in their order, at most `VIDEOS_AHEAD` for each process ahead of the one
that is taken, so a list of any length is only read as it is needed. Since frames are taken video by video, all
processes are at work only where whole videos fit into what they may send ahead; longer ones come at the speed of one
process.

Cost: 0.2 s to start, then one copy of each frame through the socket, some 0.1 ms for 256 x 256 pixels.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.decoding.messages import Setup
from vfz.pipeline.decoding.process import DecodeProcess, ProcessDiedError, VideoStream
from vfz.pipeline.devices import num_cores
from vfz.pipeline.errors import DecodeError, RunError, UsageError
from vfz.pipeline.recipe import FrameSpec

if TYPE_CHECKING:
    import torch

BUFFER_FRAMES, BUFFER_BYTES = 64, 256 * 1024**2
"""What one process, and all together, may send ahead of what is taken; the former is 10 s of video at 6 frames/s."""
GPU_BUFFER_FRAMES, GPU_BUFFER_BYTES = 512, 2 * 1024**3
"""The same for a GPU, which takes frames faster than any one process decodes."""
VIDEOS_AHEAD = 4
"""Videos begun for each process, beside the one that is taken."""
MAX_WORKERS = 8
"""Beside an encoder on the CPU."""
MAX_GPU_WORKERS, CORES_LEFT = 16, 2
"""Beside a GPU: more processes, on all cores but these."""
START_ATTEMPTS = 3


class DecodePool:
    """Processes that decode videos ahead of whoever takes their frames; a context manager, which kills them at its end.

    Args:
        spec: which frames.
        num_workers: how many processes.
        time_limit_seconds: how long one video may be worked on before it is given up.
        buffer_frames: how many frames each process may be ahead.
        buffer_bytes: how much all together may be ahead.
    """

    def __init__(
        self,
        spec: FrameSpec,
        *,
        num_workers: int,
        time_limit_seconds: float,
        buffer_frames: int = BUFFER_FRAMES,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        if num_workers < 1 or buffer_frames < 1 or not time_limit_seconds > 0:
            raise UsageError(
                f"{num_workers} decode processes with {buffer_frames} frames each and {time_limit_seconds} s a video; "
                "give 1 or more of the former and a time above 0"
            )
        self._setup = Setup(
            spec=dataclasses.asdict(spec),
            max_frames=buffer_frames,
            max_bytes=max(1, buffer_bytes // num_workers),  # with none, not even one frame could be sent
        )
        self.num_workers, self._time_limit_seconds = num_workers, time_limit_seconds
        self._waiting: queue.SimpleQueue[VideoStream | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # guards what follows
        self._processes: set[DecodeProcess] = set()
        self._figures = DecodeFigures()  # of processes that are gone
        self._end_error: RunError | None = None  # set when no more videos can or shall be decoded

    def __enter__(self) -> Self:
        for _ in range(self.num_workers):
            thread = threading.Thread(target=self._work, name="vfz-decode", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._end_error = RunError("the decode processes were stopped")
            processes = list(self._processes)
        for _ in self._threads:
            self._waiting.put(None)
        for process in processes:
            process.kill()
        for thread in self._threads:
            thread.join()

    @property
    def figures(self) -> DecodeFigures:
        """What the processes have done so far."""
        with self._lock:
            return DecodeFigures(
                busy_seconds=self._figures.busy_seconds + sum(process.busy_seconds for process in self._processes),
                num_decoded=self._figures.num_decoded + sum(process.num_decoded for process in self._processes),
                num_restarts=self._figures.num_restarts,
            )

    def videos(self, sources: Iterable[VideoSource]) -> Iterator[VideoStream]:
        """One stream for each source, in their order; asking for the next one skips what is left of the last.

        Args:
            sources: read only as far as videos are decoded ahead, by the thread that asks.
        """
        ahead: deque[VideoStream] = deque()
        remaining = iter(sources)
        try:
            while True:
                while len(ahead) < self.num_workers * VIDEOS_AHEAD and (source := next(remaining, None)) is not None:
                    ahead.append(VideoStream(source))
                    self._waiting.put(ahead[-1])
                if not ahead:
                    return
                yield ahead[0]
                ahead.popleft().abandon()
        finally:
            for stream in ahead:
                stream.abandon()

    def _work(self) -> None:
        """One thread: keeps a process, gives it videos, and replaces it when it dies."""
        process: DecodeProcess | None = None
        while (stream := self._waiting.get()) is not None:
            try:
                if process is not None and not process.is_alive:  # killed while it had nothing to do
                    process.close()
                    self._retire(process)
                    process = None
                process = process or self._start()
                process.decode(stream, self._time_limit_seconds)
            except ProcessDiedError as died:
                if process is not None:
                    self._retire(process)
                    process = None
                stream.end(self._end_error or DecodeError(f"{stream.source.name}: {died}"))
            except RunError as error:
                stream.end(error)
            except BaseException as error:
                stream.end(RunError(f"cannot receive frames: {error!r}"))  # nobody shall wait for them for ever
                raise
        if process is not None:
            process.close()
            self._retire(process)

    def _start(self) -> DecodeProcess:
        """A process that is ready.

        Raises:
            RunError: none comes up, or none is to.
        """
        reason = ""
        for _ in range(START_ATTEMPTS):
            with self._lock:
                if self._end_error is not None:
                    raise self._end_error
                try:
                    process = DecodeProcess(self._setup)
                except OSError as error:  # no memory, no process or no descriptor left
                    reason = str(error)
                    continue
                self._processes.add(process)
            try:
                process.wait_until_ready()
            except ProcessDiedError as died:
                reason = str(died)
                self._retire(process)
            else:
                return process
        with self._lock:
            self._end_error = self._end_error or RunError(f"no decode process can be started: {reason}")
            raise self._end_error

    def _retire(self, process: DecodeProcess) -> None:
        """A process is gone; what it did still counts."""
        with self._lock:
            self._processes.remove(process)
            self._figures.busy_seconds += process.busy_seconds
            self._figures.num_decoded += process.num_decoded
            self._figures.num_restarts += self._end_error is None


@dataclass(kw_only=True)
class DecodeFigures:
    """What the processes of a pool have done.

    Attributes:
        busy_seconds: how long they worked, all together, waiting for room not counted.
        num_decoded: frames of the sources that were decoded, of which a rule takes some.
        num_restarts: processes that were replaced because they died or were killed.
    """

    busy_seconds: float = 0.0
    num_decoded: int = 0
    num_restarts: int = 0


def default_num_workers(device: torch.device, num_encoders: int = 1) -> int:
    """As many processes as an encoder on that device leaves cores for.

    On the CPU that is half of those this process may use, 1 to 8; with a GPU all but two, 1 to 16.

    Args:
        device: the encoder's.
        num_encoders: processes of this machine that encode and share its cores, each with decode processes of its own.
    """
    on_gpu = device.type == "cuda"
    num_left = num_cores() - CORES_LEFT if on_gpu else num_cores() // 2
    return min(MAX_GPU_WORKERS if on_gpu else MAX_WORKERS, max(1, num_left // num_encoders))
