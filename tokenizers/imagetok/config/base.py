"""The base of all configuration models: strict, frozen, validated from JSON text.

Values are validated from JSON text rather than from Python objects because only pydantic's strict
JSON mode means what a file says: `"8"` and `true` are no integers, and a list is a tuple.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from imagetok.errors import ConfigError


class Config(BaseModel):
    """A configuration model that refuses unknown keys and mistyped values in words."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Validate JSON text.

        Raises:
            ConfigError: The text is no JSON, or an entry is unknown, missing, mistyped, out of
                range or contradicts another; every fault is named with its place.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            faults = [_describe(cls, fault) for fault in error.errors()]
            raise ConfigError(f"{cls.__name__}: " + "; ".join(faults)) from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Validate a mapping of JSON-like values; errors as in `from_json`."""
        try:
            text = json.dumps(values, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{cls.__name__}: not expressible as JSON: {error}") from None
        return cls.from_json(text)

    def to_dict(self) -> dict[str, Any]:
        """The complete configuration, defaults included, as JSON-like values."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no white space; equal configurations give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))


def _integer(value: Any) -> Any:
    if type(value) is not int:
        raise ValueError(f"found {value!r}; expected an integer")
    return value


StrictInteger = BeforeValidator(_integer)
"""For `Literal` integers: a literal compares by value, so that true and 1.0 would pass as 1."""


def _describe(root: type[BaseModel], fault: ErrorDetails) -> str:
    place = ".".join(str(part) for part in fault["loc"]) or "(top level)"
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        valid = ", ".join(sorted(_valid_keys(root, fault["loc"][:-1])))
        return f"unknown key '{place}'; valid keys here: {valid}"
    if kind == "union_tag_invalid":
        expected = ", ".join(sorted(tag.strip(" '") for tag in context["expected_tags"].split(",")))
        return f"unknown {place} '{context['tag']}'; choose one of: {expected}"
    if kind == "union_tag_not_found":
        return f"{place} has no key 'type'"
    if kind == "missing":
        return f"missing key '{place}'"
    if kind == "json_invalid":
        return f"not valid JSON: {context['error']}"
    if kind == "value_error":
        return f"{place}: {context['error']}" if fault["loc"] else str(context["error"])
    if kind == "float_type" and _is_number_text(fault["input"]):
        return f"{place}: found the text '{fault['input']}'; YAML wants a point in it, as in 1.0e-3"
    found = repr(fault["input"])
    found = found if len(found) <= 80 else found[:77] + "..."
    return f"{place}: found {found}; {fault['msg']}"


def _is_number_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _valid_keys(root: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Field names of the model at `location`; union tags select among the union's members."""
    models: list[type[BaseModel]] = [root]
    for part in location:
        below: list[type[BaseModel]] = []
        for model in models:
            if str(part) in model.model_fields:
                below += _models_in(model.model_fields[str(part)].annotation)
        tagged = [m for m in models if part == _tag(m)]
        models = below or tagged or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("type")
    return get_args(field.annotation)[0] if field is not None else None
