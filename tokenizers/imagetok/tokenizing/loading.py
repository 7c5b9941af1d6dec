"""Pictures of a unit, decoded ahead of the encoder and handed over in the order of the rows.

Input.read --> thread --chunks--> LoadingPool
                  |                   |
                  +--> queue of (chunk, future) --> the encoder, which waits for each future
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import Self, TypeVar

from imagetok.tokenizing.image_preparation import Outcome, Preparation
from imagetok.tokenizing.job_input import CHUNK, Chunk
from imagetok.tokenizing.workers import LoadingPool

T = TypeVar("T")
Loaded = tuple[Chunk, list[Outcome]]
_Item = tuple[Chunk, Future[list[Outcome]]] | BaseException | None

_POLL = 0.2
"""Seconds between looks at whether the job is to stop, while there is nothing else to do."""

_PATIENCE = 5.0
"""Seconds that reading has to end; it may hang in a network and is left behind then."""


class Loader:
    """Decodes chunks ahead; a context manager that ends what it started.

    Args:
        preparation: What is done with pictures.
        workers: Loading processes; 0 takes threads of this process.
        threads: Threads where there are no processes.
        batch_size: Pictures of a batch; two batches lie ready.
        poll: Called while waiting; what it raises ends the waiting.

    Attributes:
        waited: Seconds that were spent waiting for data so far.
    """

    def __init__(
        self,
        preparation: Preparation,
        workers: int,
        threads: int,
        batch_size: int,
        poll: Callable[[], None],
    ) -> None:
        self.waited = 0.0
        self._pool = LoadingPool(preparation, workers, threads)
        self._ahead = max(2, 2 * batch_size // CHUNK, 2 * max(workers, threads))
        self._poll = poll

    def load(self, chunks: Iterable[Chunk]) -> Iterator[Loaded]:
        """Every chunk with what became of its pictures.

        Raises:
            ImagetokError: The input cannot be read, or loading cannot go on.
        """
        ready: queue.Queue[_Item] = queue.Queue(self._ahead)
        stop = threading.Event()
        arguments = (chunks, ready, stop)
        reader = threading.Thread(
            target=self._read, args=arguments, name="imagetok-read", daemon=True
        )
        reader.start()
        try:
            while (item := self._next(ready)) is not None:
                if isinstance(item, BaseException):
                    raise item
                chunk, future = item
                yield chunk, self._wait(lambda: future.result(_POLL))  # noqa: B023
        finally:
            stop.set()
            _drain(ready, reader)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def _read(
        self, chunks: Iterable[Chunk], ready: queue.Queue[_Item], stop: threading.Event
    ) -> None:
        """The reading thread; the last thing that it hands over is None."""
        try:
            for chunk in chunks:
                if stop.is_set():
                    break
                ready.put((chunk, self._pool.submit(chunk.images)))
        except Exception as error:  # whatever it is, it belongs to who waits for the data
            ready.put(error)
        ready.put(None)

    def _next(self, ready: queue.Queue[_Item]) -> _Item:
        return self._wait(lambda: ready.get(timeout=_POLL))

    def _wait(self, get: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            while True:
                self._poll()
                try:
                    return get()
                except (queue.Empty, NotYet):
                    continue
        finally:
            self.waited += time.perf_counter() - started


def _drain(ready: queue.Queue[_Item], reader: threading.Thread) -> None:
    """Take what is left until the reading thread has ended, or for as long as that may take."""
    deadline = time.monotonic() + _PATIENCE
    while reader.is_alive() and time.monotonic() < deadline:
        try:
            item = ready.get(timeout=0.05)
        except queue.Empty:
            continue
        if isinstance(item, tuple):
            item[1].cancel()
