"""A tokenizer's folder: config and tensors to files, and back.

    model.safetensors      the whole tokenizer: tensors, and a header with config, format version
                           and digest of the tensors
    config.json            copy of the config, for people and for the Hub
    evaluation.json        figures; names the sha256 of the model.safetensors they were measured on
    reconstructions.png    pictures by the same weights

The rename of model.safetensors is the only commit: an interrupted save leaves the old tokenizer or
the new one. Nothing here knows a model class, and nothing that is read is executed.
"""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from imagetok.config import TokenizerConfig
from imagetok.errors import ConfigError, ModelFileError
from imagetok.files import file_sha256, naming_os_errors, write_atomic
from imagetok.hub.tensorfile import load_tensors, read_header, save_tensors

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
EVALUATION_FILE = "evaluation.json"
PICTURES_FILE = "reconstructions.png"
EVALUATED_KEY = "tokenizer_sha256"
"""Key of evaluation.json: the sha256 of the model.safetensors that was measured."""

FORMAT_VERSION: int = TokenizerConfig.model_fields["format_version"].default


@dataclass(frozen=True)
class ModelFiles:
    """What a tokenizer's folder holds, checked.

    Attributes:
        config: The configuration in the header of model.safetensors.
        tensors: By name, on the CPU, float32 or integer, finite.
        sha256: Of the whole file model.safetensors.
        path: That file.
    """

    config: TokenizerConfig
    tensors: dict[str, Tensor]
    sha256: str
    path: Path

    def check_fit(self, expected: Mapping[str, Tensor]) -> None:
        """Compare the tensors with those of the model that the config describes.

        Args:
            expected: Tensors of the same names, shapes and dtypes; they need no values.

        Raises:
            ModelFileError: A tensor is missing, unexpected, or of another shape or dtype.
        """
        faults = [f"missing {name}" for name in expected if name not in self.tensors]
        faults += [f"unexpected {name}" for name in self.tensors if name not in expected]
        for name in expected.keys() & self.tensors.keys():
            want, have = expected[name], self.tensors[name]
            if (want.shape, want.dtype) != (have.shape, have.dtype):
                faults.append(
                    f"{name} is {have.dtype} {tuple(have.shape)}, expected {want.dtype} "
                    f"{tuple(want.shape)}"
                )
        if faults:
            raise ModelFileError(
                f"{self.path}: the tensors do not fit the config: {'; '.join(sorted(faults)[:8])}"
            )


def save_model(
    folder: str | os.PathLike[str], config: TokenizerConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Write model.safetensors and config.json; equal arguments give equal bytes.

    Floating tensors are saved in float32. An evaluation of other weights is removed, and its
    pictures with it.

    Args:
        folder: Created where it is missing, with its parents.
        config: The tokenizer's configuration.
        tensors: By name, dense, on any device; they may share memory.

    Raises:
        InvalidValueError: A value is NaN or infinite in float32; nothing is written.
        InvalidTypeError: A tensor is sparse, complex, quantized or without data; nothing is
            written.
        UnwritableFileError: The folder cannot be made or written.
    """
    folder = Path(folder)
    values = config.to_dict()
    save_tensors(folder / MODEL_FILE, tensors, {"config": values, "format_version": FORMAT_VERSION})
    write_atomic(folder / CONFIG_FILE, f"{json.dumps(values, indent=2)}\n".encode())
    _remove_stale_evaluation(folder)


def load_model(folder: str | os.PathLike[str]) -> ModelFiles:
    """Read and check what `save_model` wrote.

    Warns if config.json is valid but differs from the header, which an interrupted save can leave;
    the header counts. Without config.json the header is enough.

    Args:
        folder: A local folder; its files may be symbolic links, as in the Hub's cache.

    Raises:
        ModelFileError: A file is missing, damaged, of another program or of a newer version, or
            has NaN or infinite values; the message names the file and what is wrong.
    """
    folder = Path(folder)
    path = folder / MODEL_FILE
    state = _file_state(path)
    config, digest = _read_config(path)
    tensors = load_tensors(path, digest)
    sha256 = file_sha256(path)
    if _file_state(path) != state:
        raise ModelFileError(f"'{path}' was replaced while it was read; load it again")
    copy = _read_copy(folder / CONFIG_FILE)
    if copy is not None and copy != config:
        warnings.warn(
            f"'{folder / CONFIG_FILE}' differs from the config in the header of {MODEL_FILE}, "
            "which is used; save the tokenizer again to renew the copy",
            stacklevel=2,
        )
    return ModelFiles(config, tensors, sha256, path)


def carry_evaluation(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> bool:
    """Copy evaluation.json and reconstructions.png if they belong to the target's weights.

    Args:
        source: Folder that may hold them.
        target: Folder of a saved tokenizer.

    Returns:
        Whether there is an evaluation that belongs to it.

    Raises:
        UnreadableFileError: `target` holds no tokenizer.
        UnwritableFileError: A file cannot be copied.
    """
    source, target = Path(source), Path(target)
    if not _evaluation_belongs(source, file_sha256(target / MODEL_FILE)):
        return False
    with naming_os_errors("copy the evaluation in", source):
        if not source.samefile(target):
            for name in (PICTURES_FILE, EVALUATION_FILE):
                if (source / name).exists():
                    write_atomic(target / name, (source / name).read_bytes())
    return True


def _file_state(path: Path) -> tuple[int, int, int]:
    """What changes when the file is replaced or written to."""
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


def _read_config(path: Path) -> tuple[TokenizerConfig, str]:
    """The config and the tensors' digest from the header."""
    header = read_header(path)
    version = header.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ModelFileError(
            f"'{path}' has format version {version}, this imagetok reads up to {FORMAT_VERSION}: "
            "upgrade imagetok"
        )
    expected = {"config": dict, "format_version": int, "sha256": str}
    if {k: type(value) for k, value in header.items()} != expected or header["format_version"] < 1:
        raise ModelFileError(
            f"'{path}': the header holds {sorted(header)} with format version {version!r}, "
            f"expected {sorted(expected)} with format version {FORMAT_VERSION}"
        )
    try:
        return TokenizerConfig.from_dict(header["config"]), header["sha256"]
    except ConfigError as error:
        raise ModelFileError(f"'{path}': {error}") from None


def _read_copy(path: Path) -> TokenizerConfig | None:
    """The config in config.json; None if there is no such file."""
    try:
        return TokenizerConfig.from_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ConfigError, OSError) as error:
        raise ModelFileError(f"'{path}': {error}") from None


def _remove_stale_evaluation(folder: Path) -> None:
    with naming_os_errors("renew", folder):
        present = (folder / EVALUATION_FILE).exists()
        if present and not _evaluation_belongs(folder, file_sha256(folder / MODEL_FILE)):
            for name in (PICTURES_FILE, EVALUATION_FILE):
                (folder / name).unlink(missing_ok=True)


def _evaluation_belongs(folder: Path, sha256: str) -> bool:
    """Whether the folder's evaluation.json names `sha256`; one that does not parse does not."""
    try:
        evaluation = json.loads((folder / EVALUATION_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(evaluation, dict) and evaluation.get(EVALUATED_KEY) == sha256
