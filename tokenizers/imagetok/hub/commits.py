"""One commit of a repository on the Hub: its files, fetched once and checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.file_download import HfFileMetadata

from imagetok.errors import (
    HubAccessError,
    ModelFileError,
    UnreadableFileError,
    UnwritableFileError,
)
from imagetok.hub.cache import RepoCache, etag_of, has_etag
from imagetok.hub.client import calling, hub_api
from imagetok.hub.revisions import is_offline, resolve_revision, why_offline

_T = TypeVar("_T")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit, fetched.

    Attributes:
        name: In the repository.
        path: On this machine.
        etag: Hash of its content that the Hub names; None if it is not known any more.
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
        cache: What is kept of the repository.
        token: As for `hub_api`.
        local_files_only: Make no request.
    """

    repo_id: str
    repo_type: str
    revision: str
    cache: RepoCache
    token: str | bool | None
    local_files_only: bool

    @classmethod
    def resolve(
        cls,
        repo_id: str,
        *,
        repo_type: str,
        revision: str | None,
        token: str | bool | None,
        cache_dir: str | os.PathLike[str] | None,
        local_files_only: bool,
    ) -> RepoCommit:
        """The commit that a revision stands for; arguments and errors as `resolve_revision`."""
        commit = resolve_revision(
            repo_id,
            repo_type=repo_type,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        cache = RepoCache.of(repo_id, repo_type, cache_dir)
        return cls(repo_id, repo_type, commit, cache, token, local_files_only)

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.cache.snapshot(self.revision)

    @property
    def offline(self) -> bool:
        """Whether no request may be made."""
        return is_offline(self.local_files_only)

    @property
    def place(self) -> str:
        """What messages call it."""
        return f"{self.repo_id} at commit {self.revision}"

    def fetch(self, name: str) -> RemoteFile | None:
        """A file, from the cache or else from the Hub, its content not yet checked.

        Args:
            name: In the repository.

        Returns:
            None where the commit has no such file; or where it is not known to have one, and no
            request may be made.

        Raises:
            ModelFileError, UnreadableFileError: What arrived was not of the size that the Hub
                names, and was not kept.
            HubAccessError, HubError: As `calling`.
        """
        if (path := self.cache.find(self.revision, name)) is not None:
            return RemoteFile(name, path, etag_of(path))
        if self.cache.is_absent(self.revision, name) or self.offline:
            return None
        what = f"fetching '{name}' of {self.place}"
        fetched = calling(what, lambda: self._download(name))
        if fetched is None:
            return None
        path = Path(fetched)
        etag = etag_of(path)
        if etag is None:
            found = self.describe(name)
            etag = None if found is None else found.etag
        return RemoteFile(name, path, etag)

    def describe(self, name: str) -> HfFileMetadata | None:
        """Size and hash of a file, as the Hub names them; None if there is no such file.

        Raises:
            HubAccessError, HubError: As `calling`.
        """
        api = hub_api(self.token)
        url = hf_hub_url(
            self.repo_id,
            name,
            repo_type=self.repo_type,
            revision=self.revision,
            endpoint=api.endpoint,
        )
        return calling(
            f"asking for '{name}' of {self.place}",
            lambda: _unless_absent(
                lambda: api.get_hf_file_metadata(url=url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            ),
        )

    def check(self, file: RemoteFile) -> None:
        """Compare a file's content with the hash that the Hub names.

        Raises:
            ModelFileError, UnreadableFileError: It is another one; the file was taken out of the
                cache.
        """
        if has_etag(file.path, file.etag) is False:
            raise self.refusal(file)

    def refusal(
        self, file: RemoteFile, reason: str = "what arrived is not what the Hub holds"
    ) -> UnreadableFileError:
        """Take a damaged file out of the cache, and say so in an error.

        Returns:
            A ModelFileError of a model, an UnreadableFileError of a dataset.
        """
        told = f"'{file.name}' of {self.place} was refused"
        try:
            self.cache.take_out(file.path)
        except UnwritableFileError as error:
            return self.error(f"{told}: {reason}; it stays in the cache: {error}")
        return self.error(
            f"{told} and taken out of the cache: {reason}; load it again to fetch it anew"
        )

    def cut_short(self, error: OSError, file: str) -> UnreadableFileError:
        """The error of a download that was of another size than announced, and was not kept."""
        return self.error(
            f"{file} of {self.place} was refused: {first_line(error)}; load it again to fetch it "
            "anew"
        )

    def error(self, text: str) -> UnreadableFileError:
        """The error of a damaged file in a repository of this type."""
        return (ModelFileError if self.repo_type == "model" else UnreadableFileError)(text)

    def missing(self, name: str, meaning: str) -> HubAccessError:
        """The error of a file that is needed.

        Args:
            name: The file that `fetch` did not find.
            meaning: What its absence says of the repository.
        """
        if self.cache.is_absent(self.revision, name) or not self.offline:
            return HubAccessError(f"{self.place} has no '{name}': {meaning}")
        return HubAccessError(
            f"'{name}' of {self.place} is not in the cache '{self.cache.root}', and "
            f"{why_offline(self.local_files_only)}; load it once with the network"
        )

    def _download(self, name: str) -> str | None:
        api = hub_api(self.token)
        try:
            return _unless_absent(
                lambda: api.hf_hub_download(
                    self.repo_id,
                    name,
                    repo_type=self.repo_type,
                    revision=self.revision,
                    cache_dir=self.cache.root,
                )
            )
        except OSError as error:
            if is_cut_short(error):
                raise self.cut_short(error, f"'{name}'") from None
            raise


def is_cut_short(error: OSError) -> bool:
    """Whether a download was of another size than announced: huggingface_hub names it so only."""
    return type(error) is OSError and str(error).startswith("Consistency check failed")


def first_line(error: Exception) -> str:
    """The first line of a message, without the full stop at its end."""
    return str(error).partition("\n")[0].rstrip(".")


def _unless_absent(function: Callable[[], _T]) -> _T | None:
    """What a function returns; None if there is no such file on the Hub."""
    try:
        return function()
    except LocalEntryNotFoundError:  # says only that the Hub was not reached
        raise
    except EntryNotFoundError:
        return None
