from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from imagetok.bottlenecks import GumbelConfig, VqConfig
from imagetok.bottlenecks.bottleneck import MAX_TABLE_SIZE
from imagetok.config import Config, DataConfig, RunConfig, TokenizerConfig, TrainConfig
from imagetok.errors import ConfigError, ImagetokError
from imagetok.likelihoods import MseConfig

VQ = {"type": "vq", "codebook_size": 8, "latent_dim": 4}


def tokenizer(**changes: Any) -> dict[str, Any]:
    """A valid tokenizer's config as JSON-like values, with top-level keys changed."""
    return {
        "image_size": [16, 8],
        "encoder": {"type": "conv"},
        "bottleneck": VQ,
        "decoder": {"type": "conv"},
        "likelihood": {"type": "mse"},
        **changes,
    }


def run(**train: Any) -> dict[str, Any]:
    return {"tokenizer": tokenizer(), "data": {"name": "folder"}, "train": {"steps": 10, **train}}


def refusal(kind: type[Config], values: Any) -> str:
    """The message with which values are refused."""
    with pytest.raises(ConfigError) as caught:
        kind.from_dict(values)
    assert isinstance(caught.value, ImagetokError)
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert "pydantic" not in message
    assert "function-" not in message
    return message


# Strictness


@pytest.mark.parametrize("value", ["8", True, 8.0, 8.5, None, [8], {}])
def test_an_integer_is_an_integer(value: Any) -> None:
    message = refusal(TokenizerConfig, tokenizer(bottleneck={**VQ, "codebook_size": value}))
    assert "bottleneck.vq.codebook_size" in message
    assert repr(value) in message


@pytest.mark.parametrize("value", ["3", True, 3.0, 2, None])
@pytest.mark.parametrize("key", ["channels", "format_version"])
def test_an_integer_of_a_few_values_is_no_less_strict(key: str, value: Any) -> None:
    message = refusal(TokenizerConfig, tokenizer(**{key: value}))
    assert key in message
    assert repr(value) in message


@pytest.mark.parametrize("value", ["0.9", True, None])
def test_a_float_is_a_number(value: Any) -> None:
    message = refusal(TokenizerConfig, tokenizer(bottleneck={**VQ, "decay": value}))
    assert "bottleneck.vq.decay" in message


def test_a_float_may_be_written_as_an_integer() -> None:
    config = TokenizerConfig.from_dict(tokenizer(bottleneck={**VQ, "decay": 1}))
    assert config == TokenizerConfig.from_dict(tokenizer(bottleneck={**VQ, "decay": 1.0}))
    assert '"decay":1.0' in config.to_json()


@pytest.mark.parametrize("value", ["true", 1, 0, None])
def test_a_boolean_is_true_or_false(value: Any) -> None:
    assert "normalize" in refusal(TokenizerConfig, tokenizer(bottleneck={**VQ, "normalize": value}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    refusal(TokenizerConfig, tokenizer(likelihood={"type": "mse", "scale": value}))
    with pytest.raises(ConfigError):
        MseConfig.from_json(f'{{"scale": {json.dumps(value)}}}')
    with pytest.raises(ConfigError):
        MseConfig.from_json('{"scale": 1e400}')


@pytest.mark.parametrize("value", [2**62, 10**30, -1, 0])
@pytest.mark.parametrize("key", ["codebook_size", "latent_dim", "code_dim"])
def test_huge_and_empty_sizes_are_refused(key: str, value: int) -> None:
    assert str(value)[:20] in refusal(TokenizerConfig, tokenizer(bottleneck={**VQ, key: value}))


@pytest.mark.parametrize(
    ("part", "key"),
    [("conv", "num_downsamplings"), ("conv", "hidden_channels"), ("dalle", "num_groups")],
)
def test_huge_networks_are_refused(part: str, key: str) -> None:
    values = {"type": part, key: 2**62}
    assert key in refusal(TokenizerConfig, tokenizer(encoder=values, decoder=values))


# Names


def test_an_unknown_key_is_refused_with_the_valid_ones() -> None:
    message = refusal(TokenizerConfig, tokenizer(encoder={"type": "conv", "hiden": 4}))
    assert "unknown key 'encoder.conv.hiden'" in message
    assert "hidden_channels, num_downsamplings, num_residual_blocks, residual_channels" in message
    assert "codebook_size" not in message
    message = refusal(TokenizerConfig, tokenizer(imagesize=[8, 8]))
    assert "unknown key 'imagesize'" in message
    assert "image_size" in message


def test_an_unknown_key_deep_inside_a_run_is_refused_with_the_valid_ones() -> None:
    schedule = {"type": "cosine", "start": 1.0, "end": 0.1, "steps": 5, "stop": 9}
    message = refusal(RunConfig, run(loss_weights={"loss/kl": schedule}))
    assert "unknown key 'train.loss_weights.loss/kl.schedule.stop'" in message
    assert "begin, end, start, steps, type" in message


def test_an_unknown_type_is_refused_with_the_choices() -> None:
    message = refusal(TokenizerConfig, tokenizer(bottleneck={**VQ, "type": "vqq"}))
    assert "unknown bottleneck 'vqq'; choose one of: gaussian, gumbel, identity, vq" in message
    message = refusal(TokenizerConfig, tokenizer(encoder={"type": "vit"}))
    assert "unknown encoder 'vit'; choose one of: conv, dalle, mlp" in message


def test_a_part_without_a_type_and_a_missing_part_are_named() -> None:
    assert "bottleneck has no key 'type'" in refusal(TokenizerConfig, tokenizer(bottleneck={}))
    values = tokenizer()
    del values["decoder"]
    assert "missing key 'decoder'" in refusal(TokenizerConfig, values)


class Wanted(Config):
    """An entry for each kind of expectation."""

    integer: int = 1
    number: float = 1
    boolean: bool = True
    string: Annotated[str, Field(min_length=1)] = "a"
    pair: tuple[int, int] = (1, 2)
    mapping: dict[str, int] | None = None
    choice: Literal["crop", "native", 3] = "crop"
    only: Literal["learnt"] = "learnt"
    above: Annotated[float, Field(gt=0, lt=1e6)] = 1
    within: Annotated[float, Field(ge=0, le=0.5)] = 0
    part: MseConfig = MseConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"integer": "8"}', "integer: found '8'; expected an integer"),
        ('{"integer": 8.5}', "integer: found 8.5; expected an integer"),
        ('{"number": true}', "number: found True; expected a number"),
        ('{"number": NaN}', "number: found nan; expected a finite number"),
        ('{"boolean": 1}', "boolean: found 1; expected true or false"),
        ('{"string": 3}', "string: found 3; expected a string"),
        ('{"string": ""}', "string: found ''; expected a length of at least 1"),
        ('{"pair": 3}', "pair: found 3; expected a list"),
        ('{"pair": [1, 2, 3]}', "pair: found [1, 2, 3]; expected a length of at most 2"),
        ('{"pair": [1, "2"]}', "pair.1: found '2'; expected an integer"),
        ('{"mapping": []}', "mapping: found []; expected a mapping"),
        ('{"part": []}', "part: found []; expected a mapping"),
        ('{"choice": "fit"}', "choice: found 'fit'; choose one of: crop, native, 3"),
        ('{"only": "fit"}', "only: found 'fit'; expected learnt"),
        ('{"above": 0}', "above: found 0; expected more than 0"),
        ('{"above": 1e6}', "above: found 1000000.0; expected less than 1000000"),
        ('{"within": -1}', "within: found -1; expected at least 0"),
        ('{"within": 2}', "within: found 2; expected at most 0.5"),
        ("[]", "(top level): found []; expected a mapping"),
    ],
)
def test_a_refusal_names_place_value_and_what_was_expected(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Wanted.from_json(text)
    assert str(caught.value) == f"Wanted: {words}"


def test_every_fault_is_named_at_once() -> None:
    message = refusal(TokenizerConfig, tokenizer(channels=2, bottleneck={**VQ, "codebook_size": 1}))
    assert "channels" in message
    assert "codebook_size" in message


# JSON


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        "[" * 100_000,
        '{"a":' * 100_000,
        b"\xff\xfe",
        b"\x00",
        "{'a': 1}",
    ],
    ids=range(10),
)
def test_text_that_is_not_a_json_object_is_refused_in_words(text: str | bytes) -> None:
    with pytest.raises(ConfigError, match="TokenizerConfig: "):
        TokenizerConfig.from_json(text)


def test_values_that_json_cannot_express_are_refused_in_words() -> None:
    circular: dict[str, Any] = {}
    circular["self"] = circular
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    for values in (circular, {"a": object()}, {("a",): 1}, {"channels": 10**5000}):
        assert "not expressible as JSON" in refusal(TokenizerConfig, values)
    # How deep Python writes depends on its version; what it writes is not read as deep.
    assert re.search("not (expressible as|valid) JSON", refusal(TokenizerConfig, deep))


def test_canonical_json_is_stable_and_reads_back_as_the_same_config() -> None:
    values = tokenizer()
    config = TokenizerConfig.from_dict(values)
    backwards = TokenizerConfig.from_dict(dict(reversed(values.items())))
    text = config.to_json()
    assert backwards.to_json() == text
    assert TokenizerConfig.from_json(text) == config
    assert TokenizerConfig.from_json(text).to_json() == text
    assert TokenizerConfig.from_dict(config.to_dict()) == config
    assert " " not in text
    keys = list(json.loads(text))
    assert keys == sorted(keys)


def test_canonical_json_spells_out_the_defaults() -> None:
    written = json.loads(TokenizerConfig.from_dict(tokenizer()).to_json())
    assert written["channels"] == 3
    assert written["preprocessing"] == {"background": [255, 255, 255], "resize": "bicubic"}
    assert written["likelihood"] == {"type": "mse", "scale": math.sqrt(0.5)}


def test_every_kind_of_part_survives_a_round_trip() -> None:
    encoders = [
        {"type": "conv"},
        {"type": "mlp", "hidden": [9, 4]},
        {"type": "dalle", "num_groups": 3},
    ]
    bottlenecks = [
        {"type": "identity", "latent_dim": 2},
        {"type": "gaussian", "latent_dim": 2},
        {**VQ, "code_dim": 2, "codebook": "loss", "gradient": "rotation", "normalize": True},
        {"type": "gumbel", "codebook_size": 9, "latent_dim": 2, "hard": True},
    ]
    likelihoods = [{"type": "mse", "scale": "learnt"}, {"type": "l1"}, {"type": "logit_laplace"}]
    for network in encoders:
        for bottleneck in bottlenecks:
            for likelihood in likelihoods:
                values = tokenizer(
                    encoder=network, decoder=network, bottleneck=bottleneck, likelihood=likelihood
                )
                config = TokenizerConfig.from_dict(values)
                assert TokenizerConfig.from_json(config.to_json()) == config
                assert config.to_dict()["bottleneck"].items() >= bottleneck.items()


def test_a_config_cannot_be_changed() -> None:
    config = TokenizerConfig.from_dict(tokenizer())
    with pytest.raises(ValueError, match="frozen"):
        config.channels = 1


# Parts that must agree


def test_factors_and_grid_follow_from_the_encoder() -> None:
    config = TokenizerConfig.from_dict(tokenizer())
    assert config.factors == (4, 4)
    assert config.grid_size == (4, 2)
    dalle = {"type": "dalle", "num_groups": 4}
    config = TokenizerConfig.from_dict(tokenizer(encoder=dalle, decoder=dalle))
    assert config.factors == (8, 8)
    assert config.grid_size == (2, 1)
    mlp = {"type": "mlp"}
    config = TokenizerConfig.from_dict(tokenizer(encoder=mlp, decoder=mlp))
    assert config.factors == (16, 8)
    assert config.grid_size == (1, 1)


def test_networks_of_different_factors_are_refused() -> None:
    message = refusal(TokenizerConfig, tokenizer(decoder={"type": "conv", "num_downsamplings": 1}))
    assert "(4, 4)" in message
    assert "(2, 2)" in message
    refusal(TokenizerConfig, tokenizer(decoder={"type": "mlp"}))
    mixed = tokenizer(decoder={"type": "dalle", "num_groups": 3})
    assert TokenizerConfig.from_dict(mixed).factors == (4, 4)


@pytest.mark.parametrize("size", [[18, 8], [16, 6], [2, 2]])
def test_a_size_that_the_factor_does_not_divide_is_refused(size: list[int]) -> None:
    message = refusal(TokenizerConfig, tokenizer(image_size=size))
    assert str(tuple(size)) in message
    assert "4" in message


@pytest.mark.parametrize("size", [[16], [16, 8, 3], 16, [0, 8], [16, -8], [16.0, 8], "16x8"])
def test_a_size_that_is_not_height_and_width_is_refused(size: Any) -> None:
    assert "image_size" in refusal(TokenizerConfig, tokenizer(image_size=size))


def test_a_side_of_one_pixel_is_refused_even_where_the_networks_take_it() -> None:
    mlp = {"encoder": {"type": "mlp"}, "decoder": {"type": "mlp"}}
    for size in ([1, 8], [8, 1]):
        message = refusal(TokenizerConfig, tokenizer(image_size=size, **mlp))
        assert "image_size" in message
        assert "expected at least 2" in message
    assert TokenizerConfig.from_dict(tokenizer(image_size=[2, 2], **mlp)).grid_size == (1, 1)


def test_a_codebook_over_the_table_limit_is_refused() -> None:
    largest = {**VQ, "codebook_size": 2**24, "code_dim": MAX_TABLE_SIZE // 2**24}
    assert TokenizerConfig.from_dict(tokenizer(bottleneck=largest))
    for bottleneck in (
        {**largest, "code_dim": largest["code_dim"] + 1},
        {**VQ, "codebook_size": 2**24, "latent_dim": 200},
        {"type": "gumbel", "codebook_size": 2**24, "latent_dim": 200},
    ):
        message = refusal(TokenizerConfig, tokenizer(bottleneck=bottleneck))
        assert str(MAX_TABLE_SIZE) in message


# Runs


def test_a_plain_number_stands_for_a_constant_schedule() -> None:
    schedule = {"type": "cosine", "start": 1, "end": 0.0625, "steps": 150000}
    config = TrainConfig.from_dict({"steps": 10, "temperature": schedule, "loss_weights": {"a": 6}})
    assert config.loss_weights == {"a": 6.0}
    assert config.to_dict()["temperature"] == {**schedule, "begin": 0}
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("value", ["fast", True, [1.0], None])
def test_what_is_neither_a_number_nor_a_schedule_is_refused(value: Any) -> None:
    assert "temperature" in refusal(TrainConfig, {"steps": 10, "temperature": value})


@pytest.mark.parametrize(
    "train",
    [
        {"temperature": 0},
        {"temperature": {"type": "linear", "start": 1, "end": -0.1, "steps": 5}},
        {"temperature": {"type": "exponential", "start": 1, "end": 0, "steps": 5}},
        {"optimizer": {"lr": -1e-4}},
        {"optimizer": {"betas": [0.9, 1.0]}},
        {"optimizer": {"epsilon": 0}},
        {"ema_decay": 1.0},
        {"batch_size": 7, "accumulation": 2},
        {"steps": 0},
        {"seed": -1},
        {"seed": 2**63},
        {"precision": "fp8"},
    ],
    ids=str,
)
def test_a_run_that_could_only_fail_later_is_refused(train: dict[str, Any]) -> None:
    message = refusal(RunConfig, run(**train))
    named = next(iter(train))
    assert named in message


@pytest.mark.parametrize("scale", [[0.0, 1.0], [0.9, 0.5], [0.5, 1.5], [0.5]])
def test_a_crop_scale_that_is_not_a_range_is_refused(scale: list[float]) -> None:
    assert "crop_scale" in refusal(DataConfig, {"name": "folder", "crop_scale": scale})


def test_a_run_round_trips() -> None:
    config = RunConfig.from_dict(run(loss_weights={"loss/commitment": 0.25}, precision="bf16"))
    assert RunConfig.from_json(config.to_json()) == config


# Identity

GUMBEL = {"type": "gumbel", "codebook_size": 8, "latent_dim": 4}


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder": {"type": "conv", "num_residual_blocks": 5}},
        {"likelihood": {"type": "l1"}},
        {"bottleneck": {**VQ, "codebook": "loss"}},
        {"bottleneck": {**VQ, "decay": 0.5}},
        {"bottleneck": {**VQ, "epsilon": 0.5}},
        {"bottleneck": {**VQ, "gradient": "rotation"}},
        {"bottleneck": {**VQ, "kmeans_init": False}},
        {"bottleneck": {**VQ, "restart_below": 0.5}},
    ],
)
def test_what_only_training_sees_is_not_part_of_the_identity(changes: dict[str, Any]) -> None:
    config = TokenizerConfig.from_dict(tokenizer())
    changed = TokenizerConfig.from_dict(tokenizer(**changes))
    assert changed != config
    assert changed.identity() == config.identity()


@pytest.mark.parametrize("option", [{"hard": True}, {"split_below": 0.5}])
def test_training_options_of_a_dvae_are_not_part_of_its_identity(option: dict[str, Any]) -> None:
    config, changed = (
        TokenizerConfig.from_dict(tokenizer(bottleneck={**GUMBEL, **more})) for more in ({}, option)
    )
    assert changed != config
    assert changed.identity() == config.identity()


def test_a_config_without_a_colour_profile_is_what_it_was() -> None:
    config = TokenizerConfig.from_dict(tokenizer())
    assert config.preprocessing.color_profile == "ignore"
    assert "color_profile" not in config.to_json()
    assert config.identity()["preprocessing"] == {
        "resize": "bicubic",
        "background": [255, 255, 255],
    }


def test_what_decides_ids_or_latents_is_part_of_the_identity() -> None:
    kinds = [
        {},
        {"image_size": [8, 16]},
        {"channels": 1},
        {"preprocessing": {"resize": "bilinear"}},
        {"preprocessing": {"background": [0, 0, 0]}},
        {"preprocessing": {"color_profile": "srgb"}},
        {"encoder": {"type": "conv", "num_residual_blocks": 3}},
        {"bottleneck": {**VQ, "normalize": True}},
        {"bottleneck": {**VQ, "code_dim": 2}},
        {"bottleneck": {**VQ, "codebook_size": 9}},
        {"bottleneck": GUMBEL},
        {"bottleneck": {"type": "identity", "latent_dim": 4}},
        {"bottleneck": {"type": "gaussian", "latent_dim": 4}},
    ]
    configs = [TokenizerConfig.from_dict(tokenizer(**changes)) for changes in kinds]
    assert len({json.dumps(config.identity(), sort_keys=True) for config in configs}) == len(kinds)


def test_every_key_that_is_called_training_only_exists() -> None:
    for kind in (VqConfig, GumbelConfig):
        assert kind.training_only <= kind.model_fields.keys()
