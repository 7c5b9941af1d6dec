"""The networks of the VQ-VAE: strided 4x4 convolutions and residual blocks.

van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv 1711.00937, section 4.1,
with the widths of DeepMind's published example: half the width after the first downsampling, and a
3x3 convolution before the residual blocks. Any number of downsamplings; the factor is 2 to that
number.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from imagetok.config.registry import PartConfig
from imagetok.networks.network import (
    Blocks,
    Channels,
    CheckpointedBlock,
    DecoderConfig,
    EncoderConfig,
    initialize_relu_network,
)


class _ConvSizes(PartConfig):
    """The sizes that encoder and decoder have in common.

    Attributes:
        hidden_channels: Width of the convolutions and residual blocks.
        residual_channels: Width inside a residual block.
        num_residual_blocks: Residual blocks at the token grid.
        num_downsamplings: Strided 4x4 convolutions; the factor is 2^num_downsamplings.
    """

    type: Literal["conv"] = "conv"
    hidden_channels: Channels = 128
    residual_channels: Channels = 32
    num_residual_blocks: Blocks = 2
    num_downsamplings: Annotated[int, Field(ge=0, le=10)] = 2

    def factors(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels of one position."""
        return 2**self.num_downsamplings, 2**self.num_downsamplings


class ConvEncoderConfig(_ConvSizes, EncoderConfig):
    """The encoder of the VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937)."""

    def build(
        self, image_size: tuple[int, int], in_channels: int, out_channels: int | None
    ) -> ConvEncoder:
        """Build the encoder with fresh weights."""
        return ConvEncoder(
            in_channels,
            self.hidden_channels,
            self.residual_channels,
            self.num_residual_blocks,
            self.num_downsamplings,
            out_channels,
        )


class ConvDecoderConfig(_ConvSizes, DecoderConfig):
    """The decoder of the VQ-VAE, the encoder mirrored."""

    def build(
        self, image_size: tuple[int, int], in_channels: int, out_channels: int
    ) -> ConvDecoder:
        """Build the decoder with fresh weights."""
        return ConvDecoder(
            in_channels,
            self.hidden_channels,
            self.residual_channels,
            self.num_residual_blocks,
            self.num_downsamplings,
            out_channels,
        )


class ResidualBlock(CheckpointedBlock):
    """x + conv1x1(relu(conv3x3(relu(x)))).

    Args:
        channels: Width of x.
        hidden: Width between the two convolutions.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
        )

    def _forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


def _scale_widths(hidden: int, num_scales: int) -> list[int]:
    """Widths after each downsampling: half at the finest of several, then full."""
    if num_scales < 2:
        return [hidden] * num_scales
    return [max(1, hidden // 2)] + [hidden] * (num_scales - 1)


class ConvEncoder(nn.Module):
    """Strided convolutions, then residual blocks.

    ```
    (B, C, H, W) -> [conv4x4 /2, relu] * n -> conv3x3 -> residual * m -> relu -> conv1x1
                 -> (B, out_channels, H / 2^n, W / 2^n)
    ```

    Args:
        in_channels: C of the image.
        hidden: Width of the trunk.
        residual: Width inside a residual block.
        num_blocks: Residual blocks m.
        num_scales: Downsamplings n.
        out_channels: Width of the result; None leaves the last convolution out.
    """

    fixed_size = False

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        residual: int,
        num_blocks: int,
        num_scales: int,
        out_channels: int | None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for width_out in _scale_widths(hidden, num_scales):
            layers += [nn.Conv2d(width, width_out, 4, stride=2, padding=1), nn.ReLU()]
            width = width_out
        layers.append(nn.Conv2d(width, hidden, 3, padding=1))
        layers += [ResidualBlock(hidden, residual) for _ in range(num_blocks)]
        layers.append(nn.ReLU())
        if out_channels is not None:
            layers.append(nn.Conv2d(hidden, out_channels, 1))
        self.layers = nn.Sequential(*layers)
        initialize_relu_network(self.layers, last_gain=1.0)
        self.factors = (2**num_scales, 2**num_scales)
        self.out_channels = hidden if out_channels is None else out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) in [0, 1] to (B, out_channels, H / 2^n, W / 2^n)."""
        out: Tensor = self.layers(x - 0.5)
        return out


class ConvDecoder(nn.Module):
    """The encoder mirrored, with transposed convolutions.

    ```
    (B, in_channels, h, w) -> conv3x3 -> residual * m -> relu -> [transposed conv4x4 *2, relu] * n
                           -> (B, out_channels, 2^n h, 2^n w)
    ```

    Args:
        in_channels: Width of the latents.
        hidden: Width of the trunk.
        residual: Width inside a residual block.
        num_blocks: Residual blocks m.
        num_scales: Upsamplings n; the last one, or a 3x3 convolution where there is none, yields
            the result, without a ReLU.
        out_channels: Channels of the likelihood's parameters.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        residual: int,
        num_blocks: int,
        num_scales: int,
        out_channels: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, hidden, 3, padding=1)]
        layers += [ResidualBlock(hidden, residual) for _ in range(num_blocks)]
        width = hidden
        for width_out in reversed(_scale_widths(hidden, num_scales)[:-1]):
            layers += [nn.ReLU(), nn.ConvTranspose2d(width, width_out, 4, stride=2, padding=1)]
            width = width_out
        layers.append(nn.ReLU())
        if num_scales:
            layers.append(nn.ConvTranspose2d(width, out_channels, 4, stride=2, padding=1))
        else:
            layers.append(nn.Conv2d(width, out_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        initialize_relu_network(self.layers, last_gain=0.1)
        self.factors = (2**num_scales, 2**num_scales)

    @property
    def last_layer(self) -> nn.Module:
        """The layer that yields the result."""
        return self.layers[-1]

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, 2^n h, 2^n w)."""
        out: Tensor = self.layers(z)
        return out
