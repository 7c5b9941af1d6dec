"""Units of a streamed dataset: the pieces whose order is shuffled and that are read from the start.

A unit is a file of rows, or one of at most 1,024 equal runs of files where there are more, of
pictures in a folder, or of rows of a dataset that lies ready. Units are numbered, and so are the
rows of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol

from datasets import Dataset, IterableDataset
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from imagetok.data.rows import as_picture

MAX_UNITS = 1024
"""Most units: to take one shard out of n costs `datasets` time and memory that grow with n."""

Picture = dict[str, Any]
"""`{"bytes": ..., "path": ...}`, as `imagetok.images.read_image` takes it."""

_BATCH = 16


class Units(Protocol):
    """Numbered pieces of a dataset."""

    def __len__(self) -> int:
        """Number of units."""

    def read(self, unit: int, start: int) -> Iterator[Picture | None]:
        """The rows of a unit from row `start` on; None where there is no picture."""

    def describe(self, unit: int, row: int) -> str:
        """What messages call a row: its number, and its file where a unit is one."""


@dataclass(frozen=True)
class Shards:
    """Shards of a dataset that `datasets` streams.

    Attributes:
        dataset: The column of the pictures alone, not decoded.
        column: Its name.
        files: Its files; empty where they are not its shards.
    """

    dataset: IterableDataset
    column: str
    files: Sequence[str]

    def __len__(self) -> int:
        return min(MAX_UNITS, int(self.dataset.num_shards))

    def read(self, unit: int, start: int) -> Iterator[Picture | None]:
        """See `Units`."""
        shard = self.dataset.shard(len(self), unit)
        # In a loading process of torch, iterating over the dataset itself would leave out what it
        # takes for the share of the other processes; its batches are all of them.
        batches = (batch[self.column] for batch in shard.iter(batch_size=_BATCH))
        return map(as_picture, islice(chain.from_iterable(batches), start, None))

    def describe(self, unit: int, row: int) -> str:
        """See `Units`."""
        if len(self.files) == len(self):
            return f"row {row} of file '{self.files[unit].rpartition('/')[2]}'"
        return f"row {row} of part {unit + 1} of {len(self)}"


@dataclass(frozen=True)
class PictureFiles:
    """Runs of pictures that are files of their own.

    Attributes:
        paths: Their paths, in order; None where there is no picture.
    """

    paths: Sequence[str | None]

    def __len__(self) -> int:
        return min(MAX_UNITS, len(self.paths))

    def read(self, unit: int, start: int) -> Iterator[Picture | None]:
        """See `Units`."""
        paths = (self.paths[place] for place in _run(unit, len(self), len(self.paths))[start:])
        return (None if path is None else {"bytes": None, "path": path} for path in paths)

    def describe(self, unit: int, row: int) -> str:
        """See `Units`."""
        return f"row {_run(unit, len(self), len(self.paths)).start + row}"


@dataclass(frozen=True)
class ReadyRows:
    """Runs of rows of a map-style dataset that needs no conversion.

    Attributes:
        dataset: The column of the pictures alone, not decoded.
        column: Its name.
    """

    dataset: Dataset
    column: str

    def __len__(self) -> int:
        return min(MAX_UNITS, len(self.dataset))

    def read(self, unit: int, start: int) -> Iterator[Picture | None]:
        """See `Units`."""
        run = _run(unit, len(self), len(self.dataset))
        return (as_picture(self.dataset[place][self.column]) for place in run[start:])

    def describe(self, unit: int, row: int) -> str:
        """See `Units`."""
        return f"row {_run(unit, len(self), len(self.dataset)).start + row}"


def stream_units(
    dataset: IterableDataset, column: str, builder: object, files: Sequence[str]
) -> Units:
    """Units of a dataset that `datasets` streams.

    Args:
        dataset: The column of the pictures alone, not decoded.
        column: Its name.
        builder: What streams it.
        files: Its files.
    """
    if isinstance(builder, ImageFolder):
        # One shard, however many pictures; but its rows are names of files, quickly listed.
        shard = Shards(dataset, column, ())
        values = chain.from_iterable(shard.read(unit, 0) for unit in range(len(shard)))
        return PictureFiles([None if value is None else value["path"] for value in values])
    return Shards(dataset, column, files if len(files) == dataset.num_shards else ())


def _run(number: int, count: int, length: int) -> range:
    """One of `count` runs of equal lengths, to one, that make up a range."""
    return range(length * number // count, length * (number + 1) // count)
