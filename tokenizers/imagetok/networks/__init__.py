"""Encoders and decoders, a family a file. They never see the codebook.

An encoder takes pixels (B, C, H, W) in [0, 1] to (B, out_channels, H / f, W / f), a decoder takes
latents (B, in_channels, H / f, W / f) to the likelihood's parameters (B, out_channels, H, W). Both
state `factors`, the (height, width) in pixels of one position. With `out_channels=None` an encoder
has no last projection and yields its features, for a bottleneck that owns that map.
"""

from imagetok.networks.checkpointing import checkpoint_activations
from imagetok.networks.conv import ConvDecoder, ConvEncoder
from imagetok.networks.dalle import DalleDecoder, DalleEncoder
from imagetok.networks.mlp import MlpDecoder, MlpEncoder

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "DalleDecoder",
    "DalleEncoder",
    "MlpDecoder",
    "MlpEncoder",
    "checkpoint_activations",
]
