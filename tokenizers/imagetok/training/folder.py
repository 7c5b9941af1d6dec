"""The folder of a run: what stands in it at the beginning and at the end."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from imagetok._version import __version__
from imagetok.config import RunConfig
from imagetok.config.recipes import dump_recipe
from imagetok.data import ImageRows
from imagetok.errors import ConfigError
from imagetok.evaluate import Evaluation
from imagetok.files import atomic_path, file_sha256, naming_os_errors, write_atomic
from imagetok.hub import EVALUATED_KEY, EVALUATION_FILE, MODEL_FILE, PICTURES_FILE
from imagetok.tokenizer import ImageTokenizer

CONFIG_FILE = "config.yaml"


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds a run.

    Raises:
        ConfigError: It does; it is left as it is.
    """
    if (folder / CONFIG_FILE).exists():
        raise ConfigError(
            f"{folder} holds a run already; give another --output-dir, or move that folder away"
        )


def start_folder(folder: Path, config: RunConfig, rows: ImageRows) -> None:
    """Make a run's folder and write its resolved config, which is a complete recipe.

    Raises:
        UnwritableFileError: The folder cannot be written.
    """
    with naming_os_errors("make", folder):
        folder.mkdir(parents=True, exist_ok=True)
    head = f"# imagetok {__version__}, data fingerprint {rows.fingerprint}\n"
    write_atomic(folder / CONFIG_FILE, (head + dump_recipe(config)).encode())


def export_tokenizer(
    tokenizer: ImageTokenizer, folder: Path, figures: Evaluation, picture: Image.Image
) -> Evaluation:
    """Save a tokenizer with its figures and a picture of its reconstructions.

    Returns:
        The figures as written: with the sha256 of the file that they belong to.
    """
    tokenizer.save_pretrained(folder)
    figures = {EVALUATED_KEY: file_sha256(folder / MODEL_FILE), **figures}
    write_atomic(folder / EVALUATION_FILE, (json.dumps(figures, indent=2) + "\n").encode())
    save_picture(picture, folder / PICTURES_FILE)
    return figures


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all, making its folder where it is missing.

    Raises:
        UnwritableFileError: The folder cannot be made or written.
    """
    with naming_os_errors("make", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
