"""What a tokenizing job does, as one value."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

from imagetok.data import DatasetRef
from imagetok.errors import ConfigError
from imagetok.tokenize_config import ProcessConfig, TokenizeConfig
from imagetok.tokenizing import tokenize_dataset

DATASET = DatasetRef("builtin:shapes", split="test")


def test_the_arguments_of_the_function_are_the_entries_with_the_same_defaults() -> None:
    defaults = {
        **{field.name: field.default for field in fields(DatasetRef) if field.name != "name"},
        **TokenizeConfig(dataset=DATASET).model_dump(exclude={"dataset", "tokenizer", "process"}),
        **ProcessConfig().model_dump(),
    }
    arguments = {
        name: parameter.default
        for name, parameter in inspect.signature(tokenize_dataset).parameters.items()
        if parameter.default is not parameter.empty
    }
    assert arguments == {**defaults, "rank": None, "world_size": None}


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
