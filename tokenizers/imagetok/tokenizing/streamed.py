"""`FilesInput`: a dataset whose files are read in sequence, each of them a unit of work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
from datasets import ArrowBasedBuilder, DatasetBuilder, Features, IterableDataset

from imagetok.data.fingerprint import files_fingerprint
from imagetok.data.rows import find_column, undecoded
from imagetok.data.sources import Place, reading
from imagetok.errors import DataError
from imagetok.tokenizing.inputs import CHUNK, Chunk, Input, choose_kept, make_chunk
from imagetok.tokenizing.preparing import relative_name


@dataclass(frozen=True, kw_only=True)
class FilesInput(Input):
    """Files of a split.

    Attributes:
        place: Where the files lie.
        split: The split.
        counts: Rows that are taken of each file; None takes all.
        cache_dir: Where `datasets` keeps what it downloads.
    """

    place: Place
    split: str
    counts: Sequence[int | None]
    cache_dir: str | None

    @property
    def num_units(self) -> int:
        """See `Input`."""
        return len(self.counts)

    def read(self, unit: int, start: int = 0) -> Iterator[Chunk]:
        """See `Input`."""
        what = f"file '{self.files[unit]}' of '{self.name}' ({self.split}) cannot be read"
        with reading(what):
            yield from self._cut(self._tables(unit), start, self.counts[unit])

    def fingerprint_now(self) -> str:
        """See `Input`."""
        builder = self.place.builder(self.cache_dir)
        return _fingerprint(self.place, files_of(builder, self.split), self.image_column)

    def _cut(self, tables: Iterator[pa.Table], start: int, end: int | None) -> Iterator[Chunk]:
        place = 0
        for table in tables:
            if end is not None and place >= end:
                return
            first, last = max(0, start - place), len(table)
            last = last if end is None else min(last, end - place)
            if first < last:
                part = table.slice(first, last - first)
                yield make_chunk(place + first, part, self.image_column, self.kept)
            place += len(table)

    def _tables(self, unit: int) -> Iterator[pa.Table]:
        """All rows of a file, `CHUNK` at a time."""
        columns = list(dict.fromkeys([self.image_column, *self.kept]))
        builder = self.place.builder(self.cache_dir)
        if hasattr(builder.config, "columns"):
            builder = self.place.builder(self.cache_dir, columns=columns)
        rows = undecoded(builder.as_streaming_dataset(self.split)).select_columns(columns)
        rows = rows.shard(int(rows.num_shards), unit)
        if isinstance(builder, ArrowBasedBuilder):
            yield from rows.with_format("arrow").iter(batch_size=CHUNK)
            return
        features = Features({column: rows.features[column] for column in columns})
        for batch in rows.iter(batch_size=CHUNK):
            yield pa.table(features.encode_batch(batch), schema=features.arrow_schema)


def open_files(
    name: str,
    place: Place,
    split: str,
    *,
    image_column: str | None,
    keep: Sequence[str],
    limit: int | None,
    cache_dir: str | None,
) -> FilesInput:
    """Open a split of a dataset of files, which lie at a place that is pinned.

    With a limit the first files are read once beforehand, without decoding, to learn how many rows
    of which file are taken.

    Raises:
        DataError: The split, a column or the files cannot be used.
    """
    builder = place.builder(cache_dir)
    splits = [str(known) for known in builder.config.data_files or ()]
    if split not in splits:
        raise DataError(
            f"'{name}' has no split '{split}' that could be streamed; its splits are: "
            f"{', '.join(splits) or '(none)'} (slices and sums of them need streaming left out)"
        )
    with reading(place.failure):
        rows: IterableDataset = undecoded(builder.as_streaming_dataset(split))
    features, files = rows.features or Features(), files_of(builder, split)
    column = find_column(features, name, image_column)
    if len(files) != rows.num_shards:
        raise DataError(
            f"'{name}' has {len(files)} files and is streamed in {rows.num_shards} pieces; leave "
            "streaming out"
        )
    whole = FilesInput(
        name=name,
        image_column=column,
        kept=choose_kept(features, name, column, keep),
        fingerprint=_fingerprint(place, files, column),
        root=place.root,
        num_rows=None,
        revision=place.revision,
        files=[relative_name(file, place.root) for file in files],
        sizes=[None if "://" in file else os.path.getsize(file) for file in files],
        place=place,
        split=split,
        counts=[None] * len(files),
        cache_dir=cache_dir,
    )
    return whole if limit is None else _limited(whole, limit)


def files_of(builder: DatasetBuilder, split: str) -> list[str]:
    """Paths or addresses of a split's files."""
    return [str(file) for file in builder.config.data_files[split]]


def _fingerprint(place: Place, files: list[str], column: str) -> str:
    with reading(place.failure):
        return files_fingerprint(files, place.root, column)


def _limited(whole: FilesInput, limit: int) -> FilesInput:
    counts: list[int | None] = []
    left = limit
    while left > 0 and len(counts) < whole.num_units:
        found = 0
        for chunk in whole.read(len(counts)):
            found += len(chunk.pictures)
            if found >= left:
                break
        counts.append(min(found, left))
        left -= min(found, left)
    taken = len(counts)
    return replace(whole, files=whole.files[:taken], sizes=whole.sizes[:taken], counts=counts)
