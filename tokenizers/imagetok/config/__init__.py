"""Typed, strict configuration: the base of all configs, the registry of parts, recipes.

The configs of a tokenizer and of a run stand on higher floors, in `imagetok.tokenizer_config` and
`imagetok.run_config`, because they are assembled from parts; their names can be imported from here
too, and are looked up when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imagetok.config.optimization import OptimizerConfig, ScheduleConfig, build_schedule
from imagetok.config.recipe import recipe_names
from imagetok.config.registry import (
    Paper,
    PartConfig,
    PartField,
    find_part,
    known_types,
    load_plugins,
)
from imagetok.config.strict_config import Config, printable, unique_keys

if TYPE_CHECKING:
    from imagetok.bottlenecks import BottleneckConfig
    from imagetok.likelihoods import LikelihoodConfig
    from imagetok.networks import DecoderConfig, EncoderConfig
    from imagetok.run_config import DataConfig, RunConfig, TrainConfig, load_recipe
    from imagetok.tokenizer_config import PreprocessingConfig, TokenizerConfig

_HOMES = {
    "BottleneckConfig": "bottlenecks",
    "DataConfig": "run_config",
    "DecoderConfig": "networks",
    "EncoderConfig": "networks",
    "LikelihoodConfig": "likelihoods",
    "PreprocessingConfig": "tokenizer_config",
    "RunConfig": "run_config",
    "TokenizerConfig": "tokenizer_config",
    "TrainConfig": "run_config",
    "load_recipe": "run_config",
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
