"""The columns of a tokenized dataset, and tables of them from arrays.

In this order:

ids                fixed-size list of uint8, uint16 or uint32: the tokens in raster order; where a
                   position has several codes, they follow each other
grid_h, grid_w     uint16; only where images keep their own sizes and lists of ids vary in length
file               string; only for a streamed dataset: base name of the file that holds the row
row                int64; position in the dataset, or in that file
height, width      int32; the image's own size, upright, in pixels
...                the kept columns, unchanged
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value
from numpy.typing import NDArray

from imagetok.errors import DataError, IdsError, IdsTypeError, InvalidValueError

RESERVED = ("ids", "row", "file", "height", "width", "grid_h", "grid_w", "grid")
"""Names that kept columns cannot take; `file` is free where rows are not known by their files."""

Ids = NDArray[np.integer] | Sequence[NDArray[np.integer]]


@dataclass(frozen=True)
class ShardSchema:
    """What the rows of a tokenized dataset look like.

    Attributes:
        codebook_size: Ids lie in [0, codebook_size).
        grid: (h, w) of every image's positions, or (n,) where they form no grid; None where each
            image has its own (h, w).
        by_file: Whether a row is identified by its file and its position there.
        kept: Features of the columns that are carried along, in order.
        codebook_sizes: Codebook size of each code of a position: the ids of level i lie in
            [0, codebook_sizes[i]), and the largest size is codebook_size. Left out, a position has
            one code.
    """

    codebook_size: int
    grid: tuple[int, ...] | None
    by_file: bool
    kept: Features
    codebook_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.codebook_sizes:
            object.__setattr__(self, "codebook_sizes", (self.codebook_size,))
        free = () if self.by_file else ("file",)
        if taken := [name for name in self.kept if name in RESERVED and name not in free]:
            raise DataError(
                f"cannot keep the columns {', '.join(taken)}: tokenized datasets have columns of "
                f"these names ({', '.join(RESERVED)}); rename them in the input, or leave them out"
            )
        if not 1 <= self.codebook_size <= 2**32:
            raise InvalidValueError(
                f"codebook_size is {self.codebook_size}, expected one in [1, 2**32]"
            )
        if min(self.codebook_sizes) < 1 or max(self.codebook_sizes) != self.codebook_size:
            raise InvalidValueError(
                f"codebook_sizes is {self.codebook_sizes}, expected sizes of at least 1 of which "
                f"the largest is codebook_size, {self.codebook_size}"
            )

    @property
    def depth(self) -> int:
        """Number of codes of a position."""
        return len(self.codebook_sizes)

    def token_shape(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the ids of an image whose positions form `grid`."""
        return grid if self.depth == 1 else (*grid, self.depth)

    def check_range(self, ids: NDArray[np.integer]) -> None:
        """Check the ids of whole positions, of any shape.

        Raises:
            IdsError: An id is out of the range of its level.
        """
        for level, size in enumerate(self.codebook_sizes if ids.size else ()):
            codes = ids.reshape(-1, self.depth)[:, level]
            wrong = int(codes.min() if codes.min() < 0 else codes.max())
            if not 0 <= wrong < size:
                words = f" of level {level}" if self.depth > 1 else ""
                raise IdsError(f"id {wrong}{words} is out of range: expected [0, {size})")

    @cached_property
    def ids_dtype(self) -> np.dtype[np.unsignedinteger]:
        """The narrowest of uint8, uint16 and uint32 that holds codebook_size - 1."""
        bits = (self.codebook_size - 1).bit_length()
        return np.dtype(np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)

    @cached_property
    def features(self) -> Features:
        """All columns in order, typed for the `datasets` library."""
        token = Value(str(self.ids_dtype))
        if self.grid is None:
            columns = {"ids": List(token), "grid_h": Value("uint16"), "grid_w": Value("uint16")}
        else:
            columns = {"ids": List(token, length=math.prod(self.token_shape(self.grid)))}
        if self.by_file:
            columns["file"] = Value("string")
        columns["row"] = Value("int64")
        columns |= {"height": Value("int32"), "width": Value("int32")}
        return Features({**columns, **self.kept})

    @cached_property
    def arrow(self) -> pa.Schema:
        """All columns typed for pyarrow; the metadata hold `features`."""
        return self.features.arrow_schema

    def table(
        self,
        ids: Ids,
        rows: Sequence[int],
        files: Sequence[str] | None,
        sizes: NDArray[np.integer],
        kept: pa.Table,
    ) -> pa.Table:
        """Build rows of a shard from arrays.

        Args:
            ids: Integers (N, h, w), (N, h, w, depth) or (N, n), or any of them flattened to two
                dimensions; without a fixed grid, N arrays (h, w) or (h, w, depth) instead.
            rows: N positions in the dataset, or in the rows' files.
            files: N base names of files if `by_file`, otherwise None.
            sizes: Integers (N, 2), the images' own heights and widths in pixels.
            kept: The kept columns of the same N rows; others are left out.

        Returns:
            A table with the columns of `arrow`.

        Raises:
            IdsError: Ids are out of range or of another grid.
            IdsTypeError: Ids are not integers.
            InvalidValueError: The arguments differ in their number of rows, or `files` is missing
                or superfluous.
            DataError: A kept column is missing or of another type.
        """
        self._check_counts(ids, rows, files, sizes, kept)
        columns = self._ids_columns(ids)
        if files is not None:
            columns["file"] = pa.array(files, pa.string())
        columns["row"] = pa.array(np.asarray(rows, dtype=np.int64))
        for place, name in enumerate(("height", "width")):
            columns[name] = pa.array(np.asarray(sizes)[:, place].astype(np.int32))
        columns |= self._kept_columns(kept)
        return pa.Table.from_arrays(list(columns.values()), schema=self.arrow)

    def _check_counts(
        self,
        ids: Ids,
        rows: Sequence[int],
        files: Sequence[str] | None,
        sizes: NDArray[np.integer],
        kept: pa.Table,
    ) -> None:
        if (files is None) == self.by_file:
            expected = "the file of each row" if self.by_file else "no files"
            raise InvalidValueError(f"files is {files!r}, expected {expected}")
        counts = {"ids": len(ids), "rows": len(rows), "sizes": len(sizes)}
        counts |= {} if files is None else {"files": len(files)}
        counts |= {"kept": kept.num_rows} if self.kept else {}
        if len(set(counts.values())) > 1 or np.shape(sizes) != (len(sizes), 2):
            raise InvalidValueError(
                f"expected as many of each, and sizes (N, 2); found {counts} and sizes "
                f"{np.shape(sizes)}"
            )

    def _ids_columns(self, ids: Ids) -> dict[str, pa.Array]:
        kind = self.arrow.field("ids").type
        if self.grid is not None:
            fixed, shape = np.asarray(ids), self.token_shape(self.grid)
            if fixed.shape[1:] not in {shape, (math.prod(shape),)}:
                raise IdsError(f"ids have the shape {fixed.shape}, expected (N, *{shape})")
            return {"ids": pa.FixedSizeListArray.from_arrays(self._tokens([fixed]), type=kind)}
        parts = [np.asarray(part) for part in ids]
        if any(part.ndim < 2 or part.shape != self.token_shape(part.shape[:2]) for part in parts):
            expected = "(h, w)" if self.depth == 1 else f"(h, w, {self.depth})"
            raise IdsError(
                f"ids have the shapes {[p.shape for p in parts]}, expected {expected} each"
            )
        grids = np.array([part.shape[:2] for part in parts], dtype=np.int64).reshape(-1, 2)
        lengths = [part.size for part in parts]
        offsets = np.cumsum([0, *lengths]).astype(np.int32)
        return {
            "ids": pa.ListArray.from_arrays(pa.array(offsets), self._tokens(parts), type=kind),
            "grid_h": pa.array(grids[:, 0].astype(np.uint16)),
            "grid_w": pa.array(grids[:, 1].astype(np.uint16)),
        }

    def _tokens(self, parts: Sequence[NDArray[np.integer]]) -> pa.Array:
        """All ids one after another, in the type of the column."""
        for part in parts:
            if part.dtype.kind not in "iu":
                raise IdsTypeError(f"ids are {part.dtype}, expected integers")
            self.check_range(part)
        flat = [part.reshape(-1).astype(self.ids_dtype) for part in parts]
        return pa.array(np.concatenate(flat) if flat else np.empty(0, self.ids_dtype))

    def _kept_columns(self, kept: pa.Table) -> dict[str, pa.Array]:
        if missing := [name for name in self.kept if name not in kept.column_names]:
            raise DataError(f"the rows lack the kept columns {', '.join(missing)}")
        columns = {name: kept.column(name) for name in self.kept}
        for name, values in columns.items():
            if values.type != self.arrow.field(name).type:
                raise DataError(
                    f"the kept column '{name}' holds {values.type}, expected "
                    f"{self.arrow.field(name).type}"
                )
        return columns
