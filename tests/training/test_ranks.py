"""Two ranks train what one rank trains with the same global batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from imagetok.config import RunConfig
from imagetok.training import train
from tiny_runs import contents, read_lines, run_two_ranks, tiny_values

SCRIPT = """
import json, sys
from pathlib import Path

import torch

from imagetok.launch import collectives
from imagetok.config import RunConfig
from imagetok.training import train

torch.set_default_dtype(torch.float64)
folder = Path(sys.argv[1])
told = {}
for name, values in json.loads((folder / "runs.json").read_text()).items():
    told[name] = train(RunConfig.from_dict(values), folder / name, progress=False).evaluation
assert collectives.world_size() == 2
(folder / f"rank-{collectives.rank()}.json").write_text(json.dumps(told))
"""

# 61 images: an epoch ends within a step, and the last batch of an evaluation is a short one.
DATA = {"name": "builtin:shapes?size=16&count=61", "crop_scale": [0.5, 1.0], "flip": True}
TRAIN = {
    "steps": 10,
    "ema_decay": 0.9,
    "accumulation": 2,
    "evaluate_every": 4,
    "checkpoint_every": 5,
    "evaluation_images": 37,
}


def run_of(system: str, **bottleneck: Any) -> dict[str, Any]:
    return tiny_values(system, bottleneck=bottleneck, data=DATA, **TRAIN)


RUNS = {
    "ae": run_of("ae"),
    "vae": run_of("vae"),
    "vqvae": run_of("vqvae"),
    "vqvae-restarts": run_of("vqvae", restart_below=0.9, decay=0.5, kmeans_init=False),
    "vqvae-loss": run_of("vqvae", codebook="loss"),
    "dvae": run_of("dvae"),
    "dvae-splits": run_of("dvae", split_below=0.9),
}


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    two.mkdir()
    (two / "runs.json").write_text(json.dumps(RUNS))
    run_two_ranks(script, [str(two)])
    told = [json.loads((two / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0].keys() == RUNS.keys()
    assert told[0] == told[1]  # both ranks return the same figures

    for name, values in RUNS.items():
        train_in_float64(values, one / name)
        compare(one / name, two / name)
        # What two ranks left after five steps, one rank ends alike.
        shutil.rmtree(two / name / "checkpoints" / "step-00000010")
        train_in_float64(values, two / name, resume=True)
        compare(one / name, two / name)


def train_in_float64(values: dict[str, Any], folder: Path, resume: bool = False) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        train(RunConfig.from_dict(values), folder, resume=resume, progress=False)
    finally:
        torch.set_default_dtype(torch.float32)


def compare(one: Path, two: Path) -> None:
    assert contents(one).keys() == contents(two).keys()
    assert (one / "config.yaml").read_bytes() == (two / "config.yaml").read_bytes()
    pairs = zip(*(read_lines(folder / "losses.jsonl") for folder in (one, two)), strict=True)
    for first, second in pairs:
        assert second == pytest.approx(first, abs=1e-9)
    for path in sorted(one.glob("checkpoints/*/*.safetensors")):
        tensors, others = load_file(path), load_file(two / path.relative_to(one))
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(others[key], tensor, rtol=0, atol=1e-9, msg=f"{path} {key}")
    figures = [
        json.loads((run / "tokenizer" / "evaluation.json").read_text()) for run in (one, two)
    ]
    for key in ("psnr", "ssim", "l1", "bits_per_dim", "codebook_usage", "num_images"):
        assert figures[1][key] == pytest.approx(figures[0][key], abs=1e-6), key
