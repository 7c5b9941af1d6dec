"""Which types a place in a config takes, and `1e4` made an integer where only one of these fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import EllipsisType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from imagetok.config.registry import PartConfig, find_part
from imagetok.config.strict_config import Config, UnknownTypeError
from imagetok.config.yaml_text import Exponent


def types_below(kinds: Sequence[Any], key: str, node: Mapping[str, Any]) -> list[Any]:
    """The types that an entry may have: of a config its field's, of a mapping its values'.

    Args:
        kinds: Types of the whole.
        key: The entry.
        node: What the whole holds so far; it tells which part a part is.
    """
    return [found for kind in kinds for found in _below(kind, key, node)]


def fit_numbers(value: Any, kinds: Sequence[Any]) -> Any:
    """A value with each `Exponent` in it made an integer where its place takes no other number.

    Elsewhere it is what it is in the notation that it was written in.

    Args:
        value: The value.
        kinds: Types that it may have; none where they are not known.
    """
    if isinstance(value, Exponent):
        return _fit(value, kinds)
    if isinstance(value, dict):
        return {
            key.plain if isinstance(key, Exponent) else key: fit_numbers(
                inner, types_below(kinds, key, value)
            )
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [
            fit_numbers(inner, [found for kind in kinds for found in _element(kind, number)])
            for number, inner in enumerate(value)
        ]
    return value


def _fit(number: Exponent, kinds: Sequence[Any]) -> str | float:
    is_wanted = int in kinds and not {str, float}.intersection(kinds)
    return int(float(number)) if is_wanted and float(number).is_integer() else number.plain


def _element(kind: Any, number: int) -> Iterator[Any]:
    """The types that an element of a list may have."""
    inner = get_args(kind) if get_origin(kind) in (list, tuple) else ()
    if len(inner) == 1 or (len(inner) == 2 and isinstance(inner[1], EllipsisType)):
        yield from _alternatives(inner[0])
    elif number < len(inner):
        yield from _alternatives(inner[number])


def _below(kind: Any, key: str, node: Mapping[str, Any]) -> Iterator[Any]:
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
