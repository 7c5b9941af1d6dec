"""One unit of work, from its rows to its shard.

    JobInput.read --ChunkLoader--> chunks with pixels or reasons --Batcher, BatchEncoder--> ids
        --Emitter--> tables in the order of the rows --writing thread--> UnitWriter

Batches mix the rows of several chunks, and images of several shapes come back out of order.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from imagetok.shards.shard_schema import ShardSchema
from imagetok.tokenizing.batch_encoder import (
    Batch,
    BatchEncoder,
    Batcher,
    LargeImageError,
    RowIndex,
)
from imagetok.tokenizing.chunk_loader import Loaded
from imagetok.tokenizing.image_preparation import Outcome, Prepared
from imagetok.tokenizing.job_input import Chunk

logger = logging.getLogger(__name__)

TABLE_ROWS = 256
"""Rows that are handed to the writer at a time."""

TABLES_AHEAD = 4
"""Tables that wait for the writer."""


class RowWriter(Protocol):
    """What takes the rows of a unit, as `imagetok.shards.UnitWriter` does."""

    def write(self, table: pa.Table) -> None:
        """Add rows in ascending order."""

    def refuse(self, row: int, key: str | None, reason: str, file: str | None = None) -> None:
        """Report a row that cannot be read."""

    def ignore_profile(self, row: int) -> None:
        """Count an image whose colour profile could not be applied."""


class Progress(Protocol):
    """What is informed about the progress of the work."""

    def advance(self, rows: int, refused: int) -> None:
        """Add to the numbers of rows that were tokenized and refused."""


def tokenize_rows(
    loaded: Iterable[Loaded],
    encoder: BatchEncoder,
    schema: ShardSchema,
    file: str | None,
    writer: RowWriter,
    progress: Progress,
) -> None:
    """Encode and write the rows of a unit.

    Args:
        loaded: The rows in order.
        encoder: Makes the ids.
        schema: Columns of the shard.
        file: The file that the rows are in; None where rows are not known by file.
        writer: Takes the rows.
        progress: Is informed after every batch.

    Raises:
        ImagetokError: Loading, encoding or writing failed.
    """
    with Emitter(schema, file, writer) as emitter:
        unit = _Unit(encoder, emitter, writer, progress, file, Batcher(encoder))
        for chunk, outcomes in loaded:
            unit.take(chunk, outcomes)
        unit.encode(unit.batcher.rest())


@dataclass
class _Unit:
    """What `tokenize_rows` passes rows to.

    Attributes:
        batch_encoder: Makes the ids.
        emitter: Takes the ids.
        writer: Takes the rows that have none.
        progress: Is informed.
        file: The file that the rows are in; None where rows are not known by file.
        batcher: Holds the images that wait for others of their shape.
        large: Names of those among them that may be too large for the memory.
    """

    batch_encoder: BatchEncoder
    emitter: Emitter
    writer: RowWriter
    progress: Progress
    file: str | None
    batcher: Batcher
    large: dict[RowIndex, str | None] = field(default_factory=dict)

    def take(self, chunk: Chunk, outcomes: Sequence[Outcome]) -> None:
        """Refuse the rows of a chunk that have no pixels, and encode the batches that are due."""
        prepared: dict[int, Prepared] = {}
        for place, outcome in enumerate(outcomes):
            if isinstance(outcome, Prepared):
                prepared[place] = outcome
                if outcome.ignores_profile:
                    self.writer.ignore_profile(chunk.start + place)
            else:
                self.writer.refuse(chunk.start + place, outcome.key, outcome.reason, self.file)
        self.progress.advance(0, len(outcomes) - len(prepared))
        number = self.emitter.add(chunk, {place: one.size for place, one in prepared.items()})
        for place, one in prepared.items():
            if self.batch_encoder.is_large(one.pixels.shape[1:]):
                self.large[number, place] = one.key
            self.encode(self.batcher.add((number, place), one.pixels))

    def encode(self, batches: Iterable[Batch]) -> None:
        """Hand over the ids of batches, but refuse an image that the memory is too small for."""
        for batch in batches:
            try:
                ids = self.batch_encoder(batch.images)
            except LargeImageError as error:
                self._refuse(batch.rows[0], str(error))
            else:
                self.emitter.fill(batch, ids)
                self.progress.advance(len(batch.rows), 0)

    def _refuse(self, index: RowIndex, reason: str) -> None:
        row, key = self.emitter.drop(index), self.large.pop(index)
        self.writer.refuse(row, key, reason, self.file)
        self.progress.advance(0, 1)
        logger.warning(
            "warning: row %d%s is refused: %s; --max-pixels refuses such images before they are "
            "read, on every machine alike",
            row,
            f", '{key}'" if key else "",
            reason,
        )


@dataclass
class _PendingChunk:
    """A chunk some of whose ids are missing.

    Attributes:
        start: Number of its first row.
        kept: The kept columns of all its rows.
        sizes: (height, width) of each readable image, by place in the chunk.
        missing: Readable images without ids.
        ids: The ids that are there, by place in the chunk.
    """

    start: int
    kept: pa.Table
    sizes: dict[int, tuple[int, int]]
    missing: int
    ids: dict[int, NDArray[np.int64]] = field(default_factory=dict)


class Emitter:
    """Brings ids back into the order of the rows, and hands tables to a writing thread.

    Args:
        schema: Columns of the shard.
        file: The file that the rows are in; None where rows are not known by file.
        writer: Takes the tables.
    """

    def __init__(self, schema: ShardSchema, file: str | None, writer: RowWriter) -> None:
        self._schema, self._file, self._writer = schema, file, writer
        self._pending: deque[_PendingChunk] = deque()
        self._first = 0
        self._complete: list[_PendingChunk] = []
        self._pool = ThreadPoolExecutor(1, "imagetok-write")
        self._writing: deque[Future[None]] = deque()

    def add(self, chunk: Chunk, sizes: dict[int, tuple[int, int]]) -> int:
        """Take a chunk.

        Args:
            chunk: The chunk.
            sizes: (height, width) of its readable images, by place in the chunk.

        Returns:
            The number by which `fill` knows the chunk.
        """
        self._pending.append(_PendingChunk(chunk.start, chunk.kept, sizes, len(sizes)))
        self._release()
        return self._first + len(self._pending) - 1

    def fill(self, batch: Batch, ids: NDArray[np.int64]) -> None:
        """Take the ids (B, ...) of a batch.

        Raises:
            ImagetokError: Earlier rows could not be written.
        """
        for (number, place), one in zip(batch.rows, _copy_apart(ids), strict=True):
            chunk = self._pending[number - self._first]
            chunk.ids[place] = one
            chunk.missing -= 1
        self._release()

    def drop(self, index: RowIndex) -> int:
        """Expect no ids of a row, and give its number in the dataset or in its file."""
        number, place = index
        chunk = self._pending[number - self._first]
        chunk.missing -= 1
        row = chunk.start + place
        self._release()
        return row

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
        """Take the complete chunks off the front."""
        while self._pending and not self._pending[0].missing:
            chunk = self._pending.popleft()
            self._first += 1
            if chunk.ids:
                self._complete.append(chunk)
        if sum(len(chunk.ids) for chunk in self._complete) >= TABLE_ROWS:
            self._hand_over()

    def _hand_over(self) -> None:
        if not self._complete:
            return
        while len(self._writing) >= TABLES_AHEAD:
            self._writing.popleft().result()
        self._writing.append(self._pool.submit(self._write, self._complete))
        self._complete = []

    def _write(self, chunks: list[_PendingChunk]) -> None:
        self._writer.write(self._table(chunks))

    def _table(self, chunks: list[_PendingChunk]) -> pa.Table:
        pairs = [(chunk, place) for chunk in chunks for place in sorted(chunk.ids)]
        rows = [chunk.start + place for chunk, place in pairs]
        ids = [chunk.ids[place] for chunk, place in pairs]
        kept = [chunk.kept.take(sorted(chunk.ids)) for chunk in chunks]
        return self._schema.table(
            ids if self._schema.grid is None else np.stack(ids),
            rows,
            None if self._file is None else [self._file] * len(rows),
            np.array([chunk.sizes[place] for chunk, place in pairs]),
            pa.concat_tables(kept, promote_options="default"),
        )


def _copy_apart(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """A copy in Arrow's memory, for what stays while batches come and go.

    Left among the encoder's buffers, ids would cut the heap into pieces too small for these.
    """
    copy = np.frombuffer(pa.allocate_buffer(ids.nbytes), dtype=np.int64).reshape(ids.shape)
    copy[...] = ids
    return copy
