"""Tiny tokenizers of every system with seeded weights, and images for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagetok import ImageTokenizer, TokenizerConfig
from imagetok.bottlenecks import DiscreteBottleneck, GaussianBottleneck, GumbelBottleneck

Make = Callable[..., ImageTokenizer]
MakePictures = Callable[..., Tensor]

_CONV = {"type": "conv", "hidden_channels": 8, "residual_channels": 4, "num_residual_blocks": 1}
_DALLE = {"type": "dalle", "hidden_channels": 16, "num_groups": 3, "blocks_per_group": 1}
_MLP = {"type": "mlp", "hidden": [12]}
_MSE, _LEARNT = {"type": "mse"}, {"type": "mse", "scale": "learnt"}
_L1, _LOGIT_LAPLACE = {"type": "l1"}, {"type": "logit_laplace"}


def _vq(codebook_size: int, **options: Any) -> dict[str, Any]:
    return {"type": "vq", "codebook_size": codebook_size, "latent_dim": 6, **options}


def _gumbel(**options: Any) -> dict[str, Any]:
    return {"type": "gumbel", "codebook_size": 32, "latent_dim": 6, **options}


# name: channels, both networks, bottleneck, likelihood
_SYSTEMS: dict[str, tuple[int, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "ae": (3, _CONV, {"type": "identity", "latent_dim": 3}, _MSE),
    "ae-mlp": (1, _MLP, {"type": "identity", "latent_dim": 5}, _L1),
    "vae": (3, _CONV, {"type": "gaussian", "latent_dim": 3}, _LEARNT),
    "vae-mlp": (4, {"type": "mlp"}, {"type": "gaussian", "latent_dim": 2}, _LEARNT),
    "vqvae": (3, _CONV, _vq(37), _MSE),
    "vqvae-loss": (1, _CONV, _vq(37, codebook="loss"), _L1),
    "vqvae-normalized": (4, _DALLE, _vq(37, normalize=True), _MSE),
    "vqvae-projected": (3, _CONV, _vq(37, code_dim=3), _LOGIT_LAPLACE),
    "vqvae-mlp": (3, _MLP, _vq(8), _MSE),
    "dvae": (3, _DALLE, _gumbel(), _LOGIT_LAPLACE),
    "dvae-hard": (1, _CONV, _gumbel(hard=True), _MSE),
    "dvae-mlp": (3, {"type": "mlp"}, _gumbel(), _LOGIT_LAPLACE),
}
_CONTINUOUS = [name for name in _SYSTEMS if name.startswith(("ae", "vae"))]
_GRIDS = [name for name in _SYSTEMS if not name.endswith("mlp")]


def _config(name: str, options: dict[str, Any]) -> TokenizerConfig:
    channels, network, bottleneck, likelihood = _SYSTEMS[name]
    return TokenizerConfig.from_dict(
        {
            "image_size": [16, 24],
            "channels": channels,
            "encoder": network,
            "bottleneck": bottleneck,
            "decoder": network,
            "likelihood": likelihood,
            **options,
        }
    )


def _pictures(
    tokenizer: ImageTokenizer, count: int, seed: int = 0, size: tuple[int, int] | None = None
) -> Tensor:
    """Soft blobs of colour with some noise, uint8 (count, C, H, W)."""
    height, width = size or tokenizer.image_size
    generator = torch.Generator().manual_seed(seed)
    channels = tokenizer.preprocessor.channels
    blobs = torch.rand(count, channels, 3, 4, generator=generator)
    noise = torch.rand(count, channels, height, width, generator=generator)
    x = 0.9 * F.interpolate(blobs, (height, width), mode="bilinear") + 0.1 * noise
    return (x * 255).round().to(torch.uint8)


@torch.no_grad()
def _spread(tokenizer: ImageTokenizer) -> None:
    """Make up for training: encoder outputs of mean 0 and variance 1, and codes fitted to them.

    Untrained encoders give nearly one vector for all images, and so one id.
    """
    x = _pictures(tokenizer, 64, seed=99).float() / 255
    bottleneck = tokenizer.bottleneck
    gumbel = isinstance(bottleneck, GumbelBottleneck)
    last = bottleneck.logits if gumbel else list(tokenizer.encoder.modules())[-1]
    out = tokenizer.encoder(x).movedim(1, -1).flatten(0, 2)
    out = last(out) if gumbel else out
    mean, scale = out.mean(dim=0), out.std(dim=0) + 1e-6
    gain = (4 if gumbel else 1) / scale
    last.weight.mul_(gain.view(-1, *[1] * (last.weight.ndim - 1)))
    last.bias.sub_(mean).mul_(gain)
    if isinstance(bottleneck, DiscreteBottleneck):
        bottleneck.initialize(tokenizer.encoder(x).movedim(1, -1).flatten(0, 2))


@pytest.fixture(scope="session")
def make() -> Make:
    """`make(name, seed=0, **options)` builds a tokenizer; options replace entries of its config."""

    def make(name: str, seed: int = 0, **options: Any) -> ImageTokenizer:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tokenizer = ImageTokenizer.from_config(_config(name, options))
        _spread(tokenizer)
        return tokenizer

    return make


@pytest.fixture(scope="session")
def pictures() -> MakePictures:
    """`pictures(tokenizer, count, seed=0, size=None)` gives uint8 (count, C, H, W)."""
    return _pictures


@pytest.fixture(scope="session")
def floats() -> MakePictures:
    """`floats(tokenizer, count, ...)`: the same images as prepared float tensors."""
    return lambda *args, **options: _pictures(*args, **options).float() / 255


@pytest.fixture(scope="session")
def infer() -> Callable[[ImageTokenizer, Any], dict[str, Tensor]]:
    """`infer(tokenizer, images)` calls every deterministic inference method that the model has."""

    def infer(tokenizer: ImageTokenizer, images: Any) -> dict[str, Tensor]:
        found = {
            "latents": tokenizer.encode_latents(images),
            "reconstruction": tokenizer.reconstruct(images, output="pt"),
        }
        if isinstance(tokenizer.bottleneck, DiscreteBottleneck):
            found["ids"] = tokenizer.encode(images)
            found["decoded"] = tokenizer.decode(found["ids"], output="pt")
        else:
            found["decoded"] = tokenizer.decode_latents(found["latents"], output="pt")
        if isinstance(tokenizer.bottleneck, GumbelBottleneck):
            found["log_probs"] = tokenizer.encode_distribution(images)
        if isinstance(tokenizer.bottleneck, GaussianBottleneck):
            found["mean"], found["log_var"] = tokenizer.encode_distribution(images)
        return found

    return infer


@pytest.fixture(params=list(_SYSTEMS))
def tokenizer(request: pytest.FixtureRequest, make: Make) -> ImageTokenizer:
    """A tokenizer of every system."""
    return make(request.param)


@pytest.fixture(params=[name for name in _SYSTEMS if name not in _CONTINUOUS])
def discrete(request: pytest.FixtureRequest, make: Make) -> ImageTokenizer:
    """Every tokenizer with ids."""
    return make(request.param)


@pytest.fixture(params=_CONTINUOUS)
def continuous(request: pytest.FixtureRequest, make: Make) -> ImageTokenizer:
    """Every AE and VAE."""
    return make(request.param)


@pytest.fixture(params=[name for name in _GRIDS if name not in _CONTINUOUS])
def gridded(request: pytest.FixtureRequest, make: Make) -> ImageTokenizer:
    """Every tokenizer with ids on a grid of 4 x 6 that takes other grids as well."""
    return make(request.param)


@pytest.fixture(params=[name for name in _SYSTEMS if name.startswith("dvae")])
def dvae(request: pytest.FixtureRequest, make: Make) -> ImageTokenizer:
    """Every dVAE."""
    return make(request.param)


@pytest.fixture(params=[name for name in _SYSTEMS if name.startswith("vae")])
def vae(request: pytest.FixtureRequest, make: Make) -> ImageTokenizer:
    """Every VAE."""
    return make(request.param)


@pytest.fixture(scope="session")
def every_name() -> list[str]:
    """The names that `make` takes."""
    return list(_SYSTEMS)
