"""Files that are whole or absent: written under a temporary name, flushed to disk, renamed.

    with atomic_path(folder / "name") as temporary:
        ...                                 # write a file, or a folder of files, at `temporary`

`temporary` lies in a private folder beside the target, so that the rename stays on one file system
and so does whatever a library leaves behind when it is killed. A lock (flock) in that folder is
held for as long as its writer lives; every later write into the same parent first removes the
private folders that nobody holds. A file system without locks keeps such litter, harmlessly.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagetok.errors import ImagetokError, UnreadableFileError, UnwritableFileError

TEMPORARY_PREFIX = ".imagetok-tmp-"
LOCK_NAME = "lock"


@contextmanager
def naming_os_errors(action: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the system's errors into one that says what could not be done with which file.

    Args:
        action: What is being done, such as `"read"`.
        path: The file or folder that it is done with.

    Raises:
        UnreadableFileError: In place of any OSError that is not ours already, where `action` is
            `"read"`.
        UnwritableFileError: Likewise for any other action.
    """
    try:
        yield
    except ImagetokError:
        raise
    except OSError as error:
        reason = error.strerror or error
        kind = UnreadableFileError if action == "read" else UnwritableFileError
        raise kind(f"cannot {action} '{os.fspath(path)}': {reason}") from error


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Offer a temporary path that becomes `path` when the block ends, and vanishes if it raises.

    What is written has the permissions that the umask gives, and is on disk before it appears.

    Args:
        path: The final name; its parent exists. A file may replace a file; a folder takes the
            place of nothing or of an empty folder.

    Yields:
        The path to write at, in an otherwise empty folder.

    Raises:
        UnwritableFileError: The disk is full, the folder missing, the name taken by a folder, or
            the like.
    """
    target = Path(path)
    with naming_os_errors("write", target), _private_folder(target.parent) as (folder, mode):
        temporary = folder / target.name
        yield temporary
        _settle(temporary, mode)
        os.replace(temporary, target)
        flush(target.parent)


def create_atomic(path: str | os.PathLike[str], data: bytes) -> bool:
    """Write a file if there is none; of several processes at once, one does.

    Returns:
        Whether this call wrote it.

    Raises:
        UnwritableFileError: As `atomic_path`.
    """
    target = Path(path)
    with naming_os_errors("write", target), _private_folder(target.parent) as (folder, mode):
        temporary = folder / target.name
        temporary.write_bytes(data)
        _settle(temporary, mode)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError:  # no links on this file system
            if target.exists():
                return False
            os.replace(temporary, target)
        flush(target.parent)
    return True


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that holds either its old content or all of `data`; errors as `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def make_folder(path: Path) -> None:
    """Make a folder and the parents that it lacks, on the disk before anything appears in them.

    Raises:
        OSError: It cannot be made.
    """
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        flush(folder.parent)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's bytes, in hexadecimal.

    Raises:
        UnreadableFileError: The file is missing or cannot be read.
    """
    with naming_os_errors("read", path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _private_folder(parent: Path) -> Iterator[tuple[Path, int]]:
    """A locked temporary folder in `parent`, and the permissions that new files get there."""
    remove_abandoned(parent)
    folder, lock = _claim_folder(parent)
    try:
        # The lock file was created as any program's files are: reading the umask itself would
        # mean setting it, for all threads, for a moment.
        yield folder, stat.S_IMODE(os.fstat(lock).st_mode)
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _claim_folder(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=parent))
        try:
            return folder, take_lock(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process found the folder before it was locked, and removes it
        except OSError:
            return folder, open_lock(folder)  # no locks on this file system


def remove_abandoned(parent: Path) -> None:
    """Remove what processes that were killed left half written in a folder."""
    for folder in parent.glob(f"{TEMPORARY_PREFIX}*"):
        try:
            lock = take_lock(folder)
        except OSError:
            continue  # its writer lives, or nobody can tell
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def take_lock(folder: Path, *, wait: bool = False) -> int:
    """Lock `folder` and return the descriptor that holds the lock.

    Args:
        folder: It holds nothing else under the name of the lock.
        wait: Wait for a process that holds it.

    Raises:
        OSError: Another process holds the folder (BlockingIOError) or has removed it
            (FileNotFoundError), or the file system has no locks.
    """
    lock = open_lock(folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(folder / LOCK_NAME)):
            return lock
        raise FileNotFoundError(errno.ENOENT, "the lock was removed before it was taken")
    except OSError:
        os.close(lock)
        raise


def open_lock(folder: Path) -> int:
    """The descriptor of a folder's lock, not yet taken."""
    return os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)


def _settle(path: Path, mode: int) -> None:
    """Give files their permissions, and bring a file or a whole folder to the disk."""
    if path.is_dir():
        for child in path.iterdir():
            _settle(child, mode)
    else:
        path.chmod(mode)
    flush(path)


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(handle)
