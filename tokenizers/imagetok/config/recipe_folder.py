"""The recipes that come with the package, by name; it needs neither YAML nor pydantic."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable

_SUFFIX = ".yaml"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    names = (file.name for file in _folder().iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def recipe_text(name: str) -> str:
    """The YAML of the recipe with this name, which `recipe_names` has."""
    return (_folder() / f"{name}{_SUFFIX}").read_text("utf-8")


def _folder() -> Traversable:
    return resources.files("imagetok") / "recipes"
