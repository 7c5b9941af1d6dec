"""Texts of users in cards: nothing in one ends what it stands in.

Names of datasets, splits, columns and recipes are anybody's text. In a card they stand as code in a
line or in the cell of a table, as a literal of Python, as a word of a command, or as a value of
YAML; for each there is a function here that makes them harmless.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

LONGEST = 200
"""Characters of a text that are shown."""

# Neither a tag nor one of the comments that mark the generated part may come about, even for a
# reader that does not know that code is no HTML.
_REPLACED = str.maketrans({"`": "'", "|": "/", "<": "\u2039", ">": "\u203a"})


def plain(value: object) -> str:
    """A text as one line of printable characters that end neither code, nor a cell, nor a comment.

    It is cut where it is long.
    """
    line = " ".join(str(value).split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in line).translate(_REPLACED)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def code(value: object) -> str:
    """A text as code in a line or a cell."""
    return f"`{plain(value) or '(empty)'}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def python_block(*lines: str) -> str:
    """A block of Python."""
    return "\n".join(["```python", *lines, "```"])


def front_matter(values: Mapping[str, Any]) -> str:
    """The block of YAML at the top of a card."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    return f"---\n{text}---"


def python_text(value: str) -> str:
    """A text as a literal of Python, on one line and without tags."""
    return _escaped(json.dumps(value, ensure_ascii=False))


def shell_word(value: str) -> str:
    """A text as one word of a command of bash, on one line and without tags."""
    if _escaped(value) == value:
        return shlex.quote(value)
    inner = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_escaped(inner)}'"


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() and c != "<" else _escape(ord(c)) for c in text)


def _escape(point: int) -> str:
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
