"""`JobFolder`: the folder in which the processes of one tokenizing job meet.

The first process writes `job.json`; the others compare theirs with it and are refused if it
differs. Every process holds a shared lock on that file for as long as it has the folder open.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from imagetok.config.strict_config import Config
from imagetok.errors import DataError, UnwritableFileError
from imagetok.files import TEMPORARY_PREFIX, Lock, create_atomic, make_folder, naming_os_errors
from imagetok.shards.job import Job, Numerics, read_job
from imagetok.shards.shard_file import JOB_KEY, NUMERICS_KEY
from imagetok.shards.shard_paths import JOB_FILE, MANIFEST_FILE
from imagetok.shards.unit_lock import unit_lock
from imagetok.shards.unit_writer import UnitWriter


class JobFolder:
    """The folder of a tokenizing job, which any number of processes fill together.

        with JobFolder.open(folder, job) as work:
            for unit in work.missing_units(rank, world_size):
                with work.claim(unit) as writer:
                    if writer is not None:
                        ...                     # write or refuse every row of the unit

    Attributes:
        folder: Path of the folder.
        job: The job as it stands there, with the numeric settings of the process that began it.
        numerics: Numeric settings of this process.
    """

    def __init__(self, folder: Path, job: Job, numerics: Numerics, lock: Lock) -> None:
        self.folder, self.job, self.numerics = folder, job, numerics
        self._lock: Lock | None = lock
        self._paths, self._schema = job.paths, job.schema
        self._footer = {JOB_KEY: job.fingerprint, NUMERICS_KEY: numerics.to_json()}

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], job: Job, allow_mixed_numerics: bool = False
    ) -> Self:
        """Begin a job in a folder, or join it.

        Args:
            folder: Path of a folder that is missing, empty or filled by the same job.
            job: What this process is to do.
            allow_mixed_numerics: Go on where the job was begun with other numeric settings.

        Raises:
            DataError: The folder belongs to another job, or to something else; all differences are
                named.
            UnreadableFileError: Its job.json cannot be read.
            UnwritableFileError: The folder cannot be made or written.
        """
        folder = Path(folder)
        make_folder(folder)
        path = folder / JOB_FILE
        if not path.exists():
            _refuse_foreign_files(folder)
            text = json.dumps(job.to_dict(), indent=2, ensure_ascii=False)
            create_atomic(path, f"{text}\n".encode())
        with naming_os_errors("read", path):
            lock = Lock(path)
        try:
            lock.take(shared=True, wait=True)
            found = read_job(folder)
            _refuse_other_job(folder, lock, found, job, allow_mixed_numerics)
        except BaseException:
            lock.close()
            raise
        return cls(folder, found, job.numerics, lock)

    def close(self) -> None:
        """Leave the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_complete(self, unit: int) -> bool:
        """Whether all files of a unit are there."""
        return (self.folder / self._paths.shard(unit)).exists()

    def missing_units(self, rank: int = 0, world_size: int = 1) -> Iterator[int]:
        """Yield the units to do: this rank's own, then those of others that are not done by then.

        Args:
            rank: Number of this process, in [0, world_size).
            world_size: Number of processes.
        """
        mine = range(rank, self.job.num_units, world_size)
        others = [unit for unit in range(self.job.num_units) if unit % world_size != rank]
        # Help begins with the next rank's last units, which that rank is least likely to be working
        # on.
        others.sort(key=lambda unit: ((unit - rank) % world_size, -unit))
        for unit in [*mine, *others]:
            if not self.is_complete(unit):
                yield unit

    @contextmanager
    def claim(self, unit: int) -> Iterator[UnitWriter | None]:
        """Lock a unit to do it: its files appear when the block ends, and never if it raises.

        Yields:
            A writer; None if another process is working on the unit, or if it is done.

        Raises:
            DataError: At the end, some row was not written or refused exactly once.
            UnwritableFileError: The disk is full or the folder cannot be written.
        """
        if self.is_complete(unit):
            yield None
            return
        parent = (self.folder / self._paths.shard(unit)).parent
        make_folder(parent)
        name = self._paths.name(unit)
        with unit_lock(parent, name, lambda: self.is_complete(unit)) as workspace:
            if workspace is None or self.is_complete(unit):
                yield None
                return
            with naming_os_errors("remove", self.folder / MANIFEST_FILE):
                (self.folder / MANIFEST_FILE).unlink(missing_ok=True)  # it lists what is gone
            writer = self._writer(unit, workspace)
            try:
                yield writer
                writer.commit()
            except UnwritableFileError as error:
                # Without locks another process may have done the unit and removed this workspace.
                if not (isinstance(error.__cause__, FileNotFoundError) and self.is_complete(unit)):
                    raise
            finally:
                writer.abandon()

    def _writer(self, unit: int, workspace: Path) -> UnitWriter:
        return UnitWriter(
            self.folder,
            workspace,
            paths=self._paths,
            schema=self._schema,
            footer=self._footer,
            unit=unit,
            rows=self.job.rows_of(unit),
            rows_per_shard=self.job.units.rows_per_shard,
        )


def _refuse_foreign_files(folder: Path) -> None:
    foreign = sorted(
        entry.name for entry in folder.iterdir() if not entry.name.startswith(TEMPORARY_PREFIX)
    )
    # A process that began the same job a moment ago may have written since.
    if foreign and not (folder / JOB_FILE).exists():
        raise DataError(
            f"'{folder}' holds {', '.join(foreign[:5])} but no {JOB_FILE}; give a folder that "
            "is new, empty or of the same job"
        )


def _refuse_other_job(folder: Path, lock: Lock, found: Job, job: Job, allow_mixed: bool) -> None:
    plain = [line for line in _differences(found, job) if not line.startswith("numerics.")]
    if plain:
        raise DataError(
            f"'{folder}' is filled by another job{_at_work(lock)}: {'; '.join(plain)}. "
            f"{_remedy(found, job)}, or give a new folder"
        )
    numeric = list(_differences(found.numerics, job.numerics))
    if numeric and not allow_mixed:
        raise DataError(
            f"'{folder}' was begun with other numeric settings{_at_work(lock)}, under which ids "
            f"may differ by rounding: {'; '.join(numeric)}. Use the same, or go on with "
            "--allow-mixed-numerics, which records them for each shard"
        )


def _remedy(found: Job, job: Job) -> str:
    """How to continue the job that is there; with equal arguments the Hub may have moved on."""
    moved = [
        f"{option} {old.revision}"
        for option, old, new in (
            ("--tokenizer-revision", found.tokenizer, job.tokenizer),
            ("--revision", found.input, job.input),
        )
        if old.name == new.name and None not in (old.revision, new.revision)
        if old.revision != new.revision
    ]
    if moved:
        return f"To go on with what the Hub held then, add {' '.join(moved)}"
    return "Repeat that job's arguments to go on with it"


def _at_work(lock: Lock) -> str:
    """Words for whether other processes have the folder open; none where locks do not tell."""
    return "" if lock.take() else ", at work this moment"


def _differences(old: Config, new: Config) -> Iterator[str]:
    """Every entry in which two configurations differ, as `key: old there, new here`."""
    yield from _compare(old.to_dict(), new.to_dict(), "")


def _compare(old: Any, new: Any, key: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _compare(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield f"{key}: {_short(old)} there, {_short(new)} here"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
