"""The manifest of a finished dataset, written last by whoever finds all units present.

It is made by a scan of the shards themselves: the hashes are those of the bytes on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from imagetok.config.strict_config import Config, StrictInteger
from imagetok.errors import ConfigError, DataError, UnreadableFileError
from imagetok.files import file_sha256, naming_os_errors, write_atomic
from imagetok.shards.dataset_card import render_card
from imagetok.shards.job import Job, Numerics, TokenizerSource, read_job
from imagetok.shards.shard_file import JOB_KEY, NUMERICS_KEY, PARTS_KEY
from imagetok.shards.shard_paths import (
    CARD_FILE,
    DATA,
    ERRORS,
    ERRORS_SUFFIX,
    JOB_FILE,
    MANIFEST_FILE,
    SHARD_SUFFIX,
)
from imagetok.shards.shard_schema import IDS_PATH
from imagetok.shards.unit_lock import remove_workspaces, unit_lock

__all__ = ["Manifest", "ShardRecord", "Totals", "finalize", "read_manifest"]

Number = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

SUMMED = ("rows", "refused", "tokens", "bytes")
"""Figures of a shard whose sums are the totals."""

_REMEDY = "run the same tokenize command again"


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
    """

    path: str
    unit: Number
    rows: Number
    refused: Number
    tokens: Number
    bytes: Number
    sha256: Sha256
    errors_sha256: Sha256 | None
    numerics: Numerics | None

    @property
    def errors_path(self) -> str:
        """Path of the file that lists the unreadable rows, if there are any."""
        stem = self.path.removeprefix(f"{DATA}/").removesuffix(SHARD_SUFFIX)
        return f"{ERRORS}/{stem}{ERRORS_SUFFIX}"


class Totals(Config):
    """Sums over all shards; `rows_in` is `rows` plus `refused`."""

    rows_in: Number
    rows: Number
    refused: Number
    tokens: Number
    bytes: Number
    shards: Number

    @classmethod
    def of(cls, shards: Sequence[ShardRecord]) -> Totals:
        """Sum the figures of shards."""
        sums = {name: sum(getattr(shard, name) for shard in shards) for name in SUMMED}
        return cls(rows_in=sums["rows"] + sums["refused"], shards=len(shards), **sums)


class Manifest(Config):
    """What a finished tokenized dataset holds.

    Attributes:
        format_version: Version of the folder's layout.
        job: Fingerprint of the job.
        tokenizer: What made the ids.
        totals: Sums over all shards.
        throughput: Figures of speed that the process that finished last gave, if any.
        shards: Records in the order of units and parts.
    """

    format_version: Annotated[Literal[1], StrictInteger] = 1
    job: Sha256
    tokenizer: TokenizerSource
    totals: Totals
    throughput: dict[str, Any] | None
    shards: tuple[ShardRecord, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the job and of all shards: 64 hexadecimal digits."""
        hashes = [self.job, *(shard.sha256 for shard in self.shards)]
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a finished tokenized dataset.

    Raises:
        UnreadableFileError: The folder holds no manifest, or a damaged one.
    """
    path = Path(folder) / MANIFEST_FILE
    if not path.exists():
        if not (path.parent / JOB_FILE).exists():
            raise UnreadableFileError(
                f"'{path.parent}' is not a tokenized dataset: it holds neither {MANIFEST_FILE} nor "
                f"{JOB_FILE}"
            )
        raise UnreadableFileError(
            f"'{path.parent}' has no {MANIFEST_FILE}: its job has not finished; run the job's "
            f"command again, or, if all shards are there, `imagetok tokenize --finalize "
            f"{path.parent}`"
        )
    with naming_os_errors("read", path):
        text = path.read_bytes()
    try:
        return Manifest.from_json(text)
    except ConfigError as error:
        raise UnreadableFileError(f"'{path}' is not a manifest of this version: {error}") from error


def finalize(
    folder: str | os.PathLike[str], throughput: Mapping[str, Any] | None = None
) -> Manifest:
    """Write the manifest and the dataset card, once all units are there.

    Several processes may call it at once, and again later. A manifest that lists exactly the files
    that are there stays, and so does what people wrote into its card.

    Args:
        folder: Folder of the tokenized dataset.
        throughput: JSON-like figures of this process's speed.

    Raises:
        DataError: Units are missing, shards belong to another job, or files lie there that do not
            belong to this one.
        UnreadableFileError: The folder holds no job, or a shard is damaged.
        UnwritableFileError: The disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    job = read_job(folder)
    _refuse_missing_units(folder, job)
    with unit_lock(folder, "manifest", lambda: True, wait=True):
        manifest = _current_manifest(folder, job)
        if manifest is None:
            manifest = _make_manifest(folder, job, throughput)
            text = json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False)
            with naming_os_errors("remove", folder / CARD_FILE):
                (folder / CARD_FILE).unlink(missing_ok=True)
            write_atomic(folder / MANIFEST_FILE, f"{text}\n".encode())
        if not (folder / CARD_FILE).exists():
            write_atomic(folder / CARD_FILE, render_card(job, manifest).encode())
        for parent in job.paths.parents():
            remove_workspaces(folder / parent)
    return manifest


def _refuse_missing_units(folder: Path, job: Job) -> None:
    paths = job.paths
    missing = [u for u in range(job.num_units) if not (folder / paths.shard(u)).exists()]
    if missing:
        raise DataError(
            f"{len(missing)} of {job.num_units} units are missing in '{folder}', the first is "
            f"'{paths.shard(missing[0])}'; the same tokenize command makes those that are missing"
        )


def _current_manifest(folder: Path, job: Job) -> Manifest | None:
    """The manifest in the folder, if it lists exactly the shards in the folder."""
    try:
        manifest = read_manifest(folder)
    except UnreadableFileError:
        return None
    listed = {shard.path: shard.bytes for shard in manifest.shards}
    names = {job.paths.shard(*shard) for shard in _list_shards(folder, job)}
    if manifest.job != job.fingerprint or names != listed.keys():
        return None
    with naming_os_errors("read", folder):
        same = all((folder / name).stat().st_size == size for name, size in listed.items())
    return manifest if same else None


def _make_manifest(folder: Path, job: Job, throughput: Mapping[str, Any] | None) -> Manifest:
    records = scan_shards(folder, job)
    return Manifest.from_dict(
        {
            "job": job.fingerprint,
            "tokenizer": job.tokenizer.to_dict(),
            "totals": Totals.of(records).to_dict(),
            "throughput": None if throughput is None else dict(throughput),
            "shards": [record.to_dict() for record in records],
        }
    )


def scan_shards(folder: Path, job: Job) -> list[ShardRecord]:
    """Make a record of every shard; each file is read and hashed.

    Raises:
        DataError: A shard belongs to another job or lacks rows, or files lie there that do not
            belong to this job.
        UnreadableFileError: A shard is damaged.
    """
    shards = _list_shards(folder, job)
    _refuse_foreign_files(folder, job, shards)
    num_parts = Counter(unit for unit, _ in shards)
    return [_scan_shard(folder, job, unit, part, num_parts[unit]) for unit, part in shards]


def _list_shards(folder: Path, job: Job) -> list[tuple[int, int]]:
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
            f"'{path}' is not a shard, or a damaged one: {error}; remove it, and {_REMEDY}"
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
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(column.num_values for column in columns if column.path_in_schema == IDS_PATH)
