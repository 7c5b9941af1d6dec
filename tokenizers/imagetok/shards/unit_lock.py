"""`unit_lock`: a unit of work that one process at a time does, in a folder named after it.

    with unit_lock(folder, "train-00007", is_done) as workspace:
        if workspace is not None:
            ...                             # an empty folder of this process's own

On a file system without locks, or where they do not reach other machines, two processes may both be
given a workspace. Their workspaces are different, and whoever renames last replaces equal bytes by
equal bytes.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imagetok.files import LOCK_NAME, TEMPORARY_PREFIX, Lock, lock_folder, naming_os_errors


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

    Yields:
        An empty folder, removed in the end with all that it holds; None if another process holds
        the lock.

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
        folder.mkdir(exist_ok=True)
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
