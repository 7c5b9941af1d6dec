"""Results that are computed ahead of their consumer and come in order.

    items --> the prefetcher's thread --item n--> worker n mod N: a thread, or a process behind it
                  |         ^                                        |
                  |         +------- results, in the items' order ---+
                  +--> queue of a few results --> the consumer

`Workers.map` is the upper half, an ordinary generator, and `Prefetcher` the lower one: it runs any
iterator in a thread, so that what stands between the two, such as joining or pinning batches, is a
generator too. Training and tokenizing load their images through both.

A terminal or Slurm sends its signals to all processes of a run. Loading processes are started with
SIGINT, SIGTERM and SIGUSR1 blocked, so that the main process alone decides how a run ends. A
loading process is a plain loop over its end of a pipe: it ends when the other end is closed, also
by the death of the process that started it.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Generic, Self, TypeVar

import torch

from imagetok.errors import DataError, ImagetokError, LoadingStopped
from imagetok.launch import SIGNALS, check_main_guard

Item = TypeVar("Item")
Result = TypeVar("Result")

PER_WORKER = 2
"""Items that each worker has in progress or waiting, so that it need not wait for the next one."""

_KILLED = (
    "a process that loads images was ended from outside, as happens when memory runs out; lower "
    "data.num_workers, data.window or train.batch_size"
)

_POLL = 0.2
"""Seconds between calls of `poll` while there is no result."""

_PATIENCE = 5.0
"""Seconds that the thread has to end. It may hang in a network call, and is then left behind."""


class StopSignal:
    """A flag by which functions in threads are asked to end early.

    The copy of it that a loading process has is never set: the process is killed instead.
    """

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Ask them to end."""
        self._is_set = True

    def is_set(self) -> bool:
        """Whether they have been asked."""
        return self._is_set

    def check(self) -> None:
        """End here if asked to.

        Raises:
            LoadingStopped: The flag is set.
        """
        if self._is_set:
            raise LoadingStopped


class Workers(Generic[Item, Result]):
    """Workers that apply a function each, in threads or in spawned processes; a context manager.

    Args:
        functions: A function for each of the N workers. Item n of a `map` goes to function n mod N,
            which gets its items in order and may keep state between them.
        in_processes: Whether each function runs in a process of its own; it, its items and its
            results go there and back through pipes. Tensors had better be arrays there.
        attempts: How often an item is tried, each time in a new process, before a killed process is
            an error; more than once only for functions without state.
        killed: Makes that error.

    Raises:
        InvalidValueError: The script that runs has no guard, so that processes would run it again.
    """

    def __init__(
        self,
        functions: Sequence[Callable[[Item], Result]],
        *,
        in_processes: bool = False,
        attempts: int = 1,
        killed: Callable[[], Exception] = lambda: DataError(_KILLED),
    ) -> None:
        if in_processes:
            check_main_guard()
            # Not after the signals are blocked: Python unblocks them when it has started this one.
            resource_tracker.ensure_running()
        kind = _ProcessThread if in_processes else _WorkerThread
        self._workers = [kind(function, attempts, killed) for function in functions]

    def map(self, items: Iterable[Item]) -> Iterator[Result]:
        """The result of every item, in order; one `map` at a time.

        Items are taken as the workers get free, not beforehand.

        Raises:
            Exception: Whatever taking an item or the function raises. From a process, an
                `ImagetokError` comes without its context, and any other with its traceback in the
                message.
        """
        pending: deque[Future[Result]] = deque()
        try:
            for number, item in enumerate(items):
                pending.append(self._workers[number % len(self._workers)].submit(item))
                if len(pending) == PER_WORKER * len(self._workers):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """Drop what has not begun and end the processes at once; closing it twice is harmless."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Prefetcher(Iterator[Result]):
    """The results of an iterator that runs ahead in a thread; a context manager that ends it.

    Args:
        results: What is iterated over, in the thread.
        ahead: Number of results kept ready, besides one that waits for a place among them.
        stop: A flag to set on closing.
        poll: Called again and again while the consumer waits; what it raises ends the waiting.

    Attributes:
        waited: Seconds that the consumer has waited for results so far.
    """

    def __init__(
        self,
        results: Iterable[Result],
        ahead: int,
        *,
        stop: StopSignal | None = None,
        poll: Callable[[], None] | None = None,
    ) -> None:
        self.waited = 0.0
        self._stop = StopSignal() if stop is None else stop
        self._poll = poll
        self._ready: queue.Queue[Result | _End] = queue.Queue(ahead)
        self._closed = False
        self._thread = threading.Thread(
            target=self._run, args=(results,), name="imagetok-prefetch", daemon=True
        )
        self._thread.start()

    def __next__(self) -> Result:
        """The next result.

        Raises:
            Exception: Whatever the iterator raised.
        """
        if self._closed:
            raise StopIteration
        started = time.perf_counter()
        try:
            result = self._wait()
        finally:
            self.waited += time.perf_counter() - started
        if not isinstance(result, _End):
            return result
        self._ready.put(result)  # for whoever asks again
        raise result.error or StopIteration

    def close(self) -> None:
        """End the thread; closing it twice is harmless."""
        self._closed = True
        self._stop.set()
        deadline = time.monotonic() + _PATIENCE
        while self._thread.is_alive() and time.monotonic() < deadline:
            with suppress(queue.Empty):
                self._ready.get(timeout=0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self) -> Result | _End:
        while True:
            if self._poll is None:
                return self._ready.get()
            self._poll()
            with suppress(queue.Empty):
                return self._ready.get(timeout=_POLL)

    def _run(self, results: Iterable[Result]) -> None:
        """The thread: hand over results, and finally the reason why no more follow."""
        end = _End()
        try:
            for result in results:
                self._ready.put(result)
                if self._stop.is_set():
                    return
        except Exception as error:  # whatever it is, it belongs to the consumer
            end = _End(None if self._stop.is_set() else error)
        self._ready.put(end)


@dataclass(frozen=True)
class _End:
    """The last entry of a queue: the error that ended the iterator, if one did."""

    error: Exception | None = None


@dataclass(frozen=True)
class _Failure:
    """What a loading process sends in place of a result."""

    error: Exception


class _WorkerThread(Generic[Item, Result]):
    """A worker: a thread that applies a function."""

    def __init__(
        self, function: Callable[[Item], Result], attempts: int, killed: Callable[[], Exception]
    ) -> None:
        self._function, self._attempts, self._killed = function, attempts, killed
        self._stopped = False
        self._thread = ThreadPoolExecutor(1, "imagetok-load", initializer=_block_signals)

    def submit(self, item: Item) -> Future[Result]:
        """Begin with an item when those before it are done."""
        return self._thread.submit(self._apply, item)

    def stop(self) -> None:
        """Drop the items that have not begun."""
        self._stopped = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Wait for the item in progress."""
        self._thread.shutdown()

    def _apply(self, item: Item) -> Result:
        return self._function(item)


class _ProcessThread(_WorkerThread[Item, Result]):
    """A worker: a thread that talks to a process, which it starts when it is first needed."""

    _process: _LoadingProcess | None = None

    def stop(self) -> None:
        """Drop the items that have not begun, and kill the process."""
        super().stop()
        if (process := self._process) is not None:
            process.kill()

    def join(self) -> None:
        """Wait for the thread and the process to end."""
        super().join()
        self._end()

    def _apply(self, item: Item) -> Result:
        for _ in range(self._attempts):
            try:
                if self._process is None:
                    self._process = _LoadingProcess(self._function)
                if self._stopped:  # perhaps before there was a process that could be killed
                    raise LoadingStopped
                result: Result | _Failure = self._process.apply(item)
            except (EOFError, OSError):
                if self._stopped:
                    raise LoadingStopped from None
                self._end()
            else:
                if isinstance(result, _Failure):
                    raise result.error
                return result
        raise self._killed()

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


class _LoadingProcess:
    """A process and the near end of its pipe; EOFError or OSError says that the process is gone."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(far_end, function), name="imagetok-load", daemon=True
        )
        self._process.start()
        far_end.close()

    def apply(self, item: object) -> Any:
        """The function's result for an item, or its failure."""
        self._pipe.send(item)
        return self._pipe.recv()

    def kill(self) -> None:
        """End the process at once; from any thread."""
        self._process.kill()

    def end(self) -> None:
        """End the process and close the pipe, which no thread uses any more."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """The loop of a loading process."""
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            item = pipe.recv()
            try:
                result = function(item)
            except Exception as error:
                result = _Failure(_portable(error))
            pipe.send(result)


def _portable(error: Exception) -> Exception:
    """An error that survives the way between processes."""
    text = str(error) if isinstance(error, ImagetokError) else traceback.format_exc()
    try:
        return type(error)(text)
    except Exception:  # its class takes other arguments
        return RuntimeError(text)


def _block_signals() -> None:
    """In a worker's thread, and so in the process that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def worded_error(error: Exception) -> Exception:
    """An error of torch's DataLoader about a process that died, in our own words.

    For users' own loaders over `TrainingImages`; `Workers` has messages of its own.
    """
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return DataError(_KILLED)
    return error
