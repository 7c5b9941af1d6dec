"""AdamW over a tokenizer's parameters, its learning rate set anew every step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.optim import AdamW, Optimizer

from imagetok.bottlenecks import ParameterGroup
from imagetok.config import OptimizerConfig, build_schedule
from imagetok.schedules import Schedule, warmup


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, groups: Mapping[str, ParameterGroup]
) -> AdamW:
    """AdamW with weight decay on matrices and kernels only, but for what the groups say.

    Args:
        model: Its parameters that require gradients are learnt.
        config: Settings.
        groups: How parameters are learnt, by their names in the model.
    """
    members: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = groups.get(name, ParameterGroup())
            decays = parameter.ndim >= 2 if group.decay is None else group.decay
            members.setdefault((group.lr_factor, decays), []).append(parameter)
    return AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr_factor": lr_factor,
            }
            for (lr_factor, decays), parameters in members.items()
        ],
        lr=0.0,
        betas=config.betas,
        eps=config.epsilon,
    )


def build_learning_rate(config: OptimizerConfig, run_steps: int) -> Schedule:
    """Learning rate of a step of a run of `run_steps`, warm-up included."""
    return warmup(build_schedule(config.lr, run_steps), config.warmup_steps)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters, times the factor of each."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
