"""Row groups of a shard: where they end depends on the rows alone.

However the rows of a shard are handed over, in batches of any size, the same rows make the same
groups, hence the same bytes. A group is small enough to be held in memory several times over, and
large enough to be read at full speed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MOST_ROWS = 2048
MOST_BYTES = 2**25
"""Of text, binary values and ids; a row group ends with the row that reaches it."""

ID_BYTES = 64
"""What an id counts for: writing a row group takes more than half of that for each of its ids."""


class RowGroups:
    """Collects rows and gives them out in groups."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._rows = self._bytes = 0

    def add(self, table: pa.Table) -> Iterator[pa.Table]:
        """Add rows; yields the groups that are full, each in one chunk a column."""
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
        """Yields the rows that fill no group, if there are any."""
        if self._tables:
            group = pa.concat_tables(self._tables).combine_chunks()
            self._tables, self._rows, self._bytes = [], 0, 0
            yield group


def row_bytes(table: pa.Table) -> NDArray[np.int64]:
    """Bytes of the text and binary values of each row, those inside lists and structs included.

    Each of the row's ids counts as `ID_BYTES`.
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
