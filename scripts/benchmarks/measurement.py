"""How a case is measured: each variant in a process of its own, and the processes take turns.

Whatever else the machine does slows all variants alike, so that ratios of medians hold where times
do not. Before anything is timed the results of all variants are compared with the peer's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from statistics import median, quantiles
from typing import Any

from benchmarks.variant_process import CaseError, FirstRun, Variant, VariantProcess

Medians = Mapping[tuple[str, str], float]
"""Seconds by (variant, part)."""

SLOWEST_ROUNDS = 3
"""Rounds that are measured even where they take longer than they should."""


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
        has_memory: Whether what is measured takes its memory in the variant's own process.
        threads: Threads of each process; None takes torch's choice.
        runs_once: Whether the first run is the only one, and is timed, because it takes very long.
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
    has_memory: bool = True
    threads: int | None = None
    runs_once: bool = False

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
        memory: MiB at the peak of a timed run beyond what is in use after the first one, or before
            it where that one is timed; None where it is not known.
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
    rounds: int


@dataclass(frozen=True)
class Measured:
    """The rows of a case, and what was derived from their medians."""

    rows: list[Row]
    derived: Mapping[str, float]


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
        servers = {v.name: stack.enter_context(VariantProcess(v, case.threads)) for v in variants}
        for server in servers.values():
            server.wait()  # so that no model is made while another variant runs
        firsts = {name: server.first_runs() for name, server in servers.items()}
        different = _compare(case, firsts)
        parts = list(dict.fromkeys(part for found in firsts.values() for part in found))
        turns = [(name, part) for part in parts for name in servers if part in firsts[name]]
        times: dict[tuple[str, str], list[float]] = {turn: [] for turn in turns}
        peaks = dict.fromkeys(turns, 0.0)
        if case.runs_once:
            times = {(name, part): [firsts[name][part].seconds] for name, part in turns}
            peaks = {(name, part): firsts[name][part].peak for name, part in turns}
        started = time.perf_counter()
        for done in range(0 if case.runs_once else rounds):
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
    firsts: Mapping[str, Mapping[str, FirstRun]],
    peaks: Mapping[tuple[str, str], float],
) -> Row:
    own, peer = times[variant.name, part], case.peer
    is_ours = variant in case.ours
    theirs = times[peer.name, part] if peer is not None and is_ours else []
    kept = times.get((_keeping(peer).name, part)) if peer is not None and is_ours else None
    ratios = [b / a for a, b in zip(own, theirs, strict=True)] if theirs else []
    first, peak = firsts[variant.name][part], peaks[variant.name, part]
    base = first.before if case.runs_once else first.after
    mixed = variant.keeps_memory and len(firsts[variant.name]) > 1
    has_memory = case.has_memory and not mixed and peak > 0
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
        memory=max(0.0, peak - base) if has_memory else None,
        rounds=len(own),
    )


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def _compare(
    case: Case, firsts: Mapping[str, Mapping[str, FirstRun]]
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
    return replace(variant, name=f"{variant.name}, freed memory kept", keeps_memory=True)


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
