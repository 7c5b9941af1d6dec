"""Recipes and overrides: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagetok.config import ScheduleConfig, TokenizerConfig, load_recipe, recipe_names
from imagetok.config.recipe import dump_recipe
from imagetok.errors import ConfigError, UnreadableFileError
from tiny_runs import SYSTEMS, tiny_run, tiny_values


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values("vqvae")))
    return str(path)


# The shipped recipes


def test_the_promised_recipes_are_there() -> None:
    shapes = {f"{system}-shapes" for system in SYSTEMS}
    assert shapes | {"vae-digits-2d", "vqvae-imagenet", "dvae-dalle"} <= set(recipe_names())
    assert recipe_names() == sorted(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_new_tokenizers_convert_colours_to_srgb(name: str) -> None:
    assert load_recipe(name).tokenizer.preprocessing.color_profile == "srgb"


def test_the_vqvae_of_shapes_has_factor_4_and_512_codes() -> None:
    config = load_recipe("vqvae-shapes").tokenizer
    assert config.factors == (4, 4)
    assert config.image_size == (64, 64)
    assert config.bottleneck.model_dump()["codebook_size"] == 512


@pytest.mark.parametrize("system", SYSTEMS)
def test_small_recipes_are_of_their_system_on_the_built_in_shapes(system: str) -> None:
    config = load_recipe(f"{system}-shapes")
    kinds = {"ae": "identity", "vae": "gaussian", "vqvae": "vq", "dvae": "gumbel"}
    assert config.tokenizer.bottleneck.type == kinds[system]
    assert config.data.name == "builtin:shapes"
    assert config.data.split != config.data.evaluation_split


def test_the_dvae_of_dalle_has_the_published_schedules() -> None:
    config = load_recipe("dvae-dalle")
    temperature, lr = config.train.temperature, config.train.optimizer.lr
    assert isinstance(temperature, ScheduleConfig)
    assert isinstance(lr, ScheduleConfig)
    assert (temperature.start, temperature.end, temperature.steps) == (1.0, 1 / 16, 150_000)
    kl = config.train.loss_weights["loss/kl"]
    assert isinstance(kl, ScheduleConfig)
    assert (kl.start, kl.end, kl.steps) == (0.0, 6.6, 5_000)
    assert (lr.start, lr.end, lr.steps) == (1e-4, 1.25e-6, 1_200_000)


# Dumping


@pytest.mark.parametrize("name", recipe_names())
def test_a_dumped_recipe_reads_back_the_same(tmp_path: Path, name: str) -> None:
    config = load_recipe(name, ["train.optimizer.epsilon=1e-12", "data.subset='on'"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_recipe(config))
    assert load_recipe(str(path)) == config
    assert dump_recipe(load_recipe(str(path))) == dump_recipe(config)


@pytest.mark.parametrize(
    "text", ["null", "1e5", "2026-01-31", "a: b", "# a", "yes", "über", "a\nb", " a ", "!x", "''"]
)
def test_any_name_survives_being_dumped(tmp_path: Path, text: str) -> None:
    config = tiny_run("ae", data={"name": text})
    path = tmp_path / "config.yaml"
    path.write_text(dump_recipe(config), encoding="utf-8")
    assert load_recipe(str(path)).data.name == text


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("data.name", "1e4", "1e4"),
        ("train.steps", "1e4", 10_000),
        ("train.steps", "1.5E+3", 1500),
        ("train.optimizer.lr", "1.0e-3", 1e-3),
        ("tokenizer.bottleneck.codebook_size", "1e2", 100),
        ("tokenizer.image_size", "[1e2, 32]", (100, 32)),
    ],
)
def test_a_number_with_an_exponent_is_an_integer_where_one_is_wanted(
    tmp_path: Path, path: str, text: str, expected: Any
) -> None:
    values: Any = tiny_values("vqvae")
    *parents, last = path.split(".")
    node = values
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = "PLACE"
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(values).replace("PLACE", text))
    config: Any = load_recipe(str(file))
    for part in path.split("."):
        config = getattr(config, part)
    assert (config, type(config)) == (expected, type(expected))


@pytest.mark.parametrize("text", ["'1e4'", "1.5e0", "1e-4", "10000.0"])
def test_what_is_not_an_integer_is_refused_where_one_is_wanted(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    values = tiny_values("vqvae")
    values["train"]["steps"] = "PLACE"
    file.write_text(yaml.safe_dump(values).replace("PLACE", text))
    with pytest.raises(ConfigError, match=r"train\.steps"):
        load_recipe(str(file))


# Overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps=7", 7),
        ("train.optimizer.lr=1e-3", 1e-3),
        ("train.optimizer.lr=1.0e-3", 1e-3),
        ("train.optimizer.lr=2", 2.0),
        ("train.optimizer.clip_norm=null", None),
        ("train.optimizer.clip_norm=", None),
        ("train.optimizer.betas=[0.5, 0.9]", (0.5, 0.9)),
        ("train.ema_decay=0.5", 0.5),
        ("data.name=./a b/c=d", "./a b/c=d"),
        ("data.split=train[:90%]", "train[:90%]"),
        ("data.flip=true", True),
        ("data.crop_scale=[0.8, 1.0]", (0.8, 1.0)),
        ("data.subset='123'", "123"),
        ("data.subset=null", None),
        ("data.subset=2026-01-02", "2026-01-02"),
        ("data.name=2024", "2024"),
        ("data.name=null", "null"),
        ("data.name=[a]", "[a]"),
        ("data.name=photos #2", "photos #2"),
        ("data.name='a' and 'b'", "'a' and 'b'"),
        ("train.init_from=1e4", "1e4"),
        ("train.steps=1e4", 10_000),
        ("train.steps=1.5E+3", 1500),
        ("data.stratify=3", 3),
        ("tokenizer.image_size=[1e2, 32]", (100, 32)),
        ("train.optimizer.lr=1e1", 10.0),
        ("tokenizer.bottleneck.codebook_size=1e2", 100),
    ],
)
def test_an_override_sets_the_value_at_its_path(recipe: str, override: str, expected: Any) -> None:
    config: Any = load_recipe(recipe, [override])
    for part in override.split("=")[0].split("."):
        config = getattr(config, part)
    assert config == expected
    assert type(config) is type(expected)


def test_a_mapping_replaces_what_was_there(recipe: str) -> None:
    schedule = "train.optimizer.lr={type: cosine, start: 1.0e-3, end: 0, steps: 5}"
    lr = load_recipe(recipe, [schedule]).train.optimizer.lr
    assert lr == ScheduleConfig(type="cosine", start=1e-3, end=0.0, steps=5)
    assert load_recipe(recipe, [schedule, "train.optimizer={}"]).train.optimizer.lr == 3e-4


def test_overrides_reach_into_mappings_and_the_last_one_counts(recipe: str) -> None:
    overrides = ["train.loss_weights.loss/commitment=0.5", "train.steps=1", "train.steps=2"]
    train = load_recipe(recipe, overrides).train
    assert train.loss_weights == {"loss/commitment": 0.5}
    assert train.steps == 2


def test_the_recipe_itself_is_left_as_it_is(recipe: str) -> None:
    before = load_recipe(recipe)
    load_recipe(recipe, ["train.steps=99", "tokenizer.encoder.hidden_channels=8"])
    assert load_recipe(recipe) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", r"'train\.steps' is not of the form key\.path=value"),
        ("=7", "'=7' is not of the form"),
        ("train.steps.more=7", "'steps' holds a value, not further keys"),
        ("train.stepz=7", r"unknown key 'train\.stepz'; valid keys here: .*steps"),
        ("trian.steps=7", "unknown key 'trian'; valid keys here: data, tokenizer, train"),
        ("tokenizer.bottleneck.type=vqq", "unknown tokenizer.bottleneck 'vqq'; choose one of:"),
        ("train.steps=1.5", "train.steps: found 1.5"),
        ("train.steps=1.55e1", "train.steps: found 15.5; expected an integer"),
        ("data.crop_scale=[]", r"data.crop_scale: found \[\]; expected 2 values$"),
        ("train.optimizer.lr=NaN", "train.optimizer.lr.*found nan"),
        ("data.crop_scale=[", "'data.crop_scale=\\[' is not valid YAML"),
        ("data.flip=2026-13-45", "is not valid YAML: month must be in 1..12"),
        ("data.flip=2026-01-02", "not expressible as JSON: .*date"),
        ("data.crop_scale=" + "[" * 100_000, "is not valid YAML"),
        ("data.stratify=abc", "data.stratify: found 'abc'; expected true or false, or an integer$"),
        ("train..steps=7", r"unknown key 'train\.'"),
    ],
)
def test_an_override_without_a_meaning_is_refused(recipe: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe, [override])


# What a saved tokenizer fills in


def test_a_saved_tokenizer_is_read_where_the_recipe_starts_from_one_and_describes_none(
    tmp_path: Path,
) -> None:
    saved = tiny_run("dvae").tokenizer
    asked: list[str] = []

    def read_saved(folder: str) -> TokenizerConfig:
        asked.append(folder)
        return saved

    whole, bare = tiny_values("vqvae"), tiny_values("vqvae")
    del bare["tokenizer"]
    for name, values in (("whole", whole), ("bare", bare)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    start = "train.init_from=folder"
    found = load_recipe(str(tmp_path / "whole.yaml"), [start], read_saved)
    assert found.tokenizer == tiny_run("vqvae").tokenizer
    assert asked == []
    overrides = ["tokenizer.bottleneck.split_below=0.5", start]
    found = load_recipe(str(tmp_path / "bare.yaml"), overrides, read_saved)
    assert found.tokenizer == tiny_run("dvae", bottleneck={"split_below": 0.5}).tokenizer
    assert asked == ["folder"]
    for arguments in (([start],), ([], read_saved)):
        with pytest.raises(ConfigError, match="missing key 'tokenizer'"):
            load_recipe(str(tmp_path / "bare.yaml"), *arguments)


# Files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokenizer: [1", r"recipe '.*' is not valid YAML in line \d: "),
        ("a: b: c", r"is not valid YAML in line 1: mapping values are not allowed here"),
        ("- 1\n- 2", "is not a mapping with tokenizer, data and train"),
        ("", "is not a mapping with tokenizer, data and train"),
        ("just text", "is not a mapping with tokenizer, data and train"),
        ("train: {steps: 5}", "missing key 'tokenizer'; missing key 'data'"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(str(path))


def test_a_number_that_yaml_takes_for_text_is_explained(tmp_path: Path) -> None:
    values = yaml.safe_dump(tiny_values("ae")).replace("lr: 0.001", "lr: 1e-3")
    (tmp_path / "a.yaml").write_text(values)
    with pytest.raises(ConfigError, match=r"found the text '1e-3'; YAML wants a point"):
        load_recipe(str(tmp_path / "a.yaml"))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"data: \xff")
    for name, reason in itertools.chain(
        [("missing.yaml", "No such file"), ("folder.yaml", "Is a directory")],
        [("latin.yaml", "it is not UTF-8 text")],
    ):
        with pytest.raises(UnreadableFileError, match=f"{name}': {reason}"):
            load_recipe(str(tmp_path / name))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'vqvae'; choose one of: .*vqvae-shapes"):
        load_recipe("vqvae")
