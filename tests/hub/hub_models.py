"""Tiny tokenizers and tokenized datasets, as the files that a repository holds."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import torch

from imagetok import modelfile
from imagetok.config import TokenizerConfig
from imagetok.hub.dataset_snapshot import CHECKED_FILE


def make_config(latent_dim: int = 2) -> TokenizerConfig:
    return TokenizerConfig.from_dict(
        {
            "image_size": [8, 8],
            "encoder": {"type": "mlp"},
            "bottleneck": {"type": "identity", "latent_dim": latent_dim},
            "decoder": {"type": "mlp"},
            "likelihood": {"type": "mse"},
        }
    )


def model_files(
    seed: int = 0, *, latent_dim: int = 2, size: int = 12, evaluated: bool = True
) -> dict[str, bytes]:
    """The files of a saved tokenizer, whose tensors are not those of its config.

    Args:
        seed: Of the weights.
        latent_dim: In the config.
        size: Numbers in the largest tensor.
        evaluated: Whether evaluation.json and reconstructions.png are among them.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "encoder.weight": torch.randn(2, size // 2, generator=generator),
        "bottleneck.count": torch.tensor(2**40 + seed),
    }
    with tempfile.TemporaryDirectory() as folder:
        modelfile.save_model(folder, make_config(latent_dim), tensors)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    if evaluated:
        sha256 = hashlib.sha256(files[modelfile.MODEL_FILE]).hexdigest()
        figures = {modelfile.EVALUATED_KEY: sha256, "psnr": 20.0 + seed}
        files[modelfile.EVALUATION_FILE] = json.dumps(figures).encode()
        files[modelfile.PICTURES_FILE] = b"\x89PNG pictures %d" % seed
    return files


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, and of its folders, but for what imagetok notes in a cache."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != CHECKED_FILE)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def wanted(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a repository that are fetched."""
    return {name: data for name, data in files.items() if not name.startswith("errors/")}


def below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    """The same files in a folder of the repository."""
    return {f"{folder}/{name}": content for name, content in files.items()}


def dataset_files(num_shards: int = 3) -> dict[str, bytes]:
    """The files of a tokenized dataset, as far as fetching them goes: shards are any bytes."""
    shards = {
        f"data/{number // 2:05d}/train-{number:05d}.parquet": b"PAR1 shard %d" % number * 50
        for number in range(num_shards)
    }
    listed = [
        {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in shards.items()
    ]
    return {
        "job.json": b'{"format_version": 1}',
        "manifest.json": json.dumps({"shards": listed}).encode(),
        "README.md": b"# Tokens\n",
        "errors/train-00000.jsonl": b"{}\n",
        **shards,
    }
