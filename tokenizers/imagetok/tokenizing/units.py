"""One unit of work, from its rows to its shard.

Input.read --Loader--> chunks with pixels or reasons --Batcher, Encoder--> ids
    --Emitter: in the order of the rows--> one thread: tables --> UnitWriter
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from imagetok.shards.schema import ShardSchema
from imagetok.tokenizing.encoding import Batch, Batcher, Encoder
from imagetok.tokenizing.inputs import Chunk
from imagetok.tokenizing.loading import Loaded
from imagetok.tokenizing.preparing import Prepared

TABLE_ROWS = 256
"""Rows that are handed to the writer at a time."""

TABLES_AHEAD = 4
"""Tables that wait for the writer."""


class RowWriter(Protocol):
    """What takes the rows of a unit: `imagetok.shards.UnitWriter`."""

    def write(self, table: pa.Table) -> None:
        """Add rows in ascending order."""

    def refuse(self, row: int, key: str | None, reason: str, file: str | None = None) -> None:
        """Report a row that cannot be read."""


class Progress(Protocol):
    """What is told how the work goes on."""

    def advance(self, rows: int, refused: int) -> None:
        """Rows were tokenized, and refused."""


@dataclass
class _Entry:
    """A chunk on its way: ids of its readable rows by their place, and how many are missing."""

    start: int
    kept: pa.Table
    sizes: dict[int, tuple[int, int]]
    missing: int
    ids: dict[int, NDArray[np.int64]] = field(default_factory=dict)


def tokenize_rows(
    loaded: Iterable[Loaded],
    encoder: Encoder,
    schema: ShardSchema,
    file: str | None,
    writer: RowWriter,
    progress: Progress,
) -> None:
    """Encode and write rows.

    Args:
        loaded: The rows in order.
        encoder: Makes the ids.
        schema: Of the shard.
        file: The file that the rows are in; None where they are not known by file.
        writer: Takes them.
        progress: Is told after every batch.

    Raises:
        ImagetokError: Loading, encoding or writing failed.
    """
    batcher = Batcher(encoder)
    with Emitter(schema, file, writer) as emitter:

        def encode(batches: Iterable[Batch]) -> None:
            for batch in batches:
                emitter.fill(batch, encoder(batch.pictures))
                progress.advance(len(batch.places), 0)

        for chunk, outcomes in loaded:
            read: dict[int, Prepared] = {}
            for place, outcome in enumerate(outcomes):
                if isinstance(outcome, Prepared):
                    read[place] = outcome
                else:
                    writer.refuse(chunk.start + place, outcome.key, outcome.reason, file)
            progress.advance(0, len(outcomes) - len(read))
            number = emitter.add(chunk, {place: one.size for place, one in read.items()})
            for place, one in read.items():
                encode(batcher.add((number, place), one.pixels))
        encode(batcher.rest())


class Emitter:
    """Brings ids back into the order of the rows, and hands tables to a writing thread.

    Args:
        schema: Of the shard.
        file: The file that the rows are in; None where they are not known by file.
        writer: Takes the tables.
    """

    def __init__(self, schema: ShardSchema, file: str | None, writer: RowWriter) -> None:
        self._schema, self._file, self._writer = schema, file, writer
        self._entries: deque[_Entry] = deque()
        self._first = 0
        self._ready: list[_Entry] = []
        self._pool = ThreadPoolExecutor(1, "imagetok-write")
        self._writing: deque[Future[None]] = deque()

    def add(self, chunk: Chunk, sizes: dict[int, tuple[int, int]]) -> int:
        """Take a chunk and the sizes of its readable pictures by their place; gives its number."""
        self._entries.append(_Entry(chunk.start, chunk.kept, sizes, len(sizes)))
        self._release()
        return self._first + len(self._entries) - 1

    def fill(self, batch: Batch, ids: NDArray[np.int64]) -> None:
        """Take the ids (B, h, w) of a batch.

        Raises:
            ImagetokError: Rows before could not be written.
        """
        for (number, place), grid in zip(batch.places, _set_apart(ids), strict=True):
            entry = self._entries[number - self._first]
            entry.ids[place] = grid
            entry.missing -= 1
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self._hand_over()
                while self._writing:
                    self._writing.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def _release(self) -> None:
        """Let go of the chunks in front that are complete."""
        while self._entries and not self._entries[0].missing:
            entry = self._entries.popleft()
            self._first += 1
            if entry.ids:
                self._ready.append(entry)
        if sum(len(entry.ids) for entry in self._ready) >= TABLE_ROWS:
            self._hand_over()

    def _hand_over(self) -> None:
        if not self._ready:
            return
        while len(self._writing) >= TABLES_AHEAD:
            self._writing.popleft().result()
        self._writing.append(self._pool.submit(self._write, self._ready))
        self._ready = []

    def _write(self, entries: list[_Entry]) -> None:
        self._writer.write(self._table(entries))

    def _table(self, entries: list[_Entry]) -> pa.Table:
        places = [sorted(entry.ids) for entry in entries]
        pairs = [(entry, place) for entry, of in zip(entries, places, strict=True) for place in of]
        rows = [entry.start + place for entry, place in pairs]
        kept = [entry.kept.take(of) for entry, of in zip(entries, places, strict=True)]
        grids = [entry.ids[place] for entry, place in pairs]
        return self._schema.table(
            grids if self._schema.grid is None else np.stack(grids),
            rows,
            None if self._file is None else [self._file] * len(rows),
            np.array([entry.sizes[place] for entry, place in pairs]),
            pa.concat_tables(kept, promote_options="default"),
        )


def _set_apart(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """A copy in Arrow's memory, for what stays while batches come and go.

    Left among the encoder's buffers, it breaks the heap into pieces too small for the next ones.
    """
    copy = np.frombuffer(pa.allocate_buffer(ids.nbytes), dtype=np.int64).reshape(ids.shape)
    copy[...] = ids
    return copy
