"""What a tokenizing job does, as one value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagetok.cli.token_commands import NOT_OF_THE_CONFIG, tokenize
from imagetok.data import DatasetRef
from imagetok.errors import ConfigError, InvalidTypeError, InvalidValueError
from imagetok.tokenize_config import ProcessConfig, TokenizeConfig
from imagetok.tokenizing import tokenize_dataset

DATASET = DatasetRef("builtin:shapes", split="test")


READING = DatasetRef("photos").reading()
"""The options that the function takes as further keywords."""

DEFAULTS = {
    **{field.name: field.default for field in fields(DatasetRef) if field.name != "name"},
    **TokenizeConfig(dataset=DATASET).model_dump(exclude={"dataset", "tokenizer", "process"}),
    **ProcessConfig().model_dump(),
}
"""Every option of a job by name, with the default of its entry."""


def defaults_of(function: Callable[..., object]) -> dict[str, object]:
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
    }


def test_the_arguments_of_the_function_are_the_entries_with_the_same_defaults() -> None:
    named = {key: value for key, value in DEFAULTS.items() if key not in READING}
    assert defaults_of(tokenize_dataset) == {**named, "rank": None, "world_size": None}


def test_the_options_of_the_command_are_the_entries_with_the_same_defaults() -> None:
    others = dict.fromkeys(NOT_OF_THE_CONFIG | {"tokenizer", "dataset"})
    expected = {**DEFAULTS, **others, "keep": None, "dry_run": False}
    del expected["progress"]
    assert defaults_of(tokenize) == expected


def test_options_side_by_side_become_the_entries_of_their_names() -> None:
    options: dict[str, Any] = {
        "split": "test",
        "streaming": 1,
        "keep": ["a", "b"],
        "limit": np.int64(5),
    }
    options |= {"dtype": torch.float16, "device": torch.device("cpu"), "workers": 2}
    options |= {"max_error_rate": 0.5, "tokenizer": Path("saved")}
    assert TokenizeConfig.from_options(Path("photos"), **options) == TokenizeConfig(
        dataset=DatasetRef("photos", split="test", streaming=True),
        tokenizer="saved",
        keep=("a", "b"),
        limit=5,
        dtype="float16",
        device="cpu",
        process=ProcessConfig(workers=2, max_error_rate=0.5),
    )
    assert TokenizeConfig.from_options("photos") == TokenizeConfig(dataset=DatasetRef("photos"))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"dataset": 3}, InvalidTypeError, "dataset must be a name or a path, got int"),
        ({"tokenizer": None}, InvalidTypeError, "tokenizer must be a name or a path, got NoneType"),
        ({"limit": 0}, InvalidValueError, "limit must be at least 1"),
        ({"threads": 2**31}, InvalidValueError, "threads must be at least 1 and at most"),
        ({"rows_per_shard": None}, InvalidTypeError, "rows_per_shard must be an integer, got None"),
        ({"batch_size": 2.5}, InvalidTypeError, "batch_size must be an integer, got 2.5"),
        ({"workers": -1}, InvalidValueError, "workers must be at least 0"),
        ({"resize": "stretch"}, ConfigError, "resize: found 'stretch'"),
        ({"max_error_rate": 2}, ConfigError, "process.max_error_rate: found 2"),
        ({"name": "photos"}, ConfigError, "unknown key 'name'"),
    ],
)
def test_options_that_cannot_be_used_are_refused_by_name(
    options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        TokenizeConfig.from_options(**{"dataset": "photos", **options})


def test_a_configuration_comes_back_from_its_text() -> None:
    config = TokenizeConfig(
        dataset=DATASET, tokenizer="user/name", keep=("caption",), limit=5, resize="native"
    )
    assert TokenizeConfig.from_json(config.to_json()) == config
    assert config.dataset == DATASET


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"dataset": {"split": "test"}}, "missing key 'dataset.name'"),
        ({"rows_per_shard": 0}, "rows_per_shard: found 0; expected at least 1"),
        ({"batch_size": "32"}, "batch_size: found '32'; expected an integer"),
        ({"resize": "stretch"}, "resize: found 'stretch'; choose one of: crop, native"),
        (
            {"process": {"max_error_rate": 2}},
            "process.max_error_rate: found 2; expected at most 1",
        ),
        ({"workers": 1}, "unknown key 'workers'"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(change: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        TokenizeConfig.from_dict({"dataset": {"name": "builtin:shapes"}, **change})
