"""The folder of a run: who holds it, where the run in it starts, and what it leaves at the end.

config.yaml      the resolved config, which is a complete recipe
losses.jsonl     see `imagetok.training.reporter`, as for metrics.jsonl and samples/
checkpoints/     see `imagetok.training.checkpoint`
tokenizer/       the trained tokenizer with its figures and its card; the figures come last
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from imagetok._version import __version__
from imagetok.cards import write_model_card
from imagetok.config.recipe import dump_recipe
from imagetok.config.strict_config import differing_entries
from imagetok.errors import ConfigError, DataError, ImagetokError
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
from imagetok.training.checkpoint import newest_checkpoint

CONFIG_FILE = "config.yaml"
CHECKPOINTS, TOKENIZER, SAMPLES = "checkpoints", "tokenizer", "samples"

PATIENCE = 60.0
"""Seconds that a resumed run waits for what is left of the one before, such as ranks that save
themselves because their launcher died."""

MAY_CHANGE = frozenset(
    {
        *("data.name", "data.revision", "data.num_workers", "data.max_error_rate"),
        *("train.steps", "train.accumulation", "train.gradient_checkpointing", "train.init_from"),
        *("train.evaluate_every", "train.checkpoint_every", "train.samples_every"),
        *("train.keep_last", "train.evaluation_images", "train.usage_warning"),
        *("train.trackers", "train.project"),
    }
)
"""Entries that may have other values in a resumed run; the data's content is compared instead of
its name and revision. With more steps, schedules that last to the run's end are those of the longer
run."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """Where a run starts: anew, after its newest checkpoint, or not at all as it is finished.

    Attributes:
        checkpoint: The checkpoint to continue after; None starts anew.
        state: The checkpoint's `state.json`; empty where there is no checkpoint.
        finished: Figures of a run that is finished; None where there is something left to do.
        config: What to go on with; None for the config that was asked for.
    """

    checkpoint: Path | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    finished: Evaluation | None = None
    config: RunConfig | None = None

    @property
    def step(self) -> int:
        """Number of steps done."""
        return int(self.state.get("step", 0))

    def check_data(self, fingerprint: str) -> None:
        """Refuse to go on with other data.

        Raises:
            DataError: The dataset's content is not what the checkpoint was trained on.
        """
        if self.checkpoint is not None and self.state["data_fingerprint"] != fingerprint:
            raise DataError(
                f"'{self.checkpoint}' was trained on data with the fingerprint "
                f"{self.state['data_fingerprint']}, and data.name now names data with "
                f"{fingerprint}; restore the data (on the Hub, name the commit of then by "
                "data.revision), or start a new run"
            )


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

    def find_resume_point(self, config: RunConfig, resume: bool) -> ResumePoint:
        """Where a run starts; changes nothing, and the folder may be missing.

        Args:
            config: The run.
            resume: Whether to continue what is there.

        Raises:
            ConfigError: The folder holds a run and `resume` is not set; or the run to resume has a
                config that differs in what may not change, or is longer than asked for; old and
                new values are named.
            ModelFileError: The newest checkpoint is damaged.
        """
        if not resume:
            self._check_is_free()
            return ResumePoint()
        newest = newest_checkpoint(self.checkpoints)
        if newest is None:
            return ResumePoint()
        checkpoint, state = newest
        config = _keep_color_profile(state["config"], config)
        self._check_config(state["config"], config)
        if state["step"] > config.train.steps:
            raise ConfigError(
                f"'{checkpoint}' has {state['step']} steps done, and train.steps is "
                f"{config.train.steps}; ask for as many or more"
            )
        finished = self._read_figures() if state["step"] == config.train.steps else None
        return ResumePoint(checkpoint, state, finished, config)

    def _check_config(self, saved: Mapping[str, Any], config: RunConfig) -> None:
        # Through today's models, so that entries that are new have their defaults.
        old = RunConfig.from_dict(saved).to_complete_dict()
        changed = [
            f"{key} was {json.dumps(before)} and is {json.dumps(now)}"
            for key, before, now in differing_entries(old, config.to_complete_dict())
            if key not in MAY_CHANGE
        ]
        if changed:
            raise ConfigError(
                f"the run in '{self.path}' had another config: {'; '.join(changed)}; resume it "
                "with the config that it had, or start a new run"
            )

    def _check_is_free(self) -> None:
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
            self._check_is_free()
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

    def _read_figures(self) -> Evaluation | None:
        """The figures of the exported tokenizer, or None where the export is not complete."""
        target = self.tokenizer
        try:
            figures: Evaluation = json.loads((target / EVALUATION_FILE).read_bytes())
            whole = figures[EVALUATED_KEY] == file_sha256(target / MODEL_FILE)
        except (OSError, ValueError, LookupError, TypeError, ImagetokError):
            return None
        return figures if whole and (target / PICTURES_FILE).is_file() else None


def _keep_color_profile(saved: Mapping[str, Any], config: RunConfig) -> RunConfig:
    """The config without a conversion of colours, where a run began without one.

    Recipes set it since a later version, and the command that began a run must resume it.
    """
    asked = config.tokenizer.preprocessing.color_profile
    begun = saved["tokenizer"].get("preprocessing", {}).get("color_profile", "ignore")
    if begun != "ignore" or asked == "ignore":
        return config
    logger.warning(
        "warning: the run began with tokenizer.preprocessing.color_profile=ignore and goes on so, "
        "not with %s",
        asked,
    )
    return config.model_copy(update={"tokenizer": config.tokenizer.with_color_profile("ignore")})
