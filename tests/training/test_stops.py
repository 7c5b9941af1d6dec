"""Runs that signals stop or SIGKILL ends, and that go on to the bytes of one left alone.

See scripts/soak.py.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from imagetok.training.checkpoint import list_checkpoints


@pytest.fixture(scope="module")
def runs(soak: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Any]:
    made: dict[int, Any] = {}

    def get(ranks: int) -> Any:
        if ranks not in made:
            made[ranks] = soak.TrainingSoak(
                tmp_path_factory.mktemp(f"{ranks}"), ranks, random.Random(0)
            )
        return made[ranks]

    return get


def await_checkpoint(folder: Path) -> Path:
    """The first checkpoint of a run, as soon as it stands."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if found := list_checkpoints(folder / "checkpoints"):
            return found[0]
        time.sleep(0.01)
    raise AssertionError("no checkpoint came")


def ranks_of(launcher: int) -> list[int]:
    """The processes that a launcher started."""
    path = Path(f"/proc/{launcher}/task/{launcher}/children")
    return [int(number) for number in path.read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_stops_and_is_told_by_the_exit_code(
    runs: Callable[[int], Any], soak: ModuleType, signum: signal.Signals
) -> None:
    kind = runs(1)
    target = kind.folder / signum.name
    process = kind.start(target)
    await_checkpoint(target)
    for _ in range(3):  # a second one while the first is being obeyed breaks nothing
        process.send_signal(signum)
        time.sleep(0.002)
    kind.finish(process, 128 + signum)
    log = (kind.folder / "log.txt").read_text()
    assert f"imagetok: {signum.name} stopped the run after step " in log
    assert "Traceback" not in log
    kind.finish(kind.start(target))
    assert soak.compare(kind.reference, target) == []


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_of_them_at_the_same_step(
    runs: Callable[[int], Any], soak: ModuleType
) -> None:
    kind = runs(2)
    target = kind.folder / "one-rank"
    process = kind.start(target)
    await_checkpoint(target)
    last = ranks_of(process.pid)[-1]
    os.kill(last, signal.SIGTERM)
    kind.finish(process, 1)  # torchrun's own code
    log = (kind.folder / "log.txt").read_text()
    assert log.count("imagetok: SIGTERM stopped the run after step ") == 2
    steps = {
        line.split("after step ")[1].split(",")[0]
        for line in log.splitlines()
        if "after step " in line
    }
    assert len(steps) == 1
    newest = list_checkpoints(target / "checkpoints")[-1]
    assert newest.name == f"step-{int(steps.pop()):08d}"
    kind.finish(kind.start(target))
    assert soak.compare(kind.reference, target) == []


@pytest.mark.slow
def test_a_crashed_rank_ends_the_others_within_a_minute(runs: Callable[[int], Any]) -> None:
    kind = runs(2)
    target = kind.folder / "crash"
    process = kind.start(target)
    await_checkpoint(target)
    ranks = ranks_of(process.pid)
    os.kill(ranks[0], signal.SIGKILL)
    started = time.monotonic()
    kind.finish(process, 1)
    assert time.monotonic() - started < 60
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.slow
def test_ranks_whose_launcher_died_save_and_stop_by_themselves(
    runs: Callable[[int], Any], soak: ModuleType
) -> None:
    kind = runs(2)
    target = kind.folder / "orphans"
    process = kind.start(target)
    await_checkpoint(target)
    ranks = ranks_of(process.pid)
    process.kill()
    process.wait()
    started = time.monotonic()
    while any(is_running(rank) for rank in ranks) and time.monotonic() - started < 60:
        time.sleep(0.1)
    assert not any(is_running(rank) for rank in ranks)
    kind.finish(kind.start(target))
    assert soak.compare(kind.reference, target) == []


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# Kills


def test_a_difference_is_found(soak: ModuleType, tmp_path: Path) -> None:
    for name, text in (("one", "a"), ("other", "b")):
        for path in ("losses.jsonl", "metrics.jsonl", f"only-{name}"):
            (tmp_path / name / path).parent.mkdir(exist_ok=True)
            (tmp_path / name / path).write_text(text)
    found = soak.compare(tmp_path / "one", tmp_path / "other")
    assert found == ["losses.jsonl", "only-one", "only-other"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_runs_killed_in_chains_end_in_the_same_bytes(
    runs: Callable[[int], Any], ranks: int
) -> None:
    for inside in (True, False):
        assert runs(ranks).run_chain(f"{inside}-first", [inside, not inside]) == []
