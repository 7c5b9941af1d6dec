"""Where a codebook starts: encoder outputs of the first images, whoever encodes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imagetok import ImageTokenizer
from imagetok.config import TrainConfig
from imagetok.data import TrainingData, open_training
from imagetok.launch import collectives
from imagetok.training import initial_model
from imagetok.training.initial_model import initialize_bottleneck
from tiny_runs import CODEBOOK_SIZE, tiny_run


class Recorder:
    """A VQ-VAE whose bottleneck keeps the vectors that it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **bottleneck: Any) -> None:
        self.data_changes = {"crop_scale": [0.5, 1.0], "flip": True}
        config = tiny_run("vqvae", bottleneck=bottleneck)
        torch.manual_seed(0)
        self.model = ImageTokenizer.from_config(config.tokenizer).double()
        self.given: list[Tensor] = []
        monkeypatch.setattr(self.model.bottleneck, "initialize", self.given.append)

    def data(self, **train: Any) -> tuple[TrainingData, TrainConfig]:
        config = tiny_run("vqvae", data=self.data_changes, **train)
        return open_training(config, self.model.preprocessor), config.train

    def vectors(self, **train: Any) -> Tensor:
        initialize_bottleneck(self.model, *self.data(**train))
        return self.given.pop()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def test_there_are_four_vectors_a_code_and_they_are_encoder_outputs(recorder: Recorder) -> None:
    vectors = recorder.vectors()
    assert vectors.shape == (4 * CODEBOOK_SIZE, 4)
    with recorder.data()[0].feed(0, 1, 0, 1) as feed:
        ((batch,),) = feed
    pixels = batch.pixels[:3]
    with torch.no_grad():
        outputs = recorder.model.encoder(pixels.double() / 255)
    # 48 vectors are all 16 positions of three images, in some order within each.
    expected = outputs.flatten(2).transpose(1, 2)
    for image, found in enumerate(vectors.view(3, 16, 4)):
        distance = torch.cdist(found, expected[image])
        assert distance.amin(dim=1).max() < 1e-12
        assert sorted(distance.argmin(dim=1).tolist()) == list(range(16))


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 8, "accumulation": 4}])
def test_neither_batches_nor_micro_batches_matter(
    recorder: Recorder, changes: dict[str, int]
) -> None:
    torch.testing.assert_close(recorder.vectors(**changes), recorder.vectors(batch_size=32))


def test_equal_seeds_choose_equal_vectors(recorder: Recorder) -> None:
    assert torch.equal(recorder.vectors(), recorder.vectors())
    assert not torch.equal(recorder.vectors(seed=1), recorder.vectors())


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_shares_of_the_ranks_join_to_the_vectors_of_one(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    whole = recorder.vectors()
    monkeypatch.setattr(collectives, "world_size", lambda: ranks)
    monkeypatch.setattr(
        initial_model, "_choose_vectors", lambda z, *_: z.flatten(2).mT.flatten(0, 1)
    )
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        shares.append(recorder.vectors())
    # Without the others each rank gives what it encoded, of one step.
    joined = torch.cat(shares)[: len(whole)]
    torch.testing.assert_close(joined.sort(0).values, whole.sort(0).values)


def test_the_codebook_becomes_centres_of_these_vectors() -> None:
    config = tiny_run("vqvae")
    torch.manual_seed(0)
    model = ImageTokenizer.from_config(config.tokenizer)
    data = open_training(config, model.preprocessor)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    initialize_bottleneck(model, data, config.train)
    with data.feed(0, 1, 0, 1) as feed:
        ((batch,),) = feed
    pixels = batch.pixels[:3]
    with torch.no_grad():
        ids = model.bottleneck.encode_ids(model.encoder(pixels.float() / 255))
    assert len(ids.unique()) == CODEBOOK_SIZE
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("system", ["ae", "vae", "dvae"])
def test_other_bottlenecks_ask_for_nothing(system: str) -> None:
    config = tiny_run(system)
    model = ImageTokenizer.from_config(config.tokenizer)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    data: Any = None  # reading it would fail
    initialize_bottleneck(model, data, config.train)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
