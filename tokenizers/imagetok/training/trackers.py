"""TensorBoard and Weights & Biases, by Accelerate's trackers: copies of the records to watch.

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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import TensorBoardTracker, WandBTracker
from PIL import Image

from imagetok.errors import MissingExtraError
from imagetok.files import write_atomic
from imagetok.launch import collectives
from imagetok.run_config import RunConfig

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
    """The trackers of a run, on its main process; on other ranks there are none.

    Args:
        config: The run.
        folder: The run's folder, which exists.
        start_step: First step of this part of the run; what trackers show of it and of later steps
            is renewed.
    """

    def __init__(self, config: RunConfig, folder: Path, start_step: int) -> None:
        settings, place = config.train, folder / FOLDER
        names = dict.fromkeys(settings.trackers) if collectives.rank() == 0 else {}
        self._trackers = [_KINDS[name](place, settings.project, start_step) for name in names]
        self._call_all("start")
        self._call_all("store_init_configuration", _describe(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars under their own keys."""
        self._call_all("log", {key: float(value) for key, value in values.items()}, step)

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        """Log one image, of any mode."""
        self._call_all("log_image", name, image.convert("RGB"), step)

    def close(self) -> None:
        """Finish all trackers; closing them twice is harmless."""
        self._call_all("finish")
        self._trackers.clear()

    def _call_all(self, method: str, *arguments: Any) -> None:
        """Call a method of every tracker; one that fails is named, and left out from then on."""
        for tracker in self._trackers.copy():
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:
                self._trackers.remove(tracker)
                reason = (str(error).splitlines() or [""])[0]
                logger.warning(
                    "warning: the tracker %s failed and is left out from now on (%s: %s); the "
                    "run's folder holds everything that is logged",
                    tracker.name,
                    type(error).__name__,
                    reason,
                )


def _describe(config: RunConfig) -> dict[str, Any]:
    """The config by dotted keys, with JSON in place of all but numbers, texts and flags."""
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in _flatten(config.to_dict(), "")
    }


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
