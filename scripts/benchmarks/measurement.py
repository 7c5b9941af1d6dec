"""How a case is measured: each variant in a process of its own, and the processes take turns.

Whatever else the machine does slows all variants alike, so that ratios of medians hold where times
do not. Before anything is timed the results of all variants are compared with the peer's.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

Run = Callable[[], Any]
Runs = Mapping[str, Run]
"""What a variant can be asked for, by part of the case; most cases have the one part ""."""

Medians = Mapping[tuple[str, str], float]
"""Seconds by (variant, part)."""

SLOWEST_ROUNDS = 3
"""Rounds that are measured even where they take longer than they should."""


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
        environment: Environment variables of its process.
        tree: Checkout whose imagetok it uses; None takes the installed one.
    """

    name: str
    make: Callable[[], Runs]
    keeps_memory: bool = False
    is_exact: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    tree: Path | None = None


@dataclass(frozen=True)
class Case:
    """What is compared with what.

    Attributes:
        name: What the command line calls it.
        about: What a line of the list of cases says.
        ours: The variants of imagetok.
        peer: What they are compared with; None where there is nothing but `derive`.
        difference: From part, the peer's and our result to the share of them that differs beyond
            rounding, in [0, 1].
        most_different: Largest such share of a variant that is exact.
        keeps: Whether to run the peer a second time with freed memory kept in the process.
        references: Variants that only `derive` looks at.
        derive: Further figures from the median seconds of all variants.
        requires: Distributions that the peer needs.
        threads: Threads of each process; None takes torch's choice.
        max_rounds: Most rounds of a case that takes very long.
    """

    name: str
    about: str
    ours: Sequence[Variant]
    peer: Variant | None = None
    difference: Callable[[str, Any, Any], float] | None = None
    most_different: float = 0.0
    keeps: bool = True
    references: Sequence[Variant] = ()
    derive: Callable[[Medians], Mapping[str, float]] | None = None
    requires: Sequence[str] = ()
    threads: int | None = None
    max_rounds: int = 1000

    @property
    def variants(self) -> list[Variant]:
        """All of them, the peer first."""
        peers: list[Variant] = []
        if self.peer is not None:
            peers.append(self.peer)
            if self.keeps:
                peers.append(_keeping(self.peer))
        return [*peers, *self.ours, *self.references]

    def missing(self) -> list[str]:
        """Distributions that are required and not installed."""
        return [name for name in self.requires if not _is_installed(name)]


@dataclass(frozen=True)
class Row:
    """What one variant came to in one part of a case.

    Attributes:
        case, part, variant: What was measured.
        seconds: Median of a run.
        low, high: Quartiles of the seconds.
        ratio: Median of the peer over this one; None for the peer itself and for references.
        ratio_low, ratio_high: Quartiles of that ratio by round.
        kept_ratio: The same of the peer that keeps freed memory.
        different: Share of the result that differs from the peer's.
        memory: MiB at the peak of a timed run beyond what there was before the first one.
        growth: MiB at that peak beyond what there was after the first run.
        rounds: Number of rounds.
    """

    case: str
    part: str
    variant: str
    seconds: float
    low: float
    high: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    kept_ratio: float | None
    different: float | None
    memory: float | None
    growth: float | None
    rounds: int


@dataclass(frozen=True)
class Measured:
    """The rows of a case, and what was derived from their medians."""

    rows: list[Row]
    derived: Mapping[str, float]


@dataclass(frozen=True)
class _First:
    """What the first run of a part gave, and the memory in MiB before and after it."""

    result: Any
    before: float
    after: float


def measure(case: Case, rounds: int, seconds: float) -> Measured:
    """Measure a case.

    Args:
        case: What to measure.
        rounds: Turns of each variant at most.
        seconds: After that long no further round begins, except for the first three.

    Raises:
        CaseError: A variant fails, or its result is not that of the peer.
    """
    variants = case.variants
    with ExitStack() as stack:
        servers = {v.name: stack.enter_context(_Server(v, case.threads)) for v in variants}
        firsts = {name: server.firsts() for name, server in servers.items()}
        different = _compare(case, firsts)
        parts = list(dict.fromkeys(part for found in firsts.values() for part in found))
        turns = [(name, part) for part in parts for name in servers if part in firsts[name]]
        times: dict[tuple[str, str], list[float]] = {turn: [] for turn in turns}
        peaks = dict.fromkeys(turns, 0.0)
        started = time.perf_counter()
        for done in range(min(rounds, case.max_rounds)):
            if done >= SLOWEST_ROUNDS and time.perf_counter() - started > seconds:
                break
            for name, part in turns:
                took, peak = servers[name].run(part)
                times[name, part].append(took)
                peaks[name, part] = max(peak, peaks[name, part])
    rows = [
        _row(case, variant, part, times, different.get((variant.name, part)), firsts, peaks)
        for part in parts
        for variant in variants
        if (variant.name, part) in times
    ]
    medians = {key: median(found) for key, found in times.items()}
    return Measured(rows, {} if case.derive is None else case.derive(medians))


def _row(
    case: Case,
    variant: Variant,
    part: str,
    times: Mapping[tuple[str, str], list[float]],
    different: float | None,
    firsts: Mapping[str, Mapping[str, _First]],
    peaks: Mapping[tuple[str, str], float],
) -> Row:
    own, peer = times[variant.name, part], case.peer
    is_ours = variant in case.ours
    theirs = times[peer.name, part] if peer is not None and is_ours else []
    kept = times.get((_keeping(peer).name, part)) if peer is not None and is_ours else None
    ratios = [b / a for a, b in zip(own, theirs, strict=True)] if theirs else []
    first, peak = firsts[variant.name][part], peaks[variant.name, part]
    low, high = _quartiles(own)
    return Row(
        case.name,
        part,
        variant.name,
        seconds=median(own),
        low=low,
        high=high,
        ratio=median(theirs) / median(own) if theirs else None,
        ratio_low=_quartiles(ratios)[0] if ratios else None,
        ratio_high=_quartiles(ratios)[1] if ratios else None,
        kept_ratio=median(kept) / median(own) if kept else None,
        different=different,
        memory=peak - first.before if peak else None,
        growth=peak - first.after if peak else None,
        rounds=len(own),
    )


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def _compare(
    case: Case, firsts: Mapping[str, Mapping[str, _First]]
) -> dict[tuple[str, str], float]:
    """Shares by which our results differ from the peer's."""
    found: dict[tuple[str, str], float] = {}
    if case.peer is None or case.difference is None:
        return found
    for part, first in firsts[case.peer.name].items():
        for variant in case.ours:
            share = case.difference(part, first.result, firsts[variant.name][part].result)
            found[variant.name, part] = share
            if variant.is_exact and not share <= case.most_different:
                raise CaseError(
                    f"{case.name}{f' {part}' if part else ''}: {variant.name} differs from "
                    f"{case.peer.name} in {share:.3%} of the result; at most "
                    f"{case.most_different:.3%} may"
                )
    return found


def _keeping(variant: Variant) -> Variant:
    """The same variant with freed memory kept in the process."""
    return Variant(
        f"{variant.name}, freed memory kept",
        variant.make,
        keeps_memory=True,
        environment=variant.environment,
        tree=variant.tree,
    )


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


# The process of a variant


class _Server:
    """A process that makes a variant, and runs it whenever it is asked."""

    def __init__(self, variant: Variant, threads: int | None) -> None:
        self.variant = variant
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(variant, threads, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()

    def firsts(self) -> dict[str, _First]:
        """The first results of all parts."""
        found = {}
        for part in self._receive():
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
        except EOFError:
            raise CaseError(f"{self.variant.name}: its process ended") from None
        if kind == "error":
            raise CaseError(f"{self.variant.name}: {value}")
        return value


def _serve(variant: Variant, threads: int | None, pipe: Connection) -> None:
    os.environ.update(variant.environment)
    if variant.tree is not None:
        sys.path.insert(0, str(variant.tree / "tokenizers"))
    try:
        _answer(variant, threads, pipe)
    except (EOFError, BrokenPipeError):  # nobody asks any more
        pass
    except BaseException:
        pipe.send(("error", traceback.format_exc()))


def _answer(variant: Variant, threads: int | None, pipe: Connection) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    runs = variant.make()
    if variant.keeps_memory:  # not before, or runs would use what making them has freed
        from imagetok.freed_memory import keep_freed_memory

        keep_freed_memory()
    pipe.send(("names", list(runs)))
    begun = set()
    while True:
        part = pipe.recv()
        if part not in begun:
            begun.add(part)
            before = _memory("VmRSS")
            result = runs[part]()
            pipe.send(("first", _First(result, before, _memory("VmRSS"))))
            continue
        _forget_peak()
        started = time.perf_counter()
        runs[part]()
        seconds = time.perf_counter() - started
        pipe.send(("run", (seconds, _memory("VmHWM"))))


def _memory(name: str) -> float:
    """MiB by a line of /proc/self/status: VmRSS, or its peak VmHWM; 0 where there is none."""
    # Not ru_maxrss, which begins with what the process that started this one had.
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    _, found, rest = status.partition(f"{name}:")
    return int(rest.split()[0]) / 1024 if found else 0.0


def _forget_peak() -> None:
    with suppress(OSError):  # on another system the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
