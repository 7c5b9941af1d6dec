"""Commands in fresh processes, beside an older version: start-up and the quickstart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.loading import make_jpeg
from benchmarks.measurement import Case, Medians
from benchmarks.variant_process import Runs, Timed, Variant

PROGRAM = "import sys; from imagetok.cli import main; sys.exit(main(sys.argv[1:]))"

ENCODE = (
    "import sys; from imagetok import ImageTokenizer; "
    "print(ImageTokenizer.from_pretrained(sys.argv[1]).encode(sys.argv[2]).tolist())"
)

MOST_DECIBELS = 0.2
"""How far the quickstarts' PSNR may be apart."""


def _run(tree: Path | None, arguments: Sequence[str]) -> str:
    """What a program of the installed imagetok, or of a checkout's, prints."""
    paths = [*([] if tree is None else [str(tree / "tokenizers")]), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if run.returncode:
        raise RuntimeError(run.stderr)
    return run.stdout


def make_command(tree: Path | None, name: str) -> Runs:
    """`imagetok info` of a small tokenizer, or the ids of one image by it."""
    import torch

    from imagetok import ImageTokenizer, load_recipe

    folder = tempfile.TemporaryDirectory(prefix="imagetok-benchmark-")
    torch.manual_seed(0)
    tokenizer = ImageTokenizer.from_config(load_recipe("vqvae-shapes").tokenizer)
    tokenizer.save_pretrained(Path(folder.name) / "tokenizer")
    saved, image = str(Path(folder.name) / "tokenizer"), Path(folder.name) / "image.jpg"
    image.write_bytes(make_jpeg(64, 90))
    commands = {"info": [PROGRAM, "info", saved], "encode": [ENCODE, saved, str(image)]}

    def run(kept: object = folder) -> str:
        return _run(tree, commands[name])

    return {"": run}


def make_import() -> Runs:
    """`import torch` and nothing else."""
    return {"": lambda: _run(None, ["import torch"])}


def make_quickstart(tree: Path | None) -> Runs:
    """`imagetok quickstart`; its result is the PSNR."""

    def run() -> Timed:
        with tempfile.TemporaryDirectory(prefix="imagetok-benchmark-") as folder:
            run_folder = Path(folder) / "run"
            started = time.perf_counter()
            _run(tree, [PROGRAM, "quickstart", "--output-dir", str(run_folder)])
            seconds = time.perf_counter() - started
            text = (run_folder / "tokenizer" / "evaluation.json").read_text(encoding="utf-8")
        return Timed(float(json.loads(text)["psnr"]), seconds)

    return {"": run}


def _different_texts(part: str, expected: str, found: str) -> float:
    return float(expected != found)


def _different_psnr(part: str, expected: float, found: float) -> float:
    return float(abs(expected - found) > MOST_DECIBELS)


def _over_import(medians: Medians) -> dict[str, float]:
    ours, torch = medians["imagetok", ""], medians["import torch", ""]
    return {"imagetok over import torch": ours / torch}


def cases(tree: Path | None) -> Iterator[Case]:
    """Start-up always, and the quickstart where there is something to compare it with."""
    for name, title in (("info", "`imagetok info`"), ("encode", "the ids of one image")):
        yield _case(
            f"start-{name}",
            f"{title} in a fresh process, against an older version and `import torch`",
            partial(make_command, name=name),
            tree,
            difference=_different_texts if name == "encode" else None,
            references=[Variant("import torch", make_import)],
            derive=_over_import,
        )
    if tree is not None:
        yield _case(
            "quickstart",
            "`imagetok quickstart`, against an older version",
            make_quickstart,
            tree,
            difference=_different_psnr,
            runs_once=True,
        )


def _case(
    name: str, about: str, make: Callable[[Path | None], Runs], tree: Path | None, **further: Any
) -> Case:
    older = None
    if tree is not None:  # its own version writes what it reads
        older = Variant(f"imagetok in {tree.name}", partial(make, tree), tree=tree)
    return Case(
        name,
        about,
        [Variant("imagetok", partial(make, None))],
        older,
        keeps=False,
        has_memory=False,
        **further,
    )
