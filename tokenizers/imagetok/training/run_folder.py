"""The folder of a run: who holds it, and what is in it at the beginning and at the end.

config.yaml      the resolved config, which is a complete recipe
losses.jsonl     see `imagetok.training.reporter`, as for metrics.jsonl and samples/
checkpoints/     see `imagetok.training.checkpoint`
tokenizer/       the trained tokenizer with its figures and its card; the figures come last
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from PIL import Image

from imagetok._version import __version__
from imagetok.cards import write_model_card
from imagetok.config.recipe import dump_recipe
from imagetok.errors import ConfigError, ImagetokError
from imagetok.evaluation import Evaluation
from imagetok.files import (
    Lock,
    file_sha256,
    make_folder,
    naming_os_errors,
    write_atomic,
    write_json,
)
from imagetok.images.rendering import save_image
from imagetok.modelfile import EVALUATED_KEY, EVALUATION_FILE, MODEL_FILE, PICTURES_FILE
from imagetok.run_config import RunConfig
from imagetok.tokenizer import ImageTokenizer

CONFIG_FILE = "config.yaml"
CHECKPOINTS, TOKENIZER, SAMPLES = "checkpoints", "tokenizer", "samples"

PATIENCE = 60.0
"""Seconds that a resumed run waits for what is left of the one before, such as ranks that save
themselves because their launcher died."""

logger = logging.getLogger(__name__)


class RunFolder:
    """A run's folder, held by one run at a time, because two at once would mix their files.

    The lock is on the folder itself: it leaves no file and ends with its process. A file system
    without locks has none.

    Args:
        path: The folder, which may be missing.
        patience: Seconds to wait for another run that is about to leave it.

    Attributes:
        path: The folder.
        checkpoints: Parent of its checkpoints.
        tokenizer: Where the trained tokenizer is exported to.
    """

    def __init__(self, path: Path, patience: float = 0.0) -> None:
        self.path, self.checkpoints, self.tokenizer = path, path / CHECKPOINTS, path / TOKENIZER
        self._patience = patience
        self._lock: Lock | None = None

    def take(self) -> bool:
        """Take the folder if it exists; one that is held already stays so.

        Returns:
            Whether it was taken now.

        Raises:
            ConfigError: Another run holds it.
        """
        if self._lock is not None or not self.path.is_dir():
            return False
        end, told = time.monotonic() + self._patience, False
        self._lock = Lock(self.path)
        while not self._lock.take():
            if time.monotonic() >= end:
                self.close()
                raise ConfigError(
                    f"another process is training in '{self.path}'; let it end, or give another "
                    "--output-dir"
                )
            if not told:
                logger.warning("waiting for another process to leave '%s'", self.path)
                told = True
            time.sleep(0.2)
        return True

    def close(self) -> None:
        """Leave the folder to others."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def check_is_free(self) -> None:
        """Refuse to begin a run where one was begun before.

        Raises:
            ConfigError: The folder holds a run.
        """
        if (self.path / CONFIG_FILE).exists():
            raise ConfigError(
                f"'{self.path}' holds a run already; continue it with --resume, give another "
                "--output-dir, or move that folder away"
            )

    def begin(self, config: RunConfig, fingerprint: str) -> None:
        """Make and take the folder, and write the run's resolved config to it.

        The figures of a tokenizer that an earlier, shorter run exported are taken away: they say
        that the run is finished.

        Args:
            config: The run.
            fingerprint: Fingerprint of its data.

        Raises:
            ConfigError: Another run has begun since the first look, or holds the folder.
            UnwritableFileError: The folder cannot be made or written.
        """
        make_folder(self.path)
        if self.take():
            self.check_is_free()
        head = f"# imagetok {__version__}, data fingerprint {fingerprint}\n"
        write_atomic(self.path / CONFIG_FILE, (head + dump_recipe(config)).encode())
        figures = self.tokenizer / EVALUATION_FILE
        with naming_os_errors("remove", figures):
            figures.unlink(missing_ok=True)

    def export(
        self, tokenizer: ImageTokenizer, figures: Evaluation, image: Image.Image
    ) -> Evaluation:
        """Save a tokenizer with its figures, an image of its reconstructions and its card.

        The figures come last: they say that the rest is there.

        Returns:
            The figures as written, with the sha256 of the file that they belong to.
        """
        assert tokenizer.config is not None
        tokenizer.save_pretrained(self.tokenizer)
        figures = {EVALUATED_KEY: file_sha256(self.tokenizer / MODEL_FILE), **figures}
        save_image(image, self.tokenizer / PICTURES_FILE)
        write_model_card(self.tokenizer, tokenizer.config, figures)
        write_json(self.tokenizer / EVALUATION_FILE, figures)
        return figures

    def read_figures(self) -> Evaluation | None:
        """The figures of the exported tokenizer, or None where the export is not complete."""
        target = self.tokenizer
        try:
            figures: Evaluation = json.loads((target / EVALUATION_FILE).read_bytes())
            whole = figures[EVALUATED_KEY] == file_sha256(target / MODEL_FILE)
        except (OSError, ValueError, LookupError, TypeError, ImagetokError):
            return None
        return figures if whole and (target / PICTURES_FILE).is_file() else None
