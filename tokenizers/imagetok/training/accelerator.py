"""The Accelerator of a run, which computes as the run's config says whatever the environment says.

Accelerate takes many settings from variables that its launcher sets: the precision, micro-batches,
a compiler, how weights are divided over GPUs. Of all that, a run takes the device alone, which its
evaluation names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState

from imagetok.errors import ConfigError, InvalidValueError
from imagetok.launch import collectives, has_only_cpu, leave_group_at_exit, read_device
from imagetok.run_config import TrainConfig

PATIENCE = timedelta(hours=6)
"""How long a rank waits for another one, such as the first while it prepares a large dataset."""

HONOURED = frozenset({"ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE", "ACCELERATE_CPU_AFFINITY"})
"""Variables that say where a run computes; no other one of Accelerate's has an effect."""

SHARDED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""Variables that ask for weights divided over GPUs; a run keeps all of them on each."""

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Build an Accelerator with the config's precision, whatever this process used before.

    Raises:
        ConfigError: The device does not support the precision, the batch does not divide over the
            ranks, or the environment asks for what a run cannot do.
    """
    only_cpu = _check_environment()
    # Accelerate keeps the precision of the first Accelerator of a process for all later ones.
    AcceleratorState._reset_state()
    leave_group_at_exit()
    try:
        with _only_honoured_variables():
            accelerator = Accelerator(
                cpu=only_cpu,
                mixed_precision=PRECISIONS[config.precision],
                kwargs_handlers=[
                    # Buffers are equal by construction; broadcasting would hide if they were not.
                    DistributedDataParallelKwargs(
                        broadcast_buffers=False, gradient_as_bucket_view=True
                    ),
                    InitProcessGroupKwargs(timeout=PATIENCE),
                ],
            )
    except ValueError as error:
        raise ConfigError(f"train.precision={config.precision}: {error}") from None
    if config.precision == "fp16" and accelerator.scaler is None:
        raise ConfigError(
            f"train.precision=fp16 needs a GPU, and this run computes on {accelerator.device}; "
            "take bf16 or fp32"
        )
    assert accelerator.num_processes == collectives.world_size()
    parts = accelerator.num_processes * config.accumulation
    if config.batch_size % parts:
        raise ConfigError(
            f"train.batch_size={config.batch_size} does not divide over "
            f"{accelerator.num_processes} processes with train.accumulation="
            f"{config.accumulation}; make it a multiple of {parts}"
        )
    return accelerator


def _check_environment() -> bool:
    """Whether to compute on the CPU; refuses what a run cannot do, and unknown devices."""
    for variable, name in SHARDED.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
            raise ConfigError(
                f"the environment asks for {name} ({variable}), and a run keeps all weights on "
                "every device; launch it without, or unset the variable"
            )
    device = os.environ.get("ACCELERATE_TORCH_DEVICE")
    try:
        read_device(device)
        return has_only_cpu()
    except InvalidValueError as error:
        place = "" if device is None else "the environment variable ACCELERATE_TORCH_DEVICE: "
        raise ConfigError(f"{place}{error}") from None


@contextmanager
def _only_honoured_variables() -> Iterator[None]:
    """Hide those of Accelerate's variables that would change what a run computes."""
    before = dict(os.environ)
    for name in before.keys() - HONOURED:
        if name.startswith("ACCELERATE_"):
            del os.environ[name]
    try:
        yield
    finally:
        os.environ |= {name: before[name] for name in before.keys() - os.environ.keys()}
