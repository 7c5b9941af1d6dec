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

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

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
from imagetok.bottlenecks.kmeans import kmeans
from imagetok.bottlenecks.restarts import choose_candidates, draw_by_weight, least_used
from imagetok.codesearch import nearest_code
from imagetok.config.registry import Paper
from imagetok.outputs import BottleneckOutput, Statistics
from imagetok.precision import no_autocast

VQ_VAE = Paper(
    "inproceedings",
    "oord2017neural",
    "Neural Discrete Representation Learning",
    'van den Oord, A{\\"a}ron and Vinyals, Oriol and Kavukcuoglu, Koray',
    2017,
    "Advances in Neural Information Processing Systems",
    "1711.00937",
)
VQ_VAE_2 = Paper(
    "inproceedings",
    "razavi2019generating",
    "Generating Diverse High-Fidelity Images with {VQ-VAE-2}",
    'Razavi, Ali and van den Oord, A{\\"a}ron and Vinyals, Oriol',
    2019,
    "Advances in Neural Information Processing Systems",
    "1906.00446",
)
ROTATION_TRICK = Paper(
    "misc",
    "fifty2024restructuring",
    "Restructuring Vector Quantization with the Rotation Trick",
    "Fifty, Christopher and Junkins, Ronald G. and Duan, Dennis and Iyengar, Aniketh and Liu, "
    "Jerry W. and Amid, Ehsan and Thrun, Sebastian and R{\\'e}, Christopher",
    2024,
    "arXiv preprint",
    "2410.06424",
)


class VqConfig(BottleneckConfig):
    """Nearest code with a straight-through gradient (van den Oord et al. 2017, arXiv 1711.00937).

    Attributes:
        codebook_size: Number of codes.
        latent_dim: Channels taken from the encoder and given to the decoder.
        code_dim: Width of a code; where it differs from latent_dim, 1x1 projections lead in and
            out. None means latent_dim.
        normalize: l2-normalise codes and encoder outputs (cosine similarity).
        codebook: How codes are learnt: by exponential moving averages (`ema`) or by the codebook
            loss (`loss`).
        decay: EMA decay of the codebook, and of the running usage.
        epsilon: Floor of the EMA counts.
        gradient: `straight_through`, or `rotation` (Fifty et al. 2024, arXiv 2410.06424).
        kmeans_init: Start from k-means over encoder outputs instead of random codes.
        restart_below: A code whose running usage falls under this share of 1/codebook_size is
            dead and restarts at an encoder output; 0 never restarts.
    """

    title: ClassVar[str] = "VQ-VAE"
    tag: ClassVar[str] = "vq-vae"
    about: ClassVar[str] = (
        "It turns an image into a grid of ids of a codebook, and back: a transformer can learn the "
        "ids as it learns a text."
    )
    card_words: ClassVar[str] = (
        "nearest code of a learnt codebook, with a straight-through gradient"
    )
    weakness: ClassVar[str] = IDS_WEAKNESS
    is_discrete: ClassVar[bool] = True
    training_only: ClassVar[frozenset[str]] = frozenset(
        {"codebook", "decay", "epsilon", "gradient", "kmeans_init", "restart_below"}
    )

    type: Literal["vq"] = "vq"
    codebook_size: CodebookSize
    latent_dim: LatentDim
    code_dim: LatentDim | None = None
    normalize: bool = False
    codebook: Literal["ema", "loss"] = "ema"
    decay: Annotated[float, Field(ge=0, le=1)] = 0.99
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-5
    gradient: Literal["straight_through", "rotation"] = "straight_through"
    kmeans_init: bool = True
    restart_below: Annotated[float, Field(ge=0, lt=1)] = 0.03

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of the one level."""
        return (self.codebook_size,)

    @property
    def papers(self) -> tuple[Paper, ...]:
        """What the chosen options come from."""
        averages = (VQ_VAE_2,) if self.codebook == "ema" else ()
        rotation = (ROTATION_TRICK,) if self.gradient == "rotation" else ()
        return (VQ_VAE, *averages, *rotation)

    @model_validator(mode="after")
    def _table_fits(self) -> Self:
        check_table(self.codebook_size, self.code_dim or self.latent_dim)
        return self

    def build(self, in_channels: int) -> VectorQuantizer:
        """Build the quantizer with fresh weights."""
        return VectorQuantizer(**self.model_dump(exclude={"type"}))


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
        decay: Decay of the averages.
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
        table = self._normalized(torch.randn(codebook_size, code_dim).mul_(code_dim**-0.5))
        if self.averaged:
            self.register_buffer("codebook", table)
        else:
            self.codebook = nn.Parameter(table)
        # Running counts belong to training and are not part of a saved tokenizer.
        self.register_buffer("running_counts", torch.ones(codebook_size), persistent=False)

    def encode_ids(self, z: Tensor) -> Tensor:
        """Nearest code of every position, int64 (B, h, w)."""
        with self.full_precision(z) as z_full:
            return self._search(self._vectors(z_full)).view(len(z), *z.shape[2:])

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes of ids (B, h, w), projected, float (B, latent_dim, h, w)."""
        with no_autocast(self.codebook):
            codes: Tensor = self.project_out(F.embedding(ids, self.codebook))
        return rearrange(codes, "b h w d -> b d h w")

    def rate(self, z: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """The chosen codes, at ln K nats per position."""
        z_q = self.latents(z)
        return z_q, z_q.new_full((len(z),), self.code_nats((z.shape[2], z.shape[3])))

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

    def parameter_groups(self) -> dict[str, ParameterGroup]:
        """A codebook is looked up, not multiplied: decay would pull unused codes to zero."""
        return {} if self.averaged else {"codebook": ParameterGroup(decay=False)}

    @torch.no_grad()
    def update(self, statistics: Statistics, step: int) -> dict[str, Tensor]:
        """Average the codebook, keep the running counts, restart dead codes."""
        counts = statistics.sums["counts"].to(self.running_counts.dtype)
        self.running_counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        vectors = statistics.sums.get("vectors")
        if self.averaged and vectors is not None:
            pull = vectors - counts[:, None] * self.codebook
            total = self.running_counts.clamp_min(self.epsilon)[:, None]
            self.codebook.add_((1 - self.decay) * pull / total)
        self.constrain()
        candidates = statistics.samples.get("candidates")
        if candidates is None or not len(candidates):
            return {}
        restarted = self._restart(candidates, step)
        return {} if self.averaged else {"codebook": restarted}

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
        sums = {"counts": count_codes(flat_ids, self.codebook_size, vectors.dtype)}
        samples = {}
        if self.averaged:
            zeros = torch.zeros_like(self.codebook, dtype=vectors.dtype)
            sums["vectors"] = zeros.index_add_(0, flat_ids, vectors)
        if self.restart_below:
            samples["candidates"] = choose_candidates(vectors, num_samples, keys)
        return Statistics(sums, samples)

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
