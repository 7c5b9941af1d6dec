"""Categorical posterior over the codebook, relaxed by Gumbel-softmax: the dVAE.

Ramesh et al., Zero-Shot Text-to-Image Generation, 2021, arXiv 2102.12092, section 2.1, with the
relaxation of Jang et al. (2016, arXiv 1611.01144) and Maddison et al. (2016, arXiv 1611.00712):

    y = softmax((logits + g) / temperature),  g ~ Gumbel(0, 1)
    z_q = y E                                                        E: embedding (K, latent_dim)
    KL(q || uniform) = sum over positions of sum_k q_k (ln q_k + ln K),  q = softmax(logits)

The KL is taken from the logits themselves, not from the relaxed sample. Ids are the argmax of the
logits, without noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from imagetok import keys as random_keys
from imagetok.bottlenecks.base import BottleneckOutput, DiscreteBottleneck, Statistics
from imagetok.codesearch import argmax_linear
from imagetok.errors import InvalidValueError


class GumbelBottleneck(DiscreteBottleneck):
    """Logits over the codebook, a relaxed sample, and the codes' embedding.

    Args:
        in_channels: Channels of the encoder's features.
        codebook_size: Number of codes K.
        latent_dim: Width of the embedding.
        hard: Give the decoder one-hot samples, with the relaxed sample's gradient.
    """

    def __init__(
        self, in_channels: int, codebook_size: int, latent_dim: int, hard: bool = False
    ) -> None:
        super().__init__(in_channels, latent_dim, codebook_size)
        self.logits = nn.Linear(in_channels, codebook_size)
        self.embedding = nn.Parameter(torch.randn(codebook_size, latent_dim))
        self.hard = hard

    def log_probs(self, z: Tensor) -> Tensor:
        """Ln q, float (B, h, w, K), from the encoder's output (B, in_channels, h, w)."""
        with self._exactly(z) as z_exact:
            return F.log_softmax(self.logits(rearrange(z_exact, "b c h w -> b h w c")), dim=-1)

    def kl(self, z: Tensor) -> Tensor:
        """KL to the uniform distribution in nats an image, (B,)."""
        return self._kl(self.log_probs(z))

    def sample_ids(
        self,
        z: Tensor,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """Draw ids from q^(1/temperature), normalised; int64 (B, h, w).

        Args:
            z: Encoder output (B, in_channels, h, w).
            temperature: 1 draws from the posterior, 0 gives the ids of `encode_ids`.
            generator: Source of the noise, on z's device; used where `keys` is None.
            keys: int64 (B,), one key a sample.

        Raises:
            InvalidValueError: The temperature is negative or not finite.
        """
        if not 0 <= temperature < math.inf:
            raise InvalidValueError(f"temperature must be finite and >= 0, got {temperature}")
        if temperature == 0:
            return self.encode_ids(z)
        log_probs = self.log_probs(z)
        noise = random_keys.gumbel(keys, "gumbel", log_probs.shape, z.device, generator)
        return (log_probs + temperature * noise).argmax(dim=-1)

    def rate(self, z: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes drawn from the posterior, at the cost of its KL: the evidence lower bound."""
        return self.lookup(self.sample_ids(z, keys=keys)), self.kl(z)

    def encode_ids(self, z: Tensor) -> Tensor:
        """Most probable code of every position, int64 (B, h, w)."""
        with self._exactly(z) as z_exact:
            rows = rearrange(z_exact, "b c h w -> (b h w) c")
            ids = argmax_linear(rows, self.logits.weight, self.logits.bias)
            return ids.view(len(z), *z.shape[2:])

    def lookup(self, ids: Tensor) -> Tensor:
        """Embeddings of ids (B, h, w), float (B, latent_dim, h, w)."""
        return rearrange(F.embedding(ids, self.embedding), "b h w d -> b d h w")

    def _forward(
        self, z: Tensor, values: Mapping[str, float], keys: Tensor | None
    ) -> BottleneckOutput:
        temperature = values.get("temperature", 1.0)
        if not 0 < temperature < math.inf:
            raise InvalidValueError(f"temperature must be positive and finite, got {temperature}")
        log_probs = self.log_probs(z)
        noise = random_keys.gumbel(keys, "gumbel", log_probs.shape, z.device)
        sample = F.softmax((log_probs + noise.to(log_probs.dtype)) / temperature, dim=-1)
        if self.hard:
            one_hot = F.one_hot(sample.argmax(dim=-1), self.codebook_size).to(sample.dtype)
            sample = one_hot + (sample - sample.detach())
        ids = log_probs.argmax(dim=-1)
        kl = self._kl(log_probs)
        entropy = math.log(self.codebook_size) - kl.detach().mean() / ids[0].numel()
        ones = torch.ones_like(ids, dtype=log_probs.dtype).flatten()
        counts = ones.new_zeros(self.codebook_size).index_add_(0, ids.flatten(), ones)
        return BottleneckOutput(
            z_q=rearrange(sample @ self.embedding, "b h w d -> b d h w"),
            ids=ids,
            losses={"loss/kl": kl.mean()},
            metrics={"posterior/entropy": entropy},
            statistics=Statistics(counts=counts),
        )

    def _kl(self, log_probs: Tensor) -> Tensor:
        terms = log_probs.exp() * (log_probs + math.log(self.codebook_size))
        return reduce(terms, "b h w k -> b", "sum")
