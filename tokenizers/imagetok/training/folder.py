"""The folder of a run: what stands in it at the beginning and at the end."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from PIL import Image

from imagetok._version import __version__
from imagetok.config import RunConfig
from imagetok.data import ImageRows
from imagetok.errors import ConfigError
from imagetok.evaluate import Evaluation
from imagetok.files import atomic_path, file_sha256, naming_os_errors, write_atomic
from imagetok.tokenizer import ImageTokenizer


def start_folder(folder: Path, config: RunConfig, rows: ImageRows) -> None:
    """Make a run's folder and write its resolved config.

    Raises:
        ConfigError: The folder holds a run, which is left as it is.
        UnwritableFileError: The folder cannot be written.
    """
    if (folder / "config.yaml").exists():
        raise ConfigError(
            f"{folder} holds a run already; give another --output-dir, or move that folder away"
        )
    with naming_os_errors("make", folder):
        folder.mkdir(parents=True, exist_ok=True)
    head = f"# imagetok {__version__}, data fingerprint {rows.fingerprint}\n"
    text = head + yaml.safe_dump(config.to_dict(), sort_keys=False)
    write_atomic(folder / "config.yaml", text.encode())


def export_tokenizer(
    tokenizer: ImageTokenizer, folder: Path, figures: Evaluation, picture: Image.Image
) -> Evaluation:
    """Save a tokenizer with its figures and a picture of its reconstructions.

    Returns:
        The figures as written: with the sha256 of the file that they belong to.
    """
    tokenizer.save_pretrained(folder)
    figures = {"tokenizer_sha256": file_sha256(folder / "model.safetensors"), **figures}
    write_atomic(folder / "evaluation.json", (json.dumps(figures, indent=2) + "\n").encode())
    with atomic_path(folder / "reconstructions.png") as temporary:
        picture.save(temporary, format="PNG")
    return figures
