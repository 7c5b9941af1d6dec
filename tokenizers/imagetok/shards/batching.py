"""From the order of a rank's rows to the items that one of its loading processes yields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from imagetok.shards.order import ReadingOrder
from imagetok.shards.rows import GatheredRows, Numbers, ShardRows

Item = dict[str, Any]

RUN = 256
"""Rows that are converted together where they are yielded one by one."""


@dataclass(frozen=True)
class Pass:
    """The part of a pass over a rank's rows that one of its loading processes reads.

    Attributes:
        order: The order of the rank's rows.
        rows: Where they are read.
        epoch: The epoch.
        start: The row that the pass begins at.
        end: The row that it ends before.
        worker: Number of the process.
        num_workers: Number of processes.
    """

    order: ReadingOrder
    rows: ShardRows
    epoch: int
    start: int
    end: int
    worker: int
    num_workers: int

    def batches(self, size: int) -> Iterator[Item]:
        """Every `num_workers`-th batch of `size` rows, from number `worker` on."""
        begun: Item = {}
        for places, gathered in self._windows(size):
            cuts = np.flatnonzero(np.diff((places - self.start) // size)) + 1
            for low, high in pairwise([0, *cuts.tolist(), len(places)]):
                batch = gathered.batch(low, high)
                # A batch may begin in one window and end in the next.
                begun = _join(begun, batch) if begun else batch
                next_place = int(places[high - 1]) + 1
                if next_place == self.end or (next_place - self.start) % size == 0:
                    yield begun
                    begun = {}

    def singles(self) -> Iterator[Item]:
        """Every `num_workers`-th row, from number `worker` on."""
        for places, gathered in self._windows(1):
            for low in range(0, len(places), RUN):
                batch = gathered.batch(low, min(low + RUN, len(places)))
                yield from _rows_of(batch)

    def _windows(self, size: int) -> Iterator[tuple[Numbers, GatheredRows]]:
        """Places in the rank's order, ascending, and rows that this process takes of a window."""
        for window in self.order.windows(self.epoch, self.start):
            places = window.start + np.arange(len(window.rows))
            mine = (places - self.start) // size % self.num_workers == self.worker
            mine &= (places >= self.start) & (places < self.end)
            if mine.any():
                yield places[mine], self.rows.gather(window.shards[mine], window.rows[mine])


def _join(first: Item, second: Item) -> Item:
    return {
        name: torch.cat([value, second[name]])
        if isinstance(value, torch.Tensor)
        else value + second[name]
        for name, value in first.items()
    }


def _rows_of(batch: Item) -> Iterator[Item]:
    for number, ids in enumerate(batch["ids"]):
        row = {name: values[number] for name, values in batch.items() if name != "ids"}
        # Not a view: it would hold all rows in memory, and take them along between processes.
        yield {"ids": ids.clone(), **row, "row": int(row["row"])}
