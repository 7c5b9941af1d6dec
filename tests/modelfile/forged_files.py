"""Checkpoints that no save writes: safetensors files put together byte by byte."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imagetok import modelfile

KEY = "imagetok"


@dataclass(frozen=True)
class Forgery:
    """A safetensors file in its parts.

    Attributes:
        entries: dtype, shape and data_offsets of every tensor.
        header: What stands under the key `imagetok`: config, format_version and sha256.
        data: The bytes behind the header.
    """

    entries: dict[str, Any]
    header: Any
    data: bytes

    @classmethod
    def read(cls, path: Path) -> Forgery:
        content = path.read_bytes()
        end = 8 + struct.unpack("<Q", content[:8])[0]
        entries = json.loads(content[8:end])
        return cls(entries, json.loads(entries.pop("__metadata__")[KEY]), content[end:])

    def changed(self, change: Callable[[Any], object]) -> Forgery:
        """With the header of ours changed in place."""
        header = copy.deepcopy(self.header)
        change(header)
        return replace(self, header=header)

    def with_tensors(self, change: Callable[[dict[str, torch.Tensor]], object]) -> bytes:
        """The file with its tensors changed in place, and the digest of those."""
        tensors = load(bytes(self))
        change(tensors)
        header = {**self.header, "sha256": modelfile.content_digest(tensors, self.header)}
        return save(tensors, {KEY: json.dumps(header)})

    def with_text(self, text: str) -> bytes:
        """The file with a text of its own under the key `imagetok`."""
        return pack({"__metadata__": {KEY: text}, **self.entries}, self.data)

    def __bytes__(self) -> bytes:
        return self.with_text(json.dumps(self.header))


def pack(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of a header, as JSON-like values or as bytes, and data; `length` may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write(folder: Path, content: Forgery | bytes, config: bytes | None = None) -> Path:
    """A folder of one model.safetensors and, if given, a config.json."""
    folder.mkdir(exist_ok=True)
    files = {modelfile.MODEL_FILE: bytes(content), modelfile.CONFIG_FILE: config}
    for name, data in files.items():
        if data is not None:
            # ext4 waits for the disk where a file is written over, and not where it is a new one.
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_bytes(data)
    return folder


class _Allocations(TorchDispatchMode):
    """Notes the largest tensor that any operation makes in memory of its own."""

    largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        known = {_memory(value) for value in tree_leaves((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                size = 0 if _memory(tensor) in known else tensor.nbytes
                self.largest = max(self.largest, size)
        return result


def _memory(value: object) -> int | None:
    """Address of what a tensor or a storage holds; a file that is mapped costs nothing."""
    if isinstance(value, torch.Tensor) and not value.is_meta:
        return value.untyped_storage().data_ptr()
    return value.data_ptr() if isinstance(value, torch.UntypedStorage) else None


@contextmanager
def allocations() -> Iterator[_Allocations]:
    """`.largest` is the size in bytes of the largest tensor made inside."""
    with _Allocations() as mode:
        yield mode
