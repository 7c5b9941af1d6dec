"""No bottleneck but the width of the latents: the plain autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

from imagetok.bottlenecks.bottleneck import Bottleneck, BottleneckConfig, LatentDim
from imagetok.config.registry import Paper
from imagetok.outputs import BottleneckOutput

AUTOENCODER = Paper(
    "article",
    "hinton2006reducing",
    "Reducing the Dimensionality of Data with Neural Networks",
    "Hinton, Geoffrey E. and Salakhutdinov, Ruslan R.",
    2006,
    "Science 313(5786)",
)


class IdentityConfig(BottleneckConfig):
    """No bottleneck but the width of the latents: a plain autoencoder."""

    title: ClassVar[str] = "AE"
    tag: ClassVar[str] = "autoencoder"
    about: ClassVar[str] = "It turns an image into a grid of latents, and back."
    card_words: ClassVar[str] = "none but the width of the latents"
    weakness: ClassVar[str] = (
        "Latents have no order: one that no image was encoded to decodes to nothing in particular, "
        "so there is no sampling, and a walk between two images may pass through what is not an "
        "image."
    )
    is_discrete: ClassVar[bool] = False

    type: Literal["identity"] = "identity"
    latent_dim: LatentDim

    @property
    def papers(self) -> tuple[Paper, ...]:
        """The autoencoder."""
        return (AUTOENCODER,)

    def build(self, in_channels: int) -> IdentityBottleneck:
        """Build the bottleneck."""
        return IdentityBottleneck(self.latent_dim)


class IdentityBottleneck(Bottleneck):
    """z_q = z.

    Args:
        latent_dim: Channels of the latents.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim, latent_dim)

    def _forward(
        self, z: Tensor, values: Mapping[str, float], keys: Tensor | None
    ) -> BottleneckOutput:
        return BottleneckOutput(z_q=z)

    def latents(self, z: Tensor) -> Tensor:
        """Z itself, in float32 or better."""
        with self.full_precision(z) as z_full:
            return z_full
