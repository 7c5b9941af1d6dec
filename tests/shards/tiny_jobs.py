"""Jobs and datasets of a few rows, without a tokenizer: ids are drawn from the number of the row.

A script too: `python tiny_jobs.py FOLDER JOB RANK WORLD_SIZE [BROKEN ...]` waits for a line on its
standard input, does the job of the JSON file JOB, and prints the units that it did.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Value
from numpy.typing import NDArray

from imagetok.shards import Job, JobFolder, UnitWriter, finalize

KEPT = Features({"caption": Value("string"), "label": ClassLabel(names=["no", "yes: 'maybe'"])})

Broken = Sequence[int]


def job_values(**changes: Any) -> dict[str, Any]:
    """A job of 10 rows in units of 4, as JSON-like values; keys of `changes` are `part__key`."""
    values: dict[str, Any] = {
        "tokenizer": {
            "name": "tokenizer",
            "revision": None,
            "fingerprint": "f" * 64,
            "codebook_size": 512,
            "grid_size": [2, 3],
            "image_size": [16, 24],
        },
        "input": {
            "name": "pictures",
            "subset": None,
            "revision": None,
            "split": "train",
            "image_column": "image",
            "fingerprint": "a" * 64,
            "streaming": False,
            "num_rows": 10,
            "limit": None,
        },
        "units": {"rows_per_shard": 4, "count": 3, "files": []},
        "output": {"resize": "crop", "keep": list(KEPT)},
        "features": KEPT.to_dict(),
        "numerics": {
            "device": "cpu",
            "dtype": "float32",
            "batch_size": 32,
            "threads": 1,
            "search": "chunked",
            "image_decoder": "pillow",
            "versions": dict.fromkeys(("imagetok", "torch", "numpy", "pillow", "pyarrow"), "1.0"),
        },
    }
    for place, value in changes.items():
        *parts, key = place.split("__")
        inner = values
        for part in parts:
            inner = inner[part]
        inner[key] = value
    return values


def tiny_job(**changes: Any) -> Job:
    """The same as a job."""
    return Job.from_dict(job_values(**changes))


def streamed_job(num_files: int = 2, **changes: Any) -> Job:
    """A job of files of 10 rows each, in parts of 4."""
    files = [{"name": f"part-{number}.tar", "size": 100} for number in range(num_files)]
    source = {"input__streaming": True, "input__num_rows": None}
    return tiny_job(**source, units__count=None, units__files=files, **changes)


def caption(row: int) -> str | None:
    return None if row % 3 == 2 else f"caption {row}\nüñí"


def count_up(start: int, shape: Sequence[int], codebook_sizes: Sequence[int]) -> NDArray[np.int64]:
    """Ids of a shape that count up, each within its own codebook."""
    flat = start + np.arange(math.prod(shape))
    levels = flat.reshape(-1, len(codebook_sizes)) % np.array(codebook_sizes)
    return levels.reshape(shape)


def table_of(job: Job, rows: Sequence[int], file: str | None = None) -> pa.Table:
    """Rows of a shard; ids, sizes and kept columns follow from the numbers of the rows."""
    schema = job.schema
    if schema.grid is None:
        grids = [(1 + row % 2, 1 + row % 3) for row in rows]
        ids: Any = [
            count_up(row, schema.token_shape(grid), schema.codebook_sizes)
            for row, grid in zip(rows, grids, strict=True)
        ]
    else:
        shape = schema.token_shape(schema.grid)
        each = [count_up(31 * row, shape, schema.codebook_sizes) for row in rows]
        ids = np.reshape(each, (len(rows), *shape)).astype(np.int64)
    sizes = np.array([(100 + row, 200 + row) for row in rows]).reshape(-1, 2)
    values = {"caption": [caption(row) for row in rows], "label": [row % 2 for row in rows]}
    kept = pa.table({name: values[name] for name in schema.kept}, schema=schema.kept.arrow_schema)
    files = None if file is None else [file] * len(rows)
    return schema.table(ids, list(rows), files, sizes, kept)


def fill(writer: UnitWriter, job: Job, broken: Broken = (), batch: int = 3) -> None:
    """Write or refuse every row of a unit."""
    file = job.units.files[writer.unit].name if job.input.streaming else None
    rows = [row for row in writer.rows or range(10) if row not in broken]
    for start in range(0, len(rows), batch):
        writer.write(table_of(job, rows[start : start + batch], file))
    for row in writer.rows or range(10):
        if row in broken:
            writer.refuse(row, f"{row:03d}.png", "no image", file)


def do_job(
    folder: Path, job: Job, rank: int = 0, world_size: int = 1, broken: Broken = (), **options: bool
) -> list[int]:
    """Do what is missing of a job; gives the units that were done."""
    done = []
    with JobFolder.open(folder, job, **options) as work:
        for unit in work.missing_units(rank, world_size):
            with work.claim(unit) as writer:
                if writer is not None:
                    fill(writer, job, broken)
                    done.append(unit)
    return done


def write_tokens(
    folder: Path,
    num_rows: int = 50,
    rows_per_shard: int = 8,
    broken: Sequence[int] = (),
    **job: Any,
) -> Path:
    """A complete map-style dataset; row n has the ids of `table_of`."""
    units = -(-num_rows // rows_per_shard)
    sizes = {"units__rows_per_shard": rows_per_shard, "units__count": units}
    do_job(folder, tiny_job(input__num_rows=num_rows, **sizes, **job), broken=broken)
    finalize(folder)
    return folder


def write_streamed_tokens(folder: Path, num_files: int = 3, broken: Sequence[int] = ()) -> Path:
    """A complete streamed dataset of files of 10 rows each, in parts of 4."""
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


if __name__ == "__main__":
    place, text, rank, world_size, *broken = sys.argv[1:]
    job = Job.from_json(Path(text).read_text())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    units = do_job(Path(place), job, int(rank), int(world_size), [int(row) for row in broken])
    sys.stdout.write(f"{' '.join(map(str, units))}\n")
