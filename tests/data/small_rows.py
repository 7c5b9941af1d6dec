"""Small datasets of images, in memory and in files: image number n has the red level n."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Value

from imagetok.data import ImageRows
from imagetok.images import Preprocessor
from tiny_data import png

Open = Callable[..., ImageRows]
"""`open_images` with a cache of the test's own; the split is `train` unless named."""


def write_images(folder: Path, levels: range) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for level in levels:
        (folder / f"{level:03d}.png").write_bytes(png(level))
    return folder


def in_memory(count: int = 4, **columns: list[Any]) -> Dataset:
    """Rows whose image number n has the red level n."""
    images = [{"bytes": png(level), "path": None} for level in range(count)]
    kinds: dict[str, Any] = {"image": datasets.Image()}
    kinds |= {
        name: Value("int64" if isinstance(values[0], int) else "string")
        for name, values in columns.items()
    }
    return Dataset.from_dict({"image": images, **columns}, features=Features(kinds))


def levels_of(rows: ImageRows) -> list[int]:
    small = Preprocessor((2, 2))
    return [int(small(rows.image(row))[0, 0, 0, 0]) for row in range(len(rows))]


def save(tmp_path: Path, dataset: Dataset) -> Path:
    dataset.save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def packed(path: Path, contents: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path
