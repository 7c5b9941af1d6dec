"""`ImageTokenizer`: images to token ids and back.

```
 images -> Preprocessor -> x (B, C, H, W) -> encoder -> z -> bottleneck -> z_q -> decoder -> params
                                                                |                              |
                                              ids (B, *token_shape)      likelihood: score, x_hat
```

One class for AE, VAE, VQ-VAE and dVAE: they differ in the bottleneck and the likelihood only.
`forward` is the training pass; all other methods are inference: no noise except where a draw is
asked for, no gradient, nothing toggled. Each network gets its input in its own dtype; at inference
autocast is off, and an output that is not finite is refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from imagetok.arguments import (
    check_generator,
    check_pixels,
    check_temperature,
    read_count,
    read_dtype,
    read_folder,
    read_latents,
)
from imagetok.bottlenecks import (
    Bottleneck,
    DiscreteBottleneck,
    GaussianPosterior,
    ParameterGroup,
)
from imagetok.build import build_parts, without_values
from imagetok.compiled_network import CompiledNetwork, check_compiler
from imagetok.config import printable
from imagetok.errors import InvalidValueError, NotContinuousError, NotDiscreteError
from imagetok.ids import read_grid, read_ids, read_sequence
from imagetok.images import Preprocessor, to_pil, to_unit
from imagetok.launch import read_device
from imagetok.likelihoods import Likelihood
from imagetok.modelfile import ModelFiles
from imagetok.outputs import TokenizerOutput
from imagetok.pretrained import Origin, open_pretrained, push_pretrained, save_pretrained
from imagetok.tokenizer_config import TokenizerConfig
from imagetok.weight_fingerprint import WeightFingerprint

if TYPE_CHECKING:
    from imagetok.hub import Pushed

__all__ = ["ImageTokenizer", "TokenizerOutput"]

BATCH_SIZE = 32
"""Images encoded or decoded at once; longer inputs are worked through in pieces of this many."""

Output = Literal["pil", "pt"]
Images = Image.Image | list[Image.Image]


class ImageTokenizer(nn.Module):
    """Encoder, bottleneck, decoder and likelihood behind one pixel contract.

    Built by `from_config` or `from_pretrained`; put together by hand from its parts it works as
    well, but cannot be saved, because nothing describes it.

    Args:
        preprocessor: Brings images to the encoder's size.
        encoder: Network with an attribute `factors`; see `imagetok.networks.Encoder`.
        bottleneck: What lies between the networks.
        decoder: Network that yields the likelihood's parameters.
        likelihood: Scores pixels and yields the reconstruction.
        config: What the parts were built from.

    Attributes:
        origin: Where the tokenizer was loaded from; None if it was built.
    """

    encoder: nn.Module
    bottleneck: Bottleneck
    decoder: nn.Module
    origin: Origin | None = None
    _compiled: tuple[CompiledNetwork, CompiledNetwork] | None = None

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
        self._fingerprint = WeightFingerprint()

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

        Raises:
            InvalidTypeError: x is not a batch of pixels: calling a tokenizer trains it, and
                `encode` is what takes images.
        """
        check_pixels(x)
        z = self.encode_pixels(x)
        inner = self.bottleneck(z, values, keys)
        params = self.decode_params(inner.z_q)
        nats = {**inner.losses, "loss/reconstruction": self.likelihood.nll(params, x).mean()}
        for name in ("loss/reconstruction", "loss/kl"):
            if name in nats:
                nats[name] = nats[name] / x[0].numel()
        mean = self.likelihood.mean(params)
        return TokenizerOutput(
            mean=mean,
            x_hat=mean.detach().clamp(0, 1),
            ids=inner.ids,
            losses=nats,
            metrics=inner.metrics,
            statistics=inner.statistics,
        )

    def encode_pixels(self, x: Tensor) -> Tensor:
        """The encoder's output for pixels: the one way from an image's pixels to z.

        Args:
            x: uint8 (B, C, H, W), or float (B, C, H, W) in [0, 1], on any device.

        Returns:
            Float (B, d, h, w) in the encoder's dtype, or as autocast has it.
        """
        dtype, x = self._dtype_of(self.encoder), x.to(self.device)
        x = x.to(dtype) if x.is_floating_point() else to_unit(x, dtype)
        compiled, _ = self._code_for(x)
        out: Tensor = self.encoder(x) if compiled is None else compiled(self.encoder, x)
        return out

    def decode_params(self, z_q: Tensor) -> Tensor:
        """The decoder's output for latents: the one way from latents to the likelihood.

        Args:
            z_q: Float (B, latent_dim, h, w) on the tokenizer's device.

        Returns:
            Float (B, C * channel_multiple, H, W) in the decoder's dtype, or as autocast has it.
        """
        z_q = z_q.to(self._dtype_of(self.decoder))
        _, compiled = self._code_for(z_q)
        out: Tensor = self.decoder(z_q) if compiled is None else compiled(self.decoder, z_q)
        return out

    @torch.no_grad()
    def choose_ids(self, z: Tensor) -> Tensor:
        """Ids of the encoder's output, without noise: the second half of `encode`.

        Args:
            z: What `encode_pixels` gives, float (B, d, h, w) on the tokenizer's device.

        Returns:
            int64 (B, *token_shape) in [0, codebook_size), on the same device.

        Raises:
            NotDiscreteError: The model is continuous.
            InvalidValueError: z has another shape.
        """
        return self._discrete().encode_ids(z)

    @torch.no_grad()
    def choose_codes(self, z: Tensor) -> tuple[Tensor | None, Tensor]:
        """What inference makes of the encoder's output, without noise.

        Args:
            z: What `encode_pixels` gives, float (B, d, h, w) on the tokenizer's device.

        Returns:
            Ids as `choose_ids` gives them, None of a continuous model, and the decoder's input,
            float (B, latent_dim, h, w).

        Raises:
            InvalidValueError: z has another shape.
        """
        if not self.is_discrete:
            return None, self.bottleneck.latents(z)
        ids = self.choose_ids(z)
        return ids, self._discrete().lookup(ids)

    def parameter_groups(self) -> dict[str, ParameterGroup]:
        """How parameters are learnt, by name, where the defaults do not apply."""
        groups = self.bottleneck.parameter_groups()
        return {f"bottleneck.{name}": group for name, group in groups.items()}

    # Files and the Hub

    @property
    def revision(self) -> str | None:
        """Commit on the Hub that the tokenizer was loaded from; None if it came from elsewhere."""
        return None if self.origin is None else self.origin.revision

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
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        max_pixels: int | None = None,
    ) -> Self:
        """Load a saved tokenizer.

        Args:
            name: Local folder that `save_pretrained` or a run wrote, or repository `user/name` on
                the Hub. Where there is such a folder, it is taken.
            revision: Branch, tag or commit on the Hub; None is its main branch. It is resolved once
                to the commit that every file comes from; `revision` of the result names it.
            subfolder: Folder in the repository that holds the tokenizer.
            token: Key to private repositories; None takes the one that `hf auth login` saved, False
                sends none.
            cache_dir: Folder that keeps the Hub's files; None is huggingface_hub's own.
            local_files_only: Take what is in the cache, and make no request.
            device: Where to put it; None is the CPU.
            dtype: Type of the two networks: float32, bfloat16 or float16; None is float32.
            max_pixels: Most pixels of an image that is read, as the attribute of this name.

        Raises:
            ModelFileError: The folder or a file is missing, damaged, or disagrees with itself. A
                damaged download is taken out of the cache, so that the next call fetches it again.
            HubAccessError: The repository, revision or file is not there, or not allowed.
            HubError: The Hub cannot be reached.
            InvalidValueError: Unknown dtype, a device that this machine does not have, a revision
                given for a local folder, or a limit out of range.
            InvalidTypeError: name is not a path.
        """
        network_dtype, network_device = read_dtype(dtype), read_device(device)
        files, origin = open_pretrained(
            name,
            expect=cls._expect,
            revision=revision,
            subfolder=subfolder,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        tokenizer = cls._from_files(files)
        tokenizer.origin = origin
        if max_pixels is not None:
            tokenizer.max_pixels = max_pixels
        return tokenizer.to(device=network_device, dtype=network_dtype)

    @classmethod
    def _expect(cls, config: TokenizerConfig) -> dict[str, Tensor]:
        """The tensors of a config's model, of which nothing is allocated."""
        with without_values():
            return cls.from_config(config).float().state_dict()

    @classmethod
    def _from_files(cls, files: ModelFiles) -> Self:
        # Whatever torch's defaults are, and drawing nothing from its generator.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            tokenizer = cls.from_config(files.config).float()
        tokenizer.load_state_dict(files.tensors)
        return tokenizer.requires_grad_(False).eval()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `model.safetensors`, `config.json` and a card; interrupted, the old files stay.

        The figures and the image that lie beside the loaded file are copied if they belong to the
        same weights.

        Weights are saved in float32; those of a tokenizer in a half-precision type as that type has
        rounded them.

        Raises:
            InvalidValueError: The tokenizer was put together by hand and has no config, or a
                weight is not finite.
            InvalidTypeError: folder is not a path.
            UnwritableFileError: The folder cannot be made or written.
        """
        save_pretrained(read_folder(folder), self.config, self.state_dict(), self.origin)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        token: str | bool | None = None,
    ) -> Pushed:
        """Save to a repository on the Hub, in one commit; it is made where it is missing.

        A card that was edited there is kept: only its generated block is renewed.

        Args:
            repo_id: `user/name`.
            private: Whether a repository that is made is private; None is the account's default.
            revision: Branch to push to, made where it is missing; None is the main branch.
            commit_message: First line of the commit.
            create_pr: Open a pull request instead of writing to the branch.
            token: None takes the one that `hf auth login` saved.

        Returns:
            Address and commit.

        Raises:
            HubAccessError: The token is missing or may not write there, or the name is not that of
                a repository.
            HubError: The Hub cannot be reached, or keeps failing.
            InvalidValueError: The tokenizer cannot be saved; see `save_pretrained`.
        """
        return push_pretrained(
            repo_id,
            self.config,
            self.state_dict(),
            self.origin,
            private=private,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
            token=token,
        )

    # State

    def compile(self, *, batch_size: int | None = None) -> Self:  # type: ignore[override]
        """Compile the networks for inference, the first time that each shape of input comes.

        Ids are those of the uncompiled tokenizer, except near ties within rounding. Compiling takes
        some seconds for each number of images, which are filled up to powers of two, and for each
        of up to 16 sizes. Weights, dtype and device may change afterwards: the networks are then
        compiled anew. Where gradients are recorded, and under autocast, nothing is compiled. A
        copy and a pickle compile for themselves; files and fingerprint stay as they are.

        Args:
            batch_size: Images of a full batch where it is not a power of two.

        Returns:
            The tokenizer itself.

        Raises:
            CompilationError: No C++ compiler is installed. Calls raise it where compiling fails.
            InvalidTypeError, InvalidValueError: batch_size is not a positive integer.
        """
        count = None if batch_size is None else read_count("batch_size", batch_size, 1)
        check_compiler(self.device)
        self._compiled = CompiledNetwork(count), CompiledNetwork(count)
        return self

    @property
    def is_compiled(self) -> bool:
        """Whether the networks run as compiled code; see `compile`."""
        return self._compiled is not None

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides ids or latents.

        The tensors of encoder and bottleneck, and `TokenizerConfig.identity`. A decoder that is
        trained further keeps it; so does a change of device, and of dtype until the weights that it
        rounded are taken for float32 ones again. It is remembered until torch counts a change of
        these tensors; see `take_fingerprint`.
        """
        self._check_weights()
        return self._fingerprint.read(self._deciding_tensors(), self._identity())

    def take_fingerprint(self) -> str:
        """The fingerprint, hashed anew: what jobs and evaluations record."""
        self._check_weights()
        return self._fingerprint.take(self._deciding_tensors(), self._identity())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._a_weight().device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the two networks; bottleneck and likelihood stay in float32 or better."""
        return self._a_weight().dtype

    # The token space

    @property
    def is_discrete(self) -> bool:
        """Whether the model has ids, and not latents alone."""
        return self.bottleneck.is_discrete

    @property
    def codebook_size(self) -> int:
        """Number of ids, which lie in [0, codebook_size); of several levels that of the largest."""
        return self._discrete().codebook_size

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of ids of each level; one level where a position has one code."""
        return self._discrete().codebook_sizes

    @property
    def depth(self) -> int:
        """Codes of a position."""
        return self._discrete().depth

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Shape of an image's ids: (h, w), or (h, w, depth) where a position has several codes."""
        return self._discrete().token_shape(self.grid_size)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels that images are brought to."""
        return self.preprocessor.image_size

    @property
    def max_pixels(self) -> int:
        """Most pixels of an image that is read: 50 million, unless set to at most 178,956,970.

        It decides what is refused, and neither ids nor the fingerprint; it is not saved.
        """
        return self.preprocessor.max_pixels

    @max_pixels.setter
    def max_pixels(self, max_pixels: int) -> None:
        self.preprocessor = replace(self.preprocessor, max_pixels=max_pixels)

    @property
    def grid_size(self) -> tuple[int, int]:
        """(height, width) of the grid of ids, or of latents, of an image of `image_size`."""
        return self._grid_of(self.image_size)

    @property
    def num_tokens(self) -> int:
        """Length of an image's sequence of ids; of a continuous model, positions of the grid."""
        return math.prod(self.token_shape if self.is_discrete else self.grid_size)

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

    # Images to ids and back

    def preprocess(self, images: Any) -> Tensor:
        """Bring images to `image_size`: uint8 (B, C, H, W); what `encode` does first."""
        return self.preprocessor(images)

    def encode(self, images: Any) -> Tensor:
        """Token ids of images.

        Args:
            images: Path, bytes, PIL image, uint8 array HW/HWC/BHWC, uint8 tensor CHW/BCHW or value
                of a `datasets` Image column, several as a list: these go through `preprocess`. Or
                float tensors CHW/BCHW in [0, 1], taken as prepared.

        Returns:
            int64 tensor in [0, codebook_size): of `token_shape`, mostly (h, w), for one image, and
            (B, *token_shape) for several. `sequence(ids)` flattens it, row by row.

        Raises:
            NotDiscreteError: The model is continuous.
            ImagetokError: An image is unreadable or ambiguous; the message says what to do.
        """
        return cast(Tensor, self._map_latents(images, self._discrete().encode_ids))

    def decode(
        self, ids: Any, *, grid: tuple[int, int] | None = None, output: Output = "pil"
    ) -> Images | Tensor:
        """Images of token ids.

        Args:
            ids: Integer tensor, array or nested list: `token_shape` or its flat form for one image,
                with B in front for several.
            grid: (h, w) of the ids, where it is not `grid_size`.
            output: `pil`, or `pt` for float tensors in [0, 1].

        Returns:
            One PIL image or (C, H, W) for one image; a list or (B, C, H, W) for several.

        Raises:
            NotDiscreteError: The model is continuous.
            IdsTypeError, IdsError: Wrong dtype, range or shape.
        """
        bottleneck = self._discrete()
        wanted = self._check_grid(self.grid_size if grid is None else grid)
        shape = bottleneck.token_shape(wanted)
        batch, single = read_ids(ids, bottleneck.codebook_sizes, shape)
        return self._show(batch, single, output, bottleneck.lookup)

    def sequence(self, ids: Tensor) -> Tensor:
        """Ids (..., *token_shape) as sequences (..., num_tokens): row by row, depth fastest.

        Raises:
            IdsError: The last sizes of ids are not those of `token_shape`.
        """
        return read_sequence(ids, self.token_shape)

    def unsequence(self, sequence: Tensor) -> Tensor:
        """Sequences (..., num_tokens) as ids (..., *token_shape): the inverse of `sequence`.

        Raises:
            IdsError: The last size is not `num_tokens`.
        """
        flat = read_sequence(sequence, (self.num_tokens,))
        return flat.reshape(*flat.shape[:-1], *self.token_shape)

    def reconstruct(self, images: Any, *, output: Output = "pil") -> Images | Tensor:
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
        return cast(Tensor, self._map_latents(images, self.bottleneck.latents))

    def decode_latents(self, latents: Tensor, *, output: Output = "pil") -> Images | Tensor:
        """Images of latents (latent_dim, h, w) or (B, latent_dim, h, w); result as `decode`.

        Raises:
            InvalidTypeError: latents are not a float tensor.
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
        self.bottleneck.check_defines("distribution")
        distribution = self._map_latents(images, self.bottleneck.distribution)
        return cast(Tensor | GaussianPosterior, distribution)

    def sample_ids(
        self, images: Any, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw ids from a dVAE's posterior; shapes as `encode`.

        Args:
            images: As for `encode`.
            temperature: 1 draws from the posterior itself, 0 gives `encode`'s ids.
            generator: Source of the noise, on the tokenizer's device; None is torch's global one.

        Raises:
            NoPosteriorError: The model is not a dVAE.
            InvalidTypeError: The temperature is not a number, or the generator is not one of
                torch's.
            InvalidValueError: The temperature is negative or not finite.
        """
        self.bottleneck.check_defines("sample_ids")
        scale = check_temperature(temperature)
        check_generator(generator)
        draw = self.bottleneck.sample_ids
        return cast(Tensor, self._map_latents(images, lambda z: draw(z, scale, generator)))

    def sample(
        self,
        num_images: int,
        generator: torch.Generator | None = None,
        *,
        output: Output = "pil",
    ) -> Images | Tensor:
        """Decode draws from a VAE's prior N(0, I): a list of PIL images, or (B, C, H, W).

        Raises:
            NoPosteriorError: The model is not a VAE.
            InvalidTypeError, InvalidValueError: num_images is not an integer, or negative; or the
                generator is not one of torch's.
        """
        bottleneck = self.bottleneck
        bottleneck.check_defines("sample_prior")
        shape = (read_count("num_images", num_images, 0), bottleneck.latent_dim, *self.grid_size)
        check_generator(generator)
        latents = bottleneck.sample_prior(shape, generator, self.device)
        return self.decode_latents(latents, output=output)

    def interpolate(
        self, a: Any, b: Any, steps: int = 8, *, output: Output = "pil"
    ) -> Images | Tensor:
        """Decode a straight walk between the latents of two images, both ends included.

        Args:
            a: One image, as for `encode`.
            b: One image of the same grid.
            steps: Images to make, at least 2.
            output: As for `decode`.

        Returns:
            A list of `steps` PIL images, or (steps, C, H, W).

        Raises:
            NotContinuousError: The model is discrete: between two codes there is nothing.
            InvalidTypeError: steps is not an integer.
            InvalidValueError: Fewer than 2 steps, several images at once, or unequal grids.
        """
        if self.is_discrete:
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

    def _code_for(self, x: Tensor) -> tuple[CompiledNetwork, CompiledNetwork] | tuple[None, None]:
        """The compiled encoder and decoder, where an input of theirs may run through them."""
        if self._compiled is None or torch.is_grad_enabled() or _is_autocast_on(x):
            return None, None
        return self._compiled

    def _discrete(self) -> DiscreteBottleneck:
        if not self.is_discrete:
            raise NotDiscreteError(
                f"a model with {type(self.bottleneck).__name__} is continuous and has no ids; use "
                "encode_latents and decode_latents"
            )
        return cast(DiscreteBottleneck, self.bottleneck)

    @property
    def _factors(self) -> tuple[int, int]:
        return cast(tuple[int, int], self.encoder.factors)

    def _a_weight(self) -> Tensor:
        """A weight of the networks; an encoder, such as a reshape, may have none."""
        weights = chain(self.encoder.parameters(), self.decoder.parameters())
        return next(weights, torch.empty(0, dtype=torch.float32, device="cpu"))

    def _dtype_of(self, network: nn.Module) -> torch.dtype:
        weight = next(network.parameters(), None)
        return self.dtype if weight is None else weight.dtype

    def _check_weights(self) -> None:
        if self.device.type == "meta":
            raise InvalidValueError(
                "this tokenizer is on the meta device, where weights have no values; load it with "
                "from_pretrained, or keep a copy before moving it"
            )

    def _deciding_tensors(self) -> dict[str, Tensor]:
        """The tensors of encoder and bottleneck."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.startswith(("encoder.", "bottleneck."))
        }

    def _identity(self) -> dict[str, Any]:
        """What decides ids or latents besides the tensors."""
        return self.config.identity() if self.config else self.preprocessor.identity()

    def _grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self._factors[0], size[1] // self._factors[1]

    def _check_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        found = read_grid(grid)
        # An encoder of the user's own need not say that it takes any size.
        if getattr(self.encoder, "fixed_size", False) and found != self.grid_size:
            raise InvalidValueError(
                f"this decoder makes images of {self.image_size} only, from a grid of "
                f"{self.grid_size}; got a grid of {found}"
            )
        return found

    def _map_latents(self, images: Any, function: Callable[[Tensor], Any]) -> Any:
        """What `_latents` gives, without B for one image."""
        result, single = self._latents(images, function)
        if not single:
            return result
        return type(result)(*(part[0] for part in result)) if _is_named(result) else result[0]

    @torch.no_grad()
    def _latents(self, images: Any, function: Callable[[Tensor], Any]) -> tuple[Any, bool]:
        """Apply a function to the encoder's output of images, piece by piece.

        Returns:
            The joined pieces, a tensor or a named tuple of tensors as the function gives, and
            whether one image was given.
        """
        self._check_weights()
        batches, single = self.preprocessor.batches(images, self._factors, BATCH_SIZE)
        pieces = []
        for x in batches:
            self._check_grid(self._grid_of((x.shape[2], x.shape[3])))
            with torch.autocast(self.device.type, enabled=False):
                z = self.encode_pixels(x)
                _check_finite(z, "encoder")
                pieces.append(function(z))
        if _is_named(pieces[0]):
            return type(pieces[0])(*map(torch.cat, zip(*pieces, strict=True))), single
        return torch.cat(pieces), single

    @torch.no_grad()
    def _show(
        self,
        batch: Tensor,
        single: bool,
        output: Output,
        lookup: Callable[[Tensor], Tensor] = lambda z_q: z_q,
    ) -> Images | Tensor:
        """Decode a batch of latents, or of what `lookup` makes latents of, piece by piece."""
        if not isinstance(output, str) or output not in get_args(Output):
            found = printable(repr(output))
            raise InvalidValueError(f"unknown output {found}; choose one of: pil, pt")
        self._check_weights()
        pieces = []
        for part in torch.split(batch.to(self.device), BATCH_SIZE):
            with torch.autocast(self.device.type, enabled=False):
                params = self.decode_params(lookup(part))
                _check_finite(params, "decoder")
                pieces.append(self.likelihood.mean(params).clamp(0, 1))
        images = torch.cat(pieces)
        images = images[0] if single else images
        return images if output == "pt" else to_pil(images)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        before = self._deciding_tensors()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._fingerprint.note_cast(before, self._deciding_tensors())
        return self


def _is_autocast_on(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def _is_named(value: Any) -> bool:
    """Whether a value is a named tuple of tensors, and not a tensor."""
    return isinstance(value, tuple)


def _check_finite(values: Tensor, network: str) -> None:
    if torch.isfinite(values).all():
        return
    remedy = "its weights are damaged, or its training has diverged"
    if values.dtype == torch.float16:
        remedy = "load the tokenizer with dtype='float32' or 'bfloat16'"
    raise InvalidValueError(f"the {network}'s output is not finite in {values.dtype}; {remedy}")
