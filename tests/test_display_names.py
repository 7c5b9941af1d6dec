"""Names of datasets and tokenizers for others to read: no folder of a machine is in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagetok.data import DatasetRef
from imagetok.display_names import dataset_source, display_name, without_folders


@pytest.mark.parametrize(
    "name", ["user/data", "mnist", "builtin:shapes?size=16&count=64", "photos", "my photos"]
)
def test_a_name_that_is_not_a_path_stays_as_it_is(name: str) -> None:
    assert without_folders(name) == display_name(name) == DatasetRef(name).display_name == name


def test_a_folder_is_told_by_its_name_however_it_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "user" / "data"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("user/data", "./user/data", "user/data/.", "~/user/data", str(folder)):
        assert (display_name(name), dataset_source(name)) == ("data", "local")
        assert DatasetRef(name).display_name == "data"
    monkeypatch.chdir(folder)
    assert (display_name("."), display_name("..")) == ("data", "user")
    assert (display_name("user/data"), dataset_source("user/data")) == ("user/data", "hub")
    assert dataset_source("builtin:digits") == "builtin"
    assert dataset_source("a\0b") == dataset_source("gone/and/away") == "local"
