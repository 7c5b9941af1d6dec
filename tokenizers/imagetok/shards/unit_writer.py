"""`UnitWriter`: the rows of one unit of work, committed whole or not at all.

Shards and error files are written in a workspace and renamed at the end. The error file of a part
is renamed before its shard, and the first part after all others, so that a unit is done when its
first shard is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from imagetok.errors import DataError, InvalidValueError
from imagetok.files import flush, make_folder, naming_os_errors
from imagetok.shards.job import Job, Numerics
from imagetok.shards.shard_file import JOB_KEY, NUMERICS_KEY, PARTS_KEY, PROFILES_KEY, ShardFile


class UnitWriter:
    """Takes the rows of a unit in order, and the rows that cannot be read in any order.

    Args:
        folder: Folder of the tokenized dataset.
        workspace: An empty folder on the same file system.
        job: The job that the unit belongs to.
        numerics: Numeric settings of this process.
        unit: Number of the unit.

    Attributes:
        unit: As given.
        rows: Rows that the unit consists of; None where only reading tells.
    """

    def __init__(
        self, folder: Path, workspace: Path, job: Job, numerics: Numerics, unit: int
    ) -> None:
        self.unit, self.rows = unit, job.rows_of(unit)
        self._folder, self._workspace = folder, workspace
        self._paths, self._schema = job.paths, job.schema
        self._footer = {JOB_KEY: job.fingerprint, NUMERICS_KEY: numerics.to_json()}
        self._rows_per_shard = job.units.rows_per_shard
        self._written: list[NDArray[np.int64]] = []
        self._refused: list[tuple[int, str]] = []
        self._profiles: list[int] = []
        self._shard: ShardFile | None = None
        self._part = -1

    def write(self, table: pa.Table) -> None:
        """Add rows.

        Args:
            table: A table that `ShardSchema.table` made; rows ascend in it and from call to call.

        Raises:
            InvalidValueError: The table has other columns, or its rows do not ascend.
            UnwritableFileError: The disk is full or the folder cannot be written.
        """
        if not table.schema.equals(self._schema.arrow):
            raise InvalidValueError(
                f"the rows have the columns {table.schema.names}, expected those that "
                f"ShardSchema.table makes: {self._schema.arrow.names}"
            )
        rows = table.column("row").to_numpy().astype(np.int64)
        before = [part[-1:] for part in self._written[-1:]]
        if np.any(np.diff(np.concatenate([*before, rows])) <= 0):
            raise InvalidValueError(f"the rows of unit {self.unit} do not ascend: {_some(rows)}")
        parts = self._parts_of(rows)
        for part in np.unique(parts):
            first, end = np.searchsorted(parts, [part, part + 1])
            self._open(int(part)).write(table.slice(first, end - first))
        if len(rows):
            self._written.append(rows)

    def refuse(self, row: int, key: str | None, reason: str, file: str | None = None) -> None:
        """Report a row that cannot be read.

        Args:
            row: Position of the row in the dataset, or in its file.
            key: What the input calls the row, such as the image's name; None if nothing.
            reason: Why the row cannot be read, the same in every run.
            file: Base name of the file that holds the row; None where rows are not identified by
                file.

        Raises:
            InvalidValueError: `file` is missing or superfluous.
        """
        if (file is None) == self._schema.by_file:
            expected = "the file that it is in" if self._schema.by_file else "no file"
            raise InvalidValueError(
                f"row {row} was refused with file={file!r}, expected {expected}"
            )
        position = {"row": row} if file is None else {"row": row, "file": file}
        self._refused.append((row, json.dumps({**position, "key": key, "reason": reason})))

    def ignore_profile(self, row: int) -> None:
        """Count an image whose colour profile could not be applied, before its row is written."""
        self._profiles.append(row)

    def commit(self) -> None:
        """Give all files their final names.

        Raises:
            DataError: A row was neither written nor refused, or came twice.
            UnwritableFileError: The disk is full or the folder cannot be written.
        """
        last = self._account()
        self._open(int(self._parts_of(np.array([last]))[0]))
        self._finish_shard({PARTS_KEY: str(self._part + 1)} if self._paths.in_parts else {})
        self._remove_parts_from(self._part + 1)
        for part in reversed(range(self._part + 1)):
            self._commit_errors(part)
            self._publish(self._paths.shard(self.unit, part))

    def abandon(self) -> None:
        """Close what was not committed; does nothing after a commit."""
        if self._shard is not None:
            self._shard.abandon()

    def _parts_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows // self._rows_per_shard if self.rows is None else np.zeros_like(rows)

    def _open(self, part: int) -> ShardFile:
        """Open the file of a part; parts between the last one and this one are empty."""
        while self._part < part or self._shard is None:
            self._finish_shard({})
            self._part += 1
            name = self._paths.shard(self.unit, self._part)
            self._shard = ShardFile(self._temporary(name), self._folder / name, self._schema)
        return self._shard

    def _finish_shard(self, footer: Mapping[str, str]) -> None:
        if self._shard is not None:
            parts = self._parts_of(np.array(self._profiles, dtype=np.int64))
            ignored = int(np.count_nonzero(parts == self._part))
            profiles = {PROFILES_KEY: str(ignored)} if ignored else {}
            self._shard.finish({**self._footer, **footer, **profiles})
            self._shard = None

    def _account(self) -> int:
        """Check that each row came once; returns the last row, or 0 where there is none."""
        refused = np.array([row for row, _ in self._refused], dtype=np.int64)
        found = np.sort(np.concatenate([*self._written, refused]))
        expected = range(len(found)) if self.rows is None else self.rows
        if not np.array_equal(found, np.arange(expected.start, expected.stop)):
            twice = found[1:][np.diff(found) == 0]
            lost = np.setdiff1d(np.arange(expected.start, expected.stop), found)
            strange = np.setdiff1d(found, np.arange(expected.start, expected.stop))
            raise DataError(
                f"unit {self.unit} consists of the rows {expected.start} to {expected.stop - 1}: "
                f"{_some(twice)} came twice, {_some(lost)} not at all, {_some(strange)} are not "
                "of it; the input may have changed while it was read"
            )
        return int(found[-1]) if len(found) else 0

    def _commit_errors(self, part: int) -> None:
        """Publish the rows that a part refused, or remove the report of an earlier attempt."""
        name = self._paths.errors(self.unit, part)
        parts = self._parts_of(np.array([row for row, _ in self._refused], dtype=np.int64))
        lines = sorted(entry for entry, at in zip(self._refused, parts, strict=True) if at == part)
        if lines:
            text = "".join(f"{line}\n" for _, line in lines)
            with naming_os_errors("write", self._folder / name):
                self._temporary(name).write_text(text, encoding="utf-8")
            self._publish(name)
        else:
            self._remove(name)

    def _remove_parts_from(self, part: int) -> None:
        """Remove what an earlier attempt left of a file that was longer then."""
        with naming_os_errors("read", self._folder):
            parts = self._paths.parts(self._folder, self.unit)
        for extra in (found for found in parts if found >= part):
            self._remove(self._paths.shard(self.unit, extra))
            self._remove(self._paths.errors(self.unit, extra))

    def _remove(self, name: str) -> None:
        with naming_os_errors("remove", self._folder / name):
            (self._folder / name).unlink(missing_ok=True)

    def _publish(self, name: str) -> None:
        target = self._folder / name
        with naming_os_errors("write", target):
            make_folder(target.parent)
            flush(self._temporary(name))
            os.replace(self._temporary(name), target)
            flush(target.parent)

    def _temporary(self, name: str) -> Path:
        return self._workspace / name.replace("/", "-")


def _some(rows: NDArray[np.int64]) -> str:
    shown = ", ".join(map(str, rows[:8].tolist()))
    return (f"{shown} …" if len(rows) > 8 else shown) or "none"
