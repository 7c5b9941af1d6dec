"""Options that several commands take, and what is done with their values."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from imagetok.dataset_ref import DatasetRef
    from imagetok.tokenizer import ImageTokenizer

T = TypeVar("T")

MOST_DIGITS = 18
"""Powers of ten up to which an option takes integers: beyond any count of rows or pixels."""

TOKENIZER_HELP = "Folder of a saved tokenizer or of a run, or its name on the Hub: `user/name`."
DATASET_HELP = (
    "`builtin:shapes`, a folder of images, parquet, arrow or tar (WebDataset) files, a "
    "`save_to_disk` folder, or a name on the Hub."
)


def whole_option(
    help: str, *, least: int | None = None, most: int | None = None, **further: Any
) -> Any:
    """An option that takes an integer, also one written as `1e4`.

    Args:
        help: What `--help` says.
        least: Smallest value; None for any.
        most: Largest value; None for any.
        further: As for `typer.Option`.
    """

    def read(value: str | int) -> int:
        number = _read_whole(value)
        wanted = None
        if number is None:
            wanted = "an integer"
        elif least is not None and number < least:
            wanted = f"at least {least}"
        elif most is not None and number > most:
            wanted = f"at most {most}"
        if number is None or wanted is not None:
            raise typer.BadParameter(f"found {str(value)!r}; expected {wanted}")
        return number

    return typer.Option(parser=read, metavar="INTEGER", help=help, **further)


def _read_whole(value: str | int) -> int | None:
    """The integer that a text stands for, exactly; None if it stands for none."""
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    # As an integer, 1e999999999 would fill the memory.
    if not number.is_finite() or number.adjusted() > MOST_DIGITS or number % 1:
        return None
    return int(number)


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
BatchSizeOption = Annotated[int, whole_option("Images encoded at once.", least=1)]
DeviceOption = Annotated[
    str, typer.Option(help="Where to run: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes a GPU.")
]
DtypeOption = Annotated[
    str, typer.Option(help="Type of the networks: `float32`, `bfloat16` or `float16`.")
]

MaxErrorRateOption = Annotated[
    float,
    typer.Option(min=0, max=1, help="Largest share of all rows that may be unreadable in the end."),
]
MaxPixelsOption = Annotated[
    int | None,
    whole_option(
        "Most pixels of an image, 50000000 by default; one with more is refused.",
        least=1,
        most=178_956_970,
        show_default=False,
    ),
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


def read_stratify(value: str | bool) -> bool | int:
    """The value of `--stratify`, as text or as its default.

    Raises:
        BadParameter: It is neither true, false nor a number.
    """
    words = {"true": True, "false": False}
    text = str(value).lower()
    if text in words:
        return words[text]
    if not text.isdecimal():
        raise typer.BadParameter(f"'{value}' is neither true, false nor a number of images")
    return int(text)


READING_OPTIONS: dict[str, tuple[Any, Any]] = {
    "split_dirs": (
        Annotated[
            bool | None,
            typer.Option(
                "--split-dirs/--no-split-dirs",
                help="Whether the folders directly below a folder of images are its splits; "
                "otherwise their names decide.",
                show_default=False,
            ),
        ],
        None,
    ),
    "labels": (
        Annotated[
            str,
            typer.Option(
                help="Labels of images in folders: by the name of their folder (`parent`), by its "
                "path (`path`), `none`, or `auto`."
            ),
        ],
        "auto",
    ),
    "metadata": (
        Annotated[
            str,
            typer.Option(help="`strict` refuses images that the metadata file does not name."),
        ],
        "auto",
    ),
    "sidecars": (
        Annotated[
            bool,
            typer.Option(
                "--sidecars", help="Read columns from `.txt` and `.json` files beside images."
            ),
        ],
        False,
    ),
    "holdout": (
        Annotated[
            str | None,
            typer.Option(
                help="Share of `train`, as in `10%`, that becomes the split `holdout`.",
                show_default=False,
            ),
        ],
        None,
    ),
    "stratify": (
        Annotated[
            Any,
            typer.Option(
                parser=read_stratify,
                metavar="[true|COUNT]",
                help="Hold out the same share, or this many rows, of every label.",
                show_default=False,
            ),
        ],
        False,
    ),
    "holdout_salt": (
        Annotated[str, typer.Option(help="Another text holds out other rows.", show_default=False)],
        "",
    ),
}
"""The options that say how rows are found and divided: types and defaults by parameter name."""


def with_reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `READING_OPTIONS`, whose values it may take as the mapping `reading`."""
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in signature.parameters.items()
        if name != "reading"
    ]
    takes_them = "reading" in signature.parameters
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
        for name, (kind, default) in READING_OPTIONS.items()
    ]

    @wraps(command)
    def run(**values: Any) -> None:
        reading = {name: values.pop(name) for name in READING_OPTIONS}
        command(**values, **({"reading": reading} if takes_them else {}))

    hints.pop("reading", None)
    run.__annotations__ = hints | {name: kind for name, (kind, _) in READING_OPTIONS.items()}
    run.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    return run


def dataset_options(ref: DatasetRef) -> list[str]:
    """The options by which commands take a dataset, with all that differs from their defaults."""
    words = ["--dataset", ref.name, "--split", ref.split]
    where = {"subset": ref.subset, "revision": ref.revision, "image_column": ref.image_column}
    for name, value in {**where, **ref.chosen_reading()}.items():
        option = f"--{name.replace('_', '-')}"
        if name in ("split_dirs", "sidecars"):
            words.append(option if value else f"--no-{option.removeprefix('--')}")
        elif value is not None:
            words += [option, "true" if value is True else str(value)]
    return words


def given(value: T | None, option: str) -> T:
    """The value of an option that is required here, though not by every use of the command."""
    if value is None:
        raise typer.BadParameter("say which one", param_hint=option)
    return value


def check_parent(path: Path | None, option: str) -> None:
    """Refuse a file that cannot be written, before the work rather than after it."""
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder '{path.parent}'", param_hint=option)


def load_alone(
    tokenizer: str, revision: str | None, device: str, dtype: str, max_pixels: int | None = None
) -> ImageTokenizer:
    """Load a tokenizer for a process that works on its own."""
    from imagetok.launch import RankInfo, find_device
    from imagetok.tokenizer import ImageTokenizer

    own = find_device(device, RankInfo(0, 1, 0))
    return ImageTokenizer.from_pretrained(
        tokenizer, revision=revision, device=own, dtype=dtype, max_pixels=max_pixels
    )
