"""`Upload`: a file on its way to the Hub, and whether it is there already."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

from huggingface_hub.hf_api import RepoFile

from imagetok.files import file_sha256, naming_os_errors


class Upload:
    """A file to be pushed.

    Args:
        name: Its path in the repository.
        source: Where it lies, or what it holds.
    """

    def __init__(self, name: str, source: Path | bytes) -> None:
        self.name, self.source = name, source

    @cached_property
    def size(self) -> int:
        """Bytes."""
        if isinstance(self.source, bytes):
            return len(self.source)
        with naming_os_errors("read", self.source):
            return self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """What the Hub calls a large file by."""
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        return file_sha256(self.source)

    @cached_property
    def git_hash(self) -> str:
        """What the Hub, as git, calls a small file by."""
        data = self.read()
        head = f"blob {len(data)}\0".encode()
        return hashlib.sha1(head + data, usedforsecurity=False).hexdigest()

    def read(self) -> bytes:
        """All that it holds."""
        if isinstance(self.source, bytes):
            return self.source
        with naming_os_errors("read", self.source):
            return self.source.read_bytes()

    def equals(self, there: RepoFile | None) -> bool:
        """Whether a file on the Hub has these very bytes."""
        if there is None or there.size != self.size:
            return False
        if there.lfs is not None:
            return there.lfs.sha256 == self.sha256
        return there.blob_id == self.git_hash
