"""AdamW over a tokenizer's parameters, its learning rate set anew every step."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Optimizer

from imagetok.build import build_schedule
from imagetok.config import OptimizerConfig
from imagetok.schedules import Schedule, warmup

TABLES = ("bottleneck.codebook", "bottleneck.embedding")
"""Parameters that are looked up, not multiplied: decay would pull unused codes to zero."""


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW with weight decay on matrices and kernels only."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and name not in TABLES else plain).append(parameter)
    return AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=0.0,
        betas=config.betas,
        eps=config.epsilon,
    )


def build_learning_rate(config: OptimizerConfig, run_steps: int) -> Schedule:
    """Learning rate of a step of a run of `run_steps`, warm-up included."""
    return warmup(build_schedule(config.lr, run_steps), config.warmup_steps)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr
