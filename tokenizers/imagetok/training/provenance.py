"""What evaluation.json says about a run: how the tokenizer that it exports was trained.

It is read by people elsewhere: it names the recipe, the data and the kind of machine, but no time,
process, host or folder. The recipe is the shipped one that the fewest overrides turn into the run's
config, whichever file or command line the config came from; what is named repeats the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from imagetok._version import __version__
from imagetok.cards import dataset_source, display_name
from imagetok.config import recipe_names
from imagetok.config.yaml_text import parse_yaml
from imagetok.data import TrainingData
from imagetok.data.evaluation_data import EVALUATION_SPLITS
from imagetok.data.holdout import HOLDOUT_SPLIT
from imagetok.display_names import tokenizer_name
from imagetok.errors import ConfigError
from imagetok.run_config import RunConfig, load_recipe
from imagetok.tokenizer import ImageTokenizer

MOST_CHANGES = 24
"""With more overrides than this, a run is not described as a variant of a recipe any more."""

_IRRELEVANT = {
    "data": ("num_workers",),
    "train": (
        *("evaluate_every", "evaluation_images", "checkpoint_every", "samples_every"),
        *("keep_last", "usage_warning", "gradient_checkpointing", "trackers", "project"),
    ),
}
"""Entries that do not change the exported tokenizer."""


def describe_training(
    config: RunConfig,
    data: TrainingData,
    num_ranks: int,
    device: torch.device,
    tokenizer: ImageTokenizer,
) -> dict[str, Any]:
    """Say how a tokenizer was trained, as JSON-like values.

    Args:
        config: The run.
        data: What it trained on.
        num_ranks: Number of its processes.
        device: Where it computed.
        tokenizer: What it exports.
    """
    train, start = config.train, config.train.init_from
    recipe, changes = find_recipe(config) or (None, [])
    return {
        "recipe": recipe,
        "changes": changes,
        "init_from": None if start is None else tokenizer_name(start),
        "data": {
            "name": display_name(config.data.name),
            "source": dataset_source(config.data.name),
            "split": config.data.split,
            "fingerprint": data.fingerprint,
        },
        "steps": train.steps,
        "batch_size": train.batch_size,
        "ranks": num_ranks,
        "device": _device_name(device),
        "precision": train.precision,
        "seed": train.seed,
        "parameters": sum(tensor.numel() for tensor in tokenizer.state_dict().values()),
        "versions": {"imagetok": __version__, "torch": str(torch.__version__)},
    }


def find_recipe(config: RunConfig) -> tuple[str, list[str]] | None:
    """Find the shipped recipe of a run's system that is nearest to it, and the overrides on top.

    Entries that do not change the exported tokenizer are left out, as are the folders that data or
    a tokenizer lie in.

    Returns:
        The recipe's name and the overrides, or None where every recipe is far.
    """
    found = []
    for name in recipe_names():
        recipe = load_recipe(name)
        if recipe.tokenizer.bottleneck.type == config.tokenizer.bottleneck.type:
            values = _public_values(recipe)
            split = config.data.evaluation_split
            if recipe.data.evaluation_split is None and split in (
                *EVALUATION_SPLITS,
                HOLDOUT_SPLIT,
            ):
                values["data"]["evaluation_split"] = split  # found rather than asked for
            changes = list(_changes(values, _public_values(config)))
            found.append((len(changes), name, changes))
    count, name, changes = min(found, default=(MOST_CHANGES + 1, "", []))
    return (name, changes) if count <= MOST_CHANGES else None


def _public_values(config: RunConfig) -> dict[str, Any]:
    """A run's config without irrelevant entries, and with names in place of paths."""
    values = config.to_complete_dict()
    for section, keys in _IRRELEVANT.items():
        for key in keys:
            del values[section][key]
    values["data"]["name"] = display_name(config.data.name)
    if config.train.init_from is not None:
        values["train"]["init_from"] = tokenizer_name(config.train.init_from)
    return values


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Overrides that give `old` the entries of `new`."""
    for key, value in new.items():
        before, path = old[key], f"{prefix}{key}"
        if before == value:
            continue
        if isinstance(before, dict) and isinstance(value, dict) and _is_variant(before, value):
            yield from _changes(before, value, f"{path}.")
        else:
            yield f"{path}={_override(value)}"


def _is_variant(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether entries of `old` can be overridden one by one."""
    same = old.get("type") == new.get("type") and old.keys() == new.keys()
    return same and all(key.isidentifier() for key in new)


def _override(value: Any) -> str:
    """A value as an override writes it: text stays plain where it is read back as such."""
    if isinstance(value, str) and _reads_back(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _reads_back(text: str) -> bool:
    try:
        json.loads(text)
    except RecursionError:
        return False
    except ValueError:
        try:
            return bool(parse_yaml(text, "override") == text)
        except ConfigError:
            return False
    return False


def _device_name(device: torch.device) -> str:
    """The kind of a machine's device: a GPU's product name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type.upper()
