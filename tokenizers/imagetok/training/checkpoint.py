"""Training checkpoints: folders that are whole or absent, safetensors and JSON only.

    step-00001000/
        model.safetensors      weights and all buffers
        average.safetensors    averaged weights, where there are any
        optimizer.safetensors  moments and steps by parameter name
        data.safetensors       where a streamed dataset is read next, where one is
        state.json             next step, gradient scaler, counts, config, data fingerprint
        meta.json              size and sha256 of each file; written last

A checkpoint is written under a temporary name and renamed; only then are older ones renamed and
deleted.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from imagetok.errors import ModelFileError, UnwritableFileError
from imagetok.files import (
    TEMPORARY_PREFIX,
    atomic_path,
    file_sha256,
    naming_os_errors,
    remove_abandoned,
)
from imagetok.training.snapshot import MODEL, OPTIMIZER, Snapshot, Tensors

NAME = re.compile(r"step-(\d+)")
SUFFIX = ".safetensors"
STATE, META = "state.json", "meta.json"
REQUIRED = {f"{MODEL}{SUFFIX}", f"{OPTIMIZER}{SUFFIX}", STATE}


def write_checkpoint(folder: Path, snapshot: Snapshot, keep_last: int) -> Path:
    """Write a snapshot, then delete all but `keep_last` checkpoints.

    Args:
        folder: Parent of the checkpoints.
        snapshot: What to write.
        keep_last: Checkpoints to keep, this one included.

    Returns:
        The checkpoint's folder.

    Raises:
        UnwritableFileError: The disk is full or the folder cannot be written; older checkpoints
            are left as they are.
    """
    with naming_os_errors("make", folder):
        folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{snapshot.step:08d}"
    with atomic_path(target) as temporary:
        temporary.mkdir()
        for group, tensors in snapshot.tensors.items():
            _save_tensors(tensors, temporary / f"{group}{SUFFIX}")
        state = json.dumps(snapshot.state, indent=2, sort_keys=True)
        (temporary / STATE).write_text(f"{state}\n")
        meta = {
            path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
            for path in sorted(temporary.iterdir())
        }
        (temporary / META).write_text(json.dumps({"files": meta}, indent=2) + "\n")
    _remove_old(folder, keep_last)
    return target


def tidy_checkpoints(folder: Path, keep_last: int) -> None:
    """Finish what a killed process left: a checkpoint half written, an old one not yet deleted.

    Args:
        folder: Parent of the checkpoints.
        keep_last: Checkpoints to keep.
    """
    remove_abandoned(folder)
    _remove_old(folder, keep_last)


def read_checkpoint(path: Path) -> Snapshot:
    """Read a checkpoint, whose files were checked.

    Raises:
        ModelFileError: A file cannot be read.
    """
    tensors = {}
    try:
        for file in sorted(path.glob(f"*{SUFFIX}")):
            tensors[file.stem] = load_file(file)
        state = json.loads((path / STATE).read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelFileError(f"checkpoint '{path}' cannot be read: {error}") from error
    return Snapshot(tensors, state)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    found = [(NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return [path for _, path in sorted((int(name[1]), path) for name, path in found if name)]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a folder, every byte of it checked; None where there is none.

    Raises:
        ModelFileError: A file of it is missing or damaged; the file is named, and the newest
            checkpoint before it that is whole is offered.
    """
    found = list_checkpoints(folder)
    if not found:
        return None
    *older, newest = found
    try:
        check_files(newest)
    except ModelFileError as error:
        raise ModelFileError(f"{error}; {_offer(newest, older)}") from error
    return newest


def check_files(path: Path) -> dict[str, Any]:
    """Compare a checkpoint's files with what its `meta.json` says of them.

    Returns:
        The state that was saved, with `step`, the number of steps done.

    Raises:
        ModelFileError: A file is missing or damaged; it is named.
    """
    try:
        files = json.loads((path / META).read_bytes())["files"]
        for name in sorted(REQUIRED | set(files)):
            found = {"size": (path / name).stat().st_size, "sha256": file_sha256(path / name)}
            if found != files[name]:
                raise ModelFileError(
                    f"'{path / name}' is damaged: its size and sha256 are not those of {META}"
                )
        state: dict[str, Any] = json.loads((path / STATE).read_bytes())
    except ModelFileError:
        raise
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(f"checkpoint '{path}' is incomplete ({reason})") from error
    return state


def _offer(damaged: Path, older: Sequence[Path]) -> str:
    for path in reversed(older):
        try:
            check_files(path)
        except ModelFileError:
            continue
        return f"{path.name} before it is whole: move '{damaged}' away and resume from that"
    return f"no checkpoint before it is whole: move '{damaged.parent}' away and start anew"


def _remove_old(folder: Path, keep_last: int) -> None:
    for old in list_checkpoints(folder)[:-keep_last]:
        _remove(old)


def _remove(folder: Path) -> None:
    """Delete a checkpoint: at no moment does a part of it stand under its name."""
    with naming_os_errors("remove", folder):
        doomed = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder.parent))
        folder.rename(doomed / folder.name)
        shutil.rmtree(doomed)


def _save_tensors(tensors: Tensors, path: Path) -> None:
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        raise UnwritableFileError(f"cannot write '{path.name}': {error}") from error
