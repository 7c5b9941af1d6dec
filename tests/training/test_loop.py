"""What a run leaves, what two equal runs share, and what is refused before anything is written."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from safetensors.torch import load_file

from imagetok import ImageTokenizer
from imagetok.config import RunConfig, load_recipe
from imagetok.data import open_images
from imagetok.errors import ConfigError, DataError, TrainingError
from imagetok.evaluation import evaluate
from imagetok.training import TrainResult, checkpoint, loop, reporter, train
from imagetok.training.checkpoint import Snapshot
from imagetok.training.step import Stepper
from tiny_data import write_split
from tiny_runs import SYSTEMS, assert_same_run, contents, read_lines, tiny_run

FIGURES = {"psnr", "ssim", "l1", "bits_per_dim", "codebook_usage", "codebook_perplexity"}
MODEL = "model.safetensors"

Finished = tuple[RunConfig, TrainResult]


def eventful(system: str) -> RunConfig:
    """A run in which everything that happens once in a while happens."""
    intervals = {"evaluate_every": 2, "samples_every": 2, "checkpoint_every": 1, "keep_last": 2}
    return tiny_run(system, data={"evaluation_split": "test"}, ema_decay=0.9, **intervals)


@pytest.fixture(scope="module")
def finish(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """The eventful run of a system, done once."""
    done: dict[str, Finished] = {}

    def run(system: str) -> Finished:
        if system not in done:
            config = eventful(system)
            folder = tmp_path_factory.mktemp(system) / "run"
            done[system] = config, train(config, folder, progress=False)
        return done[system]

    return run


# What is left


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_run_leaves_a_tokenizer_images_checkpoints_config_and_records(
    finish: Callable[[str], Finished], system: str
) -> None:
    _, result = finish(system)
    assert result.tokenizer_dir == result.output_dir / "tokenizer"
    step = ["average.safetensors", "meta.json", "model.safetensors", "optimizer.safetensors"]
    assert set(contents(result.output_dir)) == {
        "config.yaml",
        "losses.jsonl",
        "metrics.jsonl",
        *(f"samples/step-0000000{done}.png" for done in (2, 4)),
        *(f"checkpoints/step-0000000{n}/{name}" for n in (3, 4) for name in [*step, "state.json"]),
        *(
            f"tokenizer/{name}"
            for name in (
                "model.safetensors",
                "config.json",
                "evaluation.json",
                "reconstructions.png",
                "README.md",
            )
        ),
    }


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_figures_name_the_file_that_they_are_of_and_are_those_of_the_saved_tokenizer(
    finish: Callable[[str], Finished], system: str
) -> None:
    config, result = finish(system)
    figures = json.loads((result.tokenizer_dir / "evaluation.json").read_text())
    assert figures == result.evaluation
    assert figures.keys() >= FIGURES | {"num_images", "protocol", "tokenizer_fingerprint"}
    file = (result.tokenizer_dir / "model.safetensors").read_bytes()
    assert figures["tokenizer_sha256"] == hashlib.sha256(file).hexdigest()
    assert figures["num_images"] == 64
    assert (figures["codebook_usage"] is None) == (system in ("ae", "vae"))
    assert (figures["bits_per_dim"] is None) == (system == "ae")
    tokenizer = ImageTokenizer.from_pretrained(result.tokenizer_dir)
    rows = open_images(config.data.name, config.data.evaluation_split)
    assert evaluate(tokenizer, rows, progress=False).items() <= figures.items()


def test_what_is_exported_are_the_averaged_weights(finish: Callable[[str], Finished]) -> None:
    _, result = finish("vqvae")
    last = result.output_dir / "checkpoints" / "step-00000004"
    exported = load_file(result.tokenizer_dir / "model.safetensors")
    averaged, trained = load_file(last / "average.safetensors"), load_file(last / MODEL)
    assert exported
    for name, tensor in exported.items():
        assert torch.equal(tensor, averaged[f"module.{name}"]), name
    kernel = "encoder.layers.0.weight"
    assert not torch.equal(exported[kernel], trained[kernel])


def test_without_averages_the_trained_weights_are_exported(tmp_path: Path) -> None:
    result = train(tiny_run("ae", steps=2), tmp_path / "run", progress=False)
    last = result.output_dir / "checkpoints" / "step-00000002"
    assert not (last / "average.safetensors").exists()
    exported, trained = load_file(result.tokenizer_dir / MODEL), load_file(last / MODEL)
    assert exported.keys() == trained.keys()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in exported.items())


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_recipe_of_the_same_run_and_the_losses_of_every_step_are_left(
    finish: Callable[[str], Finished], system: str
) -> None:
    config, result = finish(system)
    recipe = result.output_dir / "config.yaml"
    assert load_recipe(str(recipe)) == config
    head, *_ = recipe.read_text().splitlines()
    assert head.startswith("# imagetok ")
    assert open_images(config.data.name, config.data.split).fingerprint in head
    lines = read_lines(result.output_dir / "losses.jsonl")
    assert [line.pop("step") for line in lines] == [0, 1, 2, 3]
    extra = {"vae": {"loss/kl"}, "dvae": {"loss/kl"}, "vqvae": {"loss/commitment"}}
    for line in lines:
        assert line.keys() == {"loss", "loss/reconstruction"} | extra.get(system, set())
        assert line["loss"] == pytest.approx(sum(line[name] for name in line if name != "loss"))


def test_loss_weights_weigh_the_sum_and_leave_the_terms(tmp_path: Path) -> None:
    weights = {"loss/kl": {"type": "linear", "start": 0, "end": 4, "steps": 4}}
    train(tiny_run("vae", loss_weights=weights), tmp_path / "run", progress=False)
    for line in read_lines(tmp_path / "run" / "losses.jsonl"):
        expected = line["loss/reconstruction"] + line["step"] * line["loss/kl"]
        assert line["loss"] == pytest.approx(expected, abs=1e-6)
        assert line["loss/kl"] > 0


def test_metrics_tell_of_training_validation_and_the_end(
    finish: Callable[[str], Finished],
) -> None:
    _, result = finish("vqvae")
    lines = read_lines(result.output_dir / "metrics.jsonl")
    validation, last, evaluation = lines
    assert [line["step"] for line in lines] == [1, 3, 3]
    assert validation["validation/num_images"] == 16
    assert evaluation["evaluation/psnr"] == result.evaluation["psnr"]
    assert last.keys() >= {"psnr", "optim/lr", "optim/grad_norm", "time/images_per_second"}
    assert last.keys() >= {"codebook/usage", "codebook/perplexity"}
    assert last["optim/lr"] == 1e-3


def test_the_records_are_on_disk_before_a_checkpoint_that_counts_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def remember(folder: Path, snapshot: Snapshot, keep_last: int) -> Path:
        seen.append((snapshot.step, len(read_lines(tmp_path / "run" / "losses.jsonl"))))
        return real(folder, snapshot, keep_last)

    real = checkpoint.write_checkpoint
    monkeypatch.setattr(checkpoint, "write_checkpoint", remember)
    train(tiny_run("ae", checkpoint_every=3, steps=8), tmp_path / "run", progress=False)
    assert seen == [(3, 3), (6, 6), (8, 8)]


def test_steps_go_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = threading.Event()
    write, step = checkpoint.write_checkpoint, Stepper.step

    def write_slowly(folder: Path, snapshot: Snapshot, keep_last: int) -> Path:
        assert snapshot.step > 2 or stepped.wait(60), "the fourth step waited for the writing"
        return write(folder, snapshot, keep_last)

    def note(self: Stepper, number: int, *rest: Any) -> Any:
        if number == 3:
            stepped.set()
        return step(self, number, *rest)

    monkeypatch.setattr(checkpoint, "write_checkpoint", write_slowly)
    monkeypatch.setattr(Stepper, "step", note)
    train(tiny_run("ae", checkpoint_every=2, steps=6), tmp_path / "run", progress=False)
    names = [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert names == ["step-00000004", "step-00000006"]


def test_images_a_second_count_the_steps_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(1000))
    monkeypatch.setattr(reporter, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    run = tiny_run("ae", steps=5, evaluate_every=1, samples_every=1)
    train(run, tmp_path / "run")
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    speeds = {
        line["step"]: line["time/images_per_second"]
        for line in lines
        if "time/images_per_second" in line
    }
    assert speeds == {1: 8.0, 3: 8.0, 4: 8.0}  # each step takes one second of that clock


def test_the_sample_grids_show_the_same_originals_and_better_reconstructions(
    tmp_path: Path,
) -> None:
    run = tiny_run("ae", steps=40, samples_every=10, optimizer={"lr": 3e-3})
    train(run, tmp_path / "run", progress=False)
    first, last = (
        Image.open(tmp_path / "run" / "samples" / f"step-000000{done}.png") for done in (10, 40)
    )
    middle = first.height // 2
    upper, lower = (0, 0, first.width, middle), (0, middle, first.width, first.height)
    assert first.crop(upper).tobytes() == last.crop(upper).tobytes()

    def error(picture: Image.Image) -> float:
        originals, others = (np.asarray(picture.crop(box), float) for box in (upper, lower))
        return float(np.abs(originals - others[:middle]).mean())

    assert error(last) < 0.8 * error(first)


# What stays the same


@pytest.mark.parametrize("system", SYSTEMS)
def test_equal_runs_leave_the_same_bytes_and_torchs_own_generator_alone(
    finish: Callable[[str], Finished], tmp_path: Path, system: str
) -> None:
    config, result = finish(system)
    torch.rand(7)  # its state does not matter
    state = torch.get_rng_state()
    again = train(config, tmp_path / "another", progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_run(result.output_dir, again.output_dir)
    assert again.evaluation == result.evaluation


def test_the_seed_changes_the_run(finish: Callable[[str], Finished], tmp_path: Path) -> None:
    _, result = finish("vae")
    train(tiny_run("vae", seed=1, steps=1), tmp_path / "run", progress=False)
    first = read_lines(result.output_dir / "losses.jsonl")
    assert read_lines(tmp_path / "run" / "losses.jsonl")[0] != first[0]


@pytest.mark.slow
def test_processes_that_load_images_change_nothing(
    finish: Callable[[str], Finished], tmp_path: Path
) -> None:
    _, result = finish("dvae")
    augmented = {"crop_scale": [0.6, 1.0], "flip": True}
    folders = tmp_path / "none", tmp_path / "two"
    for folder, num_workers in zip(folders, (0, 2), strict=True):
        data = {**augmented, "num_workers": num_workers}
        train(tiny_run("dvae", data=data, accumulation=2), folder, progress=False)
    alone, helped = map(contents, folders)
    for name in ("losses.jsonl", "tokenizer/model.safetensors", "samples/step-00000004.png"):
        assert alone[name] == helped[name], name
    assert alone["losses.jsonl"] != contents(result.output_dir)["losses.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_whoever_loads_it(
    tmp_path: Path, num_workers: int
) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "photos" / name / "sound.png")
    (tmp_path / "photos" / "b" / "torn.png").write_bytes(b"no picture")
    data = {"name": str(tmp_path / "photos"), "evaluation_split": "train[:1]", "max_error_rate": 0}
    run = tiny_run("ae", data={**data, "num_workers": num_workers}, batch_size=4)
    with pytest.raises(DataError) as caught:
        train(run, tmp_path / "run", progress=False)
    message = str(caught.value)
    assert "row 2 of " in message
    assert "torn.png" in message
    assert "\n" not in message


@pytest.mark.slow
def test_a_loading_process_that_is_killed_ends_the_run_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Stepper.step

    def kill(self: Stepper, number: int, *rest: Any) -> Any:
        if number == 3:
            for process in multiprocessing.active_children():
                process.kill()
        return step(self, number, *rest)

    monkeypatch.setattr(Stepper, "step", kill)
    run = tiny_run("ae", data={"num_workers": 2}, steps=3000)
    with pytest.raises(DataError, match="loads images was ended from outside"):
        train(run, tmp_path / "run", progress=False)
    assert multiprocessing.active_children() == []


def test_the_limit_of_pixels_is_the_runs(tmp_path: Path) -> None:
    result = train(
        tiny_run("ae", data={"max_pixels": 256}, steps=1), tmp_path / "a", progress=False
    )
    assert result.evaluation["protocol"]["max_pixels"] == 256
    assert "max_pixels: 256" in (tmp_path / "a" / "config.yaml").read_text()
    with pytest.raises(DataError, match="256 pixels, over the limit of 255 pixels"):
        train(tiny_run("ae", data={"max_pixels": 255}), tmp_path / "b", progress=False)


@pytest.mark.parametrize("streaming", [False, True])
def test_profiles_that_cannot_be_applied_are_counted(tmp_path: Path, streaming: bool) -> None:
    write_split(tmp_path / "in", "parquet", [range(8)])
    file = tmp_path / "in" / "train-00000.parquet"
    rows = load_dataset("parquet", data_files=str(file), cache_dir=str(tmp_path), split="train")
    rows = rows.map(lambda row: {"image": damage_profile(row)} if row["label"] < 3 else row)
    rows.to_parquet(file)
    data = {"name": str(tmp_path / "in"), "streaming": streaming, "num_workers": int(streaming)}
    config = tiny_run("ae", data={**data, "evaluation_split": "train", "window": 8}, steps=2)
    config = config.model_copy(update={"tokenizer": config.tokenizer.with_color_profile("srgb")})
    result = train(config, tmp_path / "run", progress=False)
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert sum(line.get("data/profiles_ignored", 0) for line in lines) == 2 * 3
    assert result.evaluation["num_profiles_ignored"] == 3
    assert result.evaluation["protocol"]["color_profile"] == "srgb"


def damage_profile(row: dict[str, Any]) -> Image.Image:
    image = row["image"].copy()
    image.info["icc_profile"] = b"broken"
    return image


# What is refused


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(
    finish: Callable[[str], Finished],
) -> None:
    _, result = finish("ae")
    before = contents(result.output_dir)
    with pytest.raises(
        ConfigError, match="holds a run already; continue it with --resume, give an"
    ):
        train(tiny_run("vae"), result.output_dir, progress=False)
    assert contents(result.output_dir) == before


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"split": "nope"}}, DataError, "has no split 'nope'"),
        ({"data": {"evaluation_split": "nope"}}, DataError, "has no split 'nope'"),
        ({"precision": "fp16"}, ConfigError, "precision=fp16 needs a GPU.*take bf16 or fp32"),
        ({"loss_weights": {"loss/kl": 1.0}}, ConfigError, "loss/kl; .*are: loss/reconstruction$"),
    ],
)
def test_what_cannot_be_done_here_is_refused_before_the_folder_is_made(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    if "precision" in changes and torch.accelerator.is_available():
        pytest.skip("this machine knows float16")
    with pytest.raises(error, match=message):
        train(tiny_run("ae", **changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_recorded(
    tmp_path: Path,
) -> None:
    huge = tiny_run("ae", steps=9, optimizer={"lr": 1e30, "clip_norm": None})
    with pytest.raises(TrainingError, match=r"not finite at step \d.*; there is no checkpoint yet"):
        train(huge, tmp_path / "run", progress=False)
    lines = read_lines(tmp_path / "run" / "losses.jsonl")
    assert 1 <= len(lines) < 9
    assert not (tmp_path / "run" / "tokenizer").exists()


# The codebook's alarm


def collapse_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_a_collapsing_codebook_is_told_of_with_its_figures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tiny_run("dvae", steps=2, evaluate_every=1, usage_warning=1.0)
    train(run, tmp_path / "run", progress=False)
    during, after = collapse_warnings(caplog)
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl")
    usage = 100 * metrics[0]["validation/codebook_usage"]
    assert f"codebook usage is {usage:.1f} % of 12 codes over 16 validation images" in during
    assert "after step 1, under the threshold of 100 % (train.usage_warning)" in during
    assert "over 64 validation images after step 2" in after


def test_what_few_images_and_few_steps_cannot_show_is_told_as_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tiny_run(
        "vqvae",
        bottleneck={"codebook_size": 4096, "kmeans_init": False},
        steps=1,
        optimizer={"lr": 1e-3, "warmup_steps": 50},
        usage_warning=0.5,
    )
    train(run, tmp_path / "run", progress=False)
    warm_up, usage = collapse_warnings(caplog)
    assert "the tokenizer warms up for 50 steps (warmup_steps) and learns for 1: its" in warm_up
    assert "1024 positions show 22.1% of it at best, so this says little" in usage


@pytest.mark.parametrize("system", ["ae", "vqvae"])
def test_a_codebook_in_use_and_a_continuous_model_give_no_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, system: str
) -> None:
    train(tiny_run(system, evaluate_every=2), tmp_path / "run", progress=False)
    assert collapse_warnings(caplog) == []


# Precision


@pytest.mark.parametrize("system", SYSTEMS)
def test_bfloat16_trains_with_finite_losses_near_those_of_float32(
    finish: Callable[[str], Finished], tmp_path: Path, system: str
) -> None:
    _, result = finish(system)
    run = tiny_run(system, ema_decay=0.9, precision="bf16")
    half = train(run, tmp_path / "run", progress=False)
    exact = read_lines(result.output_dir / "losses.jsonl")
    rounded = read_lines(half.output_dir / "losses.jsonl")
    for one, other in zip(exact, rounded, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.05)
    assert exact != rounded
    saved = load_file(half.tokenizer_dir / MODEL)
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
