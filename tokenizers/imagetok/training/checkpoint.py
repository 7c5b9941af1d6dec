"""Training checkpoints: folders that are whole or absent, safetensors and JSON only.

    step-00001000/
        model.safetensors      weights and all buffers
        average.safetensors    averaged weights, where there are any
        optimizer.safetensors  moments and steps by parameter name
        state.json             next step, gradient scaler, config, data fingerprint
        meta.json              size and sha256 of each file; written last

A checkpoint is written under a temporary name and renamed; only then are older ones renamed and
deleted.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from imagetok.errors import ModelFileError, UnwritableFileError
from imagetok.files import TEMPORARY_PREFIX, atomic_path, file_sha256, naming_os_errors

NAME = re.compile(r"step-(\d+)")
MODEL, AVERAGE, OPTIMIZER = "model.safetensors", "average.safetensors", "optimizer.safetensors"
STATE, META = "state.json", "meta.json"
STEP = "step"
"""Adam's name of its count of steps."""


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    average: AveragedModel | None,
    state: Mapping[str, Any],
    keep_last: int,
) -> Path:
    """Write the state after `step` optimizer steps, then delete all but `keep_last` checkpoints.

    Args:
        folder: Parent of the checkpoints.
        step: Steps done.
        model: The bare model.
        optimizer: Its optimizer.
        average: Averaged weights, or None.
        state: What else a resumed run needs, JSON-like.
        keep_last: Checkpoints to keep, this one included.

    Returns:
        The checkpoint's folder.

    Raises:
        UnwritableFileError: The disk is full or the folder cannot be written; older checkpoints
            are left as they are.
    """
    with naming_os_errors("make", folder):
        folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    with atomic_path(target) as temporary:
        temporary.mkdir()
        _save_tensors(_named_tensors(model), temporary / MODEL)
        if average is not None:
            _save_tensors(_named_tensors(average), temporary / AVERAGE)
        _save_tensors(_moments(model, optimizer), temporary / OPTIMIZER)
        (temporary / STATE).write_text(
            json.dumps({"step": step, **state}, indent=2, sort_keys=True) + "\n"
        )
        meta = {
            path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
            for path in sorted(temporary.iterdir())
        }
        (temporary / META).write_text(json.dumps({"files": meta}, indent=2) + "\n")
    for old in list_checkpoints(folder)[:-keep_last]:
        _remove(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    found = [(NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return [path for _, path in sorted((int(name[1]), path) for name, path in found if name)]


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, average: AveragedModel | None
) -> dict[str, Any]:
    """Restore a checkpoint into a model, its optimizer and its average.

    Returns:
        The state that was saved, with `step`, the number of steps done.

    Raises:
        ModelFileError: A file is missing or damaged, or the checkpoint is of another model; what is
            wrong is named, and nothing was restored.
    """
    state = _check_files(path, {MODEL, OPTIMIZER, STATE} | ({AVERAGE} if average else set()))
    restored = [(model, load_file(path / MODEL))]
    if average is not None:
        restored.append((average, load_file(path / AVERAGE)))
    moments = load_file(path / OPTIMIZER)
    for module, tensors in restored:
        _check_tensors(path, _named_tensors(module), tensors)
    _check_moments(path, model, moments)
    for module, tensors in restored:
        _restore_tensors(_named_tensors(module), tensors)
    _restore_optimizer(model, optimizer, moments)
    return state


def _remove(folder: Path) -> None:
    """Delete a checkpoint: at no moment does a part of it stand under its name."""
    with naming_os_errors("remove", folder):
        doomed = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder.parent))
        folder.rename(doomed / folder.name)
        shutil.rmtree(doomed)


def _check_files(path: Path, expected: set[str]) -> dict[str, Any]:
    try:
        files = json.loads((path / META).read_bytes())["files"]
        for name in expected | set(files):
            found = (path / name).stat().st_size, file_sha256(path / name)
            if found != (files[name]["size"], files[name]["sha256"]):
                raise ModelFileError(
                    f"{path / name} is damaged: its size and sha256 are not those of {META}; "
                    "resume from the checkpoint before it by moving this one away"
                )
        state: dict[str, Any] = json.loads((path / STATE).read_bytes())
    except ModelFileError:
        raise
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelFileError(
            f"checkpoint {path} is incomplete ({error}); resume from the one before it by moving "
            "this one away"
        ) from error
    return state


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that a saved tokenizer leaves out included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    except SafetensorError as error:
        raise UnwritableFileError(f"cannot write '{path.name}': {error}") from error


def _check_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in expected.items()}
    given = {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()}
    if differing := sorted(dict(wanted.items() ^ given.items())):
        raise ModelFileError(
            f"checkpoint {path} is of another model: {', '.join(differing[:8])} differ"
        )


@torch.no_grad()
def _restore_tensors(into: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in into.items():
        tensor.copy_(tensors[name])


def _moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _check_moments(path: Path, model: nn.Module, moments: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for full_name, tensor in moments.items():
        name, key = full_name.rsplit("/", 1)
        if name not in parameters or (key != STEP and tensor.shape != parameters[name].shape):
            raise ModelFileError(f"checkpoint {path} is of another model: it has {full_name}")


def _restore_optimizer(
    model: nn.Module, optimizer: Optimizer, moments: Mapping[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    for full_name, tensor in moments.items():
        name, key = full_name.rsplit("/", 1)
        parameter = parameters[name]
        # Adam keeps its step count on the CPU and its moments beside the weights.
        device = torch.device("cpu") if key == STEP else parameter.device
        optimizer.state[parameter][key] = tensor.to(device)
