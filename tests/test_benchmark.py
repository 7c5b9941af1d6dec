"""The benchmark finds what does not agree, and says what it leaves out. Nothing here is timed."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import benchmark
from benchmarks import inference, loading, search
from benchmarks.measurement import Case, measure
from benchmarks.variant_process import CaseError, Variant

from toy_variants import case, fail, give

RIGHT = Variant("right", partial(give, [0, 1, 2, 3]))
NEAR = Variant("near", partial(give, [0, 1, 2, 4]), is_exact=False)
WRONG = Variant("wrong", partial(give, [0, 1, 2, 4]))


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (WRONG, r"wrong differs from peer in 25\.000% of the result; at most 0\.000% may"),
        (Variant("broken", fail), r"broken: (?s:.*)no such model"),
    ],
)
def test_a_variant_that_is_wrong_is_not_timed(variant: Variant, message: str) -> None:
    with pytest.raises(CaseError, match=message):
        measure(case("toy", variant), rounds=1, seconds=1)


def test_what_was_measured_skipped_and_failed_is_said_in_words_and_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        case("toy", RIGHT, NEAR),
        case("lacking", RIGHT, requires=("no-such-peer",)),
        case("wrong", WRONG),
    ]
    monkeypatch.setattr(benchmark, "all_cases", lambda *_: cases)
    monkeypatch.setattr(benchmark, "describe_machine", dict)
    path = tmp_path / "figures.json"
    assert benchmark.main(["--rounds", "2", "--json", str(path)]) == 1
    found: dict[str, Any] = json.loads(path.read_text())
    assert [(row["variant"], row["different"]) for row in found["rows"]] == [
        ("peer", None),
        ("right", 0),
        ("near", 0.25),
    ]
    assert all(row["rounds"] == 2 and row["seconds"] > 0 for row in found["rows"])
    assert found["skipped"] == {"lacking": "not installed: no-such-peer"}
    assert list(found["failed"]) == ["wrong"]
    printed = capsys.readouterr()
    assert "lacking: skipped, not installed: no-such-peer" in printed.err
    assert printed.out.count("| toy |") == 3


def test_ids_of_a_search_may_differ_only_where_two_codes_are_equally_near() -> None:
    vectors, codes = torch.tensor([[0.0], [1.0]]), torch.tensor([[-1.0], [1.0], [3.0]])
    expected, tables = np.array([0, 1]), lambda: {"": (vectors, codes)}
    assert search.different_ids(tables, "", expected, np.array([1, 1])) == 0
    assert search.different_ids(tables, "", expected, np.array([0, 2])) == 0.5


@pytest.mark.parametrize(
    ("difference", "step"),
    [
        (inference.different_ids, 1),
        (inference.different_pixels, 1.1 / 510),
        (loading.different_pixels, 2),
    ],
)
def test_one_wrong_value_in_four_is_a_quarter(difference: Any, step: float) -> None:
    expected = np.array([[0, 50], [100, 200]], dtype=np.asarray(step).dtype)
    found = expected.copy()
    assert difference("", expected, found) == 0
    found[1, 0] += step
    assert difference("", expected, found) == 0.25
    assert difference("", expected, found[:1]) == 1


def test_every_case_has_a_name_of_its_own() -> None:
    cases: list[Case] = benchmark.all_cases(Path("folder"), Path("older"))
    names = [each.name for each in cases]
    assert len(set(names)) == len(names)
    assert all(len({v.name for v in each.variants}) == len(each.variants) for each in cases)
