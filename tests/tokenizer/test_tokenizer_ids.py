"""`encode` and `decode`: shapes, grids, and ids that depend on the image alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imagetok import ImageTokenizer
from imagetok.bottlenecks import GumbelBottleneck, VectorQuantizer
from imagetok.errors import IdsError, IdsTypeError, ImageValueError, InvalidValueError
from imagetok.tokenizer import BATCH_SIZE

Make = Callable[..., ImageTokenizer]
MakePictures = Callable[..., Tensor]

MARGIN = 1e-5
"""Gap of the two best scores, relative to what they are computed from, below which rounding in
float32 may decide. About 80 times the rounding of one operation, for sums of up to 100 terms."""

MAX_SHARE = 2e-3
"""Share of positions with so small a gap. Measured: 0 to 0.65e-3 for the tokenizers here, whose
codes lie as densely as k-means lays them."""


def score_gaps(tokenizer: ImageTokenizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Best ids by brute force in float64, and the relative gap to the second best; (B, h, w)."""
    exact = copy.deepcopy(tokenizer).double()
    bottleneck = exact.bottleneck
    with torch.no_grad():
        z = exact.encoder(x.double()).movedim(1, -1)
        if isinstance(bottleneck, GumbelBottleneck):
            costs = -bottleneck.logits(z)
            scale = costs.abs().amax(dim=-1)
        else:
            assert isinstance(bottleneck, VectorQuantizer)
            vectors, codes = bottleneck._normalized(bottleneck.project_in(z)), bottleneck.codebook
            costs = (vectors[..., None, :] - codes).square().sum(dim=-1)
            scale = vectors.square().sum(dim=-1) + codes.square().sum(dim=-1).max()
    best = costs.topk(2, dim=-1, largest=False).values
    return costs.argmin(dim=-1), (best[..., 1] - best[..., 0]) / scale


# Shapes of encode


def test_one_image_gives_a_grid_and_several_give_a_batch(
    discrete: ImageTokenizer, pictures: MakePictures
) -> None:
    batch = pictures(discrete, 3)
    height, width = discrete.grid_size
    ids = discrete.encode(batch)
    assert ids.shape == (3, height, width)
    assert ids.dtype == torch.int64
    assert discrete.encode(batch[0]).shape == (height, width)
    assert discrete.encode([batch[0]]).shape == (1, height, width)
    assert discrete.encode(list(batch)).shape == (3, height, width)
    assert ids.flatten(-2).shape == (3, discrete.num_tokens)
    assert 0 <= int(ids.min()) < int(ids.max()) < discrete.codebook_size


def test_float_tensors_mirror_their_own_shape(
    discrete: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(discrete, 2)
    ids = discrete.encode(x)
    assert ids.shape == (2, *discrete.grid_size)
    assert torch.equal(discrete.encode(list(x)), ids)
    assert discrete.encode(x[0]).shape == discrete.grid_size
    assert discrete.encode(x[:1]).shape == (1, *discrete.grid_size)


def test_nothing_gives_no_ids_of_the_right_grid_and_no_images(
    discrete: ImageTokenizer, floats: MakePictures
) -> None:
    no_pictures = np.empty((0, 5, 5, 3), np.uint8)
    for nothing in ([], (), floats(discrete, 2)[:0], no_pictures):
        ids = discrete.encode(nothing)
        assert ids.shape == (0, *discrete.grid_size)
        assert ids.dtype == torch.int64
        assert discrete.decode(ids) == []
        assert discrete.reconstruct(nothing) == []
    channels = discrete.preprocessor.channels
    assert discrete.decode(ids, output="pt").shape == (0, channels, *discrete.image_size)


def test_the_token_space_is_described(make: Make) -> None:
    tokenizer = make("vqvae")
    assert tokenizer.codebook_size == 37
    assert tokenizer.image_size == (16, 24)
    assert tokenizer.grid_size == (4, 6)
    assert tokenizer.num_tokens == 24
    assert tokenizer.downsample_factor == 4
    vector = make("vqvae-mlp")
    assert (vector.grid_size, vector.num_tokens) == ((1, 1), 1)
    with pytest.raises(InvalidValueError, match="whole image of 16 x 24 pixels"):
        _ = vector.downsample_factor
    assert make("vqvae-mlp", image_size=[16, 16]).downsample_factor == 16


# What ids depend on


def test_ids_are_those_of_float64_and_of_every_batch_wherever_the_scores_are_apart(
    discrete: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(discrete, 64)
    expected, gap = score_gaps(discrete, x)
    apart = gap > MARGIN
    assert (~apart).double().mean() <= MAX_SHARE
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    back = order.argsort()
    for size in (1, 7, 32, 64):
        found = torch.cat([discrete.encode(part) for part in x.split(size)])
        shuffled = torch.cat([discrete.encode(part) for part in x[order].split(size)])[back]
        for ids in (found, shuffled):
            assert torch.equal(ids[apart], expected[apart])
    assert expected.unique().numel() > discrete.codebook_size // 2


def test_neighbours_and_earlier_calls_change_nothing(
    discrete: ImageTokenizer, floats: MakePictures
) -> None:
    x = floats(discrete, 8)
    ids = discrete.encode(x)
    others = 1 - x
    others[3] = x[3]
    assert torch.equal(discrete.encode(others)[3], ids[3])
    assert torch.equal(discrete.encode(x), ids)


@pytest.mark.parametrize("name", ["dvae", "dvae-hard"])
def test_long_inputs_are_worked_through_in_pieces_of_the_same_ids(
    make: Make, pictures: MakePictures, name: str
) -> None:
    tokenizer = make(name)  # no scores within the margin
    batch = pictures(tokenizer, 2 * BATCH_SIZE + 1)
    sizes: list[int] = []
    tokenizer.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    ids = tokenizer.encode(batch)
    assert sizes == [BATCH_SIZE, BATCH_SIZE, 1]
    assert ids.shape == (2 * BATCH_SIZE + 1, 4, 6)
    pixels = tokenizer.decode(ids, output="pt")
    assert isinstance(pixels, Tensor)
    for part in (slice(0, 3), slice(BATCH_SIZE, BATCH_SIZE + 3)):
        assert torch.equal(tokenizer.encode(list(batch[part])), ids[part])
        torch.testing.assert_close(tokenizer.decode(ids[part], output="pt"), pixels[part])


# Shapes of decode


def test_decode_mirrors_encode(discrete: ImageTokenizer, pictures: MakePictures) -> None:
    ids = discrete.encode(pictures(discrete, 3))
    channels, (height, width) = discrete.preprocessor.channels, discrete.image_size
    expected = discrete.decode(ids, output="pt")
    assert isinstance(expected, Tensor)
    assert expected.shape == (3, channels, height, width)
    assert expected.dtype == torch.float32
    assert 0 <= float(expected.min()) < float(expected.max()) <= 1
    assert torch.equal(discrete.decode(ids.flatten(-2), output="pt"), expected)
    one = discrete.decode(ids[0], output="pt")
    assert isinstance(one, Tensor)
    assert one.shape == (channels, height, width)
    assert torch.equal(discrete.decode(ids[0].flatten(), output="pt"), one)
    torch.testing.assert_close(one, expected[0])


def test_images_are_the_tensors_rounded(discrete: ImageTokenizer, pictures: MakePictures) -> None:
    ids = discrete.encode(pictures(discrete, 2))
    made, x_hat = discrete.decode(ids), discrete.decode(ids, output="pt")
    assert isinstance(made, list)
    assert isinstance(x_hat, Tensor)
    height, width = discrete.image_size
    for picture, pixels in zip(made, x_hat, strict=True):
        assert picture.size == (width, height)
        assert picture.mode == {1: "L", 3: "RGB", 4: "RGBA"}[len(pixels)]
        array = np.asarray(picture).reshape(height, width, len(pixels))
        assert np.abs(array - 255 * pixels.permute(1, 2, 0).numpy()).max() <= 0.5001
    assert isinstance(discrete.decode(ids[0]), Image.Image)
    one = discrete.decode(ids[:1])
    assert isinstance(one, list)
    assert len(one) == 1


def test_reconstructing_is_encoding_and_decoding(
    discrete: ImageTokenizer, pictures: MakePictures
) -> None:
    batch = pictures(discrete, 4)
    for images in (batch, batch[1]):
        ids = discrete.encode(images)
        reconstruction = discrete.reconstruct(images, output="pt")
        assert torch.equal(discrete.decode(ids, output="pt"), reconstruction)
    assert isinstance(discrete.reconstruct(batch[1]), Image.Image)
    assert isinstance(discrete.reconstruct(list(batch)), list)


@pytest.mark.parametrize("kind", ["list", "tuple", "rows", "arrays", "tensors", "array", "numbers"])
def test_ids_come_in_every_container(make: Make, pictures: MakePictures, kind: str) -> None:
    tokenizer = make("vqvae")
    ids = tokenizer.encode(pictures(tokenizer, 2))
    containers: dict[str, Any] = {
        "list": ids.tolist(),
        "tuple": tuple(map(tuple, ids.flatten(1).tolist())),
        "rows": [row.tolist() for row in ids.flatten(1)],
        "arrays": list(ids.numpy()),
        "tensors": list(ids),
        "array": ids.numpy().astype(">u2"),
        "numbers": [[number for number in row] for row in ids.flatten(1)],  # noqa: C416
    }
    expected = tokenizer.decode(ids, output="pt")
    assert torch.equal(tokenizer.decode(containers[kind], output="pt"), expected)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64"])
def test_ids_of_every_dtype_wide_enough_decode_alike(
    make: Make, pictures: MakePictures, dtype: str
) -> None:
    tokenizer = make("dvae")
    ids = tokenizer.encode(pictures(tokenizer, 2))
    expected = tokenizer.decode(ids, output="pt")
    array = ids.numpy().astype(dtype)
    for narrow in (array, torch.from_numpy(array)):
        assert torch.equal(tokenizer.decode(narrow, output="pt"), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda ids: ids[:, :3], IdsError, r"shape \(2, 3, 6\) fit no reading.*\(4, 6\).*grid="),
        (lambda ids: ids.flatten(), IdsError, r"shape \(48,\)"),
        (lambda ids: ids - 5, IdsError, r"id -\d+ is out of range.*\[0, 37\)"),
        (lambda ids: ids * 0 + 37, IdsError, r"id 37 is out of range.*\[0, 37\)"),
        (lambda ids: ids.bool(), IdsTypeError, r"dtype torch\.bool"),
        (lambda ids: ids.float(), IdsTypeError, r"dtype torch\.float32"),
        (lambda ids: ids.double().numpy(), IdsTypeError, "dtype float64"),
        (lambda ids: "ids", IdsTypeError, "type str"),
        (lambda ids: [], IdsError, "empty list"),
        (lambda ids: [[1, 2], [3]], IdsError, "rectangular"),
        (lambda ids: ids[0, 0, 0], IdsError, r"shape \(\)"),
        (lambda ids: 3, IdsTypeError, "type int"),
    ],
)
def test_what_is_not_ids_is_refused_in_words(
    make: Make,
    pictures: MakePictures,
    change: Callable[[Tensor], Any],
    error: type[Exception],
    message: str,
) -> None:
    tokenizer = make("vqvae")
    wrong = change(tokenizer.encode(pictures(tokenizer, 2)))
    with pytest.raises(error, match=message):
        tokenizer.decode(wrong)


def test_an_unknown_output_is_refused(make: Make, pictures: MakePictures) -> None:
    tokenizer = make("vqvae")
    with pytest.raises(InvalidValueError, match="unknown output 'numpy'; choose one of: pil, pt"):
        tokenizer.decode(tokenizer.encode(pictures(tokenizer, 1)), output="numpy")


# Other grids


@pytest.mark.parametrize("size", [(4, 4), (8, 40), (32, 12)])
def test_float_tensors_of_any_divisible_size_have_their_own_grid(
    gridded: ImageTokenizer, floats: MakePictures, size: tuple[int, int]
) -> None:
    x = floats(gridded, 2, size=size)
    grid = (size[0] // 4, size[1] // 4)
    ids = gridded.encode(x)
    assert ids.shape == (2, *grid)
    expected = gridded.decode(ids, grid=grid, output="pt")
    assert isinstance(expected, Tensor)
    assert expected.shape == x.shape
    assert torch.equal(gridded.decode(ids.flatten(-2), grid=grid, output="pt"), expected)
    one = gridded.decode(ids[0], grid=list(grid), output="pt")
    torch.testing.assert_close(one, expected[0])
    assert torch.equal(gridded.reconstruct(x, output="pt"), expected)


def test_a_grid_of_one_row_stays_one_image(make: Make, floats: MakePictures) -> None:
    tokenizer = make("vqvae", image_size=[4, 24])
    ids = tokenizer.encode(floats(tokenizer, 3))
    assert ids.shape == (3, 1, 6)
    assert isinstance(tokenizer.decode(ids[0]), Image.Image)
    assert len(tokenizer.decode(ids.flatten(-2))) == 3


def test_a_convolutional_encoder_that_shrinks_its_image_to_one_position_takes_larger_ones(
    make: Make, floats: MakePictures
) -> None:
    tokenizer = make("vqvae", image_size=[4, 4])
    assert tokenizer.grid_size == (1, 1)
    x = floats(tokenizer, 2, size=(8, 12))
    assert tokenizer.encode(x).shape == (2, 2, 3)
    assert tokenizer.reconstruct(x, output="pt").shape == x.shape


def test_sizes_that_are_not_divisible_are_refused(make: Make, floats: MakePictures) -> None:
    tokenizer = make("vqvae")
    with pytest.raises(ImageValueError, match=r"16 high and 22 wide.*divisible by 4 and 4"):
        tokenizer.encode(floats(tokenizer, 1, size=(16, 22)))


@pytest.mark.parametrize("name", ["vqvae-mlp", "dvae-mlp"])
def test_a_fully_connected_network_takes_its_own_size_only(
    make: Make, floats: MakePictures, name: str
) -> None:
    tokenizer = make(name)
    for size in ((32, 24), (16, 48)):
        with pytest.raises(InvalidValueError, match=r"images of \(16, 24\) only"):
            tokenizer.encode(floats(tokenizer, 1, size=size))
    with pytest.raises(InvalidValueError, match=r"grid of \(1, 1\); got a grid of \(2, 1\)"):
        tokenizer.decode([0, 0], grid=(2, 1))
