"""Lanes: the sequences that a streamed dataset is read in side by side.

A run has L lanes, whatever its ranks and loading processes; each takes an equal part of every
batch. In an epoch

    units in an order by seed and epoch --> the lane's share --> window of W pictures --> draws

- of U units the first floor(U / L) * L in that order are dealt to the lanes in rounds, and the
  U % L that are left over are read by every lane, each keeping the rows with row % L == lane;
- a draw by seed, epoch, lane and number takes a picture out of the window, and the next row of the
  share takes its place; at the share's end the window empties before the next epoch begins.

So every row comes exactly once in an epoch. A dataset with at least as many units as lanes, at
best a multiple of them, spares the lanes reading what is left over L times.

Where a lane stands is its epoch, the draws made in it, the place in its share, the next row of the
unit there, and what the slots of its window hold: few integers, from which the window is filled
again by reading these rows once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from imagetok.data.prefetcher import StopSignal
from imagetok.data.streams import UNIT_SIZE, PictureStream, locate_row
from imagetok.data.transforms import TrainTransform
from imagetok.data.units import Picture
from imagetok.data.unreadable import name_some, prepare_picture
from imagetok.errors import DataError
from imagetok.keys import generator, make_key

HEADER = 4
"""Entries of a position in front of the window's slots: epoch, draws, place, row."""

EMPTY = -1
"""A slot without a picture."""

MAX_EMPTY_EPOCHS = 3
MAX_REFUSED_IN_A_ROW = 1000


@dataclass(frozen=True)
class LanePlan:
    """What all lanes of a run share.

    Attributes:
        stream: The pictures.
        transform: Random crop and flip.
        seed: The run's seed.
        num_lanes: L.
        window: Slots of one lane's window, at least 1.
    """

    stream: PictureStream
    transform: TrainTransform
    seed: int
    num_lanes: int
    window: int

    def share(self, epoch: int, lane: int) -> list[tuple[int, bool]]:
        """The units that a lane reads in an epoch, in order, and whether it does so alone."""
        count = len(self.stream.units)
        random = generator(make_key(self.seed, epoch, 0, "units"))
        order = torch.randperm(count, generator=random).tolist()
        whole = count - count % self.num_lanes
        alone = [(unit, True) for unit in order[lane : whole : self.num_lanes]]
        return alone + [(unit, False) for unit in order[whole:]]


@dataclass(frozen=True)
class LaneSample:
    """A picture of a lane: uint8 pixels (C, H, W), identity of its row, and epoch."""

    pixels: Tensor
    row: int
    epoch: int


class Lane:
    """One lane of a run.

    Args:
        plan: What it shares with the others.
        lane: Its number.
        position: Where it goes on, int64 (4 + window,); None begins.
        stop: Ends reading early when set.

    Attributes:
        refused: Messages of the rows that could not be read since it was last emptied.

    Raises:
        DataError: A row of the window, which was read before, cannot be read.
    """

    def __init__(
        self, plan: LanePlan, lane: int, position: Tensor | None, stop: StopSignal
    ) -> None:
        self.refused: list[str] = []
        self._plan, self._lane, self._stop = plan, lane, stop
        self._window: list[LaneSample] = []
        self._empty_epochs = self._refused_in_a_row = 0
        header: list[int] = [0] * HEADER if position is None else position[:HEADER].tolist()
        self._epoch, self._draws, self._place, self._row = header
        self._share = plan.share(self._epoch, lane)
        if position is not None:
            self._refill(position[HEADER:].tolist())
        self._rows = self._read_on()

    def position(self) -> Tensor:
        """Where the lane stands, int64 (4 + window,)."""
        slots = [sample.row for sample in self._window]
        slots += [EMPTY] * (self._plan.window - len(slots))
        header = [self._epoch, self._draws, self._place, self._row]
        return torch.tensor(header + slots, dtype=torch.int64)

    def draw(self) -> LaneSample:
        """The next sample.

        Raises:
            DataError: A file is damaged, or there is nothing that can be read.
            LoadingStopped: The stop signal was set.
        """
        self._fill()
        while not self._window:
            self._begin_epoch()
            self._fill()
        number = make_key(self._plan.seed, self._epoch, self._lane, f"window/{self._draws}") % len(
            self._window
        )
        drawn, last = self._window[number], self._window.pop()
        replacement = next(self._rows, None)
        if replacement is not None:
            self._window.append(last)
            self._window[number] = replacement
        elif number < len(self._window):
            self._window[number] = last
        self._draws += 1
        return drawn

    def _fill(self) -> None:
        while len(self._window) < self._plan.window:
            sample = next(self._rows, None)
            if sample is None:
                return
            self._window.append(sample)

    def _begin_epoch(self) -> None:
        plan = self._plan
        self._empty_epochs = 0 if self._draws else self._empty_epochs + 1
        if self._empty_epochs >= MAX_EMPTY_EPOCHS:
            raise DataError(
                f"lane {self._lane} of {plan.num_lanes} found no readable row in "
                f"{MAX_EMPTY_EPOCHS} epochs of '{plan.stream.name}' ({plan.stream.split}): there "
                "are fewer rows than lanes, or none of its own can be read; lower data.lanes or "
                f"mend the data. Rows that could not be read: {name_some(self.refused) or 'none'}"
            )
        self._epoch += 1
        self._draws = self._place = self._row = 0
        self._share = plan.share(self._epoch, self._lane)
        self._rows = self._read_on()

    def _read_on(self) -> Iterator[LaneSample]:
        """The readable rows from where the lane stands to the end of its share."""
        stream = self._plan.stream
        while self._place < len(self._share):
            unit, alone = self._share[self._place]
            for row, picture in stream.read(unit, self._row):
                self._stop.check()
                self._row = row + 1
                if not alone and row % self._plan.num_lanes != self._lane:
                    continue
                try:
                    sample = self._load(unit, row, picture)
                except DataError as error:
                    self._refuse(error)
                    continue
                self._refused_in_a_row = 0
                yield sample
            self._place, self._row = self._place + 1, 0

    def _refuse(self, error: DataError) -> None:
        self.refused.append(str(error))
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= MAX_REFUSED_IN_A_ROW:
            raise DataError(
                f"{MAX_REFUSED_IN_A_ROW} rows in a row cannot be read: {name_some(self.refused)}"
            )

    def _load(self, unit: int, row: int, picture: Picture | None) -> LaneSample:
        plan, identity = self._plan, unit * UNIT_SIZE + row
        name = plan.stream.describe(unit, row)
        key = make_key(plan.seed, self._epoch, identity, "augment")
        pixels = prepare_picture(
            plan.stream.fetch(picture, name), name, lambda source: plan.transform(source, key)
        )
        return LaneSample(pixels, identity, self._epoch)

    def _refill(self, slots: list[int]) -> None:
        """Read the rows that a window held, each unit once and no further than needed."""
        held = [identity for identity in slots if identity != EMPTY]
        wanted: dict[int, set[int]] = {}
        for unit, row in map(locate_row, held):
            wanted.setdefault(unit, set()).add(row)
        samples: dict[int, LaneSample] = {}
        for unit, rows in wanted.items():
            first = min(rows)
            numbered = self._plan.stream.read(unit, first)
            for row, picture in islice(numbered, max(rows) + 1 - first):
                self._stop.check()
                if row in rows:
                    samples[unit * UNIT_SIZE + row] = self._load(unit, row, picture)
        if missing := set(held) - samples.keys():
            name = self._plan.stream.describe(*locate_row(min(missing)))
            raise DataError(f"{name} does not exist any more: the data changed since the run began")
        self._window = [samples[identity] for identity in held]
