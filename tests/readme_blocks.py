"""Reading a README's fenced blocks, so that tests and CI run what it says.

A block may have a mark, an HTML comment alone on the line before its fence:

    <!-- test -->
    ```bash
    python -m pytest
    ```

`python tests/readme_blocks.py MARK` prints the block of README.md with that mark. Standard library
only: CI calls it before anything is installed.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"

_MARK = re.compile(r"<!--\s*(\S+)\s*-->")
_BOX_DRAWING = str.maketrans(dict.fromkeys("│├└─", " "))


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: What stands behind the opening fence, or "".
        mark: The word of the HTML comment on the line before, or None.
        line: Number of the line of its opening fence, from 1.
        text: What stands between the fences.
    """

    language: str
    mark: str | None
    line: int
    text: str


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a Markdown text, in order.

    Raises:
        ValueError: A block has no closing fence.
    """
    found = []
    lines = iter(enumerate(text.splitlines(), start=1))
    before = ""
    for number, line in lines:
        if line.startswith("```"):
            body = []
            for _, inner in lines:
                if inner.startswith("```"):
                    break
                body.append(inner)
            else:
                raise ValueError(f"the block that opens at line {number} has no closing fence")
            mark = _MARK.fullmatch(before.strip())
            name = mark.group(1) if mark else None
            found.append(Block(line[3:].strip(), name, number, "\n".join(body) + "\n"))
        before = line
    return found


def marked(text: str, mark: str) -> Block:
    """The one block with this mark.

    Raises:
        ValueError: No block has it, or several have.
    """
    found = [block for block in blocks(text) if block.mark == mark]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} blocks have the mark '{mark}'; write <!-- {mark} --> on the line before "
            "the fence of exactly one"
        )
    return found[0]


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block as lists of words.

    Lines continued by a backslash are joined, comments dropped, `a && b` split into two and
    settings of variables in front of a command left out.
    """
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word == "&&":
                found += [words] if words else []
                words = []
            elif words or not re.match(r"[A-Za-z_]\w*=", word):
                words.append(word)
    return found


def tree_paths(text: str) -> list[str]:
    """The paths that a drawn tree names.

    Each line is an indentation, one or several names separated by ", ", and, after two or more
    spaces, a description. A name that ends in "/" is a folder, and what is indented more belongs
    to it; names may be patterns such as `*.yaml`. Box-drawing characters count as spaces.
    """
    found: list[str] = []
    folders: list[tuple[int, str]] = []
    for line in text.translate(_BOX_DRAWING).splitlines():
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        while folders and folders[-1][0] >= indent:
            folders.pop()
        parent = folders[-1][1] if folders else ""
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        found += [parent + name for name in names]
        if names[-1].endswith("/"):
            folders.append((indent, parent + names[-1]))
    return found


if __name__ == "__main__":
    sys.stdout.write(marked(README.read_text(encoding="utf-8"), sys.argv[1]).text)
