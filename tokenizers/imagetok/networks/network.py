"""What an encoder and a decoder are, and what their configs tell others.

An encoder takes pixels (B, C, H, W) in [0, 1] to z (B, out_channels, H / f, W / f), a decoder takes
latents (B, in_channels, H / f, W / f) to the likelihood's parameters (B, out_channels, H, W).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Protocol

from pydantic import Field
from torch import Tensor, nn

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
