"""Runs of a few steps with tiny networks on 16x16 images, one for each system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file

from imagetok.config import RunConfig

datasets.disable_progress_bars()

SYSTEMS = ("ae", "vae", "vqvae", "dvae")

DATA = "builtin:shapes?size=16&count=64"

CODEBOOK_SIZE = 12
"""Four encoder outputs a code are those of three images: no even share for two ranks."""

TIMED = {"metrics.jsonl", "tokenizer/evaluation.json"}
"""Files of a run that hold times."""

_NETWORK = {
    "type": "conv",
    "hidden_channels": 16,
    "residual_channels": 8,
    "num_residual_blocks": 1,
}
_BOTTLENECKS: Mapping[str, Mapping[str, Any]] = {
    "ae": {"type": "identity", "latent_dim": 4},
    "vae": {"type": "gaussian", "latent_dim": 4},
    "vqvae": {"type": "vq", "codebook_size": CODEBOOK_SIZE, "latent_dim": 4},
    "dvae": {"type": "gumbel", "codebook_size": CODEBOOK_SIZE, "latent_dim": 4},
}
_LIKELIHOODS: Mapping[str, Mapping[str, Any]] = {
    "ae": {"type": "mse"},
    "vae": {"type": "mse", "scale": "learnt"},
    "vqvae": {"type": "mse"},
    "dvae": {"type": "logit_laplace"},
}


def tiny_values(
    system: str,
    *,
    size: int = 16,
    bottleneck: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    **train: Any,
) -> dict[str, Any]:
    """A recipe of four steps as JSON-like values, with entries of its parts changed."""
    return {
        "tokenizer": {
            "image_size": [size, size],
            "encoder": _NETWORK,
            "bottleneck": {**_BOTTLENECKS[system], **(bottleneck or {})},
            "decoder": _NETWORK,
            "likelihood": _LIKELIHOODS[system],
        },
        "data": {"name": f"builtin:shapes?size={size}&count=64", **(data or {})},
        "train": {
            "steps": 4,
            "batch_size": 8,
            "optimizer": {"lr": 1e-3},
            "evaluation_images": 16,
            **train,
        },
    }


def tiny_run(system: str, **changes: Any) -> RunConfig:
    """The same as a config."""
    return RunConfig.from_dict(tiny_values(system, **changes))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def assert_same_files(one: Path, other: Path) -> None:
    """Two runs left the same bytes, but for files that hold times."""
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name] and name not in TIMED] == []


def assert_same_run(one: Path, other: Path) -> None:
    """Two runs left the same bytes, and the same keys where times are told."""
    assert_same_files(one, other)
    lines = (read_lines(run / "metrics.jsonl") for run in (one, other))
    keys = [[(line["step"], sorted(line)) for line in each] for each in lines]
    assert keys[0] == keys[1]


def assert_close_runs(one: Path, other: Path, tolerance: float) -> None:
    """Two runs left the same files, losses and tensors that are equal but for rounding."""
    assert contents(one).keys() == contents(other).keys()
    pairs = zip(*(read_lines(run / "losses.jsonl") for run in (one, other)), strict=True)
    for first, second in pairs:
        assert second == pytest.approx(first, abs=tolerance)
    for path in sorted(one.glob("checkpoints/*/*.safetensors")):
        tensors, others = load_file(path), load_file(other / path.relative_to(one))
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(
                others[name], tensor, rtol=0, atol=tolerance, msg=f"{path} {name}"
            )


def run_two_ranks(
    script: Path, arguments: Sequence[str], timeout: int = 240
) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes on one machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = subprocess.run(
        [*launcher, "--nproc_per_node", "2", str(script), *arguments],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run
