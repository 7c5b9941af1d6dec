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
from readme_blocks import blocks
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


def edit_card(server: LoopbackHub) -> None:
    """Write above the generated block, as a person does in the browser."""
    text = server.read(REPO, CARD).decode()
    server.commit(REPO, {CARD: text.replace(hub.CARD_BEGIN, EDIT + hub.CARD_BEGIN)})


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


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_code_of_the_card_runs_as_it_is_written(
    logged_in: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = make_tokenizer(system)
    tokenizer.push_to_hub(REPO)
    card = logged_in.read(REPO, CARD).decode()
    (block,) = [block for block in blocks(card) if block.language == "python"]
    assert f'from_pretrained("{REPO}")' in block.text
    names: dict[str, Any] = {}
    exec(block.text, names)
    assert names["tok"].revision == logged_in.head(REPO)
    assert names["decoded"].size == (16, 16)


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


def test_pushing_again_makes_no_commit(logged_in: LoopbackHub, run: Run, trained: Path) -> None:
    run("push", trained, REPO)
    head = logged_in.head(REPO)
    assert run("push", trained, REPO).code == 0
    ImageTokenizer.from_pretrained(REPO).push_to_hub(REPO)
    assert logged_in.head(REPO) == head


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


def test_a_branch_is_pushed_to_and_loaded_from(
    logged_in: LoopbackHub, run: Run, saved: Path
) -> None:
    ended = run("push", saved, REPO, "--revision", "trial", "--commit-message", "Try it")
    assert ended.out == f"{logged_in.endpoint}/{REPO}/tree/trial\n"
    assert titles(logged_in, "trial") == ["Try it"]
    assert logged_in.files(REPO) == {}
    loaded = ImageTokenizer.from_pretrained(REPO, revision="trial")
    assert loaded.revision == logged_in.head(REPO, "trial")
    assert run("info", REPO, "--tokenizer-revision", "trial").code == 0


def test_a_pull_request_is_opened_and_its_address_printed(
    logged_in: LoopbackHub, run: Run, saved: Path
) -> None:
    logged_in.create(REPO)
    ended = run("push", saved, REPO, "--create-pr")
    assert ended.out == f"{logged_in.endpoint}/{REPO}/discussions/1\n"
    assert logged_in.files(REPO) == {}
    loaded = ImageTokenizer.from_pretrained(REPO, revision="refs/pr/1")
    assert loaded.fingerprint == make_tokenizer().fingerprint


def test_an_older_commit_stays_within_reach(logged_in: LoopbackHub) -> None:
    first = make_tokenizer(seed=0).push_to_hub(REPO)
    second = make_tokenizer(seed=1).push_to_hub(REPO)
    assert first.revision != second.revision
    for seed, revision in ((0, first.revision), (1, second.revision), (1, None)):
        loaded = ImageTokenizer.from_pretrained(REPO, revision=revision)
        assert loaded.fingerprint == make_tokenizer(seed=seed).fingerprint


# Cards and figures


def test_a_card_that_was_edited_on_the_hub_outlives_a_push_of_other_weights(
    logged_in: LoopbackHub, run: Run, trained: Path, saved: Path
) -> None:
    run("push", trained, REPO)
    edit_card(logged_in)
    assert run("push", saved, REPO).code == 0
    card = logged_in.read(REPO, CARD).decode()
    assert card.count(EDIT) == 1
    assert card.count(hub.CARD_BEGIN) == card.count(hub.CARD_END) == 1
    assert not re.search(r"\| PSNR.*\d+\.\d+ dB", card), "the figures are of other weights"
    assert logged_in.files(REPO).keys() == CORE


def test_what_a_person_wrote_into_the_card_here_goes_along(
    logged_in: LoopbackHub, run: Run, saved: Path
) -> None:
    text = (saved / CARD).read_text("utf-8")
    (saved / CARD).write_text(text.replace(hub.CARD_BEGIN, EDIT + hub.CARD_BEGIN), "utf-8")
    run("push", saved, REPO)
    card = logged_in.read(REPO, CARD).decode()
    assert card.count(EDIT) == 1
    assert f'from_pretrained("{REPO}")' in card


def test_figures_stay_here_once_the_weights_are_others(
    logged_in: LoopbackHub, trained: Path
) -> None:
    tokenizer = ImageTokenizer.from_pretrained(trained)
    with torch.no_grad():
        next(tokenizer.decoder.parameters()).add_(1)
    tokenizer.push_to_hub(REPO)
    assert logged_in.files(REPO).keys() == CORE
    assert not re.search(r"\| PSNR.*\d+\.\d+ dB", logged_in.read(REPO, CARD).decode())


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


def test_without_a_token_it_is_said_how_to_get_one(
    logged_in: LoopbackHub, run: Run, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_repository_of_others_is_not_written(
    logged_in: LoopbackHub, run: Run, saved: Path
) -> None:
    logged_in.create("stranger/tiny", files={"notes.txt": "theirs"})
    told(run("push", saved, "stranger/tiny"), 2, "stranger/tiny")
    assert logged_in.files("stranger/tiny") == {"notes.txt": b"theirs"}


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


# The cache


def test_a_cache_of_its_own_is_used_and_serves_without_the_network(
    logged_in: LoopbackHub, tmp_path: Path
) -> None:
    make_tokenizer().push_to_hub(REPO)
    loaded = ImageTokenizer.from_pretrained(REPO, cache_dir=tmp_path / "cache")
    assert loaded.origin is not None
    assert (tmp_path / "cache") in loaded.origin.folder.parents
    with pytest.raises(HubAccessError, match="local_files_only is set; load it once with"):
        ImageTokenizer.from_pretrained(REPO, local_files_only=True)
    with logged_in.recording() as requests:
        again = ImageTokenizer.from_pretrained(
            REPO, cache_dir=tmp_path / "cache", local_files_only=True
        )
    assert not requests
    assert again.revision == loaded.revision
    assert again.fingerprint == loaded.fingerprint


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
