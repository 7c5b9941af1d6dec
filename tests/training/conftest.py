"""What tests of training share: torch left as it was, and runs that end before a step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_steps import Halt, HaltedError

from imagetok.config import RunConfig
from imagetok.training import train
from imagetok.training.step import Stepper


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    with torch.random.fork_rng():
        yield
    AcceleratorState._reset_state()


@pytest.fixture
def float64() -> Iterator[None]:
    """Train in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def halt(monkeypatch: pytest.MonkeyPatch) -> Halt:
    """Train a run, resumed where it was begun, that ends before a step."""
    real = Stepper.step

    def train_until(config: RunConfig, folder: Path, last: int) -> None:
        def step(self: Stepper, number: int, *rest: Any) -> Any:
            if number == last:
                raise HaltedError
            return real(self, number, *rest)

        monkeypatch.setattr(Stepper, "step", step)
        with pytest.raises(HaltedError):
            train(config, folder, resume=True, progress=False)
        monkeypatch.setattr(Stepper, "step", real)

    return train_until
