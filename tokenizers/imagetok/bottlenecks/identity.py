"""No bottleneck but the width of the latents: the plain autoencoder."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from imagetok.bottlenecks.base import Bottleneck, BottleneckOutput


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
        with self._exactly(z) as z_exact:
            return z_exact
