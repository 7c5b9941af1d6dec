"""Arrays are channels last, tensors channels first; float tensors are checked, never changed."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from whole_batch import batch

from imagetok.errors import ImageTypeError, ImageValueError
from imagetok.images import Preprocessor

PREPROCESS = Preprocessor((8, 12))
SQUARE = Preprocessor((8, 8))


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((8, 8, 3)), r"float64; .* float torch tensor \(C, H, W\) in \[0, 1\]"),
        (np.zeros((8, 8), np.float32), "dtype float32; pass uint8 in 0..255"),
        (np.zeros((8, 8), np.int64), "dtype int64; pass uint8 in 0..255"),
        (np.zeros((8, 8), np.uint16), "dtype uint16; pass uint8"),
        (np.zeros((8, 8), bool), "dtype bool; pass uint8"),
        (np.array([None, None]), "dtype object; .* several images as a list"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "dtype torch.int64; pass uint8 in 0..255, or"),
        (torch.zeros(3, 8, 8, dtype=torch.bool), "dtype torch.bool; pass uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.complex64), "dtype torch.complex64; pass uint8"),
        (torch.zeros(3, 8, 8), "float tensors are taken as prepared already"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8, device="meta"), "meta device"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8).to_sparse(), "sparse or nested; pass a dense"),
        (iter([]), r"type list_iterator is not taken for images; .* list\(\.\.\.\)"),
        (Image, "type module is not taken for images"),
    ],
)
def test_other_kinds_and_dtypes_are_refused_with_the_remedy(images: object, reason: str) -> None:
    with pytest.raises(ImageTypeError, match=reason):
        PREPROCESS(images)


def array(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=np.uint8)


def tensor(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (array(3, 64, 64), r"64 channels .* looks like \(C, H, W\): pass np.moveaxis"),
        (array(2, 3, 64, 64), r"64 channels .* looks like \(C, H, W\): pass np.moveaxis"),
        (array(10, 28, 28), r"28 channels .* add the axis with array\[..., None\]"),
        (array(8, 8, 2), "2 channels .* a PIL image of mode LA"),
        (array(8, 8, 5), "5 channels on its last axis"),
        (array(8), "1 axes; an array is"),
        (array(1, 1, 8, 8, 3), "5 axes; an array is"),
        (array(0, 8), "0 high and 8 wide; both sides must have at least one pixel"),
        (array(1, 8, 0, 3), "8 high and 0 wide"),
        (tensor(8, 9, 3), r"8 channels; expected 1 or 3 or 4 .* pass x.permute\(2, 0, 1\)"),
        (tensor(2, 8, 9, 3), r"8 channels; .* pass x.permute\(0, 3, 1, 2\)"),
        (tensor(5, 8, 8), r"5 channels; expected 1 or 3 or 4 in \(C, H, W\) or \(B, C, H, W\)$"),
        (tensor(8, 8), r"2 axes; .* add the channel axis with x\[None\]"),
        (tensor(1, 1, 3, 8, 8), "5 axes"),
        (tensor(3, 0, 8), "0 high and 8 wide"),
    ],
)
def test_other_layouts_are_refused_with_the_remedy(images: object, reason: str) -> None:
    with pytest.raises(ImageValueError, match=reason):
        PREPROCESS(images)
    with pytest.raises(ImageValueError, match=reason):
        batch(PREPROCESS, [array(8, 8), images])


def test_small_arrays_and_tensors_follow_the_contract_and_no_guess() -> None:
    x = np.arange(45, dtype=np.uint8).reshape(3, 5, 3)
    same = Preprocessor((3, 5))
    assert torch.equal(same(x)[0], torch.from_numpy(x).permute(2, 0, 1))
    assert torch.equal(Preprocessor((5, 3))(torch.from_numpy(x))[0], torch.from_numpy(x))


def test_float_tensors_pass_unchanged_whatever_their_size() -> None:
    for shape in ((3, 8, 8), (3, 4, 20), (1, 3, 8, 8), (5, 3, 12, 4)):
        x = torch.rand(shape)
        y, single = batch(SQUARE, x, (4, 4))
        assert single is (len(shape) == 3)
        assert torch.equal(y, x[None] if single else x)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_each_number_of_channels_is_taken_by_its_tokenizer_alone(channels: int) -> None:
    for found in (1, 2, 3, 4, 5):
        x = torch.rand(2, found, 8, 6)
        if found == channels:
            assert torch.equal(batch(Preprocessor((8, 8), channels), x)[0], x)
        else:
            with pytest.raises(ImageValueError, match=f"{found} channels; expected {channels} in"):
                batch(Preprocessor((8, 8), channels), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_types_are_cast_to_float32(dtype: torch.dtype) -> None:
    x = torch.rand(3, 8, 8).to(dtype)
    y, _ = batch(SQUARE, x)
    assert y.dtype == torch.float32
    assert torch.equal(y[0], x.float())


def test_equal_tensors_in_a_list_are_a_batch() -> None:
    xs = [torch.rand(3, 4, 12) for _ in range(3)]
    y, single = batch(SQUARE, xs)
    assert torch.equal(y, torch.stack(xs))
    assert not single
    y, single = batch(SQUARE, xs[:1])
    assert y.shape == (1, 3, 4, 12)
    assert not single


def test_an_empty_batch_keeps_its_size() -> None:
    y, single = batch(SQUARE, torch.empty(0, 3, 16, 4), (4, 4))
    assert y.shape == (0, 3, 16, 4)
    assert not single


def test_the_result_has_no_gradient() -> None:
    y, _ = batch(SQUARE, torch.rand(3, 8, 8, requires_grad=True))
    assert not y.requires_grad


def test_the_ends_of_the_range_are_inside() -> None:
    x = torch.tensor([0.0, 1.0]).repeat(3, 2, 1)
    assert torch.equal(batch(SQUARE, x)[0][0], x)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "holds NaN"),
        (math.inf, "values from 0 to inf, outside"),
        (-math.inf, "values from -inf to 0"),
        (1.0000001, "values from 0 to 1.00000012, outside"),
        (-1e-7, r"if it is in \[-1, 1\], pass \(x \+ 1\) / 2"),
        (-1.0, r"values from -1 to 0, .* pass \(x \+ 1\) / 2"),
        (255.0, r"values from 0 to 255, .* pass x / 255"),
        (-3.0, "scale or clamp it first"),
        (256.0, "scale or clamp it first"),
    ],
)
def test_one_value_outside_the_range_is_refused(value: float, reason: str) -> None:
    x = torch.zeros(4, 3, 8, 8)
    x[3, 2, 7, 7] = value
    with pytest.raises(ImageValueError, match=reason):
        batch(SQUARE, x)
    with pytest.raises(ImageValueError, match=rf"^images\[3\]: .*{reason}"):
        batch(SQUARE, list(x))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((8, 8, 3), r"8 channels; expected 3 .* channels last: pass x.permute\(2, 0, 1\)"),
        ((2, 8, 8, 3), r"pass x.permute\(0, 3, 1, 2\)"),
        ((8, 8), r"add the channel axis with x\[None\]"),
        ((2, 2, 3, 8, 8), "5 axes"),
        ((1, 8, 8), "1 channels; expected 3 .* are converted, float tensors are not"),
        ((3, 10, 8), "10 high and 8 wide; .* divisible by 4 and 2: crop or pad it, or pass it as"),
        ((0, 3, 8, 7), "8 high and 7 wide"),
        ((3, 0, 8), "both sides must have at least one pixel"),
        ((0, 3, 0, 0), "both sides must have at least one pixel"),
    ],
)
def test_other_shapes_are_refused_with_the_remedy(shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ImageValueError, match=reason):
        batch(SQUARE, torch.zeros(shape), (4, 2))


def test_a_tensor_over_the_pixel_limit_is_refused() -> None:
    with pytest.raises(ImageValueError, match="over the limit of 50 megapixels"):
        batch(SQUARE, torch.zeros(1, 1, 1).expand(3, 8000, 8000))


def test_lists_of_unequal_tensors_are_refused() -> None:
    with pytest.raises(ImageValueError, match=r"images\[1\] has shape \(3, 8, 4\) .* equal ones"):
        batch(SQUARE, [torch.zeros(3, 8, 8), torch.zeros(3, 8, 4)])
    with pytest.raises(ImageValueError, match=r"images\[0\] is a batch .* torch.cat"):
        batch(SQUARE, [torch.zeros(1, 3, 8, 8)])


def test_lists_of_tensors_and_images_are_refused() -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    for images in (
        [torch.zeros(3, 8, 8), image],
        [torch.zeros(3, 8, 8), torch.zeros(3, 8, 8).byte()],
    ):
        with pytest.raises(ImageTypeError, match=r"images\[0\] is a float .* images\[1\] is not"):
            batch(SQUARE, images)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.zeros(3, 8, 8, device="meta"), "holds no values"),
        (torch.zeros(3, 8, 8).to_sparse(), "pass a dense tensor"),
        (torch.nested.nested_tensor([torch.zeros(3, 8, 8)], layout=torch.jagged), "nested"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "dtype torch.int32"),
        (np.zeros((3, 8, 8), np.float32), "pass uint8 in 0..255, or a float torch tensor"),
    ],
    ids=["meta", "sparse", "nested", "int32", "float array"],
)
def test_other_kinds_are_refused_alone_and_in_a_list(x: object, reason: str) -> None:
    for images in (x, [x]):
        with pytest.raises(ImageTypeError, match=reason):
            batch(SQUARE, images)
