"""What a run would be: parameters, token grid and memory, counted without allocating anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, UntypedStorage
from torch.autograd.graph import saved_tensors_hooks

from imagetok.bottlenecks import DiscreteBottleneck
from imagetok.errors import ConfigError
from imagetok.run_config import RunConfig
from imagetok.tokenizer import ImageTokenizer
from imagetok.training.initial_model import prepare_parts


@dataclass(frozen=True)
class RunPlan:
    """Counts of a run.

    Attributes:
        parameters: Values of each part, frozen ones and a codebook learnt by averages included.
        image_size: (height, width) in pixels.
        grid_size: (height, width) of the token or latent grid.
        codebook_size: Number of codes; None for a continuous model.
        state_bytes: Weights, gradients, both moments of Adam and averaged weights, in float32.
        activation_bytes: What the forward pass of one image keeps for the backward pass, in
            float32.
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
    """Count what a config describes, on the meta device.

    Raises:
        ConfigError: `train.loss_weights` names a loss that the tokenizer does not have, or
            `train.freeze` leaves nothing to learn.
    """
    with torch.device("meta"):
        model = ImageTokenizer.from_config(config.tokenizer)
        x = torch.empty(1, config.tokenizer.channels, *config.tokenizer.image_size)
    prepare_parts(model, config)
    parameters = {
        name: sum(tensor.numel() for tensor in part.state_dict().values())
        for name, part in model.named_children()
    }
    losses, activation_bytes = _measure_forward(model, x)
    if unknown := sorted(config.train.loss_weights.keys() - losses):
        raise ConfigError(
            f"train.loss_weights names {', '.join(unknown)}; the losses of this tokenizer are: "
            f"{', '.join(sorted(losses))}"
        )
    total = sum(parameters.values())
    learnt = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    copies = 1 + (config.train.ema_decay is not None)
    discrete = isinstance(model.bottleneck, DiscreteBottleneck)
    return RunPlan(
        parameters=parameters,
        image_size=model.image_size,
        grid_size=model.grid_size,
        codebook_size=model.codebook_size if discrete else None,
        state_bytes=4 * (copies * total + 3 * learnt),
        activation_bytes=activation_bytes,
        images=config.train.batch_size // config.train.accumulation,
    )


def _measure_forward(model: ImageTokenizer, x: Tensor) -> tuple[set[str], int]:
    """Names of the losses, and bytes that the backward pass keeps besides the weights."""
    weights = {tensor.untyped_storage()._cdata for tensor in model.state_dict().values()}
    kept: dict[int, UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.random.fork_rng(devices=[]), saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model(x).losses
        torch.stack(list(losses.values())).sum()
    return set(losses), sum(storage.nbytes() for storage in kept.values())
