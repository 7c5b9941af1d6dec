"""Append-only JSON lines: `losses.jsonl`, the same bytes in equal runs, and `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from imagetok.files import naming_os_errors


class Records:
    """A file of one JSON object a line, each with a `step`.

    Args:
        path: The file; made if it is missing.
        next_step: Lines of this step and later ones are dropped, as a resumed run writes them anew.
        write: False on all ranks but one, which then write nothing.
    """

    def __init__(self, path: Path, next_step: int, write: bool = True) -> None:
        self._file: TextIO | None = None
        if not write:
            return
        with naming_os_errors("write", path):
            kept = []
            if path.exists() and next_step:
                for line in path.read_text(encoding="utf-8").splitlines():
                    if not line.endswith("}") or json.loads(line)["step"] >= next_step:
                        break  # the line that a kill cut short, and all that come after
                    kept.append(line + "\n")
            self._file = path.open("w", encoding="utf-8")
            self._file.writelines(kept)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **values}) + "\n")

    def flush(self) -> None:
        """Hand what was written to the system."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flush and close the file."""
        if self._file is not None:
            self._file.close()
