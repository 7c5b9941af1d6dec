"""Trees of images that version 1 read rightly, built from nothing but their names.

`python tests/data/trees/layouts.py`, with version 1 in the path, records what it made of them in
the files beside this one.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
import zlib
from contextlib import chdir
from hashlib import sha256
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

TREES: dict[str, tuple[list[str], dict[str, str]]] = {
    "flat": (["b.png", "a.png", "A.png", "10.png", "9.png", "ü.png"], {}),
    "classes": (["cat/1.png", "dog/2.png", "cat-x/1.png", "dog/10.png"], {}),
    "one-class": (["cat/1.png", "cat/2.png"], {}),
    "splits": (["train/1.png", "train/2.png", "test/1.png"], {}),
    "three-splits": (["train/1.png", "val/2.png", "val/3.png", "test/1.png"], {}),
    "only-train": (["train/1.png", "train/2.png"], {}),
    "split-classes": (
        ["train/cat/1.png", "train/dog/2.png", "test/cat/1.png", "test/dog/9.png"],
        {},
    ),
    "mixed-depth": (["a.png", "cat/1.png", "cat/deep/2.png", "dog/3.png"], {}),
    "image-beside-class": (["cover.png", "cat/1.png"], {}),
    "deep-classes": (["a/x/1.png", "b/y/2.png", "a/z/3.png"], {}),
    "csv": (
        ["0.png", "1.png", "2.png"],
        {"metadata.csv": "file_name,text,n\n0.png,a,1\n1.png,,2\n2.png,c,3\n"},
    ),
    "csv-classes": (
        ["cat/0.png", "dog/1.png"],
        {"metadata.csv": "text,file_name\na,cat/0.png\nb,dog/1.png\n"},
    ),
    "jsonl-splits": (
        ["train/0.png", "train/1.png", "test/0.png"],
        {
            "train/metadata.jsonl": '{"file_name":"0.png","tags":["x"],"n":1}\n'
            '{"file_name":"1.png","tags":[],"n":1.5}\n',
            "test/metadata.jsonl": '{"file_name":"0.png","tags":["y"],"n":2.0}\n',
        },
    ),
    "mask": (
        ["0.png", "1.png", "masks/0.png", "masks/1.png"],
        {"metadata.csv": "file_name,mask_file_name\n0.png,masks/0.png\n1.png,masks/1.png\n"},
    ),
}
"""Images by their paths, and the texts of other files."""

CONTINUED = ("splits", "mixed-depth")
"""Trees with a job that is half done, and a run that has a checkpoint."""


def png(level: int, side: int = 16) -> bytes:
    """An image of one colour, the same bytes with every version of every library."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = b"".join(b"\0" + bytes((40 * level % 256, 7 * row, level)) * side for row in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 0)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def build(root: Path, name: str) -> Path:
    """Write a tree below `root`."""
    images, texts = TREES[name]
    for level, path in enumerate(images):
        (root / name / path).parent.mkdir(parents=True, exist_ok=True)
        (root / name / path).write_bytes(png(level))
    for path, text in texts.items():
        (root / name / path).write_text(text)
    return root / name


def describe(folder: Path, split: str, cache: Path) -> dict[str, Any]:
    """What a split is read as: the images in their order, other columns, features, fingerprint."""
    from imagetok.data import open_images

    rows = open_images(str(folder), split, image_column="image", cache_dir=cache)
    found = [rows.row(number) for number in range(len(rows))]
    paths = [Path(row.pop(rows.image_column)["path"]) for row in found]
    for row in found:
        for column, value in row.items():
            if isinstance(value, dict):
                row[column] = Path(value["path"]).relative_to(folder).as_posix()
    return {
        "images": [path.relative_to(folder).as_posix() for path in paths],
        "rows": found,
        "features": rows.dataset.features.to_dict(),
        "fingerprint": rows.fingerprint,
    }


def job_arguments(tokenizer: Path, folder: Path, out: Path) -> dict[str, Any]:
    """Arguments of `tokenize_dataset`."""
    return {
        "tokenizer": tokenizer,
        "dataset": str(folder),
        "output_dir": out,
        "rows_per_shard": 1,
        "batch_size": 2,
        "device": "cpu",
        "threads": 1,
        "progress": False,
    }


def run_values(folder: Path) -> dict[str, Any]:
    """A run's config of four steps, of which two have been done where it is recorded."""
    network = {"type": "conv", "hidden_channels": 2, "residual_channels": 2}
    network["num_residual_blocks"] = 1
    return {
        "tokenizer": {
            "image_size": [16, 16],
            "encoder": network,
            "bottleneck": {"type": "identity", "latent_dim": 2},
            "decoder": network,
            "likelihood": {"type": "mse"},
        },
        "data": {"name": str(folder), "evaluation_split": "train"},
        "train": {"steps": 4, "batch_size": 2, "checkpoint_every": 2, "optimizer": {"lr": 1e-3}},
    }


def _record(work: Path) -> None:
    import torch

    from imagetok import RunConfig
    from imagetok.tokenizing import tokenize_dataset
    from imagetok.training import train

    torch.set_num_threads(1)
    expected: dict[str, Any] = {}
    for name in TREES:
        folder = build(work, name)
        splits = {"train": "train"} | {
            split: split
            for split, own in {"validation": "val", "test": "test"}.items()
            if (folder / own).is_dir()
        }
        expected[name] = {split: describe(folder, split, work / "cache") for split in splits}
    tokenizer = HERE.parent.parent / "goldens" / "tokenizers" / "vqvae"
    for name in CONTINUED:
        folder, out, run = work / name, HERE / f"{name}-job", HERE / f"{name}-run"
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(run, ignore_errors=True)
        tokenize_dataset(**job_arguments(tokenizer, folder, out))
        shards = sorted((out / "data").glob("*"))
        expected[name]["shards"] = {
            path.name: sha256(path.read_bytes()).hexdigest() for path in shards
        }
        for path in [*shards[1:], out / "manifest.json", out / "README.md"]:
            path.unlink()
        with chdir(work):  # the config that is recorded says nothing about the machine
            train(RunConfig.from_dict(run_values(Path(name))), work / "whole")
        run.mkdir()
        done = "checkpoints/step-00000002"
        shutil.copytree(work / "whole" / done, run / done)
        shutil.copy(work / "whole" / "config.yaml", run)
        shutil.copy(work / "whole" / "losses.jsonl", run / "all-losses.jsonl")
        shutil.rmtree(work / "whole")
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (HERE / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    _record(Path(sys.argv[1]))
