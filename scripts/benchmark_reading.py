"""Compare the speed of TokenDataset with that of pyarrow alone on the same shards.

python scripts/benchmark_reading.py --rows 65536 --batch-size 256

Writes tokenized datasets of random ids with a caption and a label to a temporary folder, and reads
each in three ways in turn: with pyarrow, every shard into a table on one thread; with TokenDataset,
shuffled batches in this process; and the same in loading processes. The fastest of several rounds
counts; every file is in the page cache by then. Prints a line for each number of ids per row.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value

from imagetok.shards import Job, JobFolder, TokenDataset, TokenLoader, finalize

CODEBOOK_SIZE = 8192
KEPT = Features({"caption": Value("string"), "label": Value("int64")})


def make_job(side: int, num_rows: int, rows_per_shard: int) -> Job:
    """A job of images with side x side ids each."""
    size = (8 * side, 8 * side)
    libraries = ("imagetok", "torch", "numpy", "pillow", "pyarrow")
    return Job.from_dict(
        {
            "tokenizer": {
                "name": "random",
                "revision": None,
                "fingerprint": "0" * 64,
                "codebook_size": CODEBOOK_SIZE,
                "grid_size": (side, side),
                "image_size": size,
            },
            "input": {
                "name": "random",
                "subset": None,
                "revision": None,
                "split": "train",
                "image_column": "image",
                "fingerprint": "0" * 64,
                "streaming": False,
                "num_rows": num_rows,
                "limit": None,
            },
            "units": {
                "rows_per_shard": rows_per_shard,
                "count": -(-num_rows // rows_per_shard),
                "files": [],
            },
            "output": {"resize": "crop", "keep": list(KEPT)},
            "features": KEPT.to_dict(),
            "numerics": {
                "device": "cpu",
                "dtype": "float32",
                "batch_size": 1,
                "threads": 1,
                "search": "none",
                "image_decoder": "none",
                "versions": dict.fromkeys(libraries, "0"),
            },
        }
    )


def write(folder: Path, job: Job) -> None:
    """Write a complete dataset of random ids."""
    random = np.random.default_rng(0)
    with JobFolder.open(folder, job) as work:
        for unit in work.missing_units():
            with work.claim(unit) as writer:
                rows = job.rows_of(unit)
                if writer is None or rows is None:
                    continue
                ids = random.integers(CODEBOOK_SIZE, size=(len(rows), *job.tokenizer.grid_size))
                captions = [f"image {row} of many, with a few words about it" for row in rows]
                kept = pa.table({"caption": captions, "label": np.asarray(rows) % 1000})
                sizes = np.full((len(rows), 2), 512)
                writer.write(job.schema.table(ids, rows, None, sizes, kept))
    finalize(folder)


def read_with_pyarrow(folder: Path) -> None:
    """Read every column of every shard."""
    for path in sorted(folder.glob("data/*.parquet")):
        pq.read_table(path, use_threads=False)


def read_with_dataset(folder: Path, batch_size: int, num_workers: int) -> None:
    """Read a shuffled epoch."""
    dataset = TokenDataset(folder, rank=0, world_size=1, batch_size=batch_size)
    for batch in TokenLoader(dataset, num_workers=num_workers):
        batch["ids"]


def main() -> None:
    """Write, read and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--rows-per-shard", type=int, default=16384)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print("| ids a row | pyarrow, rows/s | TokenDataset, rows/s | ratio | with processes, rows/s |")
    print("|---|---|---|---|---|")
    for side in (8, 16, 32):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write(folder, make_job(side, args.rows, args.rows_per_shard))
            ways: list[Callable[[], None]] = [
                lambda at=folder: read_with_pyarrow(at),  # type: ignore[misc]
                lambda at=folder: read_with_dataset(at, args.batch_size, 0),  # type: ignore[misc]
                lambda at=folder: read_with_dataset(  # type: ignore[misc]
                    at, args.batch_size, args.workers
                ),
            ]
            seconds = [[_seconds(way) for way in ways] for _ in range(args.rounds)]
            alone, ours, shared = (args.rows / min(times) for times in zip(*seconds, strict=True))
            print(
                f"| {side**2} | {alone:,.0f} | {ours:,.0f} | {ours / alone:.2f} | {shared:,.0f} |"
            )


def _seconds(way: Callable[[], None]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
