"""A step of training beside the peers', on the same weights and images of 64 x 64 pixels.

The peers' steps are those of their own examples: forward, backward and Adam. Ours is the step of
`imagetok train`, whose losses, metrics and statistics are checked, merged and kept for the log. All
start with the same reconstruction, which is what is compared: its PSNR in dB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.measurement import Case
from benchmarks.models import MODELS, build_dalle_pytorch, build_vqvae_peer
from benchmarks.variant_process import Runs, Variant
from benchmarks.weights import draw_images

SIDE, BATCH, LEARNING_RATE = 64, 16, 3e-4

BOTTLENECKS: Mapping[str, Mapping[str, Any]] = {
    "dalle-pytorch": {"split_below": 0.0, "noise": "hash"},
    "vqvae": {},
}
"""How a bottleneck learns; what the peer has nothing like is switched off."""

LOSSES: Mapping[str, Mapping[str, Any]] = {
    "dalle-pytorch": {"temperature": 0.9, "loss_weights": {"loss/kl": 0.0}},
    "vqvae": {"loss_weights": {"loss/commitment": 0.25}},
}

MOST_DECIBELS = {"dalle-pytorch": 0.5, "vqvae": 0.02}
"""How far the first reconstructions may be apart; a dVAE's is made under noise of its own."""


def _psnr(x_hat: Tensor, x: Tensor) -> float:
    error = (x_hat.detach().clamp(0, 1) - x).square().flatten(1).mean(dim=1)
    return float((-10 * error.log10()).mean())


def _peer_steps(module: nn.Module, forward: Callable[[], tuple[Tensor, Tensor]]) -> Runs:
    """Steps as examples have them; the first one gives the PSNR."""
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    x = draw_images(BATCH, SIDE) / 255
    steps = count()

    def step() -> float:
        loss, x_hat = forward()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()  # as every example prints it
        return 0.0 if next(steps) else _psnr(x_hat, x)

    return {"": step}


def make_dalle_pytorch() -> Runs:
    """The step of DALLE-pytorch's `train_vae.py`, KL weight 0 as it is there."""
    model = build_dalle_pytorch(SIDE)
    x = draw_images(BATCH, SIDE) / 255

    def forward() -> tuple[Tensor, Tensor]:
        loss, out = model(x, return_loss=True, return_recons=True, temp=0.9)
        return loss, out / 2 + 0.5

    return _peer_steps(model, forward)


def make_vqvae() -> Runs:
    """The step of vector-quantize-pytorch's examples, with an EMA codebook."""
    model = build_vqvae_peer()
    x = draw_images(BATCH, SIDE) / 255

    def forward() -> tuple[Tensor, Tensor]:
        z_q, _, commitment = model.quantizer(model.encoder(x - 0.5))
        x_hat = model.decoder(z_q) + 0.5
        return nn.functional.mse_loss(x_hat, x) + commitment, x_hat

    return _peer_steps(model, forward)


def make_ours(name: str, half: bool) -> Runs:
    """The step of `imagetok train`."""
    from imagetok.data import TrainingBatch
    from imagetok.run_config import TrainConfig
    from imagetok.training.accelerator import build_accelerator
    from imagetok.training.step import Stepper

    config = TrainConfig.from_dict(
        {
            "steps": 1000,
            "batch_size": BATCH,
            "precision": "bf16" if half else "fp32",
            "optimizer": {
                "lr": LEARNING_RATE,
                "weight_decay": 0.0,
                "clip_norm": None,
                "fused": True,
            },
            **LOSSES[name],
        }
    )
    tokenizer = MODELS[name].build(SIDE, **BOTTLENECKS[name])
    accelerator = build_accelerator(config)
    stepper = Stepper(config, accelerator, tokenizer.to(accelerator.device))
    zeros = torch.zeros(BATCH, dtype=torch.int64)
    batch = TrainingBatch(pixels=draw_images(BATCH, SIDE), rows=torch.arange(BATCH), epochs=zeros)
    steps = count()

    def step() -> float:
        number = next(steps)
        totals = stepper.step(number, [batch], measure=number == 0)
        return 0.0 if number else totals.means["psnr"]

    return {"": step}


def _difference(name: str, part: str, expected: float, found: float) -> float:
    return float(abs(expected - found) > MOST_DECIBELS[name])


def cases() -> Iterator[Case]:
    """A case for each model."""
    for name, title, make_peer, requires in (
        ("dalle-pytorch", "the dVAE of DALLE-pytorch", make_dalle_pytorch, peers.DALLE_PYTORCH),
        ("vqvae", "a VQ-VAE with EMA codebook", make_vqvae, peers.VECTOR_QUANTIZE),
    ):
        ours = [
            Variant("imagetok", partial(make_ours, name, False), keeps_memory=True),
            Variant(
                "imagetok, bf16", partial(make_ours, name, True), keeps_memory=True, is_exact=False
            ),
        ]
        yield Case(
            f"train-{name}",
            f"a step of {title}, {BATCH} images of {SIDE} x {SIDE}, against "
            f"{MODELS[name].peer_title}",
            ours,
            Variant(MODELS[name].peer_title, make_peer),
            difference=partial(_difference, name),
            requires=requires,
        )
