"""Rows to tokenize, in units of work that any process can read on its own.

    name, split --open_input--> Input: numbered units --read--> chunks of consecutive rows

A dataset that is opened row by row is divided into ranges of rows, which are known by their place
in it; of a streamed one each file is a unit, and rows are known by file and place in the file.
Pictures are not decoded, and kept columns are taken from Arrow as they lie there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
from datasets import Features

from imagetok.data import ImageRows
from imagetok.data.fingerprint import content_fingerprint
from imagetok.data.rows import as_picture
from imagetok.data.sources import reading
from imagetok.errors import DataError
from imagetok.tokenizing.preparing import Picture

CHUNK = 8
"""Rows that are read and decoded at a time; no result depends on it."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a unit, not decoded.

    Attributes:
        start: Number of the first one, in the dataset or in its file.
        pictures: What the image column holds; None where it is null.
        kept: The kept columns of the same rows.
    """

    start: int
    pictures: list[Picture | None]
    kept: pa.Table


@dataclass(frozen=True, kw_only=True)
class Input(ABC):
    """A split in units of work.

    Attributes:
        name: What messages call the dataset.
        image_column: Column of the pictures.
        kept: Features of the kept columns, in the order asked for.
        fingerprint: Hash of the content when the input was opened.
        root: Folder that paths of pictures are told relative to; None where there is none.
        num_rows: Rows of the split, whatever the limit; None where only reading tells.
        revision: Commit of a dataset on the Hub; None where it has none or it is not known.
        files: Names of the files that are the units; empty where units are no files.
        sizes: Their sizes in bytes; None where these are not known.
    """

    name: str
    image_column: str
    kept: Features
    fingerprint: str
    root: Path | None
    num_rows: int | None
    revision: str | None
    files: Sequence[str] = ()
    sizes: Sequence[int | None] = ()

    @property
    @abstractmethod
    def num_units(self) -> int:
        """Number of units."""

    @abstractmethod
    def read(self, unit: int, start: int = 0) -> Iterator[Chunk]:
        """The rows of a unit from its row `start` on.

        Raises:
            DataError: A file is missing or damaged.
        """

    @abstractmethod
    def fingerprint_now(self) -> str:
        """The hash of the content as it is by now."""


@dataclass(frozen=True, kw_only=True)
class RowsInput(Input):
    """Ranges of rows of a map-style dataset.

    Attributes:
        rows: The dataset.
        rows_per_unit: Rows of a unit; the last one may have fewer.
        limit: Most rows that are taken; None takes all.
    """

    rows: ImageRows
    rows_per_unit: int
    limit: int | None

    @property
    def num_units(self) -> int:
        """See `Input`."""
        return -(-self._taken // self.rows_per_unit)

    @property
    def _taken(self) -> int:
        return min(len(self.rows), self.limit or len(self.rows))

    def read(self, unit: int, start: int = 0) -> Iterator[Chunk]:
        """See `Input`."""
        columns = list(dict.fromkeys([self.image_column, *self.kept]))
        table = self.rows.dataset.select_columns(columns).with_format("arrow")
        first = unit * self.rows_per_unit
        last = min(first + self.rows_per_unit, self._taken)
        for begin in range(first + start, last, CHUNK):
            with reading(f"{self.rows.describe(begin)} and what follows it cannot be read"):
                chunk = make_chunk(
                    begin, table[begin : min(begin + CHUNK, last)], self.image_column, self.kept
                )
            yield chunk

    def fingerprint_now(self) -> str:
        """See `Input`."""
        if self.rows.identity is not None:
            return self.fingerprint
        return content_fingerprint(self.rows.dataset, self.image_column)


def make_chunk(start: int, table: pa.Table, image_column: str, kept: Features) -> Chunk:
    """A chunk of a table's rows."""
    pictures = [as_picture(value) for value in table.column(image_column).to_pylist()]
    return Chunk(start, pictures, table.select(list(kept)))


def choose_kept(features: Features, name: str, image_column: str, keep: Sequence[str]) -> Features:
    """Features of the columns to keep, as the input has them.

    Args:
        features: Of all columns, files in them not decoded.
        name: What messages call the dataset.
        image_column: Column of the pictures, which is not kept.
        keep: Names of columns.

    Raises:
        DataError: There is no such column, it stands twice, or it is the image column.
    """
    listing = ", ".join(column for column in features if column != image_column) or "(none)"
    for place, column in enumerate(keep):
        if column == image_column:
            raise DataError(
                f"'{column}' is the image column of '{name}', whose pictures become ids; columns "
                f"that can be kept: {listing}"
            )
        if column not in features:
            raise DataError(f"'{name}' has no column '{column}' to keep; it has: {listing}")
        if column in keep[:place]:
            raise DataError(f"the column '{column}' is to be kept twice; name it once")
    chosen = {column: features[column] for column in keep}
    return Features(
        {
            # What `undecoded` did for reading is undone: files are decoded by who loads the shards.
            column: replace(feature, decode=True) if hasattr(feature, "decode") else feature
            for column, feature in chosen.items()
        }
    )
