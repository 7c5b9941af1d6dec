"""The deep check of a tokenized dataset: rows are tokenized again, and their ids compared.

Another device, number of threads or library may round the encoder's output differently, so that an
id whose two best codes are nearly equally good comes out as the other one. Such a near tie is
distinguished from a wrong id by moving the encoder's output at random by about as much as rounding
may: the stored id must come out for one of the moves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from imagetok.data import DatasetRef, fixed_rows
from imagetok.errors import DataError, UnreadableFileError
from imagetok.shards.token_folder import TokenFolder
from imagetok.tokenizer import ImageTokenizer
from imagetok.tokenizing.batch_encoder import BatchEncoder
from imagetok.tokenizing.image_preparation import Preparation, Prepared
from imagetok.tokenizing.job_input import CHUNK, Chunk, JobInput, open_input
from imagetok.tokenizing.job_setup import begun_search, native_factors

ROUNDING = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""How far an output may move between settings, as a share of its root mean square."""

DRAWS = 64
"""Random moves of the output; a near tie comes out as the stored id for one of them."""


@dataclass(frozen=True)
class Comparison:
    """The result of tokenizing rows again.

    Attributes:
        rows: Number of rows compared.
        ids: Number of their ids.
        near_ties: Number of ids that differ by rounding alone.
        faults: What is wrong, one line for each fault.
    """

    rows: int
    ids: int
    near_ties: int
    faults: tuple[str, ...]


def compare_rows(
    folder: TokenFolder,
    tokenizer: ImageTokenizer,
    dataset: str | os.PathLike[str] | None = None,
    num_rows: int = 64,
) -> Comparison:
    """Tokenize rows that are spread over the whole dataset again, and compare their ids.

    Args:
        folder: The tokenized dataset.
        tokenizer: The one that made it.
        dataset: Where the input lies; None takes the name that the job records.
        num_rows: About how many rows to compare.

    Raises:
        DataError: The tokenizer or the input is not the one that the job records, or the input
            cannot be opened.
        UnreadableFileError: A shard cannot be read.
    """
    folder.check_tokenizer(tokenizer)
    job = folder.job
    rows = _open(folder, dataset)
    factors = native_factors(tokenizer) if job.output.resize == "native" else None
    preprocessor = replace(tokenizer.preprocessor, max_pixels=job.output.max_pixels)
    prepare = Preparation(preprocessor, factors, rows.root)
    encoder = BatchEncoder(tokenizer, job.numerics.batch_size, begun_search(folder.path))
    counts, ties, faults = [0, 0], 0, list[str]()
    for unit, chunk in _sample(folder, rows, num_rows):
        stored = _stored(folder, unit, chunk)
        for place, outcome in enumerate(prepare(chunk.images)):
            row = chunk.start + place
            name = f"row {row}" + (f" of file '{rows.files[unit]}'" if rows.files else "")
            expected = stored.get(row)
            if not isinstance(outcome, Prepared):
                if expected is not None:
                    faults.append(f"{name} has ids, and cannot be read: {outcome.reason}")
            elif expected is None:
                # Whether the memory was enough for an image of this size is not told by the image.
                if encoder.is_large(outcome.pixels.shape[1:]):
                    continue
                faults.append(f"{name} has no ids, and can be read")
            else:
                near, wrong = _compare(encoder, outcome.pixels, expected)
                counts, ties = [counts[0] + 1, counts[1] + expected.size], ties + near
                if wrong:
                    faults.append(f"{name}: {wrong} of {expected.size} ids differ")
    return Comparison(counts[0], counts[1], ties, tuple(faults))


def _open(folder: TokenFolder, dataset: str | os.PathLike[str] | None) -> JobInput:
    """The input of a job, found where it is said to lie and checked to be the same."""
    source = folder.job.input
    name = source.name if dataset is None else os.fspath(dataset)
    ref = DatasetRef(
        name,
        source.split,
        source.subset,
        source.revision if name == source.name else None,
        source.image_column,
        source.streaming,
        **source.reading(),
    )
    if dataset is None and not (ref.is_builtin or "/" in name or source.revision is not None):
        raise DataError(
            f"the input of '{folder.path}' was the file or folder '{name}'; say by dataset where "
            f"'{name}' lies"
        )
    # The fingerprint of rows counts kept columns that are not stored with them, such as `file`.
    keep = () if source.streaming else folder.job.output.keep
    rows_per_unit = folder.job.units.rows_per_shard
    rows = open_input(ref, keep=keep, limit=source.limit, rows_per_unit=rows_per_unit)
    if rows.fingerprint != source.fingerprint:
        raise DataError(
            f"'{name}' has the fingerprint {rows.fingerprint}, the input of '{folder.path}' had "
            f"{source.fingerprint}: it is another dataset, or has changed"
        )
    return rows


def _sample(folder: TokenFolder, rows: JobInput, num_rows: int) -> Iterator[tuple[int, Chunk]]:
    """Units and chunks of them that are spread evenly over the rows."""
    lengths = np.zeros(folder.job.num_units, dtype=np.int64)
    for shard in folder.manifest.shards:
        lengths[shard.unit] += shard.rows + shard.refused
    chunks = -(-lengths // CHUNK)
    ends = np.cumsum(chunks)
    for number in fixed_rows(int(ends[-1]), max(1, num_rows // CHUNK)):
        unit = int(np.searchsorted(ends, number, side="right"))
        start = (number - int(ends[unit] - chunks[unit])) * CHUNK
        yield unit, next(iter(rows.read(unit, start)))


def _stored(folder: TokenFolder, unit: int, chunk: Chunk) -> dict[int, NDArray[np.int64]]:
    """The ids that shards hold for a chunk, (h, w) or (h, w, depth), by row."""
    schema = folder.job.schema
    first, end = chunk.start, chunk.start + len(chunk.images)
    columns = ["row", "ids"] + (["grid_h", "grid_w"] if schema.grid is None else [])
    found = {}
    for shard in folder.manifest.shards:
        if shard.unit != unit or not shard.rows:
            continue
        path = folder.path / shard.path
        try:
            within = [("row", ">=", first), ("row", "<", end)]
            table = pq.read_table(path, columns=columns, filters=within, partitioning=None)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UnreadableFileError(f"the shard '{path}' is damaged: {error}") from error
        for entry in table.to_pylist():
            shape = schema.token_shape(schema.grid or (entry["grid_h"], entry["grid_w"]))
            found[entry["row"]] = np.array(entry["ids"], dtype=np.int64).reshape(shape)
    return found


@torch.no_grad()
def _compare(
    encoder: BatchEncoder, pixels: NDArray[np.uint8], expected: NDArray[np.int64]
) -> tuple[int, int]:
    """Count the ids of an image that differ by rounding, and those that are wrong."""
    z = encoder.features([pixels])[:1].to(torch.float32)
    wanted = torch.from_numpy(expected).to(z.device)[None]
    found = encoder.ids_of(z)
    if found.shape != wanted.shape:
        return 0, expected.size
    differs = found != wanted
    number = int(differs.sum())
    if not number:
        return 0, 0
    generator = torch.Generator().manual_seed(0)
    scale = ROUNDING[encoder.tokenizer.dtype] * z.square().mean().sqrt()
    for _ in range(DRAWS):
        moved = z + scale * torch.randn(z.shape, generator=generator).to(z.device)
        differs &= encoder.ids_of(moved) != wanted
    wrong = int(differs.sum())
    return number - wrong, wrong
