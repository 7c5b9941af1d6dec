"""`ImageStream`: a dataset of images that is read file by file, without converting it first.

    DatasetRef --open_image_stream--> ImageStream: numbered segments of numbered rows

Segments are the pieces whose order is shuffled, each of which is read from its start: files of
rows, or, where there are none or too many of these, at most 1,024 equal runs of rows. A row is
identified by segment * 2**32 + row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset, Features, IterableDataset
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from imagetok.data.data_fingerprint import files_fingerprint
from imagetok.data.dataset_location import DatasetLocation, data_errors, find_location
from imagetok.data.holdout import Side, base_split, divided_names, find_side, member_path
from imagetok.data.image_rows import (
    StoredImage,
    as_stored_image,
    fetch_image,
    find_column,
    open_rows,
    undecoded,
)
from imagetok.data.remote_file import relative_name
from imagetok.data.zip_folder import files_of_split
from imagetok.dataset_ref import DatasetRef
from imagetok.errors import DataError

SEGMENT_SIZE = 2**32
"""Rows that a segment has room for in the numbering of identities."""

MAX_SEGMENTS = 1024
"""Most segments: taking one shard out of n costs `datasets` time and memory that grow with n."""

_BATCH = 16


def locate_row(identity: int) -> tuple[int, int]:
    """The segment of an identity, and the row in it."""
    return divmod(identity, SEGMENT_SIZE)


class Segments(Protocol):
    """Numbered pieces of a dataset."""

    def __len__(self) -> int:
        """Number of segments."""

    def read(self, segment: int, start: int) -> Iterator[tuple[int, StoredImage | None]]:
        """The rows of a segment from `start` on: their numbers, and None where one has no image."""

    def describe(self, segment: int, row: int) -> str:
        """What messages call a row: its number, and its file where a segment is one."""


@dataclass(frozen=True)
class ImageStream:
    """The rows of one split, in segments that are read from their start.

    Attributes:
        name: The name that the dataset was opened by.
        split: The split.
        segments: Where the rows come from.
        fingerprint: Hash of the files, equal on every machine for equal files; see
            `imagetok.data.data_fingerprint`.
    """

    name: str
    split: str
    segments: Segments
    fingerprint: str

    def read(self, segment: int, start: int = 0) -> Iterator[tuple[int, StoredImage | None]]:
        """The rows of a segment.

        Args:
            segment: Its number.
            start: First row; those before it are passed over without decoding.

        Yields:
            The row, and its image or None. Files that are not on this machine are left where they
            are until `fetch`.

        Raises:
            DataError: A file of the segment is missing or damaged.
        """
        with data_errors(f"{self.describe(segment, start)} and what follows it cannot be read"):
            yield from self.segments.read(segment, start)

    def fetch(self, image: StoredImage | None, name: str) -> StoredImage:
        """An image with its bytes, where these are not on this machine yet.

        Args:
            image: What `read` yielded.
            name: What messages call its row.

        Raises:
            DataError: The row has no image, or it cannot be fetched.
        """
        return fetch_image(image, name)

    def describe(self, segment: int, row: int) -> str:
        """What messages call a row: its number, file, split and dataset."""
        return f"{self.segments.describe(segment, row)} of '{self.name}' ({self.split})"


PictureStream = ImageStream
"""The older name of `ImageStream`."""


def open_stream(
    name: str,
    split: str,
    *,
    subset: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    cache_dir: str | Path | None = None,
    **reading: Any,
) -> ImageStream:
    """Open a dataset of images, to be read file by file.

    Args:
        name: As in `open_images`.
        split: A split. Slices and sums are taken only where nothing is converted anyway: built-in
            datasets, those written by `save_to_disk`, and images that are local files of their own.
        subset: Configuration name of a dataset that has several.
        revision: Commit, branch or tag of a dataset on the Hub.
        image_column: Column of the images; None finds the only one with an Image feature.
        cache_dir: Where `datasets` keeps what it draws and downloads.
        reading: As in `open_images`.

    Raises:
        DataError: The dataset, the split or the column cannot be used; the message lists those
            that can.
    """
    ref = DatasetRef(name, split, subset, revision, image_column, **reading)
    return open_image_stream(ref, cache_dir)


def open_image_stream(ref: DatasetRef, cache_dir: str | Path | None = None) -> ImageStream:
    """Open the dataset of a reference file by file, whether or not it says `streaming`.

    Args:
        ref: Which rows of which dataset.
        cache_dir: As in `open_stream`; so are the errors.
    """
    cache = None if cache_dir is None else str(cache_dir)
    location = None if ref.is_builtin else find_location(ref)
    if location is None or location.is_ready(cache):
        rows = open_rows(ref, cache_dir)
        ready = ReadyRows(rows.dataset.select_columns([rows.image_column]), rows.image_column)
        fingerprint = rows.fingerprint
        listing = None if location is None else location.images
        if listing is not None and listing.opened:
            # As version 1 told the data of a run apart that streams archives.
            archives = files_of_split(listing, base_split(ref, ref.split))
            paths = [str(listing.root / archive) for archive in archives]
            fingerprint = files_fingerprint(paths, listing.root, rows.image_column)
        return ImageStream(ref.name, ref.split, ready, fingerprint)
    files = StreamedFiles(ref, location, cache)
    if ref.split not in files.splits:
        raise DataError(
            f"'{ref.name}' has no split '{ref.split}' that could be streamed; its splits are: "
            f"{', '.join(files.splits)} (slices and sums of them need data.streaming=false)"
        )
    column = files.find_column(ref.split)
    segments = files.segments(ref.split, column)
    if not len(segments):
        raise DataError(f"split '{ref.split}' of '{ref.name}' has no rows")
    return ImageStream(ref.name, ref.split, segments, files.fingerprint(ref.split, column))


class StreamedFiles:
    """The splits of a dataset of files, as `datasets` streams them.

    Every method raises a `DataError` where the dataset cannot be read.

    Args:
        ref: Which dataset, and what is held out of it; its split does not matter.
        location: Where it is found.
        cache_dir: Where `datasets` keeps what it downloads.

    Attributes:
        splits: Names of the splits.

    Raises:
        DataError: It has no files, or cannot be read.
    """

    def __init__(self, ref: DatasetRef, location: DatasetLocation, cache_dir: str | None) -> None:
        self._ref, self._location, self._cache_dir = ref, location.pin(cache_dir), cache_dir
        self._builder = self._location.builder(cache_dir)
        splits = [str(split) for split in self._builder.config.data_files or ()]
        if not splits:
            raise DataError(f"'{ref.name}' has no files to stream; set data.streaming=false")
        self.splits = divided_names(ref, splits)

    def features(self, split: str) -> Features:
        """The features of all columns of a split, with files in them not decoded."""
        return self._all_rows(split).features or Features()

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """The rows of a split with all columns, files in them not decoded."""
        rows, side = self._all_rows(split), self._side(split)
        if side is None:
            yield from rows
            return
        column = self.find_column(split)
        for number, file in enumerate(self.file_names(split)):
            for row, values in enumerate(rows.shard(rows.num_shards, number)):
                if side.has(file, row, member_path(file, as_stored_image(values[column]))):
                    yield values

    def find_column(self, split: str) -> str:
        """The column of the images; see `imagetok.data.image_rows.find_column`."""
        return find_column(self.features(split), self._ref)

    def segments(self, split: str, column: str) -> Segments:
        """The images of a split; no other columns are read where files keep them apart."""
        builder = self._builder
        if hasattr(builder.config, "columns"):
            builder = self._location.builder(self._cache_dir, columns=[column])
        with data_errors(self._location.failure):
            stream = builder.as_streaming_dataset(base_split(self._ref, split))
            dataset, files = undecoded(stream.select_columns([column])), self.file_names(split)
            return stream_segments(dataset, column, builder, files, self._side(split))

    def fingerprint(self, split: str, column: str) -> str:
        """Hash of a split's files; see `imagetok.data.data_fingerprint`."""
        with data_errors(self._location.failure):
            return files_fingerprint(self._files(split), self._location.root, column)

    def file_names(self, split: str) -> list[str]:
        """Names of a split's files, by which messages and identities call them."""
        return [relative_name(file, self._location.root) for file in self._files(split)]

    def _all_rows(self, split: str) -> IterableDataset:
        with data_errors(self._location.failure):
            return undecoded(self._builder.as_streaming_dataset(base_split(self._ref, split)))

    def _side(self, split: str) -> Side | None:
        return find_side(replace(self._ref, split=split))

    def _files(self, split: str) -> list[str]:
        return [str(file) for file in self._builder.config.data_files[base_split(self._ref, split)]]


def stream_segments(
    dataset: IterableDataset,
    column: str,
    builder: object,
    files: Sequence[str],
    side: Side | None = None,
) -> Segments:
    """The segments of a dataset that `datasets` streams.

    Args:
        dataset: The column of the images alone, not decoded.
        column: Its name.
        builder: What streams it.
        files: Its files, by the names that rows are identified by.
        side: The side of a holdout that is meant; None takes all rows.

    Raises:
        DataError: There is a holdout, and files are not what is read in sequence.
    """
    if isinstance(builder, ImageFolder):
        # One shard, however many images; but its rows are names of files, quickly listed.
        shard = StreamedShards(dataset, column, ())
        rows = chain.from_iterable(shard.read(segment, 0) for segment in range(len(shard)))
        return ImageFiles([None if value is None else value["path"] for _, value in rows])
    named = files if len(files) == dataset.num_shards else ()
    if side is not None and not named:
        raise DataError(
            f"it is streamed in {dataset.num_shards} pieces of {len(files)} files, so that rows "
            "have no identities to hold them out by; leave streaming or holdout out"
        )
    return StreamedShards(dataset, column, named, side)


@dataclass(frozen=True)
class StreamedShards:
    """Shards of a dataset that `datasets` streams.

    Attributes:
        dataset: The column of the images alone, not decoded.
        column: Its name.
        files: Its files; empty where they are not its shards.
        side: The side of a holdout that is read; None reads all rows.
    """

    dataset: IterableDataset
    column: str
    files: Sequence[str]
    side: Side | None = None

    def __len__(self) -> int:
        return min(MAX_SEGMENTS, int(self.dataset.num_shards))

    def read(self, segment: int, start: int) -> Iterator[tuple[int, StoredImage | None]]:
        """See `Segments`."""
        if self.side is not None:
            return self._held_apart(segment, start, self.side)
        images = self._images(len(self), segment)
        return enumerate(islice(images, start, None), start)

    def _held_apart(
        self, segment: int, start: int, side: Side
    ) -> Iterator[tuple[int, StoredImage | None]]:
        """The rows of one side of a holdout, which are told by the files they are in."""
        before = 0
        for number in _equal_run(segment, len(self), len(self.files)):
            file, row = self.files[number], -1
            for row, image in enumerate(self._images(len(self.files), number)):
                if before + row >= start and side.has(file, row, member_path(file, image)):
                    yield before + row, image
            before += row + 1

    def _images(self, count: int, number: int) -> Iterator[StoredImage | None]:
        """All images of one of `count` pieces of the dataset."""
        shard = self.dataset.shard(count, number)
        # In a worker of torch's DataLoader, iterating over the dataset itself would leave out what
        # it takes for the share of the other workers; its batches are all of them.
        batches = (batch[self.column] for batch in shard.iter(batch_size=_BATCH))
        return map(as_stored_image, chain.from_iterable(batches))

    def describe(self, segment: int, row: int) -> str:
        """See `Segments`."""
        if len(self.files) == len(self):
            return f"row {row} of file '{self.files[segment].rpartition('/')[2]}'"
        return f"row {row} of part {segment + 1} of {len(self)}"


@dataclass(frozen=True)
class ImageFiles:
    """Runs of images that are files of their own.

    Attributes:
        paths: Their paths, in order; None where a row has no image.
    """

    paths: Sequence[str | None]

    def __len__(self) -> int:
        return min(MAX_SEGMENTS, len(self.paths))

    def read(self, segment: int, start: int) -> Iterator[tuple[int, StoredImage | None]]:
        """See `Segments`."""
        run = _equal_run(segment, len(self), len(self.paths))
        paths = (self.paths[number] for number in run[start:])
        images = (None if path is None else {"bytes": None, "path": path} for path in paths)
        return enumerate(images, start)

    def describe(self, segment: int, row: int) -> str:
        """See `Segments`."""
        return f"row {_equal_run(segment, len(self), len(self.paths)).start + row}"


@dataclass(frozen=True)
class ReadyRows:
    """Runs of rows of a map-style dataset that needs no conversion.

    Attributes:
        dataset: The column of the images alone, not decoded.
        column: Its name.
    """

    dataset: Dataset
    column: str

    def __len__(self) -> int:
        return min(MAX_SEGMENTS, len(self.dataset))

    def read(self, segment: int, start: int) -> Iterator[tuple[int, StoredImage | None]]:
        """See `Segments`."""
        run = _equal_run(segment, len(self), len(self.dataset))
        images = (as_stored_image(self.dataset[number][self.column]) for number in run[start:])
        return enumerate(images, start)

    def describe(self, segment: int, row: int) -> str:
        """See `Segments`."""
        return f"row {_equal_run(segment, len(self), len(self.dataset)).start + row}"


def _equal_run(number: int, count: int, length: int) -> range:
    """One of the `count` runs that make up a range; their lengths differ by 1 at most."""
    return range(length * number // count, length * (number + 1) // count)
