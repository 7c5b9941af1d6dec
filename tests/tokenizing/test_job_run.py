"""Every row exactly once, in the same bytes, whoever works and however often it is interrupted."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Features, Value
from small_jobs import ROWS, RunJob, make_tokenizer, rows_in, run_job, save_images, shards_of
from torch import Tensor

from imagetok import ImageTokenizer
from imagetok.codesearch import search_backend
from imagetok.data import prefetcher
from imagetok.errors import (
    ConfigError,
    DataError,
    InvalidTypeError,
    InvalidValueError,
    NotDiscreteError,
)
from imagetok.images import Preprocessor
from imagetok.shards import UnitWriter, read_job, read_manifest
from imagetok.shards.shard_scan import ChangedIds
from imagetok.tokenizer_config import TokenizerConfig
from imagetok.tokenizing import JobStopped, TokenizingError, job_run
from imagetok.tokenizing.batch_encoder import BatchEncoder
from imagetok.tokenizing.narrow_dtype import SAMPLE_ROWS
from tiny_data import png, write_split
from tiny_runs import contents, tiny_run

KEEP = ["caption"]


class BrokenOffError(Exception):
    """What the tests break jobs off with."""


@pytest.fixture
def break_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the encoder fail at the batch of a number, counted from 0."""
    encode = BatchEncoder.__call__

    def after(batches: int) -> None:
        done = iter(range(batches))

        def fail(self: BatchEncoder, images: Any) -> Any:
            if next(done, None) is None:
                raise BrokenOffError
            return encode(self, images)

        monkeypatch.setattr(BatchEncoder, "__call__", fail)

    return after


# The same bytes


def test_ranks_together_write_the_same_bytes(job: RunJob, reference: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        ranks = [
            pool.submit(job, tmp_path / "out", keep=KEEP, rank=rank, world_size=3)
            for rank in range(3)
        ]
        manifests = [rank.result() for rank in ranks]
    assert all(manifest == manifests[0] for manifest in manifests)
    assert shards_of(tmp_path / "out") == shards_of(reference)


def test_a_rank_alone_does_the_work_of_those_that_never_come(
    job: RunJob, reference: Path, tmp_path: Path
) -> None:
    job(tmp_path / "out", keep=KEEP, rank=2, world_size=7)
    assert shards_of(tmp_path / "out") == shards_of(reference)


def test_more_ranks_than_rows_are_not_an_error(job: RunJob, tmp_path: Path) -> None:
    for rank in (4, 0):
        small = {"dataset": "builtin:shapes?size=16&count=1", "rank": rank, "world_size": 5}
        assert job(tmp_path / "out", **small).totals.rows == 1


def test_loading_processes_and_other_settings_of_a_process_change_no_byte(
    job: RunJob, reference: Path, tmp_path: Path
) -> None:
    settings = {"workers": 2, "max_error_rate": 0.5, "allow_mixed_numerics": True}
    job(tmp_path / "out", keep=KEEP, **settings)
    assert not multiprocessing.active_children()
    shards_of(tmp_path / "out")  # no litter
    one, other = contents(reference), contents(tmp_path / "out")
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} <= {"manifest.json"}


def test_job_json_and_shards_hold_no_path_of_the_machine(reference: Path, tokenizer: Path) -> None:
    files = contents(reference)
    del files["manifest.json"]
    assert not [name for name, data in files.items() if str(tokenizer.parent).encode() in data]
    assert b'"name": "tiny"' in files["job.json"]


def test_the_tokenizer_of_a_run_is_called_by_its_run_and_is_the_same_job(
    job: RunJob, tokenizer: Path, tmp_path: Path
) -> None:
    run = tmp_path / "photos-f8"
    shutil.copytree(tokenizer, run / "tokenizer")
    job(tmp_path / "before", tokenizer=run / "tokenizer")  # no folder of a run as yet
    (run / "checkpoints").mkdir()
    out = tmp_path / "out"
    job(out, tokenizer=run)
    card = (out / "README.md").read_text()
    assert "| name | `photos-f8` |" in card
    assert 'ImageTokenizer.from_pretrained("photos-f8")' in card
    job(out, tokenizer=run / "tokenizer")
    job(tmp_path / "before", tokenizer=run)  # one that does not name the run goes on
    run.rename(tmp_path / "renamed")
    job(out, tokenizer=tmp_path / "renamed")
    assert b"photos-f8" not in contents(tmp_path / "before")["job.json"]
    assert rows_in(out) == rows_in(tmp_path / "before")


# Interruptions


@pytest.mark.parametrize("seed", range(2))
def test_a_chain_of_errors_at_random_batches_changes_no_byte(
    job: RunJob,
    reference: Path,
    tmp_path: Path,
    break_off: Callable[[int], None],
    seed: int,
) -> None:
    draw = random.Random(seed)
    for number in range(3):
        break_off(draw.randrange(7))
        with contextlib.suppress(BrokenOffError):
            job(tmp_path / "out", keep=KEEP, rank=number % 2, world_size=2)
        assert not list(tmp_path.rglob(".imagetok-tmp-*/*.parquet"))
    break_off(ROWS)
    job(tmp_path / "out", keep=KEEP, rank=1, world_size=3)
    assert shards_of(tmp_path / "out") == shards_of(reference)


def test_finished_shards_are_not_made_again(
    job: RunJob, tmp_path: Path, break_off: Callable[[int], None]
) -> None:
    break_off(4)
    with pytest.raises(BrokenOffError):
        job(tmp_path / "out")
    (first,) = (tmp_path / "out" / "data").glob("*.parquet")
    written = first.stat().st_ino
    break_off(7)  # of ten batches the first three are done
    assert job(tmp_path / "out").throughput["rows"] == ROWS - 12
    assert first.stat().st_ino == written
    break_off(0)
    assert job(tmp_path / "out").totals.rows == ROWS


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_leaves_no_litter_and_the_same_call_goes_on(
    job: RunJob,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signum: signal.Signals,
) -> None:
    encode, sent = BatchEncoder.__call__, []

    def send(self: BatchEncoder, images: Any) -> Any:
        sent.append(len(images))
        if len(sent) == 5:
            os.kill(os.getpid(), signum)
        return encode(self, images)

    before = signal.getsignal(signum)
    monkeypatch.setattr(BatchEncoder, "__call__", send)
    with pytest.raises(JobStopped, match=f"{signum.name} stopped this process after 1 ") as stopped:
        job(tmp_path / "out", keep=KEEP)
    assert stopped.value.signum == signum
    assert signal.getsignal(signum) == before
    assert len(shards_of(tmp_path / "out")) == 1
    job(tmp_path / "out", keep=KEEP)
    assert shards_of(tmp_path / "out") == shards_of(reference)


def test_a_killed_loading_process_is_replaced(
    job: RunJob, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = []
    submit = prefetcher._LoadingProcess.apply

    def kill_once(self: Any, images: Any) -> Any:
        if len(killed) < 1:
            killed.append(self._process.pid)
            os.kill(self._process.pid, signal.SIGKILL)
        return submit(self, images)

    monkeypatch.setattr(prefetcher._LoadingProcess, "apply", kill_once)
    job(tmp_path / "out", keep=KEEP, workers=1)
    assert killed
    assert shards_of(tmp_path / "out") == shards_of(reference)


def test_loading_processes_that_keep_being_killed_end_the_job(
    job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = prefetcher._LoadingProcess.apply

    def kill(self: Any, images: Any) -> Any:
        os.kill(self._process.pid, signal.SIGKILL)
        return submit(self, images)

    monkeypatch.setattr(prefetcher._LoadingProcess, "apply", kill)
    started = time.monotonic()
    with pytest.raises(TokenizingError, match=r"ended from outside.*fewer workers"):
        job(tmp_path / "out", workers=1)
    assert time.monotonic() - started < 60
    assert not multiprocessing.active_children()
    assert shards_of(tmp_path / "out") == {}


def test_a_decoder_without_memory_ends_the_job_in_words(
    job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Preprocessor, *_: Any) -> Any:
        raise MemoryError

    write_split(tmp_path / "in", "pictures", [range(2)])
    monkeypatch.setattr(Preprocessor, "read", fail)
    with pytest.raises(TokenizingError, match=r"too little memory to decode 'train/000\.png'"):
        job(tmp_path / "out", dataset=str(tmp_path / "in"))


def test_a_write_that_fails_ends_the_job(
    job: RunJob, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def fail(self: UnitWriter, table: Any) -> None:
            raise BrokenOffError

        patched.setattr(UnitWriter, "write", fail)
        with pytest.raises(BrokenOffError):
            job(tmp_path / "out", keep=KEEP)
    assert shards_of(tmp_path / "out") == {}
    job(tmp_path / "out", keep=KEEP)
    assert shards_of(tmp_path / "out") == shards_of(reference)


def test_a_rank_waits_for_a_unit_in_work_and_takes_it_over_when_it_is_dropped(
    job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = threading.Event(), threading.Event()
    encode, hold = BatchEncoder.__call__, threading.local()

    def slow(self: BatchEncoder, images: Any) -> Any:
        if getattr(hold, "here", False):
            entered.set()
            assert leave.wait(60)
            raise BrokenOffError
        return encode(self, images)

    def first() -> None:
        hold.here = True
        with pytest.raises(BrokenOffError):
            job(tmp_path / "out")

    monkeypatch.setattr(BatchEncoder, "__call__", slow)
    monkeypatch.setattr(job_run, "_PATIENCE", 0.05)
    with ThreadPoolExecutor(2) as pool:
        dropping = pool.submit(first)
        assert entered.wait(60)
        waiting = pool.submit(job, tmp_path / "out")
        time.sleep(0.5)
        assert not waiting.done()
        leave.set()
        dropping.result()
        assert waiting.result(60).totals.rows == ROWS


# Refusals


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rows_per_shard": 13}, "units.rows_per_shard: 12 there, 13 here"),
        ({"keep": []}, "output.keep"),
        ({"limit": 5}, "input.limit: null there, 5 here"),
        ({"resize": "native"}, 'output.resize: "crop" there, "native" here'),
        ({"max_pixels": 256}, "output.max_pixels: 50000000 there, 256 here"),
        ({"dataset": "builtin:shapes?size=16&count=41"}, "input.fingerprint"),
        ({"split": "test"}, 'input.split: "train" there, "test" here'),
        ({"batch_size": 5}, r"batch_size: 4 there, 5 here.*--allow-mixed-numerics"),
        ({"dtype": "bfloat16"}, r'dtype: "float32" there, "bfloat16" here'),
        ({"compile": True}, r"compiled: false there, true here.*--allow-mixed-numerics"),
    ],
)
def test_another_argument_is_refused_by_name(
    job: RunJob, reference: Path, change: dict[str, Any], word: str
) -> None:
    with pytest.raises(DataError, match=word):
        job(reference, **{"keep": KEEP, **change})


def test_a_job_of_native_sizes_is_not_compiled(job: RunJob, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compile is for images of one size"):
        job(tmp_path / "out", compile=True, resize="native")
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_refused_by_name(reference: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.fingerprint"):
        run_job(reference, make_tokenizer(seed=1), keep=KEEP)


def test_mixed_numeric_settings_are_recorded_for_their_shards(
    job: RunJob, tmp_path: Path, break_off: Callable[[int], None]
) -> None:
    break_off(4)
    with pytest.raises(BrokenOffError):
        job(tmp_path / "out")
    break_off(ROWS)
    manifest = job(tmp_path / "out", batch_size=5, allow_mixed_numerics=True)
    sizes = [shard.numerics and shard.numerics.batch_size for shard in manifest.shards]
    assert sizes == [None, 5, 5, 5]


@pytest.mark.usefixtures("kernel")
def test_a_job_goes_on_with_the_search_that_it_was_begun_with(
    job: RunJob,
    tmp_path: Path,
    break_off: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "out"
    break_off(4)
    monkeypatch.setenv("IMAGETOK_BACKEND", "torch")
    with pytest.raises(BrokenOffError):
        job(folder)
    break_off(ROWS)
    monkeypatch.setenv("IMAGETOK_BACKEND", "native")
    with pytest.raises(DataError, match='search: "torch" there, "native" here'):
        job(folder)
    monkeypatch.delenv("IMAGETOK_BACKEND")
    searched = record_searches(monkeypatch)
    manifest = job(folder)
    assert [shard.numerics for shard in manifest.shards] == [None] * len(manifest.shards)
    assert read_job(folder).numerics.search == "torch"
    assert searched == {"torch"}


def test_a_new_job_records_the_search_of_this_machine(
    job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = record_searches(monkeypatch)
    job(tmp_path / "out")
    assert searched == {read_job(tmp_path / "out").numerics.search} == {search_backend()}


def record_searches(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The backends of all code searches from now on."""
    searched, choose = set(), ImageTokenizer.choose_ids

    def record(self: ImageTokenizer, z: Tensor) -> Tensor:
        searched.add(search_backend())
        return choose(self, z)

    monkeypatch.setattr(ImageTokenizer, "choose_ids", record)
    return searched


def test_a_narrow_dtype_tells_how_many_ids_it_changes(
    tmp_path: Path,
) -> None:
    values = tiny_run("vqvae").tokenizer.to_dict()
    values["bottleneck"]["codebook_size"] = 4096  # so many that some are near to each other
    torch.manual_seed(0)
    tokenizer = ImageTokenizer.from_config(TokenizerConfig.from_dict(values))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    found = run_job(tmp_path / "narrow", tmp_path / "tokenizer", dtype="bfloat16").changed_ids
    assert run_job(tmp_path / "exact", tmp_path / "tokenizer").changed_ids is None
    narrow, exact = (
        np.array([row["ids"] for row in rows_in(tmp_path / name)])[:SAMPLE_ROWS]
        for name in ("narrow", "exact")
    )
    changed = int((narrow != exact).sum())
    assert changed
    expected = {"dtype": "bfloat16", "rows": SAMPLE_ROWS, "ids": exact.size, "changed": changed}
    assert found == ChangedIds(**expected)
    assert read_manifest(tmp_path / "narrow").changed_ids == found
    card = (tmp_path / "narrow" / "README.md").read_text(encoding="utf-8")
    assert f"| {changed} of {exact.size} in {SAMPLE_ROWS} images |" in card


def test_images_of_many_sizes_are_compared_too(job: RunJob, tmp_path: Path) -> None:
    sides = [(16, 16), (40, 20), (16, 16), (20, 40), (32, 32)]
    images = save_images(tmp_path / "images", [png(0, side) for side in sides])
    options = {"dataset": images, "split": "train", "resize": "native", "dtype": "bfloat16"}
    found = job(tmp_path / "out", **options).changed_ids
    assert found is not None
    assert found.rows == 5


def test_a_tokenizer_without_files_leaves_it_unmeasured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = run_job(tmp_path / "out", make_tokenizer().to(torch.bfloat16))
    assert manifest.changed_ids is None
    assert "changed_ids" not in (tmp_path / "out" / "manifest.json").read_text(encoding="utf-8")
    assert "not loaded from files" in caplog.text


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"keep": ["nothing"]}, DataError, "no column 'nothing' to keep; it has: caption"),
        ({"keep": ["file"]}, DataError, "no column 'file' to keep; it has: caption"),
        ({"keep": ["image"]}, DataError, "'image' is the image column"),
        ({"keep": ["caption", "caption"]}, DataError, "kept twice"),
        ({"dataset": "builtin:nothing"}, DataError, "unknown built-in dataset"),
        (
            {"resize": "stretch"},
            InvalidValueError,
            "resize: found 'stretch'; choose one of: crop, native",
        ),
        ({"batch_size": 0}, InvalidValueError, "batch_size"),
        ({"workers": -1}, InvalidValueError, "workers"),
        ({"limit": 0}, InvalidValueError, "limit"),
        ({"rows_per_shard": 1.5}, InvalidTypeError, "rows_per_shard"),
        ({"dataset": 5}, InvalidTypeError, "dataset must be a name or a path, got int"),
        ({"max_error_rate": 2}, InvalidValueError, "max_error_rate"),
        ({"rank": 1}, InvalidValueError, "give both or neither"),
        ({"rank": 2, "world_size": 2}, InvalidValueError, "ranks count from 0 to 1"),
        ({"device": "nothing"}, InvalidValueError, "device"),
        ({"dtype": "int8"}, InvalidValueError, "unknown dtype"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    job: RunJob, tmp_path: Path, change: dict[str, Any], error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        job(tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_a_kept_column_of_a_reserved_name_is_refused_before_any_work(
    job: RunJob, tmp_path: Path
) -> None:
    columns = Features({"ids": Value("int64")})
    source = save_images(tmp_path / "in", [png(0)], columns, ids=[7])
    with pytest.raises(DataError, match="cannot keep the columns ids"):
        job(tmp_path / "out", dataset=str(source), keep=["ids"])
    assert not (tmp_path / "out").exists()


def test_a_continuous_tokenizer_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(NotDiscreteError):
        run_job(tmp_path / "out", make_tokenizer("vae"))
    assert not (tmp_path / "out").exists()


def test_a_revision_of_a_tokenizer_that_is_loaded_already_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"tokenizer_revision is 'v1'.*loaded already"):
        run_job(tmp_path / "out", make_tokenizer(), tokenizer_revision="v1")


def test_an_input_that_changed_meanwhile_gets_no_manifest(
    job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_split(tmp_path / "in", "pictures", [range(20)])
    encode = BatchEncoder.__call__

    def change(self: BatchEncoder, images: Any) -> Any:
        (folder / "train" / "019.png").write_bytes(png(77, (9, 9)))
        return encode(self, images)

    monkeypatch.setattr(BatchEncoder, "__call__", change)
    with pytest.raises(TokenizingError, match="changed while it was read"):
        job(tmp_path / "out", dataset=str(folder))
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"input\.fingerprint"):
        job(tmp_path / "out", dataset=str(folder))


def test_the_number_of_threads_and_the_tokenizer_are_left_as_they_were(tmp_path: Path) -> None:
    model, before = make_tokenizer(), torch.get_num_threads()
    mode = model.training
    run_job(tmp_path / "out", model, threads=2)
    assert torch.get_num_threads() == before
    assert model.training == mode
