"""Typed, strict configuration: what a tokenizer is, what it is trained on, and how."""

from imagetok.config.base import Config, printable, unique_keys
from imagetok.config.recipes import load_recipe, recipe_names
from imagetok.config.run import (
    DataConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from imagetok.config.tokenizer import (
    BottleneckConfig,
    DecoderConfig,
    EncoderConfig,
    LikelihoodConfig,
    PreprocessingConfig,
    TokenizerConfig,
)

__all__ = [
    "BottleneckConfig",
    "Config",
    "DataConfig",
    "DecoderConfig",
    "EncoderConfig",
    "LikelihoodConfig",
    "OptimizerConfig",
    "PreprocessingConfig",
    "RunConfig",
    "ScheduleConfig",
    "TokenizerConfig",
    "TrainConfig",
    "load_recipe",
    "printable",
    "recipe_names",
    "unique_keys",
]
