"""Encoders and decoders, one family per file: configs and modules. They never see the codebook.

`network.py` says what both are; a family's file holds the configs that describe it and the modules
that they build.
"""

from imagetok.networks.conv import (
    ConvDecoder,
    ConvDecoderConfig,
    ConvEncoder,
    ConvEncoderConfig,
)
from imagetok.networks.dalle import (
    DalleDecoder,
    DalleDecoderConfig,
    DalleEncoder,
    DalleEncoderConfig,
)
from imagetok.networks.mlp import MlpDecoder, MlpDecoderConfig, MlpEncoder, MlpEncoderConfig
from imagetok.networks.network import (
    Decoder,
    DecoderConfig,
    Encoder,
    EncoderConfig,
    checkpoint_activations,
)

__all__ = [
    "ConvDecoder",
    "ConvDecoderConfig",
    "ConvEncoder",
    "ConvEncoderConfig",
    "DalleDecoder",
    "DalleDecoderConfig",
    "DalleEncoder",
    "DalleEncoderConfig",
    "Decoder",
    "DecoderConfig",
    "Encoder",
    "EncoderConfig",
    "MlpDecoder",
    "MlpDecoderConfig",
    "MlpEncoder",
    "MlpEncoderConfig",
    "checkpoint_activations",
]
