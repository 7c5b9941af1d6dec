"""The order of training: which row each sample is, and which samples each rank takes.

Samples are numbered through the whole run, 0, 1, 2, ..., across the ends of epochs. With a global
batch of B, step s takes samples s B ... (s + 1) B - 1. Rank r of W takes the r-th of W equal blocks
of these, and divides it in order into its micro-batches. A run therefore has the same samples in
the same steps whatever the number of ranks, and resumes from the step alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from imagetok.errors import InvalidValueError
from imagetok.keys import generator, make_key

_KEPT = 2


class EpochOrder:
    """A new random order of the rows in every epoch.

    Args:
        num_rows: Rows of the dataset.
        seed: The run's seed.

    Raises:
        InvalidValueError: `num_rows` is under 1.
    """

    def __init__(self, num_rows: int, seed: int) -> None:
        if num_rows < 1:
            raise InvalidValueError(f"an order needs at least one row, got num_rows={num_rows}")
        self.num_rows = num_rows
        self.seed = seed
        self._permutations: dict[int, Tensor] = {}

    def locate(self, sample: int) -> tuple[int, int]:
        """The epoch and the row of a sample.

        Args:
            sample: Number of the sample in the run, from 0.

        Returns:
            (epoch, row); in each epoch every row comes exactly once.

        Raises:
            InvalidValueError: `sample` is negative.
        """
        if sample < 0:
            raise InvalidValueError(f"samples are numbered from 0, got {sample}")
        epoch, place = divmod(sample, self.num_rows)
        return epoch, int(self._permutation(epoch)[place])

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            # Batches reach over the end of an epoch, so two epochs are in use at a time.
            while len(self._permutations) >= _KEPT:
                del self._permutations[next(iter(self._permutations))]
            random = generator(make_key(self.seed, epoch, 0, "shuffle"))
            self._permutations[epoch] = torch.randperm(self.num_rows, generator=random)
        return self._permutations[epoch]


class SampleBatches(Sampler[list[int]]):
    """The micro-batches of one rank as lists of sample numbers, for a loader's `batch_sampler`.

    Args:
        start_step: First step; on resuming, the number of steps done.
        steps: Number of steps.
        batch_size: Samples of a step, over all ranks and micro-batches.
        rank: This process's rank.
        world_size: Number of ranks.
        accumulation: Micro-batches of a step.

    Raises:
        InvalidValueError: The batch does not divide into equal micro-batches, or a count or rank
            is out of range.
    """

    def __init__(
        self,
        start_step: int,
        steps: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
    ) -> None:
        super().__init__()
        if min(start_step, steps) < 0 or min(batch_size, world_size, accumulation) < 1:
            raise InvalidValueError(
                "start_step and steps are at least 0, batch_size, world_size and accumulation at "
                f"least 1; got {start_step}, {steps}, {batch_size}, {world_size}, {accumulation}"
            )
        if not 0 <= rank < world_size:
            raise InvalidValueError(f"rank {rank} is not one of {world_size} ranks")
        if batch_size % (world_size * accumulation):
            raise InvalidValueError(
                f"batch_size {batch_size} does not divide into {world_size} ranks x "
                f"{accumulation} micro-batches; make it a multiple of {world_size * accumulation}"
            )
        self.start_step, self.steps, self.batch_size = start_step, steps, batch_size
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation

    @property
    def micro_batch_size(self) -> int:
        """Samples of one micro-batch."""
        return self.batch_size // (self.world_size * self.accumulation)

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        size = self.micro_batch_size
        for step in range(self.start_step, self.start_step + self.steps):
            block = step * self.batch_size + self.rank * size * self.accumulation
            for first in range(block, block + size * self.accumulation, size):
                yield list(range(first, first + size))


def fixed_rows(num_rows: int, count: int) -> list[int]:
    """Evenly spaced rows, the same at every call.

    Args:
        num_rows: Rows of the dataset.
        count: How many to choose.

    Returns:
        `count` different rows in ascending order, or all where there are fewer.
    """
    count = min(num_rows, count)
    return [number * num_rows // count for number in range(count)]
