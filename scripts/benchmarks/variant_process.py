"""A way to the result of a case, and the process in which it is made and run.

Times and memory are taken in that process, around each run alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

Run = Callable[[], Any]
Runs = Mapping[str, Run]
"""What a variant can be asked for, by part of the case; most cases have the one part ""."""


TURN_SECONDS = 0.05
"""A run that is shorter is repeated in its turn, or it would be timed with the caches and threads
that the process before it left.
"""


class CaseError(Exception):
    """A case cannot be measured, or its variants do not agree."""


@dataclass(frozen=True)
class Variant:
    """One way to the result of a case.

    Attributes:
        name: What tables call it.
        make: Builds models and input and returns what is timed, by part; run in its own process.
        keeps_memory: Whether freed memory stays in the process, as in the program `imagetok`.
        is_exact: Whether its result has to be that of the peer; otherwise only the share that
            differs is told.
        environment: Environment variables that its process starts with.
        tree: Checkout whose imagetok it uses; None takes the installed one.
    """

    name: str
    make: Callable[[], Runs]
    keeps_memory: bool = False
    is_exact: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    tree: Path | None = None


@dataclass(frozen=True)
class Timed:
    """A result that was timed by the run itself, which has more to do than what is measured."""

    result: Any
    seconds: float


@dataclass(frozen=True)
class FirstRun:
    """What the first run of a part gave and took, and MiB before, after and at the peak."""

    result: Any
    seconds: float
    before: float
    after: float
    peak: float


class VariantProcess:
    """A process that makes a variant, and runs it whenever it is asked."""

    def __init__(self, variant: Variant, threads: int | None) -> None:
        self.variant = variant
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(variant, threads, theirs), daemon=False
        )
        with patch.dict(os.environ, variant.environment):
            self._process.start()
        theirs.close()
        self._parts: list[str] = []

    def __enter__(self) -> VariantProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()

    def wait(self) -> None:
        """Wait until the variant is made."""
        self._parts = self._receive()

    def first_runs(self) -> dict[str, FirstRun]:
        """Run every part for the first time."""
        found = {}
        for part in self._parts:
            self._pipe.send(part)
            found[part] = self._receive()
        return found

    def run(self, part: str) -> tuple[float, float]:
        """Seconds of a run, and MiB at its peak."""
        self._pipe.send(part)
        seconds, peak = self._receive()
        return seconds, peak

    def _receive(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise CaseError(f"{self.variant.name}: its process ended") from None
        if kind == "error":
            raise CaseError(f"{self.variant.name}: {value}")
        return value


def _serve(variant: Variant, threads: int | None, pipe: Connection) -> None:
    if variant.tree is not None:
        sys.path.insert(0, str(variant.tree / "tokenizers"))
    try:
        _answer(variant, threads, pipe)
    except (EOFError, ConnectionError):  # nobody asks any more
        return
    except BaseException:
        pipe.send(("error", traceback.format_exc()))


def _answer(variant: Variant, threads: int | None, pipe: Connection) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    runs = variant.make()
    if variant.keeps_memory:
        from imagetok.freed_memory import keep_freed_memory

        keep_freed_memory()
    pipe.send(("names", list(runs)))
    begun = set()
    while True:
        part = pipe.recv()
        if part in begun:
            pipe.send(("run", _take_turn(runs[part])))
            continue
        begun.add(part)
        before = _memory("VmRSS")
        _forget_peak()
        result, seconds = _run(runs[part])
        peak = _memory("VmHWM")
        _give_back_freed_memory()
        pipe.send(("first", FirstRun(result, seconds, before, _memory("VmRSS"), peak)))


def _take_turn(run: Run) -> tuple[float, float]:
    """Median seconds of the runs of a turn, and MiB at their peak."""
    _forget_peak()
    ends = time.perf_counter() + TURN_SECONDS
    times = [_run(run)[1]]
    while time.perf_counter() < ends:
        times.append(_run(run)[1])
    return median(times), _memory("VmHWM")


def _run(run: Run) -> tuple[Any, float]:
    started = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - started
    return (result.result, result.seconds) if isinstance(result, Timed) else (result, seconds)


def _memory(name: str) -> float:
    """MiB by a line of /proc/self/status: VmRSS, or its peak VmHWM; 0 where there is none."""
    # Not ru_maxrss, which begins with what the process that started this one had.
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    _, found, rest = status.partition(f"{name}:")
    return int(rest.split()[0]) / 1024 if found else 0.0


def _give_back_freed_memory() -> None:
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _forget_peak() -> None:
    with suppress(OSError):  # on another system the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
