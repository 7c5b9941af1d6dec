"""Tensors in a file that vouches for itself: exact round trips, and every damage named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from imagetok.errors import (
    ImagetokError,
    InvalidTypeError,
    InvalidValueError,
    ModelFileError,
    UnwritableFileError,
)
from imagetok.modelfile import (
    load_tensors,
    read_header,
    save_tensors,
    tensors_digest,
)

TENSORS = {
    "weight": torch.arange(12.0).reshape(3, 4) / 7,
    "bias": torch.tensor([1.0, -2.0, 3.5]),
    "count": torch.tensor(2**40 + 1),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.safetensors"


def load(path: Path) -> dict[str, Tensor]:
    return load_tensors(path, read_header(path))


def raw_bytes(tensor: Tensor) -> list[int]:
    return tensor.reshape(-1).view(torch.uint8).tolist()


def test_every_dtype_and_shape_comes_back_exactly(path: Path) -> None:
    tensors = {
        "float32": torch.randn(3, 4),
        "float16": torch.randn(7).half(),
        "bfloat16": torch.randn(2, 2).bfloat16(),
        "float64": torch.randn(3).float().double(),
        "extremes": torch.tensor([torch.finfo(torch.float32).max, 1e-45, -0.0]),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "uint8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
    }
    save_tensors(path, tensors, {})
    found = load(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.float() if tensor.is_floating_point() else tensor
        assert found[name].dtype == expected.dtype
        assert found[name].shape == expected.shape
        assert raw_bytes(found[name]) == raw_bytes(expected)


def test_tensors_that_share_memory_or_are_not_contiguous_are_saved_apart(path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "table": table,
        "tied": table,
        "transposed": table.T,
        "slice": table[1:],
        "expanded": torch.ones(1, 2).expand(3, 2),
        "parameter": torch.nn.Parameter(table),
    }
    save_tensors(path, tensors, {})
    found = load(path)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)


def test_loaded_tensors_do_not_change_with_the_file(path: Path) -> None:
    save_tensors(path, TENSORS, {})
    found = load(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert tensors_digest(found) == tensors_digest(TENSORS)


def test_a_missing_file_and_one_of_another_program_are_told(path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        load(path)
    save_file(TENSORS, path, metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match="was not saved by imagetok"):
        load(path)


def test_the_digest_tells_names_dtypes_shapes_and_values_apart() -> None:
    tensors = [
        {"a": torch.zeros(4)},
        {"b": torch.zeros(4)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.tensor([0.0, 0.0, 0.0, 1.0])},
        {"a": torch.zeros(2), "b": torch.zeros(2)},
    ]
    assert len({tensors_digest(each) for each in tensors}) == len(tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_values_that_are_not_finite_are_refused_by_name_before_anything_is_written(
    tmp_path: Path, value: float
) -> None:
    tensors = {"good": torch.zeros(2), "bad": torch.tensor([0.0, value], dtype=torch.float64)}
    with pytest.raises(InvalidValueError, match="tensor 'bad' has 1 NaN or infinite values"):
        save_tensors(tmp_path / "new" / "file", tensors, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "tensor", [torch.eye(2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(2).cfloat()]
)
def test_tensors_of_other_kinds_are_refused_by_name(path: Path, tensor: Tensor) -> None:
    with pytest.raises(InvalidTypeError, match="tensor 'odd'"):
        save_tensors(path, {"odd": tensor}, {})
    assert not path.exists()


def test_a_failed_write_keeps_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensors(path, TENSORS, {})
    old = path.read_bytes()

    def fail(*arguments: object, **options: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("imagetok.modelfile.tensorfile.save_file", fail)
    with pytest.raises(UnwritableFileError, match=r"file\.safetensors': No space left"):
        save_tensors(path, {"weight": torch.zeros(2)}, {})
    assert path.read_bytes() == old


def test_every_flipped_byte_of_the_tensors_is_caught(path: Path) -> None:
    save_tensors(path, TENSORS, {})
    good = path.read_bytes()
    start = len(good) - sum(tensor.nbytes for tensor in TENSORS.values())
    for place in range(start, len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        with pytest.raises(ModelFileError, match=r"file\.safetensors'"):
            load(path)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_a_flipped_byte_of_the_header_is_caught_and_no_foreign_error_leaks(
    path: Path, mask: int
) -> None:
    said = {"config": {"sides": [64, 64], "scale": 0.25, "name": "conv"}}
    save_tensors(path, TENSORS, said)
    good = path.read_bytes()
    for place in range(len(good) - sum(tensor.nbytes for tensor in TENSORS.values())):
        path.write_bytes(good[:place] + bytes([good[place] ^ mask]) + good[place + 1 :])
        try:
            found = load(path)
        except ImagetokError:
            continue
        # White space and upper case of \u escapes may change and mean the same.
        assert tensors_digest(found) == tensors_digest(TENSORS)
        assert read_header(path)["config"] == said["config"]
