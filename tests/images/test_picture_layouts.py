"""Arrays are channels last, tensors channels first; everything else is refused with the remedy."""

import numpy as np
import pytest
import torch
from PIL import Image
from whole_batch import batch

from imagetok.errors import ImageTypeError, ImageValueError
from imagetok.images import Preprocessor

PREPROCESS = Preprocessor((8, 12))


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((8, 8, 3)), r"float64; .* float torch tensor \(C, H, W\) in \[0, 1\]"),
        (np.zeros((8, 8), np.float32), "dtype float32; pass uint8 in 0..255"),
        (np.zeros((8, 8), np.int64), "dtype int64; pass uint8 in 0..255"),
        (np.zeros((8, 8), np.uint16), "dtype uint16; pass uint8"),
        (np.zeros((8, 8), bool), "dtype bool; pass uint8"),
        (np.array([None, None]), "dtype object; .* several pictures as a list"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "dtype torch.int64; pass uint8 in 0..255, or"),
        (torch.zeros(3, 8, 8, dtype=torch.bool), "dtype torch.bool; pass uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.complex64), "dtype torch.complex64; pass uint8"),
        (torch.zeros(3, 8, 8), "float tensors are taken as prepared already"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8, device="meta"), "meta device"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8).to_sparse(), "sparse or nested; pass a dense"),
        (iter([]), r"type list_iterator is not taken for pictures; .* list\(\.\.\.\)"),
        (Image, "type module is not taken for pictures"),
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
