"""The contract of all bottlenecks, and what their configs tell others.

`forward` is the training pass and changes no state. What a step learns besides gradients (codebook
averages, running usage, restarts) leaves it as `Statistics`, which the training loop adds up over
micro-batches and ranks and hands to `update` once per optimizer step. Nothing reads
`self.training`: inference has its own methods.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from imagetok.config.registry import PartConfig
from imagetok.errors import InvalidValueError, NoPosteriorError
from imagetok.outputs import BottleneckOutput, Statistics
from imagetok.precision import FullPrecisionModule, full_precision

LatentDim = Annotated[int, Field(ge=1, le=65_536)]
CodebookSize = Annotated[int, Field(ge=2, le=2**24)]

MAX_TABLE_SIZE = 2**31
"""Upper bound of codebook_size * width: eight gigabytes in float32."""


IDS_WEAKNESS = (
    "Ids belong to these weights: those of another tokenizer mean something else, and only ids of "
    "the fingerprint that is named above decode to what they were made from."
)
"""The weakness of every discrete tokenizer, for model cards."""


class BottleneckConfig(PartConfig):
    """Base of all bottleneck configs; a subclass declares its `type` and registers itself.

    Attributes:
        title: Short name of the system, such as `VQ-VAE`.
        tag: The system's tag on the Hub.
        about: What a tokenizer with it does, a sentence for model cards.
        card_words: What lies between encoder and decoder, for model cards.
        weakness: What it is known not to do, a sentence or two for model cards.
        is_discrete: Whether it yields ids.
        has_posterior: Whether it defines a distribution over codes or latents.
        has_prior: Whether latents can be drawn from a prior.
        latent_dim: Channels given to the decoder; a field or property that every subclass declares.
    """

    kind: ClassVar[str] = "bottleneck"
    title: ClassVar[str]
    tag: ClassVar[str]
    about: ClassVar[str]
    card_words: ClassVar[str]
    weakness: ClassVar[str]
    is_discrete: ClassVar[bool]
    has_posterior: ClassVar[bool] = False
    has_prior: ClassVar[bool] = False

    if TYPE_CHECKING:  # a field of every subclass, in the place where files have it
        latent_dim: int

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each level: as many levels as a position has codes; () for none."""
        return ()

    @property
    def encoder_channels(self) -> int | None:
        """Channels wanted of the encoder; None where the bottleneck owns that map."""
        return self.latent_dim

    @abstractmethod
    def build(self, in_channels: int) -> Bottleneck:
        """Build the bottleneck with fresh weights, for an encoder of `in_channels`."""


def check_table(codebook_size: int, width: int) -> None:
    """Refuse a codebook that no machine holds, before it is allocated.

    Raises:
        ValueError: It has more than `MAX_TABLE_SIZE` values.
    """
    if codebook_size * width > MAX_TABLE_SIZE:
        raise ValueError(
            f"a codebook of {codebook_size} x {width} values is over the limit of {MAX_TABLE_SIZE}"
        )


def count_codes(ids: Tensor, codebook_size: int, dtype: torch.dtype) -> Tensor:
    """How often each code occurs, for `Statistics.sums`; on the meta device as well.

    Args:
        ids: int64 tensor of any shape, in [0, codebook_size).
        codebook_size: Number of codes K.
        dtype: Float type of the result.

    Returns:
        Float tensor (K,).
    """
    ones = torch.ones(ids.numel(), dtype=dtype, device=ids.device)
    return ones.new_zeros(codebook_size).index_add_(0, ids.flatten(), ones)


@dataclass(frozen=True)
class ParameterGroup:
    """How a parameter is learnt.

    Attributes:
        decay: Whether weight decay applies; None decides by shape: it applies to matrices and
            kernels, not to vectors.
        lr_factor: Factor of the learning rate.
    """

    decay: bool | None = None
    lr_factor: float = 1.0


_UNDEFINED = {
    "distribution": "defines no posterior; only a dVAE and a VAE do",
    "sample_ids": "has no distribution over ids; only a dVAE has",
    "sample_prior": "has no prior to sample; only a VAE has. For a VQ-VAE or dVAE train a "
    "transformer on its ids",
}
"""What is said of a model whose bottleneck does not define a method, by the method's name."""


class Bottleneck(FullPrecisionModule, ABC):
    """Base class. Subclasses implement `_forward` and `latents`.

    Attributes:
        in_channels: Channels wanted of the encoder.
        latent_dim: Channels given to the decoder.
        is_discrete: Whether it yields ids.
        has_prior: Whether `sample_prior` draws latents.
        num_initial_vectors: Encoder outputs that `initialize` wants before step 0; 0 for none.
    """

    is_discrete: ClassVar[bool] = False
    has_prior: ClassVar[bool] = False
    num_initial_vectors = 0

    def __init__(self, in_channels: int, latent_dim: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.latent_dim = latent_dim

    def forward(
        self,
        z: Tensor,
        values: Mapping[str, float] | None = None,
        keys: Tensor | None = None,
    ) -> BottleneckOutput:
        """The training pass.

        Args:
            z: Encoder output, float (B, in_channels, h, w).
            values: This step's schedule values, such as `temperature`.
            keys: int64 (B,), the key of each sample's noise; None draws torch's ordinary noise.

        Raises:
            InvalidValueError: z has another number of channels.
        """
        with self.full_precision(z) as z_full:
            return self._forward(z_full, values or {}, keys)

    @abstractmethod
    def _forward(
        self, z: Tensor, values: Mapping[str, float], keys: Tensor | None
    ) -> BottleneckOutput: ...

    @abstractmethod
    def latents(self, z: Tensor) -> Tensor:
        """What inference gives the decoder for z, without noise: float (B, latent_dim, h, w)."""

    def rate(self, z: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """What is transmitted for z, and its cost: the two sides of a code length.

        Args:
            z: Encoder output (B, in_channels, h, w).
            keys: int64 (B,), one key per sample for a draw from the posterior; None draws torch's
                ordinary noise.

        Returns:
            The decoder's input (B, latent_dim, h, w) and nats per image (B,), or None where nothing
            bounds the cost.
        """
        return None

    def distribution(self, z: Tensor) -> Any:
        """The posterior over codes or latents that z (B, in_channels, h, w) stands for.

        Returns:
            A tensor or a named tuple of tensors, samples first.

        Raises:
            NoPosteriorError: The bottleneck defines none.
        """
        raise self._undefined("distribution")

    def sample_ids(
        self,
        z: Tensor,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """Draw ids from the posterior that z (B, in_channels, h, w) stands for.

        Raises:
            NoPosteriorError: The bottleneck defines no distribution over ids.
        """
        raise self._undefined("sample_ids")

    def sample_prior(
        self, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """Draw latents from the prior, float32 (B, latent_dim, h, w) as `shape` says.

        Raises:
            NoPosteriorError: The bottleneck has no prior.
        """
        raise self._undefined("sample_prior")

    def check_defines(self, method: str) -> None:
        """Refuse early what this bottleneck does not define: before images are read and encoded.

        Args:
            method: "distribution", "sample_ids" or "sample_prior".

        Raises:
            NoPosteriorError: The class has not replaced the method of this base class.
        """
        if getattr(type(self), method) is getattr(Bottleneck, method):
            raise self._undefined(method)

    def _undefined(self, method: str) -> NoPosteriorError:
        return NoPosteriorError(f"a model with {type(self).__name__} {_UNDEFINED[method]}")

    def initialize(self, vectors: Tensor) -> None:
        """Start from encoder outputs.

        Args:
            vectors: float (N, in_channels), N >= num_initial_vectors, in sample order.
        """

    def constrain(self) -> None:
        """Bring learnt values back to where they must lie after a step or an average moved them.

        What lies there already stays as it is, bit for bit.
        """

    def parameter_groups(self) -> dict[str, ParameterGroup]:
        """How parameters are learnt, by name; those that are not named follow the defaults."""
        return {}

    def update(self, statistics: Statistics, step: int) -> dict[str, Tensor]:
        """Learn from one optimizer step's statistics, summed over micro-batches and ranks.

        Returns:
            By parameter name, a bool mask of the rows that began anew: an average of weights copies
            these rows, because they have no past to average.
        """
        return {}

    def full_precision(self, z: Tensor) -> AbstractContextManager[Tensor]:
        """A context that yields z in float32 or better, with autocast off.

        Args:
            z: float (B, in_channels, h, w).

        Raises:
            InvalidValueError: z has another shape.
        """
        if z.ndim != 4 or z.shape[1] != self.in_channels:
            raise InvalidValueError(
                f"{type(self).__name__} takes z of shape (B, {self.in_channels}, h, w), got "
                f"{tuple(z.shape)}"
            )
        return full_precision(z)


class DiscreteBottleneck(Bottleneck):
    """A bottleneck with one codebook or several: its ids are the tokens.

    Args:
        in_channels: Channels wanted of the encoder.
        latent_dim: Channels given to the decoder.
        codebook_size: Number of codes; one number for each level where a position has several.

    Attributes:
        codebook_sizes: Number of codes of each level.
    """

    is_discrete = True

    def __init__(
        self, in_channels: int, latent_dim: int, codebook_size: int | tuple[int, ...]
    ) -> None:
        super().__init__(in_channels, latent_dim)
        sizes = (codebook_size,) if isinstance(codebook_size, int) else tuple(codebook_size)
        self.codebook_sizes = sizes

    @property
    def codebook_size(self) -> int:
        """Ids lie in [0, codebook_size): the size of the largest level."""
        return max(self.codebook_sizes)

    @property
    def depth(self) -> int:
        """Codes of a position."""
        return len(self.codebook_sizes)

    def token_shape(self, grid_size: tuple[int, int]) -> tuple[int, ...]:
        """Shape of an image's ids on a grid (h, w): (h, w), or (h, w, depth)."""
        return grid_size if self.depth == 1 else (*grid_size, self.depth)

    def code_nats(self, grid_size: tuple[int, int]) -> float:
        """Nats of an image's ids at ln K for each code, on a grid (h, w)."""
        return sum(math.log(size) for size in self.codebook_sizes) * math.prod(grid_size)

    @abstractmethod
    def encode_ids(self, z: Tensor) -> Tensor:
        """Ids of z without noise: float (B, in_channels, h, w) to int64 (B, *token_shape)."""

    @abstractmethod
    def lookup(self, ids: Tensor) -> Tensor:
        """What the decoder gets for ids: int64 (B, *token_shape) to float (B, latent_dim, h, w)."""

    def latents(self, z: Tensor) -> Tensor:
        """The codes chosen for z."""
        return self.lookup(self.encode_ids(z))
