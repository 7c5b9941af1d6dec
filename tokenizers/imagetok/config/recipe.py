"""Recipes: small YAML files that name what differs from the defaults, and overrides on top."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from imagetok.config.expected_types import fit_numbers
from imagetok.config.override import apply_override
from imagetok.config.recipe_folder import recipe_names, recipe_text
from imagetok.config.strict_config import Config
from imagetok.config.yaml_text import parse_yaml
from imagetok.errors import ConfigError, UnreadableFileError

AnyConfig = TypeVar("AnyConfig", bound=Config)


def read_recipe(
    recipe: str,
    overrides: Sequence[str],
    model: type[AnyConfig],
    read_saved: Callable[[str], Config] | None = None,
) -> AnyConfig:
    """Read a recipe, apply overrides, and validate the result as a model.

    Args:
        recipe: Name of a recipe of the package, or path of a YAML file.
        overrides: `key.path=value` each; see `imagetok.config.override`.
        model: The config that the recipe describes.
        read_saved: Gives the config of the tokenizer that `train.init_from` names, which takes the
            place of a `tokenizer` section that the recipe lacks; overrides lie on top. With None
            the section is required.

    Raises:
        ConfigError: Unknown recipe, malformed override, or a config that does not validate.
        UnreadableFileError: The file cannot be read.
    """
    values = _read(recipe)
    complete = "tokenizer" in values
    for override in overrides:
        apply_override(values, override, model)
    folder = _saved_folder(values)
    if read_saved is not None and folder is not None and not complete:
        values["tokenizer"] = read_saved(folder).to_dict()
        for override in overrides:
            apply_override(values, override, model)
    return model.from_dict(fit_numbers(values, [model]))


def dump_recipe(config: Config) -> str:
    """A run as the text of a complete recipe, defaults included, that `read_recipe` reads back."""
    values = config.to_dict()
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)


def _read(recipe: str) -> dict[str, Any]:
    if recipe in recipe_names():
        text = recipe_text(recipe)
    elif recipe.endswith((".yaml", ".yml")):
        try:
            text = Path(recipe).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UnreadableFileError(f"cannot read the recipe '{recipe}': {reason}") from None
    else:
        raise ConfigError(
            f"unknown recipe '{recipe}'; choose one of: {', '.join(recipe_names())}; or give the "
            "path of a .yaml file"
        )
    values = parse_yaml(text, f"recipe '{recipe}'")
    if not isinstance(values, dict):
        raise ConfigError(f"recipe '{recipe}' is not a mapping with tokenizer, data and train")
    return values


def _saved_folder(values: Mapping[str, Any]) -> str | None:
    """Where to start from, if the values, which are not validated yet, say so."""
    train = values.get("train")
    folder = train.get("init_from") if isinstance(train, Mapping) else None
    return folder if isinstance(folder, str) else None
