"""Where the files of a tokenized dataset lie.

Relative to its folder, for the split `train`:

data/train-00000.parquet         a unit of rows
data/train-00000-00000.parquet   one part of a unit that is an input file: unit, part
data/00003/train-03141.parquet   with over 5,000 units: 1,000 per folder
errors/...jsonl                  under the same names, the rows that could not be read
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DATA, ERRORS = "data", "errors"
JOB_FILE, MANIFEST_FILE, CARD_FILE = "job.json", "manifest.json", "README.md"
SHARD_SUFFIX, ERRORS_SUFFIX = ".parquet", ".jsonl"
MOST_IN_ONE_FOLDER = 5000
UNITS_PER_FOLDER = 1000


@dataclass(frozen=True)
class ShardPaths:
    """Names of shards and error files, relative to the dataset's folder.

    Attributes:
        split: First word of each name.
        num_units: Number of units of the job.
        in_parts: Whether a unit is a file of unknown length, which gives several shards.
    """

    split: str
    num_units: int
    in_parts: bool

    def shard(self, unit: int, part: int = 0) -> str:
        """Path of a shard."""
        return f"{DATA}/{self.stem(unit, part)}{SHARD_SUFFIX}"

    def errors(self, unit: int, part: int = 0) -> str:
        """Path of the file that lists a shard's unreadable rows."""
        return f"{ERRORS}/{self.stem(unit, part)}{ERRORS_SUFFIX}"

    def stem(self, unit: int, part: int = 0) -> str:
        """What a shard and its error file share: subfolder, if any, and name without suffix."""
        name = self.name(unit) + (f"-{part:05d}" if self.in_parts else "")
        if self.num_units <= MOST_IN_ONE_FOLDER:
            return name
        return f"{unit // UNITS_PER_FOLDER:05d}/{name}"

    def name(self, unit: int) -> str:
        """Name of a unit."""
        return f"{self.split}-{unit:05d}"

    def parts(self, folder: Path, unit: int) -> list[int]:
        """Parts of a unit that lie in the dataset's `folder`, in ascending order."""
        if not self.in_parts:
            return [0] if (folder / self.shard(unit)).exists() else []
        first = folder / self.shard(unit)
        pattern = re.compile(rf"{re.escape(self.split)}-{unit:05d}-(\d{{5,}}){SHARD_SUFFIX}")
        names = first.parent.iterdir() if first.parent.is_dir() else ()
        found = (pattern.fullmatch(path.name) for path in names)
        return sorted(int(match[1]) for match in found if match)

    def parents(self) -> Iterator[str]:
        """Every folder that shards lie in."""
        if self.num_units <= MOST_IN_ONE_FOLDER:
            yield DATA
        else:
            for start in range(0, self.num_units, UNITS_PER_FOLDER):
                yield f"{DATA}/{start // UNITS_PER_FOLDER:05d}"
