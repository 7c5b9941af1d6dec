"""JSON lines that a resumed run takes up where its checkpoint stands."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from imagetok.errors import UnreadableFileError, UnwritableFileError
from imagetok.training.reporter import Records
from tiny_runs import read_lines


def write_steps(path: Path, steps: range, next_step: int = 0) -> None:
    records = Records(path, next_step)
    for step in steps:
        records.write(step, {"loss": step / 3})
    records.close()


def test_every_line_is_an_object_with_its_step_and_a_new_run_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    for steps in (range(3), range(2)):
        write_steps(path, steps)
        assert read_lines(path) == [{"step": step, "loss": step / 3} for step in steps]


def test_a_resumed_run_leaves_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    write_steps(tmp_path / "whole", range(8))
    write_steps(tmp_path / "resumed", range(6))
    write_steps(tmp_path / "resumed", range(4, 8), next_step=4)
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("cut", [1, 2, 5, 14])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path, cut: int) -> None:
    write_steps(tmp_path / "whole", range(4))
    complete = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(complete[:-cut])
    write_steps(tmp_path / "cut", range(3, 4), next_step=3)
    assert (tmp_path / "cut").read_bytes() == complete


def test_a_cut_line_that_looks_whole_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "loss": 0.5}')
    Records(path, 2).close()
    assert path.read_text() == '{"step": 0, "loss": 1.0}\n'


@pytest.mark.parametrize("line", ["", "nonsense", "[1]", "{}"])
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path: Path, line: str) -> None:
    path = tmp_path / "losses.jsonl"
    text = f'{{"step": 0}}\n{line}\n{{"step": 1}}\n'
    path.write_text(text)
    with pytest.raises(UnreadableFileError, match=r"line 2 of .* is not a record of a step"):
        Records(path, 2)
    assert path.read_text() == text


def test_what_was_flushed_is_valid_json_even_where_values_are_not_finite(tmp_path: Path) -> None:
    records = Records(tmp_path / "metrics.jsonl", 4)  # a missing file is no error on resuming
    records.write(4, {"optim/grad_norm": math.inf, "psnr": math.nan, "loss": 1})
    records.flush()
    records.sync()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    values = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert values == {"step": 4, "optim/grad_norm": None, "psnr": None, "loss": 1}
    records.close()
    records.close()


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    records = Records(tmp_path / "losses.jsonl", 0, write=False)
    records.write(0, {"loss": 1.0})
    records.flush()
    records.sync()
    records.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "losses.jsonl").mkdir()
    with pytest.raises(UnwritableFileError, match=r"losses\.jsonl"):
        Records(tmp_path / "losses.jsonl", 0)
