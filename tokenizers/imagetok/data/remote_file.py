"""Image files that are not plain files on this machine: those in archives and those on the Hub.

`datasets` names a file in an archive by a chain: `zip://a/1.png::/data/train.zip`. Chains that end
on this machine or on the Hub are followed; no other address that a row may hold is ever opened.
"""

from __future__ import annotations

import errno
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

_ARCHIVES = ("zip://", "tar://", "gzip://", "bz2://", "xz://", "zstd://", "lz4://")
_ZIP = "zip://"
_HUB = "hf://"
_REPOSITORY = re.compile(r"^hf://datasets/[^@]*@[^/]*/")
_OPEN_ARCHIVES = 8

MAX_UNPACKED = 2**30
"""Most bytes of a file in an archive. An image has fewer, while a few packed bytes can unpack to
any number.
"""


def is_remote(path: str) -> bool:
    """Whether a path leads into an archive, here or on the Hub, or to a file on the Hub."""
    if split_zip(path)[0] is not None:
        return True
    *hops, last = path.split("::")
    if not all(hop.startswith(_ARCHIVES) for hop in hops):
        return False
    return last.startswith(_HUB) or (bool(hops) and "://" not in last)


def relative_name(path: str, root: Path | None) -> str:
    """A path as it is shown: relative to the dataset's folder or repository, or its last part.

    A file in an archive is shown as if the archive were a folder: `data/train.zip/a/1.png`.
    """
    member, archive = split_zip(path)
    if member is not None:
        return f"{relative_name(archive, root)}/{member}"
    if "::" in path and "://" in path:
        file, _, archive = path.partition("::")
        return f"{relative_name(archive, root)}/{file.partition('://')[2]}"
    if "://" in path:
        inside = _REPOSITORY.sub("", path)
        return path.rpartition("/")[2] if inside == path else inside
    if root is not None and root.is_dir() and Path(path).is_relative_to(root):
        return Path(path).relative_to(root).as_posix()
    return os.path.basename(path)


def read_file(path: str) -> bytes:
    """The content of a file here, in an archive or on the Hub; retried where a server fails.

    Raises:
        BadZipFile: The local zip archive does not have the file, or not whole.
        OSError: It is missing or cannot be read. The Hub's client raises errors of its own too.
    """
    member, archive = split_zip(path)
    if member is not None:
        with _opened(archive) as opened:
            size = opened.getinfo(member).file_size
            if size > MAX_UNPACKED:
                raise zipfile.BadZipFile(f"unpacked it has {size} bytes, more than {MAX_UNPACKED}")
            return opened.read(member)
    if "://" in path and not is_remote(path):
        raise OSError(errno.EINVAL, "only archives and the Hub are followed", path)
    from datasets.utils.file_utils import xopen

    with xopen(path, "rb") as file:
        content: bytes = file.read()
    return content


def file_size(path: str) -> int:
    """Size in bytes of a file here or in a local zip archive, which is not unpacked.

    Raises:
        BadZipFile: As in `read_file`.
        OSError: It is missing.
    """
    member, archive = split_zip(path)
    if member is None:
        return os.stat(path).st_size
    with _opened(archive) as opened:
        return opened.getinfo(member).file_size


def split_zip(path: str) -> tuple[str | None, str]:
    """The member and the archive of a path into a local zip archive; (None, path) for others.

    The names of both may hold `::` too. The archive is then the longest end of the path that is a
    file.
    """
    member, _, archive = path.removeprefix(_ZIP).partition("::")
    if not path.startswith(_ZIP) or not archive or "://" in archive:
        return None, path
    if "::" in archive:
        parts = path.removeprefix(_ZIP).split("::")
        for number in range(1, len(parts)):
            end = "::".join(parts[number:])
            if os.path.isabs(end) and os.path.isfile(end):
                return "::".join(parts[:number]), end
    return member, archive


@contextmanager
def _opened(archive: str) -> Iterator[zipfile.ZipFile]:
    """An open archive; whatever is wrong with it is a `BadZipFile`."""
    status = os.stat(archive)
    try:
        yield _open_archive(archive, os.getpid(), status.st_mtime_ns, status.st_size)
    except KeyError:
        raise zipfile.BadZipFile("there is no such file in it") from None
    except (zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        # RuntimeError is an encrypted file, NotImplementedError an unknown kind of compression.
        raise zipfile.BadZipFile(str(error) or type(error).__name__) from None


@lru_cache(_OPEN_ARCHIVES)
def _open_archive(path: str, _process: int, _changed: int, _size: int) -> zipfile.ZipFile:
    """An archive that stays open, so that its list of files is read once, not for every image.

    An archive that has changed is opened anew. So is one in another process, which would otherwise
    share its position in the file.
    """
    return zipfile.ZipFile(path)
