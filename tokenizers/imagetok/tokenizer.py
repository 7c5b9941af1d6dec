"""`ImageTokenizer`: images to token ids and back.

```
 image -> Preprocessor -> x (B, C, H, W) -> encoder -> z -> bottleneck -> z_q -> decoder -> params
                                                               |                             |
                                                         ids (B, h, w)     likelihood: score, x_hat
```

One class for AE, VAE, VQ-VAE and dVAE: they differ in the bottleneck and the likelihood only.
`forward` is the training pass; all other methods are inference: no noise but where a draw is asked
for, no gradient, nothing toggled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from imagetok.bottlenecks import (
    Bottleneck,
    DiscreteBottleneck,
    GaussianBottleneck,
    GaussianPosterior,
    GumbelBottleneck,
    Statistics,
)
from imagetok.build import build_parts
from imagetok.config import TokenizerConfig
from imagetok.errors import (
    ImageValueError,
    InvalidValueError,
    ModelFileError,
    NoPosteriorError,
    NotContinuousError,
    NotDiscreteError,
)
from imagetok.hub import carry_evaluation, load_model, save_model, tensors_digest
from imagetok.ids import read_ids
from imagetok.images import Preprocessor, to_pil
from imagetok.likelihoods import Likelihood

BATCH_SIZE = 32
"""Images encoded or decoded at once; longer inputs are worked through in pieces of this many."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Output = Literal["pil", "pt"]
Pictures = Image.Image | list[Image.Image]


@dataclass(frozen=True)
class TokenizerOutput:
    """Result of the training pass.

    Attributes:
        x_hat: float (B, C, H, W) in [0, 1], the reconstruction, detached.
        ids: int64 (B, h, w), or None for a continuous model.
        losses: Unweighted scalars keyed `loss/...`; `loss/reconstruction` and `loss/kl` in nats a
            pixel and channel, so that weight 1 on both is the ELBO for every shape.
        metrics: Detached scalars keyed `group/name`.
        statistics: For `bottleneck.update`.
    """

    x_hat: Tensor
    ids: Tensor | None
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    statistics: Statistics | None = None


class ImageTokenizer(nn.Module):
    """Encoder, bottleneck, decoder and likelihood behind one pixel contract.

    Built by `from_config` or `from_pretrained`; put together by hand from parts it works as well,
    but cannot be saved, because nothing describes it.

    Args:
        preprocessor: Brings pictures to the encoder's size.
        encoder: Network with an attribute `factors`.
        bottleneck: What lies between the networks.
        decoder: Network that yields the likelihood's parameters.
        likelihood: Scores pixels and yields the reconstruction.
        config: What the parts were built from.
    """

    encoder: nn.Module
    bottleneck: Bottleneck
    decoder: nn.Module

    def __init__(
        self,
        preprocessor: Preprocessor,
        encoder: nn.Module,
        bottleneck: Bottleneck,
        decoder: nn.Module,
        likelihood: Likelihood,
        config: TokenizerConfig | None = None,
    ) -> None:
        super().__init__()
        self.preprocessor = preprocessor
        self.encoder, self.bottleneck, self.decoder = encoder, bottleneck, decoder
        self.likelihood = likelihood
        self.config = config
        self._exact_fingerprint: str | None = None
        self._source: Path | None = None

    # Building, saving, loading

    @classmethod
    def from_config(cls, config: TokenizerConfig) -> Self:
        """Build with fresh weights, drawn from torch's global generator."""
        parts = build_parts(config)
        return cls(
            parts.preprocessor,
            parts.encoder,
            parts.bottleneck,
            parts.decoder,
            parts.likelihood,
            config,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Self:
        """Load a saved tokenizer.

        Args:
            name: Local folder that `save_pretrained` wrote.
            device: Where to put it; None is the CPU.
            dtype: Of the two networks: float32, bfloat16 or float16; None is float32.

        Raises:
            ModelFileError: The folder or a file is missing, damaged, or disagrees with itself.
            InvalidValueError: Unknown dtype.
        """
        network_dtype = _read_dtype(dtype)
        files = load_model(name)
        with torch.device("meta"):  # nothing is allocated before the file is known to fit
            expected = cls.from_config(files.config).state_dict()
        _check_tensors(expected, files.tensors, str(files.path))
        with torch.random.fork_rng(devices=[]):
            tokenizer = cls.from_config(files.config)
        tokenizer.load_state_dict(files.tensors)
        tokenizer.requires_grad_(False).eval()
        tokenizer._source = files.path.parent
        return tokenizer.to(device=device, dtype=network_dtype)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `model.safetensors` and `config.json`; an interrupted save leaves the old files.

        The figures and the picture that lie beside the loaded file go along while they are of the
        same weights.

        Weights are saved in float32: those of a tokenizer in a half type as that type rounded them.

        Raises:
            InvalidValueError: The tokenizer was put together by hand and has no config.
        """
        if self.config is None:
            raise InvalidValueError(
                "this tokenizer was put together from parts and has no config, so no file could "
                "rebuild it; build it with ImageTokenizer.from_config to save it"
            )
        save_model(folder, self.config, self.state_dict())
        if self._source is not None:
            carry_evaluation(self._source, folder)

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

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides ids or latents.

        Weights and configuration of encoder and bottleneck, and the preprocessing. A decoder that
        is trained further keeps it; so does a change of device, or of dtype from float32.
        """
        if self._exact_fingerprint is not None:
            return self._exact_fingerprint
        tensors = {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.startswith(("encoder.", "bottleneck."))
        }
        digest = hashlib.sha256(tensors_digest(tensors).encode())
        if self.config is not None:
            decides = self.config.model_dump(mode="json", exclude={"decoder", "likelihood"})
            digest.update(json.dumps(decides, sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.encoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the two networks; bottleneck and likelihood stay in float32 or better."""
        return next(self.encoder.parameters()).dtype

    # Training

    def forward(
        self,
        x: Tensor,
        values: Mapping[str, float] | None = None,
        keys: Tensor | None = None,
    ) -> TokenizerOutput:
        """The training pass; changes no state.

        Args:
            x: Pixels, float (B, C, H, W) in [0, 1].
            values: This step's schedule values, such as `temperature`.
            keys: int64 (B,), the key of each sample's noise; None draws torch's ordinary noise.
        """
        inner = self.bottleneck(self.encoder(x), values, keys)
        params = self.decoder(inner.z_q.to(x.dtype))
        nats = {**inner.losses, "loss/reconstruction": self.likelihood.nll(params, x).mean()}
        for name in ("loss/reconstruction", "loss/kl"):
            if name in nats:
                nats[name] = nats[name] / x[0].numel()
        return TokenizerOutput(
            x_hat=self.likelihood.mean(params.detach()),
            ids=inner.ids,
            losses=nats,
            metrics=inner.metrics,
            statistics=inner.statistics,
        )

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
        """Images of latents (latent_dim, h, w) or (B, latent_dim, h, w); result as `decode`."""
        if not isinstance(latents, Tensor) or not latents.is_floating_point():
            kind = latents.dtype if isinstance(latents, Tensor) else type(latents).__name__
            raise InvalidValueError(f"latents must be a float tensor, got {kind}")
        single = latents.ndim == 3
        batch = latents[None] if single else latents
        if batch.ndim != 4 or batch.shape[1] != self.bottleneck.latent_dim:
            raise InvalidValueError(
                f"latents of shape {tuple(latents.shape)} do not fit: expected "
                f"({self.bottleneck.latent_dim}, h, w) or (B, {self.bottleneck.latent_dim}, h, w)"
            )
        if not torch.isfinite(batch).all():
            raise InvalidValueError("latents have values that are not finite")
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
            InvalidValueError: Negative or infinite temperature.
        """
        bottleneck = self.bottleneck
        if not isinstance(bottleneck, GumbelBottleneck):
            raise NoPosteriorError(
                f"a model with {type(bottleneck).__name__} has no distribution over ids; only a "
                "dVAE (gumbel) has"
            )
        if not 0 <= temperature < float("inf"):
            raise InvalidValueError(f"temperature must be finite and >= 0, got {temperature}")
        return self._map_latents(images, lambda z: bottleneck.sample_ids(z, temperature, generator))

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
        """
        if not isinstance(self.bottleneck, GaussianBottleneck):
            raise NoPosteriorError(
                f"a model with {type(self.bottleneck).__name__} has no prior to sample; only a VAE "
                "(gaussian) has. For a VQ-VAE or dVAE train a transformer on its ids"
            )
        shape = (num_images, self.bottleneck.latent_dim, *self.grid_size)
        latents = torch.randn(shape, generator=generator, device=self.device)
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
            InvalidValueError: Fewer than 2 steps, several images at once, or unequal grids.
        """
        if isinstance(self.bottleneck, DiscreteBottleneck):
            raise NotContinuousError(
                "a discrete model has nothing between its codes to walk through; interpolate with "
                "an AE or a VAE"
            )
        if steps < 2:
            raise InvalidValueError(f"interpolate needs steps >= 2, got {steps}")
        start, end = self.encode_latents(a), self.encode_latents(b)
        if start.ndim != 3 or start.shape != end.shape:
            raise InvalidValueError(
                f"interpolate takes two single images of one grid, got latents of shapes "
                f"{tuple(start.shape)} and {tuple(end.shape)}"
            )
        share = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype)
        return self.decode_latents(
            torch.lerp(start[None], end[None], share[:, None, None, None]), output=output
        )

    # Inside

    @property
    def _factors(self) -> tuple[int, int]:
        return cast(tuple[int, int], self.encoder.factors)

    def _grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self._factors[0], size[1] // self._factors[1]

    def _discrete(self) -> DiscreteBottleneck:
        if not isinstance(self.bottleneck, DiscreteBottleneck):
            raise NotDiscreteError(
                f"a model with {type(self.bottleneck).__name__} is continuous and has no ids; use "
                "encode_latents and decode_latents"
            )
        return self.bottleneck

    def _check_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        height, width = grid
        if height < 1 or width < 1:
            raise InvalidValueError(f"grid must be (height, width) of at least 1, got {grid}")
        if self._factors == self.image_size and (height, width) != (1, 1):
            raise InvalidValueError(
                f"this decoder makes images of {self.image_size} only, from a grid of (1, 1); got "
                f"a grid of {grid}"
            )
        return height, width

    def _map_latents(self, images: Any, function: Callable[[Tensor], Tensor]) -> Tensor:
        result, single = self._latents(images, function)
        return result[0] if single else result

    @torch.no_grad()
    def _latents(self, images: Any, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, bool]:
        """Apply a function to the encoder's output of images, piece by piece."""
        pieces, single = [], False
        for part in _split(images):
            x, single = self.preprocessor.batch(part, self._factors)
            self._check_grid(self._grid_of((x.shape[2], x.shape[3])))
            with torch.autocast(self.device.type, enabled=False):
                z = self.encoder(x.to(self.device, self.dtype))
                if not torch.isfinite(z).all():
                    raise InvalidValueError(
                        f"the encoder's output is not finite in {self.dtype}; load the tokenizer "
                        "with dtype='float32' or 'bfloat16'"
                    )
                pieces.append(function(z))
        if len({piece.shape[1:] for piece in pieces}) > 1:
            raise ImageValueError(
                "a list of float tensors must have one size; encode different sizes one by one"
            )
        return torch.cat(pieces), single

    @torch.no_grad()
    def _show(
        self,
        batch: Tensor,
        single: bool,
        output: Output,
        lookup: Callable[[Tensor], Tensor] = lambda z_q: z_q,
    ) -> Pictures | Tensor:
        """Decode a batch of latents, or of what `lookup` makes latents of, piece by piece."""
        if output not in get_args(Output):
            raise InvalidValueError(f"unknown output {output!r}; choose one of: pil, pt")
        pieces = []
        for part in torch.split(batch.to(self.device), BATCH_SIZE):
            with torch.autocast(self.device.type, enabled=False):
                x_hat = self.likelihood.mean(self.decoder(lookup(part).to(self.dtype)))
            if not torch.isfinite(x_hat).all():
                raise InvalidValueError(
                    f"the decoder's output is not finite in {self.dtype}; load the tokenizer with "
                    "dtype='float32' or 'bfloat16'"
                )
            pieces.append(x_hat)
        images = torch.cat(pieces)
        images = images[0] if single else images
        return images if output == "pt" else to_pil(images)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        # Narrowing the networks is a numeric setting, not another tokenizer: the fingerprint is
        # taken before it and kept until they are widened again.
        before = self.fingerprint if self.dtype.itemsize >= 4 and self._narrows(fn) else None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.dtype.itemsize >= 4:
            self._exact_fingerprint = None
        elif before is not None:
            self._exact_fingerprint = before
        return self

    def _narrows(self, fn: Callable[[Any], Any]) -> bool:
        probe: Tensor = fn(next(self.encoder.parameters()).detach()[:0])
        return probe.dtype.itemsize < 4


def _read_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype or torch.float32
    if found not in DTYPES.values():
        raise InvalidValueError(f"unknown dtype {dtype!r}; choose one of: {', '.join(DTYPES)}")
    return cast(torch.dtype, found)


def _split(images: Any) -> Iterator[Any]:
    """Long inputs in pieces; what has no length, and an empty batch, as it is."""
    several = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
    if not several or len(images) <= BATCH_SIZE:
        yield images
        return
    for start in range(0, len(images), BATCH_SIZE):
        yield images[start : start + BATCH_SIZE]


def _check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str) -> None:
    """Compare the tensors of a file with those of the model that its config describes."""
    faults = [f"missing {name}" for name in expected if name not in found]
    faults += [f"unexpected {name}" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        want, have = expected[name], found[name]
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            faults.append(
                f"{name} is {have.dtype} {tuple(have.shape)}, expected {want.dtype} "
                f"{tuple(want.shape)}"
            )
    if faults:
        raise ModelFileError(
            f"{path}: the tensors do not fit the config: {'; '.join(sorted(faults)[:8])}"
        )
