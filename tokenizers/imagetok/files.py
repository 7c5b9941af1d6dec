"""Files that are whole or absent: written under a temporary name, flushed to disk, renamed.

    with atomic_path(folder / "name") as temporary:
        ...                                 # write a file, or a folder of files, at `temporary`

`temporary` lies in a private folder beside the target, so that the rename stays on one file system
and so does whatever a library leaves behind when it is killed. A lock in that folder is held for as
long as its writer lives; every later write into the same parent first removes the private folders
that nobody holds. On a file system without locks such leftovers stay, which is harmless.

`Lock` is the only user of flock in the package: it goes with its process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
            similar.
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


def write_json(path: str | os.PathLike[str], values: object) -> None:
    """Write JSON-like values as indented ASCII, like `write_atomic`."""
    write_atomic(path, f"{json.dumps(values, indent=2)}\n".encode())


def make_folder(path: Path) -> None:
    """Make a folder and the parents that it lacks, on the disk before anything appears in them.

    Raises:
        UnwritableFileError: It cannot be made.
    """
    with naming_os_errors("make", path):
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        while True:
            try:
                path.mkdir(parents=True, exist_ok=True)
                break
            except FileExistsError:
                if path.exists() and not path.is_dir():
                    raise
                # Another process removed it between the attempt and the look at what is there.
        for folder in new:
            with suppress(PermissionError):  # it may be written but not read
                flush(folder.parent)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's bytes, in hexadecimal.

    Raises:
        UnreadableFileError: The file is missing or cannot be read.
    """
    with naming_os_errors("read", path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Lock:
    """A lock (flock) on a file or folder, of one process or shared by several.

    It ends with the process that holds it, however that ends. Two locks of one process exclude each
    other as those of two processes do.

    Args:
        path: A folder, or a file.
        create: Make the file where it is missing.

    Attributes:
        descriptor: The open file.
        is_held: Whether the lock is taken. It never is on a file system without locks.

    Raises:
        OSError: The file or folder cannot be opened.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
        self.descriptor = os.open(path, flags, 0o666)
        self.is_held = False

    def take(self, *, shared: bool = False, wait: bool = False) -> bool:
        """Take the lock, or exchange the one that is held for one of another kind.

        Args:
            shared: Share it with others that do the same.
            wait: Wait for the process that holds it.

        Returns:
            False if another process holds it; True if this one does by now, or if the file system
            has no locks.
        """
        operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self.descriptor, operation if wait else operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        self.is_held = True
        return True

    def has_its_path(self) -> bool:
        """Whether the path still leads to what is locked, rather than to nothing or another."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Leave the lock to others."""
        os.close(self.descriptor)


def lock_folder(folder: Path, *, wait: bool = False) -> Lock | None:
    """Lock a folder that may be removed, by the file `lock` in it.

    Args:
        folder: It holds nothing else under the name of the lock.
        wait: Wait for a process that holds it.

    Returns:
        The lock, not held on a file system without locks; None if another process holds it.

    Raises:
        FileNotFoundError: Another process has removed the folder or its lock.
        OSError: The lock cannot be opened.
    """
    lock = Lock(folder / LOCK_NAME, create=True)
    if not lock.take(wait=wait):
        lock.close()
        return None
    if lock.is_held and not lock.has_its_path():
        lock.close()
        raise FileNotFoundError(errno.ENOENT, "the lock was removed before it was taken")
    return lock


def remove_abandoned(parent: Path) -> None:
    """Remove what processes that were killed left half written in a folder."""
    for folder in parent.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(OSError):  # its writer is removing it, or it is another user's
            lock = lock_folder(folder)
            if lock is not None:
                if lock.is_held:  # without locks nobody can tell whether its writer lives
                    shutil.rmtree(folder, ignore_errors=True)
                lock.close()


@contextmanager
def _private_folder(parent: Path) -> Iterator[tuple[Path, int]]:
    """A locked temporary folder in `parent`, and the permissions that new files get there."""
    remove_abandoned(parent)
    folder, lock = _make_private_folder(parent)
    try:
        # The lock file was created as any program's files are: reading the umask itself would
        # mean setting it, for all threads, for a moment.
        yield folder, stat.S_IMODE(os.fstat(lock.descriptor).st_mode)
    finally:
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)


def _make_private_folder(parent: Path) -> tuple[Path, Lock]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=parent))
        with suppress(FileNotFoundError):  # found by another process and removed before the lock
            lock = lock_folder(folder)
            if lock is not None:
                return folder, lock


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
