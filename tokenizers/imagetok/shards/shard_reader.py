"""`ShardReader`: rows of shards by position, that is by shard and row in it.

Each shard is opened once per call, and only the row groups that hold a wanted row are read, one at
a time. Shards are read as ordinary files rather than mapped to memory: a file that shrinks under a
map would end the process, and decompressing copies the values in any case.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from imagetok.errors import DataError, IdsError, UnreadableFileError
from imagetok.shards.row_order import Numbers
from imagetok.shards.shard_file import JOB_KEY, read_footer
from imagetok.shards.shard_scan import ShardRecord
from imagetok.shards.shard_schema import ShardSchema
from imagetok.shards.token_folder import TokenFolder


class GatheredRows:
    """Rows in the order in which they were asked for.

    Args:
        ids: Array (N, n) in the shards' own dtype; None where rows differ in their number of ids,
            which are then a column of `table`.
        table: The other columns, in an order of their own.
        positions: int64 (N,), the row of `table` that belongs to each row.
    """

    def __init__(
        self, ids: NDArray[np.unsignedinteger] | None, table: pa.Table, positions: Numbers
    ) -> None:
        self._ids, self._table, self._positions = ids, table, positions

    def batch(self, first: int, last: int) -> dict[str, Any]:
        """Rows from `first` up to, but not including, `last`.

        Returns:
            `ids`, int64 tensor (B, n), or a list of tensors (n,) and `grid`, a list of (h, w);
            `row`, int64 tensor (B,); and every other column as a list of Python values.
        """
        table = self._table.take(pa.array(self._positions[first:last]))
        columns = {name: table.column(name) for name in table.column_names}
        batch: dict[str, Any] = {}
        if self._ids is not None:
            batch["ids"] = torch.from_numpy(self._ids[first:last].astype(np.int64))
        else:
            batch["ids"] = _lists_of_ids(columns.pop("ids"))
            sides = (columns.pop(name).to_pylist() for name in ("grid_h", "grid_w"))
            batch["grid"] = list(zip(*sides, strict=True))
        batch["row"] = torch.from_numpy(columns.pop("row").to_numpy().astype(np.int64))
        return batch | {name: column.to_pylist() for name, column in columns.items()}


@dataclass(frozen=True)
class ShardReader:
    """Reads rows of the shards of a dataset.

    Attributes:
        dataset: The dataset.
        columns: Columns to read besides ids and row.
    """

    dataset: TokenFolder
    columns: Sequence[str]

    def gather(self, shards: Numbers, rows: Numbers) -> GatheredRows:
        """Read rows.

        Args:
            shards: int64 (N,), N at least 1, the shard of each row.
            rows: int64 (N,), the position of each row in its shard.

        Raises:
            UnreadableFileError: A shard is missing or damaged.
            DataError: A shard is not the one that the manifest lists.
        """
        ascending = np.lexsort((rows, shards))
        shards, rows = shards[ascending], rows[ascending]
        ids, schema = None, self.dataset.job.schema
        if schema.grid is not None:
            ids = np.empty(
                (len(rows), math.prod(schema.token_shape(schema.grid))), schema.ids_dtype
            )
        tables, done = [], 0
        for shard in np.unique(shards).tolist():
            low, high = np.searchsorted(shards, (shard, shard + 1))
            for table, inside in self._groups(shard, rows[low:high]):
                if ids is not None:
                    flat = table.column("ids").combine_chunks().flatten().to_numpy()
                    asked = ascending[done : done + len(inside)]
                    ids[asked] = flat.reshape(table.num_rows, -1)[inside]
                    table = table.drop_columns("ids")
                whole = len(inside) == table.num_rows
                tables.append(table if whole else table.take(pa.array(inside)))
                done += len(inside)
        positions = np.empty_like(ascending)
        positions[ascending] = np.arange(len(rows))
        return GatheredRows(ids, pa.concat_tables(tables).combine_chunks(), positions)

    def _groups(self, shard: int, rows: Numbers) -> Iterator[tuple[pa.Table, Numbers]]:
        """Row groups of a shard that hold any of the ascending `rows`, and which ones."""
        with self._opened(shard) as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            if sum(sizes) != self.dataset.manifest.shards[shard].rows:
                raise ValueError(f"its row groups have {sum(sizes)} rows")
            bounds = np.searchsorted(rows, [0, *ends])
            for group in np.flatnonzero(np.diff(bounds)).tolist():
                # pyarrow takes a name with a dot for a nested column, and may find more than one.
                table = file.read_row_group(group, columns=self._names, use_threads=False)
                table = table.select(self._names)
                table.validate(full=True)
                if table.num_rows != sizes[group]:
                    raise ValueError(f"row group {group} has {table.num_rows} rows")
                check_ids(table.column("ids"), self.dataset.job.schema)
                start = ends[group] - sizes[group]
                yield table, rows[bounds[group] : bounds[group + 1]] - start

    @property
    def _names(self) -> list[str]:
        wanted = {"ids", "grid_h", "grid_w", "file", "row", *self.columns}
        return [name for name in self.dataset.job.schema.arrow.names if name in wanted]

    @contextmanager
    def _opened(self, shard: int) -> Iterator[pq.ParquetFile]:
        """Open a shard and check that it is the one in the manifest, as far as its footer tells."""
        record = self.dataset.manifest.shards[shard]
        try:
            path = self.dataset.path / record.path
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                self._check(record, file)
                yield file
        except DataError:
            raise
        except FileNotFoundError:
            raise UnreadableFileError(
                f"the shard '{record.path}' is missing in '{self.dataset.path}'"
            ) from None
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UnreadableFileError(
                f"the shard '{record.path}' in '{self.dataset.path}' is damaged: "
                f"{one_line(error)}; `imagetok verify` lists all that is wrong"
            ) from error

    def _check(self, record: ShardRecord, file: pq.ParquetFile) -> None:
        metadata, schema, own = file.metadata, self.dataset.job.schema, self.dataset.manifest.job
        job = read_footer(metadata).get(JOB_KEY)
        if job != own:
            raise DataError(
                f"the shard '{record.path}' was written by the job {job or '(none)'}, not by "
                f"{own}, to which '{self.dataset.path}' belongs"
            )
        if not file.schema_arrow.equals(schema.arrow):
            raise DataError(
                f"the shard '{record.path}' has the columns {describe_columns(file.schema_arrow)}; "
                f"expected {describe_columns(schema.arrow)}"
            )
        if metadata.num_rows != record.rows:
            raise DataError(
                f"the shard '{record.path}' has {metadata.num_rows} rows, the manifest says "
                f"{record.rows}"
            )


def one_line(error: Exception) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split())


def describe_columns(schema: pa.Schema) -> str:
    """Names and types of columns for messages."""
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def check_ids(column: pa.ChunkedArray, schema: ShardSchema) -> None:
    """Check the ids of a column.

    Raises:
        IdsError: Ids are missing or out of range.
    """
    for chunk in column.chunks:
        values = chunk.flatten()
        if chunk.null_count or values.null_count:
            raise IdsError("ids are missing")
        if len(values) % schema.depth:
            raise IdsError(f"{len(values)} ids do not make positions of {schema.depth}")
        schema.check_range(values.to_numpy())


def _lists_of_ids(column: pa.ChunkedArray) -> list[torch.Tensor]:
    arrays = (value.values.to_numpy(zero_copy_only=False) for value in column)
    return [torch.from_numpy(array.astype(np.int64)) for array in arrays]
