"""The folder of a run: what stands in it at the beginning and at the end."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from PIL import Image

from imagetok._version import __version__
from imagetok.cards import write_model_card
from imagetok.config.recipe import dump_recipe
from imagetok.errors import ConfigError
from imagetok.evaluation import Evaluation
from imagetok.files import Lock, atomic_path, file_sha256, naming_os_errors, write_atomic
from imagetok.modelfile import EVALUATED_KEY, EVALUATION_FILE, MODEL_FILE, PICTURES_FILE
from imagetok.run_config import RunConfig
from imagetok.tokenizer import ImageTokenizer

CONFIG_FILE = "config.yaml"
PATIENCE = 60.0
"""Seconds that a resumed run waits for what is left of the one before, such as ranks that save
themselves because their launcher died."""

logger = logging.getLogger(__name__)

CHECKPOINTS, TOKENIZER, SAMPLES = "checkpoints", "tokenizer", "samples"


def holds_run(folder: Path) -> bool:
    """Whether a run was started in a folder."""
    return (folder / CONFIG_FILE).exists()


class FolderLock:
    """A run's hold on its folder, because two runs at once would mix their files.

    The lock is on the folder itself: it leaves no file and ends with its process. A file system
    without locks has none.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: Lock | None = None

    def take(self, patience: float) -> bool:
        """Take the folder if it exists; one that is held already stays so.

        Args:
            patience: Seconds to wait for another run that is about to leave it.

        Returns:
            Whether it was taken now.

        Raises:
            ConfigError: Another run holds it.
        """
        if self._lock is not None or not self._folder.is_dir():
            return False
        end, told = time.monotonic() + patience, False
        self._lock = Lock(self._folder)
        while not self._lock.take():
            if time.monotonic() >= end:
                self.close()
                raise ConfigError(
                    f"another process is training in '{self._folder}'; let it end, or give another "
                    "--output-dir"
                )
            if not told:
                logger.warning("waiting for another process to leave '%s'", self._folder)
                told = True
            time.sleep(0.2)
        return True

    def close(self) -> None:
        """Leave the folder to others."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def make_folder(folder: Path) -> None:
    """Make a run's folder, where there is none.

    Raises:
        UnwritableFileError: It cannot be made.
    """
    with naming_os_errors("make", folder):
        folder.mkdir(parents=True, exist_ok=True)


def start_folder(folder: Path, config: RunConfig, fingerprint: str) -> None:
    """Write a run's resolved config, which is a complete recipe, to its folder.

    The figures of a tokenizer that an earlier, shorter run exported are taken away: they say that
    the run is finished.

    Raises:
        UnwritableFileError: The folder cannot be written.
    """
    head = f"# imagetok {__version__}, data fingerprint {fingerprint}\n"
    write_atomic(folder / CONFIG_FILE, (head + dump_recipe(config)).encode())
    figures = folder / TOKENIZER / EVALUATION_FILE
    with naming_os_errors("remove", figures):
        figures.unlink(missing_ok=True)


def export_tokenizer(
    tokenizer: ImageTokenizer, folder: Path, figures: Evaluation, picture: Image.Image
) -> Evaluation:
    """Save a tokenizer with its figures, a picture of its reconstructions and its card.

    The figures come last: they say that the rest is there.

    Returns:
        The figures as written: with the sha256 of the file that they belong to.
    """
    assert tokenizer.config is not None
    tokenizer.save_pretrained(folder)
    figures = {EVALUATED_KEY: file_sha256(folder / MODEL_FILE), **figures}
    save_picture(picture, folder / PICTURES_FILE)
    write_model_card(folder, tokenizer.config, figures)
    write_atomic(folder / EVALUATION_FILE, (json.dumps(figures, indent=2) + "\n").encode())
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
