"""Batches that are loaded while the step before them runs.

    loading processes, or none --> one thread: joins, pins --> queue of two steps --> the loop

A terminal or Slurm sends its signals to all processes of a run. Loading processes are started with
SIGINT, SIGTERM and SIGUSR1 blocked, so that the training process alone decides how a run ends; they
end with it, however it ends.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from imagetok.data.batches import TrainingBatch
from imagetok.data.lanes import StopSignal
from imagetok.data.steps import Item
from imagetok.errors import DataError, ImagetokError

STEPS_AHEAD = 2
"""Steps that lie ready besides the one in work."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_KILLED = (
    "a process that loads pictures was ended from outside, as happens when memory runs out; lower "
    "data.num_workers, data.window or train.batch_size"
)

_PATIENCE = 5.0
"""Seconds that loading has to end after the stop signal before it is ended by force."""


@dataclass(frozen=True)
class Loading:
    """What is loaded, and how a step is made of it.

    Attributes:
        dataset: Its items, given the stop signal.
        sampler: Keys of the items of a map-style dataset; None for an iterable one.
        items_per_step: Items of a step.
        join: From a step's items to its micro-batches.
    """

    dataset: Callable[[StopSignal], Dataset[Item]]
    sampler: Sampler[list[int]] | None
    items_per_step: int
    join: Callable[[list[TrainingBatch]], list[TrainingBatch]]


class _SharedFlag:
    """A flag between processes without a lock, which one that is killed could leave locked."""

    def __init__(self, context: SpawnContext) -> None:
        self._value = context.RawValue(ctypes.c_bool, False)

    def set(self) -> None:
        self._value.value = True

    def is_set(self) -> bool:
        return bool(self._value.value)


class Feed(Iterator[list[TrainingBatch]]):
    """The micro-batches of each step, loaded ahead; a context manager that ends loading.

    Args:
        loading: What is loaded.
        num_workers: Loading processes; 0 loads in the thread itself.
        pin_memory: Whether pixels are put where the process's GPU copies from in the background.

    Attributes:
        waited: Seconds that the consumer has waited for data so far.
    """

    def __init__(self, loading: Loading, num_workers: int = 0, pin_memory: bool = False) -> None:
        self.waited = 0.0
        self._loading, self._pin_memory = loading, pin_memory
        context = multiprocessing.get_context("spawn") if num_workers else None
        if context:
            # Not after the signals are blocked: Python unblocks them when it has started this one.
            resource_tracker.ensure_running()
        self._stop = _SharedFlag(context) if context else threading.Event()
        self._ready: queue.Queue[list[TrainingBatch] | Exception | None] = queue.Queue(STEPS_AHEAD)
        self._device = torch.accelerator.current_device_index() if pin_memory else None
        children = set(multiprocessing.active_children())
        with _signals_blocked():
            self._items: Any = iter(
                DataLoader(
                    loading.dataset(self._stop),
                    batch_size=None,
                    sampler=loading.sampler,
                    num_workers=num_workers,
                    multiprocessing_context=context,
                    generator=torch.Generator(),  # not torch's own, which belongs to the caller
                )
            )
        self._processes = set(multiprocessing.active_children()) - children
        self._thread = threading.Thread(target=self._run, name="imagetok-feed", daemon=True)
        self._thread.start()

    def __next__(self) -> list[TrainingBatch]:
        """The next step's micro-batches.

        Raises:
            DataError: They cannot be loaded.
        """
        started = time.perf_counter()
        step = self._ready.get()
        self.waited += time.perf_counter() - started
        if isinstance(step, list):
            return step
        self._ready.put(step)  # for whoever asks again
        raise step or StopIteration

    def close(self) -> None:
        """End the thread and the processes; closing twice is no error."""
        self._stop.set()
        self._drain()
        self._thread.join(_PATIENCE)
        if self._processes:
            try:
                self._items._shutdown_workers()  # what happens when torch's iterator is collected
            except RuntimeError as error:
                # torch raises it in whatever the main thread does when a process has been killed.
                if worded_error(error) is error:
                    raise
            for process in self._processes:
                process.kill()
                process.join()
            self._processes = set()
        self._drain()
        self._thread.join(_PATIENCE)
        self._drain()
        self._ready.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drain(self) -> None:
        try:
            while True:
                self._ready.get_nowait()
        except queue.Empty:
            return

    def _run(self) -> None:
        """The thread: load steps, and last of all why there are no more."""
        end: Exception | None = None
        try:
            if self._device is not None:
                torch.accelerator.set_device_index(self._device)  # each thread has its own
            for step in self._steps():
                self._ready.put(step)
                if self._stop.is_set():
                    return
        except Exception as error:  # whatever it is, it belongs to the consumer
            end = DataError(_KILLED) if self._was_killed(error) else error
        self._ready.put(end)

    def _was_killed(self, error: Exception) -> bool:
        """Whether an error comes of a loading process that is gone."""
        if worded_error(error) is not error:
            return True
        if isinstance(error, OSError | EOFError):  # a connection that broke, as it were
            sentinels = [process.sentinel for process in self._processes]
            closed = multiprocessing.connection.wait(sentinels, _PATIENCE)
            for process in self._processes:
                if process.sentinel in closed:
                    process.join(_PATIENCE)  # its connections close a moment before it is gone
        return any(process.exitcode for process in self._processes)

    def _steps(self) -> Iterator[list[TrainingBatch]]:
        batches: list[TrainingBatch] = []
        for item in self._items:
            if isinstance(item, ImagetokError):
                raise item
            if item is None:
                return
            batches.append(item)
            if len(batches) == self._loading.items_per_step:
                step = self._loading.join(batches)
                yield [batch.pin_memory() for batch in step] if self._pin_memory else step
                batches = []


def worded_error(error: Exception) -> Exception:
    """An error of torch's about a loading process that died, in our own words."""
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return DataError(_KILLED)
    return error


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Keep signals of the run from this thread and the processes it starts; none is lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
