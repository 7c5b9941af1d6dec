"""Append-only JSON lines: `losses.jsonl`, the same bytes in equal runs, and `metrics.jsonl`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from imagetok.errors import UnreadableFileError
from imagetok.files import naming_os_errors, write_atomic


class Records:
    """A file of one JSON object a line, each with a `step`.

    Args:
        path: The file; made if it is missing.
        next_step: Lines of this step and later ones are dropped, as a resumed run writes them anew.
        write: False on all ranks but one, which then write nothing.

    Raises:
        UnwritableFileError: The file cannot be written; of every method alike.
        UnreadableFileError: A line of it is damaged.
    """

    def __init__(self, path: Path, next_step: int, write: bool = True) -> None:
        self._path = path
        self._file: TextIO | None = None
        if not write:
            return
        with naming_os_errors("write", path):
            before = path.read_bytes() if path.exists() else b""
            write_atomic(path, _lines_before(before, next_step, path))
            self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float | list[str]]) -> None:
        """Append one line; a number that is not finite, which JSON lacks, becomes null."""
        if self._file is None:
            return
        known = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with naming_os_errors("write", self._path):
            self._file.write(json.dumps({"step": step, **known}, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Hand what was written to the system."""
        if self._file is not None:
            with naming_os_errors("write", self._path):
                self._file.flush()

    def sync(self) -> None:
        """Wait until what was flushed is on disk; from any thread."""
        if self._file is not None:
            with naming_os_errors("write", self._path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close the file; closing twice is no error."""
        if self._file is not None:
            with naming_os_errors("write", self._path):
                self._file.close()


def _lines_before(content: bytes, next_step: int, path: Path) -> bytes:
    """The lines of steps before `next_step`; the one that a kill cut short lacks its end."""
    kept = []
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            raise UnreadableFileError(
                f"line {number} of '{path}' is no record of a step; move the file away"
            ) from None
        if step >= next_step:
            break
        kept.append(line)
    return b"".join(kept)
