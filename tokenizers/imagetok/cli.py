"""The command line: `imagetok`.

Commands import what they need when they run, so that `imagetok --help` is quick. Exit codes: 0 done
and accounted for; 2 bad arguments or input; 1 failed at work; 128 + n stopped by signal n.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from imagetok._version import __version__
from imagetok.config.recipes import load_recipe, recipe_names
from imagetok.errors import ImagetokError, UnreadableFileError

app = typer.Typer(
    help="Train, ship and use image tokenizers: dVAE, VQ-VAE and their continuous baselines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

TokenizerOption = Annotated[
    str, typer.Option("--tokenizer", help="Folder of a saved tokenizer.", show_default=False)
]
DeviceOption = Annotated[
    str, typer.Option(help="Where to run: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes a GPU.")
]
DtypeOption = Annotated[
    str, typer.Option(help="Of the networks: `float32`, `bfloat16` or `float16`.")
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(arguments)
    except ImagetokError as error:
        refused = isinstance(error, ValueError | TypeError | UnreadableFileError)
        _end(str(error), 2 if refused else 1, "--debug" in arguments)
    except Exception as error:
        _end(f"{type(error).__name__}: {error}", 1, "--debug" in arguments)


def _end(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    else:
        message = " ".join(message.split())
    typer.echo(f"imagetok: {message}", err=True)
    raise SystemExit(code)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"imagetok {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback of errors.")] = False,
) -> None:
    """Options in front of every command; `--debug` is read where errors are shown."""


@app.command()
def quickstart(
    system: Annotated[
        str, typer.Option(help="What to train: `vqvae`, `dvae`, `vae` or `ae`.")
    ] = "vqvae",
    output_dir: Annotated[
        Path, typer.Option(help="Folder to write; it must not hold a run yet.")
    ] = Path("imagetok-quickstart"),
) -> None:
    """Train, evaluate, save, load and use a small tokenizer on drawn shapes, offline.

    Takes some minutes on two CPU cores and ends with what to type next.
    """
    from imagetok.quickstart import run_quickstart

    run_quickstart(system, output_dir)


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help=f"A recipe's name ({', '.join(recipe_names())}) or the path of a .yaml file.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY.PATH=VALUE]...",
            help="Entries of the recipe to change, such as `train.steps=2000`, "
            "`data.name=./photos` or `train.optimizer.lr=1e-4`.",
            show_default=False,
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Folder to write; it must not hold a run yet.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show the config, sizes and a memory estimate; do not train.",
        ),
    ] = False,
) -> None:
    """Train a tokenizer.

    Leaves `tokenizer/` (the trained tokenizer with its figures and a picture), `samples/`,
    `checkpoints/`, `config.yaml`, `losses.jsonl` and `metrics.jsonl` in the output folder.

    On several GPUs: `accelerate launch scripts/train.py RECIPE ... --output-dir DIR`.
    """
    config = load_recipe(recipe, overrides or [])
    if dry_run:
        from imagetok.reports import show_plan

        show_plan(config)
        return
    if output_dir is None:
        raise typer.BadParameter("say where to write", param_hint="--output-dir")
    from imagetok.reports import show_evaluation
    from imagetok.training import train as run_training

    result = run_training(config, output_dir)
    show_evaluation(result.evaluation, f"{result.tokenizer_dir}")


@app.command()
def evaluate(
    tokenizer: TokenizerOption,
    dataset: Annotated[
        str,
        typer.Option(
            help="`builtin:shapes`, a folder of pictures or parquet files, a `save_to_disk` "
            "folder, or a name on the Hub.",
            show_default=False,
        ),
    ],
    split: Annotated[str, typer.Option(help="Split, or a part of one: `test[:1000]`.")] = "test",
    subset: Annotated[
        str | None, typer.Option(help="Configuration of a dataset that has several.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a dataset on the Hub.")] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Column of the pictures, where there are several.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images encoded at once.")] = 32,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    json_path: Annotated[
        Path | None, typer.Option("--json", help="File to write the figures to.")
    ] = None,
) -> None:
    """Measure a tokenizer: PSNR, SSIM, L1, bits, codebook usage and perplexity."""
    from imagetok.data import open_images
    from imagetok.evaluate import evaluate as measure
    from imagetok.files import file_sha256, write_atomic
    from imagetok.reports import show_evaluation

    loaded = _load(tokenizer, device, dtype)
    rows = open_images(dataset, split, subset=subset, revision=revision, image_column=image_column)
    sha256 = file_sha256(Path(tokenizer) / "model.safetensors")
    figures = {"tokenizer_sha256": sha256, **measure(loaded, rows, batch_size=batch_size)}
    show_evaluation(figures, tokenizer)
    if json_path is not None:
        write_atomic(json_path, (json.dumps(figures, indent=2) + "\n").encode())


@app.command()
def reconstruct(
    pictures: Annotated[list[Path], typer.Argument(help="Picture files.", show_default=False)],
    tokenizer: TokenizerOption,
    output: Annotated[
        Path, typer.Option(help="PNG to write: originals above, reconstructions below.")
    ] = Path("reconstructions.png"),
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
) -> None:
    """Encode and decode pictures, and show both side by side."""
    from imagetok.reports import write_reconstructions

    write_reconstructions(_load(tokenizer, device, dtype), pictures, output)


@app.command()
def info(
    tokenizer: Annotated[
        str, typer.Argument(help="Folder of a saved tokenizer.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a tokenizer is: system, token grid, sizes, fingerprint and measured figures."""
    from imagetok.reports import show_info

    show_info(Path(tokenizer), as_json)


def _load(tokenizer: str, device: str, dtype: str) -> Any:
    from imagetok.evaluate import join_processes
    from imagetok.tokenizer import ImageTokenizer

    place = join_processes() if device == "auto" else device
    return ImageTokenizer.from_pretrained(tokenizer, device=place, dtype=dtype)
