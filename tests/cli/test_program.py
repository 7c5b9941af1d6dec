"""The command line as a user meets it: what it prints, where, and the code that it ends with."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import imagetok
from command_line import Ended, Run
from imagetok.config import load_recipe, recipe_names
from imagetok.errors import (
    ImagetokError,
    Stopped,
    TrainingError,
    UnreadableFileError,
    UnwritableFileError,
)
from imagetok.shards import read_job
from imagetok.training import initial_model, train
from tiny_runs import DATA, contents, tiny_run, tiny_values

COMMANDS = (
    *("quickstart", "train", "evaluate", "reconstruct", "encode", "info"),
    *("push", "push-dataset"),
)
OPTIONS = {
    "quickstart": {"--system", "--output-dir"},
    "train": {
        *("--output-dir", "--resume", "--dry-run", "--push-to", "--push-every", "--private"),
        "--import",
    },
    "evaluate": {
        *("--tokenizer", "--dataset", "--split", "--subset", "--revision", "--image-column"),
        *("--batch-size", "--device", "--dtype", "--json", "--import"),
    },
    "reconstruct": {"--tokenizer", "--output", "--device", "--dtype", "--import"},
    "encode": {"--tokenizer", "--output", "--device", "--dtype", "--import"},
    "info": {"--json", "--tokenizer-revision", "--import"},
    "push": {"--private", "--revision", "--commit-message", "--create-pr", "--import"},
    "push-dataset": {"--private", "--revision", "--commit-message", "--create-pr", "--replace"},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two steps."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values("vqvae", steps=2)))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained tokenizer."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return train(tiny_run("vqvae", steps=2), folder, progress=False).tokenizer_dir


def refused(ended: Ended, *words: str) -> str:
    """Check a refusal of arguments or input: code 2, one or two lines, no traceback."""
    assert ended.code == 2, ended
    assert 1 <= len(ended.lines) <= 2, ended.err
    message = ended.lines[-1]
    assert message.startswith("imagetok: ")
    for word in words:
        assert word in message
    return message


# Help


def test_without_arguments_the_commands_are_shown(run: Run) -> None:
    ended = run()
    assert ended.code == 0
    assert all(command in ended.out for command in COMMANDS)
    assert ended == run("--help") == run("-h")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_every_option(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERMINAL_WIDTH", "250")
    ended = run(command, "--help")
    assert ended.code == 0
    for option in OPTIONS[command]:
        (line,) = re.findall(rf"^\W*{option} .*$", ended.out, re.MULTILINE)
        explanation = re.sub(r"<.*?>", "", line.split(option)[1])
        assert len(re.findall(r"[A-Za-z]{2,}", explanation)) >= 2, line
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", ended.out)) - {"--help"}
    assert OPTIONS[command] <= options


def test_help_of_train_names_the_recipes_and_the_launcher(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERMINAL_WIDTH", "250")
    text = re.sub(r"[\s│]", "", run("train", "--help").out)  # however the lines are broken
    for words in (*recipe_names(), "accelerate launch scripts/train.py", "KEY.PATH=VALUE"):
        assert words.replace(" ", "") in text


def test_the_version_is_told(run: Run) -> None:
    assert run("--version").out == f"imagetok {imagetok.__version__}\n"


# Refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], ["No such command 'bogus'", "`imagetok --help`"]),
        (["train"], ["Missing argument", "`imagetok train --help`"]),
        (["train", "nope"], ["unknown recipe 'nope'", "vqvae-shapes", ".yaml file"]),
        (["train", "nope.yaml"], ["cannot read the recipe 'nope.yaml'", "No such file"]),
        (["train", "ae-shapes"], ["--output-dir", "say where to write"]),
        (["train", "ae-shapes", "--bogus"], ["No such option", "--bogus"]),
        (["train", "ae-shapes", "steps"], ["'steps' is not of the form key.path=value"]),
        (["train", "ae-shapes", "train.lr=1"], ["unknown key 'train.lr'", "optimizer"]),
        (["train", "ae-shapes", "train.steps=many"], ["train.steps", "'many'"]),
        (["train", "ae-shapes", "data.flip=[1"], ["'data.flip=[1' is not valid YAML"]),
        (["evaluate", "--tokenizer", "x"], ["Missing option", "--dataset"]),
        (
            ["evaluate", "--tokenizer", "nope", "--dataset", DATA],
            ["'nope' does not exist", "a folder that a tokenizer was saved to"],
        ),
        (
            ["evaluate", "--tokenizer", "x", "--dataset", DATA, "--batch-size", "0"],
            ["--batch-size"],
        ),
        (
            ["evaluate", "--tokenizer", "x", "--dataset", DATA, "--batch-size", "1.5"],
            ["'--batch-size': found '1.5'; expected an integer;"],
        ),
        (["info", "nope"], ["'nope' does not exist"]),
        (["quickstart", "--system", "gan"], ["unknown system 'gan'", "vqvae, dvae, vae, ae"]),
    ],
)
def test_bad_arguments_end_with_code_2_and_say_what_to_do(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str],
    words: Sequence[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_bad_data_ends_with_code_2(run: Run, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for override, words in {
        "data.name=builtin:photos": ["unknown built-in dataset", "builtin:digits, builtin:shapes"],
        "data.name=./nowhere": ["there is no file or folder './nowhere'"],
        "data.split=nope": ["has no split 'nope'; its splits are: train, test"],
        "train.loss_weights.loss/kl=1": ["loss/kl", "loss/commitment, loss/reconstruction"],
    }.items():
        refused(run("train", recipe, override, "--output-dir", out), *words)
    assert not out.exists()


def test_bad_input_of_evaluate_ends_with_code_2(run: Run, tokenizer: Path, tmp_path: Path) -> None:
    start = ("evaluate", "--tokenizer", tokenizer, "--dataset")
    refused(run(*start, DATA, "--split", "nope"), "has no split 'nope'")
    refused(run(*start, DATA, "--device", "gpu9"), "there is no device 'gpu9'")
    refused(run(*start, DATA, "--dtype", "int8"), "unknown dtype 'int8'", "float32, bfloat16")
    refused(run(*start, "nowhere/at/all"), "there is no file or folder 'nowhere/at/all'")
    missing = tmp_path / "missing" / "figures.json"
    refused(run(*start, DATA, "--json", missing), "there is no folder", "missing")


def test_a_damaged_tokenizer_is_named(run: Run, tokenizer: Path, tmp_path: Path) -> None:
    content = bytearray((tokenizer / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(run("info", tmp_path), "model.safetensors", "damaged")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ImagetokError("text"), 1),
        (TrainingError("text"), 1),
        (UnwritableFileError("text"), 1),
        (UnreadableFileError("text"), 2),
        (RuntimeError("text"), 1),
        (ValueError("text"), 1),
        (KeyError("text"), 1),
    ],
)
def test_errors_end_with_their_code_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(initial_model, "load_run", fail)
    ended = run("train", "ae-shapes")
    assert ended.code == code
    (line,) = ended.lines
    assert "text" in line
    foreign = not isinstance(error, ImagetokError)
    assert line.startswith(f"imagetok: {type(error).__name__}" if foreign else "imagetok: text")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (Stopped(signal.SIGTERM, 3), 143, "SIGTERM stopped the run after step 3, whose state is"),
        (Stopped(signal.SIGUSR1, 3), 138, "SIGUSR1 stopped the run after step 3, whose state is"),
    ],
)
def test_what_a_signal_stops_ends_with_its_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Stopped, code: int, words: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(initial_model, "load_run", fail)
    ended = run("train", "ae-shapes")
    assert ended.code == code
    (line,) = ended.lines
    assert line.startswith(f"imagetok: {words}")


def test_an_interrupt_where_nothing_is_to_be_saved_ends_quietly(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(initial_model, "load_run", fail)
    ended = run("train", "ae-shapes")
    assert (ended.code, ended.lines) == (130, [])


def test_a_message_of_several_lines_is_told_in_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ImagetokError("first\n   second")

    monkeypatch.setattr(initial_model, "load_run", fail)
    assert run("train", "ae-shapes").lines == ["imagetok: first second"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_traceback_wherever_it_stands(run: Run, place: int) -> None:
    arguments = ["train", "nope"]
    arguments.insert(place, "--debug")
    ended = run(*arguments)
    assert ended.code == 2
    assert "Traceback (most recent call last)" in ended.err
    assert "ConfigError" in ended.err
    assert ended.lines[-1].startswith("imagetok: unknown recipe")
    assert "Traceback" not in run("train", "nope").err


# Modules with parts of a user's own

IMPORTING = (
    ("train", "ae-shapes", "--dry-run"),
    ("evaluate", "--tokenizer", "nowhere", "--dataset", DATA),
    ("reconstruct", "a.png", "--tokenizer", "nowhere"),
    ("info", "nowhere"),
    ("tokenize", "--tokenizer", "nowhere", "--dataset", DATA, "--output-dir", "out"),
    ("verify", "nowhere", "--deep"),
    ("decode", "nowhere"),
    ("push", "nowhere", "user/name"),
)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python imports from; what was imported is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("parts_"):
            del sys.modules[name]


@pytest.mark.parametrize("command", IMPORTING, ids=lambda command: command[0])
def test_modules_are_imported_in_order_before_anything_is_read(
    run: Run, modules: Path, command: Sequence[str]
) -> None:
    (modules / "parts_first.py").write_text("print('first')\n")
    (modules / "parts_second.py").write_text("import parts_first\nprint('second')\n")
    ended = run(*command, "--import", "parts_first", "--import", "parts_second")
    assert ended.out.startswith("first\nsecond\n")
    if command[0] != "train":
        assert ended.code == 2, ended  # what it reads is not there


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
        ("raise RuntimeError('no luck')", "no luck"),
        ("def", "invalid syntax"),
        (None, "No module named 'parts_broken'"),
    ],
)
@pytest.mark.parametrize("command", IMPORTING, ids=lambda command: command[0])
def test_a_module_that_cannot_be_imported_is_named_with_the_reason(
    run: Run, modules: Path, command: Sequence[str], content: str | None, reason: str
) -> None:
    if content is not None:
        (modules / "parts_broken.py").write_text(content)
    refused(run(*command, "--import", "parts_broken"), "parts_broken", reason)


def test_the_scripts_import_modules_too(root: Path, modules: Path) -> None:
    (modules / "parts_printed.py").write_text("print('imported')\n")
    ended = subprocess.run(
        [
            *(sys.executable, root / "scripts" / "train.py", "ae-shapes", "--dry-run"),
            *("--import", "parts_printed"),
        ],
        env=os.environ | {"PYTHONPATH": str(modules)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("imported\n")


# Training and measuring


def test_training_tells_the_figures_and_leaves_the_run(
    run: Run, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ended = run("train", recipe, "train.steps=3", "train.optimizer.lr=1e-4", "--output-dir", out)
    assert ended.code == 0, ended.err
    assert re.search(r"psnr +\d+\.\d+ dB", ended.out)
    assert str(out / "tokenizer") in ended.out
    config = load_recipe(str(out / "config.yaml"))
    assert (config.train.steps, config.train.optimizer.lr) == (3, 1e-4)
    before = contents(out)
    refused(run("train", recipe, "--output-dir", out), "holds a run already")
    assert contents(out) == before


def test_a_run_that_fails_ends_with_code_1(run: Run, recipe: Path, tmp_path: Path) -> None:
    overrides = ["train.optimizer={lr: 1.0e+30, clip_norm: null}", "train.steps=5"]
    ended = run("train", recipe, *overrides, "--output-dir", tmp_path / "run")
    assert ended.code == 1
    assert ended.lines[-1].startswith("imagetok: the loss is not finite at step")


def test_a_folder_that_cannot_be_written_ends_with_code_1(
    run: Run, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    ended = run("train", recipe, "--output-dir", tmp_path / "file" / "run")
    assert ended.code == 1
    assert ended.lines[-1].startswith("imagetok: cannot make")


@pytest.mark.parametrize("name", recipe_names())
def test_a_dry_run_shows_config_and_sizes_without_the_data(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run("train", name, "train.seed=7", "data.name=./nowhere", "--dry-run")
    assert ended.code == 0, ended.err
    text, plan = ended.out.split("\nplan\n")
    assert "not opened: there is no file or folder './nowhere'" in plan
    config = load_recipe(name, ["train.seed=7", "data.name=./nowhere"])
    assert yaml.safe_load(text) == config.to_dict()
    grid = config.tokenizer.grid_size
    assert f"{grid[0]} x {grid[1]} = {grid[0] * grid[1]} positions" in plan
    for word in ("parameters, encoder", "memory of weights", "memory of activations", "GiB"):
        assert word in plan
    assert list(tmp_path.iterdir()) == []


def test_dry_runs_open_the_data_and_write_nothing(
    run: Run, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        path = tmp_path / "photos" / ("cats" if number % 2 else "dogs") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 40), (number, 9, 9)).save(path)
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    divided = ("data.holdout=50%", "data.stratify=true")
    trained = run("train", "ae-shapes", "data.name=photos", *divided, "--dry-run")
    for words in (r"train on +train, 2 rows", r"evaluate on +holdout, 4 rows", r"2: cats, dogs"):
        assert re.search(words, trained.out), trained.out
    start = ("tokenize", "--tokenizer", tokenizer, "--dataset", "photos", "--dry-run")
    job = run(*start, "--limit", 5)
    assert job.code == 0, job.err
    for words in (r"split +train, 5 rows", r"image column +image", r"tokens +80, 16 an image"):
        assert re.search(words, job.out), job.out
    refused(run(*start, "--split", "test"), "no split 'test'")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("photos", ["data.split=test"], "no split 'test'"),
        ("photos", [], "no split test or validation to evaluate on"),
        ("photos/0.png", [], "is a file of another kind"),
        ("empty", [], "holds no images"),
        ("builtin:shapes", ["data.split=nothing"], "no split 'nothing'"),
    ],
)
def test_a_dry_run_refuses_data_that_are_here_and_cannot_be_used(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    changes: list[str],
    reason: str,
) -> None:
    for folder in ("photos", "empty"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        Image.new("RGB", (20, 40), (number, 9, 9)).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    refused(run("train", "ae-shapes", f"data.name={name}", *changes, "--dry-run"), reason)


@pytest.mark.parametrize(
    "keep", [["--keep", " file, label"], ["--keep", "file", "--keep", "label"]]
)
def test_several_columns_are_kept_side_by_side_or_one_by_one(
    run: Run, tokenizer: Path, tmp_path: Path, keep: list[str]
) -> None:
    for name in ("cats/1.png", "dogs/2.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        Image.new("RGB", (20, 40)).save(tmp_path / "photos" / name)
    start = ("tokenize", "--tokenizer", tokenizer, "--dataset", tmp_path / "photos")
    assert run(*start, "--output-dir", tmp_path / "out", *keep).code == 0
    assert read_job(tmp_path / "out").output.keep == ("file", "label")


def test_evaluating_prints_and_writes_the_figures(
    run: Run, tokenizer: Path, tmp_path: Path
) -> None:
    target = tmp_path / "figures.json"
    start = ("evaluate", "--tokenizer", tokenizer, "--dataset", DATA)
    ended = run(*start, "--split", "test", "--json", target)
    assert ended.code == 0, ended.err
    figures = json.loads(target.read_text())
    of_the_run = json.loads((tokenizer / "evaluation.json").read_text())
    assert figures == {key: of_the_run[key] for key in of_the_run if key != "training"}
    assert f"{figures['psnr']:.4f} dB" in ended.out
    assert f"{DATA}, test" in ended.out
    part = run(*start, "--split", "test[:5]", "--dtype", "bfloat16", "--device", "cpu")
    assert re.search(r"num_images +5\n", part.out)


def test_reconstructing_writes_images_side_by_side(
    run: Run, tokenizer: Path, tmp_path: Path
) -> None:
    for name, size in (("a.png", (20, 40)), ("b.jpg", (64, 16))):
        Image.new("RGB", size, "teal").save(tmp_path / name)
    target = tmp_path / "both.png"
    files = tmp_path / "a.png", tmp_path / "b.jpg"
    ended = run("reconstruct", *files, "--tokenizer", tokenizer, "--output", target)
    assert ended.code == 0, ended.err
    assert len(re.findall(r"\d+\.\d\d dB", ended.out)) == 2
    assert f"written: {target}" in ended.out
    with Image.open(target) as picture:
        assert picture.size == (2 * 130 + 2, 2 * 130 + 2)


def test_reconstructing_refuses_what_is_not_an_image(
    run: Run, tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    start = ("reconstruct", "--tokenizer", tokenizer, "--output", tmp_path / "out.png")
    refused(run(*start, tmp_path / "text.png"), "text.png")
    refused(run(*start, tmp_path / "missing.png"), "missing.png", "No such file")
    assert not (tmp_path / "out.png").exists()
    there = ("reconstruct", tmp_path / "text.png", "--tokenizer", tokenizer)
    refused(run(*there, "--output", tmp_path / "no" / "out.png"), "there is no folder")


def test_evaluating_leaves_out_a_broken_image_and_says_what_comes_next(
    run: Run, tokenizer: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "my photos"
    photos.mkdir()
    for number in range(4):
        Image.new("RGB", (20, 40), (number, 9, 9)).save(photos / f"{number}.png")
    (photos / "2.png").write_bytes(b"")
    start = ("evaluate", "--tokenizer", tokenizer, "--dataset", photos)
    ended = run(*start, "--split", "train", "--max-error-rate", 0.25)
    assert ended.code == 0, ended.err
    assert re.search(r"num_unreadable +1\n", ended.out)
    assert f"next: imagetok tokenize --tokenizer {tokenizer} --dataset '{photos}'" in ended.err
    for rate in ([], ["--max-error-rate", 0.2]):
        ended = run(*start, "--split", "train", *rate)
        assert ended.code == 2
        assert re.search(r"1 of 4 .* raise the limit: .*2\.png' is empty", ended.last_line)
    refused(run(*start), "no split 'test'", "train", "--split", "--holdout 10%")


def test_the_command_that_evaluating_prints_tokenizes_the_same_rows(
    run: Run, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    for number in range(12):
        folder = photos / "train" / f"{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 40), (number, 9, 9)).save(folder / f"{number}.png")
    options = ("--no-split-dirs", "--labels", "parent", "--holdout", "25%", "--stratify", "true")
    options += ("--holdout-salt", "x y", "--max-pixels", "1000", "--sidecars")
    ended = run(
        "evaluate", "--tokenizer", tokenizer, "--dataset", photos, "--split", "holdout", *options
    )
    (line,) = re.findall(r"next: imagetok (tokenize .*)", ended.err)
    again = run(*shlex.split(line))
    assert again.code == 0, again.err
    job = read_job(tmp_path / "tokens").input
    assert (job.split, job.holdout, job.stratify, job.holdout_salt) == (
        *("holdout", "25%", True, "x y"),
    )
    assert (job.split_dirs, job.labels, job.sidecars, job.num_rows) == (False, "parent", True, 4)


def test_encoding_shows_ids_or_writes_them(run: Run, tokenizer: Path, tmp_path: Path) -> None:
    for name, colour in (("a.png", "teal"), ("b.png", "white")):
        Image.new("RGB", (20, 40), colour).save(tmp_path / name)
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    expected = imagetok.ImageTokenizer.from_pretrained(tokenizer).encode(files)

    shown = run("encode", files[0], "--tokenizer", tokenizer.parent)
    assert [[int(code) for code in line.split()] for line in shown.out.splitlines()] == (
        expected[0].tolist()
    )
    for output in (tmp_path / "ids.npy", tmp_path / "ids.json"):
        run("encode", *files, "--tokenizer", tokenizer / "model.safetensors", "--output", output)
    assert np.array_equal(np.load(tmp_path / "ids.npy"), expected.numpy())
    written = json.loads((tmp_path / "ids.json").read_text())
    assert list(written["ids"].values()) == expected.tolist()
    start = ("encode", files[0], "--tokenizer")
    refused(run(*start, tokenizer, "--output", tmp_path / "ids.txt"), ".npy", ".json")
    refused(run(*start, tokenizer / "config.json"), "is a file; expected the folder")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["info TOKENIZER", "encode IMAGE --tokenizer TOKENIZER"])
def test_a_command_imports_no_library_that_it_does_not_need(
    command: str, tokenizer: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (20, 40)).save(tmp_path / "a.png")
    places = {"IMAGE": str(tmp_path / "a.png"), "TOKENIZER": str(tokenizer)}
    arguments = [places.get(word, word) for word in command.split()]
    code = (
        f"import sys\nfrom imagetok.cli import main\ntry: main({arguments})\n"
        "finally: print({'datasets', 'pyarrow', 'pandas', 'huggingface_hub', 'httpx2',"
        " 'accelerate', 'transformers', 'torchmetrics', 'scipy', 'matplotlib', 'jinja2', 'rich',"
        " 'torch._dynamo', 'torch._inductor', 'sympy'} & sys.modules.keys())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines()[-1] == "set()", ended


def test_info_shows_what_the_tokenizer_is(run: Run, tokenizer: Path) -> None:
    ended = run("info", tokenizer)
    assert ended.code == 0, ended.err
    loaded = imagetok.ImageTokenizer.from_pretrained(tokenizer)
    for line in (
        r"codebook_size +12",
        r"grid_size +4 x 4",
        r"num_tokens +16",
        rf"fingerprint +{loaded.fingerprint}",
        r"psnr +\d+\.\d{4} dB",
    ):
        assert re.search(rf"^ *{line}$", ended.out, re.MULTILINE), line


def test_info_as_json_is_json(run: Run, tokenizer: Path) -> None:
    facts = json.loads(run("info", tokenizer, "--json").out)
    assert facts["config"]["bottleneck"]["codebook_size"] == facts["codebook_size"] == 12
    assert facts["evaluation"] == json.loads((tokenizer / "evaluation.json").read_text())


# Signals


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_training_soon_and_says_how_to_go_on(
    recipe: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    arguments = ["train", str(recipe), "train.steps=100000", "--output-dir", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", "from imagetok.cli import main; main()", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(1200):
            if (out / "losses.jsonl").exists() and (out / "losses.jsonl").stat().st_size:
                break
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        sent = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - sent < 5
    finally:
        process.kill()
    assert process.returncode == code
    assert f"{number.name} stopped the run after step" in err
    assert "--resume" in err
    assert "Traceback" not in err
