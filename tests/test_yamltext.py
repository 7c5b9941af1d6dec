"""YAML as recipes use it: safe, no key twice, every place a value of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagetok.config import load_recipe
from imagetok.config.yaml_text import MAX_VALUES, parse_yaml
from imagetok.errors import ConfigError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "the text")
    message = str(caught.value)
    assert message.startswith("the text is not valid YAML")
    assert message.isprintable()
    assert len(message) < 200
    return message


def test_a_key_that_is_given_twice_is_refused_with_its_line() -> None:
    assert "in line 3: the key 'steps' is given twice" in refusal("a: 1\nsteps: 2\nsteps: 2\n")
    assert "the key 'a' is given twice" in refusal("x: [{a: 1, 'a': 2}]")
    assert parse_yaml("a: {b: 1}\nb: {b: 1}\n1: x\n'1': y\n", "it") == {
        "a": {"b": 1},
        "b": {"b": 1},
        1: "x",
        "1": "y",
    }


def test_merged_keys_may_be_overridden() -> None:
    text = "base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\n"
    assert parse_yaml(text, "it")["more"] == {"a": 1, "b": 3}


def test_an_alias_is_a_copy() -> None:
    values = parse_yaml("a: &net {sizes: [1, 2]}\nb: *net\n", "it")
    values["a"]["sizes"].append(3)
    assert values["b"] == {"sizes": [1, 2]}


def test_an_override_of_an_aliased_network_leaves_the_other_one(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        """
tokenizer:
  image_size: [8, 8]
  encoder: &net {type: conv, hidden_channels: 16}
  bottleneck: {type: identity, latent_dim: 2}
  decoder: *net
  likelihood: {type: mse}
data: {name: folder}
train: {steps: 1}
"""
    )
    config = load_recipe(str(path), ["tokenizer.encoder.hidden_channels=8"]).tokenizer
    sizes = [part.to_dict()["hidden_channels"] for part in (config.encoder, config.decoder)]
    assert sizes == [8, 16]


@pytest.mark.parametrize("text", [LAUGHS, "&a [*a]", "a: &a {b: *a}", "[" * 5000, "- " * 5000])
def test_a_text_that_unfolds_without_bound_is_refused(text: str) -> None:
    message = refusal(text)
    assert f"more than {MAX_VALUES} values" in message or "recursion" in message


NONSENSE = [
    *("!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "!a x", "*a", "'", "{[1]: 2}"),
    *("!!python/name:os.system", "!!python/object/apply:os.system [ls]"),
    *("2026-13-32", "\0", "\x1b[31m"),
]


@pytest.mark.parametrize("text", NONSENSE)
def test_what_means_nothing_is_refused_in_words(text: str) -> None:
    assert "object has no attribute" not in refusal(text)
