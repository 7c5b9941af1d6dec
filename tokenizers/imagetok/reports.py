"""What the command line shows: plans, figures, and what a tokenizer is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor

from imagetok.bottlenecks import DiscreteBottleneck
from imagetok.config import RunConfig
from imagetok.evaluate import Evaluation
from imagetok.files import atomic_path, file_sha256
from imagetok.hub import EVALUATED_KEY, EVALUATION_FILE, MODEL_FILE
from imagetok.images import grid_image
from imagetok.metrics import psnr
from imagetok.tokenizer import ImageTokenizer
from imagetok.training.plan import plan_run

UNITS = {"psnr": "dB", "bits_per_dim": "bits", "bits_per_pixel": "bits"}


def _table(title: str, rows: Mapping[str, str]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def show_plan(config: RunConfig) -> None:
    """Print a resolved config, its sizes and its memory, training nothing."""
    plan = plan_run(config)
    print_yaml = yaml.safe_dump(config.to_dict(), sort_keys=False)
    console = Console()
    console.print(print_yaml, highlight=False, markup=False)
    total = sum(plan.parameters.values())
    gib = 2**30
    activations = plan.activation_bytes * plan.images
    rows = {
        "image": f"{plan.image_size[0]} x {plan.image_size[1]} pixels",
        "grid": f"{plan.grid_size[0]} x {plan.grid_size[1]} = "
        f"{plan.grid_size[0] * plan.grid_size[1]} positions",
        "codebook": f"{plan.codebook_size} codes" if plan.codebook_size else "none: continuous",
        **{f"parameters, {name}": f"{count:,}" for name, count in plan.parameters.items()},
        "parameters": f"{total:,}",
        "memory of weights, gradients, optimizer": f"{plan.state_bytes / gib:.2f} GiB a process",
        "memory of activations, about": f"{activations / gib:.2f} GiB for {plan.images} images "
        "at once, over all processes, in float32",
    }
    console.print(_table("Plan", rows))


def show_evaluation(figures: Evaluation, name: str) -> None:
    """Print the figures of an evaluation."""
    protocol = figures["protocol"]
    rows = {
        key: "does not apply" if value is None else _number(key, value)
        for key, value in figures.items()
        if value is None or isinstance(value, float | int)
    }
    rows["on"] = f"{protocol['dataset']}, {protocol['split']}"
    Console().print(_table(name, rows))


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
    path = folder / EVALUATION_FILE
    figures = json.loads(path.read_bytes()) if path.exists() else None
    if figures is not None and figures.get(EVALUATED_KEY) != sha256:
        figures = None
    return {
        "system": tokenizer.config.bottleneck.type,
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
        "evaluation": figures,
    }


def show_info(folder: Path, as_json: bool) -> None:
    """Print what a saved tokenizer is."""
    facts = describe_tokenizer(folder)
    if as_json:
        Console().print_json(json.dumps(facts))
        return
    figures = facts.pop("evaluation")
    config = facts.pop("config")
    Console().print(_table(str(folder), {key: str(value) for key, value in facts.items()}))
    Console().print(yaml.safe_dump(config, sort_keys=False), highlight=False, markup=False)
    if figures is None:
        Console().print("figures: not measured")
    else:
        show_evaluation(figures, "figures")


def write_reconstructions(
    tokenizer: ImageTokenizer, pictures: Sequence[Path], output: Path
) -> None:
    """Write a picture of originals above reconstructions, and print the PSNR of each."""
    x = tokenizer.preprocess(list(pictures)).float() / 255
    x_hat = tokenizer.reconstruct(x, output="pt")
    assert isinstance(x_hat, Tensor)
    x_hat = x_hat.float().cpu()
    with atomic_path(output) as temporary:
        grid_image([x, x_hat]).save(temporary, format="PNG")
    values = psnr(x_hat, x).tolist()
    rows = {str(p): f"{value:.2f} dB" for p, value in zip(pictures, values, strict=True)}
    Console().print(_table("PSNR", rows))
    Console().print(f"written: {output}")
