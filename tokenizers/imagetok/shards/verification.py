"""`verify`: whether a tokenized dataset is exactly what its manifest says, and nothing else.

    report = verify("tokens")
    report.is_sound                             # or, for people:
    print(report)                               # data/train-00003.parquet: row 52 is missing

Every shard and every list of unreadable rows is hashed, and every value is read, one row group at a
time: features, numbers of rows, range of the ids, and that each row of the input is there exactly
once, in the shard that it belongs to. Only encoding again can tell whether the ids are those of
their images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagetok.errors import IdsError, UnreadableFileError
from imagetok.files import TEMPORARY_PREFIX, file_sha256
from imagetok.hub.dataset_snapshot import fetch_beside
from imagetok.shards.job import CARD_FILE, JOB_FILE, MANIFEST_FILE
from imagetok.shards.row_order import Numbers
from imagetok.shards.shard_file import JOB_KEY, NUMERICS_KEY, read_footer
from imagetok.shards.shard_reader import check_ids, describe_columns, one_line
from imagetok.shards.shard_scan import ShardRecord, Totals
from imagetok.shards.token_folder import TokenFolder, open_folder

_FEATURES_KEY = "huggingface"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file.

    Attributes:
        file: Its path below the dataset's folder.
        reason: What was found, and what was expected.
    """

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        folder: Path of the dataset.
        totals: What the dataset holds according to its manifest.
        faults: Everything that is wrong; empty for a sound dataset.
    """

    folder: Path
    totals: Totals
    faults: tuple[Fault, ...]

    @property
    def is_sound(self) -> bool:
        """Whether no fault was found."""
        return not self.faults

    def __str__(self) -> str:
        if self.faults:
            return "\n".join(str(fault) for fault in self.faults)
        found = self.totals
        return f"{found.shards} shards with {found.rows} rows and {found.refused} refused: sound"


def verify(
    folder: str | os.PathLike[str],
    *,
    split: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Report:
    """Check every file of a tokenized dataset.

    Args:
        folder: Folder of a dataset with its manifest, or repository `user/name` on the Hub, of
            which one split is checked.
        split: As for `open_folder`, like all that follow.
        revision: Branch, tag or commit on the Hub.
        token: Token for private repositories.

    Raises:
        InvalidTypeError: `folder` is not a path.
        UnreadableFileError: The manifest or the job is missing or cannot be read.
        DataError: There is no such split, or the manifest belongs to another job than job.json.
        HubAccessError, HubError: As for `open_folder`.
    """
    opened = open_folder(folder, split=split, revision=revision, token=token)
    if opened.snapshot is not None:
        for shard in opened.manifest.shards:
            if shard.refused:
                fetch_beside(opened.snapshot, shard.errors_path, token)
    checks, faults = _list_shards(opened)
    faults += [*_wrong_totals(opened), *_foreign_files(opened, checks)]
    for check in checks:
        faults += check.faults()
    return Report(opened.path, opened.manifest.totals, tuple(faults))


def _list_shards(opened: TokenFolder) -> tuple[list[ShardCheck], list[Fault]]:
    """The shards on which job and manifest agree, and faults where they do not."""
    job, records = opened.job, {shard.path: shard for shard in opened.manifest.shards}
    checks, faults = [], []
    for unit in range(job.num_units):
        part, more = 0, True
        while more:
            name = job.paths.shard(unit, part)
            more = job.paths.in_parts and job.paths.shard(unit, part + 1) in records
            if name in records:
                record = records.pop(name)
                checks.append(ShardCheck(opened, record, unit, part, is_last=not more))
            else:
                faults.append(Fault(name, "missing in the manifest, the job has this shard"))
            part += 1
    faults += [
        Fault(
            name, "the manifest lists it, but the job has no such shard, or lacks those before it"
        )
        for name in records
    ]
    if len(checks) + len(records) < len(opened.manifest.shards):
        faults.append(Fault(MANIFEST_FILE, "it lists a shard twice"))
    return checks, faults


def _wrong_totals(opened: TokenFolder) -> Iterator[Fault]:
    """Totals that are not the sums of what the manifest says about its shards."""
    found, sums = opened.manifest.totals.to_dict(), Totals.of(opened.manifest.shards).to_dict()
    for name, total in sums.items():
        if found[name] != total:
            yield Fault(MANIFEST_FILE, f"its total of {name} is {found[name]}, the sum is {total}")


def _foreign_files(opened: TokenFolder, checks: Sequence[ShardCheck]) -> Iterator[Fault]:
    """Files that do not belong to the dataset; hidden ones of other programs are ignored."""
    if opened.snapshot is not None:  # the cache holds what was fetched, of all splits
        return
    own = {JOB_FILE, MANIFEST_FILE, CARD_FILE, *(check.record.path for check in checks)}
    own |= {check.errors_path for check in checks if check.record.refused}
    for parent, folders, names in os.walk(opened.path):
        below = Path(parent).relative_to(opened.path)
        for name in folders:
            if name.startswith(TEMPORARY_PREFIX):
                yield Fault((below / name).as_posix(), "left behind by a process that was killed")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = (below / name).as_posix()
            if not name.startswith(".") and file not in own:
                yield Fault(file, "it is not of the dataset")


@dataclass(frozen=True)
class ShardCheck:
    """A shard and the list of its unreadable rows, to be checked against job and manifest.

    Attributes:
        dataset: The dataset.
        record: What the manifest says about the shard.
        unit: Unit that the shard belongs to.
        part: Number of the shard in its unit.
        is_last: Whether the shard is the last part of its unit.
    """

    dataset: TokenFolder
    record: ShardRecord
    unit: int
    part: int
    is_last: bool

    @property
    def errors_path(self) -> str:
        """Path of the list of unreadable rows."""
        return self.dataset.job.paths.errors(self.unit, self.part)

    def faults(self) -> Iterator[Fault]:
        """Everything that is wrong, in the order of the checks."""
        name, refused = self.record.path, list[int]()
        for reason in self._check_errors(refused):
            yield Fault(self.errors_path, reason)
        try:
            for reason in self._check_bytes():
                yield Fault(name, reason)
            with pq.ParquetFile(self.dataset.path / name) as file:
                for reason in self._check_contents(file, refused):
                    yield Fault(name, reason)
        except UnreadableFileError as error:
            yield Fault(name, str(error))
        except (OSError, ValueError, pa.ArrowException) as error:
            yield Fault(name, f"damaged: {one_line(error)}")

    def _check_bytes(self) -> Iterator[str]:
        path, record = self.dataset.path / self.record.path, self.record
        found = file_sha256(path)
        size = path.stat().st_size
        if (size, found) != (record.bytes, record.sha256):
            yield (
                f"{size} bytes with sha256 {found}; the manifest says {record.bytes} bytes with "
                f"{record.sha256}"
            )

    def _check_errors(self, refused: list[int]) -> Iterator[str]:
        """Check the list of unreadable rows, and collect these rows."""
        if not self.record.refused:
            return
        path = self.dataset.path / self.errors_path
        try:
            if (found := file_sha256(path)) != self.record.errors_sha256:
                yield f"sha256 {found}; the manifest says {self.record.errors_sha256}"
            lines = path.read_text(encoding="utf-8").splitlines()
            entries = [json.loads(line) for line in lines]
            refused += [int(entry["row"]) for entry in entries]
            files = {entry.get("file") for entry in entries} - {self._file}
        except UnreadableFileError as error:
            yield str(error)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            yield f"not a list of unreadable rows: {error!r}"
        else:
            if len(lines) != self.record.refused:
                yield f"{len(lines)} rows; the manifest says {self.record.refused}"
            if files:
                yield f"rows of the files {sorted(map(str, files))}, expected {self._file!r}"

    def _check_contents(self, file: pq.ParquetFile, refused: list[int]) -> Iterator[str]:
        footer = read_footer(file.metadata)
        job = footer.get(JOB_KEY)
        if job != self.dataset.job.fingerprint:
            yield f"a shard of the job {job or '(none)'}, expected {self.dataset.job.fingerprint}"
        settings = (self.record.numerics or self.dataset.job.numerics).to_json()
        if footer.get(NUMERICS_KEY) != settings:
            yield "its numeric settings are not those that the manifest names"
        schema = self.dataset.job.schema.arrow
        if not file.schema_arrow.equals(schema):
            found, expected = describe_columns(file.schema_arrow), describe_columns(schema)
            yield f"the columns {found}, expected {expected}"
            return
        if footer.get(_FEATURES_KEY) != schema.metadata[_FEATURES_KEY.encode()].decode():
            yield "its features are not those of the job"
        if file.metadata.num_rows != self.record.rows:
            yield f"{file.metadata.num_rows} rows; the manifest says {self.record.rows}"
        rows, tokens = [np.array(refused, dtype=np.int64)], 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, use_threads=False)
            table.validate(full=True)
            for reason in self._check_group(table):
                yield f"{reason}, in row group {group}"
            rows.append(table.column("row").drop_null().to_numpy().astype(np.int64))
            tokens += pc.sum(pc.list_value_length(table.column("ids"))).as_py() or 0
        if tokens != self.record.tokens:
            yield f"{tokens} ids; the manifest says {self.record.tokens}"
        yield from self._check_rows(rows)

    def _check_group(self, table: pa.Table) -> Iterator[str]:
        """Check the values of a row group."""
        if not table.num_rows:
            yield "no rows, which no reader expects"
            return
        schema = self.dataset.job.schema
        own = [name for name in schema.arrow.names if name not in schema.kept]
        if missing := [name for name in own if table.column(name).null_count]:
            yield f"values of {', '.join(missing)} are missing"
            return
        try:
            check_ids(table.column("ids"), schema)
        except IdsError as error:
            yield str(error)
        if schema.grid is None:
            sides = (table.column(name).cast(pa.int64()) for name in ("grid_h", "grid_w"))
            lengths = pc.list_value_length(table.column("ids")).cast(pa.int64())
            expected = pc.multiply(pc.multiply(*sides), schema.depth)
            if not pc.all(pc.equal(expected, lengths)).as_py():
                times = f" * {schema.depth}" if schema.depth > 1 else ""
                yield f"numbers of ids that are not grid_h * grid_w{times}"
        for name in ("height", "width"):
            if (least := pc.min(table.column(name)).as_py()) < 1:
                yield f"{name} {least}, expected at least 1"
        if schema.by_file:
            files = pc.unique(table.column("file")).to_pylist()
            if files != [self._file]:
                yield f"rows of the files {files}, expected {self._file!r}"

    def _check_rows(self, parts: list[Numbers]) -> Iterator[str]:
        """Check that every row of the input is there once: `parts[0]` refused, the others read."""
        refused, rows = parts[0], np.concatenate([parts[0][:0], *parts[1:]])
        if np.any(np.diff(rows) < 0):
            yield "its rows do not ascend"
        expected = self._expected
        found, counts = np.unique(np.concatenate([refused, rows]), return_counts=True)
        for wrong, what in (
            (found[counts > 1], "twice"),
            (np.setdiff1d(expected, found), "missing"),
            (np.setdiff1d(found, expected), "of another shard"),
        ):
            if len(wrong):
                yield f"{_name_rows(wrong)} {what}"

    @property
    def _expected(self) -> Numbers:
        """The rows of the input that the shard stands for."""
        rows = self.dataset.job.rows_of(self.unit)
        if rows is None:
            most = self.dataset.job.units.rows_per_shard
            count = self.record.rows + self.record.refused if self.is_last else most
            rows = range(self.part * most, self.part * most + count)
        return np.arange(rows.start, rows.stop)

    @property
    def _file(self) -> str | None:
        """The file that holds the shard's rows; None where rows are not identified by file."""
        files = self.dataset.job.units.files
        return files[self.unit].name if self.dataset.job.input.streaming and files else None


def _name_rows(rows: Numbers) -> str:
    shown = ", ".join(map(str, rows[:8].tolist()))
    if len(rows) == 1:
        return f"row {shown} is"
    return f"rows {shown}{f' and {len(rows) - 8} more' if len(rows) > 8 else ''} are"
