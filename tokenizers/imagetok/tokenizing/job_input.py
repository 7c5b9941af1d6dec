"""The rows of a job, in units of work that any process can read on its own.

    dataset, split --open_input--> JobInput: numbered units --read--> chunks of consecutive rows

There are two kinds. `RowInput` divides a map-style dataset into ranges of rows, which are known by
their number in it. `FileInput` reads files in sequence: each file is a unit, and rows are known by
file and number in that file. Images are not decoded, and kept columns stay as Arrow holds them.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from datasets import ArrowBasedBuilder, DatasetBuilder, Features, IterableDataset, Value

from imagetok.data import DatasetRef, ImageRows, open_rows
from imagetok.data.data_fingerprint import files_fingerprint
from imagetok.data.dataset_location import DatasetLocation, data_errors, find_location
from imagetok.data.holdout import Side, base_split, divided_names, find_side, member_path
from imagetok.data.image_rows import as_stored_image, find_column, undecoded
from imagetok.data.remote_file import relative_name
from imagetok.errors import DataError
from imagetok.tokenizing.image_preparation import ImageCell

FILE_COLUMN = "file"
"""Column of the names of image files, relative to the dataset, which can be kept of every input."""

ARCHIVE_COLUMN = "__url__"
"""Column of the paths of the archives that samples of tar archives come from."""

CHUNK = 8
"""Rows that are read and decoded at a time; no result depends on it."""

HASHED_ROWS = 1000
"""Rows that are hashed at a time; fingerprints depend on it."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a unit, images not decoded.

    Attributes:
        start: Number of the first row, in the dataset or in its file.
        images: What the image column holds; None where it is null.
        kept: The kept columns of the same rows.
    """

    start: int
    images: list[ImageCell | None]
    kept: pa.Table


@dataclass(frozen=True, kw_only=True)
class JobInput(ABC):
    """A split, divided into units of work.

    Attributes:
        name: What messages call the dataset.
        image_column: Column of the images.
        kept: Features of the kept columns, in the order asked for.
        fingerprint: Hash of the content at the time the input was opened.
        root: Folder that the paths of images are shown relative to; None where there is none.
        num_rows: Rows of the split, whatever the limit; None where only reading tells.
        revision: Commit of a dataset on the Hub; None where it has none or it is not known.
        files: Names of the files that are the units; empty where units are ranges of rows.
        sizes: Sizes of the files in bytes; None where unknown.
        names_files: Whether the kept column `FILE_COLUMN` is not one of the input's, but is made of
            the paths of the images.
        archive_column: Column of the archives that these paths lead into; None where they do not
            need it.
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
    names_files: bool = False
    archive_column: str | None = None

    @property
    @abstractmethod
    def num_units(self) -> int:
        """Number of units."""

    @abstractmethod
    def read(self, unit: int, start: int = 0) -> Iterator[Chunk]:
        """The rows of a unit, beginning with its row number `start`.

        Raises:
            DataError: A file is missing or damaged.
        """

    @abstractmethod
    def fingerprint_now(self) -> str:
        """Hash of the content at the time of the call."""

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        kept = [name for name in self.kept if name != FILE_COLUMN or not self.names_files]
        archive = [self.archive_column] if self.archive_column and self.names_files else []
        return list(dict.fromkeys([self.image_column, *kept, *archive]))

    def chunk(self, start: int, table: pa.Table) -> Chunk:
        """A table of consecutive rows as a chunk.

        Args:
            start: Number of the first row.
            table: The rows, with at least `columns`.
        """
        images = [as_stored_image(value) for value in table.column(self.image_column).to_pylist()]
        if self.names_files:
            paths = [None if image is None else image["path"] for image in images]
            names = list(map(self.file_name, paths))
            if self.archive_column is not None:
                archives = table.column(self.archive_column).to_pylist()
                names = [
                    None if path is None else f"{relative_name(archive, self.root)}/{path}"
                    for archive, path in zip(archives, paths, strict=True)
                ]
            table = table.append_column(FILE_COLUMN, pa.array(names, pa.string()))
        return Chunk(start, images, table.select(list(self.kept)))

    def file_name(self, path: str | None) -> str | None:
        """The path of an image as `FILE_COLUMN` has it; None where there is none."""
        if path is None or not (os.path.isabs(path) or "://" in path):
            return path
        return relative_name(path, self.root)


def open_input(
    dataset: DatasetRef,
    *,
    keep: Sequence[str] = (),
    limit: int | None = None,
    rows_per_unit: int,
    cache_dir: str | None = None,
) -> JobInput:
    """Open the rows to tokenize; nothing is decoded.

    A dataset on the Hub is read at one commit throughout, which the input names.

    Args:
        dataset: The rows to open.
        keep: Columns to carry along.
        limit: Most rows to take; None takes all.
        rows_per_unit: Rows of a unit that is not a file.
        cache_dir: Where `datasets` keeps what it draws, downloads and converts.

    Raises:
        DataError: The dataset, the split or a column cannot be used.
    """
    location = None if dataset.is_builtin else find_location(dataset).pin(cache_dir)
    if dataset.streaming and location is not None and location.storage(cache_dir) == "rows":
        files = _open_files(dataset, location, keep, cache_dir)
        return files if limit is None else files.first_rows(limit)
    revision = dataset.revision if location is None else location.revision
    rows = open_rows(replace(dataset, revision=revision), cache_dir)
    features = rows.dataset.features
    opened = RowInput(
        name=dataset.name,
        image_column=rows.image_column,
        kept=_kept_features(features, dataset.name, rows.image_column, keep, location is not None),
        names_files=FILE_COLUMN in keep and FILE_COLUMN not in features,
        archive_column=ARCHIVE_COLUMN if location is not None and location.has_tars else None,
        fingerprint="",
        root=None if location is None or location.root is None else location.root.resolve(),
        num_rows=len(rows),
        revision=revision,
        rows=rows,
        rows_per_unit=rows_per_unit,
        limit=limit,
    )
    return replace(opened, fingerprint=opened.with_uncounted(rows.fingerprint))


@dataclass(frozen=True, kw_only=True)
class RowInput(JobInput):
    """Ranges of rows of a map-style dataset.

    Attributes:
        rows: The dataset.
        rows_per_unit: Rows of a unit; the last one may have fewer.
        limit: Most rows to take; None takes all.
    """

    rows: ImageRows
    rows_per_unit: int
    limit: int | None

    @property
    def num_units(self) -> int:
        """See `JobInput`."""
        return -(-self._num_taken // self.rows_per_unit)

    @property
    def _num_taken(self) -> int:
        return min(len(self.rows), self.limit or len(self.rows))

    def read(self, unit: int, start: int = 0) -> Iterator[Chunk]:
        """See `JobInput`."""
        table = self.rows.dataset.select_columns(self.columns).with_format("arrow")
        first = unit * self.rows_per_unit
        end = min(first + self.rows_per_unit, self._num_taken)
        for begin in range(first + start, end, CHUNK):
            with data_errors(f"{self.rows.describe(begin)} and what follows it cannot be read"):
                chunk = self.chunk(begin, table[begin : min(begin + CHUNK, end)])
            yield chunk

    def fingerprint_now(self) -> str:
        """See `JobInput`."""
        return self.with_uncounted(self.rows.fingerprint_now())

    def with_uncounted(self, fingerprint: str) -> str:
        """The fingerprint of the rows, and of those kept columns that it does not count itself."""
        counted = self.rows.counted.features
        columns = [name for name in self.kept if self.kept[name] != counted.get(name)]
        columns = [name for name in columns if not hasattr(self.kept[name], "decode")]
        if not columns:
            return fingerprint
        digest = hashlib.sha256(repr((fingerprint, self.kept.to_dict())).encode())
        table = self.rows.dataset.select_columns(self.columns).with_format("arrow")
        for start in range(0, len(self.rows), HASHED_ROWS):
            chunk = self.chunk(start, table[start : start + HASHED_ROWS])
            digest.update(repr(chunk.kept.select(columns).to_pydict()).encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class FileInput(JobInput):
    """Files of a split, each read in sequence.

    Attributes:
        location: Where the files lie.
        split: The split of the dataset itself.
        side: The side of a holdout that is read; None reads all rows.
        counts: Rows to take of each file; None takes all.
        cache_dir: Where `datasets` keeps what it downloads.
    """

    location: DatasetLocation
    split: str
    side: Side | None
    counts: Sequence[int | None]
    cache_dir: str | None

    @property
    def num_units(self) -> int:
        """See `JobInput`."""
        return len(self.counts)

    def read(self, unit: int, start: int = 0) -> Iterator[Chunk]:
        """See `JobInput`."""
        with data_errors(
            f"file '{self.files[unit]}' of '{self.name}' ({self.split}) cannot be read"
        ):
            tables = self._tables(unit)
            if self.side is not None:
                tables = self._held_apart(tables, self.files[unit], self.side)
            yield from self._cut(tables, start, self.counts[unit])

    def fingerprint_now(self) -> str:
        """See `JobInput`."""
        builder = self.location.builder(self.cache_dir)
        return _files_fingerprint(
            self.location, _split_files(builder, self.split), self.image_column
        )

    def first_rows(self, limit: int) -> FileInput:
        """The same input with the first `limit` rows alone.

        The first files are read for it once, without decoding, to learn how many rows they have.
        """
        counts: list[int | None] = []
        left = limit
        while left > 0 and len(counts) < self.num_units:
            found = 0
            for chunk in self.read(len(counts)):
                found += len(chunk.images)
                if found >= left:
                    break
            counts.append(min(found, left))
            left -= min(found, left)
        taken = len(counts)
        return replace(self, files=self.files[:taken], sizes=self.sizes[:taken], counts=counts)

    def _cut(self, tables: Iterator[pa.Table], start: int, end: int | None) -> Iterator[Chunk]:
        """Chunks of the rows `start` to `end` of a file."""
        number = 0
        for table in tables:
            if end is not None and number >= end:
                return
            first, last = max(0, start - number), len(table)
            last = last if end is None else min(last, end - number)
            if first < last:
                yield self.chunk(number + first, table.slice(first, last - first))
            number += len(table)

    def _held_apart(self, tables: Iterator[pa.Table], file: str, side: Side) -> Iterator[pa.Table]:
        """The rows of one side of a holdout, which are numbered as if there were no others."""
        start = 0
        for table in tables:
            images = map(as_stored_image, table.column(self.image_column).to_pylist())
            kept = [
                side.has(file, row, member_path(file, image))
                for row, image in enumerate(images, start)
            ]
            yield table.filter(pa.array(kept, pa.bool_()))
            start += len(table)

    @cached_property
    def _stream(self) -> tuple[DatasetBuilder, IterableDataset]:
        builder = self.location.builder(self.cache_dir)
        if hasattr(builder.config, "columns"):
            builder = self.location.builder(self.cache_dir, columns=self.columns)
        rows = undecoded(builder.as_streaming_dataset(self.split)).select_columns(self.columns)
        return builder, rows

    def _tables(self, unit: int) -> Iterator[pa.Table]:
        """All rows of a file, `CHUNK` at a time."""
        builder, rows = self._stream
        rows = rows.shard(int(rows.num_shards), unit)
        if isinstance(builder, ArrowBasedBuilder):
            yield from rows.with_format("arrow").iter(batch_size=CHUNK)
            return
        features = Features({column: rows.features[column] for column in self.columns})
        for batch in rows.iter(batch_size=CHUNK):
            yield pa.table(features.encode_batch(batch), schema=features.arrow_schema)


def _open_files(
    dataset: DatasetRef, location: DatasetLocation, keep: Sequence[str], cache_dir: str | None
) -> FileInput:
    """Open a split whose files are read in sequence, at a location that is pinned.

    Raises:
        DataError: The split, a column or the files cannot be used.
    """
    name = dataset.name
    builder = location.builder(cache_dir)
    splits = divided_names(dataset, [str(known) for known in builder.config.data_files or ()])
    if dataset.split not in splits:
        raise DataError(
            f"'{name}' has no split '{dataset.split}' that could be streamed; its splits are: "
            f"{', '.join(splits) or '(none)'} (slices and sums of them need streaming left out)"
        )
    split = base_split(dataset, dataset.split)
    with data_errors(location.failure):
        rows: IterableDataset = undecoded(builder.as_streaming_dataset(split))
    features, files = rows.features or Features(), _split_files(builder, split)
    column = find_column(features, dataset)
    if FILE_COLUMN not in features:
        # Rows that are known by their files have that column anyway.
        keep = [name for name in keep if name != FILE_COLUMN]
    if location.has_tars and keep:
        # Types of kept columns are those of all samples, which are looked through for them alone.
        known = [name for name in keep if name in features and name != column]
        with data_errors(location.failure):
            chosen = location.builder(cache_dir, columns=[column, *dict.fromkeys(known)])
            features = undecoded(chosen.as_streaming_dataset(split)).features
    if len(files) != rows.num_shards:
        raise DataError(
            f"'{name}' has {len(files)} files and is streamed in {rows.num_shards} pieces; leave "
            "streaming out"
        )
    return FileInput(
        name=name,
        image_column=column,
        kept=_kept_features(features, name, column, keep),
        fingerprint=_files_fingerprint(location, files, column),
        root=location.root,
        num_rows=None,
        revision=location.revision,
        files=[relative_name(file, location.root) for file in files],
        sizes=[None if "://" in file else os.path.getsize(file) for file in files],
        location=location,
        split=split,
        side=find_side(dataset),
        counts=[None] * len(files),
        cache_dir=cache_dir,
    )


def _split_files(builder: DatasetBuilder, split: str) -> list[str]:
    """Paths or addresses of a split's files."""
    return [str(file) for file in builder.config.data_files[split]]


def _files_fingerprint(location: DatasetLocation, files: list[str], column: str) -> str:
    with data_errors(location.failure):
        return files_fingerprint(files, location.root, column)


def _kept_features(
    features: Features,
    name: str,
    image_column: str,
    keep: Sequence[str],
    has_files: bool = True,
) -> Features:
    """Features of the columns to keep, as the input has them.

    Args:
        features: Features of all columns, with files in them left undecoded.
        name: What messages call the dataset.
        image_column: Column of the images, which cannot be kept.
        keep: Names of columns.
        has_files: Whether images come from files, so that `FILE_COLUMN` can be kept.

    Raises:
        DataError: A column does not exist, is named twice, or is the image column.
    """
    listing = ", ".join(column for column in features if column != image_column) or "(none)"
    for number, column in enumerate(keep):
        if column == image_column:
            raise DataError(
                f"'{column}' is the image column of '{name}', whose images become ids; columns "
                f"that can be kept: {listing}"
            )
        if column not in features and not (has_files and column == FILE_COLUMN):
            raise DataError(f"'{name}' has no column '{column}' to keep; it has: {listing}")
        if column in keep[:number]:
            raise DataError(f"the column '{column}' is to be kept twice; name it once")
    chosen = {column: features.get(column, Value("string")) for column in keep}
    return Features(
        {
            # Reading leaves files undecoded; whoever loads the shards decodes them again.
            column: replace(feature, decode=True) if hasattr(feature, "decode") else feature
            for column, feature in chosen.items()
        }
    )
