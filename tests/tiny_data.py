"""Datasets of a few images in every form that is read: image number n has the red level n."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Value
from PIL import Image
from torch import Tensor

from imagetok.config import RunConfig
from tiny_runs import tiny_run

KINDS = ("pictures", "classes", "metadata", "zip", "parquet", "arrow", "webdataset", "saved")
"""Forms of folders."""

BROKEN = b"no picture"


def png(level: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """An image whose rows differ, and whose columns do, so that crops and flips show."""
    picture = Image.new("RGB", size)
    picture.putdata(
        [(level % 256, 9 * x % 256, 9 * y % 256) for y in range(size[1]) for x in range(size[0])]
    )
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def content(level: int, broken: Iterable[int] = ()) -> bytes:
    return BROKEN if level in broken else png(level)


def rows_of(levels: Iterable[int], broken: Iterable[int] = ()) -> Dataset:
    levels = list(levels)
    features = Features({"image": datasets.Image(), "label": Value("int64")})
    pictures = [{"bytes": content(level, broken), "path": f"{level:03d}.png"} for level in levels]
    return Dataset.from_dict({"image": pictures, "label": levels}, features=features)


def write_tar(path: Path, samples: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_split(
    folder: Path,
    kind: str,
    parts: Sequence[range],
    split: str = "train",
    broken: Sequence[int] = (),
) -> Path:
    """Write a split of a dataset; each part is a file, where the form has files of rows.

    Returns:
        The folder.
    """
    place = folder / split if kind in ("pictures", "classes", "metadata") else folder
    place.mkdir(parents=True, exist_ok=True)
    if kind == "metadata":
        lines = [
            json.dumps({"file_name": f"{level:03d}.png", "label": level})
            for part in parts
            for level in part
        ]
        (place / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    for number, levels in enumerate(parts):
        rows = rows_of(levels, broken)
        name = f"{split}-{number:05d}"
        if kind in ("pictures", "classes", "metadata"):
            inner = place / f"class{number}" if kind == "classes" else place
            inner.mkdir(exist_ok=True)
            for level in levels:
                (inner / f"{level:03d}.png").write_bytes(content(level, broken))
        elif kind == "parquet":
            rows.to_parquet(place / f"{name}.parquet")
        elif kind == "arrow":
            rows.save_to_disk(folder.parent / f"{folder.name}-saved-{name}")
            saved = folder.parent / f"{folder.name}-saved-{name}" / "data-00000-of-00001.arrow"
            saved.rename(place / f"{name}.arrow")
        elif kind == "webdataset":
            samples = {}
            for level in levels:
                samples[f"{level:03d}.png"] = content(level, broken)
                samples[f"{level:03d}.cls"] = str(level).encode()
            write_tar(place / f"{name}.tar", samples)
        elif kind == "zip":
            with zipfile.ZipFile(place / f"{name}.zip", "w") as archive:
                for level in levels:
                    archive.writestr(f"{level:03d}.png", content(level, broken))
    if kind == "saved":
        whole = rows_of((level for levels in parts for level in levels), broken)
        whole.save_to_disk(folder)
    return folder


def data_config(
    name: Path | str, *, train: Mapping[str, Any] | None = None, **data: Any
) -> RunConfig:
    """A run on a dataset, of batches of 8 images of 16 x 16."""
    return tiny_run("ae", data={"name": str(name), **data}, **(train or {}))


def levels_of(pixels: Tensor) -> list[int]:
    """Numbers of the images of a batch, uint8 (B, C, H, W)."""
    return [int(level) for level in pixels[:, 0, 0, 0]]
