"""The cards in model_cards/ say what their files say, and the script makes them from a run."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imagetok.cards import render_model_card
from imagetok.config import RunConfig, TokenizerConfig, load_recipe
from imagetok.training import train
from readme_blocks import blocks, commands
from tiny_runs import contents, tiny_run

ROOT = Path(__file__).resolve().parent.parent
CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/README.md"))
FILES = {"README.md", "config.json", "evaluation.json", "reconstructions.png"}


Make = Callable[..., list[str]]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Make:
    """The script with these arguments; gives the lines that it prints."""
    script = ROOT / "scripts" / "make_model_cards.py"

    def call(*arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return call


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    return train(tiny_run("vqvae", steps=2), folder, progress=False).output_dir


def check(folder: Path) -> None:
    """Compare a card with the files beside it."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    config = TokenizerConfig.from_json((folder / "config.json").read_bytes())
    generated = render_model_card(config, evaluation)
    assert text.startswith(generated)
    added = text.removeprefix(generated).replace(folder.name, "")
    assert not re.search(r"\d", added)  # no figure but generated ones
    assert evaluation["training"]["recipe"] == folder.name


def test_a_card_is_made_from_the_files_of_a_run(make: Make, run: Path, tmp_path: Path) -> None:
    assert make("--cards", tmp_path, run) == [str(tmp_path / "vqvae-shapes")]
    card = tmp_path / "vqvae-shapes"
    assert contents(card).keys() == FILES
    for name in FILES - {"README.md"}:
        assert (card / name).read_bytes() == (run / "tokenizer" / name).read_bytes()
    check(card)


def test_cards_are_renewed_from_the_files_beside_them(
    make: Make, run: Path, tmp_path: Path
) -> None:
    make("--cards", tmp_path, run)
    before = contents(tmp_path)
    (tmp_path / "vqvae-shapes" / "README.md").write_text("old")
    (tmp_path / "README.md").write_text("the template, explained")
    assert make("--cards", tmp_path) == [str(tmp_path / "vqvae-shapes")]
    assert contents(tmp_path) == before | {"README.md": b"the template, explained"}


def test_a_run_whose_figures_are_of_other_weights_makes_no_card(
    make: Make, run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    for name, content in contents(run / "tokenizer").items():
        path = other / "tokenizer" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content + b"\n" if name == "model.safetensors" else content)
    with pytest.raises(ValueError, match="are not of the weights that lie there"):
        make("--cards", tmp_path / "cards", other)
    assert not (tmp_path / "cards").exists()


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_a_shipped_card_says_what_its_files_say(folder: Path) -> None:
    check(folder)
    assert {path.name for path in folder.iterdir()} == FILES


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_the_command_of_a_shipped_card_trains_its_config(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    (block,) = [block for block in blocks(text) if block.language == "bash"]
    ((_, _, recipe, *overrides, _, _),) = commands(block.text)
    config: RunConfig = load_recipe(recipe, overrides)
    assert config.tokenizer == TokenizerConfig.from_json((folder / "config.json").read_bytes())


def test_the_page_of_the_cards_names_the_script_and_every_heading(run: Path) -> None:
    page = (ROOT / "model_cards" / "README.md").read_text(encoding="utf-8")
    card = (run / "tokenizer" / "README.md").read_text(encoding="utf-8")
    for heading in re.findall("^## (.*)", card, re.M):
        assert re.search(rf"^\|.*\b{heading}\b.*\|", page, re.M), heading
    (block,) = blocks(page)
    ((python, script, *runs),) = commands(block.text)
    assert (python, (ROOT / script).exists()) == ("python", True)
    for folder in runs:
        load_recipe(Path(folder).name)
