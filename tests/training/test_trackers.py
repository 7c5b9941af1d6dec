"""Trackers show what the records hold, stay in the run's folder, and never end a run."""

from __future__ import annotations

import errno
import importlib.metadata
import io
import itertools
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.summary.writer import event_file_writer
from tensorboard.summary.writer.record_writer import RecordWriter

from imagetok.config import RunConfig
from imagetok.errors import MissingExtraError
from imagetok.launch import collectives
from imagetok.training.trackers import Trackers, _TensorBoard, _WandB, check_trackers
from tiny_runs import contents, tiny_run

FIGURES = {"loss": 0.5, "loss/commitment": 0.25, "codebook/usage": 1, "optim/lr": 1e-3}


@pytest.fixture(autouse=True)
def _main_process() -> None:
    AcceleratorState._reset_state()
    Accelerator(cpu=True)


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds that pass between the parts of a run: TensorBoard's files are named by them."""
    seconds = itertools.count(1_800_000_000)
    clock = SimpleNamespace(time=lambda: next(seconds))
    monkeypatch.setattr(event_file_writer, "time", clock)


def tracked(*trackers: str, **train: Any) -> RunConfig:
    """A run with trackers."""
    return tiny_run("vqvae", trackers=list(trackers), **train)


def show(
    config: RunConfig, folder: Path, figures: Mapping[int, Mapping[str, float]], start: int = 0
) -> None:
    """Log figures, and an image with each, as a run does from its start to its end."""
    trackers = Trackers(config, folder, start)
    for step, values in figures.items():
        trackers.log(values, step)
        trackers.log_image("reconstructions", picture(), step)
    trackers.close()


def picture(mode: str = "RGB", size: tuple[int, int] = (24, 10)) -> Image.Image:
    """An image with no two rows or columns alike."""
    width, height = size
    pixels = np.arange(width * height * 3, dtype=np.uint32) * 37 % 251
    return Image.fromarray(pixels.astype(np.uint8).reshape(height, width, 3)).convert(mode)


def read_events(folder: Path) -> EventAccumulator:
    """What TensorBoard shows of a run's folder."""
    keep_all = {"scalars": 0, "images": 0, "tensors": 0}
    events = EventAccumulator(str(folder / "trackers" / "tensorboard"), keep_all)
    return events.Reload()


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every scalar, by its key."""
    events = read_events(folder)
    keys = events.Tags()["scalars"]
    return {key: [(each.step, each.value) for each in events.Scalars(key)] for key in keys}


def read_hparams(folder: Path) -> Mapping[str, Any]:
    """The hyperparameters that TensorBoard shows."""
    metadata = read_events(folder).SummaryMetadata("_hparams_/session_start_info")
    data = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
    values = data.session_start_info.hparams
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in values.items()}


class Broken:
    """Stands for a method of a tracker's library; fails as a full disk does, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *arguments: Any, **named: Any) -> None:
        self.calls += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# What must be there before anything else


@pytest.mark.parametrize("missing", [["tensorboard"], ["wandb"], ["tensorboard", "wandb"]])
def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: list[str]
) -> None:
    (tmp_path / "wandb").mkdir()  # its folder of runs, not the package
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def find(name: str) -> None:
        if name in missing:
            raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", find)
    check_trackers([name for name in ("tensorboard", "wandb") if name not in missing])
    command = rf'`pip install "imagetok\[{",".join(missing)}\]"`'
    with pytest.raises(MissingExtraError, match=rf"{' and '.join(missing)}, not .* {command}"):
        check_trackers(["tensorboard", "wandb"])


# What is shown


@pytest.mark.parametrize(("trackers", "rank"), [([], 0), (["tensorboard"], 1)])
def test_without_trackers_and_on_other_ranks_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trackers: list[str], rank: int
) -> None:
    monkeypatch.setattr(collectives, "rank", lambda: rank)
    show(tracked(*trackers), tmp_path, {9: FIGURES})
    assert list(tmp_path.iterdir()) == []


def test_scalars_and_images_are_shown_under_their_keys_and_steps_before_the_run_ends(
    tmp_path: Path,
) -> None:
    trackers = Trackers(tracked("tensorboard", "tensorboard"), tmp_path, 0)  # it writes once
    trackers.log(FIGURES, 9)
    trackers.log({"loss": 0.25, "validation/psnr": 31.5}, 19)
    trackers.log_image("reconstructions", picture(), 19)
    shown = read_scalars(tmp_path)
    assert set(shown) == {*FIGURES, "validation/psnr"}
    assert shown["loss"] == [(9, 0.5), (19, 0.25)]
    assert shown["codebook/usage"] == [(9, 1.0)]
    assert shown["validation/psnr"] == [(19, 31.5)]
    assert shown["optim/lr"][0][1] == pytest.approx(1e-3, rel=1e-6)
    assert len(read_events(tmp_path).Images("reconstructions")) == 1
    trackers.close()
    trackers.close()
    assert read_scalars(tmp_path) == shown


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "1"])
def test_tensorboard_shows_the_very_pixels_of_an_image(tmp_path: Path, mode: str) -> None:
    trackers = Trackers(tracked("tensorboard"), tmp_path, 0)
    trackers.log_image("reconstructions", picture(mode), 9)
    trackers.close()
    (shown,) = read_events(tmp_path).Images("reconstructions")
    assert (shown.step, shown.width, shown.height) == (9, 24, 10)
    pixels = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)).convert("RGB"))
    assert np.array_equal(pixels, np.asarray(picture(mode).convert("RGB")))


def test_tensorboard_shows_the_whole_config_beside_the_figures(tmp_path: Path) -> None:
    lr = {"type": "cosine", "start": 1e-3, "end": 1e-5}
    config = tracked("tensorboard", optimizer={"lr": lr}, loss_weights={"loss/commitment": 0.5})
    show(config, tmp_path, {})
    shown = read_hparams(tmp_path)
    assert shown["train.steps"] == 4
    assert shown["data.name"] == config.data.name
    assert shown["data.flip"] == 0
    assert shown["data.crop_scale"] == "null"
    assert shown["tokenizer.image_size"] == "[16, 16]"
    assert shown["tokenizer.bottleneck.type"] == "vq"
    assert shown["train.optimizer.lr.start"] == 1e-3
    assert shown["train.optimizer.betas"] == "[0.9, 0.999]"
    assert shown["train.loss_weights.loss/commitment"] == 0.5
    assert shown["train.trackers"] == '["tensorboard"]'


@pytest.mark.usefixtures("_clock")
def test_a_run_hides_what_was_shown_of_its_steps_before(tmp_path: Path) -> None:
    config = tracked("tensorboard")
    for start, losses in ((0, {3: 1.0, 7: 2.0, 11: 3.0}), (4, {7: 20.0}), (8, {11: 30.0})):
        show(config, tmp_path, {step: {"loss": value} for step, value in losses.items()}, start)
    assert read_scalars(tmp_path) == {"loss": [(3, 1.0), (7, 20.0), (11, 30.0)]}
    assert [each.step for each in read_events(tmp_path).Images("reconstructions")] == [3, 7, 11]
    assert read_hparams(tmp_path)["train.steps"] == 4
    show(config, tmp_path, {5: {"loss": 40.0}})  # begun anew
    assert read_scalars(tmp_path) == {"loss": [(5, 40.0)]}


# Where and by whom


def test_everything_lies_in_the_runs_folder_and_nothing_is_printed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = tracked("tensorboard", project="../../outside")
    show(config, folder, {9: FIGURES})
    assert sorted(contents(tmp_path)) != []
    assert all(name.startswith("run/trackers/tensorboard/") for name in contents(tmp_path))
    assert capfd.readouterr().out == ""


# What goes wrong


@pytest.mark.parametrize("method", ["start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_fails_is_named_once_and_left_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    broken = Broken()
    monkeypatch.setattr(_TensorBoard, method, broken)
    show(tracked("tensorboard"), tmp_path, dict.fromkeys(range(3), FIGURES))
    (record,) = [each for each in caplog.records if each.name.startswith("imagetok")]
    assert record.levelname == "WARNING"
    assert "tensorboard" in record.getMessage()
    assert "No space left on device" in record.getMessage()
    assert broken.calls == 1


def test_a_disk_that_fills_up_under_tensorboard_does_not_end_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trackers = Trackers(tracked("tensorboard"), tmp_path, 0)
    trackers.log({"loss": 1.0}, 0)
    monkeypatch.setattr(RecordWriter, "write", Broken())
    monkeypatch.setattr(threading, "excepthook", lambda raised: None)
    for step in range(1, 30):
        trackers.log({"loss": 1.0}, step)
        trackers.log_image("reconstructions", picture(), step)
    trackers.close()
    assert caplog.text.count("the tracker tensorboard failed") == 1
    assert read_scalars(tmp_path) == {"loss": [(0, 1.0)]}


def test_a_tracker_that_fails_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_WandB, "start", Broken())
    show(tracked("wandb", "tensorboard"), tmp_path, {0: {"loss": 1.0}})
    assert read_scalars(tmp_path) == {"loss": [(0, 1.0)]}


# Weights & Biases, where it is installed


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return module


def test_wandb_keeps_to_the_runs_folder_and_a_resumed_run_goes_on_with_its_id(
    tmp_path: Path, wandb: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    config, folder = tracked("wandb"), tmp_path / "run"
    folder.mkdir()
    ids = []
    for start in (0, 4, 0):
        show(config, folder, {start + 3: FIGURES}, start)
        ids.append((folder / "trackers" / "wandb-id").read_text().strip())
    assert ids[0] == ids[1] != ids[2]
    runs = folder / "trackers" / "wandb"
    assert len(list(runs.glob(f"offline-run-*-{ids[0]}/run-{ids[0]}.wandb"))) >= 1
    assert len(list(runs.glob("offline-run-*/files/media/images/*.png"))) == 3
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert capfd.readouterr().out == ""
