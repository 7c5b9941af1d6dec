"""Overrides: `key.path=value` on top of a recipe, read as the key's type wants it.

A value is YAML, with two exceptions that the type of the key decides. Where only text fits, the
value is taken literally, so that `data.name=2024` and `data.name=photos #2` name folders; quotes
around all of it are removed, and `null` stands for None where the key may be None. Where an integer
fits and no other number, `1e4` is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from imagetok.config.registry import PartConfig, find_part
from imagetok.config.strict_config import Config, UnknownTypeError, printable, unique_keys
from imagetok.config.yaml_text import parse_yaml
from imagetok.errors import ConfigError

_EXPONENT = re.compile(r"[+-]?\d+(\.\d+)?[eE]\+?\d{1,3}")
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
        kinds = [kind for above in kinds for kind in _below(above, part, node)]
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, Mapping):
            raise ConfigError(f"{where}: '{printable(part)}' holds a value, not further keys")
    node[last] = _read(text, where, [k for above in kinds for k in _below(above, last, node)])


def _read(text: str, where: str, kinds: Sequence[Any]) -> Any:
    """The value that a text means to a key that takes these types; none known is YAML."""
    fits = [kind for kind in kinds if kind is not type(None)]
    is_null = len(fits) < len(kinds) and text in _NULLS
    if fits and all(kind is str for kind in fits) and not is_null:
        return _unquote(text, where)
    if int in fits and float not in fits and _EXPONENT.fullmatch(text):
        number = float(text)
        return int(number) if number.is_integer() else number
    return _read_yaml(text, where)


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
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        return parse_yaml(text, where)


def _below(kind: Any, key: str, node: Mapping[str, Any]) -> Iterator[Any]:
    """The types that an entry may have: of a config its field's, of a mapping its values'.

    Args:
        kind: Type of the whole.
        key: The entry.
        node: What the whole holds so far; it tells which part a part is.
    """
    if get_origin(kind) is dict:
        yield from _alternatives(get_args(kind)[1])
    elif isinstance(kind, type) and issubclass(kind, Config):
        field = _resolve(kind, node).model_fields.get(key)
        if field is not None:
            yield from _alternatives(field.annotation)


def _resolve(kind: type[Config], node: Mapping[str, Any]) -> type[Config]:
    """The config of a part by its `type`; any other as it is."""
    name = node.get("type")
    if not issubclass(kind, PartConfig) or "type" in kind.model_fields or not isinstance(name, str):
        return kind
    try:
        return find_part(kind.kind, name)
    except UnknownTypeError:  # told when the whole is validated
        return kind


def _alternatives(kind: Any) -> Iterator[Any]:
    """The members of a type: of a union each, of a literal the types of its values."""
    if get_origin(kind) is Annotated:
        yield from _alternatives(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            yield from _alternatives(member)
    elif get_origin(kind) is Literal:
        yield from {type(value) for value in get_args(kind)}
    else:
        yield kind
