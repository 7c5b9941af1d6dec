"""Where a codebook starts: encoder outputs of the first images, whoever encodes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imagetok import ImageTokenizer, distributed
from imagetok.data import EpochOrder, TrainingImages, TrainTransform, open_images
from imagetok.training.initialization import initialize_bottleneck
from tiny_runs import CODEBOOK_SIZE, tiny_run


class Recorder:
    """A VQ-VAE whose bottleneck keeps the vectors that it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **bottleneck: Any) -> None:
        config = tiny_run("vqvae", bottleneck=bottleneck)
        torch.manual_seed(0)
        self.model = ImageTokenizer.from_config(config.tokenizer).double()
        rows = open_images(config.data.name, "train")
        transform = TrainTransform(self.model.preprocessor, (0.5, 1.0), True)
        self.images = TrainingImages(rows, transform, EpochOrder(len(rows), 0), 0)
        self.given: list[Tensor] = []
        monkeypatch.setattr(self.model.bottleneck, "initialize", self.given.append)

    def vectors(self, seed: int = 0, batch_size: int = 32) -> Tensor:
        initialize_bottleneck(self.model, self.images, seed, batch_size)
        return self.given.pop()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def test_there_are_four_vectors_a_code_and_they_are_encoder_outputs(recorder: Recorder) -> None:
    vectors = recorder.vectors()
    assert vectors.shape == (4 * CODEBOOK_SIZE, 4)
    pixels = torch.stack([recorder.images[i]["pixels"] for i in range(3)])
    with torch.no_grad():
        outputs = recorder.model.encoder(pixels.double() / 255)
    # 48 vectors are all 16 positions of three images, in some order within each.
    expected = outputs.flatten(2).transpose(1, 2)
    for image, found in enumerate(vectors.view(3, 16, 4)):
        distance = torch.cdist(found, expected[image])
        assert distance.amin(dim=1).max() < 1e-12
        assert sorted(distance.argmin(dim=1).tolist()) == list(range(16))


def test_the_batch_size_does_not_matter(recorder: Recorder) -> None:
    torch.testing.assert_close(recorder.vectors(batch_size=1), recorder.vectors(batch_size=32))


def test_equal_seeds_choose_equal_vectors(recorder: Recorder) -> None:
    assert torch.equal(recorder.vectors(), recorder.vectors())
    assert not torch.equal(recorder.vectors(seed=1), recorder.vectors())


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_the_shares_of_the_ranks_join_to_the_vectors_of_one(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    whole = recorder.vectors()
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(recorder.vectors())
    torch.testing.assert_close(torch.cat(shares), whole)
    assert len(whole) == 48  # three images: five ranks leave some without any


def test_the_codebook_becomes_centres_of_these_vectors() -> None:
    config = tiny_run("vqvae")
    torch.manual_seed(0)
    model = ImageTokenizer.from_config(config.tokenizer)
    rows = open_images(config.data.name, "train")
    images = TrainingImages(rows, TrainTransform(model.preprocessor), EpochOrder(len(rows), 0), 0)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    initialize_bottleneck(model, images, seed=0)
    pixels = torch.stack([images[i]["pixels"] for i in range(3)])
    with torch.no_grad():
        ids = model.bottleneck.encode_ids(model.encoder(pixels.float() / 255))
    assert len(ids.unique()) == CODEBOOK_SIZE
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("system", ["ae", "vae", "dvae"])
def test_other_bottlenecks_ask_for_nothing(system: str) -> None:
    model = ImageTokenizer.from_config(tiny_run(system).tokenizer)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    images: Any = None  # reading one would fail
    initialize_bottleneck(model, images, seed=0)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
