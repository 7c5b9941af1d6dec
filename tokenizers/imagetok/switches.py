"""Environment variables that are true or false."""

from __future__ import annotations

import os

from imagetok.errors import InvalidValueError

_TRUE, _FALSE = ("1", "y", "yes", "t", "true", "on"), ("0", "n", "no", "f", "false", "off")


def read_switch(variable: str, default: bool) -> bool:
    """What an environment variable says, or the default where it is not set.

    Raises:
        InvalidValueError: The variable is neither true nor false.
    """
    text = os.environ.get(variable, str(default)).lower()
    if text not in _TRUE + _FALSE:
        raise InvalidValueError(
            f"the environment variable {variable} is '{text}'; set it to true or false, or unset it"
        )
    return text in _TRUE
