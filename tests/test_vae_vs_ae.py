"""What a VAE buys: a latent space without holes, filled as its prior says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imagetok import ImageTokenizer
from imagetok.bottlenecks import GaussianPosterior
from imagetok.config import RunConfig
from imagetok.data import TrainingBatch, open_images
from imagetok.training.accelerator import build_accelerator
from imagetok.training.step import Stepper

LATENT_DIM = 16
NUM_DRAWS = 500
BATCH_SIZE = 64


def run(bottleneck: str) -> RunConfig:
    """The same networks and likelihood for both; they differ in the bottleneck alone."""
    return RunConfig.from_dict(
        {
            "tokenizer": {
                "image_size": [8, 8],
                "channels": 1,
                "encoder": {"type": "mlp", "hidden": [128, 64]},
                "bottleneck": {"type": bottleneck, "latent_dim": LATENT_DIM},
                "decoder": {"type": "mlp", "hidden": [64, 128]},
                "likelihood": {"type": "mse", "scale": 0.25},
            },
            "data": {"name": "builtin:digits"},
            "train": {
                "steps": 2000,
                "batch_size": BATCH_SIZE,
                "optimizer": {"lr": {"type": "cosine", "start": 2e-3, "end": 1e-5}},
                "ema_decay": 0.99,
            },
        }
    )


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """The training digits, uint8 (N, 1, 8, 8)."""
    pytest.importorskip("sklearn")
    rows = open_images("builtin:digits", "train")
    tokenizer = ImageTokenizer.from_config(run("identity").tokenizer)
    return tokenizer.preprocess([rows.image(row) for row in range(len(rows))])


def train(config: RunConfig, pixels: Tensor) -> ImageTokenizer:
    """Take all steps on images in memory, a new random batch each."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizer.from_config(config.tokenizer)
    stepper = Stepper(config.train, build_accelerator(config.train), tokenizer)
    random = torch.Generator().manual_seed(0)
    for step in range(config.train.steps):
        rows = torch.randint(len(pixels), (BATCH_SIZE,), generator=random)
        stepper.step(step, [TrainingBatch(pixels[rows], rows, torch.zeros_like(rows))])
    return stepper.evaluated


@pytest.fixture(scope="module")
def models(pixels: Tensor) -> dict[str, ImageTokenizer]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        trained = {kind: train(run(kind), pixels) for kind in ("identity", "gaussian")}
    torch.set_num_threads(threads)
    return trained


def nearness(images: Any, pixels: Tensor) -> float:
    """Mean distance of images to the nearest image of the data."""
    assert isinstance(images, Tensor)
    data = pixels.float().flatten(1) / 255
    return float(torch.cdist(images.flatten(1), data).amin(1).mean())


def latents_of(model: ImageTokenizer, pixels: Tensor) -> Tensor:
    """Latents (N, latent_dim): an AE's own, or a draw from a VAE's posterior."""
    if model.config is not None and model.config.bottleneck.type == "gaussian":
        posterior = model.encode_distribution(pixels)
        assert isinstance(posterior, GaussianPosterior)
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(2))
        return (posterior.mean + noise * (posterior.log_var / 2).exp()).flatten(1)
    return model.encode_latents(pixels).flatten(1)


@pytest.mark.slow
def test_the_aggregate_posterior_is_near_the_prior_and_the_aes_latents_are_not(
    models: dict[str, ImageTokenizer], pixels: Tensor
) -> None:
    def distance(z: Tensor) -> float:
        """Largest difference of a mean or a covariance from that of N(0, I)."""
        covariance = z.T.cov() - torch.eye(LATENT_DIM)
        return max(float(z.mean(0).abs().max()), float(covariance.abs().max()))

    assert distance(latents_of(models["gaussian"], pixels)) < 0.3
    assert distance(latents_of(models["identity"], pixels)) > 0.6


@pytest.mark.slow
def test_draws_from_the_prior_decode_nearer_the_data(
    models: dict[str, ImageTokenizer], pixels: Tensor
) -> None:
    z = torch.randn(NUM_DRAWS, LATENT_DIM, 1, 1, generator=torch.Generator().manual_seed(1))
    vae = nearness(models["gaussian"].decode_latents(z, output="pt"), pixels)
    ae = nearness(models["identity"].decode_latents(z, output="pt"), pixels)
    assert vae < 0.85 * ae
    # Nor does it help the AE to draw from a Gaussian of its own mean and variances.
    own = latents_of(models["identity"], pixels)
    scaled = own.mean(0)[:, None, None] + z * own.std(0)[:, None, None]
    assert vae < 0.85 * nearness(models["identity"].decode_latents(scaled, output="pt"), pixels)


@pytest.mark.slow
def test_midpoints_between_images_decode_nearer_the_data(
    models: dict[str, ImageTokenizer], pixels: Tensor
) -> None:
    random = torch.Generator().manual_seed(1)
    pairs = torch.randint(len(pixels), (200, 2), generator=random).tolist()

    def midpoints(model: ImageTokenizer) -> Tensor:
        walks = [model.interpolate(pixels[a], pixels[b], 3, output="pt") for a, b in pairs]
        return torch.stack([walk[1] for walk in walks if isinstance(walk, Tensor)])

    assert nearness(midpoints(models["gaussian"]), pixels) < 0.96 * nearness(
        midpoints(models["identity"]), pixels
    )
