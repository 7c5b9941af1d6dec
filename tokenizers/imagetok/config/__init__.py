"""Typed, strict configuration: the base of all configs, the registry of parts, recipes.

The configs of a tokenizer and of a run stand on higher floors, in `imagetok.tokenizer_config` and
`imagetok.run_config`, because they are assembled from parts; their names can be imported from here
too. Names are looked up when they are first used, so that the command line can list the recipes
without pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagetok.bottlenecks import BottleneckConfig
    from imagetok.config.optimization import OptimizerConfig, ScheduleConfig, build_schedule
    from imagetok.config.recipe_folder import recipe_names
    from imagetok.config.registry import (
        Paper,
        PartConfig,
        PartField,
        find_part,
        known_types,
        load_plugins,
    )
    from imagetok.config.strict_config import Config, printable, unique_keys
    from imagetok.likelihoods import LikelihoodConfig
    from imagetok.networks import DecoderConfig, EncoderConfig
    from imagetok.run_config import DataConfig, RunConfig, TrainConfig, load_recipe
    from imagetok.tokenizer_config import PreprocessingConfig, TokenizerConfig

_HOMES = {
    "BottleneckConfig": "bottlenecks",
    "Config": "config.strict_config",
    "DataConfig": "run_config",
    "DecoderConfig": "networks",
    "EncoderConfig": "networks",
    "LikelihoodConfig": "likelihoods",
    "OptimizerConfig": "config.optimization",
    "Paper": "config.registry",
    "PartConfig": "config.registry",
    "PartField": "config.registry",
    "PreprocessingConfig": "tokenizer_config",
    "RunConfig": "run_config",
    "ScheduleConfig": "config.optimization",
    "TokenizerConfig": "tokenizer_config",
    "TrainConfig": "run_config",
    "build_schedule": "config.optimization",
    "find_part": "config.registry",
    "known_types": "config.registry",
    "load_plugins": "config.registry",
    "load_recipe": "run_config",
    "printable": "config.strict_config",
    "recipe_names": "config.recipe_folder",
    "unique_keys": "config.strict_config",
}

__all__ = [
    "BottleneckConfig",
    "Config",
    "DataConfig",
    "DecoderConfig",
    "EncoderConfig",
    "LikelihoodConfig",
    "OptimizerConfig",
    "Paper",
    "PartConfig",
    "PartField",
    "PreprocessingConfig",
    "RunConfig",
    "ScheduleConfig",
    "TokenizerConfig",
    "TrainConfig",
    "build_schedule",
    "find_part",
    "known_types",
    "load_plugins",
    "load_recipe",
    "printable",
    "recipe_names",
    "unique_keys",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'imagetok.config' has no attribute '{name}'")
    return getattr(import_module(f"imagetok.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
