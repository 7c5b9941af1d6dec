"""Saving and loading: the same tokenizer in another process, or a refusal that says why."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from imagetok import ImageTokenizer, hub
from imagetok.errors import (
    ImagetokError,
    InvalidTypeError,
    InvalidValueError,
    ModelFileError,
    UnwritableFileError,
)

Make = Callable[..., ImageTokenizer]
MakePictures = Callable[..., Tensor]
Infer = Callable[[ImageTokenizer, Any], dict[str, Tensor]]

LOAD_ELSEWHERE = """
import pathlib, sys, torch
from safetensors.torch import load_file, save_file
from imagetok import ImageTokenizer
from imagetok.errors import NotDiscreteError
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    tokenizer = ImageTokenizer.from_pretrained(folder)
    x = load_file(folder / "x")["x"]
    found = {"latents": tokenizer.encode_latents(x)}
    try:
        found["ids"] = tokenizer.encode(x)
        found["decoded"] = tokenizer.decode(found["ids"], output="pt")
    except NotDiscreteError:
        found["decoded"] = tokenizer.decode_latents(found["latents"], output="pt")
    found["fingerprint"] = torch.tensor(list(bytes.fromhex(tokenizer.fingerprint)))
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / "found")
"""


def load(folder: Path, **options: Any) -> ImageTokenizer:
    return ImageTokenizer.from_pretrained(folder, **options)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


# Round trips


def test_a_fresh_process_gives_the_same_ids_pixels_and_fingerprint(
    make: Make, floats: MakePictures, every_name: list[str], tmp_path: Path
) -> None:
    for name in every_name:
        tokenizer = make(name)
        tokenizer.save_pretrained(tmp_path / name)
        save_file({"x": floats(tokenizer, 3)}, tmp_path / name / "x")
    subprocess.run([sys.executable, "-c", LOAD_ELSEWHERE, tmp_path], check=True)
    for name in every_name:
        tokenizer, x = make(name), floats(make(name), 3)
        found = load_file(tmp_path / name / "found")
        assert bytes(found["fingerprint"].tolist()).hex() == tokenizer.fingerprint
        assert torch.equal(found["latents"], tokenizer.encode_latents(x))
        assert torch.equal(found["decoded"], tokenizer.reconstruct(x, output="pt"))
        assert ("ids" in found) == (not name.startswith(("ae", "vae")))
        if "ids" in found:
            assert torch.equal(found["ids"], tokenizer.encode(x))


def test_what_was_loaded_infers_the_same_and_saves_to_the_same_bytes(
    tokenizer: ImageTokenizer, pictures: MakePictures, infer: Infer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "a")
    loaded = load(tmp_path / "a")
    batch = pictures(tokenizer, 3)
    assert_same(infer(loaded, batch), infer(tokenizer, batch))
    assert loaded.config == tokenizer.config
    assert loaded.preprocessor == tokenizer.preprocessor
    loaded.save_pretrained(tmp_path / "b")
    for name in (hub.MODEL_FILE, hub.CONFIG_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_loaded_tokenizer_is_ready_for_inference(make: Make, tmp_path: Path) -> None:
    make("vqvae-loss").save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert (loaded.device.type, loaded.dtype) == ("cpu", torch.float32)


def test_loading_draws_nothing_and_ignores_torchs_defaults(
    make: Make, floats: MakePictures, infer: Infer, tmp_path: Path
) -> None:
    tokenizer = make("vqvae-projected")
    tokenizer.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    x = floats(tokenizer, 2)
    for dtype in (torch.float64, torch.float16):
        torch.set_default_dtype(dtype)
        try:
            loaded = load(tmp_path)
        finally:
            torch.set_default_dtype(torch.float32)
        assert_same(infer(loaded, x), infer(tokenizer, x))
        assert {weight.dtype for weight in loaded.state_dict().values()} == {torch.float32}
    with torch.device("meta"):
        loaded = load(tmp_path)
    assert_same(infer(loaded, x), infer(tokenizer, x))


def test_a_relative_folder_and_one_with_parents_are_taken(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make("ae").save_pretrained("a/b/c")
    assert load(Path("a/b/c")).fingerprint == make("ae").fingerprint
    assert ImageTokenizer.from_pretrained("a/b/c").fingerprint == make("ae").fingerprint


def test_a_loaded_tokenizer_goes_on_training_when_asked(
    make: Make, floats: MakePictures, tmp_path: Path
) -> None:
    make("vqvae-loss").save_pretrained(tmp_path)
    loaded = load(tmp_path).requires_grad_(True)
    sum(loaded(floats(loaded, 2)).losses.values()).backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


# Devices and dtypes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16, torch.float16])
def test_a_narrow_dtype_is_that_of_the_networks_alone(
    make: Make, floats: MakePictures, infer: Infer, tmp_path: Path, dtype: str | torch.dtype
) -> None:
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    for name in ("vqvae", "dvae", "vae"):
        make(name).save_pretrained(tmp_path)
        loaded = load(tmp_path, dtype=dtype)
        for part, wanted in (
            (loaded.encoder, expected),
            (loaded.decoder, expected),
            (loaded.bottleneck, torch.float32),
            (loaded.likelihood, torch.float32),
        ):
            assert {weight.dtype for weight in part.state_dict().values()} <= {wanted}
        for tensor in infer(loaded, floats(loaded, 2)).values():
            assert tensor.isfinite().all()


def test_weights_are_saved_in_float32_whatever_the_dtype(make: Make, tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        make("dvae").to(dtype).save_pretrained(tmp_path)
        saved = load_file(tmp_path / hub.MODEL_FILE)
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
        assert load(tmp_path).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float64", "int8", "", torch.float64, torch.int32, 0, ["half"]])
def test_an_unknown_dtype_is_refused(make: Make, tmp_path: Path, dtype: Any) -> None:
    make("ae").save_pretrained(tmp_path)
    with pytest.raises(InvalidValueError, match=r"unknown dtype .*float32, bfloat16, float16"):
        load(tmp_path, dtype=dtype)


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99", "cpu:x", 3.5])
def test_a_device_that_cannot_be_used_is_refused(make: Make, tmp_path: Path, device: Any) -> None:
    make("ae").save_pretrained(tmp_path)
    with pytest.raises(InvalidValueError, match=r"device .* (cannot be used here|holds no values)"):
        load(tmp_path, device=device)


@pytest.mark.parametrize("name", [None, 3, b"folder"])
def test_what_is_not_a_path_is_refused(make: Make, name: Any) -> None:
    with pytest.raises(InvalidTypeError, match="named by a path, got"):
        ImageTokenizer.from_pretrained(name)
    with pytest.raises(InvalidTypeError, match="named by a path, got"):
        make("ae").save_pretrained(name)


# Refusals


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Save other tensors under the same config, with a digest that fits them."""
    files = hub.load_model(folder)
    change(files.tensors)
    hub.save_model(folder, files.config, files.tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bottleneck.codebook"), "missing bottleneck.codebook"),
        (lambda t: t.update(extra=torch.ones(2)), "unexpected extra"),
        (
            lambda t: t.update({"bottleneck.codebook": torch.ones(36, 6)}),
            r"bottleneck.codebook is torch.float32 \(36, 6\), expected torch.float32 \(37, 6\)",
        ),
        (
            lambda t: t.update({"bottleneck.codebook": torch.ones(37, 6, dtype=torch.int64)}),
            "bottleneck.codebook is torch.int64",
        ),
        (lambda t: t.clear(), "missing bottleneck.codebook; missing decoder"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_named(
    make: Make, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    make("vqvae").save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ModelFileError, match=rf"do not fit the config: .*{message}"):
        load(tmp_path)


def test_a_huge_config_is_refused_before_anything_is_allocated(make: Make, tmp_path: Path) -> None:
    tokenizer = make("vqvae")
    assert tokenizer.config is not None
    values = tokenizer.config.to_dict()
    values["bottleneck"] |= {"codebook_size": 2**24, "latent_dim": 128}
    huge = type(tokenizer.config).from_dict(values)
    hub.save_model(tmp_path, huge, tokenizer.state_dict())
    with pytest.raises(ModelFileError, match=r"expected torch.float32 \(16777216, 128\)"):
        load(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"holds no model\.safetensors"):
        load(tmp_path)
    with pytest.raises(ModelFileError, match="does not exist"):
        load(tmp_path / "user" / "name")


def test_a_tokenizer_put_together_by_hand_is_not_saved(make: Make, tmp_path: Path) -> None:
    model = make("vqvae")
    hand_made = ImageTokenizer(
        model.preprocessor, model.encoder, model.bottleneck, model.decoder, model.likelihood
    )
    with pytest.raises(InvalidValueError, match=r"ImageTokenizer\.from_config"):
        hand_made.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_tokenizer_with_damaged_weights_is_not_saved_over_a_good_one(
    make: Make, tmp_path: Path
) -> None:
    tokenizer = make("vqvae")
    tokenizer.save_pretrained(tmp_path)
    broken = copy.deepcopy(tokenizer)
    with torch.no_grad():
        next(broken.decoder.parameters())[0] = float("nan")
    with pytest.raises(InvalidValueError, match=r"decoder.*NaN"):
        broken.save_pretrained(tmp_path)
    assert load(tmp_path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_save_leaves_the_old_tokenizer(
    make: Make,
    floats: MakePictures,
    infer: Infer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
) -> None:
    old, new = make("vqvae"), make("vqvae", seed=1)
    old.save_pretrained(tmp_path)

    def stop(*paths: object) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        expected = UnwritableFileError if isinstance(fault, OSError) else KeyboardInterrupt
        with pytest.raises(expected):
            new.save_pretrained(tmp_path)
    x = floats(old, 2)
    assert_same(infer(load(tmp_path), x), infer(old, x))
    assert set(os.listdir(tmp_path)) == MODEL
    new.save_pretrained(tmp_path)
    assert_same(infer(load(tmp_path), x), infer(new, x))


def test_a_folder_that_cannot_be_written_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableFileError, match="file"):
        make("ae").save_pretrained(tmp_path / "file")
    assert issubclass(UnwritableFileError, ImagetokError)


# Figures and images


@pytest.fixture
def evaluated(make: Make, tmp_path: Path) -> Path:
    """A folder with a tokenizer, its evaluation and its images."""
    folder = tmp_path / "evaluated"
    make("vqvae").save_pretrained(folder)
    sha256 = hub.load_model(folder).sha256
    figures = json.dumps({hub.EVALUATED_KEY: sha256, "psnr": 24.0})
    (folder / hub.EVALUATION_FILE).write_text(figures)
    (folder / hub.PICTURES_FILE).write_bytes(b"pictures")
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


MODEL = {hub.MODEL_FILE, hub.CONFIG_FILE, hub.CARD_FILE}
FIGURES = {hub.EVALUATION_FILE, hub.PICTURES_FILE}


def test_figures_go_along_with_equal_weights(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(evaluated.parent)
    loaded = ImageTokenizer.from_pretrained("evaluated")
    monkeypatch.chdir(evaluated)
    loaded.save_pretrained(tmp_path / "copy")
    assert names(tmp_path / "copy") == MODEL | FIGURES
    for name in FIGURES:
        assert (tmp_path / "copy" / name).read_bytes() == (evaluated / name).read_bytes()


def test_figures_stay_when_a_tokenizer_is_saved_where_it_was_loaded_from(evaluated: Path) -> None:
    load(evaluated).save_pretrained(evaluated)
    assert names(evaluated) == MODEL | FIGURES


def test_figures_of_other_weights_are_dropped(evaluated: Path, tmp_path: Path) -> None:
    changed = load(evaluated)
    with torch.no_grad():
        next(changed.decoder.parameters()).add_(1)
    changed.save_pretrained(tmp_path / "copy")
    assert names(tmp_path / "copy") == MODEL
    changed.save_pretrained(evaluated)
    assert names(evaluated) == MODEL


def test_figures_of_rounded_weights_are_dropped(evaluated: Path, tmp_path: Path) -> None:
    load(evaluated, dtype="bfloat16").save_pretrained(tmp_path / "copy")
    assert names(tmp_path / "copy") == MODEL


def test_a_tokenizer_whose_source_is_gone_is_saved_without_figures(
    evaluated: Path, tmp_path: Path
) -> None:
    loaded = load(evaluated)
    evaluated.rename(tmp_path / "moved")
    loaded.save_pretrained(tmp_path / "copy")
    assert names(tmp_path / "copy") == MODEL


@pytest.mark.parametrize("subfolder", ["..", "/etc", "a\\b", 7])
def test_a_subfolder_that_leads_elsewhere_is_refused(
    make: Make, tmp_path: Path, subfolder: Any
) -> None:
    make("vqvae-loss").save_pretrained(tmp_path / "deep")
    assert ImageTokenizer.from_pretrained(tmp_path, subfolder="deep").num_tokens > 0
    with pytest.raises((InvalidValueError, InvalidTypeError), match="subfolder"):
        ImageTokenizer.from_pretrained(tmp_path / "deep", subfolder=subfolder)


def test_a_generator_that_is_none_is_refused(make: Make) -> None:
    with pytest.raises(InvalidTypeError, match=r"torch\.Generator or None, got int"):
        make("vae").sample(1, 7)  # type: ignore[arg-type]
