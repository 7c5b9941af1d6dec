"""The network of dalle-pytorch's DiscreteVAE as parts of an imagetok tokenizer.

Strided 4x4 convolutions and residual blocks of two 3x3 convolutions and a 1x1 one; pixels are
brought to [-1, 1] before the encoder and back after the decoder. Layers are in the peer's order, so
that one list of weights fills both.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from imagetok.config.registry import PartConfig
from imagetok.networks import DecoderConfig, EncoderConfig


class _Sizes(PartConfig):
    """The sizes that encoder and decoder have in common."""

    type: Literal["dalle_pytorch"] = "dalle_pytorch"
    hidden_channels: int = 64
    num_residual_blocks: int = 1
    num_downsamplings: int = 3

    def factors(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels of one position."""
        return 2**self.num_downsamplings, 2**self.num_downsamplings


class DallePytorchEncoderConfig(_Sizes, EncoderConfig):
    """The encoder up to the map to logits, which is the bottleneck's."""

    def build(
        self, image_size: tuple[int, int], in_channels: int, out_channels: int | None
    ) -> DallePytorchEncoder:
        """Build the encoder with fresh weights."""
        return DallePytorchEncoder(in_channels, self)


class DallePytorchDecoderConfig(_Sizes, DecoderConfig):
    """The decoder, from embedded codes to pixels."""

    def build(
        self, image_size: tuple[int, int], in_channels: int, out_channels: int
    ) -> DallePytorchDecoder:
        """Build the decoder with fresh weights."""
        return DallePytorchDecoder(in_channels, out_channels, self)


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(conv3x3(x)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, h, w) to the same shape."""
        out: Tensor = self.net(x) + x
        return out


class DallePytorchEncoder(nn.Module):
    """Pixels to features."""

    fixed_size = False

    def __init__(self, in_channels: int, sizes: _Sizes) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for _ in range(sizes.num_downsamplings):
            layers += [nn.Conv2d(width, sizes.hidden_channels, 4, stride=2, padding=1), nn.ReLU()]
            width = sizes.hidden_channels
        layers += [ResidualBlock(width) for _ in range(sizes.num_residual_blocks)]
        self.layers = nn.Sequential(*layers)
        self.factors = sizes.factors((0, 0))
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) in [0, 1] to (B, hidden, h, w)."""
        out: Tensor = self.layers((x - 0.5) * 2)
        return out


class DallePytorchDecoder(nn.Module):
    """Embedded codes to pixels."""

    def __init__(self, in_channels: int, out_channels: int, sizes: _Sizes) -> None:
        super().__init__()
        width = sizes.hidden_channels
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 1)]
        layers += [ResidualBlock(width) for _ in range(sizes.num_residual_blocks)]
        for _ in range(sizes.num_downsamplings):
            layers += [nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), nn.ReLU()]
        layers.append(nn.Conv2d(width, out_channels, 1))
        self.layers = nn.Sequential(*layers)
        self.factors = sizes.factors((0, 0))

    @property
    def last_layer(self) -> nn.Module:
        """The layer that yields the result."""
        return self.layers[-1]

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to pixels (B, C, H, W), from which 0.5 is taken."""
        out: Tensor = self.layers(z) / 2
        return out
