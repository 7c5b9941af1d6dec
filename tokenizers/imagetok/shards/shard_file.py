"""`ShardFile`: a shard as a parquet file. Equal rows and footers give equal bytes.

However the rows are handed over, in batches of any size, the same rows make the same row groups. A
group is small enough to be held in memory several times over, and large enough to be read at full
speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from imagetok.files import naming_os_errors
from imagetok.shards.shard_schema import ShardSchema

JOB_KEY, NUMERICS_KEY, PARTS_KEY = "imagetok.job", "imagetok.numerics", "imagetok.parts"
PROFILES_KEY = "imagetok.profiles_ignored"
"""Keys in a shard's footer: the job's fingerprint; the numeric settings as canonical JSON; in the
last part of a unit of several, the number of parts; and, where there are any, the number of images
whose colour profile could not be applied."""

IDS_PATH = "ids.list.element"
"""What parquet calls the numbers in the column of ids."""

MOST_ROWS = 2048
"""Largest number of rows of a row group."""

MOST_BYTES = 2**25
"""Bytes of text, binary values and ids; a row group ends with the row that reaches them."""

ID_BYTES = 64
"""Bytes that an id counts for: writing a row group takes over half of that for each of its ids."""

_PAGE_BYTES = 2**22


def read_footer(metadata: pq.FileMetaData) -> dict[str, str]:
    """The key-value pairs in a shard's footer."""
    pairs = (metadata.metadata or {}).items()
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in pairs}


class ShardFile:
    """A parquet file that is being written, row group by row group.

    Ids are near random, so that a dictionary of them costs more than it saves; split into streams
    of low and high bytes, the zeros above the codebook's bits take no room. Compression works in
    blocks of 128 KiB of one statistic each, which wants long streams: large pages, and row groups
    of 131,072 ids or more.

    Args:
        path: Where to write.
        target: Final path of the file, which error messages name.
        schema: Columns of the file.

    Raises:
        UnwritableFileError: The file cannot be written. All methods but `abandon` may raise it.
    """

    def __init__(self, path: Path, target: Path, schema: ShardSchema) -> None:
        self._target = target
        self._groups = RowGroups()
        with naming_os_errors("write", target):
            # pyarrow does not notice a write that was cut short; a buffered file does.
            self._file = path.open("wb")
        self._writer = pq.ParquetWriter(
            self._file,
            schema.arrow,
            compression="zstd",
            use_dictionary=[name for name in schema.arrow.names if name != "ids"],
            column_encoding={IDS_PATH: "BYTE_STREAM_SPLIT"},
            write_page_checksum=True,
            data_page_size=_PAGE_BYTES,
        )

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self._write(self._groups.add(table))

    def finish(self, footer: Mapping[str, str]) -> None:
        """Write the remaining rows, and a footer with these key-value pairs."""
        self._write(self._groups.rest())
        with naming_os_errors("write", self._target):
            self._writer.add_key_value_metadata(dict(footer))
            self._writer.close()
            self._file.close()

    def abandon(self) -> None:
        """Close a file that will not be finished."""
        for part in (self._writer, self._file):
            with suppress(OSError, pa.ArrowException):  # the disk may be full; nothing is lost
                part.close()

    def _write(self, groups: Iterator[pa.Table]) -> None:
        with naming_os_errors("write", self._target):
            for group in groups:
                self._writer.write_table(group, row_group_size=group.num_rows)


class RowGroups:
    """Collects rows and hands them out in groups."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._rows = self._bytes = 0

    def add(self, table: pa.Table) -> Iterator[pa.Table]:
        """Add rows; yields the groups that are full, each with one chunk per column."""
        sizes = row_bytes(table)
        while table.num_rows:
            full = self._bytes + np.cumsum(sizes) >= MOST_BYTES
            room = min(MOST_ROWS - self._rows, int(full.argmax()) + 1 if full.any() else MOST_ROWS)
            self._tables.append(table.slice(0, room))
            self._rows += min(room, table.num_rows)
            self._bytes += int(sizes[:room].sum())
            table, sizes = table.slice(room), sizes[room:]
            if self._rows == MOST_ROWS or self._bytes >= MOST_BYTES:
                yield from self.rest()

    def rest(self) -> Iterator[pa.Table]:
        """Yield the rows that do not fill a group, if there are any."""
        if self._tables:
            group = pa.concat_tables(self._tables).combine_chunks()
            self._tables, self._rows, self._bytes = [], 0, 0
            yield group


def row_bytes(table: pa.Table) -> NDArray[np.int64]:
    """Bytes of the text and binary values of each row, int64 (N,), also inside lists and structs.

    Each id of the row counts as `ID_BYTES`.
    """
    sizes = np.zeros(table.num_rows, dtype=np.int64)
    if "ids" in table.column_names:
        lengths = pc.list_value_length(table.column("ids"))
        sizes += ID_BYTES * lengths.to_numpy().astype(np.int64)
    for column in table.combine_chunks().columns:
        start = 0
        for chunk in column.chunks:
            sizes[start : start + len(chunk)] += _value_bytes(chunk)
            start += len(chunk)
    return sizes


def _value_bytes(values: pa.Array) -> NDArray[np.int64]:
    kind, types = values.type, pa.types
    if types.is_string(kind) or types.is_binary(kind) or _is_large(kind):
        lengths = pc.fill_null(pc.binary_length(values), 0)
        return np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)
    if types.is_struct(kind):
        fields = (_value_bytes(field) for field in values.flatten())
        return sum(fields, np.zeros(len(values), dtype=np.int64))
    if (types.is_list(kind) or types.is_large_list(kind)) and not types.is_primitive(
        kind.value_type
    ):
        parents = pc.list_parent_indices(values).to_numpy(zero_copy_only=False)
        inner = _value_bytes(values.flatten())
        return np.bincount(parents, weights=inner, minlength=len(values)).astype(np.int64)
    return np.zeros(len(values), dtype=np.int64)


def _is_large(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_string(kind) or pa.types.is_large_binary(kind))
