"""Parts from outside the package, through every door: nothing inside knows their names.

The quantizer is the one that CONTRIBUTING shows, run as it is printed; the other parts stand in
`toy_parts.py`, the objective with a learner of its own in `toy_objective.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from loopback_hub import LoopbackHub
from readme_blocks import commands, marked
from tiny_runs import contents

MODULES = ("signs", "toy_parts", "toy_objective")
IMPORTS = [word for module in MODULES for word in ("--import", module)]
DATA = "builtin:shapes?size=16&count=64"
RECIPE: Mapping[str, Any] = {
    "tokenizer": {
        "image_size": [16, 16],
        "encoder": {"type": "patches"},
        "bottleneck": {"type": "signs", "bits": 3},
        "decoder": {"type": "patches"},
        "likelihood": {"type": "log_cosh"},
    },
    "data": {"name": DATA, "num_workers": 1},
    "train": {
        "steps": 6,
        "batch_size": 8,
        "optimizer": {"lr": 1e-3},
        "ema_decay": 0.9,
        "objectives": [{"type": "toy", "learner": {"optimizer": {"lr": 1e-3}, "start_step": 1}}],
        "checkpoint_every": 2,
        "keep_last": 10,
    },
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def folder(tmp_path: Path, root: Path) -> Path:
    """A folder with the modules and a recipe, as a user has them."""
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (tmp_path / "signs.py").write_text(marked(text, "quantizer").text, encoding="utf-8")
    for path in ("plugin/toy_parts.py", "toy_objective.py"):
        shutil.copy(root / "tests" / path, tmp_path)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(dict(RECIPE)))
    return tmp_path


def imagetok(
    folder: Path, *arguments: str, code: int = 0, ranks: int = 1, script: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, in the folder."""
    program = [sys.executable, "-c", "from imagetok.cli import main; main()"]
    if ranks > 1:
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        program += ["--nproc_per_node", str(ranks), script]
    run = subprocess.run(
        [*program, *arguments],
        cwd=folder,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == code, run.stderr
    return run


def install(folder: Path) -> str:
    """Make an installed package of the modules: the PYTHONPATH that has it."""
    site = folder / "site"
    site.mkdir()
    for module in MODULES:
        (folder / f"{module}.py").rename(site / f"{module}.py")
    info = site / "toy_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-parts\nVersion: 1.0\n")
    lines = ["[imagetok.parts]", *(f"{module} = {module}" for module in MODULES)]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])


def checkpoint(run: Path) -> dict[str, bytes]:
    return contents(run / "checkpoints" / "step-00000006")


def kill_after_a_checkpoint(folder: Path, arguments: Sequence[str]) -> None:
    """Start a run, and kill it as soon as its first checkpoint stands."""
    program = [sys.executable, "-c", "from imagetok.cli import main; main()", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        program, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not list(folder.glob("killed/checkpoints/step-*")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_parts_reached_by_import_go_through_real_processes(
    folder: Path, root: Path, logged_in: LoopbackHub
) -> None:
    train = ["train", "toy.yaml", *IMPORTS]
    imagetok(folder, *train, "--output-dir", "whole")
    whole = checkpoint(folder / "whole")
    assert {"toy.safetensors", "toy-optimizer.safetensors"} <= whole.keys()

    # Killed and resumed: it must be told of the modules again, and says so.
    more = ["train.steps=200", "--output-dir", "killed"]
    kill_after_a_checkpoint(folder, [*train, *more])
    told = imagetok(folder, "train", "toy.yaml", "--resume", "--output-dir", "killed", code=2)
    assert "unknown" in told.stderr
    assert "--import" in told.stderr
    done = sorted((folder / "killed" / "checkpoints").glob("step-*"))[-1].name
    steps = max(6, 2 + int(done.removeprefix("step-")))
    for output in ("killed", "straight"):
        resume = ["--resume", f"train.steps={steps}", "--output-dir", output]
        imagetok(folder, *train, *resume)
    last = f"checkpoints/step-{steps:08d}"
    assert contents(folder / "killed" / last) == contents(folder / "straight" / last)

    # Two ranks and streaming.
    script = str(root / "scripts" / "train.py")
    two = [*train[1:], "--output-dir", "two"]
    imagetok(folder, *two, ranks=2, script=script)
    assert checkpoint(folder / "two").keys() == whole.keys()
    imagetok(
        folder, *train, "data.streaming=true", "data.num_workers=0", "--output-dir", "streamed"
    )

    # Evaluation, card, Hub.
    source = ["--dataset", DATA, "--split", "test"]
    tokenizer = ["--tokenizer", "whole/tokenizer"]
    metric = ["--metric", "worst_pixel", "--json", "figures.json"]
    imagetok(folder, "evaluate", *IMPORTS, *tokenizer, *source, *metric)
    figures = json.loads((folder / "figures.json").read_text())
    assert 0 < figures["worst_pixel"] <= 1
    assert 0 < figures["codebook_usage"] <= 1
    card = (folder / "whole" / "tokenizer" / "README.md").read_text()
    assert "sign tokenizer" in card
    imagetok(folder, "push", *IMPORTS, "whole/tokenizer", "user/signs")
    pushed = imagetok(folder, "info", *IMPORTS, "user/signs")
    assert "signs" in pushed.stdout

    # Ids: a job, its check, reading and decoding.
    ids = ["--tokenizer", "user/signs"]
    imagetok(folder, "tokenize", *IMPORTS, *ids, *source, "--output-dir", "tokens")
    deep = ["--deep", "--rows", "8"]
    imagetok(folder, "verify", *IMPORTS, "tokens", *deep)
    rows = ["--rows", "0:4", "--output", "grid.png"]
    imagetok(folder, "decode", *IMPORTS, "tokens", *ids, *rows)
    assert (folder / "grid.png").stat().st_size
    code = (
        "import signs, toy_parts, torch; from imagetok import ImageTokenizer;"
        "from imagetok.shards import TokenDataset;"
        "tok = ImageTokenizer.from_pretrained('user/signs');"
        "batch = next(iter(TokenDataset('tokens', batch_size=4, tokenizer=tok)));"
        "assert (tok.token_shape, tok.depth, tok.codebook_sizes) == ((4, 4, 2), 2, (8, 8));"
        "ids = batch['ids'].reshape(4, *tok.token_shape);"
        "assert tok.decode(ids, output='pt').shape == (4, 3, 16, 16);"
        "assert torch.equal(tok.unsequence(tok.sequence(ids)), ids)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=120)

    # Whoever does not know the parts is told which, and what to do.
    told = imagetok(folder, "info", "whole/tokenizer", code=2)
    assert "unknown encoder 'patches'" in told.stderr
    assert told.stderr.count("--import") == 1


def test_parts_of_an_installed_package_need_no_import(folder: Path) -> None:
    path = install(folder)
    imagetok(folder, "train", "toy.yaml", "--output-dir", "run", PYTHONPATH=path)
    source = ["--dataset", DATA, "--split", "test", "--output-dir", "tokens"]
    imagetok(folder, "tokenize", "--tokenizer", "run/tokenizer", *source, PYTHONPATH=path)
    deep = ["--deep", "--rows", "4", "--tokenizer", "run/tokenizer"]
    imagetok(folder, "verify", "tokens", *deep, PYTHONPATH=path)


def test_contributing_is_run_as_printed(folder: Path, root: Path) -> None:
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (folder / "signs.yaml").write_text(marked(text, "recipe").text)
    for command in commands(marked(text, "plug-in").text):
        assert command[0] == "imagetok"
        imagetok(folder, *command[1:])
    assert (folder / "tokens" / "manifest.json").is_file()
