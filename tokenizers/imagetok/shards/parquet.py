"""A shard as a parquet file: equal rows and footers give equal bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from imagetok.files import naming_os_errors
from imagetok.shards.rowgroups import RowGroups
from imagetok.shards.schema import IDS_PATH, ShardSchema

JOB_KEY, NUMERICS_KEY, PARTS_KEY = "imagetok.job", "imagetok.numerics", "imagetok.parts"
"""Keys in a shard's footer: the job's fingerprint; the numeric settings as canonical JSON; in the
last part of a unit of several, their number."""

_PAGE_BYTES = 2**22


class ShardFile:
    """A parquet file that is being written.

    Ids are near random, so that a dictionary of them costs more than it saves; split into streams
    of low and high bytes, the zeros above the codebook's bits take no room. Compression works in
    blocks of 128 KiB of one statistic each, which wants long streams: large pages, and row groups
    of 131,072 ids or more.

    Args:
        path: Where to write.
        target: What errors call the file.
        schema: Its columns.

    Raises:
        UnwritableFileError: The file cannot be written; so do all methods but `abandon`.
    """

    def __init__(self, path: Path, target: Path, schema: ShardSchema) -> None:
        self._target = target
        self._groups = RowGroups()
        with naming_os_errors("write", target):
            # pyarrow takes no notice of a write that was cut short; a buffered file does.
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
        """Write what is left, and a footer with key-value pairs of the file's own."""
        self._write(self._groups.rest())
        with naming_os_errors("write", self._target):
            self._writer.add_key_value_metadata(dict(footer))
            self._writer.close()
            self._file.close()

    def abandon(self) -> None:
        """Let go of a file that will not be finished."""
        for part in (self._writer, self._file):
            with suppress(OSError, pa.ArrowException):  # the disk may be full: nothing is lost
                part.close()

    def _write(self, groups: Iterator[pa.Table]) -> None:
        with naming_os_errors("write", self._target):
            for group in groups:
                self._writer.write_table(group, row_group_size=group.num_rows)
