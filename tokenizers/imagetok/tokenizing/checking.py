"""Tokenizing a sample again, and comparing ids: what hashes cannot tell of a tokenized dataset.

Another device, number of threads or library may round the encoder's output differently, so that an
id whose two best codes are nearly equally good comes out as the other one. Such an id is told from
a wrong one by moving the output by about as much as rounding may: it must come out then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from imagetok.bottlenecks import DiscreteBottleneck
from imagetok.data import fixed_rows
from imagetok.data.builtins import PREFIX
from imagetok.errors import DataError, UnreadableFileError
from imagetok.shards.opening import TokenFolder
from imagetok.tokenizer import ImageTokenizer
from imagetok.tokenizing.encoding import Encoder
from imagetok.tokenizing.inputs import CHUNK, Chunk, Input
from imagetok.tokenizing.opening import InputChoice, open_input
from imagetok.tokenizing.preparing import Preparation, Prepared
from imagetok.tokenizing.setup import native_factors

ROUNDING = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""How far an output may move between settings, as a share of its root mean square."""

DRAWS = 64
"""Random moves of which one must give an id that is nearly as good."""


@dataclass(frozen=True)
class Comparison:
    """What came of tokenizing rows again.

    Attributes:
        rows: Rows that were compared.
        ids: Their ids.
        near_ties: Ids that differ by rounding.
        faults: What is wrong, a line each.
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
    """Tokenize rows that are spread over the whole again.

    Args:
        folder: The tokenized dataset.
        tokenizer: The one that made it.
        dataset: Where the input lies; None takes the name that the job has for it.
        num_rows: About how many rows.

    Raises:
        DataError: The tokenizer or the input is another one, or cannot be opened.
        UnreadableFileError: A shard cannot be read.
    """
    folder.check_tokenizer(tokenizer)
    job = folder.job
    rows = _open(folder, dataset)
    factors = native_factors(tokenizer) if job.output.resize == "native" else None
    prepare = Preparation(tokenizer.preprocessor, factors, rows.root)
    encoder = Encoder(tokenizer, job.numerics.batch_size)
    counts, ties, faults = [0, 0], 0, list[str]()
    for unit, chunk in _sample(folder, rows, num_rows):
        stored = _stored(folder, unit, chunk)
        for place, outcome in enumerate(prepare(chunk.pictures)):
            row = chunk.start + place
            name = f"row {row}" + (f" of file '{rows.files[unit]}'" if rows.files else "")
            expected = stored.get(row)
            if not isinstance(outcome, Prepared):
                if expected is not None:
                    faults.append(f"{name} has ids, and cannot be read: {outcome.reason}")
            elif expected is None:
                faults.append(f"{name} has no ids, and can be read")
            else:
                near, wrong = _compare(encoder, outcome.pixels, expected)
                counts, ties = [counts[0] + 1, counts[1] + expected.size], ties + near
                if wrong:
                    faults.append(f"{name}: {wrong} of {expected.size} ids differ")
    return Comparison(counts[0], counts[1], ties, tuple(faults))


def _open(folder: TokenFolder, dataset: str | os.PathLike[str] | None) -> Input:
    source = folder.job.input
    name = source.name if dataset is None else os.fspath(dataset)
    is_lasting = name.startswith(PREFIX) or "/" in name or source.revision is not None
    if dataset is None and not is_lasting:
        raise DataError(
            f"the input of '{folder.path}' was the file or folder '{name}'; say by dataset where "
            f"'{name}' lies"
        )
    rows = open_input(
        InputChoice(
            name,
            source.subset,
            source.revision if name == source.name else None,
            source.split,
            source.image_column,
            (),
            source.limit,
            folder.job.units.rows_per_shard,
            source.streaming,
        )
    )
    if rows.fingerprint != source.fingerprint:
        raise DataError(
            f"'{name}' has the fingerprint {rows.fingerprint}, the input of '{folder.path}' had "
            f"{source.fingerprint}: it is another dataset, or has changed"
        )
    return rows


def _sample(folder: TokenFolder, rows: Input, num_rows: int) -> Iterator[tuple[int, Chunk]]:
    """Chunks that lie evenly over the rows."""
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
    """Ids (h, w) in the shards by row."""
    grid = folder.job.schema.grid
    first, end = chunk.start, chunk.start + len(chunk.pictures)
    columns = ["row", "ids"] + (["grid_h", "grid_w"] if grid is None else [])
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
            shape = grid or (entry["grid_h"], entry["grid_w"])
            found[entry["row"]] = np.array(entry["ids"], dtype=np.int64).reshape(shape)
    return found


@torch.no_grad()
def _compare(
    encoder: Encoder, pixels: NDArray[np.uint8], expected: NDArray[np.int64]
) -> tuple[int, int]:
    """Ids of a picture that differ by rounding, and those that are wrong."""
    bottleneck = encoder.tokenizer.bottleneck
    assert isinstance(bottleneck, DiscreteBottleneck)
    z = encoder.features([pixels])[:1].to(torch.float32)
    wanted = torch.from_numpy(expected).to(z.device)[None]
    found = bottleneck.encode_ids(z)
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
        differs &= bottleneck.encode_ids(moved) != wanted
    wrong = int(differs.sum())
    return number - wrong, wrong
