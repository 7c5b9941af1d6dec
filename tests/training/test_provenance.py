"""What a run says of itself to others: enough to make it again, nothing of the machine."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from imagetok import ImageTokenizer, __version__
from imagetok.config import RunConfig, load_recipe, recipe_names
from imagetok.config.recipe import dump_recipe
from imagetok.data import open_images
from imagetok.training import train
from imagetok.training.provenance import find_recipe
from nasty_texts import NASTY
from tiny_data import write_split
from tiny_runs import DATA, SYSTEMS, contents, run_two_ranks, tiny_run

NO_MATTER = {
    "data.num_workers": 0,
    "train.evaluate_every": 7,
    "train.evaluation_images": 7,
    "train.checkpoint_every": 7,
    "train.samples_every": 7,
    "train.keep_last": 7,
    "train.usage_warning": 0.5,
    "train.gradient_checkpointing": False,
    "train.trackers": [],
    "train.project": "imagetok",
}


def comparable(config: RunConfig) -> dict[str, Any]:
    """A config without what does not change the tokenizer that comes out."""
    values = config.to_dict()
    for path, value in NO_MATTER.items():
        section, key = path.split(".")
        values[section][key] = value
    return values


def told(config: RunConfig) -> tuple[str, list[str]]:
    found = find_recipe(config)
    assert found is not None
    return found


# The recipe


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_told_by_its_name(name: str) -> None:
    assert told(load_recipe(name)) == (name, [])


@pytest.mark.parametrize(
    "changes",
    [
        ["train.steps=100"],
        ["tokenizer.image_size=[32, 32]", "data.flip=true", "train.seed=7"],
        ["tokenizer.preprocessing.resize=bilinear"],
        ["data.name=photos", "data.split=train[:90%]", "data.evaluation_split=train[90%:]"],
        ["train.optimizer.lr=0.001", "train.optimizer.betas=[0.5, 0.9]"],
        ["train.optimizer.lr.end=0.0001", "train.ema_decay=null"],
    ],
)
@pytest.mark.parametrize("name", ["vqvae-shapes", "dvae-shapes"])
def test_overrides_are_told_as_they_were_given(name: str, changes: list[str]) -> None:
    recipe, found = told(load_recipe(name, changes))
    assert (recipe, sorted(found)) == (name, sorted(changes))


def test_what_does_not_change_the_tokenizer_is_not_told() -> None:
    changes = [f"{path}={json.dumps(value)}" for path, value in NO_MATTER.items()]
    changes += ["train.trackers=[tensorboard]", "train.project=secret", "data.num_workers=3"]
    assert told(load_recipe("ae-shapes", changes)) == ("ae-shapes", [])


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_recipe_with_its_changes_is_the_run(system: str) -> None:
    for changes in ({}, {"ema_decay": 0.5}, {"loss_weights": {"loss/kl": 0.5}}, {"freeze": []}):
        config = tiny_run(system, **changes)
        recipe, found = told(config)
        assert comparable(load_recipe(recipe, found)) == comparable(config)


@pytest.mark.parametrize("name", sorted(NASTY.keys() - {"empty", "surrogate"}))
def test_texts_of_any_kind_are_told_so_that_they_are_read_back(name: str) -> None:
    config = tiny_run("vae", data={"split": NASTY[name], "subset": NASTY[name]})
    recipe, found = told(config)
    assert comparable(load_recipe(recipe, found)) == comparable(config)


def test_a_run_that_is_far_from_every_recipe_names_none() -> None:
    network = {"type": "dalle", "hidden_channels": 16, "num_groups": 2, "blocks_per_group": 1}
    values = tiny_run("ae").to_dict()
    values["tokenizer"] |= {
        "channels": 1,
        "preprocessing": {"resize": "bilinear", "background": [0, 0, 0]},
        "encoder": network,
        "decoder": network,
        "likelihood": {"type": "l1"},
    }
    values["data"].update(name="photos", subset="a", revision="b", split="c", image_column="e")
    values["data"].update(evaluation_split="d", crop_scale=[0.5, 1.0], flip=True, streaming=True)
    values["data"].update(lanes=4, window=8, max_error_rate=0.5)
    values["train"].update(seed=3, precision="bf16", temperature=0.5, accumulation=2)
    values["train"].update(loss_weights={"loss/reconstruction": 2.0})
    assert find_recipe(RunConfig.from_dict(values)) is None


# The entry


def test_a_run_is_described(tmp_path: Path) -> None:
    config = tiny_run("vqvae", steps=2, seed=5)
    result = train(config, tmp_path / "run", progress=False)
    figures = json.loads((result.tokenizer_dir / "evaluation.json").read_text())
    training = figures["training"]
    recipe, changes = told(config)
    tokenizer = ImageTokenizer.from_pretrained(result.tokenizer_dir)
    assert training == {
        "recipe": recipe,
        "changes": changes,
        "init_from": None,
        "data": {
            "name": DATA,
            "source": "builtin",
            "split": "train",
            "fingerprint": open_images(DATA, "train").fingerprint,
        },
        "steps": 2,
        "batch_size": 8,
        "ranks": 1,
        "device": "CPU" if not torch.cuda.is_available() else torch.cuda.get_device_name(),
        "precision": "fp32",
        "seed": 5,
        "parameters": sum(tensor.numel() for tensor in tokenizer.state_dict().values()),
        "versions": {"imagetok": __version__, "torch": str(torch.__version__)},
    }
    assert result.evaluation == figures
    again = train(config, tmp_path / "run", resume=True, progress=False)
    assert (again.was_finished, again.evaluation) == (True, figures)


def test_equal_runs_say_the_same_of_themselves(tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "another" / "deeper"
    one, other = (
        train(tiny_run("ae", steps=2), folder, progress=False).tokenizer_dir for folder in folders
    )
    assert contents(one) == contents(other)


def test_nothing_of_the_machine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "hf_" + "A" * 34
    monkeypatch.setenv("HF_TOKEN", token)
    private = tmp_path / "private-place"
    data = write_split(private / "my photos", "parquet", [range(8), range(8, 16)])
    write_split(data, "parquet", [range(4)], split="test")
    start = train(tiny_run("ae", steps=1), private / "first", progress=False).tokenizer_dir
    config = tiny_run("ae", steps=1, data={"name": str(data)}, init_from=str(start))
    folder = train(config, private / "second", progress=False).tokenizer_dir
    texts = [(folder / name).read_text() for name in ("evaluation.json", "README.md")]
    training = json.loads(texts[0])["training"]
    assert training["data"]["name"] == json.loads(texts[0])["protocol"]["dataset"] == "my photos"
    assert training["data"]["source"] == "local"
    assert training["init_from"] == "first"  # a run's tokenizer is called by its run's name
    assert {"data.name=my photos", "train.init_from=first"} <= set(training["changes"])
    secrets = {token, "private-place", str(tmp_path), socket.gethostname(), os.getcwd()}
    secrets |= {tempfile.gettempdir(), os.path.expanduser("~"), f"/{getpass.getuser()}"}
    for text in texts:
        assert "my photos" in text
        assert not {secret for secret in secrets if secret in text}
        assert not re.search(r"(?<![\w:/.])/\w+/\w", text)
        assert not re.search(r"\bhf_\w{30}", text)
        assert not re.search(r"\b20\d\d-\d\d|\d\d:\d\d", text)


def test_a_card_that_people_wrote_in_stays_when_the_run_is_made_longer(tmp_path: Path) -> None:
    card = tmp_path / "run" / "tokenizer" / "README.md"
    train(tiny_run("ae", steps=1, optimizer={"lr": 1e-3}), tmp_path / "run", progress=False)
    card.write_text(card.read_text().replace("license: unknown", "license: mit") + "\nMine.\n")
    longer = tiny_run("ae", steps=3, optimizer={"lr": 1e-3})
    train(longer, tmp_path / "run", resume=True, progress=False)
    text = card.read_text()
    assert text.endswith("\nMine.\n")
    assert "\nlicense: mit\n" in text
    assert "\n| steps | 3 |\n" in text


@pytest.mark.slow
def test_ranks_are_told(root: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(dump_recipe(tiny_run("ae", steps=1)))
    arguments = [str(recipe), "--output-dir", str(tmp_path / "run")]
    run_two_ranks(root / "scripts" / "train.py", arguments)
    figures = json.loads((tmp_path / "run" / "tokenizer" / "evaluation.json").read_text())
    assert figures["training"]["ranks"] == 2
    assert "\n| processes | 2 |\n" in (tmp_path / "run" / "tokenizer" / "README.md").read_text()
