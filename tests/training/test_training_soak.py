"""Runs killed with SIGKILL end in the bytes of a run that was not: see scripts/soak.py."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType

import pytest


def test_a_killed_run_ends_in_the_same_bytes(
    soak: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "RECIPE", soak.RECIPE.replace("steps: 600", "steps: 300"))
    runs = soak.TrainingSoak(tmp_path, 1, random.Random(0))
    assert runs.run_chain("killed", [True]) == []


def test_a_difference_is_found(soak: ModuleType, tmp_path: Path) -> None:
    for name, text in (("one", "a"), ("other", "b")):
        for path in ("losses.jsonl", "metrics.jsonl", f"only-{name}"):
            (tmp_path / name / path).parent.mkdir(exist_ok=True)
            (tmp_path / name / path).write_text(text)
    found = soak.compare(tmp_path / "one", tmp_path / "other")
    assert found == ["losses.jsonl", "only-one", "only-other"]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # thirteen runs or more: a kill that misses a save is tried again
@pytest.mark.parametrize("ranks", [1, 2])
def test_runs_killed_in_chains_end_in_the_same_bytes(
    soak: ModuleType, tmp_path: Path, ranks: int
) -> None:
    runs = soak.TrainingSoak(tmp_path, ranks, random.Random(ranks))
    for number in range(4):
        inside = number % 2 == 0
        assert runs.run_chain(f"chain-{number}", [inside, not inside]) == []
