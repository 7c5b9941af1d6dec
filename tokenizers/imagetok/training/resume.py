"""Where a run starts: anew, after its newest checkpoint, or not at all because it is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagetok.errors import ConfigError, DataError, ImagetokError
from imagetok.evaluation import Evaluation
from imagetok.files import file_sha256
from imagetok.modelfile import EVALUATED_KEY, EVALUATION_FILE, MODEL_FILE, PICTURES_FILE
from imagetok.run_config import RunConfig
from imagetok.training.checkpoint import check_files, newest_checkpoint
from imagetok.training.folder import CHECKPOINTS, TOKENIZER, holds_run

MAY_CHANGE = frozenset(
    {
        *("data.name", "data.revision", "data.num_workers", "data.max_error_rate"),
        *("train.steps", "train.accumulation", "train.gradient_checkpointing", "train.init_from"),
        *("train.evaluate_every", "train.checkpoint_every", "train.samples_every"),
        *("train.keep_last", "train.evaluation_images", "train.usage_warning"),
        *("train.trackers", "train.project"),
    }
)
"""Entries that a resumed run may have other values of; the data's content is compared instead of
its name and revision. With more steps, schedules that last to the run's end are those of the longer
run."""


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        checkpoint: What to continue; None starts anew.
        state: The checkpoint's `state.json`; empty without one.
        finished: Figures of a run that is finished; None where there is something left to do.
    """

    checkpoint: Path | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    finished: Evaluation | None = None

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state.get("step", 0))


def find_start(folder: Path, config: RunConfig, resume: bool) -> Start:
    """Look at a run's folder, changing nothing.

    Args:
        folder: The run's folder; it may be missing.
        config: The run.
        resume: Continue what is there.

    Raises:
        ConfigError: Not resuming, the folder holds a run; or resuming, its config differs in what
            may not change, or it is longer than asked for; old and new values are named.
        ModelFileError: The newest checkpoint is damaged.
    """
    if not resume:
        if holds_run(folder):
            raise ConfigError(
                f"'{folder}' holds a run already; continue it with --resume, give another "
                "--output-dir, or move that folder away"
            )
        return Start()
    checkpoint = newest_checkpoint(folder / CHECKPOINTS)
    if checkpoint is None:
        return Start()
    state = check_files(checkpoint)
    _check_config(checkpoint, state["config"], config)
    if state["step"] > config.train.steps:
        raise ConfigError(
            f"'{checkpoint}' has {state['step']} steps done, and train.steps is "
            f"{config.train.steps}; ask for as many or more"
        )
    finished = _read_figures(folder / TOKENIZER) if state["step"] == config.train.steps else None
    return Start(checkpoint, state, finished)


def check_data(start: Start, fingerprint: str) -> None:
    """Refuse to go on with other data.

    Raises:
        DataError: The dataset's content is not the one that the checkpoint was trained on.
    """
    if start.checkpoint is not None and start.state["data_fingerprint"] != fingerprint:
        raise DataError(
            f"'{start.checkpoint}' was trained on data with the fingerprint "
            f"{start.state['data_fingerprint']}, and data.name now names data with {fingerprint}; "
            "restore the data (on the Hub, name the commit of then by data.revision), or start a "
            "new run"
        )


def _check_config(checkpoint: Path, saved: Mapping[str, Any], config: RunConfig) -> None:
    # Through the models of today: entries that are new have their defaults.
    old = flatten(RunConfig.from_dict(saved).to_dict())
    new = flatten(config.to_dict())
    changed = [
        f"{key} was {_show(old, key)} and is {_show(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in MAY_CHANGE
    ]
    if changed:
        raise ConfigError(
            f"the run in '{checkpoint.parent.parent}' had another config: {'; '.join(changed)}; "
            "resume it with the config that it had, or start a new run"
        )


def _show(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "absent"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keyed by dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_figures(folder: Path) -> Evaluation | None:
    """The figures of an exported tokenizer, or None where the export is not complete."""
    try:
        figures: Evaluation = json.loads((folder / EVALUATION_FILE).read_bytes())
        whole = figures[EVALUATED_KEY] == file_sha256(folder / MODEL_FILE)
    except (OSError, ValueError, LookupError, TypeError, ImagetokError):
        return None
    return figures if whole and (folder / PICTURES_FILE).is_file() else None
