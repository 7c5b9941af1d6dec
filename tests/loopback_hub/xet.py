"""Xet storage without a service: `hf_xet` keeps its chunks in a folder that is given as its server.

The Hub only ever sees the sha256 of what is uploaded this way. The shards that the client leaves in
the folder tell which Xet hash it belongs to. A shard is a row of records of 48 bytes:

    header
    per file: head (hash, flags, n), n terms, n verifications if flagged, sha256 if flagged
    end (ff ff ff ...)
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RECORD = 48
VERIFIED, WITH_SHA256 = 1 << 31, 1 << 30
END = b"\xff" * 32
FETCH = """
import sys, hf_xet
store, target, name, size = sys.argv[1:]
file = hf_xet.PyXetDownloadInfo(target, name, int(size))
hf_xet.download_files([file], store, None, None, None)
"""


@dataclass(frozen=True)
class XetFile:
    """A file as a shard describes it: its Xet hash, its size in bytes and its sha256."""

    hash: str
    size: int
    sha256: str


@dataclass(frozen=True)
class XetStore:
    """A folder that clients take for a Xet server."""

    folder: Path

    @property
    def url(self) -> str:
        """The address of the folder for `hf_xet`."""
        return f"local://{self.folder}"

    def find(self, sha256: str) -> XetFile | None:
        """What is stored with this digest, None when nothing is."""
        shards = self.folder.rglob("shards/*.mdb")
        files = (file for shard in shards for file in read_shard(shard.read_bytes()))
        return next((file for file in files if file.sha256 == sha256), None)

    def read(self, sha256: str) -> bytes | None:
        """The content with this digest, None when there is none."""
        file = self.find(sha256)
        if file is None:
            return None
        # A copy, read by another process: the client may still hold a lock on the folder, and
        # threads of hf_xet have no place in a process that tests fork.
        with tempfile.TemporaryDirectory() as folder:
            copy, target = Path(folder, "store"), Path(folder, "file")
            shutil.copytree(self.folder, copy)
            arguments = [XetStore(copy).url, str(target), file.hash, str(file.size)]
            command = [sys.executable, "-c", FETCH, *arguments]
            subprocess.run(command, check=True, capture_output=True)
            return target.read_bytes()


def read_shard(data: bytes) -> Iterator[XetFile]:
    """The files in a shard whose sha256 is known."""
    place = RECORD
    while (head := data[place : place + RECORD])[:32] != END:
        flags, count = struct.unpack("<II", head[32:40])
        place += RECORD
        terms = [data[at : at + RECORD] for at in range(place, place + RECORD * count, RECORD)]
        size = sum(int.from_bytes(term[36:40], "little") for term in terms)
        place += RECORD * count * (2 if flags & VERIFIED else 1)
        if flags & WITH_SHA256:
            yield XetFile(_hex(head[:32]), size, _hex(data[place : place + 32]))
            place += RECORD


def _hex(digest: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))
