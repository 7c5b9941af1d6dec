"""What a run would be: parameters, token grid and memory, counted without allocating anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from imagetok.bottlenecks import DiscreteBottleneck
from imagetok.config import RunConfig
from imagetok.tokenizer import ImageTokenizer


@dataclass(frozen=True)
class RunPlan:
    """Counts of a run.

    Attributes:
        parameters: Learnt values of each part; a codebook learnt by averages counts.
        image_size: (height, width) in pixels.
        grid_size: (height, width) of the token or latent grid.
        codebook_size: Number of codes; None for a continuous model.
        state_bytes: Weights, gradients, both moments of Adam and averaged weights, in float32.
        activation_bytes: What the backward pass of one image keeps, in float32.
        images: Images in memory at once over all processes: the batch over the micro-batches.
    """

    parameters: dict[str, int]
    image_size: tuple[int, int]
    grid_size: tuple[int, int]
    codebook_size: int | None
    state_bytes: int
    activation_bytes: int
    images: int


def plan_run(config: RunConfig) -> RunPlan:
    """Count what a config describes, on the meta device."""
    with torch.device("meta"):
        model = ImageTokenizer.from_config(config.tokenizer)
        x = torch.empty(1, config.tokenizer.channels, *config.tokenizer.image_size)
    parts = {"encoder": model.encoder, "bottleneck": model.bottleneck, "decoder": model.decoder}
    parameters = {
        name: sum(tensor.numel() for tensor in part.state_dict().values())
        for name, part in parts.items()
    }
    copies = 4 + (config.train.ema_decay is not None)
    discrete = isinstance(model.bottleneck, DiscreteBottleneck)
    return RunPlan(
        parameters=parameters,
        image_size=model.image_size,
        grid_size=model.grid_size,
        codebook_size=model.codebook_size if discrete else None,
        state_bytes=4 * copies * sum(parameters.values()),
        activation_bytes=_activation_bytes(model, x),
        images=config.train.batch_size // config.train.accumulation,
    )


def _activation_bytes(model: ImageTokenizer, x: Tensor) -> int:
    weights = {id(parameter) for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in weights:
            kept[id(tensor)] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model(x).losses
        total = torch.stack(list(losses.values())).sum()
    assert total.requires_grad
    return sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
