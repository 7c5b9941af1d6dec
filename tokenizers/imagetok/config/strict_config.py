"""The base of all configuration models: strict, frozen, validated from JSON text.

Values are validated from JSON text rather than from Python objects because only pydantic's strict
JSON mode means what a file says: `"8"` and `true` are not integers, and a list is a tuple.

Messages stay short and printable whatever a file holds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from pydantic_core import ErrorDetails

from imagetok.errors import ConfigError

MAX_FAULTS = 8
"""Most faults that a message names; of further ones it gives the number."""

_OF_PYDANTIC = re.compile(r"(constrained-|function-|literal\[)")  # no keys of the file

_MEMBERS = ("bool", "int", "float", "str")
"""What pydantic calls the members of a union, in places as if they were keys."""

_EXPECTATIONS = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "a smaller integer",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "dataclass_type": "a mapping",
    "string_too_short": "a length of at least {min_length}",
    "too_short": "a length of at least {min_length}",
    "too_long": "a length of at most {max_length}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}
"""What a value of the file should be, by the kind of pydantic's finding and with its figures."""


class Config(BaseModel):
    """A configuration model that refuses unknown keys and mistyped values with a clear message.

    Attributes:
        later_keys: Keys that were added after a format was published. While such a key has its
            default, which means what older versions did, it is left out of everything that is
            written, so that digests and files of older versions stay what they were.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    later_keys: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Validate JSON text.

        Raises:
            ConfigError: The text is not JSON, or an entry is unknown, missing, mistyped, out of
                range, given twice or contradicts another; every fault is named with its place.
        """
        try:
            config = cls.model_validate_json(text)
            json.loads(text, object_pairs_hook=unique_keys)  # pydantic takes the last of several
        except ValidationError as error:
            faults = describe_faults(cls, error.errors())
            more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
            found = "; ".join(faults[:MAX_FAULTS] + more + _remedies(error.errors()))
            raise ConfigError(f"{cls.__name__}: {found}") from None
        except ConfigError as error:
            raise ConfigError(f"{cls.__name__}: {error}") from None
        return config

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Validate a mapping of JSON-like values; errors as in `from_json`."""
        try:
            text = json.dumps(values)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{cls.__name__}: not expressible as JSON: {error}") from None
        return cls.from_json(text)

    def to_dict(self) -> dict[str, Any]:
        """The complete configuration, defaults included, as JSON-like values."""
        return self.model_dump(mode="json")

    def to_complete_dict(self) -> dict[str, Any]:
        """Like `to_dict`, with the later keys that are left out while they have their defaults."""
        values = self.to_dict()
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Config):
                values[name] = value.to_complete_dict()
            elif name not in values:
                values[name] = json.loads(json.dumps(field.get_default(call_default_factory=True)))
        return values

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no white space; equal configurations give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @model_serializer(mode="wrap")
    def _leave_out_later_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        for key in self.later_keys:
            if getattr(self, key) == fields[key].get_default(call_default_factory=True):
                values.pop(key, None)
        return values


def differing_entries(
    one: Mapping[str, Any], other: Mapping[str, Any], place: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Entries in which two configurations, as JSON-like values, differ.

    Yields:
        (dotted key, the one's value, the other's value), None for an entry that is missing; of
        parts of two types the types alone.
    """
    keys = ["type"] if one.get("type") != other.get("type") else dict.fromkeys([*one, *other])
    for key in keys:
        first, second = one.get(key), other.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            yield from differing_entries(first, second, f"{place}{key}.")
        elif first != second:
            yield f"{place}{key}", first, second


class NestedFaultsError(ValueError):
    """Faults of a part whose model was looked up while its parent was validated.

    Args:
        model: The part's model.
        tag: Its `type`.
        errors: What pydantic found, with places inside the part.
    """

    def __init__(self, model: type[BaseModel], tag: str, errors: Sequence[ErrorDetails]) -> None:
        super().__init__(f"{model.__name__} is not valid")
        self.model, self.tag, self.errors = model, tag, errors


class UnknownTypeError(ValueError):
    """A part names a `type` that nothing has registered, or none at all.

    Args:
        tag: The type that was found; None where the key is missing.
        choices: The types that are known.
        remedy: How to make another one known; "" where that would not help.
    """

    def __init__(self, tag: str | None, choices: Sequence[str], remedy: str = "") -> None:
        self.tag, self.remedy = tag, remedy
        self.choices = f"choose one of: {', '.join(choices)}"
        super().__init__("; ".join(filter(None, [self.choices, remedy])))


def printable(text: str, most: int = 80) -> str:
    """A text from outside as messages show it: without control characters, cut where it is long."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its entries: an `object_pairs_hook` for `json.loads`.

    Raises:
        ConfigError: A key is given twice, so that nobody knows which value is meant.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"the key '{printable(twice)}' is given twice; keep one")
    return found


def _integer(value: Any) -> Any:
    if type(value) is not int:
        raise ValueError(f"found {printable(repr(value))}; expected an integer")
    return value


StrictInteger = BeforeValidator(_integer)
"""For `Literal` integers: a literal compares by value, so that true and 1.0 would pass as 1."""


def describe_value(error: ValidationError) -> str:
    """What is wrong with a single value, such as an option's, in our own words."""
    fault = error.errors()[0]
    return f"found {printable(repr(fault['input']))}; {_expectation(fault)}"


def describe_faults(
    root: type[BaseModel], faults: Sequence[ErrorDetails], above: tuple[int | str, ...] = ()
) -> list[str]:
    """Pydantic's findings in our own words.

    Args:
        root: The model that was validated.
        faults: `ValidationError.errors()`.
        above: Place of the model in the file; empty for the whole of it.
    """
    lines = []
    for group in _groups(faults):
        fault = group[-1]
        error = fault.get("ctx", {}).get("error")
        if isinstance(error, NestedFaultsError):
            place = (*above, *fault["loc"], error.tag)
            lines += describe_faults(error.model, error.errors, place)
        elif len(group) > 1 and not _is_short_list(fault):
            joined = ", or ".join(
                _expectation(member).removeprefix("expected ") for member in group
            )
            shown = ".".join(printable(str(part)) for part in (*above, *fault["loc"][:-1]))
            lines.append(f"{shown}: found {printable(repr(fault['input']))}; expected {joined}")
        else:
            lines.append(_describe(root, fault, above))
    return lines


def _groups(faults: Sequence[ErrorDetails]) -> list[list[ErrorDetails]]:
    """Findings, with those about one value together: entries it lacks, or types it could have."""
    groups: list[list[ErrorDetails]] = []
    for fault in faults:
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and last["loc"][:-1] == fault["loc"][:-1]
            and (
                (_is_short_list(last) and _is_short_list(fault))
                or (_is_of_member(last) and _is_of_member(fault))
            )
        ):
            groups[-1].append(fault)
        else:
            groups.append([fault])
    return groups


def _is_of_member(fault: ErrorDetails) -> bool:
    return bool(fault["loc"]) and fault["loc"][-1] in _MEMBERS


def _remedies(faults: Sequence[ErrorDetails]) -> list[str]:
    """How to make unknown types known, said once for all of them."""
    found = []
    for fault in faults:
        error = fault.get("ctx", {}).get("error")
        if isinstance(error, NestedFaultsError):
            found += _remedies(error.errors)
        elif isinstance(error, UnknownTypeError) and error.remedy:
            found.append(error.remedy)
    return list(dict.fromkeys(found))


def _describe(root: type[BaseModel], fault: ErrorDetails, above: tuple[int | str, ...]) -> str:
    where = [str(part) for part in (*above, *fault["loc"])]
    place = ".".join(printable(part) for part in where if not _OF_PYDANTIC.match(part))
    place = place or "(top level)"
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        valid = ", ".join(sorted(_valid_keys(root, fault["loc"][:-1])))
        return f"unknown key '{place}'; valid keys here: {valid}"
    if _is_short_list(fault):
        place, _, last = place.rpartition(".")
        found = printable(repr(fault["input"]))
        return f"{place}: found {found}; expected {int(last) + 1} values"
    if kind == "missing":
        return f"missing key '{place}'"
    if kind == "json_invalid":
        return f"not valid JSON: {context['error']}"
    if kind == "value_error":
        return _describe_refusal(place if where else None, context["error"])
    if kind == "float_type" and _is_number_text(fault["input"]):
        found = printable(fault["input"])
        return f"{place}: found the text '{found}'; YAML wants a point in it, as in 1.0e-3"
    return f"{place}: found {printable(repr(fault['input']))}; {_expectation(fault)}"


def _is_short_list(fault: ErrorDetails) -> bool:
    return fault["type"] == "missing" and isinstance(fault["loc"][-1], int)


def _expectation(fault: ErrorDetails) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ")
        return f"choose one of: {choices}" if ", " in choices else f"expected {choices}"
    if kind not in _EXPECTATIONS:
        return fault["msg"]
    figures = {name: _shortest(value) for name, value in context.items()}
    return f"expected {_EXPECTATIONS[kind].format(**figures)}"


def _shortest(value: Any) -> Any:
    """A limit without the decimal point that a float shows where it need not."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _describe_refusal(place: str | None, error: ValueError) -> str:
    if not isinstance(error, UnknownTypeError):
        return str(error) if place is None else f"{place}: {error}"
    if error.tag is None:
        return f"{place} has no key 'type'; {error.choices}"
    return f"unknown {place} '{printable(error.tag)}'; {error.choices}"


def _is_number_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _valid_keys(root: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Field names of the model at `location`, of all members where it is a union."""
    models: list[type[BaseModel]] = [root]
    for part in location:
        below: list[type[BaseModel]] = []
        for model in models:
            if str(part) in model.model_fields:
                below += _models_in(model.model_fields[str(part)].annotation)
        models = below or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
