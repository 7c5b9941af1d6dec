"""`JobFolder`: where the processes of one job meet."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from imagetok.config.strict_config import Config
from imagetok.errors import ConfigError, DataError, UnreadableFileError, UnwritableFileError
from imagetok.files import TEMPORARY_PREFIX, create_atomic, make_folder, naming_os_errors
from imagetok.shards.claims import claimed
from imagetok.shards.job import Job
from imagetok.shards.parquet import JOB_KEY, NUMERICS_KEY
from imagetok.shards.paths import JOB_FILE, MANIFEST_FILE
from imagetok.shards.settings import Numerics
from imagetok.shards.writing import UnitWriter


class JobFolder:
    """The folder of a tokenizing job, which any number of processes fill together.

        with JobFolder.open(folder, job) as work:
            for unit in work.missing_units(rank, world_size):
                with work.claim(unit) as writer:
                    if writer is not None:
                        ...                     # write or refuse every row of the unit

    Attributes:
        folder: The folder.
        job: As it stands in the folder: with the numeric settings of the process that began it.
        numerics: Of this process.
    """

    def __init__(self, folder: Path, job: Job, numerics: Numerics, lock: int) -> None:
        self.folder, self.job, self.numerics = folder, job, numerics
        self._lock: int | None = lock
        self._paths, self._schema = job.paths, job.schema
        self._footer = {JOB_KEY: job.fingerprint, NUMERICS_KEY: numerics.to_json()}

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], job: Job, allow_mixed_numerics: bool = False
    ) -> Self:
        """Begin a job in a folder, or join it.

        Args:
            folder: Made where it is missing; empty, or of the same job.
            job: What this process is to do.
            allow_mixed_numerics: Go on where the job was begun with other numeric settings.

        Raises:
            DataError: The folder is of another job, or of something else; all differences are
                named.
            UnreadableFileError: Its job.json cannot be read.
            UnwritableFileError: It cannot be made or written.
        """
        folder = Path(folder)
        with naming_os_errors("make", folder):
            make_folder(folder)
        path = folder / JOB_FILE
        if not path.exists():
            _refuse_strangers(folder)
            text = json.dumps(job.to_dict(), indent=2, ensure_ascii=False)
            create_atomic(path, f"{text}\n".encode())
        lock = _share(path)
        try:
            found = read_job(folder)
            _refuse_others(folder, lock, found, job, allow_mixed_numerics)
        except BaseException:
            os.close(lock)
            raise
        return cls(folder, found, job.numerics, lock)

    def close(self) -> None:
        """Leave the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_complete(self, unit: int) -> bool:
        """Whether all of a unit's files are there."""
        return (self.folder / self._paths.shard(unit)).exists()

    def missing_units(self, rank: int = 0, world_size: int = 1) -> Iterator[int]:
        """Units to do: this rank's own, then those of others that are not done by then.

        Args:
            rank: This process's place among the others.
            world_size: Their number.
        """
        mine = range(rank, self.job.num_units, world_size)
        others = [unit for unit in range(self.job.num_units) if unit % world_size != rank]
        # Helpers begin with the next rank's last units, which are the least likely to be at work.
        others.sort(key=lambda unit: ((unit - rank) % world_size, -unit))
        for unit in [*mine, *others]:
            if not self.is_complete(unit):
                yield unit

    @contextmanager
    def claim(self, unit: int) -> Iterator[UnitWriter | None]:
        """Take a unit on: its files appear when the block ends, and never if it raises.

        Yields:
            A writer; None if another process is at work on the unit, or it is done.

        Raises:
            DataError: At the end, not every row was written or refused once.
            UnwritableFileError: The disk is full, or the like.
        """
        if self.is_complete(unit):
            yield None
            return
        parent = (self.folder / self._paths.shard(unit)).parent
        with naming_os_errors("make", parent):
            make_folder(parent)
        with claimed(parent, self._paths.name(unit), lambda: self.is_complete(unit)) as place:
            if place is None or self.is_complete(unit):
                yield None
                return
            with naming_os_errors("remove", self.folder / MANIFEST_FILE):
                (self.folder / MANIFEST_FILE).unlink(missing_ok=True)  # it lists what is gone
            writer = self._writer(unit, place)
            try:
                yield writer
                writer.commit()
            except UnwritableFileError as error:
                # Without locks another process may have done the unit, and cleared up after it.
                if not (isinstance(error.__cause__, FileNotFoundError) and self.is_complete(unit)):
                    raise
            finally:
                writer.abandon()

    def _writer(self, unit: int, place: Path) -> UnitWriter:
        return UnitWriter(
            self.folder,
            place,
            paths=self._paths,
            schema=self._schema,
            footer=self._footer,
            unit=unit,
            rows=self.job.rows_of(unit),
            rows_per_shard=self.job.units.rows_per_shard,
        )


def read_job(folder: str | os.PathLike[str]) -> Job:
    """The job that a folder is filled by.

    Raises:
        UnreadableFileError: It holds no job.json, or a damaged one.
    """
    path = Path(folder) / JOB_FILE
    with naming_os_errors("read", path):
        text = path.read_bytes()
    try:
        return Job.from_json(text)
    except ConfigError as error:
        raise UnreadableFileError(f"'{path}' is no job of this version: {error}") from error


def _share(path: Path) -> int:
    """A descriptor of job.json that tells other processes that one is at work."""
    with naming_os_errors("read", path):
        lock = os.open(path, os.O_RDONLY)
    with suppress(OSError):  # no locks on this file system
        fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def _refuse_strangers(folder: Path) -> None:
    strangers = sorted(
        entry.name for entry in folder.iterdir() if not entry.name.startswith(TEMPORARY_PREFIX)
    )
    # A process that began the same job this moment may have written since.
    if strangers and not (folder / JOB_FILE).exists():
        raise DataError(
            f"'{folder}' holds {', '.join(strangers[:5])} but no {JOB_FILE}; give a folder that "
            "is new, empty or of the same job"
        )


def _refuse_others(folder: Path, lock: int, found: Job, job: Job, allow_mixed: bool) -> None:
    plain = [line for line in differences(found, job) if not line.startswith("numerics.")]
    if plain:
        raise DataError(
            f"'{folder}' is filled by another job{_at_work(lock)}: {'; '.join(plain)}. "
            f"{_way_on(found, job)}, or give a new folder"
        )
    numeric = list(differences(found.numerics, job.numerics))
    if numeric and not allow_mixed:
        raise DataError(
            f"'{folder}' was begun with other numeric settings{_at_work(lock)}, under which ids "
            f"may differ by rounding: {'; '.join(numeric)}. Use the same, or go on with "
            "--allow-mixed-numerics, which records them for each shard"
        )


def _way_on(found: Job, job: Job) -> str:
    """How to go on with the job that is there; with equal arguments the Hub may have moved on."""
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


def _at_work(lock: int) -> str:
    """Words for whether other processes have the folder open; none where locks do not tell."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ", at work this moment"
    except OSError:
        return ""
    return ""


def differences(old: Config, new: Config) -> Iterator[str]:
    """Every entry that two configurations differ in, as `key: old there, new here`."""
    yield from _differences(old.to_dict(), new.to_dict(), "")


def _differences(old: Any, new: Any, place: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}".lstrip("."))
    elif old != new:
        yield f"{place}: {_short(old)} there, {_short(new)} here"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
