"""A tokenizer's folder: config and tensors to files, and back.

    model.safetensors      the whole tokenizer: tensors, and a header with config, format version
                           and a digest of all three
    config.json            a copy of the config, for people and for the Hub
    evaluation.json        figures, and the sha256 of the model.safetensors that was measured
    reconstructions.png    images reconstructed with the same weights
    README.md              the card, made from the config and the figures

The rename of model.safetensors is the only commit: an interrupted save leaves either the old
tokenizer or the new one. No model class is known here, and nothing that is read is executed.
"""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from imagetok.config import printable
from imagetok.errors import ConfigError, ModelFileError
from imagetok.files import file_sha256, naming_os_errors, write_atomic, write_json
from imagetok.modelfile.tensorfile import load_tensors, read_header, save_tensors
from imagetok.tokenizer_config import TokenizerConfig

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
EVALUATION_FILE = "evaluation.json"
PICTURES_FILE = "reconstructions.png"
CARD_FILE = "README.md"
EVALUATED_KEY = "tokenizer_sha256"
"""Key of evaluation.json that holds the sha256 of the model.safetensors that was measured."""

MAX_TEXT_SIZE = 2**20
"""Most bytes that config.json and evaluation.json may have; real ones have some thousands."""

FORMAT_VERSION: int = TokenizerConfig.model_fields["format_version"].default


@dataclass(frozen=True)
class ModelFiles:
    """The content of a tokenizer's folder, checked.

    Attributes:
        config: The configuration in the header of model.safetensors.
        tensors: Tensors by name, on the CPU, float32 or integer, finite.
        sha256: Hash of the whole file model.safetensors.
        path: Path of model.safetensors.
    """

    config: TokenizerConfig
    tensors: dict[str, Tensor]
    sha256: str
    path: Path


def save_model(
    folder: str | os.PathLike[str], config: TokenizerConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Write model.safetensors and config.json; equal arguments give equal bytes.

    Floating-point tensors are saved in float32. An evaluation of other weights is removed together
    with its images.

    Args:
        folder: Folder to write to; it is created with its parents if it is missing.
        config: The tokenizer's configuration.
        tensors: Dense tensors by name, on any device; they may share memory.

    Raises:
        InvalidValueError: A value is NaN or infinite in float32; nothing is written.
        InvalidTypeError: A tensor is sparse, complex, quantized or without data; nothing is
            written.
        UnwritableFileError: The folder cannot be created or written to.
    """
    folder = Path(folder)
    values = config.to_dict()
    save_tensors(folder / MODEL_FILE, tensors, {"config": values, "format_version": FORMAT_VERSION})
    write_json(folder / CONFIG_FILE, values)
    with naming_os_errors("renew", folder):
        present = (folder / EVALUATION_FILE).exists()
        if present and read_evaluation(folder, file_sha256(folder / MODEL_FILE)) is None:
            for name in (PICTURES_FILE, EVALUATION_FILE):
                (folder / name).unlink(missing_ok=True)


def load_model(
    folder: str | os.PathLike[str],
    *,
    exact_copy: bool = False,
    expect: Callable[[TokenizerConfig], Mapping[str, Tensor]] | None = None,
) -> ModelFiles:
    """Read and check what `save_model` wrote.

    Warns if config.json is valid but differs from the header, as after an interrupted save; the
    header counts. Without config.json the header is enough.

    Args:
        folder: A local folder; its files may be symbolic links, as in the Hub's cache.
        exact_copy: Refuse a config.json that is missing or differs: a commit on the Hub holds
            both files, or it was not made by a save.
        expect: Returns the tensors of a config's model, which need no values. The tensors of the
            file are compared with them before any memory is allocated.

    Raises:
        ModelFileError: A file is missing, damaged, written by another program or by a newer
            version, or holds NaN or infinite values; the message names the file and the fault.
    """
    folder = Path(folder)
    path = folder / MODEL_FILE
    state = _file_state(path)
    config, header = read_config(path)
    _check_copy(folder / CONFIG_FILE, config, exact_copy)
    tensors = load_tensors(path, header, None if expect is None else expect(config))
    sha256 = file_sha256(path)
    if _file_state(path) != state:
        raise ModelFileError(f"'{path}' was replaced while it was read; load it again")
    return ModelFiles(config, tensors, sha256, path)


def carry_evaluation(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> bool:
    """Copy evaluation.json and reconstructions.png if they belong to the target's weights.

    Args:
        source: Folder that may hold them.
        target: Folder of a saved tokenizer; it may be the same one.

    Returns:
        Whether `source` holds an evaluation of the target's weights.

    Raises:
        UnreadableFileError: `target` holds no tokenizer.
        UnwritableFileError: A file cannot be copied.
    """
    source, target = Path(source), Path(target)
    if read_evaluation(source, file_sha256(target / MODEL_FILE)) is None:
        return False
    with naming_os_errors("copy the evaluation in", source):
        if not source.samefile(target):
            for name in (PICTURES_FILE, EVALUATION_FILE):
                if (source / name).is_file():
                    write_atomic(target / name, (source / name).read_bytes())
    return True


def read_evaluation(folder: str | os.PathLike[str], sha256: str) -> dict[str, Any] | None:
    """The content of a folder's evaluation.json, if it belongs to the weights with this hash.

    Args:
        folder: A tokenizer's folder.
        sha256: Hash of its model.safetensors.

    Returns:
        None if the file is missing, damaged, or an evaluation of other weights.
    """
    try:
        return parse_evaluation(read_text(Path(folder) / EVALUATION_FILE), sha256)
    except OSError:
        return None


def parse_evaluation(text: bytes, sha256: str) -> dict[str, Any] | None:
    """As `read_evaluation`, from the bytes of an evaluation.json."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    fits = isinstance(values, dict) and values.get(EVALUATED_KEY) == sha256
    return values if fits else None


def _file_state(path: Path) -> tuple[int, int, int]:
    """A value that changes when the file is replaced or written to."""
    try:
        found = path.stat()
    except FileNotFoundError:
        fault = f"holds no {MODEL_FILE}" if path.parent.is_dir() else "does not exist"
        raise ModelFileError(
            f"'{path.parent}' {fault}; expected a folder that a tokenizer was saved to"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"cannot read '{path}': {error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ModelFileError(f"'{path}' is a folder or a device; expected a safetensors file")
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_config(path: Path) -> tuple[TokenizerConfig, dict[str, Any]]:
    """The config in the header of a model.safetensors, and the whole header.

    Raises:
        ModelFileError: The header is damaged, or written by another program or a newer version.
    """
    header = read_header(path)
    version = header.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ModelFileError(
            f"'{path}' has format version {printable(str(version))}, this imagetok reads up to "
            f"{FORMAT_VERSION}: upgrade imagetok"
        )
    expected = {"config": dict, "format_version": int, "sha256": str}
    if {k: type(value) for k, value in header.items()} != expected or header["format_version"] < 1:
        raise ModelFileError(
            f"'{path}': the header holds {printable(repr(sorted(header)))} with format version "
            f"{printable(repr(version))}, expected {sorted(expected)} with format version "
            f"{FORMAT_VERSION}"
        )
    try:
        return TokenizerConfig.from_dict(header["config"]), header
    except ConfigError as error:
        raise ModelFileError(f"'{path}': {error}") from None


def _check_copy(path: Path, config: TokenizerConfig, exact: bool) -> None:
    """Compare config.json with the config in the header; see `load_model`."""
    try:
        copy = TokenizerConfig.from_json(read_text(path))
    except FileNotFoundError:
        if exact:
            raise ModelFileError(f"'{path}' is missing beside {MODEL_FILE}") from None
        return
    except (ConfigError, OSError) as error:
        raise ModelFileError(f"'{path}': {error}") from None
    if copy == config:
        return
    fault = f"'{path}' differs from the config in the header of {MODEL_FILE}"
    if exact:
        raise ModelFileError(fault)
    warnings.warn(
        f"{fault}, which is used; save the tokenizer again to renew the copy", stacklevel=3
    )


def read_text(path: Path) -> bytes:
    """The bytes of a small regular file.

    Raises:
        OSError: It is missing, a folder or a device, or too long.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is a folder or a device")
    with path.open("rb") as file:
        text = file.read(MAX_TEXT_SIZE + 1)
    if len(text) > MAX_TEXT_SIZE:
        raise OSError(f"it has over {MAX_TEXT_SIZE} bytes")
    return text
