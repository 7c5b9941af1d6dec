"""The fingerprint: all that decides ids or latents, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imagetok import ImageTokenizer, weight_fingerprint

Make = Callable[..., ImageTokenizer]


def load(folder: Path, **options: Any) -> ImageTokenizer:
    return ImageTokenizer.from_pretrained(folder, **options)


@pytest.mark.parametrize("part", ["encoder", "bottleneck"])
def test_the_fingerprint_changes_with_the_weights_that_decide_ids_or_latents(
    tokenizer: ImageTokenizer, part: str
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tokenizer.to(dtype)
        for tensor in getattr(tokenizer, part).state_dict().values():
            before = tokenizer.fingerprint
            with torch.no_grad():
                tensor.view(-1)[0] += 0.5
            assert tokenizer.fingerprint != before


def test_the_fingerprint_keeps_when_decoder_and_likelihood_are_trained_further(
    tokenizer: ImageTokenizer, tmp_path: Path
) -> None:
    before = tokenizer.fingerprint
    with torch.no_grad():
        for part in (tokenizer.decoder, tokenizer.likelihood):
            for parameter in part.parameters():
                parameter.add_(0.5)
    assert tokenizer.fingerprint == before
    tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path).fingerprint == before


def test_the_fingerprint_is_that_of_a_configuration(make: Make) -> None:
    def fingerprint(**options: Any) -> str:
        tokenizer = make("vqvae", **options)
        tokenizer.load_state_dict(make("vqvae").state_dict(), strict=False)
        return tokenizer.fingerprint

    conv = {"type": "conv", "hidden_channels": 8, "residual_channels": 4}
    decoder = {**conv, "num_residual_blocks": 2}
    bottleneck = {"type": "vq", "codebook_size": 37, "latent_dim": 6}
    same = [
        fingerprint(),
        fingerprint(decoder=decoder),
        fingerprint(likelihood={"type": "l1"}),
        fingerprint(bottleneck={**bottleneck, "decay": 0.5}),
        fingerprint(bottleneck={**bottleneck, "gradient": "rotation", "restart_below": 0.5}),
    ]
    assert len(set(same)) == 1
    other = [
        fingerprint(image_size=[24, 16]),
        fingerprint(preprocessing={"background": [0, 0, 0]}),
        fingerprint(preprocessing={"resize": "bilinear"}),
        fingerprint(bottleneck={**bottleneck, "normalize": True}),
    ]
    assert len({same[0], *other}) == 5


def test_the_fingerprint_of_a_hand_made_tokenizer_changes_with_its_preprocessing(
    make: Make,
) -> None:
    model = make("vqvae")
    gray = dataclasses.replace(model.preprocessor, background=(127, 127, 127))
    found = {
        ImageTokenizer(
            preprocessor, model.encoder, model.bottleneck, model.decoder, model.likelihood
        ).fingerprint
        for preprocessor in (model.preprocessor, gray)
    }
    assert len(found) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_fingerprint_keeps_under_another_dtype(
    tokenizer: ImageTokenizer, tmp_path: Path, dtype: torch.dtype
) -> None:
    expected = tokenizer.fingerprint
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer.to(dtype).fingerprint == expected
    assert tokenizer.cpu().fingerprint == expected
    assert copy.deepcopy(tokenizer).fingerprint == expected
    if dtype.itemsize < 4:
        assert load(tmp_path, dtype=dtype).fingerprint == expected
        assert tokenizer.to(torch.bfloat16).fingerprint == expected


def test_weights_that_a_narrow_dtype_rounded_are_another_tokenizers_once_they_count(
    make: Make, tmp_path: Path
) -> None:
    tokenizer = make("vqvae")
    exact = tokenizer.fingerprint
    tokenizer.bfloat16().save_pretrained(tmp_path)
    rounded = tokenizer.float().fingerprint
    assert rounded != exact
    assert load(tmp_path).fingerprint == rounded
    assert tokenizer.double().fingerprint == rounded


def test_a_narrow_tokenizer_given_other_weights_has_their_fingerprint(make: Make) -> None:
    narrow, other = make("vqvae").bfloat16(), make("vqvae", seed=1).bfloat16()
    narrow.load_state_dict(other.state_dict())
    assert narrow.fingerprint != make("vqvae").fingerprint


# When a fingerprint is taken


class Hashes:
    """Counts digests of weights."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, digest = 0, weight_fingerprint.tensors_digest

        def counted(tensors: dict[str, torch.Tensor]) -> str:
            self.count += 1
            return digest(tensors)

        monkeypatch.setattr(weight_fingerprint, "tensors_digest", counted)


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> Hashes:
    return Hashes(monkeypatch)


def test_it_is_remembered_while_nothing_changes_and_taken_anew_on_request(
    tokenizer: ImageTokenizer, hashes: Hashes
) -> None:
    first = tokenizer.fingerprint
    assert [tokenizer.fingerprint for _ in range(3)] == [first] * 3
    assert hashes.count == 1
    assert tokenizer.take_fingerprint() == first
    assert hashes.count == 2


def test_casts_and_moves_hash_nothing(tokenizer: ImageTokenizer, hashes: Hashes) -> None:
    before = tokenizer.fingerprint
    hashes.count = 0
    for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
        tokenizer.to(dtype)
        tokenizer.cpu()
    assert hashes.count == 0
    assert tokenizer.fingerprint == before


def test_every_change_in_place_gives_another_one(make: Make) -> None:
    tokenizer = make("vqvae")
    found = [tokenizer.fingerprint]
    with torch.no_grad():
        next(tokenizer.encoder.parameters()).add_(0.5)
    found.append(tokenizer.fingerprint)
    tokenizer.load_state_dict(make("vqvae", seed=1).state_dict())
    found.append(tokenizer.fingerprint)
    optimizer = torch.optim.SGD(tokenizer.parameters(), lr=0.1)
    output = tokenizer(torch.rand(2, 3, *tokenizer.image_size))
    sum(output.losses.values()).backward()
    optimizer.step()
    found.append(tokenizer.fingerprint)
    assert len(set(found)) == len(found)


def test_what_is_recorded_sees_changes_that_torch_does_not_count(make: Make) -> None:
    tokenizer = make("vqvae")
    before = tokenizer.fingerprint
    next(tokenizer.encoder.parameters()).data.add_(0.5)  # the version stays
    assert tokenizer.take_fingerprint() != before


def test_a_change_between_two_casts_is_seen(make: Make) -> None:
    tokenizer = make("vqvae").bfloat16()
    with torch.no_grad():
        next(tokenizer.encoder.parameters()).add_(0.5)
    assert tokenizer.half().fingerprint != make("vqvae").fingerprint
