"""Options that several commands take, and what is done with their values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from imagetok.tokenizer import ImageTokenizer

T = TypeVar("T")

TOKENIZER_HELP = "Folder of a saved tokenizer, or its name on the Hub: `user/name`."
DATASET_HELP = (
    "`builtin:shapes`, a folder of images, parquet, arrow or tar (WebDataset) files, a "
    "`save_to_disk` folder, or a name on the Hub."
)

TokenizerOption = Annotated[
    str, typer.Option("--tokenizer", help=TOKENIZER_HELP, show_default=False)
]
TokenizerRevisionOption = Annotated[
    str | None,
    typer.Option(help="Commit, branch or tag of a tokenizer on the Hub.", show_default=False),
]
TokensArgument = Annotated[
    Path, typer.Argument(help="Folder filled by `imagetok tokenize`.", show_default=False)
]
SplitOption = Annotated[str, typer.Option(help="Split, or a part of one: `test[:1000]`.")]
SubsetOption = Annotated[
    str | None, typer.Option(help="Configuration of a dataset that has several.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Revision of a dataset on the Hub.")]
ImageColumnOption = Annotated[
    str | None, typer.Option(help="Column that holds the images, if there are several.")
]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Images encoded at once.")]
DeviceOption = Annotated[
    str, typer.Option(help="Where to run: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes a GPU.")
]
DtypeOption = Annotated[
    str, typer.Option(help="Type of the networks: `float32`, `bfloat16` or `float16`.")
]


def load_parts(context: typer.Context, modules: list[str] | None) -> list[str] | None:
    """Import the modules of `--import`, whose parts register themselves, before configs are read.

    Raises:
        ConfigError: A module cannot be imported.
    """
    if modules and not context.resilient_parsing:  # which is set while a shell completes a line
        from imagetok.config.registry import load_plugins

        load_plugins(modules)
    return modules


ImportOption = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        callback=load_parts,
        help="Python module with parts of your own, installed or in the current folder; it is "
        "imported first. The option may be repeated.",
        show_default=False,
    ),
]
PrivateOption = Annotated[
    bool | None,
    typer.Option(
        "--private/--public",
        help="Visibility of a repository that is created; otherwise the account's setting.",
        show_default=False,
    ),
]


def given(value: T | None, option: str) -> T:
    """The value of an option that is required here, though not by every use of the command."""
    if value is None:
        raise typer.BadParameter("say which one", param_hint=option)
    return value


def check_parent(path: Path | None, option: str) -> None:
    """Refuse a file that cannot be written, before the work rather than after it."""
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder '{path.parent}'", param_hint=option)


def load_alone(tokenizer: str, revision: str | None, device: str, dtype: str) -> ImageTokenizer:
    """Load a tokenizer for a process that works on its own."""
    from imagetok.launch import RankInfo, find_device
    from imagetok.tokenizer import ImageTokenizer

    own = find_device(device, RankInfo(0, 1, 0))
    return ImageTokenizer.from_pretrained(tokenizer, revision=revision, device=own, dtype=dtype)
