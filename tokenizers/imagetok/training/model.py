"""The model that a run trains: started anew or from a saved tokenizer, and what of it learns.

A saved tokenizer gives its weights, the run's config how they are trained further. Both must
describe one architecture; only the bottleneck's `training_only` entries may differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from imagetok.errors import ConfigError
from imagetok.hub import is_repo_id, load_remote_model
from imagetok.modelfile import load_model
from imagetok.networks import checkpoint_activations
from imagetok.run_config import RunConfig, load_recipe
from imagetok.tokenizer import ImageTokenizer
from imagetok.tokenizer_config import TokenizerConfig

PARTS = ("encoder", "bottleneck", "decoder")
"""What can be frozen. A likelihood's learnt scale never is: it measures the error that is left."""


def load_run(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and apply overrides, as `load_recipe`.

    A recipe with `train.init_from` needs no `tokenizer` section: it has the saved tokenizer's, and
    overrides such as `tokenizer.bottleneck.decay=0.9` change that one.

    Raises:
        ConfigError: Unknown recipe, malformed override, or a config that does not validate.
        ModelFileError: `train.init_from` names no whole tokenizer.
        HubAccessError, HubError: It names one on the Hub that cannot be had.
        UnreadableFileError: The recipe cannot be read.
    """
    return load_recipe(recipe, overrides, _read_saved)


def _read_saved(name: str) -> TokenizerConfig:
    """The config of a saved tokenizer, in a folder or on the Hub."""
    files = load_remote_model(name).files if is_repo_id(name) else load_model(name)
    return files.config


def build_model(
    config: RunConfig, device: torch.device | str, *, resuming: bool = False
) -> ImageTokenizer:
    """Build the model of a run, frozen and checkpointed as its config says.

    Args:
        config: The run.
        device: Where to put it.
        resuming: A checkpoint's weights will take the place of these, so that the tokenizer which
            the run once started from need not be there any more.

    Returns:
        A tokenizer in torch's default dtype, with random weights of the run's seed or those of
        `train.init_from`.

    Raises:
        ConfigError: The saved tokenizer has another architecture, or nothing is left to learn.
        ModelFileError: `train.init_from` names no whole tokenizer.
        HubAccessError, HubError: It names one on the Hub that cannot be had.
    """
    settings = config.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = ImageTokenizer.from_config(config.tokenizer)
    if settings.init_from is not None and not resuming:
        saved = ImageTokenizer.from_pretrained(settings.init_from)
        assert saved.config is not None
        _check_architecture(config.tokenizer, saved.config, settings.init_from)
        model.load_state_dict(saved.state_dict())
    prepare_parts(model, config)
    return model.to(device)


def prepare_parts(model: ImageTokenizer, config: RunConfig) -> None:
    """Freeze what a run freezes, and checkpoint activations where it asks for it.

    Raises:
        ConfigError: Nothing is left to learn.
    """
    freeze(model, config.train.freeze)
    if config.train.gradient_checkpointing:
        checkpoint_activations(model)


def freeze(model: ImageTokenizer, parts: Sequence[str]) -> None:
    """Exclude parts from learning by gradients.

    What a bottleneck learns besides, its averages and restarts, is `Bottleneck.update`, which is
    not to be called for a frozen one.

    Args:
        model: The tokenizer.
        parts: Of `PARTS`.

    Raises:
        ConfigError: No part is left with weights that gradients could change.
    """
    for part in parts:
        model.get_submodule(part).requires_grad_(False)
    left = [part for part in PARTS if part not in parts]
    if parts and not any(
        p.requires_grad for part in left for p in getattr(model, part).parameters()
    ):
        reason = (
            f"only the {' and the '.join(left)}, without weights that gradients could change; a "
            "codebook of averages follows an encoder that learns"
            if left
            else "nothing to learn"
        )
        raise ConfigError(f"train.freeze=[{', '.join(parts)}] leaves {reason}; freeze fewer parts")


def _check_architecture(asked: TokenizerConfig, saved: TokenizerConfig, folder: str) -> None:
    differences = list(_differences(_architecture(asked), _architecture(saved), "tokenizer"))
    if differences:
        listed = "; ".join(
            f"{key}: the recipe says {json.dumps(ours)}, {folder} says {json.dumps(theirs)}"
            for key, ours, theirs in differences
        )
        raise ConfigError(
            f"train.init_from: {listed}; leave the `tokenizer` section out of the recipe to take "
            "the saved one's, or train from the start"
        )


def _architecture(config: TokenizerConfig) -> dict[str, Any]:
    """The config without what a further training may change."""
    values = config.to_dict()
    for key in config.bottleneck.training_only:
        del values["bottleneck"][key]
    return values


def _differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], place: str
) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, our value, their value); of parts of two types only the types."""
    keys = ["type"] if ours.get("type") != theirs.get("type") else ours
    for key in keys:
        one, other = ours[key], theirs[key]
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{place}.{key}")
        elif one != other:
            yield f"{place}.{key}", one, other
