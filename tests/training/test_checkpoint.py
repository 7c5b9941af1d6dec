"""Checkpoints: whole or absent, exact on the way back, refused by name where they are damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_steps import batch, changed, state_of
from torch import Tensor

from imagetok import ImageTokenizer
from imagetok.config import RunConfig
from imagetok.errors import ModelFileError, TrainingError, UnwritableFileError
from imagetok.training import checkpoint
from imagetok.training.accelerator import build_accelerator
from imagetok.training.checkpoint import (
    check_files,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    restore_snapshot,
    take_snapshot,
    write_checkpoint,
)
from imagetok.training.step import Stepper
from tiny_runs import SYSTEMS, contents, tiny_run

FILES = (
    "average.safetensors",
    "meta.json",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
)


def build(config: RunConfig, seed: int = 0) -> Stepper:
    torch.manual_seed(seed)
    tokenizer = ImageTokenizer.from_config(config.tokenizer)
    return Stepper(config.train, build_accelerator(config.train), tokenizer)


def save(
    stepper: Stepper,
    folder: Path,
    step: int,
    keep_last: int = 2,
    position: Tensor | None = None,
    **state: Any,
) -> Path:
    snapshot = take_snapshot(stepper.parts, position, {"step": step, **state})
    return write_checkpoint(folder, snapshot, keep_last)


def load(path: Path, stepper: Stepper) -> Tensor | None:
    check_files(path)
    snapshot = read_checkpoint(path)
    restore_snapshot(snapshot, stepper.parts)
    return snapshot.position


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of a VQ-VAE after two steps, with averages."""
    stepper = build(tiny_run("vqvae", ema_decay=0.9))
    for step in range(2):
        stepper.step(step, [batch()])
    return save(stepper, tmp_path / "checkpoints", 2, config={"seed": 0})


# There and back


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(("ema_decay", "fused"), [(None, False), (0.9, True)])
def test_a_restored_run_goes_on_bit_for_bit(
    tmp_path: Path, system: str, ema_decay: float | None, fused: bool
) -> None:
    optimizer = {"lr": 1e-3, "weight_decay": 0.1, "fused": fused}
    config = tiny_run(system, ema_decay=ema_decay, optimizer=optimizer)
    first, second = build(config), build(config, seed=1)
    for step in range(3):
        first.step(step, [batch()])
    path = save(first, tmp_path, 3)
    second.step(0, [batch()])  # whatever was there before is replaced
    assert load(path, second) is None
    assert changed(state_of(first), state_of(second)) == set()
    for step in range(3, 5):
        losses = [stepper.step(step, [batch()]).losses() for stepper in (first, second)]
        assert losses[0] == losses[1]
    assert changed(state_of(first), state_of(second)) == set()


def test_moments_and_buffers_that_a_tokenizer_leaves_out_are_kept(saved: Path) -> None:
    tensors, moments = (load_file(saved / f"{name}.safetensors") for name in ("model", "optimizer"))
    assert "bottleneck.running_counts" in tensors
    kernel = "encoder.layers.0.weight"
    assert {f"{kernel}/{key}" for key in ("step", "exp_avg", "exp_avg_sq")} <= moments.keys()
    assert moments[f"{kernel}/exp_avg"].abs().sum() > 0


def test_state_and_position_of_a_stream_come_back_as_they_were(tmp_path: Path) -> None:
    stepper = build(tiny_run("ae"))
    state = {"config": {"a": [1, 2.5, None]}, "scaler": None, "skipped_in_a_row": 3}
    position = torch.tensor([[3, 2**62], [-1, 5]])
    path = save(stepper, tmp_path, 7, position=position, **state)
    assert path == tmp_path / "step-00000007"
    assert check_files(path) == {"step": 7, **state}
    found = load(path, stepper)
    assert found is not None
    assert torch.equal(found, position)


def test_a_snapshot_is_of_its_moment_whatever_is_trained_since(tmp_path: Path) -> None:
    stepper = build(tiny_run("vqvae", ema_decay=0.9))
    stepper.step(0, [batch()])
    before = state_of(stepper)
    snapshot = take_snapshot(stepper.parts, None, {"step": 1})
    stepper.step(1, [batch()])
    load(write_checkpoint(tmp_path, snapshot, 2), stepper)
    assert changed(state_of(stepper), before) == set()


@pytest.mark.parametrize("name", ["decoder.layers.0.weight", "bottleneck.codebook"])
def test_a_value_that_is_not_finite_is_never_written(name: str) -> None:
    stepper = build(tiny_run("vqvae"))
    with torch.no_grad():
        stepper.tokenizer.state_dict()[name].view(-1)[0] = torch.nan
    with pytest.raises(TrainingError, match=f"'{name}' .* is not finite after 5 steps, so that no"):
        take_snapshot(stepper.parts, None, {"step": 5})


def test_meta_lists_every_other_file_with_its_size(saved: Path) -> None:
    meta = json.loads((saved / "meta.json").read_text())["files"]
    assert meta.keys() == set(FILES) - {"meta.json"}
    assert {name: entry["size"] for name, entry in meta.items()} == {
        name: (saved / name).stat().st_size for name in meta
    }


def test_equal_states_leave_equal_bytes(tmp_path: Path) -> None:
    stepper = build(tiny_run("dvae", ema_decay=0.9))
    stepper.step(0, [batch()])
    for name in ("a", "b"):
        save(stepper, tmp_path / name, 1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# Damage


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-4]) and None,
    "empty": lambda path: path.write_bytes(b"") and None,
    "flipped": flip_a_byte,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named_and_nothing_is_restored(saved: Path, name: str, damage: str) -> None:
    DAMAGES[damage](saved / name)
    is_listed = name != "meta.json" and damage != "missing"
    message = f"step-00000002/{name}' is damaged" if is_listed else "step-00000002"
    stepper = build(tiny_run("vqvae", ema_decay=0.9), seed=1)
    before = state_of(stepper)
    with pytest.raises(ModelFileError, match=message):
        load(saved, stepper)
    assert changed(state_of(stepper), before) == set()


def test_a_list_of_files_that_lacks_one_is_not_a_checkpoint(saved: Path) -> None:
    meta = json.loads((saved / "meta.json").read_text())
    del meta["files"]["model.safetensors"]
    (saved / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ModelFileError, match=r"incomplete \('model.safetensors'\)"):
        load(saved, build(tiny_run("vqvae", ema_decay=0.9)))


@pytest.mark.parametrize(
    ("system", "changes"),
    [
        ("vqvae", {"bottleneck": {"codebook_size": 13}}),
        ("vqvae", {"bottleneck": {"code_dim": 3}}),
        ("ae", {}),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    saved: Path, system: str, changes: dict[str, Any]
) -> None:
    stepper = build(tiny_run(system, ema_decay=0.9, **changes))
    before = state_of(stepper)
    with pytest.raises(ModelFileError, match="is of another model: "):
        load(saved, stepper)
    assert changed(state_of(stepper), before) == set()


def test_averages_that_were_never_saved_are_missed(tmp_path: Path) -> None:
    path = save(build(tiny_run("ae")), tmp_path, 1)
    with pytest.raises(ModelFileError, match="has no average"):
        load(path, build(tiny_run("ae", ema_decay=0.9)))


def test_the_newest_checkpoint_is_continued_and_before_a_damaged_one_the_newest_whole_one(
    tmp_path: Path,
) -> None:
    assert newest_checkpoint(tmp_path / "missing") is None
    assert newest_checkpoint(tmp_path) is None
    stepper = build(tiny_run("ae"))
    first, second, newest = (save(stepper, tmp_path, step, keep_last=3) for step in (1, 2, 3))
    assert newest_checkpoint(tmp_path) == (newest, {"step": 3})
    flip_a_byte(newest / "optimizer.safetensors")
    damaged = f"'{newest}/optimizer.safetensors' is damaged.*; "
    for before, words in (
        (second, f"{second.name} before it is whole: move '{newest}' away"),
        (first, f"{first.name} before it is whole"),
        (newest, "no checkpoint before it is whole: move .* start anew"),
    ):
        with pytest.raises(ModelFileError, match=damaged + words):
            newest_checkpoint(tmp_path)
        (before / "model.safetensors").unlink()


# Keeping the last


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_the_last_checkpoints_are_kept_and_nothing_else_is_touched(tmp_path: Path) -> None:
    stepper = build(tiny_run("ae"))
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "other").write_text("mine")
    for step in range(1, 5):
        save(stepper, tmp_path, step, keep_last=2)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"step-00000003", "step-00000004", "step-notes", "other"}


def test_checkpoints_are_in_order_of_steps_beyond_eight_digits(tmp_path: Path) -> None:
    stepper = build(tiny_run("ae"))
    for step in (99_999_998, 99_999_999, 100_000_000):
        save(stepper, tmp_path, step, keep_last=2)
    assert names(tmp_path) == ["step-99999999", "step-100000000"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = build(tiny_run("ae"))
    for step in (1, 2):
        save(stepper, tmp_path, step, keep_last=2)
    before = contents(tmp_path)

    def full(path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "file_sha256", full)
    with pytest.raises(UnwritableFileError, match=r"step-00000003.*No space left on device"):
        save(stepper, tmp_path, 3, keep_last=1)
    assert contents(tmp_path) == before


def test_older_checkpoints_go_only_when_the_new_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = build(tiny_run("ae"))
    save(stepper, tmp_path, 1)
    seen = []

    def remember(path: Path, ignore_errors: bool = False) -> None:
        seen.append(names(tmp_path))
        real(path, ignore_errors)

    real = shutil.rmtree
    monkeypatch.setattr(checkpoint.shutil, "rmtree", remember)
    save(stepper, tmp_path, 2, keep_last=1)
    # The old one has lost its name before its files go: a part of it is never taken for it.
    assert seen[-1] == ["step-00000002"]
    assert names(tmp_path) == ["step-00000002"]
