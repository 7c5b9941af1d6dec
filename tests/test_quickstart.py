"""The front door, with a training so short that the reconstructions show nothing yet."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from imagetok import ImageTokenizer, quickstart
from imagetok.config import RunConfig
from imagetok.config.recipe import read_recipe
from imagetok.data import open_evaluation, open_images, open_rows
from imagetok.errors import ConfigError, ImagetokError
from imagetok.quickstart import RoundTrip, round_trip, run_quickstart
from imagetok.shards import verify
from tiny_runs import SYSTEMS, contents, tiny_run


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> RunConfig:
        return tiny_run(name.removesuffix("-shapes"), size=64, steps=2)

    monkeypatch.setattr(quickstart, "load_recipe", load)
    monkeypatch.setattr(quickstart, "NUM_CHECKED", 4)


def check_words(out: str, folder: Path, images: list[Path], codes: str) -> None:
    assert re.search(r"psnr +\d+\.\d+ dB", out)
    assert f"loaded in a fresh process: the same {codes} and pixels" in out
    assert re.search(r"of \d+ drawn objects on 4 held-out reconstructions: colours kept", out)
    assert re.search(r"positions kept \d+\.\d%", out)
    for path in [folder / "tokenizer", *images]:
        assert str(path) in out
        assert path.exists()
    assert re.search(r"done in \d+ s", out)
    commands = [shlex.split(line) for line in out.splitlines() if line.startswith("  imagetok ")]
    assert [words[1] for words in commands] == ["info", "reconstruct", "train"]
    assert all(any(word.startswith(str(folder)) for word in words) for words in commands)
    check_train_command(commands[2], folder.parent / "photos")


def check_train_command(words: list[str], photos: Path) -> None:
    """The command printed for one's own images has rows of these to train and to evaluate on."""
    photos.mkdir()
    for number in range(100):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(photos / f"{number}.png")
    recipe, *overrides = words[2 : words.index("--output-dir")]
    overrides = [text.replace("./photos", str(photos)) for text in overrides]
    config = read_recipe(recipe, overrides, RunConfig)
    held = open_evaluation(config)
    rows = len(open_rows(config.data.ref(config.data.split)))
    assert (held.split, rows + len(held)) == ("holdout", 100)


def test_the_quickstart_trains_loads_checks_and_says_what_is_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "it's here"
    run_quickstart("vqvae", folder)
    image = folder / "tokenizer" / "reconstructions.png"
    out = capsys.readouterr().out
    check_words(out, folder, [image, folder / "tokens.png"], "ids")
    assert "tokenized 64 held-out images: 16,384 ids" in out
    assert verify(folder / "tokens").is_sound
    figures = json.loads((folder / "tokenizer" / "evaluation.json").read_text())
    assert figures["protocol"]["split"] == "test"
    lines = [line for line in out.splitlines() if line.startswith("  python -c")]
    code, reading = (shlex.split(line)[2] for line in lines)
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.jpg")
    exec(code.replace("photo.jpg", str(tmp_path / "photo.jpg")).replace("back", f"{tmp_path}/back"))
    assert (tmp_path / "back.png").exists()
    exec(reading)
    assert re.search(r"'ids': tensor\(.*'caption': '", capsys.readouterr().out, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["vae", "dvae", "ae"])
def test_every_system_has_its_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], system: str
) -> None:
    folder = tmp_path / "quick"
    run_quickstart(system, folder)
    prior = [folder / "samples.png", folder / "interpolation.png"]
    images = [folder / "tokenizer" / "reconstructions.png", *(prior if system == "vae" else [])]
    check_words(capsys.readouterr().out, folder, images, "ids" if system == "dvae" else "latents")
    assert [path.exists() for path in prior] == [system == "vae"] * 2
    if system == "vae":
        samples, walks = (Image.open(path) for path in prior)
        assert samples.size == (8 * 130 + 2, 2 * 130 + 2)
        assert walks.size == (8 * 130 + 2, 4 * 130 + 2)


def test_an_unknown_system_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'gan'; choose one of: vqvae, dvae, vae, ae"):
        run_quickstart("gan", tmp_path / "quick")
    assert list(tmp_path.iterdir()) == []


def test_a_second_quickstart_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="holds a run already"):
        run_quickstart("vqvae", tmp_path)
    assert contents(tmp_path) == {"config.yaml": b"mine"}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_round_trip_gives_the_codes_and_pixels_of_held_out_images(system: str) -> None:
    tokenizer = ImageTokenizer.from_config(tiny_run(system, size=64).tokenizer)
    trip = round_trip(tokenizer)
    rows = open_images("builtin:shapes?size=64&count=8", "test")
    images = [rows.image(row) for row in range(quickstart.NUM_COMPARED)]
    discrete = system in ("vqvae", "dvae")
    codes = tokenizer.encode(images) if discrete else tokenizer.encode_latents(images)
    assert trip.codes == codes.tolist()
    shown = tokenizer.reconstruct(images)
    assert isinstance(shown, list)
    assert trip.pixels == [image.tobytes().hex() for image in shown]
    assert RoundTrip(**json.loads(json.dumps(trip.__dict__))) == trip


def test_a_fresh_process_that_gives_other_pixels_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = ImageTokenizer.from_config(tiny_run("ae", size=64).tokenizer)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ImagetokError, match=r"cannot use .*errors\.ModelFileError") as no:
        quickstart._compare_with_fresh_process(tokenizer, tmp_path / "missing")
    assert not isinstance(no.value, ValueError | OSError)  # failed at work: exit code 1
    tokenizer.decoder.requires_grad_(False)
    next(tokenizer.decoder.parameters()).mul_(1.01)
    with pytest.raises(ImagetokError, match="does not give the same codes and pixels"):
        quickstart._compare_with_fresh_process(tokenizer, tmp_path)
