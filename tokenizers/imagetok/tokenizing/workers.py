"""Where pictures are decoded: threads of this process, or processes that a thread each talks to.

    submit(pictures) --> thread --pipe--> process: decode, resize --pipe--> thread --> future

A process is a plain loop over its end of a pipe: it ends when the other end is closed, also by the
death of this process. One that is ended from outside is replaced once for each task; pictures that
end it twice end the job.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch

from imagetok.errors import ImagetokError, TokenizingError
from imagetok.tokenizing.image_preparation import ImageCell, Outcome, Preparation

_ATTEMPTS = 2


class LoadingPool:
    """Decodes pictures in the background; a context manager.

    Args:
        preparation: What is done with them.
        workers: Processes; 0 takes threads of this process.
        threads: Threads where there are no processes.
    """

    def __init__(self, preparation: Preparation, workers: int, threads: int) -> None:
        self._preparation = preparation
        self._local = threading.local()
        self._workers: set[_Worker] = set()
        self._in_processes, self._closed = workers > 0, False
        if self._in_processes:
            # Not with signals blocked: Python unblocks them when it has started this one.
            resource_tracker.ensure_running()
        self._pool = ThreadPoolExecutor(
            workers or threads, "imagetok-load", initializer=_block_signals
        )

    def submit(self, pictures: Sequence[ImageCell | None]) -> Future[list[Outcome]]:
        """Begin to prepare pictures; errors as of `Preparation`, and where processes die."""
        return self._pool.submit(self._run, pictures)

    def close(self) -> None:
        """Drop what is not begun, and end the processes at once."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in list(self._workers):
            worker.kill()
        self._pool.shutdown()
        for worker in self._workers:
            worker.end()

    def _run(self, pictures: Sequence[ImageCell | None]) -> list[Outcome]:
        if not self._in_processes:
            return _prepare(self._preparation, pictures)
        for _ in range(_ATTEMPTS):
            worker = getattr(self._local, "worker", None)
            if worker is None:
                worker = self._local.worker = _Worker(self._preparation)
                self._workers.add(worker)
            try:
                return worker.run(pictures)
            except (EOFError, OSError):
                if self._closed:
                    break
                worker.end()
                self._workers.discard(worker)
                self._local.worker = None
        raise TokenizingError(
            "a process that loads pictures was ended from outside, and so was the one in its "
            "place, as happens when memory runs out; start the job again with fewer workers"
        )


class _Worker:
    """A loading process and the near end of its pipe."""

    def __init__(self, preparation: Preparation) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far_end = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=_serve, args=(far_end, preparation), name="imagetok-load", daemon=True
        )
        self._process.start()
        far_end.close()

    def run(self, pictures: Sequence[ImageCell | None]) -> list[Outcome]:
        """Prepare pictures.

        Raises:
            EOFError, OSError: The process is gone.
        """
        self._pipe.send(pictures)
        result: list[Outcome] | Exception = self._pipe.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def kill(self) -> None:
        """End the process at once; from any thread."""
        self._process.kill()

    def end(self) -> None:
        """End the process and close the pipe, which no thread uses any more."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection, preparation: Preparation) -> None:
    """A loading process: its signals are blocked, and it ends with the one that started it."""
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            pictures = pipe.recv()
            try:
                pipe.send(_prepare(preparation, pictures))
            except ImagetokError as error:
                pipe.send(type(error)(str(error)))


def _prepare(preparation: Preparation, pictures: Sequence[ImageCell | None]) -> list[Outcome]:
    try:
        return preparation(pictures)
    except MemoryError:
        raise TokenizingError(
            "there is too little memory to decode a picture; start the job again with fewer "
            "workers or a smaller batch_size"
        ) from None


def _block_signals() -> None:
    """In a loading thread, and so in the process that it starts: the main thread alone decides."""
    # Here, because a loading process imports this module, and needs none of this.
    from imagetok.launch import SIGNALS

    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
