"""A run's state as named tensors and JSON: taken from what is trained, and put back into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from imagetok.errors import ModelFileError, TrainingError

MODEL, AVERAGE, OPTIMIZER, DATA = "model", "average", "optimizer", "data"
POSITION = "position"
STEP = "step"
"""Adam's name of its count of steps."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """A copy of all that a run needs to go on, on the CPU and out of training's way.

    Attributes:
        tensors: By group and name: `model` has weights and all buffers, `average` averaged weights
            where there are any, `optimizer` moments and steps by parameter name, `data` the
            position of a streamed dataset where one is read.
        state: What else there is, JSON-like; `step` is the number of steps done.
    """

    tensors: Mapping[str, Tensors]
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state["step"])

    @property
    def position(self) -> Tensor | None:
        """Where a streamed dataset is read next, of all ranks; None for other data."""
        return self.tensors.get(DATA, {}).get(POSITION)


def take_snapshot(
    model: nn.Module,
    optimizer: Optimizer,
    average: AveragedModel | None,
    position: Tensor | None,
    state: Mapping[str, Any],
) -> Snapshot:
    """Copy a run's state.

    Args:
        model: The bare model.
        optimizer: Its optimizer.
        average: Averaged weights, or None.
        position: Where a streamed dataset is read next, of all ranks; None for other data.
        state: What else a resumed run needs, JSON-like; `step` is the number of steps done.

    Raises:
        TrainingError: A value is not finite: a run could not go on from it.
    """
    groups: dict[str, Tensors] = {
        MODEL: _named_tensors(model),
        OPTIMIZER: _moments(model, optimizer),
    }
    if average is not None:
        groups[AVERAGE] = _named_tensors(average)
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


def restore_snapshot(
    snapshot: Snapshot, model: nn.Module, optimizer: Optimizer, average: AveragedModel | None
) -> None:
    """Put a snapshot's tensors into a model, its optimizer and its average.

    Raises:
        ModelFileError: It is of another model; what differs is named, and nothing was restored.
    """
    restored = {MODEL: _named_tensors(model)}
    if average is not None:
        restored[AVERAGE] = _named_tensors(average)
    for group, into in restored.items():
        if group not in snapshot.tensors:
            raise ModelFileError(f"the checkpoint after step {snapshot.step} has no {group}")
        _refuse(snapshot, _differing(into, snapshot.tensors[group]))
    moments = snapshot.tensors[OPTIMIZER]
    _refuse(snapshot, _foreign_moments(model, moments))
    for group, into in restored.items():
        _restore_tensors(into, snapshot.tensors[group])
    _restore_optimizer(model, optimizer, moments)


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that a saved tokenizer leaves out included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


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


def _foreign_moments(model: nn.Module, moments: Tensors) -> Iterator[str]:
    parameters = dict(model.named_parameters())
    for full_name, tensor in moments.items():
        name, key = full_name.rsplit("/", 1)
        if name not in parameters or (key != STEP and tensor.shape != parameters[name].shape):
            yield full_name


@torch.no_grad()
def _restore_tensors(into: Tensors, tensors: Tensors) -> None:
    for name, tensor in into.items():
        tensor.copy_(tensors[name])


def _restore_optimizer(model: nn.Module, optimizer: Optimizer, moments: Tensors) -> None:
    parameters = dict(model.named_parameters())
    for full_name, tensor in moments.items():
        name, key = full_name.rsplit("/", 1)
        parameter = parameters[name]
        # Adam keeps its step count on the CPU and its moments beside the weights.
        device = torch.device("cpu") if key == STEP else parameter.device
        optimizer.state[parameter][key] = tensor.to(device)
