"""Resuming: what was interrupted ends as what was not, and nothing is continued by mistake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
from tiny_steps import Halt, HaltedError

from imagetok.config import RunConfig
from imagetok.errors import (
    ConfigError,
    DataError,
    ModelFileError,
    TrainingError,
    UnwritableFileError,
)
from imagetok.files import TEMPORARY_PREFIX
from imagetok.modelfile import MODEL_FILE
from imagetok.training import checkpoint, loop, train
from imagetok.training.checkpoint import list_checkpoints
from imagetok.training.run_folder import MAY_CHANGE, RunFolder
from imagetok.training.step import Stepper
from tiny_runs import SYSTEMS, assert_same_files, assert_same_run, contents, read_lines, tiny_run
from toy_objective import toy

Finish = Callable[[RunConfig], Path]

AUGMENTED = {"crop_scale": [0.5, 1.0], "flip": True}


@pytest.fixture(scope="module")
def finish(tmp_path_factory: pytest.TempPathFactory) -> Finish:
    """The folder of a run that nothing interrupted, made once for every config."""
    done: dict[str, Path] = {}

    def run(config: RunConfig) -> Path:
        key = config.to_json()
        if key not in done:
            done[key] = tmp_path_factory.mktemp("whole") / "run"
            train(config, done[key], progress=False)
        return done[key]

    return run


def run_of(system: str, **changes: Any) -> RunConfig:
    """A run of ten steps that saves after every third."""
    train = {"steps": 10, "checkpoint_every": 3, "ema_decay": 0.9, "samples_every": 4}
    return tiny_run(system, **{"data": AUGMENTED, "evaluate_every": 4, **train, **changes})


@pytest.mark.parametrize(
    ("system", "changes"),
    [
        *((system, {}) for system in SYSTEMS),
        ("vqvae", {"bottleneck": {"restart_below": 0.9, "decay": 0.5}, "accumulation": 2}),
        ("vqvae", {"bottleneck": {"codebook": "loss"}, "ema_decay": None}),
        ("dvae", {"bottleneck": {"split_below": 0.9}}),
        ("ae", {"data": {**AUGMENTED, "streaming": True, "name": "photos", "window": 12}}),
        ("vqvae", {"objectives": [toy()]}),
        ("vqvae", {"objectives": [toy(learner={"start_step": 6})]}),
    ],
)
def test_a_run_interrupted_twice_ends_in_the_same_bytes(
    finish: Finish,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    halt: Halt,
    system: str,
    changes: dict[str, Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = run_of(system, **changes)
    if config.data.streaming:
        write_photos(tmp_path / "photos")
    for step in (5, 8):
        halt(config, tmp_path / "parts", step)
    train(config, tmp_path / "parts", resume=True, progress=False)
    assert_same_run(finish(config), tmp_path / "parts")


def test_a_kill_right_after_the_last_checkpoint_leaves_nothing_that_stays(
    finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_of("ae", keep_last=2)
    real = checkpoint._remove_old

    def remove_old(folder: Path, keep_last: int) -> None:
        if (folder / "step-00000010").exists():
            raise HaltedError
        real(folder, keep_last)

    monkeypatch.setattr(checkpoint, "_remove_old", remove_old)
    with pytest.raises(HaltedError):
        train(config, tmp_path / "parts", progress=False)
    monkeypatch.undo()
    folder = tmp_path / "parts" / "checkpoints"
    assert len(list_checkpoints(folder)) == 3
    (folder / f"{TEMPORARY_PREFIX}x" / "half").mkdir(parents=True)
    train(config, tmp_path / "parts", resume=True, progress=False)
    assert_same_files(finish(config), tmp_path / "parts")
    assert not (folder / f"{TEMPORARY_PREFIX}x").exists()


def losses_of(run: Path) -> bytes:
    return (run / "losses.jsonl").read_bytes()


def write_photos(folder: Path) -> None:
    """Twenty-seven images in three parquet files, and a few to test on."""
    from datasets import load_dataset

    from imagetok.data import open_images

    folder.mkdir()
    rows = open_images("builtin:shapes?size=20&count=30", "train").dataset
    for part in range(3):
        rows.select(range(9 * part, 9 * part + 9)).to_parquet(folder / f"train-{part}.parquet")
    rows.select(range(27, 30)).to_parquet(folder / "test-0.parquet")
    assert load_dataset(str(folder))["test"].num_rows == 3


def test_a_run_without_a_checkpoint_starts_anew(finish: Finish, tmp_path: Path, halt: Halt) -> None:
    config = run_of("vae")
    halt(config, tmp_path / "parts", 2)
    assert (tmp_path / "parts" / "config.yaml").exists()
    train(config, tmp_path / "parts", resume=True, progress=False)
    assert_same_run(finish(config), tmp_path / "parts")


def test_a_finished_run_is_left_as_it_is(finish: Finish) -> None:
    run = finish(run_of("vqvae"))
    before = contents(run)
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    again = train(run_of("vqvae"), run, resume=True, progress=False)
    assert again.was_finished
    assert again.evaluation == json.loads(before["tokenizer/evaluation.json"])
    assert contents(run) == before
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == times


@pytest.mark.parametrize("name", ["evaluation.json", "model.safetensors", "reconstructions.png"])
def test_an_export_that_was_interrupted_is_made_again(
    finish: Finish, tmp_path: Path, name: str
) -> None:
    before = finish(run_of("vqvae"))
    after = shutil.copytree(before, tmp_path / "run")
    (after / "tokenizer" / name).unlink()
    assert not train(run_of("vqvae"), after, resume=True, progress=False).was_finished
    assert_same_files(before, after)


def test_a_finished_run_can_be_made_longer_and_not_shorter(tmp_path: Path) -> None:
    constant = {"lr": 1e-3}
    train(run_of("ae", steps=12, optimizer=constant), tmp_path / "whole", progress=False)
    train(run_of("ae", steps=6, optimizer=constant), tmp_path / "run", progress=False)
    train(run_of("ae", steps=12, optimizer=constant), tmp_path / "run", resume=True, progress=False)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "run")
    models = [
        (tmp_path / name / "tokenizer" / MODEL_FILE).read_bytes() for name in ("whole", "run")
    ]
    assert models[0] == models[1]
    with pytest.raises(ConfigError, match=r"has 12 steps done, and train\.steps is 4"):
        train(run_of("ae", steps=4), tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"train\.seed was 0 and is 1"),
        ({"optimizer": {"lr": 5e-4}}, r"train\.optimizer\.lr was 0\.001 and is 0\.0005"),
        ({"batch_size": 16}, r"train\.batch_size was 8 and is 16"),
        ({"ema_decay": None}, r"train\.ema_decay was 0\.9 and is null"),
        ({"data": {"max_pixels": 300}}, r"data\.max_pixels was 50000000 and is 300"),
        ({"data": {"flip": True}}, r"data\.crop_scale was \[0\.5, 1\.0\] and is null"),
        (
            {"bottleneck": {"codebook_size": 16}},
            r"tokenizer\.bottleneck\.codebook_size was 12 and is 16",
        ),
    ],
)
def test_another_config_is_refused_with_both_values(
    finish: Finish, changes: dict[str, Any], message: str
) -> None:
    run = finish(run_of("vqvae"))
    before = contents(run)
    with pytest.raises(ConfigError, match=message):
        train(run_of("vqvae", **changes), run, resume=True, progress=False)
    assert contents(run) == before


def test_a_run_that_began_without_colour_conversion_goes_on_without_it(
    finish: Finish, tmp_path: Path, halt: Halt, caplog: pytest.LogCaptureFixture
) -> None:
    begun = run_of("ae")
    halt(begun, tmp_path / "run", 5)
    asked = begun.model_copy(update={"tokenizer": begun.tokenizer.with_color_profile("srgb")})
    train(asked, tmp_path / "run", resume=True, progress=False)
    assert "began with tokenizer.preprocessing.color_profile=ignore and goes on so" in caplog.text
    assert_same_run(finish(begun), tmp_path / "run")


def test_what_changes_no_step_may_change(finish: Finish, tmp_path: Path, halt: Halt) -> None:
    halt(run_of("vqvae"), tmp_path / "run", 5)
    other = run_of(
        "vqvae",
        data={**AUGMENTED, "max_error_rate": 0.5},
        checkpoint_every=2,
        evaluate_every=0,
        samples_every=0,
        keep_last=1,
        evaluation_images=3,
        usage_warning=0.0,
        gradient_checkpointing=True,
    )
    train(other, tmp_path / "run", resume=True, progress=False)
    assert losses_of(finish(run_of("vqvae"))) == losses_of(tmp_path / "run")
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1
    assert "checkpoint_every: 2" in (tmp_path / "run" / "config.yaml").read_text()


def test_every_entry_that_may_change_exists() -> None:
    values = run_of("ae").to_dict()
    entries = {f"{section}.{key}" for section, entry in values.items() for key in entry}
    assert entries >= MAY_CHANGE


def test_other_data_under_the_same_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halt: Halt
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")
    config = run_of("ae", data={"name": "photos"})
    halt(config, tmp_path / "run", 5)
    (tmp_path / "photos" / "train-1.parquet").unlink()
    with pytest.raises(DataError, match="was trained on data with the fingerprint"):
        train(config, tmp_path / "run", resume=True, progress=False)


def test_the_same_data_may_lie_elsewhere(
    finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halt: Halt
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")
    config = run_of("ae", data={"name": "photos"})
    whole = finish(config)
    halt(config, tmp_path / "run", 5)
    (tmp_path / "photos").rename(tmp_path / "moved")
    moved = run_of("ae", data={"name": "moved"})
    train(moved, tmp_path / "run", resume=True, progress=False)
    assert losses_of(whole) == losses_of(tmp_path / "run")


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_continues(
    finish: Finish, tmp_path: Path, halt: Halt
) -> None:
    config = run_of("vqvae")
    halt(config, tmp_path / "run", 8)
    newest = tmp_path / "run" / "checkpoints" / "step-00000006"
    (newest / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelFileError, match="step-00000003 before it is whole: move"):
        train(config, tmp_path / "run", resume=True, progress=False)
    newest.rename(tmp_path / "away")
    train(config, tmp_path / "run", resume=True, progress=False)
    assert_same_run(finish(config), tmp_path / "run")


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(
    finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real = run_of("ae"), checkpoint.file_sha256

    def full(path: Path) -> str:
        if "step-00000006" in str(path):
            raise OSError(28, "No space left on device")
        return real(path)

    monkeypatch.setattr(checkpoint, "file_sha256", full)
    with pytest.raises(UnwritableFileError, match=r"step-00000006.*No space left on device"):
        train(config, tmp_path / "run", progress=False)
    monkeypatch.setattr(checkpoint, "file_sha256", real)
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == ["step-00000003"]
    train(config, tmp_path / "run", resume=True, progress=False)
    assert_same_run(finish(config), tmp_path / "run")


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Stepper.step

    def step(self: Stepper, number: int, *rest: Any) -> Any:
        if number == 7:
            with torch.no_grad():
                next(self.tokenizer.decoder.parameters()).fill_(torch.inf)
        return real(self, number, *rest)

    monkeypatch.setattr(Stepper, "step", step)
    with pytest.raises(TrainingError) as caught:
        train(run_of("ae"), tmp_path / "run", progress=False)
    assert "the loss is not finite at step 7 on rank 0" in str(caught.value)
    last = tmp_path / "run" / "checkpoints" / "step-00000006"
    assert f"the last good checkpoint is '{last}'" in str(caught.value)
    assert len(read_lines(tmp_path / "run" / "losses.jsonl")) == 7


def test_rows_that_cannot_be_read_are_counted_over_an_interruption(
    finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, halt: Halt
) -> None:
    monkeypatch.chdir(tmp_path)
    write_torn_photos(tmp_path / "photos")
    config = run_of("ae", data={"name": "photos", "evaluation_split": "train[:2]"})
    halt(config, tmp_path / "run", 8)
    train(config, tmp_path / "run", resume=True, progress=False)
    assert_same_run(finish(config), tmp_path / "run")
    for folder in (finish(config), tmp_path / "run"):
        lines = read_lines(folder / "metrics.jsonl")
        named = [message for line in lines for message in line.get("data/unreadable", [])]
        (count,) = {line["data/unreadable_rows"] for line in lines if "psnr" in line}
        assert len(named) == count > 0
        assert all("torn.png" in message for message in named)


def write_torn_photos(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (20, 20), (20 * number, 0, 0)).save(folder / f"a{number:02}.png")
    (folder / "torn.png").write_bytes(b"no picture")


def test_two_runs_at_once_in_one_folder_are_refused(
    finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, met = Stepper.step, []

    def step(self: Stepper, number: int, *rest: Any) -> Any:
        if number == 4:
            for resume in (True, False):
                with pytest.raises(ConfigError) as caught:
                    train(run_of("ae"), tmp_path / "run", resume=resume, progress=False)
                met.append(str(caught.value))
        return real(self, number, *rest)

    whole = finish(run_of("ae"))
    monkeypatch.setattr(Stepper, "step", step)
    monkeypatch.setattr(loop, "PATIENCE", 0.3)
    train(run_of("ae"), tmp_path / "run", progress=False)
    assert len(met) == 2
    assert all("another process is training in" in message for message in met)
    assert_same_run(whole, tmp_path / "run")


def test_a_resumed_run_waits_for_the_one_before_to_leave(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not RunFolder(folder).take()  # there is nothing to hold
    folder.mkdir()
    first, second, third = RunFolder(folder), RunFolder(folder, 20), RunFolder(folder)
    assert first.take()
    assert not first.take()  # it is held already
    Timer(0.3, first.close).start()
    assert second.take()
    with pytest.raises(ConfigError, match="another process is training in"):
        third.take()
    second.close()


def test_a_state_of_an_older_version_without_newer_entries_is_continued(
    tmp_path: Path, halt: Halt
) -> None:
    halt(run_of("ae"), tmp_path / "run", 5)
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    state: Mapping[str, Any] = json.loads((newest / "state.json").read_text())
    assert state["config"]["train"].pop("freeze") == []
    text = json.dumps(state, indent=2, sort_keys=True) + "\n"
    (newest / "state.json").write_text(text)
    meta = json.loads((newest / "meta.json").read_text())
    meta["files"]["state.json"] = {
        "size": len(text),
        "sha256": checkpoint.file_sha256(newest / "state.json"),
    }
    (newest / "meta.json").write_text(json.dumps(meta))
    train(run_of("ae"), tmp_path / "run", resume=True, progress=False)
