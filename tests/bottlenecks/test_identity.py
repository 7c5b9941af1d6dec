from __future__ import annotations

import torch

from imagetok.bottlenecks import IdentityBottleneck


def test_the_decoder_gets_what_the_encoder_gives() -> None:
    z = torch.randn(2, 3, 4, 5, requires_grad=True)
    bottleneck = IdentityBottleneck(3)
    out = bottleneck(z)
    assert torch.equal(out.z_q, z)
    assert torch.equal(bottleneck.latents(z), z)
    assert out.ids is None
    assert out.losses == out.metrics == {}
    assert out.statistics is None


def test_the_gradient_is_copied() -> None:
    z = torch.randn(2, 3, 4, 5, requires_grad=True)
    gradient = torch.randn(2, 3, 4, 5)
    IdentityBottleneck(3)(z).z_q.backward(gradient)
    assert torch.equal(z.grad, gradient)


def test_it_has_nothing_to_learn_and_nothing_to_save() -> None:
    assert not IdentityBottleneck(3).state_dict()
