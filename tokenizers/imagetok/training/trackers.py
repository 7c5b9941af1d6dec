"""TensorBoard and Weights & Biases, through Accelerate: a copy of the records for people to watch.

Everything lies below the run's folder, in `trackers/tensorboard` and `trackers/wandb`. A tracker is
not part of a run's result, which is in `metrics.jsonl` and `samples/`: one that is asked for but
not installed is an error before anything is done, while a later failure costs that tracker and not
the run.

A resumed run continues what trackers show. TensorBoard hides the events after the checkpoint; wandb
goes on with its run, which has the figures of the steps after the checkpoint already: equal steps
give equal figures.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from PIL import Image

from imagetok.errors import MissingExtraError
from imagetok.files import write_atomic
from imagetok.run_config import RunConfig
from imagetok.training.resume_point import flatten

FOLDER = "trackers"
WANDB_ID = "wandb-id"

WANDB_SECONDS_TO_FINISH = 20.0
"""Seconds to send what is left when a run ends, within the 30 s that launchers wait."""

logger = logging.getLogger(__name__)


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed.

    Args:
        names: `train.trackers`; each is the name of its package and of the extra that brings it.

    Raises:
        MissingExtraError: A package is missing.
    """
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        raise MissingExtraError(
            f"train.trackers names {' and '.join(missing)}, not installed here; "
            f'`pip install "imagetok[{",".join(missing)}]"`, or take it out of train.trackers'
        )


def _is_installed(package: str) -> bool:
    # Not by looking for a module: wandb's own folder of runs, where it lies in the current
    # directory, is taken for one.
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class Trackers:
    """The trackers of a run. Every rank has one of these, and that of the main process talks.

    Args:
        accelerator: The run's processes; its `log_with` is set.
        config: The run.
        folder: The run's folder, which exists.
        start_step: First step of this part of the run; what trackers show of it and of later steps
            is renewed.
    """

    def __init__(
        self, accelerator: Accelerator, config: RunConfig, folder: Path, start_step: int
    ) -> None:
        self._accelerator = accelerator
        settings, place = config.train, folder / FOLDER
        names = dict.fromkeys(settings.trackers) if accelerator.is_main_process else {}
        self._trackers = [
            _Tolerant(_KINDS[name](place, settings.project, start_step)) for name in names
        ]
        if self._trackers:
            accelerator.log_with = self._trackers
            accelerator.init_trackers(settings.project, _describe(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars under their own keys."""
        if self._trackers:
            self._accelerator.log({key: float(value) for key, value in values.items()}, step)

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        """Log one image, of any mode."""
        for tracker in self._trackers:
            tracker.log_image(name, image.convert("RGB"), step)

    def close(self) -> None:
        """Finish all trackers; closing them twice is harmless."""
        for tracker in self._trackers:
            tracker.finish()
        if self._trackers:
            self._trackers = self._accelerator.trackers = []  # it would start them again


def _describe(config: RunConfig) -> dict[str, Any]:
    """The config by dotted keys, with JSON in place of all but numbers, texts and flags."""
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in flatten(config.to_dict()).items()
    }


class _TensorBoard(TensorBoardTracker):  # type: ignore[misc]
    """Event files in `trackers/tensorboard`."""

    def __init__(self, folder: Path, project: str, start_step: int) -> None:
        super().__init__("tensorboard", folder, purge_step=start_step)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        # Accelerate would make a separate run of them at every start, without figures beside them.
        from torch.utils.tensorboard.summary import hparams

        for part in hparams(values, {}):  # type: ignore[no-untyped-call]
            self.writer.file_writer.add_summary(part)
        self.writer.flush()

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        self.log_images({name: np.asarray(image)[None]}, step, dataformats="NHWC")
        self.writer.flush()


class _WandB(WandBTracker):  # type: ignore[misc]
    """A run in `trackers/wandb`, sent to the server unless WANDB_MODE is `offline`."""

    def __init__(self, folder: Path, project: str, start_step: int) -> None:
        super().__init__(project)
        self._folder, self._start_step = folder, start_step

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / WANDB_ID
        if self._start_step > 0 and path.exists():
            which = {"id": path.read_text(encoding="utf-8").strip(), "resume": "allow"}
        else:
            which = {"name": self._folder.resolve().parent.name}
        self.init_kwargs = {
            **which,
            "dir": self._folder,
            # Not a run that the calling program may have open: ours is closed when training ends.
            "reinit": "create_new",
            "settings": {"finish_timeout": WANDB_SECONDS_TO_FINISH},
        }
        super().start()
        write_atomic(path, f"{self.run.id}\n".encode())

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.run.config.update(values, allow_val_change=True)

    def log(self, values: dict[str, Any], step: int) -> None:
        if step >= self.run.starting_step:  # wandb takes no step twice
            super().log(values, step)

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        self.log_images({name: [image]}, step)


_KINDS: Mapping[str, type[_TensorBoard | _WandB]] = {"tensorboard": _TensorBoard, "wandb": _WandB}


class _Tolerant(GeneralTracker):  # type: ignore[misc]
    """A tracker that gives up, with one warning, where the one in it fails."""

    requires_logging_directory = False

    def __init__(self, inner: _TensorBoard | _WandB) -> None:
        super().__init__(_blank=True)
        self.name = inner.name
        self._inner, self._failed = inner, False

    @property
    def tracker(self) -> Any:
        return self._inner.tracker

    def start(self) -> None:
        self._try(self._inner.start)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._try(self._inner.store_init_configuration, values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._try(self._inner.log, values, step)

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        self._try(self._inner.log_image, name, image, step)

    def finish(self) -> None:
        self._try(self._inner.finish)

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._failed:
            return
        try:
            call(*arguments)
        except Exception as error:
            self._failed = True
            reason = (str(error).splitlines() or [""])[0]
            logger.warning(
                "warning: the tracker %s failed and is left out from now on (%s: %s); the run's "
                "folder holds everything that is logged",
                self.name,
                type(error).__name__,
                reason,
            )
