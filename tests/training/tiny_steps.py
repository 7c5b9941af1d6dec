"""Steps over one fixed batch, and all that they may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from imagetok.config import RunConfig
from imagetok.data import TrainingBatch
from imagetok.training.step import Stepper

Halt = Callable[[RunConfig, Path, int], None]
"""The fixture `halt`."""


class HaltedError(Exception):
    """Stands for whatever ends a process."""


def batch(count: int = 8) -> TrainingBatch:
    """Random images of 16 x 16 pixels, the same ones every time."""
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return TrainingBatch(
        pixels=pixels.to(torch.uint8),
        rows=torch.arange(count),
        epochs=torch.zeros(count, dtype=torch.int64),
    )


def state_of(stepper: Stepper) -> dict[str, Tensor]:
    """Copies of the tensors that a step may change, by `<file of a checkpoint>/<name>`."""
    parts = stepper.parts
    state = {
        f"{group}/{name}": tensor
        for group, module in parts.modules.items()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    for group, (module, optimizer) in parts.optimizers.items():
        for name, parameter in module.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                state[f"{group}/{name}/{key}"] = value
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors that came, went or have other values."""
    names = before.keys() | after.keys()
    return {
        name
        for name in names
        if name not in before or name not in after or not torch.equal(before[name], after[name])
    }
