"""One safetensors file with tensors and a JSON header that vouches for them.

The header's only metadata key is `imagetok` (safetensors writes several keys in random order, so
that equal files would differ): canonical JSON of what the caller records and of `sha256`, a digest
over the tensors. Floating tensors are kept in float32, all values finite.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imagetok.errors import (
    ImagetokError,
    InvalidTypeError,
    InvalidValueError,
    ModelFileError,
    UnwritableFileError,
)
from imagetok.files import atomic_path, naming_os_errors

_METADATA_KEY = "imagetok"
_FOREIGN = {  # first bytes of what is found under the name of a safetensors file
    b"PK": "it is a zip archive such as torch.save writes, and pickles are never loaded",
    b"\x80": "it is a pickle, and pickles are never loaded",
    b"version https://git-lfs": "it is a Git LFS pointer; fetch the file with `git lfs pull`",
}


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """A sha256 in hexadecimal over names, dtypes, shapes and little-endian bytes, sorted by name.

    Args:
        tensors: Dense tensors by name, on any device; at most one at a time is copied.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        kind = json.dumps([name, _dtype_name(tensor), list(tensor.shape)])
        digest.update(f"{kind}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write a file, whole or not at all; equal arguments give equal bytes.

    Args:
        path: Its folder is created where it is missing, with its parents.
        tensors: By name, dense, on any device; they may share memory.
        header: JSON-like values to stand beside the digest.

    Raises:
        InvalidValueError: A value is NaN or infinite in float32; nothing is written.
        InvalidTypeError: A tensor is sparse, complex, quantized or without data; nothing is
            written.
        UnwritableFileError: The folder cannot be made, or the file not written.
    """
    path = Path(path)
    saved = _prepare(tensors)
    values = {**header, "sha256": tensors_digest(saved)}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    with naming_os_errors("create", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        try:
            save_file(saved, temporary, metadata={_METADATA_KEY: text})
        except SafetensorError as error:
            raise UnwritableFileError(f"cannot write '{path}': {error}") from error


def _prepare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are saved: float32 or integer, contiguous, on the CPU, unshared."""
    prepared: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise InvalidTypeError(f"tensor '{name}' is sparse, quantized or without data")
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32)
        tensor = tensor.detach().cpu().contiguous()
        if fault := _fault(tensor):
            kind = InvalidTypeError if tensor.is_complex() else InvalidValueError
            raise kind(f"tensor '{name}' {fault}; nothing was saved")
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        prepared[name] = tensor
    return prepared


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The header that `save_tensors` was given and the `sha256` beside it.

    Reads no tensor.

    Raises:
        ModelFileError: The file is missing, damaged or not of `save_tensors`.
    """
    with _naming_faults(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if _METADATA_KEY not in metadata:
        raise ModelFileError(
            f"'{os.fspath(path)}' was not saved by imagetok: its header has no metadata "
            f"'{_METADATA_KEY}'"
        )
    try:
        header = json.loads(metadata[_METADATA_KEY])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not isinstance(header.get("sha256"), str):
        raise ModelFileError(
            f"'{os.fspath(path)}': the metadata '{_METADATA_KEY}' is no JSON object with a sha256"
        )
    return header


def load_tensors(path: str | os.PathLike[str], sha256: str) -> dict[str, Tensor]:
    """Read and check the tensors.

    Args:
        path: A file of `save_tensors`.
        sha256: The digest in its header.

    Returns:
        Tensors on the CPU, in memory of their own: overwriting the file does not change them.

    Raises:
        ModelFileError: The file is missing or damaged, or a tensor holds NaN or infinity.
    """
    # safetensors maps the file after it has checked that the header covers it exactly.
    with _naming_faults(path), safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if fault := _fault(tensor):
            raise ModelFileError(f"'{os.fspath(path)}': tensor '{name}' {fault}")
    if tensors_digest(tensors) != sha256:
        raise ModelFileError(
            f"'{os.fspath(path)}': the tensors are not those that were saved (their sha256 differs "
            "from the header's); the file is damaged, fetch or save it again"
        )
    return tensors


def _fault(tensor: Tensor) -> str | None:
    """What keeps a tensor out of a file, in words."""
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float32):
        return f"has dtype {_dtype_name(tensor)}, expected float32 or integers"
    bad = tensor.numel() - int(tensor.isfinite().sum())
    return f"has {bad} NaN or infinite values among {tensor.numel()}" if bad else None


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@contextmanager
def _naming_faults(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except ImagetokError:
        raise
    except FileNotFoundError:
        raise ModelFileError(f"'{os.fspath(path)}' does not exist") from None
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        # The last three come of shapes that torch cannot hold, with a stack in their text.
        reason = _foreign_kind(Path(path)) or str(error).partition("\n")[0]
        raise ModelFileError(
            f"'{os.fspath(path)}' is damaged or no safetensors file: {reason}"
        ) from None


def _foreign_kind(path: Path) -> str | None:
    """What a file that does not load is, if its first bytes tell."""
    with naming_os_errors("read", path), path.open("rb") as file:
        start = file.read(max(map(len, _FOREIGN)))
    return next((kind for magic, kind in _FOREIGN.items() if start.startswith(magic)), None)
