"""What a likelihood is, and what its config tells others."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Protocol

from torch import Tensor

from imagetok.config.registry import PartConfig


class Likelihood(Protocol):
    """What the tokenizer asks of a likelihood, a torch module.

    Attributes:
        channel_multiple: Decoder channels for each channel of the image.
    """

    channel_multiple: int

    def nll(self, params: Tensor, x: Tensor) -> Tensor:
        """Negative log-likelihood of pixels x (B, C, H, W) in [0, 1], in nats per image: (B,).

        Summed over channels and pixels.
        """
        ...

    def mean(self, params: Tensor) -> Tensor:
        """The image that the decoder means, float (B, C, H, W).

        Differentiable and not clamped: a clamp would kill gradients wherever the decoder
        overshoots [0, 1].
        """
        ...


class LikelihoodConfig(PartConfig):
    """Base of all likelihood configs; a subclass declares its `type` and registers itself."""

    kind: ClassVar[str] = "likelihood"

    @abstractmethod
    def build(self) -> Likelihood:
        """Build the likelihood with fresh weights."""
