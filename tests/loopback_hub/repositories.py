"""Repositories in memory: commits of files, the names that point at them, and the large files."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property

from loopback_hub.messages import RefusedError

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
"""What the paths of the API call a kind of repository, and what the client calls it."""

LARGE_SUFFIXES = (
    *(".arrow", ".bin", ".gz", ".jpeg", ".jpg", ".npy", ".npz", ".parquet", ".png"),
    *(".safetensors", ".tar", ".webp", ".zip"),
)
LARGE_SIZE = 10 * 2**20
ATTRIBUTES = "".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES
)

_NUMBERS = itertools.count(1)
"""Numbers the commits of a process: equal commits of two tests have other names, so that nothing
which a client remembers of the first can be mistaken for the second."""


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps a file in LFS: by its name, its size, or because it is not text."""
    return path.endswith(LARGE_SUFFIXES) or size > LARGE_SIZE or b"\0" in sample


def _git_oid(content: bytes, kind: str = "blob") -> str:
    header = f"{kind} {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Blob:
    """The content of a file, kept in LFS where it is large."""

    content: bytes
    large: bool

    @classmethod
    def of(cls, path: str, content: bytes) -> Blob:
        """`content` stored the way that the Hub would store it under `path`."""
        return cls(content, bool(content) and is_large(path, len(content), content[:512]))

    @cached_property
    def sha256(self) -> str:
        """Digest of the content."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """What git holds in place of a large file."""
        version = "https://git-lfs.github.com/spec/v1"
        size = len(self.content)
        return f"version {version}\noid sha256:{self.sha256}\nsize {size}\n".encode()

    @cached_property
    def oid(self) -> str:
        """The name of the blob in git."""
        return _git_oid(self.pointer if self.large else self.content)

    @property
    def etag(self) -> str:
        """What the Hub gives as ETag: the sha256 of a large file, the git name of another."""
        return self.sha256 if self.large else self.oid


Files = Mapping[str, Blob]


@dataclass(frozen=True)
class Commit:
    """One commit: its whole tree, and its parent."""

    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Files


def folders(files: Files) -> dict[str, str]:
    """Every folder that holds files, with a name that depends on what is in it."""
    held: dict[str, list[str]] = {}
    for path, blob in sorted(files.items()):
        parts = path.split("/")
        for depth in range(1, len(parts)):
            held.setdefault("/".join(parts[:depth]), []).append(f"{path} {blob.oid}")
    return {path: _git_oid("\n".join(lines).encode(), "tree") for path, lines in held.items()}


@dataclass
class Repository:
    """A model, dataset or space.

    Attributes:
        kind: `models`, `datasets` or `spaces`.
        name: `namespace/name`.
        private: whether only its owner sees it.
        gated: False, `auto` or `manual`; who asks may read files when named in `granted`.
        granted: the users who may read the files of a gated repository.
        commits: by their sha.
        refs: full name of a branch, tag or pull request to the sha that it points at.
        large: the LFS store, content by sha256.
    """

    kind: str
    name: str
    author: str
    private: bool = False
    gated: bool | str = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        files = {".gitattributes": Blob(ATTRIBUTES.encode(), large=False)}
        self.refs["refs/heads/main"] = self._add(None, files, "initial commit", "", "system").sha

    @property
    def namespace(self) -> str:
        """The user or organization that owns it."""
        return self.name.partition("/")[0]

    @property
    def web_path(self) -> str:
        """Where it lies under the endpoint."""
        return self.name if self.kind == "models" else f"{self.kind}/{self.name}"

    def find_ref(self, revision: str) -> str | None:
        """The full name of a branch, tag or pull request, None when there is none."""
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((name for name in names if name in self.refs), None)

    def resolve(self, revision: str) -> Commit:
        """The commit of a branch, tag, pull request or (shortened) sha.

        Raises:
            RefusedError: there is none.
        """
        ref = self.find_ref(revision)
        if ref is not None:
            return self.commits[self.refs[ref]]
        found = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        if len(found) != 1:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[found[0]]

    def history(self, commit: Commit) -> list[Commit]:
        """A commit and all before it, the newest first."""
        found = [commit]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found

    def refs_under(self, prefix: str) -> list[dict[str, str]]:
        """The refs below a prefix, as the API lists them."""
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha}
            for ref, sha in sorted(self.refs.items())
            if ref.startswith(prefix)
        ]

    def open_pull_request(self, base: Commit) -> str:
        """A new pull request that starts at `base`: the name of its ref."""
        ref = f"refs/pr/{len(self.refs_under('refs/pr/')) + 1}"
        self.refs[ref] = base.sha
        return ref

    def commit(self, ref: str, files: Files, title: str, message: str, author: str) -> Commit:
        """Let a ref point at a new commit that holds `files` and nothing else."""
        parent = self.commits[self.refs[ref]]
        commit = self._add(parent, files, title, message, author)
        self.refs[ref] = commit.sha
        return commit

    def _add(
        self, parent: Commit | None, files: Files, title: str, message: str, author: str
    ) -> Commit:
        number = next(_NUMBERS)
        sha = hashlib.sha1(f"{number} {self.name}".encode(), usedforsecurity=False).hexdigest()
        moment = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
        date = moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        above = parent.sha if parent is not None else None
        commit = Commit(sha, above, title, message, author, date, dict(files))
        self.commits[sha] = commit
        self.large |= {blob.sha256: blob.content for blob in files.values() if blob.large}
        return commit
