"""What a tokenizer is: image size, preprocessing, networks, bottleneck and likelihood.

The four parts are looked up by their `type`; what they say about themselves is checked against each
other here, before anything is allocated.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from imagetok.bottlenecks import BottleneckConfig
from imagetok.config.registry import Paper, PartField
from imagetok.config.strict_config import Config, StrictInteger
from imagetok.likelihoods import LikelihoodConfig
from imagetok.networks import DecoderConfig, EncoderConfig

Side = Annotated[int, Field(ge=2, le=16_384)]
Byte = Annotated[int, Field(ge=0, le=255)]


class PreprocessingConfig(Config):
    """How an image becomes `image_size` pixels.

    Attributes:
        resize: Antialiased filter of the resize.
        background: Colour (red, green, blue) under transparent pixels.
        color_profile: With `srgb`, colours of files and PIL images are converted to sRGB by the ICC
            profile that they carry; with `ignore`, values are taken for sRGB.
    """

    later_keys: ClassVar[frozenset[str]] = frozenset({"color_profile"})

    resize: Literal["bicubic", "bilinear"] = "bicubic"
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    color_profile: Literal["ignore", "srgb"] = "ignore"


class TokenizerConfig(Config):
    """All that rebuilds a tokenizer, weights aside.

    Attributes:
        format_version: Version of this schema.
        image_size: (height, width) that images are brought to, at least 2 each.
        channels: 1 gray, 3 RGB, 4 RGBA.
        preprocessing: How images are brought to image_size.
        encoder: Encoder network.
        bottleneck: What lies between the networks; decides the system.
        decoder: Decoder network.
        likelihood: How pixels are scored.
    """

    format_version: Annotated[Literal[1], StrictInteger] = 1
    image_size: tuple[Side, Side]
    channels: Annotated[Literal[1, 3, 4], StrictInteger] = 3
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    encoder: Annotated[EncoderConfig, PartField()]
    bottleneck: Annotated[BottleneckConfig, PartField()]
    decoder: Annotated[DecoderConfig, PartField()]
    likelihood: Annotated[LikelihoodConfig, PartField()]

    @property
    def factors(self) -> tuple[int, int]:
        """(height, width) in pixels of one position of the latent grid."""
        return self.encoder.factors(self.image_size)

    @property
    def grid_size(self) -> tuple[int, int]:
        """(height, width) of the latent grid."""
        return self.image_size[0] // self.factors[0], self.image_size[1] // self.factors[1]

    @property
    def papers(self) -> tuple[Paper, ...]:
        """What the parts come from, each paper once."""
        parts = (self.bottleneck, self.encoder, self.decoder, self.likelihood)
        return tuple(dict.fromkeys(paper for part in parts for paper in part.papers))

    def with_color_profile(self, color_profile: Literal["ignore", "srgb"]) -> Self:
        """The same tokenizer with another treatment of colour profiles."""
        preprocessing = self.preprocessing.model_copy(update={"color_profile": color_profile})
        return self.model_copy(update={"preprocessing": preprocessing})

    def identity(self) -> dict[str, Any]:
        """What decides ids or latents of given weights, as JSON-like values.

        Left out are the decoder, the likelihood, and the `training_only` keys of the parts: a
        tokenizer that was trained otherwise, or by a version that knows more training options, is
        the same one if its weights are the same.
        """
        values = self.to_dict()
        identity = {key: values[key] for key in ("image_size", "channels", "preprocessing")}
        for name, part in (("encoder", self.encoder), ("bottleneck", self.bottleneck)):
            left_out = type(part).training_only
            identity[name] = {k: v for k, v in values[name].items() if k not in left_out}
        return identity

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        factors, decoder_factors = self.factors, self.decoder.factors(self.image_size)
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
        return self
