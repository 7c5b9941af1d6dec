"""Nearest code with a straight-through gradient: the VQ-VAE.

van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv 1711.00937:

    ids = argmin_k |z - e_k|                                                          (eq. 1, 2)
    loss/codebook = mean |sg[z] - e|^2,  loss/commitment = mean |z - sg[e]|^2         (eq. 3)

The weight beta stands on the commitment loss, the encoder's term, in the training config. Instead
of by its loss the codebook can be learnt by exponential moving averages (App. A.1):

    n_k <- decay n_k + (1 - decay) count_k
    e_k <- e_k + (1 - decay) (sum_k - count_k e_k) / n_k

which is the paper's m_k / n_k written as a running mean, so that there is one table, a code without
members stays exactly where it is, and no smoothing is needed: n_k is floored at epsilon instead.

Against collapse: k-means initialisation, and restart of dead codes at encoder outputs drawn in
proportion to their squared distance from the codebook. The rotation gradient is that of Fifty et
al., Restructuring Vector Quantization with the Rotation Trick, 2024, arXiv 2410.06424, eq. 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imagetok.bottlenecks.base import BottleneckOutput, DiscreteBottleneck, Statistics
from imagetok.bottlenecks.kmeans import kmeans
from imagetok.bottlenecks.restarts import choose_candidates, draw_by_weight, least_used
from imagetok.codesearch import nearest_code
from imagetok.exact import no_autocast


class VectorQuantizer(DiscreteBottleneck):
    """A codebook searched for the nearest code.

    ```
    z (B, latent_dim, h, w) -> project in -> [normalise] -> vectors (N, code_dim) -> nearest code
                                                                                          |
    z_q (B, latent_dim, h, w) <- project out <- straight-through <- codes (N, code_dim) <-+ ids
    ```

    Args:
        codebook_size: Number of codes K.
        latent_dim: Channels of z and z_q.
        code_dim: Width D of a code; None means latent_dim, without projections.
        normalize: l2-normalise vectors and codes. Codes are stored normalised: search, lookup and
            averages use the same table.
        codebook: Learnt by averages (`ema`) or by gradients of its loss (`loss`).
        decay: Of the averages.
        epsilon: Floor of the running counts.
        gradient: `straight_through` copies the decoder's gradient, `rotation` turns and scales it
            with the map from the vector to its code.
        kmeans_init: Ask for vectors to start from.
        restart_below: Share of the mean running count under which a code is dead; 0 never restarts.
    """

    codebook: Tensor
    running_counts: Tensor

    def __init__(
        self,
        codebook_size: int,
        latent_dim: int,
        code_dim: int | None = None,
        normalize: bool = False,
        codebook: Literal["ema", "loss"] = "ema",
        decay: float = 0.99,
        epsilon: float = 1e-5,
        gradient: Literal["straight_through", "rotation"] = "straight_through",
        kmeans_init: bool = True,
        restart_below: float = 0.03,
    ) -> None:
        super().__init__(latent_dim, latent_dim, codebook_size)
        code_dim = latent_dim if code_dim is None else code_dim
        projected = code_dim != latent_dim
        self.project_in = nn.Linear(latent_dim, code_dim) if projected else nn.Identity()
        self.project_out = nn.Linear(code_dim, latent_dim) if projected else nn.Identity()
        self.normalize, self.averaged, self.gradient = normalize, codebook == "ema", gradient
        self.decay, self.epsilon, self.restart_below = decay, epsilon, restart_below
        if kmeans_init:
            self.num_initial_vectors = 4 * codebook_size
        table = self._normalized(torch.randn(codebook_size, code_dim) * code_dim**-0.5)
        if self.averaged:
            self.register_buffer("codebook", table)
        else:
            self.codebook = nn.Parameter(table)
            self.tables = ("codebook",)
        # Running counts belong to training: they are no part of a saved tokenizer.
        self.register_buffer("running_counts", torch.ones(codebook_size), persistent=False)

    def encode_ids(self, z: Tensor) -> Tensor:
        """Nearest code of every position, int64 (B, h, w)."""
        with self._exactly(z) as z_exact:
            return self._search(self._vectors(z_exact)).view(len(z), *z.shape[2:])

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes of ids (B, h, w), projected, float (B, latent_dim, h, w)."""
        with no_autocast(self.codebook):
            codes: Tensor = self.project_out(F.embedding(ids, self.codebook))
        return rearrange(codes, "b h w d -> b d h w")

    def rate(self, z: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """The chosen codes, at ln K nats a position."""
        z_q = self.latents(z)
        positions = z.shape[2] * z.shape[3]
        return z_q, z_q.new_full((len(z),), math.log(self.codebook_size) * positions)

    def _forward(
        self, z: Tensor, values: Mapping[str, float], keys: Tensor | None
    ) -> BottleneckOutput:
        vectors = self._vectors(z)
        flat_ids = self._search(vectors)
        codes = F.embedding(flat_ids, self.codebook)
        losses = {"loss/commitment": F.mse_loss(vectors, codes.detach())}
        if not self.averaged:
            losses["loss/codebook"] = F.mse_loss(codes, vectors.detach())
        ids = flat_ids.view(len(z), *z.shape[2:])
        quantized = self.project_out(self._pass_gradient(vectors, codes.detach()))
        return BottleneckOutput(
            z_q=rearrange(quantized, "(b h w) d -> b d h w", h=z.shape[2], w=z.shape[3]),
            ids=ids,
            losses=losses,
            statistics=self._statistics(vectors.detach(), flat_ids, len(z), keys),
        )

    @torch.no_grad()
    def initialize(self, vectors: Tensor) -> None:
        """Set the codebook to k-means centres of encoder outputs (N, latent_dim).

        The centres carry no weight in the averages: they describe an encoder that is about to
        change, and codes that the first batches do not choose restart at once.
        """
        with no_autocast(vectors):
            projected = self._normalized(self.project_in(vectors.to(self.codebook.dtype)))
        self.codebook.copy_(self._normalized(kmeans(projected, self.codebook_size)))
        self.running_counts.zero_()

    @torch.no_grad()
    def constrain(self) -> None:
        """Normalise the codes that are not of unit length."""
        if self.normalize:
            norms = self.codebook.norm(dim=1, keepdim=True)
            tolerance = 8 * torch.finfo(norms.dtype).eps
            off = (norms - 1).abs() > tolerance
            self.codebook.copy_(torch.where(off, self._normalized(self.codebook), self.codebook))

    @torch.no_grad()
    def update(self, statistics: Statistics, step: int) -> Tensor | None:
        """Average the codebook, keep the running counts, restart dead codes."""
        counts = statistics.counts.to(self.running_counts.dtype)
        self.running_counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        if self.averaged and statistics.sums is not None:
            pull = statistics.sums - counts[:, None] * self.codebook
            total = self.running_counts.clamp_min(self.epsilon)[:, None]
            self.codebook.add_((1 - self.decay) * pull / total)
        self.constrain()
        if statistics.candidates is not None and len(statistics.candidates):
            return self._restart(statistics.candidates, step)
        return None

    def _restart(self, candidates: Tensor, step: int) -> Tensor:
        """Move the codes used least, where they are dead, to candidates far from the codebook."""
        slots = min(len(candidates), self.codebook_size)
        codes, dead, mean_count = least_used(self.running_counts, self.restart_below, slots)
        nearest = F.embedding(self._search(candidates), self.codebook)
        distance = (candidates - nearest).square().sum(dim=1)
        chosen = candidates[draw_by_weight(distance, slots, step)].to(self.codebook.dtype)
        self.codebook[codes] = torch.where(dead[:, None], chosen, self.codebook[codes])
        self.running_counts[codes] = torch.where(dead, mean_count, self.running_counts[codes])
        return torch.zeros_like(self.running_counts, dtype=torch.bool).index_copy(0, codes, dead)

    def _statistics(
        self, vectors: Tensor, flat_ids: Tensor, num_samples: int, keys: Tensor | None
    ) -> Statistics:
        one_of = vectors.new_ones(len(flat_ids))
        counts = vectors.new_zeros(self.codebook_size).index_add_(0, flat_ids, one_of)
        sums = candidates = None
        if self.averaged:
            sums = torch.zeros_like(self.codebook, dtype=vectors.dtype)
            sums.index_add_(0, flat_ids, vectors)
        if self.restart_below:
            candidates = choose_candidates(vectors, num_samples, keys)
        return Statistics(counts=counts, sums=sums, candidates=candidates)

    def _vectors(self, z: Tensor) -> Tensor:
        return self._normalized(self.project_in(rearrange(z, "b d h w -> (b h w) d")))

    def _normalized(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def _search(self, vectors: Tensor) -> Tensor:
        return nearest_code(vectors, self.codebook)

    def _pass_gradient(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """The codes, exactly, with a gradient to the vectors."""
        if self.gradient == "rotation":
            vectors = _rotate(vectors, codes)
        return codes + (vectors - vectors.detach())


def _rotate(vectors: Tensor, codes: Tensor) -> Tensor:
    """Turn and scale each vector onto its code by a map that is constant to the gradient."""
    source, target = F.normalize(vectors.detach(), dim=-1), F.normalize(codes, dim=-1)
    middle = F.normalize(source + target, dim=-1)
    scale: Tensor = codes.norm(dim=-1) / vectors.detach().norm(dim=-1).clamp_min(1e-12)

    def along(direction: Tensor) -> Tensor:
        return (vectors * direction).sum(dim=-1, keepdim=True)

    turned: Tensor = vectors - 2 * middle * along(middle) + 2 * target * along(source)
    return scale[:, None] * turned
