"""`ImageTokenizer`: images to token ids and back.

One class for AE, VAE, VQ-VAE and dVAE: they differ in the bottleneck and the likelihood only.
`forward` is the training pass; all other methods are inference: no noise but where a draw is asked
for, no gradient, nothing toggled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from imagetok.arguments import check_generator, check_temperature, read_count, read_latents
from imagetok.bottlenecks import (
    DiscreteBottleneck,
    GaussianBottleneck,
    GaussianPosterior,
    GumbelBottleneck,
)
from imagetok.codec import Output, Pictures
from imagetok.errors import (
    InvalidValueError,
    NoPosteriorError,
    NotContinuousError,
    NotDiscreteError,
)
from imagetok.ids import read_ids
from imagetok.outputs import TokenizerOutput
from imagetok.pretrained import PretrainedCodec

__all__ = ["ImageTokenizer", "TokenizerOutput"]


class ImageTokenizer(PretrainedCodec):
    """Encoder, bottleneck, decoder and likelihood behind one pixel contract.

    Built by `from_config` or `from_pretrained`; put together by hand from its parts, as `Codec`
    takes them, it works as well, but cannot be saved, because nothing describes it.
    """

    # The token space

    @property
    def codebook_size(self) -> int:
        """Number of ids: they lie in [0, codebook_size)."""
        return self._discrete().codebook_size

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels that pictures are brought to."""
        return self.preprocessor.image_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """(height, width) of the grid of ids, or of latents, of an image of `image_size`."""
        return self._grid_of(self.image_size)

    @property
    def num_tokens(self) -> int:
        """Positions of the grid: the length of an image's sequence of ids."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def downsample_factor(self) -> int:
        """Side in pixels of the square that one position stands for.

        Raises:
            InvalidValueError: A single position stands for a whole image that is not square.
        """
        height, width = self._factors
        if height != width:
            raise InvalidValueError(
                f"one position stands for the whole image of {height} x {width} pixels: there is "
                "no single factor; compare image_size with grid_size"
            )
        return height

    # Pictures to ids and back

    def preprocess(self, images: Any) -> Tensor:
        """Bring pictures to `image_size`: uint8 (B, C, H, W); what `encode` does first."""
        return self.preprocessor(images)

    def encode(self, images: Any) -> Tensor:
        """Token ids of images.

        Args:
            images: Pictures (path, bytes, PIL image, uint8 array HW/HWC/BHWC, uint8 tensor
                CHW/BCHW, value of a `datasets` Image column; several as a list), which go through
                `preprocess`; or float tensors CHW/BCHW in [0, 1], taken as prepared.

        Returns:
            int64 tensor in [0, codebook_size): (h, w) for one image, (B, h, w) for several.
            `ids.flatten(-2)` is the sequence, row by row.

        Raises:
            NotDiscreteError: The model is continuous.
            ImagetokError: An image is unreadable or ambiguous; the message says what to do.
        """
        return self._map_latents(images, self._discrete().encode_ids)

    def decode(
        self, ids: Any, *, grid: tuple[int, int] | None = None, output: Output = "pil"
    ) -> Pictures | Tensor:
        """Images of token ids.

        Args:
            ids: Integer tensor, array or nested list: (h, w) or (h * w,) for one image, (B, h, w)
                or (B, h * w) for several.
            grid: (h, w) of the ids, where it is not `grid_size`.
            output: `pil`, or `pt` for float tensors in [0, 1].

        Returns:
            One picture or (C, H, W) for one image; a list of pictures or (B, C, H, W) for several.

        Raises:
            NotDiscreteError: The model is continuous.
            IdsTypeError, IdsError: Wrong dtype, range or shape.
        """
        bottleneck = self._discrete()
        wanted = self._check_grid(self.grid_size if grid is None else grid)
        batch, single = read_ids(ids, bottleneck.codebook_size, wanted)
        return self._show(batch, single, output, bottleneck.lookup)

    def reconstruct(self, images: Any, *, output: Output = "pil") -> Pictures | Tensor:
        """Encode and decode without noise; arguments as `encode`, result as `decode`."""
        latents, single = self._latents(images, self.bottleneck.latents)
        return self._show(latents, single, output)

    # Latents and distributions

    def encode_latents(self, images: Any) -> Tensor:
        """What the decoder gets for images, without noise.

        Returns:
            Float (latent_dim, h, w) for one image, (B, latent_dim, h, w) for several: the AE's
            latents, the VAE's posterior mean, or the codes that `encode` chooses.
        """
        return self._map_latents(images, self.bottleneck.latents)

    def decode_latents(self, latents: Tensor, *, output: Output = "pil") -> Pictures | Tensor:
        """Images of latents (latent_dim, h, w) or (B, latent_dim, h, w); result as `decode`.

        Raises:
            InvalidTypeError: latents are no float tensor.
            InvalidValueError: They have another shape, or values that are not finite.
        """
        batch, single = read_latents(latents, self.bottleneck.latent_dim)
        self._check_grid((batch.shape[2], batch.shape[3]))
        return self._show(batch, single, output)

    def encode_distribution(self, images: Any) -> Tensor | GaussianPosterior:
        """The posterior over codes or latents.

        Returns:
            dVAE: log-probabilities, float (B, h, w, codebook_size). VAE: `GaussianPosterior(mean,
            log_var)`, each (B, latent_dim, h, w). Without B for one image.

        Raises:
            NoPosteriorError: The model is an AE or a VQ-VAE, which define no distribution.
        """
        bottleneck = self.bottleneck
        if isinstance(bottleneck, GumbelBottleneck):
            return self._map_latents(images, bottleneck.log_probs)
        if isinstance(bottleneck, GaussianBottleneck):
            z, single = self._latents(images, lambda z: z)
            mean, log_var = bottleneck.posterior(z)
            return GaussianPosterior(*((mean[0], log_var[0]) if single else (mean, log_var)))
        raise NoPosteriorError(
            f"a model with {type(bottleneck).__name__} defines no posterior; only a dVAE (gumbel) "
            "and a VAE (gaussian) do"
        )

    def sample_ids(
        self, images: Any, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ids from a dVAE's posterior; shapes as `encode`.

        Args:
            images: As for `encode`.
            temperature: 1 draws from the posterior itself, 0 gives `encode`'s ids.
            generator: Source of the noise, on the tokenizer's device; None is torch's global one.

        Raises:
            NoPosteriorError: The model is no dVAE.
            InvalidTypeError: The temperature is no number, or the generator is none of torch's.
            InvalidValueError: It is negative or not finite.
        """
        bottleneck = self.bottleneck
        if not isinstance(bottleneck, GumbelBottleneck):
            raise NoPosteriorError(
                f"a model with {type(bottleneck).__name__} has no distribution over ids; only a "
                "dVAE (gumbel) has"
            )
        scale = check_temperature(temperature)
        check_generator(generator)
        return self._map_latents(images, lambda z: bottleneck.sample_ids(z, scale, generator))

    def sample(
        self,
        num_images: int,
        generator: torch.Generator | None = None,
        *,
        output: Output = "pil",
    ) -> Pictures | Tensor:
        """Decode draws from a VAE's prior N(0, I); a list of pictures, or (B, C, H, W).

        Raises:
            NoPosteriorError: The model is no VAE.
            InvalidTypeError, InvalidValueError: num_images is no integer, or negative; or the
                generator is none of torch's.
        """
        if not isinstance(self.bottleneck, GaussianBottleneck):
            raise NoPosteriorError(
                f"a model with {type(self.bottleneck).__name__} has no prior to sample; only a VAE "
                "(gaussian) has. For a VQ-VAE or dVAE train a transformer on its ids"
            )
        count = read_count("num_images", num_images, 0)
        check_generator(generator)
        shape = (count, self.bottleneck.latent_dim, *self.grid_size)
        latents = torch.randn(shape, generator=generator, device=self.device, dtype=torch.float32)
        return self.decode_latents(latents, output=output)

    def interpolate(
        self, a: Any, b: Any, steps: int = 8, *, output: Output = "pil"
    ) -> Pictures | Tensor:
        """Decode a straight walk between the latents of two images, both ends included.

        Args:
            a: One image, as for `encode`.
            b: One image of the same grid.
            steps: Images to make, at least 2.
            output: As for `decode`.

        Returns:
            A list of `steps` pictures, or (steps, C, H, W).

        Raises:
            NotContinuousError: The model is discrete: between two codes there is nothing.
            InvalidTypeError: steps is no integer.
            InvalidValueError: Fewer than 2 steps, several images at once, or unequal grids.
        """
        if isinstance(self.bottleneck, DiscreteBottleneck):
            raise NotContinuousError(
                "a discrete model has nothing between its codes to walk through; interpolate with "
                "an AE or a VAE"
            )
        count = read_count("steps", steps, 2)
        start, end = self.encode_latents(a), self.encode_latents(b)
        if start.ndim != 3 or start.shape != end.shape:
            raise InvalidValueError(
                f"interpolate takes two single images of one grid, got latents of shapes "
                f"{tuple(start.shape)} and {tuple(end.shape)}"
            )
        share = torch.linspace(0, 1, count, device=start.device, dtype=start.dtype)
        return self.decode_latents(
            torch.lerp(start[None], end[None], share[:, None, None, None]), output=output
        )

    # Inside

    def _discrete(self) -> DiscreteBottleneck:
        if not isinstance(self.bottleneck, DiscreteBottleneck):
            raise NotDiscreteError(
                f"a model with {type(self.bottleneck).__name__} is continuous and has no ids; use "
                "encode_latents and decode_latents"
            )
        return self.bottleneck
