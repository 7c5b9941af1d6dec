"""`Branch`: where a push commits, one whole commit at a time, whatever the network does.

A commit names its parent. So one whose answer was lost is never made twice: if it was made after
all, the branch has moved on, the Hub refuses the second one, and reading the branch again shows
that nothing is left to do. `HfApi.create_commit` does not try again when the Hub is busy or the
connection breaks, and a caller that does may commit twice; `HfApi.upload_folder` tries again, and
spreads a folder over several commits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, TypeVar
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from imagetok.errors import HubAccessError, HubError
from imagetok.files import naming_os_errors
from imagetok.hub.address import check_revision
from imagetok.hub.client import calling, hub_api

UPLOAD_GROUP = 32
"""Number of files that are uploaded together, between two steps of the progress bar."""

_PRECONDITION_FAILED = 412
_T = TypeVar("_T")


@dataclass(frozen=True)
class Upload:
    """A file on its way to the Hub; it is hashed when its hash is first needed.

    Attributes:
        name: Its path in the repository.
        source: The file on this machine, or its content.
    """

    name: str
    source: Path | bytes

    @cached_property
    def size(self) -> int:
        """Size in bytes."""
        if isinstance(self.source, bytes):
            return len(self.source)
        with naming_os_errors("read", self.source):
            return self.source.stat().st_size

    @cached_property
    def addition(self) -> CommitOperationAdd:
        """What huggingface_hub calls it, with its hash."""
        if isinstance(self.source, bytes):
            return CommitOperationAdd(self.name, self.source)
        # Opened here, because huggingface_hub refuses a missing file without naming the reason.
        with naming_os_errors("read", self.source), self.source.open("rb"):
            return CommitOperationAdd(self.name, self.source.absolute())

    def read(self) -> bytes:
        """Its content."""
        with self.addition.as_file() as file:
            return file.read()


@dataclass(frozen=True)
class Head:
    """The commit that a branch points to.

    Attributes:
        sha: Hash of the commit.
        files: Its files, by path.
    """

    sha: str
    files: Mapping[str, RepoFile]

    def holds(self, upload: Upload) -> bool:
        """Whether a file is there already, with exactly these bytes."""
        there = self.files.get(upload.name)
        if there is None or there.size != upload.size:
            return False
        if there.lfs is not None:
            return there.lfs.sha256 == upload.addition.upload_info.sha256.hex()
        return there.blob_id == git_hash(upload.read())


class PushOptions(TypedDict, total=False):
    """Where and how to push, as all functions that push take it by keyword.

    Attributes:
        private: Whether a repository that is made is private; None is the account's default. One
            that is there and public is refused where it was to be private.
        revision: Branch to push to, made where it is missing; None is the main branch.
        commit_message: Title of the commits, and of the pull request.
        create_pr: Open a pull request instead of writing to the branch, with several commits if
            it takes them.
        token: As for `hub_api`.
    """

    private: bool | None
    revision: str | None
    commit_message: str | None
    create_pr: bool
    token: str | bool | None


class Branch:
    """A branch of a repository on the Hub, or a pull request to it.

    Args:
        repo_id: `user/name`.
        repo_type: `"model"` or `"dataset"`.
        title: Title of the commits where `commit_message` gives none.
        private, revision, commit_message, create_pr, token: As for `PushOptions`.

    Attributes:
        page: Address of the repository.
        url: Address of the repository, or of the branch where one is named.
        pull_request: Address of the pull request, once there is one.

    Raises:
        HubAccessError: A branch cannot have this name.
    """

    def __init__(
        self,
        repo_id: str,
        repo_type: str,
        title: str = "Push with imagetok",
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        token: str | bool | None = None,
    ) -> None:
        self._revision, self._create_pr = check_revision(repo_id, revision), create_pr
        self._private, self._message = private, commit_message or title
        if "/" not in repo_id:
            raise HubAccessError(f"'{repo_id}' names no namespace on the Hub; expected user/name")
        self._api, self._repo_id = hub_api(token), repo_id
        self._repo: dict[str, Any] = {"repo_id": repo_id, "repo_type": repo_type}
        kind = "" if repo_type == "model" else f"{repo_type}s/"
        self.page = f"{constants.ENDPOINT}/{kind}{repo_id}"
        self.url = self.page if revision is None else f"{self.page}/tree/{quote(revision, safe='')}"
        self.pull_request: str | None = None

    def prepare(self) -> None:
        """Create the repository and the branch if they are missing.

        Raises:
            HubAccessError: One is missing and may not be created; or the repository exists, is
                public and was to be private.
        """
        api, repo = self._api, self._repo
        calling(
            f"creating {self._repo_id}",
            lambda: api.create_repo(**repo, private=self._private, exist_ok=True),
        )
        if self._private and not self._read(lambda: api.repo_info(**repo)).private:
            raise HubAccessError(
                f"{self._repo_id} is there already and is public: make it private in its settings "
                "on the Hub, or push without asking for a private one"
            )
        calling(f"making the branch {self._revision} of {self._repo_id}", self._make_branch)

    def check_writable(self) -> None:
        """Refuse a token that may not write, which `prepare` does not do if the branch exists.

        Nothing is sent except the question how a small file would have to be uploaded.
        """
        asked = [CommitOperationAdd("config.json", b"{}")]
        calling(
            f"asking whether {self._repo_id} may be written",
            lambda: self._api.preupload_lfs_files(additions=asked, **self._target),
        )

    def read_head(self) -> Head:
        """Where the branch is now."""
        return self._read(lambda: self._head(self._revision))

    def read_file(self, name: str, head: Head) -> bytes:
        """A file as it is in a commit, with the size and the hash that the commit names."""

        def read() -> bytes:
            with tempfile.TemporaryDirectory() as folder:
                path = self._api.hf_hub_download(
                    filename=name, revision=head.sha, local_dir=folder, **self._repo
                )
                data = Path(path).read_bytes()
            if not head.holds(Upload(name, data)):
                raise ConnectionError(f"{name} arrived damaged")
            return data

        with client_bars_off():
            return calling(f"reading {name} of {self._repo_id}", read)

    def commit(
        self,
        uploads: Sequence[Upload],
        deleted: Sequence[str],
        head: Head,
        uploaded: Callable[[int], object],
    ) -> str | None:
        """Upload files and commit them, and deletions, on top of `head`.

        `uploaded` is called with the bytes of each group of files once it is on the Hub.

        Returns:
            The commit; None if the branch has moved on, perhaps by this commit itself: read it
            again to see what is left to do.
        """
        for start in range(0, len(uploads), UPLOAD_GROUP):
            group = uploads[start : start + UPLOAD_GROUP]
            self._upload(group)
            uploaded(sum(upload.size for upload in group))
        operations = [
            *(upload.addition for upload in uploads),
            *(CommitOperationDelete(name) for name in deleted),
        ]
        others = self._read(self._pull_requests) if self._create_pr else set()
        sent = False

        def commit() -> str | None:
            nonlocal sent
            if sent and self._create_pr:
                made = self._find_pull_request(others, uploads, deleted)
                if made is not None:
                    return made
            elif sent and self._sha(self._revision) != head.sha:
                return None
            sent = True
            return self._send(operations, head.sha)

        return calling(f"committing to {self._repo_id}", commit)

    @property
    def _target(self) -> dict[str, Any]:
        return {**self._repo, "revision": self._revision, "create_pr": self._create_pr}

    def _read(self, function: Callable[[], _T]) -> _T:
        return calling(f"reading {self._repo_id}", function)

    def _upload(self, uploads: Sequence[Upload]) -> None:
        additions = [upload.addition for upload in uploads]
        calling(
            f"uploading to {self._repo_id}",
            lambda: self._api.preupload_lfs_files(
                additions=additions, free_memory=False, **self._target
            ),
        )

    def _make_branch(self) -> None:
        try:
            self._sha(self._revision)
        except RevisionNotFoundError:
            self._api.create_branch(**self._repo, branch=self._revision, exist_ok=True)

    def _sha(self, revision: str) -> str:
        sha: str | None = self._api.repo_info(**self._repo, revision=revision).sha
        if sha is None:
            raise HubError(f"reading {self._repo_id}: the Hub names no commit of '{revision}'")
        return sha

    def _head(self, revision: str) -> Head:
        sha = self._sha(revision)
        tree = self._api.list_repo_tree(**self._repo, revision=sha, recursive=True)
        return Head(sha, {file.path: file for file in tree if isinstance(file, RepoFile)})

    def _send(self, operations: Sequence[Any], parent: str) -> str | None:
        try:
            made = self._api.create_commit(
                operations=operations,
                commit_message=self._message,
                parent_commit=parent,
                **self._target,
            )
        except HfHubHTTPError as error:
            if error.response.status_code == _PRECONDITION_FAILED:
                return None
            raise
        if self._create_pr:
            self._follow(made.pr_url, made.pr_revision)
        sha: str = made.oid
        return sha

    def _follow(self, url: str | None, revision: str | None) -> None:
        """Put further commits into the pull request that was opened."""
        self.pull_request = url
        self._revision, self._create_pr = revision or self._revision, False

    def _pull_requests(self) -> set[str]:
        refs = self._api.list_repo_refs(**self._repo, include_pull_requests=True)
        return {request.ref for request in refs.pull_requests or []}

    def _find_pull_request(
        self, others: set[str], uploads: Sequence[Upload], deleted: Sequence[str]
    ) -> str | None:
        """The commit of a pull request besides the `others` that did all this; it is followed."""
        for ref in self._pull_requests() - others:
            head = self._head(ref)
            if all(map(head.holds, uploads)) and head.files.keys().isdisjoint(deleted):
                self._follow(f"{self.page}/discussions/{ref.rpartition('/')[2]}", ref)
                return head.sha
        return None


@contextmanager
def client_bars_off() -> Iterator[None]:
    """Keep huggingface_hub from drawing its own progress bars."""
    # Where the environment decides, asking for anything else gives a warning.
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
