"""Training checkpoints: folders that are whole or absent, safetensors and JSON only.

    step-00001000/
        model.safetensors      weights and all buffers
        average.safetensors    averaged weights, where there are any
        optimizer.safetensors  moments and steps by parameter name
        state.json             next step, gradient scaler, config, data fingerprint
        meta.json              size and sha256 of each file; written last

A checkpoint is written under a temporary name and renamed; only then are older ones deleted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from imagetok.errors import ModelFileError
from imagetok.files import atomic_path, file_sha256

PATTERN = "step-*"


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
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    with atomic_path(target) as temporary:
        temporary.mkdir()
        save_file(_all_tensors(model), temporary / "model.safetensors")
        if average is not None:
            save_file(_all_tensors(average), temporary / "average.safetensors")
        save_file(_optimizer_tensors(model, optimizer), temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(
            json.dumps({"step": step, **state}, indent=2, sort_keys=True) + "\n"
        )
        meta = {
            path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
            for path in sorted(temporary.iterdir())
        }
        (temporary / "meta.json").write_text(json.dumps({"files": meta}, indent=2) + "\n")
    for old in list_checkpoints(folder)[:-keep_last]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob(PATTERN) if path.is_dir())


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, average: AveragedModel | None
) -> dict[str, Any]:
    """Restore a checkpoint into a model, its optimizer and its average.

    Returns:
        The state that was saved, with `step`, the number of steps done.

    Raises:
        ModelFileError: A file is missing or damaged; it is named, and nothing was restored.
    """
    state: dict[str, Any] = _check_files(path)
    _load_all_tensors(model, load_file(path / "model.safetensors"))
    if average is not None:
        _load_all_tensors(average, load_file(path / "average.safetensors"))
    _load_optimizer(model, optimizer, load_file(path / "optimizer.safetensors"))
    return state


def _check_files(path: Path) -> dict[str, Any]:
    try:
        files = json.loads((path / "meta.json").read_bytes())["files"]
        for name, expected in files.items():
            found = (path / name).stat().st_size, file_sha256(path / name)
            if found != (expected["size"], expected["sha256"]):
                raise ModelFileError(
                    f"{path / name} is damaged: its size and sha256 are not those of meta.json; "
                    "resume from the checkpoint before it by moving this one away"
                )
        state: dict[str, Any] = json.loads((path / "state.json").read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(
            f"checkpoint {path} is incomplete ({error}); resume from the one before it by moving "
            "this one away"
        ) from error
    return state


def _all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that a saved tokenizer leaves out included."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


@torch.no_grad()
def _load_all_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if named.keys() != tensors.keys():
        raise ModelFileError(
            f"the checkpoint's tensors are not the model's: {sorted(named.keys() ^ tensors.keys())}"
        )
    for name, tensor in named.items():
        tensor.copy_(tensors[name])


def _optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _load_optimizer(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        name, key = full_name.rsplit("/", 1)
        parameter = parameters[name]
        # Adam keeps its step count on the CPU and its moments beside the weights.
        device = parameter.device if tensor.ndim else "cpu"
        optimizer.state[parameter][key] = tensor.to(device)
