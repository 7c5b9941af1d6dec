"""Taking stock of a folder whose units are all there: what its shards hold, from the files."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from imagetok.errors import DataError, UnreadableFileError
from imagetok.files import file_sha256, naming_os_errors
from imagetok.shards.job import Job
from imagetok.shards.parquet import JOB_KEY, NUMERICS_KEY, PARTS_KEY
from imagetok.shards.paths import DATA, ERRORS
from imagetok.shards.records import ShardRecord
from imagetok.shards.schema import IDS_PATH

_REMEDY = "run the same tokenize command again"


def list_shards(folder: Path, job: Job) -> list[tuple[int, int]]:
    """Unit and part of all shards that lie in a folder, in order.

    Raises:
        UnreadableFileError: A folder cannot be listed.
    """
    with naming_os_errors("read", folder):
        return [
            (unit, part) for unit in range(job.num_units) for part in job.paths.parts(folder, unit)
        ]


def take_stock(folder: Path, job: Job) -> list[ShardRecord]:
    """A record of every shard, each file read and hashed.

    Raises:
        DataError: A shard is of another job, or lacks rows, or files lie there that are not of
            this job.
        UnreadableFileError: A shard is damaged.
    """
    places = list_shards(folder, job)
    _refuse_strangers(folder, job, places)
    count = Counter(unit for unit, _ in places)
    return [_record(folder, job, *place, count[place[0]]) for place in places]


def _refuse_strangers(folder: Path, job: Job, places: Sequence[tuple[int, int]]) -> None:
    own = {job.paths.shard(*place) for place in places}
    own |= {job.paths.errors(*place) for place in places}
    shown = {name for kind in (DATA, ERRORS) for name in _visible(folder, kind)}
    if strangers := sorted(shown - own):
        raise DataError(
            f"'{folder}' holds files that are not of its job, remove them: "
            f"{', '.join(strangers[:5])}"
        )


def _visible(folder: Path, kind: str) -> Iterator[str]:
    """Files below a folder's `kind`. Hidden folders come and go with the processes at work."""
    for parent, folders, names in os.walk(folder / kind):
        folders[:] = [name for name in folders if not name.startswith(".")]
        place = Path(parent).relative_to(folder)
        yield from ((place / name).as_posix() for name in names if not name.startswith("."))


def _record(folder: Path, job: Job, unit: int, part: int, num_parts: int) -> ShardRecord:
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
    numerics = footer.get(NUMERICS_KEY, "null")
    return ShardRecord.from_dict(
        {
            "path": name,
            "unit": unit,
            "rows": metadata.num_rows,
            "refused": refused,
            "tokens": _count_tokens(metadata),
            "bytes": size,
            "sha256": file_sha256(path),
            "errors_sha256": file_sha256(errors) if refused else None,
            "numerics": None if numerics == job.numerics.to_json() else json.loads(numerics),
        }
    )


def _read_footer(path: Path, job: Job) -> tuple[pq.FileMetaData, Mapping[str, str]]:
    try:
        metadata = pq.read_metadata(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UnreadableFileError(
            f"'{path}' is no shard, or a damaged one: {error}; remove it, and {_REMEDY}"
        ) from error
    pairs = (metadata.metadata or {}).items()
    footer = {key.decode(): value.decode(errors="replace") for key, value in pairs}
    if footer.get(JOB_KEY) != job.fingerprint:
        raise DataError(
            f"'{path}' is a shard of another job, {footer.get(JOB_KEY)}, this one is "
            f"{job.fingerprint}; remove it, and {_REMEDY}"
        )
    return metadata, footer


def _count_tokens(metadata: pq.FileMetaData) -> int:
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = (group.column(place) for group in groups for place in range(group.num_columns))
    return sum(column.num_values for column in columns if column.path_in_schema == IDS_PATH)
