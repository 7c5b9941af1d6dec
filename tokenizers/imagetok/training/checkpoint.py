"""Training checkpoints: a run's state, in memory and as a folder that is whole or absent.

    step-00001000/
        model.safetensors      weights and all buffers of the tokenizer
        average.safetensors    averaged weights, where there are any
        optimizer.safetensors  moments and step counts by parameter name
        NAME.safetensors       parameters and buffers of the objective NAME, where it learns;
                               its optimizer stands in NAME-optimizer.safetensors
        data.safetensors       where a streamed dataset is read next, where one is read
        state.json             next step, gradient scaler, counts, config, data fingerprint
        meta.json              size and sha256 of each file; written last

A `Snapshot` is a copy of that state, taken between two steps; `CheckpointWriter` brings it to disk
beside the training. A checkpoint is written under a temporary name and renamed; only then are older
ones renamed and deleted. Files are safetensors and JSON, never pickle.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from imagetok.errors import ModelFileError, TrainingError, UnwritableFileError
from imagetok.files import (
    TEMPORARY_PREFIX,
    atomic_path,
    file_sha256,
    make_folder,
    naming_os_errors,
    remove_abandoned,
)

MODEL, AVERAGE, OPTIMIZER, DATA = "model", "average", "optimizer", "data"
POSITION = "position"
STEP = "step"
"""Adam's name for its step count."""

NAME = re.compile(r"step-(\d+)")
SUFFIX = ".safetensors"
STATE, META = "state.json", "meta.json"
REQUIRED = {f"{MODEL}{SUFFIX}", f"{OPTIMIZER}{SUFFIX}", STATE}

Tensors = Mapping[str, Tensor]


# A run's state in memory


@dataclass(frozen=True)
class TrainedParts:
    """What a run's tensors are taken from and put back into, by the names of their files.

    Attributes:
        modules: Modules whose parameters and buffers are kept.
        optimizers: Optimizers, each with the module whose parameters it updates.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, tuple[nn.Module, Optimizer]]


@dataclass(frozen=True)
class Snapshot:
    """A copy of all that a run needs to go on, on the CPU, where training does not change it.

    Attributes:
        tensors: By file and name: parameters and buffers of modules, moments and step counts of
            optimizers, and, as `data`, the position of a streamed dataset where one is read.
        state: Everything else, JSON-like; `step` is the number of steps done.
    """

    tensors: Mapping[str, Tensors]
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Number of steps done."""
        return int(self.state["step"])

    @property
    def position(self) -> Tensor | None:
        """Where all ranks read a streamed dataset next; None for other data."""
        return self.tensors.get(DATA, {}).get(POSITION)


def take_snapshot(
    parts: TrainedParts, position: Tensor | None, state: Mapping[str, Any]
) -> Snapshot:
    """Copy a run's state.

    Args:
        parts: The modules and optimizers.
        position: Where all ranks read a streamed dataset next; None for other data.
        state: What else a resumed run needs, JSON-like; `step` is the number of steps done.

    Raises:
        TrainingError: A value is not finite, so that a run could not go on from it.
    """
    groups: dict[str, Tensors] = {
        **{group: _named_tensors(module) for group, module in parts.modules.items()},
        **{group: _moments(*pair) for group, pair in parts.optimizers.items()},
    }
    if position is not None:
        groups[DATA] = {POSITION: position}
    copies = {
        group: {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        for group, tensors in groups.items()
    }
    for group, tensors in copies.items():
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise TrainingError(
                    f"'{name}' of the {group} is not finite after {state['step']} steps, so that "
                    "no checkpoint is written; lower the learning rate, or train in bf16 or fp32"
                )
    return Snapshot(copies, dict(state))


@torch.no_grad()
def restore_snapshot(snapshot: Snapshot, parts: TrainedParts) -> None:
    """Put a snapshot's tensors back into modules and optimizers.

    Raises:
        ModelFileError: The snapshot is of another model; what differs is named, and nothing was
            restored.
    """
    weights = {group: _named_tensors(module) for group, module in parts.modules.items()}
    for group in [*weights, *parts.optimizers]:
        if group not in snapshot.tensors:
            raise ModelFileError(f"the checkpoint after step {snapshot.step} has no {group}")
    for group, into in weights.items():
        _refuse(snapshot, _differing(into, snapshot.tensors[group]))
    for group, (module, _) in parts.optimizers.items():
        _refuse(snapshot, _foreign_moments(module, snapshot.tensors[group]))
    for group, into in weights.items():
        for name, tensor in into.items():
            tensor.copy_(snapshot.tensors[group][name])
    for group, (module, optimizer) in parts.optimizers.items():
        parameters = dict(module.named_parameters())
        for name, key, tensor in _split_names(snapshot.tensors[group]):
            # Adam keeps its step count on the CPU and its moments beside the weights.
            device = "cpu" if key == STEP else parameters[name].device
            optimizer.state[parameters[name]][key] = tensor.to(device)


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, including those that a saved tokenizer leaves out."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _moments(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _split_names(moments: Tensors) -> Iterator[tuple[str, str, Tensor]]:
    """(name of the parameter, the optimizer's key, value) of what `_moments` gave."""
    for full_name, tensor in moments.items():
        name, key = full_name.rsplit("/", 1)
        yield name, key, tensor


def _refuse(snapshot: Snapshot, differing: Iterator[str]) -> None:
    if names := sorted(differing):
        raise ModelFileError(
            f"the checkpoint after step {snapshot.step} is of another model: "
            f"{', '.join(names[:8])} differ"
        )


def _differing(expected: Tensors, found: Tensors) -> Iterator[str]:
    for name in expected.keys() | found.keys():
        one, other = expected.get(name), found.get(name)
        if one is None or other is None or (one.shape, one.dtype) != (other.shape, other.dtype):
            yield name


def _foreign_moments(module: nn.Module, moments: Tensors) -> Iterator[str]:
    parameters = dict(module.named_parameters())
    for name, key, tensor in _split_names(moments):
        if name not in parameters or (key != STEP and tensor.shape != parameters[name].shape):
            yield f"{name}/{key}"


# On disk


def write_checkpoint(folder: Path, snapshot: Snapshot, keep_last: int) -> Path:
    """Write a snapshot, then delete all but `keep_last` checkpoints.

    Args:
        folder: Parent of the checkpoints.
        snapshot: What to write.
        keep_last: Number of checkpoints to keep, this one included.

    Returns:
        The checkpoint's folder.

    Raises:
        UnwritableFileError: The disk is full or the folder cannot be written; older checkpoints
            are left as they are.
    """
    make_folder(folder)
    target = folder / f"step-{snapshot.step:08d}"
    with atomic_path(target) as temporary:
        temporary.mkdir()
        for group, tensors in snapshot.tensors.items():
            try:
                save_file(dict(tensors), temporary / f"{group}{SUFFIX}")
            except SafetensorError as error:
                raise UnwritableFileError(f"cannot write '{group}{SUFFIX}': {error}") from error
        state = json.dumps(snapshot.state, indent=2, sort_keys=True)
        (temporary / STATE).write_text(f"{state}\n")
        meta = {
            path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
            for path in sorted(temporary.iterdir())
        }
        (temporary / META).write_text(json.dumps({"files": meta}, indent=2) + "\n")
    _remove_old(folder, keep_last)
    return target


def read_checkpoint(path: Path) -> Snapshot:
    """Read a checkpoint whose files `check_files` has accepted.

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
    """The checkpoints in a folder, oldest first."""
    found = [(NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return [path for _, path in sorted((int(name[1]), path) for name, path in found if name)]


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a folder and its state, with every byte checked, if there is one.

    Raises:
        ModelFileError: One of its files is missing or damaged; the file is named, and the newest
            whole checkpoint before it is offered.
    """
    if not (found := list_checkpoints(folder)):
        return None
    *older, newest = found
    try:
        return newest, check_files(newest)
    except ModelFileError as error:
        raise ModelFileError(f"{error}; {_offer(newest, older)}") from error


def check_files(path: Path) -> dict[str, Any]:
    """Compare a checkpoint's files with the sizes and digests in its `meta.json`.

    Returns:
        The saved state; its `step` is the number of steps done.

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
    """Delete checkpoints, so that at no moment a part of one stands under its name."""
    for old in list_checkpoints(folder)[:-keep_last]:
        with naming_os_errors("remove", old):
            doomed = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder))
            old.rename(doomed / old.name)
            shutil.rmtree(doomed)


class CheckpointWriter:
    """Writes one snapshot at a time in a thread of its own: a step waits for the copy only.

    Args:
        folder: Parent of the checkpoints.
        keep_last: Number of checkpoints kept.
        before: Called in the thread before each checkpoint is written, to bring to disk what must
            not be older than the checkpoint.
    """

    def __init__(self, folder: Path, keep_last: int, before: Callable[[], None]) -> None:
        self._folder, self._keep_last, self._before = folder, keep_last, before
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def tidy(self) -> None:
        """Remove what a killed process left: a half-written checkpoint, an old one not deleted."""
        remove_abandoned(self._folder)
        _remove_old(self._folder, self._keep_last)

    def submit(self, snapshot: Snapshot) -> None:
        """Begin to write a snapshot once the one before it is written; raises what `wait` does."""
        self.wait()
        self._pending = self._thread.submit(self._write, snapshot)

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            UnwritableFileError: The last snapshot could not be written; older checkpoints remain.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def describe_last(self) -> str:
        """Say where a failed run can go on, when all is written."""
        self.wait()
        found = list_checkpoints(self._folder)
        return (
            f"the last good checkpoint is '{found[-1]}'" if found else "there is no checkpoint yet"
        )

    @property
    def has_failed(self) -> bool:
        """Whether the last checkpoint could not be written; `wait` raises the error."""
        pending = self._pending
        return pending is not None and pending.done() and pending.exception() is not None

    def close(self) -> None:
        """End the thread after what it is writing, without raising an error of it."""
        self._thread.shutdown()

    def _write(self, snapshot: Snapshot) -> Path:
        self._before()
        return write_checkpoint(self._folder, snapshot, self._keep_last)
