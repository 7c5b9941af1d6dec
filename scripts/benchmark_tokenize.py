"""How close `imagetok tokenize` comes to the encoder alone.

    python scripts/benchmark_tokenize.py
    python scripts/benchmark_tokenize.py --hidden 256 --images 320       # a slow encoder
    python scripts/benchmark_tokenize.py --memory 2000 20000             # and peak memory
    python scripts/benchmark_tokenize.py --parquet --memory 2000 20000   # the files in parquet

Measured in one run, on images of 512 x 512 pixels in JPEG files that are made for it:

- E, images per second of the bare encoder, fed from memory, before and after the job;
- J, images per second and core of decoding and resizing;
- the whole job.

Where encoder and decoding share the cores, no job can do more than 1 / (1/E + 1/(cores x J)) images
per second, except by filling gaps that the encoder leaves; where the encoder has a device of its
own, no more than the smaller one of E and cores x J.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from imagetok import ImageTokenizer, TokenizerConfig
from imagetok.freed_memory import keep_freed_memory
from imagetok.launch import find_device, find_rank_info
from imagetok.tokenizing import tokenize_dataset
from imagetok.tokenizing.batch_encoder import BatchEncoder
from imagetok.tokenizing.image_preparation import Preparation, Prepared

SIDE = 512
"""Sides of the files in pixels; the tokenizer takes half of that."""


def make_files(folder: Path, count: int) -> None:
    """Write images that compress about as photographs do."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int16)
        noise = random.integers(-12, 13, smooth.shape, dtype=np.int16)
        image = Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:06d}.jpg", quality=90)


def pack_files(files: Path, folder: Path) -> None:
    """Write the files of a folder into parquet files of a thousand."""
    folder.mkdir()
    schema = datasets.Features({"image": datasets.Image()}).arrow_schema
    paths = sorted(files.iterdir())
    for start in range(0, len(paths), 1000):
        rows = [{"bytes": path.read_bytes(), "path": path.name} for path in paths[start:][:1000]]
        table = pa.table({"image": pa.array(rows, schema.field("image").type)}, schema=schema)
        pq.write_table(table, folder / f"train-{start // 1000:05d}.parquet", row_group_size=100)


def make_tokenizer(hidden: int) -> ImageTokenizer:
    """A VQ-VAE with random weights for 256 x 256 images, 32 x 32 ids of 8,192 codes."""
    network = {
        "type": "conv",
        "hidden_channels": hidden,
        "residual_channels": hidden // 4,
        "num_residual_blocks": 2,
        "num_downsamplings": 3,
    }
    torch.manual_seed(0)
    return ImageTokenizer.from_config(
        TokenizerConfig.from_dict(
            {
                "image_size": [SIDE // 2, SIDE // 2],
                "encoder": network,
                "bottleneck": {"type": "vq", "codebook_size": 8192, "latent_dim": 16},
                "decoder": {**network, "hidden_channels": 16, "residual_channels": 8},
                "likelihood": {"type": "mse"},
            }
        )
    )


def rate(work: Callable[[], object], images: int, seconds: float) -> float:
    """Images per second of work that is repeated for a while, after one warm-up."""
    work()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        work()
        done += images
    return done / (time.perf_counter() - started)


def peak_memory(arguments: Sequence[str]) -> float:
    """MiB that a process of its own had at most.

    It gives buffers of 4 MiB and more back when they are freed. By default glibc keeps them where
    it can, and equal jobs differ by 15 % in what lies unused at the worst moment.
    """
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], {}, '__main__')"
    command = [sys.executable, "-c", code, __file__, *arguments]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**22)}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(json.loads(run.stdout.splitlines()[-1])["peak_mib"])


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Measure E, J and the job, and print them with the bound."""
    make_files(folder / "files", options.images)
    tokenizer = make_tokenizer(options.hidden)
    tokenizer.save_pretrained(folder / "tokenizer")
    model = ImageTokenizer.from_pretrained(
        folder / "tokenizer", device=find_device(options.device, find_rank_info(0, 1))
    )
    preparation = Preparation(model.preprocessor, None, None)
    files = sorted((folder / "files").iterdir())[: options.batch_size]
    images = [{"bytes": path.read_bytes(), "path": None} for path in files]
    prepared = [one for one in preparation(images) if isinstance(one, Prepared)]
    batch = [one.pixels for one in prepared]
    encoder = BatchEncoder(model, options.batch_size)
    before = rate(lambda: encoder(batch), len(batch), options.seconds)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    decoding = rate(lambda: preparation(images), len(images), options.seconds)
    torch.set_num_threads(threads)
    job = run_job(folder, options)
    after = rate(lambda: encoder(batch), len(batch), options.seconds)
    bare = (before + after) / 2
    cores = len(os.sched_getaffinity(0))
    shared = 1 / (1 / bare + 1 / (cores * decoding))
    bound = shared if model.device.type == "cpu" else min(bare, cores * decoding)
    print("| cores | E before, after | J a core | bound | job | of the bound | of E |")
    print("|---|---|---|---|---|---|---|")
    figures = f"{before:.1f}, {after:.1f} | {decoding:.1f} | {bound:.1f} | {job:.1f}"
    print(f"| {cores} | {figures} | {job / bound:.1%} | {job / bare:.1%} |")


def run_job(folder: Path, options: argparse.Namespace) -> float:
    """Images per second of the whole job."""
    datasets.disable_progress_bars()
    if options.parquet:
        pack_files(folder / "files", folder / "packed")
    manifest = tokenize_dataset(
        folder / "tokenizer",
        folder / ("packed" if options.parquet else "files"),
        folder / "tokens",
        batch_size=options.batch_size,
        workers=options.workers,
        device=options.device,
        progress=False,
    )
    assert manifest.throughput is not None
    return float(manifest.throughput["images_per_second"])


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=1024, help="images of the job")
    parser.add_argument("--hidden", type=int, default=48, help="channels: how slow the encoder is")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="as of imagetok tokenize")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement of a part")
    parser.add_argument("--parquet", action="store_true", help="the job reads them from parquet")
    parser.add_argument("--memory", type=int, nargs="+", help="numbers of rows to compare")
    parser.add_argument("--job-alone", action="store_true", help="print the peak memory of a job")
    options = parser.parse_args()
    keep_freed_memory()  # as the command does
    with tempfile.TemporaryDirectory(prefix="imagetok-benchmark-") as name:
        folder = Path(name)
        if options.job_alone:
            make_files(folder / "files", options.images)
            make_tokenizer(options.hidden).save_pretrained(folder / "tokenizer")
            run_job(folder, options)
            # Not ru_maxrss, which begins with what the process that started this one had.
            status = Path("/proc/self/status").read_text(encoding="ascii")
            peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
            print(json.dumps({"peak_mib": peak}))
            return
        measure(options, folder)
    for rows in options.memory or ():
        given = ["--hidden", str(options.hidden), *(["--parquet"] if options.parquet else [])]
        peak = peak_memory(["--job-alone", "--images", str(rows), *given])
        print(f"peak memory at {rows} rows: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
