"""What the command line shows: plans, figures, and what a tokenizer is."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from imagetok.bottlenecks import DiscreteBottleneck
from imagetok.config import RunConfig
from imagetok.config.recipes import dump_recipe
from imagetok.evaluate import Evaluation
from imagetok.files import file_sha256
from imagetok.hub import EVALUATED_KEY, EVALUATION_FILE, MODEL_FILE
from imagetok.images import grid_image
from imagetok.metrics import psnr
from imagetok.tokenizer import ImageTokenizer
from imagetok.training.folder import save_picture
from imagetok.training.plan import plan_run

UNITS = {"psnr": "dB", "bits_per_dim": "bits", "bits_per_pixel": "bits"}
GIB = 2**30


def show(text: str = "") -> None:
    """Print text as it is, however narrow the terminal: paths and hashes stay whole."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def show_table(title: str, rows: Mapping[str, str]) -> None:
    """Print a title and aligned lines of names and values."""
    width = max(len(name) for name in rows)
    show(title)
    for name, value in rows.items():
        show(f"  {name:<{width}}  {value}")


def show_plan(config: RunConfig) -> None:
    """Print a resolved config, its sizes and its memory, training nothing.

    Raises:
        ConfigError: As `plan_run`.
    """
    plan = plan_run(config)
    show(dump_recipe(config))
    grid, pixels = plan.grid_size, plan.image_size
    activations = plan.activation_bytes * plan.images
    rows = {
        "image": f"{pixels[0]} x {pixels[1]} pixels, {config.tokenizer.channels} channels",
        "grid": f"{grid[0]} x {grid[1]} = {grid[0] * grid[1]} positions",
        "codebook": f"{plan.codebook_size} codes" if plan.codebook_size else "none: continuous",
        **{f"parameters, {name}": f"{count:,}" for name, count in plan.parameters.items()},
        "parameters": f"{sum(plan.parameters.values()):,}",
        "memory of weights": f"{plan.state_bytes / GIB:.3f} GiB a process, with gradients and "
        "optimizer",
        "memory of activations": f"about {activations / GIB:.3f} GiB in float32, for {plan.images} "
        "images at once over all processes",
    }
    show_table("plan", rows)


def show_evaluation(figures: Evaluation, name: str) -> None:
    """Print the figures of an evaluation."""
    protocol = figures["protocol"]
    rows = {
        key: "does not apply" if value is None else _number(key, value)
        for key, value in figures.items()
        if value is None or isinstance(value, float | int)
    }
    rows["on"] = f"{protocol['dataset']}, {protocol['split']}"
    show_table(name, rows)


def _number(key: str, value: float) -> str:
    text = str(value) if isinstance(value, int) else f"{value:.4f}"
    return f"{text} {UNITS[key]}" if key in UNITS else text


def describe_tokenizer(folder: Path) -> dict[str, Any]:
    """What a saved tokenizer is, as JSON-like values.

    Raises:
        ModelFileError: The folder holds no whole tokenizer.
    """
    tokenizer = ImageTokenizer.from_pretrained(folder)
    assert tokenizer.config is not None
    discrete = isinstance(tokenizer.bottleneck, DiscreteBottleneck)
    sha256 = file_sha256(folder / MODEL_FILE)
    return {
        "bottleneck": tokenizer.config.bottleneck.type,
        "image_size": list(tokenizer.image_size),
        "channels": tokenizer.config.channels,
        "grid_size": list(tokenizer.grid_size),
        "num_tokens": tokenizer.num_tokens,
        "codebook_size": tokenizer.codebook_size if discrete else None,
        "latent_dim": tokenizer.bottleneck.latent_dim,
        "parameters": sum(tensor.numel() for tensor in tokenizer.state_dict().values()),
        "fingerprint": tokenizer.fingerprint,
        "sha256": sha256,
        "config": tokenizer.config.to_dict(),
        "evaluation": _read_figures(folder / EVALUATION_FILE, sha256),
    }


def _read_figures(path: Path, sha256: str) -> Evaluation | None:
    """The figures in a file; None where it is missing, damaged or of other weights."""
    try:
        figures = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    fits = isinstance(figures, dict) and figures.get(EVALUATED_KEY) == sha256
    return figures if fits and "protocol" in figures else None


def show_info(folder: Path, as_json: bool) -> None:
    """Print what a saved tokenizer is."""
    facts = describe_tokenizer(folder)
    if as_json:
        show(json.dumps(facts, indent=2))
        return
    figures, config = facts.pop("evaluation"), facts.pop("config")
    show_table(str(folder), {key: _text(value) for key, value in facts.items()})
    show_table("config", {key: json.dumps(value) for key, value in config.items()})
    if figures is None:
        show("figures: not measured; run imagetok evaluate")
    else:
        show_evaluation(figures, "figures")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " x ".join(str(side) for side in value)
    return "does not apply" if value is None else str(value)


def write_reconstructions(
    tokenizer: ImageTokenizer, pictures: Sequence[Path], output: Path
) -> None:
    """Write a picture of originals above reconstructions, and print the PSNR of each."""
    x = tokenizer.preprocess(list(pictures)).float() / 255
    x_hat = tokenizer.reconstruct(x, output="pt")
    assert isinstance(x_hat, Tensor)
    x_hat = x_hat.float().cpu()
    save_picture(grid_image([x, x_hat]), output)
    values = psnr(x_hat, x).tolist()
    rows = {str(p): f"{value:.2f} dB" for p, value in zip(pictures, values, strict=True)}
    show_table("PSNR", rows)
    show(f"written: {output}")
