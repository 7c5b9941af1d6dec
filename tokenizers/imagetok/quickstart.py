"""The quickstart: a small tokenizer trained, saved, loaded and used, offline, in a few minutes.

It trains the recipe `SYSTEM-shapes` on drawn shapes, loads the result in a fresh process, encodes
and decodes held-out images there, compares the results with those of this process, and looks for
the drawn objects in the reconstructions. With a discrete tokenizer it also tokenizes a thousand
images into shards; with one that has a prior it draws samples and interpolations.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Generator, Tensor

from imagetok.builtin import check_rate, check_scene, first_index, render, scene
from imagetok.data import name_evaluation_split
from imagetok.errors import ConfigError, ImagetokError
from imagetok.images import grid_image
from imagetok.images.rendering import save_image
from imagetok.reports import show, show_evaluation
from imagetok.run_config import RunConfig, load_recipe
from imagetok.shards.token_folder import open_folder
from imagetok.shards.verification import verify
from imagetok.tokenizer import ImageTokenizer
from imagetok.tokenizing import tokenize_dataset
from imagetok.tokenizing.row_preview import decode_rows, draw_grid
from imagetok.training import train

SYSTEMS = ("vqvae", "dvae", "vae", "ae")

NUM_CHECKED = 200
"""Held-out images in whose reconstructions the drawn objects are looked for."""

NUM_TOKENIZED = 1000
"""Held-out images that are tokenized into shards."""

TOKENS = "tokens"
"""Name of the folder of these shards."""

NUM_COMPARED = 8
"""Held-out images that a fresh process encodes and decodes again."""


def run_quickstart(system: str, output_dir: Path) -> None:
    """Train, load, check and show; print where everything is.

    Args:
        system: One of `SYSTEMS`.
        output_dir: Folder to write; it must not hold a run yet.

    Raises:
        ConfigError: Unknown system, or the folder holds a run.
        ImagetokError: A fresh process does not give the same ids and pixels.
    """
    if system not in SYSTEMS:
        raise ConfigError(f"unknown system '{system}'; choose one of: {', '.join(SYSTEMS)}")
    started = time.perf_counter()
    config = name_evaluation_split(load_recipe(f"{system}-shapes"))
    show(
        f"training {system} on {config.data.name}, {config.train.steps} steps of "
        f"{config.train.batch_size} images"
    )
    result = train(config, output_dir)
    show_evaluation(result.evaluation, "held-out images")
    tokenizer = ImageTokenizer.from_pretrained(result.tokenizer_dir)
    _compare_with_fresh_process(tokenizer, result.tokenizer_dir)
    show(f"loaded in a fresh process: the same {_codes_word(tokenizer)} and pixels")
    rate = check_rate(_check_objects(tokenizer))
    show(
        f"of {rate.num_objects} drawn objects on {NUM_CHECKED} held-out reconstructions: "
        f"colours kept {rate.colours:.1%}, positions kept {rate.positions:.1%}"
    )
    shown = [result.tokenizer_dir / "reconstructions.png"]
    if tokenizer.bottleneck.has_prior:
        shown += _draw_prior(tokenizer, output_dir)
    if tokenizer.is_discrete:
        shown.append(_tokenize(tokenizer, result.tokenizer_dir, config, output_dir))
    _say_what_is_next(tokenizer, result.tokenizer_dir, shown)
    show(f"done in {time.perf_counter() - started:.0f} s")


def _held_out(tokenizer: ImageTokenizer, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Images that no training run draws, uint8 (count, S, S, 3), S being the tokenizer's size."""
    size, first = tokenizer.image_size[0], first_index("test")
    return np.stack([render(scene(first + i), size) for i in range(count)])


@dataclass(frozen=True)
class RoundTrip:
    """What encoding and decoding the held-out images gives, to the bit.

    Attributes:
        codes: Ids, or the latents of a continuous model, as nested lists.
        pixels: Bytes of each reconstruction, in hexadecimal.
    """

    codes: Any
    pixels: list[str]


def round_trip(tokenizer: ImageTokenizer) -> RoundTrip:
    """Encode and decode the held-out images."""
    images = _held_out(tokenizer, NUM_COMPARED)
    if tokenizer.is_discrete:
        codes = tokenizer.encode(images)
        decoded = tokenizer.decode(codes)
    else:
        codes = tokenizer.encode_latents(images)
        decoded = tokenizer.decode_latents(codes)
    assert isinstance(decoded, list)
    return RoundTrip(codes.tolist(), [image.tobytes().hex() for image in decoded])


def _compare_with_fresh_process(tokenizer: ImageTokenizer, folder: Path) -> None:
    command = [sys.executable, "-m", "imagetok.quickstart", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ImagetokError(f"a fresh process cannot use {folder}: {reason}")
    if RoundTrip(**json.loads(run.stdout)) != round_trip(tokenizer):
        raise ImagetokError(
            f"{folder}: a fresh process does not give the same codes and pixels as this one"
        )


def _check_objects(tokenizer: ImageTokenizer) -> list[Any]:
    images = tokenizer.reconstruct(_held_out(tokenizer, NUM_CHECKED))
    assert isinstance(images, list)
    first = first_index("test")
    return [
        check
        for i, image in enumerate(images)
        for check in check_scene(np.asarray(image), scene(first + i))
    ]


def _draw_prior(tokenizer: ImageTokenizer, folder: Path) -> list[Path]:
    """Draw samples from the prior, and interpolations between held-out images."""
    samples = tokenizer.sample(16, Generator(tokenizer.device).manual_seed(0), output="pt")
    assert isinstance(samples, Tensor)
    images = list(_held_out(tokenizer, 8))
    walks = []
    for a, b in zip(images[:4], images[4:], strict=True):
        walk = tokenizer.interpolate(a, b, steps=8, output="pt")
        assert isinstance(walk, Tensor)
        walks.append(walk)
    paths = [folder / "samples.png", folder / "interpolation.png"]
    save_image(grid_image([samples[:8], samples[8:]]), paths[0])
    save_image(grid_image(walks), paths[1])
    return paths


def _tokenize(
    tokenizer: ImageTokenizer, tokenizer_dir: Path, config: RunConfig, folder: Path
) -> Path:
    """Tokenize held-out images into shards, check these, and draw what they hold."""
    tokens, path, data = folder / TOKENS, folder / "tokens.png", config.data
    manifest = tokenize_dataset(
        tokenizer_dir,
        data.name,
        tokens,
        split=data.evaluation_split or "test",
        keep=("caption",),
        limit=NUM_TOKENIZED,
        device=str(tokenizer.device),
    )
    report = verify(tokens)
    if not report.is_sound:
        raise ImagetokError(f"the shards in '{tokens}' are not sound: {report}")
    show(f"tokenized {manifest.totals.rows:,} held-out images: {manifest.totals.tokens:,} ids")
    rows = range(min(NUM_COMPARED, manifest.totals.rows))
    save_image(draw_grid(*decode_rows(open_folder(tokens), tokenizer, rows)), path)
    return path


def _codes_word(tokenizer: ImageTokenizer) -> str:
    return "ids" if tokenizer.is_discrete else "latents"


def _say_what_is_next(tokenizer: ImageTokenizer, folder: Path, images: list[Path]) -> None:
    discrete = tokenizer.is_discrete
    use = (
        'ids = tok.encode("photo.jpg"); tok.decode(ids).save("back.png")'
        if discrete
        else 'z = tok.encode_latents("photo.jpg"); tok.decode_latents(z).save("back.png")'
    )
    load = "from imagetok import ImageTokenizer; tok = ImageTokenizer.from_pretrained"
    train = ["imagetok", "train", str(folder.parent / "config.yaml"), "data.name=./photos"]
    # The config names the split that this run was evaluated on, which photos do not have.
    train += ["data.holdout=10%", "data.evaluation_split=holdout"]
    shards = str(folder.parent / TOKENS)
    read = "from imagetok.shards import TokenDataset; print(next(iter(TokenDataset"
    lines = [
        f"tokenizer   {folder}",
        *([f"shards      {shards}"] if discrete else []),
        *(f"image       {path}" for path in images),
        "",
        "what next:",
        "  " + shlex.join(["imagetok", "info", str(folder)]),
        "  " + shlex.join(["imagetok", "reconstruct", "--tokenizer", str(folder), "photo.jpg"]),
        "  " + shlex.join([*train, "--output-dir", "my-run"]),
        "  " + shlex.join(["python", "-c", f"{load}({str(folder)!r}); {use}"]),
    ]
    if discrete:
        lines.append("  " + shlex.join(["python", "-c", f"{read}({shards!r}))))"]))
    for line in lines:
        show(line)


if __name__ == "__main__":
    trip = round_trip(ImageTokenizer.from_pretrained(sys.argv[1]))
    sys.stdout.write(json.dumps(trip.__dict__))
