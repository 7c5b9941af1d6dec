"""What a run would be: parameters, token grid and memory, counted without allocating anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks

from imagetok.build import without_values
from imagetok.errors import ConfigError
from imagetok.objectives import Objective
from imagetok.run_config import RunConfig
from imagetok.tokenizer import ImageTokenizer
from imagetok.training.initial_model import build_objectives, prepare_parts


@dataclass(frozen=True)
class RunPlan:
    """Counts of a run.

    Attributes:
        parameters: Number of values of each part of the tokenizer, including frozen ones and a
            codebook that is learnt by averages.
        image_size: (height, width) in pixels.
        grid_size: (height, width) of the token or latent grid.
        codebook_size: Number of codes; None for a continuous model.
        state_bytes: Bytes of weights, gradients, both moments of Adam and averaged weights, in
            float32, objectives included.
        activation_bytes: Bytes that the forward pass of one image keeps for the backward pass, in
            float32.
        images: Images in memory at once over all processes: the batch divided by the number of
            micro-batches.
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
        ConfigError: Weights name a loss that does not exist, objectives name their losses wrongly,
            or `train.freeze` leaves nothing to learn.
    """
    with without_values():
        model = ImageTokenizer.from_config(config.tokenizer)
        x = torch.empty(1, config.tokenizer.channels, *config.tokenizer.image_size)
        objectives = build_objectives(config, "meta")
    prepare_parts(model, config)
    parameters = {
        name: sum(tensor.numel() for tensor in part.state_dict().values())
        for name, part in model.named_children()
    }
    terms, activation_bytes = _measure_forward(model, objectives, x)
    _check_terms(config, terms)
    total = sum(parameters.values())
    copies = 1 + (config.train.ema_decay is not None)
    return RunPlan(
        parameters=parameters,
        image_size=model.image_size,
        grid_size=model.grid_size,
        codebook_size=model.codebook_size if model.bottleneck.is_discrete else None,
        state_bytes=4 * (copies * total + 3 * _num_learnt(model))
        + sum(4 * (_num_values(each) + 3 * _num_learnt(each)) for each in objectives.values()),
        activation_bytes=activation_bytes,
        images=config.train.batch_size // config.train.accumulation,
    )


def _num_values(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())


def _num_learnt(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)


def _check_terms(config: RunConfig, terms: Mapping[str, Sequence[str]]) -> None:
    """Refuse weights of losses that do not exist, and losses of objectives with wrong names.

    Args:
        config: The run.
        terms: Names of the losses: the tokenizer's under `tokenizer`, those of objectives under
            their types, and those of their own learners under `<type>-learner`.
    """
    _check_weights("train.loss_weights", config.train.loss_weights, terms["tokenizer"], "tokenizer")
    for part in config.train.objectives:
        place = f"train.objectives: the weights of {part.type}"
        _check_weights(place, part.weights, terms[part.type], "objective")
    names = Counter(name for each in terms.values() for name in each)
    for name, count in names.items():
        if count > 1 or not name.startswith("loss/"):
            owners = [owner for owner, each in terms.items() if name in each]
            raise ConfigError(
                f"train.objectives: {' and '.join(owners)} yield '{name}'; losses are called "
                "'loss/...', each by a name of its own"
            )


def _check_weights(place: str, weights: Iterable[str], losses: Iterable[str], whose: str) -> None:
    if unknown := sorted(set(weights) - set(losses)):
        raise ConfigError(
            f"{place} names {', '.join(unknown)}; the losses of this {whose} are: "
            f"{', '.join(sorted(losses))}"
        )


def _measure_forward(
    model: ImageTokenizer, objectives: Mapping[str, Objective], x: Tensor
) -> tuple[dict[str, list[str]], int]:
    """Names of the losses by their owner, and bytes kept for backward besides the weights."""
    modules = [model, *objectives.values()]
    weights = {t.untyped_storage()._cdata for each in modules for t in each.state_dict().values()}
    kept: dict[int, UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.random.fork_rng(devices=[]), saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(x)
        losses = {"tokenizer": output.losses}
        for name, objective in objectives.items():
            losses[name] = objective.terms(output, x, 0)
            if objective.learner is not None:
                losses[f"{name}-learner"] = objective(output, x, 0)
        torch.stack([loss for each in losses.values() for loss in each.values()]).sum()
    names = {owner: list(each) for owner, each in losses.items()}
    return names, sum(storage.nbytes() for storage in kept.values())
