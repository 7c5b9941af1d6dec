"""Two ranks train what one rank trains with the same global batch."""

from __future__ import annotations

import json
from pathlib import Path

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

from imagetok import distributed
from imagetok.config import RunConfig
from imagetok.training import train

torch.set_default_dtype(torch.float64)
folder = Path(sys.argv[1])
told = {}
for name, values in json.loads((folder / "runs.json").read_text()).items():
    told[name] = train(RunConfig.from_dict(values), folder / name, progress=False).evaluation
assert distributed.world_size() == 2
(folder / f"rank-{distributed.rank()}.json").write_text(json.dumps(told))
"""

TRAIN = {"ema_decay": 0.9, "evaluate_every": 2, "checkpoint_every": 3, "accumulation": 2}
RUNS = {
    "ae": tiny_values("ae", **TRAIN),
    "vae": tiny_values("vae", **TRAIN),
    "vqvae": tiny_values("vqvae", **TRAIN),
    "vqvae-restarts": tiny_values(
        "vqvae", bottleneck={"restart_below": 0.9, "decay": 0.5, "kmeans_init": False}, **TRAIN
    ),
    "vqvae-loss": tiny_values("vqvae", bottleneck={"codebook": "loss"}, **TRAIN),
    "dvae": tiny_values("dvae", **TRAIN),
    "dvae-splits": tiny_values("dvae", bottleneck={"split_below": 0.9}, **TRAIN),
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

    torch.set_default_dtype(torch.float64)
    try:
        for name, values in RUNS.items():
            train(RunConfig.from_dict(values), one / name, progress=False)
    finally:
        torch.set_default_dtype(torch.float32)
    for name in RUNS:
        compare(one / name, two / name)


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
