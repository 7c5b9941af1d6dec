"""The networks of the dVAE: groups of bottleneck residual blocks.

Ramesh et al., Zero-Shot Text-to-Image Generation, 2021, arXiv 2102.12092, App. A.2. Max-pooling
between the encoder's groups, nearest-neighbour upsampling between the decoder's, a 7x7 convolution
at the input. A residual branch is scaled by 1 / n_layers^2, n_layers being the number of blocks of
the network, so that activations stay small enough for half precision. The maps from features to
logits and from codes to the decoder's input belong to the bottleneck.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from imagetok.config.registry import PartConfig
from imagetok.networks.network import CheckpointedBlock, DecoderConfig, EncoderConfig

SQUEEZE = 0.1
"""The encoder sees pixels squeezed to [SQUEEZE, 1 - SQUEEZE], as the likelihood scores them."""


class _DalleSizes(PartConfig):
    """The sizes that encoder and decoder have in common.

    Attributes:
        hidden_channels: Width n of the group at the image's resolution; a group at 1 / 2^g of it
            has width 2^g n.
        num_groups: Groups of residual blocks; the factor is 2^(num_groups - 1).
        blocks_per_group: Bottleneck residual blocks per group.
    """

    type: Literal["dalle"] = "dalle"
    hidden_channels: Annotated[int, Field(ge=4, le=16_384, multiple_of=4)] = 256
    num_groups: Annotated[int, Field(ge=1, le=8)] = 4
    blocks_per_group: Annotated[int, Field(ge=1, le=64)] = 2

    def factors(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels of one position."""
        return 2 ** (self.num_groups - 1), 2 ** (self.num_groups - 1)


class DalleEncoderConfig(_DalleSizes, EncoderConfig):
    """The dVAE's encoder (Ramesh et al. 2021, arXiv 2102.12092, App. A.2)."""

    def build(
        self, image_size: tuple[int, int], in_channels: int, out_channels: int | None
    ) -> DalleEncoder:
        """Build the encoder with fresh weights."""
        return DalleEncoder(
            in_channels, self.hidden_channels, self.num_groups, self.blocks_per_group, out_channels
        )


class DalleDecoderConfig(_DalleSizes, DecoderConfig):
    """The dVAE's decoder, the encoder mirrored; its input width is the bottleneck's latent_dim."""

    def build(
        self, image_size: tuple[int, int], in_channels: int, out_channels: int
    ) -> DalleDecoder:
        """Build the decoder with fresh weights."""
        return DalleDecoder(
            in_channels, self.hidden_channels, self.num_groups, self.blocks_per_group, out_channels
        )


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=(in_channels * kernel**2) ** -0.5)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class BottleneckBlock(CheckpointedBlock):
    """A residual block through a quarter of the width.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output; a 1x1 convolution leads there where it differs.
        kernels: Kernel sizes of the branch's four convolutions, each after a ReLU.
        gain: Factor of the branch.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernels: tuple[int, ...], gain: float
    ) -> None:
        super().__init__()
        hidden = out_channels // 4
        widths = [in_channels, *[hidden] * (len(kernels) - 1), out_channels]
        layers: list[nn.Module] = []
        for (width_in, width_out), kernel in zip(pairwise(widths), kernels, strict=True):
            layers += [nn.ReLU(), _conv(width_in, width_out, kernel)]
        self.branch = nn.Sequential(*layers)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else _conv(in_channels, out_channels, 1)
        self.gain = gain

    def _forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.skip(x) + self.gain * self.branch(x)
        return out


class DalleEncoder(nn.Module):
    """Groups of residual blocks, widening as the resolution falls.

    ```
    (B, C, H, W) -> conv7x7 -> group(n) -> pool -> group(2n) -> pool -> ... -> group(2^(G-1) n)
                 -> relu -> conv1x1 -> (B, out_channels, H / 2^(G-1), W / 2^(G-1))
    ```

    Args:
        in_channels: C of the image.
        hidden: Width n of the first group.
        num_groups: Groups G.
        blocks_per_group: Residual blocks per group.
        out_channels: Width of the result; None leaves the last convolution out.
    """

    fixed_size = False

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        num_groups: int,
        blocks_per_group: int,
        out_channels: int | None,
    ) -> None:
        super().__init__()
        gain = 1 / (num_groups * blocks_per_group) ** 2
        layers: list[nn.Module] = [_conv(in_channels, hidden, 7)]
        width = hidden
        for group in range(num_groups):
            if group:
                layers.append(nn.MaxPool2d(2))
            for _ in range(blocks_per_group):
                layers.append(BottleneckBlock(width, hidden * 2**group, (3, 3, 3, 1), gain))
                width = hidden * 2**group
        layers.append(nn.ReLU())
        if out_channels is not None:
            layers.append(_conv(width, out_channels, 1))
        self.layers = nn.Sequential(*layers)
        self.factors = (2 ** (num_groups - 1), 2 ** (num_groups - 1))
        self.out_channels = width if out_channels is None else out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) in [0, 1] to (B, out_channels, H / 2^(G-1), W / 2^(G-1))."""
        out: Tensor = self.layers((1 - 2 * SQUEEZE) * x + SQUEEZE)
        return out


class DalleDecoder(nn.Module):
    """Groups of residual blocks, narrowing as the resolution rises.

    ```
    (B, in_channels, h, w) -> group(2^(G-1) n) -> upsample -> ... -> group(n) -> relu -> conv1x1
                           -> (B, out_channels, 2^(G-1) h, 2^(G-1) w)
    ```

    Args:
        in_channels: Width of the latents.
        hidden: Width n of the last group.
        num_groups: Groups G.
        blocks_per_group: Residual blocks per group.
        out_channels: Channels of the likelihood's parameters.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        num_groups: int,
        blocks_per_group: int,
        out_channels: int,
    ) -> None:
        super().__init__()
        gain = 1 / (num_groups * blocks_per_group) ** 2
        layers: list[nn.Module] = []
        width = in_channels
        for group in reversed(range(num_groups)):
            for _ in range(blocks_per_group):
                layers.append(BottleneckBlock(width, hidden * 2**group, (1, 3, 3, 3), gain))
                width = hidden * 2**group
            if group:
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        layers += [nn.ReLU(), _conv(width, out_channels, 1)]
        self.layers = nn.Sequential(*layers)
        self.factors = (2 ** (num_groups - 1), 2 ** (num_groups - 1))

    @property
    def last_layer(self) -> nn.Module:
        """The layer that yields the result."""
        return self.layers[-1]

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, 2^(G-1) h, 2^(G-1) w)."""
        out: Tensor = self.layers(z)
        return out
