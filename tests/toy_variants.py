"""Variants of benchmark cases that take no time and need no library."""

from __future__ import annotations

from functools import partial

from benchmarks.measurement import Case
from benchmarks.variant_process import Runs, Variant


def give(result: object) -> Runs:
    """A run that gives the same every time."""
    return {"": lambda: result}


def fail() -> Runs:
    """A variant that cannot be made."""
    raise ValueError("no such model")


def difference(part: str, expected: list[int], found: list[int]) -> float:
    """Share of the ids that differ."""
    return sum(a != b for a, b in zip(expected, found, strict=True)) / len(expected)


def case(name: str, *ours: Variant, requires: tuple[str, ...] = ()) -> Case:
    """A case whose peer gives the ids 0 to 3."""
    return Case(
        name,
        "nothing",
        ours,
        Variant("peer", partial(give, [0, 1, 2, 3])),
        difference=difference,
        requires=requires,
        keeps=False,
    )
