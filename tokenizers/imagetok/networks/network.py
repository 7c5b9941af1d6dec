"""What an encoder and a decoder are, and what their configs tell others.

An encoder takes pixels (B, C, H, W) in [0, 1] to z (B, out_channels, H / f, W / f), a decoder takes
latents (B, in_channels, H / f, W / f) to the likelihood's parameters (B, out_channels, H, W).

What families share stands below: blocks that can forget their activations, and initial weights.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Protocol

from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imagetok.config.registry import PartConfig

Channels = Annotated[int, Field(ge=1, le=65_536)]
"""A width of a layer, bounded before anything is allocated."""

Blocks = Annotated[int, Field(ge=0, le=64)]
"""A number of residual blocks."""


class Encoder(Protocol):
    """What the tokenizer asks of an encoder, a torch module.

    Attributes:
        factors: (height, width) in pixels of one position of the latent grid.
        out_channels: Channels of z.
        fixed_size: Whether it takes images of one size only.
    """

    factors: tuple[int, int]
    out_channels: int
    fixed_size: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) in [0, 1] to (B, out_channels, H / factors[0], W / factors[1])."""
        ...


class Decoder(Protocol):
    """What the tokenizer asks of a decoder, a torch module.

    Attributes:
        factors: (height, width) in pixels of one position of the latent grid.
        last_layer: The layer that yields the result; its weight is where the gradients of several
            losses are compared.
    """

    factors: tuple[int, int]

    @property
    def last_layer(self) -> nn.Module:
        """The layer that yields the result."""
        ...

    def __call__(self, z: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to the likelihood's parameters (B, out_channels, H, W)."""
        ...


class NetworkConfig(PartConfig, ABC):
    """What the config of an encoder or decoder says.

    Attributes:
        fixed_size: Whether the network takes images of one size only.
    """

    fixed_size: ClassVar[bool] = False

    @abstractmethod
    def factors(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels of one position, for images of `image_size`."""


class EncoderConfig(NetworkConfig):
    """Base of all encoder configs; a subclass declares its `type` and registers itself."""

    kind: ClassVar[str] = "encoder"

    @abstractmethod
    def build(
        self, image_size: tuple[int, int], in_channels: int, out_channels: int | None
    ) -> Encoder:
        """Build the encoder with fresh weights.

        Args:
            image_size: (height, width) that images are brought to.
            in_channels: Channels of an image.
            out_channels: Channels of z; None leaves the last projection out, for a bottleneck that
                owns that map, and the encoder yields its features.
        """


class DecoderConfig(NetworkConfig):
    """Base of all decoder configs; a subclass declares its `type` and registers itself."""

    kind: ClassVar[str] = "decoder"

    @abstractmethod
    def build(self, image_size: tuple[int, int], in_channels: int, out_channels: int) -> Decoder:
        """Build the decoder with fresh weights.

        Args:
            image_size: (height, width) of images.
            in_channels: Channels of the latents.
            out_channels: Channels of the likelihood's parameters.
        """


class CheckpointedBlock(nn.Module, ABC):
    """A residual block that can forget its inner activations; subclasses implement `_forward`.

    Gradient checkpointing (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv
    1604.06174) keeps the input of a block and computes what lies inside again in the backward pass.
    Values and gradients are the same bits, and the weights keep their names.

    Attributes:
        recomputes: Whether it does, where gradients are recorded. Set by `checkpoint_activations`.
    """

    recomputes = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h, w)."""
        if not self.recomputes:
            return self._forward(x)
        # Nothing in a network is random, so no generator's state has to be restored.
        out: Tensor = checkpoint(self._forward, x, use_reentrant=False, preserve_rng_state=False)
        return out

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor: ...


def checkpoint_activations(model: nn.Module) -> None:
    """Let all residual blocks of a model recompute their activations in the backward pass.

    The blocks are those of the conv and dalle networks; an mlp has none, and nothing changes.
    Without gradients, as at inference, nothing is kept and so nothing is recomputed.
    """
    for module in model.modules():
        if isinstance(module, CheckpointedBlock):
            module.recomputes = True


def initialize_relu_network(network: nn.Module, last_gain: float) -> None:
    """Draw all weights of linear and convolutional layers anew, from torch's generator.

    He et al., Delving Deep into Rectifiers, 2015, arXiv 1502.01852: a standard deviation of
    sqrt(2 / fan_in) keeps the scale of activations through a ReLU network. torch's default shrinks
    them by more than half per layer, and after the six levels that lead to one latent vector a
    posterior's noise drowns what is left.

    Args:
        network: A network whose layers are each followed by a ReLU, the last one perhaps excepted.
        last_gain: Factor of the last layer's weights: small in a decoder, so that it starts at
            mid-gray, and not at noise that has to be unlearnt.
    """
    layers = [
        m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ]
    for layer in layers:
        if isinstance(layer, nn.ConvTranspose2d):
            # Each output pixel sees kernel^2 / stride^2 of the kernel's weights.
            area = math.prod(layer.kernel_size) / math.prod(layer.stride)
            fan_in = layer.in_channels * area
        else:
            fan_in = layer.weight[0].numel()
        gain = last_gain if layer is layers[-1] else math.sqrt(2)
        nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
