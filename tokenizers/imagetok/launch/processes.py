"""Which of a launcher's processes this is, and where it computes.

`torchrun`, on which `accelerate launch` builds, and `srun` say it in environment variables. A job
of independent processes needs nothing else, neither a process group nor communication: it works
under these launchers and, with `--rank` and `--world-size`, under any other.
"""

from __future__ import annotations

import ast
import atexit
import gc
import importlib
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from imagetok.arguments import read_count
from imagetok.errors import InvalidValueError
from imagetok.launch import collectives
from imagetok.switches import read_switch

_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
"""Environment variables of torchrun and of srun."""

_CPU_VARIABLE = "ACCELERATE_USE_CPU"


@dataclass(frozen=True)
class RankInfo:
    """A process's place among those of a job.

    Attributes:
        rank: In [0, world_size).
        world_size: Number of processes.
        local_rank: Place among the processes of this machine, from 0.
    """

    rank: int
    world_size: int
    local_rank: int


def find_rank_info(rank: int | None, world_size: int | None) -> RankInfo:
    """The place that is asked for, or else the one that a launcher assigns, or else the only one.

    Args:
        rank: In [0, world_size), or None.
        world_size: At least 1; None if, and only if, `rank` is.

    Raises:
        InvalidTypeError: An argument is not an integer.
        InvalidValueError: Only one of the two is given, they do not fit together, or a launcher's
            variable is not a number.
    """
    if (rank is None) != (world_size is None):
        raise InvalidValueError(
            f"rank is {rank} and world_size is {world_size}; give both or neither"
        )
    local = next((os.environ[names[2]] for names in _LAUNCHERS if names[2] in os.environ), None)
    if rank is None or world_size is None:
        rank, world_size = _launched()
    rank, world_size = read_count("rank", rank, 0), read_count("world_size", world_size, 1)
    if rank >= world_size:
        raise InvalidValueError(
            f"rank is {rank} with world_size {world_size}; ranks count from 0 to {world_size - 1}"
        )
    return RankInfo(rank, world_size, rank if local is None else _integer("LOCAL_RANK", local))


def find_reader_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of ranks of a process that reads its part of a dataset.

    Args:
        rank: In [0, world_size); None takes both numbers from the process group if there is one,
            else from the variables RANK and WORLD_SIZE, else 0 and 1.
        world_size: At least 1; None if, and only if, `rank` is.

    Raises:
        InvalidTypeError: An argument is not an integer.
        InvalidValueError: Only one of the two is given, they do not fit together, or a variable is
            not a number.
    """
    if (rank is None) != (world_size is None):
        raise InvalidValueError(
            f"give both rank and world_size, or neither; got {rank} and {world_size}"
        )
    if rank is None or world_size is None:
        if collectives.is_distributed():
            return collectives.rank(), collectives.world_size()
        rank = _count("RANK", os.environ.get("RANK", "0"))
        world_size = _count("WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))
    if read_count("rank", rank, 0) >= read_count("world_size", world_size, 1):
        raise InvalidValueError(f"rank {rank} is not one of {world_size} ranks")
    return int(rank), int(world_size)


def find_device(device: str, ranks: RankInfo) -> torch.device:
    """The device that a process computes on.

    Args:
        device: `auto` takes the process's own GPU if there is one, else the CPU; a kind such as
            `cuda` takes the process's own of that kind; a name such as `cuda:1` takes that one.
        ranks: The process's place.

    Raises:
        InvalidValueError: The device does not exist.
    """
    if device == "auto":
        accelerator = None if has_only_cpu() else torch.accelerator.current_accelerator()
        device = "cpu" if accelerator is None else accelerator.type
    found = read_device(device)
    if found.type == "cpu" or ":" in device:
        return found
    return torch.device(found.type, ranks.local_rank % max(1, torch.accelerator.device_count()))


def read_device(device: str | torch.device | None) -> torch.device:
    """A device that this machine has; None is the CPU.

    Raises:
        InvalidValueError: The device does not exist, or it holds no values.
    """
    try:
        found = torch.empty(0, device="cpu" if device is None else device).device
    except (RuntimeError, AssertionError, TypeError, ValueError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidValueError(f"device {device!r} cannot be used here: {reason}") from None
    if found.type == "meta":
        raise InvalidValueError("device 'meta' holds no values; choose cpu or an accelerator")
    return found


def has_only_cpu() -> bool:
    """Whether to compute on the CPU: there is no GPU, or ACCELERATE_USE_CPU asks for it.

    Accelerate has to be told. Without a GPU and without being told, it takes each process of
    `torchrun` for a run of its own.

    Raises:
        InvalidValueError: The variable is neither true nor false.
    """
    return read_switch(_CPU_VARIABLE, default=False) or not torch.accelerator.is_available()


def check_main_guard() -> None:
    """Refuse to start processes while a script runs that each of them would run again.

    A spawned process imports the script that was started. Without a guard it does all that the
    script does, up to starting processes of its own: it fails, or waits for what is its parent's.

    Raises:
        InvalidValueError: The script compares `__name__` with nothing.
    """
    import __main__ as main

    path, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if path is None or (spec is not None and spec.name.endswith("__main__")):
        return  # of these nothing is imported again
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_globals is not main.__dict__:
        frame = frame.f_back
    if frame is None:
        return
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    compared = (node for node in ast.walk(tree) if isinstance(node, ast.Compare | ast.Match))
    names = {name.id for node in compared for name in ast.walk(node) if isinstance(name, ast.Name)}
    if "__name__" not in names:
        raise InvalidValueError(
            f"'{path}' starts processes that load images, and each of them would run it from the "
            'top; put what it does under `if __name__ == "__main__":`, or load images without '
            "processes (workers=0, data.num_workers=0)"
        )


def leave_group_at_exit() -> None:
    """Arrange that this process leaves its process group in good order; call before joining it.

    A process that ends while threads of its group are running is aborted, after all its own work is
    done. So the group is left at exit, which ends its threads unless something else holds it. What
    would hold it is torch._dynamo, if imported while the group stands; so it is imported before.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        importlib.import_module("torch._dynamo")
        atexit.unregister(_leave_group)
        atexit.register(_leave_group)


def _leave_group() -> None:
    if collectives.is_distributed():
        gc.collect()  # a network in a cycle of references holds the group
        dist.destroy_process_group()


def _launched() -> tuple[int, int]:
    for rank, world_size, _ in _LAUNCHERS:
        if rank in os.environ and world_size in os.environ:
            return _integer(rank, os.environ[rank]), _integer(world_size, os.environ[world_size])
    return 0, 1


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidValueError(
            f"the environment variable {name} is '{text}', expected a number; give rank and "
            "world_size, or unset it"
        ) from None


def _count(name: str, text: str) -> int:
    if not text.isdecimal():
        raise InvalidValueError(f"the environment variable {name} is not a number: {text!r}")
    return int(text)
