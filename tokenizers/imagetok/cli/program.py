"""The program `imagetok`: its commands, its errors and its exit codes.

Exit codes: 0 done and accounted for; 2 bad arguments or input; 1 failed at work; 128 + n stopped by
signal n. An error is one line on stderr, after its traceback if `--debug` is given.
"""

from __future__ import annotations

import atexit
import gc
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from imagetok._version import __version__
from imagetok.cli import hub_commands, token_commands, tokenizer_commands
from imagetok.errors import ImagetokError, UnreadableFileError
from imagetok.freed_memory import keep_freed_memory

app = typer.Typer(
    help="Train, ship and use image tokenizers: dVAE, VQ-VAE and their continuous baselines.",
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(tokenizer_commands.app)
app.add_typer(token_commands.app)
app.add_typer(hub_commands.app)

DEBUG = "--debug"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process.

    Args:
        arguments: What follows the program's name; None takes the process's own. `--debug` may
            stand anywhere.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    arguments = [argument for argument in given if argument != DEBUG] or ["--help"]
    debug = DEBUG in given
    # What is alive at the end needs no search for garbage: after torch it takes 0.3 seconds.
    atexit.register(gc.freeze)
    try:
        keep_freed_memory()
        code = app(arguments, prog_name="imagetok", standalone_mode=False)
    except ImagetokError as error:
        _end(str(error), _exit_code(error), debug)
    except Exception as error:
        if not hasattr(error, "format_message"):
            _end(f"{type(error).__name__}: {error}", 1, debug)
        _end(_describe_usage_error(error), 2, debug)
    raise SystemExit(code)


def _exit_code(error: ImagetokError) -> int:
    signum = getattr(error, "signum", None)
    if signum is not None:  # a signal stopped a run; a second one now must not change the code
        from imagetok.launch import ignore_signals

        ignore_signals()
        return 128 + int(signum)
    return 2 if isinstance(error, ValueError | TypeError | UnreadableFileError) else 1


def _describe_usage_error(error: Any) -> str:
    """Typer's message about arguments that it refuses, in one line with the remedy."""
    from pydantic import ValidationError  # which typer checks the values of options with

    from imagetok.config.strict_config import describe_value

    place = getattr(getattr(error, "ctx", None), "command_path", "imagetok")
    if isinstance(error.__cause__, ValidationError):
        error.message = describe_value(error.__cause__)
    message = error.format_message().removesuffix(".")
    return f"{message}; `{place} --help` lists what it takes"


def _end(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    typer.echo(f"imagetok: {' '.join(message.split())}", err=True)
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
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show the traceback of an error; every command takes it.")
    ] = False,
) -> None:
    """Options of the program; `main`, which shows errors, removes `--debug` beforehand."""
