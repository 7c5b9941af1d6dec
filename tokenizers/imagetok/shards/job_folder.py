"""`JobFolder`: the folder in which the processes of one tokenizing job meet.

The first process writes `job.json`; the others compare theirs with it and are refused if it
differs. Every process holds a shared lock on that file for as long as it has the folder open.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from imagetok.config.strict_config import Config, differing_entries
from imagetok.errors import DataError, UnwritableFileError
from imagetok.files import (
    LOCK_NAME,
    TEMPORARY_PREFIX,
    Lock,
    create_atomic,
    lock_folder,
    make_folder,
    naming_os_errors,
)
from imagetok.shards.job import JOB_FILE, MANIFEST_FILE, Job, Numerics, read_job
from imagetok.shards.unit_writer import UnitWriter

_WEIGHTLESS = "tokenizer.run"
"""An entry that says what a tokenizer is called, and not what it does."""


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
        return (self.folder / self.job.paths.shard(unit)).exists()

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
        parent = (self.folder / self.job.paths.shard(unit)).parent
        make_folder(parent)
        name = self.job.paths.name(unit)
        with unit_lock(parent, name, lambda: self.is_complete(unit)) as workspace:
            if workspace is None or self.is_complete(unit):
                yield None
                return
            with naming_os_errors("remove", self.folder / MANIFEST_FILE):
                (self.folder / MANIFEST_FILE).unlink(missing_ok=True)  # it lists what is gone
            writer = UnitWriter(self.folder, workspace, self.job, self.numerics, unit)
            try:
                yield writer
                writer.commit()
            except UnwritableFileError as error:
                # Without locks another process may have done the unit and removed this workspace.
                if not (isinstance(error.__cause__, FileNotFoundError) and self.is_complete(unit)):
                    raise
            finally:
                writer.abandon()


@contextmanager
def unit_lock(
    parent: Path, name: str, is_done: Callable[[], bool], *, wait: bool = False
) -> Iterator[Path | None]:
    """Hold the lock of a unit, and offer a folder to do it in.

    What processes of this machine left behind when they were killed is removed at once. What other
    machines left is removed when the unit is done, because their locks may not be visible here.

    Args:
        parent: Folder that exists, on the file system where the result is wanted.
        name: Name of the unit.
        is_done: Tells, at the end, whether the unit is done.
        wait: Wait for a process that holds the lock.

    On a file system without locks, or where they do not reach other machines, two processes may
    both be given a workspace. Their workspaces are different, and whoever renames last replaces
    equal bytes by equal bytes.

    Yields:
        An empty folder, the workspace, removed in the end with all that it holds; None if another
        process holds the lock.

    Raises:
        UnwritableFileError: The folder cannot be made.
    """
    folder = parent / f"{TEMPORARY_PREFIX}{name}"
    with naming_os_errors("make", folder):
        entered = _enter(folder, wait)
    if entered is None:
        yield None
        return
    lock, workspace = entered
    try:
        yield workspace
    finally:
        _remove(_workspaces(folder, "*-*") if is_done() else [workspace])
        _leave(folder, lock)


def remove_workspaces(parent: Path) -> None:
    """Remove everything that was written for the units of a folder, all of which are done."""
    _remove(parent.glob(f"{TEMPORARY_PREFIX}*"))


def _enter(folder: Path, wait: bool) -> tuple[Lock, Path] | None:
    """A lock and a workspace; None where another process holds the lock."""
    while True:
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            if folder.exists() and not folder.is_dir():
                raise
            continue  # another process removed it between the attempt and the look at what is there
        with suppress(FileNotFoundError):  # another process has just removed the folder
            lock = lock_folder(folder, wait=wait)
            if lock is None:
                return None
            try:
                if lock.is_held:
                    _remove(_workspaces(folder, f"{_machine()}-*"))
                return lock, Path(tempfile.mkdtemp(prefix=f"{_machine()}-", dir=folder))
            except OSError:
                lock.close()
                raise


def _workspaces(folder: Path, pattern: str) -> Iterator[Path]:
    """Workspaces of a unit, which another process may be removing."""
    with suppress(FileNotFoundError):
        yield from folder.glob(pattern)


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _leave(folder: Path, lock: Lock) -> None:
    """Remove a unit's folder and its lock, unless they are another process's by now."""
    with suppress(OSError):
        if lock.has_its_path():
            (folder / LOCK_NAME).unlink()
    with suppress(OSError):
        folder.rmdir()
    lock.close()


def _machine() -> str:
    """A name of this machine that may stand in the name of a file."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


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
    plain = [line for line in differences(found, job) if not line.startswith("numerics.")]
    if plain:
        raise DataError(
            f"'{folder}' is filled by another job{_at_work(lock)}: {'; '.join(plain)}. "
            f"{_remedy(found, job)}, or give a new folder"
        )
    numeric = differences(found.numerics, job.numerics)
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


def differences(old: Config, new: Config) -> list[str]:
    """Every entry of weight in which two configurations differ, as `key: old there, new here`."""
    return [
        f"{key}: {_short(there)} there, {_short(here)} here"
        for key, there, here in differing_entries(old.to_complete_dict(), new.to_complete_dict())
        if key != _WEIGHTLESS
    ]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
