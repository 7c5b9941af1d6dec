"""Work that one process at a time does: a folder with a lock, named after the work.

    with claimed(folder, "train-00007", is_done) as place:
        if place is not None:
            ...                             # `place` is an empty folder of this process's own

The lock (flock) goes with the process that holds it, however it ends. On a file system without
locks, or where they do not reach other machines, two processes may both be given a place; their
places are different, and whoever renames last replaces equal bytes by equal bytes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imagetok.files import LOCK_NAME, TEMPORARY_PREFIX, naming_os_errors, open_lock, take_lock


@contextmanager
def claimed(
    parent: Path, name: str, is_done: Callable[[], bool], *, wait: bool = False
) -> Iterator[Path | None]:
    """Hold the lock of a piece of work, and offer a folder to do it in.

    What processes of this machine left there when they were killed is removed; what other machines
    left there is, as soon as the work is done, because their locks may not be seen from here.

    Args:
        parent: Folder that exists, on the file system where the result is wanted.
        name: Of the work.
        is_done: Tells, at the end, whether the work is done.
        wait: Wait for a process that holds it.

    Yields:
        An empty folder, removed in the end with all that it holds; None if another process holds
        the work.

    Raises:
        UnwritableFileError: The folder cannot be made.
    """
    work = parent / f"{TEMPORARY_PREFIX}{name}"
    with naming_os_errors("make", work):
        entered = _enter(work, wait)
    if entered is None:
        yield None
        return
    lock, place = entered
    try:
        yield place
    finally:
        _remove(_places(work, "*-*") if is_done() else [place])
        _leave(work, lock)


def remove_work(parent: Path) -> None:
    """Remove all that was written for the work of a folder, which is done, all of it."""
    _remove(parent.glob(f"{TEMPORARY_PREFIX}*"))


def _enter(work: Path, wait: bool) -> tuple[int, Path] | None:
    """A lock and a place of one's own; None where another process holds the lock."""
    while True:
        work.mkdir(exist_ok=True)
        try:
            lock, is_held = _lock(work, wait)
        except BlockingIOError:
            return None
        except FileNotFoundError:
            continue  # another process has just removed the folder
        try:
            if is_held:
                _remove(_places(work, f"{_machine()}-*"))
            return lock, Path(tempfile.mkdtemp(prefix=f"{_machine()}-", dir=work))
        except FileNotFoundError:
            os.close(lock)
        except OSError:
            os.close(lock)
            raise


def _lock(work: Path, wait: bool) -> tuple[int, bool]:
    """A descriptor of the lock, and whether it is held: some file systems have no locks."""
    try:
        return take_lock(work, wait=wait), True
    except (BlockingIOError, FileNotFoundError):
        raise
    except OSError:
        return open_lock(work), False


def _places(work: Path, pattern: str) -> Iterator[Path]:
    """What processes have made in the folder of some work, which another may remove meanwhile."""
    with suppress(FileNotFoundError):
        yield from work.glob(pattern)


def _remove(places: Iterable[Path]) -> None:
    for place in places:
        shutil.rmtree(place, ignore_errors=True)


def _leave(work: Path, lock: int) -> None:
    """Remove the folder of some work and its lock, unless they are another process's by now."""
    with suppress(OSError):
        if os.path.samestat(os.fstat(lock), os.stat(work / LOCK_NAME)):
            (work / LOCK_NAME).unlink()
    with suppress(OSError):
        work.rmdir()
    os.close(lock)


def _machine() -> str:
    """A name of this machine that may stand in the name of a file."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]
