"""Where a run starts: anew, after its newest checkpoint, or not at all because it is finished."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagetok.errors import ConfigError, DataError
from imagetok.evaluation import Evaluation
from imagetok.run_config import RunConfig
from imagetok.training.checkpoint import check_files, newest_checkpoint
from imagetok.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class ResumePoint:
    """Where a run starts.

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


def find_resume_point(folder: RunFolder, config: RunConfig, resume: bool) -> ResumePoint:
    """Look at a run's folder, changing nothing.

    Args:
        folder: The run's folder; it may be missing.
        config: The run.
        resume: Whether to continue what is there.

    Raises:
        ConfigError: The folder holds a run and `resume` is not set; or the run to resume has a
            config that differs in what may not change, or is longer than asked for; old and new
            values are named.
        ModelFileError: The newest checkpoint is damaged.
    """
    if not resume:
        folder.check_is_free()
        return ResumePoint()
    checkpoint = newest_checkpoint(folder.checkpoints)
    if checkpoint is None:
        return ResumePoint()
    state = check_files(checkpoint)
    config = _keep_color_profile(state["config"], config)
    _check_config(checkpoint, state["config"], config)
    if state["step"] > config.train.steps:
        raise ConfigError(
            f"'{checkpoint}' has {state['step']} steps done, and train.steps is "
            f"{config.train.steps}; ask for as many or more"
        )
    finished = folder.read_figures() if state["step"] == config.train.steps else None
    return ResumePoint(checkpoint, state, finished, config)


def check_data(start: ResumePoint, fingerprint: str) -> None:
    """Refuse to go on with other data.

    Raises:
        DataError: The dataset's content is not what the checkpoint was trained on.
    """
    if start.checkpoint is not None and start.state["data_fingerprint"] != fingerprint:
        raise DataError(
            f"'{start.checkpoint}' was trained on data with the fingerprint "
            f"{start.state['data_fingerprint']}, and data.name now names data with {fingerprint}; "
            "restore the data (on the Hub, name the commit of then by data.revision), or start a "
            "new run"
        )


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


def _check_config(checkpoint: Path, saved: Mapping[str, Any], config: RunConfig) -> None:
    # Through today's models, so that entries that are new have their defaults.
    old = flatten(RunConfig.from_dict(saved).to_complete_dict())
    new = flatten(config.to_complete_dict())
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
