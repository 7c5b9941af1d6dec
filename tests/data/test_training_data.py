"""The samples of a run: every row once an epoch, whatever the ranks, workers and interruptions."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from imagetok.config import RunConfig
from imagetok.data import TrainingData, check_error_share, open_training
from imagetok.errors import ConfigError, DataError, InvalidValueError
from imagetok.images import Preprocessor
from tiny_data import data_config, levels_of, write_split

datasets.disable_progress_bars()

BATCH = 8
PARTS = tuple(range(first, first + 5) for first in range(0, 50, 5))
"""Ten files of five rows: 10 % 4 streams leaves two files over."""

MODES = (False, True)
"""Values of `data.streaming`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("data") / "set", "parquet", PARTS)


@pytest.fixture(scope="module")
def broken_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data") / "set"
    return write_split(place, "parquet", PARTS, broken=(7, 33, 34))


def opened(folder: Path | str, streaming: bool, **data: Any) -> TrainingData:
    data = {"lanes": 4, "window": 12, "crop_scale": (0.5, 0.9), "flip": True, **data}
    config = data_config(folder, streaming=streaming, **data, train={"seed": 3})
    return open_training(config, Preprocessor((8, 8)), Path(os.environ["HF_DATASETS_CACHE"]))


@dataclass
class Run:
    """What the ranks of a run got: by step, in sample order."""

    rows: list[list[int]]
    epochs: list[list[int]]
    pixels: list[Tensor]
    refused: list[list[str]]
    positions: list[Tensor | None]

    def located(self) -> list[tuple[int, int]]:
        steps = zip(self.epochs, self.rows, strict=True)
        return [pair for epochs, rows in steps for pair in zip(epochs, rows, strict=True)]

    def levels(self) -> list[int]:
        return [level for pixels in self.pixels for level in levels_of(pixels)]

    def messages(self) -> list[str]:
        return [message for messages in self.refused for message in messages]

    def after(self, step: int) -> Run:
        return Run(
            self.rows[step:],
            self.epochs[step:],
            self.pixels[step:],
            self.refused[step:],
            self.positions[step:],
        )


def run(
    data: TrainingData,
    steps: int,
    world_size: int = 1,
    start: int = 0,
    position: Tensor | None = None,
) -> Run:
    ranks = []
    for rank in range(world_size):
        with data.feed(start, steps, rank, world_size, position) as feed:
            ranks.append(list(feed))
    by_step = [[batch for rank in ranks for batch in rank[step]] for step in range(steps)]
    positions = [[rank[step][-1].position for rank in ranks] for step in range(steps)]
    return Run(
        [torch.cat([batch.rows for batch in step]).tolist() for step in by_step],
        [torch.cat([batch.epochs for batch in step]).tolist() for step in by_step],
        [torch.cat([batch.pixels for batch in step]) for step in by_step],
        [[message for batch in step for message in batch.refused] for step in by_step],
        [None if step[0] is None else torch.cat(step) for step in positions],
    )


def assert_equal(first: Run, second: Run) -> None:
    assert first.rows == second.rows
    assert first.epochs == second.epochs
    assert first.refused == second.refused
    assert all(torch.equal(a, b) for a, b in zip(first.pixels, second.pixels, strict=True))
    for before, after in zip(first.positions, second.positions, strict=True):
        assert (before is None) == (after is None)
        assert before is None or after is None or torch.equal(before, after)


@pytest.mark.parametrize("streaming", MODES)
def test_every_row_comes_once_an_epoch(folder: Path, streaming: bool) -> None:
    located = run(opened(folder, streaming), 30).located()
    assert set(Counter(located).values()) == {1}
    for epoch in range(3):
        assert len([row for number, row in located if number == epoch]) == 50
    assert len({row for _, row in located}) == 50


@pytest.mark.parametrize("streaming", MODES)
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_samples_of_one(folder: Path, streaming: bool, world_size: int) -> None:
    data = opened(folder, streaming)
    assert_equal(run(data, 20, world_size), run(data, 20))


@pytest.mark.parametrize("streaming", MODES)
def test_batches_run_on_over_the_end_of_an_epoch(folder: Path, streaming: bool) -> None:
    result = run(opened(folder, streaming), 14)
    assert all(len(rows) == BATCH for rows in result.rows)
    assert any(len(set(epochs)) > 1 for epochs in result.epochs)


@pytest.mark.parametrize("streaming", MODES)
def test_micro_batches_are_the_batch_in_order(folder: Path, streaming: bool) -> None:
    whole = run(opened(folder, streaming), 3)
    config = data_config(
        folder,
        streaming=streaming,
        lanes=4,
        window=12,
        crop_scale=(0.5, 0.9),
        flip=True,
        train={"seed": 3, "accumulation": 2},
    )
    divided = open_training(config, Preprocessor((8, 8)), Path(os.environ["HF_DATASETS_CACHE"]))
    with divided.feed(0, 3) as feed:
        steps = list(feed)
    assert [[len(batch) for batch in step] for step in steps] == [[4, 4]] * 3
    assert [torch.cat([b.rows for b in step]).tolist() for step in steps] == whole.rows
    assert_equal(run(divided, 3), whole)


@pytest.mark.parametrize("streaming", MODES)
def test_a_sample_is_what_its_row_and_epoch_make_of_it(folder: Path, streaming: bool) -> None:
    """Epochs have orders and crops of their own; a row keeps its image."""
    result = run(opened(folder, streaming, crop_scale=None, flip=False), 13)
    for (_, row), level in zip(result.located(), result.levels(), strict=True):
        unit, place = divmod(row, 2**32) if streaming else divmod(row, 5)
        assert level == 5 * unit + place
    first, second = (
        [row for epoch, row in result.located() if epoch == number] for number in (0, 1)
    )
    assert first[: len(second)] != second
    seen = run(opened(folder, streaming), 13)
    places = dict(zip(seen.located(), torch.cat(seen.pixels), strict=True))
    changed = [
        not torch.equal(places[0, row], places[1, row]) for row in set(second) if (1, row) in places
    ]
    assert sum(changed) > len(changed) // 2


def test_a_stream_shuffles_over_files_and_within_the_window(folder: Path) -> None:
    plain = run(opened(folder, True, lanes=1, window=1), 6).located()
    units = [row >> 32 for _, row in plain]
    assert [row for _, row in plain[:5]] == [(units[0] << 32) + row for row in range(5)]
    assert units[::5] != sorted(units[::5])
    shuffled = run(opened(folder, True, lanes=1, window=20), 6).located()
    assert sorted(shuffled) != shuffled
    assert [row for _, row in shuffled[:5]] != [row for _, row in plain[:5]]
    early = {row >> 32 for _, row in shuffled[:5]}
    assert early <= set(units[:25])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 9])
def test_files_that_are_left_over_are_divided_by_rows(tmp_path: Path, count: int) -> None:
    parts = [range(6 * number, 6 * number + 6) for number in range(count)]
    place = write_split(tmp_path / "set", "parquet", parts)
    located = run(opened(place, True, lanes=4, window=4), 3 * count).located()
    first = [row for epoch, row in located if epoch == 0]
    assert sorted(first) == [(unit << 32) + row for unit in range(count) for row in range(6)]


# Resuming


@pytest.mark.parametrize("window", [4, 12, 100])
def test_a_stream_goes_on_exactly_from_any_step(folder: Path, window: int) -> None:
    data = opened(folder, True, window=window)
    whole = run(data, 16)
    for step in range(1, 16):
        rest = run(data, 16 - step, start=step, position=whole.positions[step - 1])
        assert_equal(rest, whole.after(step))


@pytest.mark.parametrize("streaming", MODES)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1), (2, 4)])
def test_a_run_goes_on_exactly_with_another_number_of_ranks(
    broken_folder: Path, streaming: bool, before: int, after: int
) -> None:
    data = opened(broken_folder, streaming)
    whole = run(data, 16)
    for step in (3, 7, 12):
        position = run(data, step, before).positions[-1]
        rest = run(data, 16 - step, after, start=step, position=position)
        assert_equal(rest, whole.after(step))


def test_a_position_is_small_and_must_fit(folder: Path) -> None:
    data = opened(folder, True)
    position = run(data, 2).positions[-1]
    assert position is not None
    assert (tuple(position.shape), position.dtype) == ((4, 4 + 3), torch.int64)
    for wrong in (None, position[:2], position[:, :-1]):
        with pytest.raises(
            InvalidValueError, match=r"position \(4, 7\) of all its shuffle streams"
        ):
            data.feed(2, 1, position=wrong)


def test_a_stream_that_changed_under_a_position_is_refused(tmp_path: Path) -> None:
    place = write_split(tmp_path / "set", "pictures", [range(40)])
    data = opened(place, True)
    position = run(data, 1).positions[-1]
    for image in place.rglob("*.png"):
        image.write_bytes(b"")
    with data.feed(1, 1, position=position) as feed, pytest.raises(DataError, match="cannot be"):
        next(feed)


# Rows that cannot be read


@pytest.mark.parametrize("streaming", MODES)
@pytest.mark.parametrize("world_size", [1, 4])
def test_an_unreadable_row_is_replaced_and_named(
    broken_folder: Path, streaming: bool, world_size: int
) -> None:
    result = run(opened(broken_folder, streaming, crop_scale=None, flip=False), 13, world_size)
    assert all(len(rows) == BATCH for rows in result.rows)
    assert set(result.levels()) == set(range(50)) - {7, 33, 34}
    messages = result.messages()
    expected = "row 2 of file 'train-00001.parquet'" if streaming else "row 7 of"
    assert any(message.startswith(expected) for message in messages)
    assert all("file '" in message and "cannot be read" in message for message in messages)
    assert {name for name in ("007.png", "033.png", "034.png") for m in messages if name in m} == {
        "007.png",
        "033.png",
        "034.png",
    }
    again = run(opened(broken_folder, streaming, crop_scale=None, flip=False), 13)
    assert_equal(result, again)


@pytest.mark.parametrize("streaming", MODES)
def test_data_without_a_readable_row_is_refused(tmp_path: Path, streaming: bool) -> None:
    place = write_split(tmp_path / "set", "parquet", [range(4), range(4, 8)], broken=range(8))
    data = opened(place, streaming)
    with (
        data.feed(0, 1) as feed,
        pytest.raises(DataError, match=r"'00\d\.png' cannot be read: .*\(the last of "),
    ):
        next(feed)


def test_many_unreadable_rows_in_a_row_end_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagetok.data.shuffle_stream.MAX_REFUSED_IN_A_ROW", 9)
    place = write_split(tmp_path / "set", "parquet", [range(20)], broken=range(1, 20))
    data = opened(place, True, lanes=1)
    with data.feed(0, 1) as feed, pytest.raises(DataError, match="9 rows in a row cannot be read"):
        next(feed)


def test_a_lane_without_rows_is_refused_with_the_remedy(tmp_path: Path) -> None:
    place = write_split(tmp_path / "set", "parquet", [range(3)])
    with (
        opened(place, True).feed(0, 1) as feed,
        pytest.raises(
            DataError, match=r"shuffle stream 3 of 4 found no readable row .* lower data\.lanes"
        ),
    ):
        next(feed)


def test_the_share_of_unreadable_rows_is_taken_of_a_thousand_at_least() -> None:
    check_error_share(0, 0, 0.0, [])
    check_error_share(10, 50, 0.01, ["row 1"])
    check_error_share(20, 2000, 0.01, ["row 1"])
    with pytest.raises(DataError, match=r"^11 rows could not be read in 50 samples.*: row 8$"):
        check_error_share(11, 50, 0.01, ["row 8"])
    with pytest.raises(DataError, match=r"row 2; row 3; row 4 \(the last of 4\)"):
        check_error_share(21, 2000, 0.01, ["row 1", "row 2", "row 3", "row 4"])
    with pytest.raises(DataError, match="max_error_rate=0 "):
        check_error_share(1, 10**6, 0.0, ["row 1"])


# The feed


def test_streams_and_batches_that_do_not_divide_over_the_ranks_are_refused(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"4 shuffle streams do not divide over 8 ranks; set data\.lanes"
    ):
        opened(folder, True).feed(0, 1, 0, 8)
    for streaming in MODES:
        with pytest.raises(InvalidValueError, match="8 does not divide into 3 ranks"):
            opened(folder, streaming).feed(0, 1, 0, 3)


@pytest.mark.parametrize("streaming", MODES)
def test_two_steps_are_loaded_ahead_and_no_more(
    folder: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imagetok.data.training_images import TrainTransform

    seen: list[int] = []
    original = TrainTransform.__call__

    def counted(self: TrainTransform, image: object, key: int, notes: list[str]) -> Tensor:
        seen.append(key)
        return original(self, image, key, notes)

    monkeypatch.setattr(TrainTransform, "__call__", counted)
    window = 4 if streaming else 0
    with opened(folder, streaming, lanes=1, window=4).feed(0, 20) as feed:
        next(feed)
        # One step taken, two that lie ready, one that waits for a place.
        expected = 4 * BATCH + window
        deadline = time.monotonic() + 10
        while len(seen) < expected and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert len(seen) == expected


def test_the_time_waited_is_that_of_the_consumer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imagetok.data.training_images import TrainingImages

    original = TrainingImages.__getitem__

    def slow(self: TrainingImages, sample: int) -> Any:
        time.sleep(0.02)
        return original(self, sample)

    monkeypatch.setattr(TrainingImages, "__getitem__", slow)
    with opened(folder, False).feed(0, 3) as feed:
        assert feed.waited == 0
        next(feed)
        first = feed.waited
        assert first > 0.1
        time.sleep(0.5)
        next(feed)
        assert feed.waited - first < 0.1


@pytest.mark.parametrize("streaming", MODES)
def test_closing_ends_loading_at_once(
    folder: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imagetok.data.training_images import TrainTransform

    original = TrainTransform.__call__

    def slow(self: TrainTransform, image: object, key: int, notes: list[str]) -> Tensor:
        time.sleep(0.2)
        return original(self, image, key, notes)

    monkeypatch.setattr(TrainTransform, "__call__", slow)
    feed = opened(folder, streaming).feed(0, 100)
    started = time.monotonic()
    feed.close()
    feed.close()
    assert time.monotonic() - started < 1
    assert "imagetok-prefetch" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(StopIteration):
        next(feed)


def test_a_feed_ends_after_its_steps_and_stays_ended(folder: Path) -> None:
    with opened(folder, True).feed(0, 2) as feed:
        assert len(list(feed)) == 2
        assert list(feed) == []


# Loading processes


def run_signalled(data: TrainingData, steps: int) -> Run:
    """A run whose loading processes get every signal that the training process handles."""
    with data.feed(0, steps) as feed:
        first = next(feed)
        for process in multiprocessing.active_children():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(process.pid or 0, number)
        step_batches = [first, *feed]
    return Run(
        [torch.cat([batch.rows for batch in step]).tolist() for step in step_batches],
        [torch.cat([batch.epochs for batch in step]).tolist() for step in step_batches],
        [torch.cat([batch.pixels for batch in step]) for step in step_batches],
        [[message for batch in step for message in batch.refused] for step in step_batches],
        [step[-1].position for step in step_batches],
    )


def assert_workers_change_nothing(folder: Path, streaming: bool, num_workers: int) -> None:
    plain = run(opened(folder, streaming), 13)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert_equal(run_signalled(opened(folder, streaming, num_workers=num_workers), 13), plain)
    assert multiprocessing.active_children() == []
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def test_two_workers_change_nothing_and_outlive_signals(broken_folder: Path) -> None:
    assert_workers_change_nothing(broken_folder, True, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("streaming", "num_workers"), [(False, 2), (True, 3), (True, 6)])
def test_workers_change_nothing(broken_folder: Path, streaming: bool, num_workers: int) -> None:
    assert_workers_change_nothing(broken_folder, streaming, num_workers)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", MODES)
def test_an_error_in_a_worker_is_told_in_one_line(tmp_path: Path, streaming: bool) -> None:
    place = write_split(tmp_path / "set", "parquet", [range(4), range(4, 8)], broken=range(8))
    with (
        opened(place, streaming, num_workers=2).feed(0, 1) as feed,
        pytest.raises(DataError) as caught,
    ):
        next(feed)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.parametrize("streaming", MODES)
def test_a_worker_that_is_killed_is_an_error(folder: Path, streaming: bool) -> None:
    with opened(folder, streaming, num_workers=2).feed(0, 10_000) as feed:
        next(feed)
        multiprocessing.active_children()[0].kill()
        with pytest.raises(DataError, match="ended from outside"):
            list(feed)
    assert multiprocessing.active_children() == []


FEEDER = """
import json, multiprocessing, sys, time
from pathlib import Path
from imagetok.config import RunConfig
from imagetok.data import open_training
from imagetok.images import Preprocessor

if __name__ == "__main__":
    config = RunConfig.from_json(sys.argv[1])
    steps = int(sys.argv[2])
    data = open_training(config, Preprocessor(config.tokenizer.image_size))
    with data.feed(0, steps) as feed:
        for number, batches in enumerate(feed):
            if number == steps // 2:
                break
        processes = [process.pid for process in multiprocessing.active_children()]
        masks, memory = [], 0
        for pid in ["self", *processes]:
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            )
            masks.append(int(status["SigBlk"], 16))
            memory += int(status["RssAnon"].split()[0])
        print(json.dumps({"pids": processes, "masks": masks, "memory": memory}), flush=True)
        if len(sys.argv) > 3:
            time.sleep(600)
"""


def feeder(tmp_path: Path, config: RunConfig, steps: int, *more: str) -> subprocess.Popen[str]:
    script = tmp_path / "feeder.py"
    script.write_text(FEEDER)
    return subprocess.Popen(
        [sys.executable, str(script), config.to_json(), str(steps), *more],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def first_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    return dict(json.loads(process.stdout.readline()))


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "zombie" not in status.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("streaming", MODES)
def test_workers_block_signals_from_the_first_on_and_end_with_a_killed_trainer(
    tmp_path: Path, folder: Path, streaming: bool
) -> None:
    config = data_config(folder, streaming=streaming, num_workers=2)
    with feeder(tmp_path, config, 1000, "wait") as process:
        told = first_line(process)
        process.kill()
    wanted = sum(1 << (number - 1) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))
    own, *workers = told["masks"]
    assert own & wanted == 0
    assert [mask & wanted for mask in workers] == [wanted] * 2
    deadline = time.monotonic() + 30
    while any(map(alive, told["pids"])) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(alive, told["pids"]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "webdataset", "pictures"])
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path, kind: str) -> None:
    """The shuffle buffers hold 512 images after the first of 200 steps of 8 images."""
    memory: dict[bool, list[int]] = {streaming: [] for streaming in MODES}
    for count in (2_000, 20_000):
        parts = [range(first, first + 500) for first in range(0, count, 500)]
        place = write_split(tmp_path / str(count), kind, parts)
        for streaming, measured in memory.items():
            config = data_config(place, streaming=streaming, window=512)
            with feeder(tmp_path, config, 400) as process:
                measured.append(first_line(process)["memory"])
    assert all(many < 1.1 * few for few, many in memory.values()), memory
