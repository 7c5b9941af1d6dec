"""What a tokenizer is: picture size, preprocessing, networks, bottleneck and likelihood.

The four parts are unions discriminated by `type`. Every size is bounded here, before anything is
allocated, and the parts are checked against each other.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from imagetok.config.base import Config, StrictInteger

Channels = Annotated[int, Field(ge=1, le=65_536)]
Blocks = Annotated[int, Field(ge=0, le=64)]
Side = Annotated[int, Field(ge=2, le=16_384)]
Byte = Annotated[int, Field(ge=0, le=255)]
CodebookSize = Annotated[int, Field(ge=2, le=2**24)]

MAX_TABLE_SIZE = 2**31
"""Upper bound of codebook_size * width: eight gigabytes in float32."""


class PreprocessingConfig(Config):
    """How a picture becomes `image_size` pixels.

    Attributes:
        resize: Antialiased filter of the resize.
        background: Colour (red, green, blue) under transparent pixels.
    """

    resize: Literal["bicubic", "bilinear"] = "bicubic"
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)


class MlpConfig(Config):
    """A fully connected network over the whole image; linear where `hidden` is empty.

    Attributes:
        hidden: Widths of the hidden layers, in the order in which data flows.
    """

    type: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Channels, ...], Field(max_length=64)] = ()


class ConvConfig(Config):
    """The network of the VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937).

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


class DalleEncoderConfig(Config):
    """The dVAE's encoder (Ramesh et al. 2021, arXiv 2102.12092, App. A.2).

    Attributes:
        hidden_channels: Width n of the first group; group g has width 2^g n.
        num_groups: Groups of residual blocks; the factor is 2^(num_groups - 1).
        blocks_per_group: Bottleneck residual blocks a group.
    """

    type: Literal["dalle"] = "dalle"
    hidden_channels: Annotated[int, Field(ge=4, le=16_384, multiple_of=4)] = 256
    num_groups: Annotated[int, Field(ge=1, le=8)] = 4
    blocks_per_group: Annotated[int, Field(ge=1, le=64)] = 2


class DalleDecoderConfig(DalleEncoderConfig):
    """The dVAE's decoder, the encoder mirrored; its input width is the bottleneck's latent_dim."""


EncoderConfig = Annotated[MlpConfig | ConvConfig | DalleEncoderConfig, Field(discriminator="type")]
DecoderConfig = Annotated[MlpConfig | ConvConfig | DalleDecoderConfig, Field(discriminator="type")]


class _Bottleneck(Config):
    """What every bottleneck's config states.

    Attributes:
        training_only: Keys that change neither ids nor latents of given weights.
    """

    training_only: ClassVar[frozenset[str]] = frozenset()


class IdentityConfig(_Bottleneck):
    """No bottleneck but the width of the latents: a plain autoencoder."""

    type: Literal["identity"] = "identity"
    latent_dim: Channels


class GaussianConfig(_Bottleneck):
    """Diagonal Gaussian posterior, reparameterised (Kingma & Welling 2013, arXiv 1312.6114)."""

    type: Literal["gaussian"] = "gaussian"
    latent_dim: Channels


class VqConfig(_Bottleneck):
    """Nearest code with a straight-through gradient (van den Oord et al. 2017, arXiv 1711.00937).

    Attributes:
        codebook_size: Number of codes.
        latent_dim: Channels taken from the encoder and given to the decoder.
        code_dim: Width of a code; where it differs from latent_dim, 1x1 projections lead in and
            out. None means latent_dim.
        normalize: l2-normalise codes and encoder outputs (cosine similarity).
        codebook: Learnt by exponential moving averages or by the codebook loss.
        decay: EMA decay of the codebook, and of the running usage.
        epsilon: Floor of the EMA counts.
        gradient: `straight_through`, or `rotation` (Fifty et al. 2024, arXiv 2410.06424).
        kmeans_init: Start from k-means over encoder outputs instead of random codes.
        restart_below: A code whose running usage falls under this share of 1/codebook_size is
            dead and restarts at an encoder output; 0 never restarts.
    """

    training_only = frozenset(
        {"codebook", "decay", "epsilon", "gradient", "kmeans_init", "restart_below"}
    )

    type: Literal["vq"] = "vq"
    codebook_size: CodebookSize
    latent_dim: Channels
    code_dim: Channels | None = None
    normalize: bool = False
    codebook: Literal["ema", "loss"] = "ema"
    decay: Annotated[float, Field(ge=0, le=1)] = 0.99
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-5
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    kmeans_init: bool = True
    restart_below: Annotated[float, Field(ge=0, lt=1)] = 0.03


class GumbelConfig(_Bottleneck):
    """Categorical posterior relaxed by Gumbel-softmax (Ramesh et al. 2021, arXiv 2102.12092).

    Attributes:
        codebook_size: Number of codes.
        latent_dim: Width of the code embedding, given to the decoder.
        hard: Give the decoder one-hot samples with a straight-through gradient.
        split_below: A code that is the most probable one at less than this share of
            1/codebook_size of the positions is dead and splits another one; 0 never splits, as in
            the paper.
    """

    training_only = frozenset({"hard", "split_below"})

    type: Literal["gumbel"] = "gumbel"
    codebook_size: CodebookSize
    latent_dim: Channels
    hard: bool = False
    split_below: Annotated[float, Field(ge=0, lt=1)] = 0.03


BottleneckConfig = Annotated[
    IdentityConfig | GaussianConfig | VqConfig | GumbelConfig, Field(discriminator="type")
]

Scale = Annotated[float, Field(gt=0, le=1e6)]


class MseConfig(Config):
    """Gaussian likelihood.

    Attributes:
        scale: Standard deviation, or `learnt` for one shared learnt value (sigma-VAE, Rybkin et
            al. 2020, arXiv 2006.13202). 1/sqrt(2) gives the squared error's gradient.
    """

    type: Literal["mse"] = "mse"
    scale: Scale | Literal["learnt"] = math.sqrt(0.5)


class L1Config(Config):
    """Laplace likelihood.

    Attributes:
        scale: Scale b of the density, or `learnt`; 1 gives the absolute error's gradient.
    """

    type: Literal["l1"] = "l1"
    scale: Scale | Literal["learnt"] = 1.0


class LogitLaplaceConfig(Config):
    """Logit-Laplace likelihood of the dVAE, location and scale a pixel from the decoder."""

    type: Literal["logit_laplace"] = "logit_laplace"


LikelihoodConfig = Annotated[MseConfig | L1Config | LogitLaplaceConfig, Field(discriminator="type")]


class TokenizerConfig(Config):
    """All that rebuilds a tokenizer, weights aside.

    Attributes:
        format_version: Version of this schema.
        image_size: (height, width) that pictures are brought to, at least 2 each.
        channels: 1 gray, 3 RGB, 4 RGBA.
        preprocessing: How pictures are brought to image_size.
        encoder: Encoder network.
        bottleneck: What lies between the networks; decides the system.
        decoder: Decoder network.
        likelihood: How pixels are scored.
    """

    format_version: Annotated[Literal[1], StrictInteger] = 1
    image_size: tuple[Side, Side]
    channels: Annotated[Literal[1, 3, 4], StrictInteger] = 3
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    encoder: EncoderConfig
    bottleneck: BottleneckConfig
    decoder: DecoderConfig
    likelihood: LikelihoodConfig

    @property
    def factors(self) -> tuple[int, int]:
        """(height, width) in pixels of one position of the latent grid."""
        return _factors(self.encoder, self.image_size)

    @property
    def grid_size(self) -> tuple[int, int]:
        """(height, width) of the latent grid."""
        return self.image_size[0] // self.factors[0], self.image_size[1] // self.factors[1]

    def identity(self) -> dict[str, Any]:
        """What decides ids or latents of given weights, as JSON-like values.

        Left out are the decoder, the likelihood, and the bottleneck's `training_only` keys: a
        tokenizer trained otherwise, or by a version that knows more training options, is the same
        one if its weights are.
        """
        values = self.model_dump(
            mode="json", include={"image_size", "channels", "preprocessing", "encoder"}
        )
        left_out = set(self.bottleneck.training_only)
        return {**values, "bottleneck": self.bottleneck.model_dump(mode="json", exclude=left_out)}

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        factors, decoder_factors = self.factors, _factors(self.decoder, self.image_size)
        if factors != decoder_factors:
            raise ValueError(
                f"the encoder divides the sides by {factors}, the decoder multiplies them by "
                f"{decoder_factors}; give both the same number of down- and upsamplings"
            )
        if any(side % factor for side, factor in zip(self.image_size, factors, strict=True)):
            raise ValueError(
                f"image_size {self.image_size} is not divisible by the downsampling factor "
                f"{factors[0]}"
            )
        bottleneck = self.bottleneck
        if isinstance(bottleneck, VqConfig | GumbelConfig):
            width = bottleneck.latent_dim
            if isinstance(bottleneck, VqConfig):
                width = bottleneck.code_dim or width
            if bottleneck.codebook_size * width > MAX_TABLE_SIZE:
                raise ValueError(
                    f"a codebook of {bottleneck.codebook_size} x {width} values is over the limit "
                    f"of {MAX_TABLE_SIZE}"
                )
        return self


def _factors(network: EncoderConfig | DecoderConfig, size: tuple[int, int]) -> tuple[int, int]:
    if isinstance(network, MlpConfig):
        return size
    if isinstance(network, ConvConfig):
        factor = 2**network.num_downsamplings
    else:
        factor = 2 ** (network.num_groups - 1)
    return factor, factor
