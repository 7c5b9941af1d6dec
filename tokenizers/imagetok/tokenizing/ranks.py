"""Which share of a job a process has, and where it computes: no process group, no talk.

Ranks take units of work by number, so that the same command runs under `accelerate launch`,
`torchrun` and `srun`, which say in the environment which process this is, and with `--rank` and
`--world-size` under everything else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from imagetok.arguments import read_count, read_device
from imagetok.errors import InvalidValueError
from imagetok.evaluation import has_only_cpu

_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
"""Variables of torchrun, on which accelerate builds, and of srun."""


@dataclass(frozen=True)
class Share:
    """A process's place among those of a job.

    Attributes:
        rank: In [0, world_size).
        world_size: Number of processes.
        local_rank: Place among the processes of this machine; counts up from 0.
    """

    rank: int
    world_size: int
    local_rank: int


def find_share(rank: int | None, world_size: int | None) -> Share:
    """The share that is asked for, or that a launcher says; the whole job without either.

    Raises:
        InvalidTypeError: An argument is no integer.
        InvalidValueError: One of the two is missing, or they do not fit.
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
    return Share(rank, world_size, rank if local is None else _integer("LOCAL_RANK", local))


def find_device(device: str, share: Share) -> torch.device:
    """The device that a process computes on.

    Args:
        device: `auto` takes the process's own GPU, where there is one; a kind such as `cuda` also
            takes the process's own, a name such as `cuda:1` that one.
        share: Its place.

    Raises:
        InvalidValueError: There is no such device.
    """
    if device == "auto":
        accelerator = None if has_only_cpu() else torch.accelerator.current_accelerator()
        device = "cpu" if accelerator is None else accelerator.type
    found = read_device(device)
    if found.type == "cpu" or ":" in device:
        return found
    return torch.device(found.type, share.local_rank % max(1, torch.accelerator.device_count()))


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
