"""Jobs of a tokenizer whose positions have several codes: written, checked, read and decoded."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_jobs import make_tokenizer, rows_in, run_job, save_images
from torch import Tensor, nn

from imagetok import ImageTokenizer
from imagetok.bottlenecks import DiscreteBottleneck
from imagetok.outputs import BottleneckOutput
from imagetok.shards.token_folder import open_folder
from imagetok.shards.verification import verify
from imagetok.tokenizing.deep_check import compare_rows
from imagetok.tokenizing.row_preview import decode_rows
from tiny_data import png

SIZES = (300, 5)
"""Codes of the two levels: ids of the first one need more than a byte."""


class HalvesBottleneck(DiscreteBottleneck):
    """Each half of the four channels is quantized by a codebook of its own."""

    def __init__(self) -> None:
        super().__init__(4, 4, SIZES)
        self.tables = nn.ParameterList(torch.randn(size, 2) for size in SIZES)

    def encode_ids(self, z: Tensor) -> Tensor:
        halves = z.permute(0, 2, 3, 1).split(2, dim=-1)
        pairs = zip(halves, self.tables, strict=True)
        return torch.stack([torch.cdist(half, table).argmin(-1) for half, table in pairs], -1)

    def lookup(self, ids: Tensor) -> Tensor:
        pairs = zip(ids.unbind(-1), self.tables, strict=True)
        return torch.cat([table[level] for level, table in pairs], -1).permute(0, 3, 1, 2)

    def _forward(
        self, z: Tensor, values: Mapping[str, float], keys: Tensor | None
    ) -> BottleneckOutput:
        raise NotImplementedError


@pytest.fixture
def deep() -> ImageTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make_tokenizer()
        model.bottleneck = HalvesBottleneck()
    return model


def pixels_of(image: bytes) -> Tensor:
    """The pixels of a batch of four times the image, float (4, C, H, W) in [0, 1]."""
    array = np.array(Image.open(io.BytesIO(image)))
    return torch.from_numpy(array).permute(2, 0, 1).float().div(255).repeat(4, 1, 1, 1)


@pytest.mark.parametrize("resize", ["crop", "native"])
def test_the_codes_of_a_position_follow_each_other_and_are_decoded_together(
    deep: ImageTokenizer, tmp_path: Path, resize: str
) -> None:
    widths = [16, 16, 24 if resize == "native" else 16]
    images = [png(60 * number, (width, 16)) for number, width in enumerate(widths)]
    source = save_images(tmp_path / "in", images)
    run_job(tmp_path / "out", deep, dataset=str(source), resize=resize)
    expected = [deep.encode(pixels_of(image))[0] for image in images]
    assert [tuple(ids.shape) for ids in expected] == [(4, width // 4, 2) for width in widths]
    assert [row["ids"] for row in rows_in(tmp_path / "out")] == [
        ids.flatten().tolist() for ids in expected
    ]
    recorded = json.loads((tmp_path / "out" / "job.json").read_text())["tokenizer"]
    assert (recorded["codebook_size"], recorded["codebook_sizes"]) == (300, list(SIZES))
    assert verify(tmp_path / "out").is_sound
    opened = open_folder(tmp_path / "out")
    found = compare_rows(opened, deep, source)
    assert (found.rows, found.near_ties, found.faults) == (3, 0, ())
    shown, _ = decode_rows(opened, deep, range(3))
    for image, ids, width in zip(shown, expected, widths, strict=True):
        decoded = deep.decode(ids, grid=(4, width // 4))
        assert isinstance(decoded, Image.Image)
        assert np.array_equal(np.array(image), np.array(decoded))


def test_a_code_that_is_wrong_in_one_level_is_a_fault(
    deep: ImageTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = HalvesBottleneck.encode_ids

    def shift(self: HalvesBottleneck, z: Tensor) -> Tensor:
        return (encode(self, z) + torch.tensor([0, 1])) % torch.tensor(SIZES)

    source = save_images(tmp_path / "in", [png(0, (16, 16))])
    with monkeypatch.context() as patched:
        patched.setattr(HalvesBottleneck, "encode_ids", shift)
        run_job(tmp_path / "out", deep, dataset=str(source))
    (fault,) = compare_rows(open_folder(tmp_path / "out"), deep, source).faults
    assert "row 0: " in fault
    assert "of 32 ids differ" in fault
