"""Two ranks train what one rank trains with the same global batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from imagetok import ImageTokenizer
from imagetok.config import RunConfig
from imagetok.training import train
from tiny_runs import assert_close_runs, run_two_ranks, tiny_run, tiny_values
from toy_objective import toy

SCRIPT = """
import json, sys
from pathlib import Path

import torch

sys.path.insert(0, {tests!r})
import toy_objective
from imagetok.config import RunConfig
from imagetok.launch import collectives
from imagetok.training import train

torch.set_default_dtype(torch.float64)
folder = Path(sys.argv[1])
told = {{}}
for name, values in json.loads((folder / "runs.json").read_text()).items():
    told[name] = train(RunConfig.from_dict(values), folder / name, progress=False).evaluation
assert collectives.world_size() == 2
(folder / f"rank-{{collectives.rank()}}.json").write_text(json.dumps(told))
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
FREEZES: dict[str, tuple[list[str], ...]] = {
    "vqvae": (["encoder"], ["decoder"], ["bottleneck"], ["encoder", "bottleneck"]),
    "dvae": (["encoder"], ["encoder", "decoder"], ["bottleneck", "decoder"]),
}


def run_of(system: str, train: Any = None, **bottleneck: Any) -> dict[str, Any]:
    return tiny_values(system, bottleneck=bottleneck, data=DATA, **{**TRAIN, **(train or {})})


RUNS = {
    "ae": run_of("ae"),
    "vae": run_of("vae", {"gradient_checkpointing": True}),
    "vqvae": run_of("vqvae"),
    "vqvae-restarts": run_of("vqvae", restart_below=0.9, decay=0.5, kmeans_init=False),
    "vqvae-loss": run_of("vqvae", codebook="loss"),
    "dvae": run_of("dvae"),
    "dvae-hash": run_of("dvae", {"optimizer": {"fused": True}}, noise="hash"),
    "dvae-splits": run_of("dvae", split_below=0.9),
    "objective": run_of("vqvae", {"objectives": [toy()], "optimizer": {"epsilon": 1e-4}}),
}


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    runs = RUNS | frozen_runs(tmp_path / "saved")
    (two / "runs.json").write_text(json.dumps(runs))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent.parent)))
    run_two_ranks(script, [str(two)])
    told = [json.loads((two / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0].keys() == runs.keys()
    assert told[0] == told[1]  # both ranks return the same figures
    for name, values in runs.items():
        config, precision = RunConfig.from_dict(values), 1e-12 if name == "objective" else 1e-9
        train(config, one / name, progress=False)
        assert_equal_runs(one / name, two / name, precision)
        # What two ranks left after five steps, one rank ends alike.
        shutil.rmtree(two / name / "checkpoints" / f"step-{config.train.steps:08d}")
        train(config, two / name, resume=True, progress=False)
        assert_equal_runs(one / name, two / name, precision)


def frozen_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Runs from a saved tokenizer, of which parts are frozen."""
    runs = {}
    for system, freezes in FREEZES.items():
        saved = str(folder / system)
        ImageTokenizer.from_config(tiny_run(system).tokenizer).save_pretrained(saved)
        for parts in freezes:
            changes = {"init_from": saved, "freeze": parts, "steps": 2, "checkpoint_every": 1}
            runs[f"{system} {' '.join(parts)}"] = run_of(system, changes)
    return runs


def assert_equal_runs(one: Path, two: Path, tolerance: float) -> None:
    assert_close_runs(one, two, tolerance)
    assert (one / "config.yaml").read_bytes() == (two / "config.yaml").read_bytes()
    figures = [
        json.loads((run / "tokenizer" / "evaluation.json").read_text()) for run in (one, two)
    ]
    for key in ("psnr", "ssim", "l1", "bits_per_dim", "codebook_usage", "num_images"):
        assert figures[1][key] == pytest.approx(figures[0][key], abs=1e-6), key
