"""Who a process is among those of a job, by its arguments or by its launcher's environment."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from imagetok.errors import InvalidValueError
from imagetok.launch import RankInfo, find_device, find_rank_info, has_only_cpu, read_device

NAMES = [
    *("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    *("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def launch(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_a_process_alone_has_the_whole_job() -> None:
    assert find_rank_info(None, None) == RankInfo(0, 1, 0)


def test_torchrun_and_srun_say_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, SLURM_PROCID="5", SLURM_NTASKS="8", SLURM_LOCALID="1")
    assert find_rank_info(None, None) == RankInfo(5, 8, 1)
    launch(monkeypatch, RANK="9", WORLD_SIZE="16", LOCAL_RANK="3")
    assert find_rank_info(None, None) == RankInfo(9, 16, 3)


def test_arguments_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, RANK="1", WORLD_SIZE="2")
    assert find_rank_info(3, 4) == RankInfo(3, 4, 3)


def test_no_process_group_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    assert find_device("cpu", find_rank_info(None, None)) == torch.device("cpu")
    assert not torch.distributed.is_initialized()


def test_a_rank_that_is_not_a_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, RANK="one", WORLD_SIZE="2")
    with pytest.raises(InvalidValueError, match="RANK is 'one', expected a number"):
        find_rank_info(None, None)


def test_each_local_rank_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr("imagetok.launch.processes.read_device", torch.device)
    found = [find_device("auto", RankInfo(rank, 5, rank)) for rank in range(3)]
    assert found == [torch.device("cuda", number) for number in (0, 1, 0)]
    assert find_device("cuda:1", RankInfo(0, 1, 0)) == torch.device("cuda", 1)
    assert find_device("cpu", RankInfo(1, 2, 1)) == torch.device("cpu")


@pytest.mark.parametrize("value", ["", "cpu\0", "hpu", "privateuseone", 10**30, -1, object(), "é"])
def test_a_device_that_is_not_there_is_refused(value: Any) -> None:
    with pytest.raises(InvalidValueError, match="cannot be used here"):
        read_device(value)


@pytest.mark.parametrize(("text", "wanted"), [("true", True), ("1", True), ("OFF", False)])
def test_the_cpu_can_be_asked_for_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, wanted: bool
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", text)
    assert has_only_cpu() is wanted
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert has_only_cpu()


def test_an_environment_that_is_neither_true_nor_false_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "maybe")
    with pytest.raises(InvalidValueError, match="ACCELERATE_USE_CPU is 'maybe'; set it to true"):
        has_only_cpu()


WORKERS = "Workers([len], in_processes=True).close()\n"
TRAINING = "train(tiny_run('ae', data={'num_workers': 2}), 'run', progress=False)\n"
SCRIPT = """
import logging
from imagetok.data import Workers
from imagetok.training import train
from tiny_runs import tiny_run
logger = logging.getLogger(__name__)
"""


def run_as_script(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Run a script in this process, where only starting processes differs from `python FILE`."""
    path = folder / "script.py"
    path.write_text(source)
    main = ModuleType("__main__")
    main.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.chdir(folder)
    exec(compile(source, path, "exec"), vars(main))


@pytest.mark.parametrize("call", [WORKERS, TRAINING])
def test_a_script_without_a_guard_starts_no_process_and_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with pytest.raises(InvalidValueError, match=r"script\.py' starts .*put what it does under `if"):
        run_as_script(tmp_path, monkeypatch, f"{SCRIPT}{call}")
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_a_script_with_a_guard_may_start_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_as_script(tmp_path, monkeypatch, f"{SCRIPT}if __name__ == '__main__':\n    {WORKERS}")
    run_as_script(tmp_path, monkeypatch, f"{SCRIPT}is_main = '__main__' == __name__\n{WORKERS}")
