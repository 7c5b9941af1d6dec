"""The commands about tokenizers: to train, to measure, to use one, and to see what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from imagetok.cli.options import (
    DATASET_HELP,
    TOKENIZER_HELP,
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    ImageColumnOption,
    ImportOption,
    MaxErrorRateOption,
    MaxPixelsOption,
    PrivateOption,
    RevisionOption,
    SplitOption,
    SubsetOption,
    TokenizerOption,
    TokenizerRevisionOption,
    check_parent,
    dataset_options,
    given,
    load_alone,
    whole_option,
    with_reading_options,
)
from imagetok.config.recipe_folder import recipe_names

app = typer.Typer()

RecipeArgument = Annotated[
    str,
    typer.Argument(
        help=f"A recipe's name ({', '.join(recipe_names())}) or the path of a .yaml file.",
        show_default=False,
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.PATH=VALUE]...",
        help="Entries of the recipe to change, such as `train.steps=2000`, "
        "`data.name=./photos` or `train.optimizer.lr=1e-4`.",
        show_default=False,
    ),
]
RunDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder to write; without --resume it must not hold a run yet.",
        show_default=False,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on after the newest checkpoint in the folder; start anew if there is none, "
        "and leave a finished run as it is.",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show the config, sizes, a memory estimate and what the data is; do not train.",
    ),
]
PushToOption = Annotated[
    str | None,
    typer.Option(
        help="Repository on the Hub, `user/name`, that the trained tokenizer is pushed to; "
        "created before the first step if it is missing.",
        show_default=False,
    ),
]
PushEveryOption = Annotated[
    int | None,
    whole_option(
        "With --push-to: steps between pushes during training.",
        least=1,
        show_default=False,
    ),
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        help="Key of a further metric to measure. The option may be repeated.",
        show_default=False,
    ),
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")]


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
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    output_dir: RunDirOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    push_to: PushToOption = None,
    push_every: PushEveryOption = None,
    private: PrivateOption = None,
    plugins: ImportOption = None,
) -> None:
    """Train a tokenizer.

    Leaves `tokenizer/` (the trained tokenizer with its figures and a preview), `samples/`,
    `checkpoints/`, `config.yaml`, `losses.jsonl` and `metrics.jsonl` in the output folder.

    SIGTERM, SIGINT and SIGUSR1 save and stop (exit codes 143, 130, 138); the same command with
    `--resume` goes on from there, and may be queued again however it ended.

    On several GPUs: `accelerate launch scripts/train.py RECIPE ... --output-dir DIR`.
    """
    from imagetok.training.initial_model import load_run

    config = load_run(recipe, overrides or [])
    if dry_run:
        from imagetok.reports import show_plan, show_run_data

        show_plan(config)
        show_run_data(config)
        return
    if output_dir is None:
        raise typer.BadParameter("say where to write", param_hint="--output-dir")
    if push_every is not None:
        given(push_to, "--push-to")
    from imagetok.launch import collectives
    from imagetok.reports import show, show_evaluation, show_next
    from imagetok.training import PushPlan
    from imagetok.training import train as run_training

    push = None if push_to is None else PushPlan(push_to, push_every or 0, private)
    result = run_training(config, output_dir, resume=resume, push=push)
    if collectives.rank() == 0:
        if result.was_finished:
            show(f"the run in {output_dir} is finished; nothing was done")
        show_evaluation(result.evaluation, f"{result.tokenizer_dir}")
        folder = f"{result.tokenizer_dir}"
        if config.tokenizer.bottleneck.is_discrete:
            options = dataset_options(config.data.ref(config.data.split))
            show_next(("tokenize", "--tokenizer", folder, *options, "--output-dir", "tokens"))
        else:
            show_next(("reconstruct", "--tokenizer", folder, "photo.jpg"))
        if result.pushed is None:
            show_next(("push", folder, "user/name"))
        if result.pushed is not None:
            show(f"pushed: {result.pushed.url}")


@app.command()
@with_reading_options
def evaluate(
    reading: dict[str, Any],
    tokenizer: TokenizerOption,
    dataset: Annotated[str, typer.Option(help=DATASET_HELP, show_default=False)],
    tokenizer_revision: TokenizerRevisionOption = None,
    split: SplitOption = "test",
    subset: SubsetOption = None,
    revision: RevisionOption = None,
    image_column: ImageColumnOption = None,
    batch_size: BatchSizeOption = 32,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    metric: MetricOption = None,
    json_path: JsonOption = None,
    max_error_rate: MaxErrorRateOption = 0.01,
    max_pixels: MaxPixelsOption = None,
    plugins: ImportOption = None,
) -> None:
    """Measure a tokenizer: PSNR, SSIM, L1, bits, codebook usage and perplexity, or more by name.

    On several GPUs: `accelerate launch scripts/evaluate.py --tokenizer DIR --dataset NAME`.
    """
    from imagetok.data import DatasetRef, open_rows
    from imagetok.evaluation import evaluate as measure
    from imagetok.evaluation import join_processes
    from imagetok.files import write_json
    from imagetok.launch import collectives
    from imagetok.modelfile import EVALUATED_KEY
    from imagetok.reports import show_evaluation, show_next
    from imagetok.tokenizer import ImageTokenizer

    check_parent(json_path, "--json")
    loaded = ImageTokenizer.from_pretrained(
        tokenizer,
        revision=tokenizer_revision,
        device=join_processes(device),
        dtype=dtype,
        max_pixels=max_pixels,
    )
    assert loaded.origin is not None
    ref = DatasetRef(dataset, split, subset, revision, image_column, **reading)
    rows = open_rows(ref)
    figures = measure(
        loaded, rows, metrics=metric or (), batch_size=batch_size, max_error_rate=max_error_rate
    )
    figures = {EVALUATED_KEY: loaded.origin.sha256, **figures}
    if collectives.rank() > 0:
        return
    show_evaluation(figures, tokenizer)
    if json_path is not None:
        write_json(json_path, figures)
    if loaded.is_discrete:
        options = ["--tokenizer", tokenizer, *dataset_options(ref)]
        if tokenizer_revision is not None:
            options += ["--tokenizer-revision", tokenizer_revision]
        if max_pixels is not None:
            options += ["--max-pixels", str(max_pixels)]
        show_next(("tokenize", *options, "--output-dir", "tokens"))
    if loaded.revision is None:
        show_next(("push", tokenizer, "user/name"))


@app.command()
def reconstruct(
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    tokenizer: TokenizerOption,
    output: Annotated[
        Path, typer.Option(help="PNG to write: originals above, reconstructions below.")
    ] = Path("reconstructions.png"),
    tokenizer_revision: TokenizerRevisionOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    max_pixels: MaxPixelsOption = None,
    plugins: ImportOption = None,
) -> None:
    """Encode and decode images, and show originals above reconstructions."""
    from imagetok.reports import write_reconstructions

    check_parent(output, "--output")
    model = load_alone(tokenizer, tokenizer_revision, device, dtype, max_pixels)
    write_reconstructions(model, images, output)


@app.command()
def encode(
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    tokenizer: TokenizerOption,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write instead of the screen: `.npy` for an array with the images in "
            "front, or `.json`.",
            show_default=False,
        ),
    ] = None,
    tokenizer_revision: TokenizerRevisionOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    max_pixels: MaxPixelsOption = None,
    plugins: ImportOption = None,
) -> None:
    """Turn images into token ids: a grid on the screen, or a file.

    For a whole dataset use `imagetok tokenize`.
    """
    from imagetok.reports import show_ids, write_ids

    if output is not None and output.suffix not in (".npy", ".json"):
        raise typer.BadParameter(
            f"'{output}' ends in neither .npy nor .json", param_hint="--output"
        )
    check_parent(output, "--output")
    model = load_alone(tokenizer, tokenizer_revision, device, dtype, max_pixels)
    ids = model.encode(list(images)).cpu()
    if output is None:
        show_ids(ids, images)
    else:
        write_ids(model, ids, images, output)


@app.command()
def info(
    tokenizer: Annotated[str, typer.Argument(help=TOKENIZER_HELP, show_default=False)],
    tokenizer_revision: TokenizerRevisionOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, including the whole config.")
    ] = False,
    plugins: ImportOption = None,
) -> None:
    """Show what a tokenizer is: bottleneck, token grid, sizes, fingerprint, measured figures.

    For a tokenizer on the Hub only the header of its file is fetched, not the weights.
    """
    from imagetok.reports import show_info

    show_info(tokenizer, tokenizer_revision, as_json=as_json)
