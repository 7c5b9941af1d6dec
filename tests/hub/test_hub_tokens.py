"""Tokenized datasets and the Hub, from end to end: made from it, pushed to it, read from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from datasets import List, Value, load_dataset

from command_line import Ended, Run
from imagetok import ImageTokenizer, hub
from imagetok.config import RunConfig
from imagetok.data import ImageStream, open_stream
from imagetok.data.image_stream import StreamedFiles
from imagetok.errors import DataError, HubAccessError
from imagetok.shards import TokenDataset
from imagetok.tokenizing.batch_encoder import BatchEncoder
from imagetok.training import train
from imagetok.training.step import Stepper
from loopback_hub import LoopbackHub
from tiny_data import write_split
from tiny_runs import contents, read_lines, tiny_run

datasets.disable_progress_bars()

TOKENIZER, DATA, TOKENS = "user/tok", "user/data", "user/tokens"
PARTS = (range(4), range(4, 7), range(7, 12))
LOCAL = "builtin:shapes?size=16&count=12"
ROWS = 12


@pytest.fixture(autouse=True)
def _one_thread(logged_in: LoopbackHub) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_tokenizer(seed: int = 0, codebook_size: int = 12) -> ImageTokenizer:
    config = tiny_run("vqvae", bottleneck={"codebook_size": codebook_size}).tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ImageTokenizer.from_config(config)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """The folder of the tokenizer that `user/tok` holds."""
    make_tokenizer().save_pretrained(tmp_path / "tok")
    return tmp_path / "tok"


@pytest.fixture(params=["map-style", "streamed"])
def streaming(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Options of `tokenize`, for both ways of reading a dataset."""
    return ("--streaming",) if request.param == "streamed" else ()


@pytest.fixture
def pushed(logged_in: LoopbackHub, local: Path) -> str:
    """The commit of the tokenizer `user/tok` on the Hub."""
    return ImageTokenizer.from_pretrained(local).push_to_hub(TOKENIZER).revision


@pytest.fixture
def tokenize(run: Run) -> Run:
    """Run `imagetok tokenize` with more options."""

    def call(out: Path, *options: object, tokenizer: object, dataset: object = LOCAL) -> Ended:
        return run(
            *("tokenize", "--tokenizer", tokenizer, "--dataset", dataset, "--output-dir", out),
            *("--rows-per-shard", 4, "--batch-size", 4, "--device", "cpu", *options),
        )

    return call


@pytest.fixture
def tokens(tokenize: Run, local: Path, tmp_path: Path) -> Path:
    """A tokenized dataset of 12 rows in 3 shards."""
    assert tokenize(tmp_path / "tokens", "--keep", "caption,colour", tokenizer=local).code == 0
    return tmp_path / "tokens"


class BrokenOffError(Exception):
    """What the tests break jobs off with."""


Meanwhile = Callable[[int, Callable[[], object]], None]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Let something happen before the batch of a number, counted from 0, is encoded."""
    encode = BatchEncoder.__call__

    def arrange(batch: int, happen: Callable[[], object]) -> None:
        numbers = iter(range(1000))

        def call(self: BatchEncoder, images: Any) -> Any:
            if next(numbers) == batch:
                happen()
            return encode(self, images)

        monkeypatch.setattr(BatchEncoder, "__call__", call)

    return arrange


def break_off() -> None:
    raise BrokenOffError


def put_data(server: LoopbackHub, folder: Path, kind: str = "parquet", **options: Any) -> str:
    """Push images to `user/data` with other software; gives the commit."""
    server.create(DATA, "dataset", files=contents(write_split(folder, kind, PARTS, **options)))
    return server.head(DATA, repo_type="dataset")


def move_data(server: LoopbackHub, folder: Path) -> None:
    """Push other images, in files of the same names, to the main branch of `user/data`."""
    others = contents(write_split(folder, "parquet", [range(20, 24), range(24, 27), range(27, 32)]))
    server.commit(DATA, others, "dataset")


def told(ended: Ended, code: int, *words: str) -> None:
    """Check that a command failed in one line, besides warnings and bars, that has these words."""
    assert ended.code == code, ended
    assert ended.last_line.startswith("imagetok: "), ended.err
    for word in words:
        assert word in ended.last_line


def job_of(folder: Path) -> dict[str, Any]:
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    return job


def shards_of(folder: Path) -> dict[str, bytes]:
    found = contents(folder)
    return {name: data for name, data in found.items() if name.startswith(("data/", "errors/"))}


def rows_in(folder: Path) -> list[dict[str, Any]]:
    paths = sorted((folder / "data").rglob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path, partitioning=None).to_pylist()]


def ids_in(folder: Path) -> list[list[int]]:
    return [row["ids"] for row in rows_in(folder)]


# Pushed and read


@pytest.mark.parametrize(("codes", "kind"), [(12, "uint8"), (300, "uint16")])
def test_a_pushed_dataset_is_read_typed_by_load_dataset(
    logged_in: LoopbackHub, run: Run, tokenize: Run, tmp_path: Path, codes: int, kind: str
) -> None:
    make_tokenizer(codebook_size=codes).save_pretrained(tmp_path / "tok")
    out = tmp_path / "out"
    assert tokenize(out, "--keep", "caption", tokenizer=tmp_path / "tok").code == 0
    ended = run("push-dataset", out, TOKENS)
    assert (ended.code, ended.out) == (0, f"{logged_in.endpoint}/datasets/{TOKENS}\n")
    expected = rows_in(out)
    whole = load_dataset(TOKENS, split="train")
    stream = load_dataset(TOKENS, split="train", streaming=True)
    assert whole.features["ids"] == List(Value(kind), length=16)
    assert stream.features == whole.features
    assert set(whole.features) == {"ids", "row", "height", "width", "caption"}
    assert list(whole) == list(stream) == expected
    assert "12 rows and 0 refused: sound" in run("verify", TOKENS, "--split", "train").out
    told(run("verify", TOKENS, "--split", "test"), 2, "has no split 'test'")
    assert len(expected) == ROWS


def test_token_dataset_refuses_what_lies_nowhere(logged_in: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(HubAccessError, match="nor is there a folder 'user/nothing' here"):
        TokenDataset("user/nothing")
    put_data(logged_in, tmp_path / "data")
    with pytest.raises(HubAccessError, match="no tokenized dataset of imagetok"):
        TokenDataset(DATA)


def test_ids_of_another_tokenizer_take_the_place_of_all_shards_on_request(
    logged_in: LoopbackHub, run: Run, tokenize: Run, tokens: Path, tmp_path: Path
) -> None:
    run("push-dataset", tokens, TOKENS)
    card = logged_in.read(TOKENS, "README.md", repo_type="dataset").decode()
    edited = card.replace(hub.CARD_BEGIN, "# Hunde\n\n" + hub.CARD_BEGIN)
    logged_in.commit(TOKENS, {"README.md": edited, "LICENSE": "mine"}, "dataset")
    make_tokenizer(seed=1).save_pretrained(tmp_path / "other")
    out = tmp_path / "others"
    assert tokenize(out, "--rows-per-shard", 8, tokenizer=tmp_path / "other").code == 0
    told(run("push-dataset", out, TOKENS), 2, "'train' is of another job", "--replace")
    assert run("push-dataset", out, TOKENS, "--replace").code == 0
    files, here = logged_in.files(TOKENS, repo_type="dataset"), contents(out)
    assert files.keys() == {*here, "LICENSE"}
    assert {name for name in here if files[name] != here[name]} == {"README.md"}
    renewed = files["README.md"].decode()
    assert renewed.count("# Hunde\n\n") == 1
    assert make_tokenizer(seed=1).fingerprint in renewed
    assert make_tokenizer(seed=0).fingerprint not in renewed
    assert f'load_dataset("{TOKENS}", split="train")' in renewed
    assert list(load_dataset(TOKENS, split="train")) == rows_in(out)


# Made from the Hub


@pytest.mark.parametrize("kind", ["parquet", "classes", "metadata", "webdataset"])
def test_ids_are_those_of_the_same_images_in_a_folder(
    logged_in: LoopbackHub,
    tokenize: Run,
    local: Path,
    pushed: str,
    tmp_path: Path,
    kind: str,
    streaming: tuple[str, ...],
) -> None:
    commit = put_data(logged_in, tmp_path / "data", kind)
    here, there = tmp_path / "here", tmp_path / "there"
    assert tokenize(here, *streaming, tokenizer=local, dataset=tmp_path / "data").code == 0
    ended = tokenize(there, *streaming, tokenizer=TOKENIZER, dataset=DATA)
    assert ended.code == 0, ended.err
    assert rows_in(there) == rows_in(here)
    job = job_of(there)
    assert (job["tokenizer"]["name"], job["tokenizer"]["revision"]) == (TOKENIZER, pushed)
    assert (job["input"]["name"], job["input"]["revision"]) == (DATA, commit)
    text = (there / "job.json").read_text() + (there / "README.md").read_text()
    assert str(tmp_path) not in text
    assert "cache" not in text


def test_a_job_goes_on_with_the_commit_that_it_was_begun_with(
    logged_in: LoopbackHub, tokenize: Run, pushed: str, tmp_path: Path, meanwhile: Meanwhile
) -> None:
    assert tokenize(tmp_path / "whole", tokenizer=TOKENIZER).code == 0
    out = tmp_path / "out"
    meanwhile(1, break_off)
    assert tokenize(out, tokenizer=TOKENIZER).code == 1
    moved = make_tokenizer(seed=1).push_to_hub(TOKENIZER).revision
    way = f"add --tokenizer-revision {pushed}, or"
    told(tokenize(out, tokenizer=TOKENIZER), 2, "tokenizer.revision", moved, way)
    ended = tokenize(out, "--tokenizer-revision", pushed, tokenizer=TOKENIZER)
    assert ended.code == 0, ended.err
    assert shards_of(out) == shards_of(tmp_path / "whole")


def test_a_dataset_that_moves_between_two_runs_of_a_job_is_refused_and_its_old_commit_goes_on(
    logged_in: LoopbackHub,
    tokenize: Run,
    local: Path,
    tmp_path: Path,
    meanwhile: Meanwhile,
    streaming: tuple[str, ...],
) -> None:
    old = put_data(logged_in, tmp_path / "data")
    options = {"tokenizer": local, "dataset": DATA}
    assert tokenize(tmp_path / "whole", *streaming, **options).code == 0
    out = tmp_path / "out"
    meanwhile(1, break_off)
    assert tokenize(out, *streaming, **options).code == 1
    begun = shards_of(out)
    assert begun
    move_data(logged_in, tmp_path / "moved")
    new = logged_in.head(DATA, repo_type="dataset")
    way = f"add --revision {old}, or"
    told(tokenize(out, *streaming, **options), 2, "input.revision", new, way)
    assert shards_of(out) == begun
    assert tokenize(out, *streaming, "--revision", old, **options).code == 0
    assert shards_of(out) == shards_of(tmp_path / "whole")


def test_a_dataset_that_moves_while_it_is_read_is_read_at_one_commit(
    logged_in: LoopbackHub,
    tokenize: Run,
    local: Path,
    tmp_path: Path,
    meanwhile: Meanwhile,
    streaming: tuple[str, ...],
) -> None:
    old = put_data(logged_in, tmp_path / "data")
    here, there = tmp_path / "here", tmp_path / "there"
    assert tokenize(here, *streaming, tokenizer=local, dataset=tmp_path / "data").code == 0
    meanwhile(0, lambda: move_data(logged_in, tmp_path / "moved"))
    ended = tokenize(there, *streaming, tokenizer=local, dataset=DATA)
    assert ended.code == 0, ended.err
    assert logged_in.head(DATA, repo_type="dataset") != old
    assert ids_in(there) == ids_in(here)
    assert job_of(there)["input"]["revision"] == old


def test_what_is_cached_of_a_dataset_serves_a_silent_hub_under_its_own_commit_only(
    logged_in: LoopbackHub, tokenize: Run, local: Path, tmp_path: Path
) -> None:
    options = {"tokenizer": local, "dataset": DATA}
    old = put_data(logged_in, tmp_path / "data")
    assert tokenize(tmp_path / "first", **options).code == 0
    move_data(logged_in, tmp_path / "moved")
    new = logged_in.head(DATA, repo_type="dataset")
    logged_in.fail(drop=True, times=None)
    ended = tokenize(tmp_path / "again", **options)
    assert ended.code == 0, ended.err
    assert job_of(tmp_path / "again") == job_of(tmp_path / "first")
    ended = tokenize(tmp_path / "other", "--revision", new, **options)
    told(ended, 2, f"in the cache lies commit {old} in place of {new}")


def test_verify_and_decode_find_tokenizer_and_dataset_at_their_commits(
    logged_in: LoopbackHub,
    run: Run,
    tokenize: Run,
    pushed: str,
    tmp_path: Path,
    streaming: tuple[str, ...],
) -> None:
    put_data(logged_in, tmp_path / "data")
    out = tmp_path / "out"
    assert tokenize(out, *streaming, tokenizer=TOKENIZER, dataset=DATA).code == 0
    make_tokenizer(seed=1).push_to_hub(TOKENIZER)
    move_data(logged_in, tmp_path / "moved")
    ended = run("verify", out, "--deep", "--device", "cpu")
    assert ended.code == 0, ended.err
    assert "rows tokenized again: the same ids" in ended.out
    grids = []
    for options in ((), ("--tokenizer", tmp_path / "old")):
        if options:
            make_tokenizer().save_pretrained(tmp_path / "old")
        output = tmp_path / f"{len(grids)}.png"
        assert run("decode", out, "--device", "cpu", "--output", output, *options).code == 0
        grids.append(output.read_bytes())
    assert grids[0] == grids[1]


def test_refused_rows_of_the_hub_are_told_by_their_place_in_the_repository(
    logged_in: LoopbackHub,
    tokenize: Run,
    local: Path,
    tmp_path: Path,
    streaming: tuple[str, ...],
) -> None:
    folder = write_split(tmp_path / "data", "metadata", PARTS, broken=[2])
    logged_in.create(DATA, "dataset", files=contents(folder))
    out, options = tmp_path / "out", (*streaming, "--max-error-rate", 0.5)
    ended = tokenize(out, *options, tokenizer=local, dataset=DATA)
    assert ended.code == 0, ended.err
    (path,) = (out / "errors").rglob("*.jsonl")
    (line,) = read_lines(path)
    assert line["row"] == 2
    assert line["key"].endswith("002.png"), line
    assert str(tmp_path) not in path.read_text()
    assert "huggingface" not in path.read_text()


def test_addresses_of_files_are_refused_in_words(
    logged_in: LoopbackHub,
    tokenize: Run,
    local: Path,
    tmp_path: Path,
    streaming: tuple[str, ...],
) -> None:
    put_data(logged_in, tmp_path / "data")
    address = f"hf://datasets/{DATA}/train-00000.parquet"
    ended = tokenize(tmp_path / "out", *streaming, tokenizer=local, dataset=address)
    told(ended, 2, f"there is no file or folder '{address}'", "the name of a dataset on the Hub")
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_is_nowhere_is_told_to_be_nowhere(
    logged_in: LoopbackHub, tokenize: Run, local: Path, tmp_path: Path
) -> None:
    ended = tokenize(tmp_path / "out", tokenizer=local, dataset="runs/pictures")
    told(ended, 2, "'runs/pictures' is not a file, a folder, or a dataset on the Hub")


# Training on a dataset of the Hub


@pytest.mark.parametrize("streaming", [False, True])
def test_training_reads_a_dataset_of_the_hub(
    logged_in: LoopbackHub, tmp_path: Path, streaming: bool
) -> None:
    put_data(logged_in, tmp_path / "data")
    left = []
    for name in (str(tmp_path / "data"), DATA):
        data = {"name": name, "streaming": streaming, "evaluation_split": "train[:4]", "lanes": 2}
        config = tiny_run("vqvae", steps=2, data=data)
        train(config, tmp_path / f"run-{len(left)}", progress=False)
        left.append(read_lines(tmp_path / f"run-{len(left)}" / "losses.jsonl"))
    assert left[0] == left[1]
    assert len(left[0]) == 2


def test_a_stream_is_of_one_commit_from_the_first_look_on(
    logged_in: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_column = StreamedFiles.find_column

    def move_and_find(self: StreamedFiles, *arguments: Any) -> str:
        move_data(logged_in, tmp_path / "moved")
        return find_column(self, *arguments)

    def read(stream: ImageStream) -> list[Any]:
        return [list(stream.read(number)) for number in range(len(stream.segments))]

    old = put_data(logged_in, tmp_path / "data")
    pinned = open_stream(DATA, "train", revision=old)
    monkeypatch.setattr(StreamedFiles, "find_column", move_and_find)
    stream = open_stream(DATA, "train")
    assert logged_in.head(DATA, repo_type="dataset") != old
    assert stream.fingerprint == pinned.fingerprint
    assert read(stream) == read(pinned)


def test_a_streamed_run_goes_on_with_the_commit_that_it_was_begun_with(
    logged_in: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_of(**data: Any) -> RunConfig:
        data = {"name": DATA, "streaming": True, "evaluation_split": "train[:4]", **data}
        return tiny_run("vqvae", steps=4, checkpoint_every=2, data={**data, "lanes": 2})

    def break_off_at_three(self: Stepper, number: int, *rest: Any) -> Any:
        if number == 3:
            raise BrokenOffError
        return step(self, number, *rest)

    old, step, folder = put_data(logged_in, tmp_path / "data"), Stepper.step, tmp_path / "run"
    train(run_of(), tmp_path / "whole", progress=False)
    monkeypatch.setattr(Stepper, "step", break_off_at_three)
    with pytest.raises(BrokenOffError):
        train(run_of(), folder, progress=False)
    monkeypatch.setattr(Stepper, "step", step)
    move_data(logged_in, tmp_path / "moved")
    with pytest.raises(DataError, match=r"name the commit of then by data\.revision"):
        train(run_of(), folder, resume=True, progress=False)
    train(run_of(revision=old), folder, resume=True, progress=False)
    one, other = tmp_path / "whole" / "losses.jsonl", folder / "losses.jsonl"
    assert one.read_bytes() == other.read_bytes()
