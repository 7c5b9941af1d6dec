"""The Hub's cache on this machine, laid out as huggingface_hub does it.

models--user--name/ refs/main               the commit that this branch was at, when last asked
                    blobs/<etag>            contents, named by their sha256 or git hash
                    snapshots/<commit>/...  links to them; files where there are no links
                    .no_exist/<commit>/...  names that the commit is known not to have
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils.sha import git_hash

from imagetok.files import file_sha256, naming_os_errors, write_atomic

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_LINKS = 8


def is_commit(revision: str | None) -> TypeGuard[str]:
    """Whether a revision is the full hash of a commit, which means the same for ever."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def is_sha256(etag: str | None) -> TypeGuard[str]:
    """Whether a hash that the Hub names is one of the content alone, as LFS files have."""
    return etag is not None and _SHA256.fullmatch(etag) is not None


@dataclass(frozen=True)
class RepoCache:
    """What is kept of one repository.

    Attributes:
        folder: Of this repository; it need not exist.
    """

    folder: Path

    @classmethod
    def of(
        cls, repo_id: str, repo_type: str, cache_dir: str | os.PathLike[str] | None
    ) -> RepoCache:
        """The cache of a repository; `cache_dir` None is huggingface_hub's own."""
        root = constants.HF_HUB_CACHE if cache_dir is None else cache_dir
        name = repo_folder_name(repo_id=repo_id, repo_type=repo_type)
        return cls(Path(root).expanduser().resolve() / name)

    @property
    def root(self) -> Path:
        """The cache of all repositories."""
        return self.folder.parent

    def snapshot(self, commit: str) -> Path:
        """The folder of a commit's files; it need not exist."""
        return self.folder / "snapshots" / commit

    def find(self, commit: str, name: str) -> Path | None:
        """A file of a commit, if it is here."""
        path = self.snapshot(commit) / name
        return path if path.is_file() else None

    def is_absent(self, commit: str, name: str) -> bool:
        """Whether the commit is known not to have a file."""
        return (self.folder / ".no_exist" / commit / name).is_file()

    def read_ref(self, revision: str) -> str | None:
        """The commit that a branch, tag or PR reference was at, if it is known."""
        try:
            found = (self.folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
        return found if is_commit(found) else None

    def write_ref(self, revision: str, commit: str) -> None:
        """Remember the commit that a branch, tag or PR reference is at.

        A cache that cannot be written still serves what it has.
        """
        path = self.folder / "refs" / revision
        if revision != commit and self.read_ref(revision) != commit:
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, commit.encode())

    def take_out(self, path: Path) -> None:
        """Remove a file with its content, so that the next call fetches it.

        Args:
            path: In a snapshot. Where it is a link, what it leads to goes as well, as long as that
                lies in the cache; other snapshots' links to it then lead nowhere, which
                huggingface_hub takes for a file that is not there.

        Raises:
            UnwritableFileError: It cannot be removed.
        """
        chain = [path]
        while chain[-1].is_symlink() and len(chain) <= _MOST_LINKS:
            # Of `..` in a link's text nothing may be left, or a path outside would look inside.
            target = os.path.normpath(chain[-1].parent / os.readlink(chain[-1]))
            chain.append(Path(target))
        # Content first: a link that is left alone is harmless, a link to it would be made anew.
        for place in reversed(chain):
            if self.root in place.parents:
                with naming_os_errors("remove", place):
                    place.unlink(missing_ok=True)


def etag_of(path: Path) -> str | None:
    """What the Hub named the content of a cached file by; None where there are no links."""
    return Path(os.readlink(path)).name if path.is_symlink() else None


def has_etag(path: Path, etag: str | None) -> bool | None:
    """Whether a file's content has a hash that the Hub names.

    Args:
        path: A file.
        etag: A sha256 (of an LFS file), a git hash (of any other), or what is neither.

    Returns:
        None where the tag says nothing of the content.

    Raises:
        UnreadableFileError: The file cannot be read.
    """
    if is_sha256(etag):
        return file_sha256(path) == etag
    if etag is not None and _COMMIT.fullmatch(etag):
        with naming_os_errors("read", path):
            return git_hash(path.read_bytes()) == etag
    return None
