"""`RepoCommit`: one commit of a repository on the Hub, and what this machine has of it.

A revision is resolved once, and every file comes from that commit. Files lie in the cache of
huggingface_hub, and each is compared with the hash that the Hub names:

    models--user--name/ refs/main               the commit that this branch was at, when last asked
                        blobs/<etag>            contents, named by their sha256 or git hash
                        snapshots/<commit>/...  links to them; files where there are no links
                        .no_exist/<commit>/...  names that the commit is known not to have
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.file_download import HfFileMetadata, repo_folder_name
from huggingface_hub.utils.sha import git_hash

from imagetok.errors import (
    HubAccessError,
    HubError,
    ModelFileError,
    UnreadableFileError,
    UnwritableFileError,
)
from imagetok.files import file_sha256, naming_os_errors, write_atomic
from imagetok.hub.address import check_revision, is_commit
from imagetok.hub.client import calling, hub_api

TRIES_BEFORE_CACHE = 2
"""How often a Hub that does not answer is asked before a commit in the cache is taken instead."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_LINKS = 8


class FetchOptions(TypedDict, total=False):
    """What to fetch and from where, as all functions that fetch take it by keyword.

    Attributes:
        revision: Branch, tag, PR reference (`refs/pr/1`) or commit; None is the main branch. It is
            resolved once, by one request; none is made for a commit that is in the cache.
        token: As for `hub_api`.
        cache_dir: Cache for the Hub's files; None is huggingface_hub's own.
        local_files_only: Take what is in the cache, and make no request.
    """

    revision: str | None
    token: str | bool | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit that lies in the cache.

    Attributes:
        name: Path in the repository.
        path: Path on this machine.
        etag: The Hub's hash of its content; None if it is not known any more.
    """

    name: str
    path: Path
    etag: str | None


@dataclass(frozen=True)
class RepoCommit:
    """A commit of a repository.

    Attributes:
        repo_id: `user/name`.
        repo_type: `model` or `dataset`.
        revision: The commit, 40 hexadecimal digits.
        cache: The repository's folder in the cache; it need not exist.
        token: As for `hub_api`.
        local_files_only: Make no request.
    """

    repo_id: str
    repo_type: str
    revision: str
    cache: Path
    token: str | bool | None
    local_files_only: bool

    @classmethod
    def resolve(
        cls,
        repo_id: str,
        repo_type: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> RepoCommit:
        """The commit that a revision stands for; see `FetchOptions` for what is given by keyword.

        If the Hub does not answer, the commit that the cache knows is taken, with a warning.
        `HfApi.resolve_revision` waits without end for a Hub that stalls, and takes the cache's
        commit after a single failure.

        Raises:
            HubAccessError: Repository or revision does not exist or is not accessible; or no
                request may be made, and the cache does not know the revision.
            HubError: The Hub cannot be reached, and the cache does not know the revision.
        """
        wanted = check_revision(repo_id, revision)
        root = constants.HF_HUB_CACHE if cache_dir is None else cache_dir
        folder = repo_folder_name(repo_id=repo_id, repo_type=repo_type)
        cache = Path(root).expanduser().resolve() / folder
        known = _read_known(cache, wanted)
        commit = cls(repo_id, repo_type, known or wanted, cache, token, local_files_only)
        if commit.offline and known is None:
            raise HubAccessError(
                f"revision '{wanted}' of {repo_id} is not in the cache '{cache.parent}', "
                f"nor is there a folder '{repo_id}' here, and {commit._why_offline}"
            )
        if commit.offline or (known is not None and is_commit(wanted)):
            return commit
        found = _ask(repo_id, repo_type, wanted, token, known)
        _remember(cache, wanted, found)
        return cls(repo_id, repo_type, found, cache, token, local_files_only)

    @property
    def folder(self) -> Path:
        """The snapshot that holds its files; it need not exist."""
        return self.cache / "snapshots" / self.revision

    @property
    def offline(self) -> bool:
        """Whether no request may be made: by argument, or by HF_HUB_OFFLINE."""
        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)

    @property
    def _why_offline(self) -> str:
        """What keeps requests from being made, and what to do about a file that is missing."""
        setting = "local_files_only" if self.local_files_only else "HF_HUB_OFFLINE"
        return f"{setting} is set; load it once with the network"

    @property
    def place(self) -> str:
        """Its name for messages."""
        return f"{self.repo_id} at commit {self.revision}"

    def fetch(self, name: str) -> RemoteFile | None:
        """A file from the cache or else from the Hub, its content not yet checked.

        None if the commit has no such file, or the cache lacks it and no request may be made.

        Raises:
            ModelFileError, UnreadableFileError: It arrived with another size, and was not kept.
            HubAccessError, HubError: As `calling`.
        """
        cached = self._look_up(name)
        if isinstance(cached, str):
            return RemoteFile(name, Path(cached), _etag_of(Path(cached)))
        if cached is not None or self.offline:
            return None
        fetched = calling(f"fetching '{name}' of {self.place}", lambda: self._download(name))
        if fetched is None:
            return None
        etag = _etag_of(Path(fetched))
        if etag is None and (found := self.describe(name)) is not None:
            etag = found.etag
        return RemoteFile(name, Path(fetched), etag)

    def need(self, name: str, meaning: str) -> RemoteFile:
        """As `fetch`, for a file whose absence has a meaning, with which `missing` is raised."""
        file = self.fetch(name)
        if file is None:
            raise self.missing(name, meaning)
        return file

    def missing(self, name: str, meaning: str) -> HubAccessError:
        """The error for a file that is needed and was not found; `meaning` ends its message."""
        if not self.offline or self._look_up(name) is not None:
            return HubAccessError(f"{self.place} has no '{name}': {meaning}")
        return HubAccessError(
            f"'{name}' of {self.place} is not in the cache '{self.cache.parent}', and "
            f"{self._why_offline}"
        )

    def describe(self, name: str) -> HfFileMetadata | None:
        """The Hub's size and hash of a file; None if there is no such file."""
        api = hub_api(self.token)
        url = hf_hub_url(
            self.repo_id,
            name,
            repo_type=self.repo_type,
            revision=self.revision,
            endpoint=api.endpoint,
        )

        def ask() -> HfFileMetadata | None:
            with suppress(RemoteEntryNotFoundError):
                return api.get_hf_file_metadata(url=url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            return None

        return calling(f"asking for '{name}' of {self.place}", ask)

    def check(self, file: RemoteFile) -> None:
        """Compare a file's content with the hash that the Hub names; raises `refuse`.

        huggingface_hub compares sizes alone, and only when a file arrives.
        """
        if has_hash(file.path, file.etag) is False:
            raise self.refuse(file)

    def refuse(
        self, file: RemoteFile, reason: str = "what arrived is not what the Hub holds"
    ) -> UnreadableFileError:
        """Remove a damaged file from the cache; the error to raise, by the type of repository."""
        told = f"'{file.name}' of {self.place} was refused"
        try:
            remove_cached(file.path, self.cache.parent)
        except UnwritableFileError as error:
            return self._error(f"{told}: {reason}; it stays in the cache: {error}")
        return self._error(
            f"{told} and taken out of the cache: {reason}; load it again to fetch it anew"
        )

    @contextmanager
    def refusing_wrong_sizes(self, what: str) -> Iterator[None]:
        """Name the file that arrived with another size than announced, and was not kept."""
        try:
            yield
        except OSError as error:
            # huggingface_hub raises no type of its own for this.
            if type(error) is not OSError or not str(error).startswith("Consistency check failed"):
                raise
            reason = str(error).partition("\n")[0].rstrip(".")
            raise self._error(
                f"{what} of {self.place} was refused: {reason}; load it again to fetch it anew"
            ) from None

    def _look_up(self, name: str) -> object:
        """Path of a file in the cache; a mark if the commit is known to lack it; or None."""
        return try_to_load_from_cache(
            self.repo_id, name, self.cache.parent, self.revision, self.repo_type
        )

    def _download(self, name: str) -> str | None:
        with suppress(RemoteEntryNotFoundError), self.refusing_wrong_sizes(f"'{name}'"):
            return hub_api(self.token).hf_hub_download(
                self.repo_id,
                name,
                repo_type=self.repo_type,
                revision=self.revision,
                cache_dir=self.cache.parent,
            )
        return None

    def _error(self, text: str) -> UnreadableFileError:
        return (ModelFileError if self.repo_type == "model" else UnreadableFileError)(text)


def is_sha256(etag: str | None) -> bool:
    """Whether a hash that the Hub names is a sha256 of the content, as LFS files have."""
    return etag is not None and _SHA256.fullmatch(etag) is not None


def has_hash(path: Path, etag: str | None) -> bool | None:
    """Whether a file's content has the hash that the Hub names; None if it names none.

    LFS files have a sha256, others a git hash.

    Raises:
        UnreadableFileError: The file cannot be read.
    """
    if is_sha256(etag):
        return file_sha256(path) == etag
    if not is_commit(etag):  # a git hash has the form of a commit's
        return None
    with naming_os_errors("read", path):
        return git_hash(path.read_bytes()) == etag


def remove_cached(path: Path, root: Path) -> None:
    """Remove a file and its content from the cache, so that the next call fetches it.

    huggingface_hub removes whole revisions only. What a link leads to is removed as well, as long
    as that lies in `root`, the cache; huggingface_hub treats links that lead nowhere as missing.

    Raises:
        UnwritableFileError: It cannot be removed.
    """
    chain = [path]
    while chain[-1].is_symlink() and len(chain) <= _MOST_LINKS:
        # A `..` in the text of a link must be gone, or a path outside would look inside.
        target = os.path.normpath(chain[-1].parent / os.readlink(chain[-1]))
        chain.append(Path(target))
    # Content first: a link left alone is harmless, content left alone would be linked to anew.
    for place in reversed(chain):
        if root in place.parents:
            with naming_os_errors("remove", place):
                place.unlink(missing_ok=True)


def _etag_of(path: Path) -> str | None:
    """The Hub's name for the content of a cached file; None where there are no links."""
    return Path(os.readlink(path)).name if path.is_symlink() else None


def _read_known(cache: Path, revision: str) -> str | None:
    """The commit that the cache knows for a revision, if it holds files of it."""
    commit: str | None = revision
    if not is_commit(revision):
        try:
            commit = (cache / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
    return commit if is_commit(commit) and (cache / "snapshots" / commit).is_dir() else None


def _remember(cache: Path, revision: str, commit: str) -> None:
    """Write down the commit that a branch, tag or PR reference is at, where that is possible."""
    path = cache / "refs" / revision
    if revision != commit and _read_known(cache, revision) != commit:
        with suppress(OSError):  # a cache that cannot be written still serves what it has
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, commit.encode())


def _ask(
    repo_id: str, repo_type: str, revision: str, token: str | bool | None, known: str | None
) -> str:
    """Ask the Hub; if it does not answer, take the commit that is `known`, if there is one."""
    tries = 0

    def ask() -> str | None:
        nonlocal tries
        tries += 1  # `calling` comes back only if the Hub did not answer or was busy
        if known is not None and tries > TRIES_BEFORE_CACHE:
            return None
        info = hub_api(token).repo_info(
            repo_id,
            repo_type=repo_type,
            revision=revision,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
            expand="sha",
        )
        if not is_commit(info.sha):
            raise HubError(f"the Hub names no commit for revision '{revision}' of {repo_id}")
        return info.sha

    try:
        found = calling(f"asking for revision '{revision}' of {repo_id}", ask)
    except HubAccessError as error:
        if type(error.__cause__) is not RepositoryNotFoundError:  # a gated one is a kind of it
            raise
        told = f"{error}; nor is there a folder '{repo_id}' here"
        raise HubAccessError(told) from error.__cause__
    if found is not None:
        return found
    assert known is not None
    warnings.warn(
        f"the Hub cannot be reached; revision '{revision}' of {repo_id} is taken from the cache, "
        f"as commit {known}",
        stacklevel=2,
    )
    return known
