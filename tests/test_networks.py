from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from imagetok.bottlenecks import GumbelBottleneck
from imagetok.networks import (
    ConvDecoder,
    ConvEncoder,
    DalleDecoder,
    DalleEncoder,
    MlpDecoder,
    MlpEncoder,
    checkpoint_activations,
)
from imagetok.networks.conv import ResidualBlock
from imagetok.networks.dalle import BottleneckBlock

SIZE = (16, 24)
Pair = tuple[nn.Module, nn.Module]


def mlp(channels: int, hidden: tuple[int, ...] = (20, 10)) -> Pair:
    return (
        MlpEncoder(SIZE, channels, hidden, 5),
        MlpDecoder(SIZE, 5, hidden[::-1], 2 * channels),
    )


def conv(channels: int, scales: int = 2) -> Pair:
    return (
        ConvEncoder(channels, 8, 4, 1, scales, 5),
        ConvDecoder(5, 8, 4, 1, scales, 2 * channels),
    )


def dalle(channels: int, groups: int = 3) -> Pair:
    return DalleEncoder(channels, 4, groups, 1, 5), DalleDecoder(5, 4, groups, 1, 2 * channels)


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Shapes and factors


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("build", "factors"),
    [(mlp, SIZE), (conv, (4, 4)), (dalle, (4, 4))],
    ids=["mlp", "conv", "dalle"],
)
def test_an_encoder_divides_the_sides_by_its_factors_and_the_decoder_multiplies_them(
    build: Callable[[int], Pair], factors: tuple[int, int], channels: int
) -> None:
    encoder, decoder = build(channels)
    assert encoder.factors == decoder.factors == factors
    z = encoder(torch.rand(2, channels, *SIZE))
    assert z.shape == (2, 5, SIZE[0] // factors[0], SIZE[1] // factors[1])
    assert decoder(z).shape == (2, 2 * channels, *SIZE)


@pytest.mark.parametrize("scales", [0, 1, 2, 3])
def test_conv_has_factor_2_to_the_number_of_downsamplings(scales: int) -> None:
    encoder, decoder = conv(3, scales)
    assert encoder.factors == decoder.factors == (2**scales, 2**scales)
    z = encoder(torch.rand(1, 3, 16, 8))
    assert z.shape == (1, 5, 16 >> scales, 8 >> scales)
    assert decoder(z).shape == (1, 6, 16, 8)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_dalle_has_factor_2_to_the_number_of_groups_less_one(groups: int) -> None:
    encoder, decoder = dalle(3, groups)
    assert encoder.factors == decoder.factors == (2 ** (groups - 1), 2 ** (groups - 1))
    z = encoder(torch.rand(1, 3, 16, 8))
    assert z.shape == (1, 5, 16 >> (groups - 1), 8 >> (groups - 1))
    assert decoder(z).shape == (1, 6, 16, 8)


def test_without_out_channels_an_encoder_yields_its_features() -> None:
    encoders = [
        (MlpEncoder(SIZE, 3, (20, 10), None), 10),
        (MlpEncoder(SIZE, 3, (), None), 3 * SIZE[0] * SIZE[1]),
        (ConvEncoder(3, 8, 4, 1, 2, None), 8),
        (DalleEncoder(3, 4, 3, 1, None), 16),
    ]
    for encoder, width in encoders:
        assert encoder.out_channels == width
        assert encoder(torch.rand(2, 3, *SIZE)).shape[1] == width
    for encoder in (mlp(3)[0], conv(3)[0], dalle(3)[0]):
        assert encoder.out_channels == 5


@pytest.mark.parametrize("build", [mlp, conv, dalle])
def test_every_parameter_gets_a_gradient(build: Callable[[int], Pair]) -> None:
    torch.manual_seed(0)
    encoder, decoder = build(3)
    decoder(encoder(torch.rand(8, 3, *SIZE))).square().sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# mlp


def test_an_mlp_without_hidden_layers_is_linear() -> None:
    torch.manual_seed(0)
    encoder, decoder = (network.double() for network in mlp(3, hidden=()))

    def without_offset(network: nn.Module, x: Tensor) -> Tensor:
        return network(x) - network(torch.zeros_like(x))

    for network, shape in ((encoder, (1, 3, *SIZE)), (decoder, (1, 5, 1, 1))):
        a, b = torch.randn(2, *shape, dtype=torch.float64)
        mixed = without_offset(network, 2 * a - 3 * b)
        parts = 2 * without_offset(network, a) - 3 * without_offset(network, b)
        torch.testing.assert_close(mixed, parts)


def test_an_mlp_with_a_hidden_layer_is_not_linear() -> None:
    torch.manual_seed(0)
    encoder, _ = mlp(3)
    a, b = torch.randn(2, 1, 3, *SIZE)
    zero = encoder(torch.zeros_like(a))
    assert not torch.allclose(encoder(a + b) + zero, encoder(a) + encoder(b), atol=1e-3)


def test_an_mlp_reads_and_writes_pixels_channel_by_channel_and_row_by_row() -> None:
    image = torch.randn(2, 3, *SIZE)
    torch.testing.assert_close(
        MlpEncoder(SIZE, 3, (), None)(image + 0.5).view(2, -1), image.view(2, -1)
    )
    decoder, z = MlpDecoder(SIZE, 5, (), 3), torch.randn(2, 5, 1, 1)
    assert torch.equal(decoder(z).view(2, -1), decoder.layers(z.view(2, 5)))


# conv


def test_conv_has_half_the_width_after_the_first_of_several_downsamplings() -> None:
    def widths(network: nn.Module, kind: type[nn.Module]) -> list[tuple[int, int]]:
        return [
            (layer.in_channels, layer.out_channels)
            for layer in network.modules()
            if isinstance(layer, kind) and layer.kernel_size == (4, 4)
        ]

    assert widths(ConvEncoder(3, 128, 32, 2, 2, 64), nn.Conv2d) == [(3, 64), (64, 128)]
    assert widths(ConvDecoder(64, 128, 32, 2, 2, 3), nn.ConvTranspose2d) == [(128, 64), (64, 3)]
    assert widths(ConvEncoder(3, 128, 32, 2, 1, 64), nn.Conv2d) == [(3, 128)]
    assert widths(ConvDecoder(64, 128, 32, 2, 1, 3), nn.ConvTranspose2d) == [(128, 3)]


def test_conv_has_the_parameters_of_the_published_layout() -> None:
    def residual(width: int, hidden: int) -> int:
        return count(width, hidden, 3) + count(hidden, width, 1)

    encoder = ConvEncoder(3, 128, 32, 2, 2, 64)
    trunk = count(3, 64, 4) + count(64, 128, 4) + count(128, 128, 3) + 2 * residual(128, 32)
    assert num_parameters(encoder) == trunk + count(128, 64, 1)
    decoder = ConvDecoder(64, 128, 32, 2, 2, 3)
    trunk = count(64, 128, 3) + 2 * residual(128, 32)
    assert num_parameters(decoder) == trunk + count(128, 64, 4) + count(64, 3, 4)


@pytest.mark.parametrize("build", [conv, dalle])
def test_a_shift_by_one_cell_shifts_the_latents_away_from_the_border(
    build: Callable[[int], Pair],
) -> None:
    torch.manual_seed(0)
    encoder, _ = build(3)
    image = torch.rand(1, 3, 64, 64)
    moved = image.roll((4, 8), dims=(2, 3))  # one cell down, two cells to the right
    with torch.no_grad():
        z, z_moved = encoder(image), encoder(moved)
    low, high = 6, 12  # the grid is 16 x 16, and an output sees under 4 cells to each side
    torch.testing.assert_close(
        z_moved[..., low:high, low:high], z[..., low - 1 : high - 1, low - 2 : high - 2]
    )
    assert not torch.allclose(z_moved[..., low:high, low:high], z[..., low:high, low:high])


# dalle


def count(width_in: int, width_out: int, kernel: int) -> int:
    """Parameters of a convolution."""
    return width_in * width_out * kernel**2 + width_out


def published_blocks(widths: list[int], kernels: list[int]) -> int:
    """Parameters of residual blocks between these widths, in the layout of App. A.2."""
    total = 0
    for width_in, width_out in pairwise(widths):
        inside = [width_in, *[width_out // 4] * 3, width_out]
        total += sum(count(*pair, k) for pair, k in zip(pairwise(inside), kernels, strict=True))
        total += 0 if width_in == width_out else count(width_in, width_out, 1)
    return total


def test_at_the_published_size_dalle_has_the_published_number_of_parameters() -> None:
    groups = [256, 256, 512, 512, 1024, 1024, 2048, 2048]
    published_encoder = (
        count(3, 256, 7) + published_blocks([256, *groups], [3, 3, 3, 1]) + count(2048, 8192, 1)
    )
    published_decoder = (
        count(8192, 128, 1)
        + published_blocks([128, *groups[::-1]], [1, 3, 3, 3])
        + count(256, 6, 1)
    )
    assert published_encoder == 53_786_240
    assert published_decoder == 43_829_766
    with torch.device("meta"):
        encoder, decoder = DalleEncoder(3, 256, 4, 2, None), DalleDecoder(128, 256, 4, 2, 6)
        bottleneck = GumbelBottleneck(2048, 8192, 128)
    logits = num_parameters(bottleneck.logits)
    assert num_parameters(encoder) + logits == published_encoder
    # The embedding stands for the decoder's first convolution and has no offset.
    assert num_parameters(decoder) + bottleneck.embedding.numel() == published_decoder - 128


def test_dalle_widens_as_it_pools_and_narrows_as_it_upsamples() -> None:
    def layout(network: nn.Module) -> list[object]:
        found: list[object] = []
        for layer in network.layers:
            if isinstance(layer, BottleneckBlock):
                convs = [part for part in layer.branch if isinstance(part, nn.Conv2d)]
                found.append([convs[0].in_channels, *[part.out_channels for part in convs]])
                found.append([part.kernel_size[0] for part in convs])
            else:
                found.append(type(layer).__name__)
        return found

    assert layout(DalleEncoder(3, 8, 2, 1, 5)) == [
        "Conv2d",
        *([8, 2, 2, 2, 8], [3, 3, 3, 1]),
        "MaxPool2d",
        *([8, 4, 4, 4, 16], [3, 3, 3, 1]),
        "ReLU",
        "Conv2d",
    ]
    assert layout(DalleDecoder(5, 8, 2, 1, 6)) == [
        *([5, 4, 4, 4, 16], [1, 3, 3, 3]),
        "Upsample",
        *([16, 2, 2, 2, 8], [1, 3, 3, 3]),
        "ReLU",
        "Conv2d",
    ]


def test_a_residual_branch_of_dalle_is_scaled_by_one_over_the_square_of_the_number_of_blocks() -> (
    None
):
    for network in (DalleEncoder(3, 4, 4, 2, 5), DalleDecoder(5, 4, 4, 2, 6)):
        blocks = [layer for layer in network.modules() if isinstance(layer, BottleneckBlock)]
        assert [block.gain for block in blocks] == [1 / 64] * 8
        x = torch.randn(1, blocks[0].branch[1].in_channels, 4, 4)
        expected = blocks[0].skip(x) + blocks[0].branch(x) / 64
        torch.testing.assert_close(blocks[0](x), expected)


def test_dalle_starts_with_weights_of_unit_gain_and_no_offset() -> None:
    torch.manual_seed(0)
    encoder = DalleEncoder(3, 64, 1, 1, 256)
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.in_channels * layer.kernel_size[0] ** 2
            assert layer.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.1)
            assert not layer.bias.any()


def test_dalle_keeps_activations_small_enough_for_half_precision() -> None:
    torch.manual_seed(0)
    encoder = DalleEncoder(3, 16, 4, 2, None)
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 32, 32)).abs().max() < 20


@pytest.mark.parametrize("build", [mlp, conv, dalle])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_run_in_half_types(build: Callable[[int], Pair], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    encoder, decoder = build(3)
    x = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        exact = decoder(encoder(x))
        rounded = decoder.to(dtype)(encoder.to(dtype)(x.to(dtype)))
    assert rounded.dtype == dtype
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


# Gradient checkpointing


class Calls:
    """How often the residual blocks of networks are computed."""

    def __init__(self, *networks: nn.Module) -> None:
        self.count = self.blocks = 0
        for module in (module for network in networks for module in network.modules()):
            if isinstance(module, ResidualBlock | BottleneckBlock):
                self.blocks += 1
                module.branch.register_forward_pre_hook(self._add)

    def _add(self, *_: object) -> None:
        self.count += 1


def checkpointed(network: nn.Module) -> nn.Module:
    """A copy that recomputes its activations."""
    network = copy.deepcopy(network)
    checkpoint_activations(network)
    return network


def kept_bytes(pair: Pair) -> int:
    """What a forward pass keeps for the backward pass, weights aside."""
    weights = {p.untyped_storage()._cdata for network in pair for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        pair[1](pair[0](torch.rand(2, 3, *SIZE))).sum()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("build", [mlp, conv, dalle])
def test_recomputed_activations_give_the_same_bits(
    build: Callable[[int], Pair], autocast: bool
) -> None:
    torch.manual_seed(0)
    pair = build(3)
    again = tuple(checkpointed(network) for network in pair)
    results = []
    for encoder, decoder in (pair, again):
        x = torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            out = decoder(encoder(x))
            out.float().square().sum().backward()
        weights = [*encoder.parameters(), *decoder.parameters()]
        results.append([out, *(tensor.grad for tensor in (x, *weights))])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)
        assert plain.any()


@pytest.mark.parametrize("build", [conv, dalle])
def test_every_residual_block_is_computed_twice_where_gradients_are_recorded(
    build: Callable[[int], Pair],
) -> None:
    x = torch.rand(2, 3, *SIZE)
    for checkpoint, times in ((False, 1), (True, 2)):
        encoder, decoder = build(3)
        if checkpoint:
            checkpoint_activations(nn.ModuleList([encoder, decoder]))
        calls = Calls(encoder, decoder)
        decoder(encoder(x)).sum().backward()
        assert calls.count == times * calls.blocks > 0
        calls.count = 0
        with torch.no_grad():
            decoder(encoder(x))
        assert calls.count == calls.blocks


def test_recomputing_keeps_less_where_there_are_residual_blocks() -> None:
    pairs = {build: build(3) for build in (mlp, conv, dalle)}
    before = {build: kept_bytes(pair) for build, pair in pairs.items()}
    for pair in pairs.values():
        checkpoint_activations(nn.ModuleList(pair))
    after = {build: kept_bytes(pair) for build, pair in pairs.items()}
    assert after[dalle] < 0.8 * before[dalle]
    assert after[conv] < before[conv]
    assert after[mlp] == before[mlp]


@pytest.mark.parametrize("build", [mlp, conv, dalle])
def test_recomputing_changes_no_name_of_a_weight(build: Callable[[int], Pair]) -> None:
    for network in build(3):
        assert list(checkpointed(network).state_dict()) == list(network.state_dict())
