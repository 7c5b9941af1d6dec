"""The repositories and users of a Hub, and who may do what with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from loopback_hub.messages import Answer, RefusedError, Request
from loopback_hub.repositories import KINDS, Repository
from loopback_hub.xet import XetStore

INVALID_TOKEN = "Invalid credentials in Authorization header"
ANONYMOUS = "Invalid username or password."


@dataclass(frozen=True)
class User:
    """Who a token stands for.

    Attributes:
        name: the user's name, and a namespace.
        role: of the token: `write`, or `read`.
    """

    name: str
    role: str = "write"

    def owns(self, namespace: str) -> bool:
        """Whether the repositories of a namespace are the user's own."""
        return namespace == self.name


@dataclass
class Catalog:
    """What a Hub knows.

    Attributes:
        endpoint: its address.
        cdn: the address of the other origin, where large files lie.
        users: by their tokens.
        repositories: by kind (`models`, `datasets`, `spaces`) and name.
        page_size: the most entries of a page of a listing.
        xet: where clients may keep large files by Xet; None for LFS alone.
    """

    endpoint: str
    cdn: str
    users: dict[str, User] = field(default_factory=dict)
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    page_size: int = 1000
    xet: XetStore | None = None

    def user(self, request: Request) -> User | None:
        """Who sent a request; None for an anonymous one.

        Raises:
            RefusedError: nobody has this token; the Hub refuses it even where none is needed.
        """
        if request.token is None:
            return None
        if request.token not in self.users:
            raise RefusedError(401, INVALID_TOKEN)
        return self.users[request.token]

    def readable(self, request: Request, kind: str, name: str) -> Repository:
        """A repository whose existence and metadata the sender may know of.

        Raises:
            RefusedError: it does not exist, or is another's private one: the same to the Hub.
        """
        user = self.user(request)
        repository = self.repositories.get((kind, name))
        if repository is not None and not repository.private:
            return repository
        if user is None:
            raise RefusedError(401, ANONYMOUS, "RepoNotFound")
        if repository is None or not user.owns(repository.namespace):
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        return repository

    def downloadable(self, request: Request, kind: str, name: str) -> Repository:
        """A repository whose files the sender may read.

        Raises:
            RefusedError: as above, or it is gated and the sender was not let in.
        """
        repository = self.readable(request, kind, name)
        if not repository.gated:
            return repository
        what = f"Access to {KINDS[kind]} {name} is restricted"
        user = self.user(request)
        if user is None:
            need = "You must have access to it and be authenticated to access it. Please log in."
            raise RefusedError(401, f"{what}. {need}", "GatedRepo")
        if not user.owns(repository.namespace) and user.name not in repository.granted:
            where = f"{self.endpoint}/{repository.web_path}"
            fault = f"and you are not in the authorized list. Visit {where} to ask for access."
            raise RefusedError(403, f"{what} {fault}", "GatedRepo")
        return repository

    def writable(self, request: Request, kind: str, name: str) -> tuple[Repository, User]:
        """A repository that the sender may write to, and the sender.

        A pull request (`create_pr=1`) may be opened by all who may read.

        Raises:
            RefusedError: as above, or the sender may not write to it.
        """
        repository = self.readable(request, kind, name)
        user = self.user(request)
        if user is None:
            raise RefusedError(401, ANONYMOUS, "RepoNotFound")
        if user.role != "write":
            raise RefusedError(403, "you must use a write token to upload to a repository.")
        if not user.owns(repository.namespace) and not request.flag("create_pr"):
            way_out = "pass `create_pr=1` as a query parameter to create a Pull Request"
            raise RefusedError(403, f"Forbidden: {way_out}")
        return repository, user


Endpoint = Callable[[Catalog, Request, Mapping[str, str]], Answer]
"""Answers a request, given the parts of its path by name, unquoted."""
