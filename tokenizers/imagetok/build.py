"""From configuration to parts: the one place that opens a tokenizer's config."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from imagetok import schedules
from imagetok.bottlenecks import (
    Bottleneck,
    GaussianBottleneck,
    GumbelBottleneck,
    IdentityBottleneck,
    VectorQuantizer,
)
from imagetok.config import (
    BottleneckConfig,
    DecoderConfig,
    EncoderConfig,
    LikelihoodConfig,
    ScheduleConfig,
    TokenizerConfig,
)
from imagetok.config.tokenizer import (
    ConvConfig,
    GaussianConfig,
    GumbelConfig,
    IdentityConfig,
    L1Config,
    MlpConfig,
    MseConfig,
    VqConfig,
)
from imagetok.images import Preprocessor
from imagetok.likelihoods import (
    L1Likelihood,
    Likelihood,
    LogitLaplaceLikelihood,
    MseLikelihood,
)
from imagetok.networks import (
    ConvDecoder,
    ConvEncoder,
    DalleDecoder,
    DalleEncoder,
    MlpDecoder,
    MlpEncoder,
)


@dataclass(frozen=True)
class Parts:
    """What an `ImageTokenizer` is made of."""

    preprocessor: Preprocessor
    encoder: nn.Module
    bottleneck: Bottleneck
    decoder: nn.Module
    likelihood: Likelihood


def build_parts(config: TokenizerConfig) -> Parts:
    """Build the parts that a config describes, with fresh weights from torch's generator."""
    wanted = _wanted_channels(config.bottleneck)
    encoder = _build_encoder(config.encoder, config, wanted)
    bottleneck = _build_bottleneck(config.bottleneck, encoder.out_channels)
    likelihood = _build_likelihood(config.likelihood)
    out_channels = likelihood.channel_multiple * config.channels
    return Parts(
        preprocessor=Preprocessor(
            config.image_size,
            channels=config.channels,
            resize=config.preprocessing.resize,
            background=config.preprocessing.background,
        ),
        encoder=encoder,
        bottleneck=bottleneck,
        decoder=_build_decoder(config.decoder, config, bottleneck.latent_dim, out_channels),
        likelihood=likelihood,
    )


def build_schedule(value: float | ScheduleConfig, run_steps: int) -> schedules.Schedule:
    """The schedule that a config describes, for a run of `run_steps`; a number is constant."""
    if not isinstance(value, ScheduleConfig):
        return schedules.constant(value)
    shape = {
        "linear": schedules.linear,
        "cosine": schedules.cosine,
        "exponential": schedules.exponential,
    }[value.type]
    steps = max(1, run_steps - value.begin) if value.steps is None else value.steps
    return shape(value.start, value.end, steps, value.begin)


def _wanted_channels(config: BottleneckConfig) -> int | None:
    """Width of the encoder's last projection; None where the bottleneck owns that map."""
    if isinstance(config, GumbelConfig):
        return None
    return 2 * config.latent_dim if isinstance(config, GaussianConfig) else config.latent_dim


def _build_encoder(
    config: EncoderConfig, model: TokenizerConfig, out_channels: int | None
) -> MlpEncoder | ConvEncoder | DalleEncoder:
    if isinstance(config, MlpConfig):
        return MlpEncoder(model.image_size, model.channels, config.hidden, out_channels)
    if isinstance(config, ConvConfig):
        return ConvEncoder(
            model.channels,
            config.hidden_channels,
            config.residual_channels,
            config.num_residual_blocks,
            config.num_downsamplings,
            out_channels,
        )
    return DalleEncoder(
        model.channels,
        config.hidden_channels,
        config.num_groups,
        config.blocks_per_group,
        out_channels,
    )


def _build_decoder(
    config: DecoderConfig, model: TokenizerConfig, in_channels: int, out_channels: int
) -> nn.Module:
    if isinstance(config, MlpConfig):
        return MlpDecoder(model.image_size, in_channels, config.hidden, out_channels)
    if isinstance(config, ConvConfig):
        return ConvDecoder(
            in_channels,
            config.hidden_channels,
            config.residual_channels,
            config.num_residual_blocks,
            config.num_downsamplings,
            out_channels,
        )
    return DalleDecoder(
        in_channels,
        config.hidden_channels,
        config.num_groups,
        config.blocks_per_group,
        out_channels,
    )


def _build_bottleneck(config: BottleneckConfig, in_channels: int) -> Bottleneck:
    if isinstance(config, IdentityConfig):
        return IdentityBottleneck(config.latent_dim)
    if isinstance(config, GaussianConfig):
        return GaussianBottleneck(config.latent_dim)
    if isinstance(config, VqConfig):
        return VectorQuantizer(**config.model_dump(exclude={"type"}))
    return GumbelBottleneck(in_channels, **config.model_dump(exclude={"type"}))


def _build_likelihood(config: LikelihoodConfig) -> Likelihood:
    if isinstance(config, MseConfig):
        return MseLikelihood(config.scale)
    if isinstance(config, L1Config):
        return L1Likelihood(config.scale)
    return LogitLaplaceLikelihood()
