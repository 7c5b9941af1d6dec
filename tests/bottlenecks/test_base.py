"""What holds for every bottleneck: a new one adds a row to BOTTLENECKS."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from imagetok.bottlenecks import (
    Bottleneck,
    BottleneckOutput,
    DiscreteBottleneck,
    GaussianBottleneck,
    GumbelBottleneck,
    IdentityBottleneck,
    VectorQuantizer,
)
from imagetok.errors import InvalidValueError

BOTTLENECKS: dict[str, Callable[[], Bottleneck]] = {
    "identity": lambda: IdentityBottleneck(6),
    "gaussian": lambda: GaussianBottleneck(6),
    "vq": lambda: VectorQuantizer(16, 6),
    "vq-loss": lambda: VectorQuantizer(16, 6, codebook="loss"),
    "vq-rotation": lambda: VectorQuantizer(16, 6, gradient="rotation"),
    "vq-projected": lambda: VectorQuantizer(16, 6, code_dim=3, normalize=True),
    "gumbel": lambda: GumbelBottleneck(5, 16, 6),
    "gumbel-hard": lambda: GumbelBottleneck(5, 16, 6, hard=True),
}
DISCRETE = [name for name in BOTTLENECKS if name.startswith(("vq", "gumbel"))]
VALUES = {"temperature": 0.7}
KEYS = torch.tensor([11, 22, 33, 44])

every = pytest.mark.parametrize("name", BOTTLENECKS)
every_discrete = pytest.mark.parametrize("name", DISCRETE)
half_types = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def build(name: str) -> tuple[Bottleneck, Tensor]:
    """A bottleneck with seeded weights, and an encoder output (4, C, 3, 2) for it."""
    torch.manual_seed(0)
    bottleneck = BOTTLENECKS[name]()
    return bottleneck, torch.randn(4, bottleneck.in_channels, 3, 2)


def discrete(name: str) -> tuple[DiscreteBottleneck, Tensor]:
    bottleneck, z = build(name)
    assert isinstance(bottleneck, DiscreteBottleneck)
    return bottleneck, z


def tensors(bottleneck: Bottleneck) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, those not saved among them."""
    named = {**dict(bottleneck.named_parameters()), **dict(bottleneck.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def assert_equal(first: BottleneckOutput, second: BottleneckOutput) -> None:
    assert torch.equal(first.z_q, second.z_q)
    assert (first.ids is None) == (second.ids is None)
    assert first.ids is None or torch.equal(first.ids, second.ids)
    assert first.losses.keys() == second.losses.keys()
    assert all(torch.equal(first.losses[key], second.losses[key]) for key in first.losses)


# The contract of forward


@every
def test_the_decoder_gets_latent_dim_channels_on_the_same_grid(name: str) -> None:
    bottleneck, z = build(name)
    out = bottleneck(z, VALUES, KEYS)
    assert out.z_q.shape == (4, bottleneck.latent_dim, 3, 2)
    assert bottleneck.latents(z).shape == (4, bottleneck.latent_dim, 3, 2)


@every
def test_losses_and_metrics_are_scalars_under_their_groups(name: str) -> None:
    bottleneck, z = build(name)
    out = bottleneck(z, VALUES, KEYS)
    assert all(key.startswith("loss/") and value.shape == () for key, value in out.losses.items())
    assert all("/" in key and value.shape == () for key, value in out.metrics.items())
    assert not any(value.requires_grad for value in out.metrics.values())


@every
def test_forward_changes_no_state(name: str) -> None:
    bottleneck, z = build(name)
    before = tensors(bottleneck)
    for keys in (KEYS, None):
        bottleneck(z, VALUES, keys)
        bottleneck.latents(z)
        bottleneck.rate(z, keys)
    after = tensors(bottleneck)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@every
def test_train_and_eval_mode_give_the_same(name: str) -> None:
    bottleneck, z = build(name)
    trained, latents = bottleneck.train()(z, VALUES, KEYS), bottleneck.latents(z)
    assert_equal(bottleneck.eval()(z, VALUES, KEYS), trained)
    assert torch.equal(bottleneck.latents(z), latents)


@every
def test_the_same_keys_give_the_same_result(name: str) -> None:
    bottleneck, z = build(name)
    assert_equal(bottleneck(z, VALUES, KEYS), bottleneck(z, VALUES, KEYS))


@every
def test_a_sample_does_not_depend_on_its_neighbours(name: str) -> None:
    bottleneck, z = build(name)
    whole = bottleneck(z, VALUES, KEYS).z_q
    order = torch.tensor([2, 0, 3, 1])
    shuffled = bottleneck(z[order], VALUES, KEYS[order]).z_q
    torch.testing.assert_close(shuffled, whole[order])
    alone = bottleneck(z[2:3], VALUES, KEYS[2:3]).z_q
    torch.testing.assert_close(alone, whole[2:3])


@every
def test_the_losses_of_a_batch_are_the_means_of_its_halves(name: str) -> None:
    bottleneck, z = build(name)
    bottleneck.double()
    whole = bottleneck(z.double(), VALUES, KEYS)
    halves = [bottleneck(z[i : i + 2].double(), VALUES, KEYS[i : i + 2]) for i in (0, 2)]
    for part in ("losses", "metrics"):
        for key, value in getattr(whole, part).items():
            mean = sum(getattr(half, part)[key] for half in halves) / 2
            torch.testing.assert_close(mean, value)


@every
def test_repeating_a_batch_changes_no_loss(name: str) -> None:
    bottleneck, z = build(name)
    once = bottleneck(z, VALUES, KEYS).losses
    twice = bottleneck(z.repeat(2, 1, 1, 1), VALUES, KEYS.repeat(2)).losses
    for key, value in once.items():
        torch.testing.assert_close(twice[key], value)


@every
def test_gradients_reach_the_encoder_and_every_parameter(name: str) -> None:
    bottleneck, z = build(name)
    z.requires_grad_()
    out = bottleneck(z, VALUES, KEYS)
    torch.stack([out.z_q.square().sum(), *out.losses.values()]).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert (z.grad.flatten(1).abs().sum(dim=1) > 0).all()
    for key, parameter in bottleneck.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@every
def test_another_number_of_channels_is_refused_in_words(name: str) -> None:
    bottleneck, z = build(name)
    for wrong in (z[:, 1:], z[0], z.flatten(2)):
        for call in (bottleneck, bottleneck.latents):
            with pytest.raises(InvalidValueError, match=f"B, {bottleneck.in_channels}, h, w"):
                call(wrong)


@every
def test_the_number_of_initial_vectors_is_none_or_four_times_the_codebook(name: str) -> None:
    bottleneck, _ = build(name)
    expected = 4 * bottleneck.codebook_size if isinstance(bottleneck, VectorQuantizer) else 0
    assert bottleneck.num_initial_vectors == expected


@every
def test_a_rate_is_nats_an_image_and_what_the_decoder_gets_for_them(name: str) -> None:
    bottleneck, z = build(name)
    rate = bottleneck.rate(z, KEYS)
    if isinstance(bottleneck, IdentityBottleneck):
        assert rate is None
        return
    assert rate is not None
    z_q, nats = rate
    assert z_q.shape == (4, bottleneck.latent_dim, 3, 2)
    assert nats.shape == (4,)
    assert (nats > 0).all()


# Ids


@every_discrete
def test_ids_are_those_of_inference_and_lie_in_the_codebook(name: str) -> None:
    bottleneck, z = discrete(name)
    out = bottleneck(z, VALUES, KEYS)
    assert out.ids is not None
    assert out.ids.dtype == torch.int64
    assert out.ids.shape == (4, 3, 2)
    assert 0 <= out.ids.min() <= out.ids.max() < bottleneck.codebook_size
    assert torch.equal(out.ids, bottleneck.encode_ids(z))
    assert torch.equal(bottleneck.latents(z), bottleneck.lookup(out.ids))


@every_discrete
def test_ids_stand_where_their_position_is(name: str) -> None:
    bottleneck, z = discrete(name)
    ids = bottleneck.encode_ids(z)
    for row in range(3):
        for column in range(2):
            piece = z[1:2, :, row : row + 1, column : column + 1]
            assert bottleneck.encode_ids(piece).item() == ids[1, row, column]
    swapped = bottleneck.encode_ids(z.transpose(2, 3))
    assert torch.equal(swapped, ids.transpose(1, 2))


@every_discrete
def test_counts_are_how_often_each_id_was_chosen(name: str) -> None:
    bottleneck, z = discrete(name)
    out = bottleneck(z, VALUES, KEYS)
    assert out.ids is not None
    expected = torch.bincount(out.ids.flatten(), minlength=16)
    assert torch.equal(out.statistics.sums["counts"], expected.float())


@every_discrete
def test_an_empty_batch_has_no_ids(name: str) -> None:
    bottleneck, z = discrete(name)
    assert bottleneck.encode_ids(z[:0]).shape == (0, 3, 2)
    assert bottleneck.latents(z[:0]).shape == (0, bottleneck.latent_dim, 3, 2)


# Exactness


@every
@pytest.mark.parametrize(
    "narrow",
    [
        lambda module: module.half(),
        lambda module: module.bfloat16(),
        lambda module: module.to(torch.bfloat16),
        lambda module: module.to("cpu", torch.float16),
        lambda module: torch.nn.Sequential(module).half(),
    ],
    ids=["half", "bfloat16", "to", "to-device", "parent"],
)
def test_narrowing_keeps_float32_bit_for_bit(
    name: str, narrow: Callable[[Bottleneck], object]
) -> None:
    bottleneck, _ = build(name)
    before = tensors(bottleneck)
    narrow(bottleneck)
    after = tensors(bottleneck)
    assert all(after[key].dtype == torch.float32 for key in after)
    assert all(torch.equal(before[key], after[key]) for key in before)


@every
def test_double_widens(name: str) -> None:
    bottleneck, z = build(name)
    bottleneck.double()
    assert all(tensor.dtype == torch.float64 for tensor in tensors(bottleneck).values())
    out = bottleneck(z.double(), VALUES, KEYS)
    assert out.z_q.dtype == torch.float64
    assert all(loss.dtype == torch.float64 for loss in out.losses.values())


@every
@half_types
def test_half_outputs_of_an_encoder_are_worked_on_in_float32(name: str, dtype: torch.dtype) -> None:
    bottleneck, z = build(name)
    narrow = z.to(dtype)
    out = bottleneck(narrow, VALUES, KEYS)
    assert out.z_q.dtype == torch.float32
    assert all(loss.dtype == torch.float32 for loss in out.losses.values())
    assert_equal(out, bottleneck(narrow.float(), VALUES, KEYS))
    assert torch.equal(bottleneck.latents(narrow), bottleneck.latents(narrow.float()))


@every
def test_autocast_changes_nothing(name: str) -> None:
    bottleneck, z = build(name)
    exact, latents = bottleneck(z, VALUES, KEYS), bottleneck.latents(z)
    rate = bottleneck.rate(z, KEYS)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(bottleneck(z, VALUES, KEYS), exact)
        assert torch.equal(bottleneck.latents(z), latents)
        cast_rate = bottleneck.rate(z, KEYS)
    assert (rate is None) == (cast_rate is None)
    for value, cast_value in zip(rate or (), cast_rate or (), strict=True):
        assert torch.equal(cast_value, value)


@every
def test_a_copy_gives_the_same(name: str) -> None:
    bottleneck, z = build(name)
    assert_equal(copy.deepcopy(bottleneck)(z, VALUES, KEYS), bottleneck(z, VALUES, KEYS))
