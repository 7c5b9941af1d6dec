"""The commands about tokenized datasets: `tokenize`, `verify` and `decode`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    RevisionOption,
    SplitOption,
    SubsetOption,
    TokenizerRevisionOption,
    TokensArgument,
    check_parent,
    given,
    load_alone,
    whole_option,
    with_reading_options,
)

if TYPE_CHECKING:
    from imagetok.shards.manifest import Totals
    from imagetok.shards.token_folder import TokenFolder
    from imagetok.tokenizer import ImageTokenizer

app = typer.Typer()

DiscreteTokenizerOption = Annotated[
    str | None,
    typer.Option(help=f"A VQ-VAE or dVAE. {TOKENIZER_HELP}", show_default=False),
]
DatasetOption = Annotated[str | None, typer.Option(help=DATASET_HELP, show_default=False)]
OutputDirOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder to fill: new, empty, or of the same job, which is then continued.",
        show_default=False,
    ),
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMNS",
        help="Columns to carry along as they are: `caption,label`. The option may be repeated.",
        show_default=False,
    ),
]
ResizeOption = Annotated[
    str,
    typer.Option(
        help="`crop` to the tokenizer's size, or `native`: each image keeps its own, rounded "
        "down to whole tokens."
    ),
]
RowsPerShardOption = Annotated[
    int, whole_option("Rows of a shard, the work that a process takes at a time.", least=1)
]
WorkersOption = Annotated[
    int, whole_option("Processes that decode images; 0 uses threads instead.", least=0)
]
ThreadsOption = Annotated[int | None, whole_option("Threads of the encoder on a CPU.", least=1)]
StreamingOption = Annotated[
    bool,
    typer.Option(
        "--streaming",
        help="Read files in sequence: nothing is downloaded or converted beforehand, and each "
        "file is done by one process.",
    ),
]
CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the encoder first: some seconds, then more images a second. The job records "
        "it, as ids may differ by rounding.",
    ),
]
LimitOption = Annotated[
    int | None, whole_option("Number of rows to take at most, from the first on.", least=1)
]
RankOption = Annotated[
    int | None,
    whole_option(
        "Number of this process, from 0, if no launcher assigns it: "
        "`--rank $SLURM_ARRAY_TASK_ID --world-size $SLURM_ARRAY_TASK_COUNT`."
    ),
]
WorldSizeOption = Annotated[
    int | None, whole_option("With --rank: how many processes fill the folder.")
]
AllowMixedNumericsOption = Annotated[
    bool,
    typer.Option(
        "--allow-mixed-numerics",
        help="Continue a job that was begun on another device or with other numeric settings; "
        "each shard records its own.",
    ),
]
FinalizeOption = Annotated[
    Path | None,
    typer.Option(
        help="Only write the manifest of this folder, whose shards are complete.",
        show_default=False,
    ),
]

JobDryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show rows, splits, labels and the tokens that would come; write nothing."
    ),
]

NOT_OF_THE_CONFIG = {"output_dir", "rank", "world_size", "finalize", "dry_run", "plugins"}
"""Parameters of `tokenize` that are not entries of a `TokenizeConfig`; all others are, by name."""


@app.command()
@with_reading_options
def tokenize(
    context: typer.Context,
    tokenizer: DiscreteTokenizerOption = None,
    tokenizer_revision: TokenizerRevisionOption = None,
    dataset: DatasetOption = None,
    output_dir: OutputDirOption = None,
    split: SplitOption = "train",
    subset: SubsetOption = None,
    revision: RevisionOption = None,
    image_column: ImageColumnOption = None,
    keep: KeepOption = None,
    resize: ResizeOption = "crop",
    max_pixels: MaxPixelsOption = None,
    rows_per_shard: RowsPerShardOption = 16384,
    batch_size: BatchSizeOption = 32,
    workers: WorkersOption = 0,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    compile: CompileOption = False,
    streaming: StreamingOption = False,
    limit: LimitOption = None,
    max_error_rate: MaxErrorRateOption = 0.01,
    rank: RankOption = None,
    world_size: WorldSizeOption = None,
    allow_mixed_numerics: AllowMixedNumericsOption = False,
    finalize: FinalizeOption = None,
    dry_run: JobDryRunOption = False,
    plugins: ImportOption = None,
) -> None:
    """Turn a dataset of images into parquet shards of token ids, each row exactly once.

    After a kill at any moment the same command goes on. Processes share the work without talking to
    each other: start the command several times, with `accelerate launch
    scripts/tokenize_dataset.py ...` or with `--rank` and `--world-size`.

    Leaves `data/` for `datasets.load_dataset(OUTPUT_DIR)`, `errors/` with a reason for every row
    that could not be read, `job.json`, `manifest.json` with hashes and totals, and a dataset card.

    Exit code 0: every row is accounted for, and no more of them are unreadable than allowed.
    SIGTERM, SIGINT and SIGUSR1 stop it after the current batch (exit codes 143, 130, 138).
    """
    from imagetok.launch import find_rank_info
    from imagetok.reports import show_job_data, show_next, show_table
    from imagetok.shards import finalize as write_manifest
    from imagetok.tokenize_config import TokenizeConfig
    from imagetok.tokenizing.job_run import check_totals, run_job

    if finalize is not None:
        place, manifest = finalize, write_manifest(finalize)
        check_totals(manifest, finalize, f"{finalize}", max_error_rate)
    else:
        named = given(tokenizer, "--tokenizer")
        given(dataset, "--dataset")
        place = Path() if dry_run else given(output_dir, "--output-dir")
        options = {k: v for k, v in context.params.items() if k not in NOT_OF_THE_CONFIG}
        names = (name.strip() for name in ",".join(keep or ()).split(","))
        options["keep"] = [name for name in names if name]
        config = TokenizeConfig.from_options(**options)
        if dry_run:
            show_job_data(config, load_alone(named, tokenizer_revision, "cpu", config.dtype))
            return
        manifest = run_job(config, place, find_rank_info(rank, world_size))
    show_table(str(place), _summary(manifest.totals, manifest.throughput))
    of_local = () if tokenizer is None else ("--tokenizer", tokenizer)
    show_next(("decode", place, *of_local), ("push-dataset", place, "user/name-tokens"))


@app.command()
def verify(
    folder: TokensArgument,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split to check; with it, FOLDER may be the name of a dataset on the Hub.",
            show_default=False,
        ),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Tokenize a sample of the rows again, and compare."),
    ] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="With --deep: folder of the tokenizer; not needed if it is on the Hub.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="With --deep: where the images lie, if they came from a folder or a file.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[int, whole_option("With --deep: approximate number of rows.", least=1)] = 64,
    device: DeviceOption = "auto",
    plugins: ImportOption = None,
) -> None:
    """Check a tokenized dataset: hashes, counts, id ranges, features, holes and duplicates.

    Exit code 0 if it is sound, 1 with a line for each fault if it is not.
    """
    from imagetok.errors import TokenizingError
    from imagetok.reports import show
    from imagetok.shards.token_folder import open_folder
    from imagetok.shards.verification import verify as check
    from imagetok.tokenizing.deep_check import compare_rows

    place = folder if split is None else str(folder)
    report = check(place, split=split)
    show(str(report))
    if not report.is_sound:
        raise TokenizingError(f"'{folder}' has {len(report.faults)} faults")
    if not deep:
        return
    opened = open_folder(place, split=split)
    model = _load(opened, tokenizer, device, opened.job.numerics.dtype)
    found = compare_rows(opened, model, dataset, rows)
    show("\n".join(found.faults) or f"{found.rows} rows tokenized again: the same ids")
    if found.near_ties:
        show(f"{found.near_ties} of {found.ids} ids differ by rounding: two codes fit as well")
    if found.faults:
        raise TokenizingError(f"'{folder}' has {len(found.faults)} rows with other ids")


@app.command()
def decode(
    folder: TokensArgument,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Folder of the tokenizer that made the ids; not needed if it is on the Hub.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            help="Rows to show, counted over all shards, as `first:end`; by default the first 16.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="PNG to write.")] = Path("grid.png"),
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    plugins: ImportOption = None,
) -> None:
    """Show what the shards hold: images decoded from their ids, with their captions."""
    from imagetok.images.rendering import save_image
    from imagetok.reports import show
    from imagetok.shards.token_folder import open_folder
    from imagetok.tokenizing.row_preview import decode_rows, draw_grid, read_range

    check_parent(output, "--output")
    opened = open_folder(folder)
    some = range(min(16, opened.manifest.totals.rows))
    wanted = some if rows is None else read_range(rows)
    images, captions = decode_rows(opened, _load(opened, tokenizer, device, dtype), wanted)
    save_image(draw_grid(images, captions), output)
    show(f"written: {output}")


def _load(opened: TokenFolder, tokenizer: str | None, device: str, dtype: str) -> ImageTokenizer:
    """The tokenizer that is given, otherwise the one on the Hub that the job names."""
    source = opened.job.tokenizer
    if tokenizer is None and source.revision is not None:
        return load_alone(source.name, source.revision, device, dtype)
    return load_alone(given(tokenizer, "--tokenizer"), None, device, dtype)


def _summary(totals: Totals, throughput: Mapping[str, Any] | None) -> dict[str, str]:
    rows = {
        "rows in": f"{totals.rows_in:,}",
        "rows": f"{totals.rows:,}",
        "refused": f"{totals.refused:,}",
        "shards": f"{totals.shards:,}",
        "bytes": f"{totals.bytes:,}",
        "tokens": f"{totals.tokens:,}",
    }
    if totals.profiles_ignored:
        rows["colour profiles ignored"] = f"{totals.profiles_ignored:,}"
    if throughput is not None:
        rows["images a second"] = f"{throughput['images_per_second']:,.1f} in this process"
        rows["waiting for data"] = f"{throughput['waiting_share']:.0%} of the time"
    return rows
