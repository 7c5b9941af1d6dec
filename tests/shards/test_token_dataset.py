"""A tokenized dataset is read whole, in one order for any number of processes, and resumed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_jobs import (
    caption,
    count_up,
    ids_of,
    rewrite,
    write_streamed_tokens,
    write_tokens,
)
from torch.utils.data import DataLoader

from imagetok.errors import (
    DataError,
    ImagetokError,
    InvalidTypeError,
    InvalidValueError,
    UnreadableFileError,
)
from imagetok.shards.shard_reader import ShardReader
from imagetok.shards.token_dataset import TokenDataset, TokenLoader

ROWS = 50
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def dataset(folder: Path, batch_size: int | None = 4, **options: Any) -> TokenDataset:
    return TokenDataset(folder, batch_size=batch_size, **{"window": 10, **options})


def in_a_row(batches: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def rows_of(items: Any) -> list[list[int]]:
    """Rows of every batch, checked to have their own ids and captions."""
    found = []
    for batch in items:
        rows = batch["row"].tolist()
        assert batch["ids"].dtype == torch.int64
        assert batch["ids"].tolist() == [ids_of(row) for row in rows]
        assert batch["caption"] == [caption(row) for row in rows]
        assert batch["label"] == [row % 2 for row in rows]
        found.append(rows)
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_every_row_comes_once_an_epoch_over_ranks_and_processes(
    tokens: Path, world_size: int, num_workers: int
) -> None:
    found: list[int] = []
    for rank in range(world_size):
        part = dataset(tokens, rank=rank, world_size=world_size)
        part.set_epoch(2)
        batches = rows_of(TokenLoader(part, num_workers=num_workers))
        assert [len(batch) for batch in batches[:-1]] == [4] * (len(part) - 1)
        found += in_a_row(batches)
    assert sorted(found) == list(range(ROWS))


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
@pytest.mark.parametrize("window", [1, 10, 1000])
def test_what_is_read_does_not_depend_on_the_number_of_processes(
    tokens: Path, batch_size: int, window: int
) -> None:
    part = dataset(tokens, batch_size, window=window, rank=1, world_size=2)
    alone = rows_of(part)
    for num_workers in (1, 3):
        assert rows_of(TokenLoader(part, num_workers=num_workers)) == alone


def test_a_plain_loader_of_torch_reads_the_same(tokens: Path) -> None:
    part = dataset(tokens)
    plain = DataLoader(part, batch_size=None, num_workers=2)
    assert rows_of(plain) == rows_of(part)
    assert len(plain) == len(part) == 13


def test_single_rows_come_in_the_order_of_batches(tokens: Path) -> None:
    batches = rows_of(dataset(tokens))
    for num_workers in (0, 2):
        items = list(TokenLoader(dataset(tokens, None), num_workers=num_workers))
        assert [item["row"] for item in items] == in_a_row(batches)
        assert all(item["ids"].tolist() == ids_of(item["row"]) for item in items)
        assert all(item["caption"] == caption(item["row"]) for item in items)
        assert items[0]["ids"].untyped_storage().nbytes() == 6 * 8
    assert len(dataset(tokens, None)) == ROWS


def test_the_order_of_rows_does_not_depend_on_the_batch_size(tokens: Path) -> None:
    orders = [in_a_row(rows_of(dataset(tokens, size))) for size in (1, 3, 16, 100)]
    assert orders.count(orders[0]) == 4


def test_every_epoch_has_its_own_order_and_every_pass_of_it_the_same(tokens: Path) -> None:
    part = dataset(tokens)
    first = rows_of(part)
    part.set_epoch(1)
    assert rows_of(part) != first
    part.set_epoch(0)
    assert rows_of(part) == first
    assert rows_of(dataset(tokens, seed=1)) != first


def test_processes_that_outlive_an_epoch_follow_set_epoch(tokens: Path) -> None:
    part = dataset(tokens)
    loader = TokenLoader(part, num_workers=2, persistent_workers=True)
    for epoch in range(3):
        part.set_epoch(epoch)
        expected = dataset(tokens)
        expected.set_epoch(epoch)
        assert rows_of(loader) == rows_of(expected)


def test_processes_that_are_spawned_follow_set_epoch(tokens: Path) -> None:
    part, expected = dataset(tokens), dataset(tokens)
    loader = TokenLoader(part, num_workers=1, multiprocessing_context="spawn")
    part.set_epoch(1)
    expected.set_epoch(1)
    assert rows_of(loader) == rows_of(expected)


def test_rows_come_as_in_the_input_where_nothing_is_shuffled(tokens: Path) -> None:
    assert in_a_row(rows_of(dataset(tokens, shuffle=False))) == list(range(ROWS))


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 3), (2, 0), (3, 2)])
def test_a_pass_goes_on_where_its_consumer_stood(tokens: Path, before: int, after: int) -> None:
    whole = rows_of(dataset(tokens, rank=0, world_size=2))
    assert len(whole) == 7
    for taken in (0, 1, 3, 6, 7):
        part = dataset(tokens, rank=0, world_size=2)
        loader = TokenLoader(part, num_workers=before)
        assert rows_of(islice(loader, taken)) == whole[:taken]
        state = json.loads(json.dumps(loader.state_dict()))
        assert state["rows"] == min(4 * taken, 25)
        resumed = TokenLoader(dataset(tokens, rank=0, world_size=2), num_workers=after)
        resumed.load_state_dict(state)
        assert rows_of(resumed) == whole[taken:]


def test_a_pass_that_went_on_can_be_interrupted_again(tokens: Path) -> None:
    loader = TokenLoader(dataset(tokens), num_workers=2)
    whole, found = rows_of(loader), []
    state = dataset(tokens).state_dict(0)
    for _ in range(5):
        loader = TokenLoader(dataset(tokens), num_workers=2)
        loader.load_state_dict(state)
        found += rows_of(islice(loader, 3))
        state = loader.state_dict()
    assert found == whole


def test_a_pass_goes_on_in_batches_of_another_size(tokens: Path) -> None:
    order = in_a_row(rows_of(dataset(tokens)))
    state = dataset(tokens, 4).state_dict(3)
    for size in (1, 5, 100):
        resumed = dataset(tokens, size)
        resumed.load_state_dict(state)
        assert in_a_row(rows_of(resumed)) == order[12:]


def test_an_epoch_goes_on_through_set_epoch_and_the_next_one_is_whole(tokens: Path) -> None:
    part = dataset(tokens)
    part.set_epoch(3)
    state = part.state_dict(4)
    resumed = dataset(tokens)
    loader = TokenLoader(resumed)
    loader.load_state_dict(state)
    assert resumed.epoch == 3
    resumed.set_epoch(3)
    assert rows_of(loader) == rows_of(part)[4:]
    resumed.set_epoch(4)
    assert loader.state_dict()["rows"] == 0
    assert loader.state_dict()["epoch"] == 4
    assert len(rows_of(loader)) == 13


def test_the_pass_after_one_that_went_on_is_whole_without_set_epoch(tokens: Path) -> None:
    loader = TokenLoader(dataset(tokens))
    loader.load_state_dict(dataset(tokens).state_dict(4))
    assert len(rows_of(loader)) == 9
    assert loader.state_dict()["rows"] == ROWS
    assert len(rows_of(loader)) == 13
    loader.load_state_dict(dataset(tokens).state_dict(4))
    assert len(rows_of(loader)) == 9


def test_a_state_of_one_rank_serves_the_others(tokens: Path) -> None:
    state = dataset(tokens, rank=0, world_size=3).state_dict(2)
    other = dataset(tokens, rank=2, world_size=3)
    whole = rows_of(other)
    other.load_state_dict(state)
    assert rows_of(other) == whole[2:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"window": 11}, "window: 10 there, 11 here"),
        ({"shuffle": False}, "shuffle: True there, False here"),
        ({"rank": 0, "world_size": 2}, "world_size: 1 there, 2 here"),
    ],
)
def test_a_state_of_another_order_is_refused(
    tokens: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        dataset(tokens, **changes).load_state_dict(dataset(tokens).state_dict(1))


@pytest.mark.parametrize("state", [None, {}, {"epoch": 1}, [1]])
def test_what_is_not_a_state_is_refused(tokens: Path, state: Any) -> None:
    with pytest.raises(InvalidTypeError, match="not a state of a TokenDataset"):
        dataset(tokens).load_state_dict(state)


def test_all_ranks_have_equally_many_full_batches_where_the_last_is_dropped(tokens: Path) -> None:
    parts = [dataset(tokens, 8, rank=r, world_size=3, drop_last=True) for r in range(3)]
    batches = [rows_of(part) for part in parts]
    assert [[len(batch) for batch in part] for part in batches] == [[8, 8]] * 3
    assert [len(part) for part in parts] == [2] * 3
    found = in_a_row(in_a_row(batches))
    assert len(set(found)) == 48


def test_memory_holds_no_more_than_a_shuffle_buffer(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = recorded_sizes(monkeypatch)
    rows_of(dataset(tokens, 7))
    assert sizes == [10, 10, 10, 10, 10]


def test_nothing_is_read_of_what_lies_behind(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = dataset(tokens, 8)
    part.load_state_dict(part.state_dict(4))
    sizes = recorded_sizes(monkeypatch)
    rows_of(part)
    assert sizes == [8, 10]


def recorded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of `ShardReader.gather` from now on."""
    sizes: list[int] = []
    gather = ShardReader.gather

    def recorded(self: ShardReader, shards: Any, rows: Any) -> Any:
        sizes.append(len(rows))
        return gather(self, shards, rows)

    monkeypatch.setattr(ShardReader, "gather", recorded)
    return sizes


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (None, {"caption", "label"}),
        ([], set()),
        (["label"], {"label"}),
        (["height", "caption", "width"], {"height", "caption", "width"}),
    ],
)
def test_the_columns_that_are_asked_for_are_read(
    tokens: Path, columns: Sequence[str] | None, expected: set[str]
) -> None:
    batch = next(iter(dataset(tokens, columns=columns, shuffle=False)))
    assert set(batch) == {"ids", "row", *expected}
    if "height" in expected:
        assert batch["height"] == [100, 101, 102, 103]


def test_streamed_rows_have_the_file_that_they_are_of(tmp_path: Path) -> None:
    folder = write_streamed_tokens(tmp_path / "tokens", 3, broken=[4, 5, 6, 7])
    found = []
    for batch in dataset(folder, 4):
        assert batch["ids"].tolist() == [ids_of(row) for row in batch["row"].tolist()]
        found += zip(batch["file"], batch["row"].tolist(), strict=True)
    kept = [0, 1, 2, 3, 8, 9]
    assert sorted(found) == [(f"part-{n}.tar", row) for n in range(3) for row in kept]
    single = next(iter(dataset(folder, None)))
    assert (single["file"], single["row"]) == found[0]


def test_images_of_their_own_sizes_come_with_their_grids(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "tokens", 20, 8, output__resize="native")
    batches = list(dataset(folder, 3, window=5))
    singles = list(dataset(folder, None, window=5))
    for place, single in enumerate(singles):
        row, (h, w) = single["row"], single["grid"]
        assert (h, w) == (1 + row % 2, 1 + row % 3)
        assert single["ids"].tolist() == list(range(row, row + h * w))
        batch = batches[place // 3]
        assert torch.equal(batch["ids"][place % 3], single["ids"])
        assert batch["grid"][place % 3] == (h, w)
    assert sorted(single["row"] for single in singles) == list(range(20))


def test_several_codes_of_a_position_come_one_after_another(tmp_path: Path) -> None:
    sizes = [512, 300, 4]
    deep = write_tokens(tmp_path / "deep", 20, 8, tokenizer__codebook_sizes=sizes)
    for batch in dataset(deep, 3, window=5):
        expected = [count_up(31 * row, (2, 3, 3), sizes).flatten() for row in batch["row"].tolist()]
        assert batch["ids"].tolist() == np.stack(expected).tolist()
    native = {"tokenizer__codebook_sizes": sizes, "output__resize": "native"}
    for single in dataset(write_tokens(tmp_path / "native", 20, 8, **native), None, window=5):
        row, (h, w) = single["row"], single["grid"]
        assert single["ids"].tolist() == count_up(row, (h, w, 3), sizes).flatten().tolist()


def test_ids_that_form_no_grid_come_in_their_order(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "tokens", 20, 8, tokenizer__grid_size=[6])
    assert sorted(in_a_row(rows_of(dataset(folder, 3)))) == list(range(20))


def test_shards_without_a_readable_row_are_passed_over(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "tokens", 20, 4, broken=[1, *range(4, 8), *range(16, 20)])
    assert sorted(in_a_row(rows_of(dataset(folder)))) == [0, 2, 3, *range(8, 16)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("place", ["footer", "values"])
def test_a_damaged_shard_is_named(copy: Path, num_workers: int, place: str) -> None:
    path = copy / "data" / "train-00003.parquet"
    content = bytearray(path.read_bytes())
    damaged = slice(4, 200) if place == "values" else slice(-9, None)
    content[damaged] = bytes(len(content[damaged]))
    path.write_bytes(content)
    loader = TokenLoader(dataset(copy), num_workers=num_workers)
    with pytest.raises(
        UnreadableFileError, match=r"^the shard .*train-00003.* is damaged"
    ) as failure:
        rows_of(loader)
    assert "\n" not in str(failure.value)


def test_no_damage_ends_in_an_error_of_another_library(copy: Path) -> None:
    path = copy / "data" / "train-00003.parquet"
    content = path.read_bytes()
    refused = []
    for place in range(0, len(content), 23):
        path.write_bytes(content[:place] + bytes([content[place] ^ 129]) + content[place + 1 :])
        try:
            assert len(list(dataset(copy, None))) == ROWS
        except ImagetokError as error:
            refused.append(str(error))
    assert len(refused) > len(content) / 23 / 4
    assert all("train-00003.parquet" in message for message in refused)


def replace_shard(folder: Path, change: Any) -> None:
    """Change the table of shard 3, and let the manifest list the new file's size."""
    path = folder / "data" / "train-00003.parquet"
    rewrite(path, change)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][3]["bytes"] = path.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_ids_out_of_range_never_reach_a_consumer(copy: Path) -> None:
    def change(table: Any) -> Any:
        ids = [[*values[:5], 512] for values in table.column("ids").to_pylist()]
        return table.set_column(0, "ids", [ids]).cast(table.schema)

    replace_shard(copy, change)
    with pytest.raises(UnreadableFileError, match=r"id 512 is out of range: expected \[0, 512\)"):
        rows_of(dataset(copy))


def test_a_shard_with_fewer_rows_than_listed_is_refused(copy: Path) -> None:
    replace_shard(copy, lambda table: table.slice(1))
    with pytest.raises(DataError, match=r"train-00003\.parquet' has 7 rows, the manifest says 8"):
        rows_of(dataset(copy))


def test_a_shard_of_another_job_is_refused(copy: Path, tmp_path: Path) -> None:
    other = write_tokens(tmp_path / "other", ROWS, 8, tokenizer__fingerprint="e" * 64)
    shutil.copy(other / "data" / "train-00003.parquet", copy / "data")
    with pytest.raises(ImagetokError, match=re.escape("was written by the job")):
        rows_of(dataset(copy))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"batch_size": 0},
            InvalidValueError,
            "batch_size must be at least 1 .*, got 0",
        ),
        ({"batch_size": 2.0}, InvalidTypeError, "batch_size must be an integer, got 2.0"),
        (
            {"window": 0},
            InvalidValueError,
            "window must be at least 1 .*, got 0",
        ),
        ({"rank": 2, "world_size": 2}, InvalidValueError, "rank 2 is not one of 2 ranks"),
        ({"rank": 1}, InvalidValueError, "give both rank and world_size, or neither"),
        ({"columns": "caption"}, InvalidTypeError, "columns must be a list of names"),
        ({"columns": ["title"]}, DataError, "no column 'title' .* caption, label, height, width"),
    ],
)
def test_arguments_out_of_range_are_refused(
    tokens: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dataset(tokens, **options)


def test_ranks_are_those_that_a_launcher_sets(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert rows_of(dataset(tokens)) == rows_of(dataset(tokens, rank=1, world_size=3))
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(InvalidValueError, match="RANK is not a number: 'one'"):
        dataset(tokens)
