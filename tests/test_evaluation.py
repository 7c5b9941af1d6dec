"""Figures against one naive computation in float64, and independent of how they are computed."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from torch import Tensor

from imagetok import ImageTokenizer
from imagetok.bottlenecks import DiscreteBottleneck, GaussianBottleneck, GumbelBottleneck
from imagetok.config import TokenizerConfig
from imagetok.data import ImageRows, open_images
from imagetok.errors import DataError, InvalidValueError
from imagetok.evaluation import evaluate, join_processes, reconstruction_grid
from imagetok.keys import make_keys
from imagetok.metrics import ImageMean, MeasuredBatch, MeasuredModel, Metric, MetricConfig
from tiny_runs import CODEBOOK_SIZE, DATA, SYSTEMS, run_two_ranks, tiny_run

POSITIONS, PIXELS = 16, 16 * 16


@pytest.fixture(scope="module")
def rows() -> ImageRows:
    return open_images(DATA, "test")


def build(system: str, **bottleneck: Any) -> ImageTokenizer:
    """A tokenizer whose outputs differ between images, though untrained."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizer.from_config(tiny_run(system, bottleneck=bottleneck).tokenizer)
    for parameter in tokenizer.parameters():
        parameter.data.mul_(2)
    return tokenizer


def prepared(rows: ImageRows, tokenizer: ImageTokenizer, indices: range) -> Tensor:
    pixels = tokenizer.preprocess([rows.image(row) for row in indices])
    return pixels.double() / 255


@torch.no_grad()
def naive_figures(tokenizer: ImageTokenizer, rows: ImageRows, indices: range) -> dict[str, float]:
    """All images at once, in float64, by the definitions."""
    exact, x = tokenizer.double(), prepared(rows, tokenizer, indices)
    bottleneck, z = exact.bottleneck, exact.encoder(x)
    if isinstance(bottleneck, DiscreteBottleneck):
        z_q = bottleneck.lookup(bottleneck.encode_ids(z))
    else:
        z_q = bottleneck.posterior(z).mean if isinstance(bottleneck, GaussianBottleneck) else z
    x_hat = exact.likelihood.mean(exact.decoder(z_q)).clamp(0, 1)
    error = (x_hat - x).flatten(1)
    figures = {
        "psnr": float((-10 * error.square().mean(1).log10()).mean()),
        "l1": float(error.abs().mean()),
        "num_images": len(x),
    }
    rate: Tensor | float | None = None
    if isinstance(bottleneck, GumbelBottleneck | GaussianBottleneck):
        keys = make_keys(0, 0, indices, "evaluate")
        z_q, rate = bottleneck.rate(z, keys)[0], bottleneck.kl(z)
    elif isinstance(bottleneck, DiscreteBottleneck):
        rate = POSITIONS * math.log(CODEBOOK_SIZE)
    if rate is not None:
        nats = exact.likelihood.nll(exact.decoder(z_q), x) + rate
        figures["bits_per_dim"] = float(nats.mean() / (3 * PIXELS * math.log(2)) + 8)
    if isinstance(bottleneck, DiscreteBottleneck):
        counts = np.bincount(bottleneck.encode_ids(z).flatten(), minlength=CODEBOOK_SIZE)
        shares = counts[counts > 0] / counts.sum()
        figures["codebook_usage"] = len(shares) / CODEBOOK_SIZE
        figures["codebook_perplexity"] = math.exp(-(shares * np.log(shares)).sum())
        figures["bits_per_pixel"] = POSITIONS * math.log2(CODEBOOK_SIZE) / PIXELS
    return figures


@pytest.mark.parametrize("system", SYSTEMS)
def test_figures_are_those_of_a_naive_computation(rows: ImageRows, system: str) -> None:
    tokenizer = build(system)
    found = evaluate(tokenizer, rows, batch_size=7, progress=False)
    for name, value in naive_figures(tokenizer, rows, range(64)).items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("system", SYSTEMS)
def test_figures_do_not_depend_on_the_batch_size(rows: ImageRows, system: str) -> None:
    tokenizer = build(system)
    one, other = (evaluate(tokenizer, rows, batch_size=n, progress=False) for n in (64, 5))
    numbers = {key for key, value in one.items() if isinstance(value, float)}
    assert len(numbers) >= 3
    for key in numbers:
        assert other[key] == pytest.approx(one[key], rel=1e-6), key
    assert {**other, **dict.fromkeys(numbers, 0)} == {**one, **dict.fromkeys(numbers, 0)}


def test_what_does_not_apply_is_none(rows: ImageRows) -> None:
    figures = {system: evaluate(build(system), rows, progress=False) for system in SYSTEMS}
    missing = {
        system: {key for key, value in found.items() if value is None}
        for system, found in figures.items()
    }
    codes = {"codebook_usage", "codebook_perplexity", "bits_per_pixel"}
    assert missing == {
        "ae": codes | {"bits_per_dim"},
        "vae": codes,
        "vqvae": set(),
        "dvae": set(),
    }


def test_images_smaller_than_its_window_have_no_ssim() -> None:
    pytest.importorskip("sklearn")
    values = tiny_run("ae").tokenizer.to_dict() | {"image_size": [8, 8], "channels": 1}
    tokenizer = ImageTokenizer.from_config(TokenizerConfig.from_dict(values))
    figures = evaluate(tokenizer, open_images("builtin:digits", "test[:20]"), progress=False)
    assert figures["ssim"] is None
    assert 0 < figures["psnr"] < 60


def test_ssim_is_one_for_what_is_kept_and_less_for_what_is_not(rows: ImageRows) -> None:
    tokenizer = build("ae")
    assert evaluate(tokenizer, rows, progress=False)["ssim"] < 0.9

    class Copy(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z

    perfect = ImageTokenizer(
        tokenizer.preprocessor,
        tokenizer.encoder,
        tokenizer.bottleneck,
        Copy(),
        tokenizer.likelihood,
    )
    perfect.encoder.forward = lambda x: x - 0.5  # type: ignore[method-assign]
    perfect.bottleneck.in_channels = 3
    figures = evaluate(perfect, rows, progress=False)
    assert figures["ssim"] == pytest.approx(1)
    assert figures["psnr"] > 90


class BrightnessConfig(MetricConfig):
    title: ClassVar[str] = "brightness"
    protocol: ClassVar[str] = "mean of reconstruction minus original"
    type: Literal["test_brightness"] = "test_brightness"

    def build(self, model: MeasuredModel) -> Metric:
        return Brightness(self, model)


class Brightness(ImageMean):
    def measure(self, batch: MeasuredBatch) -> Tensor:
        return (batch.x_hat - batch.x).double().mean((1, 2, 3))


def test_further_metrics_are_measured_by_name(rows: ImageRows) -> None:
    tokenizer = build("vae")
    plain = evaluate(tokenizer, rows, progress=False)
    found = evaluate(tokenizer, rows, metrics=["psnr", "test_brightness"], progress=False)
    assert list(found) == [*list(plain)[:7], "test_brightness", *list(plain)[7:]]
    x = prepared(rows, tokenizer, range(64)).float()
    x_hat = tokenizer.reconstruct(x, output="pt")
    assert isinstance(x_hat, Tensor)
    assert found["test_brightness"] == pytest.approx(float((x_hat - x).mean()), abs=1e-7)
    assert found["protocol"].pop("test_brightness") == BrightnessConfig.protocol
    assert {**plain, "test_brightness": found["test_brightness"]} == found


def test_an_unknown_metric_is_refused_before_anything_is_measured(rows: ImageRows) -> None:
    with pytest.raises(InvalidValueError, match="metric 'fid'; choose one of: bits_per_dim"):
        evaluate(build("ae"), rows, metrics=["fid"], poll=pytest.fail, progress=False)


# Which rows


def test_a_limit_takes_evenly_spaced_rows(rows: ImageRows) -> None:
    tokenizer = build("vqvae")
    limited = evaluate(tokenizer, rows, limit=16, progress=False)
    assert limited["num_images"] == 16
    assert limited["protocol"]["rows"] == "evenly spaced"
    assert limited["protocol"]["dataset_rows"] == 64
    expected = naive_figures(tokenizer, rows, range(0, 64, 4))
    assert limited["psnr"] == pytest.approx(expected["psnr"], rel=1e-5)


@pytest.mark.parametrize("limit", [64, 1000, None])
def test_a_limit_beyond_the_rows_takes_all(rows: ImageRows, limit: int | None) -> None:
    figures = evaluate(build("ae"), rows, limit=limit, progress=False)
    assert figures["num_images"] == 64
    assert figures["protocol"]["rows"] == "all"


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": -3}, {"batch_size": 0}])
def test_counts_under_one_are_refused(rows: ImageRows, options: dict[str, int]) -> None:
    with pytest.raises(InvalidValueError, match="batch_size and limit are at least 1"):
        evaluate(build("ae"), rows, progress=False, **options)


def test_a_slice_of_a_split_is_measured_alone(rows: ImageRows) -> None:
    tokenizer = build("ae")
    figures = evaluate(tokenizer, open_images(DATA, "test[8:24]"), progress=False)
    assert figures["num_images"] == 16
    assert figures["protocol"]["split"] == "test[8:24]"
    expected = naive_figures(tokenizer, rows, range(8, 24))
    assert figures["psnr"] == pytest.approx(expected["psnr"], rel=1e-5)


def broken_rows(rows: ImageRows, *places: int) -> ImageRows:
    """The first four images, some of which cannot be read."""
    bad = {"bytes": b"not an image", "path": None}
    images = [bad if place in places else rows.image(place) for place in range(4)]
    dataset = Dataset.from_dict({"image": images}, features=Features({"image": Image()}))
    return ImageRows("mine", "test", dataset.cast_column("image", Image(decode=False)), "image")


def test_an_image_that_cannot_be_read_is_named(rows: ImageRows) -> None:
    with pytest.raises(DataError, match=r"row 1 of 'mine' \(test\) cannot be read"):
        evaluate(build("ae"), broken_rows(rows, 1), progress=False)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_images_that_may_be_left_out_are_counted_and_named(
    rows: ImageRows, caplog: pytest.LogCaptureFixture, batch_size: int
) -> None:
    tokenizer, broken = build("vqvae"), broken_rows(rows, 1)
    figures = evaluate(
        tokenizer, broken, batch_size=batch_size, progress=False, max_error_rate=0.25
    )
    assert (figures["num_images"], figures["num_unreadable"]) == (3, 1)
    assert "1 of 4 images left out: row 1 of 'mine' (test)" in caplog.text
    others = dataclasses.replace(broken, dataset=broken.dataset.select([0, 2, 3]))
    expected = evaluate(tokenizer, others, batch_size=batch_size, progress=False)
    for name in ("psnr", "l1", "codebook_usage", "codebook_perplexity"):
        assert figures[name] == pytest.approx(expected[name], rel=1e-6)


@pytest.mark.parametrize(("places", "rate"), [((1, 2), 0.25), ((0, 1, 2, 3), 1.0)])
def test_too_many_images_that_cannot_be_read_are_refused(
    rows: ImageRows, places: tuple[int, ...], rate: float
) -> None:
    with pytest.raises(DataError, match=rf"{len(places)} of 4 images cannot be read.*row 2 of"):
        evaluate(build("ae"), broken_rows(rows, *places), progress=False, max_error_rate=rate)


def test_the_grid_leaves_out_what_cannot_be_read(rows: ImageRows) -> None:
    tokenizer = build("ae")
    broken, sound = broken_rows(rows, 1), broken_rows(rows)
    others = dataclasses.replace(sound, dataset=sound.dataset.select([0, 2, 3]))
    shown = reconstruction_grid(tokenizer, broken)
    assert shown.tobytes() == reconstruction_grid(tokenizer, others).tobytes()
    with pytest.raises(DataError, match="there is no image to show: row 1 of"):
        reconstruction_grid(tokenizer, broken_rows(rows, 0, 1, 2, 3))


# Protocol


def test_the_protocol_says_what_was_measured_and_how(rows: ImageRows) -> None:
    tokenizer = build("vqvae")
    figures = evaluate(tokenizer, rows, progress=False)
    protocol = figures["protocol"]
    assert figures["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert (
        protocol.items()
        >= {
            "dataset": DATA,
            "split": "test",
            "dataset_fingerprint": rows.fingerprint,
            "dataset_rows": 64,
            "image_size": [16, 16],
            "channels": 3,
            "data_range": 1.0,
            "dtype": "float32",
        }.items()
    )
    for word in ("bicubic", "antialiased", "centre crop"):
        assert word in protocol["resize"]
    assert "8 bits" in protocol["psnr"]
    assert "data range 1" in protocol["ssim"]
    assert json.loads(json.dumps(figures)) == figures


def test_the_protocol_tells_a_limit_of_pixels_where_one_is_set(rows: ImageRows) -> None:
    tokenizer = build("vqvae")
    assert "max_pixels" not in evaluate(tokenizer, rows, limit=1, progress=False)["protocol"]
    tokenizer.max_pixels = 256
    figures = evaluate(tokenizer, rows, limit=1, progress=False)
    assert figures["protocol"]["max_pixels"] == 256
    tokenizer.max_pixels = 255
    with pytest.raises(DataError, match="256 pixels, over the limit of 255 pixels"):
        evaluate(tokenizer, rows, limit=1, progress=False)


def test_a_narrower_dtype_is_told_and_gives_figures_close_by(rows: ImageRows) -> None:
    tokenizer = build("vae")
    exact = evaluate(tokenizer, rows, progress=False)
    rounded = evaluate(tokenizer.to(torch.bfloat16), rows, progress=False)
    assert rounded["protocol"]["dtype"] == "bfloat16"
    assert rounded["psnr"] != exact["psnr"]
    assert rounded["psnr"] == pytest.approx(exact["psnr"], rel=0.02)
    assert rounded["tokenizer_fingerprint"] == exact["tokenizer_fingerprint"]


def test_nothing_is_changed_or_drawn_by_measuring(rows: ImageRows) -> None:
    tokenizer = build("vae").train()
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = evaluate(tokenizer, rows, progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert evaluate(tokenizer, rows, progress=False) == first
    assert tokenizer.training
    assert all(parameter.grad is None for parameter in tokenizer.parameters())
    assert all(torch.equal(t, before[name]) for name, t in tokenizer.state_dict().items())


# Images, devices, ranks


def test_the_grid_shows_originals_above_reconstructions(rows: ImageRows) -> None:
    tokenizer = build("ae")
    grid = np.asarray(reconstruction_grid(tokenizer, rows, num_images=4))
    assert grid.shape == (2 * (128 + 2) + 2, 4 * (128 + 2) + 2, 3)
    shown = grid[2:130:8, 2:130:8]  # every pixel is enlarged to 8x8
    original = tokenizer.preprocess(rows.image(0))[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(shown, original)
    below = tokenizer.reconstruct(rows.image(0))
    np.testing.assert_array_equal(grid[132:260:8, 2:130:8], np.asarray(below))


def test_devices_that_are_not_there_are_refused_in_words() -> None:
    assert join_processes("cpu").type == "cpu"
    for name in ("nonsense", "cuda:99", ""):
        with pytest.raises(InvalidValueError, match=f"there is no device '{name}'"):
            join_processes(name)


@pytest.mark.slow
def test_two_ranks_share_the_work_and_one_of_them_tells(
    rows: ImageRows, root: Path, tmp_path: Path
) -> None:
    tokenizer = build("dvae")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = ["--tokenizer", str(tmp_path / "tokenizer"), "--dataset", DATA]
    arguments += ["--split", "test[:50]", "--batch-size", "8", "--json", str(tmp_path / "two.json")]
    run = run_two_ranks(root / "scripts" / "evaluate.py", arguments)
    assert run.stdout.count("psnr") == 1
    assert "0/26" in run.stderr  # rank 0 takes the batches 0, 2, 4 and 6 of 7: 8 + 8 + 8 + 2
    two = json.loads((tmp_path / "two.json").read_text())
    one = evaluate(tokenizer, open_images(DATA, "test[:50]"), batch_size=8, progress=False)
    assert two.pop("tokenizer_sha256")
    assert two.keys() == one.keys()
    for key, value in one.items():
        expected = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
        assert two[key] == expected, key


LEAVING = """
import sys
from pathlib import Path

import torch

from imagetok import ImageTokenizer
from imagetok.launch import collectives
from imagetok.evaluation import join_processes
from imagetok.launch.processes import _leave_group

def gloo_threads():
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]

join_processes()
assert collectives.world_size() == 2
assert gloo_threads()
with torch.device("meta"):
    torch.nn.init.normal_(torch.empty(3))  # as loading does; it imports torch._dynamo
assert "torch._dynamo" in sys.modules
ImageTokenizer.from_pretrained(sys.argv[1])
collectives.gather_objects(1)
_leave_group()
assert not gloo_threads()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed on Linux only")
def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    build("vqvae").save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "leaving.py").write_text(LEAVING)
    run_two_ranks(tmp_path / "leaving.py", [str(tmp_path / "tokenizer")])
