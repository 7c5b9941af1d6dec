"""`Branch`: where a push lands, one whole commit at a time, whatever the network does.

A commit names its parent. So one whose answer was lost is never made twice: if it landed after
all, the branch has moved on, the Hub refuses the second one, and reading the branch again shows
that nothing is left to do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from imagetok.errors import HubAccessError, HubError
from imagetok.hub.client import calling
from imagetok.hub.uploads import Upload

UPLOAD_GROUP = 32
"""Files that are uploaded together, and again together if the network fails."""

_PRECONDITION_FAILED = 412


@dataclass(frozen=True)
class Head:
    """The commit that a branch is at.

    Attributes:
        sha: Of the commit.
        files: By path.
    """

    sha: str
    files: Mapping[str, RepoFile]


class Branch:
    """A branch of a repository on the Hub, or a pull request to it.

    Args:
        api: The client.
        repo_id: `user/name`.
        repo_type: `"model"` or `"dataset"`.
        revision: The branch.
        create_pr: Land the first commit in a new pull request to the branch, and further ones in
            the same.

    Attributes:
        pull_request: Address of the pull request, once there is one.
    """

    def __init__(
        self,
        api: HfApi,
        repo_id: str,
        repo_type: str,
        revision: str,
        create_pr: bool = False,
    ) -> None:
        self._api, self._repo_id, self._repo_type = api, repo_id, repo_type
        self._revision, self._create_pr = revision, create_pr
        self.pull_request: str | None = None

    @property
    def page(self) -> str:
        """Address of the repository."""
        kind = "" if self._repo_type == "model" else f"{self._repo_type}s/"
        return f"{constants.ENDPOINT}/{kind}{self._repo_id}"

    @property
    def _place(self) -> dict[str, Any]:
        return {"repo_id": self._repo_id, "repo_type": self._repo_type}

    @property
    def _target(self) -> dict[str, Any]:
        return self._place | {"revision": self._revision, "create_pr": self._create_pr}

    def prepare(self, private: bool | None = None) -> None:
        """Make the repository and the branch where they are missing.

        Raises:
            HubAccessError: One is not there, and may not be made; or the repository is public
                already and was to be private.
        """
        api, place = self._api, self._place
        calling(
            f"creating {self._repo_id}",
            lambda: api.create_repo(**place, private=private, exist_ok=True),
        )
        if private and not calling(self._reading, lambda: api.repo_info(**place)).private:
            raise HubAccessError(
                f"{self._repo_id} is there already and is public: make it private in its settings "
                "on the Hub, or push without asking for a private one"
            )
        calling(f"making the branch {self._revision} of {self._repo_id}", self._make_branch)

    def check_writable(self) -> None:
        """Ask whether the branch may be written, which `prepare` does not where it is there.

        Nothing is sent but the question where a small file would have to go.

        Raises:
            HubAccessError: The token has no right to it.
        """
        asked = [CommitOperationAdd("config.json", b"{}")]
        calling(
            f"asking whether {self._repo_id} may be written",
            lambda: self._api.preupload_lfs_files(additions=asked, **self._target),
        )

    def read_head(self) -> Head:
        """Where the branch is now."""
        return calling(self._reading, lambda: self._head(self._revision))

    def read_file(self, name: str, head: Head) -> bytes:
        """A file as it is in a commit, as long and of the same hash as the commit says."""

        def read() -> bytes:
            with tempfile.TemporaryDirectory() as folder:
                path = self._api.hf_hub_download(
                    filename=name, revision=head.sha, local_dir=folder, **self._place
                )
                data = Path(path).read_bytes()
            if not Upload(name, data).equals(head.files[name]):
                raise ConnectionError(f"{name} arrived damaged")
            return data

        with client_bars_off():
            return calling(f"reading {name} of {self._repo_id}", read)

    def land(
        self,
        message: str,
        uploads: Sequence[Upload],
        deleted: Sequence[str],
        head: Head,
        uploaded: Callable[[int], object],
    ) -> str | None:
        """Upload files and land them, and deletions, in one commit on top of `head`.

        Args:
            message: Title of the commit.
            uploads: Files that are new or changed.
            deleted: Paths to delete.
            head: The commit that all this was found from.
            uploaded: Called with the bytes of each group of files that is on the Hub.

        Returns:
            The commit; None where the branch has moved on, be it by this very commit: read it
            again to see what is left to do.
        """
        additions = [CommitOperationAdd(upload.name, upload.source) for upload in uploads]
        for start in range(0, len(additions), UPLOAD_GROUP):
            group = slice(start, start + UPLOAD_GROUP)
            self._upload(additions[group])
            uploaded(sum(upload.size for upload in uploads[group]))
        operations = [*additions, *(CommitOperationDelete(name) for name in deleted)]
        requests = calling(self._reading, self._pull_requests) if self._create_pr else set()
        sent = False

        def commit() -> str | None:
            nonlocal sent
            if sent and self._create_pr:
                landed = self._find_request(requests, uploads, deleted)
                if landed is not None:
                    return landed
            elif sent and self._sha(self._revision) != head.sha:
                return None
            sent = True
            return self._send(operations, message, head.sha)

        return calling(f"committing to {self._repo_id}", commit)

    def _upload(self, additions: Sequence[CommitOperationAdd]) -> None:
        calling(
            f"uploading to {self._repo_id}",
            lambda: self._api.preupload_lfs_files(
                additions=additions, free_memory=False, **self._target
            ),
        )

    @property
    def _reading(self) -> str:
        return f"reading {self._repo_id}"

    def _make_branch(self) -> None:
        try:
            self._sha(self._revision)
        except RevisionNotFoundError:
            self._api.create_branch(**self._place, branch=self._revision, exist_ok=True)

    def _sha(self, revision: str) -> str:
        sha: str | None = self._api.repo_info(**self._place, revision=revision).sha
        if sha is None:
            raise HubError(f"{self._reading}: the Hub names no commit of '{revision}'")
        return sha

    def _head(self, revision: str) -> Head:
        sha = self._sha(revision)
        tree = self._api.list_repo_tree(**self._place, revision=sha, recursive=True)
        return Head(sha, {file.path: file for file in tree if isinstance(file, RepoFile)})

    def _send(self, operations: Sequence[Any], message: str, parent: str) -> str | None:
        try:
            done = self._api.create_commit(
                operations=operations, commit_message=message, parent_commit=parent, **self._target
            )
        except HfHubHTTPError as error:
            if error.response.status_code == _PRECONDITION_FAILED:
                return None
            raise
        if self._create_pr:
            self._follow(done.pr_url, done.pr_revision)
        sha: str = done.oid
        return sha

    def _follow(self, url: str | None, revision: str | None) -> None:
        """Land what is to come in the pull request that was made."""
        self.pull_request = url
        self._revision, self._create_pr = revision or self._revision, False

    def _pull_requests(self) -> set[str]:
        refs = self._api.list_repo_refs(**self._place, include_pull_requests=True)
        return {request.ref for request in refs.pull_requests or []}

    def _find_request(
        self, known: set[str], uploads: Sequence[Upload], deleted: Sequence[str]
    ) -> str | None:
        """The commit of a pull request not `known` that did all this; it is followed."""
        for ref in self._pull_requests() - known:
            head = self._head(ref)
            written = all(upload.equals(head.files.get(upload.name)) for upload in uploads)
            if written and head.files.keys().isdisjoint(deleted):
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
