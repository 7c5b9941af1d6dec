"""Complete tokenized datasets of a few rows; row n has the ids of `tiny_jobs.table_of`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tiny_jobs import do_job, streamed_job, tiny_job

from imagetok.shards import finalize


def write_tokens(
    folder: Path,
    num_rows: int = 50,
    rows_per_shard: int = 8,
    broken: Sequence[int] = (),
    **job: Any,
) -> Path:
    """A map-style dataset."""
    units = -(-num_rows // rows_per_shard)
    sizes = {"units__rows_per_shard": rows_per_shard, "units__count": units}
    do_job(folder, tiny_job(input__num_rows=num_rows, **sizes, **job), broken=broken)
    finalize(folder)
    return folder


def write_streamed_tokens(folder: Path, num_files: int = 3, broken: Sequence[int] = ()) -> Path:
    """A streamed dataset of files of 10 rows each, in parts of 4."""
    do_job(folder, streamed_job(num_files), broken=broken)
    finalize(folder)
    return folder


def ids_of(row: int) -> list[int]:
    """The ids of a row on the grid 2 x 3."""
    return [(row * 31 + place) % 512 for place in range(6)]


def rewrite(path: Path, change: Any) -> None:
    """Replace the table of a shard by `change(table)`; its footer stays as it was."""
    table = pq.read_table(path)
    metadata = pq.read_metadata(path).metadata
    pq.write_table(change(table).replace_schema_metadata(metadata), path)
