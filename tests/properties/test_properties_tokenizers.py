"""Whole tokenizers: damaged files, and any image, id or latent that they are called with."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import damages
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from imagetok import ImageTokenizer, hub
from imagetok.bottlenecks import DiscreteBottleneck
from imagetok.config import TokenizerConfig
from imagetok.errors import ImagetokError, ModelFileError

CONV = {"type": "conv", "hidden_channels": 8, "residual_channels": 4}
BOTTLENECKS: dict[str, dict[str, Any]] = {
    "ae": {"type": "identity", "latent_dim": 3},
    "vae": {"type": "gaussian", "latent_dim": 3},
    "vqvae": {"type": "vq", "codebook_size": 300, "latent_dim": 3},
    "dvae": {"type": "gumbel", "codebook_size": 9, "latent_dim": 3},
}
names = st.sampled_from(list(BOTTLENECKS))


@functools.cache
def make(name: str) -> ImageTokenizer:
    config = TokenizerConfig.from_dict(
        {
            "image_size": [8, 12],
            "encoder": CONV,
            "bottleneck": BOTTLENECKS[name],
            "decoder": CONV,
            "likelihood": {"type": "mse"},
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageTokenizer.from_config(config).requires_grad_(False)


# Damaged files


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tokenizer with figures."""
    folder = tmp_path_factory.mktemp("good")
    make("vqvae").save_pretrained(folder)
    sha256 = hub.load_model(folder).sha256
    (folder / hub.EVALUATION_FILE).write_text(json.dumps({hub.EVALUATED_KEY: sha256, "psnr": 20}))
    return folder


REGIONS = {
    "the header": (hub.MODEL_FILE, 0, 3500),
    "the tensors": (hub.MODEL_FILE, 4000, 10**9),
    "the copy of the config": (hub.CONFIG_FILE, 0, 10**9),
}


@pytest.mark.parametrize("region", REGIONS)
@given(data=st.data())
def test_a_damaged_tokenizer_is_refused_by_the_name_of_the_file_or_is_the_one_that_was_saved(
    data: st.DataObject, region: str, good: Path, folder: Path
) -> None:
    name, low, high = REGIONS[region]
    shutil.copytree(good, folder, dirs_exist_ok=True)
    damaged = data.draw(damages((good / name).read_bytes(), low, high))
    (folder / name).write_bytes(damaged)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            loaded = ImageTokenizer.from_pretrained(folder)
        except ModelFileError as error:
            message = str(error)
            assert f"{name}'" in message
            assert message.isprintable()
            assert len(message) < 2000
            return
    original = make("vqvae")
    if loaded.config != original.config or name == hub.CONFIG_FILE:
        copied = TokenizerConfig.from_json((folder / hub.CONFIG_FILE).read_bytes())
        assert bool(warned) == (copied != loaded.config)  # a changed config is never silent
    else:
        assert not warned
    assert loaded.state_dict().keys() == original.state_dict().keys()
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[key])


@given(data=st.data())
def test_a_damaged_evaluation_vouches_for_nothing_else(
    data: st.DataObject, good: Path, folder: Path
) -> None:
    shutil.copytree(good, folder, dirs_exist_ok=True)
    content = (good / hub.EVALUATION_FILE).read_bytes()
    (folder / hub.EVALUATION_FILE).write_bytes(data.draw(damages(content)))
    if hub.carry_evaluation(folder, folder):
        figures = json.loads((folder / hub.EVALUATION_FILE).read_bytes())
        assert figures[hub.EVALUATED_KEY] == hub.load_model(folder).sha256


# Calls

sides = st.integers(1, 30)
seeds = st.integers(0, 2**32)
sizes = st.tuples(st.integers(1, 4), st.integers(1, 4))


def noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def encode(tokenizer: ImageTokenizer, images: Any) -> Tensor:
    """Ids, or latents of a continuous tokenizer."""
    if isinstance(tokenizer.bottleneck, DiscreteBottleneck):
        return tokenizer.encode(images)
    return tokenizer.encode_latents(images)


def decode(tokenizer: ImageTokenizer, codes: Tensor, grid: tuple[int, int]) -> Tensor:
    if isinstance(tokenizer.bottleneck, DiscreteBottleneck):
        found = tokenizer.decode(codes, grid=grid, output="pt")
    else:
        found = tokenizer.decode_latents(codes, output="pt")
    assert isinstance(found, Tensor)
    return found


def assert_alike(found: Tensor, expected: Tensor) -> None:
    """Equal ids but for near ties; equal floats up to rounding."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if found.is_floating_point():
        assert torch.allclose(found, expected, atol=1e-5)
    else:
        assert (found != expected).sum() <= 1 + found.numel() // 1000


@given(names, st.lists(st.tuples(sides, sides, seeds), min_size=1, max_size=4))
def test_several_images_are_encoded_as_each_is_alone(
    name: str, pictures: list[tuple[int, int, int]]
) -> None:
    tokenizer = make(name)
    images = [(noise(seed, 3, h, w) * 255).byte() for h, w, seed in pictures]
    codes = encode(tokenizer, images)
    grid = tokenizer.grid_size
    assert codes.shape[0] == len(images)
    assert codes.shape[-2:] == grid
    if not codes.is_floating_point():
        assert codes.min() >= 0
        assert codes.max() < tokenizer.codebook_size
    for image, code in zip(images, codes, strict=True):
        assert_alike(encode(tokenizer, image), code)
    decoded = decode(tokenizer, codes, grid)
    assert decoded.shape == (len(images), 3, *tokenizer.image_size)
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    assert_alike(decode(tokenizer, codes[0], grid), decoded[0])
    shown = tokenizer.reconstruct(images, output="pt")
    assert isinstance(shown, Tensor)
    assert_alike(shown, decoded)


@given(names, sizes, st.integers(0, 3), seeds)
def test_prepared_tensors_of_any_size_are_encoded_and_decoded_at_it(
    name: str, grid: tuple[int, int], count: int, seed: int
) -> None:
    tokenizer = make(name)
    x = noise(seed, count, 3, 4 * grid[0], 4 * grid[1])
    before = copy.deepcopy(x)
    codes = encode(tokenizer, x)
    assert torch.equal(x, before)
    assert codes.shape[0] == count
    assert codes.shape[-2:] == grid
    assert decode(tokenizer, codes, grid).shape == x.shape


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.complex_numbers(),
    st.lists(st.one_of(st.integers(-1, 400), st.floats(), st.none()), max_size=6),
    st.builds(
        lambda seed, shape, dtype: (noise(seed, *shape) * 10).to(dtype),
        seeds,
        st.lists(st.integers(0, 7), max_size=5),
        st.sampled_from([torch.float32, torch.int64, torch.uint8, torch.bool, torch.complex64]),
    ),
)
odd = st.sampled_from(
    [
        torch.tensor(2),
        torch.tensor([2, 3]),
        torch.tensor(2, device="meta"),
        np.array([2, 3]),
        {4, 6},
    ]
)
anything = st.one_of(anything, odd)
METHODS = ["preprocess", "encode", "decode", "reconstruct", "encode_latents", "decode_latents",
           "encode_distribution", "sample_ids", "sample", "interpolate"]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@given(name=names, data=st.data())
def test_a_call_with_anything_gives_a_result_or_a_named_error(
    name: str, method: str, data: st.DataObject
) -> None:
    picture = st.one_of(st.just(noise(0, 3, 8, 12)), anything)
    count = st.one_of(st.integers(-1, 3), odd, anything.filter(is_small))
    signature = {
        "sample": [count],
        "sample_ids": [picture, st.one_of(st.floats(0, 2), anything)],
        "interpolate": [picture, picture, count],
    }.get(method, [picture])
    name = {"sample": "vae", "sample_ids": "dvae"}.get(method, name)
    arguments = [data.draw(argument) for argument in signature]
    options = {}
    if method in ("decode", "reconstruct", "decode_latents", "sample", "interpolate"):
        options["output"] = data.draw(st.one_of(st.sampled_from(["pil", "pt"]), anything))
    if method == "decode" and data.draw(st.booleans()):
        options["grid"] = data.draw(st.one_of(st.none(), sizes, anything))
    try:
        getattr(make(name), method)(*arguments, **options)
    except ImagetokError as error:
        assert isinstance(error, ValueError | TypeError | OSError)  # noqa: PT017
        assert str(error)  # noqa: PT017


def is_small(value: Any) -> bool:
    """Whether a count of images would not fill the memory."""
    return not isinstance(value, int) or abs(value) < 100 or abs(value) > 2**40
