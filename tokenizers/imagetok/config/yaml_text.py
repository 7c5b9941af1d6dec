"""YAML as recipes and overrides use it: safe, no key given twice, every value in one place.

YAML's aliases let two places share a value, so that an override of one would change both, and let a
short text unfold without bound. Here each place gets a copy, up to a limit.

`1e4` is a text to PyYAML and a number to everybody else. It comes as an `Exponent`, which
`imagetok.config.expected_types` makes an integer where one is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from imagetok.config.strict_config import printable
from imagetok.errors import ConfigError

MAX_VALUES = 10_000
"""Most values that a text may have with its aliases written out."""


class Exponent(str):
    """A number such as `1e4` without quotes, as the text that it was written as.

    Attributes:
        plain: What it is where no integer is wanted: a text or, as `1.0e+4` in YAML, a float.
    """

    plain: str | float

    def __new__(cls, text: str, plain: str | float) -> Exponent:
        """Mark a text."""
        number = super().__new__(cls, text)
        number.plain = plain
        return number


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text, in which every number such as `1e4` is an `Exponent`.

    Args:
        text: The text.
        where: What messages call it.

    Raises:
        ConfigError: The text is not safe YAML, gives a key twice, or unfolds beyond the limit.
    """
    try:
        return _copy(_Loader(text).get_single_data(), iter(range(MAX_VALUES)))
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
    except (ValueError, RecursionError) as error:  # 2026-13-32, and deep nesting
        problem, line = str(error), ""
    except (LookupError, AttributeError):  # PyYAML's answer to !!int "" and !!timestamp x
        problem, line = "a value does not fit the tag (!!...) in front of it", ""
    raise ConfigError(f"{where} is not valid YAML{line}: {printable(problem)}")


class _Loader(yaml.SafeLoader):
    """The safe loader, which takes the last of several equal keys, made to refuse them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in _scalar_keys(node):
            if (key.tag, key.value) in seen:
                problem = f"the key '{key.value}' is given twice; keep one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


_EXPONENT = "!exponent"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


def _construct_exponent(_loader: _Loader, node: yaml.ScalarNode) -> Exponent:
    if not _NUMBER.match(node.value):
        raise yaml.MarkedYAMLError(problem="an unknown tag", problem_mark=node.start_mark)
    return Exponent(node.value, yaml.safe_load(node.value))


_Loader.add_constructor(_EXPONENT, _construct_exponent)
_Loader.yaml_implicit_resolvers = {
    first: [(_EXPONENT, _NUMBER), *others] if first in "-+.0123456789" else others
    for first, others in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _scalar_keys(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.MappingNode):
        yield from (key for key, _ in node.value if isinstance(key, yaml.ScalarNode))


def _copy(value: Any, left: Iterator[int]) -> Any:
    """Lists and mappings anew, each place its own; `left` runs out at the limit."""
    if next(left, None) is None:
        raise ValueError(f"its aliases unfold to more than {MAX_VALUES} values")
    if isinstance(value, dict):
        return {key: _copy(inner, left) for key, inner in value.items()}
    if isinstance(value, list):
        return [_copy(inner, left) for inner in value]
    return value
