"""From a config to parts: every member of the unions, and widths that fit in every combination."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from imagetok import ImageTokenizer, TokenizerConfig, load_recipe
from imagetok.bottlenecks import (
    DiscreteBottleneck,
    GaussianBottleneck,
    GumbelBottleneck,
    IdentityBottleneck,
    VectorQuantizer,
)
from imagetok.build import build_parts
from imagetok.config import ScheduleConfig, build_schedule, recipe_names
from imagetok.images import Preprocessor
from imagetok.likelihoods import L1Likelihood, LogitLaplaceLikelihood, MseLikelihood
from imagetok.networks import (
    ConvDecoder,
    ConvEncoder,
    DalleDecoder,
    DalleEncoder,
    MlpDecoder,
    MlpEncoder,
)

# All of them bring 8 x 8 pixels to one position, so that every encoder fits every decoder.
NETWORKS: dict[str, dict[str, Any]] = {
    "linear": {"type": "mlp"},
    "mlp": {"type": "mlp", "hidden": [7, 5]},
    "conv": {
        "type": "conv",
        "hidden_channels": 6,
        "residual_channels": 3,
        "num_residual_blocks": 1,
        "num_downsamplings": 3,
    },
    "dalle": {"type": "dalle", "hidden_channels": 4, "num_groups": 4, "blocks_per_group": 1},
}
BOTTLENECKS: dict[str, dict[str, Any]] = {
    "identity": {"type": "identity", "latent_dim": 5},
    "gaussian": {"type": "gaussian", "latent_dim": 5},
    "vq": {"type": "vq", "codebook_size": 11, "latent_dim": 5},
    "vq-projected": {"type": "vq", "codebook_size": 11, "latent_dim": 5, "code_dim": 2},
    "gumbel": {"type": "gumbel", "codebook_size": 11, "latent_dim": 5},
}
LIKELIHOODS: dict[str, dict[str, Any]] = {
    "mse": {"type": "mse"},
    "l1": {"type": "l1", "scale": "learnt"},
    "logit_laplace": {"type": "logit_laplace"},
}


def make_config(**options: Any) -> TokenizerConfig:
    usual: dict[str, Any] = {
        "image_size": [8, 8],
        "encoder": NETWORKS["conv"],
        "bottleneck": BOTTLENECKS["identity"],
        "decoder": NETWORKS["conv"],
        "likelihood": LIKELIHOODS["mse"],
    }
    return TokenizerConfig.from_dict(usual | options)


@pytest.mark.parametrize(
    ("part", "config", "kind"),
    [
        ("encoder", NETWORKS["linear"], MlpEncoder),
        ("encoder", NETWORKS["conv"], ConvEncoder),
        ("encoder", NETWORKS["dalle"], DalleEncoder),
        ("decoder", NETWORKS["linear"], MlpDecoder),
        ("decoder", NETWORKS["conv"], ConvDecoder),
        ("decoder", NETWORKS["dalle"], DalleDecoder),
        ("bottleneck", BOTTLENECKS["identity"], IdentityBottleneck),
        ("bottleneck", BOTTLENECKS["gaussian"], GaussianBottleneck),
        ("bottleneck", BOTTLENECKS["vq"], VectorQuantizer),
        ("bottleneck", BOTTLENECKS["gumbel"], GumbelBottleneck),
        ("likelihood", LIKELIHOODS["mse"], MseLikelihood),
        ("likelihood", LIKELIHOODS["l1"], L1Likelihood),
        ("likelihood", LIKELIHOODS["logit_laplace"], LogitLaplaceLikelihood),
    ],
)
def test_a_config_becomes_the_part_it_names(part: str, config: dict[str, Any], kind: type) -> None:
    assert type(getattr(build_parts(make_config(**{part: config})), part)) is kind


@pytest.mark.parametrize("encoder", NETWORKS)
@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_parts_fit_each_other_in_every_combination(encoder: str, bottleneck: str) -> None:
    torch.manual_seed(0)
    channel_counts = itertools.cycle((1, 3, 4))
    for decoder, likelihood in itertools.product(NETWORKS, LIKELIHOODS):
        channels = next(channel_counts)
        config = make_config(
            channels=channels,
            encoder=NETWORKS[encoder],
            bottleneck=BOTTLENECKS[bottleneck],
            decoder=NETWORKS[decoder],
            likelihood=LIKELIHOODS[likelihood],
        )
        tokenizer = ImageTokenizer.from_config(config)
        x = torch.rand(2, channels, 8, 8)
        output = tokenizer(x)
        assert output.x_hat.shape == x.shape
        assert all(loss.isfinite() for loss in output.losses.values())
        assert tokenizer.encode_latents(x).shape == (2, 5, 1, 1)
        assert tokenizer.reconstruct(x, output="pt").shape == x.shape
        if isinstance(tokenizer.bottleneck, DiscreteBottleneck):
            assert tokenizer.encode(x).shape == (2, 1, 1)


def test_preprocessing_is_that_of_the_config() -> None:
    config = make_config(
        image_size=[16, 24],
        channels=4,
        preprocessing={"resize": "bilinear", "background": [1, 2, 3]},
    )
    expected = Preprocessor((16, 24), 4, "bilinear", (1, 2, 3))
    assert build_parts(config).preprocessor == expected


def test_options_reach_their_part() -> None:
    options = {
        "codebook_size": 13,
        "latent_dim": 6,
        "code_dim": 4,
        "normalize": True,
        "codebook": "loss",
        "decay": 0.5,
        "epsilon": 0.25,
        "gradient": "rotation",
        "kmeans_init": False,
        "restart_below": 0.125,
    }
    vq = build_parts(make_config(bottleneck={"type": "vq", **options})).bottleneck
    assert isinstance(vq, VectorQuantizer)
    assert vq.codebook.shape == (13, 4)
    assert (vq.latent_dim, vq.normalize, vq.averaged, vq.gradient) == (6, True, False, "rotation")
    assert (vq.decay, vq.epsilon, vq.restart_below) == (0.5, 0.25, 0.125)
    assert vq.num_initial_vectors == 0
    options = BOTTLENECKS["gumbel"] | {"hard": True, "split_below": 0.25}
    gumbel = build_parts(make_config(bottleneck=options)).bottleneck
    assert isinstance(gumbel, GumbelBottleneck)
    assert (gumbel.hard, gumbel.split_below) == (True, 0.25)
    assert gumbel.embedding.shape == (11, 5)
    for kind in ("mse", "l1"):
        likelihood = build_parts(make_config(likelihood={"type": kind, "scale": 0.25})).likelihood
        assert isinstance(likelihood, MseLikelihood | L1Likelihood)
        assert math.isclose(float(likelihood.log_scale()), math.log(0.25))


def test_equal_seeds_build_equal_weights() -> None:
    config = make_config(bottleneck=BOTTLENECKS["vq-projected"])
    built = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        built.append(ImageTokenizer.from_config(config).fingerprint)
    assert built[0] == built[1] != built[2]


def test_the_smallest_sides_that_a_config_takes_can_be_built() -> None:
    config = make_config(image_size=[2, 2], encoder=NETWORKS["linear"], decoder=NETWORKS["linear"])
    assert build_parts(config).preprocessor.image_size == (2, 2)


# Published sizes, without their weights


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_to_what_its_config_says(name: str) -> None:
    config = load_recipe(name).tokenizer
    with torch.device("meta"):
        tokenizer = ImageTokenizer.from_config(config)
        z = tokenizer.encoder(torch.empty(2, config.channels, *config.image_size))
        output = tokenizer(torch.empty(2, config.channels, *config.image_size))
    assert z.shape == (2, tokenizer.bottleneck.in_channels, *config.grid_size)
    assert tokenizer.grid_size == config.grid_size
    assert output.x_hat.shape == (2, config.channels, *config.image_size)


@pytest.mark.parametrize(
    ("name", "image", "grid", "codebook_size"),
    [
        ("dvae-dalle", 256, 32, 8192),
        ("vqvae-imagenet", 128, 32, 512),
        ("vqvae-shapes", 64, 16, 512),
    ],
)
def test_published_sizes_have_their_grid_and_codebook(
    name: str, image: int, grid: int, codebook_size: int
) -> None:
    with torch.device("meta"):
        tokenizer = ImageTokenizer.from_config(load_recipe(name).tokenizer)
        x = torch.empty(1, 3, image, image)
        assert isinstance(tokenizer.bottleneck, DiscreteBottleneck)
        ids = tokenizer.bottleneck.encode_ids(tokenizer.encoder(x))
    assert tokenizer.image_size == (image, image)
    assert ids.shape == (1, grid, grid)
    assert tokenizer.num_tokens == grid * grid
    assert tokenizer.downsample_factor == image // grid
    assert tokenizer.codebook_size == codebook_size


def test_the_dvae_has_the_depth_and_width_of_the_papers() -> None:
    with torch.device("meta"):
        parts = build_parts(load_recipe("dvae-dalle").tokenizer)
    encoder, bottleneck, decoder = parts.encoder, parts.bottleneck, parts.decoder
    assert isinstance(encoder, DalleEncoder)
    assert isinstance(decoder, DalleDecoder)
    assert isinstance(bottleneck, GumbelBottleneck)
    assert (encoder.factors, decoder.factors) == ((8, 8), (8, 8))
    assert bottleneck.in_channels == 8 * 256
    assert bottleneck.logits.weight.shape == (8192, 2048)
    assert bottleneck.embedding.shape == (8192, 128)
    assert parts.likelihood.channel_multiple == 2


# Schedules


def test_a_number_is_a_constant_schedule() -> None:
    schedule = build_schedule(0.25, 10)
    assert [schedule(step) for step in (0, 5, 10**9)] == [0.25] * 3


@pytest.mark.parametrize(
    ("kind", "middle"), [("linear", 2.5), ("cosine", 2.5), ("exponential", 2.0)]
)
def test_a_schedule_has_its_shape_between_its_ends(kind: str, middle: float) -> None:
    values = {"type": kind, "start": 4.0, "end": 1.0, "steps": 100, "begin": 50}
    schedule = build_schedule(ScheduleConfig.from_dict(values), 1000)
    assert (schedule(0), schedule(50)) == (4.0, 4.0)
    assert math.isclose(schedule(100), middle)
    assert (schedule(150), schedule(999)) == (1.0, 1.0)


def test_a_schedule_without_steps_lasts_to_the_end_of_the_run() -> None:
    values = {"type": "linear", "start": 0.0, "end": 1.0, "begin": 20}
    schedule = build_schedule(ScheduleConfig.from_dict(values), 120)
    assert (schedule(20), schedule(70), schedule(120)) == (0.0, 0.5, 1.0)
    late = build_schedule(ScheduleConfig.from_dict(values), 10)
    assert (late(10), late(20)) == (0.0, 0.0)


def test_the_dvaes_schedules_are_the_papers() -> None:
    train = load_recipe("dvae-dalle").train
    temperature = build_schedule(train.temperature, train.steps)
    assert (temperature(0), temperature(150_000), temperature(10**6)) == (1.0, 1 / 16, 1 / 16)
    weight = build_schedule(train.loss_weights["loss/kl"], train.steps)
    assert (weight(0), weight(5_000), weight(10**6)) == (0.0, 6.6, 6.6)
    lr = build_schedule(train.optimizer.lr, train.steps)
    assert (lr(0), lr(1_200_000)) == (1e-4, 1.25e-6)
