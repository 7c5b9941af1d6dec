"""Tokenizers on the Hub, from end to end: what a user pushes is what the next user loads."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Ended, Run
from imagetok import ImageTokenizer, hub
from imagetok.build import build_parts
from imagetok.errors import HubAccessError, InvalidValueError
from imagetok.training import train
from loopback_hub import LoopbackHub
from tiny_data import png
from tiny_runs import DATA, SYSTEMS, contents, tiny_run

REPO = "user/tiny"
CARD = "README.md"
CORE = {hub.MODEL_FILE, hub.CONFIG_FILE, CARD}
IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
EDIT = "# Min båt\n\nWritten by a person.\n\n"


def make_tokenizer(system: str = "vqvae", seed: int = 0, **changes: Any) -> ImageTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ImageTokenizer.from_config(tiny_run(system, **changes).tokenizer)


def encoded(tokenizer: ImageTokenizer) -> torch.Tensor:
    """Ids, or the latents of a continuous tokenizer."""
    if tokenizer.config is not None and tokenizer.config.bottleneck.type in ("vq", "gumbel"):
        return tokenizer.encode(IMAGES)
    return tokenizer.encode_latents(IMAGES)


def titles(server: LoopbackHub, revision: str = "main") -> list[str]:
    """Titles of the commits but the first, oldest first."""
    return [commit.title for commit in server.commits(REPO, revision)][-2::-1]


def told(ended: Ended, code: int, *words: str) -> None:
    """Check that a command failed in one line, besides warnings, that has these words."""
    assert ended.code == code, ended
    assert ended.out == ""
    lines = [line for line in ended.err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("imagetok: ")
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    return train(tiny_run("vqvae", steps=2), folder, progress=False).tokenizer_dir


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """The folder of a trained tokenizer with figures and an image."""
    return shutil.copytree(trained_once, tmp_path / "trained")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a tokenizer that was not measured."""
    make_tokenizer().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# There and back


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_pushed_comes_back_the_same(logged_in: LoopbackHub, system: str) -> None:
    tokenizer = make_tokenizer(system)
    pushed = tokenizer.push_to_hub(REPO)
    loaded = ImageTokenizer.from_pretrained(REPO)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert torch.equal(encoded(loaded), encoded(tokenizer))
    assert loaded.config == tokenizer.config
    assert loaded.revision == pushed.revision == logged_in.head(REPO)
    assert loaded.origin is not None
    assert (loaded.origin.name, loaded.origin.revision) == (REPO, pushed.revision)


def test_one_commit_brings_all_and_its_address_is_printed(
    logged_in: LoopbackHub, run: Run, trained: Path
) -> None:
    ended = run("push", trained, REPO)
    assert (ended.code, ended.out) == (0, f"{logged_in.endpoint}/{REPO}\n")
    assert logged_in.token not in ended.out + ended.err
    assert len(titles(logged_in)) == 1
    on_hub, here = logged_in.files(REPO), contents(trained)
    assert on_hub.keys() == here.keys() == {*CORE, hub.EVALUATION_FILE, hub.PICTURES_FILE}
    assert {name for name in here if on_hub[name] != here[name]} == {CARD}
    assert f"# `{REPO}`" in on_hub[CARD].decode()
    assert re.search(r"\| PSNR.*\d+\.\d+ dB", on_hub[CARD].decode())
    assert run("push", trained, REPO).code == 0
    ImageTokenizer.from_pretrained(REPO).push_to_hub(REPO)
    assert len(titles(logged_in)) == 1, "nothing has changed since"


def test_a_subfolder_holds_a_tokenizer_of_its_own(
    logged_in: LoopbackHub, saved: Path, tmp_path: Path
) -> None:
    files = {f"models/small/{name}": data for name, data in contents(saved).items()}
    logged_in.create(REPO, files=files)
    loaded = ImageTokenizer.from_pretrained(REPO, subfolder="models/small")
    assert loaded.fingerprint == make_tokenizer().fingerprint
    with pytest.raises(HubAccessError, match="no tokenizer of imagetok lies there"):
        ImageTokenizer.from_pretrained(REPO)
    shutil.copytree(saved, tmp_path / "here" / "small")
    local = ImageTokenizer.from_pretrained(tmp_path / "here", subfolder="small")
    assert local.fingerprint == loaded.fingerprint


# Where to


def test_a_private_repository_opens_with_its_token_only(
    logged_in: LoopbackHub, run: Run, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("push", saved, REPO, "--private").code == 0
    assert logged_in.repository(REPO).private
    assert ImageTokenizer.from_pretrained(REPO).revision == logged_in.head(REPO)
    with pytest.raises(HubAccessError, match="log in with `hf auth login`"):
        ImageTokenizer.from_pretrained(REPO, token=False)
    monkeypatch.delenv("HF_TOKEN")
    told(run("info", REPO), 2, REPO, "log in with `hf auth login`, set HF_TOKEN")


@pytest.mark.parametrize("revision", ["trials/one", "refs/pr/1"])
def test_options_say_where_to_push(
    logged_in: LoopbackHub, run: Run, saved: Path, revision: str
) -> None:
    logged_in.create(REPO)
    options = ["--create-pr"] if revision == "refs/pr/1" else ["--revision", revision]
    page = "discussions/1" if revision == "refs/pr/1" else "tree/trials%2Fone"
    ended = run("push", saved, REPO, *options, "--commit-message", "Try it")
    assert ended.out == f"{logged_in.endpoint}/{REPO}/{page}\n"
    assert titles(logged_in, revision) == ["Try it"]
    assert logged_in.files(REPO) == {}
    loaded = ImageTokenizer.from_pretrained(REPO, revision=revision)
    assert loaded.revision == logged_in.head(REPO, revision)
    assert loaded.fingerprint == make_tokenizer().fingerprint
    assert run("info", REPO, "--tokenizer-revision", revision).code == 0


# Cards and figures


def test_what_people_wrote_outlives_a_push_of_other_weights_and_figures_do_not(
    logged_in: LoopbackHub, run: Run, trained: Path, saved: Path
) -> None:
    run("push", trained, REPO)
    text = logged_in.read(REPO, CARD).decode()
    logged_in.commit(REPO, {CARD: text.replace(hub.CARD_BEGIN, EDIT + hub.CARD_BEGIN)})
    changed = ImageTokenizer.from_pretrained(REPO)
    with torch.no_grad():
        next(changed.decoder.parameters()).add_(1)
    for push in (lambda: run("push", saved, REPO), lambda: changed.push_to_hub(REPO)):
        push()
        card = logged_in.read(REPO, CARD).decode()
        assert card.count(EDIT) == card.count(hub.CARD_BEGIN) == card.count(hub.CARD_END) == 1
        assert not re.search(r"\| PSNR.*\d+\.\d+ dB", card), "the figures are of other weights"
        assert logged_in.files(REPO).keys() == CORE
    text = (saved / CARD).read_text("utf-8")
    (saved / CARD).write_text(text.replace(hub.CARD_BEGIN, EDIT + hub.CARD_BEGIN), "utf-8")
    run("push", saved, "user/copy")
    card = logged_in.read("user/copy", CARD).decode()
    assert card.count(EDIT) == 1, "what is written here goes along"
    assert 'from_pretrained("user/copy")' in card


def test_a_tokenizer_goes_on_to_another_repository_with_its_figures(
    logged_in: LoopbackHub, run: Run, trained: Path
) -> None:
    run("push", trained, REPO)
    ImageTokenizer.from_pretrained(REPO).push_to_hub("user/copy")
    one, other = logged_in.files(REPO), logged_in.files("user/copy")
    assert {name for name in one if one[name] != other[name]} == {CARD}
    assert other[CARD].decode() == one[CARD].decode().replace(REPO, "user/copy")


# Refusals


def test_a_tokenizer_put_together_by_hand_is_not_pushed(logged_in: LoopbackHub) -> None:
    parts = build_parts(tiny_run("vqvae").tokenizer)
    made = ImageTokenizer(
        parts.preprocessor, parts.encoder, parts.bottleneck, parts.decoder, parts.likelihood
    )
    with pytest.raises(InvalidValueError, match="has no config"):
        made.push_to_hub(REPO)
    assert not logged_in.requests


def test_it_is_said_why_a_push_is_not_allowed(
    logged_in: LoopbackHub, run: Run, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged_in.create("stranger/tiny", files={"notes.txt": "theirs"})
    told(run("push", saved, "stranger/tiny"), 2, "stranger/tiny")
    assert logged_in.files("stranger/tiny") == {"notes.txt": b"theirs"}
    monkeypatch.delenv("HF_TOKEN")
    told(run("push", saved, REPO), 2, REPO, "log in with `hf auth login`, set HF_TOKEN")
    assert not logged_in.has(REPO)


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_a_token_is_never_shown(
    logged_in: LoopbackHub,
    run: Run,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    debug: list[str],
) -> None:
    for token in ("hf_unknownToTheHub", logged_in.read_token, "hf_with a space"):
        monkeypatch.setenv("HF_TOKEN", token)
        ended = run("push", saved, REPO, *debug)
        assert ended.code == 2
        assert token not in ended.out + ended.err
    assert not logged_in.has(REPO)


def test_a_hub_that_is_down_is_told_with_code_1(
    logged_in: LoopbackHub, run: Run, saved: Path
) -> None:
    logged_in.fail(status=503, times=None)
    for arguments in (("push", saved, REPO), ("info", REPO)):
        told(run(*arguments), 1, "the Hub answered 503", "try later")


# Folders and names


def test_a_folder_wins_over_a_repository_of_its_name(
    logged_in: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tokenizer(seed=0).push_to_hub(REPO)
    monkeypatch.chdir(tmp_path)
    make_tokenizer(seed=1).save_pretrained(REPO)
    with logged_in.recording() as requests:
        loaded = ImageTokenizer.from_pretrained(REPO)
    assert not requests
    assert loaded.revision is None
    assert loaded.fingerprint == make_tokenizer(seed=1).fingerprint


def test_a_name_of_neither_is_told_to_be_neither(logged_in: LoopbackHub, run: Run) -> None:
    with pytest.raises(HubAccessError) as caught:
        ImageTokenizer.from_pretrained("runs/tokenizer")
    assert "no such repository" in str(caught.value)
    assert "nor is there a folder 'runs/tokenizer' here" in str(caught.value)
    with pytest.raises(HubAccessError, match=r"not in the cache .* nor is there a folder"):
        ImageTokenizer.from_pretrained("runs/tokenizer", local_files_only=True)
    for command in (
        ("info", "runs/tokenizer"),
        ("evaluate", "--tokenizer", "runs/tokenizer", "--dataset", DATA),
        ("reconstruct", "a.png", "--tokenizer", "runs/tokenizer"),
    ):
        told(run(*command), 2, "nor is there a folder 'runs/tokenizer' here")


def test_a_revision_is_of_repositories_only(loopback_hub: LoopbackHub, saved: Path) -> None:
    with pytest.raises(InvalidValueError, match="is of a repository on the Hub"):
        ImageTokenizer.from_pretrained(saved, revision="main")


# The commands


def test_info_tells_of_the_hub_what_it_tells_of_a_folder(
    logged_in: LoopbackHub, run: Run, trained: Path
) -> None:
    run("push", trained, REPO)
    here = json.loads(run("info", trained, "--json").out)
    there = json.loads(run("info", REPO, "--json").out)
    assert there.pop("revision") == logged_in.head(REPO)
    assert there == here
    lines = run("info", trained).out.splitlines()[1:]
    added = [line for line in run("info", REPO).out.splitlines()[1:] if line not in lines]
    assert [line.split() for line in added] == [["revision", logged_in.head(REPO)]]


def test_evaluate_measures_the_same_on_the_hub_as_in_a_folder(
    logged_in: LoopbackHub, run: Run, trained: Path, tmp_path: Path
) -> None:
    run("push", trained, REPO)
    told_of = []
    for number, tokenizer in enumerate((trained, REPO)):
        path = tmp_path / f"{number}.json"
        options = ("--dataset", DATA, "--split", "test[:8]", "--device", "cpu", "--json", path)
        ended = run("evaluate", "--tokenizer", tokenizer, *options)
        assert ended.code == 0, ended.err
        told_of.append(json.loads(path.read_text()))
    assert told_of[0] == told_of[1]


def test_reconstruct_takes_a_tokenizer_of_the_hub(
    logged_in: LoopbackHub, run: Run, saved: Path, tmp_path: Path
) -> None:
    old = run("push", saved, REPO) and logged_in.head(REPO)
    make_tokenizer(seed=1).push_to_hub(REPO)
    (tmp_path / "a.png").write_bytes(png(3))
    drawn = []
    for options in ((saved,), (REPO, "--tokenizer-revision", old), (REPO,)):
        output = tmp_path / f"{len(drawn)}.png"
        ended = run(
            *("reconstruct", tmp_path / "a.png", "--output", output, "--device", "cpu"),
            *("--tokenizer", *options),
        )
        assert ended.code == 0, ended.err
        drawn.append(output.read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]
