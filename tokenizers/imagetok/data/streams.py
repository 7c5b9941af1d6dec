"""`PictureStream`: a dataset of pictures that is read file by file, without converting it first.

    name, split --open_stream--> PictureStream: numbered units of numbered rows

A row's identity is unit * 2**32 + row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Features, IterableDataset

from imagetok.data.dataset_ref import DatasetRef
from imagetok.data.fingerprint import files_fingerprint
from imagetok.data.rows import find_column, open_rows, undecoded, with_bytes
from imagetok.data.sources import DatasetLocation, find_location, reading
from imagetok.data.units import Picture, ReadyRows, Units, stream_units
from imagetok.errors import DataError

UNIT_SIZE = 2**32
"""Rows that a unit has room for in the numbering of identities."""


def locate_row(identity: int) -> tuple[int, int]:
    """The unit and the row in it of an identity."""
    return divmod(identity, UNIT_SIZE)


@dataclass(frozen=True)
class PictureStream:
    """The rows of one split, in units that are read from their start.

    Attributes:
        name: The name that the dataset was opened by.
        split: The split.
        units: Where the rows come from.
        fingerprint: Hash of the files, equal on every machine for equal files; see
            `imagetok.data.fingerprint`.
    """

    name: str
    split: str
    units: Units
    fingerprint: str

    def read(self, unit: int, start: int = 0) -> Iterator[tuple[int, Picture | None]]:
        """The rows of a unit.

        Args:
            unit: Its number.
            start: First row; those before it are passed over without decoding.

        Yields:
            The row, and its picture or None. Files that are not on this machine are left where
            they are until `fetch`.

        Raises:
            DataError: The unit's file is missing or damaged.
        """
        with reading(f"{self.describe(unit, start)} and what follows it cannot be read"):
            yield from enumerate(self.units.read(unit, start), start)

    def fetch(self, picture: Picture | None, name: str) -> Picture:
        """A picture with its bytes, where these are not on this machine yet.

        Args:
            picture: What `read` yielded.
            name: What messages call its row.

        Raises:
            DataError: There is no picture, or it cannot be fetched.
        """
        if picture is None:
            raise DataError(f"{name} has no picture: its value is null")
        return with_bytes(picture, name)

    def describe(self, unit: int, row: int) -> str:
        """What messages call a row: its number, file, split and dataset."""
        return f"{self.units.describe(unit, row)} of '{self.name}' ({self.split})"


def open_stream(
    name: str,
    split: str,
    *,
    subset: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    cache_dir: str | Path | None = None,
) -> PictureStream:
    """Open a dataset of images, to be read file by file.

    Args:
        name: As in `open_images`.
        split: A split. Of what is not converted anyway, which are built-in datasets, those written
            by `save_to_disk` and pictures that lie here in files of their own, slices and sums are
            taken too.
        subset: Configuration name of a dataset that has several.
        revision: Commit, branch or tag of a dataset on the Hub.
        image_column: Column of the pictures; None finds the only one with an Image feature.
        cache_dir: Where `datasets` keeps what it draws and downloads.

    Raises:
        DataError: The dataset, the split or the column cannot be used; the message lists those
            that can.
    """
    ref = DatasetRef(name, split, subset, revision, image_column, streaming=True)
    return open_image_stream(ref, cache_dir)


def open_image_stream(ref: DatasetRef, cache_dir: str | Path | None = None) -> PictureStream:
    """Open the dataset of a reference file by file, whether or not it says `streaming`.

    Args:
        ref: Which rows of which dataset; of what is converted otherwise, a whole split.
        cache_dir: Where `datasets` keeps what it draws and downloads.

    Raises:
        DataError: The dataset, the split or the column cannot be used; the message lists those
            that can.
    """
    name, split = ref.name, ref.split
    cache = None if cache_dir is None else str(cache_dir)
    location = None if ref.is_builtin else find_location(ref)
    if location is None or location.is_ready(cache):
        rows = open_rows(ref, cache_dir)
        ready = ReadyRows(rows.dataset.select_columns([rows.image_column]), rows.image_column)
        return PictureStream(name, split, ready, rows.fingerprint)
    files = FileStreams(ref, location, cache)
    if split not in files.splits:
        raise DataError(
            f"'{name}' has no split '{split}' that could be streamed; its splits are: "
            f"{', '.join(files.splits)} (slices and sums of them need data.streaming=false)"
        )
    column = files.find_column(split)
    units = files.units(split, column)
    if not len(units):
        raise DataError(f"split '{split}' of '{name}' has no rows")
    return PictureStream(name, split, units, files.fingerprint(split, column))


class FileStreams:
    """The splits of a dataset of files, as `datasets` streams them.

    Args:
        ref: Which dataset; its split does not matter.
        location: Where it is.
        cache_dir: Where `datasets` keeps what it downloads.

    Attributes:
        splits: Names of the splits.

    Raises:
        DataError: It cannot be read; of every method alike.
    """

    def __init__(self, ref: DatasetRef, location: DatasetLocation, cache_dir: str | None) -> None:
        self._ref, self._location, self._cache_dir = ref, location.pin(cache_dir), cache_dir
        self._builder = self._location.builder(cache_dir)
        self.splits = [str(split) for split in self._builder.config.data_files or ()]
        if not self.splits:
            raise DataError(f"'{ref.name}' has no files to stream; set data.streaming=false")

    def rows(self, split: str) -> IterableDataset:
        """All columns of a split, files in them not decoded."""
        with reading(self._location.failure):
            return undecoded(self._builder.as_streaming_dataset(split))

    def find_column(self, split: str) -> str:
        """The column of the images; see `imagetok.data.rows.find_column`."""
        return find_column(self.rows(split).features or Features(), self._ref)

    def units(self, split: str, column: str) -> Units:
        """The pictures of a split; no other columns are read where files keep them apart."""
        builder = self._builder
        if hasattr(builder.config, "columns"):
            builder = self._location.builder(self._cache_dir, columns=[column])
        with reading(self._location.failure):
            dataset = undecoded(builder.as_streaming_dataset(split).select_columns([column]))
            return stream_units(dataset, column, builder, self._files(split))

    def fingerprint(self, split: str, column: str) -> str:
        """Hash of a split's files; see `imagetok.data.fingerprint`."""
        with reading(self._location.failure):
            return files_fingerprint(self._files(split), self._location.root, column)

    def _files(self, split: str) -> list[str]:
        return [str(file) for file in self._builder.config.data_files[split]]
