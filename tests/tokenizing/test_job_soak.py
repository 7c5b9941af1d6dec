"""Jobs killed with SIGKILL end in the bytes of a job that was not: see scripts/soak.py."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "chains"),
    [(1, [[True, False], [False, True]]), (2, [[True, False]])],
)
def test_jobs_killed_in_chains_end_in_the_same_bytes(
    soak: ModuleType, tmp_path: Path, ranks: int, chains: list[list[bool]]
) -> None:
    jobs = soak.TokenizingSoak(tmp_path, ranks, random.Random(ranks))
    for number, in_save in enumerate(chains):
        assert jobs.run_chain(f"chain-{number}", in_save) == []
