"""Jobs killed with SIGKILL end in the bytes of a job that was not: see scripts/soak.py."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType

import pytest


def test_a_job_killed_in_a_commit_ends_in_the_same_bytes(
    soak: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "NUM_IMAGES", 1200)
    jobs = soak.TokenizingSoak(tmp_path, 1, random.Random(0))
    assert jobs.run_chain("killed", [True]) == []


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_jobs_killed_in_chains_end_in_the_same_bytes(
    soak: ModuleType, tmp_path: Path, ranks: int
) -> None:
    jobs = soak.TokenizingSoak(tmp_path, ranks, random.Random(ranks))
    for number in range(4):
        inside = number % 2 == 0
        assert jobs.run_chain(f"chain-{number}", [inside, not inside]) == []
