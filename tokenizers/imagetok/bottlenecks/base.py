"""The contract of all bottlenecks.

`forward` is the training pass and changes no state. What a step learns besides gradients (codebook
averages, running usage, restarts) leaves it as `statistics`, which the training loop adds up over
micro-batches and ranks and hands to `update` once every optimizer step. Nothing reads
`self.training`: inference has its own methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch import Tensor

from imagetok.errors import InvalidValueError
from imagetok.exact import ExactModule, exactly


@dataclass(frozen=True)
class Statistics:
    """What one step tells `Bottleneck.update`.

    Attributes:
        counts: float (K,), how often each code was chosen; added over micro-batches and ranks.
        sums: float (K, D), the encoder outputs assigned to each code, summed; added likewise. None
            where the codebook is not averaged.
        candidates: float (M, D), encoder outputs at which dead codes may restart, a fixed number a
            sample; concatenated in sample order. None where codes do not restart.
    """

    counts: Tensor
    sums: Tensor | None = None
    candidates: Tensor | None = None


@dataclass(frozen=True)
class BottleneckOutput:
    """Result of the training pass.

    Attributes:
        z_q: float (B, latent_dim, h, w), what the decoder gets.
        ids: int64 (B, h, w) in [0, codebook_size), or None for a continuous bottleneck.
        losses: Unweighted scalars keyed `loss/...`; `loss/kl` in nats an image.
        metrics: Detached scalars keyed `group/name`, means over the batch.
        statistics: For `update`; None where there is nothing to learn but by gradients.
    """

    z_q: Tensor
    ids: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    statistics: Statistics | None = None


class Bottleneck(ExactModule, ABC):
    """Base class. Subclasses implement `_forward` and `latents`.

    Attributes:
        in_channels: Channels wanted of the encoder.
        latent_dim: Channels given to the decoder.
        num_initial_vectors: Encoder outputs that `initialize` wants before step 0; 0 for none.
        tables: Names of the parameters that have a row for each code.
    """

    num_initial_vectors = 0
    tables: tuple[str, ...] = ()

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
        with self._exactly(z) as z_exact:
            return self._forward(z_exact, values or {}, keys)

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
            keys: int64 (B,), one key a sample for a draw from the posterior; None draws torch's
                ordinary noise.

        Returns:
            The decoder's input (B, latent_dim, h, w) and nats an image (B,), or None where nothing
            bounds the cost.
        """
        return None

    def initialize(self, vectors: Tensor) -> None:
        """Start from encoder outputs.

        Args:
            vectors: float (N, in_channels), N >= num_initial_vectors, in sample order.
        """

    def constrain(self) -> None:
        """Bring learnt values back to where they must lie, after a step or an average moved them.

        What lies there already stays as it is, bit for bit.
        """

    def update(self, statistics: Statistics, step: int) -> Tensor | None:
        """Learn from one optimizer step's statistics, summed over micro-batches and ranks.

        Returns:
            bool (codebook_size,), the codes that started anew, whose rows in `tables` an average of
            weights must copy; None where none can.
        """
        return None

    def _exactly(self, z: Tensor) -> AbstractContextManager[Tensor]:
        if z.ndim != 4 or z.shape[1] != self.in_channels:
            raise InvalidValueError(
                f"{type(self).__name__} takes z of shape (B, {self.in_channels}, h, w), got "
                f"{tuple(z.shape)}"
            )
        return exactly(z)


class DiscreteBottleneck(Bottleneck):
    """A bottleneck with a codebook: its ids are the tokens."""

    def __init__(self, in_channels: int, latent_dim: int, codebook_size: int) -> None:
        super().__init__(in_channels, latent_dim)
        self.codebook_size = codebook_size

    @abstractmethod
    def encode_ids(self, z: Tensor) -> Tensor:
        """Ids of z without noise: float (B, in_channels, h, w) to int64 (B, h, w)."""

    @abstractmethod
    def lookup(self, ids: Tensor) -> Tensor:
        """What the decoder gets for ids: int64 (B, h, w) to float (B, latent_dim, h, w)."""

    def latents(self, z: Tensor) -> Tensor:
        """The codes chosen for z."""
        return self.lookup(self.encode_ids(z))
