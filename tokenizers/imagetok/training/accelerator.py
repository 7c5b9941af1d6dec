"""The Accelerator of a run."""

from __future__ import annotations

from datetime import timedelta

from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState

from imagetok.errors import ConfigError
from imagetok.launch import collectives, has_only_cpu, leave_group_at_exit
from imagetok.run_config import TrainConfig

PATIENCE = timedelta(hours=6)
"""How long a rank waits for another one, such as the first while it prepares a large dataset."""

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Build an Accelerator with the config's precision, whatever this process used before.

    Raises:
        ConfigError: The device does not support the precision, or the batch does not divide over
            the ranks.
    """
    # Accelerate keeps the precision of the first Accelerator of a process for all later ones.
    AcceleratorState._reset_state()
    leave_group_at_exit()
    try:
        accelerator = Accelerator(
            cpu=has_only_cpu(),
            mixed_precision=PRECISIONS[config.precision],
            kwargs_handlers=[
                # Buffers are equal by construction; broadcasting would hide it if they were not.
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
