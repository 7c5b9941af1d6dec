"""Balancing terms of the loss by the size of their gradients at the decoder's last layer.

    factor = |d reference / d w| / (|d term / d w| + epsilon),  at most MAX_FACTOR

where w is the weight of the last layer and the reference is the weighted sum of the terms that are
not balanced (Esser et al., Taming Transformers for High-Resolution Image Synthesis, 2021, arXiv
2012.09841, eq. 7). We depart in two ways. The gradients are those of the global batch, so that
ranks and micro-batches change nothing; a factor can then only be applied one step late, and is 0
before the first one is known. And epsilon is small, because our losses are nats per pixel and
channel, whose gradients are small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from imagetok.errors import ConfigError

EPSILON = 1e-12
MAX_FACTOR = 1e4
REFERENCE = "reference"


class GradientBalance:
    """The factors of balanced terms, measured in one step and applied in the next.

    Args:
        layer: The decoder's last layer.

    Raises:
        ConfigError: The layer's weight does not learn.

    Attributes:
        factors: Factor of each term, by name; a term not measured yet is missing.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.factors: dict[str, float] = {}
        self._weight = layer.get_parameter("weight")
        if not self._weight.requires_grad:
            raise ConfigError(
                "an objective in train.objectives is balanced at the decoder's last layer, which "
                "train.freeze keeps from learning; take the decoder out of train.freeze"
            )

    def factor(self, name: str) -> float:
        """The factor of a term in this step."""
        return self.factors.get(name, 0.0)

    def gradients(
        self, reference: Iterable[Tensor], balanced: Mapping[str, Tensor], scale: float
    ) -> dict[str, Tensor]:
        """Gradients at the last layer, to be averaged over micro-batches and ranks.

        Args:
            reference: Weighted terms that are not balanced.
            balanced: Unweighted terms that are balanced, by name.
            scale: What losses are multiplied by, so that half precision does not underflow.
        """
        losses = {REFERENCE: torch.stack(list(reference)).sum(), **balanced}
        found = {}
        for name, loss in losses.items():
            (gradient,) = torch.autograd.grad(
                loss * scale, self._weight, retain_graph=True, allow_unused=True
            )
            found[name] = torch.zeros_like(self._weight) if gradient is None else gradient
        return found

    def update(self, gradients: Mapping[str, Tensor]) -> None:
        """Take the factors of the next step from the global batch's gradients of this one.

        A term whose gradient is not finite, which half precision may bring about, keeps its factor.
        """
        norms = {name: float(gradient.double().norm()) for name, gradient in gradients.items()}
        reference = norms.pop(REFERENCE, math.inf)
        for name, norm in norms.items():
            factor = reference / (norm + EPSILON)
            if math.isfinite(norm) and math.isfinite(reference):
                self.factors[name] = min(factor, MAX_FACTOR)
