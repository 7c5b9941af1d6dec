"""`RowOrder`: the order in which rows of shards are read, given by seed, epoch and ranks alone.

    shards in a new order
      --> within every 16 consecutive ones, runs of 2,048 rows (a row group) in a new order
      --> one sequence of all rows, cut into equal parts for the ranks
      --> within every shuffle buffer of a part, rows in a new order

So every row comes exactly once per epoch over all ranks, whose parts differ by at most one row; a
rank reads few shards at a time; and neighbours in the input end up far apart, as a shuffle buffer
holds runs of up to 16 shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from imagetok.keys import generator, make_key
from imagetok.shards.shard_file import MOST_ROWS as RUN_ROWS

SHARDS_TOGETHER = 16
"""Shards whose runs are mixed."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class ShuffleBuffer:
    """Rows that are mixed with each other, in the order in which they are read.

    Attributes:
        start: Position of the first one among this rank's rows.
        shards: int64 (N,), number of the shard that holds each row.
        rows: int64 (N,), position of each row in its shard.
    """

    start: int
    shards: Numbers
    rows: Numbers


@dataclass(frozen=True)
class RowOrder:
    """The order of one rank's rows, in shuffle buffers.

    Attributes:
        counts: Number of rows of each shard.
        seed: Seed of the order.
        rank: Number of the rank, in [0, world_size).
        world_size: Number of ranks.
        buffer_size: Number of rows of a shuffle buffer, at least 1.
        shuffle: Whether the order is random; otherwise rows come as they lie in the shards.
    """

    counts: Sequence[int]
    seed: int
    rank: int
    world_size: int
    buffer_size: int
    shuffle: bool

    @property
    def num_rows(self) -> int:
        """Number of rows of this rank."""
        return self._boundary(self.rank + 1) - self._boundary(self.rank)

    @property
    def common_rows(self) -> int:
        """Number of rows that every rank has at least."""
        return sum(self.counts) // self.world_size

    def buffers(self, epoch: int, start: int) -> Iterator[ShuffleBuffer]:
        """Yield the buffers of an epoch from the one that holds row `start` of this rank."""
        runs = self._runs(epoch)
        ends = np.cumsum(runs[:, 2])
        first = self._boundary(self.rank)
        size = self.buffer_size
        for begin in range(start - start % size, self.num_rows, size):
            end = min(begin + size, self.num_rows)
            shards, rows = _rows_between(runs, ends, first + begin, first + end)
            if self.shuffle:
                mixed = _permutation(end - begin, self.seed, epoch, first + begin, "window")
                shards, rows = shards[mixed], rows[mixed]
            yield ShuffleBuffer(begin, shards, rows)

    def _boundary(self, rank: int) -> int:
        return sum(self.counts) * rank // self.world_size

    def _runs(self, epoch: int) -> Numbers:
        """The sequence of all rows, int64 (runs, 3): shard, first row and number of rows."""
        count = len(self.counts)
        if not self.shuffle:
            return np.array([(shard, 0, self.counts[shard]) for shard in range(count)])
        order = _permutation(count, self.seed, epoch, 0, "shards").tolist()
        groups = []
        for first in range(0, count, SHARDS_TOGETHER):
            together = order[first : first + SHARDS_TOGETHER]
            runs = np.array(
                [
                    (shard, row, min(RUN_ROWS, self.counts[shard] - row))
                    for shard in together
                    for row in range(0, self.counts[shard], RUN_ROWS)
                ],
                dtype=np.int64,
            ).reshape(-1, 3)
            groups.append(runs[_permutation(len(runs), self.seed, epoch, first, "runs")])
        return np.concatenate(groups)


def _rows_between(runs: Numbers, ends: Numbers, first: int, last: int) -> tuple[Numbers, Numbers]:
    """Shards and rows at the positions from `first` up to `last` of the sequence of runs."""
    low, high = np.searchsorted(ends, first, "right"), np.searchsorted(ends, last, "left") + 1
    inside = runs[low:high].copy()
    skipped = first - (ends[low] - inside[0, 2])
    inside[-1, 2] -= ends[high - 1] - last
    inside[0, 1:] += skipped, -skipped
    before = np.repeat(np.cumsum(inside[:, 2]) - inside[:, 2], inside[:, 2])
    shards, starts = (np.repeat(inside[:, column], inside[:, 2]) for column in (0, 1))
    return shards, starts + np.arange(last - first) - before


def _permutation(count: int, seed: int, epoch: int, position: int, purpose: str) -> Numbers:
    random = generator(make_key(seed, epoch, position, purpose))
    order: Numbers = torch.randperm(count, generator=random).numpy()
    return order
