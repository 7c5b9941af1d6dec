"""The scan of a folder's shards: a `ShardRecord` of each, with hashes of the bytes on the disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from imagetok.config.strict_config import Config
from imagetok.errors import DataError, UnreadableFileError
from imagetok.files import file_sha256, naming_os_errors
from imagetok.shards.job import DATA, ERRORS, ERRORS_SUFFIX, SHARD_SUFFIX, Job, Numerics, Text
from imagetok.shards.shard_file import (
    IDS_PATH,
    JOB_KEY,
    NUMERICS_KEY,
    PARTS_KEY,
    PROFILES_KEY,
    read_footer,
)

Number = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_REMEDY = "run the same tokenize command again"


class ChangedIds(Config):
    """What a dtype narrower than float32 changed in a sample: the first images of a job.

    Attributes:
        dtype: Dtype of the encoder.
        rows: Number of images.
        ids: Number of their ids.
        changed: How many of these differ from the ids that float32 gives.
    """

    dtype: Text
    rows: Annotated[int, Field(ge=1)]
    ids: Annotated[int, Field(ge=1)]
    changed: Number


class ShardRecord(Config):
    """What a manifest says about one shard.

    Attributes:
        path: Path below the dataset's folder, with slashes.
        unit: Unit of work that the shard belongs to.
        rows: Number of rows that the shard holds.
        refused: Number of rows that belong to the shard and could not be read.
        tokens: Number of ids that the shard holds.
        bytes: Size of the file.
        sha256: Hash of the file.
        errors_sha256: Hash of the file that lists the unreadable rows; None if there are none.
        numerics: Numeric settings that the shard was made with; None where they are the job's.
        profiles_ignored: Number of images whose colour profile could not be applied.
    """

    later_keys: ClassVar[frozenset[str]] = frozenset({"profiles_ignored"})

    path: str
    unit: Number
    rows: Number
    refused: Number
    tokens: Number
    bytes: Number
    sha256: Sha256
    errors_sha256: Sha256 | None
    numerics: Numerics | None
    profiles_ignored: Number = 0

    @property
    def errors_path(self) -> str:
        """Path of the file that lists the unreadable rows, if there are any."""
        stem = self.path.removeprefix(f"{DATA}/").removesuffix(SHARD_SUFFIX)
        return f"{ERRORS}/{stem}{ERRORS_SUFFIX}"


class Totals(Config):
    """Sums over all shards; `rows_in` is `rows` plus `refused`."""

    later_keys: ClassVar[frozenset[str]] = frozenset({"profiles_ignored"})

    rows_in: Number
    rows: Number
    refused: Number
    tokens: Number
    bytes: Number
    shards: Number
    profiles_ignored: Number = 0

    @classmethod
    def of(cls, shards: Sequence[ShardRecord]) -> Totals:
        """Sum the figures of shards."""
        summed = ("rows", "refused", "tokens", "bytes", "profiles_ignored")
        sums = {name: sum(getattr(shard, name) for shard in shards) for name in summed}
        return cls(rows_in=sums["rows"] + sums["refused"], shards=len(shards), **sums)


def scan_shards(folder: Path, job: Job) -> list[ShardRecord]:
    """Make a record of every shard; each file is read and hashed.

    Raises:
        DataError: A shard belongs to another job or lacks rows, or files lie there that do not
            belong to this job.
        UnreadableFileError: A shard is damaged.
    """
    shards = list_shards(folder, job)
    _refuse_foreign_files(folder, job, shards)
    num_parts = Counter(unit for unit, _ in shards)
    return [_scan_shard(folder, job, unit, part, num_parts[unit]) for unit, part in shards]


def list_shards(folder: Path, job: Job) -> list[tuple[int, int]]:
    """Unit and part of every shard that lies in a folder, in order."""
    with naming_os_errors("read", folder):
        return [
            (unit, part) for unit in range(job.num_units) for part in job.paths.parts(folder, unit)
        ]


def _refuse_foreign_files(folder: Path, job: Job, shards: Sequence[tuple[int, int]]) -> None:
    own = {job.paths.shard(*shard) for shard in shards}
    own |= {job.paths.errors(*shard) for shard in shards}
    found = {name for kind in (DATA, ERRORS) for name in _visible_files(folder, kind)}
    if foreign := sorted(found - own):
        raise DataError(
            f"'{folder}' holds files that are not of its job, remove them: {', '.join(foreign[:5])}"
        )


def _visible_files(folder: Path, kind: str) -> Iterator[str]:
    """Files below a subfolder. Hidden folders come and go with the processes at work."""
    for parent, folders, names in os.walk(folder / kind):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder)
        yield from ((below / name).as_posix() for name in names if not name.startswith("."))


def _scan_shard(folder: Path, job: Job, unit: int, part: int, num_parts: int) -> ShardRecord:
    name = job.paths.shard(unit, part)
    path, errors = folder / name, folder / job.paths.errors(unit, part)
    metadata, footer = _read_footer(path, job)
    refused = 0
    if errors.exists():
        with naming_os_errors("read", errors):
            refused = errors.read_bytes().count(b"\n")
    expected, is_last = job.rows_of(unit), PARTS_KEY in footer
    num_rows = job.units.rows_per_shard if expected is None else len(expected)
    if metadata.num_rows + refused != num_rows and not is_last:
        raise DataError(
            f"'{path}' has {metadata.num_rows} rows and {refused} refused ones, expected "
            f"{num_rows} together; remove it, and {_REMEDY}"
        )
    if is_last != (job.paths.in_parts and part + 1 == num_parts):
        raise DataError(
            f"parts of unit {unit} are missing: of '{job.paths.shard(unit)}' and its further "
            f"parts {num_parts} are there, remove them, and {_REMEDY}"
        )
    with naming_os_errors("read", path):
        size = path.stat().st_size
    numerics = footer.get(NUMERICS_KEY, job.numerics.to_json())
    return ShardRecord(
        path=name,
        unit=unit,
        rows=metadata.num_rows,
        refused=refused,
        tokens=_count_tokens(metadata),
        bytes=size,
        sha256=file_sha256(path),
        errors_sha256=file_sha256(errors) if refused else None,
        numerics=None if numerics == job.numerics.to_json() else Numerics.from_json(numerics),
        profiles_ignored=int(footer.get(PROFILES_KEY, "0")),
    )


def _read_footer(path: Path, job: Job) -> tuple[pq.FileMetaData, dict[str, str]]:
    try:
        metadata = pq.read_metadata(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UnreadableFileError(
            f"'{path}' is not a shard, or a damaged one: {error}; remove it, and {_REMEDY}"
        ) from error
    footer = read_footer(metadata)
    if footer.get(JOB_KEY) != job.fingerprint:
        raise DataError(
            f"'{path}' is a shard of another job, {footer.get(JOB_KEY)}, this one is "
            f"{job.fingerprint}; remove it, and {_REMEDY}"
        )
    return metadata, footer


def _count_tokens(metadata: pq.FileMetaData) -> int:
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(column.num_values for column in columns if column.path_in_schema == IDS_PATH)
