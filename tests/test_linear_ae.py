"""A linear autoencoder is principal component analysis (Baldi & Hornik, 1989)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from imagetok import ImageTokenizer
from imagetok.config import TokenizerConfig

SIDE = 5
NUM_IMAGES = 200
NUM_LATENTS = (1, 4)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Gray images (N, 1, 5, 5) around a mean, their variances falling by 0.6 a component."""
    random = torch.Generator().manual_seed(0)
    pixels = SIDE**2
    basis, _ = torch.linalg.qr(torch.randn(pixels, pixels, generator=random, dtype=torch.float64))
    deviations = 0.2 * 0.6 ** (torch.arange(pixels, dtype=torch.float64) / 2)
    draws = torch.randn(NUM_IMAGES, pixels, generator=random, dtype=torch.float64) * deviations
    mean = torch.rand(pixels, generator=random, dtype=torch.float64)
    return (draws @ basis.T + mean).view(NUM_IMAGES, 1, SIDE, SIDE)


def principal_components(images: Tensor, count: int) -> tuple[Tensor, float]:
    """An orthonormal basis (pixels, count), and the squared error an image of what it leaves."""
    flat = images.flatten(1)
    _, sizes, directions = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    return directions[:count].T, float(sizes[count:].square().sum() / len(flat))


def train_linear(images: Tensor, num_latents: int) -> ImageTokenizer:
    """Minimise the squared error over all images by L-BFGS."""
    values = {
        "image_size": [SIDE, SIDE],
        "channels": 1,
        "encoder": {"type": "mlp"},
        "bottleneck": {"type": "identity", "latent_dim": num_latents},
        "decoder": {"type": "mlp"},
        "likelihood": {"type": "mse"},
    }
    torch.manual_seed(0)
    model = ImageTokenizer.from_config(TokenizerConfig.from_dict(values)).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=1000, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(images).losses["loss/reconstruction"]
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    return model


@pytest.fixture(scope="module")
def models(images: Tensor) -> dict[int, ImageTokenizer]:
    """A trained model for every number of latents."""
    return {count: train_linear(images, count) for count in NUM_LATENTS}


@torch.no_grad()
def squared_error(model: ImageTokenizer, images: Tensor) -> float:
    """Mean over images of the squared error, summed over pixels."""
    x_hat = model.decoder(model.encoder(images)) + 0.5
    return float((x_hat - images).square().flatten(1).sum(1).mean())


def largest_angle(one: Tensor, other: Tensor) -> float:
    """Largest principal angle between the column spaces of two matrices, in radians."""
    bases = [torch.linalg.qr(matrix).Q for matrix in (one, other)]
    # By its sine, which is exact where the cosine is nearly one.
    rest = bases[1] - bases[0] @ (bases[0].T @ bases[1])
    return math.asin(min(1.0, float(torch.linalg.matrix_norm(rest, ord=2))))


@pytest.mark.parametrize("num_latents", NUM_LATENTS)
def test_m_latents_span_the_first_m_components_and_reach_their_error(
    images: Tensor, models: dict[int, ImageTokenizer], num_latents: int
) -> None:
    model = models[num_latents]
    components, error = principal_components(images, num_latents)
    decoder = model.get_parameter("decoder.layers.0.weight").detach()
    assert decoder.shape == components.shape
    assert largest_angle(decoder, components) < 0.01
    assert squared_error(model, images) == pytest.approx(error, rel=0.01)


def test_the_error_falls_as_latents_grow(images: Tensor, models: dict[int, ImageTokenizer]) -> None:
    errors = [squared_error(models[count], images) for count in NUM_LATENTS]
    assert all(more < 0.8 * fewer for fewer, more in pairwise(errors))


def test_the_angle_is_that_between_planes() -> None:
    plane = torch.eye(4, dtype=torch.float64)[:, :2]
    tilted = plane.clone()
    tilted[:, 1] = torch.tensor([0.0, math.cos(0.3), math.sin(0.3), 0.0])
    assert largest_angle(plane, tilted) == pytest.approx(0.3)
    assert largest_angle(plane, plane @ torch.tensor([[2.0, 1.0], [0.0, 3.0]]).double()) < 1e-12
