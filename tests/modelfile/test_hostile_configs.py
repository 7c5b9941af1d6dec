"""Hostile configs, in the header and in config.json: every field, refused by its name."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forged_files import Forgery, allocations, write
from pydantic import BaseModel

from imagetok import ImageTokenizer, modelfile
from imagetok.config import TokenizerConfig
from imagetok.config.registry import find_part, known_types
from imagetok.errors import ModelFileError
from imagetok.tokenizer_config import PreprocessingConfig

CONV = {"type": "conv", "hidden_channels": 8, "residual_channels": 4}
DALLE = {"type": "dalle", "hidden_channels": 8, "num_groups": 2, "blocks_per_group": 1}
SYSTEMS: dict[str, dict[str, Any]] = {
    "ae": {
        "encoder": {"type": "mlp", "hidden": [4]},
        "bottleneck": {"type": "identity", "latent_dim": 2},
        "decoder": {"type": "mlp", "hidden": [4]},
        "likelihood": {"type": "mse"},
    },
    "vae": {
        "preprocessing": {"color_profile": "srgb"},
        "encoder": CONV,
        "bottleneck": {"type": "gaussian", "latent_dim": 2},
        "decoder": CONV,
        "likelihood": {"type": "l1"},
    },
    "vqvae": {
        "encoder": CONV,
        "bottleneck": {"type": "vq", "codebook_size": 8, "latent_dim": 2, "code_dim": 3},
        "decoder": CONV,
        "likelihood": {"type": "mse"},
    },
    "dvae": {
        "encoder": DALLE,
        "bottleneck": {"type": "gumbel", "codebook_size": 8, "latent_dim": 2, "noise": "hash"},
        "decoder": DALLE,
        "likelihood": {"type": "logit_laplace"},
    },
}
Path_ = tuple[str | int, ...]

HUGE = 10**400
EVIL: list[Any] = [
    None, "", "8", "True", "8.0", "nan", [], [8], {}, {"type": "mlp"}, -1, -0.5, 8.5, 2**31, 2**62,
    2**64, HUGE, -HUGE, math.nan, math.inf, -math.inf, 1e300, [[[[1]]]], ["a"] * 100, "x" * 10_000,
    "\x1b[31m\n", "os.system",
]  # fmt: skip
"""What no field means, but for the exceptions of `FINE`."""

MISTYPED: dict[type, list[Any]] = {
    bool: [0, 1, 0.0, 1.0],
    int: [True, False, 8.0, 0.0, 1.0],
    float: [True, False],
    str: [True, False, 0, 1, 1.0],
}
"""Values that Python takes for equal to those of a type, and a field does not."""

FINE: dict[str, list[Any]] = {
    "preprocessing": [{}],
    "encoder": [{"type": "mlp"}],
    "decoder": [{"type": "mlp"}],
    "hidden": [[], [8]],
    "code_dim": [None],
    "scale": [8.5],
}


def fields(values: Any, place: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every place of nested values, and what stands there."""
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in inner:
        yield (*place, key), value
        if isinstance(value, dict | list):
            yield from fields(value, (*place, key))


def at(values: Any, place: Path_) -> Any:
    for key in place:
        values = values[key]
    return values


def set_at(values: Any, place: Path_, value: Any) -> None:
    at(values, place[:-1])[place[-1]] = value


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Forgery]:
    """A file of every system."""
    found = {}
    for name, system in SYSTEMS.items():
        config = TokenizerConfig.from_dict({"image_size": [8, 8], **system})
        folder = tmp_path_factory.mktemp(name)
        ImageTokenizer.from_config(config).save_pretrained(folder)
        found[name] = Forgery.read(folder / modelfile.MODEL_FILE)
    return found


@pytest.fixture(params=list(SYSTEMS))
def forgery(request: pytest.FixtureRequest, saved: dict[str, Forgery]) -> Forgery:
    return saved[request.param]


def refusal(folder: Path, file: str) -> str:
    """The message with which a folder is refused; it names the file, and is short."""
    with allocations() as made, pytest.raises(ModelFileError) as caught:
        modelfile.load_model(folder)
    message = str(caught.value)
    assert made.largest < 2**16
    assert f"{file}'" in message
    assert message.isprintable()
    assert len(message) < 2000
    assert "pydantic" not in message
    return message


def refusals(forgery: Forgery, values: Any, folder: Path) -> Iterator[str]:
    """The messages for a config in the header, and for one in config.json."""
    forged = forgery.changed(lambda header: header.update(config=values))
    yield refusal(write(folder / "header", forged), modelfile.MODEL_FILE)
    text = json.dumps(values).encode()
    yield refusal(write(folder / "copy", forgery, text), modelfile.CONFIG_FILE)


def named(place: Path_, messages: Iterator[str]) -> None:
    """Check that every message names the field."""
    for message in messages:
        field = next(key for key in reversed(place) if isinstance(key, str))
        assert field in message or (field == "type" and place[-2] in message), message


PARTS = [
    find_part(kind, name)
    for kind in ("encoder", "bottleneck", "decoder", "likelihood")
    for name in known_types(kind)
]
MODELS: list[type[BaseModel]] = [
    TokenizerConfig,
    PreprocessingConfig,
    *(part for part in PARTS if part.__module__.startswith("imagetok.")),
]
TYPES = {model.model_fields["type"].default for model in MODELS if "type" in model.model_fields}
REQUIRED = {"type"} | {
    name for model in MODELS for name, field in model.model_fields.items() if field.is_required()
}


def test_the_systems_have_every_field_of_the_schema(saved: dict[str, Forgery]) -> None:
    walked = [found for file in saved.values() for found in fields(file.header["config"])]
    keys = {place[-1] for place, _ in walked if isinstance(place[-1], str)}
    assert keys == {name for model in MODELS for name in model.model_fields}
    assert {value for place, value in walked if place[-1] == "type"} == TYPES


def test_every_field_refuses_every_value_that_it_cannot_mean(
    forgery: Forgery, tmp_path: Path
) -> None:
    good = forgery.header["config"]
    for place, value in list(fields(good)):
        fine = FINE.get(str(place[-1]), [])
        for evil in EVIL + MISTYPED.get(type(value), []):
            if any(repr(evil) == repr(each) for each in fine):
                continue
            values = copy.deepcopy(good)
            set_at(values, place, evil)
            named(place, refusals(forgery, values, tmp_path))


def test_every_part_refuses_keys_that_it_does_not_know(forgery: Forgery, tmp_path: Path) -> None:
    good = forgery.header["config"]
    places = [(), *(place for place, value in fields(good) if isinstance(value, dict))]
    for place in places:
        for key in ("surprise", "__class__", "Type", "", "a.b", "\x1b[31m", "k" * 1000):
            values = copy.deepcopy(good)
            at(values, place)[key] = 1
            for message in refusals(forgery, values, tmp_path):
                assert "unknown key '" in message
                assert "valid keys here: " in message
                assert ".".join(map(str, place[:1])) in message


def test_every_key_that_has_no_default_is_missed_by_name(forgery: Forgery, tmp_path: Path) -> None:
    good = forgery.header["config"]
    missed: set[str | int] = set()
    for place, _ in list(fields(good)):
        short = isinstance(place[-1], int) and place[-2] != "hidden"  # size or colour of fewer
        if short or place[-1] in REQUIRED:
            values = copy.deepcopy(good)
            del at(values, place[:-1])[place[-1]]
            named(place, refusals(forgery, values, tmp_path))
            missed.add(place[-1])
    assert missed >= {"image_size", "encoder", "bottleneck", "decoder", "likelihood", "type", 0}
    assert ("codebook_size" in missed) == ("codebook_size" in good["bottleneck"])


@pytest.mark.parametrize("part", ["encoder", "bottleneck", "decoder", "likelihood"])
def test_types_are_looked_up_in_a_table_and_nowhere_else(
    saved: dict[str, Forgery], tmp_path: Path, part: str
) -> None:
    strange = {"", "VQ", " vq", "vq\0", "ConvConfig", "torch.nn.Linear", "os.system", "../conv"}
    forgery = saved["vqvae"]
    own = {file.header["config"][part]["type"] for file in saved.values()}
    for kind in sorted(strange | TYPES - own):
        values = copy.deepcopy(forgery.header["config"])
        values[part] = {"type": kind}
        for message in refusals(forgery, values, tmp_path):
            assert f"unknown {part} '" in message
            assert f"choose one of: {', '.join(sorted(own))}" in message


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "more down than up": ({"decoder": {**CONV, "num_downsamplings": 1}}, r"\(4, 4\).*\(2, 2\)"),
    "networks of two kinds": ({"decoder": {"type": "mlp"}}, r"\(4, 4\).*\(8, 8\)"),
    "a size that does not divide": ({"image_size": [8, 6]}, r"image_size \(8, 6\) .* factor 4"),
    "a factor beyond the size": (
        {"encoder": {**CONV, "num_downsamplings": 4}, "decoder": {**CONV, "num_downsamplings": 4}},
        r"image_size \(8, 8\) .* factor 16",
    ),
    "a codebook beyond memory": (
        {"bottleneck": {"type": "vq", "codebook_size": 2**24, "latent_dim": 65_536}},
        "codebook of 16777216 x 65536 values",
    ),
    "an embedding beyond memory": (
        {"bottleneck": {"type": "gumbel", "codebook_size": 2**24, "latent_dim": 65_536}},
        "codebook of 16777216 x 65536 values",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_parts_that_contradict_each_other_are_refused(
    saved: dict[str, Forgery], tmp_path: Path, case: str
) -> None:
    changes, message = CONTRADICTIONS[case]
    values = {**saved["vqvae"].header["config"], **changes}
    for found in refusals(saved["vqvae"], values, tmp_path):
        assert re.search(message, found)


LARGEST: dict[str, Any] = {
    "image_size": [16_384, 16_384],
    "hidden": [65_536] * 64,
    "hidden_channels": 16_384,
    "residual_channels": 65_536,
    "num_residual_blocks": 64,
    "blocks_per_group": 64,
    "num_downsamplings": 10,
    "num_groups": 8,
    "codebook_size": 2**24,
    "code_dim": 128,
    "latent_dim": 128,
}


def test_the_largest_sizes_that_a_config_may_have_are_held_against_the_file_first(
    forgery: Forgery, tmp_path: Path
) -> None:
    good = forgery.header["config"]
    largest = copy.deepcopy(good)
    for place, _ in list(fields(good)):
        if place[-1] in LARGEST:
            set_at(largest, place, LARGEST[str(place[-1])])
    assert TokenizerConfig.from_dict(largest).to_dict() == largest
    write(tmp_path, forgery.changed(lambda header: header.update(config=largest)))
    with allocations() as made, pytest.raises(ModelFileError, match="do not fit the config"):
        ImageTokenizer.from_pretrained(tmp_path)
    assert made.largest < 2**20
