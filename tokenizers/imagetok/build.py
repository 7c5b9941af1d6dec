"""From a tokenizer's config to its parts: each part builds itself, and widths are passed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import nn

from imagetok.bottlenecks import Bottleneck
from imagetok.images import Preprocessor
from imagetok.likelihoods import Likelihood
from imagetok.tokenizer_config import TokenizerConfig


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
    size, channels = config.image_size, config.channels
    encoder = config.encoder.build(size, channels, config.bottleneck.encoder_channels)
    bottleneck = config.bottleneck.build(encoder.out_channels)
    likelihood = config.likelihood.build()
    out_channels = likelihood.channel_multiple * channels
    decoder = config.decoder.build(size, bottleneck.latent_dim, out_channels)
    return Parts(
        preprocessor=Preprocessor(
            size,
            channels=channels,
            resize=config.preprocessing.resize,
            background=config.preprocessing.background,
            color_profile=config.preprocessing.color_profile,
        ),
        encoder=cast(nn.Module, encoder),
        bottleneck=bottleneck,
        decoder=cast(nn.Module, decoder),
        likelihood=likelihood,
    )
