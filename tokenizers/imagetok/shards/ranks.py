"""Which of several processes this is, where they share work without talking to each other."""

from __future__ import annotations

import os

from imagetok import distributed
from imagetok.arguments import read_count
from imagetok.errors import InvalidValueError


def read_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of ranks.

    Args:
        rank: In [0, world_size); None takes both from `torch.distributed`, or from the environment
            variables RANK and WORLD_SIZE that launchers set, or is the only rank.
        world_size: Given or not like `rank`.

    Raises:
        InvalidTypeError: One is no integer.
        InvalidValueError: One is given without the other, or out of range.
    """
    if (rank is None) != (world_size is None):
        raise InvalidValueError(
            f"give both rank and world_size, or neither; got {rank} and {world_size}"
        )
    if rank is None or world_size is None:
        if distributed.is_distributed():
            return distributed.rank(), distributed.world_size()
        rank, world_size = _from_environment("RANK", 0), _from_environment("WORLD_SIZE", 1)
    if read_count("rank", rank, 0) >= read_count("world_size", world_size, 1):
        raise InvalidValueError(f"rank {rank} is not one of {world_size} ranks")
    return int(rank), int(world_size)


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise InvalidValueError(f"the environment variable {name} is no number: {text!r}")
    return int(text)
