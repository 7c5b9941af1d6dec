"""Configs, JSON texts, recipes and overrides of any kind: meant as written, or refused by name."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from effort import often
from hypothesis import given
from hypothesis import strategies as st

from imagetok import ImageTokenizer
from imagetok.config import RunConfig, TokenizerConfig, load_recipe, recipe_names
from imagetok.config.recipe import dump_recipe
from imagetok.errors import ConfigError, ImagetokError

CONV = {"type": "conv", "hidden_channels": 8, "residual_channels": 4}
DALLE = {"type": "dalle", "hidden_channels": 8, "num_groups": 2, "blocks_per_group": 1}
SYSTEMS: list[dict[str, Any]] = [
    {
        "image_size": [8, 16],
        "channels": channels,
        "preprocessing": {"resize": "bilinear", "background": [1, 2, 3]},
        "encoder": network,
        "bottleneck": bottleneck,
        "decoder": network,
        "likelihood": likelihood,
    }
    for channels, network, bottleneck, likelihood in (
        (1, {"type": "mlp", "hidden": [8, 4]}, {"type": "identity", "latent_dim": 2}, "mse"),
        (3, CONV, {"type": "gaussian", "latent_dim": 2}, "l1"),
        (4, CONV, {"type": "vq", "codebook_size": 8, "latent_dim": 2, "code_dim": 3}, "mse"),
        (3, DALLE, {"type": "gumbel", "codebook_size": 8, "latent_dim": 2}, "logit_laplace"),
    )
    for likelihood in ({"type": likelihood},)
]

numbers = st.one_of(
    st.integers(-3, 40),
    st.integers(),
    st.sampled_from([2**31, 2**62, 2**64, 10**400, 65_536, 65_537, 2**24]),
    st.floats(),
    st.floats(-1, 2),
)
words = st.one_of(
    st.text(max_size=6),
    st.sampled_from([
        "mlp", "conv", "dalle", "vq", "gumbel", "learnt", "ema", "loss", "rotation", "bicubic", "8",
        "type", "latent_dim", "codebook_size", "hidden", "1e-3", "cosine", "true", "null",
    ]),
)  # fmt: skip
leaves = st.one_of(st.none(), st.booleans(), numbers, words)
jsons = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=8,
)


def places(values: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of nested values."""
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    found = [(values, key) for key, _ in inner]
    nested = values.values() if isinstance(values, dict) else values
    return found + [p for value in nested if isinstance(value, dict | list) for p in places(value)]


CHANGES = ["replace", "nudge", "nudge", "mistype", "mistype", "remove", "add", "move"]


@st.composite
def mutations(draw: st.DrawFn, values: Any) -> Any:
    """Values with a few of them replaced, nudged, mistyped, removed, added, or put elsewhere."""
    values = copy.deepcopy(values)
    for _ in range(draw(st.integers(1, 3))):
        found = places(values)
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        match draw(st.sampled_from(CHANGES)):
            case "replace":
                container[key] = draw(jsons)
            case "nudge" if isinstance(container[key], int | float):
                container[key] = draw(st.one_of(st.sampled_from([0, 1, 2, 4, 8, 16]), numbers))
            case "mistype" if isinstance(value := container[key], int | float):
                number = float(value) if abs(value) < 2**1000 else 0.5
                others = [str(value), number, int(value), bool(value), [value], {}, None]
                container[key] = draw(st.sampled_from(others))
            case "remove":
                del container[key]
            case "add" if isinstance(container, dict):
                container[draw(words)] = draw(leaves)
            case "move":
                other, name = draw(st.sampled_from(found))
                container[key] = copy.deepcopy(other[name])
    return values


def means(written: Any, found: Any) -> bool:
    """Whether a config says what was written, and no more than defaults beside it."""
    if isinstance(written, dict) and isinstance(found, dict):
        return all(key in found and means(value, found[key]) for key, value in written.items())
    if isinstance(written, list) and isinstance(found, list):
        return len(written) == len(found) and all(map(means, written, found))
    if isinstance(written, bool) or isinstance(found, bool) or not isinstance(found, float):
        return type(written) is type(found) and written == found
    return type(written) in (int, float) and written == found  # a whole number for a float


def check(kind: type, read: Any) -> Any:
    """The config that a reader gives, after a round trip; None where it refuses in words."""
    try:
        config = read()
    except ImagetokError as error:
        message = str(error)
        assert message.isprintable()
        assert 10 < len(message) < 3000
        assert "pydantic" not in message
        return None
    text = config.to_json()
    assert kind.from_json(text) == config
    assert kind.from_dict(config.to_dict()).to_json() == text
    return config


@given(st.sampled_from(SYSTEMS).flatmap(mutations))
def test_a_changed_config_means_what_is_written_or_is_refused(values: Any) -> None:
    config = check(TokenizerConfig, lambda: TokenizerConfig.from_dict(values))
    try:
        written = TokenizerConfig.from_json(json.dumps(values))
    except ConfigError:
        written = None
    assert written == config
    if config is None:
        return
    assert means(values, config.to_dict())
    height, width = config.image_size
    assert config.grid_size[0] * config.factors[0] == height
    assert config.grid_size[1] * config.factors[1] == width
    with torch.device("meta"):
        built = ImageTokenizer.from_config(config)
    assert built.grid_size == config.grid_size
    assert built.preprocessor.channels == config.channels


@given(st.sampled_from(SYSTEMS))
def test_the_configs_that_are_changed_are_good(values: dict[str, Any]) -> None:
    assert means(values, TokenizerConfig.from_dict(values).to_dict())


@given(st.one_of(jsons.map(json.dumps), st.text(), st.binary()))
def test_any_text_is_a_config_or_refused(text: str | bytes) -> None:
    assert check(TokenizerConfig, lambda: TokenizerConfig.from_json(text)) is None
    assert check(RunConfig, lambda: RunConfig.from_json(text)) is None


@functools.cache
def good_text() -> str:
    return json.dumps(SYSTEMS[2])


@often
@given(st.data())
def test_a_damaged_text_means_what_it_says_to_any_reader_or_is_refused(
    data: st.DataObject,
) -> None:
    text = good_text()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        width = data.draw(st.integers(0, 3))
        put = data.draw(
            st.one_of(st.text(max_size=3), st.sampled_from(list('{}[]",:0123456789.e-')))
        )
        text = text[:place] + put + text[place + width :]
    config = check(TokenizerConfig, lambda: TokenizerConfig.from_json(text))
    if config is not None:
        assert means(json.loads(text), config.to_dict())


# Recipes

KEYS = ["train.steps", "train.batch_size", "train.seed", "train.optimizer.lr", "train.temperature",
        "train.optimizer.betas", "train.loss_weights.loss/kl", "train.precision", "train.freeze",
        "train.ema_decay", "train.init_from", "data.name", "data.crop_scale", "data.flip",
        "data.lanes", "tokenizer.image_size", "tokenizer.channels", "tokenizer.encoder",
        "tokenizer.bottleneck.codebook_size", "tokenizer.likelihood.scale", "train"]  # fmt: skip
keys = st.one_of(
    st.sampled_from(KEYS),
    st.lists(words, min_size=1, max_size=3).map(".".join),
    st.tuples(st.sampled_from(KEYS), words).map(".".join),
)
ODD = [
    *("[0.8, 1]", "{type: cosine, start: 1, end: 0.1}", "{a: 1, a: 2}", "&a [*a]", "[", "'"),
    *("1e-3", "1.0e-3", "0x10", "1:30", "yes", "~", "2026-01-01", "<<: 1", "- 1"),
    *("!!int ''", "!!bool x", "!!timestamp x", "!!python/name:os.system"),
]
texts = st.one_of(
    jsons.map(json.dumps), leaves.map(str), st.text(max_size=10), st.sampled_from(ODD)
)


def at(values: Any, path: list[str]) -> Any:
    for key in path:
        values = values[key]
    return values


@given(
    st.sampled_from(recipe_names()),
    st.lists(st.tuples(keys, texts).map("=".join), min_size=1, max_size=2),
)
def test_overrides_set_what_they_say_or_are_refused(recipe: str, overrides: list[str]) -> None:
    config = check(RunConfig, lambda: load_recipe(recipe, overrides))
    if config is None:
        return
    path, _, text = overrides[-1].partition("=")
    found = at(config.to_complete_dict(), path.split("."))
    if found == text:
        return  # where text is wanted, it is taken as it stands
    try:
        value = json.loads(text)
    except ValueError:
        value = yaml.safe_load(text)
    if isinstance(value, str) and isinstance(found, int | float):
        value = float(value)  # YAML takes 1e4 for text
        assert value == found
    else:
        assert means(value, found)


@given(recipe=st.sampled_from(recipe_names()), data=st.data())
def test_a_changed_recipe_means_what_is_written_or_is_refused(
    recipe: str, data: st.DataObject, folder: Path
) -> None:
    values = data.draw(mutations(yaml.safe_load(dump_recipe(load_recipe(recipe)))))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=data.draw(st.booleans())), "utf-8")
    config = check(RunConfig, lambda: load_recipe(str(path)))
    if config is not None:
        assert means(values, config.to_dict())


@given(
    content=st.one_of(
        st.binary(), st.text().map(str.encode), jsons.map(yaml.safe_dump).map(str.encode)
    )
)
def test_any_file_is_a_recipe_or_refused(content: bytes, folder: Path) -> None:
    path = folder / "any.yaml"
    path.write_bytes(content)
    assert check(RunConfig, lambda: load_recipe(str(path))) is None
