"""Shuffle streams: the sequences that a streamed dataset is read in side by side.

A run has L streams (`data.lanes`), whatever its ranks and loading processes; each takes an equal
part of every batch. In an epoch

    segments in an order by seed and epoch --> a stream's share --> shuffle buffer --> draws

- of S segments the first floor(S / L) * L in that order are dealt to the streams in turn; the
  S % L that are left over are read by every stream, each keeping the rows with row % L == stream;
- a draw by seed, epoch, stream and number takes an image out of the buffer, and the next row of the
  share takes its slot; when the share ends, the buffer empties before the next epoch begins.

So every row comes exactly once in an epoch. With at least as many segments as streams, best a
multiple of them, the streams need not all read what is left over.

The position of a stream is its epoch, the draws made in it, the place in its share, the next row of
the segment there, and the rows in the slots of its buffer: a few integers, from which the buffer is
filled again by reading these rows once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from imagetok.data.image_rows import StoredImage
from imagetok.data.image_stream import SEGMENT_SIZE, ImageStream, locate_row
from imagetok.data.prefetcher import StopSignal
from imagetok.data.training_images import TrainTransform
from imagetok.data.unreadable_rows import name_some, prepare_image
from imagetok.errors import DataError
from imagetok.keys import generator, make_key

HEADER = 4
"""Entries of a position in front of the buffer's slots: epoch, draws, place, row."""

EMPTY = -1
"""A slot without an image."""

MAX_EMPTY_EPOCHS = 3
MAX_REFUSED_IN_A_ROW = 1000


@dataclass(frozen=True)
class ShuffleSettings:
    """What all shuffle streams of a run share.

    Attributes:
        images: The dataset.
        transform: Random crop and flip.
        seed: The run's seed.
        num_streams: L, the number of shuffle streams.
        buffer_size: Slots in the buffer of one stream, at least 1.
    """

    images: ImageStream
    transform: TrainTransform
    seed: int
    num_streams: int
    buffer_size: int

    def share(self, epoch: int, stream: int) -> list[tuple[int, bool]]:
        """The segments that a stream reads in an epoch, in order, and whether it alone does."""
        count = len(self.images.segments)
        random = generator(make_key(self.seed, epoch, 0, "units"))
        order = torch.randperm(count, generator=random).tolist()
        whole = count - count % self.num_streams
        alone = [(segment, True) for segment in order[stream : whole : self.num_streams]]
        return alone + [(segment, False) for segment in order[whole:]]


@dataclass(frozen=True)
class StreamSample:
    """An image of a stream.

    Attributes:
        pixels: uint8 (C, H, W).
        row: Identity of its row.
        epoch: Its epoch.
        profiles_ignored: 1 where its colour profile could not be applied, otherwise 0.
    """

    pixels: Tensor
    row: int
    epoch: int
    profiles_ignored: int = 0


class ShuffleStream:
    """One shuffle stream of a run.

    Args:
        settings: What it shares with the others.
        number: Number of the stream, in [0, L).
        position: Where it goes on, int64 (4 + buffer_size,); None begins.
        stop: Ends reading early when set.

    Attributes:
        refused: Messages about the rows that could not be read since it was last emptied.

    Raises:
        DataError: A row of the buffer, which was read before, cannot be read.
        LoadingStopped: The stop signal was set.
    """

    def __init__(
        self, settings: ShuffleSettings, number: int, position: Tensor | None, stop: StopSignal
    ) -> None:
        self.refused: list[str] = []
        self._settings, self._number, self._stop = settings, number, stop
        self._buffer: list[StreamSample] = []
        self._empty_epochs = self._refused_in_a_row = 0
        header: list[int] = [0] * HEADER if position is None else position[:HEADER].tolist()
        self._epoch, self._draws, self._place, self._row = header
        self._share = settings.share(self._epoch, number)
        if position is not None:
            self._refill(position[HEADER:].tolist())
        self._rows = self._read_on()

    def position(self) -> Tensor:
        """Where the stream stands, int64 (4 + buffer_size,)."""
        slots = [sample.row for sample in self._buffer]
        slots += [EMPTY] * (self._settings.buffer_size - len(slots))
        header = [self._epoch, self._draws, self._place, self._row]
        return torch.tensor(header + slots, dtype=torch.int64)

    def draw(self) -> StreamSample:
        """The next sample.

        Raises:
            DataError: A file is damaged, or there is nothing that can be read.
            LoadingStopped: The stop signal was set.
        """
        self._fill()
        while not self._buffer:
            self._begin_epoch()
            self._fill()
        purpose = f"window/{self._draws}"
        key = make_key(self._settings.seed, self._epoch, self._number, purpose)
        slot = key % len(self._buffer)
        drawn, last = self._buffer[slot], self._buffer.pop()
        replacement = next(self._rows, None)
        if replacement is not None:
            self._buffer.append(last)
            self._buffer[slot] = replacement
        elif slot < len(self._buffer):
            self._buffer[slot] = last
        self._draws += 1
        return drawn

    def _fill(self) -> None:
        while len(self._buffer) < self._settings.buffer_size:
            sample = next(self._rows, None)
            if sample is None:
                return
            self._buffer.append(sample)

    def _begin_epoch(self) -> None:
        settings, images = self._settings, self._settings.images
        self._empty_epochs = 0 if self._draws else self._empty_epochs + 1
        if self._empty_epochs >= MAX_EMPTY_EPOCHS:
            raise DataError(
                f"shuffle stream {self._number} of {settings.num_streams} found no readable row in "
                f"{MAX_EMPTY_EPOCHS} epochs of '{images.name}' ({images.split}): there are fewer "
                "rows than streams, or none of its own can be read; lower data.lanes or mend the "
                f"data. Rows that could not be read: {name_some(self.refused) or 'none'}"
            )
        self._epoch += 1
        self._draws = self._place = self._row = 0
        self._share = settings.share(self._epoch, self._number)
        self._rows = self._read_on()

    def _read_on(self) -> Iterator[StreamSample]:
        """The readable rows from where the stream stands to the end of its share."""
        settings = self._settings
        while self._place < len(self._share):
            segment, alone = self._share[self._place]
            for row, image in settings.images.read(segment, self._row):
                self._stop.check()
                self._row = row + 1
                if not alone and row % settings.num_streams != self._number:
                    continue
                try:
                    sample = self._load(segment, row, image)
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

    def _load(self, segment: int, row: int, image: StoredImage | None) -> StreamSample:
        settings, identity = self._settings, segment * SEGMENT_SIZE + row
        name = settings.images.describe(segment, row)
        key = make_key(settings.seed, self._epoch, identity, "augment")
        notes = list[str]()
        pixels = prepare_image(
            settings.images.fetch(image, name),
            name,
            lambda source: settings.transform(source, key, notes),
        )
        return StreamSample(pixels, identity, self._epoch, len(notes))

    def _refill(self, slots: list[int]) -> None:
        """Read the rows that the buffer held, each segment once and no further than needed."""
        held = [identity for identity in slots if identity != EMPTY]
        wanted: dict[int, set[int]] = {}
        for segment, row in map(locate_row, held):
            wanted.setdefault(segment, set()).add(row)
        samples: dict[int, StreamSample] = {}
        images = self._settings.images
        for segment, rows in wanted.items():
            first = min(rows)
            for row, image in islice(images.read(segment, first), max(rows) + 1 - first):
                self._stop.check()
                if row in rows:
                    samples[segment * SEGMENT_SIZE + row] = self._load(segment, row, image)
        if missing := set(held) - samples.keys():
            name = images.describe(*locate_row(min(missing)))
            raise DataError(f"{name} does not exist any more: the data changed since the run began")
        self._buffer = [samples[identity] for identity in held]
