"""The README keeps its word: its examples run, its commands and files exist."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from torch.distributed.run import get_args_parser

from command_line import Run
from imagetok.config import load_recipe, recipe_names
from loopback_hub import LoopbackHub
from readme_blocks import README, Block, blocks, commands, marked, tree_paths

IMAGETOK = [sys.executable, "-c", "import sys; from imagetok.cli import main; sys.exit(main())"]
SHAPES = "builtin:shapes?count=64"
TINY = {"train.steps": "2", "train.batch_size": "4", "train.evaluation_images": "8"}


def shrink(words: Sequence[str]) -> list[str]:
    """A command of the README on little data, and training for two steps only."""
    small = [re.sub(r"(?<![\w:])builtin:shapes\b(?!\?)", SHAPES, word) for word in words]
    if small[:2] != ["imagetok", "train"] or "--dry-run" in small:
        return small
    kept = [word for word in small if word.split("=")[0] not in TINY]
    data = [] if any(word.startswith("data.name=") for word in kept) else [f"data.name={SHAPES}"]
    return [*kept, *data, *(f"{key}={value}" for key, value in TINY.items())]


def is_run(words: Sequence[str]) -> bool:
    """Whether a command is run; the others are checked for existing options only."""
    return words[0] == "imagetok" and words[1:2] != ["quickstart"]


@cache
def options(*command: str) -> frozenset[str]:
    """The options that `command --help` names."""
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    run = subprocess.run(
        [*command, "--help"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, f"{shlex.join(command)} --help fails: {run.stderr}"
    return frozenset(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", run.stdout))


def check_options(root: Path, words: list[str]) -> None:
    """Fail where a command, an option, a script or an extra of the README does not exist."""
    if words[:2] == ["accelerate", "launch"]:
        launch = launch_command_parser().parse_args(words[2:])
        words = ["python", launch.training_script, *launch.training_script_args]
    elif words[0] == "torchrun":
        launch = get_args_parser().parse_args(words[1:])
        words = ["python", launch.training_script, *launch.training_script_args]
    if words[0] == "imagetok":
        command, rest = [*IMAGETOK, *words[1:2]], words[2:]
    elif words[:2] == ["pip", "install"]:
        command, rest = [sys.executable, "-m", "pip", "install"], words[2:]
        check_install(root, rest)
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), f"there is no module {words[2]}"
        command, rest = [sys.executable, *words[1:3]], words[3:]
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (root / words[1]).is_file(), f"there is no script {words[1]}"
        command, rest = [sys.executable, str(root / words[1])], words[2:]
    else:
        pytest.fail(f"no test checks a command such as '{shlex.join(words)}'; add it here")
    unknown = {word.split("=")[0] for word in rest if word.startswith("-")} - options(*command)
    assert not unknown, f"'{shlex.join(words)}' has unknown options: {sorted(unknown)}"


def check_install(root: Path, words: Sequence[str]) -> None:
    """Fail where `pip install` names a constraints file or an extra that does not exist."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        if word.endswith(".txt"):
            assert (root / word).is_file(), f"there is no file {word}"
        if match := re.fullmatch(r".*\[(.*)\]", word):
            unknown = set(match.group(1).split(",")) - set(project["optional-dependencies"])
            assert not unknown, f"unknown extras: {sorted(unknown)}"


def run_imagetok(words: Sequence[str], run: Run) -> None:
    """Run a command line in this process."""
    ended = run(*words[1:])
    assert ended.code == 0, f"'{shlex.join(words)}' fails:\n{ended.out}{ended.err}"


def run_block(block: Block, run: Run, namespace: dict[str, object]) -> None:
    """Run a block of the README, sharing the names of Python blocks as one session does."""
    if block.language == "bash":
        for words in commands(block.text):
            if is_run(words):
                run_imagetok(shrink(words), run)
    elif block.language == "python":
        text = "\n" * block.line + block.text
        exec(compile(text, "README.md", "exec"), namespace)


@pytest.fixture(scope="session")
def readme() -> str:
    """The text of README.md."""
    return README.read_text(encoding="utf-8")


@pytest.fixture
def reader_folder(
    tmp_path: Path, loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Be in the folder of a reader who has run the quickstart and owns some images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", loopback_hub.token)
    rng = np.random.default_rng(0)
    # Sixty-four a split: a tenth that is chosen by a hash is not empty.
    for name in [f"photos/{split}/{i}.jpg" for split in ("train", "test") for i in range(64)]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (80, 96, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photo.jpg").write_bytes(path.read_bytes())
    pictures = {f"train/{i}.jpg": path.read_bytes() for i in range(4)}
    loopback_hub.create("user/pictures", "dataset", files=pictures)
    quickstart = ["imagetok", "train", "vqvae-shapes", "--output-dir", "imagetok-quickstart"]
    run_imagetok(shrink(quickstart), run)


@pytest.mark.slow
@pytest.mark.usefixtures("reader_folder")
def test_the_examples_run_in_order(readme: str, run: Run) -> None:
    found = [block for block in blocks(readme) if block.mark is None]
    assert {"python", "bash"} <= {block.language for block in found}
    namespace: dict[str, object] = {}
    for block in found:
        run_block(block, run, namespace)


def test_every_command_and_option_exists(root: Path, readme: str) -> None:
    found = [
        words
        for block in blocks(readme)
        if block.language == "bash"
        for words in commands(block.text)
    ]
    assert ["imagetok", "quickstart"] in found
    for words in found:
        check_options(root, words)


@pytest.mark.parametrize("guide", ["training.md", "hub.md"])
def test_commands_of_the_guides_exist_and_their_overrides_are_valid(root: Path, guide: str) -> None:
    text = (root / "docs" / guide).read_text(encoding="utf-8")
    found = [
        words
        for block in blocks(text)
        if block.language == "bash" and not block.text.startswith("#!")
        for words in commands(block.text)
        if words[0] != "tensorboard"
    ]
    assert len(found) >= 5
    for words in found:
        check_options(root, words)
        recipes = [word for word in words if word in recipe_names()]
        for recipe in recipes:
            load_recipe(recipe, [word for word in words if re.match(r"(data|train)\.", word)])


def test_no_block_escapes_the_tests(readme: str) -> None:
    for block in blocks(readme):
        assert block.language in {"bash", "python", "text", "yaml"}, f"line {block.line}"
        assert block.mark in {None, "main", "test", "tree"}, f"line {block.line}"
        assert block.language != "python" or block.mark is None, f"line {block.line}"


def test_ci_finds_the_two_commands_of_the_readme(readme: str) -> None:
    assert commands(marked(readme, "main").text)[-1] == ["imagetok", "quickstart"]
    assert commands(marked(readme, "test").text)[-1] == ["python", "-m", "pytest", "-n", "2"]


def test_the_readme_is_shorter_than_200_lines(readme: str) -> None:
    assert len(readme.splitlines()) < 200


def test_the_tree_names_existing_files_and_every_module(root: Path, readme: str) -> None:
    named = tree_paths(marked(readme, "tree").text)
    missing = [path for path in named if not list(root.glob(path.rstrip("/")))]
    assert not missing, f"the tree names what does not exist: {missing}"
    package = root / "tokenizers" / "imagetok"
    modules = {path.name for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/*.py")
    }
    absent = modules - {path.rstrip("/").split("/")[-1] for path in named}
    assert not absent, f"the tree lacks {sorted(absent)}"


def test_training_of_the_readme_is_shortened_and_other_data_is_kept() -> None:
    tiny = [f"{key}={value}" for key, value in TINY.items()]
    train = ["imagetok", "train", "r"]
    assert shrink([*train, "train.steps=9000"]) == [*train, f"data.name={SHAPES}", *tiny]
    assert shrink([*train, "data.name=photos"]) == [*train, "data.name=photos", *tiny]
    assert shrink([*train, "--dry-run"]) == [*train, "--dry-run"]
    evaluate = ["imagetok", "evaluate", "--dataset", "builtin:shapes", "--tokenizer", "user/name"]
    assert shrink(evaluate) == [*evaluate[:3], SHAPES, *evaluate[4:]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("accelerate launch --no-such 2 scripts/check_lower_bounds.py", "2"),
        ("torchrun --no-such 2 scripts/check_lower_bounds.py", "2"),
        ("torchrun --nproc_per_node 2 scripts/no_such.py", "no script scripts/no_such.py"),
        ("pip install --no-such .", r"unknown options: \['--no-such'\]"),
        ("pip install -c no-such.txt .", "no file no-such.txt"),
        ("pip install .[test,no-such]", r"unknown extras: \['no-such'\]"),
        ("python -m no_such", "no module no_such"),
        ("python -m pytest --no-such=1", r"unknown options: \['--no-such'\]"),
        ("make install", "no test checks a command such as 'make install'"),
    ],
)
def test_a_command_that_does_not_exist_is_found(root: Path, line: str, reason: str) -> None:
    with pytest.raises((AssertionError, SystemExit, pytest.fail.Exception), match=reason):
        check_options(root, shlex.split(line))


@pytest.mark.parametrize(
    "line",
    ['pip install -c constraints.txt -e ".[test]"', "python -m pytest -m slow --durations=3"],
)
def test_a_command_that_exists_passes(root: Path, line: str) -> None:
    check_options(root, shlex.split(line))


def test_blocks_of_one_language_share_their_names(run: Run) -> None:
    namespace: dict[str, object] = {}
    run_block(Block("python", None, 1, "x = 1\n"), run, namespace)
    run_block(Block("python", None, 9, "y = x\n"), run, namespace)
    assert namespace["y"] == 1
    with pytest.raises(ZeroDivisionError) as caught:
        run_block(Block("python", None, 9, "1 / 0\n"), run, namespace)
    assert caught.traceback[-1].lineno == 9
