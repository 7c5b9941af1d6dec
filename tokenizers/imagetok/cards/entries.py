"""Reading a JSON-like object of unknown origin, such as an evaluation of another version.

To a card, an entry that is missing and one of an unexpected kind are the same: not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_LONGEST_LIST = 100


class Entries:
    """Entries of a JSON-like object, by name and kind.

    Args:
        values: The object; anything else counts as an empty one.
    """

    def __init__(self, values: object) -> None:
        self._values: Mapping[str, Any] = values if isinstance(values, Mapping) else {}

    def __bool__(self) -> bool:
        return bool(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def keys_under(self, prefix: str) -> list[str]:
        """The keys that begin with a prefix; none where there are too many to list."""
        keys = [key for key in self._values if isinstance(key, str) and key.startswith(prefix)]
        return keys if len(keys) <= _LONGEST_LIST else []

    def number(self, key: str) -> int | float | None:
        """A finite number."""
        return _number(self._values.get(key))

    def count(self, key: str) -> int | None:
        """A whole number."""
        value = self.number(key)
        return value if isinstance(value, int) else None

    def text(self, key: str) -> str | None:
        """A text."""
        value = self._values.get(key)
        return value if isinstance(value, str) else None

    def texts(self, key: str) -> list[str]:
        """A list of texts; empty where there is none, or where it is too long to show."""
        return [value for value in self._list(key) if isinstance(value, str)]

    def counts(self, key: str) -> list[int]:
        """A list of whole numbers; empty where there is none."""
        return [value for value in map(_number, self._list(key)) if isinstance(value, int)]

    def part(self, key: str) -> Entries:
        """An object inside; empty where there is none."""
        return Entries(self._values.get(key))

    def is_void(self, key: str) -> bool:
        """Whether an entry is there and says that it does not apply."""
        return key in self._values and self._values[key] is None

    def _list(self, key: str) -> list[Any]:
        value = self._values.get(key)
        return value if isinstance(value, list) and len(value) <= _LONGEST_LIST else []


def _number(value: object) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    fits = abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)
    return value if fits else None
