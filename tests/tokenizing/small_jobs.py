"""Tokenizing jobs of a few images with a tiny tokenizer, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features

from imagetok import ImageTokenizer
from imagetok.shards import Manifest
from imagetok.tokenizing import tokenize_dataset
from tiny_runs import contents, tiny_run

RunJob = Callable[..., Manifest]

ROWS = 40
DATASET = f"builtin:shapes?size=16&count={ROWS}"
SETTINGS: dict[str, Any] = {
    "dataset": DATASET,
    "rows_per_shard": 12,
    "batch_size": 4,
    "device": "cpu",
    "progress": False,
}


def make_tokenizer(system: str = "vqvae", seed: int = 0) -> ImageTokenizer:
    """A tokenizer of 16 x 16 images with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ImageTokenizer.from_config(tiny_run(system).tokenizer)


def run_job(folder: Path, tokenizer: Path | ImageTokenizer, **changes: Any) -> Manifest:
    """Tokenize into a folder, with changes to `SETTINGS`."""
    return tokenize_dataset(tokenizer, output_dir=folder, **{**SETTINGS, **changes})


def shards_of(folder: Path) -> dict[str, bytes]:
    """The bytes of data/ and errors/, which are the same in equal jobs; nothing else is left."""
    found = contents(folder)
    hidden = list(folder.rglob(".*"))
    assert not hidden, f"litter: {hidden}"
    return {name: data for name, data in found.items() if name.startswith(("data/", "errors/"))}


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """All rows of the shards in the order of their files."""
    paths = sorted((folder / "data").rglob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path, partitioning=None).to_pylist()]


def errors_in(folder: Path) -> list[dict[str, Any]]:
    """All refused rows in the order of their files."""
    paths = sorted((folder / "errors").rglob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def save_images(
    folder: Path, images: Sequence[bytes | None], columns: Features | None = None, **values: Any
) -> Path:
    """Write a dataset of images, given as the contents of their files, with other columns."""
    cells = [None if image is None else {"bytes": image, "path": None} for image in images]
    features = Features({"image": datasets.Image(), **(columns or {})})
    Dataset.from_dict({"image": cells, **values}, features=features).save_to_disk(folder)
    return folder
