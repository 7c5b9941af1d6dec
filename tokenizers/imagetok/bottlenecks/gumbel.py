"""Categorical posterior over the codebook, relaxed by Gumbel-softmax: the dVAE.

Ramesh et al., Zero-Shot Text-to-Image Generation, 2021, arXiv 2102.12092, section 2.1, with the
relaxation of Jang et al. (2016, arXiv 1611.01144) and Maddison et al. (2016, arXiv 1611.00712):

    y = softmax((logits + g) / temperature),  g ~ Gumbel(0, 1)
    z_q = y E                                                        E: embedding (K, latent_dim)
    KL(q || uniform) = sum over positions of sum_k q_k (ln q_k + ln K),  q = softmax(logits)

The KL is taken from the logits themselves, not from the relaxed sample. Ids are the argmax of the
logits, without noise.

Against collapse, which is ours and not the paper's: a dead code splits the code whose features
spread most (as vector quantizers grow codebooks, Linde, Buzo & Gray 1980), because a saturated
posterior sends it no gradient that could revive it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from pydantic import Field, model_validator
from torch import Tensor, nn

from imagetok import keys as random_keys
from imagetok.bottlenecks.bottleneck import (
    IDS_WEAKNESS,
    BottleneckConfig,
    CodebookSize,
    DiscreteBottleneck,
    LatentDim,
    ParameterGroup,
    check_table,
    count_codes,
)
from imagetok.bottlenecks.gaussian import VAE
from imagetok.bottlenecks.relaxation import Relaxed, relax
from imagetok.bottlenecks.restarts import choose_candidates, draw_by_weight, least_used
from imagetok.codesearch import argmax_linear
from imagetok.config.registry import Paper
from imagetok.errors import InvalidValueError
from imagetok.outputs import BottleneckOutput, Statistics

DALL_E = Paper(
    "inproceedings",
    "ramesh2021zeroshot",
    "Zero-Shot Text-to-Image Generation",
    "Ramesh, Aditya and Pavlov, Mikhail and Goh, Gabriel and Gray, Scott and Voss, Chelsea and "
    "Radford, Alec and Chen, Mark and Sutskever, Ilya",
    2021,
    "International Conference on Machine Learning",
    "2102.12092",
)
GUMBEL_SOFTMAX = Paper(
    "inproceedings",
    "jang2017categorical",
    "Categorical Reparameterization with {Gumbel-Softmax}",
    "Jang, Eric and Gu, Shixiang and Poole, Ben",
    2017,
    "International Conference on Learning Representations",
    "1611.01144",
)

COUNT_DECAY = 0.95
"""Decay of the running counts that show which codes are dead."""

SPLIT_MARGIN = 2.0
"""Nats by which a code that splits another one is more likely on its own side."""

MIN_SPLIT_SPREAD = 1e-4
"""Least squared distance of a feature from its code's mean, over its squared length, to split."""


Noise = Literal["sequence", "hash"]
"""Where the noise of training comes from."""


class GumbelConfig(BottleneckConfig):
    """Categorical posterior relaxed by Gumbel-softmax (Ramesh et al. 2021, arXiv 2102.12092).

    Attributes:
        codebook_size: Number of codes.
        latent_dim: Width of the code embedding, given to the decoder.
        hard: Give the decoder one-hot samples with a straight-through gradient.
        split_below: A code that is the most probable one at less than this share of
            1/codebook_size of the positions is dead and splits another one; 0 never splits, as in
            the paper.
        noise: Where the Gumbel noise of training comes from: a `sequence` that torch draws for
            each sample, or a hash of sample, position and code (`hash`), which is several times as
            quick and needs no logits and noise to be kept for the backward pass.
    """

    later_keys: ClassVar[frozenset[str]] = frozenset({"noise"})
    title: ClassVar[str] = "dVAE"
    tag: ClassVar[str] = "dvae"
    about: ClassVar[str] = (
        "It turns an image into a grid of ids of a codebook, as the first stage of DALL-E does, "
        "and back: a transformer can learn the ids as it learns a text."
    )
    card_words: ClassVar[str] = (
        "categorical posterior over a codebook at every position, relaxed by Gumbel-softmax in "
        "training; the ids are its most probable codes"
    )
    weakness: ClassVar[str] = IDS_WEAKNESS
    is_discrete: ClassVar[bool] = True
    has_posterior: ClassVar[bool] = True
    training_only: ClassVar[frozenset[str]] = frozenset({"hard", "split_below", "noise"})

    type: Literal["gumbel"] = "gumbel"
    codebook_size: CodebookSize
    latent_dim: LatentDim
    hard: bool = False
    split_below: Annotated[float, Field(ge=0, lt=1)] = 0.03
    noise: Noise = "sequence"

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of the one level."""
        return (self.codebook_size,)

    @property
    def encoder_channels(self) -> None:
        """The map from features to logits is the bottleneck's own."""

    @property
    def papers(self) -> tuple[Paper, ...]:
        """The dVAE, its relaxation, and the bound that it learns by."""
        return DALL_E, GUMBEL_SOFTMAX, VAE

    @model_validator(mode="after")
    def _table_fits(self) -> Self:
        check_table(self.codebook_size, self.latent_dim)
        return self

    def build(self, in_channels: int) -> GumbelBottleneck:
        """Build the bottleneck with fresh weights."""
        return GumbelBottleneck(in_channels, **self.model_dump(exclude={"type"}))


class GumbelBottleneck(DiscreteBottleneck):
    """Logits over the codebook, a relaxed sample, and the codes' embedding.

    Args:
        in_channels: Channels of the encoder's features.
        codebook_size: Number of codes K.
        latent_dim: Width of the embedding.
        hard: Give the decoder one-hot samples, with the relaxed sample's gradient.
        split_below: Share of the mean running count under which a code is dead; 0 never splits.
        noise: A `sequence` of torch's generator for each sample, or a `hash`.
    """

    running_counts: Tensor

    def __init__(
        self,
        in_channels: int,
        codebook_size: int,
        latent_dim: int,
        hard: bool = False,
        split_below: float = 0.03,
        noise: Noise = "sequence",
    ) -> None:
        super().__init__(in_channels, latent_dim, codebook_size)
        self.logits = nn.Linear(in_channels, codebook_size)
        self.embedding = nn.Parameter(torch.randn(codebook_size, latent_dim))
        self.hard, self.split_below, self.noise = hard, split_below, noise
        # Running counts belong to training and are not part of a saved tokenizer.
        self.register_buffer("running_counts", torch.ones(codebook_size), persistent=False)

    def log_probs(self, z: Tensor) -> Tensor:
        """Ln q, float (B, h, w, K), from the encoder's output (B, in_channels, h, w)."""
        with self.full_precision(z) as z_full:
            return F.log_softmax(self.logits(rearrange(z_full, "b c h w -> b h w c")), dim=-1)

    def distribution(self, z: Tensor) -> Tensor:
        """Log-probabilities of the codes, float (B, h, w, K)."""
        return self.log_probs(z)

    def parameter_groups(self) -> dict[str, ParameterGroup]:
        """An embedding is looked up, not multiplied: decay would pull unused codes to zero."""
        return {"embedding": ParameterGroup(decay=False)}

    def kl(self, z: Tensor) -> Tensor:
        """KL to the uniform distribution in nats per image, (B,)."""
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
            keys: int64 (B,), one key per sample.

        Raises:
            InvalidValueError: The temperature is negative or not finite.
        """
        if not 0 <= temperature < math.inf:
            raise InvalidValueError(f"temperature must be finite and >= 0, got {temperature}")
        if temperature == 0:
            return self.encode_ids(z)
        log_probs = self.log_probs(z)
        noise = random_keys.gumbel(keys, "gumbel", log_probs.shape, z.device, generator)
        scale = float(temperature)  # a large one times the noise would leave float32
        scores = log_probs / scale + noise if scale > 1 else log_probs + scale * noise
        return scores.argmax(dim=-1)

    def rate(self, z: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes drawn from the posterior, at the cost of its KL: the evidence lower bound."""
        return self.lookup(self.sample_ids(z, keys=keys)), self.kl(z)

    def encode_ids(self, z: Tensor) -> Tensor:
        """Most probable code of every position, int64 (B, h, w)."""
        with self.full_precision(z) as z_full:
            rows = rearrange(z_full, "b c h w -> (b h w) c")
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
        relaxed = self._relax_by_hash if self.noise == "hash" else self._relax
        z_q, kl, ids = relaxed(z, temperature, keys)
        entropy = math.log(self.codebook_size) - kl.detach().mean() / ids[0].numel()
        counts = count_codes(ids, self.codebook_size, z_q.dtype)
        samples = {}
        if self.split_below:
            rows = rearrange(z.detach(), "b c h w -> (b h w) c")
            samples["candidates"] = choose_candidates(rows, len(z), keys)
        return BottleneckOutput(
            z_q=rearrange(z_q, "b h w d -> b d h w"),
            ids=ids,
            losses={"loss/kl": kl.mean()},
            metrics={"posterior/entropy": entropy},
            statistics=Statistics({"counts": counts}, samples),
        )

    def _relax(self, z: Tensor, temperature: float, keys: Tensor | None) -> Relaxed:
        """The relaxed sample, whole."""
        log_probs = self.log_probs(z)
        noise = random_keys.gumbel(keys, "gumbel", log_probs.shape, z.device)
        sample = F.softmax((log_probs + noise.to(log_probs.dtype)) / temperature, dim=-1)
        if self.hard:
            one_hot = F.one_hot(sample.argmax(dim=-1), self.codebook_size).to(sample.dtype)
            sample = one_hot + (sample - sample.detach())
        ids = log_probs.argmax(dim=-1)
        return Relaxed(sample @ self.embedding, self._kl(log_probs), ids)

    def _relax_by_hash(self, z: Tensor, temperature: float, keys: Tensor | None) -> Relaxed:
        """The same in blocks of rows."""
        rows = rearrange(z, "b c h w -> (b h w) c")
        grid = (len(z), *z.shape[2:])
        seeds = random_keys.row_seeds(keys, "gumbel", len(z), z[0, 0].numel(), z.device)
        arguments = rows, self.logits.weight, self.logits.bias, self.embedding, seeds
        found = relax(*arguments, temperature, hard=self.hard)
        kl = found.kl.view(grid).sum(dim=(1, 2))
        return Relaxed(found.z_q.view(*grid, self.latent_dim), kl, found.ids.view(grid))

    @torch.no_grad()
    def update(self, statistics: Statistics, step: int) -> dict[str, Tensor]:
        """Keep the running counts; dead codes split the codes that features spread most around."""
        counts = statistics.sums["counts"].to(self.running_counts.dtype)
        self.running_counts.mul_(COUNT_DECAY).add_(counts, alpha=1 - COUNT_DECAY)
        candidates = statistics.samples.get("candidates")
        if candidates is None or not len(candidates):
            return {}
        split = self._split(candidates, step)
        return {"logits.weight": split, "logits.bias": split, "embedding": split}

    def _split(self, candidates: Tensor, step: int) -> Tensor:
        """Give dead codes a share of other codes' features.

        A candidate f, most probably of code j, and the mean m of the candidates of j span a split:
        the dead code k takes over j's embedding and logits, plus what makes k more likely by
        SPLIT_MARGIN nats at f, less likely by as much at m, and both equally likely half-way.
        """
        weight, bias = self.logits.weight, self.logits.bias
        slots = min(len(candidates), self.codebook_size)
        codes, dead, mean_count = least_used(self.running_counts, self.split_below, slots)
        parents = argmax_linear(candidates, weight, bias)
        same = (parents[:, None] == parents).to(candidates.dtype)
        means = same @ candidates / same.sum(dim=1, keepdim=True)
        spread = (candidates - means).square().sum(dim=1)
        chosen = draw_by_weight(spread, slots, step)
        parents, means, features = parents[chosen], means[chosen], candidates[chosen]
        # Features closer than this can only be told apart by weights that saturate all others.
        least = MIN_SPLIT_SPREAD * features.square().sum(dim=1)
        dead &= spread[chosen] > least
        scale = 2 * SPLIT_MARGIN / torch.where(dead, spread[chosen], 1)
        turn = scale[:, None] * (features - means)
        shift = -(turn * (features + means) / 2).sum(dim=1)
        taken = dead[:, None]
        weight[codes] = torch.where(taken, weight[parents] + turn, weight[codes])
        bias[codes] = torch.where(dead, bias[parents] + shift, bias[codes])
        embedding = self.embedding
        embedding[codes] = torch.where(taken, embedding[parents], embedding[codes])
        self.running_counts[codes] = torch.where(dead, mean_count, self.running_counts[codes])
        return torch.zeros_like(self.running_counts, dtype=torch.bool).index_copy(0, codes, dead)

    def _kl(self, log_probs: Tensor) -> Tensor:
        terms = log_probs.exp() * (log_probs + math.log(self.codebook_size))
        return reduce(terms, "b h w k -> b", "sum")
