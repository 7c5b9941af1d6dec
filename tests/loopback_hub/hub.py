"""The Hub that tests hold in their hands: set up, spoil, look into."""

from __future__ import annotations

import re
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loopback_hub import routes
from loopback_hub.catalog import Catalog, User
from loopback_hub.faults import Fault
from loopback_hub.messages import CDN, HUB, Answer, RefusedError, Request
from loopback_hub.repositories import KINDS, Blob, Commit, Repository
from loopback_hub.server import serve
from loopback_hub.xet import XetStore

Content = str | bytes


class LoopbackHub:
    """A Hugging Face Hub on loopback, for the real client.

    Attributes:
        endpoint: its address, for HF_ENDPOINT.
        cdn: the address of the other origin, where large files are up- and downloaded.
        token: of the user `user`, who may write.
        read_token: of the same user, who may read only.
        stranger_token: of another user, `stranger`.
        requests: every request since the last reset, in the order of arrival; those to other hosts
            too, which come here where the Hub is the proxy.
        errors: tracebacks of the server's own failures, which no test should see.
    """

    token = "hf_writes"
    read_token = "hf_reads"
    stranger_token = "hf_stranger"

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.endpoint, self.cdn = serve(self._respond)
        self.reset()

    def reset(self) -> None:
        """Forget everything, like a Hub that was started just now."""
        with self._lock:
            self._catalog = Catalog(self.endpoint, self.cdn)
            self._catalog.users = {
                self.token: User("user"),
                self.read_token: User("user", "read"),
                self.stranger_token: User("stranger"),
            }
            self._faults: list[Fault] = []
            self.requests: list[Request] = []
            self.errors: list[str] = []

    # What is there

    @property
    def page_size(self) -> int:
        """The most entries in a page of a listing."""
        return self._catalog.page_size

    @page_size.setter
    def page_size(self, size: int) -> None:
        self._catalog.page_size = size

    def use_xet(self, folder: Path) -> None:
        """Let clients that have Xet switched on keep large files in a folder by it.

        Needs `hf_xet`. Large files that the test itself puts on the Hub stay in LFS.
        """
        self._catalog.xet = XetStore(folder)

    def create(
        self,
        repo: str,
        repo_type: str = "model",
        *,
        files: Mapping[str, Content] | None = None,
        private: bool = False,
        gated: bool | str = False,
    ) -> Repository:
        """A new repository, with one commit of `files` upon the initial one if there are any.

        Args:
            repo: `namespace/name`.
            repo_type: `model`, `dataset` or `space`.
            files: content by path; texts are encoded as UTF-8.
            private: whether only its owner sees it.
            gated: whether files are read on request only; add to `granted` who may.
        """
        kind = f"{repo_type}s"
        if kind not in KINDS or repo.count("/") != 1 or (kind, repo) in self._catalog.repositories:
            raise ValueError(f"cannot create {repo_type} '{repo}': unknown type, name, or taken")
        namespace = repo.partition("/")[0]
        gate = "manual" if gated is True else gated
        repository = Repository(kind, repo, namespace, private, gate)
        self._catalog.repositories[kind, repo] = repository
        if files:
            self.commit(repo, files, repo_type)
        return repository

    def commit(
        self,
        repo: str,
        files: Mapping[str, Content | None],
        repo_type: str = "model",
        *,
        revision: str = "main",
        title: str = "Change files",
    ) -> str:
        """Commit files as a colleague would, in the browser; None deletes a file.

        Returns:
            The sha of the commit.
        """
        with self._lock:
            repository = self.repository(repo, repo_type)
            ref = repository.find_ref(revision)
            if ref is None:
                raise ValueError(f"'{repo}' has no branch '{revision}'")
            held = dict(repository.resolve(ref).files)
            for path, content in files.items():
                if content is None:
                    del held[path]
                else:
                    data = content.encode() if isinstance(content, str) else content
                    held[path] = Blob.of(path, data)
            return repository.commit(ref, held, title, "", repository.namespace).sha

    def repository(self, repo: str, repo_type: str = "model") -> Repository:
        """A repository.

        Raises:
            KeyError: there is none of this type and name.
        """
        return self._catalog.repositories[f"{repo_type}s", repo]

    def has(self, repo: str, repo_type: str = "model") -> bool:
        """Whether a repository exists."""
        return (f"{repo_type}s", repo) in self._catalog.repositories

    def head(self, repo: str, revision: str = "main", repo_type: str = "model") -> str:
        """The sha of the commit that a branch, tag or pull request points at."""
        return self.repository(repo, repo_type).resolve(revision).sha

    def commits(self, repo: str, revision: str = "main", repo_type: str = "model") -> list[Commit]:
        """The commits of a revision, newest first; the last one holds .gitattributes alone."""
        repository = self.repository(repo, repo_type)
        return repository.history(repository.resolve(revision))

    def files(
        self, repo: str, revision: str = "main", repo_type: str = "model"
    ) -> dict[str, bytes]:
        """All files of a revision but .gitattributes: content by path."""
        held = self.repository(repo, repo_type).resolve(revision).files
        return {path: blob.content for path, blob in held.items() if path != ".gitattributes"}

    def read(self, repo: str, path: str, revision: str = "main", repo_type: str = "model") -> bytes:
        """The content of a file.

        Raises:
            KeyError: the revision has no such file.
        """
        return self.repository(repo, repo_type).resolve(revision).files[path].content

    # What goes wrong

    def fail(self, **fault: Any) -> Fault:
        """Let something go wrong with the requests to come: see `Fault` for what and with which.

        Where several faults match a request, the oldest that is not spent spoils it.
        """
        made = Fault(**fault)
        with self._lock:
            self._faults.append(made)
        return made

    # What was asked

    def seen(self, method: str | None = None, path: str = "") -> list[Request]:
        """The requests so far with this method, and a path or query that `path` is found in."""
        return [
            request
            for request in list(self.requests)
            if method in {None, request.method} and re.search(path, request.target)
        ]

    @contextmanager
    def recording(self) -> Iterator[list[Request]]:
        """The requests that arrive within the block, complete when it ends."""
        start, recorded = len(self.requests), list[Request]()
        try:
            yield recorded
        finally:
            recorded += self.requests[start:]

    @property
    def strays(self) -> list[Request]:
        """The requests to other hosts than this one."""
        return [request for request in list(self.requests) if request.origin not in {HUB, CDN}]

    # The server's side

    def _respond(self, request: Request) -> Answer | None:
        with self._lock:
            self.requests.append(request)
            # A delayed request may outlive its test; it must not write to the next one's Hub.
            catalog = self._catalog
            fault = next((each for each in self._faults if each.takes(request)), None)
            self._faults = [each for each in self._faults if not each.spent]

        def carry_out() -> Answer:
            return self._carry_out(catalog, request)

        answer = carry_out() if fault is None else fault.apply(carry_out)
        request.status = None if answer is None else answer.status
        return answer

    def _carry_out(self, catalog: Catalog, request: Request) -> Answer:
        if request.origin not in {HUB, CDN}:
            return RefusedError(404, f"No way from here to {request.origin}").answer()
        with self._lock:
            try:
                return routes.carry_out(catalog, request)
            except Exception:
                # Whatever breaks here is a fault of the test's Hub: the fixture shows it.
                self.errors.append(traceback.format_exc())
                return RefusedError(500, "The loopback Hub itself has failed").answer()
