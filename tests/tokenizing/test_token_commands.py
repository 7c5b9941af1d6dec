"""The commands as a user meets them: what they print, and the code that they end with."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from PIL import Image
from small_jobs import DATASET, ROWS, make_tokenizer, save_images, shards_of

from command_line import Ended, Run
from imagetok.tokenizing.batch_encoder import BatchEncoder
from tiny_data import BROKEN, png, write_split


@pytest.fixture
def tokenize(run: Run, tokenizer: Path) -> Run:
    """Run `imagetok tokenize` into a folder, with more options."""

    def call(folder: Path, *options: object, dataset: object = DATASET) -> Ended:
        return run(
            "tokenize",
            *("--tokenizer", tokenizer, "--dataset", dataset, "--output-dir", folder),
            *("--rows-per-shard", 12, "--batch-size", 4, "--device", "cpu", *options),
        )

    return call


def last_line(ended: Ended) -> str:
    return ended.err.splitlines()[-1]


def test_tokenize_verify_and_decode_say_what_they_did(
    run: Run, tokenize: Run, reference: Path, tokenizer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = tokenize(out, "--keep", "caption")
    assert ended.code == 0
    lines = dict(line.split(maxsplit=1) for line in ended.out.splitlines()[2:] if line.strip())
    assert (lines["rows"], lines["refused"], lines["shards"]) == (str(ROWS), "0", "4")
    assert lines["tokens"] == str(16 * ROWS)
    assert "images a second" in ended.out
    assert "images/s" in ended.err or "image/s" in ended.err
    assert shards_of(out) == shards_of(reference)
    again = tokenize(out, "--keep", "caption")  # finds the job done
    assert (again.code, "rows in" in again.out) == (0, True)
    assert shards_of(out) == shards_of(reference)
    assert "4 shards with 40 rows and 0 refused: sound" in run("verify", out).out
    ended = run("verify", out, "--deep", "--tokenizer", tokenizer, "--device", "cpu")
    assert ended.code == 0
    assert "40 rows tokenized again: the same ids" in ended.out
    image = tmp_path / "grid.png"
    ended = run("decode", out, "--rows", "0:9", "--tokenizer", tokenizer, "--output", image)
    assert ended.code == 0
    assert ended.out == f"written: {image}\n"
    with Image.open(image) as grid:
        assert min(grid.size) > 300


def test_finalize_writes_a_manifest_that_is_missing(
    run: Run, tokenize: Run, tmp_path: Path
) -> None:
    tokenize(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    assert run("verify", tmp_path / "out").code == 2
    ended = run("tokenize", "--finalize", tmp_path / "out")
    assert ended.code == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["totals"]["rows"] == ROWS
    assert run("verify", tmp_path / "out").code == 0


def test_too_many_refused_rows_end_with_code_1_and_where_the_reasons_are(
    run: Run, tokenize: Run, tmp_path: Path
) -> None:
    source = save_images(tmp_path / "in", [png(0), BROKEN])
    ended = tokenize(tmp_path / "out", dataset=source)
    assert ended.code == 1
    assert "1 of 2 rows were refused" in last_line(ended)
    assert f"{tmp_path / 'out' / 'errors'}" in last_line(ended)
    assert run("tokenize", "--finalize", tmp_path / "out").code == 1
    assert tokenize(tmp_path / "out", "--max-error-rate", 0.5, dataset=source).code == 0


def test_a_signal_ends_with_its_code(
    tokenize: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = BatchEncoder.__call__

    def send(self: BatchEncoder, images: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return encode(self, images)  # type: ignore[arg-type]

    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    handlers[signal.SIGUSR1] = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(BatchEncoder, "__call__", send)
    try:
        ended = tokenize(tmp_path / "out")
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert ended.code == 128 + signal.SIGTERM
    assert "SIGTERM stopped this process after 0 finished shards" in last_line(ended)
    assert shards_of(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--keep", "nothing"), "no column 'nothing'"),
        (("--resize", "stretch"), "resize: found 'stretch'"),
        (("--batch-size", "0"), "batch-size"),
    ],
)
def test_bad_arguments_end_with_code_2(
    tokenize: Run, tmp_path: Path, options: tuple[str, ...], word: str
) -> None:
    ended = tokenize(tmp_path / "out", *options)
    assert ended.code == 2
    assert word in last_line(ended)
    assert not (tmp_path / "out").exists()


def test_a_missing_option_and_a_continuous_tokenizer_end_with_code_2(
    run: Run, tmp_path: Path
) -> None:
    ended = run("tokenize", "--dataset", DATASET)
    assert ended.code == 2
    assert "--tokenizer" in last_line(ended)
    make_tokenizer("ae").save_pretrained(tmp_path / "ae")
    options = ("--tokenizer", tmp_path / "ae", "--dataset", DATASET, "--output-dir")
    ended = run("tokenize", *options, tmp_path / "out")
    assert ended.code == 2
    assert "is continuous and has no ids" in last_line(ended)


def test_verify_names_a_shard_with_a_flipped_byte(run: Run, tokenize: Run, tmp_path: Path) -> None:
    folder = write_split(tmp_path / "in", "parquet", [range(0, 200, 10)])
    tokenize(tmp_path / "out", dataset=folder)
    shard = tmp_path / "out" / "data" / "train-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    ended = run("verify", tmp_path / "out")
    assert ended.code == 1
    assert "data/train-00000.parquet" in ended.out


def test_help_teaches_how_to_share_the_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERMINAL_WIDTH", "250")
    text = run("tokenize", "--help").out
    for words in ("accelerate launch", "--world-size", "the same command goes on", "--finalize"):
        assert words in text
