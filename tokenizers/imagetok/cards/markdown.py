"""Texts of users in cards, made so that none can break out of the place it is put into.

Names of datasets, splits, columns and recipes may be any text. A card shows them as code in a line
or in the cell of a table, as a Python literal, as a word of a command, or as a YAML value; a
function for each of these makes a text harmless.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

LONGEST = 200
"""Most characters of a text that are shown."""

# Neither a tag nor one of the comments that mark the generated part may arise, even for a reader
# that does not know that code is not HTML.
_REPLACED = str.maketrans({"`": "'", "|": "/", "<": "\u2039", ">": "\u203a"})


def plain(value: object) -> str:
    """The text as one line of printable characters, none of which ends code, a cell or a comment.

    A long text is cut.
    """
    line = " ".join(str(value).split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in line).translate(_REPLACED)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def code(value: object) -> str:
    """The text as code in a line or a cell."""
    return f"`{plain(value) or '(empty)'}`"


def front_matter(values: Mapping[str, Any]) -> str:
    """The YAML block at the top of a card."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    return f"---\n{text}---"


def python_text(value: str) -> str:
    """The text as a Python literal, on one line and without tags."""
    return _escaped(json.dumps(value, ensure_ascii=False))


def shell_word(value: str) -> str:
    """The text as one word of a bash command, on one line and without tags."""
    if _escaped(value) == value:
        return shlex.quote(value)
    inner = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_escaped(inner)}'"


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() and c != "<" else _escape(ord(c)) for c in text)


def _escape(point: int) -> str:
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
