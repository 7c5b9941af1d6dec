"""Overrides: `key.path=value` on top of a recipe, read as the key's type wants it.

A value is YAML, with two exceptions that the type of the key decides. Where only text fits, the
value is taken literally, so that `data.name=2024` and `data.name=photos #2` name folders; quotes
around all of it are removed, and `null` stands for None where the key may be None. Where an integer
fits and no other number, `1e4` is one, as it is in recipes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from imagetok.config.expected_types import fit_numbers, types_below
from imagetok.config.strict_config import Config, printable, unique_keys
from imagetok.config.yaml_text import Exponent, parse_yaml
from imagetok.errors import ConfigError

_NULLS = ("", "~", "null", "Null", "NULL")


def apply_override(values: dict[str, Any], override: str, model: type[Config]) -> None:
    """Set the value that an override names.

    Args:
        values: What `model` will be validated from; changed in place.
        override: `key.path=value`.
        model: The config whose keys the path names.

    Raises:
        ConfigError: The override is malformed, or its path leads through a value.
    """
    path, equals, text = override.partition("=")
    where = f"override '{printable(override)}'"
    if not equals or not path:
        raise ConfigError(f"{where} is not of the form key.path=value")
    *parents, last = path.split(".")
    node: Any = values
    kinds: list[Any] = [model]
    for part in parents:
        kinds = types_below(kinds, part, node)
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, Mapping):
            raise ConfigError(f"{where}: '{printable(part)}' holds a value, not further keys")
    node[last] = _read(text, where, types_below(kinds, last, node))


def _read(text: str, where: str, kinds: Sequence[Any]) -> Any:
    """The value that a text means to a key that takes these types; none known is YAML."""
    fits = [kind for kind in kinds if kind is not type(None)]
    is_null = len(fits) < len(kinds) and text in _NULLS
    if fits and all(kind is str for kind in fits) and not is_null:
        return _unquote(text, where)
    return fit_numbers(_read_yaml(text, where), kinds)


def _unquote(text: str, where: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        try:
            value = _read_yaml(text, where)
        except ConfigError:  # quotes that belong to the text, as in 'a' and 'b'
            return text
        return value if isinstance(value, str) else text
    return text


def _read_yaml(text: str, where: str) -> Any:
    try:  # 1e-3 is a number in JSON, a text in YAML
        return json.loads(text, object_pairs_hook=unique_keys, parse_float=_parse_float)
    except (ValueError, RecursionError):
        return parse_yaml(text, where)


def _parse_float(text: str) -> float | Exponent:
    return Exponent(text, float(text)) if "e" in text.lower() else float(text)
