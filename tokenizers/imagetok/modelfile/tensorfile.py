"""A safetensors file with tensors and a JSON header that vouches for them.

The header's only metadata key is `imagetok` (safetensors writes several keys in random order, so
that equal files would differ). It holds canonical JSON: the values that the caller records, and
`sha256`, a digest over these and the tensors. Floating-point tensors are stored in float32, and all
values are finite.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imagetok.config import printable, unique_keys
from imagetok.errors import (
    ConfigError,
    ImagetokError,
    InvalidTypeError,
    InvalidValueError,
    ModelFileError,
    UnwritableFileError,
)
from imagetok.files import atomic_path, make_folder, naming_os_errors

_METADATA_KEY, _DIGEST_KEY = "imagetok", "sha256"
_FOREIGN = {  # first bytes of other files that are found under the name of a safetensors file
    b"PK": "it is a zip archive such as torch.save writes, and pickles are never loaded",
    b"\x80": "it is a pickle, and pickles are never loaded",
    b"version https://git-lfs": "it is a Git LFS pointer; fetch the file with `git lfs pull`",
    b"<": "it is a web page, as sites answer with instead of a file; download the file itself",
}

_KEPT_DTYPES = {"F32": "float32", "BOOL": "bool"} | {
    f"{short}{bits}": f"{name}{bits}"
    for short, name in (("I", "int"), ("U", "uint"))
    for bits in (8, 16, 32, 64)
}
"""Dtypes that tensors are stored in, by their names in safetensors."""


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256, in hexadecimal, of names, dtypes, shapes and little-endian bytes.

    Args:
        tensors: Dense tensors by name, on any device. They are hashed in the order of their names,
            and at most one at a time is copied.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        kind = json.dumps([name, _dtype_name(tensor), list(tensor.shape)])
        digest.update(f"{kind}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def content_digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """The sha256, in hexadecimal, of a header's JSON-like values (except `sha256`) and tensors."""
    values = {key: value for key, value in header.items() if key != _DIGEST_KEY}
    return hashlib.sha256(f"{_canonical(values)}\n{tensors_digest(tensors)}".encode()).hexdigest()


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write a file, whole or not at all; equal arguments give equal bytes.

    Args:
        path: File to write; its folder is created with its parents if it is missing.
        tensors: Dense tensors by name, on any device; they may share memory.
        header: JSON-like values to record beside the digest.

    Raises:
        InvalidValueError: A value is NaN or infinite in float32; nothing is written.
        InvalidTypeError: A tensor is sparse, complex, quantized or without data; nothing is
            written.
        UnwritableFileError: The folder cannot be created or the file cannot be written.
    """
    path = Path(path)
    saved = _prepare(tensors)
    text = _canonical({**header, _DIGEST_KEY: content_digest(saved, header)})
    make_folder(path.parent)
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
    """The header that `save_tensors` was given, and the `sha256` beside it; tensors are not read.

    Raises:
        ModelFileError: The file is missing, damaged or not written by `save_tensors`.
    """
    with _naming_faults(path):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        with open(path, "rb") as file:  # safetensors takes the last of several equal keys
            _parse(path, file.read(int.from_bytes(file.read(8), "little")))
    if _METADATA_KEY not in metadata:
        raise ModelFileError(
            f"'{os.fspath(path)}' was not saved by imagetok: its header has no metadata "
            f"'{_METADATA_KEY}'"
        )
    try:
        header = _parse(path, metadata[_METADATA_KEY])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not isinstance(header.get(_DIGEST_KEY), str):
        raise ModelFileError(
            f"'{os.fspath(path)}': the metadata '{_METADATA_KEY}' is not a JSON object with a "
            "sha256"
        )
    return header


def _parse(path: str | os.PathLike[str], text: str | bytes) -> Any:
    """Read JSON in which every key is given once."""
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except ConfigError as error:
        raise ModelFileError(f"'{os.fspath(path)}': in the header, {error}") from None


def read_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype, such as `float32`, and shape of each tensor; the values are not read.

    Raises:
        ModelFileError: The file is missing or damaged, or holds a dtype that `save_tensors` does
            not write.
    """
    with _naming_faults(path), safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, (kind, shape) in found.items():
        if kind not in _KEPT_DTYPES:
            raise ModelFileError(
                f"'{os.fspath(path)}': tensor '{printable(name)}' has dtype {kind}, expected "
                "float32 or integers"
            )
        shapes[name] = (_KEPT_DTYPES[kind], tuple(shape))
    return shapes


def load_tensors(
    path: str | os.PathLike[str],
    header: Mapping[str, Any],
    expected: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Read and check the tensors.

    Args:
        path: A file that `save_tensors` wrote.
        header: What `read_header` returns for it.
        expected: Tensors with the names, shapes and dtypes that the file must hold, and no others;
            they need no values. They are compared before any memory is allocated.

    Returns:
        Tensors on the CPU, in memory of their own: overwriting the file does not change them.

    Raises:
        ModelFileError: The file is missing or damaged, its tensors are not those expected, a tensor
            holds NaN or infinity, or header and tensors were not saved together.
    """
    # safetensors maps the file after it has checked that the header covers it exactly.
    with _naming_faults(path), safe_open(path, framework="pt") as file:
        mapped = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if expected is not None:
            _check_fit(path, mapped, expected)
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
    for name, tensor in tensors.items():
        if fault := _fault(tensor):
            raise ModelFileError(f"'{os.fspath(path)}': tensor '{printable(name)}' {fault}")
    if content_digest(tensors, header) != header[_DIGEST_KEY]:
        raise ModelFileError(
            f"'{os.fspath(path)}': the config or the tensors are not those that were saved (the "
            "sha256 differs from the header's); the file is damaged, fetch or save it again"
        )
    return tensors


def _check_fit(
    path: str | os.PathLike[str], found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Refuse tensors that have not the names, shapes and dtypes of those `expected`."""
    faults = [f"missing {name}" for name in expected if name not in found]
    faults += [f"unexpected {printable(name)}" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        want, have = expected[name], found[name]
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            faults.append(
                f"{name} is {have.dtype} {printable(str(tuple(have.shape)))}, expected "
                f"{want.dtype} {tuple(want.shape)}"
            )
    if faults:
        raise ModelFileError(
            f"'{os.fspath(path)}': the tensors do not fit the config: "
            f"{'; '.join(sorted(faults)[:8])}"
        )


def _fault(tensor: Tensor) -> str | None:
    """What keeps a tensor from being stored, in words."""
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float32):
        return f"has dtype {_dtype_name(tensor)}, expected float32 or integers"
    if not tensor.is_floating_point() or not tensor.numel():
        return None
    # NaN comes through both extremes, in one pass that takes a tenth of the time of isfinite.
    if torch.stack(tensor.aminmax()).isfinite().all():
        return None
    bad = tensor.numel() - int(tensor.isfinite().sum())
    return f"has {bad} NaN or infinite values among {tensor.numel()}"


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@contextmanager
def _naming_faults(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("it is a folder or a device")
        yield
    except ImagetokError:
        raise
    except FileNotFoundError:
        raise ModelFileError(f"'{os.fspath(path)}' does not exist") from None
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        # The last three are raised for shapes that torch cannot hold, with a stack in their text.
        reason = _foreign_kind(Path(path)) or printable(str(error).partition("\n")[0], 200)
        raise ModelFileError(
            f"'{os.fspath(path)}' is damaged or not a safetensors file: {reason}"
        ) from None


def _foreign_kind(path: Path) -> str | None:
    """What a file that does not load is, if its first bytes show it."""
    if not path.is_file():
        return None
    with naming_os_errors("read", path), path.open("rb") as file:
        start = file.read(max(map(len, _FOREIGN)))
    if start[4:8] == bytes(4):  # they are the length of a header, whatever the first byte is
        return None
    return next((kind for magic, kind in _FOREIGN.items() if start.startswith(magic)), None)
