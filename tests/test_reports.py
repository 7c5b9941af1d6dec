"""What is printed: whole hashes and paths, figures with their units, nothing made up."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from imagetok import ImageTokenizer
from imagetok.codesearch import use_backend
from imagetok.config import load_recipe
from imagetok.errors import ModelFileError
from imagetok.reports import (
    describe_tokenizer,
    show_evaluation,
    show_info,
    show_plan,
    write_reconstructions,
)
from imagetok.training import train
from tiny_runs import SYSTEMS, tiny_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained [old]") / "run"
    return train(tiny_run("vqvae", steps=1), folder, progress=False).tokenizer_dir


def untrained(system: str, folder: Path) -> Path:
    ImageTokenizer.from_config(tiny_run(system).tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_tokenizer_is_described_as_it_is(tmp_path: Path, system: str) -> None:
    facts = describe_tokenizer(untrained(system, tmp_path))
    loaded = ImageTokenizer.from_pretrained(tmp_path)
    assert loaded.config is not None
    assert facts["config"] == loaded.config.to_dict()
    assert facts["fingerprint"] == loaded.fingerprint
    assert facts["parameters"] == sum(t.numel() for t in loaded.state_dict().values())
    assert (facts["image_size"], facts["grid_size"]) == ([16, 16], [4, 4])
    assert facts["codebook_size"] == (12 if system in ("vqvae", "dvae") else None)
    assert facts["evaluation"] is None
    assert json.loads(json.dumps(facts)) == facts


def test_the_figures_of_the_same_file_are_told(trained: Path) -> None:
    figures = json.loads((trained / "evaluation.json").read_text())
    facts = describe_tokenizer(trained)
    assert facts["evaluation"] == figures
    assert facts["sha256"] == figures["tokenizer_sha256"]


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"psnr": 99.0}'])
def test_figures_that_are_damaged_are_not_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    folder = untrained("ae", tmp_path)
    (folder / "evaluation.json").write_bytes(content)
    assert describe_tokenizer(folder)["evaluation"] is None
    show_info(folder, as_json=False)
    assert "figures: not measured" in capsys.readouterr().out


def test_figures_of_other_weights_are_not_told(trained: Path, tmp_path: Path) -> None:
    folder = untrained("vqvae", tmp_path)
    (folder / "evaluation.json").write_bytes((trained / "evaluation.json").read_bytes())
    assert describe_tokenizer(folder)["evaluation"] is None


def test_hashes_and_paths_are_whole_however_narrow_the_terminal(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    show_info(trained, as_json=False)
    out = capsys.readouterr().out
    facts = describe_tokenizer(trained)
    assert out.splitlines()[0] == str(trained)  # square brackets and all
    assert re.search(rf"^  fingerprint +{facts['fingerprint']}$", out, re.MULTILINE)
    assert re.search(rf"^  sha256 +{facts['sha256']}$", out, re.MULTILINE)


def test_what_does_not_apply_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_info(untrained("vae", tmp_path), as_json=False)
    assert re.search(r"codebook_size +does not apply\n", capsys.readouterr().out)


@pytest.mark.parametrize(("system", "told"), [("vqvae", True), ("ae", False)])
def test_the_code_search_of_this_machine_is_told(
    system: str, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with use_backend("torch"):
        show_info(untrained(system, tmp_path), as_json=False)
    assert ("code search  torch" in capsys.readouterr().out) == told


def test_figures_have_units_and_protocols_stay_out(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = json.loads((trained / "evaluation.json").read_text()) | {"ssim": None}
    show_evaluation(figures, "mine")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mine"
    rows = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in lines[1:])
    assert rows["psnr"] == f"{figures['psnr']:.4f} dB"
    assert rows["bits_per_dim"] == f"{figures['bits_per_dim']:.4f} bits"
    assert rows["ssim"] == "does not apply"
    assert rows["num_images"] == "64"
    assert rows["on"] == "builtin:shapes?size=16&count=64, test"
    assert rows.keys() == {k for k, v in figures.items() if not isinstance(v, str | dict)} | {"on"}


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"holds no model\.safetensors"):
        describe_tokenizer(tmp_path)


def test_a_plan_tells_sizes_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(load_recipe("dvae-dalle"))
    out = capsys.readouterr().out
    for line in (
        "image                   256 x 256 pixels, 3 channels",
        "grid                    32 x 32 = 1024 positions",
        "codebook                8192 codes",
        "parameters              97,615,878",
    ):
        assert f"  {line}\n" in out
    show_plan(load_recipe("ae-shapes"))
    assert "none: continuous" in capsys.readouterr().out


def test_reconstructions_tell_the_psnr_of_each_image(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{name}.png" for name in ("black", "white")]
    for path in paths:
        Image.new("RGB", (16, 16), path.stem).save(path)
    write_reconstructions(ImageTokenizer.from_pretrained(trained), paths, tmp_path / "both.png")
    out = capsys.readouterr().out
    found = [re.search(rf"{path} +(\d+\.\d\d) dB", out) for path in paths]
    assert all(found)
    with Image.open(tmp_path / "both.png") as image:
        assert image.convert("RGB").getpixel((60, 60)) == (0, 0, 0)
        assert image.convert("RGB").getpixel((190, 60)) == (255, 255, 255)
