"""The model that a run begins with: its weights, what learns, and where its codebook starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from imagetok import ImageTokenizer
from imagetok.bottlenecks import VectorQuantizer
from imagetok.builtin import first_index, render, scene
from imagetok.config import RunConfig, TrainConfig, load_recipe
from imagetok.config.recipe import dump_recipe
from imagetok.data import TrainingData, open_training
from imagetok.errors import ConfigError, ModelFileError
from imagetok.keys import make_keys
from imagetok.launch import collectives
from imagetok.training import initial_model, train
from imagetok.training.initial_model import (
    PARTS,
    build_model,
    initialize_bottleneck,
    load_run,
    prepare_parts,
)
from imagetok.training.plan import plan_run
from tiny_runs import CODEBOOK_SIZE, SYSTEMS, read_lines, tiny_run, tiny_values

KINDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    **{system: (system, {}) for system in SYSTEMS},
    "vqvae, loss": ("vqvae", {"codebook": "loss"}),
    "vqvae, projected": ("vqvae", {"code_dim": 3, "normalize": True}),
    "dvae, hard": ("dvae", {"hard": True}),
}
FREEZES = (
    ("encoder",),
    ("bottleneck",),
    ("decoder",),
    ("encoder", "bottleneck"),
    ("encoder", "decoder"),
    ("bottleneck", "decoder"),
)
WITHOUT_WEIGHTS = {"ae", "vae", "vqvae"}
"""Kinds whose bottleneck has nothing that gradients could change."""

CPU = torch.device("cpu")

Save = Callable[[str], str]


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Save a tokenizer of a kind, with weights that no run's seed gives, and give its folder."""
    done: dict[str, str] = {}

    def make(kind: str) -> str:
        if kind not in done:
            system, bottleneck = KINDS[kind]
            torch.manual_seed(1234)
            model = ImageTokenizer.from_config(tiny_run(system, bottleneck=bottleneck).tokenizer)
            for network in (model.encoder, model.decoder):
                with torch.no_grad():
                    network.layers[0].bias.fill_(-0.0)  # an average makes 0.0 of it
            folder = tmp_path_factory.mktemp("saved") / kind
            model.save_pretrained(folder)
            (folder / "config.json").unlink()  # a copy for people, which nothing here reads
            done[kind] = str(folder)
        return done[kind]

    return make


def fine_tuning(kind: str, folder: str, **changes: Any) -> RunConfig:
    system, bottleneck = KINDS[kind]
    changes["bottleneck"] = {**bottleneck, **changes.get("bottleneck", {})}
    return tiny_run(system, init_from=folder, **changes)


def pictures(split: str, count: int) -> Tensor:
    """Drawn images as float (count, 3, 16, 16)."""
    first = first_index(split)
    drawn = [torch.from_numpy(render(scene(first + i), 16).copy()) for i in range(count)]
    return torch.stack(drawn).permute(0, 3, 1, 2) / 255


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bytes; 0.0 and -0.0 are not."""
    return one.numpy().tobytes() == other.numpy().tobytes()


# Where a run starts


@pytest.mark.parametrize("system", SYSTEMS)
def test_without_a_saved_tokenizer_the_weights_are_those_of_the_seed(system: str) -> None:
    config = tiny_run(system, seed=5)
    caller = torch.get_rng_state()
    model = build_model(config, CPU)
    assert torch.equal(torch.get_rng_state(), caller)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = ImageTokenizer.from_config(config.tokenizer).state_dict()
    for name, tensor in model.state_dict().items():
        assert same_bits(tensor, expected[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_starts_as_the_saved_tokenizer_and_all_of_it_learns(save: Save, kind: str) -> None:
    saved = ImageTokenizer.from_pretrained(save(kind))
    model = build_model(fine_tuning(kind, save(kind)), CPU)
    expected = saved.state_dict()
    for name, tensor in model.state_dict().items():
        assert same_bits(tensor, expected[name]), name
    assert all(weight.requires_grad for weight in model.parameters())
    x, keys = pictures("train", 4), make_keys(0, 0, range(4), "noise")
    losses = saved(x, keys=keys).losses
    for name, loss in model(x, keys=keys).losses.items():
        assert float(loss.detach()) == float(losses[name]), name


def test_how_the_codebook_learns_is_the_runs_and_what_it_holds_the_saved_ones(save: Save) -> None:
    bottleneck = {"codebook": "loss", "restart_below": 0.0, "gradient": "rotation"}
    model = build_model(fine_tuning("vqvae", save("vqvae"), bottleneck=bottleneck), CPU)
    found = model.bottleneck
    assert isinstance(found, VectorQuantizer)
    assert (found.averaged, found.restart_below, found.gradient) == (False, 0.0, "rotation")
    assert isinstance(found.codebook, torch.nn.Parameter)
    saved = ImageTokenizer.from_pretrained(save("vqvae"))
    assert torch.equal(found.codebook, saved.get_buffer("bottleneck.codebook"))
    assert model.fingerprint == saved.fingerprint


@pytest.mark.parametrize("kind", ["ae", "vqvae"])
def test_the_first_loss_of_a_run_is_the_saved_tokenizers(
    save: Save, tmp_path: Path, kind: str
) -> None:
    data = {"name": "builtin:shapes?size=16&count=8"}  # the first batch is all of the data
    train(fine_tuning(kind, save(kind), data=data, steps=1), tmp_path / "run", progress=False)
    (line,) = read_lines(tmp_path / "run" / "losses.jsonl")
    losses = ImageTokenizer.from_pretrained(save(kind))(pictures("train", 8)).losses
    assert losses.keys() < line.keys()
    for name, loss in losses.items():  # k-means would start the codebook of the vqvae elsewhere
        assert line[name] == pytest.approx(float(loss), rel=1e-5), name


def test_a_resumed_run_does_not_need_the_tokenizer_that_it_started_from() -> None:
    config = fine_tuning("ae", "gone")
    with pytest.raises(ModelFileError, match="'gone' does not exist; expected a folder"):
        build_model(config, CPU)
    assert build_model(config, CPU, resuming=True).image_size == (16, 16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputing_activations_changes_no_bit_of_a_run(tmp_path: Path, precision: str) -> None:
    settings = {"precision": precision, "ema_decay": 0.9}
    for name, recompute in (("kept", False), ("recomputed", True)):
        config = tiny_run("vqvae", gradient_checkpointing=recompute, **settings)
        train(config, tmp_path / name, progress=False)
    for name in ("losses.jsonl", "tokenizer/model.safetensors"):
        one, other = ((tmp_path / run / name).read_bytes() for run in ("kept", "recomputed"))
        assert one == other, name


# Another architecture


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder": {"type": "conv", "hidden_channels": 8}},
            "tokenizer.encoder.hidden_channels: the recipe says 8, {} says 16",
        ),
        (
            {"bottleneck": {"type": "identity", "latent_dim": 4}},
            'tokenizer.bottleneck.type: the recipe says "identity", {} says "vq"',
        ),
        (
            {"bottleneck": {"type": "vq", "codebook_size": 9, "latent_dim": 4}},
            "tokenizer.bottleneck.codebook_size: the recipe says 9, {} says 12",
        ),
        ({"image_size": [16, 32]}, "tokenizer.image_size: the recipe says [16, 32], {} says [16"),
        (
            {"preprocessing": {"resize": "bilinear"}},
            'tokenizer.preprocessing.resize: the recipe says "bilinear", {} says "bicubic"',
        ),
        (
            {"likelihood": {"type": "mse", "scale": "learnt"}},
            'tokenizer.likelihood.scale: the recipe says "learnt", {} says 0.7',
        ),
    ],
)
def test_another_architecture_is_refused_with_both_values(
    save: Save, changes: dict[str, Any], message: str
) -> None:
    values = tiny_values("vqvae", init_from=save("vqvae"))
    values["tokenizer"] |= changes
    with pytest.raises(ConfigError) as refusal:
        build_model(RunConfig.from_dict(values), CPU)
    assert message.format(save("vqvae")) in str(refusal.value)
    assert "leave the `tokenizer` section out of the recipe" in str(refusal.value)


def test_every_difference_is_named_and_nothing_else(save: Save) -> None:
    values = tiny_values("vqvae", init_from=save("vqvae"), bottleneck={"decay": 0.5})
    values["tokenizer"]["encoder"] = {"type": "conv", "num_residual_blocks": 3}
    values["tokenizer"]["decoder"] = {"type": "dalle", "num_groups": 3}
    with pytest.raises(ConfigError) as refusal:
        build_model(RunConfig.from_dict(values), CPU)
    named = [part.split(": ")[-2] for part in str(refusal.value).split("; ")[:-1]]
    assert named == [
        "tokenizer.encoder.hidden_channels",
        "tokenizer.encoder.residual_channels",
        "tokenizer.encoder.num_residual_blocks",
        "tokenizer.decoder.type",
    ]


# Recipes without a tokenizer


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """A recipe without a tokenizer section and without a place to start from."""
    values = tiny_values("vqvae")
    del values["tokenizer"]
    path = tmp_path / "further.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_a_recipe_without_a_tokenizer_has_the_saved_ones(
    save: Save, recipe: str, tmp_path: Path
) -> None:
    config = load_run(recipe, [f"train.init_from={save('dvae')}", "train.steps=2"])
    assert config.tokenizer == ImageTokenizer.from_pretrained(save("dvae")).config
    assert (config.train.init_from, config.train.steps) == (save("dvae"), 2)
    path = tmp_path / "config.yaml"
    path.write_text(dump_recipe(config))
    assert load_run(str(path)) == config


def test_overrides_lie_on_top_of_the_saved_tokenizers_section(save: Save, recipe: str) -> None:
    overrides = ["tokenizer.bottleneck.decay=0.5", f"train.init_from={save('vqvae')}"]
    expected = fine_tuning("vqvae", save("vqvae"), bottleneck={"decay": 0.5})
    assert load_run(recipe, overrides) == expected
    values = yaml.safe_load(Path(recipe).read_text())
    values["train"]["init_from"] = save("vqvae")  # it may stand in the recipe as well
    Path(recipe).write_text(yaml.safe_dump(values))
    assert load_run(recipe, overrides[:1]) == expected


def test_a_recipe_of_the_package_treats_colours_as_the_saved_tokenizer_does(tmp_path: Path) -> None:
    config = load_recipe("vqvae-shapes").tokenizer.with_color_profile("ignore")
    ImageTokenizer.from_config(config).save_pretrained(tmp_path)
    overrides, key = [f"train.init_from={tmp_path}"], "tokenizer.preprocessing.color_profile"
    assert load_run("vqvae-shapes", overrides).tokenizer == config
    explicit = load_run("vqvae-shapes", [*overrides, f"{key}=srgb"])
    with pytest.raises(ConfigError, match=rf'{key}: the recipe says "srgb", .* says "ignore"'):
        build_model(explicit, "cpu")


def test_a_tokenizer_section_counts_as_it_stands(save: Save, tmp_path: Path) -> None:
    values = tiny_values("vqvae", init_from="gone")
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump(values))
    assert load_run(str(path)) == RunConfig.from_dict(values)


def test_a_place_without_a_tokenizer_is_refused(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"'.*none' does not exist; expected a folder that"):
        load_run(recipe, [f"train.init_from={tmp_path / 'none'}"])
    with pytest.raises(ModelFileError, match=r"holds no model\.safetensors; expected a folder"):
        load_run(recipe, [f"train.init_from={tmp_path}"])
    with pytest.raises(ModelFileError, match=r"'7' does not exist"):
        load_run(recipe, ["train.init_from=7"])
    with pytest.raises(ConfigError, match="missing key 'tokenizer'"):
        load_run(recipe, ["train.init_from=null"])


# Freezing


@pytest.mark.parametrize("parts", FREEZES)
@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_not_frozen_gets_a_gradient_and_nothing_else(
    kind: str, parts: tuple[str, ...]
) -> None:
    system, bottleneck = KINDS[kind]
    config = tiny_run(system, bottleneck=bottleneck, init_from="gone", freeze=list(parts))
    model = ImageTokenizer.from_config(config.tokenizer)
    if kind in WITHOUT_WEIGHTS and set(PARTS) - set(parts) == {"bottleneck"}:
        with pytest.raises(ConfigError, match=r"leaves only the bottleneck, without weights"):
            prepare_parts(model, config)
        return
    prepare_parts(model, config)
    torch.stack(list(model(pictures("train", 4)).losses.values())).sum().backward()
    for name, weight in model.named_parameters():
        # A weight that learns without a gradient would stop a run of several ranks.
        assert (weight.grad is not None) == (not name.startswith(parts)), name


@pytest.mark.parametrize("system", SYSTEMS)
def test_freezing_everything_is_refused(system: str) -> None:
    config = tiny_run(system, init_from="gone", freeze=list(PARTS))
    for make in (plan_run, lambda run: build_model(run, CPU, resuming=True)):
        with pytest.raises(ConfigError, match=r"decoder\] leaves nothing to learn; freeze fewer"):
            make(config)


def test_a_part_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="freeze names a part twice: encoder, decoder, encoder"):
        tiny_run("ae", init_from="folder", freeze=["encoder", "decoder", "encoder"])


def test_freezing_random_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"would keep random weights; .* as init_from"):
        tiny_run("ae", freeze=["encoder"])


FROZEN_CODEBOOKS: Mapping[str, dict[str, Any]] = {
    "vqvae": {"restart_below": 0.9, "decay": 0.0},
    "vqvae, loss": {"restart_below": 0.9},
    "vqvae, projected": {"restart_below": 0.9},
    "dvae": {"split_below": 0.9},
}


@pytest.mark.parametrize("kind", FROZEN_CODEBOOKS)
def test_training_the_decoder_only_keeps_ids_and_fingerprint(
    save: Save, tmp_path: Path, kind: str
) -> None:
    settings: dict[str, Any] = {"optimizer": {"lr": 0.01, "weight_decay": 0.1}, "ema_decay": 0.5}
    config = fine_tuning(
        kind,
        save(kind),
        bottleneck=FROZEN_CODEBOOKS[kind],
        freeze=["encoder", "bottleneck"],
        **settings,
    )
    result = train(config, tmp_path / "run", progress=False)
    before = ImageTokenizer.from_pretrained(save(kind))
    after = ImageTokenizer.from_pretrained(result.tokenizer_dir)
    held_out = pictures("test", 32)
    assert torch.equal(after.encode(held_out), before.encode(held_out))
    assert after.fingerprint == before.fingerprint
    moved = 0
    for name, weight in before.state_dict().items():
        if name.startswith("decoder."):
            moved += not torch.equal(after.state_dict()[name], weight)
        else:
            assert same_bits(after.state_dict()[name], weight), name
    assert moved == len(list(before.decoder.parameters()))
    figures = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert figures
    assert all(0 < line["codebook/usage"] <= 1 for line in figures)


# Where a codebook starts: encoder outputs of the first images, whoever encodes them


class Recorder:
    """A VQ-VAE whose bottleneck keeps the vectors that it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **bottleneck: Any) -> None:
        self.data_changes = {"crop_scale": [0.5, 1.0], "flip": True}
        config = tiny_run("vqvae", bottleneck=bottleneck)
        torch.manual_seed(0)
        self.model = ImageTokenizer.from_config(config.tokenizer).double()
        self.given: list[Tensor] = []
        monkeypatch.setattr(self.model.bottleneck, "initialize", self.given.append)

    def data(self, **train: Any) -> tuple[TrainingData, TrainConfig]:
        config = tiny_run("vqvae", data=self.data_changes, **train)
        return open_training(config, self.model.preprocessor), config.train

    def vectors(self, **train: Any) -> Tensor:
        initialize_bottleneck(self.model, *self.data(**train))
        return self.given.pop()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def test_there_are_four_vectors_a_code_and_they_are_encoder_outputs(recorder: Recorder) -> None:
    vectors = recorder.vectors()
    assert vectors.shape == (4 * CODEBOOK_SIZE, 4)
    with recorder.data()[0].feed(0, 1, 0, 1) as feed:
        ((batch,),) = feed
    pixels = batch.pixels[:3]
    with torch.no_grad():
        outputs = recorder.model.encoder(pixels.double() / 255)
    # 48 vectors are all 16 positions of three images, in some order within each.
    expected = outputs.flatten(2).transpose(1, 2)
    for image, found in enumerate(vectors.view(3, 16, 4)):
        distance = torch.cdist(found, expected[image])
        assert distance.amin(dim=1).max() < 1e-12
        assert sorted(distance.argmin(dim=1).tolist()) == list(range(16))


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 8, "accumulation": 4}])
def test_neither_batches_nor_micro_batches_matter(
    recorder: Recorder, changes: dict[str, int]
) -> None:
    torch.testing.assert_close(recorder.vectors(**changes), recorder.vectors(batch_size=32))


def test_equal_seeds_choose_equal_vectors(recorder: Recorder) -> None:
    assert torch.equal(recorder.vectors(), recorder.vectors())
    assert not torch.equal(recorder.vectors(seed=1), recorder.vectors())


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_shares_of_the_ranks_join_to_the_vectors_of_one(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    whole = recorder.vectors()
    monkeypatch.setattr(collectives, "world_size", lambda: ranks)
    monkeypatch.setattr(
        initial_model, "_choose_vectors", lambda z, *_: z.flatten(2).mT.flatten(0, 1)
    )
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        shares.append(recorder.vectors())
    # Without the others each rank gives what it encoded, of one step.
    joined = torch.cat(shares)[: len(whole)]
    torch.testing.assert_close(joined.sort(0).values, whole.sort(0).values)


def test_the_codebook_becomes_centres_of_these_vectors_and_a_bar_is_shown(
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = tiny_run("vqvae")
    torch.manual_seed(0)
    model = ImageTokenizer.from_config(config.tokenizer)
    data = open_training(config, model.preprocessor)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    initialize_bottleneck(model, data, config.train, progress=True)
    assert "k-means:   0%" in capfd.readouterr().err
    with data.feed(0, 1, 0, 1) as feed:
        ((batch,),) = feed
    pixels = batch.pixels[:3]
    with torch.no_grad():
        ids = model.bottleneck.encode_ids(model.encoder(pixels.float() / 255))
    assert len(ids.unique()) == CODEBOOK_SIZE
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("system", ["ae", "vae", "dvae"])
def test_other_bottlenecks_ask_for_nothing(system: str) -> None:
    config = tiny_run(system)
    model = ImageTokenizer.from_config(config.tokenizer)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    data: Any = None  # reading it would fail
    initialize_bottleneck(model, data, config.train)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
