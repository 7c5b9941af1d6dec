"""Loading ahead: in order, as far ahead as asked for, and over cleanly however it ends."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from imagetok.data import Feed, Prefetcher, Workers
from imagetok.data.prefetcher import PER_WORKER, StopSignal
from imagetok.data.training_batch import TrainingBatch
from imagetok.data.training_data import Loading
from imagetok.errors import DataError, LoadingStopped, UnreadableFileError


class Tally:
    """Numbers each of its items."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, item: int) -> tuple[int, int]:
        self.count += 1
        return item, self.count


def act(item: str) -> str:
    """What processes are given to do."""
    if item == "refuse":
        raise UnreadableFileError("a file cannot be read")
    if item == "break":
        raise ZeroDivisionError("by nothing")
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if item.startswith("die once "):
        marker = item.removeprefix("die once ")
        if not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    return f"{item} done"


def test_results_come_in_order_and_items_go_to_the_workers_in_turn() -> None:
    def slow(item: int) -> int:
        time.sleep(0.02 if item % 4 == 0 else 0)
        return item

    with Workers([slow] * 4) as workers:
        assert list(workers.map(range(40))) == list(range(40))
        assert list(workers.map(range(3))) == list(range(3))
        assert list(workers.map([])) == []
    tallies = [Tally() for _ in range(3)]
    with Workers(tallies) as workers:
        assert list(workers.map(range(8))) == [(item, item // 3 + 1) for item in range(8)]


def test_no_more_items_are_taken_than_the_workers_have_room_for() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    with Workers([abs, abs]) as workers:
        results = workers.map(items())
        assert next(results) == 0
        assert len(taken) == PER_WORKER * 2
        assert next(results) == 1
        assert len(taken) == PER_WORKER * 2 + 1


def test_processes_give_what_threads_give_and_tell_errors_in_a_line() -> None:
    before = set(multiprocessing.active_children())
    with Workers([act, act], in_processes=True) as workers:
        assert list(workers.map("abcde")) == list(map(act, "abcde"))
        assert len(set(multiprocessing.active_children()) - before) == 2
        with pytest.raises(UnreadableFileError) as caught:
            list(workers.map(["a", "refuse", "b"]))
        assert str(caught.value) == "a file cannot be read"
        with pytest.raises(ZeroDivisionError, match=r"(?s)Traceback.*in act.*by nothing"):
            list(workers.map(["break"]))
        assert list(workers.map("fg")) == list(map(act, "fg"))
    assert set(multiprocessing.active_children()) == before


def test_a_killed_process_is_replaced_as_often_as_asked(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    marker = tmp_path_factory.mktemp("marks") / "died"
    items = ["a", f"die once {marker}", "b"]
    with Workers([act], in_processes=True, attempts=2) as workers:
        assert list(workers.map(items)) == [f"{item} done" for item in items]
        with pytest.raises(DataError, match="ended from outside"):
            list(workers.map(["die"]))


def test_results_lie_ready_as_far_ahead_as_asked() -> None:
    made: list[int] = []

    def results() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    with Prefetcher(results(), 3) as prefetcher:
        assert next(prefetcher) == 0
        deadline = time.monotonic() + 10
        while len(made) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(made) == 5  # the one taken, three that lie ready, one that waits for a place
        assert list(prefetcher) == list(range(1, 20))
        assert list(prefetcher) == []


def test_an_error_comes_after_the_results_before_it_and_again() -> None:
    def results() -> Iterator[int]:
        yield 1
        raise DataError("no more")

    with Prefetcher(results(), 2) as prefetcher:
        assert next(prefetcher) == 1
        for _ in range(2):
            with pytest.raises(DataError, match="no more"):
                next(prefetcher)


def test_closing_asks_the_thread_to_stop_and_ends_the_results() -> None:
    stop, ended = StopSignal(), threading.Event()

    def results() -> Iterator[int]:
        yield 0
        try:
            while True:
                stop.check()
                time.sleep(0.01)
        except LoadingStopped:
            ended.set()
            raise

    with Prefetcher(results(), 2, stop=stop) as prefetcher:
        assert next(prefetcher) == 0
    prefetcher.close()
    assert ended.is_set()
    assert list(prefetcher) == []
    assert "imagetok-prefetch" not in {thread.name for thread in threading.enumerate()}


def test_what_the_poll_raises_ends_the_waiting() -> None:
    class StopError(Exception):
        """What is polled."""

    def poll() -> None:
        if time.monotonic() > started + 0.3:
            raise StopError

    def results() -> Iterator[int]:
        yield 1
        time.sleep(1)
        yield 2

    started = time.monotonic()
    with Prefetcher(results(), 1, poll=poll) as prefetcher:
        assert next(prefetcher) == 1
        with pytest.raises(StopError):
            next(prefetcher)
        assert 0.2 < prefetcher.waited < 0.9


class EndsSlowly:
    """Batches by a process that closes all its files at the fifth, and dies half a second later."""

    def __call__(self, index: int) -> TrainingBatch:
        if index == 4:
            time.sleep(0.5)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        pixels = torch.zeros((1, 3, 8, 8), dtype=torch.uint8)
        return TrainingBatch(pixels, rows=torch.tensor([index]), epochs=torch.tensor([0]))


def test_a_worker_whose_connections_end_before_itself_is_told_as_killed() -> None:
    before = set(multiprocessing.active_children())
    with Feed(Loading([EndsSlowly()], range(9), 1, list, StopSignal()), in_processes=True) as feed:
        next(feed)
        (worker,) = set(multiprocessing.active_children()) - before
        # Three steps are read, two of them lie ready: the rest is asked of what is gone.
        assert multiprocessing.connection.wait([worker.sentinel], 60)
        with pytest.raises(DataError, match="ended from outside"):
            list(feed)
