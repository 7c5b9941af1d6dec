"""Fully connected networks over the whole image: one latent vector, a grid of 1x1.

Without hidden layers both are linear maps, and the autoencoder made of them spans the principal
components of the pixels (Baldi & Hornik, Neural Networks and Principal Component Analysis, 1989).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from imagetok.config.registry import PartConfig
from imagetok.networks.network import (
    Channels,
    DecoderConfig,
    EncoderConfig,
    initialize_relu_network,
)


class _MlpSizes(PartConfig):
    """The sizes that encoder and decoder have in common.

    Attributes:
        hidden: Widths of the hidden layers, in the order in which data flows; the network is linear
            where there are none.
    """

    fixed_size: ClassVar[bool] = True

    type: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Channels, ...], Field(max_length=64)] = ()

    def factors(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels of the one position: the whole image."""
        return image_size


class MlpEncoderConfig(_MlpSizes, EncoderConfig):
    """A fully connected encoder over the whole image."""

    def build(
        self, image_size: tuple[int, int], in_channels: int, out_channels: int | None
    ) -> MlpEncoder:
        """Build the encoder with fresh weights."""
        return MlpEncoder(image_size, in_channels, self.hidden, out_channels)


class MlpDecoderConfig(_MlpSizes, DecoderConfig):
    """A fully connected decoder to the whole image."""

    def build(self, image_size: tuple[int, int], in_channels: int, out_channels: int) -> MlpDecoder:
        """Build the decoder with fresh weights."""
        return MlpDecoder(image_size, in_channels, self.hidden, out_channels)


def _layers(widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return layers


class MlpEncoder(nn.Module):
    """Pixels to one vector.

    Args:
        image_size: (H, W); no other size is taken.
        in_channels: C of the image.
        hidden: Widths of the hidden layers, each followed by a ReLU.
        out_channels: Width of the vector; None yields the last hidden layer.
    """

    fixed_size = True

    def __init__(
        self,
        image_size: tuple[int, int],
        in_channels: int,
        hidden: Sequence[int],
        out_channels: int | None,
    ) -> None:
        super().__init__()
        widths = [in_channels * math.prod(image_size), *hidden]
        layers = _layers(widths)
        if out_channels is not None:
            layers.append(nn.Linear(widths[-1], out_channels))
        self.layers = nn.Sequential(*layers)
        initialize_relu_network(self.layers, last_gain=1.0)
        self.factors = image_size
        self.out_channels = widths[-1] if out_channels is None else out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) in [0, 1] to (B, out_channels, 1, 1)."""
        out: Tensor = self.layers(rearrange(x - 0.5, "b c h w -> b (c h w)"))
        return rearrange(out, "b d -> b d 1 1")


class MlpDecoder(nn.Module):
    """One vector to the likelihood's parameters.

    Args:
        image_size: (H, W).
        in_channels: Width of the vector.
        hidden: Widths of the hidden layers, each followed by a ReLU.
        out_channels: Channels of the likelihood's parameters.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        in_channels: int,
        hidden: Sequence[int],
        out_channels: int,
    ) -> None:
        super().__init__()
        widths = [in_channels, *hidden]
        last = nn.Linear(widths[-1], out_channels * math.prod(image_size))
        self.layers = nn.Sequential(*_layers(widths), last)
        initialize_relu_network(self.layers, last_gain=0.1)
        self.factors = image_size

    @property
    def last_layer(self) -> nn.Module:
        """The layer that yields the result."""
        return self.layers[-1]

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, in_channels, 1, 1) to (B, out_channels, H, W)."""
        out: Tensor = self.layers(rearrange(z, "b d 1 1 -> b d"))
        height, width = self.factors
        return rearrange(out, "b (c h w) -> b c h w", h=height, w=width)
