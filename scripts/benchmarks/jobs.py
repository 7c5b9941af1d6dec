"""`imagetok tokenize` beside its bound and an older version, and reading what it wrote.

Where encoder and decoding share the cores, no job can do more images a second than
1 / (1/E + 1/(cores x J)), E being those of the bare encoder fed from memory, and J those that one
core decodes and resizes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loading import make_jpeg
from benchmarks.measurement import Case, Medians
from benchmarks.variant_process import Run, Runs, Timed, Variant

SIDE = 512
"""Sides of the files in pixels; the tokenizer takes half of that."""

NUM_IMAGES, BATCH_SIZE = 512, 32
TOKEN_ROWS, TOKEN_SHARD, TOKEN_BATCH = 32_768, 8192, 256


def make_files(folder: Path, number: int) -> None:
    """Write JPEG files; a hundred different ones, over and over."""
    folder.mkdir()
    files = [make_jpeg(SIDE, 90, seed) for seed in range(min(number, 100))]
    for i in range(number):
        (folder / f"{i:06d}.jpg").write_bytes(files[i % len(files)])


def build_tokenizer() -> Any:
    """A VQ-VAE with random weights for 256 x 256 images, 32 x 32 ids of 8,192 codes."""
    from imagetok import ImageTokenizer, TokenizerConfig

    network = {
        "type": "conv",
        "hidden_channels": 48,
        "residual_channels": 12,
        "num_downsamplings": 3,
    }
    torch.manual_seed(0)
    config = {
        "image_size": [SIDE // 2, SIDE // 2],
        "encoder": network,
        "bottleneck": {"type": "vq", "codebook_size": 8192, "latent_dim": 16},
        "decoder": {**network, "hidden_channels": 16, "residual_channels": 8},
        "likelihood": {"type": "mse"},
    }
    return ImageTokenizer.from_config(TokenizerConfig.from_dict(config))


def make_job(num_images: int) -> Runs:
    """Whole jobs, timed by what their manifests say: without what a program loads."""
    import datasets
    import pyarrow.parquet as pq

    from imagetok.tokenizing import tokenize_dataset

    datasets.disable_progress_bars()
    place = tempfile.TemporaryDirectory(prefix="imagetok-benchmark-")
    folder, numbers = Path(place.name), count()
    make_files(folder / "files", num_images)
    build_tokenizer().save_pretrained(folder / "tokenizer")

    def run(kept: object = place) -> Timed:
        tokens = folder / f"tokens-{next(numbers)}"
        manifest = tokenize_dataset(
            folder / "tokenizer", folder / "files", tokens, batch_size=BATCH_SIZE, progress=False
        )
        assert manifest.throughput is not None
        tables = [
            pq.read_table(path, columns=["ids"]) for path in sorted(tokens.rglob("*.parquet"))
        ]
        ids = np.concatenate([np.stack(table["ids"].to_numpy()) for table in tables])
        return Timed(ids, num_images / float(manifest.throughput["images_per_second"]))

    return {"": run}


def make_stages() -> Runs:
    """A batch through the bare encoder, and the same files decoded on one core."""
    from imagetok.tokenizing.batch_encoder import BatchEncoder
    from imagetok.tokenizing.image_preparation import Preparation, Prepared

    tokenizer = build_tokenizer().requires_grad_(False).eval()
    preparation = Preparation(tokenizer.preprocessor, None, None)
    images: list[Any] = [
        {"bytes": make_jpeg(SIDE, 90, seed), "path": None} for seed in range(BATCH_SIZE)
    ]
    prepared = [one for one in preparation(images) if isinstance(one, Prepared)]
    batch = [one.pixels for one in prepared]
    encoder, threads = BatchEncoder(tokenizer, BATCH_SIZE), torch.get_num_threads()

    def encode() -> None:
        encoder(batch)

    def decode() -> None:
        torch.set_num_threads(1)
        preparation(images)
        torch.set_num_threads(threads)

    return {"encoder alone": encode, "decoding alone": decode}


def _bound(medians: Medians) -> dict[str, float]:
    bare = BATCH_SIZE / medians["stages", "encoder alone"]
    decoded = BATCH_SIZE / medians["stages", "decoding alone"]
    cores = len(os.sched_getaffinity(0))
    bound = 1 / (1 / bare + 1 / (cores * decoded))
    job = NUM_IMAGES / medians["imagetok", ""]
    return {
        "images a second": job,
        "of the bound": job / bound,
        "of the bare encoder": job / bare,
    }


# Reading tokens


def _token_job(side: int) -> Any:
    from datasets import Features, Value

    from imagetok.shards import Job

    kept = Features({"caption": Value("string"), "label": Value("int64")})
    libraries = ("imagetok", "torch", "numpy", "pillow", "pyarrow")
    return Job.from_dict(
        {
            "tokenizer": {
                "name": "random",
                "revision": None,
                "fingerprint": "0" * 64,
                "codebook_size": 8192,
                "grid_size": (side, side),
                "image_size": (8 * side, 8 * side),
            },
            "input": {
                "name": "random",
                "subset": None,
                "revision": None,
                "split": "train",
                "image_column": "image",
                "fingerprint": "0" * 64,
                "streaming": False,
                "num_rows": TOKEN_ROWS,
                "limit": None,
            },
            "units": {
                "rows_per_shard": TOKEN_SHARD,
                "count": TOKEN_ROWS // TOKEN_SHARD,
                "files": [],
            },
            "output": {"resize": "crop", "keep": list(kept)},
            "features": kept.to_dict(),
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


def _write_tokens(folder: Path, side: int) -> None:
    """Write a complete dataset of random ids with captions and labels."""
    import pyarrow as pa

    from imagetok.shards import JobFolder, finalize

    random, job = np.random.default_rng(0), _token_job(side)
    with JobFolder.open(folder, job) as work:
        for unit in work.missing_units():
            with work.claim(unit) as writer:
                rows = job.rows_of(unit)
                assert writer is not None
                ids = random.integers(8192, size=(len(rows), side, side))
                captions = [f"image {row} of many, with a few words about it" for row in rows]
                kept = pa.table({"caption": captions, "label": np.asarray(rows) % 1000})
                sizes = np.full((len(rows), 2), 512)
                writer.write(job.schema.table(ids, rows, None, sizes, kept))
    finalize(folder)


def make_reading(with_pyarrow: bool) -> Runs:
    """An epoch of shuffled batches from shards, or every shard read into a table on one thread."""
    import pyarrow.parquet as pq

    from imagetok.shards import TokenDataset, TokenLoader

    def bind(side: int) -> Run:
        place = tempfile.TemporaryDirectory(prefix="imagetok-benchmark-")
        folder = Path(place.name)
        _write_tokens(folder, side)

        def tables(kept: object = place) -> int:
            paths = sorted(folder.glob("data/*.parquet"))
            return sum(len(pq.read_table(path, use_threads=False)) for path in paths)

        def batches(kept: object = place) -> int:
            dataset = TokenDataset(folder, rank=0, world_size=1, batch_size=TOKEN_BATCH)
            return sum(len(batch["ids"]) for batch in TokenLoader(dataset, num_workers=0))

        return tables if with_pyarrow else batches

    return {f"{side**2} ids a row": bind(side) for side in (8, 16, 32)}


def _different_count(part: str, expected: int, found: int) -> float:
    return float(expected != found)


def _different_ids(part: str, expected: Any, found: Any) -> float:
    return 1.0 if expected.shape != found.shape else float((expected != found).mean())


def cases(tree: Path | None) -> Iterator[Case]:
    """A job, and reading."""
    make = partial(make_job, NUM_IMAGES)
    older = None if tree is None else Variant(f"imagetok in {tree.name}", make, tree=tree)
    yield Case(
        "tokenize",
        f"a job on {NUM_IMAGES} JPEG files of {SIDE} x {SIDE} pixels, against its bound and an "
        "older version",
        [Variant("imagetok", make, keeps_memory=True)],
        older,
        difference=_different_ids,
        most_different=1e-3,
        keeps=False,
        references=[Variant("stages", make_stages, keeps_memory=True)],
        derive=_bound,
    )
    yield Case(
        "reading",
        f"an epoch of {TOKEN_ROWS:,} rows of tokens, against pyarrow reading the shards",
        [Variant("TokenDataset", partial(make_reading, False))],
        Variant("pyarrow", partial(make_reading, True)),
        difference=_different_count,
        keeps=False,
    )
