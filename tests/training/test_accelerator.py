"""Where a run computes is the environment's, and what it computes the config's alone."""

from __future__ import annotations

import os

import pytest
import torch
from accelerate import Accelerator
from tiny_steps import batch, changed, state_of

from imagetok import ImageTokenizer
from imagetok.errors import ConfigError
from imagetok.launch import collectives
from imagetok.training.accelerator import build_accelerator
from imagetok.training.step import Stepper
from tiny_runs import tiny_run


def one_step() -> Stepper:
    config = tiny_run("ae", optimizer={"clip_norm": 1e-3})
    torch.manual_seed(0)
    tokenizer = ImageTokenizer.from_config(config.tokenizer)
    stepper = Stepper(config.train, build_accelerator(config.train), tokenizer)
    stepper.step(0, [batch()])
    return stepper


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GRADIENT_ACCUMULATION_STEPS", "100"),
        ("GRADIENT_ACCUMULATION_STEPS", "many"),
        ("GRADIENT_CLIPPING", "1e-9"),
        ("MIXED_PRECISION", "bf16"),
        ("DYNAMO_BACKEND", "eager"),
        ("DYNAMO_USE_FULLGRAPH", "perhaps"),
        ("DEBUG_MODE", "perhaps"),
        ("USE_FSDP", "false"),
    ],
)
def test_variables_of_the_launcher_change_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    expected = state_of(one_step())
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    stepper = one_step()
    assert changed(state_of(stepper), expected) == set()
    assert stepper.learner.wrapped is stepper.tokenizer  # it was not compiled
    assert os.environ[f"ACCELERATE_{name}"] == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("USE_FSDP", "true", r"asks for FSDP \(ACCELERATE_USE_FSDP\).* launch it without"),
        ("USE_DEEPSPEED", "True", "asks for DeepSpeed"),
        ("TORCH_DEVICE", "abacus", "ACCELERATE_TORCH_DEVICE: device 'abacus' cannot be used here"),
        ("TORCH_DEVICE", "meta", "'meta' holds no values"),
        ("USE_CPU", "perhaps", "ACCELERATE_USE_CPU is 'perhaps'"),
    ],
)
def test_what_the_environment_asks_for_and_cannot_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(ConfigError, match=message):
        build_accelerator(tiny_run("ae").train)


def test_a_batch_that_does_not_divide_over_its_micro_batches_or_the_ranks_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="batch_size 8 is not divisible by accumulation 3"):
        tiny_run("ae", accumulation=3)
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: 3))
    monkeypatch.setattr(collectives, "world_size", lambda: 3)
    with pytest.raises(ConfigError, match=r"does not divide over 3 processes .* a multiple of 6"):
        build_accelerator(tiny_run("ae", accumulation=2).train)
