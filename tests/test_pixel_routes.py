"""One image file gives the encoder the same bits on every route, with a colour profile or without.

The encoder of each route is watched. What it sees must be the file's 8-bit values divided by 255
in float32 and correctly rounded: a route that multiplies by 1 / 255, or divides in another type,
differs in the last bit of many values.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor

import imagetok
from icc_profiles import DISPLAY_P3, rgb_profile
from imagetok import ImageTokenizer
from imagetok.config import RunConfig
from imagetok.data import open_images, open_training
from imagetok.evaluation import evaluate, reconstruction_grid
from imagetok.tokenizing import tokenize_dataset
from imagetok.training import train
from imagetok.training.initial_model import initialize_bottleneck
from tiny_runs import tiny_values

COUNT = 8

Route = Callable[[ImageTokenizer, Path, Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of 16 x 16 pixels that hold all 256 levels in every channel; half have a profile."""
    rng = np.random.default_rng(0)
    images = tmp_path / "images" / "train"
    images.mkdir(parents=True)
    for number in range(COUNT):
        channels = [rng.permutation(256).astype(np.uint8).reshape(16, 16) for _ in range(3)]
        profile = rgb_profile(DISPLAY_P3) if number % 2 else None
        image = Image.fromarray(np.stack(channels, axis=-1))
        image.save(images / f"{number}.png", icc_profile=profile)
    return images.parent


def run_on(folder: Path) -> RunConfig:
    values = tiny_values(
        "vqvae",
        bottleneck={"codebook_size": COUNT, "kmeans_init": True},
        data={"name": str(folder), "evaluation_split": "train"},
        steps=1,
        batch_size=COUNT,
    )
    values["tokenizer"]["preprocessing"] = {"color_profile": "srgb"}
    return RunConfig.from_dict(values)


def encode_files(tokenizer: ImageTokenizer, folder: Path, out: Path) -> None:
    tokenizer.encode(sorted(folder.rglob("*.png")))


def encode_opened(tokenizer: ImageTokenizer, folder: Path, out: Path) -> None:
    for path in folder.rglob("*.png"):
        tokenizer.encode(Image.open(path))


def tokenize(tokenizer: ImageTokenizer, folder: Path, out: Path) -> None:
    tokenize_dataset(tokenizer, dataset=str(folder), output_dir=out, batch_size=3, progress=False)


def measure(tokenizer: ImageTokenizer, folder: Path, out: Path) -> None:
    evaluate(tokenizer, open_images(str(folder), "train"), batch_size=3)


def show(tokenizer: ImageTokenizer, folder: Path, out: Path) -> None:
    reconstruction_grid(tokenizer, open_images(str(folder), "train"), COUNT)


def start_codebook(tokenizer: ImageTokenizer, folder: Path, out: Path) -> None:
    run = run_on(folder)
    initialize_bottleneck(tokenizer, open_training(run, tokenizer.preprocessor), run.train)


def take_a_step(tokenizer: ImageTokenizer, folder: Path, out: Path) -> None:
    train(run_on(folder), out, progress=False)


def all_levels(folder: Path) -> set[bytes]:
    """The bits that the encoder must see of each file, by numpy and littlecms."""
    expected = set()
    for path in folder.rglob("*.png"):
        image: Image.Image | None = Image.open(path)
        assert image is not None
        if "icc_profile" in image.info:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
            image = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"))
        levels = np.moveaxis(np.asarray(image), -1, 0).astype(np.float32)
        x = levels / np.float32(255)
        assert not np.array_equal(x, levels * np.float32(1 / 255))
        expected.add(x.tobytes())
    assert len(expected) == COUNT
    return expected


@pytest.mark.parametrize(
    "route",
    [encode_files, encode_opened, tokenize, measure, show, start_codebook, take_a_step],
    ids=lambda route: route.__name__,
)
def test_a_file_gives_the_encoder_the_same_bits_on_every_route(
    route: Route, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = ImageTokenizer.from_config(run_on(folder).tokenizer)
    network = type(tokenizer.encoder)
    forward, seen = network.forward, set[bytes]()

    def watch(self: torch.nn.Module, x: Tensor) -> Tensor:
        if x.device.type != "meta":  # where a run's plan is made
            assert x.dtype == torch.float32
            seen.update(image.numpy().tobytes() for image in x.detach())
        return forward(self, x)

    monkeypatch.setattr(network, "forward", watch)
    route(tokenizer, folder, tmp_path / "out")
    assert seen == all_levels(folder)


def calls_and_divisions() -> Iterator[tuple[str, ast.Call | ast.BinOp]]:
    package = Path(imagetok.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call | ast.BinOp):
                yield path.relative_to(package).as_posix(), node


def test_only_to_unit_divides_by_255() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path, node in calls_and_divisions()
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Div)
        and isinstance(node.right, ast.Constant)
        and node.right.value == 255
    ]
    assert not found, f"use imagetok.images.to_unit: {found}"


def test_only_encode_pixels_calls_an_encoder() -> None:
    places = [
        path
        for path, node in calls_and_divisions()
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".encoder")
    ]
    assert places == ["tokenizer.py"], "use ImageTokenizer.encode_pixels"
