"""A tokenizer's folder: exact round trips, and every damage named."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from imagetok import modelfile
from imagetok.config import TokenizerConfig
from imagetok.errors import (
    InvalidValueError,
    ModelFileError,
    UnreadableFileError,
    UnwritableFileError,
)
from imagetok.files import TEMPORARY_PREFIX


def make_config(latent_dim: int = 2) -> TokenizerConfig:
    return TokenizerConfig.from_dict(
        {
            "image_size": [8, 8],
            "encoder": {"type": "mlp"},
            "bottleneck": {"type": "identity", "latent_dim": latent_dim},
            "decoder": {"type": "mlp"},
            "likelihood": {"type": "mse"},
        }
    )


def make_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "encoder.weight": torch.randn(3, 4, generator=generator),
        "decoder.bias": torch.randn(5, generator=generator),
        "bottleneck.count": torch.tensor(2**40 + 1),
    }


def save(folder: Path, latent_dim: int = 2, seed: int = 0) -> Path:
    modelfile.save_model(folder, make_config(latent_dim), make_tensors(seed))
    return folder / modelfile.MODEL_FILE


# Round trips


def test_config_and_tensors_come_back_exactly(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "folder")
    files = modelfile.load_model(path.parent)
    assert files.config == make_config()
    assert files.path == path
    copy = (path.parent / modelfile.CONFIG_FILE).read_text()
    assert TokenizerConfig.from_json(copy) == make_config()
    assert copy.count("\n") > 10, "people can read it"
    assert files.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    expected = make_tensors()
    assert files.tensors.keys() == expected.keys()
    assert all(torch.equal(files.tensors[name], expected[name]) for name in expected)


def test_equal_saves_give_equal_bytes_in_any_order_of_the_tensors(tmp_path: Path) -> None:
    tensors = make_tensors()
    modelfile.save_model(tmp_path / "a", make_config(), tensors)
    modelfile.save_model(tmp_path / "b", make_config(), dict(reversed(tensors.items())))
    for name in (modelfile.MODEL_FILE, modelfile.CONFIG_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    files = modelfile.load_model(tmp_path / "a")
    modelfile.save_model(tmp_path / "c", files.config, files.tensors)
    saved = [tmp_path / folder / modelfile.MODEL_FILE for folder in ("a", "c")]
    assert saved[0].read_bytes() == saved[1].read_bytes()


def test_the_header_has_one_key_of_canonical_json(tmp_path: Path) -> None:
    with safe_open(save(tmp_path), framework="pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["imagetok"]
    header = json.loads(metadata["imagetok"])
    said = {"config": make_config().to_dict(), "format_version": 1}
    assert header == {**said, "sha256": modelfile.content_digest(make_tensors(), said)}
    assert metadata["imagetok"] == json.dumps(header, sort_keys=True, separators=(",", ":"))


def test_the_model_file_alone_is_a_complete_tokenizer(tmp_path: Path) -> None:
    path = save(tmp_path / "a")
    (tmp_path / "b").mkdir()
    path.rename(tmp_path / "b" / modelfile.MODEL_FILE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert modelfile.load_model(tmp_path / "b").config == make_config()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        save(tmp_path)
    finally:
        os.umask(before)
    for name in (modelfile.MODEL_FILE, modelfile.CONFIG_FILE):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


# Refusals on saving


def test_a_value_that_is_not_finite_is_refused_and_keeps_the_old_tokenizer(tmp_path: Path) -> None:
    old = save(tmp_path).read_bytes()
    tensors = make_tensors() | {"bad": torch.tensor(float("nan"))}
    with pytest.raises(InvalidValueError, match="tensor 'bad'"):
        modelfile.save_model(tmp_path, make_config(3), tensors)
    assert (tmp_path / modelfile.MODEL_FILE).read_bytes() == old
    assert modelfile.load_model(tmp_path).config == make_config()


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "name").touch()
    with pytest.raises(UnwritableFileError, match=r"cannot make '.*name': File exists"):
        save(tmp_path / "name")


# Interrupted saves

KILLED_AT_A_RENAME = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_model_folder as model
real, left = os.replace, int(sys.argv[3])
def replace(*paths):
    global left
    left -= 1
    real(*paths) if left else os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
model.save(model.Path(sys.argv[2]), latent_dim=3, seed=1)
"""


@pytest.mark.parametrize(("rename", "committed"), [(1, False), (2, True)])
def test_a_killed_save_leaves_the_old_tokenizer_or_the_new_one_and_no_lasting_litter(
    tmp_path: Path, rename: int, committed: bool
) -> None:
    save(tmp_path)
    command = [sys.executable, "-c", KILLED_AT_A_RENAME, Path(__file__).parent, tmp_path]
    killed = subprocess.run([*command, str(rename)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))
    if committed:
        with pytest.warns(UserWarning, match=r"config\.json' differs"):
            files = modelfile.load_model(tmp_path)
    else:
        files = modelfile.load_model(tmp_path)
    assert files.config == make_config(3 if committed else 2)
    assert modelfile.tensors_digest(files.tensors) == modelfile.tensors_digest(
        make_tensors(int(committed))
    )
    save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [modelfile.CONFIG_FILE, modelfile.MODEL_FILE]


# Refusals on loading


def test_a_missing_folder_and_a_folder_without_a_model_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="nowhere' does not exist"):
        modelfile.load_model(tmp_path / "nowhere")
    with pytest.raises(ModelFileError, match=r"holds no model\.safetensors"):
        modelfile.load_model(tmp_path)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path)
    real = modelfile.load_tensors

    def load_slowly(path: Path, digest: str, expected: None) -> dict[str, Tensor]:
        tensors = real(path, digest, expected)
        save(tmp_path, seed=1)
        return tensors

    monkeypatch.setattr("imagetok.modelfile.model_folder.load_tensors", load_slowly)
    with pytest.raises(ModelFileError, match="was replaced while it was read"):
        modelfile.load_model(tmp_path)


# config.json


def test_a_config_json_that_differs_gives_way_to_the_header_with_a_warning(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / modelfile.CONFIG_FILE).write_text(make_config(7).to_json())
    with pytest.warns(UserWarning, match=r"config\.json' differs"):
        assert modelfile.load_model(tmp_path).config == make_config()


# Evaluation and images


def add_evaluation(folder: Path, sha256: str) -> None:
    (folder / modelfile.EVALUATION_FILE).write_text(
        json.dumps({modelfile.EVALUATED_KEY: sha256, "psnr": 20.0})
    )
    (folder / modelfile.PICTURES_FILE).write_bytes(b"pictures")


def test_an_equal_save_keeps_the_evaluation_and_another_removes_it(tmp_path: Path) -> None:
    save(tmp_path)
    add_evaluation(tmp_path, modelfile.load_model(tmp_path).sha256)
    save(tmp_path)
    assert (tmp_path / modelfile.EVALUATION_FILE).exists()
    assert (tmp_path / modelfile.PICTURES_FILE).exists()
    save(tmp_path, seed=1)
    assert sorted(os.listdir(tmp_path)) == [modelfile.CONFIG_FILE, modelfile.MODEL_FILE]


def test_evaluation_and_images_are_carried_along_to_equal_weights_only(tmp_path: Path) -> None:
    save(tmp_path / "a")
    sha256 = modelfile.load_model(tmp_path / "a").sha256
    add_evaluation(tmp_path / "a", sha256)
    save(tmp_path / "equal")
    assert modelfile.carry_evaluation(tmp_path / "a", tmp_path / "equal")
    for name in (modelfile.EVALUATION_FILE, modelfile.PICTURES_FILE):
        carried = (tmp_path / "equal" / name).read_bytes()
        assert carried == (tmp_path / "a" / name).read_bytes()
    save(tmp_path / "other", seed=1)
    assert not modelfile.carry_evaluation(tmp_path / "a", tmp_path / "other")
    assert sorted(os.listdir(tmp_path / "other")) == [modelfile.CONFIG_FILE, modelfile.MODEL_FILE]
    assert modelfile.carry_evaluation(tmp_path / "a", tmp_path / "a")
    assert not modelfile.carry_evaluation(tmp_path / "other", tmp_path / "equal"), "it has none"
    with pytest.raises(UnreadableFileError, match="nowhere"):
        modelfile.carry_evaluation(tmp_path / "a", tmp_path / "nowhere")
    (tmp_path / "a" / modelfile.EVALUATION_FILE).write_text("{")
    assert not modelfile.carry_evaluation(tmp_path / "a", tmp_path / "a")
