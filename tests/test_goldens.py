"""What version 1 made, later versions read, repeat and continue.

The files of `goldens/` are recorded by `goldens/record.py`. On a machine like the one that recorded
them, which `goldens/probe.json` tells, bits are compared; elsewhere ids may differ where the best
two codes are as good as equal and pixels by one level, and what is exact anywhere stays so.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from inspect import isclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from goldens import replay
from goldens.replay import GOLDENS, LEAST_MARGIN, NOT_COMPARED, read_json, read_tensors
from imagetok import ImageTokenizer, ImagetokError, RunConfig, TokenizerConfig, __version__
from imagetok.shards import Job

Values = dict[str, Any]

TOKENIZERS = sorted(path.stem for path in (GOLDENS / "expected").glob("*.json"))
JOBS = sorted(path.stem for path in (GOLDENS / "jobs").glob("*.json"))
KILLED = sorted(path.name.removesuffix("-killed") for path in (GOLDENS / "jobs").glob("*-killed"))
RUNS = sorted(path.stem for path in (GOLDENS / "runs").glob("*.json"))
CONFIGS = read_json(GOLDENS / "configs.json")
ANSWERS = read_json(GOLDENS / "answers.json")
NAMES = read_json(GOLDENS / "names.json")

datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with replay.one_thread():
        yield


@pytest.fixture(scope="module")
def exact() -> bool:
    """Whether this machine computes the bits of the one that recorded."""
    with replay.one_thread():
        found = replay.probe()
    recorded = read_json(GOLDENS / "probe.json")
    return {**found, "imagetok": ""} == {**recorded, "imagetok": ""}


def one_rank(name: str) -> bool:
    return int(read_json(GOLDENS / "runs" / f"{name}.json")["ranks"]) == 1


# Tokenizers


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_saved_tokenizer_gives_what_it_gave(name: str, exact: bool) -> None:
    recorded = read_json(GOLDENS / "expected" / f"{name}.json")
    facts, tensors = replay.tokenizer_facts(GOLDENS / "tokenizers" / name)
    assert {key: recorded[key] for key in facts} == facts
    if exact:
        digests = {key: replay.tensors_digest({key: value}) for key, value in tensors.items()}
        assert {key: recorded["digests"][key] for key in digests} == digests
    else:
        check_closely(name, tensors)


def check_closely(name: str, tensors: dict[str, Tensor]) -> None:
    """Compare what another kind of machine may round otherwise."""
    expected = read_tensors(GOLDENS / "expected" / f"{name}.safetensors")
    tokenizer = ImageTokenizer.from_pretrained(GOLDENS / "tokenizers" / name)
    assert {key for key in tensors if key not in replay.BY_DIGEST} <= expected.keys()
    for key in ("ids", "prepared_ids"):
        if key in expected:
            clear = expected[f"{key}_margins"] > LEAST_MARGIN
            assert torch.equal(tensors[key][clear], expected[key][clear])
            assert clear.float().mean() > 0.98
    if "ids" in expected:
        grid = (expected["prepared_ids"].shape[1], expected["prepared_ids"].shape[2])
        again = replay.stack(tokenizer.decode(expected["ids"]))
        wide = replay.stack(tokenizer.decode(expected["prepared_ids"], grid=grid))
        assert replay.same_images(again, expected["decoded"], levels=1)
        assert replay.same_images(wide, expected["prepared_decoded"], levels=1)
        assert tensors["ids"].dtype == torch.int64
        return
    for key in ("decoded", "interpolated", "sampled"):
        if key in expected:
            assert replay.same_images(tensors[key], expected[key], levels=1)
    for key in ("latents", "prepared_latents", "mean", "log_var"):
        if key in expected:
            torch.testing.assert_close(tensors[key], expected[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_saved_tokenizer_is_saved_again_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    source = GOLDENS / "tokenizers" / name
    ImageTokenizer.from_pretrained(source).save_pretrained(tmp_path)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / file).read_bytes() == (source / file).read_bytes(), file


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_fingerprint_stays_that_of_the_float32_weights(dtype: str) -> None:
    for name in ("vqvae", "dvae", "ae"):
        recorded = read_json(GOLDENS / "expected" / f"{name}.json")
        found = ImageTokenizer.from_pretrained(GOLDENS / "tokenizers" / name, dtype=dtype)
        assert found.fingerprint == recorded["fingerprint"]


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name.startswith(("vq", "dvae"))])
def test_the_recorded_ids_are_those_of_float64_where_margins_are_clear(name: str) -> None:
    expected = read_tensors(GOLDENS / "expected" / f"{name}.safetensors")
    for key in ("ids", "prepared_ids"):
        clear = expected[f"{key}_margins"] > LEAST_MARGIN
        assert torch.equal(expected[key][clear], expected[f"{key}_in_float64"][clear])


# Runs


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_run_ends_in_the_bytes_that_it_ended_in(name: str, exact: bool, tmp_path: Path) -> None:
    recorded = read_json(GOLDENS / "expected" / f"{name}.json")
    replay.train_values(recorded["run"], tmp_path / "run")
    check_run(tmp_path / "run", recorded["trained"], exact)
    check_weights(tmp_path / "run", GOLDENS / "tokenizers" / name / "model.safetensors", exact)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if one_rank(n) else pytest.mark.slow) for n in RUNS]
)
def test_a_run_goes_on_from_an_old_checkpoint_to_the_same_bytes(
    name: str, exact: bool, tmp_path: Path
) -> None:
    recorded = read_json(GOLDENS / "runs" / f"{name}.json")
    shutil.copytree(GOLDENS / "runs" / name, tmp_path / "run")
    shutil.copy(tmp_path / "run" / "config.yaml", tmp_path / "recipe.yaml")
    ranks = recorded["ranks"]
    replay.train_here(tmp_path / "recipe.yaml", tmp_path / "run", resume=True, ranks=ranks)
    check_run(tmp_path / "run", recorded, exact)
    state = json.loads((tmp_path / "run/checkpoints/step-00000020/state.json").read_text())
    assert state == recorded["state"]


def check_run(folder: Path, recorded: Values, exact: bool) -> None:
    found = replay.run_facts(folder)
    assert found["files"].keys() == recorded["files"].keys()
    assert found["config_yaml"] == recorded["config_yaml"]
    assert found["data_fingerprint"] == recorded["data_fingerprint"]
    assert set(recorded["metric_keys"]) <= set(found["metric_keys"])
    assert set(recorded["figure_keys"]) <= set(found["figure_keys"])
    lines = list(zip(found["losses"], recorded["losses"], strict=True))
    assert all(one.keys() == other.keys() for one, other in lines)
    assert lines[0][0] == pytest.approx(lines[0][1], rel=1e-3)
    if exact:
        skipped = {*NOT_COMPARED, "config.yaml"}
        files, others = found["files"], recorded["files"]
        differing = [key for key in files if files[key] != others[key] and key not in skipped]
        assert not differing
        assert found["losses"] == recorded["losses"]
        assert {key: found["figures"][key] for key in recorded["figures"]} == recorded["figures"]
        check_card(found["card"], recorded["card"])


def check_card(found: Values, recorded: Values) -> None:
    assert found["metadata"] == recorded["metadata"]
    assert Counter(recorded["numbers"]) - Counter(found["numbers"]) == Counter()


def check_weights(folder: Path, recorded: Path, exact: bool) -> None:
    found = read_tensors(folder / "tokenizer" / "model.safetensors")
    expected = read_tensors(recorded)
    shapes = [{key: (t.shape, t.dtype) for key, t in one.items()} for one in (found, expected)]
    assert shapes[0] == shapes[1]
    if exact:
        assert [key for key in found if not torch.equal(found[key], expected[key])] == []


# Jobs


@pytest.mark.parametrize("name", JOBS)
def test_a_job_writes_the_bytes_that_it_wrote(
    name: str, exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGETOK_BACKEND", "torch")  # the search that there was
    recorded = read_json(GOLDENS / "jobs" / f"{name}.json")
    assert replay.command("tokenize", *recorded["arguments"], "--output-dir", tmp_path) == 0
    check_job(tmp_path, name, recorded, exact)


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_job_is_finished_without_options(name: str, exact: bool, tmp_path: Path) -> None:
    recorded = read_json(GOLDENS / "jobs" / f"{name}.json")
    shutil.copytree(GOLDENS / "jobs" / f"{name}-killed", tmp_path / "out")
    done = {path: path.stat().st_ino for path in (tmp_path / "out" / "data").glob("*.parquet")}
    old = Job.from_json((tmp_path / "out" / "job.json").read_text()).numerics.versions
    arguments = [*recorded["arguments"], "--output-dir", tmp_path / "out"]
    if old != versions_here():  # bits may differ then, and the command wants to be told so
        arguments.append("--allow-mixed-numerics")
    assert replay.command("tokenize", *arguments) == 0
    assert done
    assert {path: path.stat().st_ino for path in done} == done
    check_job(tmp_path / "out", name, recorded, exact and old == versions_here())


@pytest.mark.parametrize("name", JOBS)
def test_an_old_tokenized_dataset_is_verified(name: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDENS / "jobs" / name, tmp_path / "out")
    assert replay.command("verify", tmp_path / "out") == 0


def versions_here() -> Any:
    versions = {**replay.probe()["versions"], "imagetok": __version__}
    job = read_json(GOLDENS / "jobs" / f"{JOBS[0]}" / "job.json")
    job["numerics"]["versions"] = versions
    return Job.from_dict(job).numerics.versions


def check_job(folder: Path, name: str, recorded: Values, exact: bool) -> None:
    found = replay.job_facts(folder)
    assert found["names"] == recorded["names"]
    assert found["errors"] == recorded["errors"]
    assert not list(folder.rglob(".*"))
    jobs = [json.loads(facts["job_json"]) for facts in (found, recorded)]
    for job in jobs:
        del job["numerics"]["versions"]
    assert jobs[0] == jobs[1]
    version = read_json(GOLDENS / "probe.json")["imagetok"]
    if exact:
        texts = [replay.without_version(facts["job_json"]) for facts in (found, recorded)]
        assert texts[0] == texts[1]
    if exact and __version__ == version:
        assert found["files"] == recorded["files"]
        assert found["manifest"] == recorded["manifest"]
        check_card(found["card"], recorded["card"])
        return
    totals = [{**facts["manifest"]["totals"], "bytes": 0} for facts in (found, recorded)]
    assert totals[0] == totals[1]
    for path in sorted(recorded["files"]):
        if path.endswith(".parquet"):
            check_shard(folder / path, GOLDENS / "jobs" / name / path)


def check_shard(found: Path, recorded: Path) -> None:
    one, other = (pq.read_table(path, partitioning=None) for path in (found, recorded))
    assert one.schema.remove_metadata() == other.schema.remove_metadata()
    assert one.drop_columns(["ids"]) == other.drop_columns(["ids"])
    rows, others = one["ids"].to_pylist(), other["ids"].to_pylist()
    assert [len(row) for row in rows] == [len(row) for row in others]
    pairs = [pair for row in zip(rows, others, strict=True) for pair in zip(*row, strict=True)]
    assert sum(a == b for a, b in pairs) >= 0.95 * len(pairs)


# Configs


@pytest.mark.parametrize("name", [name for name in CONFIGS if "tokenizer_text" in CONFIGS[name]])
def test_a_config_keeps_its_text_and_identity(name: str) -> None:
    recorded = CONFIGS[name]
    run = RunConfig.from_dict(recorded["values"])
    assert run == RunConfig.from_json(recorded["text"])
    assert run.to_dict() == recorded["values"]
    assert run.to_json() == recorded["text"]
    tokenizer = TokenizerConfig.from_json(recorded["tokenizer_text"])
    assert tokenizer == run.tokenizer
    assert tokenizer.to_json() == recorded["tokenizer_text"]
    assert tokenizer.identity() == recorded["identity"]
    text = json.dumps(tokenizer.identity(), sort_keys=True)
    assert replay.bytes_digest(text.encode()) == recorded["identity_digest"]


@pytest.mark.parametrize("name", [name for name in CONFIGS if "fingerprint" in CONFIGS[name]])
def test_a_job_keeps_its_text_and_fingerprint(name: str) -> None:
    recorded = CONFIGS[name]
    job = Job.from_dict(recorded["values"])
    assert job == Job.from_json(recorded["text"])
    assert job.to_json() == recorded["text"]
    assert job.fingerprint == recorded["fingerprint"]


# Answers and refusals


@pytest.mark.parametrize("name", TOKENIZERS)
def test_info_tells_what_it_told(name: str) -> None:
    found = json.loads(replay.output_of("info", f"tokenizers/{name}", "--json"))
    recorded = ANSWERS["info"][name]
    assert {key: found[key] for key in recorded} == recorded


@pytest.mark.parametrize(
    ("arguments", "code", "classes"),
    ANSWERS["ends"],
    ids=[" ".join(arguments) for arguments, *_ in ANSWERS["ends"]],
)
def test_commands_end_as_they_ended(
    arguments: list[str], code: int, classes: list[str], tmp_path: Path
) -> None:
    found = replay.exit_of(arguments, tmp_path / "out")
    assert found[0] == code
    assert set(classes) <= set(found[1])  # a refusal may become a narrower one


def test_refusals_are_of_the_classes_that_they_were_of() -> None:
    found = {name: replay.refusal_of(call) for name, call in replay.refusals().items()}
    assert found.keys() == ANSWERS["refusals"].keys()
    for name, classes in ANSWERS["refusals"].items():
        assert classes, name
        assert set(classes) <= set(found[name]), name


# Names


@pytest.mark.parametrize("module", NAMES["modules"])
def test_every_public_name_is_where_it_was(module: str) -> None:
    home, kinds = import_module(module), NAMES["modules"][module]
    missing = [name for name in kinds if not hasattr(home, name)]
    assert not missing
    found = {name: replay.kind_of(getattr(home, name)) for name in kinds}
    if "value" not in kinds.values():
        assert found == kinds
    changed = [name for name in kinds if kinds[name] not in ("value", found[name])]
    assert not changed
    assert set(kinds) <= set(getattr(home, "__all__", kinds))


@pytest.mark.parametrize(("module", "name"), NAMES["printed_imports"])
def test_every_import_that_the_guides_print_works(module: str, name: str) -> None:
    assert replay.resolve(module, name) is not None


@pytest.mark.parametrize("place", NAMES["parameters"])
def test_public_calls_take_what_they_took(place: str) -> None:
    value = replay.resolve(*place.rsplit(".", 1))
    found, recorded = replay.signatures(value), NAMES["parameters"][place]
    assert set(recorded) <= {*found, *(dir(value) if isclass(value) else ())}
    for method, parameters in recorded.items():
        today = {name: [kind, default] for name, kind, default in found.get(method, [])}
        for name, kind, default in parameters:
            assert today.pop(name, None) == [kind, default], f"{place}.{method}: {name}"
        positional = [name for name, kind, _ in parameters if "POSITIONAL" in kind]
        still = [name for name, kind, _ in found.get(method, []) if "POSITIONAL" in kind]
        assert still[: len(positional)] == positional
        if place == "imagetok.TokenizerOutput":  # a result, which callers read and do not make
            today.pop("mean", None)
        new = [name for name, (kind, default) in today.items() if default is None]
        assert not [name for name in new if "VAR" not in today[name][0]], f"{place}.{method}"


@pytest.mark.parametrize("command", NAMES["options"])
def test_commands_take_the_options_that_they_took(command: str) -> None:
    assert set(NAMES["options"][command]) <= set(replay.options_of(command))


def test_every_error_is_also_a_builtin_exception() -> None:
    errors = vars(import_module("imagetok.errors"))
    named = [errors[name] for name in errors if name.endswith("Error") and name != "ImagetokError"]
    assert all(issubclass(kind, ImagetokError) for kind in named)
    assert [kind for kind in named if replay.kind_of(kind) == "error ()"] == []
