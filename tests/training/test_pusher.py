"""Runs that push to the Hub, and runs that start from it."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from threading import Event
from threading import enumerate as enumerate_threads
from typing import Any

import pytest
import yaml

from command_line import Run
from imagetok import ImageTokenizer, hub
from imagetok.config import RunConfig
from imagetok.hub import Pushed
from imagetok.training import PushPlan, train
from imagetok.training.initial_model import load_run
from imagetok.training.pusher import Pusher
from imagetok.training.step import Stepper
from loopback_hub import LoopbackHub
from tiny_runs import contents, run_two_ranks, tiny_run, tiny_values

REPO = "user/tiny"
TIMED = {"metrics.jsonl", "tokenizer/evaluation.json"}
MEASURED = {hub.EVALUATION_FILE, hub.PICTURES_FILE}
FILES = {"README.md", hub.MODEL_FILE, hub.CONFIG_FILE} | MEASURED


pytestmark = pytest.mark.usefixtures("logged_in")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of four steps."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values("vqvae")))
    return path


def titles(server: LoopbackHub) -> list[str]:
    """Titles of the commits but the first, oldest first."""
    return [commit.title for commit in server.commits(REPO)][-2::-1]


def config() -> RunConfig:
    return tiny_run("vqvae")


# At the end


def test_a_run_pushes_its_tokenizer_with_its_figures(
    logged_in: LoopbackHub, tmp_path: Path
) -> None:
    result = train(config(), tmp_path / "run", push=PushPlan(REPO), progress=False)
    assert len(titles(logged_in)) == 1
    files, here = logged_in.files(REPO), contents(result.tokenizer_dir)
    assert files.keys() == here.keys() == FILES
    assert {name for name in here if files[name] != here[name]} == {"README.md"}
    assert re.search(r"\| PSNR.*\d+\.\d+ dB", files["README.md"].decode())
    assert result.pushed is not None
    assert result.pushed.url == f"{logged_in.endpoint}/{REPO}"
    assert result.pushed.revision == logged_in.head(REPO)


def test_the_command_prints_the_address(
    logged_in: LoopbackHub, run: Run, recipe: Path, tmp_path: Path
) -> None:
    ended = run("train", recipe, "--output-dir", tmp_path / "run", "--push-to", REPO, "--private")
    assert ended.code == 0, ended.err
    last = ended.out.splitlines()[-1]
    assert last == f"pushed: {logged_in.endpoint}/{REPO}"
    folder = tmp_path / "run" / "tokenizer"
    (following,) = re.findall("next: .*", ended.err)
    assert following.startswith(f"next: imagetok tokenize --tokenizer {folder} --dataset 'builtin:")
    assert logged_in.repository(REPO).private
    assert logged_in.token not in ended.out + ended.err


def test_a_finished_run_is_pushed_and_not_trained_again(
    logged_in: LoopbackHub,
    run: Run,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("train", recipe, "--output-dir", tmp_path / "run", "--resume")
    assert run(*arguments).code == 0
    before = contents(tmp_path / "run")
    monkeypatch.setattr(Stepper, "step", None)
    ended = run(*arguments, "--push-to", REPO)
    assert ended.code == 0, ended.err
    assert contents(tmp_path / "run") == before
    assert logged_in.files(REPO).keys() == FILES


# On the way


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every push end before the training goes on, so that none is left out."""
    offer = Pusher.offer

    def offer_and_wait(self: Pusher, tokenizer: ImageTokenizer, done: int) -> None:
        offer(self, tokenizer, done)
        if self._thread is not None:
            self._thread.join()

    monkeypatch.setattr(Pusher, "offer", offer_and_wait)


@pytest.mark.usefixtures("one_by_one")
def test_pushes_on_the_way_name_their_step_and_leave_the_run_as_it_is(
    logged_in: LoopbackHub, tmp_path: Path
) -> None:
    alone, pushing = tmp_path / "alone", tmp_path / "pushing"
    train(config(), alone, progress=False)
    train(config(), pushing, push=PushPlan(REPO, every=1), progress=False)
    told = [f"Step {step} of 4" for step in (1, 2, 3)]
    assert titles(logged_in) == [*told, "Push tokenizer with imagetok"]
    one, other = contents(alone), contents(pushing)
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} <= TIMED
    pushed = [commit.sha for commit in logged_in.commits(REPO)[:-1]]
    assert logged_in.files(REPO, pushed[0]).keys() == FILES
    assert all(logged_in.files(REPO, sha).keys() == FILES - MEASURED for sha in pushed[1:])
    loaded = [ImageTokenizer.from_pretrained(REPO, revision=sha).fingerprint for sha in pushed]
    assert len(set(loaded)) == 4
    assert loaded[0] == ImageTokenizer.from_pretrained(pushing / "tokenizer").fingerprint


def test_a_push_that_is_due_while_another_goes_on_is_left_out_and_told(
    logged_in: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    last, step = Event(), Stepper.step

    def note_last(self: Stepper, number: int, *rest: Any) -> Any:
        if number == 3:
            last.set()
        return step(self, number, *rest)

    monkeypatch.setattr(Stepper, "step", note_last)
    logged_in.fail(path="/commit/", before=lambda: last.wait(60))
    train(config(), tmp_path / "run", push=PushPlan(REPO, every=1), progress=False)
    assert titles(logged_in) == ["Step 1 of 4", "Push tokenizer with imagetok"]
    for left_out in (2, 3):
        assert f"step {left_out} is not pushed to {REPO}" in caplog.text


@pytest.mark.usefixtures("one_by_one")
def test_what_fails_on_the_way_is_told_and_the_training_goes_on(
    logged_in: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    push = ImageTokenizer.push_to_hub

    def break_at_two(self: ImageTokenizer, repo_id: str, **options: Any) -> Pushed:
        if options.get("commit_message") == "Step 2 of 4":
            raise KeyError("a mistake in a library")
        return push(self, repo_id, **options)

    monkeypatch.setattr(ImageTokenizer, "push_to_hub", break_at_two)
    logged_in.fail(path="/commit/", status=403)
    result = train(config(), tmp_path / "run", push=PushPlan(REPO, every=1), progress=False)
    assert titles(logged_in) == ["Step 3 of 4", "Push tokenizer with imagetok"]
    for step in (1, 2):
        assert f"step {step} was not pushed, training goes on" in caplog.text
    assert result.pushed is not None


def test_a_push_that_never_ends_is_left_behind_and_the_run_ends(
    logged_in: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("imagetok.training.pusher.PATIENCE", 0.1)
    push, over = ImageTokenizer.push_to_hub, Event()

    def hang_at_one(self: ImageTokenizer, repo_id: str, **options: Any) -> Pushed:
        if options.get("commit_message") == "Step 1 of 4":
            over.wait(60)
        return push(self, repo_id, **options)

    monkeypatch.setattr(ImageTokenizer, "push_to_hub", hang_at_one)
    result = train(config(), tmp_path / "run", push=PushPlan(REPO, every=1), progress=False)
    pending = [thread for thread in enumerate_threads() if thread.name == "imagetok-push"]
    assert titles(logged_in) == ["Push tokenizer with imagetok"]
    assert result.pushed is not None
    assert "a push did not end in 0 s and is left behind" in caplog.text
    assert [thread.daemon for thread in pending] == [True]
    over.set()
    pending[0].join()


def test_a_run_that_is_stopped_does_not_wait_for_a_push(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagetok.training.pusher.PATIENCE", 60.0)
    over, hanging = Event(), Event()

    def hang(self: ImageTokenizer, repo_id: str, **options: Any) -> None:
        hanging.set()
        over.wait(10)

    monkeypatch.setattr(ImageTokenizer, "push_to_hub", hang)
    tokenizer = ImageTokenizer.from_config(config().tokenizer)
    with suppress(KeyboardInterrupt), Pusher(PushPlan(REPO, every=1), 4) as pusher:
        pusher.offer(tokenizer, 1)
        assert hanging.wait(30)
        raise KeyboardInterrupt
    assert not over.is_set()
    pending = [thread for thread in enumerate_threads() if thread.name == "imagetok-push"]
    assert [thread.is_alive() for thread in pending] == [True]
    over.set()
    pending[0].join()


# Refusals


REFUSED: dict[str, tuple[str, str]] = {
    "no token": ("", "log in with `hf auth login`, set HF_TOKEN"),
    "a token that reads": (LoopbackHub.read_token, "/settings/tokens"),
    "a token of somebody else": (LoopbackHub.stranger_token, "/settings/tokens"),
    "no token of the Hub": ("hf_unknown", "does not take the token"),
}


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_who_may_not_push_is_told_before_the_first_step(
    logged_in: LoopbackHub,
    run: Run,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    exists: bool,
) -> None:
    token, words = REFUSED[case]
    if exists:
        logged_in.create(REPO)
    monkeypatch.setenv("HF_TOKEN", token)
    if not token:
        monkeypatch.delenv("HF_TOKEN")
    ended = run("train", recipe, "--output-dir", tmp_path / "run", "--push-to", REPO)
    assert ended.code == 2, ended
    assert words in ended.last_line
    assert not token or token not in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--push-to", "tiny"), "expected user/name"),
        (("--push-every", "2"), "--push-to"),
        (("--push-to", REPO, "--push-every", "0"), "--push-every"),
        (("--push-to", REPO, "--private"), "is public"),
    ],
)
def test_what_cannot_be_pushed_is_told_before_the_first_step(
    logged_in: LoopbackHub,
    run: Run,
    recipe: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    words: str,
) -> None:
    logged_in.create(REPO)
    ended = run("train", recipe, "--output-dir", tmp_path / "run", *options)
    assert ended.code == 2, ended
    assert words in ended.last_line
    assert not (tmp_path / "run").exists()


def test_a_hub_that_refuses_at_the_end_leaves_the_run_whole_and_says_how_to_push_it(
    logged_in: LoopbackHub,
    run: Run,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    logged_in.fail(path="/commit/", status=403, times=None)
    ended = run("train", recipe, "--output-dir", folder, "--push-to", REPO)
    assert ended.code == 1, ended
    command = f"imagetok push {folder / 'tokenizer'} {REPO}"
    assert f"the run is done and not pushed: committing to {REPO}: " in ended.last_line
    assert ended.last_line.endswith(f"`{command}` tries again")
    assert contents(folder / "tokenizer").keys() == FILES
    monkeypatch.setattr(logged_in, "_faults", [])
    assert run(*command.split()[1:]).code == 0
    assert logged_in.files(REPO).keys() == FILES


# From the Hub


def test_a_run_starts_from_a_tokenizer_of_the_hub_as_from_its_folder(
    logged_in: LoopbackHub, tmp_path: Path
) -> None:
    first = train(config(), tmp_path / "first", push=PushPlan(REPO), progress=False)
    recipe = tmp_path / "further.yaml"
    values = tiny_values("vqvae", init_from=REPO, freeze=["encoder", "bottleneck"])
    del values["tokenizer"]
    recipe.write_text(yaml.safe_dump(values))
    left = []
    for start in (first.tokenizer_dir, REPO):
        further = load_run(str(recipe), [f"train.init_from={start}"])
        assert further.tokenizer == config().tokenizer
        result = train(further, tmp_path / f"{len(left)}", progress=False)
        left.append(contents(result.tokenizer_dir)[hub.MODEL_FILE])
    assert left[0] == left[1]
    assert left[0] != contents(first.tokenizer_dir)[hub.MODEL_FILE]


def test_a_start_that_is_nowhere_is_told_to_be_nowhere(
    logged_in: LoopbackHub, run: Run, recipe: Path, tmp_path: Path
) -> None:
    start = "train.init_from=runs/nothing"
    ended = run("train", recipe, start, "--output-dir", tmp_path / "run")
    assert ended.code == 2
    assert "nor is there a folder 'runs/nothing' here" in ended.last_line
    assert not (tmp_path / "run").exists()


# Ranks


@pytest.mark.slow
def test_of_two_ranks_one_pushes(
    logged_in: LoopbackHub, root: Path, recipe: Path, tmp_path: Path
) -> None:
    options = ("--push-to", REPO, "--push-every", "3")
    ended = run_two_ranks(
        root / "scripts" / "train.py",
        [str(recipe), "--output-dir", f"{tmp_path / 'run'}", *options],
    )
    assert titles(logged_in) == ["Step 3 of 4", "Push tokenizer with imagetok"]
    assert ended.stdout.count("pushed: ") == 1
    assert logged_in.files(REPO).keys() == FILES
